// SPDX-License-Identifier: Apache-2.0
//
// The cache of prefixes: what it finds is bit-equal to computing it anew; what it keeps and what it
// drops.
#include "nibble/generate/prefix_cache.hpp"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/prefixes.hpp"
#include "nibble/model/fingerprint.hpp"

namespace prefix_cache_test {

using namespace nibble;
using namespace test;
using ops::kPagePositions;

namespace {

// How many tokens the first n of `all` and of a copy with another token at n have in common in the
// cache; and that what follows them has the logits `expected` then.
void check_match(Engine& engine, PrefixCache& cache, const Ids& all, Index n, Index expected_n) {
  CAPTURE(n);
  REQUIRE(all.size() >= static_cast<std::size_t>(n) + 4);
  Ids other(all.begin(), all.begin() + n);
  for (const std::int32_t id : {7, 3, 9, 9}) other.push_back((id + all[other.size()]) % 50);
  const auto fresh = logits_of(engine, other);
  CHECK(cache.n_cached(other) == expected_n);
  Sequence sequence = must(cache.match(other));
  CHECK(sequence.position() == expected_n);
  CHECK(std::equal(sequence.tokens().begin(), sequence.tokens().end(), other.begin()));
  CHECK(append(engine, sequence, rest_of(other, expected_n)) == fresh);
}

}  // namespace

TEST_CASE("what is found gives, bit for bit, what computing it anew gives") {
  const std::pair<const char*, Model> models[] = {
      {"llama", llama_model()},
      {"llama with a window", llama_model(70)},
      {"gemma 3 (windows in some layers)", gemma_model(70)}};
  for (const auto& [name, model] : models) {
    CAPTURE(name);
    for (const ops::KvType kv_type : ops::kKvTypes) {
      CAPTURE(ops::to_string(kv_type));
      Engine engine = must(Engine::create(
          model, {.n_ctx = 400, .max_sequences = 8, .max_step_tokens = 400, .kv_type = kv_type}));
      PrefixCache cache = must(PrefixCache::create(engine));
      const Ids all = some_ids(300, 1);
      Sequence first = must(engine.new_sequence());
      append(engine, first, std::span(all).first(250));
      CHECK(must(cache.insert(first)) == 250);
      CHECK(cache.n_pages() == 4 * engine.n_page_tables());
      // The sequence goes on without changing what is cached.
      append(engine, first, std::span(all).subspan(250, 20));
      // Page-aligned, one more and one less, in the middle, and all of it.
      for (const Index n : {64, 65, 63, 128, 100, 1, 192, 249})
        check_match(engine, cache, all, n, n);
      check_match(engine, cache, all, 250, 250);
      check_match(engine, cache, all, 280, 250);
      check_match(engine, cache, some_ids(300, 2), 20, 0);
      CHECK(first.position() == 270);
    }
  }
}

TEST_CASE("layers that keep only their window: prefixes end where these pages are") {
  for (const Model& model : {llama_model(70), gemma_model(70)}) {
    Engine engine = must(Engine::create(model, {.n_ctx = 800,
                                                .max_sequences = 4,
                                                .cache_positions = 8000,
                                                .window_margin = 64,
                                                .max_step_tokens = 100}));
    const Index n_windowed = engine.pages_for(800) - engine.pages_for(1);
    CHECK(n_windowed > 0);
    PrefixCache cache = must(PrefixCache::create(engine));
    const Ids all = some_ids(760, 1);
    Sequence first = must(engine.new_sequence());
    append(engine, first, std::span(all).first(600));  // the last step began at 500
    CHECK(must(cache.insert(first)) == 600);
    // Pages from (500 + 1 - 134) / 64 = 5 on are there: positions from 320 + 69 on find their
    // window.
    check_match(engine, cache, all, 600, 600);
    check_match(engine, cache, all, 450, 450);
    check_match(engine, cache, all, 389, 389);
    check_match(engine, cache, all, 388, 0);
    // Another sequence brings what is missing before it parts.
    Ids other(all.begin(), all.begin() + 300);
    for (const std::int32_t id : some_ids(104, 2)) other.push_back(id);
    other[300] = (all[300] + 1) % 50;
    Sequence second = must(engine.new_sequence());
    append(engine, second, std::span(other).first(270));
    CHECK(must(cache.insert(second)) == 270);
    append(engine, second, std::span(other).subspan(270, 130));
    CHECK(must(cache.insert(second)) == 400);
    check_match(engine, cache, other, 400, 400);
    check_match(engine, cache, other, 290, 290);
    check_match(engine, cache, all, 270, 270);
    check_match(engine, cache, all, 600, 600);
    // Inserted after each step: all places are there.
    cache.clear();
    Sequence third = must(engine.new_sequence());
    for (std::size_t at = 0; at < 700; at += 100) {
      append(engine, third, std::span(all).subspan(at, 100));
      CHECK(must(cache.insert(third)) == static_cast<Index>(at) + 100);
    }
    for (const Index n : {50, 64, 222, 500, 699}) check_match(engine, cache, all, n, n);
    // Long after, the end of what was cached is still found.
    append(engine, third, std::span(all).subspan(700));
    CHECK(must(cache.insert(third)) == 760);
    check_match(engine, cache, all, 690, 690);
    cache.clear();
    CHECK(engine.n_free_pages() ==
          engine.n_pages() - first.n_pages() - second.n_pages() - third.n_pages());
  }
}

TEST_CASE("with recurrent state, prefixes end where they were inserted") {
  const Model model = conv_model();
  Engine engine =
      must(Engine::create(model, {.n_ctx = 400, .max_sequences = 8, .max_step_tokens = 400}));
  PrefixCache cache = must(PrefixCache::create(engine));
  const Ids all = some_ids(300, 1);
  Sequence first = must(engine.new_sequence());
  for (const Index n : {50, 64, 70, 66}) {
    append(engine, first,
           std::span(all).subspan(static_cast<std::size_t>(first.position()),
                                  static_cast<std::size_t>(n)));
    CHECK(must(cache.insert(first)) == first.position());
  }
  check_match(engine, cache, all, 49, 0);
  check_match(engine, cache, all, 50, 50);
  check_match(engine, cache, all, 113, 50);
  check_match(engine, cache, all, 114, 114);
  check_match(engine, cache, all, 240, 184);
  check_match(engine, cache, all, 290, 250);
  // A state within a run of tokens: it is cut there.
  Sequence second = must(engine.new_sequence());
  append(engine, second, std::span(all).first(90));
  CHECK(must(cache.insert(second)) == 90);
  check_match(engine, cache, all, 100, 90);
  check_match(engine, cache, all, 290, 250);
  // What came from the cache can go back to where it came from, and to its beginning.
  Sequence again = must(cache.match(std::span(all).first(200)));
  CHECK(again.position() == 184);
  append(engine, again, std::span(all).subspan(184, 5));
  CHECK(again.last_reachable(187) == 184);
  CHECK(again.last_reachable(100) == 0);
}

TEST_CASE("a tree of prefixes: whatever is asked, the longest common beginning is found") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 300,
                                              .max_sequences = 2,
                                              .cache_positions = 400 * kPagePositions,
                                              .max_step_tokens = 300}));
  PrefixCache cache = must(PrefixCache::create(engine, {.max_bytes = std::size_t{1} << 30}));
  std::mt19937 random(5);
  const auto pick = [&](std::size_t n) { return random() % n; };
  std::vector<std::pair<Ids, std::uint64_t>> inserted;
  const auto longest = [&](const Ids& ids, std::uint64_t weights) {
    std::size_t best = 0;
    for (const auto& [other, its_weights] : inserted) {
      if (its_weights != weights) continue;
      const std::size_t end = std::min(ids.size() - 1, other.size());
      std::size_t n = 0;
      while (n < end && ids[n] == other[n]) ++n;
      best = std::max(best, n);
    }
    return static_cast<Index>(best);
  };
  for (int i = 0; i < 120; ++i) {
    // The beginning of an earlier one, and something new.
    Ids ids;
    if (!inserted.empty() && pick(4) != 0) {
      const Ids& other = inserted[pick(inserted.size())].first;
      ids.assign(other.begin(),
                 other.begin() + static_cast<std::ptrdiff_t>(pick(other.size() + 1)));
    }
    for (std::size_t n = 1 + pick(90); n > 0 && ids.size() < 290; --n) {
      ids.push_back(static_cast<std::int32_t>(pick(3)));
    }
    const std::uint64_t weights = pick(5) == 0 ? 77 : 0;
    const Index expected = longest(ids, weights);
    REQUIRE(cache.n_cached(ids, weights) == expected);
    Sequence sequence = must(cache.match(ids, weights));
    REQUIRE(sequence.position() == expected);
    const auto logits = append(engine, sequence, rest_of(ids, expected));
    if (i % 6 == 0) REQUIRE(logits == logits_of(engine, ids));
    REQUIRE(must(cache.insert(sequence, weights)) == static_cast<Index>(ids.size()));
    inserted.emplace_back(ids, weights);
  }
  // All pages are those of the cache; when it goes, none is left behind.
  CHECK(engine.n_free_pages() == engine.n_pages() - cache.n_pages());
  cache.clear();
  CHECK(cache.n_pages() == 0);
  CHECK(cache.bytes() == 0);
  CHECK(engine.n_free_pages() == engine.n_pages());
}

