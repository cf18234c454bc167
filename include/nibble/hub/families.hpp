// SPDX-License-Identifier: Apache-2.0
//
// The architectures that are known as hub folders: each is a row of a table (its names there and in
// GGUF, how its tensors are named) and a function that sets its keys. The keys and the changes of
// tensors are those of llama.cpp's converter, so that files made here and there are alike.
#pragma once

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
#include "nibble/hub/names.hpp"
#include "nibble/hub/rope.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

using KeysFunction = Result<void>(Keys&);
using Words = std::span<const std::string_view>;

struct Family {
  std::string_view architecture;  // general.architecture
  Words classes;                  // what config.json calls the model
  std::span<const Rename> names;
  Words activations;  // the values of hidden_act that are computed
  KeysFunction* keys;
  bool rotates_pairs = false;     // rope turns adjacent dimensions: rows of q and k change places
  bool adds_one_to_norms = false;  // hubs store the norms' weights minus 1
};

namespace detail {

inline constexpr std::string_view kSilu[] = {"silu", "swish"};
inline constexpr std::string_view kGelu[] = {"gelu"};
inline constexpr std::string_view kGeluTanh[] = {"gelu_pytorch_tanh", "gelu_new"};
inline constexpr std::string_view kAnyGelu[] = {"gelu", "gelu_new", "gelu_fast",
                                                "gelu_pytorch_tanh"};
inline constexpr std::string_view kSwiglu[] = {"swiglu"};

// Refuses a flag that asks for what is not computed.
inline Result<void> require(const Config& config, std::string_view key, bool wanted,
                            bool fallback) {
  NIBBLE_TRY(value, config.boolean(key, fallback));
  if (value == wanted) return ok();
  return config.unsupported(key, value ? "true is not supported" : "false is not supported");
}

inline Result<void> llama_keys(Keys& keys) {
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_CHECK(rope_keys(keys));
  if (keys.config().has({"sliding_window"})) {  // Mistral 7B v0.1
    NIBBLE_CHECK(keys.integer("attention.sliding_window", {"sliding_window"}));
  }
  return ok();
}

inline Result<void> qwen_keys(Keys& keys) {
  NIBBLE_CHECK(require(keys.config(), "use_sliding_window", false, false));
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_CHECK(rope_keys(keys));
  return ok();
}

inline Result<void> smollm3_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_CHECK(require(config, "use_sliding_window", false, false));
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_CHECK(rope_keys(keys, 2000000));
  if (const io::JsonValue* const rotated = config.find("no_rope_layers")) {
    const auto layers = rotated->elements();
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if ((layers[i].number() != 0) == ((i + 1) % 4 != 0)) continue;
      return config.unsupported("no_rope_layers", "other layers than each fourth are not rotated");
    }
  }
  return ok();
}

inline Result<void> mistral3_keys(Keys& keys) {
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_TRY(rope, rope_keys(keys));
  if (rope.type == "yarn") {
    NIBBLE_TRY(mscale, keys.config().number_in(rope.scaling, "mscale_all_dim", 0.0));
    NIBBLE_TRY(beta, keys.config().number_in(rope.scaling, "llama_4_scaling_beta", 0.0));
    keys.set("rope.scaling.yarn_log_multiplier", mscale);
    keys.set("attention.temperature_scale", beta);
  }
  return ok();
}

inline Result<void> granite_keys(Keys& keys) {
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_CHECK(rope_keys(keys));
  NIBBLE_CHECK(keys.number("attention.scale", {"attention_multiplier"}, 1.0));
  NIBBLE_CHECK(keys.number("embedding_scale", {"embedding_multiplier"}, 1.0));
  NIBBLE_CHECK(keys.number("residual_scale", {"residual_multiplier"}, 1.0));
  NIBBLE_CHECK(keys.number("logit_scale", {"logits_scaling"}, 1.0));
  return ok();
}

