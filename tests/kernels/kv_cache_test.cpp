// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/kv_cache.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/cache_arrays.hpp"
#include "kernels/each_target.hpp"
#include "nibble/ops/attention.hpp"

namespace kv_cache_test {

using namespace nibble;
using namespace nibble_test;

namespace {

// What storing one key and one value means, element by element.
template <class T>
void write_expected(const float* key, const float* value, Index position, Index head_dim,
                    T* cache) {
  for (Index i = 0; i < head_dim; ++i) {
    T& k = cache[kernels::key_offset<T>(position, i, head_dim)];
    T& v = cache[kernels::value_offset<T>(position, i, head_dim)];
    if constexpr (std::is_same_v<T, f16>) {
      k = to_f16(key[i]), v = to_f16(value[i]);
    } else if constexpr (std::is_same_v<T, bf16>) {
      k = to_bf16(key[i]), v = to_bf16(value[i]);
    } else {
      k = key[i], v = value[i];
    }
  }
  if constexpr (std::is_same_v<T, bf16>) {
    cache[kernels::key_offset<T>(position, head_dim, head_dim)] = bf16{};  // for an odd head_dim
  }
}
template <>
void write_expected(const float* key, const float* value, Index position, Index head_dim,
                    std::int8_t* cache) {
  using T = std::int8_t;
  for (const bool is_key : {true, false}) {
    const float* const x = is_key ? key : value;
    float max = 0;
    for (Index i = 0; i < head_dim; ++i) max = std::max(max, std::abs(x[i]));
    const bool is_zero = max < 0x1p-110f;
    for (Index i = 0; i < kernels::round_up(head_dim, 16); ++i) {
      const Index at = is_key ? kernels::key_offset<T>(position, i, head_dim)
                              : kernels::value_offset<T>(position, i, head_dim);
      const float code = i < head_dim && !is_zero ? std::nearbyint(x[i] * (127 / max)) : 0;
      cache[at] = static_cast<T>(code);
    }
    T* const panel = cache + (is_key ? kernels::key_panel<T>(position, head_dim)
                                     : kernels::value_panel<T>(position, head_dim));
    kernels::panel_scales(panel, head_dim)[position % 16] = is_zero ? 0 : max / 127;
    for (Index i = 0; i < head_dim; ++i) {
      const float kept = is_key ? kernels::key_at(cache, position, i, head_dim)
                                : kernels::value_at(cache, position, i, head_dim);
      REQUIRE(std::abs(kept - x[i]) <= max / 254 * 1.00001f + 0x1p-110f);
    }
  }
}

// Keys as 8-bit integers; codes of 4 bits of values, whose halves of a byte belong to two
// positions.
template <>
void write_expected(const float* key, const float* value, Index position, Index head_dim,
                    kernels::CodePair* cache) {
  using T = kernels::CodePair;
  // As part of a tile of 8-bit integers, which begins like one of these.
  const Index tile = position / 64 * kernels::tile_size<T>(head_dim);
  std::vector<std::int8_t> int8(
      static_cast<std::size_t>(kernels::tile_size<std::int8_t>(head_dim)));
  const auto n_key_bytes = static_cast<std::size_t>(4 * kernels::key_panel_size<T>(head_dim));
  std::memcpy(int8.data(), cache + tile, n_key_bytes);
  write_expected<std::int8_t>(key, value, position % 64, head_dim, int8.data());
  std::memcpy(static_cast<void*>(cache + tile), int8.data(), n_key_bytes);
  T* const panel = cache + kernels::value_panel<T>(position, head_dim);
  for (Index i = 0; i < kernels::round_up(head_dim, 16); ++i) {
    const Index group = i / 32 * 32;
    const float* const end = value + std::min(head_dim, group + 32);
    const float min = *std::min_element(value + group, end);
    const float max = *std::max_element(value + group, end);
    const f16 minimum = to_f16(min);
    const f16 scale = to_f16((max - to_f32(minimum)) / 15);
    float code = 0;
    if (i < head_dim && scale != f16{}) {
      const float steps = (value[i] - to_f32(minimum)) * (1 / to_f32(scale));
      code = std::nearbyint(std::clamp(steps, 0.0f, 15.0f));
    }
    T& pair = cache[kernels::value_offset<T>(position, i, head_dim)];
    const int shift = position / 4 % 2 == 0 ? 0 : 4;
    const int other = pair.bits & (0xF0 >> shift);
    pair.bits = static_cast<std::uint8_t>(other | static_cast<int>(code) << shift);
    f16* const scales = kernels::group_scales(panel, i / 32, head_dim) + position % 16;
    scales[0] = scale;
    scales[16] = minimum;
    if (i >= head_dim) continue;
    const float kept = kernels::value_at(cache, position, i, head_dim);
    const float kept_key = kernels::key_at(cache, position, i, head_dim);
    REQUIRE(kept_key == kernels::key_at(int8.data(), position % 64, i, head_dim));
    // Half a step; the roundings of scale and minimum to f16; and f16's smallest numbers.
    const float most = std::max(std::abs(min), std::abs(max));
    REQUIRE(std::abs(kept - value[i]) <= (max - min) / 30 * 1.01f + most * 0x1p-10f + 0x1p-20f);
  }
}

}  // namespace

TEST_CASE("kv cache: stored elements are the rounded ones, and nothing else is touched") {
  // Ties, overflow to infinity, subnormals, infinities, NaN, and magnitudes of all sizes.
  std::vector<float> special = {0.0f,
                                -0.0f,
                                1.0f,
                                1.00048828125f,
                                1.00146484375f,
                                65504.0f,
                                65519.9f,
                                65520.0f,
                                1e30f,
                                -1e30f,
                                6e-8f,
                                2.98e-8f,
                                3.1e-5f,
                                6.103e-5f,
                                1e-40f,
                                std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN(),
                                1.00390625f,
                                1.01171875f};
  std::mt19937 rng(2);
  for (const ops::KvType type : ops::kKvTypes) {
    ops::visit_kv_type(type, [&]<class T>(T) {
      const Index head_dim = 37;
      const Index n_tokens = 21;
      const Index first = 13;
      const ops::KvCacheLayout layout{type, 2, 2, head_dim, 40};
      std::vector<float> k(product(n_tokens, 2 * head_dim));
      std::vector<float> v(k.size());
      const bool has_codes = type == ops::KvType::int8 || type == ops::KvType::int4;
      for (std::vector<float>* m : {&k, &v}) {
        for (float& x : *m) {
          // Codes are of finite numbers only, 4-bit codes of those that f16 can hold; these may all
          // be zero or almost zero.
          const int exponents = type == ops::KvType::int4 ? 42 : 60;
          const int exponent = static_cast<int>(rng() % static_cast<unsigned>(exponents)) - 40;
          x = !has_codes && rng() % 4 == 0
                  ? special[rng() % special.size()]
                  : std::ldexp(static_cast<float>(rng() % 20011) - 10000.f, exponent);
        }
      }
      for (Index i = 0; has_codes && i < head_dim; ++i) {
        k[product(4, 2 * head_dim) + static_cast<std::size_t>(i)] = 0;
        v[product(6, 2 * head_dim) + static_cast<std::size_t>(i)] = 1e-35f;
      }
      for_each_target([&](simd::Target) {
        AlignedBuffer memory = filled(layout.bytes(), 0xA5);
        auto cache = ops::KvCache::create(memory.bytes(), layout);
        REQUIRE(cache);
        InlineExecutor executor;
        cache->append(executor, 1, first, rows_of(k, 0, n_tokens, 2 * head_dim),
                      rows_of(v, 0, n_tokens, 2 * head_dim));
        AlignedBuffer expected = filled(layout.bytes(), 0xA5);
        auto expected_cache = ops::KvCache::create(expected.bytes(), layout);
        REQUIRE(expected_cache);
        const ops::KvLayer<T> layer = expected_cache->template layer<T>(1);
        for (Index h = 0; h < 2; ++h) {
          for (Index t = 0; t < n_tokens; ++t) {
            const auto from = static_cast<Index>(product(t * 2 + h, head_dim));
            write_expected<T>(&k[static_cast<std::size_t>(from)],
                              &v[static_cast<std::size_t>(from)], first + t, head_dim, layer.of(h));
          }
        }
        CHECK(std::memcmp(memory.data(), expected.data(), layout.bytes()) == 0);
      });
    });
  }
}

TEST_CASE("kv cache: sizes are constants, and sizes that cannot be are errors") {
  constexpr ops::KvCacheLayout kLayout{ops::KvType::f16, 3, 2, 32, 96};
  static_assert(kLayout.bytes() == 3 * 2 * 2 * 32 * 128 * 2);  // tiles of 64 positions
  static_assert(ops::KvCacheLayout{ops::KvType::f32, 1, 1, 8, 17}.bytes() == 2 * 64 * 8 * 4);
  // bf16 keys store pairs of dimensions: 3 become 4.
  static_assert(ops::KvCacheLayout{ops::KvType::bf16, 1, 1, 3, 16}.bytes() == 64 * (4 + 3) * 2);
  // Codes of 20 dimensions become 32, with a scale for each position.
  static_assert(ops::KvCacheLayout{ops::KvType::int8, 1, 1, 20, 64}.bytes() == 2 * 64 * (32 + 4));
  // Keys as before; values of half a byte, with a scale and a minimum for each 32 of a position.
  static_assert(ops::KvCacheLayout{ops::KvType::int4, 1, 1, 20, 64}.bytes() == 64 * (36 + 16 + 4));
  static_assert(ops::KvCacheLayout{ops::KvType::int4, 1, 1, 128, 64}.bytes() == 64 * (132 + 80));
  static_assert(ops::attention_scratch_bytes({8, 2, 32, 1.0f}, {.n_positions = 96}) < 4096);

  AlignedBuffer memory = filled(kLayout.bytes() + 64, 0);
  CHECK(ops::KvCache::create(memory.bytes(), kLayout));
  CHECK(!ops::KvCache::create(memory.bytes().first(kLayout.bytes() - 1), kLayout));
  CHECK(!ops::KvCache::create(memory.bytes().subspan(1), kLayout));
  constexpr Index kHuge = std::numeric_limits<Index>::max();
  for (const Index n : {Index{0}, Index{-1}, kHuge, kHuge / 1000, Index{1} << 40}) {
    for (int which = 0; which < 4; ++which) {
      ops::KvCacheLayout layout{ops::KvType::f32, 4096, 4096, 4096, 4096};
      Index* const fields[] = {&layout.n_layers, &layout.n_kv_heads, &layout.head_dim,
                               &layout.capacity};
      *fields[which] = n;
      CHECK(!layout.is_valid());
      const auto cache = ops::KvCache::create(memory.bytes(), layout);
      REQUIRE(!cache);
      CHECK(cache.error().code == Errc::invalid_argument);
    }
  }
}

}  // namespace kv_cache_test
