// SPDX-License-Identifier: Apache-2.0
//
// Cryptography by OpenSSL 3 (link libcrypto). Nothing else of nibble includes it.
#pragma once

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/objects.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <openssl/x509.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/serve/crypto.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

namespace detail {

// Owner of an OpenSSL object.
template <class T, auto free_object>
struct OpensslOwner {
  explicit OpensslOwner(T* made) noexcept : object(made) {}
  OpensslOwner(OpensslOwner&& other) noexcept : object(std::exchange(other.object, nullptr)) {}
  OpensslOwner& operator=(OpensslOwner&&) = delete;
  ~OpensslOwner() { free_object(object); }
  T* object;
};
using OpensslDigest = OpensslOwner<EVP_MD_CTX, EVP_MD_CTX_free>;
using OpensslCipher = OpensslOwner<EVP_CIPHER_CTX, EVP_CIPHER_CTX_free>;
using OpensslKey = OpensslOwner<EVP_PKEY, EVP_PKEY_free>;

inline const unsigned char* openssl_in(std::span<const std::byte> bytes) noexcept {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
inline unsigned char* openssl_out(std::span<std::byte> bytes) noexcept {
  return reinterpret_cast<unsigned char*>(bytes.data());
}

class OpensslHasher final : public Hasher {
 public:
  explicit OpensslHasher(OpensslDigest&& context) noexcept : context_(std::move(context)) {}
  Result<void> update(std::span<const std::byte> bytes) override {
    if (EVP_DigestUpdate(context_.object, bytes.data(), bytes.size()) == 1) return ok();
    return Error{Errc::io, "OpenSSL: SHA-256 failed"};
  }
  Result<Digest> finish() override {
    Digest digest{};
    unsigned n = 0;
    if (EVP_DigestFinal_ex(context_.object, openssl_out(digest), &n) == 1 && n == digest.size()) {
      return digest;
    }
    return Error{Errc::io, "OpenSSL: SHA-256 failed"};
  }

 private:
  OpensslDigest context_;
};

}  // namespace detail

class OpensslCrypto final : public Crypto {
 public:
  Result<Owned<Hasher>> sha256() const override {
    detail::OpensslDigest context(EVP_MD_CTX_new());
    if (context.object == nullptr) return no_memory();
    if (EVP_DigestInit_ex(context.object, EVP_sha256(), nullptr) != 1) return fails("SHA-256");
    Owned<Hasher> hasher(new (std::nothrow) detail::OpensslHasher(std::move(context)));
    if (!hasher) return no_memory();
    return hasher;
  }

  Result<void> check_signature(std::span<const std::byte> public_key,
                               std::span<const std::byte> message,
                               std::span<const std::byte> signature) const override {
    const unsigned char* at = detail::openssl_in(public_key);
    if (!std::in_range<long>(public_key.size())) return not_a_key();
    const detail::OpensslKey key(
        d2i_PUBKEY(nullptr, &at, static_cast<long>(public_key.size())));
    if (key.object == nullptr || at != detail::openssl_in(public_key) + public_key.size()) {
      return not_a_key();
    }
    NIBBLE_TRY(hash, hash_of(key.object));
    const detail::OpensslDigest context(EVP_MD_CTX_new());
    if (context.object == nullptr) return no_memory();
    if (EVP_DigestVerifyInit(context.object, nullptr, hash, nullptr, key.object) != 1) {
      return fails("a signature");
    }
    if (EVP_DigestVerify(context.object, detail::openssl_in(signature), signature.size(),
                         detail::openssl_in(message), message.size()) == 1) {
      return ok();
    }
    return Error{Errc::malformed, "a signature that does not fit"};
  }

  Result<std::vector<std::byte>> sign(std::span<const std::byte> private_key,
                                      std::span<const std::byte> message) const override {
    const unsigned char* at = detail::openssl_in(private_key);
    if (!std::in_range<long>(private_key.size())) return not_a_key();
    const detail::OpensslKey key(
        d2i_AutoPrivateKey(nullptr, &at, static_cast<long>(private_key.size())));
    if (key.object == nullptr) return not_a_key();
    NIBBLE_TRY(hash, hash_of(key.object));
    const detail::OpensslDigest context(EVP_MD_CTX_new());
    if (context.object == nullptr) return no_memory();
    std::size_t size = 0;
    std::vector<std::byte> signature;
    const auto* const text = detail::openssl_in(message);
    if (EVP_DigestSignInit(context.object, nullptr, hash, nullptr, key.object) != 1 ||
        EVP_DigestSign(context.object, nullptr, &size, text, message.size()) != 1) {
      return fails("signing");
    }
    signature.resize(size);
    if (EVP_DigestSign(context.object, detail::openssl_out(std::span(signature)), &size, text,
                       message.size()) != 1) {
      return fails("signing");
    }
    signature.resize(size);
    return signature;
  }

