// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/generator.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace generator_test {

using nibble::Errc;
using nibble::Finish;
using nibble::GenerateOptions;
using nibble::Generator;
using nibble::Index;
using nibble::Session;
using nibble::SessionOptions;
using nibble::Token;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr const char* kPrompt = "could you please dim the office light to 10 percent\n";
constexpr const char* kAnswer = "light.set(room=office, level=10)";

struct Outcome {
  std::string text;
  Ids ids;
  std::vector<float> logprobs;
  std::vector<Finish> finishes;
};

Session make_session(const SessionOptions& options = {}) {
  auto session = Session::create(test::home_model(), options);
  REQUIRE(session);
  return *std::move(session);
}

Generator make(Session& session, const GenerateOptions& options = {}) {
  auto generator = Generator::create(session, options);
  REQUIRE(generator);
  return *std::move(generator);
}

void prompt(Generator& generator, std::string_view text) {
  const auto status = generator.prompt(text);
  REQUIRE_MESSAGE(status, test::why(status));
}

// At most `n` tokens.
Outcome take(Generator& generator, std::size_t n = 1000) {
  Outcome outcome;
  while (outcome.ids.size() < n) {
    const auto token = generator.next();
    REQUIRE(token);
    if (!*token) break;
    CHECK((*token)->finish == generator.finish());
    outcome.text += (*token)->text;
    outcome.ids.push_back((*token)->id);
    outcome.logprobs.push_back((*token)->logprob);
    outcome.finishes.push_back((*token)->finish);
  }
  return outcome;
}

// The answer to `text` in its own session.
Outcome answer(std::string_view text, const GenerateOptions& options = {},
               const SessionOptions& session_options = {}) {
  Session session = make_session(session_options);
  Generator generator = make(session, options);
  prompt(generator, text);
  return take(generator);
}

Ids encode(std::string_view text, bool add_bos = true) {
  auto ids = test::home_model().tokenizer()->encode(text, {.add_bos = add_bos, .add_eos = false});
  REQUIRE(ids);
  return *std::move(ids);
}

