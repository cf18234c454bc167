// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/dry_breakers.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"

namespace dry_breakers_test {

using namespace nibble;
using test::Ids;
using test::kPrompt;
using test::make_generator;
using test::make_session;
using test::must;

TEST_CASE("the tokens that break a repetition are those whose text has one of the strings") {
  const text::Tokenizer& tokenizer = *test::home_model().tokenizer();
  const std::vector<std::string> strings = {"\n", "room=", " t"};
  const Ids tokens = must(dry_breakers(tokenizer.vocabulary(), strings));
  CHECK(tokens.size() > 4);
  std::size_t at = 0;
  for (std::int32_t id = 0; tokenizer.vocabulary().contains(id); ++id) {
    const std::string text = tokenizer.decode(std::span(&id, 1), {.at_start = false});
    bool breaks = false;
    for (const std::string& s : strings) breaks = breaks || text.find(s) != text.npos;
    CAPTURE(text);
    const bool listed = at < tokens.size() && tokens[at] == id;
    CHECK(listed == breaks);
    at += listed;
  }
  CHECK(at == tokens.size());
  CHECK(must(dry_breakers(tokenizer.vocabulary(), {})).empty());
  const std::vector<std::string> empty = {"x", ""};
  CHECK(dry_breakers(tokenizer.vocabulary(), empty).error().code == Errc::invalid_argument);
}

TEST_CASE("a generator gives the most likely tokens with each, and shows DRY its sequence") {
  Session session = make_session();
  GenerateOptions options;
  options.sampling.top_logprobs = 3;
  auto generator = make_generator(session, options);
  REQUIRE(generator.prompt(kPrompt));
  for (int i = 0; i < 4; ++i) {
    const auto token = must(generator.next());
    REQUIRE(token);
    REQUIRE(token->top_logprobs.size() == 3);
    CHECK(token->top_logprobs[0].id == token->id);
    CHECK(token->top_logprobs[0].logprob == token->logprob);
    CHECK(token->top_logprobs[1].logprob <= token->logprob);
  }
  // Of two tokens it cannot but repeat some; the sequence so far is what DRY looks at.
  const auto ids_with = [](const SamplingOptions& sampling) {
    Session fresh = make_session();
    auto of_two = make_generator(fresh, {.sampling = sampling, .max_tokens = 30});
    REQUIRE(of_two.prompt(kPrompt));
    return test::take(of_two).ids;
  };
  SamplingOptions two;
  for (std::int32_t id = 0; id < test::home_model().config().vocab_size; ++id) {
    if (id != 390 && id != 437) two.logit_bias.push_back({id, -kInfinity});
  }
  const Ids without = ids_with(two);
  REQUIRE(without.size() == 30);
  two.dry_multiplier = 3;
  CHECK(ids_with(two) != without);
}

}  // namespace dry_breakers_test
