// SPDX-License-Identifier: Apache-2.0
//
// The weights of a transformer by name: the slots that expressions refer to, and the tensors of a
// GGUF file that fill them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

enum class Slot : std::uint8_t {
  // outside of the layers
  token_embd,       // (vocab_size, dim)
  position_embd,    // (n_ctx, dim)
  token_types,      // (number of types, dim)
  token_embd_norm,  // (dim)
  token_embd_norm_bias,
  output_norm,  // (dim)
  output_norm_bias,
  output,              // (vocab_size, dim); the token embedding if a model ties them
  output_bias,         // (vocab_size)
  rope_freqs,          // (rope_dim / 2), divisors of the rotation frequencies
  rope_factors_short,  // the same for contexts up to that of the training, and for longer ones
  rope_factors_long,
  dense_2,  // (any, dim), after pooling
  dense_3,  // (dim, rows of dense_2)
  // inputs of layers besides the rows (Gemma 4), each layer's `width` columns one after the other
  layer_input_table,       // (vocab_size, n_layers * width)
  layer_input_projection,  // (n_layers * width, dim)
  layer_input_norm,        // (width)
  // in each layer
  attn_norm,  // (dim)
  attn_norm_bias,
  attn_q,  // (n_heads * head_dim, dim)
  attn_q_bias,
  attn_k,  // (n_kv_heads * head_dim, dim)
  attn_k_bias,
  attn_v,  // (n_kv_heads * head_dim, dim)
  attn_v_bias,
  attn_q_norm,  // (head_dim), or (n_heads * head_dim)
  attn_k_norm,  // (head_dim), or (n_kv_heads * head_dim)
  attn_qkv,     // ((n_heads + 2 n_kv_heads) * head_dim, dim)
  attn_qkv_bias,
  attn_output,  // (dim, n_heads * head_dim)
  attn_output_bias,
  attn_sub_norm,        // (n_heads * head_dim), of what attention gives, before attn_output
  attn_sinks,           // (n_heads), an extra score of each query
  post_attention_norm,  // (dim), of the result of attention
  attn_output_norm,     // (dim), of its sum with the input of the layer
  attn_output_norm_bias,
  attn_gate,           // of a delta net: (n_heads * value_dim, dim)
  shortconv_in_proj,   // (3 * dim, dim)
  shortconv_conv,      // (dim, taps)
  shortconv_out_proj,  // (dim, dim)
  ssm_in,              // of Mamba-2: (width of z, of what is convolved, n_heads; dim)
  ssm_conv1d,          // (channels, taps)
  ssm_conv1d_bias,
  ssm_alpha,    // (n_heads, dim)
  ssm_beta,     // (n_heads, dim)
  ssm_a,        // (n_heads), of Mamba-2 (n_heads, 1): minus the rate of the decay
  ssm_d,        // (n_heads, 1)
  ssm_dt_bias,  // (n_heads)
  ssm_norm,     // (value_dim), of Mamba-2 (n_heads * value_dim)
  ssm_out,      // (dim, n_heads * value_dim)
  ffn_norm,     // (dim)
  ffn_norm_bias,
  ffn_gate,  // (ffn_dim, dim)
  ffn_gate_bias,
  ffn_up,  // (ffn_dim, dim)
  ffn_up_bias,
  ffn_down,  // (dim, ffn_dim)
  ffn_down_bias,
  ffn_sub_norm,  // (ffn_dim), before ffn_down
  ffn_gate_inp,  // (n_experts, dim): the router
  ffn_gate_inp_bias,
  ffn_gate_inp_scale,  // (dim), of the norm before the router
  expert_of_token,     // (vocab_size, experts of a token): their numbers, instead of a choice
  exp_probs_b_bias,    // (n_experts), for the choice of experts
  ffn_gate_exps,       // n_experts matrices (expert_ffn_dim, dim)
  ffn_gate_exps_bias,  // n_experts vectors
  ffn_up_exps,
  ffn_up_exps_bias,
  ffn_down_exps,  // n_experts matrices (dim, expert_ffn_dim)
  ffn_down_exps_bias,
  ffn_down_exps_scale,  // (n_experts), factors of what experts give
  ffn_gate_inp_shexp,  // (1, dim): how much the expert of all tokens counts
  ffn_gate_shexp,
  ffn_up_shexp,
  ffn_down_shexp,
  pre_ffw_norm_2,      // (dim), before experts that stand beside a feed-forward part
  post_ffw_norm_1,     // (dim), of the result of that part
  post_ffw_norm_2,     // (dim), of the result of the experts
  post_ffw_norm,       // (dim), of the result of the feed-forward part
  layer_input_gate,    // (width, dim): what a layer's own input is multiplied by
  layer_input_output,  // (dim, width)
  layer_input_post_norm,  // (dim)
  layer_output_scale,     // (1), factor of the layer's result
  layer_output_norm,  // (dim), of its sum with its input
  layer_output_norm_bias,
};

