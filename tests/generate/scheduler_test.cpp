// SPDX-License-Identifier: Apache-2.0
//
// The scheduler: a request gets what it would get alone, nobody stalls, the queue is bounded, the
// cache is never overcommitted, each request ends exactly once.
#include "nibble/generate/scheduler.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/scheduling.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/simd/dispatch.hpp"

namespace scheduler_test {

using namespace nibble;
using test::alone;
using test::Answer;
using test::home_model;
using test::Ids;
using test::make_scheduler;
using test::must;
using test::poll_all;
using test::some_tokens;

namespace {

// Greedy and sampled, short and long, with limits and stop strings.
std::vector<GenerateRequest> many_requests() {
  const char* const prompts[] = {
      "could you please dim the office light to 10 percent\n",
      "wednesday at 5:00 am wake me up thanks\n",
      "please tell me when 24 hours are over if you can\n",
      "switch on the kitchen light\n",
      "why cats purr\n",
      "x",
  };
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < 24; ++i) {
    GenerateRequest request{.prompt = prompts[i % std::size(prompts)]};
    if (i % 5 == 4) request.prompt += request.prompt + request.prompt;
    if (i % 3 != 0) {
      request.options.sampling.temperature = 0.8f + 0.1f * static_cast<float>(i % 4);
      request.options.sampling.seed = i;
      if (i % 4 == 1) request.options.sampling.top_k = 0;
      if (i % 4 == 2) request.options.sampling.repetition_penalty = 1.1f;
    }
    request.options.max_tokens = i % 7 == 6 ? 1 : static_cast<Index>(10 + i);
    if (i % 6 == 1) request.options.stop = {"=0", "hours", ")"};
    if (i % 8 == 3) request.options.stop_tokens = {390};
    requests.push_back(std::move(request));
  }
  return requests;
}

// Steps until nothing is left, and takes the tokens.
void finish_all(Scheduler& scheduler, std::vector<Completion>& completions,
                std::vector<Answer>& answers) {
  answers.resize(completions.size());
  for (bool more = true; more;) {
    more = scheduler.step();
    for (std::size_t i = 0; i < completions.size(); ++i) poll_all(completions[i], answers[i]);
  }
}

GenerateRequest of_tokens(std::size_t n, Index max_tokens, std::size_t seed = 1) {
  GenerateRequest request{.tokens = some_tokens(n, seed)};
  request.options.max_tokens = max_tokens;
  return request;
}

struct StepSize {
  int max_batch, max_step_tokens;
};

// Each request gets, bit for bit, what it gets alone, whoever shares its steps. Returns that.
std::vector<Answer> check_as_alone(const Model& model, const std::vector<GenerateRequest>& requests,
                                   std::initializer_list<StepSize> sizes) {
  auto pool = ThreadPool::create({.n_threads = 3, .n_cpus = 3});
  REQUIRE(pool);
  const SchedulerOptions base{.n_ctx = 160};
  std::vector<Answer> expected;
  for (const GenerateRequest& request : requests) {
    expected.push_back(alone(model, request, test::session_options(base)));
    CHECK(expected.back().finish != Finish::none);
  }
  std::mt19937 random(3);
  for (const auto& [max_batch, max_step_tokens] : sizes) {
    for (Executor* const executor :
         {static_cast<Executor*>(nullptr), static_cast<Executor*>(&**pool)}) {
      SchedulerOptions options = base;
      options.max_batch = max_batch;
      options.max_step_tokens = max_step_tokens;
      options.executor = executor;
      auto scheduler = make_scheduler(model, options);
      std::vector<Completion> completions;
      std::vector<Answer> answers(requests.size()), called(requests.size());
      for (std::size_t i = 0; i < requests.size(); ++i) {
        for (auto steps = random() % 4; steps > 0; --steps) scheduler.step();
        GenerateRequest request = requests[i];
        if (i % 2 == 1) {  // in place of polling
          request.on_token = [&answer = called[i]](const Token& token) {
            answer.add(token);
            return true;
          };
        }
        completions.push_back(must(scheduler.submit(std::move(request))));
      }
      finish_all(scheduler, completions, answers);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        CAPTURE(i);
        CAPTURE(max_batch);
        CHECK((i % 2 == 1 ? called : answers)[i] == expected[i]);
        CHECK(answers[i].ids.empty() == (i % 2 == 1));
        CHECK(completions[i].finish() == expected[i].finish);
        CHECK(completions[i].n_tokens() == static_cast<Index>(expected[i].ids.size()));
        CHECK(completions[i].status());
      }
      CHECK(scheduler.stats().n_ended == static_cast<std::int64_t>(requests.size()));
    }
  }
  return expected;
}

}  // namespace

