// SPDX-License-Identifier: Apache-2.0
//
// From a folder's config.json to the keys of a GGUF file, family by family (families.hpp). The keys
// are those of llama.cpp's converter, so that files made here and there are alike.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/hub/rope.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub { namespace detail {

// Of all layers alike: Mistral 7B v0.1.
inline void window_of_all(Keys& keys) {
  if (!keys.config.has("sliding_window")) return;
  keys.integer("attention.sliding_window", {"sliding_window"});
}

inline void llama_keys(Keys& keys) {
  keys.dimensions();
  keys.rms_norm();
  keys.rope();
  window_of_all(keys);
}

inline void qwen_keys(Keys& keys) {
  keys.config.must_be("use_sliding_window", false, false);
  keys.dimensions();
  keys.rms_norm();
  keys.rope();
}

// How many experts there are, and how many a token uses.
inline void expert_keys(Keys& keys) {
  keys.dimension("expert_count", {"num_experts", "num_local_experts"});
  keys.dimension("expert_used_count", {"num_experts_per_tok"});
}

inline void qwen_moe_keys(Keys& keys) {
  Config& config = keys.config;
  qwen_keys(keys);
  expert_keys(keys);
  keys.dimension("expert_feed_forward_length", {"moe_intermediate_size"});
  keys.set("expert_weights_norm", config.boolean("norm_topk_prob", false));
  const io::JsonValue* const dense = config.find("mlp_only_layers");
  if (config.integer({"decoder_sparse_step"}, 1) != 1 ||
      (dense != nullptr && !dense->elements().empty())) {
    config.refuse(Errc::unsupported, "mlp_only_layers",
                  "or decoder_sparse_step ask for layers without experts");
  }
}
inline void qwen2moe_keys(Keys& keys) {
  qwen_moe_keys(keys);
  keys.dimension("expert_shared_feed_forward_length", {"shared_expert_intermediate_size"});
}

inline void mixtral_keys(Keys& keys) {
  llama_keys(keys);
  expert_keys(keys);
}

inline void smollm3_keys(Keys& keys) {
  keys.config.must_be("use_sliding_window", false, false);
  keys.dimensions();
  keys.rms_norm();
  keys.rope(2000000);
  const io::JsonValue* const rotated = keys.config.find("no_rope_layers");
  const auto layers = rotated == nullptr ? std::span<const io::JsonValue>() : rotated->elements();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if ((layers[i].number() != 0) == ((i + 1) % 4 != 0)) continue;
    keys.config.refuse(Errc::unsupported, "no_rope_layers", "names others than each fourth layer");
  }
}

inline void mistral3_keys(Keys& keys) {
  keys.dimensions();
  keys.rms_norm();
  window_of_all(keys);
  const Rope rope = keys.rope(10000, false, true);
  if (rope.type != "yarn") return;
  const auto number = [&](std::string_view name) {
    return keys.config.number_in(rope.scaling, name, 0.0);
  };
  keys.number("rope.scaling.yarn_log_multiplier", number("mscale_all_dim"));
  keys.number("attention.temperature_scale", number("llama_4_scaling_beta"));
}

inline void granite_keys(Keys& keys) {
  keys.dimensions();
  keys.rms_norm();
  keys.rope();
  keys.number("attention.scale", {"attention_multiplier"}, 1.0);
  keys.number("embedding_scale", {"embedding_multiplier"}, 1.0);
  keys.number("residual_scale", {"residual_multiplier"}, 1.0);
  keys.number("logit_scale", {"logits_scaling"}, 1.0);
}

inline void granitemoe_keys(Keys& keys) {
  granite_keys(keys);
  expert_keys(keys);
  const std::uint32_t shared = keys.config.integer({"shared_intermediate_size"}, 0);
  if (shared > 0) keys.set("expert_shared_feed_forward_length", shared);
}

inline void olmo2_keys(Keys& keys) {
  keys.dimensions();
  keys.rms_norm();
  keys.rope();
  if (!keys.config.has("sliding_window")) return;
  // OLMo 3: three layers with a window, one without.
  keys.integer("attention.sliding_window", {"sliding_window"});
  const std::uint32_t period = window_period(keys.config, 4);
  std::vector<Scalar<bool>> pattern(
      (std::min)(keys.config.integer({"num_hidden_layers"}), kMaxHubDim));
  for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i].value = (i + 1) % period != 0;
  keys.set_array("attention.sliding_window_pattern", std::span(values(pattern), pattern.size()));
}

