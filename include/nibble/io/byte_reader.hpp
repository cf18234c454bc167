// SPDX-License-Identifier: Apache-2.0
//
// Shared by the file readers: overflow-checked arithmetic on sizes, a bounds-checked cursor over
// little-endian bytes, and `quoted`, which quotes names from files in error messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/utf8.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// product = a * b; returns false if it does not fit.
constexpr bool checked_multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) noexcept {
  if (b != 0 && a > (std::numeric_limits<std::uint64_t>::max)() / b) return false;
  product = a * b;
  return true;
}

// sum = a + b; returns false if it does not fit.
constexpr bool checked_add(std::uint64_t a, std::uint64_t b, std::uint64_t& sum) noexcept {
  if (a > (std::numeric_limits<std::uint64_t>::max)() - b) return false;
  sum = a + b;
  return true;
}

// Converts a number that is known to fit in the other type, which may be the same type: size_t has
// 32 bits on some machines and is uint64_t on others, where compilers would warn about a useless
// cast.
template <class To, class From>
constexpr To narrow(From value) noexcept {
  NIBBLE_ASSERT(std::in_range<To>(value));
  return static_cast<To>(value);
}

// The little-endian number stored at `p`, which need not be aligned. Not for bool: a byte of a file
// need not be 0 or 1.
template <class T>
requires(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) T load_le(const std::byte* p)
noexcept {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// quoted(name): a name from a file, for an error message: at most 64 bytes of it, and only what is
// printable, so that a hostile name can neither flood a log nor send control sequences to a
// terminal. An object, not a function: for a std::string, argument-dependent lookup would also find
// std::quoted.
struct Quoted {
  std::string operator()(std::string_view name) const {
    constexpr std::size_t kMaxShown = 64;
    std::string_view shown = name.substr(0, kMaxShown);
    if (shown.size() < name.size()) shown.remove_suffix(utf8_unfinished(shown));
    return "'" + printable(shown) + (shown.size() < name.size() ? "...'" : "'");
  }
};
NIBBLE_HIDDEN inline constexpr Quoted quoted;

// A cursor that never moves past the end of its bytes.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

  std::size_t offset() const noexcept { return offset_; }
  std::size_t remaining() const noexcept { return bytes_.size() - offset_; }

  // `what` names the item being read, for the error when the file ends too early.
  template <class T>
  Result<T> read(const char* what) {
    if (remaining() < sizeof(T)) return truncated(what);
    const T value = load_le<T>(bytes_.data() + offset_);
    offset_ += sizeof(T);
    return value;
  }

  Result<std::span<const std::byte>> take(std::uint64_t n, const char* what) {
    if (n > remaining()) return truncated(what);
    const auto taken = bytes_.subspan(offset_, narrow<std::size_t>(n));
    offset_ += taken.size();
    return taken;
  }

  // The bytes between two offsets that the cursor has already passed.
  std::span<const std::byte> between(std::size_t begin, std::size_t end) const noexcept {
    NIBBLE_ASSERT(begin <= end && end <= offset_);
    return bytes_.subspan(begin, end - begin);
  }

  Error truncated(const char* what) const {
    return Error{Errc::malformed, "the file ends inside " + std::string(what) + " at byte " +
                                      to_text(offset_) + " of " + to_text(bytes_.size())};
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t offset_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::io
