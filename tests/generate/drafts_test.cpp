// SPDX-License-Identifier: Apache-2.0
//
// Where guesses come from, and how many of them are computed.
#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "generate/speculating.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/layer_drafts.hpp"
#include "nibble/generate/model_drafts.hpp"
#include "nibble/generate/ngram_drafts.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/generate/speculator.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/gbnf.hpp"
#include "nibble/text/tokenizer.hpp"

namespace drafts_test {

using namespace nibble;
using namespace test;

TEST_CASE("n-grams give what came last after the longest run that is known") {
  std::mt19937 random(1);
  Ids text;
  for (int i = 0; i < 3000; ++i) {  // with repetitions of all lengths
    if (i > 50 && random() % 30 == 0) {
      const std::size_t from = random() % (text.size() - 20), n = random() % 20;
      for (std::size_t j = 0; j < n; ++j) text.push_back(text[from + j]);
    } else {
      text.push_back(static_cast<std::int32_t>(random() % 12));
    }
  }
  NgramDrafts source = must(NgramDrafts::create(std::size_t{1} << 20));
  struct Known {
    std::int32_t token;
    bool is_confirmed;
  };
  std::map<Ids, Known> known;
  const std::array<std::size_t, 3> lengths = {8, 4, 2};
  int n_guesses = 0, n_others = 0;
  for (std::size_t n = 1; n <= text.size(); ++n) {
    const std::span<const std::int32_t> tokens = std::span(text).first(n);
    for (const std::size_t length : lengths) {
      if (length >= n) continue;
      const auto run = tokens.subspan(n - 1 - length, length);
      Known& entry = known.try_emplace(Ids(run.begin(), run.end()), Known{-1, false}).first->second;
      entry = {tokens.back(), entry.token == tokens.back()};
    }
    source.observe(tokens, static_cast<Index>(n) - 1);
    Ids all(tokens.begin(), tokens.end());
    std::array<Draft, 7> drafts;
    const Index n_drafts = source.draft(tokens, drafts);
    for (Index i = 0;; ++i) {
      const Known* best = nullptr;
      std::uint8_t kind = 0;
      for (const std::size_t length : lengths) {
        if (best == nullptr && length <= all.size()) {
          const auto found =
              known.find(Ids(all.end() - static_cast<std::ptrdiff_t>(length), all.end()));
          if (found != known.end()) best = &found->second;
        }
        if (best == nullptr) kind = static_cast<std::uint8_t>(kind + 2);
      }
      ++n_guesses;
      if (i == 7 || best == nullptr) {
        n_others += n_drafts != i;
        break;
      }
      const Draft draft = i < n_drafts ? drafts[static_cast<std::size_t>(i)] : Draft{-1, 0};
      if (draft.token != best->token || draft.kind != kind + (best->is_confirmed ? 0 : 1)) {
        ++n_others;
        break;
      }
      all.push_back(draft.token);
    }
  }
  CHECK(n_guesses > 10000);
  CHECK(n_others < n_guesses / 200);  // two runs may have the same entry
  // A small table forgets, and gives nothing wrong to read; rows of numbers are no tokens.
  NgramDrafts small = must(NgramDrafts::create(256));
  text[100] = -1;
  small.observe(text, 0);
  std::array<Draft, 7> drafts;
  const Index n = small.draft(text, drafts);
  for (Index i = 0; i < n; ++i) CHECK(drafts[static_cast<std::size_t>(i)].token >= 0);
  CHECK(small.draft(std::span(text).first(1), drafts) == 0);
  for (const std::size_t bad : {0u, 255u, 128u, 1000u, 1u << 27}) {
    CHECK(code(NgramDrafts::create(bad)) == Errc::invalid_argument);
  }
}

TEST_CASE("times of steps are learned, follow what changes, and one bad time is forgotten") {
  detail::StepTimes times;
  const auto measure = [&](int n, Index rows, double time) {
    for (int i = 0; i < n; ++i) times.add(rows, time);
  };
  measure(50, 1, 100);
  measure(50, 4, 160);
  CHECK(times.of(4) / times.of(1) == doctest::Approx(1.6).epsilon(0.1));
  for (int i = 0; i < 100; ++i) {  // all takes longer
    measure(1, 1, 300);
    measure(1, 4, 480);
  }
  CHECK(times.of(1) == doctest::Approx(300).epsilon(0.1));
  CHECK(times.of(4) == doctest::Approx(480).epsilon(0.1));
  const double before = times.of(4) / times.of(1);
  measure(1, 4, 1e9);
  CHECK(times.of(4) / times.of(1) < before * 1.2);
  measure(20, 8, 30000);
  CHECK(times.of(8) / times.of(1) > 10);
  measure(8000, 1, 300);
  CHECK(times.of(8) / times.of(1) < 3);
  times.add(100, 300);  // rows beyond what is known count as the most
  for (Index rows = 1; rows < 20; ++rows) CHECK(times.of(rows) > 0);
  detail::StepTimes none;
  none.add(1, 0);  // a clock that stands
  CHECK(none.of(3) > none.of(1));
}

namespace {

Session home_session() {
  return must(Session::create(home_model(), {.n_ctx = 256, .max_outputs = 8}));
}

std::string answer(Generator& generator) {
  std::string text;
  while (const auto token = must(generator.next())) text += token->text;
  return text;
}

const std::vector<std::string>& commands() {
  static const std::vector<std::string> all = {
      "could you please dim the office light to 10 percent\n",
      "switch on the kitchen light\n",
      "set the bedroom light to 40 percent\n",
      "turn off the kitchen light\n",
      "could you please dim the kitchen light to 20 percent\n",
      "switch on the office light\n",
  };
  return all;
}

// Asks for all commands with and without guesses; the answers are the same. What was guessed.
SpeculationStats check_commands(GenerateOptions options, int n_repeats) {
  Session plain_session = home_session(), session = home_session();
  Generator plain = must(Generator::create(plain_session, options));
  options.speculation = {.max_drafts = 7, .always = true};
  Generator generator = must(Generator::create(session, options));
  for (int repeat = 0; repeat < n_repeats; ++repeat) {
    for (const std::string& command : commands()) {
      REQUIRE(session.rewind(0));
      REQUIRE(plain_session.rewind(0));
      REQUIRE(generator.prompt(command));
      REQUIRE(plain.prompt(command));
      CHECK(answer(generator) == answer(plain));
      CHECK(generator.finish() == plain.finish());
      CHECK(tokens_of(session) == tokens_of(plain_session));
    }
  }
  return generator.speculation_stats();
}

}  // namespace

TEST_CASE("commands: what was called before is guessed, and the calls are the same") {
  const SpeculationStats stats = check_commands({}, 3);
  CHECK(stats.n_accepted > stats.n_steps);
}

TEST_CASE("a small model's guesses are its own answer; it must have the same tokens") {
  const auto model_session = [](Index n_ctx) {
    return must(Session::create(home_model(), {.n_ctx = n_ctx}));
  };
  for (const Index n_ctx : {200, 24, 5}) {  // what is longer than its context gets no guesses
    for (const float temperature : {0.0f, 1.5f}) {
      GenerateOptions options;
      options.sampling.temperature = temperature;
      options.max_tokens = 40;
      Session plain_session = home_session(), session = home_session();
      Generator plain = must(Generator::create(plain_session, options));
      ModelDrafts drafts = must(ModelDrafts::create(model_session(n_ctx), home_model()));
      options.speculation = {.max_drafts = 4, .source = &drafts, .always = true};
      Generator generator = must(Generator::create(session, options));
      for (const std::string& command : commands()) {
        const Index kept = std::min<Index>(session.position(), 3);
        REQUIRE(session.rewind(kept));
        REQUIRE(plain_session.rewind(kept));
        REQUIRE(generator.prompt(command));
        REQUIRE(plain.prompt(command));
        CHECK(output_of(generator) == output_of(plain));
      }
      const SpeculationStats stats = generator.speculation_stats();
      if (n_ctx == 5) CHECK(stats.n_drafted == 0);
      if (n_ctx == 200 && temperature == 0) {
        // All but those after an end.
        CHECK(stats.n_accepted > stats.n_drafted * 2 / 3);
        CHECK(stats.n_accepted > 2 * stats.n_steps);
      }
    }
  }
  const auto other =
      ModelDrafts::create(must(Session::create(llama_model(), {.n_ctx = 20})), home_model());
  REQUIRE(!other);
  CHECK(other.error().code == Errc::invalid_argument);
  CHECK(other.error().message.find("50 and 512") != std::string::npos);
}

TEST_CASE("the first layers guess, and the answers are those without guesses") {
  for (const Index n_layers : {1, 2}) {
    for (const float temperature : {0.0f, 1.5f}) {
      CAPTURE(n_layers);
      GenerateOptions options;
      options.sampling.temperature = temperature;
      options.max_tokens = 40;
      Session plain_session = home_session(), session = home_session();
      Generator plain = must(Generator::create(plain_session, options));
      LayerDrafts drafts = must(LayerDrafts::create(session, n_layers));
      options.speculation = {.max_drafts = 3, .source = &drafts, .always = true};
      Generator generator = must(Generator::create(session, options));
      for (const std::string& command : commands()) {
        const Index kept = std::min<Index>(session.position(), 3);
        REQUIRE(session.rewind(kept));
        REQUIRE(plain_session.rewind(kept));
        REQUIRE(generator.prompt(command));
        REQUIRE(plain.prompt(command));
        CHECK(output_of(generator) == output_of(plain));
        CHECK(logits_of(session) == logits_of(plain_session));
      }
      const SpeculationStats stats = generator.speculation_stats();
      CHECK(stats.n_accepted <= stats.n_drafted);
      if (n_layers == 2 && temperature == 0) CHECK(stats.n_accepted > stats.n_drafted / 2);
    }
  }
  Session session = home_session();
  for (const Index n_layers : {-1, 0, 3}) {
    const auto refused = LayerDrafts::create(session, n_layers);
    REQUIRE(!refused);
    CHECK(refused.error().code == Errc::invalid_argument);
  }
  Session recurrent = must(Session::create(conv_model(), {.n_ctx = 64}));
  const auto refused = LayerDrafts::create(recurrent, 1);
  REQUIRE(!refused);
  CHECK(refused.error().code == Errc::unsupported);
}

TEST_CASE("guesses pass the grammar, and what is certain is computed as without them") {
  const auto trie = must(grammar::TokenTrie::create(home_model().tokenizer()->vocabulary()));
  std::int64_t n_drafted = 0;
  for (const char* const gbnf :
       {"root ::= [a-z.]+ \"(\" [a-z0-9=, ]+ \")\"",
        "root ::= (\"light.off(room=\" | \"light.on(room=\") [a-z]+ \", level=\" [0-9]+ \")\"",
        "root ::= (\"ab\" [a-z] \"cdefgh\")+ \"!\""}) {
    CAPTURE(gbnf);
    const auto constraint = must(grammar::Constraint::create(must(grammar::from_gbnf(gbnf)), trie));
    for (const float temperature : {0.0f, 2.0f}) {
      GenerateOptions options;
      options.grammar = &constraint;
      options.max_tokens = 60;
      options.sampling.temperature = temperature;
      options.sampling.top_k = 0;
      Session plain_session = home_session(), session = home_session();
      Generator plain = must(Generator::create(plain_session, options));
      options.speculation = {.max_drafts = 7, .always = true};
      Generator generator = must(Generator::create(session, options));
      for (int repeat = 0; repeat < 2; ++repeat) {
        for (const std::string& command : commands()) {
          REQUIRE(session.rewind(0));
          REQUIRE(plain_session.rewind(0));
          REQUIRE(generator.prompt(command));
          REQUIRE(plain.prompt(command));
          CHECK(output_of(generator) == output_of(plain));
          CHECK(logits_of(session) == logits_of(plain_session));
        }
      }
      n_drafted += generator.speculation_stats().n_drafted;
    }
  }
  CHECK(n_drafted > 20);
}

TEST_CASE("stop strings, and tokens that are held back, are those without guesses") {
  for (const char* const stop : {"(", "room=", "light.set(room=o", "level"}) {
    GenerateOptions options;
    options.stop = {stop};
    check_commands(options, 2);
  }
}

}  // namespace drafts_test