// Gemma scales q by another number than the size of heads only in its 27B models.
inline void gemma_scale(Keys& keys) {
  const double dim = keys.config.number({"query_pre_attn_scalar"}, keys.shape.head_dim);
  if (!(dim > 0)) keys.config.refuse(Errc::malformed, "query_pre_attn_scalar", "is not positive");
  if (dim == keys.shape.head_dim) return;
  keys.set("attention.scale", 1 / libm::sqrt(static_cast<float>(dim)));
}

inline void gemma2_keys(Keys& keys) {
  keys.dimensions({.head_dim = 256, .n_ctx = 8192});
  keys.rms_norm(1e-6);
  keys.rope();
  keys.number("attn_logit_softcapping", {"attn_logit_softcapping"}, 50.0);
  keys.number("final_logit_softcapping", {"final_logit_softcapping"}, 30.0);
  keys.integer("attention.sliding_window", {"sliding_window"}, 4096);
  if (window_period(keys.config, 2) != 2) {
    keys.config.refuse(Errc::unsupported, "layer_types", "have a window not on each other layer");
  }
  gemma_scale(keys);
}

inline void gemma3_keys(Keys& keys) {
  keys.dimensions({.n_heads = 8, .n_kv_heads = 4, .head_dim = 256, .n_ctx = 131072});
  keys.rms_norm(1e-6);
  keys.rope(1000000);
  if (keys.config.has("attn_logit_softcapping")) {
    keys.config.refuse(Errc::unsupported, "attn_logit_softcapping", "is not what Gemma 3 has");
  }
  if (keys.config.has("final_logit_softcapping")) {
    keys.number("final_logit_softcapping", {"final_logit_softcapping"});
  }
  keys.integer("attention.sliding_window", {"sliding_window"}, 4096);
  const std::uint32_t period = window_period(keys.config, 6);
  if (period != 6) keys.set("attention.sliding_window_pattern", period);
  gemma_scale(keys);
}

// A number of the layers without window of Gemma 4, where they have one of their own.
inline std::uint32_t of_full_layers(Config& config, const std::vector<Scalar<bool>>& windows,
                                    std::string_view key, std::uint32_t otherwise) {
  const io::JsonValue* const all = config.find("per_layer_config");
  for (std::size_t i = 0; all != nullptr && i < windows.size(); ++i) {
    if (windows[i].value) continue;
    const io::JsonValue* const layer = all->find(to_text(i));
    const double value = config.number_in(layer, key, static_cast<double>(otherwise));
    if (value >= 1 && value <= kMaxHubDim) return static_cast<std::uint32_t>(value);
    config.refuse(Errc::malformed, "per_layer_config", "has a size out of range");
  }
  return otherwise;
}

