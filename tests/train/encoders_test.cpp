// SPDX-License-Identifier: Apache-2.0
//
// Gradients of the other kinds of models against differences: position tables, LayerNorm, biases,
// parallel halves, attention in both directions, pooled rows; and what a program asks for itself.
#include "nibble/graph/gradient.hpp"

#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/model/bert.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/gptneox.hpp"
#include "train/training_model.hpp"

namespace encoders_test {
namespace {

using namespace test;

template <class Config>
Config small_config() {
  Config c;
  c.vocab_size = 19;
  c.dim = 32;
  c.n_layers = 2;
  c.n_heads = 4;
  c.n_kv_heads = 4;
  c.head_dim = 8;
  c.ffn_dim = 28;
  c.n_ctx = 16;
  c.norm_eps = 1e-5f;
  c.rope_dim = 4;
  return c;
}

TEST_CASE("gpt2: tables of positions, LayerNorm, biases, one product for q, k and v") {
  const auto c = small_config<ModelConfig>();
  const auto e = Gpt2::expression(c);
  TrainingModel<decltype(e)> model(e, kSlotCount, c.n_layers);
  check_gradients(model, GradientBatch({4, 6, 1}, 19));
  // With its taps shown: the same, plus what the observer adds, here the rows behind a tap: the
  // gradient of half their square.
  TrainingLimits limits;
  limits.taps = true;
  double square = 0;
  const GradientObserver observer = [&](std::string_view name, Index layer,
                                        MatrixView<const float> rows, MatrixView<float> gradient) {
    if (name != "mlp" || layer != 1) return;
    square = 0;
    for (Index i = 0; i < rows.extent(0); ++i) {
      for (Index j = 0; j < rows.extent(1); ++j) {
        gradient(i, j) += rows(i, j);
        square += static_cast<double>(rows(i, j)) * static_cast<double>(rows(i, j)) / 2;
      }
    }
  };
  check_gradients(model, GradientBatch({4, 6, 1}, 19), limits, 3e-3, &observer, &square);
}

TEST_CASE("gptneox: halves side by side in some layers, one after the other in others") {
  auto c = small_config<GptNeoxConfig>();
  const auto e = GptNeox::expression(c);
  TrainingModel<decltype(e)> model(e, kSlotCount, c.n_layers);
  check_gradients(model, GradientBatch({4, 6, 1}, 19));
  c.is_parallel = false;
  const auto serial = GptNeox::expression(c);
  TrainingModel<decltype(serial)> other(serial, kSlotCount, c.n_layers);
  check_gradients(other, GradientBatch({4, 6, 1}, 19));
}

TEST_CASE("bert: attention in both directions, a row for all tokens, pooled rows") {
  for (const graph::Pooling pooling :
       {graph::Pooling::mean, graph::Pooling::first, graph::Pooling::last}) {
    auto c = small_config<EncoderConfig>();
    c.is_causal = false;
    c.pooling = pooling;
    const auto e = Bert::expression(c);
    TrainingModel<decltype(e)> model(e, kSlotCount, c.n_layers);
    check_gradients(model, GradientBatch({4, 6, 1}, 19));
  }
}

}  // namespace

}  // namespace encoders_test
