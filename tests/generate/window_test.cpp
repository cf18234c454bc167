// SPDX-License-Identifier: Apache-2.0
//
// Layers with a window keep only that: results do not change, memory is given back, and what can no
// longer be reached is computed anew or an error.
#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/prefixes.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/session.hpp"

namespace window_test {

using namespace nibble;
using namespace test;
using ops::kPagePositions;

namespace {

constexpr Index kWindow = 70;

struct Named {
  const char* name;
  Model model;
};
std::vector<Named> models() {
  return {{"a window in all layers", llama_model(kWindow)},
          {"in five of six layers", gemma_model(kWindow)},
          {"in seven of eight layers: eight tables", gemma_model(kWindow, 8)}};
}

std::vector<float> step(Engine& engine, Sequence& sequence, std::span<const std::int32_t> ids,
                        ops::SegmentKind kind) {
  const SequenceInput input{.sequence = &sequence, .tokens = ids, .kind = kind};
  const auto logits = must(engine.run({&input, 1}));
  return {logits.data(), logits.data() + logits.extent(1)};
}

}  // namespace

TEST_CASE("layers that keep only their window give the same, bit for bit") {
  const Ids all = some_ids(700, 1);
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    for (const ops::KvType kv_type : ops::kKvTypes) {
      CAPTURE(ops::to_string(kv_type));
      const EngineOptions options{.n_ctx = 800, .window_margin = -1, .kv_type = kv_type};
      EngineOptions few = options;
      few.window_margin = 0;
      Engine whole = must(Engine::create(model, options)),
             engine = must(Engine::create(model, few));
      CHECK(engine.bytes() < whole.bytes());
      Sequence a = must(whole.new_sequence()), b = must(engine.new_sequence());
      for (std::size_t at = 0; at < all.size();) {
        // Prompts in steps of 64 and of other sizes, then tokens one by one.
        const std::size_t n = at < 256 ? 64 : at < 556 ? 60 : 1;
        const auto kind = n == 1 ? ops::SegmentKind::generation : ops::SegmentKind::prompt;
        const auto now = std::span(all).subspan(at, n);
        REQUIRE(step(whole, a, now, kind) == step(engine, b, now, kind));
        at += n;
        REQUIRE(b.n_pages() <= engine.pages_for(b.position()));
      }
      CHECK(b.n_pages() < a.n_pages() * engine.n_page_tables());
    }
  }
}

TEST_CASE("the memory of a long sequence is that of its window") {
  const Model gemma = gemma_model(kWindow), llama = llama_model(kWindow);
  const auto bytes = [](const Model& model, Index n_ctx, Index margin) {
    return must(Session::bytes_needed(model, {.n_ctx = n_ctx, .window_margin = margin}));
  };
  // All layers with a window: beside tokens and the tables of rotations, a context of any length
  // takes the same.
  const auto of_positions = [&](const Model& model, Index margin) {
    return bytes(model, 4096, margin) - bytes(model, 2048, margin);
  };
  const auto page_bytes = static_cast<std::size_t>(3 * 2 * 16 * 2 * 2 * kPagePositions);
  CHECK(of_positions(llama, -1) - of_positions(llama, 0) >= 32 * page_bytes);
  CHECK(of_positions(llama, 0) < 32 * page_bytes);
  // Five of six layers of 4096 positions.
  const std::size_t kept = bytes(gemma, 4096, 0), whole = bytes(gemma, 4096, -1);
  const auto layer_bytes = static_cast<std::size_t>(2 * 16 * 2 * 2 * 4096);
  CHECK(whole - kept > 5 * layer_bytes * 9 / 10);
  // A session reads all of it, in steps of any size; nothing is left of the pages.
  for (const Index max_step_tokens : {1, 64, 100}) {
    Session session = must(Session::create(
        gemma, {.n_ctx = 1000, .max_step_tokens = max_step_tokens, .window_margin = 0}));
    REQUIRE(session.append(some_ids(1000, 2)));
    CHECK(session.engine().n_free_pages() >= 0);
    CHECK(session.sequence().n_pages() <= session.engine().pages_for(1000));
    REQUIRE(session.rewind(0));
    CHECK(session.engine().n_free_pages() == session.engine().n_pages());
  }
}

TEST_CASE("going back: as far as the margin, else it is computed anew") {
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    const Ids all = some_ids(600, 3);
    Session whole = must(Session::create(model, {.n_ctx = 700, .window_margin = -1}));
    Session session = must(Session::create(model, {.n_ctx = 700, .window_margin = 100}));
    const auto logits_after = [&](Session& s, std::span<const std::int32_t> ids) {
      const auto logits = must(s.append(ids));
      return std::vector<float>(logits.data(), logits.data() + logits.extent(1));
    };
    CHECK(logits_after(whole, all) == logits_after(session, all));
    // The last step began at 576.
    CHECK(session.sequence().last_reachable(476) == 476);
    CHECK(session.sequence().last_reachable(390) == 0);
    CHECK(code(session.sequence().rewind(390)) == Errc::unsupported);
    CHECK(session.position() == 600);
    for (const Index n : {580, 500, 390, 65, 0}) {
      CAPTURE(n);
      REQUIRE(whole.rewind(n));
      REQUIRE(session.rewind(n));
      CHECK(session.position() == n);
      const auto next = std::span(all).subspan(7, 20);
      CHECK(logits_after(session, next) == logits_after(whole, next));
    }
  }
}

