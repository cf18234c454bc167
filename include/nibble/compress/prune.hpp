// SPDX-License-Identifier: Apache-2.0
//
// Structured pruning: a smaller dense model from a GGUF file. Feed-forward neurons, groups of
// attention heads that share keys and values, whole layers, and rows of the vocabulary are left
// out, with all weights and metadata that belong to them; what stays is copied bit for bit (see
// tensor_rows.hpp for columns of blocks). unit_scores.hpp says what to keep, prune_vocabulary.hpp
// which tokens.
//
// If all layers keep the same numbers, the result is an ordinary model of its architecture, which
// other programs load. Otherwise metadata has arrays, one number for each layer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/prune_vocabulary.hpp"
#include "nibble/compress/tensor_rows.hpp"
#include "nibble/compress/unit_scores.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// What stays, as ascending numbers of the source model.
struct PruneKeep {
  // For each layer of the source (also for those that go); empty: all.
  std::vector<std::vector<Index>> neurons;
  std::vector<std::vector<Index>> kv_groups;
  std::vector<Index> layers;         // empty: all
  std::vector<std::int32_t> tokens;  // empty: all; see close_tokens()
};

namespace detail {

// What can be removed from an architecture without changing what the rest means. Layers cannot
// where a layer's number decides what it does (its window, its rotation).
struct Prunable {
  std::string_view architecture;
  bool heads, layers;
};
NIBBLE_HIDDEN inline constexpr Prunable kPrunable[] = {
    {"llama", true, true},    {"qwen2", true, true},    {"qwen3", true, true},
    {"mistral3", true, true}, {"granite", true, true},  {"smollm3", true, false},
    {"gemma", true, true},    {"gemma2", false, false}, {"gemma3", false, false}};

// Reads an array, or one number for all layers.
inline Result<std::vector<Index>> layer_counts(const io::Gguf& file, const std::string& key,
                                               Index n_layers) {
  const io::GgufValue* const value = file.find(key);
  const auto n = static_cast<std::size_t>(n_layers);
  std::vector<Index> counts(n);
  if (value != nullptr && value->is_array()) {
    NIBBLE_TRY(values, file.get_array<Scalar<std::uint64_t>>(key));
    if (values.size() != n) {
      return Error{Errc::malformed, file.name() + ": key '" + key + "' has " +
                                        to_text(values.size()) + " values for " + to_text(n) +
                                        " layers"};
    }
    for (std::size_t i = 0; i < n; ++i) counts[i] = static_cast<Index>(values[i].value);
  } else {
    NIBBLE_TRY(one, file.get_u64(key));
    std::fill(counts.begin(), counts.end(), static_cast<Index>(one));
  }
  for (const Index count : counts) {
    if (count >= 1 && count <= (1 << 20)) continue;
    return Error{Errc::malformed, file.name() + ": key '" + key + "': " + to_text(count)};
  }
  return counts;
}

}  // namespace detail

// The sizes of a decoder that can be pruned. Errors: unsupported (another architecture), not_found
// and malformed (metadata).
inline Result<DecoderShape> decoder_shape(const io::Gguf& file) {
  DecoderShape shape;
  NIBBLE_TRY(name, file.get_string("general.architecture"));
  shape.architecture = std::string(name);
  bool known = false;
  std::string names;
  for (const detail::Prunable& p : detail::kPrunable) {
    known = known || p.architecture == name;
    names += (names.empty() ? "" : ", ") + std::string(p.architecture);
  }
  if (!known) {
    return Error{Errc::unsupported, file.name() + ": the architecture " + io::quoted(name) +
                                        " cannot be pruned here; those that can are " + names};
  }
  const std::string arch = shape.architecture + ".";
  NIBBLE_TRY(n_layers, file.get_u64(arch + "block_count"));
  if (n_layers < 1 || n_layers > file.tensors().size()) {
    return Error{Errc::malformed, file.name() + ": " + to_text(n_layers) + " layers"};
  }
  shape.n_layers = static_cast<Index>(n_layers);
  NIBBLE_TRY(ffn, detail::layer_counts(file, arch + "feed_forward_length", shape.n_layers));
  NIBBLE_TRY(heads, detail::layer_counts(file, arch + "attention.head_count", shape.n_layers));
  shape.ffn = std::move(ffn);
  shape.n_kv_heads = heads;
  shape.n_heads = std::move(heads);
  if (const std::string key = arch + "attention.head_count_kv"; file.find(key) != nullptr) {
    NIBBLE_TRY(kv, detail::layer_counts(file, key, shape.n_layers));
    shape.n_kv_heads = std::move(kv);
  }
  NIBBLE_TRY(dim, file.get_u64(arch + "embedding_length"));
  NIBBLE_TRY(head_dim, file.get_u64_or(arch + "attention.key_length",
                                       dim / static_cast<std::uint64_t>(shape.n_heads[0])));
  if (head_dim < 1 || head_dim > (1 << 20)) {
    return Error{Errc::malformed, file.name() + ": heads of " + to_text(head_dim)};
  }
  shape.head_dim = static_cast<Index>(head_dim);
  for (std::size_t i = 0; i < shape.n_heads.size(); ++i) {
    if (shape.n_heads[i] % shape.n_kv_heads[i] == 0) continue;
    return Error{Errc::malformed, file.name() + ": " + to_text(shape.n_heads[i]) + " heads and " +
                                      to_text(shape.n_kv_heads[i]) + " kv heads"};
  }
  return shape;
}

