// SPDX-License-Identifier: Apache-2.0
//
// Engines and sequences: many sequences in one step, shared pages, rows in place of tokens, errors
// that change nothing.
#include "nibble/generate/engine.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/small_models.hpp"
#include "home_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/ops/embedding.hpp"
#include "why.hpp"

namespace engine_test {

using namespace nibble;
using ops::SegmentKind;

namespace {

Model random_model(const std::vector<quant::Format>& formats, Index window = 0) {
  test::ModelShape shape;
  shape.vocab_size = 50;
  shape.dim = 64;
  shape.n_layers = 3;
  shape.n_heads = 4;
  shape.n_kv_heads = 2;
  shape.head_dim = 16;
  shape.rope_dim = 16;
  shape.ffn_dim = 96;
  shape.n_ctx = 2048;
  shape.window = window;
  shape.formats = formats;
  return test::model_of(shape);
}

std::vector<std::int32_t> tokens_of(std::size_t n, std::size_t seed) {
  std::vector<std::int32_t> tokens(n);
  for (std::size_t i = 0; i < n; ++i) {
    tokens[i] = static_cast<std::int32_t>((i * 31 + seed * 17 + i * i % 7) % 50);
  }
  return tokens;
}

std::vector<float> copy(MatrixView<const float> logits) {
  std::vector<float> all;
  for (Index i = 0; i < logits.extent(0); ++i) {
    for (Index j = 0; j < logits.extent(1); ++j) all.push_back(logits(i, j));
  }
  return all;
}

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result, test::why(result));
  return *std::move(result);
}

std::vector<float> append(Engine& engine, Sequence& sequence, std::span<const std::int32_t> tokens,
                          SegmentKind kind = SegmentKind::prompt, Index n_outputs = 1) {
  const SequenceInput input{
      .sequence = &sequence, .tokens = tokens, .n_outputs = n_outputs, .kind = kind};
  return copy(must(engine.run({&input, 1})));
}

// The code of the error, if there is one.
template <class T>
std::optional<Errc> code(const Result<T>& result) {
  return result ? std::optional<Errc>() : std::optional<Errc>(result.error().code);
}

}  // namespace

TEST_CASE("eight sequences in one step give, bit for bit, what each gives alone") {
  using quant::Format;
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool.has_value());
  for (const auto& formats :
       {std::vector{Format::f32}, std::vector{Format::q4_0, Format::q8_0, Format::f16},
        std::vector{Format::q4_1, Format::bf16}}) {
    const Model model = random_model(formats);
    for (const ops::KvType kv_type : ops::kKvTypes) {
      for (Executor* const executor :
           {static_cast<Executor*>(nullptr), static_cast<Executor*>(&**pool)}) {
        auto engine = must(Engine::create(model, {.n_ctx = 1100,
                                                  .max_sequences = 8,
                                                  .max_step_tokens = 1100,
                                                  .max_outputs = 40,
                                                  .kv_type = kv_type,
                                                  .executor = executor}));
        // Tokens before the step, and tokens in it: prompts, generated tokens, drafts.
        struct Part {
          std::size_t before, n;
          SegmentKind kind;
        };
        const Part parts[] = {{0, 1, SegmentKind::prompt},        {0, 70, SegmentKind::prompt},
                              {63, 1, SegmentKind::generation},   {64, 1, SegmentKind::generation},
                              {1030, 1, SegmentKind::generation}, {500, 30, SegmentKind::prompt},
                              {700, 4, SegmentKind::generation},  {10, 3, SegmentKind::prompt}};
        std::vector<Sequence> sequences;
        std::vector<std::vector<std::int32_t>> tokens;
        for (std::size_t i = 0; i < std::size(parts); ++i) {
          sequences.push_back(must(engine.new_sequence()));
          tokens.push_back(tokens_of(parts[i].before + parts[i].n, i));
          if (parts[i].before == 0) continue;
          append(engine, sequences.back(), std::span(tokens[i]).first(parts[i].before));
        }
        std::vector<SequenceInput> inputs;
        for (std::size_t i = 0; i < std::size(parts); ++i) {
          inputs.push_back({.sequence = &sequences[i],
                            .tokens = std::span(tokens[i]).subspan(parts[i].before),
                            .n_outputs = static_cast<Index>(std::min<std::size_t>(parts[i].n, 4)),
                            .kind = parts[i].kind});
        }
        const auto logits = copy(must(engine.run(inputs)));
        auto at = logits.begin();
        for (std::size_t i = 0; i < std::size(parts); ++i) {
          CAPTURE(i);
          CHECK(sequences[i].position() == static_cast<Index>(tokens[i].size()));
          auto alone = must(Engine::create(
              model,
              {.n_ctx = 1100, .max_step_tokens = 1100, .max_outputs = 40, .kv_type = kv_type}));
          auto sequence = must(alone.new_sequence());
          if (parts[i].before > 0) {
            append(alone, sequence, std::span(tokens[i]).first(parts[i].before));
          }
          const auto expected =
              append(alone, sequence, inputs[i].tokens, parts[i].kind, inputs[i].n_outputs);
          CHECK(std::equal(expected.begin(), expected.end(), at));
          at += static_cast<std::ptrdiff_t>(expected.size());
        }
        CHECK(at == logits.end());
      }
    }
  }
}