inline void gemma4_keys(Keys& keys) {
  Config& config = keys.config;
  keys.dimensions({.head_dim = 256, .n_ctx = 131072});
  keys.rms_norm(1e-6);
  const std::size_t n_layers = keys.shape.n_layers;
  const std::uint32_t small_dim = keys.shape.head_dim, n_kv_heads = keys.shape.n_kv_heads;
  if (config.string({"use_bidirectional_attention"}, "") == "all") {
    config.refuse(Errc::unsupported, "use_bidirectional_attention", "is 'all'");
  }
  std::vector<Scalar<bool>> windows(n_layers);
  const io::JsonValue* const types = config.find("layer_types");
  const auto layers = types == nullptr ? std::span<const io::JsonValue>() : types->elements();
  for (std::size_t i = 0; i < n_layers; ++i) {
    const bool is_windowed = types == nullptr
                                 ? (i + 1) % 6 != 0
                                 : i < layers.size() && layers[i].string() == "sliding_attention";
    windows[i].value = is_windowed && i + 1 < n_layers;  // the last one never has a window
  }
  keys.integer("attention.sliding_window", {"sliding_window"}, 512);
  keys.set_array("attention.sliding_window_pattern", std::span(values(windows), n_layers));

  const std::uint32_t dim =
      of_full_layers(config, windows, "head_dim", config.integer({"global_head_dim"}, 512));
  for (const char* const key :
       {"attention.key_length", "attention.value_length", "rope.dimension_count"}) {
    keys.set(key, dim);
    keys.set(std::string(key) + "_swa", small_dim);
  }
  const bool has_global = config.boolean("attention_k_eq_v", false);
  const std::uint32_t full_kv_heads = of_full_layers(
      config, windows, "num_key_value_heads",
      has_global ? config.integer({"num_global_key_value_heads"}, n_kv_heads) : n_kv_heads);
  const std::uint32_t n_shared = config.integer({"num_kv_shared_layers"}, 0);
  const std::uint32_t width = config.integer({"intermediate_size"});
  const bool is_wide = config.boolean("use_double_wide_mlp", false) && width <= kMaxHubDim;
  std::vector<Scalar<std::uint32_t>> kv_heads(n_layers), widths(n_layers);
  for (std::size_t i = 0; i < n_layers; ++i) {
    kv_heads[i].value = windows[i].value ? n_kv_heads : full_kv_heads;
    widths[i].value = is_wide && i + n_shared >= n_layers ? 2 * width : width;
  }
  keys.set_array("attention.head_count_kv", std::span(values(kv_heads), n_layers));
  keys.set_array("feed_forward_length", std::span(values(widths), n_layers));
  keys.set("attention.shared_kv_layers", n_shared);
  keys.integer("embedding_length_per_layer_input", {"hidden_size_per_layer_input"}, 0);
  if (config.has("final_logit_softcapping")) {
    keys.number("final_logit_softcapping", {"final_logit_softcapping"});
  }

  // In full layers the first part of a head's dimensions rotates; the others' waves have no end.
  const Rope rope = read_rope(config);
  if (rope.type != "proportional" && rope.type != "default") {
    config.refuse(Errc::unsupported, "rope_type", io::quoted(rope.type) + " is not known here");
  }
  keys.number("rope.freq_base", rope.theta > 0 ? rope.theta : 1e6);
  keys.number("rope.freq_base_swa", rope.window_theta > 0 ? rope.window_theta : 1e4);
  if (!(rope.part >= 0 && rope.part <= 1)) {
    return config.refuse(Errc::malformed, "partial_rotary_factor", "is not from 0 to 1");
  }
  const std::uint32_t n_pairs = dim / 2;
  const auto n_rotated = static_cast<std::uint32_t>(rope.part * dim / 2);
  for (std::uint32_t i = 0; i < n_pairs; ++i) {
    keys.shape.rope_freqs.push_back({i < n_rotated ? 1.0f : 1e30f});
  }
  if (!config.boolean("enable_moe_block", false)) return;
  keys.dimension("expert_count", {"num_experts"});
  keys.dimension("expert_used_count", {"top_k_experts"});
  keys.dimension("expert_feed_forward_length", {"moe_intermediate_size"});
}

inline void phi3_keys(Keys& keys) {
  Config& config = keys.config;
  keys.dimensions();
  keys.rms_norm();
  const Rope rope = keys.rope(10000, true);
  keys.integer("attention.sliding_window", {"sliding_window"}, 0);
  const double n_ctx = config.number({"max_position_embeddings"});
  const double old_ctx = rope.old_ctx > 0 ? rope.old_ctx : n_ctx;
  if (!(old_ctx > 1) || old_ctx > 4294967295.0) {
    return config.refuse(Errc::malformed, "original_max_position_embeddings",
                         "is " + to_text(old_ctx));
  }
  keys.set("rope.scaling.original_context_length", static_cast<std::uint32_t>(old_ctx));
  if (rope.type != "longrope" && rope.type != "su") return;
  const auto n = static_cast<std::uint32_t>(rope.part * keys.shape.head_dim) / 2;
  keys.shape.long_factors = read_factors(config, rope, "long_factor", n);
  keys.shape.short_factors = read_factors(config, rope, "short_factor", n);
  const double growth = n_ctx > old_ctx ? 1 + libm::log(n_ctx / old_ctx) / libm::log(old_ctx) : 1;
  keys.set("rope.scaling.attn_factor", libm::sqrt(static_cast<float>(growth)));
}

inline void gpt2_keys(Keys& keys) {
  keys.config.must_be("scale_attn_weights", true, true);
  keys.config.must_be("scale_attn_by_inverse_layer_idx", false, false);
  keys.dimensions();
  keys.layer_norm();
}

