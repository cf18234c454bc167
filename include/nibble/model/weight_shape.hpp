// SPDX-License-Identifier: Apache-2.0
//
// The shapes of a model's weights, slot by slot.
#pragma once

#include "nibble/core/view.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The shape (n, k) of a slot's weights; n = 0 for vectors, k = 0 where an architecture has no such
// slot.
struct WeightShape {
  Index n = 0;
  Index k = 0;
  bool required = false;
};

constexpr WeightShape weight_shape(const ModelConfig& c, Slot slot) noexcept {
  const bool is_llama = c.architecture == Architecture::llama;
  const Index q = Index{c.n_heads} * c.head_dim, kv = Index{c.n_kv_heads} * c.head_dim;
  switch (slot) {
    case Slot::token_embd: return {c.vocab_size, c.dim, true};
    case Slot::output: return {c.vocab_size, c.dim, false};  // or tied
    case Slot::output_norm:
    case Slot::attn_norm:
    case Slot::ffn_norm: return {0, c.dim, true};
    case Slot::attn_output: return {c.dim, q, true};
    case Slot::ffn_up: return {c.ffn_dim, c.dim, true};
    case Slot::ffn_down: return {c.dim, c.ffn_dim, true};
    default: break;
  }
  if (is_llama) {
    switch (slot) {
      case Slot::attn_q: return {q, c.dim, true};
      case Slot::attn_k:
      case Slot::attn_v: return {kv, c.dim, true};
      case Slot::attn_q_bias: return {0, q, false};
      case Slot::attn_k_bias:
      case Slot::attn_v_bias: return {0, kv, false};
      case Slot::ffn_gate: return {c.ffn_dim, c.dim, true};
      default: return {};
    }
  }
  switch (slot) {
    case Slot::position_embd: return {c.n_ctx, c.dim, true};
    case Slot::output_norm_bias:
    case Slot::attn_norm_bias:
    case Slot::ffn_norm_bias: return {0, c.dim, true};
    case Slot::attn_qkv: return {q + 2 * kv, c.dim, true};
    case Slot::attn_qkv_bias: return {0, q + 2 * kv, true};
    case Slot::attn_output_bias:
    case Slot::ffn_down_bias: return {0, c.dim, true};
    case Slot::ffn_up_bias: return {0, c.ffn_dim, true};
    default: return {};
  }
}

}}  // namespace nibble::NIBBLE_ABI
