// SPDX-License-Identifier: Apache-2.0
//
// What a pool measures of its requests, with a clock of the test, and the names of it all.
#include "nibble/serve/serving_metrics.hpp"

#include <time.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "serve/serving.hpp"

namespace serving_metrics_test {

using namespace nibble;
using test::must;

TEST_CASE("the times and counts of requests") {
  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(registry, {.prefix = "vllm:"}));
  // Each look at it takes a millisecond.
  std::atomic<std::int64_t> time{0};
  auto drift = must(serve::DriftMonitor::create(registry, {.window_answers = 2}));
  auto pool = test::make_pool({.metrics = &metrics, .drift = drift.get(), .now = [&] {
                                 return time.fetch_add(1'000'000);
                               }});
  auto variant = test::home_variant("f16", test::home_files().f16);
  variant.scheduler.prefix_cache_bytes = 1 << 20;
  test::serve_now(pool, variant);
  CHECK(metrics.model_load->count() == 1);
  const GenerateRequest request{.prompt = test::kPrompt, .options = {.max_tokens = 5}};
  std::uint64_t n_prompt = 0;
  for (int i = 0; i < 2; ++i) {
    auto completion = must(pool.submit(request));
    n_prompt = static_cast<std::uint64_t>(completion.n_prompt());
    CHECK(completion.prompt().size() == n_prompt);
    const auto answer = test::read_all(completion);
    CHECK(answer.ids.size() == 5);
    CHECK(answer.finish == Finish::max_tokens);
  }
  pool.stop();
  REQUIRE(pool.drain(10'000));
  CHECK(metrics.finished_length->count() == 2);
  CHECK(metrics.time_to_first_token->count() == 2);
  CHECK(metrics.time_to_first_token->sum() == doctest::Approx(0.002));
  CHECK(metrics.inter_token_latency->count() == 8);
  CHECK(metrics.inter_token_latency->sum() == doctest::Approx(0.008));
  CHECK(metrics.e2e_request_latency->count() == 2);
  CHECK(metrics.e2e_request_latency->sum() == doctest::Approx(0.010));
  CHECK(metrics.generation_tokens->count() == 10);
  CHECK(metrics.request_generation_tokens->sum() == 10);
  CHECK(metrics.prompt_tokens->count() == 2 * n_prompt);
  CHECK(metrics.request_prompt_tokens->sum() == 2 * static_cast<double>(n_prompt));
  pool.collect();
  CHECK(metrics.prefix_cache_queries->count() == 2 * n_prompt);
  CHECK(metrics.prefix_cache_hits->count() == n_prompt - 1);  // the last is computed
  CHECK(metrics.num_requests_running->value() == 0);
  CHECK(metrics.num_requests_waiting->value() == 0);
  CHECK(metrics.models_loaded->value() == 1);
  CHECK(metrics.model_bytes->value() > 1e6);
  // What is refused is counted by its error.
  CHECK(!pool.submit(request));
  CHECK(metrics.error(Errc::cancelled)->count() == 1);
  const std::string text = must(registry.text());
  CHECK(text.find("vllm:time_to_first_token_seconds_count 2\n") != text.npos);
  CHECK(text.find("vllm:request_success_total{finished_reason=\"length\"} 2\n") != text.npos);
  CHECK(text.find("vllm:request_errors_total{code=\"cancelled\"} 1\n") != text.npos);
  // The monitor of drift has the two prompts and answers.
  CHECK(drift->evaluate());
  std::uint64_t n_answers = 0;
  for (const std::uint64_t n : drift->reference().confidence) n_answers += n;
  CHECK(n_answers == 2);
}

#if !defined(_WIN32)
TEST_CASE("recording a token takes less than 1 % of computing it") {
  // Both in CPU time of this thread alone: the machine may be busy. Computed in a full batch, where
  // a token is cheapest.
  const auto cpu_seconds = [] {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
  };
  auto scheduler = test::make_scheduler(test::home_model(), test::pool_scheduler());
  REQUIRE(scheduler.warm_up());
  std::vector<Completion> completions;
  for (int i = 0; i < 8; ++i) {
    completions.push_back(must(scheduler.submit(
        {.prompt = test::kPrompt, .options = {.sampling = {.temperature = 5}, .max_tokens = 60}})));
  }
  double start = cpu_seconds();
  while (scheduler.step()) continue;
  const double computing =
      (cpu_seconds() - start) / static_cast<double>(scheduler.stats().n_generated_tokens);

  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(registry));
  const Callback<std::int64_t()> now(monotonic_nanoseconds);
  serve::RequestRecorder recorder(metrics, now);
  Token token;
  constexpr int kTokens = 100'000;
  start = cpu_seconds();
  for (int i = 0; i < kTokens; ++i) {
    token.id = i;
    recorder(token);
  }
  const double recording = (cpu_seconds() - start) / kTokens;
  MESSAGE("a token takes ", computing * 1e6, " us, recording it ", recording * 1e9, " ns");
  CHECK(recording < 0.01 * computing);
}
#endif

TEST_CASE("how requests end, by vLLM's words") {
  serve::Registry registry;
  const auto m = must(serve::ServingMetrics::create(registry));
  CHECK(m.finished(Finish::end_of_text) == m.finished_stop);
  CHECK(m.finished(Finish::grammar_end) == m.finished_stop);
  CHECK(m.finished(Finish::context_full) == m.finished_length);
  CHECK(m.finished(Finish::time_limit) == m.finished_abort);
  CHECK(m.finished(Finish::cancelled) == m.finished_abort);
  CHECK(m.finished(Finish::failed) == m.finished_error);
}

TEST_CASE("Prometheus' own checker accepts the text") {
  const char* const promtool = std::getenv("NIBBLE_PROMTOOL");  // ctest sets it
  if (promtool == nullptr) {
    MESSAGE("skipped: NIBBLE_PROMTOOL does not name a promtool");
    return;
  }
  serve::Registry registry;
  const auto metrics = must(serve::ServingMetrics::create(
      registry, {.labels = {{"model_name", "a \"model\"\\\nof ours"}}}));
  const auto drift = must(serve::DriftMonitor::create(registry));
  metrics.inter_token_latency->observe(1e-5);
  metrics.inter_token_latency->observe(1e5);
  metrics.energy->add(1'234'567);
  const std::string path = "serve_metrics.txt";
  const auto check = [&](const std::string& text, const char* output) {
    std::ofstream(path, std::ios::binary) << text;
    const std::string command = "\"" + std::string(promtool) + "\" check metrics < " + path;
    return std::system((command + output).c_str());
  };
  const std::string text = must(registry.text());
  CHECK(check(text, "") == 0);
  std::string broken = text;  // the checker sees what is wrong
  broken.replace(broken.find("\\\""), 2, "\"");
  CHECK(check(broken, " 2> serve_metrics_broken.txt") != 0);
  std::remove(path.c_str());
  std::remove("serve_metrics_broken.txt");
}

TEST_CASE("the dashboard names metrics that there are") {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(project != nullptr);
  std::ifstream in(std::string(project) + "/examples/serve/grafana-dashboard.json");
  const std::string dashboard((std::istreambuf_iterator<char>(in)), {});
  serve::Registry registry;
  must(must(serve::ServingMetrics::create(registry)).of_adapter("a"));
  must(serve::DriftMonitor::create(registry));
  const std::string text = must(registry.text());
  const std::string prefix = "${prefix}";
  int n_names = 0;
  for (std::size_t at = dashboard.find(prefix); at != dashboard.npos;
       at = dashboard.find(prefix, at)) {
    at += prefix.size();
    std::string name = dashboard.substr(
        at, dashboard.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_", at) - at);
    const bool is_bucket = name.ends_with("_bucket");
    if (is_bucket) name.resize(name.size() - 7);
    const char* const type = is_bucket                  ? " histogram\n"
                             : name.ends_with("_total") ? " counter\n"
                                                        : " gauge\n";
    CHECK_MESSAGE(text.find("# TYPE nibble_" + name + type) != text.npos, name);
    ++n_names;
  }
  CHECK(n_names > 30);
}

}  // namespace serving_metrics_test
