// SPDX-License-Identifier: Apache-2.0
//
// Fewer layers for a token: what is left out, what is stored of it, drafts of which nothing lasts,
// exits that do not depend on who shares the step.
#include "nibble/generate/depth.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/prefixes.hpp"
#include "nibble/core/arena.hpp"
#include "nibble/generate/confidence.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/slot.hpp"

namespace depth_test {

using namespace nibble;
using namespace test;
using ops::SegmentKind;
using Row = std::vector<float>;

namespace {

constexpr auto kPrompt = SegmentKind::prompt;
constexpr auto kGeneration = SegmentKind::generation;

// Logits of the last n_outputs rows, one after the other.
Row step(Engine& engine, Sequence& sequence, std::span<const std::int32_t> ids, SegmentKind kind,
         Index n_outputs = 1) {
  const SequenceInput input{
      .sequence = &sequence, .tokens = ids, .n_outputs = n_outputs, .kind = kind};
  const auto logits = must(engine.run({&input, 1}));
  return {logits.data(), logits.data() + logits.extent(0) * logits.extent(1)};
}
Row draft(Engine& engine, Sequence& sequence, std::span<const std::int32_t> ids, Index n_layers) {
  const SequenceInput input{.sequence = &sequence, .tokens = ids, .kind = kGeneration};
  const auto logits = must(engine.draft({&input, 1}, n_layers));
  return {logits.data(), logits.data() + logits.extent(1)};
}

Model mixed_model() {
  ModelShape shape;
  shape.vocab_size = 50;
  shape.dim = 64;
  shape.n_layers = 4;
  shape.head_dim = shape.rope_dim = 16;
  shape.ffn_dim = 96;
  shape.n_ctx = 512;
  shape.formats = {Format::q4_0, Format::f16, Format::q8_0};
  return test::model_of(shape, 3);
}

// The weights of a model in which some layers add nothing to the rows that pass.
class IdleLayers {
 public:
  IdleLayers(const Model& model, std::span<const Index> layers) {
    const graph::WeightTable own = model.weights();
    for (Index layer = -1; layer < own.n_layers(); ++layer) {
      for (std::size_t slot = 0; slot < own.n_slots(); ++slot) {
        weights_.push_back(own.at(slot, layer));
        const bool is_idle = std::find(layers.begin(), layers.end(), layer) != layers.end();
        const auto name = static_cast<Slot>(slot);
        if (!is_idle || (name != Slot::attn_output && name != Slot::ffn_down)) continue;
        auto zeros = AlignedBuffer::allocate(static_cast<std::size_t>(weights_.back().bytes()));
        zeros_.push_back(must(std::move(zeros)));
        weights_.back().data = zeros_.back().data();
      }
    }
    n_slots_ = own.n_slots();
  }
  graph::WeightTable table() const { return {weights_, n_slots_}; }

