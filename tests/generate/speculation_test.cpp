// SPDX-License-Identifier: Apache-2.0
//
// Speculation changes nothing but the number of steps, whatever is guessed and whatever else
// happens to the session.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/hybrid_models.hpp"
#include "generate/speculating.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/generate/session.hpp"

namespace speculation_test {

using namespace nibble;
using namespace test;

namespace {

SessionOptions with_rows(Index max_outputs, Index n_ctx = 200) {
  return {.n_ctx = n_ctx, .max_outputs = max_outputs, .window_margin = 10};
}

GenerateOptions sampled(std::uint64_t seed = 3) {
  GenerateOptions options;
  options.sampling.temperature = 0.8f;
  options.sampling.seed = seed;
  options.max_tokens = 150;
  return options;
}

GenerateOptions greedy() {
  GenerateOptions options = sampled();
  options.sampling.temperature = 0;
  return options;
}

// Every option that looks at the tokens before, or learns from those that come.
GenerateOptions with_history() {
  GenerateOptions options = sampled();
  options.sampling.repetition_penalty = 1.3f;
  options.sampling.presence_penalty = 0.2f;
  options.sampling.dry_multiplier = 0.8f;
  options.sampling.mirostat_tau = 4;
  options.sampling.top_logprobs = 3;
  return options;
}

GenerateOptions speculating(GenerateOptions options, Index max_drafts, DraftSource* source,
                            bool always = true) {
  options.speculation = {.max_drafts = max_drafts, .source = source, .always = always};
  return options;
}

Output generated(const Model& model, const SessionOptions& session_options,
                 const GenerateOptions& options, const Ids& prompt,
                 SpeculationStats* stats = nullptr) {
  Session session = must(Session::create(model, session_options));
  Generator generator = must(Generator::create(session, options));
  REQUIRE(generator.prompt(prompt));
  const Output got = output_of(generator);
  if (stats != nullptr) *stats = generator.speculation_stats();
  return got;
}

Ids joined(const Ids& a, const Ids& b) {
  Ids all = a;
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

}  // namespace

TEST_CASE("tokens, log-probabilities and the end are those without speculation") {
  const Ids prompt = some_ids(30, 1);
  for (const Model& model : {llama_model(), llama_model(20), gemma_model(20), conv_model()}) {
    for (const GenerateOptions& options : {greedy(), sampled(), with_history()}) {
      for (const ops::KvType kv_type : {ops::KvType::f16, ops::KvType::int8}) {
        if (kv_type != ops::KvType::f16 && options.sampling.temperature > 0) continue;
        SessionOptions session = with_rows(8);
        session.kv_type = kv_type;
        const Output plain = generated(model, session, options, prompt);
        CHECK(plain.ids.size() == 150);
        CHECK(plain.finish == Finish::max_tokens);
        for (const double wrong : {0.0, 0.3, 1.0}) {
          for (const Index max_drafts : {2, 7}) {
            CAPTURE(wrong);
            CAPTURE(max_drafts);
            KnownText source(joined(prompt, plain.ids), wrong);
            SpeculationStats stats;
            const Output got = generated(model, session, speculating(options, max_drafts, &source),
                                         prompt, &stats);
            REQUIRE(got == plain);
            CHECK(stats.n_accepted <= stats.n_drafted);
            // The first token comes from the prompt's step.
            CHECK(stats.n_steps + stats.n_accepted == 149);
            if (wrong == 0.0) {
              CHECK(stats.n_accepted == stats.n_drafted);
              CHECK(stats.n_steps == (149 + max_drafts) / (max_drafts + 1));
            }
            if (wrong == 1.0) CHECK(stats.n_accepted == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("a stop token among the guesses, a full context and a roll end or go on as they should") {
  const Model model = llama_model();
  const Ids prompt = some_ids(30, 1);
  const Output whole = generated(model, with_rows(8), sampled(), prompt);
  for (const std::size_t at : {1u, 2u, 5u, 9u, 23u}) {
    GenerateOptions options = sampled();
    options.stop_tokens = {whole.ids[at]};
    const Output plain = generated(model, with_rows(8), options, prompt);
    KnownText source(joined(prompt, whole.ids));
    CHECK(generated(model, with_rows(8), speculating(options, 7, &source), prompt) == plain);
  }
  for (const Index n_ctx : {31, 32, 33, 40, 64, 65, 100}) {
    CAPTURE(n_ctx);
    GenerateOptions options = sampled();
    const Output plain = generated(model, with_rows(8, n_ctx), options, prompt);
    CHECK(plain.finish == Finish::context_full);
    KnownText source(joined(prompt, whole.ids));
    CHECK(generated(model, with_rows(8, n_ctx), speculating(options, 7, &source), prompt) == plain);
    options.when_full = WhenFull::roll;
    const Output rolled = generated(model, with_rows(8, n_ctx), options, prompt);
    CHECK(rolled.ids.size() == 150);
    CHECK(generated(model, with_rows(8, n_ctx), speculating(options, 7, &source), prompt) ==
          rolled);
    CHECK(generated(model, with_rows(8, n_ctx), speculating(options, 7, nullptr), prompt) ==
          rolled);
  }
}

namespace {

// Does to a session what programs do between tokens. With and without speculation, it must come to
// the same.
struct Program {
  Program(const Model& model, const GenerateOptions& options, const Ids& prompt)
      : session(must(Session::create(model, with_rows(8, 600)))),
        generator(must(Generator::create(session, options))) {
    REQUIRE(generator.prompt(prompt));
  }

  // Going back over recurrent state computes tokens anew as a prompt, how many depends on the steps
  // before: the same to rounding only.
  void act(std::mt19937& random, bool goes_back) {
    const auto some = [&](Index n) { return static_cast<Index>(random()) % n; };
    switch (random() % 9) {
      case 0:
      case 1: output_of(generator, static_cast<std::size_t>(1 + some(9))); break;
      case 2: {  // goes back, and is asked again
        const Index n = session.position(), back = some(std::min<Index>(n - 1, 6));
        if (goes_back) REQUIRE(session.rewind(n - back));
        REQUIRE(generator.prompt(std::span<const std::int32_t>()));
        break;
      }
      case 3: {  // a prompt within a text
        const Ids more = some_ids(static_cast<std::size_t>(1 + some(4)), random());
        if (session.position() > 120) REQUIRE(session.rewind(goes_back ? 20 : 0));
        REQUIRE(generator.prompt(more));
        break;
      }
      case 4: seen.push_back(test::logits_of(session)); break;
      case 5: other = must(session.sequence().fork()); break;
      case 6: {  // a step of another sequence
        if (other && other->position() + 3 < other->capacity()) {
          const Ids ids = some_ids(3, random());
          const SequenceInput input{.sequence = &*other, .tokens = ids};
          seen.emplace_back();
          const auto logits = must(session.engine().run({&input, 1}));
          seen.back().assign(logits.data(), logits.data() + logits.extent(1));
        }
        break;
      }
      case 7:  // continues in a fork
        if (other) {
          std::swap(session.sequence(), *other);
          if (session.position() > 0) REQUIRE(generator.prompt(std::span<const std::int32_t>()));
        }
        break;
      case 8: other.reset(); break;
    }
  }

  Session session;
  Generator generator;
  std::optional<Sequence> other;
  std::vector<std::vector<float>> seen;  // logits
};

// Guesses that are often right: what a plain generator says next from here.
class Peeking final : public DraftSource {
 public:
  explicit Peeking(const Model& model)
      : session_(must(Session::create(model, with_rows(1, 600)))) {}
  void observe(std::span<const std::int32_t>, Index) noexcept override {}
  Index draft(std::span<const std::int32_t> tokens, std::span<Draft> drafts) noexcept override {
    if (!session_.rewind(0) || !session_.append(tokens)) return 0;
    Index n = 0;
    for (Draft& draft : drafts) {
      const auto logits = session_.logits();
      const float* const row = logits->data();
      const auto best = std::max_element(row, row + 50) - row;
      draft = {static_cast<std::int32_t>(random_() % 5 == 0 ? random_() % 50 : best), 0};
      ++n;
      if (!session_.sequence().push(draft.token)) break;
    }
    return n;
  }

 private:
  Session session_;
  std::mt19937 random_{7};
};

}  // namespace

TEST_CASE("whatever a program does between tokens, it sees the same") {
  const Ids prompt = some_ids(30, 1);
  for (const Model& model : {llama_model(), gemma_model(20), conv_model()}) {
    std::int64_t n_accepted = 0;
    const bool goes_back = model.config().architecture != "convnet";
    for (std::uint32_t seed = 0; seed < 8; ++seed) {
      CAPTURE(seed);
      GenerateOptions options = seed % 2 == 0 ? greedy() : with_history();
      options.max_tokens = 1000;
      Peeking source(model);
      Program plain(model, options, prompt);
      Program ahead(model, speculating(options, 1 + static_cast<Index>(seed % 7), &source), prompt);
      std::mt19937 random(seed), same(seed);
      for (int i = 0; i < 40; ++i) {
        CAPTURE(i);
        plain.act(random, goes_back);
        ahead.act(same, goes_back);
        REQUIRE(tokens_of(ahead.session) == tokens_of(plain.session));
        REQUIRE(ahead.seen.size() == plain.seen.size());
        if (!plain.seen.empty()) REQUIRE(ahead.seen.back() == plain.seen.back());
      }
      n_accepted += ahead.generator.speculation_stats().n_accepted;
      // No page is lost.
      ahead.other.reset();
      REQUIRE(ahead.session.rewind(0));
      CHECK(ahead.session.engine().n_free_pages() == ahead.session.engine().n_pages());
    }
    CHECK(n_accepted > 60);
  }
}

TEST_CASE("other weights and policies hold from the next token on, also with guesses ahead") {
  const Model model = llama_model(), other = llama_model(0, 8);
  const Ids prompt = some_ids(30, 1);
  SessionOptions session_options = with_rows(8);
  session_options.exchangeable_weights = true;
  const ops::SinkWindowPolicy policy(4, 10);
  const auto run = [&](const GenerateOptions& options, SpeculationStats* stats) {
    Session session = must(Session::create(model, session_options));
    Generator generator = must(Generator::create(session, options));
    REQUIRE(generator.prompt(prompt));
    Output got = output_of(generator, 13);
    REQUIRE(session.engine().exchange_weights(other.weights()));
    const Output more = output_of(generator, 42);
    session.engine().set_policy(&policy);
    const Output most = output_of(generator, 50);
    got.ids = joined(joined(got.ids, more.ids), most.ids);
    got.logprobs.insert(got.logprobs.end(), more.logprobs.begin(), more.logprobs.end());
    got.logprobs.insert(got.logprobs.end(), most.logprobs.begin(), most.logprobs.end());
    if (stats != nullptr) *stats = generator.speculation_stats();
    return got;
  };
  const Output plain = run(sampled(), nullptr);
  KnownText source(joined(prompt, plain.ids));
  SpeculationStats stats;
  CHECK(run(speculating(sampled(), 4, &source), &stats) == plain);
  CHECK(stats.n_accepted > 20);
  CHECK(stats.n_steps > 50);  // with a policy each token takes one
}

TEST_CASE("a prefix cache that is given a sequence with guesses ahead keeps its tokens only") {
  const Ids prompt = some_ids(30, 1);
  for (const Model& model : {llama_model(), conv_model(), qwen35_model()}) {
    const Output plain = generated(model, with_rows(8), greedy(), prompt);
    KnownText source(joined(prompt, plain.ids));
    Session session = must(Session::create(model, with_rows(8)));
    Generator generator = must(Generator::create(session, speculating(greedy(), 7, &source)));
    REQUIRE(generator.prompt(prompt));
    output_of(generator, 12);  // the first of the prompt, 8 of one step, 3 of another
    PrefixCache cache =
        must(PrefixCache::create(session.engine(), {.max_bytes = std::size_t{8} << 20}));
    const Index n = must(cache.insert(session.sequence()));
    CHECK(n >= 38);
    CHECK(n <= session.position());
    const Ids all = joined(joined(prompt, plain.ids), {1});
    Sequence found = must(cache.match(all));
    CHECK(found.position() == n);
    // As if it were computed in steps of one token.
    const auto rest = std::span(all).subspan(static_cast<std::size_t>(n), 3);
    const std::vector<float> logits = append(session.engine(), found, rest);
    Session straight = must(Session::create(model, with_rows(8)));
    REQUIRE(straight.append(prompt));
    for (std::size_t i = 30; i < static_cast<std::size_t>(n); ++i) {
      REQUIRE(straight.append({&all[i], 1}));
    }
    const auto expected = must(straight.append(rest));
    CHECK(std::equal(logits.begin(), logits.end(), expected.data()));
  }
}

TEST_CASE("guesses that are no tokens, or that the cache has no room for, are left out") {
  class Hostile final : public DraftSource {
   public:
    void observe(std::span<const std::int32_t>, Index) noexcept override {}
    Index draft(std::span<const std::int32_t>, std::span<Draft> drafts) noexcept override {
      for (Draft& d : drafts) {
        d = {static_cast<std::int32_t>(random_() % 60) - 5,
             static_cast<std::uint8_t>(random_() % 9)};
      }
      return static_cast<Index>(random_() % 20) - 5;
    }

   private:
    std::mt19937 random_{1};
  } hostile;
  const Ids prompt = some_ids(30, 1);
  const Model model = llama_model();
  const Output plain = generated(model, with_rows(8), sampled(), prompt);
  CHECK(generated(model, with_rows(8), speculating(sampled(), 7, &hostile), prompt) == plain);

  // Another sequence has all pages but those of the next token.
  Session session = must(Session::create(model, with_rows(8, 192)));
  KnownText source(joined(prompt, plain.ids));
  Generator generator = must(Generator::create(session, speculating(sampled(), 7, &source)));
  REQUIRE(generator.prompt(prompt));
  Sequence other = must(session.engine().new_sequence());
  append(session.engine(), other, some_ids(128, 5));
  CHECK(session.engine().n_free_pages() == 0);
  CHECK(output_of(generator, 34).ids == Ids(plain.ids.begin(), plain.ids.begin() + 34));
  CHECK(session.position() == 64);
  const long long before = allocation_count();
  REQUIRE(must(generator.next()));
  CHECK(allocation_count() == before);
  const auto full = generator.next();
  REQUIRE(!full);
  CHECK(full.error().code == Errc::limit);
  REQUIRE(other.rewind(0));
  CHECK(output_of(generator).ids == Ids(plain.ids.begin() + 35, plain.ids.end()));
}

TEST_CASE("no token costs an allocation") {
  const Ids prompt = some_ids(30, 1);
  for (const Model& model : {llama_model(), conv_model()}) {
    for (const bool always : {false, true}) {
      Session session = must(Session::create(model, with_rows(8)));
      GenerateOptions options = speculating(with_history(), 7, nullptr, always);
      Generator generator = must(Generator::create(session, options));
      REQUIRE(generator.prompt(prompt));
      const long long before = allocation_count();
      int n = 0;
      for (; n < 150; ++n) {
        const auto token = generator.next();
        if (!token || !*token) break;
      }
      CHECK(allocation_count() == before);
      CHECK(n == 150);
    }
  }
}

// What is decided follows from measured times, which are anything on a busy machine: one of several
// tries must show it. The tokens are right in each.
TEST_CASE("guesses stop when they do not pay, and begin again when they do") {
  const Ids prompt = some_ids(30, 1);
  const Model model = llama_model();
  GenerateOptions options = sampled();
  options.max_tokens = 1500;
  const SessionOptions session_options = with_rows(8, 2000);
  const Output plain = generated(model, session_options, options, prompt);
  const auto stops_and_begins = [&](bool is_free) {
    KnownText source(joined(prompt, plain.ids), 1, is_free);
    Session session = must(Session::create(model, session_options));
    Generator generator = must(Generator::create(session, speculating(options, 7, &source, false)));
    REQUIRE(generator.prompt(prompt));
    const auto run = [&](std::size_t n) {
      const SpeculationStats before = generator.speculation_stats();
      output_of(generator, n);
      const SpeculationStats after = generator.speculation_stats();
      return SpeculationStats{after.n_steps - before.n_steps, after.n_drafted - before.n_drafted,
                              after.n_accepted - before.n_accepted};
    };
    run(100);
    const SpeculationStats wrong = run(400);
    CHECK(wrong.n_accepted == 0);
    source.set_wrong(0);
    run(200);
    const SpeculationStats right = run(400);
    CHECK(std::abs(right.n_accepted - right.n_drafted) <= 7);  // those of a step before or after
    source.set_wrong(1);
    run(100);
    const bool stops_again = run(200).n_drafted <= 20;
    CHECK(tokens_of(session).size() == 30 + 1400);
    CHECK(std::equal(session.tokens().begin() + 30, session.tokens().end(), plain.ids.begin()));
    return wrong.n_drafted <= 20 && right.n_steps < 200 && stops_again &&
           (is_free || source.n_asked < 500);
  };
  for (const bool is_free : {true, false}) {
    CAPTURE(is_free);
    bool is_shown = false;
    for (int i = 0; i < 8 && !is_shown; ++i) is_shown = stops_and_begins(is_free);
    CHECK(is_shown);
  }
}

TEST_CASE("options of speculation can change between prompts, and wrong ones are refused") {
  const Model model = llama_model();
  const Ids prompt = some_ids(30, 1);
  Session session = must(Session::create(model, with_rows(4)));
  const auto refused = [&](Index max_drafts) {
    const auto made = Generator::create(session, speculating(greedy(), max_drafts, nullptr));
    REQUIRE(!made);
    CHECK(made.error().code == Errc::invalid_argument);
    CHECK(made.error().message.find("max_drafts") != std::string::npos);
  };
  refused(-1);
  refused(4);
  refused(kMaxDrafts + 1);
  refused(std::numeric_limits<Index>::max());
  Generator generator = must(Generator::create(session, greedy()));
  CHECK(!generator.set_options(speculating(greedy(), 4, nullptr)));
  REQUIRE(generator.prompt(prompt));
  const Output plain = output_of(generator, 60);
  CHECK(generator.speculation_stats().n_steps == 0);
  KnownText source(joined(prompt, plain.ids));
  REQUIRE(generator.set_options(speculating(greedy(), 3, &source)));
  REQUIRE(session.rewind(0));
  REQUIRE(generator.prompt(prompt));
  CHECK(output_of(generator, 60).ids == plain.ids);
  CHECK(generator.speculation_stats().n_accepted > 40);
  REQUIRE(generator.set_options(greedy()));
  REQUIRE(session.rewind(0));
  REQUIRE(generator.prompt(prompt));
  CHECK(output_of(generator, 60).ids == plain.ids);
  CHECK(generator.speculation_stats().n_steps == 0);
}

}  // namespace speculation_test
