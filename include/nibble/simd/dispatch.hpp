// SPDX-License-Identifier: Apache-2.0
//
// Run-time dispatch: selects the target whose kernels run, automatically or by force, and returns a
// kernel's function for that target. A kernel is a tag type with a `Function` type; each target's
// namespace defines Impl<Tag>::run. There is one table per tag with one row per target. The tables
// are built after the pass over the targets, where every target's namespace is visible. So any tag
// can be dispatched, with any template parameters, including a user's own. A call is one indexed
// load and one indirect call.
#pragma once

#include "nibble/core/result.hpp"
#include "nibble/simd/target.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

// The targets whose kernels are in this program: those of NIBBLE_TARGETS that the compiler
// supports.
NIBBLE_HIDDEN_INLINE TargetSet compiled_targets() noexcept;

// The target that the compiler flags allow everywhere: every machine that runs the program can run
// it.
NIBBLE_HIDDEN_INLINE Target baseline_target() noexcept;

// The targets that are compiled and that this machine can run; always includes the baseline.
NIBBLE_HIDDEN_INLINE TargetSet available_targets() noexcept;

// The target whose kernels run.
NIBBLE_HIDDEN_INLINE Target active_target() noexcept;

// Uses `target` for every later kernel call of the program or shared library: each has a choice of
// its own, so that plug-ins of different makers do not choose for each other. Returns an Error if
// it is not compiled or this machine cannot run it. Do not call it while kernels run.
NIBBLE_HIDDEN_INLINE Result<void> force_target(Target target);

// Uses the best available target, or the one that the environment variable NIBBLE_TARGET names.
// Returns an Error if that name is unknown or the target cannot run. Replaces an earlier
// force_target().
NIBBLE_HIDDEN_INLINE Result<void> choose_target();

// Called when a model is loaded: makes the first choice if none was made. Reports a NIBBLE_TARGET
// that is not available, even if a target was chosen before.
NIBBLE_HIDDEN_INLINE Result<void> ensure_target();

// The function of `Kernel` for the active target. In the split form it is defined only for the
// kernels of kernels/instances.hpp. There, a tag of the program's own, with its own format or
// epilogue, is an undefined symbol; it needs the header form.
template <class Kernel>
NIBBLE_HIDDEN_INLINE typename Kernel::Function* kernel() noexcept;

}}}  // namespace nibble::NIBBLE_ABI::simd

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/simd/dispatch-inl.hpp"
#endif