namespace detail {

// Each of `units` as `size` consecutive channels.
inline std::vector<Index> channels_of(std::span<const Index> units, Index size) {
  std::vector<Index> channels;
  channels.reserve(units.size() * static_cast<std::size_t>(size));
  for (const Index unit : units) {
    for (Index i = 0; i < size; ++i) channels.push_back(unit * size + i);
  }
  return channels;
}

// Error: invalid_argument, unless `kept` is empty or ascending numbers below n.
template <class T>
Result<void> check_kept(std::span<const T> kept, Index n, const std::string& what) {
  Index last = -1;
  for (const T i : kept) {
    if (Index{i} <= last || Index{i} >= n) {
      return Error{Errc::invalid_argument, "pruning: " + what + " to keep are not ascending " +
                                               "numbers below " + to_text(n)};
    }
    last = Index{i};
  }
  return ok();
}

// Writes what stays.
class Pruner {
 public:
  Pruner(const io::Gguf& file, const PruneKeep& keep, io::GgufWriter& writer)
      : file_(file), keep_(keep), writer_(writer) {}

  Result<void> run() {
    NIBBLE_TRY(shape, decoder_shape(file_));
    shape_ = std::move(shape);
    NIBBLE_CHECK(check_kept_parts());
    layers_ = keep_.layers;
    if (layers_.empty()) {
      layers_.resize(static_cast<std::size_t>(shape_.n_layers));
      std::iota(layers_.begin(), layers_.end(), Index{0});
    }
    writer_.copy_metadata(file_);
    NIBBLE_CHECK(metadata());
    if (!keep_.tokens.empty()) NIBBLE_CHECK(write_kept_vocabulary(file_, keep_.tokens, writer_));
    for (const io::GgufTensor& tensor : file_.tensors()) NIBBLE_CHECK(add(tensor));
    return ok();
  }

 private:
  bool cuts_neurons() const noexcept { return !keep_.neurons.empty(); }
  bool cuts_heads() const noexcept { return !keep_.kv_groups.empty(); }

  Result<void> check_kept_parts() const {
    const auto refuse = [&](const char* what) {
      return Error{Errc::unsupported, file_.name() + ": " + what + " of the architecture " +
                                          io::quoted(shape_.architecture) +
                                          " cannot be left out: what a layer does depends on them"};
    };
    for (const Prunable& p : kPrunable) {
      if (p.architecture != shape_.architecture) continue;
      if (cuts_heads() && !p.heads) return refuse("heads");
      if (!keep_.layers.empty() && !p.layers) return refuse("layers");
    }
    if (file_.find(kSharedTensorsKey) != nullptr) {
      return Error{Errc::unsupported,
                   file_.name() + ": layers share tensors; prune the model before that"};
    }
    NIBBLE_CHECK(check_kept<Index>(keep_.layers, shape_.n_layers, "layers"));
    NIBBLE_CHECK(check_units(PruneUnit::neuron, keep_.neurons, "neurons"));
    return check_units(PruneUnit::kv_group, keep_.kv_groups, "groups of heads");
  }
  Result<void> check_units(PruneUnit unit, const std::vector<std::vector<Index>>& kept,
                           const std::string& what) const {
    if (kept.empty()) return ok();
    if (kept.size() != static_cast<std::size_t>(shape_.n_layers)) {
      return Error{Errc::invalid_argument, "pruning: " + what + " of " + to_text(kept.size()) +
                                               " layers, but there are " +
                                               to_text(shape_.n_layers)};
    }
    for (Index l = 0; l < shape_.n_layers; ++l) {
      const std::vector<Index>& one = kept[static_cast<std::size_t>(l)];
      if (one.empty()) {
        return Error{Errc::invalid_argument,
                     "pruning: no " + what + " to keep in layer " + to_text(l)};
      }
      NIBBLE_CHECK(check_kept<Index>(one, shape_.count(unit, l), what));
    }
    return ok();
  }

