// SPDX-License-Identifier: Apache-2.0
//
// Adapters of a model as files have them, which change what it does with few numbers of their own:
// - factors of low rank beside matrices (LoRA; E. Hu et al. 2021): W + (alpha / rank) · B · A
//   instead of W;
// - learned rows before the tokens ("prompt tuning"; B. Lester et al. 2021);
// - learned prompts that attention reads through a gate ("LLaMA-Adapter"; R. Zhang et al. 2023).
// To run a model with them: adapter_set.hpp. Files: train/adapter_file.hpp, train/peft.hpp. Factors
// for good: train/merge_adapter.hpp.
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

// What attention of a layer gives of these rows is added, times `gate`, to what it gives of the
// sequence. The layer's own matrices make keys and values of the rows; keys are not rotated.
struct AdapterPrompt {
  Index layer = 0;
  std::vector<Scalar<float>> rows;  // (n, width of the model)
  float gate = 0;
};

struct Adapter {
  std::string architecture;  // general.architecture of the models that it is for
  std::vector<AdapterMatrix> matrices;
  std::vector<Scalar<float>> prefix;   // (n, width of the model): in place of the first embeddings
  std::vector<AdapterPrompt> prompts;  // at most one for a layer

  // Whether factors are all that it has: other parts cannot be merged, and GGUF has no place for
  // them.
  bool is_low_rank() const noexcept { return prefix.empty() && prompts.empty(); }
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
