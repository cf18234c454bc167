// SPDX-License-Identifier: Apache-2.0
//
// What a bundle says of itself: its files with size and SHA-256, its version, when it expires, and
// settings. As text it is JSON in one form only, so one manifest has one text, which is signed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/encoding.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

enum class FileRole : unsigned char { model, tokenizer, adapter, health, other };
NIBBLE_HIDDEN inline constexpr std::string_view kFileRoles[] = {"model", "tokenizer", "adapter",
                                                                "health", "other"};

struct ManifestFile {
  std::string name;  // below the bundle's folder, with '/' between folders
  FileRole role = FileRole::other;
  std::uint64_t size = 0;  // of the file as it is stored, in bytes
  Digest sha256{};         // of the file as it is stored
  // SHA-256 of each part of Manifest::chunk_size bytes, the last of which may be shorter. None if
  // the file is no larger than one part. A file that has them is verified by them, on several
  // threads at once; and they say what need not be downloaded.
  std::vector<Digest> chunks;
  std::string key;  // names the key with which the file is encrypted (sealed_file.hpp); or empty
  Digest seal{};    // of an encrypted file: SHA-256 of its head (SealedHead)
};

struct Manifest {
  std::string name;
  std::uint64_t version = 0;  // counts up
  // Seconds since 1970. A bundle is not installed after `expires`, unless that is 0; installed ones
  // go on. `created` is the earliest time that a device with a doubtful clock believes in.
  std::uint64_t created = 0;
  std::uint64_t expires = 0;
  std::uint64_t chunk_size = 0;     // bytes
  std::vector<ManifestFile> files;  // sorted by name
  std::vector<std::pair<std::string, std::string>> settings;  // sorted by key

  const ManifestFile* find(std::string_view file_name) const noexcept {
    for (const ManifestFile& file : files) {
      if (file.name == file_name) return &file;
    }
    return nullptr;
  }
  // The first file with this role; null if there is none.
  const ManifestFile* find(FileRole role) const noexcept {
    for (const ManifestFile& file : files) {
      if (file.role == role) return &file;
    }
    return nullptr;
  }
  const std::string* setting(std::string_view key) const noexcept {
    for (const auto& [known, value] : settings) {
      if (known == key) return &value;
    }
    return nullptr;
  }
};

// The limits of every manifest, whoever signed it.
struct ManifestLimits {
  static constexpr std::uint64_t kMinChunk = 256, kMaxChunk = std::uint64_t{1} << 30;  // bytes
  static constexpr std::uint64_t kMaxFile = std::uint64_t{1} << 46;                    // bytes
  static constexpr std::uint64_t kMaxNumber = std::uint64_t{1} << 53;  // JSON's exact integers
  static constexpr std::size_t kMaxFiles = 10'000, kMaxChunks = std::size_t{1} << 20;
  static constexpr std::size_t kMaxSettings = 256, kMaxText = 4096;  // bytes of a name or value
};

// The type of a manifest's text in an envelope.
NIBBLE_HIDDEN inline constexpr std::string_view kManifestType =
    "application/vnd.nibble.bundle.v1+json";
// The file of a bundle's folder that holds the signed manifest; no file of the manifest.
NIBBLE_HIDDEN inline constexpr std::string_view kBundleFile = "bundle.json";

namespace detail {

// How many chunks a file has in the manifest.
inline std::uint64_t n_chunks_of(std::uint64_t size, std::uint64_t chunk_size) noexcept {
  return size <= chunk_size || chunk_size == 0 ? 0 : (size - 1) / chunk_size + 1;
}

// That a name leads to a file in the folder and nowhere else, on any system.
inline Result<void> check_file_name(std::string_view name) {
  const auto bad = [&](const char* why) {
    return Error{Errc::malformed, "file " + io::quoted(name) + ": " + why};
  };
  if (name.empty() || name.size() > ManifestLimits::kMaxText) return bad("the length of its name");
  if (name == kBundleFile) return bad("it is the name of the manifest itself");
  std::string_view rest = name;
  for (;;) {
    const std::size_t end = rest.find('/');
    const std::string_view part = rest.substr(0, end);
    if (part.empty()) return bad("a name that begins or ends with '/', or has two of them");
    if (part == "." || part == "..") return bad("a name that leads out of the folder");
    if (part.back() == '.' || part.back() == ' ') return bad("a part that ends in '.' or ' '");
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  for (const char c : name) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7f || c == '\\' || c == ':') {
      return bad("a control character, '\\' or ':' in its name");
    }
  }
  return ok();
}