TEST_CASE("drafts that are verified together give what they give one by one") {
  const Model model = random_model({quant::Format::q4_0});
  auto engine = must(Engine::create(
      model,
      {.n_ctx = 700, .max_step_tokens = 600, .max_outputs = 8, .kv_type = ops::KvType::f16}));
  const auto tokens = tokens_of(600, 1);
  const std::span<const std::int32_t> all(tokens);
  auto together = must(engine.new_sequence());
  append(engine, together, all.first(508));
  auto one_by_one = must(together.fork());
  const auto logits = append(engine, together, all.subspan(508, 8), SegmentKind::generation, 8);
  std::vector<float> expected;
  for (std::size_t i = 0; i < 8; ++i) {
    const auto row = append(engine, one_by_one, all.subspan(508 + i, 1), SegmentKind::generation);
    expected.insert(expected.end(), row.begin(), row.end());
  }
  CHECK(logits == expected);
}

TEST_CASE("a fork shares pages until one of both writes to them") {
  const Model model = random_model({quant::Format::f32});
  auto engine = must(Engine::create(model, {.n_ctx = 512,
                                            .max_sequences = 2,
                                            .cache_positions = 16 * ops::kPagePositions,
                                            .max_step_tokens = 512}));
  CHECK(engine.n_pages() == 16);
  CHECK(engine.n_free_pages() == 16);
  const auto tokens = tokens_of(400, 2);
  const std::span<const std::int32_t> all(tokens);
  auto a = must(engine.new_sequence());
  append(engine, a, all.first(200));
  CHECK(a.n_pages() == 4);
  CHECK(engine.n_free_pages() == 12);
  {
    auto b = must(a.fork());
    CHECK(engine.n_free_pages() == 12);
    CHECK(a.n_own_pages() == 0);
    CHECK(std::equal(a.tokens().begin(), a.tokens().end(), b.tokens().begin(), b.tokens().end()));
    // Only the last page, which is not full, was copied.
    const auto b_logits = append(engine, b, all.subspan(300, 5));
    CHECK(engine.n_free_pages() == 11);
    CHECK(b.n_own_pages() == 1);
    CHECK(a.n_own_pages() == 1);
    const auto a_logits = append(engine, a, all.subspan(200, 5));
    CHECK(engine.n_free_pages() == 11);
    CHECK(a_logits != b_logits);
    // Both give the same as sequences of their own.
    for (const bool is_a : {true, false}) {
      auto fresh = must(engine.new_sequence());
      append(engine, fresh, all.first(200));
      CHECK(append(engine, fresh, all.subspan(is_a ? 200 : 300, 5)) ==
            (is_a ? a_logits : b_logits));
    }
    // Go back into a shared page: it is copied, and the other sequence keeps its content.
    REQUIRE(b.rewind(100));
    CHECK(b.n_pages() == 2);
    append(engine, b, all.subspan(7, 3));
    CHECK(b.n_own_pages() == 1);
    REQUIRE(a.rewind(200));
    CHECK(append(engine, a, all.subspan(200, 5)) == a_logits);
  }
  CHECK(engine.n_free_pages() == 12);
  REQUIRE(a.rewind(0));
  CHECK(engine.n_free_pages() == 16);
}

