// SPDX-License-Identifier: Apache-2.0
//
// How a model is loaded. Included by model.hpp.
#pragma once

#include <algorithm>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/weight_shape.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

// Reads one dimension: positive and at most `max`.
inline Result<Index> gguf_dim(const io::Gguf& file, const std::string& key, std::uint64_t max) {
  NIBBLE_TRY(value, file.get_u64(key));
  if (value < 1 || value > max) {
    return Error{Errc::malformed, file.name() + ": key '" + key + "': " + std::to_string(value) +
                                      " is not in [1, " + std::to_string(max) + "]"};
  }
  return static_cast<Index>(value);
}

inline Result<Index> gguf_dim_or(const io::Gguf& file, const std::string& key, std::uint64_t max,
                                 Index fallback) {
  if (file.find(key) == nullptr) return fallback;
  return gguf_dim(file, key, max);
}

template <class Formats>
constexpr bool runs(Architecture architecture) noexcept {
  if constexpr (requires { Formats::runs(architecture); }) {
    return Formats::runs(architecture);
  } else {
    return true;
  }
}

// Llama 3.1 and later: what each frequency of the rotation is divided by, (rope_dim / 2).
inline constexpr std::string_view kRopeFactors = "rope_freqs.weight";

}  // namespace detail

NIBBLE_INLINE Result<ModelConfig> config_from_gguf(const io::Gguf& file) {
  using detail::gguf_dim;
  using detail::gguf_dim_or;
  // No dimension is larger; products of three then fit an Index by far.
  constexpr std::uint64_t kMax = 1u << 20, kMaxLayers = 4096, kMaxVocabulary = 1u << 24;
  NIBBLE_TRY(name, file.get_string("general.architecture"));
  ModelConfig c;
  if (name == "llama") {
    c.architecture = Architecture::llama;
  } else if (name == "gpt2") {
    c.architecture = Architecture::gpt2;
  } else {
    return Error{Errc::unsupported, file.name() + ": architecture '" +
                                        std::string(name.substr(0, 64)) +
                                        "'; known are llama and gpt2"};
  }
  const std::string arch = std::string(name) + ".";
  NIBBLE_TRY(dim, gguf_dim(file, arch + "embedding_length", kMax));
  NIBBLE_TRY(n_layers, gguf_dim(file, arch + "block_count", kMaxLayers));
  NIBBLE_TRY(ffn_dim, gguf_dim(file, arch + "feed_forward_length", kMax));
  NIBBLE_TRY(n_heads, gguf_dim(file, arch + "attention.head_count", kMax));
  NIBBLE_TRY(n_kv_heads, gguf_dim_or(file, arch + "attention.head_count_kv", kMax, n_heads));
  NIBBLE_TRY(head_dim, gguf_dim_or(file, arch + "attention.key_length", kMax, dim / n_heads));
  NIBBLE_TRY(value_dim, gguf_dim_or(file, arch + "attention.value_length", kMax, head_dim));
  NIBBLE_TRY(n_ctx, gguf_dim(file, arch + "context_length", 1u << 30));
  NIBBLE_TRY(window, file.get_u64_or(arch + "attention.sliding_window", 0));
  NIBBLE_TRY(embedding, file.tensor("token_embd.weight"));
  if (embedding.dims[1] < 1 || embedding.dims[1] > kMaxVocabulary) {
    return Error{Errc::malformed, file.name() + ": tensor 'token_embd.weight': " +
                                      std::to_string(embedding.dims[1]) + " rows"};
  }
  const bool is_llama = c.architecture == Architecture::llama;
  NIBBLE_TRY(eps, file.get_f32(arch + (is_llama ? "attention.layer_norm_rms_epsilon"
                                                : "attention.layer_norm_epsilon")));
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
  if (n_heads % n_kv_heads != 0 || head_dim < 1 || value_dim != head_dim || !(eps > 0) ||
      !is_finite(static_cast<double>(eps))) {
    return Error{Errc::malformed, file.name() + ": " + std::to_string(n_heads) + " heads, " +
                                      std::to_string(n_kv_heads) + " kv heads, head sizes " +
                                      std::to_string(head_dim) + " and " +
                                      std::to_string(value_dim) + ", norm epsilon " +
                                      to_text(static_cast<double>(eps)) + " do not go together"};
  }
  if (!is_llama) return c;

  NIBBLE_TRY(rope_dim, gguf_dim_or(file, arch + "rope.dimension_count", kMax, head_dim));
  NIBBLE_TRY(theta, file.get_f32_or(arch + "rope.freq_base", 10000.0f));
  // A factor without a type is a linear one, and older files have it under another key.
  NIBBLE_TRY(scaling, file.get_string_or(arch + "rope.scaling.type", "linear"));
  NIBBLE_TRY(old_factor, file.get_f32_or(arch + "rope.scale_linear", 1.0f));
  NIBBLE_TRY(factor, file.get_f32_or(arch + "rope.scaling.factor", old_factor));
  if (scaling != "none" && scaling != "linear") {
    return Error{Errc::unsupported, file.name() + ": rope scaling '" +
                                        std::string(scaling.substr(0, 64)) +
                                        "'; known are none and linear"};
  }
  if (rope_dim > head_dim || rope_dim % 2 != 0 || !(theta > 0) ||
      !is_finite(static_cast<double>(theta)) || !(factor > 0) ||
      !is_finite(static_cast<double>(factor))) {
    return Error{Errc::malformed, file.name() + ": rotation of " + std::to_string(rope_dim) +
                                      " of " + std::to_string(head_dim) + " dimensions, base " +
                                      to_text(static_cast<double>(theta)) + ", factor " +
                                      to_text(static_cast<double>(factor))};
  }
  c.rope_dim = rope_dim;
  c.rope_theta = theta;
  c.rope_scale = scaling == "linear" ? factor : 1.0f;
  return c;
}

