// SPDX-License-Identifier: Apache-2.0
//
// A checksum of bytes, to find damage. It is no protection against somebody who changes a file on
// purpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// 64 bits of all bytes, 8 at a time; any change of one word gives another number, other changes
// almost surely. (Multiplication by an odd number and the fold are bijections of 64 bits.)
inline std::uint64_t checksum(std::span<const std::byte> bytes, std::uint64_t sum = 0) noexcept {
  sum ^= bytes.size();
  const auto add = [&](std::uint64_t word) {
    sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
    sum ^= sum >> 32;
  };
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) add(load_le<std::uint64_t>(bytes.data()));
  std::uint64_t rest = 0;
  if (!bytes.empty()) std::memcpy(&rest, bytes.data(), bytes.size());
  add(rest);
  return sum;
}

}}}  // namespace nibble::NIBBLE_ABI::io
