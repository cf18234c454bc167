// SPDX-License-Identifier: Apache-2.0
//
// Inverted dropout with a counter-based generator. Whether an element is dropped depends only on
// the seed and on the element's own index. So every SIMD target, chunking and thread count drops
// the same elements, and a backward pass finds them again without a stored mask.
#pragma once

#include "nibble/simd/impl.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace kernels {

// The parameters of dropout in one pass over a tensor. The default drops nothing and is exactly the
// identity.
struct Dropout {
  std::uint32_t key0 = 0;
  std::uint32_t key1 = 0;
  std::uint32_t threshold = 0;  // drop where the element's 32 random bits are below this
  float scale = 1.0f;           // factor for the kept elements: 1 / (1 - p)

  constexpr Dropout() noexcept = default;

  // Drops with probability `p`, 0 <= p < 1, to within 2^-32. p = 0 is exactly the identity.
  constexpr Dropout(float p, std::uint64_t seed) noexcept {
    NIBBLE_ASSERT(p >= 0.0f && p < 1.0f);
    // splitmix64's finalizer (Steele, Lea and Flood 2014): neighbouring seeds give unrelated keys.
    std::uint64_t z = seed + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    key0 = static_cast<std::uint32_t>(z);
    key1 = static_cast<std::uint32_t>(z >> 32);
    threshold = static_cast<std::uint32_t>(static_cast<double>(p) * 0x1p32);
    scale = static_cast<float>(1.0 / (1.0 - static_cast<double>(p)));
  }

  constexpr bool is_identity() const noexcept { return threshold == 0; }
};

// out[i] = x[i] * (0 or dropout.scale), i < n, where x[i] is element first_index + i of its tensor.
// A dropped infinity or NaN gives NaN: dropout does not hide a diverged activation. `x` and `out`
// may be the same.
struct ApplyDropout {
  using Function = void(const Dropout& dropout, Index first_index, const float* x, float* out,
                        Index n);
};

}}}  // namespace nibble::NIBBLE_ABI::kernels
