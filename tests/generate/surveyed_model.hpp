// SPDX-License-Identifier: Apache-2.0
//
// A model of random weights of any architecture, made of what its survey reports; and small
// configurations.
#pragma once

#include <cmath>
#include <cstdint>
#include <list>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/executor.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/weight_store.hpp"
#include "why.hpp"

namespace test {

// Collects the weights that are needed, each once.
class NeededWeights final : public nibble::graph::SurveySink {
 public:
  void weight(const nibble::graph::WeightNeed& need) override {
    if (!need.is_required && need.tied_to == nibble::graph::kNoSlot) return;
    for (const auto& other : all) {
      if (other.slot == need.slot && other.layer == need.layer) return;
    }
    all.push_back(need);
  }
  std::vector<nibble::graph::WeightNeed> all;
};

// Matrices keep the size of what passes; vectors are near 1, the numbers of `negative_slot` near
// -1.
template <class Architecture>
nibble::Model surveyed_model(const typename Architecture::Config& config, std::uint32_t seed = 1,
                             std::size_t negative_slot = nibble::graph::kNoSlot) {
  using nibble::Index;
  auto graph = nibble::make_graph<Architecture>(config);
  REQUIRE(graph);
  NeededWeights needed;
  graph->survey(needed);
  nibble::WeightStore store(config.n_layers, graph->n_slots(), nibble::graph::AllFormats::kOps);
  std::mt19937 random(seed);
  std::list<std::vector<float>> data;
  for (const auto& need : needed.all) {
    if (need.tied_to != nibble::graph::kNoSlot) {
      store.share(need.slot, need.layer, need.tied_to, need.layer);
      continue;
    }
    const bool is_vector = need.n == 0 && !need.is_table;
    const float size = std::sqrt((need.is_table ? 1.0f : 3.0f) / static_cast<float>(need.k));
    const bool is_near_1 = is_vector || need.slot == negative_slot;
    std::uniform_real_distribution<float> number(is_near_1 ? 0.7f : -size, is_near_1 ? 1.3f : size);
    auto& numbers = data.emplace_back(
        static_cast<std::size_t>((is_vector ? 1 : need.n) * need.n_experts * need.k));
    for (float& x : numbers) x = need.slot == negative_slot ? -number(random) : number(random);
    REQUIRE(store.add(need.slot, need.layer, nibble::quant::Format::f32, need.n, need.k,
                      std::as_bytes(std::span(numbers)), need.n_experts));
  }
  nibble::InlineExecutor executor;
  REQUIRE(store.pack(executor));
  auto model = nibble::Model::from_parts(std::move(graph), std::move(store));
  REQUIRE_MESSAGE(model, why(model));
  return *std::move(model);
}

template <class Config>
Config small_config(const char* architecture, nibble::Index n_layers) {
  Config c;
  c.architecture = architecture;
  c.vocab_size = nibble::Dim<>{50};
  c.dim = nibble::Dim<>{64};
  c.n_layers = nibble::Dim<>{n_layers};
  c.n_heads = nibble::Dim<>{4};
  c.n_kv_heads = nibble::Dim<>{2};
  c.head_dim = nibble::Dim<>{16};
  c.ffn_dim = nibble::Dim<>{96};
  c.n_ctx = 4096;
  c.rope_dim = 16;
  return c;
}

}  // namespace test