TEST_CASE("what was used longest ago makes room, but not what a sequence uses") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 256,
                                              .max_sequences = 2,
                                              .cache_positions = 64 * kPagePositions,
                                              .max_step_tokens = 256}));
  // Space for eight pages and what belongs to them.
  const std::size_t page_bytes = page_bytes_of(engine);
  PrefixCache cache =
      must(PrefixCache::create(engine, {.max_bytes = 8 * page_bytes + page_bytes / 2}));
  const auto ids_of = [&](std::size_t i) { return some_ids(128, 100 + i); };
  const auto add = [&](std::size_t i) {
    Sequence sequence = must(engine.new_sequence());
    append(engine, sequence, ids_of(i));
    return must(cache.insert(sequence));
  };
  const auto n_cached = [&](std::size_t i) { return cache.n_cached(ids_of(i)); };
  for (std::size_t i = 0; i < 4; ++i) CHECK(add(i) == 128);
  CHECK(cache.n_pages() == 8);
  CHECK(cache.bytes() <= cache.max_bytes());
  {
    // 0 is in use, and 1 was used last: 2 must go, then 3.
    Sequence user = must(cache.match(ids_of(0)));
    (void)must(cache.match(ids_of(1)));
    CHECK(add(4) == 128);
    CHECK(n_cached(0) == 127);
    CHECK(n_cached(1) == 127);
    CHECK(n_cached(2) == 0);
    CHECK(n_cached(3) == 127);
    CHECK(cache.stats().n_evictions == 1);
    for (std::size_t i = 5; i < 9; ++i) CHECK(add(i) == 128);
    CHECK(n_cached(0) == 127);
    CHECK(n_cached(1) == 0);
    CHECK(cache.bytes() <= cache.max_bytes());
    // make_room() too leaves it alone.
    CHECK(cache.make_room(1000) == 62);
    CHECK(n_cached(0) == 127);
    CHECK(cache.n_pages() == 2);
  }
  CHECK(cache.make_room(64) == 64);
  CHECK(n_cached(0) == 0);

  // What is longer than the cache may be is kept in part, in whole pages.
  std::vector<Sequence> users;
  for (std::size_t i = 0; i < 3; ++i) {
    add(i);
    users.push_back(must(cache.match(ids_of(i))));
  }
  Sequence sequence = must(engine.new_sequence());
  append(engine, sequence, some_ids(250, 3));
  CHECK(must(cache.insert(sequence)) == 128);
  CHECK(cache.bytes() <= cache.max_bytes());
  CHECK(cache.n_cached(some_ids(250, 3)) == 128);
  append(engine, sequence, some_ids(6, 3));
  CHECK(must(cache.insert(sequence)) == 128);
}

