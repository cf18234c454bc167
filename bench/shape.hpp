// SPDX-License-Identifier: Apache-2.0
//
// Models defined by their shape alone: the cost of a model does not depend on the values of its
// weights.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <string_view>

#include "bench/machine.hpp"
#include "nibble/core/result.hpp"
#include "nibble/model/moe.hpp"

namespace bench {

struct Shape {
  nibble::MoeConfig config;  // routing.n_experts is 1 in models without experts
  bool tied = true;          // the output matrix is the embedding matrix
};

inline Shape llama_shape(Index dim, Index n_layers, Index n_heads, Index n_kv_heads, Index ffn_dim,
                         Index vocab_size, bool tied) {
  Shape shape;
  nibble::MoeConfig& c = shape.config;
  c.architecture = "llama";
  c.dim = dim;
  c.n_layers = n_layers;
  c.n_heads = n_heads;
  c.n_kv_heads = n_kv_heads;
  c.head_dim = dim / n_heads;
  c.ffn_dim = ffn_dim;
  c.vocab_size = vocab_size;
  c.n_ctx = 1 << 20;
  c.rope_dim = c.head_dim;
  shape.tied = tied;
  return shape;
}

// What shape_of() understands.
inline constexpr const char* kShapes =
    "tinyllama-1.1b, llama-3.2-1b, smollm2-135m, qwen3-30b-a3b or "
    "dim=..,layers=..,heads=..,kv_heads=..,head_dim=..,ffn=..,vocab=..,tied=0,experts=..,used=..";

// Parses a known name or "dim=2048,layers=22,heads=32,kv_heads=4,ffn=5632,vocab=32000,tied=0".
// Optional are kv_heads (default: as many as heads), head_dim (dim / heads), vocab (32000), tied
// (1), experts and used (1: ffn is then the size of one, and a token uses `used` of them), and
// layers behind a known name: "qwen3-30b-a3b,layers=4". `known`: what an error says may be named.
// Error: invalid_argument.
inline nibble::Result<Shape> shape_of(std::string_view text, const std::string& known = kShapes) {
  if (text == "tinyllama-1.1b") return llama_shape(2048, 22, 32, 4, 5632, 32000, false);
  if (text == "llama-3.2-1b") return llama_shape(2048, 16, 32, 8, 8192, 128256, true);
  if (text == "smollm2-135m") return llama_shape(576, 30, 9, 3, 1536, 49152, true);
  const auto error = [&](const std::string& what) {
    return nibble::Error{nibble::Errc::invalid_argument,
                         "shape '" + std::string(text) + "': " + what + "; it may be " + known};
  };
  struct Field {
    std::string_view name;
    Index value;
  };
  std::array<Field, 10> fields = {{{"dim", 0},
                                   {"layers", 0},
                                   {"heads", 0},
                                   {"kv_heads", 0},
                                   {"head_dim", 0},
                                   {"ffn", 0},
                                   {"vocab", 32000},
                                   {"tied", 1},
                                   {"experts", 1},
                                   {"used", 1}}};
  std::string_view rest = text;
  constexpr std::string_view kQwen = "qwen3-30b-a3b";
  if (text.starts_with(kQwen)) {
    constexpr Index kValues[] = {2048, 48, 32, 4, 128, 768, 151936, 0, 128, 8};
    for (std::size_t i = 0; i < fields.size(); ++i) fields[i].value = kValues[i];
    rest.remove_prefix(kQwen.size());
    if (rest.starts_with(',')) rest.remove_prefix(1);
  }
  for (; !rest.empty();) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    const std::size_t equals = std::min(item.find('='), item.size());
    Field* named = nullptr;
    for (Field& field : fields) named = item.substr(0, equals) == field.name ? &field : named;
    const char* const end = item.data() + item.size();
    if (named == nullptr || equals == item.size()) {
      return error("what is '" + std::string(item) + "'");
    }
    const auto [at, failed] = std::from_chars(item.data() + equals + 1, end, named->value);
    if (failed != std::errc() || at != end || named->value < 0 || named->value > 1 << 20) {
      return error("'" + std::string(item) + "' is not a number from 0 to 1048576");
    }
  }
  const auto [dim, layers, heads, given_kv_heads, given_head_dim, ffn, vocab, tied, experts, used] =
      std::array{fields[0].value, fields[1].value, fields[2].value, fields[3].value,
                 fields[4].value, fields[5].value, fields[6].value, fields[7].value,
                 fields[8].value, fields[9].value};
  const Index kv_heads = given_kv_heads > 0 ? given_kv_heads : heads;
  if (dim < 1 || layers < 1 || heads < 1 || ffn < 1 || vocab < 1) {
    return error("dim, layers, heads, ffn and vocab must be there");
  }
  if (layers > 4096) return error("more than 4096 layers");
  const Index head_dim = given_head_dim > 0 ? given_head_dim : dim / heads;
  if ((given_head_dim < 1 && dim % heads != 0) || head_dim % 2 != 0 || heads % kv_heads != 0) {
    return error("dim must be an even multiple of heads, heads a multiple of kv_heads");
  }
  Shape shape = llama_shape(dim, layers, heads, kv_heads, ffn, vocab, tied != 0);
  shape.config.head_dim = head_dim;
  shape.config.rope_dim = head_dim;
  shape.config.expert_ffn_dim = ffn;
  shape.config.routing = {.n_experts = experts, .n_used = used, .is_normalized = true};
  if (const char* const wrong = nibble::ops::routing_error(shape.config.routing)) {
    return error(wrong);
  }
  return shape;
}

}  // namespace bench
