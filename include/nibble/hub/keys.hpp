// SPDX-License-Identifier: Apache-2.0
//
// From the keys of a config.json to those of a GGUF file: the ones that most architectures have.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/hub/rope.hpp"
#include "nibble/io/gguf_writer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

// The most that a dimension may be (as model/gguf_config.hpp says for GGUF).
inline constexpr std::uint32_t kMaxHubDim = 1u << 20;

// What the tensors need to know of the model.
struct Shape {
  std::uint32_t n_heads = 0;
  std::uint32_t n_kv_heads = 0;
  std::uint32_t head_dim = 0;
  Factors rope_freqs;                   // none: no scaling by frequency
  Factors long_factors, short_factors;  // of longrope
};

// Sets keys of one architecture.
class Keys {
 public:
  Keys(const Config& config, std::string_view architecture, io::GgufWriter& out)
      : config_(config), prefix_(std::string(architecture) + '.'), out_(out) {}

  const Config& config() const noexcept { return config_; }
  Shape shape;

  template <class T>
  void set(std::string_view key, T value) {
    if constexpr (std::is_same_v<T, double>) {
      out_.set(prefix_ + std::string(key), static_cast<float>(value));
    } else {
      out_.set(prefix_ + std::string(key), value);
    }
  }
  template <class Range>
  void set_array(std::string_view key, const Range& values) {
    out_.set_array(prefix_ + std::string(key), values);
  }

  // Sets `key` to what the configuration has under one of `names`. Errors: those of Config.
  Result<std::uint32_t> integer(std::string_view key, Names names,
                                std::optional<std::uint32_t> fallback = {}) {
    NIBBLE_TRY(value, config_.integer(names, fallback));
    set(key, value);
    return value;
  }
  Result<double> number(std::string_view key, Names names, std::optional<double> fallback = {}) {
    NIBBLE_TRY(value, config_.number(names, fallback));
    set(key, value);
    return value;
  }

 private:
  const Config& config_;
  std::string prefix_;
  io::GgufWriter& out_;
};

namespace detail {

inline Result<std::uint32_t> dimension(Keys& keys, std::string_view key, Names names,
                                       std::optional<std::uint32_t> fallback = {}) {
  NIBBLE_TRY(value, keys.integer(key, names, fallback));
  if (value >= 1 && value <= kMaxHubDim) return value;
  return keys.config().wrong(names, "is " + to_text(value) + ", not in [1, " +
                                        to_text(kMaxHubDim) + "]");
}

// What differs between architectures in dimension_keys().
struct Defaults {
  std::optional<std::uint32_t> n_heads = {}, n_kv_heads = {}, head_dim = {}, n_ctx = {};
};

}  // namespace detail

// The dimensions; a stated size of heads.
inline Result<void> dimension_keys(Keys& keys, const detail::Defaults& defaults = {}) {
  using detail::dimension;
  const Config& config = keys.config();
  NIBBLE_TRY(n_layers, keys.integer("block_count",
                                    {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}));
  (void)n_layers;
  NIBBLE_TRY(n_ctx, keys.integer("context_length",
                                 {"max_position_embeddings", "n_positions", "n_ctx"},
                                 defaults.n_ctx));
  (void)n_ctx;
  NIBBLE_TRY(dim, dimension(keys, "embedding_length", {"hidden_size", "n_embd"}));
  NIBBLE_TRY(ffn_dim,
             dimension(keys, "feed_forward_length", {"intermediate_size", "n_inner"}, 4 * dim));
  (void)ffn_dim;
  Shape& shape = keys.shape;
  NIBBLE_TRY(n_heads, dimension(keys, "attention.head_count", {"num_attention_heads", "n_head"},
                                defaults.n_heads));
  const bool has_kv_heads = config.has({"num_key_value_heads"}) || defaults.n_kv_heads;
  shape.n_heads = shape.n_kv_heads = n_heads;
  if (has_kv_heads) {
    NIBBLE_TRY(n_kv_heads, dimension(keys, "attention.head_count_kv", {"num_key_value_heads"},
                                     defaults.n_kv_heads));
    shape.n_kv_heads = n_kv_heads;
  }
  shape.head_dim = dim / n_heads;
  if (config.has({"head_dim"}) || defaults.head_dim) {
    NIBBLE_TRY(head_dim,
               dimension(keys, "attention.key_length", {"head_dim"}, defaults.head_dim));
    keys.set("attention.value_length", head_dim);
    shape.head_dim = head_dim;
  }
  return ok();
}

inline Result<void> rms_keys(Keys& keys, std::optional<double> fallback = {}) {
  NIBBLE_CHECK(keys.number("attention.layer_norm_rms_epsilon", {"rms_norm_eps"}, fallback));
  return ok();
}
inline Result<void> layer_norm_keys(Keys& keys) {
  NIBBLE_CHECK(keys.number("attention.layer_norm_epsilon",
                           {"layer_norm_epsilon", "layer_norm_eps"}));
  return ok();
}