inline constexpr std::size_t kSlotCount =
    static_cast<std::size_t>(Slot::layer_output_norm_bias) + 1;

constexpr std::size_t slot_count(Slot) noexcept { return kSlotCount; }

constexpr bool is_per_layer(Slot slot) noexcept { return slot >= Slot::attn_norm; }

// The slot's name, as above.
constexpr std::string_view to_string(Slot slot) noexcept {
  constexpr std::array<std::string_view, kSlotCount> kNames = {"token_embd",
                                                               "position_embd",
                                                               "token_types",
                                                               "token_embd_norm",
                                                               "token_embd_norm_bias",
                                                               "output_norm",
                                                               "output_norm_bias",
                                                               "output",
                                                               "output_bias",
                                                               "rope_freqs",
                                                               "rope_factors_short",
                                                               "rope_factors_long",
                                                               "dense_2",
                                                               "dense_3",
                                                               "per_layer_token_embd",
                                                               "per_layer_model_proj",
                                                               "per_layer_proj_norm",
                                                               "attn_norm",
                                                               "attn_norm_bias",
                                                               "attn_q",
                                                               "attn_q_bias",
                                                               "attn_k",
                                                               "attn_k_bias",
                                                               "attn_v",
                                                               "attn_v_bias",
                                                               "attn_q_norm",
                                                               "attn_k_norm",
                                                               "attn_qkv",
                                                               "attn_qkv_bias",
                                                               "attn_output",
                                                               "attn_output_bias",
                                                               "attn_sub_norm",
                                                               "attn_sinks",
                                                               "post_attention_norm",
                                                               "attn_output_norm",
                                                               "attn_output_norm_bias",
                                                               "attn_gate",
                                                               "shortconv.in_proj",
                                                               "shortconv.conv",
                                                               "shortconv.out_proj",
                                                               "ssm_in",
                                                               "ssm_conv1d",
                                                               "ssm_conv1d_bias",
                                                               "ssm_alpha",
                                                               "ssm_beta",
                                                               "ssm_a",
                                                               "ssm_d",
                                                               "ssm_dt_bias",
                                                               "ssm_norm",
                                                               "ssm_out",
                                                               "ffn_norm",
                                                               "ffn_norm_bias",
                                                               "ffn_gate",
                                                               "ffn_gate_bias",
                                                               "ffn_up",
                                                               "ffn_up_bias",
                                                               "ffn_down",
                                                               "ffn_down_bias",
                                                               "ffn_sub_norm",
                                                               "ffn_gate_inp",
                                                               "ffn_gate_inp_bias",
                                                               "ffn_gate_inp_scale",
                                                               "ffn_gate_tid2eid",
                                                               "exp_probs_b_bias",
                                                               "ffn_gate_exps",
                                                               "ffn_gate_exps_bias",
                                                               "ffn_up_exps",
                                                               "ffn_up_exps_bias",
                                                               "ffn_down_exps",
                                                               "ffn_down_exps_bias",
                                                               "ffn_down_exps_scale",
                                                               "ffn_gate_inp_shexp",
                                                               "ffn_gate_shexp",
                                                               "ffn_up_shexp",
                                                               "ffn_down_shexp",
                                                               "pre_ffw_norm_2",
                                                               "post_ffw_norm_1",
                                                               "post_ffw_norm_2",
                                                               "post_ffw_norm",
                                                               "inp_gate",
                                                               "proj",
                                                               "post_norm",
                                                               "layer_output_scale",
                                                               "layer_output_norm",
                                                               "layer_output_norm_bias"};
  return kNames[static_cast<std::size_t>(slot)];
}

