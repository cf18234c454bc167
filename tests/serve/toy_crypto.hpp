// SPDX-License-Identifier: Apache-2.0
//
// In place of cryptography, for tests of what is built on it: quick, and no protection at all. A
// key signs what the same key verifies.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "nibble/io/checksum.hpp"
#include "nibble/serve/crypto.hpp"

namespace test {

class ToyCrypto final : public nibble::serve::Crypto {
 public:
  using Bytes = std::span<const std::byte>;
  using Digest = nibble::serve::Digest;

  static Digest digest_of(Bytes a, Bytes b = {}, Bytes c = {}) {
    Digest digest{};
    for (std::uint64_t i = 0; i < 4; ++i) {
      std::uint64_t sum = i + 1;
      for (const Bytes part : {a, b, c}) sum = nibble::io::checksum(part, sum);
      std::memcpy(digest.data() + 8 * i, &sum, 8);
    }
    return digest;
  }

  nibble::Result<nibble::Owned<nibble::serve::Hasher>> sha256() const override {
    struct Kept final : nibble::serve::Hasher {
      std::vector<std::byte> bytes;
      nibble::Result<void> update(Bytes more) override {
        bytes.insert(bytes.end(), more.begin(), more.end());
        return nibble::ok();
      }
      nibble::Result<Digest> finish() override { return digest_of(bytes); }
    };
    return nibble::Owned<nibble::serve::Hasher>(new Kept);
  }
  nibble::Result<void> check_signature(Bytes key, Bytes message, Bytes signature) const override {
    const Digest expected = digest_of(key, message);
    if (std::equal(expected.begin(), expected.end(), signature.begin(), signature.end())) {
      return nibble::ok();
    }
    return nibble::Error{nibble::Errc::malformed, "a signature that does not fit"};
  }
  nibble::Result<std::vector<std::byte>> sign(Bytes key, Bytes message) const override {
    const Digest digest = digest_of(key, message);
    return std::vector<std::byte>(digest.begin(), digest.end());
  }
  nibble::Result<void> seal(nibble::serve::Aead, const nibble::serve::SecretKey& key, Bytes nonce,
                            Bytes plain, std::span<std::byte> out, Tag tag) const override {
    mix(key, nonce, plain, out);
    const Digest digest = digest_of(key.bytes(), nonce, plain);
    std::memcpy(tag.data(), digest.data(), kTagBytes);
    return nibble::ok();
  }
  nibble::Result<void> open(nibble::serve::Aead, const nibble::serve::SecretKey& key, Bytes nonce,
                            Bytes sealed, ConstTag tag, std::span<std::byte> out) const override {
    mix(key, nonce, sealed, out);
    const Digest digest = digest_of(key.bytes(), nonce, out);
    if (std::memcmp(digest.data(), tag.data(), kTagBytes) == 0) return nibble::ok();
    return nibble::Error{nibble::Errc::malformed, "does not decrypt"};
  }
  nibble::Result<nibble::serve::SecretKey> derive(const nibble::serve::SecretKey& key, Bytes salt,
                                                  Bytes info) const override {
    return nibble::serve::SecretKey(digest_of(key.bytes(), salt, info));
  }
  nibble::Result<void> random(std::span<std::byte> out) const override {
    for (std::byte& b : out) b = std::byte{7};
    return nibble::ok();
  }

 private:
  static void mix(const nibble::serve::SecretKey& key, Bytes nonce, Bytes in,
                  std::span<std::byte> out) {
    const Digest pad = digest_of(key.bytes(), nonce);
    for (std::size_t i = 0; i < in.size(); ++i) out[i] = in[i] ^ pad[i % pad.size()];
  }
};

}  // namespace test
