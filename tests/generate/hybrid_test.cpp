// SPDX-License-Identifier: Apache-2.0
//
// Models with recurrent layers: their states are exact, however tokens are cut into steps, and
// whatever goes back, forks, is cached or is guessed.
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/hybrid_models.hpp"
#include "generate/speculating.hpp"
#include "nibble/generate/placement.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/model/slot.hpp"

namespace hybrid_test {

using namespace nibble;
using namespace test;

namespace {

const std::pair<const char*, Model>& hybrid(int i) {
  static const std::pair<const char*, Model> kModels[] = {{"lfm2", lfm2_model()},
                                                          {"qwen35", qwen35_model()},
                                                          {"granitehybrid", granite_hybrid_model()},
                                                          {"lfm2moe", lfm2moe_model()},
                                                          {"qwen35moe", qwen35moe_model()}};
  return kModels[i];
}
constexpr int kHybrids = 5;

// Looks up the rows of tokens.
class TableElsewhere final : public BackEnd {
 public:
  explicit TableElsewhere(const Model& model) : table_(model.weights().at(Slot::token_embd, -1)) {}
  bool compute(const PartCall& call) noexcept override {
    for (Index i = 0; i < call.out.extent(0); ++i) {
      table_.ops->row(table_.data, table_.n, table_.k, call.tokens[static_cast<std::size_t>(i)],
                      call.out.data() + i * call.out.stride(0));
    }
    return call.part == Part::embedding;
  }

