// SPDX-License-Identifier: Apache-2.0
//
// Run-time dispatch: which target's kernels run, by choice or by force, and the function of a
// kernel for it. A kernel is a tag type with a `Function` type; each target's namespace holds
// Impl<Tag>::run. One table per tag, a row per target, made after the pass over the targets; a call
// is one indexed load and one indirect call. Because every target's namespace is visible there, any
// tag can be dispatched, with any template parameters, also one that a user defines.
#pragma once

#include "nibble/core/result.hpp"
#include "nibble/simd/target.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

// The targets whose kernels are in this program: NIBBLE_TARGETS as far as the compiler can.
TargetSet compiled_targets() noexcept;

// The one that the compiler may use everywhere anyway: whatever runs the program can run it.
Target baseline_target() noexcept;

// The targets that are compiled and that this machine can run; the baseline is always among them.
TargetSet available_targets() noexcept;

// The target whose kernels run.
Target active_target() noexcept;

// Uses `target` for every later kernel call of the program. An Error if it is not compiled or if
// this machine cannot run it. Not to be called while kernels run.
Status force_target(Target target);

// The best available target, or the one that the environment variable NIBBLE_TARGET names. An
// Error if that names none, or one that cannot run. Replaces an earlier force_target().
Status choose_target();

// What loading a model calls: makes the first choice if none was made, and reports a NIBBLE_TARGET
// that cannot be had, whatever ran before.
Status ensure_target();

// The function of `Kernel` for the active target. In the split form it is defined only for the
// kernels of kernels/instances.hpp: a tag of the program's own, with a format or an epilogue of its
// own, is an undefined symbol there and needs the header form.
template <class Kernel>
typename Kernel::Function* kernel() noexcept;

}}}  // namespace nibble::NIBBLE_ABI::simd

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/simd/dispatch-inl.hpp"
#endif
