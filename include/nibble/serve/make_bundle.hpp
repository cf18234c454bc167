// SPDX-License-Identifier: Apache-2.0
//
// Makes bundles: for tools and tests, not for devices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/envelope.hpp"
#include "nibble/serve/file_layer.hpp"
#include "nibble/serve/manifest.hpp"
#include "nibble/serve/sealed_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

namespace detail {

inline Result<Digest> read_seal(FileLayer& files, const std::string& path, std::uint64_t size,
                                const Crypto& crypto) {
  constexpr std::uint64_t kBytes = SealedHeader::kBytes;
  std::vector<std::byte> head(io::narrow<std::size_t>((std::min)(size, kBytes)));
  NIBBLE_CHECK(files.read(path, 0, head));
  NIBBLE_TRY(header, SealedHeader::parse(head, size));
  head.resize(io::narrow<std::size_t>(header.head_size()));
  NIBBLE_CHECK(files.read(path, 0, head));
  NIBBLE_TRY(sealed, SealedHead::copy(head, size));
  return crypto.sha256_of(sealed.bytes);
}

}  // namespace detail

// Size and hashes of a file in a bundle's folder. `chunk_size` is the manifest's, `key` the name of
// the key of an encrypted file. Errors: malformed (a key, but no encrypted file), those of the files
// and of Crypto.
inline Result<ManifestFile> describe_file(FileLayer& files, const std::string& folder,
                                          const std::string& name, FileRole role,
                                          std::uint64_t chunk_size, const Crypto& crypto,
                                          const std::string& key = {}) {
  return catch_out_of_memory([&]() -> Result<ManifestFile> {
    ManifestFile file;
    file.name = name;
    file.role = role;
    NIBBLE_TRY(size, files.size(folder + "/" + name));
    file.size = size;
    if (!key.empty()) {
      file.key = key;
      auto seal = detail::read_seal(files, folder + "/" + name, size, crypto);
      if (!seal) return std::move(seal).error().in(printable(name));
      file.seal = *seal;
    }
    NIBBLE_TRY(whole, crypto.sha256());
    std::vector<std::byte> bytes;
    for (std::uint64_t at = 0; at < size; at += chunk_size) {
      bytes.resize(io::narrow<std::size_t>((std::min)(chunk_size, size - at)));
      NIBBLE_CHECK(files.read(folder + "/" + name, at, bytes));
      NIBBLE_CHECK(whole->update(bytes));
      if (size <= chunk_size) continue;
      NIBBLE_TRY(chunk, crypto.sha256_of(bytes));
      file.chunks.push_back(chunk);
    }
    NIBBLE_TRY(digest, whole->finish());
    file.sha256 = digest;
    return file;
  });
}

// The text of "bundle.json". Files and settings may be in any order. Errors: those of
// check_manifest and of Crypto::sign, malformed (a name that is not UTF-8).
inline Result<std::string> sign_manifest(Manifest manifest, std::span<const std::byte> private_key,
                                         const Crypto& crypto) {
  return catch_out_of_memory([&]() -> Result<std::string> {
    std::sort(manifest.files.begin(), manifest.files.end(),
              [](const ManifestFile& a, const ManifestFile& b) { return a.name < b.name; });
    std::sort(manifest.settings.begin(), manifest.settings.end());
    NIBBLE_CHECK(check_manifest(manifest));
    const std::string text = to_json(manifest);
    NIBBLE_CHECK(parse_manifest(text));
    return sign_envelope(kManifestType, text, private_key, crypto);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
