// SPDX-License-Identifier: Apache-2.0
//
// Run-time dispatch. A kernel is a tag type with a `Function` type; each target's namespace holds
// Impl<Tag>::run. One table per tag, a row per target, made after the pass over the targets; a call
// is one indexed load and one indirect call. Because every target's namespace is visible here, any
// tag can be dispatched, with any template parameters, also one that a user defines.
#pragma once

#include <array>
#include <atomic>
#include <boost/preprocessor/cat.hpp>
#include <cstdlib>

#include "nibble/simd/detect.hpp"
#include "nibble/simd/impl.hpp"
#include "nibble/simd/targets.hpp"

namespace nibble::inline NIBBLE_ABI::simd {

// The targets whose kernels are in this program: NIBBLE_TARGETS as far as the compiler can.
constexpr TargetSet compiled_targets() noexcept {
  TargetSet set;
#define NIBBLE_ADD_TARGET(r, data, name) \
  if constexpr ((HWY_TARGETS & BOOST_PP_CAT(HWY_, name)) != 0) set.add(Target::name);
  BOOST_PP_SEQ_FOR_EACH(NIBBLE_ADD_TARGET, _, NIBBLE_ALL_TARGETS)
#undef NIBBLE_ADD_TARGET
  return set;
}

// The one that the compiler may use everywhere anyway: whatever runs the program can run it.
constexpr Target baseline_target() noexcept {
  Target target = Target::SCALAR;
#define NIBBLE_IF_BASELINE(r, data, name) \
  if constexpr (HWY_STATIC_TARGET == BOOST_PP_CAT(HWY_, name)) target = Target::name;
  BOOST_PP_SEQ_FOR_EACH(NIBBLE_IF_BASELINE, _, NIBBLE_ALL_TARGETS)
#undef NIBBLE_IF_BASELINE
  return target;
}

// The targets that are compiled and that this machine can run; the baseline is always among them.
inline TargetSet available_targets() noexcept {
  return (compiled_targets() & machine_targets()).add(baseline_target());
}

namespace detail {
inline constinit std::atomic<int> active_row{-1};  // -1: not chosen yet

inline void use(Target target) noexcept {
  active_row.store(static_cast<int>(target), std::memory_order_relaxed);
}

inline Status check_available(Target target) {
  if (available_targets().contains(target)) return ok();
  const bool compiled = compiled_targets().contains(target);
  return Error{Errc::unsupported, std::string("SIMD target '") + to_string(target) + "' " +
                                      (compiled ? "is not available on this machine"
                                                : "is not compiled into this program") +
                                      "; available: " + to_string(available_targets())};
}

// The target that NIBBLE_TARGET names, or the best one if it is not set.
inline Result<Target> wanted_target() {
  const char* const name = std::getenv("NIBBLE_TARGET");
  if (name == nullptr || *name == '\0') return available_targets().best();
  auto target = target_from_name(name);
  const Status available = target ? check_available(*target) : Status(target.error());
  if (!available) return Error(available.error()).in("environment variable NIBBLE_TARGET");
  return target;
}
}  // namespace detail

// Uses `target` for every later kernel call of the program. An Error if it is not compiled or if
// this machine cannot run it. Not to be called while kernels run.
inline Status force_target(Target target) {
  NIBBLE_CHECK(detail::check_available(target));
  detail::use(target);
  return ok();
}

// The best available target, or the one that the environment variable NIBBLE_TARGET names. An
// Error if that names none, or one that cannot run. Replaces an earlier force_target().
inline Status choose_target() {
  NIBBLE_TRY(target, detail::wanted_target());
  detail::use(target);
  return ok();
}

namespace detail {
inline int choose_row() noexcept {
  // A bad NIBBLE_TARGET: whoever loads a model is told, kernels still run.
  if (!choose_target()) use(available_targets().best());
  return active_row.load(std::memory_order_relaxed);
}
}  // namespace detail

// What loading a model calls: makes the first choice if none was made, and reports a NIBBLE_TARGET
// that cannot be had, whatever ran before.
inline Status ensure_target() {
  NIBBLE_TRY(target, detail::wanted_target());
  if (detail::active_row.load(std::memory_order_relaxed) < 0) detail::use(target);
  return ok();
}

// The target whose kernels run.
inline Target active_target() noexcept {
  const int row = detail::active_row.load(std::memory_order_relaxed);
  return static_cast<Target>(row >= 0 ? row : detail::choose_row());
}

namespace detail {
template <class Kernel, Target kTarget>
constexpr typename Kernel::Function* row() noexcept {
  // Impl is declared for every target and complete only for those that are compiled. For the others
  // the baseline's stands in: another translation unit of the program, with a longer list of
  // targets, may have chosen one that this one lacks.
#define NIBBLE_ROW(r, data, name)                                  \
  if constexpr (kTarget == Target::name) {                         \
    if constexpr ((HWY_TARGETS & BOOST_PP_CAT(HWY_, name)) != 0) { \
      return &BOOST_PP_CAT(N_, name)::Impl<Kernel>::run;           \
    }                                                              \
  }
  BOOST_PP_SEQ_FOR_EACH(NIBBLE_ROW, _, NIBBLE_ALL_TARGETS)
#undef NIBBLE_ROW
  return &HWY_STATIC_NAMESPACE::Impl<Kernel>::run;
}

// One row per target. HWY_TARGETS is a parameter so that two translation units with different
// target lists have two tables.
template <class Kernel, long long kTargets>
struct Table {
#define NIBBLE_TABLE_ROW(r, data, name) row<Kernel, Target::name>(),
  static constexpr std::array<typename Kernel::Function*, kTargetCount> kRows = {
      BOOST_PP_SEQ_FOR_EACH(NIBBLE_TABLE_ROW, _, NIBBLE_ALL_TARGETS)};
#undef NIBBLE_TABLE_ROW
};
}  // namespace detail

// The function of `Kernel` for the active target.
template <class Kernel>
typename Kernel::Function* kernel() noexcept {
  return detail::Table<Kernel, HWY_TARGETS>::kRows[static_cast<std::size_t>(active_target())];
}

}  // namespace nibble::inline NIBBLE_ABI::simd
