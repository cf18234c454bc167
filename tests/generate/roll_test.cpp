// SPDX-License-Identifier: Apache-2.0
//
// A context that is full: generation ends, or rolls on without end.
#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/prefixes.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/session.hpp"

namespace roll_test {

using namespace nibble;
using namespace test;

namespace {

std::vector<float> logits_of(Session& session) {
  const auto logits = must(session.logits());
  return {logits.data(), logits.data() + logits.extent(1)};
}

Ids tokens_of(const Session& session) { return {session.tokens().begin(), session.tokens().end()}; }

}  // namespace

TEST_CASE("after a roll a session is one that was given what is left") {
  for (const Model& model : {llama_model(), llama_model(20), gemma_model(20), conv_model()}) {
    for (const ops::KvType kv_type : ops::kKvTypes) {
      const SessionOptions options{.n_ctx = 200, .kv_type = kv_type, .window_margin = 10};
      const Ids ids = some_ids(200, 1);
      for (const Index n_first : {0, 4, 64, 70, 100}) {
        for (const Index n_last : {1, 50, 100}) {
          CAPTURE(n_first);
          CAPTURE(n_last);
          Session session = must(Session::create(model, options));
          REQUIRE(session.append(ids));
          REQUIRE(session.roll(n_first, n_last));
          Ids left(ids.begin(), ids.begin() + n_first);
          left.insert(left.end(), ids.end() - n_last, ids.end());
          CHECK(tokens_of(session) == left);
          Session fresh = must(Session::create(model, options));
          // In the same kinds of steps: what is still there was computed as a prompt.
          const Index n_there = n_first + n_last - session.sequence().n_pending();
          if (n_there > 0) {
            REQUIRE(fresh.append(std::span(left).first(static_cast<std::size_t>(n_there))));
          }
          REQUIRE(fresh.append(rest_of(left, n_there)));
          CHECK(logits_of(session) == logits_of(fresh));
          REQUIRE(session.rewind(0));
          CHECK(session.engine().n_free_pages() == session.engine().n_pages());
        }
      }
    }
  }
  Session session = must(Session::create(llama_model(), {.n_ctx = 100}));
  REQUIRE(session.append(some_ids(60, 2)));
  for (const auto& [a, b] : {std::pair<Index, Index>{-1, 4}, {4, -1}, {30, 31}, {61, 0}}) {
    CHECK(code(session.roll(a, b)) == Errc::invalid_argument);
  }
  CHECK(session.position() == 60);
  // Rows of numbers are not kept: they cannot be computed anew, but they can be forgotten.
  const std::vector<float> rows(2 * 64, 0.5f);
  const SequenceInput input{.sequence = &session.sequence(),
                            .rows = MatrixView<const float>(rows.data(), 2, 64)};
  REQUIRE(session.engine().run({&input, 1}));
  REQUIRE(session.append(some_ids(10, 3)));
  CHECK(code(session.roll(5, 11)) == Errc::unsupported);
  CHECK(session.position() == 72);
  REQUIRE(session.roll(5, 10));
  CHECK(session.position() == 15);
  REQUIRE(session.logits());
}

TEST_CASE("a full context ends generation, or it rolls on without end") {
  const Model model = llama_model();
  const Ids prompt = some_ids(40, 1);
  GenerateOptions options;
  options.sampling.temperature = 1;
  options.sampling.seed = 3;
  options.max_tokens = 1000;
  {
    Session session = must(Session::create(model, {.n_ctx = 64}));
    Generator generator = must(Generator::create(session, options));
    REQUIRE(generator.prompt(prompt));
    int n = 0;
    while (must(generator.next())) ++n;
    CHECK(n == 24);
    CHECK(generator.finish() == Finish::context_full);
  }
  options.when_full = WhenFull::roll;
  Session session = must(Session::create(model, {.n_ctx = 64}));
  Generator generator = must(Generator::create(session, options));
  REQUIRE(generator.prompt(prompt));
  const long long before = allocation_count();
  Index n = 0, n_rolls = 0, position = session.position();
  bool is_right = true;
  for (;; ++n) {
    const auto token = generator.next();
    REQUIRE(token);
    if (!*token) break;
    n_rolls += session.position() <= position;
    position = session.position();
    is_right = is_right && position <= 64 && session.tokens().back() == (*token)->id &&
               std::equal(prompt.begin(), prompt.begin() + 4, session.tokens().begin());
  }
  CHECK(allocation_count() == before);
  CHECK(is_right);
  CHECK(n == 1000);
  CHECK(n_rolls == (1000 - 24 + 29) / 30);
  CHECK(generator.finish() == Finish::max_tokens);
  // Half of a small context stays.
  options.n_kept_first = 1000;
  options.max_tokens = 300;
  Session small = must(Session::create(model, {.n_ctx = 48}));
  Generator other = must(Generator::create(small, options));
  REQUIRE(other.prompt(prompt));
  for (n = 0; must(other.next()); ++n) {
  }
  CHECK(n == 300);
  CHECK(std::equal(prompt.begin(), prompt.begin() + 23, small.tokens().begin()));
  for (const Index n_ctx : {2, 3}) {
    Session least = must(Session::create(model, {.n_ctx = n_ctx}));
    Generator tokens = must(Generator::create(least, options));
    REQUIRE(tokens.prompt(std::span(prompt).first(1)));
    Index count = 0;
    bool all = true;
    while (all && count < 20) {
      const auto token = tokens.next();
      all = token && *token;
      count += all;
    }
    CAPTURE(n_ctx);
    CHECK(count == 20);
  }
  Session one = must(Session::create(model, {.n_ctx = 1}));
  Generator none = must(Generator::create(one, options));
  REQUIRE(none.prompt(std::span(prompt).first(1)));
  CHECK(!must(none.next()));
  CHECK(none.finish() == Finish::context_full);
  options.n_kept_first = -1;
  CHECK(code(Generator::create(session, options)) == Errc::invalid_argument);
}

TEST_CASE("a roll can be interrupted, and generation goes on later") {
  const Model model = llama_model();
  std::atomic<bool> cancel{false};
  GenerateOptions options;
  options.when_full = WhenFull::roll;
  options.cancel = &cancel;
  options.max_tokens = 1000;
  Session session = must(Session::create(model, {.n_ctx = 64, .max_step_tokens = 8}));
  Generator generator = must(Generator::create(session, options));
  const Ids prompt = some_ids(64, 1);
  REQUIRE(generator.prompt(prompt));
  cancel = true;
  CHECK(!must(generator.next()));
  CHECK(generator.finish() == Finish::cancelled);
  cancel = false;
  REQUIRE(generator.prompt(Ids{}));
  for (int i = 0; i < 100; ++i) REQUIRE(must(generator.next()));
}

}  // namespace roll_test
