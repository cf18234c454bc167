// SPDX-License-Identifier: Apache-2.0
//
// The prefix cache of a scheduler: what several prompts begin with is computed once, each request
// gets what it would get alone, the cache takes only pages that no request needs.
#include <algorithm>
#include <filesystem>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/adapting.hpp"
#include "generate/scheduling.hpp"
#include "nibble/generate/scheduler.hpp"

namespace scheduler_prefix_test {

using namespace nibble;
using test::alone;
using test::Answer;
using test::Ids;
using test::make_scheduler;
using test::must;
using test::poll_all;
using test::session_options;
using test::some_tokens;

namespace {

constexpr std::size_t kMuch = std::size_t{1} << 30;

// Layers that all have a window.
Model windowed_model() {
  test::ModelShape shape;
  shape.vocab_size = 50;
  shape.dim = 64;
  shape.n_layers = 2;
  shape.head_dim = shape.rope_dim = 16;
  shape.ffn_dim = 96;
  shape.n_ctx = 4096;
  shape.window = 70;
  return test::model_of(shape);
}

GenerateRequest request_of(Ids tokens, Index max_tokens) {
  GenerateRequest request{.tokens = std::move(tokens)};
  request.options.max_tokens = max_tokens;
  return request;
}

// The first n tokens of `shared`, then others that follow from `seed`, the first unlike those of
// other seeds below 40.
Ids after(const Ids& shared, std::size_t n, std::size_t n_more, std::size_t seed) {
  Ids ids(shared.begin(), shared.begin() + static_cast<std::ptrdiff_t>(n));
  for (std::size_t i = 0; i < n_more; ++i) {
    ids.push_back(static_cast<std::int32_t>((seed + i * (i + seed)) % 50));
  }
  return ids;
}

struct Run {
  std::vector<Completion> completions;
  std::vector<Answer> answers;