inline Result<void> olmo2_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_CHECK(rope_keys(keys));
  if (!config.has({"sliding_window"})) return ok();
  // OLMo 3: three layers with a window, one without.
  NIBBLE_CHECK(keys.integer("attention.sliding_window", {"sliding_window"}));
  NIBBLE_TRY(n_layers, config.integer({"num_hidden_layers"}));
  const io::JsonValue* const types = config.find("layer_types");
  if (types != nullptr && types->elements().size() != n_layers) {
    return config.wrong({"layer_types"}, "has not one entry for each layer");
  }
  if (n_layers > kMaxHubDim) return config.wrong({"num_hidden_layers"}, "is too large");
  std::vector<Scalar<bool>> pattern;
  for (std::uint32_t i = 0; i < n_layers; ++i) {
    const bool has_window = types == nullptr
                                ? (i + 1) % 4 != 0
                                : types->elements()[i].string() == "sliding_attention";
    pattern.push_back({has_window});
  }
  keys.set_array("attention.sliding_window_pattern", std::span(values(pattern), pattern.size()));
  return ok();
}

// Gemma scales q by another number than the size of heads only in its 27B models.
inline Result<void> gemma_scale_keys(Keys& keys) {
  NIBBLE_TRY(scalar, keys.config().number({"query_pre_attn_scalar"}, keys.shape.head_dim));
  if (!(scalar > 0)) return keys.config().wrong({"query_pre_attn_scalar"}, "is not positive");
  if (scalar != keys.shape.head_dim) {
    keys.set("attention.scale", 1 / static_cast<double>(libm::sqrt(static_cast<float>(scalar))));
  }
  return ok();
}

inline Result<void> gemma2_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_CHECK(dimension_keys(keys, {.head_dim = 256, .n_ctx = 8192}));
  NIBBLE_CHECK(rms_keys(keys, 1e-6));
  NIBBLE_CHECK(rope_keys(keys));
  NIBBLE_CHECK(keys.number("attn_logit_softcapping", {"attn_logit_softcapping"}, 50.0));
  NIBBLE_CHECK(keys.number("final_logit_softcapping", {"final_logit_softcapping"}, 30.0));
  NIBBLE_CHECK(keys.integer("attention.sliding_window", {"sliding_window"}, 4096));
  NIBBLE_TRY(period, window_period(config, 2));
  if (period != 2) return config.unsupported("layer_types", "a window not on each other layer");
  return gemma_scale_keys(keys);
}

inline Result<void> gemma3_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_CHECK(dimension_keys(
      keys, {.n_heads = 8, .n_kv_heads = 4, .head_dim = 256, .n_ctx = 131072}));
  NIBBLE_CHECK(rms_keys(keys, 1e-6));
  NIBBLE_CHECK(rope_keys(keys, 1000000));
  if (config.has({"attn_logit_softcapping"})) {
    return config.unsupported("attn_logit_softcapping", "Gemma 3 has none");
  }
  if (config.has({"final_logit_softcapping"})) {
    NIBBLE_CHECK(keys.number("final_logit_softcapping", {"final_logit_softcapping"}));
  }
  NIBBLE_CHECK(keys.integer("attention.sliding_window", {"sliding_window"}, 4096));
  NIBBLE_TRY(period, window_period(config, 6));
  if (period != 6) keys.set("attention.sliding_window_pattern", period);
  return gemma_scale_keys(keys);
}

