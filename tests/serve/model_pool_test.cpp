// SPDX-License-Identifier: Apache-2.0
//
// The pool of models: variants change while many clients ask; what fails changes nothing.
#include "nibble/serve/model_pool.hpp"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/adapting.hpp"
#include "serve/serving.hpp"
#include "serve/values.hpp"

namespace model_pool_test {

using namespace nibble;
using serve::ModelPool;
using serve::SwitchStage;
using serve::Variant;
using test::Answer;
using test::home_files;
using test::home_variant;
using test::make_pool;
using test::must;
using test::serve_now;

namespace {

const std::vector<std::string>& prompts() {
  static const std::vector<std::string> all = {
      "wednesday at 5:00 am wake me up thanks\n",
      "could you please dim the office light to 10 percent\n",
      "please tell me when 24 hours are over if you can\n",
      "turn off the lights in the kitchen\n",
      "play some jazz in the living room\n",
      "hello\n"};
  return all;
}

GenerateRequest ask(std::size_t prompt, Index max_tokens = 24) {
  return {.prompt = prompts()[prompt], .options = {.max_tokens = max_tokens}};
}

// What each variant answers alone: [variant][prompt].
using Expected = std::map<std::string, std::vector<Answer>>;
const Expected& expected() {
  static const Expected all = [] {
    Expected made;
    for (const auto& [name, bytes] :
         {std::pair{"f16", &home_files().f16}, std::pair{"int8", &home_files().int8},
          std::pair{"int4", &home_files().int4}}) {
      const Model model = must(test::load_bytes(*bytes));
      for (std::size_t i = 0; i < prompts().size(); ++i) {
        made[name].push_back(
            test::alone(model, ask(i), test::session_options(test::pool_scheduler())));
      }
    }
    return made;
  }();
  return all;
}

Variant variant_of(const std::string& name) {
  return home_variant(name, name == "f16"    ? home_files().f16
                            : name == "int8" ? home_files().int8
                                             : home_files().int4);
}

// A door that threads wait for.
class Gate {
 public:
  void open() { is_open_ = true; }
  void wait() const {
    while (!is_open_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

 private:
  std::atomic<bool> is_open_{false};
};

// As that of most tests: a switch fails with this code and message.
void check_fails(const serve::Switch& change, Errc code, const std::string& part) {
  const auto result = change.wait();
  REQUIRE(!result);
  CHECK(change.stage() == SwitchStage::failed);
  CHECK(result.error().code == code);
  CHECK_MESSAGE(result.error().message.find(part) != std::string::npos, result.error().message);
}

}  // namespace

TEST_CASE("variants change every 50 ms while clients ask: each answer is its variant's own") {
  constexpr std::size_t kClients = 8;
  constexpr int kSwitches = 16;
  REQUIRE(expected().at("f16") != expected().at("int4"));  // or it would show nothing
  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(registry));
  const auto bytes_before = allocated_bytes();
  std::atomic<int> n_taken{0}, n_ended{0}, n_wrong{0}, n_seen_ends{0};
  std::atomic<std::uint64_t> n_tokens{0};
  std::map<std::string, std::atomic<int>> by_variant;
  for (const auto& [name, answers] : expected()) by_variant[name] = 0;
  {
    auto pool = make_pool({.metrics = &metrics});
    serve_now(pool, variant_of("f16"));
    std::atomic<bool> is_over{false};
    std::vector<std::thread> clients;
    for (std::size_t client = 0; client < kClients; ++client) {
      clients.emplace_back([&, client] {
        std::mt19937 random(static_cast<std::uint32_t>(client));
        while (!is_over) {
          auto lease = pool.lease();
          if (!lease) {
            ++n_wrong;
            continue;
          }
          const std::string variant = lease->variant();
          const std::size_t prompt = random() % prompts().size();
          auto request = ask(prompt);
          request.observer = [&](const Token& token) {
            if (token.finish != Finish::none) ++n_seen_ends;
          };
          auto completion = lease->submit(std::move(request));
          { const auto given_back = *std::move(lease); }
          if (!completion) {
            ++n_wrong;
            continue;
          }
          ++n_taken;
          ++by_variant[variant];
          if (random() % 16 == 0) {  // goes away
            ++n_ended;
            continue;
          }
          Answer answer;
          int n_last = 0;
          while (const auto token = completion->wait()) {
            if (token->finish != Finish::none) ++n_last;
            answer.add(*token);
          }
          if (n_last != 1 || !(answer == expected().at(variant)[prompt])) ++n_wrong;
          n_tokens += answer.ids.size();
          ++n_ended;
        }
      });
    }
    const char* const names[] = {"int8", "int4", "f16"};
    long long most_bytes = 0;
    Index most_loaded = 0;
    for (int i = 0; i < kSwitches; ++i) {
      serve_now(pool, variant_of(names[i % 3]));
      do {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      } while (by_variant[names[i % 3]] == 0);
      most_bytes = (std::max)(most_bytes, allocated_bytes() - bytes_before);
      pool.collect();
      most_loaded = (std::max)(most_loaded, must(pool.status()).n_loaded);
    }
    is_over = true;
    for (std::thread& thread : clients) thread.join();
    pool.stop();
    CHECK(pool.drain(10'000));
    CHECK(most_loaded <= 2);
    CHECK(must(pool.status()).number == kSwitches + 1);
    MESSAGE(n_taken.load(), " requests, ", n_tokens.load(), " tokens, at most ", most_bytes,
            " bytes");
  }
  CHECK(n_wrong == 0);
  CHECK(n_ended == n_taken);
  CHECK(n_seen_ends == n_taken);  // none lost, none ended twice
  for (const auto& [name, n] : by_variant) CHECK_MESSAGE(n > 0, name);
  CHECK(allocated_bytes() - bytes_before < 4096);
  const auto n_finished = metrics.finished_stop->count() + metrics.finished_length->count() +
                          metrics.finished_abort->count();
  CHECK(n_finished == static_cast<std::uint64_t>(n_taken));
  CHECK(metrics.e2e_request_latency->count() == n_finished);
  CHECK(metrics.finished_error->count() == 0);
  CHECK(metrics.generation_tokens->count() >= n_tokens);
  CHECK(metrics.switches->count() == kSwitches + 1);
  CHECK(metrics.models_loaded->value() <= 2);
}

TEST_CASE("a switch that fails leaves what serves, and says why") {
  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(registry));
  auto pool = make_pool({.metrics = &metrics});
  check_fails(must(pool.switch_to({.name = "x", .load = [] { return load("no/such.gguf"); }})),
              Errc::io, "variant 'x': no/such.gguf");
  CHECK(!pool.is_ready());
  const auto none = pool.submit(ask(0));
  REQUIRE(!none);
  CHECK(none.error().code == Errc::not_found);

  serve_now(pool, variant_of("int8"));
  CHECK(pool.is_ready());
  auto bytes = home_files().int4;
  bytes.resize(bytes.size() / 2);
  check_fails(must(pool.switch_to(home_variant("half", bytes))), Errc::malformed,
              "variant 'half': home: ");

  auto refused = variant_of("f16");
  refused.verify_model = [](const Model&) -> Result<void> {
    return Error{Errc::limit, "it is too large"};
  };
  check_fails(must(pool.switch_to(refused)), Errc::limit, "variant 'f16': it is too large");

  auto wrong = variant_of("f16");
  wrong.known_answers = {{ask(1), expected().at("f16")[1].text}, {ask(0), "no answer"}};
  check_fails(must(pool.switch_to(wrong)), Errc::malformed,
              "it answered '" + expected().at("f16")[0].text + "' to 'wednesday");

  auto too_much = variant_of("f16");
  too_much.scheduler.max_step_tokens = 1;
  check_fails(must(pool.switch_to(too_much)), Errc::invalid_argument, "max_step_tokens 1");

  auto adapter = variant_of("f16");
  adapter.adapters = {{.name = "a", .load = [](const Model&) -> Result<AdapterSet> {
                         return Error{Errc::not_found, "no adapter here"};
                       }}};
  check_fails(must(pool.switch_to(adapter)), Errc::not_found,
              "variant 'f16': adapter 'a': no adapter here");

  const auto status = must(pool.status());
  CHECK(status.variant == "int8");
  CHECK(status.number == 1);
  CHECK(status.n_loaded == 1);
  CHECK(status.last_error == "variant 'f16': adapter 'a': no adapter here");
  CHECK(metrics.failed_switches->count() == 6);
  auto completion = must(pool.submit(ask(2)));
  CHECK(test::read_all(completion) == expected().at("int8")[2]);

  wrong.known_answers.pop_back();  // the right one is left
  serve_now(pool, wrong);
  CHECK(must(pool.lease()).variant() == "f16");
}

TEST_CASE("what is no variant is refused") {
  auto pool = make_pool();
  const auto is_refused = [&](Variant variant, const char* part) {
    const auto change = pool.switch_to(std::move(variant));
    REQUIRE(!change);
    CHECK(change.error().code == Errc::invalid_argument);
    CHECK_MESSAGE(test::why(change).find(part) != std::string::npos, test::why(change));
  };
  const auto no_adapter = [](const Model&) -> Result<AdapterSet> { return AdapterSet(); };
  is_refused({.load = [] { return load(""); }}, "it has no name");
  is_refused({.name = "a\n"}, "variant 'a?': it has no function that loads it");
  auto variant = variant_of("f16");
  variant.adapters = {{.name = "a"}};
  is_refused(variant, "an adapter without");
  variant.adapters = {{.name = "a", .load = no_adapter}, {.name = "a", .load = no_adapter}};
  is_refused(variant, "two adapters have the name 'a'");
}

TEST_CASE("of the switches that wait the last wins") {
  Gate gate;
  auto pool = make_pool();
  auto first = variant_of("f16");
  first.load = [&] {
    gate.wait();
    return test::load_bytes(home_files().f16);
  };
  const auto a = must(pool.switch_to(first));
  while (a.stage() == SwitchStage::waiting) std::this_thread::yield();
  CHECK(a.stage() == SwitchStage::loading);
  CHECK(!pool.is_ready());
  const auto b = must(pool.switch_to(variant_of("int8")));
  const auto c = must(pool.switch_to(variant_of("int4")));
  check_fails(b, Errc::cancelled, "variant 'int8': a later switch took its place");
  CHECK(must(pool.status()).is_switching);
  gate.open();
  CHECK(a.wait());
  CHECK(c.wait());
  CHECK(must(pool.lease()).variant() == "int4");
  CHECK(must(pool.lease()).number() == 2);
}

TEST_CASE("a pool that ends cancels what waits and what runs") {
  std::vector<serve::Switch> changes;
  std::vector<Completion> completions;
  Gate gate;
  {
    auto pool = make_pool();
    serve_now(pool, variant_of("f16"));
    auto request = ask(0, 100);
    request.options.sampling.temperature = 5;
    for (int i = 0; i < 20; ++i) completions.push_back(must(pool.submit(request)));
    auto slow = variant_of("int8");
    slow.load = [&] {
      gate.wait();
      return test::load_bytes(home_files().int8);
    };
    changes.push_back(must(pool.switch_to(slow)));
    while (changes[0].stage() == SwitchStage::waiting) std::this_thread::yield();
    changes.push_back(must(pool.switch_to(variant_of("int4"))));
    gate.open();
  }
  CHECK(changes[0].stage() >= SwitchStage::done);
  check_fails(changes[1], Errc::cancelled, "pool has ended");
  for (Completion& completion : completions) {
    CHECK(test::read_all(completion).finish != Finish::none);
  }
}

TEST_CASE("a lease keeps its variant; after stop() only what was taken ends") {
  auto pool = make_pool();
  serve_now(pool, variant_of("f16"));
  auto lease = must(pool.lease());
  serve_now(pool, variant_of("int4"));
  CHECK(must(pool.status()).n_loaded == 2);
  CHECK(lease.variant() == "f16");
  CHECK(lease.number() == 1);
  CHECK(lease.n_ctx() == 128);
  CHECK(lease.model().tokenizer() != nullptr);
  auto old = must(lease.submit(ask(3)));
  auto fresh = must(pool.submit(ask(3)));
  CHECK(test::read_all(old) == expected().at("f16")[3]);
  CHECK(test::read_all(fresh) == expected().at("int4")[3]);
  CHECK(must(pool.status()).n_loaded == 2);
  lease = must(pool.lease());  // the old one is given back
  while (must(pool.status()).n_loaded == 2) std::this_thread::yield();

  pool.stop();
  CHECK(!pool.is_ready());
  CHECK(!pool.drain(20));  // the lease
  auto last = must(lease.submit(ask(4)));
  { const auto given_back = std::move(lease); }
  CHECK(pool.drain(10'000));
  CHECK(last.finish() != Finish::none);
  CHECK(test::read_all(last) == expected().at("int4")[4]);
  const auto refused = pool.submit(ask(0));
  REQUIRE(!refused);
  CHECK(refused.error().code == Errc::cancelled);
  CHECK(!pool.switch_to(variant_of("f16")));
}

TEST_CASE("adapters are called by their names, and differ by variant") {
  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(registry));
  auto pool = make_pool({.metrics = &metrics});
  auto variant = variant_of("int8");
  const auto random = [](std::uint32_t seed) {
    return [seed](const Model& model) {
      return AdapterSet::create(model, test::random_adapter(model, 4, seed));
    };
  };
  variant.adapters = {{.name = "a", .load = random(1), .strength = 0.5f},
                      {.name = "b", .load = random(2), .strength = 0.5f}};
  serve_now(pool, variant);
  auto lease = must(pool.lease());
  REQUIRE(lease.n_adapters() == 2);
  CHECK(lease.adapter_name(1) == "b");
  auto options = test::session_options(test::pool_scheduler());
  options.max_factor_rank = 4;
  std::vector<Answer> answers;
  Index n_prompt = 0;
  for (const std::uint32_t seed : {0u, 1u, 2u}) {
    const char* const name = seed == 0 ? "" : seed == 1 ? "a" : "b";
    auto completion = must(lease.submit(ask(1), name));
    n_prompt = completion.n_prompt();
    answers.push_back(test::read_all(completion));
    auto session = test::make_session(options, lease.model());
    if (seed > 0) {
      REQUIRE(session.set_adapter({must(random(seed)(lease.model())), 0.5f}));
    }
    auto generator = test::make_generator(session, ask(1).options);
    REQUIRE(generator.prompt(ask(1).prompt));
    CHECK(answers.back().ids == test::take(generator).ids);
  }
  CHECK(answers[0] != answers[1]);
  CHECK(answers[1] != answers[2]);
  const auto refused = lease.submit(ask(1), "c\n");
  REQUIRE(!refused);
  CHECK(refused.error().code == Errc::not_found);
  CHECK(test::why(refused) == "variant 'int8': it has no adapter 'c?'");
  // Each is counted: two requests of the second.
  auto more = must(pool.submit(ask(2), "b"));
  test::read_all(more);
  const auto text = must(registry.text());
  const auto says = [&](const std::string& line) { return text.find(line) != text.npos; };
  CHECK(says("nibble_adapter_requests_total{adapter=\"a\"} 1\n"));
  CHECK(says("nibble_adapter_requests_total{adapter=\"b\"} 2\n"));
  const auto of_b = must(metrics.of_adapter("b"));
  CHECK(of_b.prompt_tokens->count() == static_cast<std::uint64_t>(more.n_prompt() + n_prompt));
  CHECK(of_b.generation_tokens->count() > answers[2].ids.size());
  CHECK(must(metrics.of_adapter("a")).generation_tokens->count() == answers[1].ids.size());
}

TEST_CASE("effort: fewer layers and longer waits, also for variants to come") {
  auto pool = make_pool();
  for (const double depth : {0.0, -1.0, 1.5, std::nan("")}) {
    CHECK(test::code_of(pool.set_effort({.depth = depth})) == Errc::invalid_argument);
  }
  CHECK(pool.set_effort({}).has_value());  // there is no variant yet
  serve_now(pool, variant_of("f16"));
  CHECK(test::code_of(pool.set_effort({.max_wait_ms = -1})) == Errc::invalid_argument);
  CHECK(test::code_of(pool.set_effort({.max_wait_ms = Index{1} << 40})) == Errc::invalid_argument);
  const auto answer = [&] {
    auto completion = must(pool.submit(ask(1)));
    return test::read_all(completion);
  };
  CHECK(answer() == expected().at("f16")[1]);
  // A third of three layers: what a session with one layer says.
  const auto shallow = [&](const std::string& name) {
    const Model model =
        must(test::load_bytes(name == "f16" ? home_files().f16 : home_files().int8));
    REQUIRE(model.config().n_layers == 3);
    auto session = test::make_session(test::session_options(test::pool_scheduler()), model);
    REQUIRE(session.engine().set_depth({.n_layers = 1}));
    auto generator = test::make_generator(session, ask(1).options);
    REQUIRE(generator.prompt(ask(1).prompt));
    return test::take(generator).ids;
  };
  REQUIRE(pool.set_effort({.depth = 1.0 / 3, .max_wait_ms = 30}));
  const std::int64_t start = monotonic_nanoseconds();
  CHECK(answer().ids == shallow("f16"));
  CHECK(monotonic_nanoseconds() - start >= 30'000'000);
  serve_now(pool, variant_of("int8"));
  CHECK(answer().ids == shallow("int8"));
  REQUIRE(pool.set_effort({.depth = 0.9}));  // all three
  CHECK(answer() == expected().at("int8")[1]);
}

#if NIBBLE_TEST_COUNTS_ALLOCATIONS
TEST_CASE("without memory requests and switches fail, and nobody waits for them") {
  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(registry));
  auto pool = make_pool({.metrics = &metrics});
  serve_now(pool, variant_of("f16"));
  for (const bool all : {false, true}) {
    int n_failed = 0;
    bool happened = true;
    for (long long n = 1; happened; ++n) {
      auto request = ask(0, 1);
      std::optional<Errc> error;
      {
        const FailingAllocations failing(n, all);
        const auto completion = pool.submit(std::move(request));
        happened = failing.happened();
        if (!completion) error = completion.error().code;
      }
      if (!error) continue;
      CHECK(*error == Errc::out_of_memory);
      ++n_failed;
    }
    CHECK(n_failed > 10);
  }
  for (const bool all : {false, true}) {
    int n_failed = 0;
    bool happened = true;
    for (long long n = 1; happened; n += 1 + n / 8) {  // loading takes many
      auto variant = variant_of("int4");
      std::optional<Errc> error;
      {
        const FailingAllocations failing(n, all);
        const auto change = pool.switch_to(std::move(variant));
        const auto done = change ? change->wait() : Result<void>(Error{change.error().code, ""});
        happened = failing.happened();
        if (!done) error = done.error().code;
      }
      if (!error) continue;
      CHECK(*error == Errc::out_of_memory);
      ++n_failed;
    }
    CHECK(n_failed > 10);
  }
  auto completion = must(pool.submit(ask(2)));
  CHECK(test::read_all(completion) == expected().at("int4")[2]);
  pool.stop();
  CHECK(pool.drain(10'000));
}
#endif

}  // namespace model_pool_test
