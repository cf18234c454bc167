// SPDX-License-Identifier: Apache-2.0
//
// A metadata value of a GGUF file: a view of its checked bytes, which are converted on access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// The values are the type ids in the file (gguf.md, enum gguf_metadata_value_type).
enum class GgufType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

constexpr const char* to_string(GgufType type) noexcept {
  switch (type) {
    case GgufType::u8: return "u8";
    case GgufType::i8: return "i8";
    case GgufType::u16: return "u16";
    case GgufType::i16: return "i16";
    case GgufType::u32: return "u32";
    case GgufType::i32: return "i32";
    case GgufType::f32: return "f32";
    case GgufType::boolean: return "bool";
    case GgufType::string: return "string";
    case GgufType::array: return "array";
    case GgufType::u64: return "u64";
    case GgufType::i64: return "i64";
    case GgufType::f64: return "f64";
  }
  return "unknown";
}

// Bytes of one value of a fixed-size type; 0 for strings, arrays and unknown ids.
constexpr std::uint32_t scalar_bytes(GgufType type) noexcept {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return 1;
    case GgufType::u16:
    case GgufType::i16: return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32: return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64: return 8;
    case GgufType::string:
    case GgufType::array: break;
  }
  return 0;
}

namespace detail {

// to = from if the conversion keeps the value: integers in range, any number to floating point
// (rounded), but never floating point to an integer and never a finite number to infinity.
template <class To, class From>
bool convert_number(From from, To& to) noexcept {
  if constexpr (std::is_floating_point_v<To>) {
    if constexpr (std::is_floating_point_v<From> && sizeof(From) > sizeof(To)) {
      constexpr auto kMax = static_cast<From>((std::numeric_limits<To>::max)());
      if (is_finite(from) && (from > kMax || from < -kMax)) return false;
    }
    to = static_cast<To>(from);
    return true;
  } else if constexpr (std::is_floating_point_v<From>) {
    return false;
  } else {
    if (!std::in_range<To>(from)) return false;
    to = static_cast<To>(from);
    return true;
  }
}

// Loads the value of fixed-size type `type` at `p` as a To; false if it cannot be converted.
template <class To>
bool load_scalar(GgufType type, const std::byte* p, To& to) noexcept {
  if constexpr (std::is_same_v<To, bool>) {
    if (type != GgufType::boolean) return false;
    to = load_le<std::uint8_t>(p) != 0;
    return true;
  } else {
    switch (type) {
      case GgufType::u8: return convert_number(load_le<std::uint8_t>(p), to);
      case GgufType::i8: return convert_number(load_le<std::int8_t>(p), to);
      case GgufType::u16: return convert_number(load_le<std::uint16_t>(p), to);
      case GgufType::i16: return convert_number(load_le<std::int16_t>(p), to);
      case GgufType::u32: return convert_number(load_le<std::uint32_t>(p), to);
      case GgufType::i32: return convert_number(load_le<std::int32_t>(p), to);
      case GgufType::u64: return convert_number(load_le<std::uint64_t>(p), to);
      case GgufType::i64: return convert_number(load_le<std::int64_t>(p), to);
      case GgufType::f32: return convert_number(load_le<float>(p), to);
      case GgufType::f64: return convert_number(load_le<double>(p), to);
      case GgufType::boolean:
      case GgufType::string:
      case GgufType::array: break;
    }
    return false;
  }
}

// The number in an element of as_array(), which is a number or a Scalar.
template <class T>
constexpr T& number_of(T& value) noexcept {
  return value;
}
template <class T>
constexpr T& number_of(Scalar<T>& scalar) noexcept {
  return scalar.value;
}
template <class T>
using NumberOf = std::remove_reference_t<decltype(number_of(std::declval<T&>()))>;

template <class T>
constexpr const char* wanted_name() noexcept {
  if constexpr (std::is_same_v<T, std::string_view>) return "a string";
  if constexpr (std::is_same_v<T, bool>) return "a bool";
  if constexpr (std::is_floating_point_v<T>) return "a number";
  if constexpr (std::is_unsigned_v<T>) return "an unsigned integer in range";
  return "an integer in range";
}

inline std::string_view as_text(std::span<const std::byte> bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace detail

// Created by Gguf (and GgufWriter); valid as long as the file's bytes. Writers disagree on integer
// widths, so numbers are converted: any integer type to any other that can hold the value, any
// number to floating point. Bools convert only to bool, strings only to strings.
class GgufValue {
 public:
  // Reads the value of `type` at the cursor and checks all of it: lengths do not exceed what
  // remains, bools are 0 or 1. Arrays of arrays are unsupported: no model uses them.
  static Result<GgufValue> read(GgufType type, ByteReader& in);

  GgufType type() const noexcept { return type_; }
  bool is_array() const noexcept { return type_ == GgufType::array; }
  // For an array: type and number of its elements; otherwise type() and 1.
  GgufType element_type() const noexcept { return element_type_; }
  std::uint64_t size() const noexcept { return size_; }

  // The value as encoded in the file, after its type id.
  std::span<const std::byte> encoded() const noexcept { return encoded_; }

  // T: bool, an integer, a floating-point type or std::string_view (into the file). Errc::malformed
  // if the value does not convert to T.
  template <class T>
  Result<T> as() const {
    T value{};
    if constexpr (std::is_same_v<T, std::string_view>) {
      if (type_ == GgufType::string) return detail::as_text(encoded_.subspan(kStringHeader));
    } else {
      if (detail::load_scalar(type_, encoded_.data(), value)) return value;
    }
    return Error{Errc::malformed,
                 std::string("expected ") + detail::wanted_name<T>() + ", found " + describe()};
  }

  // All elements of an array, converted as by as<T>(); for numbers T may also be Scalar<number>.
  // The copy is at most 8 times (numbers) or twice (strings) as large as the array in the file.
  template <class T>
  Result<std::vector<T>> as_array() const {
    if (!is_array()) {
      return Error{Errc::malformed, std::string("expected an array, found ") + describe()};
    }
    std::vector<T> values;
    values.reserve(static_cast<std::size_t>(size_));
    const std::byte* p = encoded_.data() + kArrayHeader;
    for (std::uint64_t i = 0; i < size_; ++i) {
      if constexpr (std::is_same_v<T, std::string_view>) {
        if (element_type_ != GgufType::string) break;
        const auto length = narrow<std::size_t>(load_le<std::uint64_t>(p));
        values.push_back(detail::as_text({p + kStringHeader, length}));
        p += kStringHeader + length;
      } else {
        T value{};
        if (!detail::load_scalar(element_type_, p, detail::number_of(value))) break;
        values.push_back(value);
        p += scalar_bytes(element_type_);
      }
    }
    if (values.size() != size_) {
      return Error{Errc::malformed, std::string("element ") + to_text(values.size()) + " of " +
                                        describe() + " is not " +
                                        detail::wanted_name<detail::NumberOf<T>>()};
    }
    return values;
  }

 private:
  static constexpr std::size_t kStringHeader = 8;  // u64 length
  static constexpr std::size_t kArrayHeader = 12;  // u32 element type, u64 count

  // E.g. "u32 = 70000", "array of 12 string".
  std::string describe() const;

  GgufType type_ = GgufType::u8;
  GgufType element_type_ = GgufType::u8;
  std::uint64_t size_ = 0;
  std::span<const std::byte> encoded_;
};

inline Result<GgufValue> GgufValue::read(GgufType type, ByteReader& in) {
  const std::size_t begin = in.offset();
  GgufValue value;
  value.type_ = value.element_type_ = type;
  value.size_ = 1;
  if (type == GgufType::array) {
    NIBBLE_TRY(element, in.read<std::uint32_t>("an array's element type"));
    NIBBLE_TRY(count, in.read<std::uint64_t>("an array's length"));
    value.element_type_ = static_cast<GgufType>(element);
    value.size_ = count;
    if (value.element_type_ == GgufType::array) {
      return Error{Errc::unsupported, "an array of arrays"};
    }
  }
  if (value.element_type_ == GgufType::string) {
    // Each string takes at least its length field: reject an absurd count before the loop.
    if (value.size_ > in.remaining() / kStringHeader) return in.truncated("an array of strings");
    for (std::uint64_t i = 0; i < value.size_; ++i) {
      NIBBLE_TRY(length, in.read<std::uint64_t>("a string's length"));
      NIBBLE_TRY(text, in.take(length, "a string"));
      (void)text;
    }
  } else {
    const std::uint32_t element_bytes = scalar_bytes(value.element_type_);
    if (element_bytes == 0) {
      return Error{Errc::malformed, "value type " +
                                        to_text(static_cast<std::uint32_t>(value.element_type_)) +
                                        " does not exist"};
    }
    if (value.size_ > in.remaining() / element_bytes) return in.truncated("a value");
    NIBBLE_TRY(data, in.take(value.size_ * element_bytes, "a value"));
    if (value.element_type_ == GgufType::boolean) {
      for (const std::byte b : data) {
        if (b > std::byte{1}) return Error{Errc::malformed, "a bool that is neither 0 nor 1"};
      }
    }
  }
  value.encoded_ = in.between(begin, in.offset());
  return value;
}

inline std::string GgufValue::describe() const {
  if (is_array()) {
    return "array of " + to_text(size_) + " " + to_string(element_type_);
  }
  std::string text = to_string(type_);
  std::int64_t number = 0;
  if (detail::load_scalar(type_, encoded_.data(), number)) text += " = " + to_text(number);
  return text;
}

}}}  // namespace nibble::NIBBLE_ABI::io
