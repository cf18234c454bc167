// SPDX-License-Identifier: Apache-2.0
//
// Kernels with formats, block lengths, epilogues and activations that only tests use and that
// nibble/kernels/instances.hpp does not name, compiled once for all test programs. These use the
// split form (a missing kernel is an undefined symbol that names it); this file, like any file that
// brings its own kernels, uses the header form.
#include "forget_target.hpp"
#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/norm.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/quantize_rows.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/simd/dispatch.hpp"

void test::forget_target() { nibble::simd::detail::active_row = -1; }

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

#define NIBBLE_INSTANCE(...) template __VA_ARGS__::Function* kernel<__VA_ARGS__>() noexcept;
using kernels::ActivationScales, kernels::Matmul;
using quant::Blocks, quant::ZeroPoint;

// Members of the family of block formats beyond GGUF's.
using Q4Bf16 = Blocks<4, 64, bf16, ZeroPoint::symmetric>;
using Q4F32 = Blocks<4, 128, float, ZeroPoint::symmetric>;
using Q4Long = Blocks<4, 128, f16, ZeroPoint::symmetric>;
using Q4Minimum128 = Blocks<4, 128, f16, ZeroPoint::minimum>;
using Q8F32 = Blocks<8, 32, float, ZeroPoint::symmetric>;
using Q8Minimum64 = Blocks<8, 64, f16, ZeroPoint::minimum>;
NIBBLE_INSTANCE(Matmul<Q4Bf16>)
NIBBLE_INSTANCE(Matmul<Q4Minimum128>)
NIBBLE_INSTANCE(Matmul<Q8F32>)
NIBBLE_INSTANCE(Matmul<Q8Minimum64>)
NIBBLE_INSTANCE(kernels::PackPanel<Q4F32>)
NIBBLE_INSTANCE(kernels::PackPanel<Blocks<8, 64, bf16, ZeroPoint::minimum>>)

NIBBLE_INSTANCE(Matmul<Q4Long, ActivationScales::per_row>)
NIBBLE_INSTANCE(Matmul<Q8Minimum64, ActivationScales::per_row>)
NIBBLE_INSTANCE(Matmul<quant::Q4_0, ActivationScales::per_row>)
NIBBLE_INSTANCE(Matmul<quant::Q4_1, ActivationScales::per_row>)
NIBBLE_INSTANCE(Matmul<quant::Q8_0, ActivationScales::per_row>)

NIBBLE_INSTANCE(kernels::Activate<kernels::Erf>)
NIBBLE_INSTANCE(kernels::Activate<kernels::Exp>)
#define NIBBLE_EPILOGUE(Activation) \
  NIBBLE_INSTANCE(kernels::FinishTile<kernels::Epilogue<kernels::Activation, true, true>>)
NIBBLE_EPILOGUE(Erf)
NIBBLE_EPILOGUE(Exp)
NIBBLE_EPILOGUE(Sigmoid)
NIBBLE_EPILOGUE(Tanh)
NIBBLE_INSTANCE(kernels::BlockSums<64>)
NIBBLE_INSTANCE(kernels::BlockSums<128>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::GeluErf>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::GeluErf, true>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::GeluTanh>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::GeluTanh, true>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::Silu>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::Silu, true>)
NIBBLE_INSTANCE(kernels::LayerNormQuantize<128>)
NIBBLE_INSTANCE(kernels::QuantizeRow<64>)
NIBBLE_INSTANCE(kernels::QuantizeRow<128>)
NIBBLE_INSTANCE(kernels::RmsNormQuantize<64>)

}}}  // namespace nibble::NIBBLE_ABI::simd