 private:
  std::vector<graph::Weight> weights_;
  std::vector<AlignedBuffer> zeros_;
  std::size_t n_slots_ = 0;
};

struct Named {
  const char* name;
  Model model;
};
std::vector<Named> models() {
  return {{"llama, F32", llama_model()},
          {"llama, Q4_0, F16 and Q8_0", mixed_model()},
          {"gemma: windows in some layers, two tables of pages", gemma_model(70)}};
}

}  // namespace

namespace {

// With which about half of the rows end early.
double threshold_for(const Model& model, Confidence measure) {
  const Ids ids = some_ids(40, 12);
  const Index after[] = {1, 2};
  for (double threshold = 0.002; threshold < 1; threshold *= 1.5) {
    Engine engine = must(Engine::create(model, {.n_ctx = 64}));
    REQUIRE(
        engine.set_early_exit({.after_layers = after, .threshold = threshold, .measure = measure}));
    Sequence sequence = must(engine.new_sequence());
    for (std::size_t i = 0; i < 40; ++i) {
      step(engine, sequence, std::span(ids).subspan(i, 1), kGeneration);
    }
    if (engine.early_exit_counts().n_exits <= 22) return threshold;
  }
  FAIL("no threshold");
  return 0;
}

}  // namespace

TEST_CASE("a layer that is left out adds nothing, and stores keys and values all the same") {
  const Ids ids = some_ids(160, 5);
  const auto all = std::span(ids);
  const Index left_out[] = {1};
  for (const Model& model : {llama_model(), mixed_model()}) {
    for (const ops::KvType kv_type : ops::kKvTypes) {
      const EngineOptions options{.n_ctx = 256, .kv_type = kv_type, .exchangeable_weights = true};
      const IdleLayers idle(model, left_out);
      Engine engine = must(Engine::create(model, options));
      Engine other = must(Engine::create(model, options));
      Sequence a = must(engine.new_sequence()), b = must(other.new_sequence());
      // Prompt, tokens and a prompt again, with and without the layer: later steps at full depth
      // read what the others stored.
      std::size_t at = 0, i = 0;
      for (const std::size_t n : {40u, 1u, 1u, 30u, 1u, 40u, 1u, 1u, 2u, 20u, 1u}) {
        const bool leaves_out = i++ % 4 != 3;
        CAPTURE(i);
        REQUIRE(engine.set_depth(leaves_out ? Depth{.left_out = left_out} : Depth{}));
        REQUIRE(other.exchange_weights(leaves_out ? idle.table() : graph::WeightTable()));
        const SegmentKind kind = n <= 2 ? kGeneration : kPrompt;
        REQUIRE(step(engine, a, all.subspan(at, n), kind) ==
                step(other, b, all.subspan(at, n), kind));
        at += n;
      }
      CHECK(a.n_exact() == 0);
    }
  }
}

TEST_CASE("the first n layers are all but the others") {
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    const Index n_layers = model.config().n_layers;
    std::vector<Index> left_out;
    for (Index i = 2; i < n_layers; ++i) left_out.push_back(i);
    Engine engine = must(Engine::create(model, {.n_ctx = 256}));
    const Ids ids = some_ids(100, 6);
    const auto run = [&](const Depth& depth) {
      REQUIRE(engine.set_depth(depth));
      Sequence sequence = must(engine.new_sequence());
      Row logits = step(engine, sequence, std::span(ids).first(60), kPrompt);
      for (std::size_t i = 60; i < 100; ++i) {
        const Row row = step(engine, sequence, std::span(ids).subspan(i, 1), kGeneration);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      return logits;
    };
    const Row full = run({});
    CHECK(run({.n_layers = 2}) == run({.left_out = left_out}));
    CHECK(run({.n_layers = 2}) != full);
    CHECK(run({.n_layers = n_layers}) == full);
    CHECK(run({}) == full);
  }
}

TEST_CASE("how much of a sequence is exact, and how to come back to it") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 256, .cache_positions = 2048}));
  const Ids ids = some_ids(130, 7);
  const auto all = std::span(ids);
  Sequence sequence = must(engine.new_sequence()), whole = must(engine.new_sequence());
  step(engine, whole, all.first(64), kPrompt);
  step(engine, whole, all.subspan(64, 6), kPrompt);
  const Row expected = step(engine, whole, all.subspan(70, 30), kPrompt);
  CHECK(whole.n_exact() == 100);

  step(engine, sequence, all.first(64), kPrompt);
  step(engine, sequence, all.subspan(64, 6), kPrompt);
  REQUIRE(engine.set_depth({.n_layers = 1}));
  step(engine, sequence, all.subspan(70, 5), kPrompt);
  REQUIRE(engine.set_depth({}));
  CHECK(step(engine, sequence, all.subspan(75, 25), kPrompt) != expected);
  CHECK(sequence.n_exact() == 70);
  CHECK(must(sequence.fork()).n_exact() == 70);

  // What is not exact does not get into the cache of prefixes.
  PrefixCache cache = must(PrefixCache::create(engine));
  CHECK(must(cache.insert(sequence)) == 70);
  Sequence again = must(cache.match(all.first(100)));
  CHECK(again.position() == 70);
  CHECK(again.n_exact() == 70);
  CHECK(step(engine, again, all.subspan(70, 30), kPrompt) == expected);

  REQUIRE(sequence.rewind(sequence.n_exact()));
  CHECK(step(engine, sequence, all.subspan(70, 30), kPrompt) == expected);
  CHECK(sequence.n_exact() == 100);

  // Without the last layer only the logits are others: it stores what it always stores.
  REQUIRE(sequence.rewind(70));
  REQUIRE(engine.set_depth({.n_layers = 2}));
  CHECK(step(engine, sequence, all.subspan(70, 29), kPrompt) != expected);
  REQUIRE(engine.set_depth({}));
  CHECK(sequence.n_exact() == 99);
  Sequence last = must(whole.fork());
  REQUIRE(last.rewind(99));
  CHECK(step(engine, sequence, all.subspan(99, 1), kGeneration) ==
        step(engine, last, all.subspan(99, 1), kGeneration));
}