inline Result<void> phi3_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(rms_keys(keys));
  NIBBLE_TRY(rope, rope_keys(keys));
  NIBBLE_CHECK(keys.integer("attention.sliding_window", {"sliding_window"}, 0));
  NIBBLE_TRY(n_ctx, config.number({"max_position_embeddings"}));
  NIBBLE_TRY(stated, config.number({"original_max_position_embeddings"}, n_ctx));
  NIBBLE_TRY(old_ctx, config.number_in(rope.scaling, "original_max_position_embeddings", stated));
  if (!(old_ctx > 1) || old_ctx > kMaxInteger) {
    return config.wrong({"original_max_position_embeddings"}, "is " + to_text(old_ctx));
  }
  keys.set("rope.scaling.original_context_length", static_cast<std::uint32_t>(old_ctx));
  if (rope.type != "longrope" && rope.type != "su") return ok();
  NIBBLE_TRY(part, config.number({"partial_rotary_factor"}, 1.0));
  NIBBLE_TRY(rotated, config.number_in(rope.scaling, "partial_rotary_factor", part));
  const auto n = static_cast<std::uint32_t>(rotated * keys.shape.head_dim) / 2;
  NIBBLE_TRY(long_factors, read_factors(config, rope, "long_factor", n));
  NIBBLE_TRY(short_factors, read_factors(config, rope, "short_factor", n));
  keys.shape.long_factors = std::move(long_factors);
  keys.shape.short_factors = std::move(short_factors);
  const double scale = n_ctx / old_ctx;
  const double growth = scale > 1 ? 1 + libm::log(scale) / libm::log(old_ctx) : 1;
  keys.set("rope.scaling.attn_factor",
           static_cast<double>(libm::sqrt(static_cast<float>(growth))));
  return ok();
}

inline Result<void> gpt2_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_CHECK(require(config, "scale_attn_weights", true, true));
  NIBBLE_CHECK(require(config, "scale_attn_by_inverse_layer_idx", false, false));
  NIBBLE_CHECK(dimension_keys(keys));
  return layer_norm_keys(keys);
}

inline Result<void> gptneox_keys(Keys& keys) {
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(layer_norm_keys(keys));
  NIBBLE_CHECK(rope_keys(keys));
  NIBBLE_TRY(parallel, keys.config().boolean("use_parallel_residual", true));
  keys.set("use_parallel_residual", parallel);
  return ok();
}

inline Result<void> bert_keys(Keys& keys) {
  const Config& config = keys.config();
  NIBBLE_TRY(kind, config.string({"position_embedding_type"}, "absolute"));
  if (kind != "absolute") {
    return config.unsupported("position_embedding_type", io::quoted(kind) + " is not supported");
  }
  NIBBLE_CHECK(require(config, "is_decoder", false, false));
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(layer_norm_keys(keys));
  keys.set("attention.causal", false);
  return ok();
}

inline Result<void> nomic_bert_keys(Keys& keys) {
  const Config& config = keys.config();
  for (const char* const key : {"prenorm", "causal", "qkv_proj_bias", "mlp_fc1_bias",
                                "mlp_fc2_bias", "rotary_emb_interleaved"}) {
    NIBBLE_CHECK(require(config, key, false, false));
  }
  if (config.has({"moe_every_n_layers"})) {
    NIBBLE_TRY(moe, config.integer({"moe_every_n_layers"}));
    if (moe != 0) return config.unsupported("moe_every_n_layers", "experts are not supported");
  }
  NIBBLE_TRY(part, config.number({"rotary_emb_fraction"}, 1.0));
  if (part != 1) return config.unsupported("rotary_emb_fraction", "only 1 is supported");
  NIBBLE_CHECK(dimension_keys(keys));
  NIBBLE_CHECK(layer_norm_keys(keys));
  NIBBLE_CHECK(rope_keys(keys, 1000));
  // Positions beyond those of training need scaling that files do not describe.
  NIBBLE_TRY(n_ctx, config.integer({"n_positions", "max_position_embeddings"}));
  NIBBLE_TRY(trained, config.integer({"max_trained_positions"}, 2048));
  if (trained < n_ctx) keys.set("context_length", trained);
  keys.set("attention.causal", false);
  return ok();
}

inline constexpr std::string_view kLlamaClasses[] = {"LlamaForCausalLM", "LLaMAForCausalLM",
                                                     "MistralForCausalLM", "LlamaModel"};
inline constexpr std::string_view kMistral3Classes[] = {"Ministral3ForCausalLM",
                                                        "Mistral3ForConditionalGeneration"};
