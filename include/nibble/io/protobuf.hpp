// SPDX-License-Identifier: Apache-2.0
//
// Reads the wire format of Protocol Buffers: the fields of one message, one after the other. What a
// field's number means is the caller's to know. Nothing is copied, and nothing recurses: a message
// inside is bytes, of which another reader is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

enum class ProtoType : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

struct ProtoField {
  std::uint32_t number = 0;  // 0: the message has ended
  ProtoType type = ProtoType::varint;
  std::uint64_t value = 0;           // of a varint, fixed64 or fixed32
  std::span<const std::byte> bytes;  // a text, a message inside, packed numbers

  bool is(std::uint32_t n, ProtoType t) const noexcept { return number == n && type == t; }
  std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
};

class ProtoReader {
 public:
  explicit ProtoReader(std::span<const std::byte> message) noexcept : in_(message) {}

  // The next field; number 0 behind the last one. Errors: malformed (a field that ends outside of
  // the message, a varint of more than 64 bits, a field number that is none), unsupported (groups,
  // which proto3 does not have).
  Result<ProtoField> next() {
    ProtoField field;
    if (in_.remaining() == 0) return field;
    NIBBLE_TRY(tag, varint());
    const std::uint64_t number = tag >> 3;
    if (number == 0 || number > kMaxNumber) {
      return Error{Errc::malformed, "field number " + to_text(number) + " at byte " +
                                        to_text(in_.offset()) + " of a message"};
    }
    field.number = static_cast<std::uint32_t>(number);
    switch (tag & 7) {
      case 0: {
        NIBBLE_TRY(value, varint());
        field.value = value;
        break;
      }
      case 1: {
        NIBBLE_TRY(value, in_.read<std::uint64_t>("a field of 8 bytes"));
        field.type = ProtoType::fixed64;
        field.value = value;
        break;
      }
      case 2: {
        NIBBLE_TRY(size, varint());
        NIBBLE_TRY(bytes, in_.take(size, "a field"));
        field.type = ProtoType::bytes;
        field.bytes = bytes;
        break;
      }
      case 5: {
        NIBBLE_TRY(value, in_.read<std::uint32_t>("a field of 4 bytes"));
        field.type = ProtoType::fixed32;
        field.value = value;
        break;
      }
      default:
        return Error{Errc::unsupported, "field " + to_text(number) + " has wire type " +
                                            to_text(tag & 7) + ", which is no longer used"};
    }
    return field;
  }

  // Calls f(field) -> Result<void> for all fields.
  template <class Function>
  Result<void> each(Function&& f) {
    for (;;) {
      NIBBLE_TRY(field, next());
      if (field.number == 0) return ok();
      NIBBLE_CHECK(f(field));
    }
  }

  // The next number of packed varints.
  bool at_end() const noexcept { return in_.remaining() == 0; }
  Result<std::uint64_t> varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      NIBBLE_TRY(byte, in_.read<std::uint8_t>("a number"));
      const std::uint64_t bits = byte & 0x7Fu;
      if (shift == 63 && bits > 1) break;
      value |= bits << shift;
      if (byte < 0x80) return value;
    }
    return Error{Errc::malformed, "a number of more than 64 bits at byte " + to_text(in_.offset()) +
                                      " of a message"};
  }

 private:
  static constexpr std::uint64_t kMaxNumber = (1u << 29) - 1;

  ByteReader in_;
};

}}}  // namespace nibble::NIBBLE_ABI::io