TEST_CASE("a request gets, bit for bit, what it gets alone, whoever shares its steps") {
  check_as_alone(home_model(), many_requests(), {{1, 1}, {3, 5}, {8, 64}, {24, 200}});
}

TEST_CASE("tiles, which are for prompts, change no answer by what is beside it") {
  if (!simd::available_targets().contains(simd::Target::AMX)) return;  // no model of them either
  const auto file = must(io::Gguf::open(test::home_model_path()));
  const auto bytes = must(quantize_model(file, {.format = quant::Format::q4_0}));
  const auto converted = must(io::Gguf::parse(bytes, "q4_0"));
  auto requests = many_requests();
  requests.resize(6);
  const auto answers_on = [&](simd::Target target) {
    REQUIRE(simd::force_target(target));
    const Model model = must(Model::from_gguf(converted));
    return check_as_alone(model, requests, {{3, 17}, {6, 64}});
  };
  const auto with_tiles = answers_on(simd::Target::AMX);
  const auto without = answers_on(simd::baseline_target());
  int n_different = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    n_different += with_tiles[i].logprobs != without[i].logprobs;
  }
  CHECK(n_different >= 4);  // of those with prompts of more than a token
  REQUIRE(simd::choose_target());
}

TEST_CASE("prompts in chunks of any size, and a full context, are as in a session") {
  const Model model = test::small_model();
  for (const ops::KvType kv_type : ops::kKvTypes) {
    const SchedulerOptions options{
        .n_ctx = 300, .max_batch = 5, .max_step_tokens = 17, .kv_type = kv_type};
    auto scheduler = make_scheduler(model, options);
    std::vector<GenerateRequest> requests;
    for (const std::size_t n : {1u, 2u, 16u, 64u, 65u, 130u, 250u, 299u, 300u}) {
      requests.push_back(of_tokens(n, 60, n));
      requests.back().options.sampling = {.temperature = 1, .top_k = 0, .top_p = 1, .seed = n};
    }
    std::vector<Completion> completions;
    for (const auto& request : requests) completions.push_back(must(scheduler.submit(request)));
    std::vector<Answer> answers;
    finish_all(scheduler, completions, answers);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(requests[i].tokens.size());
      CHECK(answers[i] == alone(model, requests[i], test::session_options(options)));
    }
    CHECK(answers.back().ids.empty());
    CHECK(answers.back().finish == Finish::context_full);
    CHECK(answers[7].ids.size() == 1);
  }
}

TEST_CASE("who generates gets a token in each step, and short prompts do not wait for long ones") {
  const Model model = test::small_model();
  auto scheduler = make_scheduler(model, {.max_batch = 4, .max_step_tokens = 16});
  auto generating = must(scheduler.submit(of_tokens(3, 200)));
  scheduler.step();
  CHECK(generating.poll());
  auto long_prompt = must(scheduler.submit(of_tokens(1000, 5)));
  scheduler.step();
  CHECK(generating.poll());
  auto short_prompt = must(scheduler.submit(of_tokens(7, 200)));
  auto other_long = must(scheduler.submit(of_tokens(900, 5)));
  Index steps = 0, long_at = 0, other_at = 0;
  while (long_at == 0 || other_at == 0) {
    scheduler.step();
    ++steps;
    CHECK(generating.poll());
    CHECK_FALSE(generating.poll());
    if (steps >= 2) CHECK(short_prompt.poll());  // 15 rows for three prompts
    if (long_at == 0 && long_prompt.poll()) long_at = steps;
    if (other_at == 0 && other_long.poll()) other_at = steps;
    REQUIRE(steps < 200);
  }
  // 14 rows a step for both, in equal parts.
  CHECK(long_at > 130);
  CHECK(long_at < 145);
  CHECK(other_at > 120);
  CHECK(other_at < long_at);
}