inline std::string lower_case(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  }
  return out;
}

// That the names are sorted, and no two are the same file, or a file and a folder, on any system.
inline Result<void> check_names(const std::vector<ManifestFile>& files) {
  std::vector<std::string> names;
  names.reserve(files.size());
  for (std::size_t i = 0; i < files.size(); ++i) {
    NIBBLE_CHECK(check_file_name(files[i].name));
    if (i > 0 && !(files[i - 1].name < files[i].name)) {
      return Error{Errc::malformed,
                   "file " + io::quoted(files[i].name) + " is there twice, or out of order"};
    }
    names.push_back(lower_case(files[i].name));
    names.back().push_back('/');  // sorts a folder right before what is in it
  }
  std::sort(names.begin(), names.end());
  for (std::size_t i = 1; i < names.size(); ++i) {
    if (names[i].starts_with(names[i - 1])) {
      names[i].pop_back();
      return Error{Errc::malformed, "file " + io::quoted(names[i]) +
                                        ": another has the same name in other case, or is a "
                                        "folder of it"};
    }
  }
  return ok();
}

}  // namespace detail

// That a manifest keeps to the format and its limits. Errors: malformed, limit.
inline Result<void> check_manifest(const Manifest& manifest) {
  using Limits = ManifestLimits;
  const auto limit = [](const std::string& what) { return Error{Errc::limit, what}; };
  const auto malformed = [](const std::string& what) { return Error{Errc::malformed, what}; };
  const std::uint64_t chunk = manifest.chunk_size;
  if (chunk < Limits::kMinChunk || chunk > Limits::kMaxChunk || (chunk & (chunk - 1)) != 0) {
    return limit("a chunk size of " + to_text(chunk) + "; powers of two from 256 to 2^30");
  }
  for (const std::uint64_t number : {manifest.version, manifest.created, manifest.expires}) {
    if (number > Limits::kMaxNumber) return limit("the number " + to_text(number));
  }
  if (manifest.name.size() > Limits::kMaxText) return limit("the length of the bundle's name");
  if (manifest.files.empty()) return malformed("a bundle without files");
  if (manifest.files.size() > Limits::kMaxFiles) return limit("the number of files");
  NIBBLE_CHECK(detail::check_names(manifest.files));
  std::uint64_t n_chunks = 0;
  for (const ManifestFile& file : manifest.files) {
    const std::string where = "file " + io::quoted(file.name);
    if (file.size > Limits::kMaxFile) return limit(where + ": its size " + to_text(file.size));
    if (file.key.size() > Limits::kMaxText) return limit(where + ": the length of its key's name");
    const std::uint64_t needed = detail::n_chunks_of(file.size, chunk);
    n_chunks += needed;
    if (n_chunks > Limits::kMaxChunks) return limit(where + ": the number of chunks");
    if (file.chunks.size() != needed) {
      return malformed(where + ": " + to_text(file.chunks.size()) + " chunks, not " +
                       to_text(needed));
    }
  }
  if (manifest.settings.size() > Limits::kMaxSettings) return limit("the number of settings");
  for (std::size_t i = 0; i < manifest.settings.size(); ++i) {
    const auto& [key, value] = manifest.settings[i];
    if (key.size() > Limits::kMaxText || value.size() > Limits::kMaxText) {
      return limit("setting " + io::quoted(key) + ": its length");
    }
    if (i > 0 && !(manifest.settings[i - 1].first < key)) {
      return malformed("setting " + io::quoted(key) + " is there twice, or out of order");
    }
  }
  return ok();
}

