// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/score.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "nibble/generate/perplexity.hpp"
#include "nibble/generate/rerank.hpp"

namespace score_test {

using namespace nibble;
using test::copy;
using test::encode;
using test::Ids;
using test::joined;
using test::kAnswer;
using test::kPrompt;
using test::make_session;
using test::must;

namespace {

// By the formula, in double, from logits that are computed one token at a time.
std::vector<ScoredToken> by_formula(const Ids& prompt, const Ids& continuation) {
  Session session = make_session({.kv_type = ops::KvType::f32});
  std::vector<ScoredToken> scored;
  auto logits = must(session.append(prompt));
  for (const std::int32_t id : continuation) {
    double sum = 0;
    Index best = 0;
    for (Index i = 0; i < logits.extent(1); ++i) {
      sum += std::exp(double{logits(0, i)});
      if (logits(0, i) > logits(0, best)) best = i;
    }
    scored.push_back({id, double{logits(0, Index{id})} - std::log(sum), best == id});
    logits = must(session.append({&id, 1}));
  }
  return scored;
}

void check_score(const Score& score, const Ids& prompt, const Ids& continuation) {
  const auto expected = by_formula(prompt, continuation);
  REQUIRE(score.tokens.size() == expected.size());
  double total = 0;
  bool is_greedy = true;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(score.tokens[i].id == expected[i].id);
    CHECK(std::fabs(score.tokens[i].logprob - expected[i].logprob) < 2e-4);
    CHECK(score.tokens[i].is_best == expected[i].is_best);
    is_greedy = is_greedy && expected[i].is_best;
    total += score.tokens[i].logprob;
  }
  CHECK(score.logprob == total);
  CHECK(score.is_greedy() == is_greedy);
}

Ids random_ids(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  Ids ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(3 + random() % 500);
  return ids;
}

template <class T>
Errc code_of(const Result<T>& result) {
  REQUIRE(!result);
  CHECK(result.error().message.find("score:") != std::string::npos);
  return result.error().code;
}

}  // namespace

TEST_CASE(
    "a score is the sum of the log-probabilities of the tokens; the session stays as it was") {
  const Ids prompt = encode(kPrompt), answer = encode(kAnswer, false), other = random_ids(9, 1);
  for (const Index max_outputs : {1, 4, 64}) {
    Session session = make_session({.max_outputs = max_outputs, .kv_type = ops::KvType::f32});
    for (const Ids& continuation : {answer, other, Ids{answer[0]}}) {
      check_score(must(score(session, prompt, continuation)), prompt, continuation);
      CHECK(session.position() == 0);
    }
    // After what the session has.
    must(session.append(prompt));
    check_score(must(score(session, {}, answer)), prompt, answer);
    CHECK(copy(session.tokens()) == prompt);
    check_score(must(score(session, answer, other)), joined({prompt, answer}), other);
    CHECK(copy(session.tokens()) == prompt);
  }
}

TEST_CASE("texts are scored as their tokens, and the right answer is the most likely") {
  Session session = make_session();
  const Score right = must(score(session, kPrompt, kAnswer));
  CHECK(right.is_greedy());
  CHECK(right.logprob < 0);
  for (const char* const wrong :
       {"light.set(room=kitchen, level=10)", "light.set(room=office, level=11)", "timer.stop()"}) {
    const Score other = must(score(session, kPrompt, wrong));
    CHECK(other.logprob < right.logprob - 1);
    CHECK(!other.is_greedy());
  }
  // Tokens that span the boundary count with the continuation.
  const Ids all = encode("switch on the kitchen light\n"), begin = encode("switch on the kitch");
  const Score inside = must(score(session, "switch on the kitch", "en light\n"));
  std::size_t n = 0;
  while (n < begin.size() && begin[n] == all[n]) ++n;
  REQUIRE(inside.tokens.size() == all.size() - n);
  for (std::size_t i = n; i < all.size(); ++i) CHECK(inside.tokens[i - n].id == all[i]);
  // Without a begin token of its own in a session that has text.
  must(session.append(encode(kPrompt)));
  const Ids answer = encode(kAnswer, false);
  CHECK(must(score(session, "", kAnswer)).tokens.size() == answer.size());
}

TEST_CASE(
    "many continuations of one prompt, computed together, have the scores that each has alone") {
  const Ids prompt = joined({encode(kPrompt), random_ids(50, 7)});
  std::vector<Ids> all;
  for (unsigned i = 0; i < 11; ++i) all.push_back(random_ids(1 + i * 3 % 13, i));
  const std::vector<std::span<const std::int32_t>> continuations(all.begin(), all.end());
  struct Limits {
    Index max_sequences, max_step_tokens, max_outputs, cache_pages;
  };
  for (const Limits limits :
       {Limits{1, 64, 1, 8}, {4, 64, 0, 20}, {16, 128, 128, 40}, {16, 7, 5, 40}, {8, 64, 32, 4}}) {
    CAPTURE(limits.max_sequences);
    CAPTURE(limits.max_step_tokens);
    auto engine = must(Engine::create(test::home_model(),
                                      {.n_ctx = 192,
                                       .max_sequences = limits.max_sequences,
                                       .cache_positions = limits.cache_pages * ops::kPagePositions,
                                       .max_step_tokens = limits.max_step_tokens,
                                       .max_outputs = limits.max_outputs,
                                       .kv_type = ops::KvType::f32}));
    const auto scores = must(score(engine, prompt, continuations));
    REQUIRE(scores.size() == all.size());
    for (std::size_t i = 0; i < all.size(); ++i) check_score(scores[i], prompt, all[i]);
    CHECK(engine.n_free_pages() == engine.n_pages());
  }
}

