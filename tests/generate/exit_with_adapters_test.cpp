// SPDX-License-Identifier: Apache-2.0
//
// Early exit packs the rows of a step anew between layers: each must keep its adapter.
#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/adapting.hpp"
#include "generate/prefixes.hpp"
#include "nibble/generate/depth.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/placement.hpp"

namespace exit_with_adapters_test {

using namespace nibble;
using namespace test;
using ops::SegmentKind;
using Row = std::vector<float>;

TEST_CASE("early exit: rows with adapters, and without, are what they are alone") {
  const Model model = llama_model();
  const Adapter first = random_adapter(model, 3, 1), second = random_adapter(model, 5, 2, 2);
  const AdapterSet a = must(AdapterSet::create(model, first));
  const AdapterSet b = must(AdapterSet::create(model, second));
  const SequenceAdapter adapters[] = {{}, {a}, {b, 0.5f}, {a}, {}, {b}};
  constexpr std::size_t kSequences = std::size(adapters), kSteps = 6;
  const Index after[] = {1, 2};
  // Half of what single rows show: so some end early, and others do not.
  std::vector<double> seen;
  for (const double threshold : {2.0, -1.0}) {
    Engine engine = must(Engine::create(
        model,
        {.n_ctx = 64, .max_sequences = kSequences, .max_outputs = 12, .max_factor_rank = 5}));
    std::vector<Row> results[2];
    double limit = threshold;
    if (threshold < 0) {
      std::sort(seen.begin(), seen.end());
      limit = seen[seen.size() / 2];
    }
    REQUIRE(engine.set_early_exit(
        {.after_layers = after, .threshold = limit, .measure = Confidence::top}));
    for (const bool together : {false, true}) {
      std::vector<Sequence> sequences;
      for (const SequenceAdapter& adapter : adapters) {
        sequences.push_back(must(engine.new_sequence()));
        REQUIRE(sequences.back().set_adapter(adapter));
      }
      for (std::size_t k = 0; k < kSteps; ++k) {
        std::vector<SequenceInput> inputs;
        std::vector<Ids> ids;
        for (std::size_t i = 0; i < kSequences; ++i) ids.push_back(some_ids(2, 10 * k + i));
        for (std::size_t i = 0; i < kSequences; ++i) {
          inputs.push_back({.sequence = &sequences[i],
                            .tokens = ids[i],
                            .n_outputs = 2,
                            .kind = SegmentKind::generation});
        }
        const std::size_t n = together ? kSequences : 1;
        for (std::size_t i = 0; i < kSequences; i += n) {
          const auto logits = must(engine.run(std::span(inputs).subspan(i, n)));
          for (Index row = 0; row < logits.extent(0); ++row) {
            const float* const at = logits.data() + row * 50;
            results[together].emplace_back(at, at + 50);
            seen.push_back(confidence_of(logits[row], Confidence::top));
          }
        }
      }
    }
    REQUIRE(results[0].size() == 2 * kSequences * kSteps);
    CHECK(results[0] == results[1]);
    const EarlyExitCounts counts = engine.early_exit_counts();
    CHECK((counts.n_exits > 0) == (threshold < 0));
    CHECK(counts.n_exits < counts.n_rows);
  }
}

TEST_CASE("a sequence with an adapter is refused where a part of the model is elsewhere") {
  struct Idle final : BackEnd {
    bool compute(const PartCall&) noexcept override { return true; }
  } idle;
  const Model model = llama_model();
  Engine engine = must(Engine::create(
      model, {.n_ctx = 64, .max_factor_rank = 4, .placement = {.back_end = &idle, .head = true}}));
  Sequence sequence = must(engine.new_sequence());
  REQUIRE(sequence.set_adapter({must(AdapterSet::create(model, random_adapter(model, 4, 1)))}));
  const std::int32_t token = 1;
  const SequenceInput input{.sequence = &sequence, .tokens = {&token, 1}};
  CHECK(code(engine.run({&input, 1})) == Errc::unsupported);
}

}  // namespace exit_with_adapters_test
