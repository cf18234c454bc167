// SPDX-License-Identifier: Apache-2.0
#include "graph/engine.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "doctest/doctest.h"
#include "graph/tiny_dims.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"

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

// What a survey reports about caches and rotations: one kind of each is enough here.
class Needs final : public graph::SurveySink {
 public:
  void cache(Index, const ops::KvShape& shape) override { kv = shape; }
  void rope(const graph::RopeKey& k, const graph::RopeFactors& factors) override {
    key = k;
    factors_slot = factors.slot;
  }
  ops::KvShape kv;
  graph::RopeKey key;
  std::size_t factors_slot = graph::kNoSlot;
};

// Rows 0 ... n - 1 at first_position and after, with an output for the last n_outputs of them.
class Step {
 public:
  Step(std::span<const std::int32_t> tokens, Index first_position, Index n_outputs)
      : segment_(ops::single_segment(static_cast<Index>(tokens.size()), first_position)),
        rows_(static_cast<std::size_t>(n_outputs)) {
    std::iota(rows_.begin(), rows_.end(), segment_.n_rows - n_outputs);
    step_.tokens = tokens;
    step_.segments = {&segment_, 1};
    step_.output_rows = rows_;
  }
  Step(const Step&) = delete;
  const graph::Step& get() const { return step_; }

 private:
  graph::Segment segment_;
  std::vector<Index> rows_;
  graph::Step step_;
};

template <class E>
FloatRows run_expression(const E& expression, const Parts& parts,
                         std::span<const std::int32_t> tokens, const RunOptions& options) {
  const ModelConfig& config = parts.config;
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  const auto n = static_cast<Index>(std::min(options.batch, tokens.size()));
  const graph::Limits limits{.max_rows = n,
                             .max_outputs = n,
                             .n_positions = static_cast<Index>(tokens.size()),
                             .max_workers = executor.n_workers()};
  const graph::Plan plan = graph::make_plan(expression, limits);
  REQUIRE(plan.is_valid());
  Memory arena(plan.bytes, options.garbage);

  Needs needs;
  graph::survey(expression, needs);
  const ops::KvCacheLayout layout{.type = options.kv_type,
                                  .n_layers = config.n_layers,
                                  .n_kv_heads = needs.kv.n_kv_heads,
                                  .head_dim = needs.kv.head_dim,
                                  .capacity = limits.n_positions};
  Memory cache_memory(layout.bytes(), options.garbage);
  auto cache = ops::KvCache::create(cache_memory.buffer.bytes(), layout);
  REQUIRE(cache.has_value());

  std::span<const float> factors;
  if (needs.factors_slot != graph::kNoSlot) {
    const graph::Weight& w = parts.weights.at(needs.factors_slot, -1);
    if (w) factors = {w.vector(), static_cast<std::size_t>(w.k)};
  }
  needs.key.has_factors = !factors.empty();
  Memory rope(graph::RopeTable::bytes_needed(needs.key, limits.n_positions), 0);
  std::vector<double> frequencies(static_cast<std::size_t>(needs.key.dim / 2));
  graph::RopeTable table;
  if (needs.key.dim > 0) {
    table = graph::RopeTable::fill(rope.buffer.bytes(), needs.key, limits.n_positions, frequencies,
                                   factors);
  }

  graph::RunArgs args;
  args.weights = parts.weights;
  args.cache = *cache;
  if (needs.key.dim > 0) args.rope_tables = {&table, 1};
  args.arena = arena.buffer.bytes();
  args.executor = &executor;
  args.observer = options.observer;
  FloatRows rows;
  for (std::size_t first = 0; first < tokens.size(); first += options.batch) {
    const auto some = tokens.subspan(first, std::min(options.batch, tokens.size() - first));
    const Step step(some, static_cast<Index>(first), static_cast<Index>(some.size()));
    args.step = step.get();
    arena.fill(options.garbage);
    append_rows(graph::run(expression, plan, limits, args), rows);
  }
  return rows;
}

// A few nodes without attention.
template <class E>
FloatRows run_nodes(const E& expression, const Parts& parts, std::span<const std::int32_t> tokens,
                    Index n_outputs, bool training = false) {
  const auto n = static_cast<Index>(tokens.size());
  const graph::Limits limits{.max_rows = n, .max_outputs = n};
  const graph::Plan plan = graph::make_plan(expression, limits);
  REQUIRE(plan.is_valid());
  Memory arena(plan.bytes, 255);
  InlineExecutor executor;
  const Step step(tokens, 0, n_outputs);
  graph::RunArgs args;
  args.step = step.get();
  args.weights = parts.weights;
  args.arena = arena.buffer.bytes();
  args.executor = &executor;
  args.training = training;
  args.dropout_seed = 42;
  FloatRows rows;
  append_rows(graph::run(expression, plan, limits, args), rows);
  return rows;
}

}  // namespace

FloatRows run_graph(const Parts& parts, std::span<const std::int32_t> tokens,
                    const RunOptions& options) {
  const auto run = [&](const auto& expression) {
    return options.fused ? run_expression(graph::fuse(expression), parts, tokens, options)
                         : run_expression(expression, parts, tokens, options);
  };
  return parts.config.architecture == "gpt2" ? run(gpt2(parts.config)) : run(llama(parts.config));
}

FloatRows run_static(const Parts& parts, std::span<const std::int32_t> tokens,
                     const RunOptions& options) {
  return run_expression(kTinyModel, parts, tokens, options);
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

FloatRows run_output_rows_twice(const Parts& parts, std::span<const std::int32_t> tokens,
                                Index n_outputs) {
  using namespace graph;
  return run_nodes(embedding<Slot::token_embd>(parts.config.dim) >> output_rows() >>
                       linear<Slot::output>(parts.config.vocab_size) >> output_rows(),
                   parts, tokens, n_outputs);
}

FloatRows run_without_layers(const Parts& parts, std::span<const std::int32_t> tokens) {
  using namespace graph;
  const auto body =
      residual(linear<Slot::ffn_up>(Dim<>{1000}) >> linear<Slot::ffn_down>(parts.config.dim));
  return run_nodes(embedding<Slot::token_embd>(parts.config.dim) >> repeat(Dim<>{0}, body) >>
                       linear<Slot::output>(parts.config.vocab_size),
                   parts, tokens, static_cast<Index>(tokens.size()));
}

}  // namespace test
