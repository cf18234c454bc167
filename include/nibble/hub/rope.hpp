// SPDX-License-Identifier: Apache-2.0
//
// What a config.json says of the rotation: rope_parameters, or in older files rope_theta and
// rope_scaling, for all layers alike or for those with a window apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/io/json_value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

using Factors = std::vector<Scalar<float>>;

struct Rope {
  double theta = 0;                         // 0: not stated
  double window_theta = 0;                  // of layers with a window; 0: not stated
  std::string_view type = "default";        // of scaling
  const io::JsonValue* scaling = nullptr;   // the object that has its numbers
};

inline Result<Rope> read_rope(const Config& config) {
  Rope rope;
  const io::JsonValue* all = config.find({"rope_parameters", "rope_scaling"});
  const io::JsonValue* window = nullptr;
  if (all != nullptr) {
    window = all->find("sliding_attention");
    if (const io::JsonValue* const full = all->find("full_attention")) all = full;
  }
  rope.scaling = all;
  NIBBLE_TRY(old_theta,
             config.number({"global_rope_theta", "rope_theta", "rotary_emb_base"}, 0.0));
  NIBBLE_TRY(theta, config.number_in(all, "rope_theta", old_theta));
  NIBBLE_TRY(old_window_theta, config.number({"local_rope_theta", "rope_local_base_freq"}, 0.0));
  NIBBLE_TRY(window_theta, config.number_in(window, "rope_theta", old_window_theta));
  rope.theta = theta;
  rope.window_theta = window_theta;
  for (const char* const key : {"type", "rope_type"}) {
    const io::JsonValue* const type = all == nullptr ? nullptr : all->find(key);
    if (type != nullptr && !type->string().empty()) rope.type = type->string();
  }
  return rope;
}

// An array of factors, one for each rotated pair of dimensions.
inline Result<Factors> read_factors(const Config& config, const Rope& rope, std::string_view key,
                                    std::uint32_t n) {
  const io::JsonValue* const list = rope.scaling == nullptr ? nullptr : rope.scaling->find(key);
  Factors factors;
  if (list != nullptr) {
    for (const io::JsonValue& factor : list->elements()) {
      if (!(factor.number() > 0) || !Config::fits_f32(factor.number())) {
        return config.wrong({"rope_scaling"}, "has a " + std::string(key) + " that is not positive");
      }
      factors.push_back({static_cast<float>(factor.number())});
    }
  }
  if (factors.size() == n) return factors;
  return config.wrong({"rope_scaling"}, "has " + to_text(factors.size()) + " numbers in " +
                                            std::string(key) + ", not " + to_text(n));
}

// Llama 3's scaling as divisors of the frequencies: long waves are stretched by `factor`, short
// ones stay, and those in between change smoothly. rope_dim: at most kMaxDim.
inline Result<Factors> llama3_factors(const Config& config, const Rope& rope,
                                      std::uint32_t rope_dim) {
  const auto number = [&](std::string_view key, double fallback) {
    return config.number_in(rope.scaling, key, fallback);
  };
  NIBBLE_TRY(factor, number("factor", 8));
  NIBBLE_TRY(low, number("low_freq_factor", 1));
  NIBBLE_TRY(high, number("high_freq_factor", 4));
  NIBBLE_TRY(n_ctx, number("original_max_position_embeddings", 8192));
  if (!(factor > 0) || !(low > 0) || !(high > low) || !(n_ctx > 0) || !(rope.theta > 0)) {
    return config.wrong({"rope_scaling", "rope_parameters"},
                        "has numbers that do not go together: factor " + to_text(factor) +
                            ", low_freq_factor " + to_text(low) + ", high_freq_factor " +
                            to_text(high) + ", original_max_position_embeddings " +
                            to_text(n_ctx) + ", rope_theta " + to_text(rope.theta));
  }
  constexpr double kTwoPi = 6.283185307179586;
  Factors factors;
  for (std::uint32_t i = 0; i < rope_dim; i += 2) {
    const double wave = kTwoPi * libm::pow(rope.theta, static_cast<double>(i) / rope_dim);
    double divisor = 1;
    if (wave > n_ctx / low) {
      divisor = factor;
    } else if (wave >= n_ctx / high) {
      const double smooth = (n_ctx / wave - low) / (high - low);
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    factors.push_back({static_cast<float>(divisor)});
  }
  return factors;
}

}}}  // namespace nibble::NIBBLE_ABI::hub
