// SPDX-License-Identifier: Apache-2.0
//
// A plug-in that says for which SIMD target its kernels run (plugins.cmake).
#include <cstring>

#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/which.hpp"

using namespace nibble;

// Does the target that runs have this name, and the choice say so?
extern "C" int plugin_run(const char* name) {
  const simd::Target target = simd::kernel<kernels::WhichTarget>()();
  return target == simd::active_target() && std::strcmp(to_string(target), name) == 0 ? 0 : 1;
}

extern "C" int plugin_force(const char* name) {
  const auto target = simd::target_from_name(name);
  return target && simd::force_target(*target) ? 0 : 1;
}
