// SPDX-License-Identifier: Apache-2.0
//
// From the keys of a config.json to those of a GGUF file: the ones that most architectures have.
#pragma once

#include <cstddef>
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

// The heads of a recurrent layer with a matrix as state.
struct DeltaShape {
  std::uint32_t n_keys = 1;
  std::uint32_t key_dim = 1;
  std::uint32_t n_values = 1;  // a multiple of n_keys
  std::uint32_t value_dim = 1;
};

// What the tensors need to know of the model.
struct Shape {
  std::uint32_t n_layers = 1;
  std::uint32_t n_heads = 1;
  std::uint32_t n_kv_heads = 1;
  std::uint32_t head_dim = 1;
  DeltaShape delta;
  Factors rope_freqs;                   // none: no scaling by frequency
  Factors long_factors, short_factors;  // of longrope
};

// What configurations of an architecture need not state.
struct Defaults {
  std::optional<std::uint32_t> n_heads = {}, n_kv_heads = {}, head_dim = {}, n_ctx = {};
};

// Sets keys of one architecture. Errors are remembered by the configuration and by `out`.
class Keys {
 public:
  Keys(Config& configuration, std::string_view architecture, io::GgufWriter& out)
      : config(configuration), prefix_(std::string(architecture) + '.'), out_(out) {}

  Config& config;
  Shape shape;

  template <class T>
  void set(std::string_view key, T value) {
    out_.set(prefix_ + std::string(key), value);
  }
  template <class Range>
  void set_array(std::string_view key, const Range& values) {
    out_.set_array(prefix_ + std::string(key), values);
  }

  // Set `key` to what the configuration has under one of `names`, and return it.
  std::uint32_t integer(std::string_view key, Names names,
                        std::optional<std::uint32_t> fallback = {}) {
    const std::uint32_t value = config.integer(names, fallback);
    set(key, value);
    return value;
  }
  void number(std::string_view key, double value) { set(key, static_cast<float>(value)); }
  void number(std::string_view key, Names names, std::optional<double> fallback = {}) {
    number(key, config.number(names, fallback));
  }
  // In [1, kMaxHubDim], also where that is an error.
  std::uint32_t dimension(std::string_view key, Names names,
                          std::optional<std::uint32_t> fallback = {}) {
    const std::uint32_t value = integer(key, names, fallback);
    if (value >= 1 && value <= kMaxHubDim) return value;
    config.refuse(Errc::malformed, *names.begin(),
                  "is " + to_text(value) + ", not in [1, " + to_text(kMaxHubDim) + "]");
    return 1;
  }

  void dimensions(const Defaults& defaults = {});
  void rms_norm(std::optional<double> eps = {}) {
    number("attention.layer_norm_rms_epsilon", {"rms_norm_eps"}, eps);
  }
  void layer_norm() {
    number("attention.layer_norm_epsilon", {"layer_norm_epsilon", "layer_norm_eps"});
  }
  // default_theta: of layers with full attention. with_longrope, with_mscale: whether the caller
  // sets what that scaling needs, or yarn's mscale_all_dim.
  Rope rope(double default_theta = 10000, bool with_longrope = false, bool with_mscale = false);

 private:
  void scaling(const Rope& rope, std::uint32_t rope_dim, bool with_longrope, bool with_mscale);

  std::string prefix_;
  io::GgufWriter& out_;
};

inline void Keys::dimensions(const Defaults& defaults) {
  shape.n_layers = dimension("block_count", {"num_hidden_layers", "n_layer", "num_layers"});
  integer("context_length", {"max_position_embeddings", "n_positions", "n_ctx"}, defaults.n_ctx);
  const std::uint32_t dim = dimension("embedding_length", {"hidden_size", "n_embd", "n_embed"});
  dimension("feed_forward_length", {"intermediate_size", "n_inner", "ffn_dim"}, 4 * dim);
  shape.n_heads = dimension("attention.head_count", {"num_attention_heads", "n_head", "num_heads"},
                            defaults.n_heads);
  shape.n_kv_heads = shape.n_heads;
  if (config.has("num_key_value_heads") || defaults.n_kv_heads) {
    shape.n_kv_heads =
        dimension("attention.head_count_kv", {"num_key_value_heads"}, defaults.n_kv_heads);
  }
  shape.head_dim = dim / shape.n_heads;
  if (config.has("head_dim") || defaults.head_dim) {
    shape.head_dim = dimension("attention.key_length", {"head_dim"}, defaults.head_dim);
    set("attention.value_length", shape.head_dim);
  }
}

