// SPDX-License-Identifier: Apache-2.0
//
// Gradients of decoders, as their architectures describe them, against differences: each node that
// the library has is in one of them.
#include "nibble/graph/differentiate.hpp"

#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/model/gemma2.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/phi3.hpp"
#include "train/training_model.hpp"

namespace decoders_test {
namespace {

using namespace test;

// A small model: 2 layers, 4 heads of 8 dimensions for 2 of keys and values.
DecoderConfig small_config() {
  DecoderConfig c;
  c.vocab_size = 19;
  c.dim = 20;
  c.n_layers = 2;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 8;
  c.ffn_dim = 28;
  c.n_ctx = 16;
  c.norm_eps = 1e-5f;
  c.rope_dim = 8;
  return c;
}

template <class Architecture>
void check(const DecoderConfig& c, const TrainingLimits& limits = {}) {
  const auto e = Architecture::expression(c);
  TrainingModel<decltype(e)> model(e, kSlotCount, c.n_layers);
  check_gradients(model, GradientBatch({4, 6, 1}, 19), limits);
}

TEST_CASE("llama: biases, norms of heads, temperatures, factors of embeddings and logits") {
  DecoderConfig c = small_config();
  c.has_head_norms = true;
  c.temperature = {0.3f, 2};
  c.embedding_scale = 1.7f;
  c.logit_scale = 0.6f;
  check<Llama>(c);
  TrainingLimits limits;
  limits.checkpoints = true;
  check<Llama>(c, limits);
}

TEST_CASE("llama: windows and rotations that differ by layer, rotation of half a head") {
  DecoderConfig c = small_config();
  c.windows = {{3}, {0}};
  c.rope_dims = {{4}, {0}};
  c.is_half_split = true;
  check<Llama>(c);
}

TEST_CASE("llama: sizes that differ by layer") {
  DecoderConfig c = small_config();
  c.layer_dims.n_heads = {{4}, {2}};
  c.layer_dims.n_kv_heads = {{2}, {1}};
  c.layer_dims.ffn_dims = {{12}, {28}};
  c.q_widths = {{32}, {16}};
  c.kv_widths = {{16}, {8}};
  check<Llama>(c);
}

TEST_CASE("gemma: caps of scores and logits, norms behind each half, windows") {
  DecoderConfig c = small_config();
  c.attention_cap = 3;
  c.logit_cap = 5;
  c.windows = {{2}, {0}};
  c.has_head_norms = true;
  check<Gemma2>(c);
}

TEST_CASE("phi3: one product for q, k and v, and one for gate and up") {
  check<Phi3>(small_config());
}

}  // namespace

}  // namespace decoders_test