template <class Formats>
struct BasicModel<Formats>::Parts {
  Parts(const ModelConfig& c, WeightStore<Formats> w) : config(c), weights(std::move(w)) {}

  Status add_tensors(const io::Gguf& gguf);
  Status read_rope_factors(const io::Gguf& gguf);

  ModelConfig config;
  WeightStore<Formats> weights;
  std::optional<text::Tokenizer> tokenizer;
  std::vector<Scalar<float>> rope_factors;
  std::optional<io::Gguf> file;  // while weights are used where they are in it
};

template <class Formats>
BasicModel<Formats>::BasicModel(Owned<Parts> parts) noexcept : parts_(std::move(parts)) {}

template <class Formats>
BasicModel<Formats>::BasicModel(const ModelConfig& config, WeightStore<Formats> weights)
    : parts_(new Parts(config, std::move(weights))) {}

template <class Formats>
BasicModel<Formats>::BasicModel(const ModelConfig& config, WeightStore<Formats> weights,
                                text::Tokenizer tokenizer)
    : BasicModel(config, std::move(weights)) {
  parts_->tokenizer = std::move(tokenizer);
}

template <class Formats>
Result<BasicModel<Formats>> BasicModel<Formats>::from_gguf(io::Gguf&& file,
                                                           const LoadOptions& options) {
  auto model = from_gguf(std::as_const(file), options);
  if (model && model->weight_bytes_in_place() > 0) model->parts_->file = std::move(file);
  return model;
}

template <class Formats>
const ModelConfig& BasicModel<Formats>::config() const noexcept {
  return parts_->config;
}

template <class Formats>
graph::WeightTable BasicModel<Formats>::weights() const noexcept {
  return parts_->weights.table();
}

template <class Formats>
std::size_t BasicModel<Formats>::weight_bytes() const noexcept {
  return parts_->weights.bytes();
}

template <class Formats>
std::size_t BasicModel<Formats>::weight_bytes_in_place() const noexcept {
  return parts_->weights.bytes_in_place();
}

