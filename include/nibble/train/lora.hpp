// SPDX-License-Identifier: Apache-2.0
//
// Training of low-rank adapters (LoRA; Hu et al. 2021): which matrices get factors, beside weights
// that stay as they are and belong to somebody else (those of a loaded Model, in any format).
//
//   NIBBLE_TRY(weights, adapter_weights(*graph, model.weights(), options));
//   initialize(weights, graph->config().n_layers, seed);
//   ... a Run of `weights` ...
//   const Adapter adapter = adapter_of(weights, "llama", options);
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/train/trained_weights.hpp"
#include "nibble/train/training_graph.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct LoraOptions {
  Index rank = 8;
  float alpha = 16;
  // The factors count alpha / √rank instead of alpha / rank (rsLoRA; Kalajdzievski 2023).
  bool is_rank_stabilized = false;
  // Names of slots with commas between them, "attn_q, attn_v" (model/slot.hpp); "all": those of all
  // products but the output layer.
  std::string slot_names = "all";

  // As files have it: what the factors count, times the rank.
  float file_alpha() const noexcept {
    return is_rank_stabilized ? alpha * std::sqrt(static_cast<float>(rank)) : alpha;
  }
};

// Slots chosen by name.
class SlotChoice {
 public:
  // Errors: invalid_argument (no name, an empty one).
  static Result<SlotChoice> parse(std::string_view text) {
    return catch_out_of_memory([&]() -> Result<SlotChoice> {
      SlotChoice made;
      for (;;) {
        const std::size_t comma = text.find(',');
        std::string_view name = text.substr(0, comma);
        while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
        while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
        if (name.empty()) {
          return Error{Errc::invalid_argument, "slots " + io::quoted(text) + ": an empty name"};
        }
        made.names_.emplace_back(name);
        if (comma == text.npos) return made;
        text.remove_prefix(comma + 1);
      }
    });
  }

  // Whether the tensor "blk.3.attn_q.weight" or "output.weight" is of a slot that was chosen.
  bool has(std::string_view tensor) const noexcept {
    const std::string_view slot = slot_of(tensor);
    for (const std::string& name : names_) {
      if (name == slot || (name == "all" && slot != "output")) return true;
    }
    return false;
  }
  std::span<const std::string> names() const noexcept { return names_; }

  static std::string_view slot_of(std::string_view tensor) noexcept {
    std::string_view rest;
    if (layer_of(tensor, &rest) >= 0) tensor = rest;
    constexpr std::string_view kWeight = ".weight";
    if (tensor.ends_with(kWeight)) tensor.remove_suffix(kWeight.size());
    return tensor;
  }

 private:
  std::vector<std::string> names_;
};

// The weights of a model, in `base` (which must live as long, and is only read), with factors
// beside the matrices of products that were chosen. Factors and their gradients are all that it
// allocates: 8 bytes for each value; AdamW has 8 more. Values are zero until initialize() or
// set_adapter(). Errors: invalid_argument (options out of range, a table of another model),
// not_found (a name of a slot that no product has), and those of TrainedWeights::create.
inline Result<TrainedWeights> adapter_weights(const TrainingGraph& graph, graph::WeightTable base,
                                              const LoraOptions& options) {
  const bool is_alpha = is_finite(static_cast<double>(options.alpha)) && options.alpha != 0;
  if (options.rank < 1 || options.rank > 1 << 16 || !is_alpha) {
    return Error{Errc::invalid_argument,
                 "adapter: a rank from 1 to 65536 and an alpha that is not 0 are needed"};
  }
  if (base.n_slots() != graph.n_slots() || base.n_layers() != graph.config().n_layers) {
    return Error{Errc::invalid_argument, "adapter: weights of another model"};
  }
  NIBBLE_TRY(chosen, SlotChoice::parse(options.slot_names));
  std::vector<std::string> seen;
  const auto choose = [&](const std::string& name,
                          const graph::WeightNeed& need) -> Result<WeightChoice> {
    WeightChoice choice;
    choice.kind = WeightChoice::Kind::absent;
    if (!base.has(need.slot, need.layer)) return choice;
    const graph::Weight& w = base.at(need.slot, need.layer);
    const bool is_adapted = w && need.n > 0 && !need.is_table && chosen.has(name);
    const bool is_tied = need.tied_to != graph::kNoSlot && w.data == base.at(need.tied_to, need.layer).data;
    if (!w || (is_tied && !is_adapted)) return choice;
    choice.kind = WeightChoice::Kind::base;
    choice.base = w;
    if (is_adapted) {
      choice.rank = options.rank;
      choice.factor_scale = options.file_alpha() / static_cast<float>(options.rank);
      seen.emplace_back(SlotChoice::slot_of(name));
    }
    return choice;
  };
  NIBBLE_TRY(weights, TrainedWeights::create(graph, choose));
  for (const std::string& name : chosen.names()) {
    if (name == "all" && !seen.empty()) continue;
    if (std::find(seen.begin(), seen.end(), name) != seen.end()) continue;
    return Error{Errc::not_found, "slots " + io::quoted(options.slot_names) +
                                      ": the model has no product " + io::quoted(name)};
  }
  return weights;
}