inline void gptneox_keys(Keys& keys) {
  keys.dimensions();
  keys.layer_norm();
  keys.rope();
  keys.set("use_parallel_residual", keys.config.boolean("use_parallel_residual", true));
}

// The width of the feed-forward part is two thirds of what the configuration says, and a multiple,
// unless it says that it is not.
inline std::uint32_t lfm2_ffn_dim(Config& config) {
  const std::uint32_t stated = config.integer({"block_ff_dim", "intermediate_size"});
  if (!config.boolean("block_auto_adjust_ff_dim", true)) return stated;
  const double width = libm::floor(2 * static_cast<double>(stated) / 3);
  const double scaled = libm::floor(config.number({"block_ffn_dim_multiplier"}, 1.0) * width);
  const std::uint32_t multiple = config.integer({"block_multiple_of"}, 256);
  if (multiple == 0 || !(scaled >= 1 && scaled <= kMaxHubDim)) {
    config.refuse(Errc::malformed, "block_ff_dim", "does not give a width");
    return 1;
  }
  return (static_cast<std::uint32_t>(scaled) + multiple - 1) / multiple * multiple;
}

inline void lfm2_layers(Keys& keys) {
  Config& config = keys.config;
  config.must_be("conv_bias", false, false);
  keys.dimensions();
  keys.number("attention.layer_norm_rms_epsilon", {"norm_eps", "block_norm_eps"}, 1e-5);
  keys.rope(1000000);
  keys.dimension("shortconv.l_cache", {"conv_L_cache"}, 3);
  const io::JsonValue* const types = config.find("layer_types");
  const io::JsonValue* const attention = config.find("full_attn_idxs");
  if (types == nullptr && attention == nullptr) return;
  std::vector<Scalar<std::uint32_t>> kv_heads(
      (std::min)(config.integer({"num_hidden_layers"}), kMaxHubDim));
  for (std::size_t i = 0; i < kv_heads.size(); ++i) {
    bool is_attention = false;
    if (types != nullptr) {
      const auto all = types->elements();
      is_attention = i < all.size() && all[i].string() == "full_attention";
    } else {
      for (const io::JsonValue& index : attention->elements()) {
        is_attention = is_attention || index.number() == static_cast<double>(i);
      }
    }
    kv_heads[i].value = is_attention ? keys.shape.n_kv_heads : 0;
  }
  keys.set_array("attention.head_count_kv", std::span(values(kv_heads), kv_heads.size()));
}

inline void lfm2_keys(Keys& keys) {
  lfm2_layers(keys);
  keys.set("feed_forward_length", lfm2_ffn_dim(keys.config));
}
inline void lfm2moe_keys(Keys& keys) {
  lfm2_layers(keys);
  expert_keys(keys);
  keys.dimension("expert_feed_forward_length", {"moe_intermediate_size"});
  keys.set("expert_gating_func", std::uint32_t{2});  // sigmoid
  keys.set("expert_weights_norm", keys.config.boolean("norm_topk_prob", true));
  keys.number("expert_weights_scale", {"routed_scaling_factor"}, 1.0);
  keys.integer("leading_dense_block_count", {"num_dense_layers"}, 2);
}

// How many layers there are from one with full attention to the next. Errors: unsupported (others
// than each n-th have it).
inline std::uint32_t attention_interval(Config& config, std::uint32_t fallback) {
  const std::uint32_t stated = config.integer({"full_attention_interval"}, fallback);
  const io::JsonValue* const types = config.find("layer_types");
  if (types == nullptr) return stated;
  const auto layers = types->elements();
  for (std::uint32_t n = 1; n <= 64; ++n) {
    bool fits = true;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      fits = fits && (layers[i].string() == "full_attention") == ((i + 1) % n == 0);
    }
    if (fits) return n;
  }
  config.refuse(Errc::unsupported, "layer_types", "have full attention not in each n-th layer");
  return fallback;
}

// The heads of recurrent layers.
inline void delta_keys(Keys& keys, const DeltaShape& s) {
  keys.shape.delta = s;
  if (s.n_keys == 0 || s.n_values % s.n_keys != 0) {
    keys.config.refuse(Errc::malformed, "linear_num_value_heads",
                       "is " + to_text(s.n_values) + " for " + to_text(s.n_keys) + " of keys");
  }
  keys.set("ssm.state_size", s.key_dim);
  keys.set("ssm.group_count", s.n_keys);
  keys.set("ssm.time_step_rank", s.n_values);
  keys.set("ssm.inner_size", s.n_values * s.value_dim);
}

