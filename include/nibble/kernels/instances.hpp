// SPDX-License-Identifier: Apache-2.0
//
// Split form: the kernels that the translation unit with NIBBLE_IMPLEMENTATION defines for all
// others, so that typed operations on nibble's own formats and epilogues link from anywhere. With
// -ffunction-sections and the linker's --gc-sections a program keeps only those that it uses.
//
// Products with ActivationScales::per_row need the header form: they are one more set of tiles for
// each block format, and few programs want them.
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/dropout.hpp"
#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/norm.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/quantize_rows.hpp"
#include "nibble/kernels/rope.hpp"
#include "nibble/kernels/softmax.hpp"
#include "nibble/kernels/which.hpp"
#include "nibble/quant/block.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

#define NIBBLE_INSTANCE(...) template __VA_ARGS__::Function* kernel<__VA_ARGS__>() noexcept;

// Packing, and products with the epilogues of the architectures that load() knows.
#define NIBBLE_INSTANCES_OF_FORMAT(Format)                                                    \
  NIBBLE_INSTANCE(kernels::Matmul<Format, kernels::Epilogue<>>)                               \
  NIBBLE_INSTANCE(kernels::Matmul<Format, kernels::Epilogue<kernels::Identity, true>>)        \
  NIBBLE_INSTANCE(kernels::Matmul<Format, kernels::Epilogue<kernels::Identity, true, true>>)  \
  NIBBLE_INSTANCE(kernels::Matmul<Format, kernels::Epilogue<kernels::Identity, false, true>>) \
  NIBBLE_INSTANCE(kernels::Matmul<Format, kernels::Epilogue<kernels::GeluTanh>>)              \
  NIBBLE_INSTANCE(kernels::Matmul<Format, kernels::Epilogue<kernels::GeluTanh, true>>)        \
  NIBBLE_INSTANCE(kernels::MatmulGated<Format, kernels::Silu>)                                \
  NIBBLE_INSTANCE(kernels::PackPanel<Format>)
NIBBLE_INSTANCES_OF_FORMAT(quant::F32)
NIBBLE_INSTANCES_OF_FORMAT(quant::F16)
NIBBLE_INSTANCES_OF_FORMAT(quant::BF16)
NIBBLE_INSTANCES_OF_FORMAT(quant::Q8_0)
NIBBLE_INSTANCES_OF_FORMAT(quant::Q4_0)
NIBBLE_INSTANCES_OF_FORMAT(quant::Q4_1)
#undef NIBBLE_INSTANCES_OF_FORMAT
NIBBLE_INSTANCE(kernels::Matmul<quant::I8Channel, kernels::Epilogue<>>)
NIBBLE_INSTANCE(kernels::RoundRow)
NIBBLE_INSTANCE(kernels::TakesRoundedRows)

#define NIBBLE_INSTANCES_OF_ACTIVATION(Activation) \
  NIBBLE_INSTANCE(kernels::Activate<Activation>)   \
  NIBBLE_INSTANCE(kernels::ActivateGated<Activation>)
NIBBLE_INSTANCES_OF_ACTIVATION(kernels::Identity)
NIBBLE_INSTANCES_OF_ACTIVATION(kernels::Relu)
NIBBLE_INSTANCES_OF_ACTIVATION(kernels::Silu)
NIBBLE_INSTANCES_OF_ACTIVATION(kernels::GeluErf)
NIBBLE_INSTANCES_OF_ACTIVATION(kernels::GeluTanh)
#undef NIBBLE_INSTANCES_OF_ACTIVATION
NIBBLE_INSTANCE(kernels::Activate<kernels::Sigmoid>)
NIBBLE_INSTANCE(kernels::Activate<kernels::Tanh>)

#define NIBBLE_INSTANCES_OF_CACHE(T)  \
  NIBBLE_INSTANCE(kernels::Attend<T>) \
  NIBBLE_INSTANCE(kernels::StoreKeysValues<T>)
NIBBLE_INSTANCES_OF_CACHE(float)
NIBBLE_INSTANCES_OF_CACHE(f16)
NIBBLE_INSTANCES_OF_CACHE(bf16)
NIBBLE_INSTANCES_OF_CACHE(std::int8_t)
#undef NIBBLE_INSTANCES_OF_CACHE
NIBBLE_INSTANCE(kernels::ToF32<f16>)
NIBBLE_INSTANCE(kernels::ToF32<bf16>)

NIBBLE_INSTANCE(kernels::Add)
NIBBLE_INSTANCE(kernels::ApplyDropout)
NIBBLE_INSTANCE(kernels::ArgMax)
NIBBLE_INSTANCE(kernels::BlockSums<32>)
NIBBLE_INSTANCE(kernels::LayerNorm<>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::Identity, false, true>)
NIBBLE_INSTANCE(kernels::LayerNormQuantize<32>)
NIBBLE_INSTANCE(kernels::LayerNormQuantize<32, true>)
NIBBLE_INSTANCE(kernels::LogSumExp)
NIBBLE_INSTANCE(kernels::MergeAttention)
NIBBLE_INSTANCE(kernels::Multiply)
NIBBLE_INSTANCE(kernels::QuantizeRow<0>)
NIBBLE_INSTANCE(kernels::QuantizeRow<32>)
NIBBLE_INSTANCE(kernels::RmsNorm<>)
NIBBLE_INSTANCE(kernels::RmsNorm<true>)
NIBBLE_INSTANCE(kernels::RmsNormQuantize<32>)
NIBBLE_INSTANCE(kernels::RmsNormQuantize<32, true>)
NIBBLE_INSTANCE(kernels::Rope<kernels::AdjacentPairs>)
NIBBLE_INSTANCE(kernels::Rope<kernels::HalfSplit>)
NIBBLE_INSTANCE(kernels::Scale)
NIBBLE_INSTANCE(kernels::Softmax)
NIBBLE_INSTANCE(kernels::WhichTarget)
#undef NIBBLE_INSTANCE

}}}  // namespace nibble::NIBBLE_ABI::simd
