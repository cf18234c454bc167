// SPDX-License-Identifier: Apache-2.0
//
// Split form: the kernels that the translation unit with NIBBLE_IMPLEMENTATION defines for all
// others, so that typed operations on nibble's own formats and epilogues link from anywhere. With
// -ffunction-sections and the linker's --gc-sections a program keeps only those that it uses.
//
// Products with ActivationScales::per_row need the header form: they would be one more set of tiles
// for each block format, and few programs use them.
#pragma once

#include "nibble/kernels/activation.hpp"
#include "nibble/kernels/activation_back.hpp"
#include "nibble/kernels/adamw.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/attention_train.hpp"
#include "nibble/kernels/causal_conv.hpp"
#include "nibble/kernels/delta_rule.hpp"
#include "nibble/kernels/dropout.hpp"
#include "nibble/kernels/elementwise.hpp"
#include "nibble/kernels/gemm.hpp"
#include "nibble/kernels/loss.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/norm.hpp"
#include "nibble/kernels/norm_back.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/kernels/quantize_rows.hpp"
#include "nibble/kernels/quantize_static.hpp"
#include "nibble/kernels/rope.hpp"
#include "nibble/kernels/second_moments.hpp"
#include "nibble/kernels/softmax.hpp"
#include "nibble/kernels/which.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace simd {

#define NIBBLE_INSTANCE(...) template __VA_ARGS__::Function* kernel<__VA_ARGS__>() noexcept;

// Packing and products.
#define NIBBLE_ROW(Type, name, file_type)       \
  NIBBLE_INSTANCE(kernels::Matmul<quant::Type>) \
  NIBBLE_INSTANCE(kernels::PackPanel<quant::Type>)
NIBBLE_GGUF_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
#define NIBBLE_ROW(Type, name, file_type) NIBBLE_INSTANCE(kernels::Matmul<quant::Type>)
NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
#undef NIBBLE_ROW
NIBBLE_INSTANCE(kernels::Matmul<quant::I8Channel>)
NIBBLE_INSTANCE(kernels::Matmul<quant::I8Channel, kernels::ActivationScales::affine>)
NIBBLE_INSTANCE(kernels::PackPanel<quant::I8Channel>)

// Epilogues of products.
#define NIBBLE_INSTANCES_OF_EPILOGUE(Activation)                                   \
  NIBBLE_INSTANCE(kernels::FinishTile<kernels::Epilogue<Activation>>)              \
  NIBBLE_INSTANCE(kernels::FinishTile<kernels::Epilogue<Activation, true>>)        \
  NIBBLE_INSTANCE(kernels::FinishTile<kernels::Epilogue<Activation, false, true>>) \
  NIBBLE_INSTANCE(kernels::FinishTile<kernels::Epilogue<Activation, true, true>>)  \
  NIBBLE_INSTANCE(kernels::FinishGatedTile<Activation>)
NIBBLE_INSTANCES_OF_EPILOGUE(kernels::Identity)
NIBBLE_INSTANCES_OF_EPILOGUE(kernels::Relu)
NIBBLE_INSTANCES_OF_EPILOGUE(kernels::Silu)
NIBBLE_INSTANCES_OF_EPILOGUE(kernels::GeluErf)
NIBBLE_INSTANCES_OF_EPILOGUE(kernels::GeluTanh)
#undef NIBBLE_INSTANCES_OF_EPILOGUE
NIBBLE_INSTANCE(kernels::FinishTile<kernels::TimesResidual>)
NIBBLE_INSTANCE(kernels::RoundCodes<32>)
NIBBLE_INSTANCE(kernels::RoundRow)
NIBBLE_INSTANCE(kernels::TileTaskRows)
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
NIBBLE_INSTANCES_OF_CACHE(f16)
#if (NIBBLE_KV_TYPES) & 1
NIBBLE_INSTANCES_OF_CACHE(float)
#endif
#if (NIBBLE_KV_TYPES) & 4
NIBBLE_INSTANCES_OF_CACHE(bf16)
#endif
#if (NIBBLE_KV_TYPES) & 8
NIBBLE_INSTANCES_OF_CACHE(std::int8_t)
#endif
#if (NIBBLE_KV_TYPES) & 16
NIBBLE_INSTANCES_OF_CACHE(kernels::CodePair)
#endif
#undef NIBBLE_INSTANCES_OF_CACHE
NIBBLE_INSTANCE(kernels::ToF32<f16>)
NIBBLE_INSTANCE(kernels::ToF32<bf16>)

// Training.
#define NIBBLE_INSTANCES_OF_SLOPE(Activation)        \
  NIBBLE_INSTANCE(kernels::ActivateBack<Activation>) \
  NIBBLE_INSTANCE(kernels::ActivateGatedBack<Activation>)