TEST_CASE("drafts by early layers: nothing of them lasts") {
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    const Ids ids = some_ids(90, 8);
    const auto all = std::span(ids);
    Engine engine =
        must(Engine::create(model, {.n_ctx = 256, .cache_positions = 2048, .max_outputs = 40}));
    // Full steps of the first layers only are what drafts must give. (60 + 9 rows: over the end of
    // a page.)
    Sequence shallow = must(engine.new_sequence()), deep = must(engine.new_sequence());
    Sequence sequence = must(engine.new_sequence());
    std::vector<Row> expected;
    step(engine, shallow, all.first(60), kPrompt);
    step(engine, deep, all.first(60), kPrompt);
    step(engine, sequence, all.first(60), kPrompt);
    REQUIRE(engine.set_depth({.n_layers = 2}));
    for (std::size_t i = 60; i < 69; ++i) {
      expected.push_back(step(engine, shallow, all.subspan(i, 1), kGeneration));
    }
    REQUIRE(engine.set_depth({}));

    REQUIRE(sequence.push(ids[60]));
    CHECK(draft(engine, sequence, {}, 2) == expected[0]);
    for (std::size_t i = 61; i < 69; ++i) {
      REQUIRE(draft(engine, sequence, all.subspan(i, 1), 2) == expected[i - 60]);
      if (i == 65) {  // a fork does not have them, and does not disturb them
        Sequence fork = must(sequence.fork());
        CHECK(fork.n_pending() == 6);
        CHECK(step(engine, fork, {}, kGeneration, 6).size() == std::size_t{6 * 50});
        REQUIRE(fork.push(ids[3]));
        step(engine, fork, {}, kGeneration);
      }
    }
    CHECK(sequence.n_pending() == 9);
    CHECK(sequence.n_exact() == 60);
    // Fewer layers go on from there; more layers begin anew.
    Sequence other = must(sequence.fork());
    const SequenceInput input{.sequence = &other, .tokens = all.subspan(69, 1)};
    REQUIRE(engine.draft({&input, 1}, 1));
    REQUIRE(other.rewind(69));
    CHECK(draft(engine, other, all.subspan(69, 1), 2) ==
          draft(engine, sequence, all.subspan(69, 1), 2));

    // All of them are verified in one step; half is refused.
    const Row verified = step(engine, sequence, {}, kGeneration, 10);
    CHECK(verified == step(engine, deep, all.subspan(60, 10), kGeneration, 10));
    CHECK(sequence.n_exact() == 70);
    REQUIRE(sequence.rewind(65));
    REQUIRE(deep.rewind(65));
    // Drafts that are given up before.
    draft(engine, sequence, all.subspan(65, 25), 2);
    REQUIRE(sequence.rewind(66));
    draft(engine, sequence, all.subspan(66, 3), 1);
    REQUIRE(sequence.rewind(65));
    CHECK(sequence.n_pages() == deep.n_pages());
    CHECK(step(engine, sequence, all.subspan(65, 1), kGeneration) ==
          step(engine, deep, all.subspan(65, 1), kGeneration));
    {
      const Sequence gone[] = {std::move(sequence), std::move(shallow), std::move(deep),
                               std::move(other)};
    }
    CHECK(engine.n_free_pages() == engine.n_pages());
  }
}

