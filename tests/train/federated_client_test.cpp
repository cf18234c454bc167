// SPDX-License-Identifier: Apache-2.0
#include "nibble/train/federated_client.hpp"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/train/initialize.hpp"
#include "nibble/train/model_file.hpp"
#include "why.hpp"
#include "train/llama_graph.hpp"

namespace federated_client_test {

using namespace nibble;
using namespace nibble::train;
using test::why;

namespace {

io::Gguf home_file() {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(folder != nullptr);
  auto file = io::Gguf::open(std::string(folder) + "/examples/models/home-commands-f16.gguf");
  REQUIRE_MESSAGE(file.has_value(), why(file));
  return *std::move(file);
}

// The shipped model, frozen, with adapters of rank 2.
struct Adapted {
  Owned<TrainingGraph> graph;
  std::optional<TrainedWeights> weights;

  Adapted(const io::Gguf& file, std::uint64_t seed) {
    graph = test::llama_graph(file);
    auto chosen = TrainedWeights::create(
        *graph,
        [&](const std::string& name, const graph::WeightNeed& need) -> Result<WeightChoice> {
          WeightChoice choice;
          choice.kind = need.is_required || file.find_tensor(name) != nullptr
                            ? WeightChoice::Kind::frozen
                            : WeightChoice::Kind::absent;
          if (need.n > 0 && !need.is_table) choice.rank = 2;
          if (name.find("attn_q") == name.npos) choice.rank = 0;
          return choice;
        });
    REQUIRE_MESSAGE(chosen.has_value(), why(chosen));
    weights.emplace(*std::move(chosen));
    initialize(*weights, graph->config().n_layers, seed);
    const auto read = read_values(file, *weights);
    REQUIRE_MESSAGE(read.has_value(), why(read));
  }
};

MemorySource numbers(int first, int n) {
  std::vector<Example> examples;
  for (int i = 0; i < n; ++i) {
    Example e;
    for (int j = 0; j < 3 + (first + i) % 4; ++j) e.tokens.push_back(1 + (first + 7 * i + j) % 90);
    examples.push_back(e);
  }
  return MemorySource(std::move(examples));
}

LocalOptions options() {
  LocalOptions o;
  o.rounds = {Schedule::Shape::constant, 1e-2, 0, 0, 10};
  o.n_steps = 2;
  o.batches = {.context = 8, .max_rows = 32, .max_sequences = 4};
  o.n_public = 3;
  o.k = 5;
  o.n_passes = 4;
  return o;
}

}  // namespace

TEST_CASE("adapters alone are shared, and a mean of predictions is learned") {
  const io::Gguf file = home_file();
  InlineExecutor executor;
  Adapted model(file, 1), teacher(file, 2);
  const MemorySource own = numbers(0, 8), other = numbers(40, 8), common = numbers(3, 7);
  LocalClient client(*model.graph, *model.weights, &own, &common, options(), executor);
  LocalClient master(*teacher.graph, *teacher.weights, &other, &common, options(), executor);

  for (const Parameter& p : client.shared()) CHECK(p.name.find(".lora_") != p.name.npos);
  CHECK(client.shared().size() == 2 * static_cast<std::size_t>(model.graph->config().n_layers));
  const std::vector<float> base(model.weights->find("blk.0.attn_q.weight")->values.begin(),
                                model.weights->find("blk.0.attn_q.weight")->values.end());
  auto n = client.train(1);
  REQUIRE_MESSAGE(n.has_value(), why(n));
  CHECK(*n == 8);
  const auto after = model.weights->find("blk.0.attn_q.weight")->values;
  CHECK(std::equal(base.begin(), base.end(), after.begin()));
  CHECK(model.weights->find("blk.0.attn_q.weight.lora_b")->values[0] != 0.0f);

  // Rounds go around the examples that all have: 3 of 7 in each.
  for (const std::uint64_t round : {1u, 2u, 3u}) {
    const auto rows = LocalClient::rows_of(common, round, options(), 512);
    REQUIRE(rows.has_value());
    Example e;
    REQUIRE(common.read(static_cast<Index>(3 * (round - 1)) % 7, e).has_value());
    CHECK(rows->n_rows[0] == static_cast<Index>(e.tokens.size()) - 1);
    const auto predicted = client.predict(round);
    REQUIRE_MESSAGE(predicted.has_value(), why(predicted));
    for (Index i = 0; i < 3; ++i) CHECK(predicted->n_rows(i) == rows->n_rows[std::size_t(i)]);
  }

  // What is learned comes nearer.
  REQUIRE(master.train(1).has_value());
  const auto taught = master.predict(2);
  REQUIRE(taught.has_value());
  REQUIRE(client.learn(3, 2, *taught).has_value());
  const double first = client.loss();
  REQUIRE(client.learn(4, 2, *taught).has_value());
  CHECK(client.loss() < first);
  CHECK(first > 0);

  // Of the tokens alone it does not matter what others predict.
  auto tokens_alone = options();
  tokens_alone.hard = 1;
  Adapted a(file, 4), b(file, 4);
  LocalClient with_one(*a.graph, *a.weights, &own, &common, tokens_alone, executor);
  LocalClient with_other(*b.graph, *b.weights, &own, &common, tokens_alone, executor);
  REQUIRE(with_one.learn(3, 2, *taught).has_value());
  const auto second = a.weights->find("blk.1.attn_q.weight.lora_b")->values;
  CHECK(std::any_of(second.begin(), second.end(), [](float x) { return x != 0; }));
  const auto own_view = with_other.predict(2);
  REQUIRE(own_view.has_value());
  REQUIRE(with_other.learn(3, 2, *own_view).has_value());
  const auto same = b.weights->find("blk.1.attn_q.weight.lora_b")->values;
  CHECK(std::equal(second.begin(), second.end(), same.begin()));
  CHECK(with_one.loss() == with_other.loss());

  LocalClient pupil(*model.graph, *model.weights, nullptr, nullptr, options(), executor);
  CHECK(!pupil.train(1));
  CHECK(!pupil.predict(1));
  CHECK(!pupil.learn(2, 1, *taught));
  CHECK(!client.predict(0));
  CHECK(!client.train(0));
  CHECK(!client.learn(0, 1, *taught));
  CHECK(!client.learn(1, 0, *taught));
  const MemorySource none(std::vector<Example>{});
  LocalClient without(*model.graph, *model.weights, &none, &none, options(), executor);
  CHECK(!without.train(1));
  CHECK(!without.predict(1));
  const auto no_rows = LocalClient::rows_of(none, 1, options(), 512);
  REQUIRE(no_rows);
  CHECK(no_rows->n_rows.empty());
  auto of_others = options();
  of_others.n_public = 4;
  LocalClient other_rows(*model.graph, *model.weights, &own, &common, of_others, executor);
  CHECK(!other_rows.learn(2, 1, *taught));

  // Options out of range are errors, and no endless loops.
  const auto refuses = [&](auto change) {
    LocalOptions wrong = options();
    change(wrong);
    LocalClient one(*model.graph, *model.weights, &own, &common, wrong, executor);
    const auto trained = one.train(1);
    const auto learned = one.learn(2, 1, *taught);
    REQUIRE((!trained && !learned && !one.predict(1)));
    CHECK(trained.error().code == Errc::invalid_argument);
    CHECK(learned.error().code == Errc::invalid_argument);
  };
  refuses([](LocalOptions& o) { o.n_passes = 0; });
  refuses([](LocalOptions& o) { o.n_passes = -1; });
  refuses([](LocalOptions& o) { o.n_steps = 0; });
  refuses([](LocalOptions& o) { o.n_public = 0; });
  refuses([](LocalOptions& o) { o.hard = 1.5; });
  refuses([](LocalOptions& o) { o.rounds.n_steps = 0; });
  auto narrow = options();
  narrow.batches.vocabulary = 400;
  LocalClient other_width(*model.graph, *model.weights, &own, &common, narrow, executor);
  CHECK(!other_width.predict(1));

  // The number of examples: of as many sequences as batches have, or all.
  auto any_number = options();
  any_number.batches.max_sequences = BatchOptions{}.max_sequences;
  LocalClient all(*model.graph, *model.weights, &own, &common, any_number, executor);
  n = all.train(1);
  REQUIRE_MESSAGE(n.has_value(), why(n));
  CHECK(*n == 8);
  any_number.batches.max_sequences = 3;
  LocalClient some(*model.graph, *model.weights, &own, &common, any_number, executor);
  n = some.train(1);
  REQUIRE_MESSAGE(n.has_value(), why(n));
  CHECK(*n == 6);
}

}  // namespace federated_client_test
