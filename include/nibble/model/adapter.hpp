// SPDX-License-Identifier: Apache-2.0
//
// Low-rank adapters of a model (LoRA; Hu et al. 2021) as files have them: W + (alpha / rank) · B ·
// A instead of W, for some of its matrices. To run a model with them: adapter_set.hpp. Files:
// train/adapter_file.hpp, train/peft.hpp. For good: train/merge_adapter.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The factors of one matrix (n, k). (LoRA calls A what graph::Factors calls b, and B what is a
// there.)
struct AdapterMatrix {
  std::string name;  // of the matrix in GGUF: "blk.0.attn_q.weight"
  Index n = 0, k = 0, rank = 0;
  float alpha = 1;
  std::vector<Scalar<float>> a;  // (rank, k)
  std::vector<Scalar<float>> b;  // (n, rank)

  float scale() const noexcept { return alpha / static_cast<float>(rank); }
  // Whether the sizes are above zero and the factors have them.
  bool is_whole() const noexcept {
    const auto fits = [](const std::vector<Scalar<float>>& x, Index rows, Index columns) {
      const auto size = static_cast<Index>(x.size());
      return size / rows == columns && size % rows == 0;
    };
    return n > 0 && k > 0 && rank > 0 && fits(a, rank, k) && fits(b, n, rank);
  }
  std::span<const float> a_values() const noexcept { return {values(a), a.size()}; }
  std::span<const float> b_values() const noexcept { return {values(b), b.size()}; }
};

struct Adapter {
  std::string architecture;  // general.architecture of the models that it is for
  std::vector<AdapterMatrix> matrices;

  const AdapterMatrix* find(std::string_view name) const noexcept {
    for (const AdapterMatrix& m : matrices) {
      if (m.name == name) return &m;
    }
    return nullptr;
  }
  Index max_rank() const noexcept {
    Index rank = 0;
    for (const AdapterMatrix& m : matrices) rank = (std::max)(rank, m.rank);
    return rank;
  }
};

// An adapter in use: `strength` times what it adds.
struct AppliedAdapter {
  const Adapter* adapter = nullptr;
  float strength = 1;
};

}}  // namespace nibble::NIBBLE_ABI
