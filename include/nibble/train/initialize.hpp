// SPDX-License-Identifier: Apache-2.0
//
// Values that training starts from.
#pragma once

#include <cstdint>
#include <string_view>

#include "nibble/core/libm.hpp"
#include "nibble/train/random.hpp"
#include "nibble/train/trained_weights.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// Normally distributed numbers with mean 0 and variance 1 (Marsaglia's polar method).
class Normal {
 public:
  explicit Normal(std::uint64_t seed) noexcept : random_(seed) {}
  double next() noexcept {
    if (has_next_) {
      has_next_ = false;
      return next_;
    }
    for (;;) {
      const double x = 2 * random_.uniform() - 1, y = 2 * random_.uniform() - 1;
      const double square = x * x + y * y;
      if (square >= 1 || square == 0) continue;
      const double factor = libm::sqrt(-2 * libm::log(square) / square);
      next_ = y * factor;
      has_next_ = true;
      return x * factor;
    }
  }

 private:
  Random random_;
  double next_ = 0;
  bool has_next_ = false;
};

// GPT-2's start (Radford et al. 2019): matrices are normal with this deviation, those that write to
// the residual stream (attn_output, ffn_down) with 1 / sqrt(2 n_layers) of it; norms are ones,
// biases zeros. Of factors, A is normal and B zero (Hu et al., "LoRA", 2021), so that adapters
// change nothing at first. The values depend on the seed, and on the names and order of the
// tensors.
inline void initialize(TrainedWeights& weights, Index n_layers, std::uint64_t seed,
                       double deviation = 0.02) noexcept {
  std::uint64_t number = 0;
  for (const TrainedTensor& t : weights.tensors()) {
    Normal normal(detail::mixed(seed) + ++number);
    const std::string_view name = t.name;
    const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
    double size = deviation;
    if (t.is_factor) {
      size = name.ends_with(".lora_a") ? 1 / libm::sqrt(static_cast<double>(t.k)) : 0;
    } else if (has("attn_output") || has("ffn_down")) {
      size = deviation / libm::sqrt(2 * static_cast<double>(n_layers));
    }
    for (float& x : t.values) {
      if (t.n == 0) {
        x = name.ends_with(".bias") ? 0.0f : 1.0f;
      } else {
        x = size == 0 ? 0.0f : static_cast<float>(size * normal.next());
      }
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::train
