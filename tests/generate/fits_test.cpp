// SPDX-License-Identifier: Apache-2.0
//
// What is known, and done, before the first request.
#include "nibble/generate/fits.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "nibble/generate/warm_up.hpp"
#include "nibble/io/gguf.hpp"

namespace fits_test {

using namespace nibble;
using test::copy;
using test::encode;
using test::kAnswer;
using test::kPrompt;
using test::make_generator;
using test::make_session;
using test::must;
using test::take;

namespace {

// The least memory in which so much fits with a tenth to spare.
std::size_t just_enough(std::size_t needed) {
  std::size_t available = needed / 9 * 10;
  while (available - available / 10 < needed) ++available;
  while (available - 1 - (available - 1) / 10 >= needed) --available;
  return available;
}

std::size_t total(EngineOptions options, Index n_ctx, ops::KvType type) {
  options.n_ctx = n_ctx;
  options.kv_type = type;
  return must(Engine::memory_needed(test::home_model(), options)).total();
}

}  // namespace

TEST_CASE("the parts of an engine's memory are what it takes with all its sequences") {
  const Model& model = test::home_model();
  for (const EngineOptions& options : {EngineOptions{},
                                       EngineOptions{.n_ctx = 300, .max_sequences = 5},
                                       {.max_sequences = 2, .kv_type = ops::KvType::int8}}) {
    const EngineMemory needed = must(Engine::memory_needed(model, options));
    CHECK(needed.engine() == must(Engine::bytes_needed(model, options)));
    auto engine = must(Engine::create(model, options));
    CHECK(engine.bytes() == needed.engine());
    const auto sequence = must(engine.new_sequence());
    CHECK(needed.sequences == sequence.bytes() * static_cast<std::size_t>(engine.max_sequences()));
    CHECK(needed.cache > 0);
    CHECK(needed.working > 0);
    CHECK(needed.tables > 0);
  }
  // What each depends on.
  const auto parts = [&](const EngineOptions& o) { return must(Engine::memory_needed(model, o)); };
  const EngineMemory base = parts({.n_ctx = 640});
  CHECK(parts({.n_ctx = 640, .kv_type = ops::KvType::f32}).cache > base.cache);
  CHECK(parts({.n_ctx = 640, .kv_type = ops::KvType::f32}).tables == base.tables);
  CHECK(parts({.n_ctx = 640, .max_step_tokens = 640}).working > base.working);
  CHECK(parts({.n_ctx = 640, .max_step_tokens = 640}).cache == base.cache);
  CHECK(parts({.n_ctx = 1280}).tables > base.tables);
}

TEST_CASE("a model fits with a tenth of the memory to spare, and not with a byte less") {
  const Model& model = test::home_model();
  const Fit fit = must(fits(model, {.n_ctx = 1000}));
  CHECK(fit.fits);  // this test would not run otherwise
  CHECK(fit.available > 0);
  CHECK(fit.weights == 0);  // they are in memory
  CHECK(!fit.smaller_cache);
  CHECK(fit.shorter_context == 0);
  const std::size_t enough = just_enough(fit.needed());
  CHECK(must(fits(model, {.n_ctx = 1000}, enough)).fits);
  CHECK(must(fits(model, {.n_ctx = 1000}, enough)).available == enough);
  CHECK(!must(fits(model, {.n_ctx = 1000}, enough - 1)).fits);
}

TEST_CASE("an outline needs its weights too") {
  const auto file = must(io::Gguf::open(test::home_model_path()));
  const Model outline = must(Model::from_gguf(file, {.outline_only = true}));
  const Fit fit = must(fits(outline, {}, 1));
  const ModelMemory memory = must(Model::memory_needed(file));
  CHECK(!fit.fits);
  CHECK(fit.weights == memory.weights);
  CHECK(fit.in_place == memory.in_place);
  CHECK(fit.weights > 1000000);
  CHECK(fit.needed() == fit.weights + must(fits(test::home_model(), {})).needed());
  CHECK(must(fits(outline, {}, just_enough(fit.needed()))).fits);
}

TEST_CASE("where it does not fit: the best cache and the longest context that would") {
  const Model& model = test::home_model();
  using ops::KvType;
  for (const Index n_ctx : {Index{2000}, Index{30000}}) {
    for (const Index n_sequences : {Index{1}, Index{3}}) {
      CAPTURE(n_ctx);
      CAPTURE(n_sequences);
      const EngineOptions options{
          .n_ctx = n_ctx, .max_sequences = n_sequences, .kv_type = KvType::f32};
      const auto bytes = [&](Index n, KvType type) { return total(options, n, type); };
      // Room for half of the precision.
      Fit fit = must(fits(model, options, just_enough(bytes(n_ctx, KvType::f16))));
      CHECK(!fit.fits);
      CHECK(fit.smaller_cache == KvType::f16);
      CHECK(!fit.only_together);
      const Index longest = fit.shorter_context;
      CHECK(longest % ops::kPagePositions == 0);
      CHECK(longest > n_ctx / 4);
      CHECK(bytes(longest, KvType::f32) <= bytes(n_ctx, KvType::f16));
      CHECK(bytes(longest + ops::kPagePositions, KvType::f32) > bytes(n_ctx, KvType::f16));
      // A byte less.
      fit = must(fits(model, options, just_enough(bytes(n_ctx, KvType::f16)) - 1));
      CHECK(fit.smaller_cache == KvType::int8);
      // No cache is small enough.
      const std::size_t little = just_enough(bytes(ops::kPagePositions, KvType::f32));
      fit = must(fits(model, options, little));
      CHECK(!fit.smaller_cache);
      CHECK(fit.shorter_context == ops::kPagePositions);
      CHECK(must(fits(model,
                      {.n_ctx = fit.shorter_context,
                       .max_sequences = n_sequences,
                       .kv_type = KvType::f32},
                      little))
                .fits);
      // Only a short context with a small cache.
      fit = must(fits(model, options, little - 1));
      CHECK(fit.only_together);
      CHECK(fit.smaller_cache == KvType::int4);
      CHECK(must(fits(model,
                      {.n_ctx = fit.shorter_context,
                       .max_sequences = n_sequences,
                       .kv_type = *fit.smaller_cache},
                      little - 1))
                .fits);
      // Nothing.
      fit = must(fits(model, options, just_enough(bytes(ops::kPagePositions, KvType::int4)) - 1));
      CHECK(!fit.only_together);
      CHECK(!fit.smaller_cache);
      CHECK(fit.shorter_context == 0);
    }
  }
  // A cache that sequences share becomes no larger than they can fill.
  const EngineOptions shared{.n_ctx = 4000, .max_sequences = 4, .cache_positions = 6400};
  const Fit fit = must(fits(model, shared, just_enough(total(shared, 4000, KvType::f16)) / 2));
  CHECK(fit.shorter_context > 0);
  CHECK(fit.shorter_context < 1600);
}

TEST_CASE("options that no engine can have are errors, whatever the memory") {
  for (const std::size_t available : {std::size_t{0}, std::size_t{1}}) {
    const auto fit = fits(test::home_model(), {.n_ctx = -1}, available);
    REQUIRE(!fit);
    CHECK(fit.error().code == Errc::invalid_argument);
    CHECK(!fits(test::home_model(), {.max_sequences = 0}, available));
    CHECK(!fits(test::home_model(), {.kv_type = ops::KvType{77}}, available));
  }
}

TEST_CASE("a warm-up changes nothing that anybody sees") {
  Session session = make_session({.max_step_tokens = 16});
  const Index n_free = session.engine().n_free_pages();
  must(session.append(encode(kPrompt)));
  const Index n_used = n_free - session.engine().n_free_pages();
  CHECK(n_used > 0);
  REQUIRE(warm_up(session.engine()));
  CHECK(session.engine().n_free_pages() == n_free - n_used);
  auto generator = make_generator(session);
  REQUIRE(generator.prompt(""));
  CHECK(take(generator).text == kAnswer);

  // Where nothing is free it says so, and the sequence is whole.
  auto engine = must(Engine::create(test::home_model(), {.n_ctx = 64, .cache_positions = 64}));
  auto sequence = must(engine.new_sequence());
  const auto ids = encode(kPrompt);
  const SequenceInput input{.sequence = &sequence, .tokens = ids};
  must(engine.run({&input, 1}));
  const auto full = warm_up(engine);
  REQUIRE(!full);
  CHECK(full.error().code == Errc::limit);
  CHECK(sequence.position() == static_cast<Index>(ids.size()));
  REQUIRE(sequence.rewind(0));
  CHECK(warm_up(engine));
  // A context of one step.
  auto small = must(Engine::create(test::home_model(), {.n_ctx = 5}));
  CHECK(warm_up(small));
  // A cache smaller than a step.
  auto narrow = must(Engine::create(test::home_model(),
                                    {.n_ctx = 256, .cache_positions = 64, .max_step_tokens = 128}));
  CHECK(warm_up(narrow));
  CHECK(narrow.n_free_pages() == narrow.n_pages());
}

}  // namespace fits_test
