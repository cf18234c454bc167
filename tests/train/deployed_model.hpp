// SPDX-License-Identifier: Apache-2.0
//
// The bundled model in training for a format, its file, and the logits of both: for tests.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/executor.hpp"
#include "nibble/model/load.hpp"
#include "nibble/nibble.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/input_ranges.hpp"
#include "nibble/train/model_file.hpp"
#include "nibble/train/trainer.hpp"
#include "train/llama_graph.hpp"

namespace test {

using namespace nibble;
using namespace nibble::train;
using quant::Format;

inline io::Gguf bundled() {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  auto file = io::Gguf::open(std::string(folder) + "/examples/models/home-commands-f16.gguf");
  REQUIRE(file);
  return *std::move(file);
}

inline io::Gguf parsed(const std::vector<std::byte>& bytes) {
  auto buffer = AlignedBuffer::allocate(bytes.size());
  REQUIRE(buffer);
  std::memcpy(buffer->data(), bytes.data(), bytes.size());
  auto file = io::Gguf::parse(*std::move(buffer), "trained");
  REQUIRE(file);
  return *std::move(file);
}

inline Batch batch_of(Index vocab_size) {
  Batch batch;
  batch.offsets.push_back(0);
  for (const Index length : {9, 14, 3}) {
    for (Index i = 0; i < length; ++i) {
      const auto id = [&](Index j) {
        return static_cast<std::int32_t>((41 * (batch.n_rows() + j) + 5) % vocab_size);
      };
      const std::int32_t token = id(0), target = id(1);
      batch.tokens.push_back(token);
      batch.targets.push_back(target);
      batch.weights.push_back(1);
    }
    batch.offsets.push_back(batch.n_rows());
  }
  batch.n_counted = batch.n_rows();
  batch.weight = static_cast<double>(batch.n_rows());
  return batch;
}

struct Trained {
  Owned<TrainingGraph> graph;
  TrainedWeights weights;
};

// The weights of `file`, for a format or as f32.
inline Trained trained_from(const io::Gguf& file, std::optional<Format> format,
                            const Rounding& rounding = {}) {
  auto graph = llama_graph(file);
  auto weights = TrainedWeights::create(
      *graph, [&](const std::string& name, const graph::WeightNeed& need) -> Result<WeightChoice> {
        WeightChoice choice;
        if (file.find_tensor(name) == nullptr) choice.kind = WeightChoice::Kind::absent;
        if (format && need.n > 0) choice.deployed = graph::find(graph::AllFormats::kOps, *format);
        choice.rounding = rounding;
        return choice;
      });
  REQUIRE(weights);
  REQUIRE(read_values(file, *weights));
  return {std::move(graph), *std::move(weights)};
}

inline void take_steps(Trained& model, int n, const Batch& batch, Executor& executor,
                       InputRanges* ranges = nullptr) {
  auto trainer = Trainer::create(*model.graph, model.weights, {.max_rows = 40}, executor);
  REQUIRE(trainer);
  auto optimizer = AdamW::create(model.weights.parameters(), {});
  REQUIRE(optimizer);
  if (ranges != nullptr) trainer->set_product_observer(ranges->observer());
  for (int i = 0; i < n; ++i) {
    model.weights.clear_gradients(executor);
    if (ranges != nullptr) ranges->begin();
    REQUIRE(trainer->cross_entropy(batch));
    REQUIRE(optimizer->step(executor, 1e-3, 1 / batch.weight));
    REQUIRE(model.weights.round_deployed(executor));
    if (ranges != nullptr) REQUIRE(ranges->update());
  }
}

inline io::Gguf exported(const io::Gguf& like, const Trained& model) {
  auto file = ModelFile::create(like, model.weights);
  REQUIRE(file);
  auto bytes = file->to_bytes();
  REQUIRE(bytes);
  return parsed(*bytes);
}

inline std::vector<float> logits_in_training(Trained& model, const Batch& batch,
                                             Executor& executor) {
  auto trainer = Trainer::create(*model.graph, model.weights, {.max_rows = 40}, executor);
  REQUIRE(trainer);
  const Index n = model.graph->config().vocab_size;
  std::vector<float> logits(static_cast<std::size_t>(batch.n_counted * n));
  REQUIRE(trainer->logits(batch, MatrixView<float>(logits.data(), batch.n_counted, n)));
  return logits;
}

// Of the model in the file, as programs run it.
inline std::vector<float> logits_of_file(const io::Gguf& file, const Batch& batch) {
  auto model = Model::from_gguf<graph::AllFormats>(file);
  REQUIRE(model);
  auto session = Session::create(*model, {.max_outputs = 40, .kv_type = ops::KvType::f32});
  REQUIRE(session);
  std::vector<float> all;
  for (std::size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    const auto first = static_cast<std::size_t>(batch.offsets[s]);
    const auto n = static_cast<std::size_t>(batch.offsets[s + 1]) - first;
    REQUIRE(session->rewind(0));
    const auto logits =
        session->append(std::span(batch.tokens).subspan(first, n), static_cast<Index>(n));
    REQUIRE(logits);
    for (Index i = 0; i < logits->extent(0); ++i) {
      for (Index j = 0; j < logits->extent(1); ++j) all.push_back((*logits)(i, j));
    }
  }
  return all;
}

inline double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double off = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    off += (x - y) * (x - y);
    size += x * x;
  }
  return std::sqrt(off / size);
}

}  // namespace test
