// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/session.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "forget_target.hpp"
#include "generate/home_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/simd/dispatch.hpp"
#include "why.hpp"

namespace session_test {

using nibble::Errc;
using nibble::Index;
using nibble::Session;
using nibble::SessionOptions;
using nibble::ops::KvType;
using Ids = std::vector<std::int32_t>;
using Logits = std::vector<float>;  // rows of n_vocab()

namespace {

std::size_t n_vocab() {
  return static_cast<std::size_t>(Index{test::home_model().config().vocab_size});
}

Ids random_ids(std::size_t n, unsigned seed = 1) {
  std::mt19937 random(seed);
  Ids ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(random() % n_vocab());
  return ids;
}

Session make(const SessionOptions& options = {}) {
  auto session = Session::create(test::home_model(), options);
  REQUIRE_MESSAGE(session, test::why(session));
  return *std::move(session);
}

SessionOptions with_outputs(Index max_step_tokens, Index max_outputs) {
  SessionOptions options;
  options.max_step_tokens = max_step_tokens;
  options.max_outputs = max_outputs;
  return options;
}

Logits append(Session& session, std::span<const std::int32_t> ids, Index n_outputs = 1) {
  const auto logits = session.append(ids, n_outputs);
  REQUIRE_MESSAGE(logits, test::why(logits));
  REQUIRE(logits->extent(0) == n_outputs);
  REQUIRE(static_cast<std::size_t>(logits->extent(1)) == n_vocab());
  Logits rows;
  for (Index row = 0; row < n_outputs; ++row) {
    for (Index i = 0; i < logits->extent(1); ++i) rows.push_back((*logits)(row, i));
  }
  return rows;
}

// The logits after each of `ids`, appended one by one.
Logits one_by_one(Session& session, const Ids& ids) {
  Logits all;
  for (const std::int32_t id : ids) {
    const Logits row = append(session, {&id, 1});
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

Logits last_rows(const Logits& rows, std::size_t n, std::size_t end) {
  return {rows.begin() + static_cast<std::ptrdiff_t>((end - n) * n_vocab()),
          rows.begin() + static_cast<std::ptrdiff_t>(end * n_vocab())};
}

bool same_bits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

float largest(const Logits& logits) {
  float most = 0;
  for (const float x : logits) most = std::max(most, std::fabs(x));
  return most;
}

float distance(const Logits& a, const Logits& b) {
  REQUIRE(a.size() == b.size());
  float most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    REQUIRE(std::isfinite(a[i]));
    most = std::max(most, std::fabs(a[i] - b[i]));
  }
  return most;
}

// The difference that rounding can make when sums of up to ffn_dim terms are computed in another
// order.
bool same_but_rounding(const Logits& a, const Logits& b) {
  const auto n_terms = static_cast<float>(Index{test::home_model().config().ffn_dim});
  return distance(a, b) <= n_terms * 0x1p-24f * largest(a);
}

Errc code_of(const SessionOptions& options) {
  const auto session = Session::create(test::home_model(), options);
  REQUIRE(!session);
  CHECK(session.error().message.find("session") != std::string::npos);
  return session.error().code;
}

}  // namespace

TEST_CASE("the logits do not depend on how tokens are grouped") {
  const Ids ids = random_ids(90);
  SessionOptions options;
  options.kv_type = KvType::f32;  // other types would enlarge differences of rounding
  Session reference_session = make(options);
  const Logits reference = one_by_one(reference_session, ids);
  for (const Index max_step_tokens : {1, 3, 64, 1000}) {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, ids.size()}) {
      CAPTURE(max_step_tokens);
      CAPTURE(piece);
      options.max_step_tokens = max_step_tokens;
      Session session = make(options);
      for (std::size_t i = 0; i < ids.size(); i += piece) {
        const std::size_t n = std::min(piece, ids.size() - i);
        const Logits logits = append(session, std::span(ids).subspan(i, n));
        CHECK(same_but_rounding(logits, last_rows(reference, 1, i + n)));
      }
      CHECK(session.position() == static_cast<Index>(ids.size()));
      CHECK(std::equal(ids.begin(), ids.end(), session.tokens().begin(), session.tokens().end()));
    }
  }
  // The effect of one token too many, or of a neighbour's position, is far larger than rounding.
  CHECK(!same_but_rounding(last_rows(reference, 1, 89), last_rows(reference, 1, 90)));
}