TEST_CASE("the queue is bounded, and its order is priority, then time") {
  const Model model = test::small_model();
  auto scheduler = make_scheduler(model, {.max_batch = 1, .max_step_tokens = 8, .max_queue = 6});
  std::vector<int> order;
  std::vector<Completion> completions;
  for (const int priority : {0, 2, 1, 2, 0, -1}) {
    GenerateRequest request = of_tokens(3, 2);
    request.priority = priority;
    const auto number = static_cast<int>(completions.size());
    request.on_token = [&order, number](const Token& token) {
      if (token.finish != Finish::none) order.push_back(number);
      return true;
    };
    completions.push_back(must(scheduler.submit(std::move(request))));
  }
  auto refused = scheduler.submit(of_tokens(3, 2));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::limit);
  CHECK(refused.error().message.find("6 requests wait") != std::string::npos);
  CHECK(scheduler.stats().n_waiting == 6);
  CHECK(scheduler.stats().n_refused == 1);
  scheduler.step();
  CHECK(scheduler.stats().n_waiting == 5);
  CHECK(scheduler.stats().n_running == 1);
  CHECK(scheduler.submit(of_tokens(3, 2)));  // there is room again; and destroyed at once
  while (scheduler.step()) {
  }
  CHECK(order == std::vector{1, 3, 2, 0, 4, 5});
  CHECK(scheduler.stats().n_ended == 7);
  CHECK(scheduler.stats().n_waiting + scheduler.stats().n_running == 0);
}

TEST_CASE("requests wait for the pages that they may need; what can never fit is refused") {
  const Model model = test::small_model();
  // 6 pages of 64 positions.
  const SchedulerOptions options{
      .n_ctx = 512, .max_batch = 4, .max_step_tokens = 32, .cache_positions = 6 * 64};
  auto scheduler = make_scheduler(model, options);
  CHECK(scheduler.stats().n_pages == 6);
  const auto refused = scheduler.submit(of_tokens(300, 86));  // 385 positions are computed
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::limit);
  CHECK(refused.error().message.find("cache_positions") != std::string::npos);
  std::vector<GenerateRequest> requests = {of_tokens(300, 85), of_tokens(10, 55),
                                           of_tokens(60, 5),   of_tokens(100, 200),
                                           of_tokens(1, 1),    of_tokens(180, 200)};
  const Index n_pages[] = {6, 1, 1, 5, 1, 6};
  std::vector<Completion> completions;
  std::vector<Answer> answers(requests.size());
  for (const auto& request : requests) completions.push_back(must(scheduler.submit(request)));
  for (bool more = true; more;) {
    more = scheduler.step();
    Index promised = 0, begun = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const bool was_running = answers[i].finish == Finish::none;
      poll_all(completions[i], answers[i]);
      if (was_running && answers[i].finish == Finish::none && !answers[i].ids.empty()) {
        promised += n_pages[i];
      }
      if (!answers[i].ids.empty()) begun = static_cast<Index>(i);
    }
    CHECK(promised <= 6);
    for (Index i = 0; i < begun; ++i) CHECK_FALSE(answers[static_cast<std::size_t>(i)].ids.empty());
    const auto stats = scheduler.stats();
    CHECK(stats.n_free_pages >= 0);
  }
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    CHECK(answers[i] == alone(model, requests[i], test::session_options(options)));
  }
  CHECK(scheduler.stats().n_free_pages == 6);
}

