// SPDX-License-Identifier: Apache-2.0
//
// Gradients of whole models against PyTorch in double precision (make_gradient_goldens.py), and
// what must not change their bits: threads, memory that results share, layers that are computed
// again.
#include "nibble/train/trainer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/io/safetensors.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/train/model_file.hpp"
#include "test_data.hpp"
#include "train/llama_graph.hpp"

namespace gradients_test {
namespace {

using namespace nibble;
using namespace nibble::train;

std::string in_project(const std::string& path) {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  return std::string(folder) + "/" + path;
}

// The sequences of the goldens: their lengths, the last token of each being only a target.
using Lengths = std::array<Index, 4>;
constexpr Lengths kLengths = {7, 13, 2, 20};

Batch golden_batch(Index vocab_size, const Lengths& lengths = kLengths) {
  Batch batch;
  batch.offsets.push_back(0);
  Index token = 0;
  for (const Index length : lengths) {
    for (Index i = 0; i + 1 < length; ++i) {
      const auto id = [&](Index j) {
        return static_cast<std::int32_t>((37 * (token + j) + 11) % vocab_size);
      };
      batch.tokens.push_back(id(i));
      batch.targets.push_back(id(i + 1));
      batch.weights.push_back(batch.n_rows() % 5 == 0 ? 0.0f : 1.0f);
      batch.n_counted += batch.weights.back() > 0 ? 1 : 0;
    }
    token += length;
    batch.offsets.push_back(batch.n_rows());
  }
  return batch;
}

struct Loaded {
  Owned<TrainingGraph> graph;
  TrainedWeights weights;
};

Loaded load_trained(const io::Gguf& file) {
  auto graph = test::llama_graph(file);
  auto weights = weights_of(*graph, file);
  REQUIRE(weights);
  return {std::move(graph), *std::move(weights)};
}

double loss_of(Loaded& model, const Batch& batch, const TrainerOptions& options,
               Executor& executor) {
  auto trainer = Trainer::create(*model.graph, model.weights, options, executor);
  REQUIRE(trainer);
  model.weights.clear_gradients(executor);
  const auto loss = trainer->cross_entropy(batch);
  REQUIRE(loss);
  return *loss;
}

std::vector<float> all_gradients(const TrainedWeights& weights) {
  std::vector<float> all;
  for (const TrainedTensor& t : weights.tensors()) {
    all.insert(all.end(), t.gradient.begin(), t.gradient.end());
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// GPT-2's names, as PyTorch programs have them, by our own; others as they are.
std::string our_name(std::string name) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"transformer.wte", "token_embd"},
      {"transformer.wpe", "position_embd"},
      {"transformer.ln_f", "output_norm"},
      {"transformer.h.", "blk."},
      {"lm_head", "output"},
      {"ln_1", "attn_norm"},
      {"ln_2", "ffn_norm"},
      {"attn.c_attn", "attn_qkv"},
      {"attn.c_proj", "attn_output"},
      {"mlp.c_fc", "ffn_up"},
      {"mlp.c_proj", "ffn_down"}};
  for (const auto& [theirs, ours] : kNames) {
    const std::size_t at = name.find(theirs);
    if (at != std::string::npos) name.replace(at, theirs.size(), ours);
  }
  return name;
}

void check_goldens(Loaded& model, const std::string& goldens, const Lengths& lengths = kLengths) {
  const Batch batch = golden_batch(model.graph->config().vocab_size, lengths);
  InlineExecutor executor;
  const Index n_positions = *std::max_element(lengths.begin(), lengths.end()) - 1;
  const double loss = loss_of(model, batch, {.max_rows = 50, .n_positions = n_positions}, executor);
  std::ifstream in(in_project("tests/train/" + goldens));
  std::string name;
  double expected = 0, projection = 0;
  in >> name >> expected;
  REQUIRE(in.good());
  CHECK(loss == doctest::Approx(expected).epsilon(1e-6));
  std::size_t n = 0;
  while (in >> name >> expected >> projection) {
    CAPTURE(name);
    const TrainedTensor* const tensor = model.weights.find(our_name(name));
    REQUIRE(tensor != nullptr);
    double square = 0, turned = 0;
    for (std::size_t i = 0; i < tensor->gradient.size(); ++i) {
      const auto g = static_cast<double>(tensor->gradient[i]);
      square += g * g;
      turned += g * std::cos(0.37 * static_cast<double>(i) + 0.1);
    }
    CHECK(std::sqrt(square) == doctest::Approx(expected).epsilon(3e-5));
    const double off = std::abs(turned - projection);
    CHECK(off < 1e-4 * expected);  // the cosines make a vector of norm 5 and more
    ++n;
  }
  CHECK(n == model.weights.tensors().size());
}

void check_goldens(const std::string& model_path, const std::string& goldens) {
  const auto file = io::Gguf::open(model_path);
  REQUIRE(file);
  Loaded model = load_trained(*file);
  check_goldens(model, goldens);
}

// minGPT's gpt-nano, whose output is not tied to its embeddings.
Loaded load_gpt_nano(const io::Safetensors& file) {
  ModelConfig config;
  config.vocab_size = 3;
  config.dim = 48;
  config.n_layers = 3;
  config.n_heads = config.n_kv_heads = 3;
  config.head_dim = 16;
  config.ffn_dim = 192;
  config.n_ctx = 11;
  auto graph = make_training_graph<Gpt2>(config);
  REQUIRE(graph);
  const auto choose = [](const std::string&, const graph::WeightNeed&) {
    return Result<WeightChoice>(WeightChoice{.n_rows = 11});
  };
  auto weights = TrainedWeights::create(*graph, choose);
  REQUIRE(weights);
  std::size_t n = 0;
  for (const io::Safetensor& tensor : file.tensors()) {
    if (tensor.shape.size() > 2) continue;  // a mask of attention
    CAPTURE(tensor.name);
    const TrainedTensor* const ours = weights->find(our_name(tensor.name));
    REQUIRE(ours != nullptr);
    REQUIRE(tensor.data.size() == ours->values.size_bytes());
    std::memcpy(ours->values.data(), tensor.data.data(), tensor.data.size());
    ++n;
  }
  REQUIRE(n == weights->tensors().size());
  return {std::move(graph), *std::move(weights)};
}

TEST_CASE("gradients of the bundled model, with tied embeddings, are PyTorch's") {
  check_goldens(in_project("examples/models/home-commands-f16.gguf"),
                "gradients_home_commands.txt");
}

TEST_CASE("gradients of stories260K are PyTorch's") {
  const auto path = test::data_path("models/stories260K/stories260K.gguf");
  if (path) check_goldens(*path, "gradients_stories260k.txt");
}

TEST_CASE("gradients of gpt-nano, a GPT-2, are PyTorch's") {
  const auto path = test::data_path("models/gpt-nano-sort/model.by-us.safetensors");
  if (!path) return;
  const auto file = io::Safetensors::open(*path);
  REQUIRE(file);
  Loaded model = load_gpt_nano(*file);
  check_goldens(model, "gradients_gpt_nano.txt", {7, 12, 2, 11});
}

TEST_CASE("threads, shared memory and recomputed layers leave the bits of gradients alone") {
  const auto file = io::Gguf::open(in_project("examples/models/home-commands-f16.gguf"));
  REQUIRE(file);
  Loaded model = load_trained(*file);
  const Batch batch = golden_batch(model.graph->config().vocab_size);
  InlineExecutor alone;
  const double loss = loss_of(model, batch, {.max_rows = 50}, alone);
  const std::vector<float> gradients = all_gradients(model.weights);
  for (const Index n_threads : {2, 3}) {
    auto pool = ThreadPool::create({.n_threads = n_threads});
    REQUIRE(pool);
    CHECK(loss_of(model, batch, {.max_rows = 50}, **pool) == loss);
    CHECK(same_bits(all_gradients(model.weights), gradients));
  }
  CHECK(loss_of(model, batch, {.max_rows = 50, .shares_memory = false}, alone) == loss);
  CHECK(same_bits(all_gradients(model.weights), gradients));
  CHECK(loss_of(model, batch, {.max_rows = 50, .checkpoints = true}, alone) == loss);
  CHECK(same_bits(all_gradients(model.weights), gradients));
  // Room for more than the batch changes nothing either.
  CHECK(loss_of(model, batch, {.max_rows = 333, .max_sequences = 40}, alone) == loss);
  CHECK(same_bits(all_gradients(model.weights), gradients));
}

}  // namespace

}  // namespace gradients_test
