// SPDX-License-Identifier: Apache-2.0
//
// Adapters of sequences: different ones in one step, each as if alone; what they must not share.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "adapting.hpp"
#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/graph/weights.hpp"
#include "scheduling.hpp"

namespace adapters_test {

using namespace nibble;
using ops::SegmentKind;
using test::Ids;
using test::must;
using test::random_adapter;

namespace {

test::ModelShape small_shape(const std::vector<quant::Format>& formats) {
  test::ModelShape shape;
  shape.vocab_size = 50;
  shape.dim = 64;
  shape.n_layers = 2;
  shape.head_dim = shape.rope_dim = 16;
  shape.n_kv_heads = 2;
  shape.ffn_dim = 96;
  shape.n_ctx = 256;
  shape.formats = formats;
  return shape;
}

// Products with and without biases, gated and not, with inputs as floats and as codes.
std::vector<Model> models() {
  using quant::Format;
  std::vector<Model> all;
  const auto add_llama = [&](const test::ModelShape& shape) {
    all.push_back(test::model_of(shape));
  };
  add_llama(small_shape({Format::f32}));
  add_llama(small_shape({Format::q4_0, Format::q8_0}));
  test::ModelShape biased = small_shape({Format::q8_0});
  biased.qkv_bias = biased.output_bias = biased.gate_bias = biased.up_bias = biased.down_bias =
      true;
  add_llama(biased);
  test::ModelShape gpt2 = small_shape({Format::q8_0, Format::f16});
  gpt2.architecture = test::Architecture::gpt2;
  gpt2.n_kv_heads = 4;
  all.push_back(test::model_of(gpt2));
  return all;
}

std::vector<float> copy(MatrixView<const float> rows) {
  std::vector<float> all;
  for (Index i = 0; i < rows.extent(0); ++i) {
    for (Index j = 0; j < rows.extent(1); ++j) all.push_back(rows(i, j));
  }
  return all;
}

// The code of the error, if there is one.
template <class T>
std::optional<Errc> code(const Result<T>& result) {
  return result ? std::optional<Errc>() : std::optional<Errc>(result.error().code);
}

// Computes tokens, at most max_step_tokens in a step; the logits after the last.
std::vector<float> append(Engine& engine, Sequence& sequence, std::span<const std::int32_t> ids) {
  const auto most = static_cast<std::size_t>(engine.max_step_tokens());
  for (;;) {
    const auto now = ids.first(std::min(ids.size(), most));
    ids = ids.subspan(now.size());
    const SequenceInput input{.sequence = &sequence, .tokens = now};
    const auto logits = must(engine.run({&input, 1}));
    if (ids.empty()) return copy(logits);
  }
}

// A sequence with tokens before the step, and what the step adds to it.
struct Part {
  SequenceAdapter adapter;
  std::size_t before, n;
  SegmentKind kind;
  Index n_outputs = 1;
};

// The logits of a step of all parts.
std::vector<std::vector<float>> run_parts(Engine& engine, std::span<const Part> parts,
                                          std::size_t first = 0) {
  std::vector<Sequence> sequences;
  std::vector<Ids> tokens;
  std::vector<SequenceInput> inputs;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    sequences.push_back(must(engine.new_sequence()));
    REQUIRE(sequences[i].set_adapter(parts[i].adapter));
    if (parts[i].before > 0) {
      append(engine, sequences[i], test::some_tokens(parts[i].before, 7 + first + i));
    }
    tokens.push_back(test::some_tokens(parts[i].n, 70 + first + i));
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    inputs.push_back({.sequence = &sequences[i],
                      .tokens = tokens[i],
                      .n_outputs = parts[i].n_outputs,
                      .kind = parts[i].kind});
  }
  const auto logits = must(engine.run(inputs));
  std::vector<std::vector<float>> all;
  Index row = 0;
  for (const Part& part : parts) {
    all.push_back(copy(logits.rows(row, part.n_outputs)));
    row += part.n_outputs;
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("sequences with different adapters and with none, in one step: each as if alone") {
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool.has_value());
  const std::vector<Model> all = models();
  for (std::size_t which = 0; which < all.size(); ++which) {
    CAPTURE(which);
    const Model& model = all[which];
    const Adapter first = random_adapter(model, 5, 1), second = random_adapter(model, 16, 2, 3);
    const AppliedAdapter both_of[] = {{&first, 1}, {&second, -0.5f}};
    const auto a = must(AdapterSet::create(model, first));
    const auto b = must(AdapterSet::create(model, second));
    const auto both = must(AdapterSet::create(model, both_of));
    CHECK(both.max_rank() == 21);
    const Part parts[] = {
        {{}, 9, 1, SegmentKind::generation},      {{a}, 9, 1, SegmentKind::generation},
        {{a}, 70, 3, SegmentKind::generation, 3}, {{a, 0.5f}, 3, 1, SegmentKind::generation},
        {{}, 0, 20, SegmentKind::prompt},         {{b}, 0, 33, SegmentKind::prompt},
        {{both}, 5, 17, SegmentKind::prompt, 2},  {{a}, 0, 2, SegmentKind::prompt, 0},
        {{b}, 66, 1, SegmentKind::generation}};
    const EngineOptions plain{
        .n_ctx = 128, .max_sequences = 9, .max_step_tokens = 128, .max_outputs = 16};
    auto without = must(Engine::create(model, plain));
    for (Executor* const executor :
         {static_cast<Executor*>(nullptr), static_cast<Executor*>(&**pool)}) {
      EngineOptions options = plain;
      options.max_factor_rank = both.max_rank();
      options.executor = executor;
      auto engine = must(Engine::create(model, options));
      const auto together = run_parts(engine, parts);
      for (std::size_t i = 0; i < std::size(parts); ++i) {
        CAPTURE(i);
        const std::span<const Part> one(&parts[i], 1);
        CHECK(same_bits(run_parts(engine, one, i)[0], together[i]));
        Part none = parts[i];
        none.adapter = {};
        const auto plain_logits = run_parts(without, {&none, 1}, i)[0];
        if (!parts[i].adapter) CHECK(same_bits(plain_logits, together[i]));
        if (parts[i].adapter && parts[i].n_outputs > 0) {
          CHECK(!same_bits(plain_logits, together[i]));
        }
      }
    }
  }
}

// The model's weights with the factors of an adapter beside them, for exchange_weights().
struct Exchanged {
  Exchanged(const Model& model, const Adapter& adapter) : factors(adapter.matrices.size()) {
    const graph::WeightTable own = model.weights();
    std::size_t n = 0;
    for (Index layer = -1; layer < own.n_layers(); ++layer) {
      for (std::size_t slot = 0; slot < own.n_slots(); ++slot) {
        graph::Weight w = own.at(slot, layer);
        const AdapterMatrix* const m =
            w && !w.is_vector() ? adapter.find(model.architecture().tensor_name(slot, layer))
                                : nullptr;
        if (m != nullptr) {
          factors[n] = {packed(m->b_values(), m->n, m->rank), packed(m->a_values(), m->rank, m->k),
                        m->scale()};
          w.factors = &factors[n++];
        }
        weights.push_back(w);
      }
    }
    n_slots = own.n_slots();
  }
  graph::Weight packed(std::span<const float> rows, Index n, Index k) {
    graph::Weight w{&graph::kFormatOps<quant::F32>, n, k, nullptr, 1, {}};
    memory.push_back(
        must(AlignedBuffer::allocate(static_cast<std::size_t>(w.ops->packed_bytes(n, k)))));
    graph::pack_panels(w, std::as_bytes(rows), k * Index{sizeof(float)}, 0, memory.back().data());
    w.data = memory.back().data();
    return w;
  }
  graph::WeightTable table() const { return {weights, n_slots}; }

