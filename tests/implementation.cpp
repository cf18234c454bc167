// SPDX-License-Identifier: Apache-2.0
//
// nibble's code for the test programs, which are in the split form; and epilogues that
// nibble/kernels/instances.hpp does not name and only tests use. A kernel that is missing is an
// undefined symbol that names it; one with a format or a block length of the test's own goes to
// instances.cpp.
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