TEST_CASE("a prompt that grows by steps stays one run of tokens, and pages are not copied twice") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 256, .cache_positions = 1024}));
  PrefixCache cache = must(PrefixCache::create(engine));
  const Ids all = some_ids(240, 4);
  Sequence sequence = must(engine.new_sequence());
  for (std::size_t at = 0; at < 240; at += 48) {
    append(engine, sequence, std::span(all).subspan(at, 48));
    CHECK(must(cache.insert(sequence)) == static_cast<Index>(at) + 48);
    CHECK(cache.n_pages() == ops::pages_for(static_cast<Index>(at) + 48));
  }
  check_match(engine, cache, all, 200, 200);
  // Pending tokens are not computed: they are not kept.
  REQUIRE(sequence.push(1));
  CHECK(must(cache.insert(sequence)) == 240);
}

TEST_CASE("of what is in use in part, the end makes room") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 640,
                                              .max_sequences = 2,
                                              .cache_positions = 20 * kPagePositions,
                                              .max_step_tokens = 640}));
  PrefixCache cache = must(PrefixCache::create(engine, {.max_bytes = std::size_t{1} << 30}));
  const Ids all = some_ids(600, 1);
  {
    Sequence first = must(engine.new_sequence());
    append(engine, first, all);
    CHECK(must(cache.insert(first)) == 600);
    CHECK(cache.n_pages_in_use() == 10);
    CHECK(cache.n_whole_pages(first) == 9);
    CHECK(cache.n_shared_pages(first) == 9);
  }
  CHECK(cache.n_pages_in_use() == 0);
  Sequence user = must(engine.new_sequence());
  CHECK(must(cache.match(std::span(all).first(151), user)) == 150);
  CHECK(code(cache.match(all, user)) == Errc::invalid_argument);  // it is not empty
  CHECK(cache.n_pages_in_use() == 3);
  CHECK(cache.n_shared_pages(user) == 2);
  CHECK(cache.make_room(17) == 17);
  CHECK(cache.n_pages() == 3);
  CHECK(cache.make_room(18) == 17);
  check_match(engine, cache, all, 300, 192);
  // A page that the user has copied to write to, with nodes after it that are in use.
  append(engine, user, some_ids(10, 2));
  CHECK(must(cache.insert(user)) == 160);
  Index n_left = engine.n_pages() - cache.n_pages_in_use();
  CHECK(cache.make_room(100) >= n_left);
  CHECK(user.position() == 160);
}