Ids joined(std::initializer_list<Ids> parts) {
  Ids all;
  for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

bool equal(std::span<const std::int32_t> a, const Ids& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

GenerateOptions with_everything() {
  GenerateOptions options;
  options.sampling.temperature = 0.9f;
  options.sampling.top_k = 100;
  options.sampling.top_p = 0.99f;
  options.sampling.min_p = 0.001f;
  options.sampling.repetition_penalty = 1.05f;
  options.sampling.seed = 11;
  options.stop = {"no such text", "nothing of the kind"};
  return options;
}

}  // namespace

TEST_CASE("commands become the calls they mean") {
  for (const auto& [command, call] : std::vector<std::pair<std::string, std::string>>{
           {"could you please dim the office light to 10 percent", kAnswer},
           {"wednesday at 5:00 am wake me up thanks", "alarm.set(time=05:00, day=wednesday)"},
           {"please tell me when 24 hours are over if you can", "timer.start(hours=24)"},
           {"can you tomorrow at six am wake me up please", "alarm.set(time=06:00, day=tomorrow)"},
           {"um i am out of rice and tomatoes thanks", "list.add(items=[rice, tomatoes])"},
           {"um wake me in forty eight seconds for me", "timer.start(seconds=48)"}}) {
    const Outcome outcome = answer(command + "\n");
    CHECK(outcome.text == call);
    REQUIRE(outcome.ids.size() > 1);
    CHECK(outcome.finishes.back() == Finish::end_of_text);
  }
}

TEST_CASE("generation ends with the model's end token, the token limit, or a full context") {
  const auto* const tokenizer = test::home_model().tokenizer();
  const Outcome whole = answer(kPrompt);
  const std::size_t n = whole.ids.size();
  CHECK(whole.text == kAnswer);
  CHECK(whole.finishes.back() == Finish::end_of_text);
  CHECK(tokenizer->vocabulary().ends_generation(whole.ids.back()));
  CHECK(std::count(whole.finishes.begin(), whole.finishes.end(), Finish::none) ==
        static_cast<std::ptrdiff_t>(n) - 1);
  const auto text_of = [&](std::size_t n_tokens) {
    return tokenizer->decode(std::span(whole.ids).first(n_tokens), {.at_start = false});
  };

  for (std::size_t limit = 1; limit <= n; ++limit) {
    GenerateOptions options;
    options.max_tokens = static_cast<Index>(limit);
    const Outcome limited = answer(kPrompt, options);
    CHECK(limited.finishes.back() == (limit < n ? Finish::max_tokens : Finish::end_of_text));
    CHECK(equal(std::span(whole.ids).first(limit), limited.ids));
    CHECK(limited.text == text_of(limit));
  }

  const Ids prompt_ids = encode(kPrompt);
  for (std::size_t room = 0; room <= n; ++room) {
    SessionOptions options;
    options.n_ctx = static_cast<Index>(prompt_ids.size() + room);
    Session session = make_session(options);
    Generator generator = make(session);
    prompt(generator, kPrompt);
    const Outcome full = take(generator);
    CHECK(full.ids.size() == room);  // each token is a part of the session
    CHECK(generator.finish() == (room < n ? Finish::context_full : Finish::end_of_text));
    CHECK(full.text == text_of(room));
    CHECK(equal(session.tokens(), joined({prompt_ids, full.ids})));
  }

  Session session = make_session();
  Generator generator = make(session);
  prompt(generator, kPrompt);
  CHECK(generator.finish() == Finish::none);
  CHECK(generator.n_tokens() == 0);
  take(generator);
  for (int i = 0; i < 3; ++i) {
    const auto token = generator.next();
    REQUIRE(token);
    CHECK(!*token);
  }
  CHECK(generator.n_tokens() == static_cast<Index>(n));
  CHECK(session.position() == static_cast<Index>(prompt_ids.size() + n));
}

TEST_CASE("the text ends before the first stop string, wherever the tokens end") {
  const std::string whole = kAnswer;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const unsigned length : {1u, 2u, 5u, 9u}) {
      const std::string stop = whole.substr(at, length);
      CAPTURE(stop);
      GenerateOptions options;
      options.stop = {"unheard of", stop};
      const Outcome outcome = answer(kPrompt, options);
      CHECK(outcome.text == whole.substr(0, whole.find(stop)));
      CHECK(outcome.finishes.back() == Finish::stop_string);
    }
  }
  GenerateOptions options;
  options.stop = {whole + "!", "level=10]", "nothing"};
  Outcome outcome = answer(kPrompt, options);
  CHECK(outcome.text == whole);  // what was held back comes with the end
  CHECK(outcome.finishes.back() == Finish::end_of_text);
  options.max_tokens = 5;
  outcome = answer(kPrompt, options);
  CHECK(!outcome.text.empty());
  CHECK(outcome.text == whole.substr(0, outcome.text.size()));
  options.stop = {};
  CHECK(answer(kPrompt, options).text == outcome.text);
}

TEST_CASE("a flag cancels before the next step, a callback after its token") {
  std::atomic<bool> cancel{true};
  GenerateOptions options;
  options.cancel = &cancel;
  Session session = make_session();
  Generator generator = make(session, options);
  prompt(generator, kPrompt);
  CHECK(take(generator).ids.empty());
  CHECK(generator.finish() == Finish::cancelled);
  cancel = false;
  CHECK(take(generator).ids.empty());  // it has ended

  REQUIRE(session.rewind(0));
  prompt(generator, kPrompt);
  CHECK(take(generator, 3).ids.size() == 3);
  const Index position = session.position();
  cancel = true;
  CHECK(take(generator).ids.empty());
  CHECK(generator.finish() == Finish::cancelled);
  CHECK(session.position() == position);
  CHECK(generator.n_tokens() == 3);

  for (const std::size_t stop_after :
       {std::size_t{1}, std::size_t{4}, answer(kPrompt).ids.size()}) {
    Session fresh = make_session();
    std::size_t n = 0;
    std::string text;
    const auto generated = nibble::generate(fresh, kPrompt, {}, [&](const Token& token) {
      text += token.text;
      return ++n < stop_after;
    });
    REQUIRE(generated);
    CHECK(n == stop_after);
    CHECK(generated->n_tokens == static_cast<Index>(n));
    CHECK(generated->n_prompt == static_cast<Index>(encode(kPrompt).size()));
    CHECK(generated->finish == (text == kAnswer ? Finish::end_of_text : Finish::cancelled));
  }
}

