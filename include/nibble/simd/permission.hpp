// SPDX-License-Identifier: Apache-2.0
//
// The registers of AMX need the system's permission. Linux gives it to a process that asks, for all
// of its threads and for good, unless a sandbox forbids the question. It is asked only when the
// target is forced, because it changes a little for the host program: alternate signal stacks that
// are smaller than getauxval(AT_MINSIGSTKSZ) then says are refused.
#pragma once

#include <atomic>

#include "nibble/core/config.hpp"
#include "nibble/simd/target.hpp"

#if defined(__linux__) && defined(__x86_64__) && !NIBBLE_ENCLAVE
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace simd { namespace detail {

NIBBLE_HIDDEN inline constinit std::atomic<bool> tiles_are_refused{false};

// Whether the process may use the instructions of a target that the machine has. Asks the system if
// that has not been asked, or if it refused. (An enclave cannot ask, and does without.)
NIBBLE_HIDDEN inline bool is_permitted([[maybe_unused]] Target target) noexcept {
#if defined(__linux__) && defined(__x86_64__) && !defined(NIBBLE_TILE_MODEL)
  if (target != Target::AMX) return true;
#if NIBBLE_ENCLAVE
  const bool is_given = false;
#else
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl; a bit of XCR0
  const bool is_given = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
  tiles_are_refused.store(!is_given, std::memory_order_relaxed);
  return is_given;
#else
  return true;
#endif
}

}}}}  // namespace nibble::NIBBLE_ABI::simd::detail
