// SPDX-License-Identifier: Apache-2.0
//
// A Llama-shaped model whose dimensions are types, and the memory it needs, all as constants.
#pragma once

#include "nibble/graph/fuse.hpp"
#include "nibble/graph/plan.hpp"
#include "nibble/model/llama.hpp"

namespace test {

struct TinyDims {
  nibble::Dim<64> vocab_size;
  nibble::Dim<32> dim;
  nibble::Dim<2> n_layers;
  nibble::Dim<4> n_heads;
  nibble::Dim<2> n_kv_heads;
  nibble::Dim<8> head_dim;
  nibble::Dim<96> ffn_dim;
  static constexpr nibble::Index window = 0;
  static constexpr float norm_eps = 1e-5f;
  static constexpr nibble::Index rope_dim = 8;
  static constexpr float rope_theta = 10000, rope_scale = 1;
};

// Weights in f32 alone.
inline constexpr nibble::graph::Limits kTinyLimits{
    .max_rows = 4, .max_outputs = 4, .n_positions = 32, .code_inputs = false};
inline constexpr auto kTinyModel = nibble::graph::fuse(nibble::llama(TinyDims{}));
inline constexpr nibble::graph::Plan kTinyPlan = nibble::graph::make_plan(kTinyModel, kTinyLimits);

}  // namespace test
