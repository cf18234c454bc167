// SPDX-License-Identifier: Apache-2.0
//
// Runs of expressions for the tests of this folder, compiled once (engine.cpp): each test program
// that instantiates the kernels of a whole model takes a minute to compile.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/graph/run.hpp"
#include "nibble/model/config.hpp"

namespace test {

using nibble::Index;
using FloatRows = std::vector<std::vector<float>>;

// A model, as runs need it.
struct Parts {
  nibble::ModelConfig config;
  nibble::graph::WeightTable weights;
};

struct RunOptions {
  bool fused = true;
  std::size_t batch = 1000;  // tokens of one run; each has an output
  nibble::ops::KvType kv_type = nibble::ops::KvType::f32;
  // The initial contents of arena and cache; the arena is refilled before each run. Bytes 255 are
  // NaN, 127 are numbers of 3e38.
  unsigned char garbage = 255;
  nibble::Executor* executor = nullptr;
  const nibble::graph::Observer* observer = nullptr;
};

// The logits at every token, from the expression of the model's architecture, with all formats
// compiled.
FloatRows run_graph(const Parts& parts, std::span<const std::int32_t> tokens,
                    const RunOptions& options);

// The same for a model whose dimensions are those of TinyDims (tiny_dims.hpp), as compile-time
// constants.
FloatRows run_static(const Parts& parts, std::span<const std::int32_t> tokens,
                     const RunOptions& options);

// embedding >> layer_norm >> gelu_erf >> dropout(probability) of `tokens`.
FloatRows run_norm_dropout(const Parts& parts, std::span<const std::int32_t> tokens, bool fused,
                           bool training, float probability);

// embedding >> output_rows >> output_rows, and embedding >> repeat(0, ...) >> linear(output).
FloatRows run_output_rows_twice(const Parts& parts, std::span<const std::int32_t> tokens,
                                Index n_outputs);
FloatRows run_without_layers(const Parts& parts, std::span<const std::int32_t> tokens);

}  // namespace test
