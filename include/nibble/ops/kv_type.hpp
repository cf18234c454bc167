// SPDX-License-Identifier: Apache-2.0
//
// What a key-value cache is made of.
#pragma once

#include <cstdint>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// Element type of a cache. int8: with an f32 scale for each position's key and value of a kv head,
// so that an element is off by at most 1/254 of the greatest of them.
enum class KvType : std::uint8_t { f32, f16, bf16, int8 };
inline constexpr KvType kKvTypes[] = {KvType::f32, KvType::f16, KvType::bf16, KvType::int8};

constexpr const char* to_string(KvType type) noexcept {
  switch (type) {
    case KvType::f32: return "f32";
    case KvType::f16: return "f16";
    case KvType::bf16: return "bf16";
    case KvType::int8: return "int8";
  }
  return "unknown";
}

}}}  // namespace nibble::NIBBLE_ABI::ops
