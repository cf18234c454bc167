// SPDX-License-Identifier: Apache-2.0
//
// Reads the dimensions of a model from the metadata of a GGUF file: the part that architectures
// share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Upper limits of dimensions: a product of three is far below the limit of an Index.
inline constexpr std::uint64_t kMaxDim = 1u << 20, kMaxLayers = 4096, kMaxVocabulary = 1u << 24;

// The unsigned integer `key`, which some files state once for each layer, as an array. Errors:
// not_found; malformed; unsupported (values that differ: per_layer() is for architectures that have
// such).
inline Result<std::uint64_t> gguf_uniform(const io::Gguf& file, const std::string& key) {
  const io::GgufValue* const value = file.find(key);
  if (value == nullptr || !value->is_array()) return file.get_u64(key);
  NIBBLE_TRY(values, file.get_array<Scalar<std::uint64_t>>(key));
  if (values.empty()) return Error{Errc::malformed, file.name() + ": key '" + key + "' is empty"};
  for (const auto& [other] : values) {
    if (other == values[0].value) continue;
    return Error{Errc::unsupported, file.name() + ": key '" + key + "' has " +
                                        to_text(values[0].value) + " for one layer and " +
                                        to_text(other) +
                                        " for another; values per layer are not supported"};
  }
  return values[0].value;
}

// Reads one dimension: positive and at most `max`. Errors: those of gguf_uniform().
inline Result<Index> gguf_dim(const io::Gguf& file, const std::string& key, std::uint64_t max) {
  NIBBLE_TRY(value, gguf_uniform(file, key));
  if (value < 1 || value > max) {
    return Error{Errc::malformed, file.name() + ": key '" + key + "': " + to_text(value) +
                                      " is not in [1, " + to_text(max) + "]"};
  }
  return static_cast<Index>(value);
}
inline Result<Index> gguf_dim_or(const io::Gguf& file, const std::string& key, std::uint64_t max,
                                 Index fallback) {
  if (file.find(key) == nullptr) return fallback;
  return gguf_dim(file, key, max);
}

// Dimensions that differ by layer; empty where they do not.
struct LayerDims {
  LayerValues<Index> ffn_dims;
  LayerValues<Index> n_heads;
  LayerValues<Index> n_kv_heads;
  // Whether n_kv_heads may be 0 in some layers, which then have no attention.
  bool may_lack_attention = false;
};

// A dimension that may differ by layer: then `layers` gets its values, of which the largest is
// returned. Values are at least `least`, and not all 0. Errors: those of gguf_dim(); malformed (a
// value out of range, a wrong number of them).
inline Result<Index> gguf_dim_of_layers(const io::Gguf& file, const std::string& key,
                                        std::uint64_t max, Index n_layers,
                                        LayerValues<Index>& layers, std::uint64_t least = 1) {
  const io::GgufValue* const value = file.find(key);
  if (value == nullptr || !value->is_array()) return gguf_dim(file, key, max);
  NIBBLE_TRY(values, file.get_array<Scalar<std::uint64_t>>(key));
  if (values.size() != static_cast<std::size_t>(n_layers)) {
    return Error{Errc::malformed, file.name() + ": key '" + key + "' has " +
                                      to_text(values.size()) + " values for " + to_text(n_layers) +
                                      " layers"};
  }
  Index largest = 0;
  bool differ = false;
  for (const auto& [one] : values) {
    if (one < least || one > max) {
      return Error{Errc::malformed, file.name() + ": key '" + key + "': " + to_text(one) +
                                        " is not in [" + to_text(least) + ", " + to_text(max) +
                                        "]"};
    }
    layers.push_back({static_cast<Index>(one)});
    largest = (std::max)(largest, static_cast<Index>(one));
    differ = differ || one != values[0].value;
  }
  if (largest == 0) {
    return Error{Errc::malformed, file.name() + ": key '" + key + "' is 0 in all layers"};
  }
  if (!differ) layers.clear();
  return largest;
}

// A finite number that is above 0, or at least 0. Errors: malformed.
inline Result<float> gguf_positive_or(const io::Gguf& file, const std::string& key, float fallback,
                                      bool may_be_0 = false) {
  NIBBLE_TRY(value, file.get_f32_or(key, fallback));
  const bool is_in_range = may_be_0 ? value >= 0 : value > 0;
  if (is_in_range && is_finite(static_cast<double>(value))) return value;
  return Error{Errc::malformed, file.name() + ": key '" + key + "': " +
                                    to_text(static_cast<double>(value)) + " is out of range"};
}

// Where heads differ by layer: each layer's must go together, and their size is stated.
inline Result<void> check_heads_of_layers(const io::Gguf& file, const std::string& arch,
                                          const LayerDims& layers, Index n_heads,
                                          Index n_kv_heads) {
  const std::size_t n = (std::max)(layers.n_heads.size(), layers.n_kv_heads.size());
  const bool is_stated = file.find(arch + "attention.key_length") != nullptr;
  if (n > 0 && !is_stated && !layers.may_lack_attention) {
    return Error{Errc::malformed, file.name() + ": heads that differ by layer, without " + arch +
                                      "attention.key_length"};
  }
  for (std::size_t i = 0; i < n; ++i) {
    const Index heads = layers.n_heads.empty() ? n_heads : layers.n_heads[i].value;
    const Index kv = layers.n_kv_heads.empty() ? n_kv_heads : layers.n_kv_heads[i].value;
    if (kv == 0 ? layers.may_lack_attention : heads % kv == 0) continue;
    return Error{Errc::malformed, file.name() + ": layer " + to_text(i) + " has " + to_text(heads) +
                                      " heads and " + to_text(kv) +
                                      " kv heads, which do not go together"};
  }
  return ok();
}

