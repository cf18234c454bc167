// SPDX-License-Identifier: Apache-2.0
//
// Masks over the 128 256 tokens of Llama 3: right for each of them, and quick.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/mask_schemas.hpp"
#include "doctest/doctest.h"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/tokenizer.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace real_vocabulary_test {

using namespace nibble::grammar;
using test::why;

namespace {

template <class T>
T must(nibble::Result<T> result) {
  REQUIRE_MESSAGE(result, why(result));
  return *std::move(result);
}

struct Real {
  nibble::text::Tokenizer tokenizer;
  TokenTrie trie;
};

// Null without the test data.
const Real* real_vocabulary() {
  static const auto path = test::data_path("tokenizers/ggml-vocab-llama-bpe.gguf");
  if (!path) return nullptr;
  static const Real real = [] {
    auto tokenizer = must(nibble::text::Tokenizer::from_gguf(must(nibble::io::Gguf::open(*path))));
    auto trie = must(TokenTrie::create(tokenizer.vocabulary()));
    return Real{std::move(tokenizer), std::move(trie)};
  }();
  return &real;
}

constexpr const char* kSchema = R"({"type": "object", "properties": {
  "name": {"type": "string"},
  "note": {"type": "string", "minLength": 3, "maxLength": 60},
  "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9a-z_ ]{1,40}$"},
  "born": {"type": "string", "format": "date"},
  "score": {"type": "number", "minimum": 0, "maximum": 100},
  "kind": {"enum": ["circle", "square", "triangle", "circular"]},
  "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 20},
  "more": {}}, "required": ["name", "note", "code", "born"]})";
constexpr const char* kAnswer =
    R"({"name": "Zoë \"Z\" Müller, 東京", "note": "a short note with some  words, up to 60 letters...", )"
    R"("code": "AB-12_x y z and more letters 0123", "born": "1984-11-30", "score": 99.25, )"
    R"("kind": "circular", "tags": ["one", "two three", "\u00e9"], )"
    R"("more": {"deep": [[1, -2.5e3], {"a": null, "b": true}]}})";

double cpu_microseconds() {
  return 1e6 * static_cast<double>(std::clock()) / static_cast<double>(CLOCKS_PER_SEC);
}

}  // namespace

TEST_CASE("at each step of an answer, exactly those tokens are allowed that are accepted") {
  const Real* const real = real_vocabulary();
  if (real == nullptr) return;
  const Grammar schema = must(from_json_schema(kSchema));
  const auto constraint = must(Constraint::create(schema, real->trie));
  auto matcher = must(Matcher::create(constraint));
  TokenSet allowed(real->trie.n_tokens());
  nibble::text::EncodeOptions encode;
  encode.add_bos = false;
  const auto ids = must(real->tokenizer.encode(kAnswer, encode));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i <= ids.size(); ++i) {
    REQUIRE(matcher.tokens(allowed));
    for (std::int32_t id = 0; real->trie.contains(id); ++id) {
      const bool is_accepted = must(matcher.accept(id));
      if (is_accepted) REQUIRE(matcher.rollback(1));
      wrong += is_accepted != allowed.contains(id);
    }
    if (i < ids.size()) REQUIRE(must(matcher.accept(ids[i])));
  }
  CHECK(wrong == 0);
  CHECK(matcher.is_finished());
}

TEST_CASE("masks are quick for the schemas that programs have") {
  const Real* const real = real_vocabulary();
  if (real == nullptr) return;
  nibble::text::EncodeOptions encode;
  encode.add_bos = false;
  TokenSet allowed(real->trie.n_tokens());
  std::vector<double> times, steps;
  double slowest_start = 0;
  for (const bench::MaskSchema& schema : bench::kMaskSchemas) {
    CAPTURE(schema.name);
    const auto ids = must(real->tokenizer.encode(schema.answer, encode));
    const double start = cpu_microseconds();
    const auto constraint =
        must(Constraint::create(must(from_json_schema(schema.schema)), real->trie));
    auto matcher = must(Matcher::create(constraint));
    slowest_start = (std::max)(slowest_start, cpu_microseconds() - start);
    for (std::size_t i = 0; i <= ids.size(); ++i) {
      const double before = cpu_microseconds();
      const auto n_before = static_cast<double>(constraint.n_walked());
      REQUIRE(matcher.tokens(allowed));
      steps.push_back(static_cast<double>(constraint.n_walked()) - n_before);
      times.push_back(cpu_microseconds() - before);
      if (i < ids.size()) REQUIRE(must(matcher.accept(ids[i])));
    }
    CHECK(matcher.can_end());
  }
  const auto mean = [](const std::vector<double>& all) {
    double sum = 0;
    for (const double x : all) sum += x;
    return sum / static_cast<double>(all.size());
  };
  const auto part = [](std::vector<double> all, double of_all) {
    std::sort(all.begin(), all.end());
    return all[static_cast<std::size_t>(of_all * static_cast<double>(all.size() - 1))];
  };
  MESSAGE(times.size(), " masks: mean ", mean(times), " us, 99 % within ", part(times, 0.99),
          " us, longest ", part(times, 1), " us; before the first ", slowest_start, " us");
  MESSAGE("steps in the trie, of ", real->trie.all().n_nodes(), " nodes: mean ", mean(steps),
          ", 99 % within ", part(steps, 0.99), ", most ", part(steps, 1));
  // Times are the machine's (bench_masks measures them), steps are not.
  CHECK(mean(steps) < 2'000);
  CHECK(part(steps, 0.99) < 40'000);
  CHECK(part(steps, 1) < 120'000);
}

}  // namespace real_vocabulary_test