TEST_CASE("any number of the last tokens can have their logits") {
  const Ids ids = random_ids(21);
  SessionOptions options;
  options.kv_type = KvType::f32;
  Session reference_session = make(options);
  const Logits reference = one_by_one(reference_session, ids);
  for (const Index max_step_tokens : {5, 8, 64}) {
    options.max_step_tokens = max_step_tokens;
    options.max_outputs = 100;  // as many as fit in a batch
    Session session = make(options);
    for (std::size_t n = 1; n <= ids.size(); ++n) {
      const std::size_t most = std::min(n, static_cast<std::size_t>(max_step_tokens));
      for (std::size_t n_outputs = 1; n_outputs <= most; ++n_outputs) {
        CAPTURE(n);
        CAPTURE(n_outputs);
        REQUIRE(session.rewind(0));
        const Logits logits =
            append(session, std::span(ids).first(n), static_cast<Index>(n_outputs));
        REQUIRE(same_but_rounding(logits, last_rows(reference, n_outputs, n)));
      }
      CHECK(!session.append(std::span(ids).first(n), static_cast<Index>(most) + 1));
    }
  }
}

TEST_CASE("going back and on again gives the same bits") {
  const Ids beginning = random_ids(20, 2), end = random_ids(17, 3), other = random_ids(30, 4);
  Session session = make(with_outputs(8, 8));
  append(session, beginning);
  const Logits first = append(session, end, 8);
  REQUIRE(session.rewind(20));
  CHECK(session.position() == 20);
  CHECK(session.tokens().size() == 20);
  CHECK(!same_bits(append(session, other, 8), first));
  REQUIRE(session.rewind(20));
  CHECK(same_bits(append(session, end, 8), first));

  CHECK(!session.rewind(-1));
  CHECK(!session.rewind(38));
  CHECK(session.position() == 37);
  CHECK(session.rewind(37));

  // A session's own tokens, which it overwrites while it reads them.
  Session copy = make(with_outputs(8, 8));
  append(copy, end);
  append(copy, copy.tokens().last(10));
  const std::span<const std::int32_t> tail = copy.tokens().last(20);
  const Ids tail_ids(tail.begin(), tail.end());
  REQUIRE(copy.rewind(3));
  const Logits from_own = append(copy, tail, 8);
  REQUIRE(copy.rewind(3));
  CHECK(same_bits(append(copy, tail_ids, 8), from_own));
}

TEST_CASE("what cannot be appended is an error and changes nothing") {
  const Ids ids = random_ids(96);
  Session straight = make(), session = make();
  REQUIRE(session.capacity() == 96);  // what the model was trained for
  append(straight, std::span(ids).first(90));
  const Logits expected = append(straight, std::span(ids).subspan(90));
  append(session, std::span(ids).first(90));

  const auto refused = [&](std::span<const std::int32_t> tokens, Index n_outputs, Errc code,
                           const char* what) {
    const auto logits = session.append(tokens, n_outputs);
    REQUIRE(!logits);
    CHECK(logits.error().code == code);
    CHECK_MESSAGE(logits.error().message.find(what) != std::string::npos, logits.error().message);
    CHECK(session.position() == 90);
  };
  constexpr Index kMost = std::numeric_limits<Index>::max();
  refused({}, 1, Errc::invalid_argument, "0 tokens");
  refused({}, 0, Errc::invalid_argument, "0 tokens");
  refused(std::span(ids).first(3), 0, Errc::invalid_argument, "0 outputs");
  refused(std::span(ids).first(3), -1, Errc::invalid_argument, "-1 outputs");
  refused(std::span(ids).first(3), 2, Errc::invalid_argument, "at most 1");
  refused(std::span(ids).first(3), kMost, Errc::invalid_argument, "outputs");
  refused(std::span(ids).first(7), 1, Errc::limit, "context of 96");
  refused(ids, 1, Errc::limit, "position 90");
  for (const std::int32_t bad : {-1, 512, std::numeric_limits<std::int32_t>::min(),
                                 std::numeric_limits<std::int32_t>::max()}) {
    refused(Ids{1, 2, bad}, 1, Errc::invalid_argument, std::to_string(bad).c_str());
  }
  CHECK(same_bits(append(session, std::span(ids).subspan(90)), expected));
  CHECK(!session.append(std::span(ids).first(1)));
  CHECK(session.rewind(0));
  append(session, ids);
}