// Everything that architectures have in common, except the rotation. eps_key: key of the norms'
// epsilon. With `layers`, the sizes of the feed-forward part and the numbers of heads may differ by
// layer, and the configuration has the largest; otherwise that is an error. Errors name the key:
// not_found, malformed (values out of range or inconsistent), unsupported (values per layer).
inline Result<ModelConfig> transformer_config(const io::Gguf& file, std::string_view eps_key,
                                              LayerDims* layers = nullptr) {
  NIBBLE_TRY(name, file.get_string("general.architecture"));
  ModelConfig c;
  c.architecture = std::string(name);
  const std::string arch = c.architecture + ".";
  NIBBLE_TRY(dim, gguf_dim(file, arch + "embedding_length", kMaxDim));
  NIBBLE_TRY(n_layers, gguf_dim(file, arch + "block_count", kMaxLayers));
  const auto dim_of_layers = [&](const char* key, LayerValues<Index> LayerDims::*values,
                                 std::uint64_t least = 1) {
    return layers == nullptr
               ? gguf_dim(file, arch + key, kMaxDim)
               : gguf_dim_of_layers(file, arch + key, kMaxDim, n_layers, layers->*values, least);
  };
  // Models all of whose layers have experts need not state the other size.
  const bool has_experts_only = file.find(arch + "feed_forward_length") == nullptr &&
                                file.find(arch + "expert_feed_forward_length") != nullptr;
  NIBBLE_TRY(ffn_dim, has_experts_only
                          ? gguf_dim(file, arch + "expert_feed_forward_length", kMaxDim)
                          : dim_of_layers("feed_forward_length", &LayerDims::ffn_dims));
  NIBBLE_TRY(n_heads, dim_of_layers("attention.head_count", &LayerDims::n_heads));
  const bool has_kv_heads = file.find(arch + "attention.head_count_kv") != nullptr;
  if (!has_kv_heads && layers != nullptr) layers->n_kv_heads = layers->n_heads;
  Index n_kv_heads = n_heads;
  if (has_kv_heads) {
    const bool may_be_0 = layers != nullptr && layers->may_lack_attention;
    NIBBLE_TRY(stated,
               dim_of_layers("attention.head_count_kv", &LayerDims::n_kv_heads, may_be_0 ? 0 : 1));
    n_kv_heads = stated;
  }
  if (layers != nullptr)
    NIBBLE_CHECK(check_heads_of_layers(file, arch, *layers, n_heads, n_kv_heads));
  NIBBLE_TRY(head_dim, gguf_dim_or(file, arch + "attention.key_length", kMaxDim, dim / n_heads));
  NIBBLE_TRY(value_dim, gguf_dim_or(file, arch + "attention.value_length", kMaxDim, head_dim));
  NIBBLE_TRY(n_ctx, gguf_dim(file, arch + "context_length", 1u << 30));
  std::uint64_t window = 0;
  if (const std::string key = arch + "attention.sliding_window"; file.find(key) != nullptr) {
    NIBBLE_TRY(value, gguf_uniform(file, key));
    window = value;
  }
  NIBBLE_TRY(embedding, file.tensor("token_embd.weight"));
  if (embedding.dims[1] < 1 || embedding.dims[1] > kMaxVocabulary) {
    return Error{Errc::malformed, file.name() + ": tensor 'token_embd.weight': " +
                                      to_text(embedding.dims[1]) + " rows"};
  }
  NIBBLE_TRY(eps, file.get_f32(arch + std::string(eps_key)));
  c.dim = dim;
  c.n_layers = n_layers;
  c.ffn_dim = ffn_dim;
  c.n_heads = n_heads;
  c.n_kv_heads = n_kv_heads;
  c.head_dim = head_dim;
  c.n_ctx = n_ctx;
  c.window = static_cast<Index>(std::min<std::uint64_t>(window, 1u << 30));  // 0: none
  c.vocab_size = static_cast<Index>(embedding.dims[1]);
  c.norm_eps = eps;
  const bool heads_differ =
      layers != nullptr && !(layers->n_heads.empty() && layers->n_kv_heads.empty());
  if ((!heads_differ && n_heads % n_kv_heads != 0) || head_dim < 1 || value_dim != head_dim ||
      !(eps > 0) || !is_finite(static_cast<double>(eps))) {
    return Error{Errc::malformed,
                 file.name() + ": " + to_text(n_heads) + " heads, " + to_text(n_kv_heads) +
                     " kv heads, head sizes " + to_text(head_dim) + " and " + to_text(value_dim) +
                     ", norm epsilon " + to_text(static_cast<double>(eps)) + " do not go together"};
  }
  return c;
}

}}  // namespace nibble::NIBBLE_ABI