inline constexpr std::string_view kSmolLm3Classes[] = {"SmolLM3ForCausalLM"};
inline constexpr std::string_view kQwen2Classes[] = {"Qwen2ForCausalLM", "Qwen2Model"};
inline constexpr std::string_view kQwen3Classes[] = {"Qwen3ForCausalLM", "Qwen3Model"};
inline constexpr std::string_view kGemma2Classes[] = {"Gemma2ForCausalLM"};
inline constexpr std::string_view kGemma3Classes[] = {"Gemma3ForCausalLM",
                                                      "Gemma3ForConditionalGeneration"};
inline constexpr std::string_view kGemmaEmbeddingClasses[] = {"Gemma3TextModel"};
inline constexpr std::string_view kPhi3Classes[] = {"Phi3ForCausalLM"};
inline constexpr std::string_view kOlmo2Classes[] = {"Olmo2ForCausalLM", "Olmo3ForCausalLM"};
inline constexpr std::string_view kGraniteClasses[] = {"GraniteForCausalLM"};
inline constexpr std::string_view kGpt2Classes[] = {"GPT2LMHeadModel"};
inline constexpr std::string_view kGptNeoxClasses[] = {"GPTNeoXForCausalLM"};
inline constexpr std::string_view kBertClasses[] = {"BertModel", "BertForMaskedLM"};
inline constexpr std::string_view kNomicBertClasses[] = {"NomicBertModel"};

}  // namespace detail

NIBBLE_HIDDEN inline constexpr Family kFamilies[] = {
    {"llama", detail::kLlamaClasses, kLlamaNames, detail::kSilu, detail::llama_keys, true},
    {"mistral3", detail::kMistral3Classes, kLlamaNames, detail::kSilu, detail::mistral3_keys, true},
    {"smollm3", detail::kSmolLm3Classes, kLlamaNames, detail::kSilu, detail::smollm3_keys, true},
    {"granite", detail::kGraniteClasses, kLlamaNames, detail::kSilu, detail::granite_keys, true},
    {"qwen2", detail::kQwen2Classes, kLlamaNames, detail::kSilu, detail::qwen_keys},
    {"qwen3", detail::kQwen3Classes, kLlamaNames, detail::kSilu, detail::qwen_keys},
    {"phi3", detail::kPhi3Classes, kLlamaNames, detail::kSilu, detail::phi3_keys},
    {"olmo2", detail::kOlmo2Classes, kGemmaNames, detail::kSilu, detail::olmo2_keys},
    {"gemma2", detail::kGemma2Classes, kGemmaNames, detail::kGeluTanh, detail::gemma2_keys, false,
     true},
    {"gemma3", detail::kGemma3Classes, kGemmaNames, detail::kGeluTanh, detail::gemma3_keys, false,
     true},
    {"gemma-embedding", detail::kGemmaEmbeddingClasses, kGemmaNames, detail::kGeluTanh,
     detail::gemma3_keys, false, true},
    {"gpt2", detail::kGpt2Classes, kGpt2Names, detail::kGeluTanh, detail::gpt2_keys},
    {"gptneox", detail::kGptNeoxClasses, kGptNeoxNames, detail::kAnyGelu, detail::gptneox_keys},
    {"bert", detail::kBertClasses, kBertNames, detail::kGelu, detail::bert_keys},
    {"nomic-bert", detail::kNomicBertClasses, kNomicBertNames, detail::kSwiglu,
     detail::nomic_bert_keys},
};

// The family of a configuration. Errors: not_found (architectures is missing), unsupported (not in
// the table; an activation that is not computed; weights that were quantized).
inline Result<Family> family_of(const Config& config) {
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
  if (config.has({"quantization_config"})) {
    return config.unsupported("quantization_config",
                              "the weights are quantized for other programs; take the original");
  }
  NIBBLE_TRY(activation, config.string({"hidden_activation", "hidden_act", "activation_function"},
                                       found->activations[0]));
  for (const std::string_view name : found->activations) {
    if (name == activation) return Family(*found);
  }
  return config.unsupported("hidden_act", "activation " + io::quoted(activation) +
                                              " is not computed for " +
                                              std::string(found->architecture));
}

}}}  // namespace nibble::NIBBLE_ABI::hub
