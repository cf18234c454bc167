// SPDX-License-Identifier: Apache-2.0
//
// What an engine learns from the survey of a model: what it must allocate memory for, and whether
// other weights fit into it. Included by engine-inl.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/rope_needs.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/model/model.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// Of other weights: what an engine's memory and its tables of rotations depend on.
class ExchangeChecker final : public graph::SurveySink {
 public:
  ExchangeChecker(graph::WeightTable own, graph::WeightTable other, Index max_rank)
      : own_(own), other_(other), max_rank_(max_rank) {}

  void weight(const graph::WeightNeed& need) override {
    const graph::Weight& w = other_.at(need.slot, need.layer);
    if (!w || w.factors == nullptr || w.factors->rank() <= max_rank_) return;
    error_ = Error{Errc::invalid_argument,
                   "engine: other weights have factors of rank " + to_text(w.factors->rank()) +
                       "; there is memory for at most " + to_text(max_rank_)};
  }
  void rope(const graph::RopeKey&, const graph::RopeFactors& factors) override {
    for (const std::size_t slot : {factors.slot, factors.beyond}) {
      if (slot == graph::kNoSlot) continue;
      const graph::Weight &a = own_.at(slot, -1), &b = other_.at(slot, -1);
      if (!a || a.data == b.data) continue;
      if (b && std::memcmp(a.data, b.data, static_cast<std::size_t>(a.bytes())) == 0) continue;
      error_ = Error{Errc::invalid_argument,
                     "engine: other weights have other factors of the rotation, but its tables "
                     "are made when the engine is"};
    }
  }
  Result<void> finish() const {
    if (error_) return *error_;
    return ok();
  }

 private:
  graph::WeightTable own_, other_;
  Index max_rank_;
  std::optional<Error> error_;
};

// What an engine must allocate memory for.
class EngineNeeds final : public graph::SurveySink {
 public:
  explicit EngineNeeds(const Model& model)
      : shapes(static_cast<std::size_t>(model.config().n_layers)),
        windows(shapes.size(), {-1}),
        weights_(model.weights()) {}

  void weight(const graph::WeightNeed& need) override {
    const graph::Weight& w = weights_.at(need.slot, need.layer);
    if (!w || w.is_vector() || need.is_table) return;
    const auto reads_as = [&](const graph::Weight& m) {
      (m.ops->input == graph::InputKind::floats ? float_inputs : code_inputs) = true;
    };
    if (w.has_base()) reads_as(w);
    if (w.factors == nullptr) return;
    reads_as(w.factors->b);
    max_rank = (std::max)(max_rank, w.factors->rank());
  }
  void cache(Index layer, const ops::KvShape& shape) override {
    if (layer >= 0) shapes[static_cast<std::size_t>(layer)] = shape;
  }
  void reads_cache(Index layer, Index window) override {
    if (layer < 0) return;
    Index& largest = windows[static_cast<std::size_t>(layer)].value;
    largest = window == 0 || largest == 0 ? 0 : (std::max)(largest, window);
  }
  void reads_beside() override { layers_are_tied = true; }
  void shares_cache(Index, Index other, const ops::KvShape& shape) override {
    layers_are_tied = true;
    const ops::KvShape& stored = shapes[static_cast<std::size_t>(other)];
    shares_other_heads = shares_other_heads || stored.n_kv_heads != shape.n_kv_heads ||
                         stored.head_dim != shape.head_dim;
  }
  void state(Index, Index n_floats, Index n_chunk_floats) override {
    n_step_floats += n_floats;
    n_chunk_state_floats += n_chunk_floats;
  }
  // Of the recurrent state of a sequence: what each step changes, then, at a cache line, the rest.
  Index chunk_state_at() const noexcept {
    return static_cast<Index>(align_up(static_cast<std::size_t>(n_step_floats) * sizeof(float)) /
                              sizeof(float));
  }
  Index n_state_floats() const noexcept { return chunk_state_at() + n_chunk_state_floats; }
  void rope(const graph::RopeKey& key, const graph::RopeFactors& factors) override {
    ropes.add(key, factors, weights_);
  }
  void max_positions(Index n) override { n_positions = n; }
  void both_ways() override { reads_both_ways = true; }

  bool are_alike() const noexcept {
    for (const ops::KvShape& s : shapes) {
      if (s.n_kv_heads != shapes[0].n_kv_heads || s.head_dim != shapes[0].head_dim) return false;
    }
    return true;
  }

  std::vector<ops::KvShape> shapes;    // of the layers
  std::vector<Scalar<Index>> windows;  // that rows read in each; 0: all, -1: nothing is read
  graph::RopeNeeds ropes;
  Index n_step_floats = 0, n_chunk_state_floats = 0;  // of the recurrent state
  Index n_positions = 0;  // how many positions have embeddings; 0: any number
  bool reads_both_ways = false;
  bool layers_are_tied = false;  // a layer reads more than its rows and what it stores itself
  bool shares_other_heads = false;  // a layer reads what another one stores, which is not its own
  bool float_inputs = false, code_inputs = false;
  Index max_rank = 0;  // of factors

 private:
  graph::WeightTable weights_;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
