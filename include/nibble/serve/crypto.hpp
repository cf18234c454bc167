// SPDX-License-Identifier: Apache-2.0
//
// What bundles need of cryptography, as an interface: nibble has no cipher, hash or signature of
// its own. serve/openssl_crypto.hpp implements it with OpenSSL 3; a device with a secure element
// implements it itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

using Digest = std::array<std::byte, 32>;  // SHA-256

// 32 secret bytes, overwritten when they are destroyed or moved away. Move-only.
class SecretKey {
 public:
  static constexpr std::size_t kBytes = 32;

  SecretKey() noexcept = default;
  explicit SecretKey(std::span<const std::byte, kBytes> bytes) noexcept {
    std::memcpy(bytes_.data(), bytes.data(), kBytes);
  }
  SecretKey(SecretKey&& other) noexcept : bytes_(other.bytes_) { other.wipe(); }
  SecretKey& operator=(SecretKey&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~SecretKey() { wipe(); }

  std::span<const std::byte, kBytes> bytes() const noexcept { return bytes_; }
  std::span<std::byte, kBytes> bytes() noexcept { return bytes_; }

 private:
  void wipe() noexcept {
    volatile std::byte* const out = bytes_.data();  // a write that nobody reads may be left out
    for (std::size_t i = 0; i < kBytes; ++i) out[i] = std::byte{0};
  }
  std::array<std::byte, kBytes> bytes_{};
};

// A public or private key as its DER encoding: SubjectPublicKeyInfo (RFC 5280) or PKCS #8
// (RFC 5958), of an Ed25519 or ECDSA P-256 key.
using KeyBytes = std::vector<std::byte>;

// Encryption with authentication: 32 bytes of key (of AES-128 the first 16), 12 of nonce, 16 of tag.
enum class Aead : unsigned char {
  aes_256_gcm = 1,        // NIST SP 800-38D
  chacha20_poly1305 = 2,  // RFC 8439: where processors have no AES instructions
  aes_128_ocb = 3,        // RFC 7253: nearly as fast as AES alone
};

class Hasher {
 public:
  virtual ~Hasher() = default;
  virtual Result<void> update(std::span<const std::byte> bytes) = 0;
  // Once, at the end.
  virtual Result<Digest> finish() = 0;
};

// Several threads may call it at once. Errors of all functions: io (the library or the device
// fails), out_of_memory, unsupported (a kind of key or cipher), and those that are named.
class Crypto {
 public:
  static constexpr std::size_t kNonceBytes = 12;
  static constexpr std::size_t kTagBytes = 16;

  virtual ~Crypto() = default;

  // SHA-256 of bytes that come one after another.
  virtual Result<Owned<Hasher>> sha256() const = 0;

  // Whether the owner of the key has signed the message: Ed25519 (RFC 8032; 64 bytes), or ECDSA
  // with P-256 and SHA-256 (a DER signature). Error: malformed (the signature does not fit, or the
  // key is none).
  virtual Result<void> check_signature(std::span<const std::byte> public_key,
                                       std::span<const std::byte> message,
                                       std::span<const std::byte> signature) const = 0;
  // For tools and tests. Error: malformed (no key).
  virtual Result<std::vector<std::byte>> sign(std::span<const std::byte> private_key,
                                              std::span<const std::byte> message) const = 0;

  using Tag = std::span<std::byte, kTagBytes>;
  using ConstTag = std::span<const std::byte, kTagBytes>;

  // Encrypts; `out` has as many bytes as `plain`.
  virtual Result<void> seal(Aead aead, const SecretKey& key, std::span<const std::byte> nonce,
                            std::span<const std::byte> plain, std::span<std::byte> out,
                            Tag tag) const = 0;
  // Decrypts; `out` has as many bytes as `sealed`. What is in `out` after an error is not to be
  // used. Error: malformed (the tag does not fit: another key, or the bytes have changed).
  virtual Result<void> open(Aead aead, const SecretKey& key, std::span<const std::byte> nonce,
                            std::span<const std::byte> sealed, ConstTag tag,
                            std::span<std::byte> out) const = 0;

  // HKDF with SHA-256 (RFC 5869): a key for one purpose from a key for many.
  virtual Result<SecretKey> derive(const SecretKey& key, std::span<const std::byte> salt,
                                   std::span<const std::byte> info) const = 0;

  // Random bytes that nobody can guess.
  virtual Result<void> random(std::span<std::byte> out) const = 0;

  Result<Digest> sha256_of(std::span<const std::byte> bytes) const {
    NIBBLE_TRY(hasher, sha256());
    NIBBLE_CHECK(hasher->update(bytes));
    return hasher->finish();
  }
};

}}}  // namespace nibble::NIBBLE_ABI::serve
