// SPDX-License-Identifier: Apache-2.0
//
// Signed bytes of a named type: DSSE envelopes (https://github.com/secure-systems-lab/dsse, version
// 1), and the bundles of Sigstore that hold one. What is signed is DSSE's pre-authentication
// encoding of type and bytes, so that bytes that were signed as one thing are never read as another.
// Bundles, and answers of a model whose origin must be proved, are signed this way.
#pragma once

#include <cstddef>
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

struct Envelope {
  std::string type;     // of the payload, as a media type
  std::string payload;  // any bytes
  std::vector<std::vector<std::byte>> signatures;
};

// The bytes that are signed.
inline std::string pre_authentication_encoding(std::string_view type, std::string_view payload) {
  std::string out = "DSSEv1 " + to_text(type.size()) + " ";
  out.append(type).append(" ").append(to_text(payload.size())).append(" ").append(payload);
  return out;
}

namespace detail {

NIBBLE_HIDDEN inline constexpr std::size_t kMaxEnvelope = std::size_t{64} << 20;  // bytes
NIBBLE_HIDDEN inline constexpr std::size_t kMaxSignatures = 16;

// Reads a key of an object that must have it once.
template <class T, class Read>
Result<void> read_once(bool& is_there, T& out, const io::JsonReader& json, const std::string& key,
                       const Read& read) {
  if (std::exchange(is_there, true)) return json.error("the key " + io::quoted(key) + " twice");
  NIBBLE_TRY(value, read());
  out = std::move(value);
  return ok();
}

inline Result<std::vector<std::byte>> read_signature(io::JsonReader& json) {
  std::string text;
  bool is_there = false;
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key == "sig") return read_once(is_there, text, json, key, [&] { return json.string(); });
    return json.skip();  // "keyid" is a hint that nobody signed: all trusted keys are tried
  }));
  if (!is_there) return json.error("a signature without \"sig\"");
  return from_base64(text);
}

inline Result<Envelope> read_envelope(io::JsonReader& json) {
  Envelope envelope;
  std::string payload;
  bool has_type = false;
  bool has_payload = false;
  bool has_signatures = false;
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    const auto text = [&] { return json.string(); };
    if (key == "payloadType") return read_once(has_type, envelope.type, json, key, text);
    if (key == "payload") return read_once(has_payload, payload, json, key, text);
    if (key != "signatures") return json.skip();
    if (std::exchange(has_signatures, true)) return json.error("\"signatures\" twice");
    return json.array([&]() -> Result<void> {
      if (envelope.signatures.size() == kMaxSignatures) return json.error("too many signatures");
      NIBBLE_TRY(signature, read_signature(json));
      envelope.signatures.push_back(std::move(signature));
      return ok();
    });
  }));
  if (!has_type || !has_payload || !has_signatures) {
    return json.error("an envelope without \"payloadType\", \"payload\" or \"signatures\"");
  }
  NIBBLE_TRY(bytes, from_base64(payload));
  envelope.payload.assign(text_of(bytes));
  return envelope;
}

}  // namespace detail

// Reads an envelope, or a Sigstore bundle with a "dsseEnvelope", without believing it. Errors:
// malformed, limit (64 MiB).
inline Result<Envelope> parse_envelope(std::string_view text) {
  return catch_out_of_memory([&]() -> Result<Envelope> {
    if (text.size() > detail::kMaxEnvelope) {
      return Error{Errc::limit, "a signed file of " + to_text(text.size()) + " bytes"};
    }
    // One pass over the outer keys tells which of the two it is.
    io::JsonReader outer(text);
    std::string_view inner = text;
    bool is_there = false;
    NIBBLE_CHECK(outer.object([&](const std::string& key) -> Result<void> {
      if (key != "dsseEnvelope") return outer.skip();
      return detail::read_once(is_there, inner, outer, key, [&] { return outer.raw(); });
    }));
    if (!outer.at_end()) return outer.error("more text behind the envelope");
    io::JsonReader json(inner);
    return detail::read_envelope(json);
  });
}

// An envelope with one signature. Errors: those of Crypto::sign.
inline Result<std::string> sign_envelope(std::string_view type, std::string_view payload,
                                         std::span<const std::byte> private_key,
                                         const Crypto& crypto) {
  return catch_out_of_memory([&]() -> Result<std::string> {
    const std::string message = pre_authentication_encoding(type, payload);
    NIBBLE_TRY(signature, crypto.sign(private_key, bytes_of(message)));
    return "{\"payloadType\":" + io::json_text(type) + ",\"payload\":\"" +
           to_base64(bytes_of(payload)) + "\",\"signatures\":[{\"sig\":\"" + to_base64(signature) +
           "\"}]}\n";
  });
}

// The envelope, if one of its signatures is by the owner of one of these public keys. Errors: those
// of parse_envelope, malformed (no such signature), unsupported (a key of a kind that is not known).
inline Result<Envelope> open_envelope(std::string_view text, std::span<const KeyBytes> keys,
                                      const Crypto& crypto) {
  return catch_out_of_memory([&]() -> Result<Envelope> {
    NIBBLE_TRY(envelope, parse_envelope(text));
    const std::string message = pre_authentication_encoding(envelope.type, envelope.payload);
    for (const KeyBytes& key : keys) {
      for (const auto& signature : envelope.signatures) {
        const auto verified = crypto.check_signature(key, bytes_of(message), signature);
        if (verified) return envelope;
        if (verified.error().code != Errc::malformed) return Error(verified.error());
      }
    }
    return Error{Errc::malformed, "not signed by any of the " + to_text(keys.size()) +
                                      " keys that are trusted: the text was changed, or somebody "
                                      "else signed it"};
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
