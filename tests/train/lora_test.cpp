// SPDX-License-Identifier: Apache-2.0
//
// Training of adapters: a step against PEFT (make_lora_goldens.py), gradients against differences,
// dropout, the weights beside them, memory.
#include "nibble/train/lora.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/nibble.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/initialize.hpp"
#include "nibble/train/model_file.hpp"
#include "nibble/train/trainer.hpp"
#include "train/llama_graph.hpp"
#include "train/lora_cases.hpp"

namespace lora_test {
namespace {

using namespace nibble;
using namespace nibble::train;
using nibble_test::in_project, nibble_test::golden_batch, nibble_test::open_home,
    nibble_test::load_home, test::llama_graph;

// Element i of the j-th factor.
void set_golden_factors(TrainedWeights& weights) {
  double j = 0;
  for (const TrainedTensor& t : weights.tensors()) {
    if (t.name.find(".lora_") == t.name.npos) continue;
    for (std::size_t i = 0; i < t.values.size(); ++i) {
      t.values[i] = static_cast<float>(0.05 * std::cos(0.61 * static_cast<double>(i) + 0.3 * j));
    }
    j += 1;
  }
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

double loss_of(const TrainingGraph& graph, TrainedWeights& weights, const Batch& batch,
               TrainerOptions options, Executor& executor) {
  options.max_rows = 50;
  auto trainer = Trainer::create(graph, weights, options, executor);
  REQUIRE(trainer);
  weights.clear_gradients(executor);
  const auto loss = trainer->cross_entropy(batch);
  REQUIRE(loss);
  return *loss;
}

// All bytes that a table of weights refers to.
std::vector<std::byte> bytes_of(graph::WeightTable table) {
  std::vector<std::byte> all;
  for (Index layer = -1; layer < table.n_layers(); ++layer) {
    for (std::size_t slot = 0; slot < table.n_slots(); ++slot) {
      const graph::Weight& w = table.at(slot, layer);
      if (w.has_base()) all.insert(all.end(), w.data, w.data + w.bytes());
    }
  }
  return all;
}

constexpr LoraOptions kGolden{
    .rank = 4, .alpha = 6, .is_rank_stabilized = false, .slot_names = "all"};

TEST_CASE("a step of factors beside packed weights is PEFT's") {
  const io::Gguf file = open_home();
  const Model model = load_home(file);
  const auto graph = llama_graph(file);
  auto weights = adapter_weights(*graph, model.weights(), kGolden);
  REQUIRE(weights);
  set_golden_factors(*weights);
  const std::vector<std::byte> before = bytes_of(model.weights());
  const Batch batch = golden_batch(graph->config().vocab_size);
  InlineExecutor executor;
  const double loss = loss_of(*graph, *weights, batch, {}, executor);
  std::ifstream in(in_project("tests/train/lora_goldens.txt"));
  std::string name;
  double expected = 0, after = 0, projection = 0;
  in >> name >> expected >> after;
  REQUIRE(in.good());
  CHECK(loss == doctest::Approx(expected).epsilon(2e-6));
  double expected_norm = 0;
  std::size_t n = 0;
  while (in >> name >> expected_norm >> projection) {
    CAPTURE(name);
    const TrainedTensor* const tensor = weights->find(name);
    REQUIRE(tensor != nullptr);
    double square = 0, turned = 0;
    for (std::size_t i = 0; i < tensor->gradient.size(); ++i) {
      const auto g = static_cast<double>(tensor->gradient[i]);
      square += g * g;
      turned += g * std::cos(0.37 * static_cast<double>(i) + 0.1);
    }
    CHECK(std::sqrt(square) == doctest::Approx(expected_norm).epsilon(3e-5));
    const double off = std::abs(turned - projection);
    CHECK(off < 1e-4 * expected_norm);
    ++n;
  }
  CHECK(n == weights->tensors().size());

  auto optimizer = AdamW::create(weights->parameters(), {.beta2 = 0.999, .weight_decay = 0.01});
  REQUIRE(optimizer);
  // 4 bytes for each value, gradient and moment; what arrays are aligned to is the rest.
  CHECK(weights->bytes() + optimizer->moment_bytes() <=
        17 * static_cast<std::size_t>(weights->n_trained()));
  REQUIRE(optimizer->step(executor, 1e-2, 1));
  // The first step moves each value by the rate, whatever its gradient is: tiny ones may differ.
  CHECK(loss_of(*graph, *weights, batch, {}, executor) == doctest::Approx(after).epsilon(1e-4));
  CHECK(bytes_of(model.weights()) == before);
}

TEST_CASE("gradients of factors are differences of the loss, with dropout and recomputed layers") {
  const io::Gguf file = open_home();
  const auto graph = llama_graph(file);
  const auto choose = [&](const std::string& name,
                          const graph::WeightNeed& need) -> Result<WeightChoice> {
    WeightChoice choice;
    choice.kind =
        file.find_tensor(name) == nullptr ? WeightChoice::Kind::absent : WeightChoice::Kind::frozen;
    if (need.n > 0 && !need.is_table && choice.kind == WeightChoice::Kind::frozen) {
      choice.rank = 3;
      choice.factor_scale = 2;
    }
    return choice;
  };
  auto weights = TrainedWeights::create(*graph, choose);
  REQUIRE(weights);
  REQUIRE(read_values(file, *weights));
  set_golden_factors(*weights);
  const Batch batch = golden_batch(graph->config().vocab_size);
  InlineExecutor executor;
  for (const float dropout : {0.0f, 0.3f}) {
    CAPTURE(dropout);
    const TrainerOptions options{.dropout_seed = 7, .factor_dropout = dropout};
    const double loss = loss_of(*graph, *weights, batch, options, executor);
    const std::vector<float> gradients = all_gradients(*weights);

    TrainerOptions changed = options;
    changed.checkpoints = true;
    CHECK(loss_of(*graph, *weights, batch, changed, executor) == loss);
    CHECK(same_bits(all_gradients(*weights), gradients));
    changed = options;
    changed.shares_memory = false;
    CHECK(loss_of(*graph, *weights, batch, changed, executor) == loss);
    CHECK(same_bits(all_gradients(*weights), gradients));
    auto pool = ThreadPool::create({.n_threads = 2});
    REQUIRE(pool);
    CHECK(loss_of(*graph, *weights, batch, options, **pool) == loss);
    CHECK(same_bits(all_gradients(*weights), gradients));

    changed = options;
    changed.dropout_seed = 8;
    CHECK((loss_of(*graph, *weights, batch, changed, executor) != loss) == (dropout > 0));

    // Along the gradient of each kind of tensor, the loss grows by its square.
    for (const char* const part :
         {"attn_q.weight.lora_a", "attn_q.weight.lora_b", "attn_v.weight.lora_a",
          "ffn_down.weight.lora_a", "ffn_down.weight.lora_b", "ffn_up.weight.lora_b"}) {
      CAPTURE(part);
      loss_of(*graph, *weights, batch, options, executor);
      std::vector<std::pair<const TrainedTensor*, std::vector<float>>> along;
      double square = 0;
      for (const TrainedTensor& t : weights->tensors()) {
        if (!t.name.ends_with(part)) continue;
        along.emplace_back(&t, std::vector<float>(t.gradient.begin(), t.gradient.end()));
        for (const float g : t.gradient) square += static_cast<double>(g) * static_cast<double>(g);
      }
      REQUIRE(square > 0);
      const double step = 0.02 / std::sqrt(square);
      const auto loss_at = [&](double x) {
        std::vector<std::vector<float>> kept;
        for (const auto& [t, g] : along) {
          kept.emplace_back(t->values.begin(), t->values.end());
          for (std::size_t i = 0; i < g.size(); ++i) {
            t->values[i] += static_cast<float>(x * step * static_cast<double>(g[i]));
          }
        }
        const double out = loss_of(*graph, *weights, batch, options, executor);
        for (std::size_t j = 0; j < along.size(); ++j) {
          std::copy(kept[j].begin(), kept[j].end(), along[j].first->values.begin());
        }
        return out;
      };
      // Five points: an error of step⁴.
      const double slope =
          (8 * (loss_at(1) - loss_at(-1)) - (loss_at(2) - loss_at(-2))) / (12 * step);
      CHECK(slope == doctest::Approx(square).epsilon(2e-3));
    }
  }
}

TEST_CASE("dropout is for steps that learn, of adapters only") {
  const io::Gguf file = open_home();
  const Model model = load_home(file);
  const auto graph = llama_graph(file);
  const Index vocab_size = graph->config().vocab_size;
  auto weights = adapter_weights(*graph, model.weights(), kGolden);
  REQUIRE(weights);
  const Batch batch = golden_batch(vocab_size);
  InlineExecutor executor;
  // B is zero: whatever the adapter's input is, nothing is added.
  initialize(*weights, graph->config().n_layers, 3);
  const double loss = loss_of(*graph, *weights, batch, {}, executor);
  CHECK(loss_of(*graph, *weights, batch, {.factor_dropout = 0.5f}, executor) == loss);
  set_golden_factors(*weights);
  const auto logits_of = [&](float dropout) {
    auto trainer =
        Trainer::create(*graph, *weights, {.max_rows = 50, .factor_dropout = dropout}, executor);
    REQUIRE(trainer);
    std::vector<float> out(static_cast<std::size_t>(batch.n_counted * vocab_size));
    REQUIRE(trainer->logits(batch, MatrixView<float>(out.data(), batch.n_counted, vocab_size)));
    return out;
  };
  CHECK(same_bits(logits_of(0.5f), logits_of(0)));
  for (const float dropout : {-0.1f, 1.0f, std::nanf("")}) {
    CHECK(
        !Trainer::create(*graph, *weights, {.max_rows = 50, .factor_dropout = dropout}, executor));
  }
}

TEST_CASE("a quantized base learns and stays as it is") {
  const io::Gguf f16 = open_home();
  const io::Gguf file = nibble_test::requantized(f16, quant::Format::q4_0);
  const Model model = load_home(file);
  const auto graph = llama_graph(file);
  auto weights = adapter_weights(*graph, model.weights(),
                                 {.rank = 8, .alpha = 16, .slot_names = "attn_q, attn_v,ffn_down"});
  REQUIRE(weights);
  CHECK(weights->find("blk.0.attn_q.weight.lora_a") != nullptr);
  CHECK(weights->find("blk.0.attn_k.weight.lora_a") == nullptr);
  initialize(*weights, graph->config().n_layers, 5);
  const std::vector<std::byte> before = bytes_of(model.weights());
  const Batch batch = golden_batch(graph->config().vocab_size);
  InlineExecutor executor;
  auto trainer = Trainer::create(*graph, *weights, {.max_rows = 50}, executor);
  auto optimizer = AdamW::create(weights->parameters(), {});
  REQUIRE(trainer);
  REQUIRE(optimizer);
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    weights->clear_gradients(executor);
    const auto loss = trainer->cross_entropy(batch);
    REQUIRE(loss);
    REQUIRE(optimizer->step(executor, 1e-2, 1 / static_cast<double>(batch.n_counted)));
    (step == 0 ? first : last) = *loss;
  }
  CHECK(last < 0.5 * first);
  CHECK(bytes_of(model.weights()) == before);
  CHECK(weights->bytes() + optimizer->moment_bytes() <=
        17 * static_cast<std::size_t>(weights->n_trained()));

  const LoraOptions same{.rank = 8, .alpha = 16, .slot_names = "attn_q, attn_v,ffn_down"};
  const Adapter adapter = adapter_of(*weights, "llama", same);
  CHECK(adapter.matrices.size() == 3 * static_cast<std::size_t>(graph->config().n_layers));
  auto again = adapter_weights(*graph, model.weights(), same);
  REQUIRE(again);
  REQUIRE(set_adapter(*again, adapter));
  for (const TrainedTensor& t : weights->tensors()) {
    const TrainedTensor* const other = again->find(t.name);
    REQUIRE(other != nullptr);
    CHECK(std::equal(t.values.begin(), t.values.end(), other->values.begin()));
  }
  auto smaller =
      adapter_weights(*graph, model.weights(), {.rank = 8, .alpha = 16, .slot_names = "attn_q"});
  REQUIRE(smaller);
  CHECK(!set_adapter(*smaller, adapter));
  // An adapter that does not fit changes nothing, whichever matrix does not.
  Adapter other = adapter;
  for (AdapterMatrix& m : other.matrices) {
    for (Scalar<float>& x : m.b) x.value += 1;
  }
  other.matrices.back().alpha = 15;
  CHECK(!set_adapter(*again, other));
  for (const TrainedTensor& t : weights->tensors()) {
    const auto kept = again->find(t.name)->values;
    CHECK(std::equal(t.values.begin(), t.values.end(), kept.begin()));
  }
  auto scaled = adapter_weights(*graph, model.weights(),
                                {.rank = 8, .alpha = 15, .slot_names = "attn_q, attn_v,ffn_down"});
  REQUIRE(scaled);
  CHECK(!set_adapter(*scaled, adapter));
}

TEST_CASE("slots that do not exist, and options out of range, are errors") {
  const io::Gguf file = open_home();
  const Model model = load_home(file);
  const auto graph = llama_graph(file);
  const auto error_of = [&](const LoraOptions& options) {
    auto made = adapter_weights(*graph, model.weights(), options);
    REQUIRE(!made);
    return std::move(made).error();
  };
  CHECK(error_of({.slot_names = "attn_z"}).code == Errc::not_found);
  CHECK(error_of({.slot_names = "attn_z"}).message.find("attn_z") != std::string::npos);
  CHECK(error_of({.slot_names = "all, token_embd"}).code == Errc::not_found);
  CHECK(error_of({.slot_names = "attn_norm"}).code == Errc::not_found);
  CHECK(error_of({.slot_names = ""}).code == Errc::invalid_argument);
  CHECK(error_of({.slot_names = "attn_q,,attn_v"}).code == Errc::invalid_argument);
  CHECK(error_of({.rank = 0}).code == Errc::invalid_argument);
  CHECK(error_of({.alpha = 0}).code == Errc::invalid_argument);
  auto made = adapter_weights(*graph, {}, {});
  CHECK(!made);
  // The output is tied to the embedding; factors beside it are its own.
  auto output = adapter_weights(*graph, model.weights(), {.rank = 2, .slot_names = "output"});
  REQUIRE(output);
  CHECK(output->tensors().size() == 2);
  CHECK(SlotChoice::slot_of("blk.12.attn_q.weight") == "attn_q");
  CHECK(SlotChoice::slot_of("output.weight") == "output");
  const LoraOptions stabilized{.rank = 16, .alpha = 8, .is_rank_stabilized = true};
  CHECK(stabilized.file_alpha() == 32);
}

}  // namespace

}  // namespace lora_test