TEST_CASE("a session may draft, too") {
  const Model model = llama_model();
  Session session = must(Session::create(model, {.n_ctx = 64, .max_step_tokens = 4})),
          other = must(Session::create(model, {.n_ctx = 64, .max_step_tokens = 4}));
  const Ids ids = some_ids(20, 9);
  must(session.append(std::span(ids).first(5)));
  must(other.append(std::span(ids).first(5)));
  // More drafts than a step has room for: the next call computes them in several steps.
  for (std::size_t i = 5; i < 15; ++i) {
    draft(session.engine(), session.sequence(), std::span(ids).subspan(i, 1), 1);
  }
  const auto a = must(session.append(std::span(ids).subspan(15)));
  const auto b = must(other.append(std::span(ids).subspan(5)));
  CHECK(std::equal(a.data(), a.data() + 50, b.data()));
}

TEST_CASE("early exit: all rows, none, or those that are sure") {
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    const Ids ids = some_ids(120, 10);
    const auto all = std::span(ids);
    const auto run = [&](const EarlyExit& exit, Index n_layers, EarlyExitCounts* counts = nullptr) {
      Engine engine = must(Engine::create(model, {.n_ctx = 256}));
      REQUIRE(engine.set_early_exit(exit));
      Sequence sequence = must(engine.new_sequence());
      Row logits = step(engine, sequence, all.first(60), kPrompt);
      REQUIRE(engine.set_depth({.n_layers = n_layers}));
      for (std::size_t i = 60; i < 120; ++i) {
        const Row row = step(engine, sequence, all.subspan(i, 1), kGeneration);
        logits.insert(logits.end(), row.begin(), row.end());
      }
      if (counts != nullptr) *counts = engine.early_exit_counts();
      if (!exit.after_layers.empty()) {
        // After all layers but the last, what is stored is exact.
        const bool stores_exactly = engine.early_exit_counts().n_exits == 0 ||
                                    exit.after_layers.front() == Index{model.config().n_layers} - 1;
        CHECK((sequence.n_exact() == 120) == stores_exactly);
      }
      return logits;
    };
    const auto n_layers = static_cast<std::uint64_t>(Index{model.config().n_layers});
    const Row full = run({}, 0);
    const Index after_one[] = {1}, after_two[] = {2}, after_both[] = {1, 2};
    EarlyExitCounts counts;
    CHECK(run({.after_layers = after_one, .threshold = -1}, 0, &counts) == run({}, 1));
    CHECK(counts.n_rows == 60);
    CHECK(counts.n_exits == 60);
    CHECK(counts.n_layers == 60);
    CHECK(run({.after_layers = after_two, .threshold = -1}, 0) == run({}, 2));
    CHECK(run({.after_layers = after_both, .threshold = 1}, 0, &counts) == full);
    CHECK(counts.n_exits == 0);
    CHECK(counts.n_checks == 120);
    CHECK(counts.n_layers == 60 * n_layers);
    // Rows whose logits nobody wants go through all layers.
    Engine engine = must(Engine::create(model, {.n_ctx = 256, .max_outputs = 2}));
    REQUIRE(engine.set_early_exit({.after_layers = after_one, .threshold = -1}));
    Sequence unasked = must(engine.new_sequence());
    step(engine, unasked, all.first(5), kGeneration, 0);
    CHECK(unasked.n_exact() == 5);
    step(engine, unasked, all.subspan(5, 5), kGeneration, 2);
    CHECK(unasked.n_exact() == 8);
    // In between.
    const double threshold = threshold_for(model, Confidence::margin);
    CHECK(run({.after_layers = after_both, .threshold = threshold}, 0, &counts) != full);
    CHECK(counts.n_exits > 5);
    CHECK(counts.n_exits < 55);
    CHECK(counts.layers_per_row() > 1);
    CHECK(counts.layers_per_row() < static_cast<double>(n_layers));
  }
}