TEST_CASE("rows of numbers in place of tokens") {
  const Model model = random_model({quant::Format::f32});
  auto engine = must(Engine::create(
      model, {.n_ctx = 128, .max_sequences = 2, .cache_positions = 16 * ops::kPagePositions}));
  const auto tokens = tokens_of(20, 3);
  auto by_tokens = must(engine.new_sequence());
  const auto expected = append(engine, by_tokens, tokens);

  // The embeddings of the same tokens, with tokens before and after them.
  const graph::Weight& table = model.weights().at(Slot::token_embd, -1);
  std::vector<float> rows(10 * 64);
  for (std::size_t i = 0; i < 10; ++i) {
    table.ops->row(table.data, table.n, table.k, tokens[5 + i], rows.data() + i * 64);
  }
  auto by_rows = must(engine.new_sequence());
  append(engine, by_rows, std::span(tokens).first(5));
  const SequenceInput input{.sequence = &by_rows,
                            .rows = MatrixView<const float>(rows.data(), 10, 64)};
  must(engine.run({&input, 1}));
  CHECK(append(engine, by_rows, std::span(tokens).subspan(15)) == expected);
  CHECK(by_rows.position() == 20);
  CHECK(by_rows.tokens()[4] == tokens[4]);
  CHECK(by_rows.tokens()[5] == -1);
  // In one step with tokens of another sequence.
  auto again = must(engine.new_sequence());
  auto other = must(engine.new_sequence());
  append(engine, again, std::span(tokens).first(5));
  const SequenceInput both[] = {
      {.sequence = &other, .tokens = tokens},
      {.sequence = &again, .rows = MatrixView<const float>(rows.data(), 10, 64)}};
  const auto logits = copy(must(engine.run(both)));
  CHECK(std::equal(expected.begin(), expected.end(), logits.begin()));
  CHECK(append(engine, again, std::span(tokens).subspan(15)) == expected);
  // Other numbers give another result.
  rows[3] += 1;
  auto changed = must(engine.new_sequence());
  append(engine, changed, std::span(tokens).first(5));
  const SequenceInput wrong{.sequence = &changed,
                            .rows = MatrixView<const float>(rows.data(), 10, 64)};
  must(engine.run({&wrong, 1}));
  CHECK(append(engine, changed, std::span(tokens).subspan(15)) != expected);
}

TEST_CASE("a policy says which pages are read") {
  const Model model = random_model({quant::Format::f32});
  auto engine =
      must(Engine::create(model, {.n_ctx = 512, .cache_positions = 2048, .max_step_tokens = 512}));
  const auto tokens = tokens_of(400, 4);
  const std::span<const std::int32_t> all(tokens);
  auto dense = must(engine.new_sequence());
  append(engine, dense, all.first(399));
  auto sparse = must(dense.fork());
  auto everything = must(dense.fork());
  const auto expected = append(engine, dense, all.subspan(399, 1), SegmentKind::generation);

  struct Counter final : ops::PagePolicy {
    Index choose(Index layer, const ops::Segment& segment,
                 std::span<std::int32_t> pages) const noexcept override {
      ++calls;
      layers |= 1 << layer;
      const ops::SinkWindowPolicy policy(1, window);
      return policy.choose(layer, segment, pages);
    }
    mutable int calls = 0, layers = 0;
    Index window = 64;
  };
  Counter policy;
  engine.set_policy(&policy);
  const auto few = append(engine, sparse, all.subspan(399, 1), SegmentKind::generation);
  CHECK(policy.calls == 3);
  CHECK(policy.layers == 7);
  CHECK(few != expected);
  policy.window = 400;
  CHECK(append(engine, everything, all.subspan(399, 1), SegmentKind::generation) == expected);
}

TEST_CASE("errors of a step change nothing") {
  const Model model = random_model({quant::Format::f32});
  auto engine = must(Engine::create(model, {.n_ctx = 256,
                                            .max_sequences = 2,
                                            .cache_positions = 4 * ops::kPagePositions,
                                            .max_step_tokens = 128,
                                            .max_outputs = 3}));
  auto other_engine = must(Engine::create(model, {.n_ctx = 64}));
  auto a = must(engine.new_sequence());
  auto b = must(engine.new_sequence());
  auto stranger = must(other_engine.new_sequence());
  auto small = must(engine.new_sequence(5));
  const auto tokens = tokens_of(300, 5);
  const std::span<const std::int32_t> all(tokens);
  append(engine, a, all.first(100));
  const std::int32_t bad_ids[] = {1, 50}, negative[] = {-1};
  const std::vector<float> rows(3 * 64);
  const auto run = [&](std::vector<SequenceInput> inputs) { return code(engine.run(inputs)); };
  CHECK(run({}) == Errc::invalid_argument);
  CHECK(run({{.tokens = all.first(1)}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &stranger, .tokens = all.first(1)}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &a}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .tokens = bad_ids}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .tokens = negative}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .tokens = all.first(2), .n_outputs = 3}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .tokens = all.first(2), .n_outputs = -1}}) == Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .rows = MatrixView<const float>(rows.data(), 3, 63)}}) ==
        Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .tokens = all.first(1)}, {.sequence = &a, .tokens = all.first(1)}}) ==
        Errc::invalid_argument);
  CHECK(run({{.sequence = &a, .tokens = all.first(129)}}) == Errc::limit);
  CHECK(run({{.sequence = &small, .tokens = all.first(6)}}) == Errc::limit);
  CHECK(run({{.sequence = &a, .tokens = all.first(2), .n_outputs = 2},
             {.sequence = &b, .tokens = all.first(2), .n_outputs = 2}}) == Errc::limit);
  CHECK(run({{.sequence = &a, .tokens = all.first(1)},
             {.sequence = &b, .tokens = all.first(1)},
             {.sequence = &small, .tokens = all.first(1)}}) == Errc::limit);
  CHECK(code(engine.new_sequence(257)) == Errc::invalid_argument);
  CHECK(code(engine.new_sequence(-1)) == Errc::invalid_argument);
  // Two pages are free: b may take two, but not three.
  CHECK(run({{.sequence = &b, .tokens = all.first(128)}}) == std::nullopt);
  CHECK(engine.n_free_pages() == 0);
  CHECK(run({{.sequence = &b, .tokens = all.first(1)}}) == Errc::limit);
  CHECK(run({{.sequence = &a, .tokens = all.first(28)}}) == std::nullopt);
  CHECK(run({{.sequence = &a, .tokens = all.first(1)}}) == Errc::limit);
  CHECK(a.position() == 128);
  CHECK(b.position() == 128);
  REQUIRE(b.rewind(0));
  CHECK(run({{.sequence = &a, .tokens = all.first(1)}}) == std::nullopt);
  for (const EngineOptions& o :
       {EngineOptions{.n_ctx = -1}, EngineOptions{.max_sequences = 0},
        EngineOptions{.max_step_tokens = 0}, EngineOptions{.max_outputs = -1},
        EngineOptions{.cache_positions = -1}, EngineOptions{.max_sequences = Index{1} << 40}}) {
    CHECK(code(Engine::create(model, o)) == Errc::invalid_argument);
  }
}

