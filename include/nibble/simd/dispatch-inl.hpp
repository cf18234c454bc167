// SPDX-License-Identifier: Apache-2.0
//
// The dispatcher's functions and the tables of kernels. Included by dispatch.hpp.
#pragma once

#include <array>
#include <atomic>
#include <boost/preprocessor/cat.hpp>
#include <cstdlib>

#include "nibble/simd/detect.hpp"
#include "nibble/simd/dispatch.hpp"
#include "nibble/simd/impl.hpp"
#include "nibble/simd/permission.hpp"
#include "nibble/simd/targets.hpp"

// The choice of target belongs to the whole program, or shared library: unlike everything else
// here, translation units with different compiler flags share it.
namespace nibble::detail_v0_1 {
NIBBLE_HIDDEN inline constinit std::atomic<int> active_row{-1};  // a Target; -1: not chosen yet
}

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

namespace detail {
using detail_v0_1::active_row;

// The bits of levels, under names of the same form as those of Highway's targets.
#define HWY_AMX NIBBLE_AMX
#define HWY_NEON_DOT NIBBLE_NEON_DOT
#define HWY_NEON_I8MM NIBBLE_NEON_I8MM

// Highway's macros expand to thousands of tokens, so each is expanded only once.
constexpr long long kTargets = HWY_TARGETS | NIBBLE_COMPILED_LEVELS;
constexpr long long kStaticTarget = HWY_STATIC_TARGET;

constexpr long long bit_of(Target target) noexcept {
#define NIBBLE_BIT(r, data, name) BOOST_PP_CAT(HWY_, name),
  constexpr long long kBits[] = {BOOST_PP_SEQ_FOR_EACH(NIBBLE_BIT, _, NIBBLE_ALL_TARGETS)};
#undef NIBBLE_BIT
  return kBits[static_cast<std::size_t>(target)];
}
constexpr TargetSet targets_of(long long bits) noexcept {
  TargetSet set;
  for (int i = 0; i < kTargetCount; ++i) {
    const auto target = static_cast<Target>(i);
    if ((bits & bit_of(target)) != 0) set.add(target);
  }
  return set;
}
#define NIBBLE_BASE(r, data, name)                \
  constexpr Target BOOST_PP_CAT(kBaseOf_, name) = \
      targets_of(BOOST_PP_CAT(NIBBLE_BASE_OF_, name)).best();
BOOST_PP_SEQ_FOR_EACH(NIBBLE_BASE, _, NIBBLE_LEVELS)
#undef NIBBLE_BASE
}  // namespace detail

NIBBLE_INLINE TargetSet compiled_targets() noexcept { return detail::targets_of(detail::kTargets); }

NIBBLE_INLINE Target baseline_target() noexcept {
  return detail::targets_of(detail::kStaticTarget).best();
}

NIBBLE_INLINE TargetSet available_targets() noexcept {
  TargetSet machine = machine_targets();
  const TargetSet amx = TargetSet().add(Target::AMX);
#ifdef NIBBLE_TILE_MODEL
  machine.add(Target::AMX);
#endif
  if (detail::tiles_are_refused.load(std::memory_order_relaxed)) machine = machine.without(amx);
  return (compiled_targets() & machine).add(baseline_target());
}

namespace detail {
NIBBLE_HIDDEN inline void use(Target target) noexcept {
  active_row.store(static_cast<int>(target), std::memory_order_relaxed);
}

NIBBLE_HIDDEN inline Result<void> check_available(Target target) {
  if (available_targets().contains(target)) return ok();
  const bool compiled = compiled_targets().contains(target);
  return Error{Errc::unsupported, std::string("SIMD target '") + to_string(target) + "' " +
                                      (compiled ? "is not available on this machine"
                                                : "is not compiled into this program") +
                                      "; available: " + to_string(available_targets())};
}

NIBBLE_HIDDEN inline Result<void> check_permitted(Target target) {
  if (is_permitted(target)) return ok();
  return Error{Errc::unsupported, std::string("the system refuses the registers of SIMD target '") +
                                      to_string(target) +
                                      "'; available: " + to_string(available_targets())};
}

// The best available target; not AMX, which has to be asked for (docs/dispatch.md).
NIBBLE_HIDDEN inline Target best_target() noexcept {
  return available_targets().without(TargetSet().add(Target::AMX)).best();
}

// The target that NIBBLE_TARGET names, or the best available one if it is not set.
NIBBLE_HIDDEN inline Result<Target> wanted_target() {
  const char* const name = std::getenv("NIBBLE_TARGET");
  if (name == nullptr || *name == '\0') return best_target();
  auto target = target_from_name(name);
  Result<void> available = target ? check_available(*target) : Result<void>(target.error());
  if (available) available = check_permitted(*target);
  if (!available) return Error(available.error()).in("environment variable NIBBLE_TARGET");
  return target;
}
}  // namespace detail