NIBBLE_INSTANCES_OF_SLOPE(kernels::Identity)
NIBBLE_INSTANCES_OF_SLOPE(kernels::Relu)
NIBBLE_INSTANCES_OF_SLOPE(kernels::Silu)
NIBBLE_INSTANCES_OF_SLOPE(kernels::GeluErf)
NIBBLE_INSTANCES_OF_SLOPE(kernels::GeluTanh)
NIBBLE_INSTANCES_OF_SLOPE(kernels::Sigmoid)
NIBBLE_INSTANCES_OF_SLOPE(kernels::Tanh)
#undef NIBBLE_INSTANCES_OF_SLOPE
NIBBLE_INSTANCE(kernels::AdamW)
NIBBLE_INSTANCE(kernels::AdamW8)
NIBBLE_INSTANCE(kernels::CrossEntropyBack)
NIBBLE_INSTANCE(kernels::DistillBack)
NIBBLE_INSTANCE(kernels::LayerNormBack<>)
NIBBLE_INSTANCE(kernels::LayerNormBack<kernels::Gradient::add>)
NIBBLE_INSTANCE(kernels::RmsNormBack<>)
NIBBLE_INSTANCE(kernels::RmsNormBack<kernels::Gradient::add>)
NIBBLE_INSTANCE(kernels::SoftCapBack)
NIBBLE_INSTANCE(kernels::TrainAttention)
NIBBLE_INSTANCE(kernels::TrainAttentionBack)
NIBBLE_INSTANCE(kernels::TrainSinkBack)

NIBBLE_INSTANCE(kernels::Add)
NIBBLE_INSTANCE(kernels::AddScaled)
NIBBLE_INSTANCE(kernels::AddSecondMoments)
NIBBLE_INSTANCE(kernels::ApplyDropout)
NIBBLE_INSTANCE(kernels::ArgMax)
NIBBLE_INSTANCE(kernels::BlockSums<32>)
NIBBLE_INSTANCE(kernels::CausalConv<kernels::ConvActivated<kernels::Silu>>)
NIBBLE_INSTANCE(kernels::CausalConv<kernels::ConvGated>)
NIBBLE_INSTANCE(kernels::DeltaRule<false>)
NIBBLE_INSTANCE(kernels::DeltaRule<true>)
NIBBLE_INSTANCE(kernels::GemmRows)
NIBBLE_INSTANCE(kernels::LayerNorm<>)
NIBBLE_INSTANCE(kernels::LayerNorm<kernels::Identity, false, true>)
NIBBLE_INSTANCE(kernels::LayerNormQuantize<32>)
NIBBLE_INSTANCE(kernels::LayerNormQuantize<32, true>)
NIBBLE_INSTANCE(kernels::LayerNormQuantize<0>)
NIBBLE_INSTANCE(kernels::LayerNormStatic)
NIBBLE_INSTANCE(kernels::LogSumExp)
NIBBLE_INSTANCE(kernels::MapCodes)
NIBBLE_INSTANCE(kernels::MergeAttention)
NIBBLE_INSTANCE(kernels::Momentum)
NIBBLE_INSTANCE(kernels::Multiply)
NIBBLE_INSTANCE(kernels::PackGemmPanels)
NIBBLE_INSTANCE(kernels::QuantizeRow<0>)
NIBBLE_INSTANCE(kernels::QuantizeRow<32>)
NIBBLE_INSTANCE(kernels::QuantizeRowStatic)
NIBBLE_INSTANCE(kernels::RmsNorm<>)
NIBBLE_INSTANCE(kernels::RmsNorm<true>)
NIBBLE_INSTANCE(kernels::RmsNormQuantize<0>)
NIBBLE_INSTANCE(kernels::RmsNormQuantize<32>)
NIBBLE_INSTANCE(kernels::RmsNormQuantize<32, true>)
NIBBLE_INSTANCE(kernels::RmsNormStatic)
NIBBLE_INSTANCE(kernels::Rope<kernels::AdjacentPairs>)
NIBBLE_INSTANCE(kernels::Rope<kernels::HalfSplit>)
NIBBLE_INSTANCE(kernels::Rope<kernels::AdjacentPairs, true>)
NIBBLE_INSTANCE(kernels::Rope<kernels::HalfSplit, true>)
NIBBLE_INSTANCE(kernels::Scale)
NIBBLE_INSTANCE(kernels::Softmax)
NIBBLE_INSTANCE(kernels::SquareSum)
NIBBLE_INSTANCE(kernels::WhichTarget)
#undef NIBBLE_INSTANCE

}}}  // namespace nibble::NIBBLE_ABI::simd
