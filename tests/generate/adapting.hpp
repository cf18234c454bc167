// SPDX-License-Identifier: Apache-2.0
//
// For tests of adapters: random ones for the matrices of a model.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/graph/survey.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"

namespace test {

// Factors of rank `rank` for each `every`-th matrix that the model multiplies by.
inline nibble::Adapter random_adapter(const nibble::Model& model, nibble::Index rank,
                                      std::uint32_t seed, std::size_t every = 1) {
  class Matrices final : public nibble::graph::SurveySink {
   public:
    explicit Matrices(const nibble::Model& m) : model(m) {}
    void weight(const nibble::graph::WeightNeed& need) override {
      const nibble::graph::Weight& w = model.weights().at(need.slot, need.layer);
      if (!w || w.is_vector() || need.is_table) return;
      nibble::AdapterMatrix matrix;
      matrix.name = model.architecture().tensor_name(need.slot, need.layer);
      matrix.n = w.n;
      matrix.k = w.k;
      found.push_back(std::move(matrix));
    }
    const nibble::Model& model;
    std::vector<nibble::AdapterMatrix> found;
  } matrices(model);
  model.architecture().survey(matrices);

  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.2f);
  nibble::Adapter adapter;
  adapter.architecture = "llama";
  for (std::size_t i = seed % every; i < matrices.found.size(); i += every) {
    nibble::AdapterMatrix& m = matrices.found[i];
    m.rank = rank;
    m.alpha = static_cast<float>(rank) + 1;
    m.a.resize(static_cast<std::size_t>(m.rank * m.k));
    m.b.resize(static_cast<std::size_t>(m.n * m.rank));
    for (auto& [x] : m.a) x = normal(random);
    for (auto& [x] : m.b) x = normal(random);
    adapter.matrices.push_back(std::move(m));
  }
  return adapter;
}

// n random rows before the tokens of a sequence.
inline nibble::Adapter learned_rows(const nibble::Model& model, nibble::Index n,
                                    std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.5f);
  nibble::Adapter adapter;
  adapter.architecture = "llama";
  adapter.prefix.resize(static_cast<std::size_t>(n * model.config().dim));
  for (auto& [x] : adapter.prefix) x = normal(random);
  return adapter;
}

}  // namespace test
