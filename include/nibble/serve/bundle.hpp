// SPDX-License-Identifier: Apache-2.0
//
// A bundle: a folder with a model and what belongs to it, and a signature over all of it
// (manifest.hpp; or model_signing.hpp). Nothing of it is used before it is verified: the signature
// when it is opened, each file when it is mapped or read.
//
//   auto bundle = serve::Bundle::open(files, "models/a", keys, crypto);
//   auto model = bundle->open_model(*bundle->manifest().find(serve::FileRole::model), threads);
//
// Who may write to the folder while the program runs could change a mapped file after it was
// verified: only the updater should. Files that are read into memory, as encrypted ones are, cannot
// be changed any more.
//
// An encrypted file is verified by the tags of its chunks, which are signed (ManifestFile::seal),
// while it is decrypted: its ciphertext is not hashed. Only a holder of its key could put other
// bytes in place of those that were signed. Where that matters, as one key is on many devices,
// updates have hashed every file that they install, and check_all() does so at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/callback.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/serve/crypto.hpp"
#include "nibble/serve/encoding.hpp"
#include "nibble/serve/envelope.hpp"
#include "nibble/serve/file_layer.hpp"
#include "nibble/serve/manifest.hpp"
#include "nibble/serve/model_signing.hpp"
#include "nibble/serve/sealed_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// A manifest whose signature was verified.
struct SignedManifest {
  Manifest manifest;
  std::vector<std::string> ignored;  // of a ModelStatement
  Digest id{};                       // SHA-256 of the signed text
  bool has_sizes = true;             // not those of a ModelStatement
};

// Verifies and reads the text of "bundle.json" or "model.sig". Errors: those of open_envelope,
// parse_manifest and parse_model_statement; unsupported (something else was signed).
inline Result<SignedManifest> open_manifest(std::string_view text, std::span<const KeyBytes> keys,
                                            const Crypto& crypto) {
  return catch_out_of_memory([&]() -> Result<SignedManifest> {
    NIBBLE_TRY(envelope, open_envelope(text, keys, crypto));
    SignedManifest out;
    NIBBLE_TRY(id, crypto.sha256_of(bytes_of(envelope.payload)));
    out.id = id;
    if (envelope.type == kManifestType) {
      NIBBLE_TRY(manifest, parse_manifest(envelope.payload));
      out.manifest = std::move(manifest);
      return out;
    }
    if (envelope.type != kStatementType) {
      return Error{Errc::unsupported, "what was signed is no bundle: its type is " +
                                          io::quoted(envelope.type)};
    }
    NIBBLE_TRY(statement, parse_model_statement(envelope.payload, crypto));
    out.manifest = std::move(statement.manifest);
    out.ignored = std::move(statement.ignored);
    out.has_sizes = false;
    return out;
  });
}

// That a bundle may be installed now: `now` in seconds since 1970, `min_version` the highest that
// this device has had. Errors: limit (expired), invalid_argument (a downgrade).
inline Result<void> check_current(const Manifest& manifest, std::uint64_t now,
                                  std::uint64_t min_version) {
  if (manifest.version < min_version) {
    return Error{Errc::invalid_argument,
                 "version " + to_text(manifest.version) + " of bundle " + io::quoted(manifest.name) +
                     " is a downgrade: this device has had version " + to_text(min_version)};
  }
  if (manifest.expires != 0 && now > manifest.expires) {
    return Error{Errc::limit, "bundle " + io::quoted(manifest.name) + ", version " +
                                  to_text(manifest.version) + ", has expired " +
                                  to_text(now - manifest.expires) + " seconds ago"};
  }
  return ok();
}

namespace detail {

inline Error changed(const ManifestFile& file) {
  return Error{Errc::malformed,
               "file " + io::quoted(file.name) + ": not the bytes that were signed"};
}

inline Result<void> check_digest(std::span<const std::byte> bytes, const Digest& digest,
                                 const ManifestFile& file, const Crypto& crypto) {
  constexpr std::size_t kPart = std::size_t{1} << 20;  // bytes of a mapped file at a time
  NIBBLE_TRY(hasher, crypto.sha256());
  while (!bytes.empty()) {
    const std::size_t n = bytes.size() < kPart ? bytes.size() : kPart;
    NIBBLE_CHECK(hasher->update(bytes.first(n)));
    bytes = bytes.subspan(n);
  }
  NIBBLE_TRY(found, hasher->finish());
  if (found != digest) return changed(file);
  return ok();
}

}  // namespace detail