TEST_CASE("a session appends all tokens or none, also if others hold its pages") {
  const Model model = random_model({quant::Format::f32});
  auto session = must(Session::create(model, {.n_ctx = 3 * ops::kPagePositions}));
  const auto tokens = tokens_of(3 * ops::kPagePositions, 6);
  const std::span<const std::int32_t> all(tokens);
  REQUIRE(session.append(all.first(64)));
  {
    auto other = must(session.engine().new_sequence());
    append(session.engine(), other, all.first(64));
    // Two steps of 64 tokens: there is a page for the first only.
    const auto full = session.append(all.subspan(64, 128));
    CHECK(code(full) == Errc::limit);
    CHECK(session.position() == 64);
    CHECK(session.append(all.subspan(64, 64)));
    CHECK(session.rewind(64));
  }
  CHECK(session.append(all.subspan(64, 128)));
  CHECK(session.position() == 192);
}

TEST_CASE("models live as long as their sessions, caches as long as their sequences") {
  std::optional<Sequence> sequence;
  std::optional<Session> session;
  const auto tokens = tokens_of(70, 6);
  {
    const Model model = random_model({quant::Format::f32});
    session.emplace(must(Session::create(model, {.n_ctx = 100})));
    auto engine = must(Engine::create(model, {.n_ctx = 100, .max_step_tokens = 80}));
    sequence.emplace(must(engine.new_sequence()));
    append(engine, *sequence, tokens);
  }
  CHECK(sequence->position() == 70);
  auto copy_of_it = must(sequence->fork());
  sequence.reset();
  CHECK(copy_of_it.n_own_pages() == 2);
  REQUIRE(copy_of_it.rewind(1));
  CHECK(copy_of_it.n_pages() == 1);
  CHECK(must(session->append(tokens)).extent(1) == 50);
  // After a move, it continues.
  std::vector<Session> sessions;
  sessions.push_back(*std::move(session));
  sessions.reserve(100);
  CHECK(sessions[0].position() == 70);
  CHECK(must(sessions[0].append(std::span(tokens).first(5))).extent(0) == 1);
}

TEST_CASE("a step allocates nothing") {
  const Model model = random_model({quant::Format::q4_0, quant::Format::f32});
  auto engine = must(Engine::create(model, {.n_ctx = 1024, .max_sequences = 3}));
  std::vector<Sequence> sequences;
  std::vector<SequenceInput> inputs;
  const auto tokens = tokens_of(200, 7);
  for (int i = 0; i < 3; ++i) sequences.push_back(must(engine.new_sequence()));
  for (Sequence& s : sequences) {
    inputs.push_back({.sequence = &s, .kind = SegmentKind::generation});
  }
  const auto run = [&](std::size_t at) {
    for (SequenceInput& input : inputs) input.tokens = std::span(tokens).subspan(at, 1);
    return engine.run(inputs).has_value();
  };
  REQUIRE(run(0));
  const long long before = allocation_count();
  bool all = true;
  for (std::size_t i = 1; i < tokens.size(); ++i) all = all && run(i);
  CHECK(allocation_count() == before);
  CHECK(all);
}

}  // namespace engine_test
