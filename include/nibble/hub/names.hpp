// SPDX-License-Identifier: Apache-2.0
//
// The names of tensors: those of model hubs (PyTorch modules) and those of GGUF. '#' is the number
// of a layer, '@' that of an expert.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/core/text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

// What a tensor's elements need besides another name.
enum class Change : std::uint8_t {
  none,
  q_rows,      // rows of q, if the architecture rotates adjacent pairs: hubs store halves
  k_rows,      // the same for k
  transposed,  // stored (inputs, outputs)
  positions,   // the first two rows are no positions
  qkv_rows,    // q, k and v of each head together: become all of q, all of k, all of v
  gate_up,     // the rows of gate, then those of up; of experts, of each of them. '*' of the name
               // becomes "gate" and "up"
  taps,        // of a convolution: (channels, 1, taps) become (channels, taps)
};

struct Rename {
  std::string_view from;
  std::string_view to;
  Change change = Change::none;
};

// Norms before attention and feed-forward.
NIBBLE_HIDDEN inline constexpr Rename kLlamaNames[] = {
    {"embed_tokens", "token_embd"},
    {"norm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q", Change::q_rows},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k", Change::k_rows},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.o_proj", "blk.#.attn_output"},
    {"layers.#.self_attn.q_norm", "blk.#.attn_q_norm"},
    {"layers.#.self_attn.k_norm", "blk.#.attn_k_norm"},
    {"layers.#.post_attention_layernorm", "blk.#.ffn_norm"},
    {"layers.#.mlp.gate_proj", "blk.#.ffn_gate"},
    {"layers.#.mlp.up_proj", "blk.#.ffn_up"},
    {"layers.#.mlp.down_proj", "blk.#.ffn_down"},
    // Phi-3: products of the same input in one matrix.
    {"layers.#.self_attn.qkv_proj", "blk.#.attn_qkv"},
    {"layers.#.mlp.gate_up_proj", "blk.#.ffn_up"},
    // Experts: Qwen, Mixtral.
    {"layers.#.mlp.gate", "blk.#.ffn_gate_inp"},
    {"layers.#.mlp.experts.@.gate_proj", "blk.#.ffn_gate.@"},
    {"layers.#.mlp.experts.@.up_proj", "blk.#.ffn_up.@"},
    {"layers.#.mlp.experts.@.down_proj", "blk.#.ffn_down.@"},
    {"layers.#.mlp.shared_expert_gate", "blk.#.ffn_gate_inp_shexp"},
    {"layers.#.mlp.shared_expert.gate_proj", "blk.#.ffn_gate_shexp"},
    {"layers.#.mlp.shared_expert.up_proj", "blk.#.ffn_up_shexp"},
    {"layers.#.mlp.shared_expert.down_proj", "blk.#.ffn_down_shexp"},
    {"layers.#.block_sparse_moe.gate", "blk.#.ffn_gate_inp"},
    {"layers.#.block_sparse_moe.experts.@.w1", "blk.#.ffn_gate.@"},
    {"layers.#.block_sparse_moe.experts.@.w3", "blk.#.ffn_up.@"},
    {"layers.#.block_sparse_moe.experts.@.w2", "blk.#.ffn_down.@"},
    // Granite.
    {"layers.#.block_sparse_moe.router.layer", "blk.#.ffn_gate_inp"},
    {"layers.#.block_sparse_moe.input_linear", "blk.#.ffn_*_exps", Change::gate_up},
    {"layers.#.block_sparse_moe.output_linear", "blk.#.ffn_down_exps"},
    {"layers.#.shared_mlp.input_linear", "blk.#.ffn_*_shexp", Change::gate_up},
    {"layers.#.shared_mlp.output_linear", "blk.#.ffn_down_shexp"},
};

