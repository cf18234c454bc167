// SPDX-License-Identifier: Apache-2.0
//
// Inputs of the products of a Llama model, collected with taps, and ranges of them: a small
// calibration for tests that stands beside the library's own. The expression is written here once
// more, with names.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/compress/static_int8.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/model.hpp"
#include "nibble/quant/static_scale.hpp"

namespace test {

using namespace nibble;

// Plain Llama with a tap before each product.
inline auto tapped_llama(const ModelConfig& d) {
  using namespace graph;
  using enum Slot;
  const Heads heads(d.n_heads, d.n_kv_heads, d.head_dim, inverse_sqrt(d.head_dim), Index{d.window});
  const auto attention = rms_norm<attn_norm>(d.norm_eps) >> tap<"attn_q">() >>
                         fork(linear<attn_q>(heads.width()), linear<attn_k>(heads.kv_width()),
                              linear<attn_v>(heads.kv_width())) >>
                         rope<kernels::AdjacentPairs, optional_slot(rope_freqs)>(
                             heads, RopeAngles{d.rope_dim, d.rope_theta, d.rope_scale}) >>
                         cache_kv(heads) >> scores(heads) >> softmax(heads) >>
                         attend_values(heads) >> tap<"attn_output">() >> linear<attn_output>(d.dim);
  const auto feed_forward =
      rms_norm<ffn_norm>(d.norm_eps) >> tap<"ffn_gate">() >>
      fork(linear<ffn_gate>(d.ffn_dim) >> silu(), linear<ffn_up>(d.ffn_dim)) >> multiply() >>
      tap<"ffn_down">() >> linear<ffn_down>(d.dim);
  return embedding<token_embd>(d.dim, d.vocab_size) >>
         repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> tap<"output">() >>
         linear<tied_slot(output, token_embd)>(d.vocab_size);
}

class InputSamples {
 public:
  // Runs the model on each of `texts`, token ids of at most n_positions.
  InputSamples(const Model& model, const std::vector<std::vector<std::int32_t>>& texts,
               Index n_positions) {
    const ModelConfig& config = model.config();
    const auto expression = tapped_llama(config);
    const graph::Limits limits{
        .max_rows = n_positions, .max_outputs = n_positions, .n_positions = n_positions};
    const graph::Plan plan = graph::make_plan(expression, limits);
    REQUIRE_MESSAGE(plan.is_valid(), plan.error);
    auto arena = AlignedBuffer::allocate(plan.bytes);
    REQUIRE(arena);
    const ops::KvCacheLayout layout{.type = ops::KvType::f16,
                                    .n_layers = config.n_layers,
                                    .n_kv_heads = config.n_kv_heads,
                                    .head_dim = config.head_dim,
                                    .capacity = n_positions};
    auto memory = AlignedBuffer::allocate(layout.bytes());
    REQUIRE(memory);
    auto cache = ops::KvCache::create(memory->bytes(), layout);
    REQUIRE(cache.has_value());
    Rope needs;
    graph::survey(expression, needs);
    needs.key.has_factors = false;
    auto rope = AlignedBuffer::allocate(graph::RopeTable::bytes_needed(needs.key, n_positions));
    REQUIRE(rope);
    std::vector<double> frequencies(static_cast<std::size_t>(needs.key.dim / 2));
    const auto rotations =
        graph::RopeTable::fill(rope->bytes(), needs.key, n_positions, frequencies, {});
    const graph::Observer observer(
        [this](std::string_view name, Index layer, MatrixView<const float> rows) {
          add(name, layer, rows);
        });
    InlineExecutor executor;
    graph::RunArgs args;
    args.weights = model.weights();
    args.cache = *cache;
    args.rope_tables = {&rotations, 1};
    args.arena = arena->bytes();
    args.executor = &executor;
    args.observer = &observer;
    for (const auto& tokens : texts) {
      const auto n = static_cast<Index>(tokens.size());
      std::vector<Index> outputs(tokens.size());
      std::iota(outputs.begin(), outputs.end(), 0);
      const graph::Segment segment = ops::single_segment(n, 0);
      args.step.tokens = tokens;
      args.step.segments = {&segment, 1};
      args.step.output_rows = outputs;
      graph::run(expression, plan, limits, args);
    }
  }