TEST_CASE("continuations of different prompts, computed together, have the scores of each alone") {
  std::vector<Ids> prompts, all;
  for (unsigned i = 0; i < 9; ++i) {
    prompts.push_back(joined({encode(kPrompt), random_ids(i * 17 % 60, i)}));
    all.push_back(random_ids(1 + i * 5 % 23, 100 + i));
  }
  prompts[4] = {1};
  std::vector<ScoreInput> inputs;
  for (std::size_t i = 0; i < all.size(); ++i) inputs.push_back({prompts[i], all[i]});
  struct Limits {
    Index max_sequences, max_step_tokens, max_outputs, cache_pages;
  };
  std::vector<Score> first;
  for (const Limits limits :
       {Limits{1, 64, 1, 3}, {4, 64, 0, 20}, {9, 300, 300, 40}, {9, 7, 3, 40}, {8, 64, 32, 4}}) {
    CAPTURE(limits.max_sequences);
    CAPTURE(limits.max_step_tokens);
    auto engine = must(Engine::create(test::home_model(),
                                      {.n_ctx = 192,
                                       .max_sequences = limits.max_sequences,
                                       .cache_positions = limits.cache_pages * ops::kPagePositions,
                                       .max_step_tokens = limits.max_step_tokens,
                                       .max_outputs = limits.max_outputs,
                                       .kv_type = ops::KvType::f32}));
    const auto scores = must(score(engine, inputs));
    REQUIRE(scores.size() == all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      check_score(scores[i], prompts[i], all[i]);
      if (!first.empty()) CHECK(scores[i].logprob == first[i].logprob);  // bit for bit
    }
    first = scores;
    CHECK(engine.n_free_pages() == engine.n_pages());
    const ScoreInput bad[] = {{prompts[0], all[0]}, {{}, all[1]}};
    CHECK(code_of(score(engine, bad)) == Errc::invalid_argument);
    const ScoreInput empty[] = {{prompts[0], {}}};
    CHECK(code_of(score(engine, empty)) == Errc::invalid_argument);
  }
}

TEST_CASE("documents are ranked by how likely a query is after them") {
  auto engine = must(Engine::create(test::home_model(), {.n_ctx = 96, .max_sequences = 3}));
  // The model continues a command with its call.
  const std::vector<Ids> prompts = {encode("what time is it in the kitchen\n"), encode(kPrompt),
                                    encode("switch on the kitchen light\n"), encode(kPrompt)};
  const std::vector<std::span<const std::int32_t>> documents(prompts.begin(), prompts.end());
  const Ids query = encode(kAnswer, false);
  const auto ranked = must(rerank(engine, documents, query));
  REQUIRE(ranked.size() == 4);
  CHECK(ranked[0].index == 1);
  CHECK(ranked[1].index == 3);  // equal: in their order
  CHECK(ranked[0].score == ranked[1].score);
  CHECK(ranked[1].score > ranked[2].score + 0.1);
  Session session = make_session();
  const Score alone = must(score(session, prompts[1], query));
  CHECK(ranked[0].score == alone.logprob / static_cast<double>(query.size()));
  CHECK(!rerank(engine, documents, Ids{}));
}

TEST_CASE("what cannot be scored is an error") {
  Session session = make_session();
  const Ids prompt = encode(kPrompt), long_one = random_ids(90, 3);
  CHECK(code_of(score(session, prompt, Ids{})) == Errc::invalid_argument);
  CHECK(code_of(score(session, Ids{}, prompt)) == Errc::invalid_argument);
  CHECK(code_of(score(session, prompt, Ids{1, 512})) == Errc::invalid_argument);
  CHECK(code_of(score(session, prompt, Ids{-1})) == Errc::invalid_argument);
  CHECK(code_of(score(session, kPrompt, "")) == Errc::invalid_argument);
  const auto full = score(session, prompt, long_one);
  REQUIRE(!full);
  CHECK(full.error().code == Errc::limit);
  CHECK(session.position() == 0);
  const std::span<const std::int32_t> bad[] = {prompt, {}};
  CHECK(!score(session.engine(), prompt, bad));
  CHECK(!score(session.engine(), {}, std::span(bad).first(1)));

  // Logits that are not numbers, here and in a perplexity.
  const Model broken = test::changed_model({}, [](const std::string& name, std::vector<float>& w) {
    if (name == "blk.1.ffn_down.weight") w[5] = std::numeric_limits<float>::quiet_NaN();
  });
  Session session_of_broken = make_session({}, broken);
  CHECK(code_of(score(session_of_broken, kPrompt, kAnswer)) == Errc::malformed);
  const auto perplexity = nibble::perplexity(session_of_broken, prompt, 8, 1);
  REQUIRE(!perplexity);
  CHECK(perplexity.error().code == Errc::malformed);
}

}  // namespace score_test