  Result<void> seal(Aead aead, const SecretKey& key, std::span<const std::byte> nonce,
                    std::span<const std::byte> plain, std::span<std::byte> out,
                    Tag tag) const override {
    NIBBLE_CHECK(check_sizes(nonce, plain.size(), out.size()));
    const detail::OpensslCipher context(EVP_CIPHER_CTX_new());
    if (context.object == nullptr) return no_memory();
    const int size = static_cast<int>(plain.size());
    int n = 0;
    int rest = 0;
    unsigned char last[16];  // OCB keeps what is no whole block until the end
    if (EVP_EncryptInit_ex(context.object, cipher_of(aead), nullptr,
                           detail::openssl_in(key.bytes()), detail::openssl_in(nonce)) != 1 ||
        (size > 0 && EVP_EncryptUpdate(context.object, detail::openssl_out(out), &n,
                                       detail::openssl_in(plain), size) != 1) ||
        EVP_EncryptFinal_ex(context.object, last, &rest) != 1 || n + rest != size ||
        EVP_CIPHER_CTX_ctrl(context.object, EVP_CTRL_AEAD_GET_TAG, kTagBytes, tag.data()) != 1) {
      return fails("encryption");
    }
    put_last(out, last, rest);
    return ok();
  }

  Result<void> open(Aead aead, const SecretKey& key, std::span<const std::byte> nonce,
                    std::span<const std::byte> sealed, ConstTag tag,
                    std::span<std::byte> out) const override {
    NIBBLE_CHECK(check_sizes(nonce, out.size(), sealed.size()));
    const detail::OpensslCipher context(EVP_CIPHER_CTX_new());
    if (context.object == nullptr) return no_memory();
    const int size = static_cast<int>(out.size());
    int n = 0;
    int rest = 0;
    unsigned char last[16];  // OCB keeps what is no whole block until the end
    unsigned char expected[kTagBytes];  // (OpenSSL takes a pointer to what it does not change)
    std::memcpy(expected, tag.data(), kTagBytes);
    if (EVP_DecryptInit_ex(context.object, cipher_of(aead), nullptr,
                           detail::openssl_in(key.bytes()), detail::openssl_in(nonce)) != 1 ||
        EVP_CIPHER_CTX_ctrl(context.object, EVP_CTRL_AEAD_SET_TAG, kTagBytes, expected) != 1 ||
        (size > 0 && EVP_DecryptUpdate(context.object, detail::openssl_out(out), &n,
                                       detail::openssl_in(sealed), size) != 1)) {
      return fails("decryption");
    }
    if (EVP_DecryptFinal_ex(context.object, last, &rest) != 1 || n + rest != size) {
      return Error{Errc::malformed, "does not decrypt: changed bytes, or another key"};
    }
    put_last(out, last, rest);
    return ok();
  }

