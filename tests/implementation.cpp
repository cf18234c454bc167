// SPDX-License-Identifier: Apache-2.0
//
// nibble's code for the test programs, which use the split form, and epilogues that only tests use
// and that nibble/kernels/instances.hpp does not name. A missing kernel is an undefined symbol that
// names it. A kernel with a test's own format or block length belongs in instances.cpp.
#define NIBBLE_IMPLEMENTATION
#include "nibble/nibble.hpp"

#include "forget_target.hpp"

void test::forget_target() { nibble::simd::detail::active_row = -1; }

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

#define NIBBLE_INSTANCE(...) template __VA_ARGS__::Function* kernel<__VA_ARGS__>() noexcept;

#define NIBBLE_EPILOGUE(Activation) \
  NIBBLE_INSTANCE(kernels::FinishTile<kernels::Epilogue<kernels::Activation, true, true>>)
NIBBLE_EPILOGUE(Erf)
NIBBLE_EPILOGUE(Exp)
NIBBLE_EPILOGUE(Sigmoid)
NIBBLE_EPILOGUE(Tanh)

}}}  // namespace nibble::NIBBLE_ABI::simd