NIBBLE_INLINE Result<void> force_target(Target target) {
  NIBBLE_CHECK(detail::check_available(target));
  NIBBLE_CHECK(detail::check_permitted(target));
  detail::use(target);
  return ok();
}

NIBBLE_INLINE Result<void> choose_target() {
  NIBBLE_TRY(target, detail::wanted_target());
  detail::use(target);
  return ok();
}

namespace detail {
NIBBLE_HIDDEN inline int choose_row() noexcept {
  // If NIBBLE_TARGET is invalid, loading a model reports it; kernels still run.
  if (!choose_target()) use(best_target());
  return active_row.load(std::memory_order_relaxed);
}
}  // namespace detail

NIBBLE_INLINE Result<void> ensure_target() {
  NIBBLE_TRY(target, detail::wanted_target());
  if (detail::active_row.load(std::memory_order_relaxed) < 0) detail::use(target);
  return ok();
}

NIBBLE_INLINE Target active_target() noexcept {
  const int row = detail::active_row.load(std::memory_order_relaxed);
  return static_cast<Target>(row >= 0 ? row : detail::choose_row());
}

namespace detail {
// One row per target. The list of targets is a template parameter, so that two translation units
// with different lists have two tables. The row of a target that is not compiled here holds the
// baseline's function: another translation unit of the program, with a longer list, may have chosen
// that target. The row of a level holds its base's function for each kernel that the level does not
// have.
template <class Kernel, long long kTargets>
struct NIBBLE_HIDDEN Table {
  using Rows = std::array<typename Kernel::Function*, kTargetCount>;
  static constexpr Rows make() noexcept {
    Rows rows{};
    for (auto& row : rows) row = &HWY_STATIC_NAMESPACE::Impl<Kernel>::run;
      // Impl is declared for every target, but complete only for those that are compiled; for
      // levels it is complete only for the kernels that they have.
#define NIBBLE_ROW(r, mask, name)                                                              \
  if constexpr ((kTargets & mask & BOOST_PP_CAT(HWY_, name)) != 0) {                           \
    rows[static_cast<std::size_t>(Target::name)] = &BOOST_PP_CAT(N_, name)::Impl<Kernel>::run; \
  }
#define NIBBLE_LEVEL_ROW(r, data, name)                                     \
  rows[static_cast<std::size_t>(Target::name)] =                            \
      rows[static_cast<std::size_t>(BOOST_PP_CAT(kBaseOf_, name))];         \
  if constexpr (requires { sizeof(BOOST_PP_CAT(N_, name)::Impl<Kernel>); }) \
  NIBBLE_ROW(r, NIBBLE_ATTAINABLE_LEVELS, name)
    BOOST_PP_SEQ_FOR_EACH(NIBBLE_ROW, ~NIBBLE_ATTAINABLE_LEVELS, NIBBLE_ALL_TARGETS)
    BOOST_PP_SEQ_FOR_EACH(NIBBLE_LEVEL_ROW, _, NIBBLE_LEVELS)
#undef NIBBLE_LEVEL_ROW
#undef NIBBLE_ROW
    return rows;
  }
  static constexpr Rows kRows = make();
};
}  // namespace detail

template <class Kernel>
typename Kernel::Function* kernel() noexcept {
  return detail::Table<Kernel, detail::kTargets>::kRows[static_cast<std::size_t>(active_target())];
}

}}}  // namespace nibble::NIBBLE_ABI::simd
