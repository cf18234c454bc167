// SPDX-License-Identifier: Apache-2.0
//
// Which shapes a small Llama can have, what they weigh, and which of some models nobody beats.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../train/shape.hpp"
#include "nibble/core/result.hpp"
#include "nibble/quant/format.hpp"

namespace example {

// The grid of a search. Widths are multiples of `step`, which is one of the format's blocks; the
// size of a head is a multiple of 8.
struct ShapeGrid {
  std::uint32_t most_layers = 6;
  std::uint32_t least_dim = 64, most_dim = 512, step = 64;
  std::vector<std::uint32_t> head_dims = {32, 64};
  // Widths of the feed-forward part, in quarters of the model's: rounded up to a step.
  std::vector<std::uint32_t> ffn_quarters = {4, 8, 11, 16};
};

// f(shape) for each shape of the grid: as many heads as fit the width, heads of keys and values
// that are all, half, or one; each shape once.
template <class F>
void for_shapes(const ShapeGrid& grid, F&& f) {
  const auto once = [](std::vector<std::uint32_t> values) {
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    return values;
  };
  for (std::uint32_t dim = (grid.least_dim + grid.step - 1) / grid.step * grid.step;
       dim <= grid.most_dim; dim += grid.step) {
    std::vector<std::uint32_t> ffns;
    for (const std::uint32_t quarters : grid.ffn_quarters) {
      ffns.push_back((dim * quarters / 4 + grid.step - 1) / grid.step * grid.step);
    }
    for (const std::uint32_t head_dim : once(grid.head_dims)) {
      if (head_dim == 0 || head_dim % 8 != 0 || dim % head_dim != 0) continue;
      const std::uint32_t heads = dim / head_dim;
      std::vector<std::uint32_t> kv_heads = {1, heads};
      if (heads % 2 == 0) kv_heads.push_back(heads / 2);
      for (const std::uint32_t kv : once(kv_heads)) {
        for (const std::uint32_t ffn : once(ffns)) {
          for (std::uint32_t layers = 1; layers <= grid.most_layers; ++layers) {
            f(Shape{layers, dim, heads, kv, ffn});
          }
        }
      }
    }
  }
}

// A matrix of a shape: `n` rows of `k`, `count` of them.
struct ShapeMatrix {
  std::uint64_t n = 0, k = 0, count = 0;
  bool is_multiplied = true;  // else rows of it are looked up
};

// The matrices of a shape. With tied embeddings the table is multiplied, too.
inline std::vector<ShapeMatrix> matrices_of(const Shape& s, std::uint64_t vocabulary,
                                            bool is_tied) {
  const std::uint64_t dim = s.dim, layers = s.n_layers;
  const std::uint64_t kv = dim / s.n_heads * s.n_kv_heads;
  std::vector<ShapeMatrix> all = {{vocabulary, dim, 1, is_tied},
                                  {dim, dim, 2 * layers},    // queries, output
                                  {kv, dim, 2 * layers},     // keys, values
                                  {s.ffn, dim, 2 * layers},  // gate, up
                                  {dim, s.ffn, layers}};     // down
  if (!is_tied) all.push_back({vocabulary, dim, 1});
  return all;
}

// Gains of norms: f32 in any format.
inline std::uint64_t n_gains(const Shape& s) { return (2 * std::uint64_t{s.n_layers} + 1) * s.dim; }

inline std::uint64_t parameters_of(const Shape& s, std::uint64_t vocabulary, bool is_tied) {
  std::uint64_t sum = n_gains(s);
  for (const ShapeMatrix& m : matrices_of(s, vocabulary, is_tied)) sum += m.n * m.k * m.count;
  return sum;
}

// Bytes of the weights in a file whose matrices have this format. Error: invalid_argument (rows
// that are no whole blocks of it).
inline nibble::Result<std::uint64_t> bytes_of(const Shape& s, std::uint64_t vocabulary,
                                              bool is_tied, nibble::quant::Format format) {
  std::uint64_t sum = 4 * n_gains(s);
  for (const ShapeMatrix& m : matrices_of(s, vocabulary, is_tied)) {
    NIBBLE_TRY(row, nibble::quant::row_bytes(format, static_cast<std::size_t>(m.k)));
    sum += m.n * row * m.count;
  }
  return sum;
}

// Indices of the models that no other one beats: `beats(a, b)` if a is nowhere worse than b and
// somewhere better.
template <class Model, class Beats>
std::vector<std::size_t> pareto_front(const std::vector<Model>& models, Beats&& beats) {
  std::vector<std::size_t> front;
  for (std::size_t i = 0; i < models.size(); ++i) {
    const bool is_beaten = std::any_of(models.begin(), models.end(),
                                       [&](const Model& other) { return beats(other, models[i]); });
    if (!is_beaten) front.push_back(i);
  }
  return front;
}

// How many steps and how many models each turn of successive halving has (Jamieson and Talwalkar
// 2016): after each turn the better half stays, until `n_kept` are left, and the turns double, so
// that the last ends at `n_steps`.
struct Turn {
  std::size_t n_models = 0;
  std::uint64_t end_step = 0;
};
inline std::vector<Turn> halving_turns(std::size_t n_models, std::size_t n_kept,
                                       std::uint64_t n_steps) {
  n_kept = std::max(std::size_t{1}, std::min(n_kept, n_models));
  std::vector<std::size_t> sizes;
  for (std::size_t n = n_models; n > n_kept; n = std::max(n_kept, (n + 1) / 2)) sizes.push_back(n);
  sizes.push_back(n_kept);
  std::vector<Turn> turns(sizes.size());
  std::uint64_t steps = n_steps;
  for (std::size_t i = sizes.size(); i-- > 0; steps = std::max(std::uint64_t{1}, steps / 2)) {
    turns[i] = {sizes[i], steps};
  }
  return turns;
}

}  // namespace example
