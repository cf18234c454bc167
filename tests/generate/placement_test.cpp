// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/placement.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/slot.hpp"

namespace placement_test {

using namespace nibble;
using test::home_model, test::Ids, test::must;

namespace {

Index n_layers() { return home_model().config().n_layers; }

// Passes rows on: what a model's embedding and head are when only its layers are wanted.
class Relay final : public BackEnd {
 public:
  bool compute(const PartCall& call) noexcept override {
    if (call.part == Part::layers) return true;  // in place
    const MatrixView<const float> in = call.in;
    out.assign(static_cast<std::size_t>(in.extent(0) * in.extent(1)), {});
    for (Index i = 0; i < in.extent(0); ++i) {
      for (Index j = 0; j < in.extent(1); ++j) {
        out[static_cast<std::size_t>(i * in.extent(1) + j)] = in(i, j);
      }
    }
    return true;
  }
  std::vector<float> out;
};

// An accelerator: its own threads, its own memory, its own caches. It knows the model's weights,
// and of a step only what crosses.
class StandIn final : public BackEnd {
 public:
  StandIn(Index first_layer, Index end_layer) {
    pool_ = must(ThreadPool::create({.n_threads = 2}));
    if (first_layer == end_layer) return;
    layers_.emplace(must(Engine::create(
        home_model(), {.n_ctx = 64,
                       .max_sequences = 4,
                       .max_step_tokens = 32,
                       .max_outputs = 32,
                       .executor = pool_.get(),
                       .placement = {.back_end = &relay_,
                                     // The layers of the other side: all after or all before these.
                                     .first_layer = first_layer > 0 ? 0 : end_layer,
                                     .end_layer = first_layer > 0 ? first_layer : n_layers(),
                                     .head = true}})));
  }

  bool compute(const PartCall& call) noexcept override {
    if (fails) return false;
    ++n_calls;
    switch (call.part) {
      case Part::embedding: embed(call); break;
      case Part::layers: return run_layers(call);
      case Part::head: run_head(call); break;
    }
    crossed.to += size_of(call.in) + call.tokens.size() * sizeof(std::int32_t);
    crossed.from += size_of(MatrixView<const float>(call.out));
    return true;
  }

  bool fails = false;
  int n_calls = 0;
  Crossing crossed;

 private:
  static std::size_t size_of(MatrixView<const float> x) {
    return static_cast<std::size_t>(x.extent(0) * x.extent(1)) * sizeof(float);
  }

  void embed(const PartCall& call) {
    const graph::Weight& table = home_model().weights().at(Slot::token_embd, -1);
    for (Index i = 0; i < call.out.extent(0); ++i) {
      float* const row = call.out.data() + i * call.out.stride(0);
      const Index token = call.tokens[static_cast<std::size_t>(i)];
      if (token >= 0) {
        table.ops->row(table.data, table.n, table.k, token, row);
      } else {
        for (Index j = 0; j < call.out.extent(1); ++j) row[j] = call.in(i, j);
      }
    }
  }

  void run_head(const PartCall& call) {
    using namespace nibble::graph;
    const ModelConfig& c = home_model().config();
    const auto head = embedding<Slot::token_embd>(c.dim, c.vocab_size) >> output_rows() >>
                      rms_norm<Slot::output_norm>(c.norm_eps) >>
                      linear<tied_slot(Slot::output, Slot::token_embd)>(c.vocab_size);
    const Index n = call.in.extent(0);
    const Limits limits{.max_rows = n, .max_outputs = n, .max_workers = pool_->n_workers()};
    const Plan plan = make_plan(head, limits);
    auto arena = AlignedBuffer::allocate(plan.bytes);
    const std::vector<std::int32_t> tokens(static_cast<std::size_t>(n), kNoToken);
    std::vector<Index> outputs(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < outputs.size(); ++i) outputs[i] = static_cast<Index>(i);
    const Segment segment{0, n, 0, SegmentKind::prompt, {}, nullptr};
    RunArgs args;
    args.step.tokens = tokens;
    args.step.rows = call.in;
    args.step.segments = {&segment, 1};
    args.step.output_rows = outputs;
    args.weights = home_model().weights();
    args.arena = arena->bytes();
    args.executor = pool_.get();
    const MatrixView<const float> logits(run(head, plan, limits, args));
    for (Index i = 0; i < n; ++i) {
      std::copy_n(logits.data() + i * logits.stride(0), c.vocab_size,
                  call.out.data() + i * call.out.stride(0));
    }
  }

