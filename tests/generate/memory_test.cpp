// SPDX-License-Identifier: Apache-2.0
//
// How much memory a session or an engine takes, known before; and values that its cache cannot
// hold.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "nibble/generate/engine.hpp"

namespace memory_test {

using namespace nibble;
using test::copy;
using test::encode;
using test::Ids;
using test::kAnswer;
using test::kPrompt;
using test::make_generator;
using test::make_session;
using test::must;
using test::take;

namespace {

// The model of the examples with keys 2^17 times as large and queries as much smaller: the same
// model, if the cache holds its keys.
const Model& model_with_large_keys() {
  static const Model model = test::changed_model({}, [](const std::string& name, auto& weights) {
    const bool is_key = name.find("attn_k.weight") != name.npos;
    const bool is_query = name.find("attn_q.weight") != name.npos;
    for (float& w : weights) w = std::ldexp(w, is_key ? 17 : is_query ? -17 : 0);
  });
  return model;
}

void check_names_the_way_out(const Error& error) {
  CAPTURE(error.message);
  CHECK(error.code == Errc::limit);
  for (const char* const part : {"f16 cache", "int4", "kv_type", "bf16", "f32"}) {
    CHECK(error.message.find(part) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("the bytes of a session are known before it is made, and are what it allocates") {
  const Model& model = test::home_model();
  for (const SessionOptions& options : {SessionOptions{},
                                        SessionOptions{.n_ctx = 1},
                                        {.n_ctx = 100, .max_step_tokens = 7},
                                        {.n_ctx = 500, .max_outputs = 20},
                                        {.kv_type = ops::KvType::int8},
                                        {.kv_type = ops::KvType::int4},
                                        {.n_ctx = 65, .kv_type = ops::KvType::f32},
                                        {.n_ctx = 40000, .kv_type = ops::KvType::bf16}}) {
    const auto before_asking = allocated_bytes();
    const std::size_t needed = must(Session::bytes_needed(model, options));
    CHECK(allocated_bytes() == before_asking);
    const auto before = allocated_bytes();
    const Session session = make_session(options);
    const auto allocated = allocated_bytes() - before;
    CHECK(session.bytes() == needed);
    // Larger blocks come from the system, not from operator new.
    if (NIBBLE_TEST_COUNTS_ALLOCATIONS && options.n_ctx < 40000) {
      CHECK(allocated == static_cast<long long>(needed));
    }
  }
  for (const EngineOptions& options :
       {EngineOptions{},
        EngineOptions{.n_ctx = 100, .max_sequences = 5, .max_step_tokens = 33},
        {.n_ctx = 64, .max_sequences = 2, .cache_positions = 1000, .max_outputs = 7}}) {
    const std::size_t needed = must(Engine::bytes_needed(model, options));
    const auto before = allocated_bytes();
    auto engine = must(Engine::create(model, options));
    const auto of_engine = allocated_bytes() - before;
    CHECK(engine.bytes() == needed);
    const auto sequence = must(engine.new_sequence());
    const auto of_sequence = allocated_bytes() - before - of_engine;
    if (!NIBBLE_TEST_COUNTS_ALLOCATIONS) continue;
    CHECK(of_engine == static_cast<long long>(needed));
    CHECK(of_sequence == static_cast<long long>(sequence.bytes()));
  }
  CHECK(must(Session::bytes_needed(model, {.n_ctx = 1 << 30})) > std::size_t{1} << 38);
  for (const SessionOptions& options :
       {SessionOptions{.n_ctx = -1}, SessionOptions{.max_outputs = 0},
        SessionOptions{.kv_type = ops::KvType{77}}}) {
    const auto needed = Session::bytes_needed(model, options);
    REQUIRE(!needed);
    const auto session = Session::create(model, options);
    REQUIRE(!session);
    CHECK(session.error().message == needed.error().message);
  }
}

TEST_CASE("a type of cache that does not exist is an error") {
  for (const int type : {5, 77, 255}) {
    const auto session =
        Session::create(test::home_model(), {.kv_type = static_cast<ops::KvType>(type)});
    REQUIRE(!session);
    CHECK(session.error().code == Errc::invalid_argument);
    CHECK(session.error().message.find("kv_type " + std::to_string(type)) != std::string::npos);
  }
}

TEST_CASE("keys beyond f16 are an error that says so, and other caches hold them") {
  const Model& model = model_with_large_keys();
  for (const ops::KvType type : {ops::KvType::f32, ops::KvType::bf16, ops::KvType::int8}) {
    Session session = make_session({.kv_type = type}, model);
    Generator generator = make_generator(session);
    REQUIRE(generator.prompt(kPrompt));
    CHECK(take(generator).text == kAnswer);
  }
  for (const Index max_step_tokens : {1, 5, 64}) {
    Session session = make_session({.max_step_tokens = max_step_tokens}, model);
    Generator generator = make_generator(session);
    const auto refused = generator.prompt(kPrompt);
    REQUIRE(!refused);
    check_names_the_way_out(refused.error());
    // Nothing has changed, and nothing is left behind.
    CHECK(session.position() == 0);
    CHECK(session.engine().n_free_pages() == session.engine().n_pages());
    const Ids ids = encode(kPrompt);
    const auto logits = session.append(ids);
    REQUIRE(!logits);
    check_names_the_way_out(logits.error());
    CHECK(session.position() == 0);
  }
  auto engine = must(Engine::create(model, {.n_ctx = 64, .max_sequences = 2}));
  auto a = must(engine.new_sequence());
  auto b = must(engine.new_sequence());
  const Ids ids = {1, 20, 30};
  REQUIRE(a.push(1));
  const SequenceInput inputs[] = {{.sequence = &a, .tokens = ids}, {.sequence = &b, .tokens = ids}};
  const auto logits = engine.run(inputs);
  REQUIRE(!logits);
  check_names_the_way_out(logits.error());
  CHECK(copy(a.tokens()) == Ids{1});
  CHECK(a.n_pending() == 1);
  CHECK(b.position() == 0);
  CHECK(engine.n_free_pages() == engine.n_pages());
}

TEST_CASE("values beyond f16 are an error too, also where no logit would show it") {
  // In one layer, by so much that a few numbers are too large.
  for (const char* const name : {"blk.0.attn_v.weight", "blk.2.attn_k.weight"}) {
    const Model model = test::changed_model({}, [&](const std::string& tensor, auto& weights) {
      if (tensor != name) return;
      for (std::size_t i = 0; i < weights.size() / 32; ++i) weights[i] *= 3e5f;
    });
    Session session = make_session({}, model);
    const auto logits = session.append(encode(kPrompt));
    REQUIRE(!logits);
    check_names_the_way_out(logits.error());
    Session wide = make_session({.kv_type = ops::KvType::bf16}, model);
    CHECK(wide.append(encode(kPrompt)));
  }
}

TEST_CASE("a weight that is no number is another error, with any cache") {
  const Model model = test::changed_model({}, [](const std::string& name, auto& weights) {
    if (name == "blk.1.attn_k.weight") weights[7] = std::numeric_limits<float>::quiet_NaN();
  });
  for (const ops::KvType type : ops::kKvTypes) {
    // Codes: all values must be finite.
    if (type == ops::KvType::int8 || type == ops::KvType::int4) continue;
    Session session = make_session({.kv_type = type}, model);
    Generator generator = make_generator(session);
    REQUIRE(generator.prompt(kPrompt));
    const auto token = generator.next();
    REQUIRE(!token);
    CHECK(token.error().code == Errc::malformed);
    CHECK(token.error().message.find("NaN") != std::string::npos);
    CHECK(copy(session.tokens()) == encode(kPrompt));
  }
}

}  // namespace memory_test
