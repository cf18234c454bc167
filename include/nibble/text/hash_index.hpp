// SPDX-License-Identifier: Apache-2.0
//
// Hash tables from text, or from a pair of tokens, to a number. The table holds only numbers; what
// they stand for is kept elsewhere.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text { namespace detail {

inline std::uint64_t hash_of(std::string_view text) noexcept {
  std::uint64_t hash = 0x9E3779B97F4A7C15u ^ text.size();
  const auto mix = [&hash](std::uint64_t bits) {
    hash = (hash ^ bits) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  };
  std::uint64_t bits = 0;
  for (; text.size() >= sizeof bits; text.remove_prefix(sizeof bits)) {
    std::memcpy(&bits, text.data(), sizeof bits);
    mix(bits);
  }
  bits = 0;
  for (const char c : text) bits = bits << 8 | static_cast<unsigned char>(c);
  mix(bits);
  mix(bits >> 7);
  return hash;
}

inline std::uint64_t hash_of(std::int32_t first, std::int32_t second) noexcept {
  std::uint64_t hash = (std::uint64_t{static_cast<std::uint32_t>(first)} << 32 |
                        static_cast<std::uint32_t>(second)) *
                       0xD6E8FEB86659FD93u;
  hash ^= hash >> 32;
  hash *= 0xD6E8FEB86659FD93u;
  return hash ^ hash >> 32;
}

class HashIndex {
 public:
  static constexpr std::int32_t kNone = -1;

  // Makes room for `n` numbers and forgets all.
  void reset(std::size_t n) { slots_.assign(std::bit_ceil(n + n / 2 + 1), Slot()); }

  // The number with this hash for which equals(number) holds, or kNone. Never allocates.
  template <class Equals>
  std::int32_t find(std::uint64_t hash, Equals equals) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = place_of(hash) & mask;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.number == kNone) return kNone;
      if (slot.tag == tag_of(hash) && equals(slot.number)) return slot.number;
    }
  }

  // Adds `number`, in place of the one for which equals(number) holds, if any. False if too many
  // collide.
  template <class Equals>
  bool insert(std::uint64_t hash, std::int32_t number, Equals equals) noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = place_of(hash) & mask;
    for (std::size_t steps = 0;
         slots_[i].number != kNone && !(slots_[i].tag == tag_of(hash) && equals(slots_[i].number));
         i = (i + 1) & mask) {
      if (++steps > kMaxSteps) return false;
    }
    slots_[i] = {tag_of(hash), number};
    return true;
  }

 private:
  struct Slot {
    std::uint32_t tag = 0;  // the bits of the hash that do not select the slot
    std::int32_t number = kNone;
  };
  // An insertion takes more steps than this only in a file made for that purpose: with the table at
  // most two thirds full, the longest run among a million texts is below two hundred.
  static constexpr std::size_t kMaxSteps = 512;

  static std::size_t place_of(std::uint64_t hash) noexcept {
    return static_cast<std::uint32_t>(hash);
  }
  static std::uint32_t tag_of(std::uint64_t hash) noexcept {
    return static_cast<std::uint32_t>(hash >> 32);
  }

  std::vector<Slot> slots_;  // a power of two, linear probing
};

}}}}  // namespace nibble::NIBBLE_ABI::text::detail
