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
#include "nibble/model/config.hpp"

namespace bench {

struct Shape {
  nibble::ModelConfig config;
  bool tied = true;  // the output matrix is the embedding matrix
};

inline Shape llama_shape(Index dim, Index n_layers, Index n_heads, Index n_kv_heads, Index ffn_dim,
                         Index vocab_size, bool tied) {
  Shape shape;
  nibble::ModelConfig& c = shape.config;
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
    "tinyllama-1.1b, llama-3.2-1b, smollm2-135m or "
    "dim=..,layers=..,heads=..,kv_heads=..,ffn=..,vocab=..,tied=0";

// Parses a known name or "dim=2048,layers=22,heads=32,kv_heads=4,ffn=5632,vocab=32000,tied=0".
// Optional are kv_heads (default: as many as heads), vocab (32000) and tied (1). `known`: what an
// error says may be named. Error: invalid_argument.
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
  std::array<Field, 7> fields = {{{"dim", 0},
                                  {"layers", 0},
                                  {"heads", 0},
                                  {"kv_heads", 0},
                                  {"ffn", 0},
                                  {"vocab", 32000},
                                  {"tied", 1}}};
  for (std::string_view rest = text; !rest.empty();) {
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
  const auto [dim, layers, heads, given_kv_heads, ffn, vocab, tied] =
      std::array{fields[0].value, fields[1].value, fields[2].value, fields[3].value,
                 fields[4].value, fields[5].value, fields[6].value};
  const Index kv_heads = given_kv_heads > 0 ? given_kv_heads : heads;
  if (dim < 1 || layers < 1 || heads < 1 || ffn < 1 || vocab < 1) {
    return error("dim, layers, heads, ffn and vocab must be there");
  }
  if (layers > 4096) return error("more than 4096 layers");
  if (dim % heads != 0 || dim / heads % 2 != 0 || heads % kv_heads != 0) {
    return error("dim must be an even multiple of heads, heads a multiple of kv_heads");
  }
  return llama_shape(dim, layers, heads, kv_heads, ffn, vocab, tied != 0);
}

}  // namespace bench