TEST_CASE("log-probabilities are those of reading the same tokens at once") {
  for (const bool sampling : {false, true}) {
    GenerateOptions options = sampling ? with_everything() : GenerateOptions{};
    options.max_tokens = 30;
    const Outcome outcome = answer(kPrompt, options);
    const Ids prompt_ids = encode(kPrompt), all = joined({prompt_ids, outcome.ids});
    SessionOptions session_options;
    session_options.max_outputs = 64;
    Session session = make_session(session_options);
    const std::size_t n = outcome.ids.size();
    const auto logits = session.append(std::span(all).first(all.size() - 1), static_cast<Index>(n));
    REQUIRE(logits);
    double total = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const auto row = static_cast<Index>(i);
      double sum = 0;
      for (Index j = 0; j < logits->extent(1); ++j) sum += std::exp(double{(*logits)(row, j)});
      const double expected = double{(*logits)(row, Index{outcome.ids[i]})} - std::log(sum);
      // The sums of a model may be computed in another order. That makes a difference of at most
      // 1e-3 here, including the cache's rounding to f16; another token would make a difference of
      // whole units.
      CHECK(std::fabs(double{outcome.logprobs[i]} - expected) < 1e-3);
      total += expected;
    }
    CHECK(total < -1e-3);
  }
}

TEST_CASE("no token costs an allocation") {
  nibble::ThreadPoolOptions pool_options;
  pool_options.n_threads = pool_options.n_cpus = 3;
  const auto pool = nibble::ThreadPool::create(pool_options);
  REQUIRE(pool);
  for (const bool sampling : {false, true}) {
    for (const bool threads : {false, true}) {
      SessionOptions session_options;
      if (threads) session_options.executor = pool->get();
      Session session = make_session(session_options);
      Generator generator = make(session, sampling ? with_everything() : GenerateOptions{});
      prompt(generator, kPrompt);
      std::size_t bytes = 0;
      const auto before = allocation_count();
      for (bool more = true; more;) {
        const auto token = generator.next();
        more = token && *token;
        if (more) bytes += (*token)->text.size();
      }
      const auto spent = allocation_count() - before;
      CHECK(spent == 0);
      CHECK(bytes > 10);
      CHECK(generator.finish() != Finish::none);
    }
  }
}

TEST_CASE("the same seed gives the same text, another seed another") {
  GenerateOptions options = with_everything();
  options.max_tokens = 40;
  const Outcome first = answer("", options);
  CHECK(answer("", options).ids == first.ids);
  options.sampling.seed = 12;
  CHECK(answer("", options).ids != first.ids);
}

TEST_CASE("a second prompt continues behind all that was said") {
  const std::string more = "and the kitchen\n";
  const Ids prompt_ids = encode(kPrompt), more_ids = encode(more, false);
  for (const std::size_t n : {std::size_t{0}, std::size_t{4}, std::size_t{1000}}) {
    Session session = make_session();
    Generator generator = make(session);
    prompt(generator, kPrompt);
    const Outcome said = take(generator, n);
    prompt(generator, more);
    const Ids expected = joined({prompt_ids, said.ids, more_ids});
    CHECK(equal(session.tokens(), expected));
    CHECK(generator.finish() == Finish::none);
    CHECK(generator.n_tokens() == 0);
    const Outcome next = take(generator, 5);

    Session fresh = make_session();
    Generator same = make(fresh);
    REQUIRE(same.prompt(expected));
    CHECK(take(same, 5).ids == next.ids);
  }
}

TEST_CASE("an empty prompt asks for more, or for a text of the model's own") {
  GenerateOptions options;
  options.max_tokens = 3;
  Session session = make_session();
  Generator generator = make(session, options);
  prompt(generator, kPrompt);
  std::string text = take(generator).text;
  while (generator.finish() == Finish::max_tokens) {
    prompt(generator, "");
    text += take(generator).text;
  }
  CHECK(text == kAnswer);
  CHECK(generator.finish() == Finish::end_of_text);

  Session empty = make_session();
  options.max_tokens = 20;
  Generator unprompted = make(empty, options);
  prompt(unprompted, "");
  CHECK(empty.position() == 1);  // the begin token
  const Outcome own = take(unprompted);
  REQUIRE(!own.text.empty());
  CHECK(own.text.front() != ' ');  // it begins the text
  CHECK(own.text == test::home_model().tokenizer()->decode(own.ids));

  Session none = make_session();
  Generator no_ids = make(none);
  const auto status = no_ids.prompt(Ids{});
  REQUIRE(!status);
  CHECK(status.error().code == Errc::invalid_argument);
}