// Norms behind attention and feed-forward, too, or only there.
NIBBLE_HIDDEN inline constexpr Rename kGemmaNames[] = {
    {"embed_tokens", "token_embd"},
    {"norm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.o_proj", "blk.#.attn_output"},
    {"layers.#.self_attn.q_norm", "blk.#.attn_q_norm"},
    {"layers.#.self_attn.k_norm", "blk.#.attn_k_norm"},
    {"layers.#.post_attention_layernorm", "blk.#.post_attention_norm"},
    {"layers.#.pre_feedforward_layernorm", "blk.#.ffn_norm"},
    {"layers.#.mlp.gate_proj", "blk.#.ffn_gate"},
    {"layers.#.mlp.up_proj", "blk.#.ffn_up"},
    {"layers.#.mlp.down_proj", "blk.#.ffn_down"},
    {"layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm"},
    // Gemma 4: inputs of layers, experts beside the feed-forward part.
    {"embed_tokens_per_layer", "per_layer_token_embd"},
    {"per_layer_model_projection", "per_layer_model_proj"},
    {"per_layer_projection_norm", "per_layer_proj_norm"},
    {"layers.#.per_layer_input_gate", "blk.#.inp_gate"},
    {"layers.#.per_layer_projection", "blk.#.proj"},
    {"layers.#.post_per_layer_input_norm", "blk.#.post_norm"},
    {"layers.#.layer_scalar", "blk.#.layer_output_scale.weight"},
    {"layers.#.router.proj", "blk.#.ffn_gate_inp"},
    {"layers.#.router.scale", "blk.#.ffn_gate_inp.scale"},
    {"layers.#.router.per_expert_scale", "blk.#.ffn_down_exps.scale"},
    {"layers.#.experts.gate_up_proj", "blk.#.ffn_*_exps.weight", Change::gate_up},
    {"layers.#.experts.down_proj", "blk.#.ffn_down_exps.weight"},
    {"layers.#.post_feedforward_layernorm_1", "blk.#.post_ffw_norm_1"},
    {"layers.#.post_feedforward_layernorm_2", "blk.#.post_ffw_norm_2"},
    {"layers.#.pre_feedforward_layernorm_2", "blk.#.pre_ffw_norm_2"},
    // EmbeddingGemma: products after pooling.
    {"dense_2.linear", "dense_2"},
    {"dense_3.linear", "dense_3"},
};

NIBBLE_HIDDEN inline constexpr Rename kGpt2Names[] = {
    {"wte", "token_embd"},
    {"wpe", "position_embd"},
    {"ln_f", "output_norm"},
    {"lm_head", "output"},
    {"h.#.ln_1", "blk.#.attn_norm"},
    {"h.#.attn.c_attn", "blk.#.attn_qkv", Change::transposed},
    {"h.#.attn.c_proj", "blk.#.attn_output", Change::transposed},
    {"h.#.ln_2", "blk.#.ffn_norm"},
    {"h.#.mlp.c_fc", "blk.#.ffn_up", Change::transposed},
    {"h.#.mlp.c_proj", "blk.#.ffn_down", Change::transposed},
};