  std::vector<graph::Weight> weights;
  std::vector<graph::Factors> factors;
  std::vector<AlignedBuffer> memory;
  std::size_t n_slots = 0;
};

TEST_CASE("an adapter of a sequence has the bits of the same factors beside the weights") {
  for (const Model& model : models()) {
    const Adapter adapter = random_adapter(model, 7, 3);
    const auto set = must(AdapterSet::create(model, adapter));
    auto engine = must(Engine::create(
        model, {.n_ctx = 64, .exchangeable_weights = true, .max_factor_rank = set.max_rank()}));
    const Part part{{set}, 3, 9, SegmentKind::prompt};
    const auto as_adapter = run_parts(engine, {&part, 1});
    const Exchanged exchanged(model, adapter);
    REQUIRE(engine.exchange_weights(exchanged.table()));
    const Part none{{}, 3, 9, SegmentKind::prompt};
    CHECK(same_bits(run_parts(engine, {&none, 1})[0], as_adapter[0]));
    // Both at once: as twice the strength, but for roundings.
    const auto twice = run_parts(engine, {&part, 1})[0];
    REQUIRE(engine.exchange_weights({}));
    const Part strong{{set, 2}, 3, 9, SegmentKind::prompt};
    const auto wanted = run_parts(engine, {&strong, 1})[0];
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      CHECK(std::abs(twice[i] - wanted[i]) < 2e-2f * std::max(1.0f, std::abs(wanted[i])));
    }
  }
}

TEST_CASE("a sequence keeps its adapter, alive and unchanged") {
  const Model model = test::small_model(2, 64);
  auto session = must(Session::create(model, {.n_ctx = 64, .max_factor_rank = 4}));
  const Ids ids = test::some_tokens(12, 5);
  const auto logits = [&] {
    REQUIRE(session.rewind(0));
    return copy(must(session.append(ids)));
  };
  const auto plain = logits();
  REQUIRE(session.rewind(0));
  {
    const auto set = must(AdapterSet::create(model, random_adapter(model, 4, 1)));
    REQUIRE(session.set_adapter({set}));
  }  // nobody else has it any more
  const auto adapted = logits();
  CHECK(!same_bits(plain, adapted));
  // Not while tokens are computed with it.
  CHECK(code(session.set_adapter({})) == Errc::invalid_argument);
  {
    auto fork = must(session.sequence().fork());
    CHECK(fork.adapter().set == session.sequence().adapter().set);
    CHECK(code(fork.set_adapter({})) == Errc::invalid_argument);
  }
  CHECK(same_bits(logits(), adapted));
  REQUIRE(session.rewind(0));
  REQUIRE(session.set_adapter({}));
  CHECK(same_bits(logits(), plain));

  const auto set = must(AdapterSet::create(model, random_adapter(model, 4, 1)));
  REQUIRE(session.rewind(0));
  const auto before = allocation_count();
  REQUIRE(session.set_adapter({set}));
  CHECK(allocation_count() == before);  // a swap
  const auto again = session.append(ids);
  REQUIRE(again);
  CHECK(allocation_count() == before);
  CHECK(same_bits(copy(*again), adapted));
}

TEST_CASE("adapters that a sequence cannot have") {
  const Model model = test::small_model(2, 64);
  const auto set = must(AdapterSet::create(model, random_adapter(model, 4, 1)));
  auto engine = must(Engine::create(model, {.n_ctx = 64, .max_factor_rank = 3}));
  auto sequence = must(engine.new_sequence());
  CHECK(code(sequence.set_adapter({set})) == Errc::limit);
  CHECK(code(engine.check_adapter({{}, HUGE_VALF})) == Errc::invalid_argument);
  const Model other = test::small_model(2, 64);
  const auto of_other = must(AdapterSet::create(other, random_adapter(other, 2, 1)));
  CHECK(code(sequence.set_adapter({of_other})) == Errc::invalid_argument);
  CHECK(!sequence.adapter());
  auto none = must(Engine::create(model, {.n_ctx = 64}));
  CHECK(code(none.check_adapter({set})) == Errc::limit);
}

TEST_CASE("prefixes of different adapters and strengths never mix") {
  const Model model = test::small_model(2, 64);
  const Adapter adapter = random_adapter(model, 4, 1), other = random_adapter(model, 4, 2);
  auto engine =
      must(Engine::create(model, {.n_ctx = 256, .max_sequences = 4, .max_factor_rank = 4}));
  auto cache = must(PrefixCache::create(engine));
  const auto set = must(AdapterSet::create(model, adapter));
  const Ids ids = test::some_tokens(100, 5);
  auto sequence = must(engine.new_sequence());
  REQUIRE(sequence.set_adapter({set}));
  const auto wanted = append(engine, sequence, ids);
  CHECK(must(cache.insert(sequence)) == 100);
  CHECK(cache.n_cached(ids) == 0);
  CHECK(cache.n_cached(ids, SequenceAdapter{set, 0.5f}) == 0);
  CHECK(cache.n_cached(ids, {{set}, 1}) == 0);  // other weights below it
  CHECK(cache.n_cached(ids, must(AdapterSet::create(model, other)).fingerprint()) == 0);
  CHECK(cache.n_cached(ids, SequenceAdapter{must(AdapterSet::create(model, other))}) == 0);
  // The same adapter, loaded once more.
  const SequenceAdapter same{must(AdapterSet::create(model, adapter))};
  CHECK(same.set.fingerprint() == set.fingerprint());
  CHECK(cache.n_cached(ids, same) == 99);
  auto matched = must(cache.match(ids, same));
  CHECK(matched.position() == 99);
  CHECK(same_bits(append(engine, matched, std::span(ids).subspan(99)), wanted));
  // What is computed without an adapter does not hide it.
  auto plain = must(engine.new_sequence());
  append(engine, plain, ids);
  CHECK(must(cache.insert(plain)) == 100);
  CHECK(cache.n_cached(ids) == 99);
  CHECK(must(cache.match(ids)).adapter().set == AdapterSet());
}

TEST_CASE("a prefix cache keeps learned rows with the tokens behind them, for that adapter alone") {
  const Model model = test::small_model(2, 64);
  auto engine =
      must(Engine::create(model, {.n_ctx = 256, .max_sequences = 4, .max_step_tokens = 128}));
  auto cache = must(PrefixCache::create(engine));
  const auto set = must(AdapterSet::create(model, test::learned_rows(model, 70, 1)));
  const auto other = must(AdapterSet::create(model, test::learned_rows(model, 70, 2)));
  const Ids ids = test::some_tokens(50, 5);
  auto sequence = must(engine.new_sequence());
  REQUIRE(sequence.set_adapter({set}));
  CHECK(must(cache.insert(sequence)) == 0);  // nothing is computed yet
  const auto wanted = append(engine, sequence, ids);
  CHECK(must(cache.insert(sequence)) == 120);
  CHECK(cache.n_cached(ids) == 0);
  CHECK(cache.n_cached(ids, SequenceAdapter{other}) == 0);
  CHECK(cache.n_cached(ids, SequenceAdapter{set}) == 119);
  CHECK(cache.n_cached(test::some_tokens(50, 6), SequenceAdapter{set}) == 70);
  auto matched = must(cache.match(ids, SequenceAdapter{set}));
  CHECK(matched.position() == 119);
  CHECK(matched.n_pending() == 0);
  CHECK(same_bits(append(engine, matched, std::span(ids).subspan(49)), wanted));
  // The rows alone, for another prompt.
  auto rows = must(cache.match(std::span(ids).subspan(20), SequenceAdapter{set}));
  CHECK(rows.position() == 70);
  CHECK(rows.n_pending() == 0);
  auto fresh = must(engine.new_sequence());
  REQUIRE(fresh.set_adapter({set}));
  const auto rest = std::span(ids).subspan(20);
  CHECK(same_bits(append(engine, rows, rest), append(engine, fresh, rest)));
  CHECK(code(cache.match(ids, fresh)) == Errc::invalid_argument);
  // And other rows with the same tokens.
  auto none = must(cache.match(ids, SequenceAdapter{other}));
  CHECK(none.position() == 70);
  CHECK(none.n_pending() == 70);
}

TEST_CASE("learned rows before the prompts of requests, beside others, in a few rows a step") {
  const Model model = test::small_model(2, 64);
  const SchedulerOptions options{
      .n_ctx = 128, .max_batch = 4, .max_step_tokens = 24, .max_factor_rank = 4};
  const auto few = must(AdapterSet::create(model, test::learned_rows(model, 5, 1)));
  const auto many = must(AdapterSet::create(model, test::learned_rows(model, 20, 2)));
  const Adapter rows = test::learned_rows(model, 9, 3), factors = random_adapter(model, 4, 4);
  const AppliedAdapter both_of[] = {{&rows, 1}, {&factors, 0.5f}};
  const auto both = must(AdapterSet::create(model, both_of));
  const AdapterSet sets[] = {few, many, {}, both};
  auto scheduler = test::make_scheduler(model, options);
  std::vector<Completion> completions;
  std::vector<test::Answer> wanted, answers(16);
  std::int64_t n_prompt_tokens = 0;
  for (std::uint32_t i = 0; i < 16; ++i) {
    GenerateRequest request;
    request.tokens = test::some_tokens(1 + i * 11 % 60, i);
    request.options.sampling.temperature = i % 3 == 0 ? 0.0f : 1.0f;
    request.options.sampling.seed = i;
    request.options.sampling.repetition_penalty = 1.2f;
    request.options.max_tokens = 10;
    request.adapter = {sets[i * 7 % 4]};
    n_prompt_tokens += static_cast<std::int64_t>(request.tokens.size());
    wanted.push_back(test::alone(model, request, {.n_ctx = 128, .max_factor_rank = 4}));
    completions.push_back(must(scheduler.submit(std::move(request))));
  }
  while (scheduler.step()) {
  }
  for (std::size_t i = 0; i < completions.size(); ++i) {
    CAPTURE(i);
    test::poll_all(completions[i], answers[i]);
    CHECK(answers[i] == wanted[i]);
  }
  CHECK(scheduler.stats().n_prompt_tokens == n_prompt_tokens);
  CHECK(scheduler.stats().n_free_pages == scheduler.stats().n_pages);
  // The context holds the rows too; a step must hold them and a row of each other request.
  GenerateRequest full{.tokens = test::some_tokens(109, 1), .adapter = {many}};
  CHECK(code(scheduler.submit(std::move(full))) == Errc::limit);
  GenerateRequest fits{.tokens = test::some_tokens(108, 1), .adapter = {many}};
  CHECK(scheduler.submit(std::move(fits)).has_value());
  GenerateRequest large{.tokens = {1}};
  large.adapter = {must(AdapterSet::create(model, test::learned_rows(model, 21, 1)))};
  CHECK(code(scheduler.submit(std::move(large))) == Errc::limit);
}

TEST_CASE("requests with different adapters share a scheduler's steps; programs may drop theirs") {
  const Model model = test::small_model(2, 64);
  auto scheduler = test::make_scheduler(
      model, {.n_ctx = 64, .max_batch = 3, .max_step_tokens = 16, .max_factor_rank = 6});
  std::vector<Completion> completions;
  std::vector<test::Answer> wanted, answers(6);
  for (std::uint32_t i = 0; i < 6; ++i) {
    GenerateRequest request;
    request.tokens = test::some_tokens(5 + 7 * i % 20, i);
    request.options.sampling.temperature = 0;
    request.options.max_tokens = 12;
    if (i % 3 != 0) {
      const auto set =
          must(AdapterSet::create(model, random_adapter(model, i % 2 == 0 ? 6 : 2, i)));
      request.adapter = {set, 0.5f + static_cast<float>(i)};
      auto session = must(Session::create(model, {.n_ctx = 64, .max_factor_rank = 6}));
      REQUIRE(session.set_adapter(request.adapter));
      auto generator = test::make_generator(session, request.options);
      REQUIRE(generator.prompt(request.tokens));
      test::Answer answer;
      while (const auto token = must(generator.next())) answer.add(*token);
      answer.finish = generator.finish();
      wanted.push_back(std::move(answer));
    } else {
      wanted.push_back(test::alone(model, request, {.n_ctx = 64}));
    }
    completions.push_back(must(scheduler.submit(std::move(request))));
  }
  while (scheduler.step()) {
  }
  for (std::size_t i = 0; i < completions.size(); ++i) {
    CAPTURE(i);
    test::poll_all(completions[i], answers[i]);
    CHECK(answers[i] == wanted[i]);
  }
  GenerateRequest large{.tokens = {1}};
  large.adapter = {must(AdapterSet::create(model, random_adapter(model, 7, 1)))};
  CHECK(code(scheduler.submit(std::move(large))) == Errc::limit);
}

}  // namespace

}  // namespace adapters_test