template <class Formats>
const text::Tokenizer* BasicModel<Formats>::tokenizer() const noexcept {
  return parts_->tokenizer ? &*parts_->tokenizer : nullptr;
}

template <class Formats>
std::span<const float> BasicModel<Formats>::rope_factors() const noexcept {
  const auto& factors = parts_->rope_factors;
  return {values(factors), factors.size()};
}

template <class Formats>
template <class F>
decltype(auto) BasicModel<Formats>::visit(F&& f) const {
  // auto: a type that depends on nothing would make compilers build both expressions wherever this
  // is included, used or not (a fifth of the time).
  const auto& config = parts_->config;
  if constexpr (!detail::runs<Formats>(Architecture::llama)) {
    return f(graph::fuse(gpt2(config)));
  } else if constexpr (!detail::runs<Formats>(Architecture::gpt2)) {
    return f(graph::fuse(llama(config)));
  } else {
    if (config.architecture == Architecture::gpt2) return f(graph::fuse(gpt2(config)));
    return f(graph::fuse(llama(config)));
  }
}

template <class Formats>
Status BasicModel<Formats>::Parts::add_tensors(const io::Gguf& gguf) {
  bool has_output = false;
  std::size_t n_used = gguf.find_tensor(detail::kRopeFactors) != nullptr ? 1 : 0;
  const auto add = [&](Slot slot, Index layer) -> Status {
    const WeightShape shape = weight_shape(config, slot);
    if (shape.k == 0) return ok();
    const std::string name = gguf_name(slot, layer);
    const io::GgufTensor* const tensor = gguf.find_tensor(name);
    const std::string where = gguf.name() + ": tensor '" + name + "'";
    if (tensor == nullptr) {
      if (shape.required) return Error{Errc::not_found, where};
      return ok();
    }
    const auto n = static_cast<std::uint64_t>(shape.n == 0 ? 1 : shape.n);
    if (tensor->dims[0] != static_cast<std::uint64_t>(shape.k) || tensor->dims[1] != n ||
        tensor->dims[2] != 1 || tensor->dims[3] != 1) {
      return Error{Errc::malformed, where + ": shape (" + std::to_string(tensor->dims[1]) + ", " +
                                        std::to_string(tensor->dims[0]) + "), expected (" +
                                        std::to_string(n) + ", " + std::to_string(shape.k) + ")"};
    }
    const auto packed = quant::packed_format_of(tensor->type);
    if (packed && shape.n == 0) return Error{Errc::malformed, where + ": a packed vector"};
    Status added = ok();
    if (packed) {
      added = weights.add_packed(slot, layer, *packed, shape.n, shape.k, tensor->data);
    } else {
      auto format = quant::format_of(tensor->type);
      if (!format) return std::move(format).error().in(where);
      added = weights.add(slot, layer, *format, shape.n, shape.k, tensor->data);
    }
    if (!added) return std::move(added).error().in(where);
    has_output = has_output || slot == Slot::output;
    ++n_used;
    return ok();
  };
  for (std::size_t s = 0; s < kSlotCount; ++s) {
    const auto slot = static_cast<Slot>(s);
    if (!is_per_layer(slot)) NIBBLE_CHECK(add(slot, -1));
  }
  for (Index layer = 0; layer < config.n_layers; ++layer) {
    for (std::size_t s = 0; s < kSlotCount; ++s) {
      const auto slot = static_cast<Slot>(s);
      if (is_per_layer(slot)) NIBBLE_CHECK(add(slot, layer));
    }
    const graph::WeightTable table = weights.table();
    const graph::Weight& gate = table.at(Slot::ffn_gate, layer);
    const graph::Weight& up = table.at(Slot::ffn_up, layer);
    if (gate && gate.format != up.format) {
      return Error{Errc::unsupported, gguf.name() + ": layer " + std::to_string(layer) +
                                          ": ffn_gate and ffn_up in different formats"};
    }
  }
  // A tensor that has no place here belongs to a variant of the architecture that we would run
  // wrongly.
  if (n_used != gguf.tensors().size()) {
    return Error{Errc::unsupported,
                 gguf.name() + ": " + std::to_string(gguf.tensors().size() - n_used) +
                     " tensors that are no part of a " +
                     std::string(to_string(config.architecture)) + " model here"};
  }
  if (!has_output) weights.tie(Slot::output, Slot::token_embd);
  return ok();
}