NIBBLE_HIDDEN inline constexpr Rename kGptNeoxNames[] = {
    {"embed_in", "token_embd"},
    {"final_layer_norm", "output_norm"},
    {"embed_out", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.attention.query_key_value", "blk.#.attn_qkv", Change::qkv_rows},
    {"layers.#.attention.dense", "blk.#.attn_output"},
    {"layers.#.post_attention_layernorm", "blk.#.ffn_norm"},
    {"layers.#.mlp.dense_h_to_4h", "blk.#.ffn_up"},
    {"layers.#.mlp.dense_4h_to_h", "blk.#.ffn_down"},
};

NIBBLE_HIDDEN inline constexpr Rename kLfm2Names[] = {
    {"embed_tokens", "token_embd"},
    {"embedding_norm", "token_embd_norm"},
    {"lm_head", "output"},
    {"layers.#.operator_norm", "blk.#.attn_norm"},
    {"layers.#.conv.in_proj", "blk.#.shortconv.in_proj"},
    {"layers.#.conv.conv", "blk.#.shortconv.conv", Change::taps},
    {"layers.#.conv.out_proj", "blk.#.shortconv.out_proj"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.out_proj", "blk.#.attn_output"},
    {"layers.#.self_attn.q_layernorm", "blk.#.attn_q_norm"},
    {"layers.#.self_attn.k_layernorm", "blk.#.attn_k_norm"},
    {"layers.#.ffn_norm", "blk.#.ffn_norm"},
    {"layers.#.feed_forward.w1", "blk.#.ffn_gate"},
    {"layers.#.feed_forward.w3", "blk.#.ffn_up"},
    {"layers.#.feed_forward.w2", "blk.#.ffn_down"},
    // With experts.
    {"layers.#.feed_forward.gate", "blk.#.ffn_gate_inp"},
    {"layers.#.feed_forward.expert_bias", "blk.#.exp_probs_b.bias"},
    {"layers.#.feed_forward.experts.@.w1", "blk.#.ffn_gate.@"},
    {"layers.#.feed_forward.experts.@.w3", "blk.#.ffn_up.@"},
    {"layers.#.feed_forward.experts.@.w2", "blk.#.ffn_down.@"},
};

NIBBLE_HIDDEN inline constexpr Rename kQwen35Names[] = {
    {"embed_tokens", "token_embd"},
    {"norm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.post_attention_layernorm", "blk.#.post_attention_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.o_proj", "blk.#.attn_output"},
    {"layers.#.self_attn.q_norm", "blk.#.attn_q_norm"},
    {"layers.#.self_attn.k_norm", "blk.#.attn_k_norm"},
    {"layers.#.linear_attn.in_proj_qkv", "blk.#.attn_qkv"},
    {"layers.#.linear_attn.in_proj_z", "blk.#.attn_gate"},
    {"layers.#.linear_attn.in_proj_a", "blk.#.ssm_alpha"},
    {"layers.#.linear_attn.in_proj_b", "blk.#.ssm_beta"},
    {"layers.#.linear_attn.conv1d", "blk.#.ssm_conv1d", Change::taps},
    {"layers.#.linear_attn.A_log", "blk.#.ssm_a"},
    {"layers.#.linear_attn.dt_bias", "blk.#.ssm_dt.bias"},
    {"layers.#.linear_attn.norm", "blk.#.ssm_norm"},
    {"layers.#.linear_attn.out_proj", "blk.#.ssm_out"},
    {"layers.#.mlp.gate_proj", "blk.#.ffn_gate"},
    {"layers.#.mlp.up_proj", "blk.#.ffn_up"},
    {"layers.#.mlp.down_proj", "blk.#.ffn_down"},
    // With experts.
    {"layers.#.mlp.gate", "blk.#.ffn_gate_inp"},
    {"layers.#.mlp.experts.gate_up_proj", "blk.#.ffn_*_exps.weight", Change::gate_up},
    {"layers.#.mlp.experts.down_proj", "blk.#.ffn_down_exps.weight"},
    {"layers.#.mlp.experts.@.gate_proj", "blk.#.ffn_gate.@"},
    {"layers.#.mlp.experts.@.up_proj", "blk.#.ffn_up.@"},
    {"layers.#.mlp.experts.@.down_proj", "blk.#.ffn_down.@"},
    {"layers.#.mlp.shared_expert_gate", "blk.#.ffn_gate_inp_shexp"},
    {"layers.#.mlp.shared_expert.gate_proj", "blk.#.ffn_gate_shexp"},
    {"layers.#.mlp.shared_expert.up_proj", "blk.#.ffn_up_shexp"},
    {"layers.#.mlp.shared_expert.down_proj", "blk.#.ffn_down_shexp"},
};

NIBBLE_HIDDEN inline constexpr Rename kGraniteHybridNames[] = {
    {"embed_tokens", "token_embd"},
    {"norm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.post_attention_layernorm", "blk.#.ffn_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q", Change::q_rows},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k", Change::k_rows},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.o_proj", "blk.#.attn_output"},
    {"layers.#.mamba.in_proj", "blk.#.ssm_in"},
    {"layers.#.mamba.conv1d", "blk.#.ssm_conv1d", Change::taps},
    {"layers.#.mamba.A_log", "blk.#.ssm_a"},
    {"layers.#.mamba.D", "blk.#.ssm_d"},
    {"layers.#.mamba.dt_bias", "blk.#.ssm_dt.bias"},
    {"layers.#.mamba.norm", "blk.#.ssm_norm"},
    {"layers.#.mamba.out_proj", "blk.#.ssm_out"},
    {"layers.#.shared_mlp.input_linear", "blk.#.ffn_*", Change::gate_up},
    {"layers.#.shared_mlp.output_linear", "blk.#.ffn_down"},
};

// (Names of experts: those that hub/made_tensors.hpp gives them.)
NIBBLE_HIDDEN inline constexpr Rename kGptOssNames[] = {
    {"embed_tokens", "token_embd"},
    {"norm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.post_attention_layernorm", "blk.#.post_attention_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.o_proj", "blk.#.attn_output"},
    {"layers.#.self_attn.sinks", "blk.#.attn_sinks.weight"},
    {"layers.#.mlp.router", "blk.#.ffn_gate_inp"},
    {"layers.#.mlp.experts.gate_proj", "blk.#.ffn_gate_exps"},
    {"layers.#.mlp.experts.up_proj", "blk.#.ffn_up_exps"},
    {"layers.#.mlp.experts.down_proj", "blk.#.ffn_down_exps"},
};

NIBBLE_HIDDEN inline constexpr Rename kOptNames[] = {
    {"embed_tokens", "token_embd"},
    {"embed_positions", "position_embd", Change::positions},
    {"final_layer_norm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.self_attn_layer_norm", "blk.#.attn_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.out_proj", "blk.#.attn_output"},
    {"layers.#.final_layer_norm", "blk.#.ffn_norm"},
    {"layers.#.fc1", "blk.#.ffn_up"},
    {"layers.#.fc2", "blk.#.ffn_down"},
};

NIBBLE_HIDDEN inline constexpr Rename kBloomNames[] = {
    {"word_embeddings", "token_embd"},
    {"word_embeddings_layernorm", "token_embd_norm"},
    {"ln_f", "output_norm"},
    {"lm_head", "output"},
    {"h.#.input_layernorm", "blk.#.attn_norm"},
    {"h.#.self_attention.query_key_value", "blk.#.attn_qkv", Change::qkv_rows},
    {"h.#.self_attention.dense", "blk.#.attn_output"},
    {"h.#.post_attention_layernorm", "blk.#.ffn_norm"},
    {"h.#.mlp.dense_h_to_4h", "blk.#.ffn_up"},
    {"h.#.mlp.dense_4h_to_h", "blk.#.ffn_down"},
};

NIBBLE_HIDDEN inline constexpr Rename kGptNeoNames[] = {
    {"wte", "token_embd"},
    {"wpe", "position_embd"},
    {"ln_f", "output_norm"},
    {"lm_head", "output"},
    {"h.#.ln_1", "blk.#.attn_norm"},
    {"h.#.attn.attention.q_proj", "blk.#.attn_q"},
    {"h.#.attn.attention.k_proj", "blk.#.attn_k"},
    {"h.#.attn.attention.v_proj", "blk.#.attn_v"},
    {"h.#.attn.attention.out_proj", "blk.#.attn_output"},
    {"h.#.ln_2", "blk.#.ffn_norm"},
    {"h.#.mlp.c_fc", "blk.#.ffn_up"},
    {"h.#.mlp.c_proj", "blk.#.ffn_down"},
};

// Phi 1 to 2.
NIBBLE_HIDDEN inline constexpr Rename kPhi2Names[] = {
    {"embed_tokens", "token_embd"},
    {"final_layernorm", "output_norm"},
    {"lm_head", "output"},
    {"layers.#.input_layernorm", "blk.#.attn_norm"},
    {"layers.#.self_attn.q_proj", "blk.#.attn_q"},
    {"layers.#.self_attn.k_proj", "blk.#.attn_k"},
    {"layers.#.self_attn.v_proj", "blk.#.attn_v"},
    {"layers.#.self_attn.dense", "blk.#.attn_output"},
    {"layers.#.mlp.fc1", "blk.#.ffn_up"},
    {"layers.#.mlp.fc2", "blk.#.ffn_down"},
};

NIBBLE_HIDDEN inline constexpr Rename kBertNames[] = {
    {"embeddings.word_embeddings", "token_embd"},
    {"embeddings.position_embeddings", "position_embd"},
    {"embeddings.token_type_embeddings", "token_types"},
    {"embeddings.LayerNorm", "token_embd_norm"},
    {"encoder.layer.#.attention.self.query", "blk.#.attn_q"},
    {"encoder.layer.#.attention.self.key", "blk.#.attn_k"},
    {"encoder.layer.#.attention.self.value", "blk.#.attn_v"},
    {"encoder.layer.#.attention.output.dense", "blk.#.attn_output"},
    {"encoder.layer.#.attention.output.LayerNorm", "blk.#.attn_output_norm"},
    {"encoder.layer.#.intermediate.dense", "blk.#.ffn_up"},
    {"encoder.layer.#.output.dense", "blk.#.ffn_down"},
    {"encoder.layer.#.output.LayerNorm", "blk.#.layer_output_norm"},
};

NIBBLE_HIDDEN inline constexpr Rename kNomicBertNames[] = {
    {"embeddings.word_embeddings", "token_embd"},
    {"embeddings.token_type_embeddings", "token_types"},
    {"emb_ln", "token_embd_norm"},
    {"encoder.layers.#.attn.Wqkv", "blk.#.attn_qkv"},
    {"encoder.layers.#.attn.out_proj", "blk.#.attn_output"},
    {"encoder.layers.#.norm1", "blk.#.attn_output_norm"},
    {"encoder.layers.#.mlp.fc11", "blk.#.ffn_up"},
    {"encoder.layers.#.mlp.fc12", "blk.#.ffn_gate"},
    {"encoder.layers.#.mlp.fc2", "blk.#.ffn_down"},
    {"encoder.layers.#.norm2", "blk.#.layer_output_norm"},
};

namespace detail {

// Modules around the one that has the layers.
NIBBLE_HIDDEN inline constexpr std::string_view kOuterModules[] = {
    "model.", "language_model.", "transformer.", "gpt_neox.", "bert.", "decoder."};

// What folders have besides the weights of the text model: buffers that are computed, heads of
// training, the parts for images and sounds, those that guess tokens after the next one.
NIBBLE_HIDDEN inline constexpr std::string_view kIgnoredStarts[] = {
    "vision_tower.", "vision_model.", "visual.",      "multi_modal_projector.",
    "embed_vision.", "audio_tower.",  "embed_audio.", "pooler.",
    "cls.",          "mtp."};
NIBBLE_HIDDEN inline constexpr std::string_view kIgnoredEnds[] = {
    ".rotary_emb.inv_freq",   ".attn.bias",
    ".attn.masked_bias",      ".attention.bias",
    ".attention.masked_bias", "embeddings.position_ids"};

// The numbers of a name that stand for '#' and '@' of a pattern, as text.
struct Numbers {
  std::string_view layer, expert;
};

// If `name` is `pattern` with such numbers: these.
inline std::optional<Numbers> match(std::string_view pattern, std::string_view name) noexcept {
  constexpr std::string_view kDigits = "0123456789";
  Numbers numbers;
  for (std::size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c != '#' && c != '@') {
      if (name.empty() || name[0] != c) return std::nullopt;
      name.remove_prefix(1);
      continue;
    }
    const std::size_t n = (std::min)(name.find_first_not_of(kDigits), name.size());
    if (n < 1 || n > 5 || (n > 1 && name[0] == '0')) return std::nullopt;
    (c == '#' ? numbers.layer : numbers.expert) = name.substr(0, n);
    name.remove_prefix(n);
  }
  if (!name.empty()) return std::nullopt;
  return numbers;
}

// Writes the numbers of a name in the places that a pattern has for them.
inline std::string with_numbers(std::string_view pattern, const Numbers& numbers) {
  std::string text;
  for (const char c : pattern) {
    if (c == '#') {
      text += numbers.layer;
    } else if (c == '@') {
      text += numbers.expert;
    } else {
      text += c;
    }
  }
  return text;
}

}  // namespace detail