 private:
  const graph::Weight& table_;
};

// An engine for steps of at most n rows.
Engine engine_for(const Model& model, Index n) {
  return must(Engine::create(model, {.n_ctx = 300, .max_sequences = 6, .max_step_tokens = n}));
}

}  // namespace

TEST_CASE("hybrids: a prompt gives the same bits in steps of any size, beside others or alone") {
  const Ids all = some_ids(130, 1), other = some_ids(90, 2);
  for (int i = 0; i < kHybrids; ++i) {
    const auto& [name, model] = hybrid(i);
    CAPTURE(name);
    Engine whole = engine_for(model, 130);
    const auto logits = logits_of(whole, all);
    for (const Index n : {2, 7, 16, 33, 64}) {
      CAPTURE(n);
      Engine engine = engine_for(model, n);
      CHECK(logits_of(engine, all) == logits);
    }
    // With another prompt in the same steps.
    Engine engine = engine_for(model, 256);
    Sequence a = must(engine.new_sequence()), b = must(engine.new_sequence());
    append(engine, b, std::span(other).first(5));
    for (const auto& [from, to] : {std::pair<std::size_t, std::size_t>{0, 40}, {40, 130}}) {
      const SequenceInput inputs[] = {
          {.sequence = &b, .tokens = std::span(other).subspan(5 + from / 2, (to - from) / 2)},
          {.sequence = &a, .tokens = std::span(all).subspan(from, to - from)}};
      const auto both = must(engine.run(inputs));
      if (to < 130) continue;
      const std::span<const float> of_a(&both(1, 0), static_cast<std::size_t>(both.extent(1)));
      CHECK(std::vector<float>(of_a.begin(), of_a.end()) == logits);
    }
  }
}

TEST_CASE("hybrids: forks go on as their sequence did; back to before the last step") {
  const Ids all = some_ids(120, 3);
  const std::span<const std::int32_t> ids(all);
  for (int i = 0; i < kHybrids; ++i) {
    const auto& [name, model] = hybrid(i);
    CAPTURE(name);
    Engine engine = engine_for(model, 128);
    Sequence a = must(engine.new_sequence());
    append(engine, a, ids.first(41));
    Sequence snapshot = must(a.fork());
    const auto straight = append(engine, a, ids.subspan(41, 30));
    CHECK(append(engine, snapshot, ids.subspan(41, 30)) == straight);
    CHECK(a.last_reachable(60) == 41);
    CHECK(code(a.rewind(60)) == Errc::unsupported);
    REQUIRE(a.rewind(41));
    append(engine, a, ids.subspan(5, 9));
    REQUIRE(a.rewind(41));
    CHECK(append(engine, a, ids.subspan(41, 30)) == straight);
    REQUIRE(a.rewind(0));
    append(engine, a, ids.first(41));
    CHECK(append(engine, a, ids.subspan(41, 30)) == straight);
  }
}

TEST_CASE("hybrids: back to before a step, whether or not a chunk of positions ended in it") {
  const Ids all = some_ids(120, 7), other = some_ids(9, 8);
  const std::span<const std::int32_t> ids(all), tail(other);
  for (int i = 0; i < 3; ++i) {
    const auto& [name, model] = hybrid(i);
    CAPTURE(name);
    Engine engine = engine_for(model, 128);
    for (const Index start : {5, 32, 39, 47}) {
      CAPTURE(start);
      const auto n_start = static_cast<std::size_t>(start);
      Sequence fresh = must(engine.new_sequence());
      append(engine, fresh, ids.first(n_start));
      const auto expected = append(engine, fresh, tail);
      for (const std::size_t n : {1, 3, 11, 16, 40}) {
        CAPTURE(n);
        Sequence a = must(engine.new_sequence());
        append(engine, a, ids.first(n_start));
        append(engine, a, ids.subspan(n_start, n));
        Sequence b = must(a.fork()), c = must(a.fork());
        for (Sequence* const sequence : {&a, &b}) {
          REQUIRE(sequence->rewind(start));
          Sequence d = must(sequence->fork());
          CHECK(append(engine, *sequence, tail) == expected);
          CHECK(append(engine, d, tail) == expected);
          // A second time, after another step from there.
          REQUIRE(d.rewind(start));
          append(engine, d, ids.subspan(n_start, n));
          CHECK(append(engine, d, tail) == append(engine, c, tail));
          REQUIRE(c.rewind(start + static_cast<Index>(n)));
        }
      }
    }
  }
}

TEST_CASE("hybrids: what a prefix cache finds is not read again, and is exact") {
  const Ids all = some_ids(200, 4);
  for (int i = 0; i < kHybrids; ++i) {
    const auto& [name, model] = hybrid(i);
    CAPTURE(name);
    Engine engine = engine_for(model, 256);
    // (Of memory, states take more than these small pages.)
    PrefixCache cache = must(PrefixCache::create(engine, {.max_bytes = std::size_t{8} << 20}));
    Sequence first = must(engine.new_sequence());
    for (const Index n : {50, 64, 3}) {
      append(engine, first, rest_of(all, first.position()).first(static_cast<std::size_t>(n)));
      CHECK(must(cache.insert(first)) == first.position());
    }
    for (const auto& [n_same, n_found] : {std::pair{60, 50}, {114, 114}, {116, 114}, {150, 117}}) {
      CAPTURE(n_same);
      Ids other(all.begin(), all.begin() + n_same);
      for (const std::int32_t id : {7, 3, 9, 9}) other.push_back((id + all[other.size()]) % 50);
      const auto fresh = logits_of(engine, other);
      Sequence sequence = must(cache.match(other));
      CHECK(sequence.position() == n_found);
      CHECK(append(engine, sequence, rest_of(other, n_found)) == fresh);
    }
  }
}

TEST_CASE("hybrids: guesses that are wrong leave no trace in the state") {
  const Ids prompt = some_ids(30, 5);
  GenerateOptions options;
  options.sampling.temperature = 0.8f;
  options.sampling.seed = 3;
  options.sampling.top_logprobs = 2;
  options.max_tokens = 100;
  for (int i = 0; i < kHybrids; ++i) {
    const auto& [name, model] = hybrid(i);
    CAPTURE(name);
    const auto generated = [&](const GenerateOptions& with, SpeculationStats* stats) {
      Session session = must(Session::create(model, {.n_ctx = 200, .max_outputs = 8}));
      Generator generator = must(Generator::create(session, with));
      REQUIRE(generator.prompt(prompt));
      const Output got = output_of(generator);
      if (stats != nullptr) *stats = generator.speculation_stats();
      return got;
    };
    const Output plain = generated(options, nullptr);
    CHECK(plain.ids.size() == 100);
    Ids text = prompt;
    text.insert(text.end(), plain.ids.begin(), plain.ids.end());
    for (const double wrong : {0.0, 0.3, 1.0}) {
      for (const Index max_drafts : {2, 7}) {
        CAPTURE(wrong);
        CAPTURE(max_drafts);
        KnownText source(text, wrong);
        GenerateOptions guessing = options;
        guessing.speculation = {.max_drafts = max_drafts, .source = &source, .always = true};
        SpeculationStats stats;
        CHECK(generated(guessing, &stats) == plain);
        if (wrong == 0.0) CHECK(stats.n_accepted == stats.n_drafted);
        if (wrong == 0.3) CHECK((stats.n_accepted > 20 && stats.n_accepted < stats.n_drafted));
      }
    }
  }
}

TEST_CASE("hybrids: no step costs an allocation") {
  const Ids prompt = some_ids(100, 6);
  for (int i = 0; i < kHybrids; ++i) {
    const auto& [name, model] = hybrid(i);
    CAPTURE(name);
    Engine engine = engine_for(model, 64);
    Sequence sequence = must(engine.new_sequence());
    const auto run = [&](std::span<const std::int32_t> ids) {
      const SequenceInput input{.sequence = &sequence, .tokens = ids};
      return engine.run({&input, 1}).has_value();
    };
    const std::span<const std::int32_t> ids(prompt);
    const long long before = allocation_count();
    bool has_run = run(ids.first(37)) && run(ids.subspan(37, 50));
    for (std::size_t at = 87; at < 100; ++at) has_run = has_run && run(ids.subspan(at, 1));
    CHECK(allocation_count() == before);
    CHECK(has_run);
  }
}

TEST_CASE(
    "layers that read keys and values of others: steps, forks, going back, prefixes, drafts") {
  const Model model = gemma4_model();
  const Ids all = some_ids(130, 7), prompt = some_ids(30, 8);
  const std::span<const std::int32_t> ids(all);
  Engine whole = engine_for(model, 130);
  const auto logits = logits_of(whole, all);
  for (const Index n : {1, 7, 64}) {
    CAPTURE(n);
    Engine engine = engine_for(model, n);
    CHECK(logits_of(engine, all) == logits);
  }
  Engine engine = engine_for(model, 128);
  Sequence a = must(engine.new_sequence());
  append(engine, a, ids.first(41));
  Sequence snapshot = must(a.fork());
  const auto straight = append(engine, a, ids.subspan(41, 30));
  CHECK(append(engine, snapshot, ids.subspan(41, 30)) == straight);
  REQUIRE(a.rewind(41));
  append(engine, a, ids.subspan(5, 9));
  REQUIRE(a.rewind(41));
  CHECK(append(engine, a, ids.subspan(41, 30)) == straight);

  PrefixCache cache = must(PrefixCache::create(engine, {.max_bytes = std::size_t{8} << 20}));
  REQUIRE(cache.insert(a));
  Ids other(all.begin(), all.begin() + 70);
  other.push_back((all[70] + 1) % 50);
  const auto fresh = logits_of(engine, other);
  Sequence sequence = must(cache.match(other));
  CHECK(sequence.position() >= 64);
  CHECK(append(engine, sequence, rest_of(other, sequence.position())) == fresh);
}

TEST_CASE("inputs of layers are those of the tokens, also where the rows come from elsewhere") {
  const Model model = gemma4_model();
  const Ids all = some_ids(50, 9);
  Engine here = engine_for(model, 64);
  TableElsewhere table(model);
  EngineOptions options{.n_ctx = 300,
                        .max_sequences = 2,
                        .max_step_tokens = 64,
                        .placement = {.back_end = &table, .embedding = true}};
  Engine placed = must(Engine::create(model, options));
  CHECK(logits_of(placed, all) == logits_of(here, all));
  // Other layers elsewhere would not have what these store.
  options.placement = {.back_end = &table, .first_layer = 0, .end_layer = 2};
  CHECK(code(Engine::create(model, options)) == Errc::unsupported);
}
}  // namespace hybrid_test
