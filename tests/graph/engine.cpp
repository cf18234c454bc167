// SPDX-License-Identifier: Apache-2.0
#include "graph/engine.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "doctest/doctest.h"
#include "graph/tiny_dims.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/ops/rope_table.hpp"

namespace test {
namespace {

using namespace nibble;

struct Memory {
  explicit Memory(std::size_t bytes, unsigned char garbage) {
    auto allocated = AlignedBuffer::allocate(bytes);
    REQUIRE(allocated.has_value());
    buffer = *std::move(allocated);
    fill(garbage);
  }
  void fill(unsigned char garbage) { std::memset(buffer.data(), garbage, buffer.size()); }
  AlignedBuffer buffer;
};

template <class Out>
void append_rows(const Out& out, FloatRows& rows) {
  for (Index i = 0; i < out.extent(0); ++i) {
    rows.emplace_back();
    for (Index j = 0; j < out.extent(1); ++j) rows.back().push_back(out(i, j));
  }
}

template <class Formats, class E>
FloatRows run_expression(const E& expression, const Parts& parts,
                         std::span<const std::int32_t> tokens, const RunOptions& options) {
  const ModelConfig& config = parts.config;
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  const auto n = static_cast<Index>(std::min(options.batch, tokens.size()));
  const graph::Limits limits{.max_tokens = n,
                             .max_outputs = n,
                             .n_positions = static_cast<Index>(tokens.size()),
                             .max_workers = executor.n_workers()};
  const graph::Plan plan = graph::make_plan<Formats>(expression, limits);
  REQUIRE(plan.is_valid());
  Memory arena(plan.bytes, options.garbage);

  ops::KvCacheLayout layout{.type = options.kv_type,
                            .n_layers = config.n_layers,
                            .n_kv_heads = config.n_kv_heads,
                            .head_dim = config.head_dim,
                            .capacity = limits.n_positions};
  Memory cache_memory(layout.bytes(), options.garbage);
  auto cache = ops::KvCache::create(cache_memory.buffer.bytes(), layout);
  REQUIRE(cache.has_value());

  const auto n_pairs = static_cast<std::size_t>(config.rope_dim / 2);
  std::vector<double> frequencies(n_pairs);
  ops::rope_frequencies(frequencies, static_cast<double>(config.rope_theta), parts.rope_factors,
                        static_cast<double>(config.rope_scale));
  std::vector<Index> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), Index{0});
  std::vector<float> cos(n_pairs * tokens.size()), sin(cos.size());
  const MatrixView<float> cos_view(cos.data(), limits.n_positions, config.rope_dim / 2);
  const MatrixView<float> sin_view(sin.data(), limits.n_positions, config.rope_dim / 2);
  ops::rope_table(frequencies, positions, cos_view, sin_view);

  graph::RunArgs args;
  args.weights = parts.weights;
  args.cache = *cache;
  args.rope_cos = cos_view;
  args.rope_sin = sin_view;
  args.arena = arena.buffer.bytes();
  args.executor = &executor;
  args.observer = options.observer;
  FloatRows rows;
  for (std::size_t first = 0; first < tokens.size(); first += options.batch) {
    args.tokens = tokens.subspan(first, std::min(options.batch, tokens.size() - first));
    args.first_position = static_cast<Index>(first);
    args.n_outputs = static_cast<Index>(args.tokens.size());
    arena.fill(options.garbage);
    append_rows(graph::run<Formats>(expression, plan, limits, args), rows);
  }
  return rows;
}

// A few nodes without attention.
template <class E>
FloatRows run_nodes(const E& expression, const Parts& parts, std::span<const std::int32_t> tokens,
                    Index n_outputs, bool training = false) {
  using Formats = TinyFormats;
  const auto n = static_cast<Index>(tokens.size());
  const graph::Limits limits{.max_tokens = n, .max_outputs = n};
  const graph::Plan plan = graph::make_plan<Formats>(expression, limits);
  Memory arena(plan.bytes, 255);
  InlineExecutor executor;
  graph::RunArgs args;
  args.tokens = tokens;
  args.n_outputs = n_outputs;
  args.weights = parts.weights;
  args.arena = arena.buffer.bytes();
  args.executor = &executor;
  args.training = training;
  args.dropout_seed = 42;
  FloatRows rows;
  append_rows(graph::run<Formats>(expression, plan, limits, args), rows);
  return rows;
}

}  // namespace

FloatRows run_graph(const Parts& parts, std::span<const std::int32_t> tokens,
                    const RunOptions& options) {
  const auto run = [&](const auto& expression) {
    using graph::AllFormats;
    return options.fused
               ? run_expression<AllFormats>(graph::fuse(expression), parts, tokens, options)
               : run_expression<AllFormats>(expression, parts, tokens, options);
  };
  return parts.config.architecture == Architecture::gpt2 ? run(gpt2(parts.config))
                                                         : run(llama(parts.config));
}

FloatRows run_static(const Parts& parts, std::span<const std::int32_t> tokens,
                     const RunOptions& options) {
  return run_expression<TinyFormats>(kTinyModel, parts, tokens, options);
}

FloatRows run_norm_dropout(const Parts& parts, std::span<const std::int32_t> tokens, bool fused,
                           bool training, float probability) {
  using namespace graph;
  const auto expression =
      embedding<Slot::token_embd>(parts.config.dim) >>
      layer_norm<Slot::output_norm, Slot::output_norm_bias>(parts.config.norm_eps) >> gelu_erf() >>
      dropout(probability);
  const auto n = static_cast<Index>(tokens.size());
  return fused ? run_nodes(fuse(expression), parts, tokens, n, training)
               : run_nodes(expression, parts, tokens, n, training);
}

FloatRows run_last_rows_twice(const Parts& parts, std::span<const std::int32_t> tokens,
                              Index n_outputs) {
  using namespace graph;
  return run_nodes(embedding<Slot::token_embd>(parts.config.dim) >> last_rows() >>
                       linear<Slot::output>(parts.config.vocab_size) >> last_rows(),
                   parts, tokens, n_outputs);
}

FloatRows run_without_layers(const Parts& parts, std::span<const std::int32_t> tokens) {
  using namespace graph;
  const Dim<> wide{1000};
  const auto body = residual(linear<Slot::ffn_up>(wide) >> linear<Slot::ffn_down>(wide));
  return run_nodes(embedding<Slot::token_embd>(parts.config.dim) >> repeat(Dim<>{0}, body) >>
                       linear<Slot::output>(parts.config.vocab_size),
                   parts, tokens, static_cast<Index>(tokens.size()));
}

}  // namespace test
