// SPDX-License-Identifier: Apache-2.0
//
// How the bytes of a tensor are read: from memory or from the file that they are in, and in the
// order that the tensor has, which need not be the order in which they are stored.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "nibble/core/result.hpp"
#include "nibble/io/mapped_file.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Two neighbouring axes of a tensor that are stored in the other order: what is stored as (outer,
// a, b) units of `unit` bytes is meant as (outer, b, a). A transposed matrix is one example, rows
// in another order are others. By default nothing is swapped.
struct SwappedAxes {
  std::uint64_t a = 1, b = 1;
  std::uint64_t unit = 1;

  constexpr bool any() const noexcept { return a > 1 && b > 1; }
};

class TensorBytes {
 public:
  // `stored` is all of the tensor. If `file` is given, `stored` lies inside its bytes, and is read
  // from it (MappedFile::read) instead of the mapping.
  explicit TensorBytes(std::span<const std::byte> stored, const SwappedAxes& swapped = {},
                       const MappedFile* file = nullptr) noexcept
      : stored_(stored), swapped_(swapped), file_(file) {}

  std::size_t size() const noexcept { return stored_.size(); }

  // Copies bytes [begin, begin + out.size()) of the tensor as it is meant. Several threads may read
  // at once. Error: io.
  Result<void> read(std::size_t begin, std::span<std::byte> out) const {
    NIBBLE_ASSERT(begin <= size() && out.size() <= size() - begin);
    if (!swapped_.any()) return copy(begin, out);
    const auto unit = static_cast<std::size_t>(swapped_.unit);
    const bool is_whole = begin % unit == 0 && out.size() % unit == 0;
    return is_whole && unit <= kSmallUnit ? gather(begin / unit, out) : copy_units(begin, out);
  }

 private:
  // Units up to this size are read several at once, with what lies between them.
  static constexpr std::size_t kSmallUnit = 64;
  static constexpr std::size_t kStrip = 4096;

  Result<void> copy(std::size_t at, std::span<std::byte> out) const {
    if (file_ != nullptr) return file_->read(stored_.subspan(at, out.size()), out.data());
    std::copy_n(stored_.begin() + static_cast<std::ptrdiff_t>(at), out.size(), out.begin());
    return ok();
  }

  // One unit after the other.
  Result<void> copy_units(std::size_t begin, std::span<std::byte> out) const {
    const auto a = static_cast<std::size_t>(swapped_.a), b = static_cast<std::size_t>(swapped_.b);
    const auto unit = static_cast<std::size_t>(swapped_.unit);
    while (!out.empty()) {
      const std::size_t meant = begin / unit, within = begin % unit;
      const std::size_t outer = meant / (a * b), j = meant / a % b, i = meant % a;
      const std::size_t n = (std::min)(unit - within, out.size());
      NIBBLE_CHECK(copy(((outer * a + i) * b + j) * unit + within, out.first(n)));
      out = out.subspan(n);
      begin += n;
    }
    return ok();
  }

  // Units that are neighbours in the file are a apart in `out`, which begins with unit `begin`.
  Result<void> gather(std::size_t begin, std::span<std::byte> out) const {
    const auto a = static_cast<std::size_t>(swapped_.a), b = static_cast<std::size_t>(swapped_.b);
    const auto unit = static_cast<std::size_t>(swapped_.unit);
    const std::size_t end = begin + out.size() / unit;
    std::array<std::byte, kStrip> strip;
    for (std::size_t outer = begin / (a * b); outer * a * b < end; ++outer) {
      const std::size_t first = outer * a * b;  // unit of this array of (b, a)
      const std::size_t low = (std::max)(begin, first) - first;
      const std::size_t high = (std::min)(end, first + a * b) - first;
      for (std::size_t i = 0; i < a; ++i) {
        // The j for which low <= j * a + i < high.
        std::size_t j = low <= i ? 0 : (low - i + a - 1) / a;
        const std::size_t end_j = high <= i ? 0 : (high - i + a - 1) / a;
        while (j < end_j) {
          const std::size_t n = (std::min)(end_j - j, kStrip / unit);
          NIBBLE_CHECK(copy((first + i * b + j) * unit, std::span(strip).first(n * unit)));
          for (std::size_t s = 0; s < n; ++s, ++j) {
            std::memcpy(out.data() + (first + j * a + i - begin) * unit, strip.data() + s * unit,
                        unit);
          }
        }
      }
    }
    return ok();
  }

  std::span<const std::byte> stored_;
  SwappedAxes swapped_;
  const MappedFile* file_;
};

}}}  // namespace nibble::NIBBLE_ABI::io