TEST_CASE("sixteen questions after the same beginning compute it once") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(
      model, {.n_ctx = 600, .max_sequences = 16, .cache_positions = 8192, .max_step_tokens = 600}));
  PrefixCache cache = must(PrefixCache::create(engine));
  const Ids shared = some_ids(500, 1);
  std::vector<Ids> prompts;
  for (std::size_t i = 0; i < 16; ++i) {
    prompts.push_back(shared);
    for (const std::int32_t id : some_ids(10 + i, 50 + i)) prompts.back().push_back(id);
  }
  std::size_t n_computed = prompts[0].size();
  {
    Sequence sequence = must(cache.match(prompts[0]));
    append(engine, sequence, prompts[0]);
    CHECK(must(cache.insert(sequence)) == static_cast<Index>(prompts[0].size()));
  }
  for (std::size_t i = 1; i < 16; ++i) {
    Sequence sequence = must(cache.match(prompts[i]));
    CHECK(sequence.position() >= 500);
    const auto rest = rest_of(prompts[i], sequence.position());
    n_computed += rest.size();
    const auto logits = append(engine, sequence, rest);
    CHECK(logits == logits_of(engine, prompts[i]));
  }
  CHECK(n_computed < 500 + 16 * 26);
  CHECK(cache.stats().n_matches == 16);
  CHECK(cache.stats().n_tokens_matched >= 15 * 500);
}

