// SPDX-License-Identifier: Apache-2.0
//
// Random numbers for training: the same on every platform, and with a state that a checkpoint can
// store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

namespace detail {

// The finalizer of splitmix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number
// Generators, 2014) of z + 0x9E37…15: a bijection of 64 bits whose outputs for neighbouring inputs
// are unrelated.
constexpr std::uint64_t mixed(std::uint64_t z) noexcept {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace detail

// splitmix64: the state grows by 0x9E3779B97F4A7C15 with each number, which is its mixed bits. Not
// for cryptography.
class Random {
 public:
  constexpr explicit Random(std::uint64_t seed = 0) noexcept : state_(seed) {}

  constexpr std::uint64_t next() noexcept {
    const std::uint64_t out = detail::mixed(state_);
    state_ += 0x9E3779B97F4A7C15u;
    return out;
  }
  // In [0, n), 0 < n: each number with the same probability. 32 bits times n: the upper half,
  // unless the lower is one of those that would come once too often (Lemire, Fast Random Integer
  // Generation in an Interval, 2019).
  constexpr std::uint32_t below(std::uint32_t n) noexcept {
    NIBBLE_ASSERT(n > 0);
    const std::uint32_t refused = (0u - n) % n;  // 2³² mod n
    for (;;) {
      const std::uint64_t product = (next() >> 32) * n;
      if (static_cast<std::uint32_t>(product) >= refused) {
        return static_cast<std::uint32_t>(product >> 32);
      }
    }
  }
  // In [0, 1), a multiple of 2⁻⁵³.
  constexpr double uniform() noexcept { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // All of it: Random(x.state()) goes on as x does.
  constexpr std::uint64_t state() const noexcept { return state_; }

 private:
  std::uint64_t state_;
};

// Any order with the same probability (Fisher and Yates, from the last value down). Fewer than 2³²
// values.
template <class T>
constexpr void shuffle(std::span<T> values, Random& random) noexcept {
  for (std::size_t i = values.size(); i > 1; --i) {
    const std::size_t j = random.below(static_cast<std::uint32_t>(i));
    const T kept = values[i - 1];
    values[i - 1] = values[j];
    values[j] = kept;
  }
}

}}}  // namespace nibble::NIBBLE_ABI::train