TEST_CASE("cancelling, deadlines and destroyed completions end a request once, at the next step") {
  const Model model = test::small_model();
  auto scheduler = make_scheduler(model, {.max_batch = 2, .max_step_tokens = 8});
  std::atomic<bool> flag{false};
  std::vector<Completion> completions;
  std::vector<Answer> answers(7);
  std::vector<GenerateRequest> requests(7, of_tokens(4, 1000));
  requests[2].options.time_limit_ms = 1;  // waits
  requests[3].options.cancel = &flag;
  requests[5].on_token = [&answers](const Token& token) {
    answers[5].add(token);
    return answers[5].ids.size() < 3;
  };
  for (auto& request : requests) completions.push_back(must(scheduler.submit(request)));
  const auto step = [&] {
    scheduler.step();
    for (std::size_t i = 0; i < completions.size(); ++i) {
      if (i != 5) poll_all(completions[i], answers[i]);
    }
  };
  step();
  CHECK(answers[0].ids.size() == 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  completions[0].cancel();  // runs
  completions[4].cancel();  // waits
  flag = true;              // of one that waits
  step();
  flag = false;
  CHECK(answers[0].finish == Finish::cancelled);
  CHECK(answers[0].ids.size() == 1);
  CHECK(answers[2].finish == Finish::time_limit);
  CHECK(answers[3].finish == Finish::cancelled);
  CHECK(answers[4].finish == Finish::cancelled);
  CHECK(answers[1].ids.size() == 2);
  for (int i = 0; i < 4; ++i) step();
  CHECK(answers[5].finish == Finish::cancelled);  // its callback said so
  CHECK(answers[5].ids.size() == 3);
  CHECK(answers[1].ids.size() == 6);
  CHECK(answers[6].ids.size() >= 1);
  CHECK(scheduler.stats().n_running == 2);
  completions.pop_back();  // who destroys it does not want it
  step();
  CHECK(scheduler.stats().n_running == 1);
  CHECK(completions[0].wait() == std::nullopt);  // has ended: does not wait
  completions[1].cancel();
  step();
  completions[1].cancel();  // of no effect
  CHECK(answers[1].finish == Finish::cancelled);
  CHECK_FALSE(scheduler.step());
  CHECK(scheduler.stats().n_ended == 7);
  CHECK(scheduler.stats().n_free_pages == scheduler.stats().n_pages);
}

TEST_CASE("a scheduler that is destroyed ends its requests; stop() refuses more") {
  const Model model = test::small_model();
  auto scheduler = std::optional(make_scheduler(model, {.max_batch = 1}));
  auto running = must(scheduler->submit(of_tokens(4, 100)));
  int n_last = 0;
  GenerateRequest request = of_tokens(4, 100);
  request.on_token = [&](const Token& token) {
    n_last += token.finish == Finish::cancelled ? 1 : 100;
    return true;
  };
  auto waiting = must(scheduler->submit(request));
  scheduler->step();
  scheduler->stop();
  const auto refused = scheduler->submit(request);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::cancelled);
  CHECK_FALSE(scheduler->wait_for_work());
  CHECK(scheduler->step());  // those that were taken go on
  scheduler.reset();
  CHECK(n_last == 1);
  CHECK(waiting.finish() == Finish::cancelled);
  CHECK(running.poll());
  CHECK(running.poll());
  const auto last = running.wait();
  REQUIRE(last);
  CHECK(last->id == -1);
  CHECK(last->finish == Finish::cancelled);
  CHECK_FALSE(running.poll());
}

TEST_CASE("a window lets requests begin together") {
  const Model model = test::small_model();
  auto scheduler = make_scheduler(model, {.max_batch = 2, .max_wait_ms = 40});
  const auto begin = std::chrono::steady_clock::now();
  auto first = must(scheduler.submit(of_tokens(4, 2)));
  scheduler.step();
  const auto waited = std::chrono::steady_clock::now() - begin;
  CHECK(waited >= std::chrono::milliseconds(40));
  CHECK(first.poll());
  while (scheduler.step()) {
  }
  auto second = must(scheduler.submit(of_tokens(4, 2)));
  auto third = must(scheduler.submit(of_tokens(4, 2)));
  const auto n_before = scheduler.stats().n_steps;
  scheduler.step();  // a full batch does not wait
  CHECK(second.poll());
  CHECK(third.poll());
  CHECK(scheduler.stats().n_steps == n_before + 1);
}

// A token whose key no f16 cache holds must not disturb the others of its step.
TEST_CASE("who makes a step fail fails alone") {
  constexpr std::int32_t kBad = 0;  // <unk>, in no text
  const Index dim = home_model().config().dim;
  const Model model = test::changed_model({}, [&](const std::string& name, auto& weights) {
    const auto width = static_cast<std::size_t>(dim);
    if (name == "token_embd.weight") {
      for (std::size_t i = 0; i < weights.size(); i += width) weights[i] = 0;
      weights[kBad * width] = 1000;
    }
    if (name != "blk.0.attn_k.weight") return;
    for (std::size_t i = 0; i < weights.size(); i += width) weights[i] = 1e5f;
  });
  auto scheduler = make_scheduler(model, {.n_ctx = 128, .max_batch = 3});
  GenerateRequest good{.prompt = "switch on the kitchen light\n"}, bad{.tokens = {5, kBad, 7}};
  good.options.max_tokens = bad.options.max_tokens = 30;
  good.options.sampling.logit_bias = {{kBad, -std::numeric_limits<float>::infinity()}};
  std::vector<Completion> completions;
  std::vector<Answer> answers;
  completions.push_back(must(scheduler.submit(good)));
  scheduler.step();
  completions.push_back(must(scheduler.submit(bad)));
  completions.push_back(must(scheduler.submit(good)));
  finish_all(scheduler, completions, answers);
  const Answer expected = alone(model, good, {.n_ctx = 128});
  CHECK(answers[0] == expected);
  CHECK(answers[2] == expected);
  CHECK(answers[1].finish == Finish::failed);
  CHECK(answers[1].ids.empty());
  const auto status = completions[1].status();
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Errc::limit);
  CHECK(status.error().message.find("f16") != std::string::npos);
}

