// SPDX-License-Identifier: Apache-2.0
//
// route: answers prompts with a model here, and asks a service where that is not sure enough, as
// long as the service answers.
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "measure.hpp"
#include "nibble/core/native_thread.hpp"
#include "nibble/nibble.hpp"
#include "nibble/serve/router.hpp"
#include "route/remote.hpp"

namespace {

using nibble::Index;
using nibble::Result;
namespace serve = nibble::serve;

struct Options {
  std::string model, known;
  double accuracy = 0.95;
  Index n_ctx = 0, n_threads = 0;
  bool add_newline = false;
  example::RemoteOptions remote;
  serve::RouterOptions router;
};

Result<void> route(Options o) {
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(model, nibble::load<nibble::graph::AllFormats>(o.model, {.executor = pool.get()}));
  NIBBLE_TRY(session, nibble::Session::create(model, {.n_ctx = o.n_ctx, .executor = pool.get()}));
  nibble::GenerateOptions generate;
  generate.max_tokens = o.remote.max_tokens;
  const std::string end = o.add_newline ? "\n" : "";
  if (!o.known.empty()) {
    NIBBLE_TRY(samples, example::read_samples(o.known));
    std::vector<serve::LabelledPrompt> known;
    for (const example::Sample& sample : samples)
      known.push_back({sample.prompt + end, sample.answer});
    NIBBLE_TRY(own, nibble::Session::create(model, {.n_ctx = o.n_ctx, .executor = pool.get()}));
    NIBBLE_TRY(found,
               serve::calibrate(serve::local_stage(std::move(own), generate, o.router.measure),
                                known, o.accuracy, o.router));
    found.apply_to(o.router);
    std::fprintf(
        stderr, "threshold  %.3f, with which %.1f %% are answered here and %.1f %% are right\n",
        found.threshold.threshold, 100 * found.threshold.kept, 100 * found.threshold.accuracy);
  }
  serve::RouterStages stages;
  stages.remote = [remote = o.remote](std::string_view prompt, std::int64_t timeout_ms) {
    return example::ask_remote(remote, prompt, timeout_ms);
  };
  stages.now_ms = [] { return nibble::monotonic_nanoseconds() / 1'000'000; };
  NIBBLE_TRY(router, serve::Router::create(std::move(session), stages, o.router, generate));
  example::catch_signals();
  std::string line;
  while (!example::interrupted && std::getline(std::cin, line)) {
    if (line.empty()) continue;
    NIBBLE_TRY(routed, router.answer(line + end));
    std::printf("%s\t%s\n", to_string(routed.route), routed.answer.text.c_str());
    std::fflush(stdout);
  }
  const serve::RouterCounts counts = router.counts();
  const auto n = [](std::uint64_t count) { return static_cast<unsigned long long>(count); };
  std::fprintf(stderr,
               "answers    %llu here, %llu of the service, %llu of it from before, %llu here for "
               "lack of it\n",
               n(counts.n_local), n(counts.n_remote), n(counts.n_cached), n(counts.n_fallback));
  std::fprintf(stderr,
               "service    %llu in time, %llu late, %llu failed, %llu refused, %llu not asked\n",
               n(counts.n_in_time), n(counts.n_late), n(counts.n_failed), n(counts.n_refused),
               n(counts.n_not_asked));
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Answers prompts, one a line of stdin, with a model here, and asks a service with OpenAI's "
      "completions where that is not sure. Prints who answered, a tab and the answer.",
      "route");
  Options o;
  app.add_option("MODEL", o.model, "a GGUF file or a folder as hubs have it")->required();
  app.add_option("--url", o.remote.url, "the service, as http://host:port")
      ->required()
      ->check(example::is_not_empty);
  app.add_option("--service-model", o.remote.model, "the name of the service's model");
  app.add_option("--api-key", o.remote.api_key, "of the service")->envname("ROUTE_API_KEY");
  auto* const threshold =
      app.add_option("--threshold", o.router.threshold, "the least confidence of an answer here")
          ->check(example::is_number)
          ->capture_default_str();
  auto* const known =
      app.add_option("--known", o.known,
                     "finds the threshold: prompts and right answers, a tab between, one a line")
          ->check(example::is_not_empty)
          ->excludes(threshold);
  example::add_number(app, "--accuracy", o.accuracy, "the share of answers that must be right", 0,
                      1)
      ->needs(known);
  example::add_number(app, "--decide-after", o.router.decide_after,
                      "tokens after which it is decided; 0: all", 0, 1 << 20);
  example::add_number(app, "--max-context", o.router.max_context,
                      "tokens of the longest prompt that is answered here; 0: no limit", 0,
                      1 << 30);
  example::add_number(app, "--timeout-ms", o.router.timeout_ms, "of the service", 1, 3'600'000);
  example::add_number(app, "--max-tokens", o.remote.max_tokens, "the most tokens of an answer", 1,
                      1 << 20);
  example::add_number(app, "--ctx", o.n_ctx, "context; 0: that of the model, up to a limit", 0,
                      1 << 30);
  app.add_flag("--newline", o.add_newline, "ends each prompt with a new line");
  example::add_threads(app, o.n_threads);
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.");
  return example::run(app, argc, argv, [&] { return route(o); });
}