  bool run_layers(const PartCall& call) {
    Index at = 0;
    for (const PartSequence& s : call.sequences) {
      auto found = sequences_.find(s.sequence);
      if (found == sequences_.end()) {
        found = sequences_.emplace(s.sequence, must(layers_->new_sequence())).first;
      }
      Sequence& own = found->second;
      if (own.position() < s.first_position || !own.rewind(s.first_position)) return false;
      const SequenceInput input{.sequence = &own,
                                .rows = call.in.rows(s.first_row, s.n_rows),
                                .n_outputs = s.n_rows,
                                .kind = s.kind};
      if (!layers_->run({&input, 1})) return false;
      const auto width = static_cast<std::size_t>(call.out.extent(1));
      for (Index i = 0; i < s.n_rows; ++i) {
        std::copy_n(relay_.out.data() + static_cast<std::size_t>(i) * width, width,
                    call.out.data() + (s.first_row + i) * call.out.stride(0));
      }
      at += s.n_rows;
    }
    crossed.to += size_of(call.in);
    crossed.from += size_of(MatrixView<const float>(call.out));
    return at == call.in.extent(0);
  }

  Owned<ThreadPool> pool_;
  Relay relay_;
  std::optional<Engine> layers_;
  std::map<const void*, Sequence> sequences_;
};

EngineOptions options_for(const Placement& placement) {
  return {.n_ctx = 64,
          .max_sequences = 2,
          .max_step_tokens = 32,
          .max_outputs = 8,
          .placement = placement};
}

std::vector<float> numbers(MatrixView<const float> x) {
  std::vector<float> all;
  for (Index i = 0; i < x.extent(0); ++i) {
    for (Index j = 0; j < x.extent(1); ++j) all.push_back(x(i, j));
  }
  return all;
}

// Steps of two sequences, together and alone, prompts and single tokens, one rewound.
std::vector<std::vector<float>> logits_of(Engine& engine) {
  const Ids prompt = test::encode(test::kPrompt), other = test::encode("lights off\n");
  Sequence a = must(engine.new_sequence()), b = must(engine.new_sequence());
  std::vector<std::vector<float>> all;
  const auto step = [&](std::initializer_list<SequenceInput> inputs) {
    all.push_back(numbers(must(engine.run({inputs.begin(), inputs.size()}))));
  };
  step({{.sequence = &a, .tokens = prompt, .n_outputs = 3}});
  step({{.sequence = &a, .tokens = {prompt.data(), 1}, .kind = ops::SegmentKind::generation},
        {.sequence = &b, .tokens = other, .n_outputs = 2}});
  REQUIRE(a.rewind(5));
  step({{.sequence = &a, .tokens = {prompt.data() + 5, 2}, .kind = ops::SegmentKind::generation},
        {.sequence = &b, .tokens = {prompt.data(), 1}, .kind = ops::SegmentKind::generation}});
  step({{.sequence = &b, .tokens = {prompt.data(), 2}, .n_outputs = 0}});
  step({{.sequence = &b, .tokens = {prompt.data(), 1}}});
  return all;
}

}  // namespace

TEST_CASE("parts in other places: the logits have the bits that they have in one place") {
  auto here = must(Engine::create(home_model(), options_for({})));
  const auto expected = logits_of(here);
  const Index n = n_layers();
  REQUIRE(n == 3);
  const Placement placements[] = {
      {.embedding = true},
      {.head = true},
      {.embedding = true, .head = true},
      {.first_layer = 0, .end_layer = 1},
      {.first_layer = 1, .end_layer = n},
      {.first_layer = 0, .end_layer = 2, .head = true},
      {.embedding = true, .first_layer = 0, .end_layer = n},
      {.embedding = true, .first_layer = 0, .end_layer = n, .head = true},
  };
  for (Placement placement : placements) {
    CAPTURE(placement.embedding);
    CAPTURE(placement.first_layer);
    CAPTURE(placement.end_layer);
    CAPTURE(placement.head);
    StandIn stand_in(placement.first_layer, placement.end_layer);
    placement.back_end = &stand_in;
    auto engine = must(Engine::create(home_model(), options_for(placement)));
    CHECK(logits_of(engine) == expected);
    CHECK(stand_in.n_calls > 0);
  }
}

TEST_CASE("rows in place of tokens go to the back end that has the embedding") {
  StandIn stand_in(0, 0);
  auto placed = must(Engine::create(home_model(), options_for({&stand_in, true, 0, 0, true})));
  auto here = must(Engine::create(home_model(), options_for({})));
  const Index dim = home_model().config().dim;
  std::vector<float> rows(static_cast<std::size_t>(2 * dim));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 7) - 3;
  std::vector<std::vector<float>> logits;
  for (Engine* engine : {&here, &placed}) {
    Sequence s = must(engine->new_sequence());
    const SequenceInput input{
        .sequence = &s, .rows = MatrixView<const float>(rows.data(), 2, dim), .n_outputs = 2};
    logits.push_back(numbers(must(engine->run({&input, 1}))));
  }
  CHECK(logits[0] == logits[1]);
}