  // One number if all kept layers agree, otherwise an array.
  void set_counts(const std::string& key, const std::vector<Index>& counts) {
    std::vector<std::uint32_t> values;
    for (const Index count : counts) values.push_back(static_cast<std::uint32_t>(count));
    const bool same =
        std::all_of(values.begin(), values.end(), [&](std::uint32_t v) { return v == values[0]; });
    if (same) {
      writer_.set(key, values[0]);
    } else {
      writer_.set_array(key, values);
    }
  }

  Result<void> metadata() {
    const std::string arch = shape_.architecture + ".";
    std::vector<Index> ffn, heads, kv_heads;
    for (const Index layer : layers_) {
      const auto l = static_cast<std::size_t>(layer);
      const Index kv =
          cuts_heads() ? static_cast<Index>(keep_.kv_groups[l].size()) : shape_.n_kv_heads[l];
      ffn.push_back(cuts_neurons() ? static_cast<Index>(keep_.neurons[l].size()) : shape_.ffn[l]);
      heads.push_back(shape_.n_heads[l] / shape_.n_kv_heads[l] * kv);
      kv_heads.push_back(kv);
    }
    if (!keep_.layers.empty()) NIBBLE_CHECK(select_layer_arrays(arch));
    writer_.set(arch + "block_count", static_cast<std::uint32_t>(layers_.size()));
    set_counts(arch + "feed_forward_length", ffn);
    if (!cuts_heads()) {
      if (keep_.layers.empty()) return ok();
    } else {
      // Without these, other programs divide embedding_length by the number of heads.
      const auto head_dim = static_cast<std::uint32_t>(shape_.head_dim);
      writer_.set(arch + "attention.key_length", head_dim);
      writer_.set(arch + "attention.value_length", head_dim);
      if (const std::string key = arch + "rope.dimension_count"; file_.find(key) == nullptr) {
        writer_.set(key, head_dim);
      }
    }
    set_counts(arch + "attention.head_count", heads);
    set_counts(arch + "attention.head_count_kv", kv_heads);
    return ok();
  }

  // Arrays of the architecture with a value for each layer.
  Result<void> select_layer_arrays(const std::string& arch) {
    for (const io::GgufEntry& entry : file_.metadata()) {
      if (!entry.key.starts_with(arch) || !entry.value.is_array() ||
          entry.value.size() != static_cast<std::uint64_t>(shape_.n_layers)) {
        continue;
      }
      NIBBLE_CHECK(write_selected(file_, entry.key, std::span<const Index>(layers_), writer_));
    }
    return ok();
  }

  Result<void> add(const io::GgufTensor& tensor) {
    if (!tensor.name.starts_with("blk.")) return add_outer(tensor);
    std::string_view rest;
    const Index layer = layer_of(tensor.name, &rest);
    if (layer < 0 || layer >= shape_.n_layers) {
      return Error{Errc::malformed, place_in_messages(file_, tensor.name) + ": of no layer"};
    }
    const auto kept = std::lower_bound(layers_.begin(), layers_.end(), layer);
    if (kept == layers_.end() || *kept != layer) return ok();
    const std::string name = layer_tensor(Index{kept - layers_.begin()}, rest);
    return add_in_layer(tensor, layer, rest, name);
  }

  // Tensors with a row for each token lose rows, and so does what stands beside them (scales of
  // rows, a factor); what belongs to their columns stays.
  Result<void> add_outer(const io::GgufTensor& tensor) {
    std::string_view rest;
    for (const std::string_view table : {"token_embd.", "output."}) {
      if (tensor.name.starts_with(table)) rest = tensor.name.substr(table.size());
    }
    const auto is = [&](auto... names) { return ((rest == names) || ...); };
    if (rest.empty() || keep_.tokens.empty() || is("input_scale", "input_zero", kFactorB)) {
      return copy(tensor, std::string(tensor.name));
    }
    if (!is("weight", "bias", "scales", kFactorA)) return unknown(tensor);
    const std::vector<Index> rows(keep_.tokens.begin(), keep_.tokens.end());
    return put(std::string(tensor.name), select_rows(file_, tensor, rows));
  }

