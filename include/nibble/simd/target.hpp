// SPDX-License-Identifier: Apache-2.0
//
// The SIMD targets and their names, and sets of targets. Does not include Highway: cheap to
// include.
#pragma once

#include <bit>
#include <boost/preprocessor/seq/enum.hpp>
#include <boost/preprocessor/seq/for_each.hpp>
#include <boost/preprocessor/seq/size.hpp>
#include <boost/preprocessor/stringize.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"

// All targets, best first within an architecture: Highway's under their names, and the levels of
// simd/levels.hpp. Tables of kernels have one row for each.
#define NIBBLE_ALL_TARGETS \
  (AMX)(AVX10_2)(          \
      AVX3_SPR)(AVX3_ZEN4)(AVX3_DL)(AVX3)(AVX2)(SSE4)(SSSE3)(SSE2)(SVE2_128)(SVE_256)(SVE2)(SVE)(NEON_I8MM)(NEON_BF16)(NEON_DOT)(NEON)(NEON_WITHOUT_AES)(RVV)(LASX)(LSX)(PPC10)(PPC9)(PPC8)(Z15)(Z14)(WASM_EMU256)(WASM)(EMU128)(SCALAR)

// Those targets that are levels.
#define NIBBLE_LEVELS (AMX)(NEON_I8MM)(NEON_DOT)

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

enum class Target : std::uint8_t { BOOST_PP_SEQ_ENUM(NIBBLE_ALL_TARGETS) };

inline constexpr int kTargetCount = BOOST_PP_SEQ_SIZE(NIBBLE_ALL_TARGETS);

constexpr const char* to_string(Target target) noexcept {
#define NIBBLE_TARGET_NAME(r, data, name) BOOST_PP_STRINGIZE(name),
  constexpr const char* kNames[] = {
      BOOST_PP_SEQ_FOR_EACH(NIBBLE_TARGET_NAME, _, NIBBLE_ALL_TARGETS)};
#undef NIBBLE_TARGET_NAME
  return kNames[static_cast<int>(target)];
}

// A set of targets.
class TargetSet {
 public:
  constexpr TargetSet() noexcept = default;
  constexpr explicit TargetSet(std::uint64_t bits) noexcept : bits_(bits) {}
  constexpr bool contains(Target t) const noexcept { return (bits_ >> static_cast<int>(t)) & 1; }
  constexpr TargetSet& add(Target t) noexcept {
    bits_ |= std::uint64_t{1} << static_cast<int>(t);
    return *this;
  }
  constexpr bool empty() const noexcept { return bits_ == 0; }
  constexpr std::uint64_t bits() const noexcept { return bits_; }
  friend constexpr TargetSet operator&(TargetSet a, TargetSet b) noexcept {
    return TargetSet{a.bits_ & b.bits_};
  }
  constexpr TargetSet without(TargetSet others) const noexcept {
    return TargetSet{bits_ & ~others.bits_};
  }
  friend constexpr bool operator==(TargetSet, TargetSet) = default;

  // The best target: the first in the order of NIBBLE_ALL_TARGETS. The set must not be empty.
  constexpr Target best() const noexcept {
    NIBBLE_ASSERT(bits_ != 0);
    return static_cast<Target>(std::countr_zero(bits_));
  }
  template <class F>
  constexpr void for_each(F&& f) const {
    for (std::uint64_t rest = bits_; rest != 0; rest &= rest - 1) {
      f(static_cast<Target>(std::countr_zero(rest)));
    }
  }

 private:
  std::uint64_t bits_ = 0;
};

// The names, e.g. "AVX2 AVX3_DL SSE2", for messages and reports.
inline std::string to_string(TargetSet set) {
  std::string names;
  set.for_each([&](Target t) {
    if (!names.empty()) names += ' ';
    names += to_string(t);
  });
  return names;
}

// Finds a target by name, ignoring letter case. An unknown name is an error.
inline Result<Target> target_from_name(std::string_view name) {
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; };
  for (int i = 0; i < kTargetCount; ++i) {
    const std::string_view candidate = to_string(static_cast<Target>(i));
    bool equal = candidate.size() == name.size();
    for (std::size_t c = 0; equal && c < name.size(); ++c) equal = candidate[c] == upper(name[c]);
    if (equal) return static_cast<Target>(i);
  }
  return Error{Errc::invalid_argument,
               "SIMD target '" + printable(name.substr(0, 32)) + "' is unknown; known are " +
                   to_string(TargetSet((std::uint64_t{1} << kTargetCount) - 1))};
}

}}}  // namespace nibble::NIBBLE_ABI::simd