namespace detail {

// The tensors of factors: f(a, b) for each pair.
template <class F>
void for_factors(const TrainedWeights& weights, F&& f) {
  const std::span<const TrainedTensor> all = weights.tensors();
  for (std::size_t i = 0; i + 1 < all.size(); ++i) {
    if (all[i].name.ends_with(".lora_a")) f(all[i], all[i + 1]);
  }
}

inline std::string factored_name(const TrainedTensor& a) {
  return a.name.substr(0, a.name.size() - std::string_view(".lora_a").size());
}

}  // namespace detail

// The factors of `weights` as an adapter, with the alpha of the options that they were made with.
inline Adapter adapter_of(const TrainedWeights& weights, std::string_view architecture,
                          const LoraOptions& options) {
  Adapter adapter;
  adapter.architecture = architecture;
  detail::for_factors(weights, [&](const TrainedTensor& a, const TrainedTensor& b) {
    AdapterMatrix& m = adapter.matrices.emplace_back();
    m.name = detail::factored_name(a);
    m.n = b.n;
    m.k = a.k;
    m.rank = a.n;
    m.alpha = options.file_alpha();
    for (const float x : a.values) m.a.push_back({x});
    for (const float x : b.values) m.b.push_back({x});
  });
  return adapter;
}

// Sets the factors of `weights` to those of an adapter: to learn more, or to average adapters.
// Errors, which change nothing: not_found (one has a matrix that the other has not),
// invalid_argument (another shape, another scale).
inline Result<void> set_adapter(TrainedWeights& weights, const Adapter& adapter) {
  return catch_out_of_memory([&]() -> Result<void> {
    Result<void> fits = ok();
    std::size_t n = 0;
    detail::for_factors(weights, [&](const TrainedTensor& a, const TrainedTensor& b) {
      ++n;
      if (!fits) return;
      const std::string name = detail::factored_name(a);
      const AdapterMatrix* const m = adapter.find(name);
      if (m == nullptr) {
        fits = Error{Errc::not_found, "adapter: it has no factors of " + io::quoted(name)};
        return;
      }
      const float scale = weights.table().at(a.slot, a.layer).factors->scale;
      if (m->a.size() != a.values.size() || m->b.size() != b.values.size() || m->rank != a.n ||
          m->scale() != scale) {
        fits = Error{Errc::invalid_argument,
                     "adapter of " + io::quoted(name) + ": of another shape, rank or alpha"};
      }
    });
    NIBBLE_CHECK(std::move(fits));
    if (n != adapter.matrices.size()) {
      return Error{Errc::not_found, "adapter: it has factors of matrices that are not trained"};
    }
    detail::for_factors(weights, [&](const TrainedTensor& a, const TrainedTensor& b) {
      const AdapterMatrix& m = *adapter.find(detail::factored_name(a));
      std::copy_n(values(m.a), m.a.size(), a.values.begin());
      std::copy_n(values(m.b), m.b.size(), b.values.begin());
    });
    return ok();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::train