  void submit(Scheduler& scheduler, const GenerateRequest& request) {
    completions.push_back(must(scheduler.submit(request)));
    answers.emplace_back();
  }
  bool step(Scheduler& scheduler) {
    const bool more = scheduler.step();
    for (std::size_t i = 0; i < completions.size(); ++i) poll_all(completions[i], answers[i]);
    return more;
  }
  void finish(Scheduler& scheduler) {
    while (step(scheduler)) {
    }
  }
};

// Answers requests with a scheduler until the end.
std::vector<Answer> answers_of(Scheduler& scheduler, const std::vector<GenerateRequest>& requests) {
  Run run;
  for (const GenerateRequest& request : requests) run.submit(scheduler, request);
  run.finish(scheduler);
  return run.answers;
}

void check_all_free(const Scheduler& scheduler) {
  CHECK(scheduler.stats().n_free_pages == scheduler.stats().n_pages);
}

}  // namespace

TEST_CASE("a shared prompt of 1 000 tokens before 16 questions is computed once") {
  const Ids shared = some_tokens(1000, 3);
  std::vector<GenerateRequest> requests;
  std::int64_t n_questions = 0;
  for (std::size_t i = 0; i < 16; ++i) {
    requests.push_back(request_of(after(shared, 1000, 5 + i, i), 6));
    n_questions += static_cast<std::int64_t>(5 + i);
  }
  for (const bool has_state : {false, true}) {
    CAPTURE(has_state);
    const Model model = has_state ? test::conv_model() : test::small_model();
    const SchedulerOptions plain{.n_ctx = 1200, .max_batch = 16};
    auto without = make_scheduler(model, plain);  // computes it each time
    const auto expected = answers_of(without, requests);
    CHECK(without.stats().n_prompt_tokens == 16 * 1000 + n_questions);
    CHECK(without.stats().n_cache_hits == 0);
    for (const Index max_batch : {16, 5, 1}) {
      CAPTURE(max_batch);
      SchedulerOptions options = plain;
      options.max_batch = max_batch;
      options.cache_positions = 2 * 1200;
      options.prefix_cache_bytes = kMuch;
      auto scheduler = make_scheduler(model, options);
      CHECK(answers_of(scheduler, requests) == expected);
      // One after the other, only the second shows where the first has something in common with
      // others; there its state is kept.
      const std::int64_t n_times = has_state && max_batch == 1 ? 2 : 1;
      const auto stats = scheduler.stats();
      CHECK(stats.n_prompt_tokens == n_times * 1000 + n_questions);
      CHECK(stats.n_cached_tokens == (16 - n_times) * 1000);
      CHECK(stats.n_cache_hits == 16 - n_times);
      check_all_free(scheduler);
    }
  }
}

TEST_CASE("with a prefix cache each request still gets, bit for bit, what it gets alone") {
  const std::pair<const char*, Model> models[] = {
      {"llama", test::small_model()},
      {"llama with a window", windowed_model()},
      {"gemma 3 (windows in some layers)", test::gemma_model(70)},
      {"a model with recurrent state", test::conv_model()}};
  std::mt19937 random(11);
  const auto pick = [&](std::size_t n) { return random() % n; };
  for (const auto& [name, model] : models) {
    CAPTURE(name);
    const AdapterSet learned[] = {
        must(AdapterSet::create(model, test::learned_rows(model, 5, 1))),
        must(AdapterSet::create(model, test::learned_rows(model, 20, 2)))};
    // Beginnings of few texts, of all lengths, also ones that others go on with.
    std::vector<GenerateRequest> requests;
    for (std::size_t i = 0; i < 40; ++i) {
      const Ids text = some_tokens(330, 1 + pick(2));
      Ids ids = after(text, pick(4) == 0 ? 130 : pick(330), pick(3) == 0 ? 0 : pick(30), pick(4));
      if (i > 4 && pick(4) == 0) ids = requests[pick(i)].tokens;  // once more
      if (ids.empty()) ids = {1};
      requests.push_back(request_of(std::move(ids), static_cast<Index>(1 + pick(12))));
      if (pick(3) == 0) requests.back().options.sampling = {.temperature = 1, .seed = i};
      requests.back().priority = static_cast<int>(pick(2));
      if (pick(3) == 0) requests.back().adapter = {learned[pick(2)]};
    }
    std::vector<Answer> expected;
    for (const auto& request : requests) {
      expected.push_back(alone(model, request, {.n_ctx = 400}));
    }
    // Pages for three of the longest; for one; and for any.
    for (const auto& [max_batch, positions, max_bytes] :
         {std::tuple<Index, Index, std::size_t>{6, 3 * 400, kMuch},
          {4, 400, kMuch},
          {7, 0, kMuch},
          {6, 0, std::size_t{60} << 10}}) {
      CAPTURE(max_batch);
      CAPTURE(positions);
      SchedulerOptions options{.n_ctx = 400, .max_batch = max_batch, .max_step_tokens = 40};
      options.cache_positions = positions;
      options.prefix_cache_bytes = max_bytes;
      auto scheduler = make_scheduler(model, options);
      Run run;
      for (const auto& request : requests) {
        for (auto steps = pick(5); steps > 0; --steps) run.step(scheduler);
        run.submit(scheduler, request);
        if (pick(9) == 0) run.completions[pick(run.completions.size())].cancel();
      }
      run.finish(scheduler);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        CAPTURE(i);
        const Answer& answer = run.answers[i];
        CHECK_MESSAGE(answer.finish != Finish::failed, test::why(run.completions[i].status()));
        if (answer.finish == Finish::cancelled) continue;
        CHECK(answer == expected[i]);
      }
      CHECK(scheduler.stats().n_cache_hits > (max_bytes == kMuch ? 1 : 0));
      check_all_free(scheduler);
    }
  }
}

TEST_CASE("what is computed just now is awaited; if that one is cancelled, the next goes on") {
  const Model model = test::small_model();
  const SchedulerOptions options{
      .n_ctx = 700, .max_batch = 4, .max_step_tokens = 50, .prefix_cache_bytes = kMuch};
  auto scheduler = make_scheduler(model, options);
  const Ids text = some_tokens(600, 2);
  const std::vector<GenerateRequest> requests = {
      request_of(after(text, 500, 9, 1), 3), request_of(after(text, 500, 9, 2), 3),
      request_of(after(text, 600, 0, 0), 3), request_of(some_tokens(150, 7), 3)};
  Run run;
  run.submit(scheduler, requests[0]);
  for (int i = 0; i < 4; ++i) run.step(scheduler);  // 200 tokens
  for (std::size_t i = 1; i < 4; ++i) run.submit(scheduler, requests[i]);
  for (int i = 0; i < 4; ++i) run.step(scheduler);
  // The last has nothing in common with the others: the two share the steps.
  CHECK(scheduler.stats().n_prompt_tokens == 8 * 50);
  run.completions[0].cancel();
  run.finish(scheduler);
  CHECK(run.answers[0].finish == Finish::cancelled);
  for (std::size_t i = 1; i < 4; ++i) {
    CAPTURE(i);
    CHECK(run.answers[i] == alone(model, requests[i], session_options(options)));
  }
  // 300 of the first, what the second adds to it, what the third adds to that.
  CHECK(scheduler.stats().n_prompt_tokens == 300 + 209 + 100 + 150);
  // Short prompts that are the same, all at once: only the last token is computed again.
  const auto before = scheduler.stats().n_prompt_tokens;
  answers_of(scheduler, std::vector(4, request_of(some_tokens(30, 9), 2)));
  CHECK(scheduler.stats().n_prompt_tokens == before + 30 + 3);
}