  // A range for each product: choose(values) gives that of all values of an input, which it may
  // sort.
  template <class Choose>
  std::vector<compress::ProductInput> ranges(const Choose& choose) const {
    std::vector<compress::ProductInput> inputs;
    for (const auto& [key, values] : values_) {
      auto copy = values;
      const quant::StaticScale scale = choose(copy);
      const std::string layer = key.second < 0 ? "" : "blk." + std::to_string(key.second) + ".";
      for (const char* const name : weights_with(key.first)) {
        inputs.push_back({layer + name + ".weight", scale});
      }
    }
    return inputs;
  }
  const std::map<std::pair<std::string, Index>, std::vector<float>>& values() const {
    return values_;
  }

 private:
  struct Rope final : graph::SurveySink {
    void rope(const graph::RopeKey& k, const graph::RopeFactors&) override { key = k; }
    graph::RopeKey key;
  };
  // The matrices that read an input, named after the first.
  static std::vector<const char*> weights_with(const std::string& input) {
    if (input == "attn_q") return {"attn_q", "attn_k", "attn_v"};
    if (input == "ffn_gate") return {"ffn_gate", "ffn_up"};
    if (input == "output") return {"token_embd"};  // tied
    return {input == "ffn_down" ? "ffn_down" : "attn_output"};
  }
  void add(std::string_view name, Index layer, MatrixView<const float> rows) {
    auto& values = values_[{std::string(name), layer}];
    for (Index i = 0; i < rows.extent(0); ++i) {
      for (Index j = 0; j < rows.extent(1); ++j) values.push_back(rows(i, j));
    }
  }

  std::map<std::pair<std::string, Index>, std::vector<float>> values_;
};

// ---- Ranges of values --------------------------------------------------------------------------

inline quant::StaticScale symmetric_range(float absmax) {
  return {std::max(absmax, 1e-6f) / 127.0f, 0, false};
}
// Unsigned codes for [low, high] and zero.
inline quant::StaticScale affine_range(float low, float high) {
  low = std::min(low, 0.0f);
  high = std::max(high, 0.0f);
  const float scale = std::max(high - low, 1e-6f) / 255.0f;
  return {scale, std::clamp(static_cast<std::int32_t>(std::lround(-low / scale)), 0, 255), true};
}

inline quant::StaticScale min_max(std::vector<float>& x) {
  float absmax = 0;
  for (const float v : x) absmax = std::max(absmax, std::fabs(v));
  return symmetric_range(absmax);
}
inline quant::StaticScale min_max_affine(std::vector<float>& x) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  return affine_range(*low, *high);
}
// The magnitude that this fraction of the values does not exceed.
inline float percentile_of(std::vector<float>& x, double fraction) {
  for (float& v : x) v = std::fabs(v);
  const auto at = x.begin() + static_cast<std::ptrdiff_t>(
                                  std::ceil(fraction * static_cast<double>(x.size())) - 1);
  std::nth_element(x.begin(), at, x.end());
  return *at;
}
// The scale of least squared error among 100 between a fifth of the largest magnitude and all of
// it.
inline quant::StaticScale least_squares(std::vector<float>& x) {
  const quant::StaticScale all = min_max(x);
  quant::StaticScale best = all;
  double least = INFINITY;
  for (int i = 100; i > 20; --i) {
    quant::StaticScale s = all;
    s.scale *= static_cast<float>(i) / 100;
    double sum = 0;
    for (std::size_t j = 0; j < x.size(); j += 7) {
      const double e = double{x[j]} - double{quant::value_of(s, quant::stored_code_of(s, x[j]))};
      sum += e * e;
    }
    if (sum < least) {
      least = sum;
      best = s;
    }
  }
  return best;
}

}  // namespace test
