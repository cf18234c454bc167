// SPDX-License-Identifier: Apache-2.0
//
// nibble's code for the test programs, which are in the split form; and kernels with its formats
// that nibble/kernels/instances.hpp does not name and only tests call. Here, where their formats'
// tiles are, they cost little. A kernel that is missing is an undefined symbol that names it; one
// with a format or a block length of the test's own goes to instances.cpp.
#define NIBBLE_IMPLEMENTATION
#include "nibble/nibble.hpp"

#include "forget_target.hpp"

void test::forget_target() { nibble::simd::detail::active_row = -1; }

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

#define NIBBLE_INSTANCE(...) template __VA_ARGS__::Function* kernel<__VA_ARGS__>() noexcept;

#define NIBBLE_EPILOGUE(Format, ...) \
  NIBBLE_INSTANCE(kernels::Matmul<quant::Format, kernels::Epilogue<__VA_ARGS__>>)
NIBBLE_EPILOGUE(F32, kernels::GeluErf, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Erf, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Exp, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::GeluErf, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::GeluTanh, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Relu, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Sigmoid, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Silu)
NIBBLE_EPILOGUE(Q4_0, kernels::Silu, false, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Silu, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Silu, true, true)
NIBBLE_EPILOGUE(Q4_0, kernels::Tanh, true, true)
NIBBLE_EPILOGUE(Q8_0, kernels::Silu, true, true)
NIBBLE_INSTANCE(kernels::MatmulGated<quant::Q4_0, kernels::GeluTanh>)

}}}  // namespace nibble::NIBBLE_ABI::simd