template <class Formats>
Status BasicModel<Formats>::Parts::read_rope_factors(const io::Gguf& gguf) {
  const io::GgufTensor* const tensor = gguf.find_tensor(detail::kRopeFactors);
  if (tensor == nullptr) return ok();
  const std::string where = gguf.name() + ": tensor '" + std::string(detail::kRopeFactors) + "'";
  rope_factors.resize(static_cast<std::size_t>(config.rope_dim / 2));
  const auto format = quant::format_of(tensor->type);
  Status read =
      format ? quant::row_to_f32(*format, tensor->data, {values(rope_factors), rope_factors.size()})
             : Status(format.error());
  if (!read) return std::move(read).error().in(where);
  for (const auto& [factor] : rope_factors) {
    if (!(factor > 0) || !is_finite(static_cast<double>(factor))) {
      return Error{Errc::malformed, where + ": a factor that is not positive"};
    }
  }
  return ok();
}

template <class Formats>
Result<BasicModel<Formats>> BasicModel<Formats>::from_gguf(const io::Gguf& file,
                                                           const LoadOptions& options) {
  NIBBLE_CHECK(simd::ensure_target());
  NIBBLE_TRY(config, config_from_gguf(file));
  if (!detail::runs<Formats>(config.architecture)) {
    return Error{Errc::unsupported, file.name() + ": architecture '" +
                                        std::string(to_string(config.architecture)) +
                                        "' is not compiled in"};
  }
  // Each layer has tensors of its own: a count that the file cannot hold is refused before memory
  // is taken for it.
  if (static_cast<std::size_t>(config.n_layers) > file.tensors().size()) {
    return Error{Errc::malformed, file.name() + ": " + std::to_string(Index{config.n_layers}) +
                                      " layers but " + std::to_string(file.tensors().size()) +
                                      " tensors"};
  }
  Owned<Parts> parts(new (std::nothrow) Parts(config, WeightStore<Formats>(config.n_layers)));
  if (!parts) return Error{Errc::out_of_memory, file.name()};
  Parts& model = *parts;
  NIBBLE_CHECK(model.add_tensors(file));
  NIBBLE_CHECK(model.read_rope_factors(file));
  if (file.find("tokenizer.ggml.model") != nullptr) {
    auto tokenizer = text::Tokenizer::from_gguf(file);
    // A model can run on token ids alone, so a kind of tokenizer that is not known is no error yet.
    if (!tokenizer && tokenizer.error().code != Errc::unsupported) return tokenizer.error();
    if (tokenizer) {
      if (tokenizer->vocabulary().size() > static_cast<std::size_t>(Index{config.vocab_size})) {
        return Error{Errc::malformed,
                     file.name() + ": " + std::to_string(tokenizer->vocabulary().size()) +
                         " tokens but " + std::to_string(Index{config.vocab_size}) +
                         " rows of embeddings"};
      }
      model.tokenizer = *std::move(tokenizer);
    }
  }
  InlineExecutor alone;
  Executor& executor = options.executor != nullptr ? *options.executor : alone;
  Status packed = model.weights.pack(executor, options.progress, file.file());
  if (!packed) return std::move(packed).error().in(file.name());
  return BasicModel(std::move(parts));
}

template <class Formats>
Result<BasicModel<Formats>> load(const std::string& path, const LoadOptions& options) {
  NIBBLE_TRY(file, io::Gguf::open(path));
  return BasicModel<Formats>::from_gguf(std::move(file), options);
}

}}  // namespace nibble::NIBBLE_ABI