TEST_CASE("absurd options are errors") {
  constexpr Index kMost = std::numeric_limits<Index>::max(),
                  kLeast = std::numeric_limits<Index>::min();
  for (const Index n_ctx : {Index{-1}, kLeast, (Index{1} << 30) + 1, Index{1} << 31, kMost}) {
    SessionOptions options;
    options.n_ctx = n_ctx;
    CHECK(code_of(options) == Errc::invalid_argument);
  }
  for (const Index none : {Index{0}, Index{-1}, kLeast}) {
    CHECK(code_of(with_outputs(none, 1)) == Errc::invalid_argument);
    CHECK(code_of(with_outputs(1, none)) == Errc::invalid_argument);
  }
  // More than is possible is limited to what is possible.
  Session most = make(with_outputs(kMost, kMost));
  CHECK(append(most, random_ids(96), 96).size() == 96 * n_vocab());
}

#if NIBBLE_TEST_COUNTS_ALLOCATIONS
TEST_CASE("a context that no machine has memory for is an error") {
  for (const Index max_step_tokens : {Index{1}, std::numeric_limits<Index>::max()}) {
    for (const KvType type : nibble::ops::kKvTypes) {
      SessionOptions options = with_outputs(max_step_tokens, max_step_tokens);
      options.n_ctx = Index{1} << 30;
      options.kv_type = type;
      const auto session = Session::create(test::home_model(), options);
      REQUIRE(!session);
      CHECK(session.error().code == Errc::out_of_memory);
    }
  }
}
#endif

TEST_CASE("a context longer than the model's is possible, and a short one enough") {
  const Ids ids = random_ids(300);
  SessionOptions options;
  options.n_ctx = 300;
  Session session = make(options);
  const Logits logits = append(session, ids);
  CHECK(std::isfinite(largest(logits)));
  options.n_ctx = 1;
  Session shortest = make(options), usual = make();
  CHECK(shortest.capacity() == 1);
  CHECK(
      same_bits(append(shortest, std::span(ids).first(1)), append(usual, std::span(ids).first(1))));
  CHECK(shortest.bytes() < usual.bytes());
}

TEST_CASE("caches of fewer bits are as near to f32 as their rounding") {
  const Ids ids = random_ids(90);
  const auto run = [&](KvType type, std::size_t& bytes) {
    SessionOptions options = with_outputs(90, 90);
    options.kv_type = type;
    Session session = make(options);
    bytes = session.bytes();
    return append(session, ids, 90);
  };
  std::size_t f32_bytes = 0, f16_bytes = 0, bf16_bytes = 0, int8_bytes = 0, int4_bytes = 0;
  const Logits f32 = run(KvType::f32, f32_bytes);
  const float f16_error = distance(run(KvType::f16, f16_bytes), f32) / largest(f32);
  const float bf16_error = distance(run(KvType::bf16, bf16_bytes), f32) / largest(f32);
  const float int8_error = distance(run(KvType::int8, int8_bytes), f32) / largest(f32);
  const float int4_error = distance(run(KvType::int4, int4_bytes), f32) / largest(f32);
  // Keys and values have at most these rounding errors: 2^-11, 2^-8, and 1/254 of the largest of a
  // head; with int4, values have at most 1/30 of the range of 32 elements.
  CHECK(f16_error < 2 * 0x1p-11f);
  CHECK(bf16_error < 2 * 0x1p-8f);
  CHECK(f16_error > 0);
  CHECK(bf16_error > 2 * f16_error);
  CHECK(int8_error < 2.0f / 254);
  CHECK(int8_error > 2 * f16_error);
  CHECK(f16_bytes < f32_bytes);
  CHECK(bf16_bytes == f16_bytes);
  CHECK(int8_bytes < f16_bytes);
  CHECK(int4_error < 2 * 2.0f / 30);
  CHECK(int4_error > int8_error);
  CHECK(int4_bytes < int8_bytes);
}