TEST_CASE("a prefix that is there takes no pages: more requests run together") {
  const Model model = test::small_model();
  // 24 pages: a request needs 11 (640 + 50 positions), or one if it has 640 in common with others.
  SchedulerOptions options{
      .n_ctx = 800, .max_batch = 12, .max_step_tokens = 64, .cache_positions = 24 * 64};
  const Ids text = some_tokens(640, 2);
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < 12; ++i) requests.push_back(request_of(after(text, 640, 8, i), 30));
  for (const bool shares : {false, true}) {
    options.prefix_cache_bytes = shares ? kMuch : 0;
    auto scheduler = make_scheduler(model, options);
    Run run;
    for (const auto& request : requests) run.submit(scheduler, request);
    Index most = 0;
    while (run.step(scheduler)) most = (std::max)(most, scheduler.stats().n_running);
    CHECK(most == (shares ? 12 : 2));
  }
  // What others need makes the cache give up what it has, the end of a prefix first that is in use
  // in part.
  options.prefix_cache_bytes = kMuch;
  auto scheduler = make_scheduler(model, options);
  answers_of(scheduler, {requests[0]});
  Run run;
  run.submit(scheduler, request_of(after(text, 200, 8, 3), 50));  // needs 5, of which 3 are there
  run.step(scheduler);
  CHECK(scheduler.stats().n_cached_tokens == 200);
  CHECK(scheduler.stats().n_free_pages >= 18);
  for (const std::size_t seed : {5u, 6u})
    run.submit(scheduler, request_of(some_tokens(500, seed), 60));
  run.step(scheduler);
  CHECK(scheduler.stats().n_running == 3);
  run.finish(scheduler);
  for (const Answer& answer : run.answers) CHECK(answer.finish == Finish::max_tokens);
}

TEST_CASE("prefixes have room of their own, also where requests may need all other pages") {
  const Model model = test::small_model();
  const std::vector<GenerateRequest> requests(12, request_of(some_tokens(30, 3), 60));
  SchedulerOptions options{.n_ctx = 96, .max_batch = 4};  // two pages each
  auto without = make_scheduler(model, options);
  const auto expected = answers_of(without, requests);
  CHECK(without.stats().n_pages == 8);
  options.prefix_cache_bytes = std::size_t{1} << 20;
  options.cache_positions = 8 * 64;  // just these: there is no room for one that is not full
  auto full = make_scheduler(model, options);
  CHECK(answers_of(full, requests) == expected);
  CHECK(full.stats().n_pages == 8);
  CHECK(full.stats().n_cache_hits < 11);
  options.cache_positions = 0;
  auto scheduler = make_scheduler(model, options);
  CHECK(answers_of(scheduler, requests) == expected);
  CHECK(scheduler.stats().n_cache_hits == 11);
  CHECK(scheduler.stats().n_prompt_tokens == 30 + 11);
  CHECK(scheduler.stats().n_pages > 8);
  CHECK(scheduler.bytes() == must(Scheduler::bytes_needed(model, options)));
  CHECK(scheduler.bytes() <= without.bytes() + options.prefix_cache_bytes + (std::size_t{1} << 16));
  check_all_free(scheduler);
}

TEST_CASE("the next turn of a chat goes on from the answer, if it was kept") {
  const Model model = test::small_model();
  const SchedulerOptions options{.n_ctx = 400, .prefix_cache_bytes = kMuch};
  for (const bool keeps : {false, true}) {
    auto scheduler = make_scheduler(model, options);
    GenerateRequest first = request_of(some_tokens(70, 1), 40);
    first.keeps_answer = keeps;
    const Answer answer = answers_of(scheduler, {first})[0];
    const Ids question = some_tokens(20, 8);
    Ids turn = first.tokens;
    turn.insert(turn.end(), answer.ids.begin(), answer.ids.end());
    turn.insert(turn.end(), question.begin(), question.end());
    const auto before = scheduler.stats().n_prompt_tokens;
    const Answer next = answers_of(scheduler, {request_of(turn, 10)})[0];
    // The last token of the answer was not computed.
    CHECK(scheduler.stats().n_prompt_tokens - before == (keeps ? 1 + 20 : 40 + 20));
    if (!keeps) {
      CHECK(next == alone(model, request_of(turn, 10), session_options(options)));
      continue;
    }
    auto session = test::make_session(session_options(options), model);
    auto generator = test::make_generator(session, first.options);
    REQUIRE(generator.prompt(first.tokens));
    CHECK(test::take(generator).ids == answer.ids);
    GenerateOptions last;
    last.max_tokens = 10;
    REQUIRE(generator.set_options(last));
    REQUIRE(generator.prompt(question));
    Answer expected;
    while (const auto token = must(generator.next())) expected.add(*token);
    CHECK(next == expected);
  }
}

