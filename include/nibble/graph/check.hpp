// SPDX-License-Identifier: Apache-2.0
//
// What run() takes for granted, checked: for a program that runs an expression itself. An engine
// does the same for its model, in other ways.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/graph/survey.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

namespace detail {

// Compares the arguments of a run with what a survey reports.
class RunChecker final : public SurveySink {
 public:
  // expected: the plan of the expression that runs.
  RunChecker(const Plan& plan, const Plan& expected, const Limits& limits, const RunArgs& args)
      : limits_(limits), args_(args), weights_(args.weights, slot_name) {
    check_memory(plan, expected);
    check_rows();
    for (const Segment& s : args.step.segments) check_segment(s);
    if (args.step.segments.empty() || n_rows_ != args.step.n_rows()) {
      fail("the segments of the step are not all of its rows");
    }
  }

  void weight(const WeightNeed& need) override {
    weights_.weight(need);
    if (!weights_.finish()) return;
    const Weight& w = args_.weights.at(need.slot, need.layer);
    if (!w) return;  // optional
    if (need.is_table) {
      check_lookups(need, w.n);
    } else if (!w.is_vector()) {
      if (w.has_base()) check_input(need, *w.ops);
      if (w.factors != nullptr) check_factors(need, *w.factors);
    }
  }
  void cache(Index layer, const ops::KvShape& shape) override {
    check_positions();
    CachePlace place{layer, 0};
    if (!args_.cache_places.empty()) {
      if (layer >= static_cast<Index>(args_.cache_places.size())) {
        return fail("no place in the cache for layer " + to_text(layer));
      }
      place = args_.cache_places[static_cast<std::size_t>(layer)];
    }
    layer = place.layer;
    const ops::KvCacheLayout& layout = args_.cache.layout();
    const bool has_layer = layer < layout.n_layers;
    const ops::KvShape has = has_layer ? layout.shape(layer) : ops::KvShape{};
    if (has.n_kv_heads != shape.n_kv_heads || has.head_dim != shape.head_dim) {
      fail("the cache has " + to_text(has.n_kv_heads) + " kv heads of " + to_text(has.head_dim) +
           " in layer " + to_text(layer) + ", expected " + to_text(shape.n_kv_heads) + " of " +
           to_text(shape.head_dim));
      return;
    }
    std::span<const Segment> segments = args_.step.segments;
    if (place.table > 0) {
      const std::size_t at = static_cast<std::size_t>(place.table - 1) * segments.size();
      if (at + segments.size() > args_.table_segments.size()) {
        return fail("no segments with the pages of table " + to_text(place.table));
      }
      segments = args_.table_segments.subspan(at, segments.size());
    }
    for (const Segment& s : segments) check_pages(s, layout.n_pages());
  }
  void shares_cache(Index, Index other, const ops::KvShape& shape) override { cache(other, shape); }
  void state(Index, Index, Index n_chunk_floats) override {
    for (const Segment& s : args_.step.segments) {
      if (s.state == nullptr || (n_chunk_floats > 0 && s.chunk_state == nullptr)) {
        fail("a segment without recurrent state");
      }
    }
  }
  void rope(const RopeKey& key, const RopeFactors& factors) override {
    check_positions();
    if (!weights_.finish()) return;  // missing factors: not the table is what is wrong
    RopeKey wanted = key;
    wanted.has_factors = factors.slot != kNoSlot && args_.weights.has(factors.slot, -1) &&
                         static_cast<bool>(args_.weights.at(factors.slot, -1));
    for (const RopeTable& table : args_.rope_tables) {
      if (!(table.key == wanted)) continue;
      if (table.cos.extent(0) >= limits_.n_positions) return;
      fail("a rope table of " + to_text(table.cos.extent(0)) + " positions, expected " +
           to_text(limits_.n_positions));
      return;
    }
    fail("no rope table for " + to_text(key.dim) + " dimensions and theta " + to_text(key.theta));
  }

  Result<void> finish() const {
    if (error_) return *error_;
    return weights_.finish();
  }

 private:
  void fail(std::string message) {
    if (!error_) error_ = Error{Errc::invalid_argument, "run: " + std::move(message)};
  }

  void check_memory(const Plan& plan, const Plan& expected) {
    if (expected.error != nullptr) return fail(expected.error);
    if (plan.error != nullptr || plan.n_values != expected.n_values ||
        plan.bytes != expected.bytes || plan.offsets != expected.offsets) {
      return fail("the plan is of another expression or of other limits");
    }
    if (args_.arena.size() < plan.bytes ||
        reinterpret_cast<std::uintptr_t>(args_.arena.data()) % kAlignment != 0) {
      fail("an arena of " + to_text(args_.arena.size()) + " bytes, expected " +
           to_text(plan.bytes) + " aligned to " + to_text(kAlignment));
    }
    if (args_.executor == nullptr || args_.executor->n_workers() > limits_.max_workers) {
      fail("no executor, or one with more workers than Limits::max_workers");
    }
    if (args_.tuning.rows_per_task < 1 || args_.tuning.tasks_per_worker < 1) {
      fail("a Tuning with less than 1 row per task or 1 task per worker");
    }
  }

