// SPDX-License-Identifier: Apache-2.0
//
// The expression that BERT and its successors share: LayerNorm of the embeddings and after each
// half of a layer, then one row for each text.
#pragma once

#include "nibble/graph/expr.hpp"
#include "nibble/model/encoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// From tokens to one row for each text (texts, dim). embeddings: from tokens to rows, without those
// of the token types. The two halves of a layer are without their norms.
template <graph::Expr Embeddings, graph::Expr Attention, graph::Expr FeedForward>
auto encoder(const EncoderConfig& d, const Embeddings& embeddings, const Attention& attention,
             const FeedForward& feed_forward) {
  using namespace graph;
  using enum Slot;
  return embeddings >> add_row<optional_slot(token_types)>() >>
         in_place(layer_norm<token_embd_norm, token_embd_norm_bias>(d.norm_eps)) >>
         repeat(d.n_layers,
                residual(attention) >>
                    in_place(layer_norm<attn_output_norm, attn_output_norm_bias>(d.norm_eps)) >>
                    residual(feed_forward) >>
                    in_place(layer_norm<layer_output_norm, layer_output_norm_bias>(d.norm_eps))) >>
         pool(d.pooling);
}

}}  // namespace nibble::NIBBLE_ABI
