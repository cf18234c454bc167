// SPDX-License-Identifier: Apache-2.0
//
// The scheduler with a thread of its own, and requests from many threads at random times: none is
// lost, none answered twice, memory stays flat.
#include "nibble/generate/scheduler_thread.hpp"

#include <atomic>
#include <chrono>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/scheduling.hpp"
#include "nibble/core/thread_pool.hpp"

namespace scheduler_thread_test {

using namespace nibble;
using test::alone;
using test::Answer;
using test::Ids;
using test::make_scheduler;
using test::must;
using test::some_tokens;

namespace {

constexpr int kClients = 4;
constexpr int kRequests = 10'000;  // of all clients

// The prompts: beginnings of three texts.
constexpr std::size_t kTexts = 3, kLongest = 12;
constexpr Index kMostTokens = 6;
Ids prompt_of(std::size_t text, std::size_t n) { return some_tokens(n, text); }

// What they get alone, of the most tokens.
using Expected = std::vector<std::vector<Ids>>;  // [text][n - 1]
Expected answers_of(const Model& model, const SchedulerOptions& options) {
  Expected all(kTexts);
  for (std::size_t text = 0; text < kTexts; ++text) {
    for (std::size_t n = 1; n <= kLongest; ++n) {
      GenerateRequest request{.tokens = prompt_of(text, n)};
      request.options.max_tokens = kMostTokens;
      all[text].push_back(alone(model, request, test::session_options(options)).ids);
    }
  }
  return all;
}

// What clients count.
struct Counts {
  std::atomic<int> taken{0}, refused{0}, ended{0}, ended_by_callback{0}, cancelled{0}, wrong{0};
};

// One that sends requests, reads some answers and gives up on others.
class Client {
 public:
  Client(Scheduler& scheduler, const Expected& expected, Counts& counts, std::uint32_t seed)
      : scheduler_(scheduler), expected_(expected), counts_(counts), random_(seed) {}

  void run(int n_requests) {
    while (n_requests > 0) {
      if (submit()) {
        --n_requests;
      } else {
        ++counts_.refused;
        read_oldest();
      }
      while (open_.size() > random_() % 60) read_oldest();
      if (random_() % 8 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(random_() % 99));
    }
    while (!open_.empty()) read_oldest();
  }

 private:
  struct Open {
    Completion completion;
    std::size_t n_most;
    bool is_called;
    const Ids* expected;  // null: it was chosen at random
  };

  bool submit() {
    const std::size_t text = random_() % kTexts, n_prompt = 1 + random_() % kLongest;
    GenerateRequest request{.tokens = prompt_of(text, n_prompt)};
    request.options.max_tokens = 1 + static_cast<Index>(random_() % kMostTokens);
    request.priority = static_cast<int>(random_() % 3);
    if (random_() % 10 == 0) request.options.time_limit_ms = 1;
    const bool is_random = random_() % 3 == 0;
    if (is_random) request.options.sampling.temperature = 1;
    const bool is_called = random_() % 2 == 0;
    if (is_called) {
      request.on_token = [&counts = counts_, is_over = false](const Token& token) mutable {
        if (is_over) ++counts.wrong;
        is_over = token.finish != Finish::none;
        if (is_over) ++counts.ended_by_callback;
        return true;
      };
    }
    const auto n_most = static_cast<std::size_t>(request.options.max_tokens);
    auto completion = scheduler_.submit(std::move(request));
    if (!completion) {
      if (completion.error().code != Errc::limit) ++counts_.wrong;
      return false;
    }
    ++counts_.taken;
    if (random_() % 4 == 0) {
      completion->cancel();
      ++counts_.cancelled;
    }
    open_.push_back({*std::move(completion), n_most, is_called,
                     is_random ? nullptr : &expected_[text][n_prompt - 1]});
    return true;
  }

  void read_oldest() {
    if (open_.empty()) return;
    Open open = std::move(open_.front());
    open_.pop_front();
    if (!open.is_called && random_() % 8 == 0) {  // gives up; the scheduler ends it alone
      ++counts_.ended;
      return;
    }
    std::size_t n = 0, n_last = 0;
    while (const auto token = open.completion.wait()) {
      if (token->id >= 0 && open.expected != nullptr && token->id != (*open.expected)[n]) {
        ++counts_.wrong;
      }
      n += token->id >= 0 ? 1u : 0u;
      n_last += token->finish != Finish::none ? 1u : 0u;
    }
    if (n_last != (open.is_called ? 0u : 1u) || n > open.n_most) ++counts_.wrong;
    if (open.completion.finish() == Finish::none) ++counts_.wrong;
    if (!open.is_called && n != static_cast<std::size_t>(open.completion.n_tokens())) {
      ++counts_.wrong;
    }
    if (!open.is_called) ++counts_.ended;
  }