// The text of a manifest that check_manifest accepts.
inline std::string to_json(const Manifest& manifest) {
  std::string out = "{\"name\":" + io::json_text(manifest.name);
  const auto number = [&](const char* key, std::uint64_t value) {
    out.append(",\"").append(key).append("\":").append(to_text(value));
  };
  number("version", manifest.version);
  number("created", manifest.created);
  number("expires", manifest.expires);
  number("chunk_size", manifest.chunk_size);
  out += ",\"files\":[";
  const char* comma = "";
  for (const ManifestFile& file : manifest.files) {
    out.append(comma).append("{\"name\":").append(io::json_text(file.name));
    out.append(",\"role\":\"").append(kFileRoles[static_cast<std::size_t>(file.role)]).append("\"");
    number("size", file.size);
    out.append(",\"sha256\":\"").append(to_hex(file.sha256)).append("\"");
    if (!file.chunks.empty()) {
      out += ",\"chunks\":[";
      for (std::size_t i = 0; i < file.chunks.size(); ++i) {
        out.append(i == 0 ? "\"" : ",\"").append(to_hex(file.chunks[i])).append("\"");
      }
      out += ']';
    }
    if (!file.key.empty()) {
      out.append(",\"key\":").append(io::json_text(file.key));
      out.append(",\"seal\":\"").append(to_hex(file.seal)).append("\"");
    }
    out += '}';
    comma = ",";
  }
  out += "],\"settings\":{";
  comma = "";
  for (const auto& [key, value] : manifest.settings) {
    out.append(comma).append(io::json_text(key)).append(":").append(io::json_text(value));
    comma = ",";
  }
  return out + "}}";
}

namespace detail {

inline Result<Digest> read_digest(io::JsonReader& json) {
  NIBBLE_TRY(text, json.string());
  return digest_from_hex(text);
}

inline Result<FileRole> read_role(io::JsonReader& json) {
  NIBBLE_TRY(text, json.string());
  for (std::size_t i = 0; i < std::size(kFileRoles); ++i) {
    if (kFileRoles[i] == text) return static_cast<FileRole>(i);
  }
  return json.error("a role that is not known: " + io::quoted(text));
}

inline Result<ManifestFile> read_manifest_file(io::JsonReader& json, std::size_t& n_chunks) {
  ManifestFile file;
  const auto set = [](auto& out, auto value) -> Result<void> {
    if (!value) return std::move(value).error();
    out = *std::move(value);
    return ok();
  };
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key == "name") return set(file.name, json.string());
    if (key == "role") return set(file.role, read_role(json));
    if (key == "size") return set(file.size, json.unsigned_integer());
    if (key == "sha256") return set(file.sha256, read_digest(json));
    if (key == "key") return set(file.key, json.string());
    if (key == "seal") return set(file.seal, read_digest(json));
    if (key != "chunks") return json.error("a key that is not known: " + io::quoted(key));
    return json.array([&]() -> Result<void> {
      if (++n_chunks > ManifestLimits::kMaxChunks) return json.error("too many chunks");
      NIBBLE_TRY(digest, read_digest(json));
      file.chunks.push_back(digest);
      return ok();
    });
  }));
  return file;
}

}  // namespace detail

// Reads the text of a manifest. Every other text than that of to_json() is an error: keys that are
// missing, there twice, unknown or in another order, white space, numbers in another form. Errors:
// malformed, limit.
inline Result<Manifest> parse_manifest(std::string_view text) {
  return catch_out_of_memory([&]() -> Result<Manifest> {
    Manifest manifest;
    std::size_t n_chunks = 0;
    io::JsonReader json(text);
    const auto set = [](auto& out, auto value) -> Result<void> {
      if (!value) return std::move(value).error();
      out = *std::move(value);
      return ok();
    };
    NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
      if (key == "name") return set(manifest.name, json.string());
      if (key == "version") return set(manifest.version, json.unsigned_integer());
      if (key == "created") return set(manifest.created, json.unsigned_integer());
      if (key == "expires") return set(manifest.expires, json.unsigned_integer());
      if (key == "chunk_size") return set(manifest.chunk_size, json.unsigned_integer());
      if (key == "files") {
        return json.array([&]() -> Result<void> {
          if (manifest.files.size() == ManifestLimits::kMaxFiles) {
            return json.error("too many files");
          }
          NIBBLE_TRY(file, detail::read_manifest_file(json, n_chunks));
          manifest.files.push_back(std::move(file));
          return ok();
        });
      }
      if (key != "settings") return json.error("a key that is not known: " + io::quoted(key));
      return json.object([&](std::string name) -> Result<void> {
        if (manifest.settings.size() == ManifestLimits::kMaxSettings) {
          return json.error("too many settings");
        }
        NIBBLE_TRY(value, json.string());
        manifest.settings.emplace_back(std::move(name), std::move(value));
        return ok();
      });
    }));
    NIBBLE_CHECK(check_manifest(manifest));
    if (to_json(manifest) != text) {
      return Error{Errc::malformed, "a manifest that is not written in the one form that it has"};
    }
    return manifest;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