  Result<SecretKey> derive(const SecretKey& key, std::span<const std::byte> salt,
                           std::span<const std::byte> info) const override {
    using Kdf = detail::OpensslOwner<EVP_KDF, EVP_KDF_free>;
    using KdfContext = detail::OpensslOwner<EVP_KDF_CTX, EVP_KDF_CTX_free>;
    const Kdf kdf(EVP_KDF_fetch(nullptr, "HKDF", nullptr));
    if (kdf.object == nullptr) return fails("HKDF");
    const KdfContext context(EVP_KDF_CTX_new(kdf.object));
    if (context.object == nullptr) return no_memory();
    // The interface takes pointers to what it does not change.
    const auto octets = [](const char* name, std::span<const std::byte> bytes) {
      return OSSL_PARAM_construct_octet_string(
          name, const_cast<std::byte*>(bytes.data()), bytes.size());
    };
    char hash[] = "SHA256";
    const OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, hash, 0),
        octets(OSSL_KDF_PARAM_KEY, key.bytes()), octets(OSSL_KDF_PARAM_SALT, salt),
        octets(OSSL_KDF_PARAM_INFO, info), OSSL_PARAM_construct_end()};
    SecretKey out;
    if (EVP_KDF_derive(context.object, detail::openssl_out(out.bytes()), SecretKey::kBytes,
                       parameters) != 1) {
      return fails("HKDF");
    }
    return out;
  }

  Result<void> random(std::span<std::byte> out) const override {
    if (std::in_range<int>(out.size()) &&
        RAND_bytes(detail::openssl_out(out), static_cast<int>(out.size())) == 1) {
      return ok();
    }
    return fails("random numbers");
  }

  struct KeyPair {
    KeyBytes public_key;   // SubjectPublicKeyInfo
    KeyBytes private_key;  // PKCS #8
  };
  // For tools and tests.
  static Result<KeyPair> make_ed25519() {
    return to_bytes(detail::OpensslKey(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519")));
  }
  static Result<KeyPair> make_p256() {
    return to_bytes(detail::OpensslKey(EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256")));
  }

 private:
  static Error no_memory() { return {Errc::out_of_memory, "OpenSSL: out of memory"}; }
  static Error not_a_key() { return {Errc::malformed, "not a key in DER"}; }
  static Error fails(const char* what) {
    return {Errc::io, std::string("OpenSSL: ") + what + " failed"};
  }

  // The hash that goes with a key: none for Ed25519. Error: unsupported (another kind of key).
  static Result<const EVP_MD*> hash_of(EVP_PKEY* key) {
    if (EVP_PKEY_is_a(key, "ED25519") == 1) return static_cast<const EVP_MD*>(nullptr);
    char group[64] = "";
    std::size_t size = 0;
    if (EVP_PKEY_is_a(key, "EC") == 1 &&
        EVP_PKEY_get_group_name(key, group, sizeof group, &size) == 1 &&
        OBJ_sn2nid(group) == NID_X9_62_prime256v1) {
      return EVP_sha256();
    }
    return Error{Errc::unsupported, "a key that is neither Ed25519 nor ECDSA P-256"};
  }

  static const EVP_CIPHER* cipher_of(Aead aead) {
    switch (aead) {
      case Aead::aes_256_gcm: return EVP_aes_256_gcm();
      case Aead::chacha20_poly1305: return EVP_chacha20_poly1305();
      case Aead::aes_128_ocb:
#ifndef OPENSSL_NO_OCB
        return EVP_aes_128_ocb();
#else
        break;
#endif
    }
    return nullptr;
  }

  static void put_last(std::span<std::byte> out, const unsigned char* last, int n) {
    const auto size = static_cast<std::size_t>(n);
    if (size > 0) std::memcpy(out.last(size).data(), last, size);
  }

  static Result<void> check_sizes(std::span<const std::byte> nonce, std::size_t plain,
                                  std::size_t sealed) {
    if (nonce.size() == kNonceBytes && std::in_range<int>(plain) && sealed == plain) return ok();
    return Error{Errc::invalid_argument, "the sizes of nonce, text and encrypted text"};
  }

  static Result<KeyPair> to_bytes(const detail::OpensslKey& key) {
    if (key.object == nullptr) return fails("making a key");
    KeyPair pair;
    pair.public_key.resize(static_cast<std::size_t>(i2d_PUBKEY(key.object, nullptr)));
    auto* at = detail::openssl_out(std::span(pair.public_key));
    i2d_PUBKEY(key.object, &at);
    using Pkcs8 = detail::OpensslOwner<PKCS8_PRIV_KEY_INFO, PKCS8_PRIV_KEY_INFO_free>;
    const Pkcs8 pkcs8(EVP_PKEY2PKCS8(key.object));
    if (pkcs8.object == nullptr) return fails("making a key");
    pair.private_key.resize(static_cast<std::size_t>(i2d_PKCS8_PRIV_KEY_INFO(pkcs8.object, nullptr)));
    at = detail::openssl_out(std::span(pair.private_key));
    i2d_PKCS8_PRIV_KEY_INFO(pkcs8.object, &at);
    return pair;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::serve