// The rotation. default_theta: for layers with full attention, where the file states none.
// rotary_dim: whether fewer dimensions than a head has may be rotated.
inline Result<Rope> rope_keys(Keys& keys, double default_theta = 10000) {
  const Config& config = keys.config();
  NIBBLE_TRY(rope, read_rope(config));
  if (rope.theta == 0) rope.theta = default_theta;
  keys.set("rope.freq_base", rope.theta);
  if (rope.window_theta != 0) keys.set("rope.freq_base_swa", rope.window_theta);

  NIBBLE_TRY(old_part, config.number({"partial_rotary_factor", "rotary_pct"}, 1.0));
  NIBBLE_TRY(part, config.number_in(rope.scaling, "partial_rotary_factor", old_part));
  const double rope_dim = part * keys.shape.head_dim;
  if (!(rope_dim >= 2) || part > 1) {
    return config.wrong({"partial_rotary_factor", "rotary_pct", "head_dim"},
                        "leaves " + to_text(rope_dim) + " dimensions of " +
                            to_text(keys.shape.head_dim) + " to rotate");
  }
  keys.set("rope.dimension_count", static_cast<std::uint32_t>(rope_dim));

  const auto factor = [&](std::string_view key, const char* name) -> Result<void> {
    if (rope.scaling->find(name) == nullptr || rope.scaling->find(name)->is_null()) return ok();
    NIBBLE_TRY(value, config.number_in(rope.scaling, name));
    keys.set(key, value);
    return ok();
  };
  if (rope.type == "linear" || rope.type == "yarn") {
    NIBBLE_TRY(stretch, config.number_in(rope.scaling, "factor"));
    keys.set("rope.scaling.type", rope.type);
    keys.set("rope.scaling.factor", stretch);
  }
  if (rope.type == "yarn") {
    NIBBLE_TRY(n_ctx, config.number({"max_position_embeddings"}));
    NIBBLE_TRY(old_ctx,
               config.number_in(rope.scaling, "original_max_position_embeddings", n_ctx));
    if (!(old_ctx >= 1) || old_ctx > kMaxInteger) {
      return config.wrong({"rope_scaling", "rope_parameters"},
                          "has original_max_position_embeddings " + to_text(old_ctx));
    }
    keys.set("rope.scaling.original_context_length", static_cast<std::uint32_t>(old_ctx));
    NIBBLE_CHECK(factor("rope.scaling.yarn_ext_factor", "extrapolation_factor"));
    NIBBLE_CHECK(factor("rope.scaling.yarn_attn_factor", "attn_factor"));
    NIBBLE_CHECK(factor("rope.scaling.yarn_attn_factor", "attention_factor"));
    NIBBLE_CHECK(factor("rope.scaling.yarn_beta_fast", "beta_fast"));
    NIBBLE_CHECK(factor("rope.scaling.yarn_beta_slow", "beta_slow"));
  } else if (rope.type == "llama3") {
    NIBBLE_TRY(factors, llama3_factors(config, rope, static_cast<std::uint32_t>(rope_dim)));
    keys.shape.rope_freqs = std::move(factors);
  } else if (rope.type != "default" && rope.type != "linear" && rope.type != "dynamic" &&
             rope.type != "longrope" && rope.type != "su") {
    // (dynamic changes only what is beyond the context that the model was trained for.)
    return config.unsupported("rope_scaling", "its type " + io::quoted(rope.type) +
                                                  " is not known; known are default, linear, "
                                                  "dynamic, yarn, llama3 and longrope");
  }
  return rope;
}

// The number of layers after which attention is full again: layer i has a window unless i + 1 is a
// multiple. Errors: unsupported (another pattern).
inline Result<std::uint32_t> window_period(const Config& config, std::uint32_t fallback) {
  NIBBLE_TRY(period, config.integer({"sliding_window_pattern", "_sliding_window_pattern"},
                                    fallback));
  const io::JsonValue* const types = config.find("layer_types");
  if (types == nullptr || period == 0) return period;
  const auto layers = types->elements();
  const auto fits = [&](std::size_t p) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if ((layers[i].string() == "sliding_attention") != ((i + 1) % p != 0)) return false;
    }
    return true;
  };
  if (fits(period)) return period;
  for (std::size_t p = 1; p <= layers.size() && p <= 64; ++p) {
    if (fits(p)) return static_cast<std::uint32_t>(p);
  }
  return config.unsupported("layer_types", "layers with a window are not all but each n-th");
}

}}}  // namespace nibble::NIBBLE_ABI::hub