  Scheduler& scheduler_;
  const Expected& expected_;
  Counts& counts_;
  std::mt19937 random_;
  std::deque<Open> open_;
};

// Requests from kClients threads, with a queue of 64.
void serve_many(std::size_t prefix_cache_bytes) {
  const Model model = test::small_model(1, 16, 64);
  const SchedulerOptions options{.n_ctx = 20,
                                 .max_batch = 8,
                                 .max_step_tokens = 24,
                                 .max_queue = 64,
                                 .prefix_cache_bytes = prefix_cache_bytes};
  const Expected expected = answers_of(model, options);
  auto scheduler = make_scheduler(model, options);
  const auto bytes_before = allocated_bytes();
  Counts counts;
  {
    const auto thread = must(SchedulerThread::start(scheduler));
    std::vector<std::thread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&, i] {
        Client(scheduler, expected, counts, static_cast<std::uint32_t>(i))
            .run(kRequests / kClients);
      });
    }
    // Memory is that of the requests that are open, of a few KiB each.
    long long most = 0;
    while (counts.taken < kRequests) {
      most = (std::max)(most, allocated_bytes() - bytes_before);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    for (std::thread& client : clients) client.join();
    CHECK(most < (64 + 8 + 60 * kClients) * 80'000);
    while (scheduler.stats().n_waiting + scheduler.stats().n_running > 0) std::this_thread::yield();
  }
  CHECK(counts.wrong == 0);
  CHECK(counts.taken == kRequests);
  CHECK(counts.ended + counts.ended_by_callback == kRequests);
  CHECK(counts.cancelled > kRequests / 5);
  const auto stats = scheduler.stats();
  CHECK(stats.n_ended == kRequests);
  CHECK(stats.n_refused == counts.refused);
  CHECK(stats.n_free_pages == stats.n_pages);
  // What the cache has, the nodes of its few pages, goes with the scheduler.
  CHECK(allocated_bytes() - bytes_before <= (prefix_cache_bytes > 0 ? 16'384 : 0));
  CHECK((stats.n_cache_hits > 100) == (prefix_cache_bytes > 0));
  MESSAGE(stats.n_steps, " steps, ", stats.n_generated_tokens, " tokens, ", stats.n_refused,
          " refused, ", stats.n_cache_hits, " found a prefix");
}

}  // namespace

TEST_CASE("10 000 requests at random times: none is lost, none is answered twice") {
  serve_many(0);
}

TEST_CASE("the same with a prefix cache") { serve_many(std::size_t{1} << 20); }

TEST_CASE("a waiting reader gets each token of a scheduler's thread as it comes") {
  auto pool = ThreadPool::create({.n_threads = 2, .n_cpus = 2});
  REQUIRE(pool);
  const SchedulerOptions options{.n_ctx = 128, .max_batch = 4, .executor = pool->get()};
  auto scheduler = make_scheduler(test::home_model(), options);
  auto thread = must(SchedulerThread::start(scheduler));
  const auto moved = std::move(thread);
  for (int round = 0; round < 3; ++round) {  // asleep in between
    std::vector<GenerateRequest> requests;
    for (std::uint64_t i = 0; i < 6; ++i) {
      requests.push_back({.prompt = "please dim the office light to 10 percent\n"});
      requests.back().options.max_tokens = 20;
      if (i > 0) requests.back().options.sampling = {.temperature = 1, .seed = i};
    }
    std::vector<Answer> answers(requests.size());
    std::vector<std::thread> readers;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      readers.emplace_back([&, i] {
        auto completion = must(scheduler.submit(requests[i]));
        while (const auto token = completion.wait()) answers[i].add(*token);
      });
    }
    for (std::thread& reader : readers) reader.join();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      CHECK(answers[i] == alone(test::home_model(), requests[i], test::session_options(options)));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace scheduler_thread_test