TEST_CASE("errors, and sequences that cannot be kept") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 128, .cache_positions = 1024}));
  Engine other = must(Engine::create(model, {.n_ctx = 128}));
  PrefixCache cache = must(PrefixCache::create(engine));
  Sequence stranger = must(other.new_sequence());
  CHECK(code(cache.insert(stranger)) == Errc::invalid_argument);
  CHECK(code(cache.match({}, 0, 129)) == Errc::invalid_argument);
  CHECK(code(cache.match({}, 0, -1)) == Errc::invalid_argument);
  CHECK(must(cache.match({})).position() == 0);
  Sequence sequence = must(engine.new_sequence());
  CHECK(must(cache.insert(sequence)) == 0);
  // Rows of numbers end what can be found.
  const Ids ids = some_ids(40, 1);
  append(engine, sequence, std::span(ids).first(20));
  const std::vector<float> rows(3 * 64, 0.25f);
  const SequenceInput input{.sequence = &sequence,
                            .rows = MatrixView<const float>(rows.data(), 3, 64)};
  REQUIRE(engine.run({&input, 1}));
  append(engine, sequence, std::span(ids).subspan(20));
  CHECK(must(cache.insert(sequence)) == 20);
  check_match(engine, cache, ids, 30, 20);
  // No more than fits in the sequence, and something is left to compute.
  CHECK(must(cache.match(ids, 0, 10)).position() == 10);
  CHECK(must(cache.match(std::span(ids).first(20))).position() == 19);
  CHECK(must(cache.match(std::span(ids).first(1))).position() == 0);
}

TEST_CASE("memory that runs out changes nothing") {
  const Model model = llama_model();
  Engine engine = must(Engine::create(model, {.n_ctx = 256, .cache_positions = 2048}));
  PrefixCache cache = must(PrefixCache::create(engine));
  const Ids a = some_ids(150, 1);
  Ids b = a;
  b[70] = (b[70] + 1) % 50;
  Sequence first = must(engine.new_sequence()), second = must(engine.new_sequence());
  append(engine, first, a);
  append(engine, second, b);
  REQUIRE(cache.insert(first));
  int n_failed = 0;
  for (long long n = 1;; ++n) {
    FailingAllocations failing(n, false);
    const auto inserted = cache.insert(second);
    if (!failing.happened()) {
      CHECK(inserted.value() == 150);
      break;
    }
    ++n_failed;
    CHECK(code(inserted) == Errc::out_of_memory);
    CHECK(cache.n_cached(a) == 149);
    CHECK(cache.n_cached(b) == 70);
  }
  CHECK(n_failed >= 3);
  for (const auto& ids : {a, b}) check_match(engine, cache, ids, 120, 120);
  cache.clear();
  CHECK(engine.n_free_pages() == engine.n_pages() - first.n_pages() - second.n_pages());
}

TEST_CASE("a fingerprint tells models apart") {
  const Model model = llama_model();
  const std::uint64_t own = must(fingerprint(model));
  CHECK(own == must(fingerprint(llama_model())));
  CHECK(own != must(fingerprint(llama_model(0, 10))));
  CHECK(own != must(fingerprint(gemma_model(70))));
  // Another weight in one place; of a large one, anywhere near the places that are read.
  const graph::WeightTable table = model.weights();
  std::vector<graph::Weight> weights;
  for (Index layer = -1; layer < table.n_layers(); ++layer) {
    for (std::size_t slot = 0; slot < table.n_slots(); ++slot) {
      weights.push_back(table.at(slot, layer));
    }
  }
  auto changed = AlignedBuffer::allocate(64 * 64 * sizeof(float));
  REQUIRE(changed);
  graph::Weight& w = weights[table.n_slots() + static_cast<std::size_t>(Slot::attn_q)];
  REQUIRE(static_cast<std::size_t>(w.bytes()) == changed->size());
  std::copy_n(w.data, changed->size(), changed->data());
  w.data = changed->data();
  CHECK(must(fingerprint(model, {weights, table.n_slots()})) == own);
  changed->data()[1000] ^= std::byte{1};
  CHECK(must(fingerprint(model, {weights, table.n_slots()})) != own);
}

}  // namespace prefix_cache_test