TEST_CASE("early exit: a row does not depend on who shares the step") {
  const Index after[] = {1, 2};
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    const EarlyExit exit{.after_layers = after,
                         .threshold = threshold_for(model, Confidence::top),
                         .measure = Confidence::top};
    const EngineOptions options{
        .n_ctx = 128, .max_sequences = 6, .cache_positions = 2048, .max_outputs = 40};
    Engine engine = must(Engine::create(model, options));
    REQUIRE(engine.set_early_exit(exit));
    std::vector<Sequence> together;
    std::vector<Ids> ids;
    std::vector<std::vector<Row>> expected;
    const std::size_t begin[] = {63, 10, 62, 0, 5, 40};  // the prompts
    const std::size_t each[] = {1, 1, 6, 30, 1, 5};      // of each step
    for (std::size_t i = 0; i < 6; ++i) {
      ids.push_back(some_ids(128, 20 + i));
      // Alone, generated tokens one by one; the fourth has a prompt in several steps.
      Sequence alone = must(engine.new_sequence());
      if (begin[i] > 0) step(engine, alone, std::span(ids[i]).first(begin[i]), kPrompt);
      expected.emplace_back();
      std::size_t at = begin[i];
      for (std::size_t k = 0; k < 4; ++k) {
        if (i == 3) {
          expected[i].push_back(step(engine, alone, std::span(ids[i]).subspan(at, 30), kPrompt));
          at += 30;
          continue;
        }
        Row rows;
        for (std::size_t j = 0; j < each[i]; ++j) {
          const Row row = step(engine, alone, std::span(ids[i]).subspan(at++, 1), kGeneration);
          rows.insert(rows.end(), row.begin(), row.end());
        }
        expected[i].push_back(rows);
      }
    }
    for (std::size_t i = 0; i < 6; ++i) {
      together.push_back(must(engine.new_sequence()));
      if (begin[i] > 0) step(engine, together[i], std::span(ids[i]).first(begin[i]), kPrompt);
    }
    REQUIRE(engine.set_early_exit(exit));
    for (std::size_t k = 0; k < 4; ++k) {
      std::vector<SequenceInput> inputs;
      for (std::size_t i = 0; i < 6; ++i) {
        const auto now = std::span(ids[i]).subspan(begin[i] + k * each[i], each[i]);
        const auto n = static_cast<Index>(each[i]);
        inputs.push_back({.sequence = &together[i],
                          .tokens = now,
                          .n_outputs = i == 3 ? 1 : n,
                          .kind = i == 3 ? kPrompt : kGeneration});
      }
      const auto logits = must(engine.run(inputs));
      Index row = 0;
      for (std::size_t i = 0; i < 6; ++i) {
        const Row& rows = expected[i][k];
        const float* const from = logits.data() + row * 50;
        CAPTURE(i);
        CHECK(std::equal(rows.begin(), rows.end(), from));
        row += static_cast<Index>(rows.size() / 50);
      }
      CHECK(row == logits.extent(0));
    }
    const EarlyExitCounts counts = engine.early_exit_counts();
    CHECK(counts.n_rows == 4 * 14);
    CHECK(counts.n_exits > 4);
    CHECK(counts.n_exits < 50);
    CHECK(together[3].n_exact() == 120);
  }
}