// That these are the bytes of a file, by all workers of the executor if the file has chunks. Errors:
// malformed, those of Crypto.
inline Result<void> check_file(std::span<const std::byte> bytes, const ManifestFile& file,
                               std::uint64_t chunk_size, const Crypto& crypto,
                               Executor& executor) {
  return catch_out_of_memory([&]() -> Result<void> {
    if (bytes.size() != file.size) return detail::changed(file);
    if (file.chunks.empty()) return detail::check_digest(bytes, file.sha256, file, crypto);
    return detail::for_all(file.chunks.size(), executor, [&](std::uint64_t i) {
      const auto at = io::narrow<std::size_t>(i * chunk_size);
      const std::size_t left = bytes.size() - at;
      const auto part = bytes.subspan(at, left < chunk_size ? left : io::narrow<std::size_t>(chunk_size));
      return detail::check_digest(part, file.chunks[io::narrow<std::size_t>(i)], file, crypto);
    });
  });
}

// For what a key is wanted.
struct KeyRequest {
  std::string key;  // ManifestFile::key
  std::string bundle;
  std::uint64_t version = 0;
  Digest id{};  // of the bundle: SHA-256 of the signed manifest
};

// Where keys of encrypted files are from: the host's callbacks. They are called when the signature
// and the tags of the file have been verified, in this order.
struct KeySource {
  // Proves what runs here, for who holds the key: a quote of a TEE or a TPM. May be empty: no
  // proof. An error ends the loading, and no key is asked for.
  Callback<Result<std::vector<std::byte>>(const KeyRequest& request)> attest;
  // The key, from a file, a TPM, or over the network for this proof.
  Callback<Result<SecretKey>(const KeyRequest& request, std::span<const std::byte> proof)> release;
};

// Refers to the file layer and Crypto, which live longer. Move-only.
class Bundle {
 public:
  // Opens the bundle in a folder: verifies its signature, and that exactly the files of the
  // manifest are there, with their sizes. Errors: not_found (no bundle; a file is missing),
  // malformed (the signature; a file that was not signed; a size), those of open_manifest and of
  // the files.
  static Result<Bundle> open(FileLayer& files, const std::string& folder,
                             std::span<const KeyBytes> keys, const Crypto& crypto) {
    return catch_out_of_memory([&]() -> Result<Bundle> {
      Bundle bundle(files, folder, crypto);
      auto opened = bundle.read(keys);
      if (!opened) return std::move(opened).error().in(printable(folder));
      return bundle;
    });
  }

  const std::string& folder() const noexcept { return folder_; }
  const Manifest& manifest() const noexcept { return signed_.manifest; }
  const Digest& id() const noexcept { return signed_.id; }

  // Reads a file into memory, verified, and decrypted if it is encrypted. Errors: malformed
  // (changed bytes), invalid_argument (encrypted, and no key source), those of the files, of Crypto
  // and of the key source.
  Result<AlignedBuffer> read(const ManifestFile& file, Executor& executor,
                             const KeySource* keys = nullptr) const {
    return catch_out_of_memory([&]() -> Result<AlignedBuffer> {
      const std::string path = path_of(file);
      if (file.key.empty()) return read_plain(file, path, executor);
      if (keys == nullptr || !keys->release) {
        return Error{Errc::invalid_argument,
                     printable(path) + ": encrypted, and there is no source of keys"};
      }
      // Encrypted bytes are used once: a mapping saves a copy of them.
      auto mapped = files_->map(path);
      if (mapped) return decrypt(mapped->bytes(), file, executor, *keys);
      if (mapped.error().code != Errc::unsupported) return std::move(mapped).error();
      NIBBLE_TRY(sealed, read_bytes(file, path));
      return decrypt(sealed.bytes(), file, executor, *keys);
    });
  }

  // Maps a file that is not encrypted, verified. Errors: malformed (changed bytes),
  // invalid_argument (encrypted), those of the files and of Crypto.
  Result<io::MappedFile> map(const ManifestFile& file, Executor& executor) const {
    return catch_out_of_memory([&]() -> Result<io::MappedFile> {
      const std::string path = path_of(file);
      if (!file.key.empty()) {
        return Error{Errc::invalid_argument, printable(path) + ": encrypted files are read"};
      }
      NIBBLE_TRY(mapped, files_->map(path));
      mapped.advise(io::Advice::will_need);
      NIBBLE_CHECK(check_bytes(mapped.bytes(), file, executor));
      return mapped;
    });
  }

  // A GGUF file of the bundle, mapped, or decrypted into memory. What it returns has the very bytes
  // that were verified. Errors: those of map(), read() and io::Gguf::parse.
  Result<io::Gguf> open_model(const ManifestFile& file, Executor& executor,
                              const KeySource* keys = nullptr) const {
    const std::string path = path_of(file);
    if (file.key.empty()) {
      auto mapped = map(file, executor);
      if (mapped) return io::Gguf::parse(*std::move(mapped), path);
      if (mapped.error().code != Errc::unsupported) return std::move(mapped).error();
    }
    NIBBLE_TRY(bytes, read(file, executor, keys));
    return io::Gguf::parse(std::move(bytes), path);
  }

