// SPDX-License-Identifier: Apache-2.0
//
// The dimensions of decoders beyond those of Llama, and how GGUF files state them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/gguf_config.hpp"
#include "nibble/ops/attention.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The defaults are those of Llama.
struct DecoderConfig : ModelConfig {
  DecoderConfig() = default;
  DecoderConfig(ModelConfig c) noexcept : ModelConfig(std::move(c)) {}  // NOLINT: Llama's are one

  // Where layers differ; empty: as in ModelConfig.
  LayerValues<Index> windows;
  LayerValues<Index> aheads;  // positions that a token sees after its own; see is_causal
  LayerValues<Index> rope_dims;
  LayerValues<float> rope_thetas;
  LayerValues<float> rope_scales;
  LayerValues<float> rope_magnitudes;
  // The same for sizes; only llama() reads them. The widths are those of all query heads and of all
  // kv heads.
  LayerDims layer_dims;
  LayerValues<Index> q_widths;
  LayerValues<Index> kv_widths;

  bool is_causal = true;       // no token sees later ones; otherwise all of them
  bool is_half_split = false;  // the rotation's pairs; see kernels/rope.hpp
  float rope_magnitude = 1;    // what is rotated is multiplied by it
  ops::Yarn yarn;
  Index n_original = 0;         // positions that the model knew before its context was stretched
  bool has_head_norms = false;  // norms of each head of q and k
  float embedding_scale = 1;    // of the embeddings of tokens
  float given_scale = 1;        // of rows that are given instead
  float attention_scale = 0;    // of the scores; 0: 1 / sqrt(head_dim)
  float logit_scale = 1;
  float attention_cap = 0;  // soft caps of scores and of logits; 0: none
  float logit_cap = 0;
  graph::Temperature temperature;  // of the scores, by position

  // These refer to the vectors above, so they are not for a configuration that is about to go.
  graph::RopeAngles rope_angles() const& noexcept {
    return {per_layer_or(rope_dims, rope_dim),
            per_layer_or(rope_thetas, rope_theta),
            per_layer_or(rope_scales, rope_scale),
            per_layer_or(rope_magnitudes, rope_magnitude),
            yarn,
            n_original};
  }
  graph::RopeAngles rope_angles() const&& = delete;
  // Sizes as llama() takes them: per layer, whether they differ or not.
  Dim<kPerLayer> ffn_width() const& noexcept {
    return Dim<kPerLayer>(per_layer_or(layer_dims.ffn_dims, Index{ffn_dim}));
  }
  Dim<kPerLayer> q_width() const& noexcept {
    return Dim<kPerLayer>(per_layer_or(q_widths, Index{n_heads} * Index{head_dim}));
  }
  Dim<kPerLayer> kv_width() const& noexcept {
    return Dim<kPerLayer>(per_layer_or(kv_widths, Index{n_kv_heads} * Index{head_dim}));
  }
  void ffn_width() const&& = delete;
  void q_width() const&& = delete;
  void kv_width() const&& = delete;
  auto heads() const& noexcept {
    const float scale = attention_scale > 0 ? attention_scale : inverse_sqrt(head_dim);
    const Index ahead = is_causal ? 0 : ops::kAllAhead;
    return graph::Heads(n_heads, n_kv_heads, head_dim, scale, per_layer_or(windows, window),
                        per_layer_or(aheads, ahead));
  }
  auto layer_heads() const& noexcept {
    const auto same = heads();
    return graph::Heads(Dim<kPerLayer>(per_layer_or(layer_dims.n_heads, Index{n_heads})),
                        Dim<kPerLayer>(per_layer_or(layer_dims.n_kv_heads, Index{n_kv_heads})),
                        head_dim, same.scale, same.window, same.ahead);
  }
  void heads() const&& = delete;
  void layer_heads() const&& = delete;
};

// Dimensions that an expression refers to: they must outlive it. Architectures delete
// expression(const Dims&&) for them.
template <class Dims>
concept DimsByReference = std::is_base_of_v<DecoderConfig, Dims>;

// YaRN's factor of what is rotated, for a context that is `factor` times as long.
inline double yarn_magnitude(double factor, double weight = 1) noexcept {
  return factor <= 1 ? 1 : 0.1 * weight * libm::log(factor) + 1;
}

