// SPDX-License-Identifier: Apache-2.0
//
// What a key-value cache is made of.
#pragma once

#include <cstdint>

#include "nibble/core/config.hpp"

namespace nibble::inline NIBBLE_ABI::ops {

// Element type of a cache. (8-bit integers with a scale per position will be a fourth one.)
enum class KvType : std::uint8_t { f32, f16, bf16 };

constexpr const char* to_string(KvType type) noexcept {
  switch (type) {
    case KvType::f32: return "f32";
    case KvType::f16: return "f16";
    case KvType::bf16: return "bf16";
  }
  return "unknown";
}

}  // namespace nibble::inline NIBBLE_ABI::ops