  Result<void> add_in_layer(const io::GgufTensor& tensor, Index layer, std::string_view rest,
                            const std::string& name) {
    const auto l = static_cast<std::size_t>(layer);
    const auto is = [&](auto... names) { return ((rest == names) || ...); };
    if (rest.starts_with("ffn_") && !is("ffn_norm.weight") && cuts_neurons()) {
      const std::vector<Index>& kept = keep_.neurons[l];
      if (is("ffn_gate.weight", "ffn_up.weight", "ffn_gate.bias", "ffn_up.bias")) {
        return put(name, rows(tensor, kept, shape_.ffn[l]));
      }
      if (is("ffn_down.weight")) return put(name, columns(tensor, kept, shape_.ffn[l]));
      if (!is("ffn_down.bias")) return unknown(tensor);
    }
    if (rest.starts_with("attn_") && !is("attn_norm.weight") && cuts_heads()) {
      const std::vector<Index>& kept = keep_.kv_groups[l];
      const Index kv = shape_.head_dim * shape_.n_kv_heads[l],
                  q = shape_.head_dim * shape_.n_heads[l];
      const auto kv_rows = channels_of(kept, shape_.head_dim);
      const auto q_rows = channels_of(kept, q / shape_.n_kv_heads[l]);
      if (is("attn_q.weight", "attn_q.bias")) return put(name, rows(tensor, q_rows, q));
      if (is("attn_k.weight", "attn_v.weight", "attn_k.bias", "attn_v.bias")) {
        return put(name, rows(tensor, kv_rows, kv));
      }
      if (is("attn_output.weight")) return put(name, columns(tensor, q_rows, q));
      const bool is_head_norm = is("attn_q_norm.weight", "attn_k_norm.weight") &&
                                tensor.dims[0] == static_cast<std::uint64_t>(shape_.head_dim);
      if (!is_head_norm && !is("attn_output.bias")) return unknown(tensor);
    }
    return copy(tensor, name);
  }

  Error unknown(const io::GgufTensor& tensor) const {
    return {Errc::unsupported, place_in_messages(file_, tensor.name) +
                                   ": which part of it belongs to a neuron, head or token is not "
                                   "known here"};
  }
  Result<void> check_length(const io::GgufTensor& tensor, std::uint64_t has, Index expected) const {
    if (has == static_cast<std::uint64_t>(expected)) return ok();
    return Error{Errc::malformed, place_in_messages(file_, tensor.name) + ": " + to_text(has) +
                                      " channels, but metadata says " + to_text(expected)};
  }
  Result<NewTensor> rows(const io::GgufTensor& tensor, std::span<const Index> kept, Index n) const {
    NIBBLE_CHECK(check_length(tensor, tensor.dims[tensor.n_dims < 2 ? 0 : 1], n));
    return select_rows(file_, tensor, kept);
  }
  Result<NewTensor> columns(const io::GgufTensor& tensor, std::span<const Index> kept,
                            Index k) const {
    NIBBLE_CHECK(check_length(tensor, tensor.dims[0], k));
    return select_columns(file_, tensor, kept);
  }

  // It is read when it is written, in parts; the file stays open until then.
  Result<void> copy(const io::GgufTensor& tensor, const std::string& name) {
    io::GgufTensor renamed = tensor;
    renamed.name = name;
    writer_.add_tensor(file_, renamed);
    return ok();
  }
  Result<void> put(const std::string& name, Result<NewTensor> made) {
    if (!made) return std::move(made).error();
    auto tensor = std::make_shared<NewTensor>(*std::move(made));
    writer_.add_tensor(name, tensor->type, tensor->dims,
                       [tensor]() -> Result<std::span<const std::byte>> {
                         return std::span<const std::byte>(tensor->bytes);
                       });
    return ok();
  }

  const io::Gguf& file_;
  const PruneKeep& keep_;
  io::GgufWriter& writer_;
  DecoderShape shape_;
  std::vector<Index> layers_;
};

// Calls finish(writer) with a writer of the pruned model.
template <class Finish>
auto prune(const io::Gguf& file, const PruneKeep& keep, Finish finish)
    -> decltype(finish(std::declval<const io::GgufWriter&>())) {
  io::GgufWriter writer;
  Pruner pruner(file, keep, writer);
  NIBBLE_CHECK(pruner.run());
  return finish(writer);
}

}  // namespace detail

// Writes the parts of `file` that stay to the file `path`, which is either complete or as it was
// before. Selected rows and columns are held in memory until then. Errors: unsupported (an
// architecture, a tensor, a tokenizer that cannot lose tokens, packed weights), invalid_argument
// (numbers to keep that are not ascending or do not exist, a layer that would keep none), malformed
// (shapes that are not those of the metadata), those of reading and writing.
inline Result<void> prune_model(const io::Gguf& file, const PruneKeep& keep,
                                const std::string& path) {
  return catch_out_of_memory([&] {
    return detail::prune(file, keep,
                         [&](const io::GgufWriter& writer) { return writer.write(path); });
  });
}

// The same, to memory.
inline Result<std::vector<std::byte>> prune_model(const io::Gguf& file, const PruneKeep& keep) {
  return catch_out_of_memory([&] {
    return detail::prune(file, keep,
                         [](const io::GgufWriter& writer) { return writer.to_bytes(); });
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