  // Verifies all files. Errors: those of read().
  Result<void> check_all(Executor& executor) const {
    return catch_out_of_memory([&]() -> Result<void> {
      for (const ManifestFile& file : manifest().files) {
        const std::string path = path_of(file);
        auto mapped = files_->map(path);
        if (mapped) {
          NIBBLE_CHECK(check_bytes(mapped->bytes(), file, executor));
        } else if (mapped.error().code == Errc::unsupported) {
          NIBBLE_CHECK(read_plain(file, path, executor));
        } else {
          return std::move(mapped).error();
        }
      }
      return ok();
    });
  }

 private:
  Bundle(FileLayer& files, std::string folder, const Crypto& crypto)
      : files_(&files), crypto_(&crypto), folder_(std::move(folder)) {}

  std::string path_of(const ManifestFile& file) const { return folder_ + "/" + file.name; }

  Result<void> read(std::span<const KeyBytes> keys) {
    constexpr std::uint64_t kLimit = detail::kMaxEnvelope;
    std::string_view own = kBundleFile;
    auto text = read_text(*files_, folder_ + "/" + std::string(kBundleFile), kLimit);
    if (!text && text.error().code == Errc::not_found) {
      own = kModelSignatureFile;
      text = read_text(*files_, folder_ + "/" + std::string(kModelSignatureFile), kLimit);
    }
    if (!text) {
      if (text.error().code != Errc::not_found) return std::move(text).error();
      return Error{Errc::not_found, "no bundle: neither bundle.json nor model.sig is there"};
    }
    auto opened = open_manifest(*text, keys, *crypto_);
    if (!opened) return std::move(opened).error().in(std::string(own));
    signed_ = *std::move(opened);
    NIBBLE_CHECK(check_listed(own));
    for (ManifestFile& file : signed_.manifest.files) {
      NIBBLE_TRY(size, files_->size(path_of(file)));
      if (!signed_.has_sizes) file.size = size;
      if (size != file.size) return detail::changed(file);
    }
    return ok();
  }

  // That there is no file that was not signed: loaders of folders find theirs by name.
  Result<void> check_listed(std::string_view own) const {
    NIBBLE_TRY(names, files_->list(folder_));
    for (const std::string& name : names) {
      if (name == own || signed_.manifest.find(name) != nullptr) continue;
      bool is_ignored = false;
      for (const std::string& ignored : signed_.ignored) {
        is_ignored = is_ignored || name == ignored || name.starts_with(ignored + "/");
      }
      if (is_ignored) continue;
      return Error{Errc::malformed, "file " + io::quoted(name) + ": not a file that was signed"};
    }
    return ok();
  }

  Result<void> check_bytes(std::span<const std::byte> bytes, const ManifestFile& file,
                           Executor& executor) const {
    auto checked = check_file(bytes, file, manifest().chunk_size, *crypto_, executor);
    if (!checked) return std::move(checked).error().in(printable(folder_));
    return checked;
  }

  Result<AlignedBuffer> read_bytes(const ManifestFile& file, const std::string& path) const {
    if (!std::in_range<std::size_t>(file.size)) return Error{Errc::limit, printable(path)};
    NIBBLE_TRY(bytes, AlignedBuffer::allocate(io::narrow<std::size_t>(file.size)));
    NIBBLE_CHECK(files_->read(path, 0, bytes.bytes()));
    return bytes;
  }
  Result<AlignedBuffer> read_plain(const ManifestFile& file, const std::string& path,
                                   Executor& executor) const {
    NIBBLE_TRY(bytes, read_bytes(file, path));
    NIBBLE_CHECK(check_bytes(bytes.bytes(), file, executor));
    return bytes;
  }

  Result<AlignedBuffer> decrypt(std::span<const std::byte> sealed, const ManifestFile& file,
                                Executor& executor, const KeySource& keys) const {
    if (sealed.size() != file.size) return detail::changed(file).in(printable(folder_));
    auto head = SealedHead::copy(sealed, file.size);
    if (!head && head.error().code != Errc::malformed) return std::move(head).error();
    if (!head) return detail::changed(file).in(printable(folder_));
    NIBBLE_TRY(seal, crypto_->sha256_of(head->bytes));
    if (seal != file.seal) return detail::changed(file).in(printable(folder_));
    KeyRequest request;
    request.key = file.key;
    request.bundle = manifest().name;
    request.version = manifest().version;
    request.id = id();
    std::vector<std::byte> proof;
    if (keys.attest) {
      NIBBLE_TRY(given, keys.attest(request));
      proof = std::move(given);
    }
    NIBBLE_TRY(key, keys.release(request, proof));
    auto plain =
        open_sealed(*head, sealed.subspan(head->bytes.size()), key, *crypto_, executor);
    if (!plain) return std::move(plain).error().in(printable(path_of(file)));
    return plain;
  }

  FileLayer* files_;
  const Crypto* crypto_;
  std::string folder_;
  SignedManifest signed_;
};

}}}  // namespace nibble::NIBBLE_ABI::serve