struct Renamed {
  std::string name;  // empty: the tensor is not needed
  Change change = Change::none;
};

// The name of a hub's tensor in GGUF; nothing if it is not known. Names that end in no ".weight" or
// ".bias" stand whole in the table.
inline std::optional<Renamed> rename(std::span<const Rename> names, std::string_view name) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string_view outer : detail::kOuterModules) {
      if (!name.starts_with(outer)) continue;
      name.remove_prefix(outer.size());
      again = true;
    }
  }
  for (const std::string_view start : detail::kIgnoredStarts) {
    if (name.starts_with(start)) return Renamed{};
  }
  for (const std::string_view end : detail::kIgnoredEnds) {
    if (name.ends_with(end)) return Renamed{};
  }
  const std::size_t dot = name.rfind('.');
  if (dot == name.npos) return std::nullopt;
  const std::string_view kind = name.substr(dot + 1);
  const bool is_weight = kind == "weight" || kind == "gamma";  // gamma, beta: from TensorFlow
  const bool is_whole = !is_weight && kind != "bias" && kind != "beta";
  for (const Rename& entry : names) {
    const auto numbers = detail::match(entry.from, is_whole ? name : name.substr(0, dot));
    if (!numbers) continue;
    const char* const end = is_whole ? "" : is_weight ? ".weight" : ".bias";
    return Renamed{detail::with_numbers(entry.to, *numbers) + end, entry.change};
  }
  return std::nullopt;
}

}}}  // namespace nibble::NIBBLE_ABI::hub
