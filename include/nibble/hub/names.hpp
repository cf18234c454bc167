// SPDX-License-Identifier: Apache-2.0
//
// The names of tensors: those of model hubs (PyTorch modules) and those of GGUF. '#' is the number
// of a layer.
#pragma once

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
// training, the parts for images.
NIBBLE_HIDDEN inline constexpr std::string_view kIgnoredStarts[] = {
    "vision_tower.", "vision_model.", "multi_modal_projector.", "pooler.", "cls."};
NIBBLE_HIDDEN inline constexpr std::string_view kIgnoredEnds[] = {
    ".rotary_emb.inv_freq",   ".attn.bias",
    ".attn.masked_bias",      ".attention.bias",
    ".attention.masked_bias", "embeddings.position_ids"};

// If `name` is `pattern` with a number for '#' (or without one): that number as text.
inline std::optional<std::string_view> match(std::string_view pattern,
                                             std::string_view name) noexcept {
  const std::size_t at = pattern.find('#');
  if (at == pattern.npos) {
    if (name != pattern) return std::nullopt;
    return std::string_view();
  }
  const std::string_view before = pattern.substr(0, at), after = pattern.substr(at + 1);
  if (!name.starts_with(before) || !name.ends_with(after)) return std::nullopt;
  if (name.size() <= before.size() + after.size()) return std::nullopt;
  const std::string_view number =
      name.substr(before.size(), name.size() - before.size() - after.size());
  if (number.size() > 5 || number.find_first_not_of("0123456789") != number.npos ||
      (number[0] == '0' && number.size() > 1)) {
    return std::nullopt;
  }
  return number;
}

}  // namespace detail

struct Renamed {
  std::string name;  // empty: the tensor is not needed
  Change change = Change::none;
};

// The name of a hub's tensor in GGUF; nothing if it is not known.
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
  if (!is_weight && kind != "bias" && kind != "beta") return std::nullopt;
  for (const Rename& entry : names) {
    const auto layer = detail::match(entry.from, name.substr(0, dot));
    if (!layer) continue;
    std::string to(entry.to);
    if (const std::size_t at = to.find('#'); at != to.npos) {
      to.replace(at, 1, layer->data(), layer->size());
    }
    return Renamed{std::move(to) + (is_weight ? ".weight" : ".bias"), entry.change};
  }
  return std::nullopt;
}

}}}  // namespace nibble::NIBBLE_ABI::hub
