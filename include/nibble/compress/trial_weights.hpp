// SPDX-License-Identifier: Apache-2.0
//
// The weights of a model with some of them replaced: what becomes of its predictions if this tensor
// is in that format is found out by a step with such a table (Engine::exchange_weights), without
// writing a file or loading a model.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/model.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Keeps the model alive. Not for use while a step runs.
class TrialWeights {
 public:
  explicit TrialWeights(const Model& model) : model_(model), n_slots_(model.weights().n_slots()) {
    const graph::WeightTable own = model.weights();
    for (Index layer = -1; layer < own.n_layers(); ++layer) {
      for (std::size_t slot = 0; slot < n_slots_; ++slot) weights_.push_back(own.at(slot, layer));
    }
  }

  // Puts a matrix in another format in the place of the model's, and of all that the model ties to
  // it (an output that is the embedding). rows: the matrix in the layout of files, n rows of
  // quant::row_bytes(format, k), row-major; they are packed here and not needed afterwards.
  // Errors: invalid_argument (no such matrix, bytes of another size), unsupported (an expert
  // matrix), out_of_memory.
  Result<void> set(std::size_t slot, Index layer, const graph::FormatOps& ops,
                   std::span<const std::byte> rows, Executor& executor) {
    const graph::WeightTable own = model_.weights();
    if (!own.has(slot, layer) || !own.at(slot, layer).has_base() ||
        own.at(slot, layer).is_vector()) {
      return Error{Errc::invalid_argument, "trial weights: slot " + to_text(slot) + " of layer " +
                                               to_text(layer) + " holds no matrix"};
    }
    graph::Weight weight = own.at(slot, layer);
    if (weight.n_experts != 1) {
      return Error{Errc::unsupported, "trial weights: matrices of experts"};
    }
    weight.ops = &ops;
    NIBBLE_TRY(row_bytes, ops.row_bytes(static_cast<std::size_t>(weight.k)));
    if (rows.size() != row_bytes * static_cast<std::size_t>(weight.n)) {
      return Error{Errc::invalid_argument,
                   "trial weights: " + to_text(rows.size()) + " bytes are not " +
                       graph::shape_text(weight.n, weight.k) + " weights of this format"};
    }
    NIBBLE_TRY(memory, AlignedBuffer::allocate(static_cast<std::size_t>(weight.bytes())));
    weight.data = memory.data();
    const std::size_t panel = row_bytes * std::size_t{quant::kPanelRows};
    const auto n_panels = static_cast<Index>((rows.size() + panel - 1) / panel);
    executor.parallel_for(n_panels, [&](Index i, Index) {
      const auto at = static_cast<std::size_t>(i) * panel;
      graph::pack_panels(weight, rows.subspan(at, (std::min)(panel, rows.size() - at)),
                         static_cast<Index>(row_bytes), i * quant::kPanelRows, memory.data());
    });
    const std::byte* const replaced = own.at(slot, layer).data;
    reset(slot, layer);
    held_.push_back({replaced, std::move(memory)});
    for_each_tied(replaced, [&](graph::Weight& place, const graph::Weight&) { place = weight; });
    return ok();
  }

  // The model's own weights again, in one place (and what is tied to it) or in all.
  void reset(std::size_t slot, Index layer) {
    const std::byte* const original = model_.weights().at(slot, layer).data;
    for_each_tied(original, [](graph::Weight& place, const graph::Weight& own) { place = own; });
    std::erase_if(held_, [&](const Held& held) { return held.replaced == original; });
  }
  void reset() {
    for_each([](graph::Weight& place, const graph::Weight& own) { place = own; });
    held_.clear();
  }

  // Refers to this object; what set() and reset() change shows in it.
  graph::WeightTable table() const noexcept { return {weights_, n_slots_}; }
  const Model& model() const noexcept { return model_; }

 private:
  struct Held {
    const std::byte* replaced;  // the model's matrix
    AlignedBuffer memory;
  };

  template <class F>
  void for_each(F f) {
    const graph::WeightTable own = model_.weights();
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      f(weights_[i], own.at(i % n_slots_, static_cast<Index>(i / n_slots_) - 1));
    }
  }
  template <class F>
  void for_each_tied(const std::byte* data, F f) {
    for_each([&](graph::Weight& place, const graph::Weight& own) {
      if (own && own.data == data) f(place, own);
    });
  }

  Model model_;
  std::size_t n_slots_;
  std::vector<graph::Weight> weights_;
  std::vector<Held> held_;
};

}}}  // namespace nibble::NIBBLE_ABI::compress