TEST_CASE("a session that was taken back begins again") {
  Session session = make_session();
  Generator generator = make(session);
  for (int i = 0; i < 3; ++i) {
    prompt(generator, kPrompt);
    CHECK(take(generator, i == 1 ? 3 : 1000).ids.size() > 0);
    REQUIRE(session.rewind(0));
  }
  prompt(generator, kPrompt);
  CHECK(equal(session.tokens(), encode(kPrompt)));
  CHECK(take(generator).text == kAnswer);
}

TEST_CASE("the penalty sees the prompt and every token so far") {
  GenerateOptions options;
  options.sampling.repetition_penalty = 1000;
  options.sampling.repetition_window = 1000;
  options.max_tokens = 30;
  const Outcome outcome = answer(kPrompt, options);
  Ids seen = encode(kPrompt);
  int n_repeated = 0;
  for (const std::int32_t id : outcome.ids) {
    n_repeated += std::count(seen.begin(), seen.end(), id) > 0;
    seen.push_back(id);
  }
  CHECK(n_repeated == 0);
}

TEST_CASE("next() before prompt() and bad options are errors; a refused prompt changes nothing") {
  Session session = make_session();
  Generator generator = make(session);
  const auto early = generator.next();
  REQUIRE(!early);
  CHECK(early.error().code == Errc::invalid_argument);
  CHECK(early.error().message.find("prompt()") != std::string::npos);

  const auto message_of = [&](const GenerateOptions& options) {
    const auto refused = Generator::create(session, options);
    REQUIRE(!refused);
    CHECK(refused.error().code == Errc::invalid_argument);
    return refused.error().message;
  };
  for (const Index none : {Index{0}, Index{-1}}) {
    GenerateOptions options;
    options.max_tokens = none;
    CHECK(message_of(options).find("max_tokens") != std::string::npos);
  }
  GenerateOptions options;
  options.stop = {"fine", ""};
  CHECK(message_of(options).find("stop string") != std::string::npos);
  options.stop = {};
  options.sampling.top_p = 2;
  CHECK(message_of(options).find("top_p") != std::string::npos);
  CHECK(!nibble::generate(session, kPrompt, options, [](const Token&) { return true; }));

  prompt(generator, kPrompt);
  std::string text = take(generator, 4).text;
  const Ids before(session.tokens().begin(), session.tokens().end());
  const auto too_long = generator.prompt(std::string(2000, 'x'));
  REQUIRE(!too_long);
  CHECK(too_long.error().code == Errc::limit);
  CHECK(!generator.prompt(Ids{1, 512}));
  CHECK(!generator.prompt(Ids{-1}));
  CHECK(equal(session.tokens(), before));
  text += take(generator).text;
  CHECK(text == kAnswer);
}

TEST_CASE("a model whose tokenizer is not known runs on token ids") {
  const auto file = nibble::io::Gguf::open(test::home_model_path());
  REQUIRE(file);
  nibble::io::GgufWriter writer;
  writer.copy_metadata(*file);
  writer.set("tokenizer.ggml.model", "unheard-of");
  for (const auto& tensor : file->tensors()) writer.add_tensor(tensor);
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto other = nibble::io::Gguf::parse(*bytes, "other.gguf");
  REQUIRE(other);
  const auto model = nibble::Model::from_gguf(*other);
  REQUIRE(model);
  REQUIRE(model->tokenizer() == nullptr);
  auto session = Session::create(*model);
  REQUIRE(session);

  GenerateOptions options;
  const Outcome known = answer(kPrompt);
  options.max_tokens = static_cast<Index>(known.ids.size());
  Generator generator = make(*session, options);
  const auto refused = generator.prompt(kPrompt);
  REQUIRE(!refused);
  CHECK(refused.error().code == Errc::unsupported);
  REQUIRE(generator.prompt(encode(kPrompt)));
  const Outcome outcome = take(generator);
  CHECK(outcome.ids == known.ids);
  CHECK(outcome.text.empty());
  CHECK(outcome.finishes.back() == Finish::max_tokens);
}

}  // namespace generator_test
