// SPDX-License-Identifier: Apache-2.0
//
// The architectures that are known as hub folders: each is a row of a table (its names there and in
// GGUF, how its tensors are named) and a function that sets its keys. The keys and the changes of
// tensors are those of llama.cpp's converter, so that files made here and there are alike.
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
#include "nibble/hub/made_tensors.hpp"
#include "nibble/hub/names.hpp"
#include "nibble/hub/rope.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

using KeysFunction = void(Keys&);
using PrepareFunction = Result<void>(const Shape&, WeightFiles&);
using Words = std::span<const std::string_view>;

struct Family {
  std::string_view architecture;  // general.architecture
  Words classes;                  // what config.json calls the model
  std::span<const Rename> names;
  Words activations;  // the values of hidden_act that are computed
  KeysFunction* keys;
  bool rotates_pairs = false;      // rope turns adjacent dimensions: rows of q and k change places
  bool adds_one_to_norms = false;  // hubs store the norms' weights minus 1
  PrepareFunction* prepare = nullptr;  // changes tensors before they get their names
};

namespace detail {

NIBBLE_HIDDEN inline constexpr std::string_view kSilu[] = {"silu", "swish"};
NIBBLE_HIDDEN inline constexpr std::string_view kRelu[] = {"relu"};
NIBBLE_HIDDEN inline constexpr std::string_view kGelu[] = {"gelu"};
NIBBLE_HIDDEN inline constexpr std::string_view kGeluTanh[] = {"gelu_pytorch_tanh", "gelu_new"};
NIBBLE_HIDDEN inline constexpr std::string_view kAnyGelu[] = {"gelu", "gelu_new", "gelu_fast",
                                                              "gelu_pytorch_tanh"};
NIBBLE_HIDDEN inline constexpr std::string_view kSwiglu[] = {"swiglu", "silu"};

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
  keys.set("rope.scaling.finetuned",
           config.string({"position_embedding_type"}, "nope") == "rope");
  keys.dimension("ssm.conv_kernel", {"mamba_d_conv"}, 4);
  const auto size = [&](Names names) {
    const std::uint32_t value = config.integer(names);
    if (value >= 1 && value <= 4096) return value;
    config.refuse(Errc::malformed, *names.begin(), "is " + to_text(value) + ", not in [1, 4096]");
    return std::uint32_t{1};
  };
  const std::uint32_t n_heads = size({"mamba_n_heads"});
  const std::uint32_t inner =
      config.integer({"mamba_expand"}, 2) * config.integer({"hidden_size"});
  const std::uint32_t head_dim =
      config.find("mamba_d_head") != nullptr && config.string({"mamba_d_head"}, "") != "auto"
          ? size({"mamba_d_head"})
          : inner / n_heads;
  delta_keys(keys, {1, size({"mamba_d_state"}), n_heads, head_dim});
  const io::JsonValue* const types = config.find("layer_types");
  const auto layers = types == nullptr ? std::span<const io::JsonValue>() : types->elements();
  std::vector<Scalar<std::uint32_t>> kv_heads(keys.shape.n_layers);
  for (std::size_t i = 0; i < kv_heads.size(); ++i) {
    const bool is_attention =
        i < layers.size() &&
        (layers[i].string() == "attention" || layers[i].string() == "full_attention");
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

NIBBLE_HIDDEN inline constexpr std::string_view kLlamaClasses[] = {
    "LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "LlamaModel"};
NIBBLE_HIDDEN inline constexpr std::string_view kMistral3Classes[] = {
    "Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kSmolLm3Classes[] = {"SmolLM3ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen2Classes[] = {"Qwen2ForCausalLM",
                                                                   "Qwen2Model"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen3Classes[] = {"Qwen3ForCausalLM",
                                                                   "Qwen3Model"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen2MoeClasses[] = {"Qwen2MoeForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen3MoeClasses[] = {"Qwen3MoeForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kMixtralClasses[] = {"MixtralForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemma2Classes[] = {"Gemma2ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemma3Classes[] = {
    "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kGemmaEmbeddingClasses[] = {"Gemma3TextModel"};
NIBBLE_HIDDEN inline constexpr std::string_view kPhi3Classes[] = {"Phi3ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kOlmo2Classes[] = {"Olmo2ForCausalLM",
                                                                   "Olmo3ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGraniteClasses[] = {"GraniteForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGraniteMoeClasses[] = {
    "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGpt2Classes[] = {"GPT2LMHeadModel"};
NIBBLE_HIDDEN inline constexpr std::string_view kGptNeoxClasses[] = {"GPTNeoXForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kLfm2Classes[] = {"Lfm2ForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kLfm2MoeClasses[] = {"Lfm2MoeForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen35Classes[] = {
    "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kQwen35MoeClasses[] = {
    "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"};
NIBBLE_HIDDEN inline constexpr std::string_view kGraniteHybridClasses[] = {
    "GraniteMoeHybridForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGptOssClasses[] = {"GptOssForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kOptClasses[] = {"OPTForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kBloomClasses[] = {"BloomForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kGptNeoClasses[] = {"GPTNeoForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kPhi2Classes[] = {"PhiForCausalLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kBertClasses[] = {"BertModel", "BertForMaskedLM"};
NIBBLE_HIDDEN inline constexpr std::string_view kNomicBertClasses[] = {"NomicBertModel"};

}  // namespace detail

NIBBLE_HIDDEN inline constexpr Family kFamilies[] = {
    {"llama", detail::kLlamaClasses, kLlamaNames, detail::kSilu, detail::llama_keys, true},
    {"mistral3", detail::kMistral3Classes, kLlamaNames, detail::kSilu, detail::mistral3_keys, true},
    {"smollm3", detail::kSmolLm3Classes, kLlamaNames, detail::kSilu, detail::smollm3_keys, true},
    {"granite", detail::kGraniteClasses, kLlamaNames, detail::kSilu, detail::granite_keys, true},
    {"granitemoe", detail::kGraniteMoeClasses, kLlamaNames, detail::kSilu, detail::granitemoe_keys,
     true},
    {"qwen2", detail::kQwen2Classes, kLlamaNames, detail::kSilu, detail::qwen_keys},
    {"qwen3", detail::kQwen3Classes, kLlamaNames, detail::kSilu, detail::qwen_keys},
    {"qwen2moe", detail::kQwen2MoeClasses, kLlamaNames, detail::kSilu, detail::qwen2moe_keys},
    {"qwen3moe", detail::kQwen3MoeClasses, kLlamaNames, detail::kSilu, detail::qwen_moe_keys},
    {"llama", detail::kMixtralClasses, kLlamaNames, detail::kSilu, detail::mixtral_keys, true},
    {"phi3", detail::kPhi3Classes, kLlamaNames, detail::kSilu, detail::phi3_keys},
    {"olmo2", detail::kOlmo2Classes, kGemmaNames, detail::kSilu, detail::olmo2_keys},
    {"gemma2", detail::kGemma2Classes, kGemmaNames, detail::kGeluTanh, detail::gemma2_keys, false,
     true},
    {"gemma3", detail::kGemma3Classes, kGemmaNames, detail::kGeluTanh, detail::gemma3_keys, false,
     true},
    {"gemma-embedding", detail::kGemmaEmbeddingClasses, kGemmaNames, detail::kGeluTanh,
     detail::gemma3_keys, false, true},
    {"lfm2", detail::kLfm2Classes, kLfm2Names, detail::kSilu, detail::lfm2_keys},
    {"lfm2moe", detail::kLfm2MoeClasses, kLfm2Names, detail::kSilu, detail::lfm2moe_keys},
    {"qwen35", detail::kQwen35Classes, kQwen35Names, detail::kSilu, detail::qwen35_keys, false,
     true, prepare_qwen35},
    {"qwen35moe", detail::kQwen35MoeClasses, kQwen35Names, detail::kSilu, detail::qwen35moe_keys,
     false, true, prepare_qwen35},
    {"granitehybrid", detail::kGraniteHybridClasses, kGraniteHybridNames, detail::kSilu,
     detail::granite_hybrid_keys, true, false, prepare_granite_hybrid},
    {"gpt-oss", detail::kGptOssClasses, kGptOssNames, detail::kSilu, detail::gpt_oss_keys, false,
     false, prepare_gpt_oss},
    {"gpt2", detail::kGpt2Classes, kGpt2Names, detail::kGeluTanh, detail::gpt2_keys},
    {"gptneox", detail::kGptNeoxClasses, kGptNeoxNames, detail::kAnyGelu, detail::gptneox_keys},
    {"opt", detail::kOptClasses, kOptNames, detail::kRelu, detail::opt_keys},
    {"bloom", detail::kBloomClasses, kBloomNames, detail::kGeluTanh, detail::bloom_keys},
    {"gptneo", detail::kGptNeoClasses, kGptNeoNames, detail::kGeluTanh, detail::gptneo_keys},
    {"phi2", detail::kPhi2Classes, kPhi2Names, detail::kGeluTanh, detail::phi2_keys},
    {"bert", detail::kBertClasses, kBertNames, detail::kGelu, detail::bert_keys},
    {"nomic-bert", detail::kNomicBertClasses, kNomicBertNames, detail::kSwiglu,
     detail::nomic_bert_keys},
};

// The family of a configuration. Errors: not_found (architectures is missing), unsupported (not in
// the table; an activation that is not computed; weights that were quantized).
inline Result<Family> family_of(Config& config) {
  const io::JsonValue* const list = config.root().find("architectures");
  if (list == nullptr || list->elements().empty() || list->elements()[0].string().empty()) {
    return Error{Errc::not_found, config.name() + ": key 'architectures' names no architecture"};
  }
  const std::string_view wanted = list->elements()[0].string();
  const Family* found = nullptr;
  std::string known;
  for (const Family& family : kFamilies) {
    for (const std::string_view name : family.classes) {
      if (name == wanted) found = &family;
    }
    known += (known.empty() ? "" : ", ") + std::string(family.classes[0]);
  }
  if (found == nullptr) {
    return Error{Errc::unsupported, config.name() + ": architecture " + io::quoted(wanted) +
                                        " is not supported as a folder; known are " + known};
  }
  const std::string_view activation = config.string(
      {"hidden_activation", "hidden_act", "activation_function"}, found->activations[0]);
  if (std::find(found->activations.begin(), found->activations.end(), activation) ==
      found->activations.end()) {
    config.refuse(Errc::unsupported, "hidden_act",
                  io::quoted(activation) + " is not computed for the architecture " +
                      std::string(found->architecture));
  }
  NIBBLE_CHECK(config.status());
  return Family(*found);
}

}}}  // namespace nibble::NIBBLE_ABI::hub
