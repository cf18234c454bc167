// SPDX-License-Identifier: Apache-2.0
//
// A model in training: its graph, its weights, and the file that says what it is.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/load.hpp"
#include "nibble/nibble.hpp"
#include "nibble/train/initialize.hpp"
#include "nibble/train/model_file.hpp"
#include "nibble/train/trained_weights.hpp"
#include "shape.hpp"

namespace example {

// The graph of a model that these programs can train: one of Llama's architecture. Compiled once
// for all of them, in graph.cpp. Errors: those of nibble::train::training_graph_of.
nibble::Result<nibble::Owned<nibble::train::TrainingGraph>> training_graph(
    const nibble::io::Gguf& file);

// A model that was loaded to be asked.
inline nibble::Result<nibble::Model> load_to_ask(const nibble::io::Gguf& file,
                                                 nibble::Executor& executor) {
  return nibble::Model::from_gguf<nibble::graph::AllFormats>(file, {.executor = &executor});
}

// A file in memory.
inline nibble::Result<nibble::io::Gguf> parse_bytes(const std::vector<std::byte>& bytes,
                                                    const std::string& name) {
  NIBBLE_TRY(buffer, nibble::AlignedBuffer::allocate(bytes.size()));
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return nibble::io::Gguf::parse(std::move(buffer), name);
}

// The metadata of `like`, and so its tokenizer, with other dimensions: what a model of that shape
// will be. Of the tensors there is only the table of embeddings, which says how many tokens there
// are; its values are zeros. The size of a head follows from the width and the number of heads.
// Errors: those of Gguf::parse; malformed (no heads); not_found (no table of embeddings).
inline nibble::Result<nibble::io::Gguf> outline_of(const nibble::io::Gguf& like,
                                                   const Shape& shape) {
  NIBBLE_TRY(architecture, like.get_string("general.architecture"));
  const std::string prefix = std::string(architecture) + ".";
  nibble::io::GgufWriter writer;
  writer.copy_metadata(like);
  const auto set = [&](const char* key, std::uint32_t value) {
    if (value > 0) writer.set(prefix + key, value);
  };
  set("block_count", shape.n_layers);
  set("embedding_length", shape.dim);
  set("attention.head_count", shape.n_heads);
  set("attention.head_count_kv", shape.n_kv_heads);
  set("feed_forward_length", shape.ffn);
  NIBBLE_TRY(dim, like.get_u64(prefix + "embedding_length"));
  if (shape.dim > 0 || shape.n_heads > 0) {
    NIBBLE_TRY(own_heads, like.get_u64(prefix + "attention.head_count"));
    const std::uint64_t heads = shape.n_heads > 0 ? shape.n_heads : own_heads;
    if (heads == 0) {
      return nibble::Error{nibble::Errc::malformed, like.name() + ": a model of no heads"};
    }
    const std::uint64_t head_dim = (shape.dim > 0 ? shape.dim : dim) / heads;
    set("rope.dimension_count", static_cast<std::uint32_t>(head_dim));
    for (const char* const key : {"attention.key_length", "attention.value_length"}) {
      if (like.find(prefix + key) != nullptr) set(key, static_cast<std::uint32_t>(head_dim));
    }
  }
  NIBBLE_TRY(embeddings, like.tensor("token_embd.weight"));
  const std::uint64_t dims[] = {shape.dim > 0 ? shape.dim : dim, embeddings.dims[1]};
  const std::vector<std::byte> zeros(static_cast<std::size_t>(dims[0] * dims[1]));
  writer.add_tensor("token_embd.weight", nibble::io::GgmlType::i8, dims, zeros);
  NIBBLE_TRY(bytes, writer.to_bytes());
  return parse_bytes(bytes, like.name());
}

class TrainedModel {
 public:
  struct Options {
    Shape shape;
    std::uint64_t seed = 1;  // of the values from scratch
    // The format that its matrices will be deployed in; none: f32.
    std::optional<nibble::quant::Format> deployed = std::nullopt;
    bool searches = false;  // see Rounding
    // What an error in each column of a matrix counts in the search, by name; empty: the same.
    std::map<std::string, std::vector<float>> importance = {};
  };

  // Like `like`: with its values, or, with another shape or from_scratch, with random ones.
  static nibble::Result<TrainedModel> create(const nibble::io::Gguf& like, const Options& options,
                                             bool from_scratch) {
    using nibble::train::WeightChoice;
    NIBBLE_TRY(outline, outline_of(like, options.shape));
    TrainedModel made;
    made.outline_ = std::move(outline);
    NIBBLE_TRY(graph, training_graph(*made.outline_));
    made.graph_ = std::move(graph);
    const nibble::graph::FormatOps* deployed = nullptr;
    if (options.deployed) {
      deployed = nibble::graph::find(nibble::graph::AllFormats::kOps, *options.deployed);
      if (deployed == nullptr) {
        return nibble::Error{nibble::Errc::unsupported,
                             std::string("this program does not train for the format ") +
                                 to_string(*options.deployed)};
      }
    }
    const auto choose = [&](const std::string& name,
                            const nibble::graph::WeightNeed& need) -> nibble::Result<WeightChoice> {
      WeightChoice choice;
      const bool is_there = need.is_required || like.find_tensor(name) != nullptr;
      choice.kind = is_there ? WeightChoice::Kind::trained : WeightChoice::Kind::absent;
      if (need.n > 0) choice.deployed = deployed;
      choice.rounding.searches = options.searches;
      if (const auto of = options.importance.find(name); of != options.importance.end()) {
        choice.rounding.importance = of->second;
      }
      return choice;
    };
    NIBBLE_TRY(weights, nibble::train::TrainedWeights::create(*made.graph_, choose));
    made.weights_ = std::make_unique<nibble::train::TrainedWeights>(std::move(weights));
    if (from_scratch || !options.shape.is_same()) {
      nibble::train::initialize(*made.weights_, made.graph_->config().n_layers, options.seed);
    } else {
      NIBBLE_CHECK(nibble::train::read_values(like, *made.weights_));
    }
    return made;
  }

  const nibble::train::TrainingGraph& graph() const { return *graph_; }
  nibble::train::TrainedWeights& weights() const { return *weights_; }
  nibble::Result<nibble::train::ModelFile> file(
      nibble::quant::Format format = nibble::quant::Format::f32) const {
    return nibble::train::ModelFile::create(*outline_, *weights_, format);
  }
  // As others will load it.
  nibble::Result<nibble::io::Gguf> as_file(
      nibble::quant::Format format = nibble::quant::Format::f32) const {
    NIBBLE_TRY(made, file(format));
    NIBBLE_TRY(bytes, made.to_bytes());
    return parse_bytes(bytes, "the trained model");
  }

 private:
  TrainedModel() = default;

  std::optional<nibble::io::Gguf> outline_;
  nibble::Owned<nibble::train::TrainingGraph> graph_;
  std::unique_ptr<nibble::train::TrainedWeights> weights_;  // where runs refer to
};

}  // namespace example