TEST_CASE("any number of workers gives the same bits") {
  const Ids ids = random_ids(70);
  Session alone = make(with_outputs(33, 4));
  const Logits expected = append(alone, ids, 4);
  const Logits expected_next = append(alone, std::span(ids).first(1));
  for (const Index n_threads : {1, 2, 5}) {
    CAPTURE(n_threads);
    nibble::ThreadPoolOptions pool_options;
    pool_options.n_threads = pool_options.n_cpus = n_threads;
    const auto pool = nibble::ThreadPool::create(pool_options);
    REQUIRE(pool);
    SessionOptions options = with_outputs(33, 4);
    options.executor = pool->get();
    Session session = make(options);
    CHECK(same_bits(append(session, ids, 4), expected));
    CHECK(same_bits(append(session, std::span(ids).first(1)), expected_next));
  }
}

TEST_CASE("a host program's own executor runs the model, in whatever order it likes") {
  struct HostExecutor final : nibble::Executor {
    Index n_workers() const noexcept override { return 3; }
    void parallel_for(Index n_tasks, Task task) noexcept override {
      for (Index i = n_tasks; i-- > 0;) task(i, i % 3);
      n_run += n_tasks;
    }
    Index n_run = 0;
  };
  const Ids ids = random_ids(70);
  Session alone = make(with_outputs(33, 4));
  HostExecutor host;
  SessionOptions options = with_outputs(33, 4);
  options.executor = &host;
  Session session = make(options);
  CHECK(same_bits(append(session, ids, 4), append(alone, ids, 4)));
  CHECK(host.n_run > 100);
}

TEST_CASE("sessions of one model on two threads do not notice each other") {
  const auto run = [](unsigned seed) {
    Session session = make(with_outputs(16, 1));
    Logits all;
    for (unsigned i = 0; i < 3; ++i) {
      REQUIRE(session.rewind(0));
      const Logits rows = append(session, random_ids(60, seed + i));
      all.insert(all.end(), rows.begin(), rows.end());
      const Logits more = one_by_one(session, random_ids(20, seed + 7 * i));
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  };
  const Logits first = run(10), second = run(20);
  Logits first_again, second_again;
  std::thread other([&] { second_again = run(20); });
  first_again = run(10);
  other.join();
  CHECK(same_bits(first, first_again));
  CHECK(same_bits(second, second_again));
  CHECK(!same_bits(first, second));
}

TEST_CASE("a session can be moved") {
  const Ids ids = random_ids(30);
  Session straight = make(), session = make();
  append(straight, std::span(ids).first(20));
  append(session, std::span(ids).first(20));
  Session moved = std::move(session);
  Session assigned = make();
  assigned = std::move(moved);
  CHECK(assigned.position() == 20);
  CHECK(same_bits(append(assigned, std::span(ids).subspan(20)),
                  append(straight, std::span(ids).subspan(20))));
}

TEST_CASE("appending allocates nothing") {
  const Ids ids = random_ids(96);
  Session session = make(with_outputs(16, 16));
  const auto before = allocation_count();
  bool good = true;
  for (int i = 0; i < 3; ++i) {
    good = good && session.rewind(0) && session.append(std::span(ids).first(50), 16) &&
           session.append(std::span(ids).first(1)) && session.append(std::span(ids).first(45));
  }
  const auto spent = allocation_count() - before;
  CHECK(good);
  CHECK(spent == 0);
}

#if !defined(_WIN32)
TEST_CASE("loading reports a NIBBLE_TARGET that cannot be had, whether or not kernels ran before") {
  const char* const set = std::getenv("NIBBLE_TARGET");
  const std::string outside = set == nullptr ? "" : set;
  const nibble::Model& model = test::home_model();
  const nibble::simd::Target active = nibble::simd::active_target();
  const std::string other = active == nibble::simd::Target::NEON ? "AVX2" : "NEON";
  for (const std::string& name : {std::string("pentium"), other}) {
    for (const bool first_use : {false, true}) {
      if (first_use) test::forget_target();
      setenv("NIBBLE_TARGET", name.c_str(), 1);
      const auto loaded = nibble::load(test::home_model_path());
      const auto session = Session::create(model);
      setenv("NIBBLE_TARGET", outside.c_str(), 1);
      REQUIRE(!loaded);
      REQUIRE(!session);
      for (const std::string& message : {loaded.error().message, session.error().message}) {
        CHECK_MESSAGE(message.find("NIBBLE_TARGET") != std::string::npos, message);
        CHECK_MESSAGE(message.find(name) != std::string::npos, message);
      }
      CHECK(Session::create(model));
      CHECK(nibble::simd::active_target() == active);
    }
  }
}
#endif

}  // namespace session_test