TEST_CASE("logits that are not numbers are an error of the request") {
  const Model model = test::changed_model({}, [](const std::string& name, auto& weights) {
    if (name != "output_norm.weight" && name != "token_embd.weight") return;
    weights.back() = std::numeric_limits<float>::quiet_NaN();
  });
  auto scheduler = make_scheduler(model, {.n_ctx = 64});
  const auto last = static_cast<std::int32_t>(model.config().vocab_size - 1);
  auto completion = must(scheduler.submit({.tokens = {last}}));
  while (scheduler.step()) {
  }
  const auto token = completion.poll();
  REQUIRE(token);
  CHECK(token->finish == Finish::failed);
  const auto status = completion.status();
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Errc::malformed);
}

TEST_CASE("options and requests that cannot be are refused") {
  const Model model = test::small_model();
  for (const SchedulerOptions& options :
       {SchedulerOptions{.max_batch = 0}, SchedulerOptions{.max_batch = 9, .max_step_tokens = 8},
        SchedulerOptions{.max_queue = 0}, SchedulerOptions{.max_wait_ms = -1},
        SchedulerOptions{.max_batch = Index{1} << 40, .max_step_tokens = Index{1} << 41}}) {
    const auto scheduler = Scheduler::create(model, options);
    REQUIRE_FALSE(scheduler);
    CHECK(scheduler.error().code == Errc::invalid_argument);
  }
  auto scheduler = make_scheduler(model, {.n_ctx = 64});
  const auto code = [&](GenerateRequest request) {
    const auto completion = scheduler.submit(std::move(request));
    REQUIRE_FALSE(completion);
    CAPTURE(completion.error().message);
    return completion.error().code;
  };
  CHECK(code({.prompt = "text", .tokens = {1}}) == Errc::invalid_argument);
  CHECK(code({.tokens = {1, 50}}) == Errc::invalid_argument);
  CHECK(code({.tokens = {-1}}) == Errc::invalid_argument);
  CHECK(code({.tokens = {1}, .options = {.max_tokens = 0}}) == Errc::invalid_argument);
  CHECK(code({.tokens = {1}, .options = {.stop_tokens = {50}}}) == Errc::invalid_argument);
  CHECK(code({.tokens = some_tokens(65, 1)}) == Errc::limit);
  CHECK_FALSE(scheduler.submit({.prompt = "this model has no tokenizer"}));
  auto of_home = make_scheduler(home_model(), {.n_ctx = 64});
  GenerateRequest empty;
  empty.options.add_bos = false;
  CHECK_FALSE(of_home.submit(empty));
  CHECK(scheduler.stats().n_waiting == 0);
  auto unlimited = of_tokens(3, std::numeric_limits<Index>::max());
  std::vector<Completion> completions;
  completions.push_back(must(scheduler.submit(unlimited)));
  std::vector<Answer> answers;
  finish_all(scheduler, completions, answers);
  CHECK(answers[0].finish == Finish::context_full);
  CHECK(answers[0].ids.size() == 61);
}

TEST_CASE("progress follows a prompt and can cancel it") {
  const Model model = test::small_model();
  auto scheduler = make_scheduler(model, {.max_batch = 2, .max_step_tokens = 10});
  std::vector<std::size_t> seen;
  const Progress progress = [&](std::size_t done, std::size_t total) {
    CHECK(total == 35);
    seen.push_back(done);
    return done < 20;
  };
  GenerateRequest request = of_tokens(35, 5);
  request.options.progress = &progress;
  auto completion = must(scheduler.submit(request));
  while (scheduler.step()) {
  }
  CHECK(seen == std::vector<std::size_t>{0, 10, 20});
  CHECK(completion.finish() == Finish::cancelled);
  CHECK(completion.n_tokens() == 0);
  CHECK(completion.n_prompt() == 35);
}

