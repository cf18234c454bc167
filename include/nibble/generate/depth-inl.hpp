// SPDX-License-Identifier: Apache-2.0
//
// An engine's functions about depth. Included by engine-inl.hpp.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "nibble/generate/engine-inl.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_INLINE MatrixView<const float> Engine::State::run_layers(bool has_outputs) noexcept {
  const auto n_layers = static_cast<Index>(pool->shapes.size());
  const std::span<const graph::LayerPart> all(layer_parts, pool->shapes.size());
  if (placed) return placed->run(model.architecture(), plan, args, all, has_outputs);
  is_staged = early_exit && draft_layers == 0 && has_outputs && early_exit->is_for(args.step);
  if (is_staged) {
    return early_exit->run(model.architecture(), plan, args, {all, {key_parts, all.size()}});
  }
  const graph::LayerRange range{.parts = all, .end = draft_layers > 0 ? draft_layers : n_layers};
  args.range = is_full_depth && draft_layers == 0 ? nullptr : &range;
  const auto logits = model.architecture().run(plan, limits, args);
  args.range = nullptr;
  return logits;
}

NIBBLE_INLINE void Engine::State::advance(Sequence::State& s,
                                          const graph::Segment& segment) const noexcept {
  const Index end = segment.end_position();
  if (draft_layers > 0) {
    s.n_drafted = end;
    s.draft_layers = draft_layers;
    return;
  }
  s.n_computed = end;
  if (!stores_exactly || s.n_exact < segment.first_position) return;
  const Index end_row = segment.first_row + segment.n_rows;
  const Index n = is_staged
                      ? early_exit->first_inexact(segment.first_row, end_row) - segment.first_row
                      : segment.n_rows;
  s.n_exact = segment.first_position + n;
}

NIBBLE_INLINE Result<void> Engine::State::can_run_fewer(const char* what) const {
  if (placed) {
    return Error{Errc::unsupported,
                 std::string("engine: ") + what + " of a model with parts in other places"};
  }
  if (plan.rows == graph::Rows::segments) {
    return Error{Errc::unsupported, std::string("engine: ") + what + " of a model of embeddings"};
  }
  if (pool->n_state_floats > 0) {
    return Error{Errc::unsupported,
                 std::string("engine: ") + what +
                     " of a model with recurrent state, which each token must go through"};
  }
  return ok();
}

// Whether the engine can run so. Errors: as Engine::set_depth().
NIBBLE_INLINE Result<void> Engine::State::check_depth(const Depth& depth) const {
  const auto n_layers = static_cast<Index>(pool->shapes.size());
  const Index n = depth.n_layers == 0 ? n_layers : depth.n_layers;
  if (n != n_layers || !depth.left_out.empty()) NIBBLE_CHECK(can_run_fewer("fewer layers"));
  if (n < 1 || n > n_layers) {
    return Error{Errc::invalid_argument, "engine: a depth of " + to_text(depth.n_layers) +
                                             " layers of " + to_text(n_layers)};
  }
  for (const Index layer : depth.left_out) {
    if (layer >= 0 && layer < n_layers) continue;
    return Error{Errc::invalid_argument, "engine: layer " + to_text(layer) +
                                             " cannot be left out; the model has " +
                                             to_text(n_layers)};
  }
  for (Index i = 0; i < n; ++i) {
    if (!is_left_out(depth, i)) return ok();
  }
  return Error{Errc::invalid_argument, "engine: all layers are left out"};
}

NIBBLE_INLINE bool Engine::State::is_left_out(const Depth& depth, Index layer) noexcept {
  const auto all = depth.left_out;
  return (depth.n_layers > 0 && layer >= depth.n_layers) ||
         std::find(all.begin(), all.end(), layer) != all.end();
}

NIBBLE_INLINE Result<void> Engine::set_depth(const Depth& depth) {
  State& s = *state_;
  NIBBLE_CHECK(s.check_depth(depth));
  ++s.n_settings;
  const auto n_layers = static_cast<Index>(s.pool->shapes.size());
  Index n_run = 0;
  for (Index i = 0; i < n_layers; ++i) {
    const bool is_out = State::is_left_out(depth, i);
    s.layer_parts[i] = is_out ? s.key_parts[i] : graph::LayerPart::all;
    n_run += !is_out;
  }
  s.is_full_depth = n_run == n_layers;
  s.stores_exactly = n_run == n_layers || (n_run == n_layers - 1 && State::is_left_out(depth, n_layers - 1));
  return ok();
}

NIBBLE_INLINE Result<void> Engine::set_early_exit(const EarlyExit& exit) {
  State& s = *state_;
  ++s.n_settings;
  if (exit.after_layers.empty()) {
    s.early_exit = {};
    return ok();
  }
  NIBBLE_CHECK(s.can_run_fewer("early exit"));
  const auto n_layers = static_cast<Index>(s.pool->shapes.size());
  Index before = 0;
  for (const Index n : exit.after_layers) {
    if (n > before && n < n_layers) {
      before = n;
      continue;
    }
    return Error{Errc::invalid_argument, "engine: an exit after " + to_text(n) + " layers of " +
                                             to_text(n_layers) +
                                             "; exits are before the last layer, ascending"};
  }
  if (is_nan(exit.threshold)) {
    return Error{Errc::invalid_argument, "engine: the threshold of an exit is not a number"};
  }
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(made, detail::StagedRun::create(exit, {s.limits, s.pages.n_tables, n_layers,
                                                      s.model.config().dim, s.plan.width}));
    s.early_exit = std::move(made);
    return ok();
  });
}

NIBBLE_INLINE EarlyExitCounts Engine::early_exit_counts() const noexcept {
  return state_->early_exit ? state_->early_exit->counts() : EarlyExitCounts{};
}

NIBBLE_INLINE Result<void> Engine::check_draft(Index n_layers) const {
  const State& s = *state_;
  NIBBLE_CHECK(s.can_run_fewer("a draft"));
  if (n_layers >= 1 && n_layers <= static_cast<Index>(s.pool->shapes.size())) return ok();
  return Error{Errc::invalid_argument, "engine: a draft by " + to_text(n_layers) + " layers of " +
                                           to_text(s.pool->shapes.size())};
}

NIBBLE_INLINE Result<MatrixView<const float>> Engine::draft(std::span<const SequenceInput> inputs,
                                                            Index n_layers) {
  State& s = *state_;
  NIBBLE_CHECK(check_draft(n_layers));
  s.draft_layers = n_layers;
  auto logits = run(inputs);
  s.draft_layers = 0;
  return logits;
}

}}  // namespace nibble::NIBBLE_ABI
