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
  double theta = 0;                        // 0: not stated
  double window_theta = 0;                 // of layers with a window; 0: not stated
  double part = 1;                         // of a head's dimensions that is rotated
  double old_ctx = 0;                      // positions before scaling; 0: not stated
  std::string_view type = "default";       // of scaling
  const io::JsonValue* scaling = nullptr;  // the object that has its numbers
};

inline Rope read_rope(Config& config) {
  Rope rope;
  const io::JsonValue* all = config.find({"rope_parameters", "rope_scaling"});
  const io::JsonValue* window = nullptr;
  if (all != nullptr) {
    window = all->find("sliding_attention");
    if (const io::JsonValue* const full = all->find("full_attention")) all = full;
  }
  rope.scaling = all;
  const auto number = [&](const io::JsonValue* object, std::string_view key, Names old_keys,
                          double fallback) {
    return config.number_in(object, key, config.number(old_keys, fallback));
  };
  rope.theta = number(all, "rope_theta", {"rope_theta", "rotary_emb_base"}, 0);
  rope.window_theta = number(window, "rope_theta", {"rope_local_base_freq"}, 0);
  rope.part = number(all, "partial_rotary_factor", {"partial_rotary_factor", "rotary_pct"}, 1);
  rope.old_ctx =
      number(all, "original_max_position_embeddings", {"original_max_position_embeddings"}, 0);
  for (const char* const key : {"type", "rope_type"}) {
    const io::JsonValue* const type = all == nullptr ? nullptr : all->find(key);
    if (type != nullptr && !type->string().empty()) rope.type = type->string();
  }
  return rope;
}

// The factors of longrope, one for each of n rotated pairs of dimensions.
inline Factors read_factors(Config& config, const Rope& rope, std::string_view key,
                            std::uint32_t n) {
  Factors factors;
  const io::JsonValue* const list = rope.scaling == nullptr ? nullptr : rope.scaling->find(key);
  if (list == nullptr || list->elements().size() != n) {
    config.refuse(Errc::malformed, key, "has not " + to_text(n) + " numbers");
    return factors;
  }
  for (const io::JsonValue& factor : list->elements()) {
    if (!(factor.number() > 0) || !Config::fits_f32(factor.number())) {
      config.refuse(Errc::malformed, key, "has a factor that is not positive");
    }
    factors.push_back({static_cast<float>(factor.number())});
  }
  return factors;
}

// Llama 3's scaling as divisors of the frequencies: long waves are stretched by `factor`, short
// ones stay, and those in between change smoothly.
inline Factors llama3_factors(Config& config, const Rope& rope, std::uint32_t rope_dim) {
  const double factor = config.number_in(rope.scaling, "factor", 8.0);
  const double low = config.number_in(rope.scaling, "low_freq_factor", 1.0);
  const double high = config.number_in(rope.scaling, "high_freq_factor", 4.0);
  const double n_ctx = rope.old_ctx > 0 ? rope.old_ctx : 8192;
  Factors factors;
  if (!(factor > 0) || !(low > 0) || !(high > low) || !(rope.theta > 0)) {
    config.refuse(Errc::malformed, "rope_type",
                  "llama3 with numbers that do not go together: factor " + to_text(factor) +
                      ", low_freq_factor " + to_text(low) + ", high_freq_factor " + to_text(high) +
                      ", rope_theta " + to_text(rope.theta));
    return factors;
  }
  constexpr double kTwoPi = 6.283185307179586;
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