TEST_CASE("no step allocates, and the memory of a request goes with it") {
  auto pool = ThreadPool::create({.n_threads = 3, .n_cpus = 3});
  REQUIRE(pool);
  auto scheduler = make_scheduler(
      home_model(), {.n_ctx = 128, .max_batch = 3, .max_step_tokens = 20, .executor = pool->get()});
  const auto requests = many_requests();
  long long bytes_after = 0;
  for (int round = 0; round < 3; ++round) {
    {
      std::vector<Completion> completions;
      std::vector<Answer> answers(requests.size());
      for (const auto& request : requests) completions.push_back(must(scheduler.submit(request)));
      completions[20].cancel();
      const auto before = allocation_count();
      std::size_t n_tokens = 0;
      for (bool more = true; more;) {
        more = scheduler.step();
        for (Completion& completion : completions) {
          while (completion.poll()) ++n_tokens;
        }
      }
      CHECK(allocation_count() == before);
      CHECK(n_tokens > 100);
    }
    if (round == 0) bytes_after = allocated_bytes();
    CHECK(allocated_bytes() == bytes_after);
  }
}

TEST_CASE("a request that finds no memory is refused, and disturbs nobody") {
  auto scheduler = make_scheduler(home_model(), {.n_ctx = 128, .max_batch = 2});
  const GenerateRequest good{.prompt = "switch on the kitchen light\n"};
  const Answer expected = alone(home_model(), good, {.n_ctx = 128});
  const auto requests = many_requests();
  int n_refused = 0;
  for (long long n = 1; n < 200; ++n) {
    auto running = must(scheduler.submit(good));
    scheduler.step();
    bool happened = false;
    GenerateRequest request = requests[1];
    {
      const FailingAllocations failing(n, false);
      const auto other = scheduler.submit(std::move(request));
      happened = failing.happened();
      if (!other) {
        ++n_refused;
        CHECK(other.error().code == Errc::out_of_memory);
      }
    }
    Answer answer;
    while (scheduler.step()) poll_all(running, answer);
    poll_all(running, answer);
    CHECK(answer == expected);
    if (!happened) break;
  }
  CHECK((n_refused > 10 || !NIBBLE_TEST_COUNTS_ALLOCATIONS));
}

TEST_CASE("fewer layers and another window hold from the next step on") {
  const Model model = test::small_model(4);
  const SchedulerOptions options{.n_ctx = 128, .prefix_cache_bytes = std::size_t{1} << 20};
  auto scheduler = make_scheduler(model, options);
  const GenerateRequest request = of_tokens(20, 20);
  const auto ask = [&] {
    std::vector<Completion> completions;
    std::vector<Answer> answers;
    completions.push_back(must(scheduler.submit(request)));
    finish_all(scheduler, completions, answers);
    return answers[0];
  };
  Session shallow = test::make_session({.n_ctx = 128}, model);
  const std::array<Index, 1> left_out{1};
  REQUIRE(shallow.engine().set_depth({3, left_out}));
  auto generator = test::make_generator(shallow, request.options);
  REQUIRE(generator.prompt(request.tokens));
  const Ids of_two_layers = test::take(generator).ids;
  const Answer whole = alone(model, request, {.n_ctx = 128});
  REQUIRE(of_two_layers != whole.ids);

  REQUIRE(scheduler.set_depth({3, left_out}));
  CHECK(ask().ids == of_two_layers);
  REQUIRE(scheduler.set_depth({}));
  CHECK(ask() == whole);  // nothing of the prompt was kept that fewer layers had computed

  const auto refused = scheduler.set_depth({5});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::invalid_argument);
  CHECK(ask() == whole);

  CHECK_FALSE(scheduler.set_max_wait_ms(-1));
  REQUIRE(scheduler.set_max_wait_ms(30));
  const auto start = std::chrono::steady_clock::now();
  CHECK(ask() == whole);
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(30));
}

}  // namespace scheduler_test
