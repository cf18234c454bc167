// SPDX-License-Identifier: Apache-2.0
//
// Four f32 at once, for loops over a block's weights in plain C++. Compilers do not use vectors for
// such loops by themselves where a comparison chooses between two results (it might trap), and
// these loops are all of the time of a search. GCC's and Clang's vector types exist on every
// machine; elsewhere these are arrays. Results are the same, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "nibble/core/config.hpp"
#include "nibble/core/exact_math.hpp"

NIBBLE_EXACT_MATH_BEGIN
namespace nibble { inline namespace NIBBLE_ABI { namespace quant { namespace detail {

#if defined(__GNUC__) || defined(__clang__)

struct Four {
  typedef float Vector __attribute__((vector_size(16)));
  typedef std::int32_t Integers __attribute__((vector_size(16)));
  Vector v;

  static Four load(const float* from) noexcept {
    Four x;
    std::memcpy(&x.v, from, sizeof(x.v));
    return x;
  }
  static Four all(float x) noexcept { return {Vector{x, x, x, x}}; }
  float operator[](std::size_t i) const noexcept { return v[i]; }
  friend Four operator+(Four a, Four b) noexcept { return {a.v + b.v}; }
  friend Four operator-(Four a, Four b) noexcept { return {a.v - b.v}; }
  friend Four operator*(Four a, Four b) noexcept { return {a.v * b.v}; }
  friend Four smaller(Four a, Four b) noexcept { return {a.v < b.v ? a.v : b.v}; }
  friend Four larger(Four a, Four b) noexcept { return {a.v > b.v ? a.v : b.v}; }
  // Where a < b: x, else y.
  friend Four if_less(Four a, Four b, Four x, Four y) noexcept { return {a.v < b.v ? x.v : y.v}; }
  // Rounded towards zero; |x| < 2^31.
  friend Four truncated(Four x) noexcept {
    return {__builtin_convertvector(__builtin_convertvector(x.v, Integers), Vector)};
  }
};

#else

struct Four {
  float v[4];

  static Four load(const float* from) noexcept { return {{from[0], from[1], from[2], from[3]}}; }
  static Four all(float x) noexcept { return {{x, x, x, x}}; }
  float operator[](std::size_t i) const noexcept { return v[i]; }
  template <class F>
  static Four each(F f) noexcept {
    return {{f(0), f(1), f(2), f(3)}};
  }
  friend Four operator+(Four a, Four b) noexcept {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Four operator-(Four a, Four b) noexcept {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  friend Four operator*(Four a, Four b) noexcept {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend Four smaller(Four a, Four b) noexcept {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  friend Four larger(Four a, Four b) noexcept {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  friend Four if_less(Four a, Four b, Four x, Four y) noexcept {
    return each([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
  }
  friend Four truncated(Four x) noexcept {
    return each([&](int i) { return static_cast<float>(static_cast<std::int32_t>(x.v[i])); });
  }
};

#endif

inline float sum(Four x) noexcept { return (x[0] + x[2]) + (x[1] + x[3]); }

}}}}  // namespace nibble::NIBBLE_ABI::quant::detail
NIBBLE_EXACT_MATH_END