// The name of a layer's tensor in a GGUF file: "blk.", the layer, ".", and `rest`.
inline std::string layer_tensor(Index layer, std::string_view rest) {
  return std::string("blk.").append(to_text(layer)).append(".").append(rest);
}

// The layer of a tensor of that name, and in `rest`, unless null, what follows; −1 and nothing of
// other names.
constexpr Index layer_of(std::string_view name, std::string_view* rest = nullptr) noexcept {
  constexpr std::string_view kPrefix = "blk.";
  constexpr std::size_t kMaxDigits = 6;
  if (rest != nullptr) *rest = {};
  if (!name.starts_with(kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  Index layer = 0;
  std::size_t n = 0;
  while (n < name.size() && n < kMaxDigits && name[n] >= '0' && name[n] <= '9') {
    layer = layer * 10 + (name[n++] - '0');
  }
  if (n == 0 || n == name.size() || name[n] != '.') return -1;
  if (rest != nullptr) *rest = name.substr(n + 1);
  return layer;
}

// The name of the tensor of one expert in files that have a tensor for each:
// "blk.0.ffn_up_exps.weight" becomes "blk.0.ffn_up.<expert>.weight". Empty for other names.
inline std::string name_of_expert(std::string_view all, Index expert) {
  constexpr std::string_view kEnd = "_exps.weight";
  if (!all.ends_with(kEnd)) return {};
  all.remove_suffix(kEnd.size());
  return std::string(all).append(".").append(to_text(expert)).append(".weight");
}

// The name of a tensor that stands beside "<name>.weight": "<name>.<what>".
inline std::string name_beside(std::string_view weight, std::string_view what) {
  constexpr std::string_view kEnd = ".weight";
  if (weight.ends_with(kEnd)) weight.remove_suffix(kEnd.size());
  return std::string(weight).append(".").append(what);
}
// Factors of low rank, beside a matrix (n, k) or instead of it: (n, r) and (r, k).
NIBBLE_HIDDEN inline constexpr std::string_view kFactorA = "factor_a.weight";
NIBBLE_HIDDEN inline constexpr std::string_view kFactorB = "factor_b.weight";
// Tensors that are stored once for several layers: an array of "<missing name>=<stored name>".
NIBBLE_HIDDEN inline constexpr std::string_view kSharedTensorsKey = "nibble.shared_tensors";

// The tensor's name in a GGUF file: blk.0.attn_q.weight, blk.0.attn_q.bias. Layer −1: outside of
// the layers.
inline std::string gguf_name(Slot slot, Index layer) {
  constexpr std::string_view kBias = "_bias", kScale = "_scale";
  std::string name =
      layer < 0 ? std::string(to_string(slot)) : layer_tensor(layer, to_string(slot));
  if (slot == Slot::ssm_a || slot == Slot::ssm_d) return name;
  if (slot == Slot::ffn_gate_inp_scale || slot == Slot::ffn_down_exps_scale) {
    return name.replace(name.size() - kScale.size(), kScale.size(), ".scale");
  }
  if (!name.ends_with(kBias)) return name + ".weight";
  return name.replace(name.size() - kBias.size(), kBias.size(), ".bias");
}

}}  // namespace nibble::NIBBLE_ABI