  void check_input(const WeightNeed& need, const FormatOps& ops) {
    const bool takes_codes = ops.input != InputKind::floats;
    if (takes_codes ? limits_.code_inputs : limits_.float_inputs) return;
    fail("weights '" + slot_name(need.slot, need.layer) + "' read their input as " +
         (takes_codes ? "8-bit codes, but Limits::code_inputs"
                      : "floats, but Limits::float_inputs") +
         " is false");
  }
  void check_factors(const WeightNeed& need, const Factors& factors) {
    check_input(need, *factors.b.ops);
    if (factors.rank() <= limits_.max_rank) return;
    fail("weights '" + slot_name(need.slot, need.layer) + "' have factors of rank " +
         to_text(factors.rank()) + "; Limits::max_rank is " + to_text(limits_.max_rank));
  }

  // Tokens and output rows.
  void check_rows() {
    const Step& step = args_.step;
    if (step.n_rows() < 1 || step.n_rows() > limits_.max_rows) {
      fail(to_text(step.n_rows()) + " rows; Limits::max_rows is " + to_text(limits_.max_rows));
    }
    if (step.n_outputs() < 1 || step.n_outputs() > limits_.max_outputs) {
      fail(to_text(step.n_outputs()) + " outputs; Limits::max_outputs is " +
           to_text(limits_.max_outputs));
    }
    Index last = -1;
    for (const Index row : step.output_rows) {
      if (row <= last || row >= step.n_rows())
        fail("output rows are not ascending rows of the step");
      last = row;
    }
  }
  void check_segment(const Segment& s) {
    if (s.first_row != n_rows_ || s.n_rows < 1) {
      fail("a segment does not begin where the one before it ends, or is empty");
    }
    n_rows_ = s.first_row + s.n_rows;
    if (++n_segments_ > limits_.max_segments) {
      fail("more segments than Limits::max_segments, " + to_text(limits_.max_segments));
    }
    if (s.first_position < 0) fail("a segment at position " + to_text(s.first_position));
  }
  // For an expression whose nodes read positions.
  void check_positions() {
    for (const Segment& s : args_.step.segments) {
      if (s.end_position() <= limits_.n_positions) continue;
      fail("a segment ends at position " + to_text(s.end_position()) + "; Limits::n_positions is " +
           to_text(limits_.n_positions));
    }
  }
  void check_pages(const Segment& s, Index n_pages) {
    const Index n = s.pages.empty() ? n_pages : static_cast<Index>(s.pages.size());
    bool fits = s.end_position() <= n * ops::kPagePositions;
    for (const ops::PageId page : s.pages) fits = fits && page >= 0 && page < n_pages;
    if (!fits) fail("a segment's positions are not in pages that the cache has");
  }
  // Rows of a table of n.
  void check_lookups(const WeightNeed& need, Index n) {
    if (need.rows_of == RowsOf::nothing) return;
    if (need.rows_of == RowsOf::positions) {
      check_positions();
      if (limits_.n_positions > n) {
        fail("embeddings of " + to_text(n) + " positions; Limits::n_positions is " +
             to_text(limits_.n_positions));
      }
      return;
    }
    const Step& step = args_.step;
    for (const std::int32_t token : step.tokens) {
      if (token == kNoToken && step.rows.extent(0) == step.n_rows() &&
          step.rows.extent(1) == need.k)
        continue;
      if (token >= 0 && token < n) continue;
      fail("token " + to_text(token) + " is not in [0, " + to_text(n) +
           "), and Step::rows has no row of " + to_text(need.k) + " for it");
    }
  }

  const Limits& limits_;
  const RunArgs& args_;
  WeightChecker weights_;
  Index n_rows_ = 0;
  Index n_segments_ = 0;
  std::optional<Error> error_;
};

}  // namespace detail

// Checks everything that run() takes for granted. Errors: not_found (weights are missing),
// limit (rows that are too large), invalid_argument (anything else). Takes longer than a small
// step: for the first step of each kind, and while a program is being written.
template <Expr E>
Result<void> check_run(const E& expression, const Plan& plan, const Limits& limits,
                       const RunArgs& args) {
  detail::RunChecker checker(plan, make_plan(expression, limits), limits, args);
  survey(expression, checker);
  return checker.finish();
}

}}}  // namespace nibble::NIBBLE_ABI::graph