inline Rope Keys::rope(double default_theta, bool with_longrope, bool with_mscale) {
  Rope rope = read_rope(config);
  if (rope.theta == 0) rope.theta = default_theta;
  number("rope.freq_base", rope.theta);
  if (rope.window_theta != 0) number("rope.freq_base_swa", rope.window_theta);
  const double rope_dim = rope.part * shape.head_dim;
  if (!(rope_dim >= 2) || rope.part > 1) {
    config.refuse(
        Errc::malformed, "partial_rotary_factor",
        "leaves " + to_text(rope_dim) + " of " + to_text(shape.head_dim) + " dimensions to rotate");
    rope.part = 1;  // what callers make of it fits in their integers
    return rope;
  }
  set("rope.dimension_count", static_cast<std::uint32_t>(rope_dim));
  scaling(rope, static_cast<std::uint32_t>(rope_dim), with_longrope, with_mscale);
  return rope;
}

inline void Keys::scaling(const Rope& rope, std::uint32_t rope_dim, bool with_longrope,
                          bool with_mscale) {
  if (rope.type == "linear" || rope.type == "yarn") {
    set("rope.scaling.type", rope.type);
    number("rope.scaling.factor", config.number_in(rope.scaling, "factor"));
  }
  if (rope.type == "yarn") {
    const double n_ctx =
        rope.old_ctx > 0 ? rope.old_ctx : config.number({"max_position_embeddings"});
    if (!(n_ctx >= 1) || n_ctx > 4294967295.0) {
      return config.refuse(Errc::malformed, "original_max_position_embeddings",
                           "is " + to_text(n_ctx));
    }
    set("rope.scaling.original_context_length", static_cast<std::uint32_t>(n_ctx));
    constexpr std::pair<std::string_view, std::string_view> kNumbers[] = {
        {"yarn_ext_factor", "extrapolation_factor"},
        {"yarn_attn_factor", "attn_factor"},
        {"yarn_beta_fast", "beta_fast"},
        {"yarn_beta_slow", "beta_slow"}};
    if (const io::JsonValue* const value = rope.scaling->find("attention_factor");
        value != nullptr && !value->is_null()) {
      config.refuse(Errc::unsupported, "attention_factor", "is not computed for yarn");
    }
    // Mistral 3 has a key of its own for the second one; without both, neither counts.
    const double scale = config.number_in(rope.scaling, "mscale", 0.0);
    const double scale_all = config.number_in(rope.scaling, "mscale_all_dim", 0.0);
    if (scale != 0 && scale_all != 0 && (!with_mscale || scale != 1)) {
      config.refuse(Errc::unsupported, "mscale",
                    "is " + to_text(scale) + " with mscale_all_dim " + to_text(scale_all) +
                        ": not computed for this architecture");
    }
    for (const auto& [key, name] : kNumbers) {
      const io::JsonValue* const value = rope.scaling->find(name);
      if (value == nullptr || value->is_null()) continue;
      number("rope.scaling." + std::string(key), config.number_in(rope.scaling, name));
    }
  } else if (rope.type == "llama3") {
    shape.rope_freqs = llama3_factors(config, rope, rope_dim);
  } else if (rope.type == "longrope" || rope.type == "su") {
    if (!with_longrope) {
      config.refuse(Errc::unsupported, "rope_type", "longrope is known for phi3 alone");
    }
  } else if (rope.type != "default" && rope.type != "linear" && rope.type != "dynamic") {
    // (dynamic changes only what is beyond the context that the model was trained for.)
    config.refuse(Errc::unsupported, "rope_type",
                  io::quoted(rope.type) +
                      " is not known; known are default, linear, dynamic, "
                      "yarn, llama3 and longrope");
  }
}

// The number of layers after which attention is full again: layer i has a window unless i + 1 is a
// multiple. Errors: unsupported (another pattern).
inline std::uint32_t window_period(Config& config, std::uint32_t fallback) {
  const std::uint32_t period =
      config.integer({"sliding_window_pattern", "_sliding_window_pattern"}, fallback);
  if (period == 0) {
    config.refuse(Errc::malformed, "sliding_window_pattern", "is 0");
    return fallback;
  }
  const io::JsonValue* const types = config.find("layer_types");
  if (types == nullptr) return period;
  const auto layers = types->elements();
  const auto fits = [&](std::size_t p) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if ((layers[i].string() == "sliding_attention") != ((i + 1) % p != 0)) return false;
    }
    return true;
  };
  if (fits(period)) return period;
  for (std::uint32_t p = 1; p <= 64; ++p) {
    if (fits(p)) return p;
  }
  config.refuse(Errc::unsupported, "layer_types", "have windows, but not in all but each n-th");
  return period;
}

}}}  // namespace nibble::NIBBLE_ABI::hub