TEST_CASE("what crosses has the sizes that crossing() says") {
  const ModelConfig& config = home_model().config();
  const Ids prompt = test::encode(test::kPrompt);
  const auto n = static_cast<Index>(prompt.size());
  const std::pair<Part, Placement> parts[] = {
      {Part::embedding, {.embedding = true}},
      {Part::layers, {.first_layer = 0, .end_layer = 1}},
      {Part::head, {.head = true}},
  };
  for (auto [part, placement] : parts) {
    StandIn stand_in(placement.first_layer, placement.end_layer);
    placement.back_end = &stand_in;
    auto engine = must(Engine::create(home_model(), options_for(placement)));
    Sequence s = must(engine.new_sequence());
    const SequenceInput input{.sequence = &s, .tokens = prompt, .n_outputs = 2};
    REQUIRE(engine.run({&input, 1}));
    const Crossing expected = crossing(config, part, n, 2);
    CHECK(stand_in.crossed.to == expected.to);
    CHECK(stand_in.crossed.from == expected.from);
  }
}

TEST_CASE("a back end that fails is an error, and nothing has changed") {
  const Ids prompt = test::encode(test::kPrompt);
  const std::pair<const char*, Placement> cases[] = {
      {"embedding", {.embedding = true}},
      {"layers 0 to 2", {.first_layer = 0, .end_layer = 2}},
      {"head", {.head = true}},
  };
  for (auto [name, placement] : cases) {
    StandIn stand_in(placement.first_layer, placement.end_layer);
    placement.back_end = &stand_in;
    auto engine = must(Engine::create(home_model(), options_for(placement)));
    Sequence s = must(engine.new_sequence());
    const SequenceInput input{.sequence = &s, .tokens = prompt};
    stand_in.fails = true;
    const auto failed = engine.run({&input, 1});
    REQUIRE_FALSE(failed);
    CHECK(failed.error().code == Errc::io);
    CHECK_MESSAGE(failed.error().message.find(name) != std::string::npos, failed.error().message);
    CHECK(s.position() == 0);
    stand_in.fails = false;
    auto here = must(Engine::create(home_model(), options_for({})));
    Sequence t = must(here.new_sequence());
    const SequenceInput same{.sequence = &t, .tokens = prompt};
    CHECK(numbers(must(engine.run({&input, 1}))) == numbers(must(here.run({&same, 1}))));
  }
}

TEST_CASE("text is generated with parts elsewhere; memory is known before") {
  StandIn stand_in(0, 0);
  const SessionOptions options{.n_ctx = 128, .placement = {&stand_in, true, 0, 0, true}};
  auto session = test::make_session(options);
  CHECK(session.bytes() == must(Session::bytes_needed(home_model(), options)));
  auto generator = test::make_generator(session);
  REQUIRE(generator.prompt(test::kPrompt));
  CHECK(test::take(generator).text == test::kAnswer);
}

TEST_CASE("placements that cannot be are refused") {
  StandIn stand_in(0, 0);
  const Placement wrong[] = {{&stand_in, false, 0, 0, false},
                             {&stand_in, false, 2, 1, false},
                             {&stand_in, false, -1, 1, true},
                             {&stand_in, true, 0, n_layers() + 1, true}};
  for (const Placement& placement : wrong) {
    const auto engine = Engine::create(home_model(), options_for(placement));
    REQUIRE_FALSE(engine);
    CHECK(engine.error().code == Errc::invalid_argument);
  }
  auto engine = must(Engine::create(home_model(), options_for({&stand_in, true, 0, 0, true})));
  const Index after[] = {1};
  const auto exit = engine.set_early_exit({.after_layers = after});
  REQUIRE_FALSE(exit);
  CHECK(exit.error().code == Errc::unsupported);
}

}  // namespace placement_test