TEST_CASE("how sure: as the definition says") {
  const Row logits = {0.5f, 2, -1, 1.75f, -std::numeric_limits<float>::infinity()};
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  const VectorView<const float> view(logits.data(), 5);
  CHECK(confidence_of(view, Confidence::top) == doctest::Approx(std::exp(2.0) / sum));
  CHECK(confidence_of(view, Confidence::margin) ==
        doctest::Approx((std::exp(2.0) - std::exp(1.75)) / sum));
  const Row equal = {3, 3}, one = {3}, wrong = {1, std::numeric_limits<float>::quiet_NaN()};
  CHECK(confidence_of(VectorView<const float>(equal.data(), 2), Confidence::margin) ==
        doctest::Approx(0));
  CHECK(confidence_of(VectorView<const float>(one.data(), 1), Confidence::margin) ==
        doctest::Approx(1));
  CHECK(std::isnan(confidence_of(VectorView<const float>(wrong.data(), 2), Confidence::margin)));
}

TEST_CASE("depth: mistakes are errors that change nothing, and steps do not allocate") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 128}));
  const Ids ids = some_ids(40, 11);
  const auto all = std::span(ids);
  const Index none[] = {-1}, beyond[] = {3}, every[] = {0, 1, 2}, twice[] = {1, 1}, last[] = {3},
              fine[] = {1};
  CHECK(code(engine.set_depth({.n_layers = 4})) == Errc::invalid_argument);
  CHECK(code(engine.set_depth({.n_layers = -1})) == Errc::invalid_argument);
  CHECK(code(engine.set_depth({.left_out = none})) == Errc::invalid_argument);
  CHECK(code(engine.set_depth({.left_out = beyond})) == Errc::invalid_argument);
  CHECK(code(engine.set_depth({.left_out = every})) == Errc::invalid_argument);
  // Each token must go through recurrent state; where there are no keys, nothing is stored.
  Engine recurrent = must(Engine::create(conv_model(), {.n_ctx = 128}));
  CHECK(code(recurrent.set_depth({.n_layers = 1})) == Errc::unsupported);
  CHECK(code(recurrent.set_early_exit({.after_layers = fine})) == Errc::unsupported);
  CHECK(recurrent.set_depth({}).has_value());
  CHECK(code(engine.set_early_exit({.after_layers = twice})) == Errc::invalid_argument);
  CHECK(code(engine.set_early_exit({.after_layers = last})) == Errc::invalid_argument);
  CHECK(code(engine.set_early_exit(
            {.after_layers = fine, .threshold = std::numeric_limits<double>::quiet_NaN()})) ==
        Errc::invalid_argument);
  Sequence sequence = must(engine.new_sequence());
  const SequenceInput input{.sequence = &sequence, .tokens = all.first(1)};
  CHECK(code(engine.draft({&input, 1}, 0)) == Errc::invalid_argument);
  CHECK(code(engine.draft({&input, 1}, 4)) == Errc::invalid_argument);
  const float row[64] = {};
  const SequenceInput rows{.sequence = &sequence, .rows = MatrixView<const float>(row, 1, 64)};
  CHECK(code(engine.draft({&rows, 1}, 1)) == Errc::invalid_argument);
  const SequenceInput nothing{.sequence = &sequence};
  CHECK(code(engine.draft({&nothing, 1}, 1)) == Errc::invalid_argument);
  CHECK(sequence.position() == 0);
  const Row first = step(engine, sequence, all.first(30), kPrompt);
  Engine untouched = must(Engine::create(model, {.n_ctx = 128}));
  Sequence other = must(untouched.new_sequence());
  CHECK(first == step(untouched, other, all.first(30), kPrompt));

  REQUIRE(engine.set_early_exit({.after_layers = fine, .threshold = 0.05}));
  CHECK(engine.bytes() > untouched.bytes());
  const long long before = allocation_count();
  for (std::size_t i = 30; i < 40; ++i) {
    const SequenceInput one{
        .sequence = &sequence, .tokens = all.subspan(i, 1), .kind = kGeneration};
    bool is_fine = engine.set_depth({.n_layers = 2 + static_cast<Index>(i % 2)}).has_value();
    is_fine = is_fine && engine.draft({&one, 1}, 1) && sequence.rewind(static_cast<Index>(i));
    is_fine = is_fine && engine.run({&one, 1});
    if (!is_fine) FAIL("a step");
  }
  CHECK(allocation_count() == before);
}

}  // namespace depth_test