TEST_CASE("prefixes are saved, and restored by another scheduler") {
  const Model model = test::small_model();
  const SchedulerOptions options{.n_ctx = 400, .max_batch = 2, .prefix_cache_bytes = kMuch};
  const Ids text = some_tokens(300, 1);
  const std::vector<GenerateRequest> requests = {request_of(after(text, 300, 9, 1), 5),
                                                 request_of(after(text, 300, 9, 2), 5)};
  const std::string path =
      (std::filesystem::temp_directory_path() /
       ("nibble_scheduler_" + std::to_string(std::random_device()()) + ".prefixes"))
          .string();
  {
    auto scheduler = make_scheduler(model, options);
    answers_of(scheduler, {requests[0]});
    REQUIRE(scheduler.save_prefixes(path));
  }
  auto scheduler = make_scheduler(model, options);
  REQUIRE(scheduler.restore_prefixes(path));
  CHECK(answers_of(scheduler, {requests[1]})[0] ==
        alone(model, requests[1], session_options(options)));
  CHECK(scheduler.stats().n_prompt_tokens == 9);
  CHECK(scheduler.restore_prefixes(path).error().code == Errc::invalid_argument);  // not empty
  auto without = make_scheduler(model);
  CHECK(without.restore_prefixes(path).error().code == Errc::invalid_argument);
  CHECK(without.save_prefixes(path).error().message.find("prefix_cache_bytes") !=
        std::string::npos);
  std::filesystem::remove(path);
}

TEST_CASE("what the prefix cache has already allocates nothing, to begin nor to end") {
  const Model model = test::small_model();
  auto scheduler =
      make_scheduler(model, {.n_ctx = 400, .max_batch = 3, .prefix_cache_bytes = kMuch});
  const Ids text = some_tokens(300, 1);
  std::vector<GenerateRequest> requests;
  for (std::size_t i = 0; i < 6; ++i) requests.push_back(request_of(after(text, 300, 9, i), 5));
  answers_of(scheduler, requests);
  Run run;
  for (const auto& request : requests) run.submit(scheduler, request);
  const auto count = allocation_count();
  while (scheduler.step()) {
  }
  CHECK(allocation_count() == count);
  CHECK(scheduler.stats().n_cache_hits == 5 + 6);
  // New ones allocate in the step that ends their prompt only.
  run.submit(scheduler, request_of(after(text, 250, 100, 7), 40));
  Index n_allocating = 0;
  for (bool more = true; more;) {
    const auto before = allocation_count();
    more = scheduler.step();
    n_allocating += allocation_count() > before ? 1 : 0;
  }
  CHECK(n_allocating <= 1);
  // A prompt that no memory is left for to keep is answered all the same.
  const GenerateRequest other = request_of(some_tokens(90, 5), 5);
  run.submit(scheduler, other);
  {
    const FailingAllocations failing(1, true);
    while (scheduler.step()) {
    }
  }
  poll_all(run.completions.back(), run.answers.back());
  CHECK(run.answers.back() == alone(model, other, {.n_ctx = 400}));
}

TEST_CASE("the bytes of a scheduler are known before it is made") {
  const Model model = test::small_model();
  for (const SchedulerOptions& options :
       {SchedulerOptions{}, SchedulerOptions{.n_ctx = 100, .max_batch = 1, .max_queue = 1},
        SchedulerOptions{.n_ctx = 300, .cache_positions = 700, .kv_type = ops::KvType::int8}}) {
    const std::size_t needed = must(Scheduler::bytes_needed(model, options));
    const auto before = allocated_bytes();
    const auto scheduler = make_scheduler(model, options);
    CHECK(scheduler.bytes() == needed);
    if (!NIBBLE_TEST_COUNTS_ALLOCATIONS) continue;
    const auto allocated = static_cast<double>(allocated_bytes() - before);
    CHECK(allocated <= 1.02 * static_cast<double>(needed) + 4096);
    CHECK(allocated >= 0.98 * static_cast<double>(needed));
  }
  CHECK(Scheduler::bytes_needed(model, {.max_batch = 0}).error().code == Errc::invalid_argument);
}

}  // namespace scheduler_prefix_test
