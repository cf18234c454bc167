// SPDX-License-Identifier: Apache-2.0
//
// The element types of a key-value cache.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// Element type of a cache. int8 has one f32 scale for each position's key and one for its value,
// per kv head; the error of an element is at most 1/254 of the largest element under that scale.
// int4 has keys as int8 has them, because 4 bits of a key cost far more than those of a value
// (kernels/attention_int4-inl.h), and 4-bit values with an f16 scale and an f16 minimum for each 32
// dimensions, 5 bits in all: the error of an element is at most 1/30 of the range of these 32, plus
// the rounding of the minimum to f16.
enum class KvType : std::uint8_t { f32, f16, bf16, int8, int4 };
constexpr bool is_compiled(KvType type) noexcept {
  return type == KvType::f16 || ((NIBBLE_KV_TYPES) >> static_cast<int>(type) & 1) != 0;
}
// Those that are compiled.
NIBBLE_HIDDEN inline constexpr auto kKvTypes = [] {
  constexpr KvType kAll[] = {KvType::f32, KvType::f16, KvType::bf16, KvType::int8, KvType::int4};
  constexpr std::size_t kCount = [](const KvType(&all)[5]) {
    std::size_t n = 0;
    for (const KvType type : all) n += is_compiled(type);
    return n;
  }(kAll);
  std::array<KvType, kCount> types{};
  std::size_t n = 0;
  for (const KvType type : kAll) {
    if (is_compiled(type)) types[n++] = type;
  }
  return types;
}();

constexpr const char* to_string(KvType type) noexcept {
  switch (type) {
    case KvType::f32: return "f32";
    case KvType::f16: return "f16";
    case KvType::bf16: return "bf16";
    case KvType::int8: return "int8";
    case KvType::int4: return "int4";
  }
  return "unknown";
}

}}}  // namespace nibble::NIBBLE_ABI::ops