TEST_CASE("whatever sequences do, what they compute is right, and no page is lost") {
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    Engine engine = must(Engine::create(model, {.n_ctx = 500,
                                                .max_sequences = 4,
                                                .cache_positions = 10 * kPagePositions,
                                                .window_margin = 30,
                                                .max_step_tokens = 80}));
    Engine whole = must(Engine::create(
        model, {.n_ctx = 500, .max_sequences = 1, .window_margin = -1, .max_step_tokens = 80}));
    std::mt19937 random(7);
    const auto pick = [&](std::size_t n) { return random() % n; };
    {
      std::vector<Sequence> sequences;
      int n_full = 0, n_checked = 0;
      for (int i = 0; i < 400; ++i) {
        const std::size_t what = pick(10);
        if (sequences.empty() || (what == 0 && sequences.size() < 6)) {
          sequences.push_back(must(engine.new_sequence()));
        } else if (what == 1 && sequences.size() < 6) {
          sequences.push_back(must(sequences[pick(sequences.size())].fork()));
        } else if (what == 2) {
          sequences.erase(sequences.begin() + static_cast<std::ptrdiff_t>(pick(sequences.size())));
        } else if (what == 3) {
          Sequence& s = sequences[pick(sequences.size())];
          const auto to = static_cast<Index>(pick(static_cast<std::size_t>(s.position()) + 1));
          REQUIRE(s.rewind(s.last_reachable(to)));
        } else {
          std::vector<SequenceInput> inputs;
          std::vector<Ids> tokens(sequences.size());
          for (std::size_t j = pick(2); j < std::min(sequences.size(), std::size_t{4}); ++j) {
            const auto left = static_cast<std::size_t>(500 - sequences[j].position());
            tokens[j] = some_ids(std::min(left, 1 + pick(20)), random());
            if (tokens[j].empty()) continue;
            inputs.push_back({.sequence = &sequences[j], .tokens = tokens[j]});
          }
          if (inputs.empty()) continue;
          const auto logits = engine.run(inputs);
          if (!logits) {
            CHECK(logits.error().code == Errc::limit);
            ++n_full;
            sequences.erase(sequences.begin());
            continue;
          }
          if (i % 8 != 0) continue;
          ++n_checked;
          const Ids ids(inputs[0].sequence->tokens().begin(), inputs[0].sequence->tokens().end());
          const std::vector<float> got(logits->data(), logits->data() + logits->extent(1));
          REQUIRE(got == logits_of(whole, ids));
        }
      }
      CHECK(n_full > 3);
      CHECK(n_checked > 10);
    }
    CHECK(engine.n_free_pages() == engine.n_pages());
  }
}

TEST_CASE("a long prompt of a session, while forks hold its pages: an error or the right result") {
  const Model model = gemma_model(kWindow);
  const Ids all = some_ids(600, 4);
  Session whole = must(Session::create(model, {.n_ctx = 700, .window_margin = -1}));
  const auto expected = must(whole.append(all));
  for (std::size_t n_forks = 0; n_forks < 4; ++n_forks) {
    CAPTURE(n_forks);
    Session session = must(Session::create(model, {.n_ctx = 700, .window_margin = 0}));
    std::vector<Sequence> forks;
    for (std::size_t i = 0; i <= n_forks; ++i) {
      if (i > 0) forks.push_back(must(session.sequence().fork()));
      if (!session.append(std::span(all).subspan(50 * i, 50))) break;
    }
    const auto before = session.position();
    const auto logits = session.append(rest_of(all, before));
    if (!logits) {
      CHECK(logits.error().code == Errc::limit);
      CHECK(session.position() == before);
      CHECK(n_forks > 0);
      continue;
    }
    CHECK(std::equal(expected.data(), expected.data() + expected.extent(1), logits->data()));
  }
}

TEST_CASE("a policy of pages, with windows: pages that are gone are not read") {
  struct All final : ops::PagePolicy {
    Index choose(Index, const ops::Segment&,
                 std::span<std::int32_t> pages) const noexcept override {
      for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
      return static_cast<Index>(pages.size());
    }
  };
  const All policy;
  const Ids all = some_ids(600, 5);
  for (const auto& [name, model] : models()) {
    CAPTURE(name);
    Engine engine = must(Engine::create(model, {.n_ctx = 700, .window_margin = 0}));
    const auto expected = logits_of(engine, all);
    engine.set_policy(&policy);
    CHECK(logits_of(engine, all) == expected);
  }
}

}  // namespace window_test
