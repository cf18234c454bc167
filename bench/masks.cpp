// SPDX-License-Identifier: Apache-2.0
//
// bench_masks: how long it takes to find the tokens that a JSON Schema allows, at each step of an
// answer, for the vocabulary of a GGUF file. One thread; CPU time.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/machine.hpp"
#include "bench/mask_schemas.hpp"
#include "examples/common.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/tokenizer.hpp"

namespace bench { namespace {

namespace grammar = nibble::grammar;
using nibble::Result;

double now_us() { return 1e6 * seconds_now(Clock::cpu); }

struct Times {
  double start = 0;           // the grammar and what it needs of memory
  std::vector<double> masks;  // in the order of the answer
  double mean() const {
    double sum = 0;
    for (const double t : masks) sum += t;
    return sum / static_cast<double>(masks.size());
  }
  double part(double of_all) const {
    std::vector<double> sorted = masks;
    std::sort(sorted.begin(), sorted.end());
    const auto i = static_cast<std::size_t>(of_all * static_cast<double>(sorted.size()));
    return sorted[(std::min)(i, sorted.size() - 1)];
  }
};

Result<Times> measure(const MaskSchema& schema, const nibble::text::Tokenizer& tokenizer,
                      const grammar::TokenTrie& trie) {
  Times times;
  std::vector<std::int32_t> ids;
  NIBBLE_CHECK(tokenizer.encode(schema.answer, {.add_bos = false, .add_eos = false}, ids));
  grammar::TokenSet allowed(trie.n_tokens());
  const double start = now_us();
  NIBBLE_TRY(read, grammar::from_json_schema(schema.schema));
  NIBBLE_TRY(constraint, grammar::Constraint::create(read, trie));
  NIBBLE_TRY(matcher, grammar::Matcher::create(constraint));
  times.start = now_us() - start;
  for (std::size_t i = 0; i <= ids.size(); ++i) {
    const double before = now_us();
    NIBBLE_CHECK(matcher.tokens(allowed));
    times.masks.push_back(now_us() - before);
    if (i == ids.size()) break;
    NIBBLE_TRY(is_accepted, matcher.accept(ids[i]));
    if (is_accepted) continue;
    return nibble::Error{nibble::Errc::malformed, "the answer leaves the grammar"};
  }
  return times;
}

Result<void> run(const std::string& path, int n_runs) {
  NIBBLE_TRY(file, nibble::io::Gguf::open(path));
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(file));
  NIBBLE_TRY(trie, grammar::TokenTrie::create(tokenizer.vocabulary()));
  std::printf("%s, %zu tokens, microseconds of CPU time, one thread\n\n", cpu_name().c_str(),
              trie.n_tokens());
  std::printf("%-12s %6s %8s %8s %8s %8s %8s\n", "schema", "masks", "start", "first", "mean",
              "median", "longest");
  Times all, firsts;
  for (const MaskSchema& schema : kMaskSchemas) {
    Times times;
    for (int run = 0; run < n_runs; ++run) {  // each from the beginning: nothing is remembered
      auto one = measure(schema, tokenizer, trie);
      if (!one) return std::move(one).error().in(schema.name);
      all.masks.insert(all.masks.end(), one->masks.begin(), one->masks.end());
      firsts.masks.push_back(one->start + one->masks[0]);
      times = *std::move(one);
    }
    std::printf("%-12s %6zu %8.0f %8.0f %8.1f %8.1f %8.0f\n", schema.name, times.masks.size(),
                times.start, times.masks[0], times.mean(), times.part(0.5), times.part(1));
  }
  std::printf(
      "\n%zu schemas, %zu masks: mean %.1f, median %.1f, 99 %% within %.0f, longest %.0f\n"
      "to the first mask, with all that comes before it: median %.0f, longest %.0f\n",
      std::size(kMaskSchemas), all.masks.size(), all.mean(), all.part(0.5), all.part(0.99),
      all.part(1), firsts.part(0.5), firsts.part(1));
  return nibble::ok();
}

}}  // namespace bench

int main(int argc, char** argv) {
  CLI::App app("Times of masks: the tokens that a JSON Schema allows, at each step of an answer.",
               "bench_masks");
  std::string path;
  int n_runs = 1;
  app.add_option("MODEL.gguf", path, "a model, or a vocabulary alone")->required();
  example::add_number(app, "--runs", n_runs, "how often each answer is read", 1, 1000);
  app.footer(
      "start: from the text of the schema to a matcher; first: the first mask; then of all masks.\n"
      "The lines are of the last run, the sums of all.\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage.");
  return example::run(app, argc, argv, [&] { return bench::run(path, n_runs); });
}