// Reads the rotation into `c`. Errors: malformed, unsupported (an unknown kind of scaling).
inline Result<void> read_rope_config(const io::Gguf& file, DecoderConfig& c) {
  const std::string rope = c.architecture + ".rope.", scaling = rope + "scaling.";
  const Index head_dim = c.head_dim;
  NIBBLE_TRY(rope_dim, gguf_dim_or(file, rope + "dimension_count", kMaxDim, head_dim));
  NIBBLE_TRY(theta, gguf_positive_or(file, rope + "freq_base", 10000.0f));
  // A factor without a type is linear; older files have it under another key.
  NIBBLE_TRY(type, file.get_string_or(scaling + "type", "linear"));
  NIBBLE_TRY(old_factor, gguf_positive_or(file, rope + "scale_linear", 1.0f));
  NIBBLE_TRY(factor, gguf_positive_or(file, scaling + "factor", old_factor));
  NIBBLE_TRY(magnitude, gguf_positive_or(file, scaling + "attn_factor", 1.0f));
  NIBBLE_TRY(n_original, gguf_dim_or(file, scaling + "original_context_length", 1u << 30, c.n_ctx));
  if (type != "none" && type != "linear" && type != "yarn" && type != "longrope") {
    return Error{Errc::unsupported, file.name() + ": rope scaling " + io::quoted(type) +
                                        "; known are none, linear, yarn and longrope"};
  }
  if (rope_dim > head_dim || rope_dim % 2 != 0) {
    return Error{Errc::malformed, file.name() + ": rotation of " + to_text(rope_dim) + " of " +
                                      to_text(head_dim) + " dimensions"};
  }
  c.rope_dim = rope_dim;
  c.rope_theta = theta;
  c.rope_scale = type == "none" ? 1.0f : factor;
  c.rope_magnitude = magnitude;
  c.n_original = n_original;
  if (type != "yarn") return ok();
  NIBBLE_TRY(beta_fast, gguf_positive_or(file, scaling + "yarn_beta_fast", 32.0f));
  NIBBLE_TRY(beta_slow, gguf_positive_or(file, scaling + "yarn_beta_slow", 1.0f));
  NIBBLE_TRY(weight, gguf_positive_or(file, scaling + "yarn_log_multiplier", 0.0f, true));
  if (!(theta > 1)) {
    return Error{Errc::malformed, file.name() + ": rope scaling 'yarn' with base " +
                                      to_text(static_cast<double>(theta))};
  }
  c.yarn = {static_cast<float>(n_original), beta_fast, beta_slow};
  const double stretch = static_cast<double>(factor);
  c.rope_magnitude =
      static_cast<float>(static_cast<double>(magnitude) * yarn_magnitude(stretch) /
                         (weight > 0 ? yarn_magnitude(stretch, static_cast<double>(weight)) : 1.0));
  return ok();
}

// Which layers have the sliding window: in each group of `period` layers all but the last. Files
// state the period, or the layers one by one. Errors: malformed.
inline Result<LayerValues<Index>> gguf_windows(const io::Gguf& file, const ModelConfig& c,
                                               std::uint64_t period) {
  const std::string key = c.architecture + ".attention.sliding_window_pattern";
  const auto n_layers = static_cast<std::size_t>(Index{c.n_layers});
  LayerValues<Index> windows(n_layers, {c.window});
  if (const io::GgufValue* const value = file.find(key); value != nullptr && value->is_array()) {
    NIBBLE_TRY(is_windowed, file.get_array<Scalar<bool>>(key));
    if (is_windowed.size() != n_layers) {
      return Error{Errc::malformed, file.name() + ": key '" + key + "' has " +
                                        to_text(is_windowed.size()) + " values for " +
                                        to_text(n_layers) + " layers"};
    }
    for (std::size_t i = 0; i < n_layers; ++i) {
      if (!is_windowed[i].value) windows[i].value = 0;
    }
    return windows;
  }
  if (file.find(key) != nullptr) {
    NIBBLE_TRY(stated, file.get_u64(key));
    period = stated;
  }
  // Period 0: every layer.
  for (std::size_t i = 0; period > 0 && i < n_layers; ++i) {
    if (i % period == period - 1) windows[i].value = 0;
  }
  return windows;
}

// Where layers without window see a stretched context: those with one keep the rotation of a
// context as it was, with its own base.
inline void set_window_rotation(DecoderConfig& c, float base) {
  for (const auto& [window] : c.windows) {
    c.rope_thetas.push_back({window > 0 ? base : c.rope_theta});
    c.rope_scales.push_back({window > 0 ? 1.0f : c.rope_scale});
    c.rope_magnitudes.push_back({window > 0 ? 1.0f : c.rope_magnitude});
  }
}

// Everything that decoders have in common. With sizes_may_differ, sizes may be stated for each
// layer: for llama(). Errors: those of transformer_config() and read_rope_config().
inline Result<DecoderConfig> decoder_config(
    const io::Gguf& file, std::string_view eps_key = "attention.layer_norm_rms_epsilon",
    bool sizes_may_differ = false) {
  LayerDims dims;
  NIBBLE_TRY(base, transformer_config(file, eps_key, sizes_may_differ ? &dims : nullptr));
  DecoderConfig c(std::move(base));
  for (const auto& [n] : dims.n_heads) c.q_widths.push_back({n * c.head_dim});
  for (const auto& [n] : dims.n_kv_heads) c.kv_widths.push_back({n * c.head_dim});
  c.layer_dims = std::move(dims);
  NIBBLE_CHECK(read_rope_config(file, c));
  NIBBLE_TRY(is_causal, file.get_bool_or(c.architecture + ".attention.causal", true));
  c.is_causal = is_causal;
  if (file.find(c.architecture + ".attention.scale") != nullptr) {
    NIBBLE_TRY(scale, gguf_positive_or(file, c.architecture + ".attention.scale", 1.0f));
    c.attention_scale = scale;
  }
  return c;
}

// The same for architectures whose expression is llama().
inline Result<DecoderConfig> llama_config(const io::Gguf& file) {
  return decoder_config(file, "attention.layer_norm_rms_epsilon", true);
}

}}  // namespace nibble::NIBBLE_ABI
