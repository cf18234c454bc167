// SPDX-License-Identifier: Apache-2.0
//
// Manifests, envelopes, statements of model signatures, states of slots, health checks and encrypted
// files of any bytes: an error, or what is written again as the same text. The first byte says which
// of them the rest is.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "nibble/serve/bundle.hpp"
#include "nibble/serve/health.hpp"
#include "nibble/serve/slots.hpp"
#include "serve/toy_crypto.hpp"

namespace {

namespace serve = nibble::serve;

void require(bool condition) {
  if (!condition) __builtin_trap();
}

// Believes all signatures, so that what is signed is read too.
class Gullible final : public serve::Crypto {
 public:
  nibble::Result<nibble::Owned<serve::Hasher>> sha256() const override { return toy_.sha256(); }
  nibble::Result<void> check_signature(std::span<const std::byte>, std::span<const std::byte>,
                                       std::span<const std::byte>) const override {
    return nibble::ok();
  }
  nibble::Result<std::vector<std::byte>> sign(std::span<const std::byte> key,
                                              std::span<const std::byte> text) const override {
    return toy_.sign(key, text);
  }
  nibble::Result<void> seal(serve::Aead aead, const serve::SecretKey& key,
                            std::span<const std::byte> nonce, std::span<const std::byte> plain,
                            std::span<std::byte> out, Tag tag) const override {
    return toy_.seal(aead, key, nonce, plain, out, tag);
  }
  nibble::Result<void> open(serve::Aead, const serve::SecretKey&, std::span<const std::byte>,
                            std::span<const std::byte> sealed, ConstTag,
                            std::span<std::byte> out) const override {
    if (!out.empty()) std::memcpy(out.data(), sealed.data(), out.size());
    return nibble::ok();
  }
  nibble::Result<serve::SecretKey> derive(const serve::SecretKey& key,
                                          std::span<const std::byte> salt,
                                          std::span<const std::byte> info) const override {
    return toy_.derive(key, salt, info);
  }
  nibble::Result<void> random(std::span<std::byte> out) const override { return toy_.random(out); }

 private:
  test::ToyCrypto toy_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const Gullible crypto;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 6) {
    case 0: {
      const auto manifest = serve::parse_manifest(text);
      if (manifest) require(to_json(*manifest) == text);
      break;
    }
    case 1: {
      const std::vector<serve::KeyBytes> keys(1);
      const auto opened = serve::open_manifest(text, keys, crypto);
      if (opened) require(serve::check_manifest(opened->manifest).has_value());
      break;
    }
    case 2: {
      const auto statement = serve::parse_model_statement(text, crypto);
      if (statement) require(serve::check_manifest(statement->manifest).has_value());
      break;
    }
    case 3: {
      const auto state = serve::parse_slots_state(text);
      if (state) require(to_json(*state) == text);
      break;
    }
    case 4: {
      const auto plan = serve::parse_health_plan(text);
      if (plan) require(!plan->cases.empty());
      break;
    }
    default: {
      nibble::InlineExecutor executor;
      const auto head = serve::SealedHead::copy(serve::bytes_of(text), text.size());
      if (head) require(head->bytes.size() + head->header.plain_size == text.size());
      const auto plain =
          serve::open_sealed(serve::bytes_of(text), serve::SecretKey(), crypto, executor);
      if (plain) require(plain->size() < text.size());
      break;
    }
  }
  return 0;
}
