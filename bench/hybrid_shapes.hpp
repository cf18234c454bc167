// SPDX-License-Identifier: Apache-2.0
//
// The shapes of known models with recurrent layers.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/core/owned.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/granite_hybrid.hpp"
#include "nibble/model/lfm2.hpp"
#include "nibble/model/qwen35.hpp"

namespace bench {

inline constexpr const char* kHybridShapes = "lfm2-350m, qwen3.5-0.8b, granite-4.0-h-350m";

// The graph of a model of a name of kHybridShapes, all of which tie their output to the embedding.
// Null: another name, or memory runs out.
inline nibble::Owned<nibble::ModelGraph> hybrid_graph(std::string_view name) {
  using nibble::Dim, nibble::Index;
  nibble::HybridConfig c;
  const auto set = [&](const char* architecture, Index dim, Index n_layers, Index n_heads,
                       Index n_kv_heads, Index head_dim, Index ffn_dim, Index vocab_size) {
    c.architecture = architecture;
    c.dim = Dim<>{dim};
    c.n_layers = Dim<>{n_layers};
    c.n_heads = Dim<>{n_heads};
    c.n_kv_heads = Dim<>{n_kv_heads};
    c.head_dim = Dim<>{head_dim};
    c.ffn_dim = Dim<>{ffn_dim};
    c.vocab_size = Dim<>{vocab_size};
    c.n_ctx = 1 << 17;
    c.rope_dim = head_dim;
    c.recurrent_eps = c.norm_eps;
    c.n_taps = 4;
  };
  if (name == "lfm2-350m") {
    set("lfm2", 1024, 16, 16, 8, 64, 4608, 65536);
    c.n_taps = 3;
    set_recurrent_layers(
        c, [](Index i) { return i != 2 && i != 5 && i != 8 && i != 10 && i != 12 && i != 14; });
    return nibble::make_graph<nibble::Lfm2>(c);
  }
  if (name == "qwen3.5-0.8b") {
    set("qwen35", 1024, 24, 8, 2, 256, 3584, 248320);
    c.rope_dim = 64;
    c.delta_heads = {16, 16, {128, 128}};
    set_recurrent_layers(c, [](Index i) { return i % 4 != 3; });
    return nibble::make_graph<nibble::Qwen35>(c);
  }
  if (name == "granite-4.0-h-350m") {
    set("granitehybrid", 768, 32, 12, 4, 64, 2048, 100352);
    c.rope_dim = 0;
    c.delta_heads = {48, 1, {128, 32}};
    set_recurrent_layers(c, [](Index i) { return i != 10 && i != 13 && i != 17 && i != 27; });
    return nibble::make_graph<nibble::GraniteHybrid>(c);
  }
  return {};
}

}  // namespace bench
