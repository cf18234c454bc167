// SPDX-License-Identifier: Apache-2.0
//
// How a turn begins and ends: begin tokens, stop tokens, options per turn, cancelling, time limits
// and progress, also while a prompt is read.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/generating.hpp"

namespace turns_test {

using namespace nibble;
using test::copy;
using test::encode;
using test::Ids;
using test::joined;
using test::kAnswer;
using test::kPrompt;
using test::make_generator;
using test::make_session;
using test::must;
using test::Outcome;
using test::take;

namespace {

Outcome answer(const Model& model, const GenerateOptions& options, Finish& finish) {
  Session session = make_session({}, model);
  Generator generator = make_generator(session, options);
  REQUIRE(generator.prompt(kPrompt));
  Outcome outcome = take(generator);
  finish = generator.finish();
  CHECK(copy(session.tokens()) == joined({encode(kPrompt), outcome.ids}));
  return outcome;
}

std::string token_text(std::int32_t id) {
  return std::string(test::home_model().tokenizer()->piece(id));
}

}  // namespace

TEST_CASE("a prompt gets one begin token, unless the caller wants it otherwise") {
  const auto n_begin = [](std::string_view text, std::optional<bool> add_bos, bool parse_special,
                          const Model& model = test::home_model()) {
    Session session = make_session({}, model);
    GenerateOptions options;
    options.add_bos = add_bos;
    options.parse_special = parse_special;
    Generator generator = make_generator(session, options);
    REQUIRE(generator.prompt(text));
    const Ids tokens = copy(session.tokens());
    return std::count(tokens.begin(), tokens.end(), 1);
  };
  CHECK(n_begin("light", {}, false) == 1);
  CHECK(n_begin("light", {}, true) == 1);
  CHECK(n_begin("<s>light", {}, true) == 1);
  CHECK(n_begin("<s>light", {}, false) == 1);  // there it is text
  CHECK(n_begin("<s>light", true, true) == 2);
  CHECK(n_begin("<s>light", false, true) == 1);
  CHECK(n_begin("light", false, true) == 0);
  CHECK(n_begin("<s><s>light", {}, true) == 2);  // as the text says
  const Model without = test::changed_model(
      [](io::GgufWriter& writer) { writer.set("tokenizer.ggml.add_bos_token", false); });
  CHECK(n_begin("light", {}, false, without) == 0);
  CHECK(n_begin("light", true, false, without) == 1);

  // Only an empty session gets one by itself.
  Session session = make_session();
  Generator generator = make_generator(session);
  REQUIRE(generator.prompt("light"));
  REQUIRE(generator.prompt("light"));
  CHECK(copy(session.tokens()) == joined({encode("light"), encode("light", false)}));
  GenerateOptions options;
  options.add_bos = true;
  REQUIRE(generator.set_options(options));
  REQUIRE(generator.prompt("light"));
  CHECK(copy(session.tokens()) ==
        joined({encode("light"), encode("light", false), encode("light")}));
}

TEST_CASE("after control tokens alone, what is generated begins the text") {
  GenerateOptions options;
  options.parse_special = true;
  options.max_tokens = 20;
  for (const char* const text : {"", "<s>"}) {
    Session session = make_session();
    Generator generator = make_generator(session, options);
    REQUIRE(generator.prompt(text));
    const Outcome own = take(generator);
    CHECK(own.text == test::home_model().tokenizer()->decode(own.ids));
  }
}

TEST_CASE("an empty prompt without a begin token says so, and goes on where there are tokens") {
  const Model model = test::changed_model(
      [](io::GgufWriter& writer) { writer.set("tokenizer.ggml.add_bos_token", false); });
  Session session = make_session({}, model);
  GenerateOptions options;
  options.max_tokens = 2;
  std::string text;
  const auto append = [&](const Token& token) {
    text += token.text;
    return true;
  };
  const auto empty = generate(session, "", options, append);
  REQUIRE(!empty);
  CHECK(empty.error().code == Errc::invalid_argument);
  CHECK(empty.error().message.find("the prompt is empty") != std::string::npos);
  CHECK(session.position() == 0);
  must(generate(session, kPrompt, options, append));
  for (int i = 0; i < 3; ++i) must(generate(session, "", options, append));
  Session straight = make_session({}, model);
  options.max_tokens = 8;
  std::string expected;
  must(generate(straight, kPrompt, options, [&](const Token& token) {
    expected += token.text;
    return true;
  }));
  CHECK(text == expected);
}

TEST_CASE("generation ends at stop tokens, which are not shown") {
  Finish finish = Finish::none;
  const Outcome whole = answer(test::home_model(), {}, finish);
  REQUIRE(finish == Finish::end_of_text);
  for (std::size_t i = 0; i + 1 < whole.ids.size(); ++i) {
    const auto first = std::find(whole.ids.begin(), whole.ids.end(), whole.ids[i]);
    GenerateOptions options;
    options.stop_tokens = {511, whole.ids[i]};
    const Outcome outcome = answer(test::home_model(), options, finish);
    CHECK(finish == Finish::stop_token);
    CHECK(outcome.ids == Ids(whole.ids.begin(), first + 1));
    CHECK(outcome.text ==
          test::home_model().tokenizer()->decode(
              std::span(whole.ids).first(static_cast<std::size_t>(first - whole.ids.begin())),
              {.at_start = false}));
  }
  Session session = make_session();
  for (const std::int32_t wrong : {-1, 512}) {
    GenerateOptions options;
    options.stop_tokens = {wrong};
    const auto refused = Generator::create(session, options);
    REQUIRE(!refused);
    CHECK(refused.error().message.find("stop token " + std::to_string(wrong)) != std::string::npos);
  }
}

TEST_CASE("the end is found also where the file calls another token the end") {
  Finish finish = Finish::none;
  // </s> is known by its name ...
  const Model other_eos = test::changed_model([](io::GgufWriter& writer) {
    writer.set("tokenizer.ggml.eos_token_id", std::uint32_t{500});
  });
  CHECK(answer(other_eos, {}, finish).text == kAnswer);
  CHECK(finish == Finish::end_of_text);
  // ... and any control token by its name as a stop string, although it has no text.
  const Model unknown_name = test::changed_model([](io::GgufWriter& writer) {
    Ids ids;
    std::vector<std::string> names;
    for (std::int32_t id = 0; id < 512; ++id) names.push_back(token_text(id));
    names[2] = "<|done|>";
    writer.set_array("tokenizer.ggml.tokens", names);
    writer.set("tokenizer.ggml.eos_token_id", std::uint32_t{500});
  });
  GenerateOptions options;
  options.max_tokens = 40;
  CHECK(answer(unknown_name, options, finish).ids.size() == 40);
  CHECK(finish == Finish::max_tokens);
  options.stop = {"no such text", "<|done|>"};
  CHECK(answer(unknown_name, options, finish).text == kAnswer);
  CHECK(finish == Finish::stop_string);
}

TEST_CASE("a banned token never comes, a favoured one does") {
  Finish finish = Finish::none;
  const Outcome whole = answer(test::home_model(), {}, finish);
  const float inf = std::numeric_limits<float>::infinity();
  GenerateOptions options;
  options.max_tokens = 30;
  for (const std::int32_t id : whole.ids) options.sampling.logit_bias.push_back({id, -inf});
  const Outcome other = answer(test::home_model(), options, finish);
  for (const std::int32_t id : whole.ids) {
    CHECK(std::count(other.ids.begin(), other.ids.end(), id) == 0);
  }
  options.sampling.logit_bias = {{300, 1000.0f}};
  CHECK(answer(test::home_model(), options, finish).ids == Ids(30, 300));
}

TEST_CASE("options of a turn hold from the next prompt on") {
  Session session = make_session();
  GenerateOptions options;
  options.max_tokens = 3;
  Generator generator = make_generator(session, options);
  REQUIRE(generator.prompt(kPrompt));
  options.max_tokens = 100;
  options.stop = {"level"};
  REQUIRE(generator.set_options(options));
  Outcome first = take(generator);
  CHECK(first.ids.size() == 3);
  CHECK(generator.finish() == Finish::max_tokens);
  REQUIRE(generator.prompt(""));
  CHECK(first.text + take(generator).text == "light.set(room=office, ");
  CHECK(generator.finish() == Finish::stop_string);
  options.stop = {""};
  CHECK(!generator.set_options(options));
  options.stop = {};
  options.sampling.min_p = -1;
  CHECK(!generator.set_options(options));
  options.sampling.min_p = 0;
  options.sampling.logit_bias = {{512, 1.0f}};
  CHECK(!generator.set_options(options));
  options.time_limit_ms = -1;
  options.sampling.logit_bias = {};
  CHECK(!generator.set_options(options));
  REQUIRE(session.rewind(0));
  REQUIRE(generator.prompt(kPrompt));  // the options are still those of before the errors
  CHECK(take(generator).text == "light.set(room=office, ");

  // Random numbers go on from turn to turn; a token allocates nothing, whatever was changed.
  const auto turn = [&](Generator& g, std::uint64_t seed, float temperature) {
    GenerateOptions o;
    o.sampling = {.temperature = temperature, .top_k = 0, .top_p = 0.99f, .min_p = 0, .seed = seed};
    o.sampling.logit_bias = {{7, 0.5f}};
    o.sampling.repetition_penalty = 1.01f;
    o.max_tokens = 40;
    REQUIRE(g.set_options(o));
    REQUIRE(session.rewind(0));
    REQUIRE(g.prompt(""));
    Ids ids;
    ids.reserve(64);
    const auto before = allocation_count();
    while (auto token = g.next()) {
      if (!*token) break;
      ids.push_back((*token)->id);
    }
    const auto spent = allocation_count() - before;
    CHECK(spent == 0);
    return ids;
  };
  const Ids a = turn(generator, 3, 1.5f), b = turn(generator, 3, 1.5f);
  CHECK(a != b);
  CHECK(turn(generator, 4, 1.5f) != turn(generator, 5, 1.5f));
  CHECK(turn(generator, 3, 1.5f) == a);  // the seed is another one again
}

TEST_CASE("what was held back comes when generation is cancelled or out of time") {
  Finish finish = Finish::none;
  const Ids whole = answer(test::home_model(), {}, finish).ids;
  for (const bool by_time : {false, true}) {
    std::atomic<bool> cancel{false};
    GenerateOptions options;
    options.stop = {std::string(kAnswer) + "!"};  // everything is held back
    if (!by_time) options.cancel = &cancel;
    if (by_time) options.time_limit_ms = 1500;
    Session session = make_session();
    Generator generator = make_generator(session, options);
    REQUIRE(generator.prompt(kPrompt));
    Outcome outcome = take(generator, 5);
    REQUIRE(outcome.ids.size() == 5);
    CHECK(outcome.text.empty());
    if (by_time) std::this_thread::sleep_for(std::chrono::milliseconds(1501));
    cancel = true;
    const auto last = must(generator.next());
    REQUIRE(last);
    CHECK(last->id == -1);
    CHECK(last->finish == (by_time ? Finish::time_limit : Finish::cancelled));
    CHECK(last->text ==
          test::home_model().tokenizer()->decode(std::span(whole).first(5), {.at_start = false}));
    CHECK(!last->text.empty());
    CHECK(generator.finish() == last->finish);
    CHECK(generator.n_tokens() == 5);
    CHECK(!must(generator.next()));
    CHECK(copy(session.tokens()) ==
          joined({encode(kPrompt), Ids(whole.begin(), whole.begin() + 5)}));
  }
}

TEST_CASE("reading a prompt shows progress, and stops between its steps") {
  const std::string text(60, 'x');
  const Ids ids = encode(text);
  REQUIRE(ids.size() > 20);
  for (const std::size_t stop_at : {std::size_t{0}, std::size_t{1}, std::size_t{3}, ids.size()}) {
    for (const int how : {0, 1, 2}) {
      if (how == 2 && stop_at != 1) continue;  // slow machines must not be late by themselves
      CAPTURE(stop_at);
      CAPTURE(how);
      std::atomic<bool> cancel{false};
      std::vector<std::size_t> seen;
      const auto on_step = [&](std::size_t done, std::size_t total) {
        CHECK(total >= ids.size());
        const bool stops = seen.size() == stop_at;
        seen.push_back(done);
        if (stops && how == 1) cancel = true;
        if (stops && how == 2) std::this_thread::sleep_for(std::chrono::milliseconds(1501));
        return !(stops && how == 0);
      };
      const Progress progress(on_step);
      GenerateOptions options;
      options.progress = &progress;
      options.cancel = &cancel;
      if (how == 2) options.time_limit_ms = 1500;
      Session session = make_session({.max_step_tokens = 4});
      {
        Generator before = make_generator(session);
        REQUIRE(before.prompt("light"));
        take(before, 2);
      }
      const Ids history = copy(session.tokens());
      Generator generator = make_generator(session, options);
      REQUIRE(generator.prompt(encode(text, false)));
      if (stop_at >= ids.size()) {
        CHECK(generator.finish() == Finish::none);
        CHECK(seen.size() == (ids.size() - 1 + 1 + 3) / 4);  // one token was pending
        for (std::size_t i = 0; i < seen.size(); ++i) CHECK(seen[i] == 4 * i);
        CHECK(must(generator.next()));
      } else {
        CHECK(generator.finish() == (how == 2 ? Finish::time_limit : Finish::cancelled));
        CHECK(seen.size() == stop_at + 1);
        CHECK(!must(generator.next()));
        CHECK(copy(session.tokens()) == history);
        cancel = false;
        Generator after = make_generator(session);
        REQUIRE(after.prompt(""));
        CHECK(must(after.next()));
      }
    }
  }
}

}  // namespace turns_test