inline void qwen35_keys(Keys& keys) {
  Config& config = keys.config;
  config.must_be("attn_output_gate", true, true);
  config.must_be("attention_bias", false, false);
  keys.dimensions();
  keys.rms_norm(1e-6);
  keys.rope(10000000);
  keys.set("full_attention_interval", attention_interval(config, 4));
  keys.dimension("ssm.conv_kernel", {"linear_conv_kernel_dim"}, 4);
  const auto size = [&](std::string_view name) {
    const std::uint32_t value = config.integer({name});
    if (value >= 1 && value <= 4096) return value;
    config.refuse(Errc::malformed, name, "is " + to_text(value) + ", not in [1, 4096]");
    return std::uint32_t{1};
  };
  delta_keys(keys, {size("linear_num_key_heads"), size("linear_key_head_dim"),
                    size("linear_num_value_heads"), size("linear_value_head_dim")});
}
inline void qwen35moe_keys(Keys& keys) {
  qwen35_keys(keys);
  expert_keys(keys);
  keys.dimension("expert_feed_forward_length", {"moe_intermediate_size"});
  keys.dimension("expert_shared_feed_forward_length", {"shared_expert_intermediate_size"});
}

inline void granite_hybrid_keys(Keys& keys) {
  Config& config = keys.config;
  config.must_be("mamba_proj_bias", false, false);
  if (config.integer({"num_local_experts"}, 0) != 0) {
    config.refuse(Errc::unsupported, "num_local_experts", "asks for experts");
  }
  if (config.integer({"mamba_n_groups"}, 1) != 1) {
    config.refuse(Errc::unsupported, "mamba_n_groups", "is not 1");
  }
  granite_keys(keys);
  keys.dimension("feed_forward_length", {"shared_intermediate_size"});
  keys.set("rope.scaling.finetuned", config.string({"position_embedding_type"}, "nope") == "rope");
  keys.dimension("ssm.conv_kernel", {"mamba_d_conv"}, 4);
  const auto size = [&](Names names) {
    const std::uint32_t value = config.integer(names);
    if (value >= 1 && value <= 4096) return value;
    config.refuse(Errc::malformed, *names.begin(), "is " + to_text(value) + ", not in [1, 4096]");
    return std::uint32_t{1};
  };
  const std::uint32_t n_heads = size({"mamba_n_heads"});
  const std::uint32_t inner = config.integer({"mamba_expand"}, 2) * config.integer({"hidden_size"});
  const std::uint32_t head_dim =
      config.find("mamba_d_head") != nullptr && config.string({"mamba_d_head"}, "") != "auto"
          ? size({"mamba_d_head"})
          : inner / n_heads;
  delta_keys(keys, {1, size({"mamba_d_state"}), n_heads, head_dim});
  const io::JsonValue* const types = config.find("layer_types");
  const auto layers = types == nullptr ? std::span<const io::JsonValue>() : types->elements();
  std::vector<Scalar<std::uint32_t>> kv_heads(keys.shape.n_layers);
  for (std::size_t i = 0; i < kv_heads.size(); ++i) {
    const bool is_attention = i < layers.size() && (layers[i].string() == "attention" ||
                                                    layers[i].string() == "full_attention");
    kv_heads[i].value = is_attention ? keys.shape.n_kv_heads : 0;
  }
  keys.set_array("attention.head_count_kv", std::span(values(kv_heads), kv_heads.size()));
}

inline void gpt_oss_keys(Keys& keys) {
  Config& config = keys.config;
  keys.dimensions();
  keys.rms_norm();
  const Rope rope = keys.rope(150000);
  const io::JsonValue* const truncate =
      rope.scaling == nullptr ? nullptr : rope.scaling->find("truncate");
  if (rope.type == "yarn" && (truncate == nullptr || truncate->boolean())) {
    config.refuse(Errc::unsupported, "truncate", "is not false: ramps of whole pairs");
  }
  keys.integer("attention.sliding_window", {"sliding_window"});
  if (window_period(config, 2) != 2) {
    config.refuse(Errc::unsupported, "layer_types", "have a window not on each other layer");
  }
  expert_keys(keys);
  keys.dimension("expert_feed_forward_length", {"intermediate_size"});
}

inline void opt_keys(Keys& keys) {
  Config& config = keys.config;
  for (const char* const key :
       {"do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"}) {
    config.must_be(key, true, true);
  }
  config.must_be("_remove_final_layer_norm", false, false);
  keys.dimensions();
  const std::uint32_t dim = config.integer({"hidden_size"});
  if (config.integer({"word_embed_proj_dim"}, dim) != dim) {
    config.refuse(Errc::unsupported, "word_embed_proj_dim", "is not hidden_size");
  }
  keys.number("attention.layer_norm_epsilon", 1e-5);
}

inline void bloom_keys(Keys& keys) {
  keys.config.must_be("apply_residual_connection_post_layernorm", false, false);
  keys.dimensions({.n_ctx = keys.config.integer({"seq_length"}, 2048)});
  keys.layer_norm();
}

inline void gptneo_keys(Keys& keys) {
  Config& config = keys.config;
  keys.dimensions();
  keys.layer_norm();
  keys.number("attention.scale", 1.0);
  // Which layers have a window: in a list, or as [[kinds, how many times], ...].
  std::vector<Scalar<bool>> pattern;
  const std::size_t n_layers = keys.shape.n_layers;
  const auto add = [&](const io::JsonValue& kinds) {
    for (const io::JsonValue& kind : kinds.elements()) {
      if (kind.string() != "local" && kind.string() != "global") {
        config.refuse(Errc::unsupported, "attention_types",
                      "has other kinds than global and local");
      }
      if (pattern.size() <= n_layers) pattern.push_back({kind.string() == "local"});
    }
  };
  if (const io::JsonValue* const layers = config.find("attention_layers")) {
    add(*layers);
  } else if (const io::JsonValue* const types = config.find("attention_types")) {
    for (const io::JsonValue& type : types->elements()) {
      if (type.elements().size() != 2) continue;
      const double times = type.elements()[1].number();
      for (double i = 0; i < times && pattern.size() <= n_layers; ++i) {
        const std::size_t before = pattern.size();
        add(type.elements()[0]);
        if (pattern.size() == before) break;
      }
    }
  }
  if (pattern.size() != n_layers) {
    config.refuse(Errc::malformed, "attention_types",
                  "is not for " + to_text(n_layers) + " layers");
  }
  keys.integer("attention.sliding_window", {"window_size"}, 256);
  keys.set_array("attention.sliding_window_pattern", std::span(values(pattern), pattern.size()));
}

inline void phi2_keys(Keys& keys) {
  keys.config.must_be("qk_layernorm", false, false);
  keys.dimensions();
  keys.layer_norm();
  keys.rope();
}

inline void bert_keys(Keys& keys) {
  Config& config = keys.config;
  if (config.string({"position_embedding_type"}, "absolute") != "absolute") {
    config.refuse(Errc::unsupported, "position_embedding_type", "is not 'absolute'");
  }
  config.must_be("is_decoder", false, false);
  keys.dimensions();
  keys.layer_norm();
  keys.set("attention.causal", false);
}

inline void nomic_bert_keys(Keys& keys) {
  Config& config = keys.config;
  for (const char* const key : {"prenorm", "causal", "qkv_proj_bias", "mlp_fc1_bias",
                                "mlp_fc2_bias", "rotary_emb_interleaved"}) {
    config.must_be(key, false, false);
  }
  if (config.integer({"moe_every_n_layers"}, 0) != 0) {
    config.refuse(Errc::unsupported, "moe_every_n_layers", "asks for experts");
  }
  if (config.number({"rotary_emb_fraction"}, 1.0) != 1) {
    config.refuse(Errc::unsupported, "rotary_emb_fraction", "is not 1");
  }
  keys.dimensions();
  keys.layer_norm();
  keys.rope(1000);
  // Positions beyond those of training need scaling that files do not describe.
  const std::uint32_t trained = config.integer({"max_trained_positions"}, 2048);
  if (trained < config.integer({"n_positions", "max_position_embeddings"})) {
    keys.set("context_length", trained);
  }
  keys.set("attention.causal", false);
}

}}}}  // namespace nibble::NIBBLE_ABI::hub::detail
