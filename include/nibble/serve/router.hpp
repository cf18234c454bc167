// SPDX-License-Identifier: Apache-2.0
//
// The cascade of generate/cascade.hpp for a device whose second stage is a service elsewhere, which
// is slow, out of reach or broken at times: whatever happens to it, there is an answer, from here.
//
//   auto router = serve::Router::create(
//       std::move(session), {.remote = ask, .now_ms = clock}, {.threshold = found.threshold});
//   auto answered = router->answer("turn on the lamp\n");
//
// `ask` is the host's, for example an HTTP request to a server with the API that OpenAI's has. What
// the service answered is kept, by prompt; when it fails again and again it is left alone for a
// while (circuit_breaker.hpp).
//
// Deciding after a few tokens costs less than a whole answer that is then thrown away. A threshold
// means something only for the task that it was found for: see calibrate(). (Of routers by
// confidence: Ong et al., "RouteLLM", 2024; FrugalGPT, Chen et al. 2023.)
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "nibble/core/callback.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/calibration.hpp"
#include "nibble/generate/cascade.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/serve/answer_cache.hpp"
#include "nibble/serve/circuit_breaker.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// The answer of a model here. For each token gives_up(tokens so far, confidence of these) is asked;
// once it is true the answer is not wanted, whatever is returned.
using LocalStage = Callback<Result<Answer>(
    std::string_view prompt, FunctionRef<bool(Index n_tokens, double confidence)> gives_up)>;

struct RouterStages {
  // The answer of the service, within timeout_ms: a call that takes longer returns an error by
  // then. Errors invalid_argument and cancelled say nothing of the service: the request is refused
  // (HTTP 400), or given up by who asked. All others are its failures, io above all.
  Callback<Result<Answer>(std::string_view prompt, std::int64_t timeout_ms)> remote;
  // Milliseconds of a clock that does not stop and is not set.
  Callback<std::int64_t()> now_ms;
  // Not needed where a router is made of a session.
  LocalStage local = {};
  Callback<Result<Index>(std::string_view prompt)> count_tokens = {};
};

struct RouterOptions {
  // An answer of which the model here is less sure is asked for elsewhere.
  double threshold = 0.6;
  AnswerConfidence measure = AnswerConfidence::lowest;
  // Of the confidence, before it is compared: what calibrate() found, with its threshold.
  Calibration calibration = {};
  // The decision is made after so many tokens of an answer, by these, or when it is shorter at its
  // end; 0: always at its end.
  Index decide_after = 8;
  // Prompts of more tokens go elsewhere unseen; 0: no limit.
  Index max_context = 512;
  std::int64_t timeout_ms = 10'000;  // of the service
  AnswerCacheOptions cache = {};
  BreakerOptions breaker = {};
};

enum class Route : std::uint8_t {
  local,     // it was sure enough, or was cancelled
  cached,    // an answer of the service, from before
  remote,    // the service
  fallback,  // the model here, because the service could not be asked or failed
};

constexpr const char* to_string(Route route) noexcept {
  switch (route) {
    case Route::local: return "local";
    case Route::cached: return "cached";
    case Route::remote: return "remote";
    case Route::fallback: return "fallback";
  }
  return "unknown";
}

struct RoutedAnswer {
  Answer answer;
  Route route = Route::local;
  double confidence = 1;  // of the decision, calibrated; 1 where none was needed
};

// Since the router was made. Each request counts in one of the first five, and in at most one of
// the two that follow; each call of the service in one of the four after these.
struct RouterCounts {
  std::uint64_t n_local = 0, n_cached = 0, n_remote = 0, n_fallback = 0;  // by route
  std::uint64_t n_errors = 0;                                             // no answer at all
  std::uint64_t n_long = 0, n_unsure = 0;      // why it should go elsewhere
  std::uint64_t n_in_time = 0, n_late = 0;     // answers of the service
  std::uint64_t n_failed = 0, n_refused = 0;   // its errors; refused: of the request's own
  std::uint64_t n_not_asked = 0;               // requests for which the circuit breaker was open
  std::uint64_t n_opened = 0;                  // how often it opened
  std::uint64_t n_kept = 0, n_kept_bytes = 0;  // answers in the cache now

  std::uint64_t n_requests() const noexcept {
    return n_local + n_cached + n_remote + n_fallback + n_errors;
  }
};

// A session as the model of a router: it answers each prompt behind what it has. Not thread-safe.
LocalStage local_stage(Session session, GenerateOptions options = {},
                       AnswerConfidence measure = AnswerConfidence::lowest);

// Thread-safe if its stages are: they are called without a lock. Never waits but in them.
class Router {
 public:
  // Errors: invalid_argument (a stage is missing, or an option is out of its range).
  static Result<Router> create(RouterStages stages, const RouterOptions& options = {});
  // With a session, of whose model the tokenizer counts the tokens; `local` and `count_tokens` of
  // the stages are replaced. Errors: as above; that of Model::tokenizer_error().
  static Result<Router> create(Session session, RouterStages stages,
                               const RouterOptions& options = {}, GenerateOptions generate = {});

  // An answer of the model here that was cancelled or ran out of time is returned as it is. Errors:
  // those of the model here, if the service gives no answer either, and those of count_tokens.
  Result<RoutedAnswer> answer(std::string_view prompt);

  RouterCounts counts() const;
  BreakerState breaker() const;

 private:
  struct State;
  class Call;

  Router() noexcept = default;

  static Result<std::optional<Answer>> ask(State& s, std::string_view prompt,
                                           const std::string& key);
  static RoutedAnswer routed(State& s, Answer answer, Route route, double confidence);
  static std::optional<Answer> find(State& s, const std::string& key);
  static bool may_ask(State& s);
  static Result<RoutedAnswer> route(State& s, std::string_view prompt);

  Owned<State> state_;
};

// ---- The threshold -----------------------------------------------------------------------------

struct LabelledPrompt {
  std::string prompt, answer;
};

struct RouterCalibration {
  Calibration calibration;     // for RouterOptions
  CascadeThreshold threshold;  // RouterOptions::threshold is its `threshold`

  void apply_to(RouterOptions& options) const noexcept {
    options.calibration = calibration;
    options.threshold = threshold.threshold;
  }
};

// The calibration, and the threshold with which the model here answers as many of these prompts as
// possible while a share `accuracy` of all is right; those that go elsewhere count as right.
// `options`: measure and decide_after count, since the confidence is that of the decision.
// `is_right(answer, known)`: whether it is; without it, equal texts are. Some hundred prompts of
// the task are needed (500 or more), and others to check on. Errors: those of `local`,
// fit_calibration() and choose_threshold(): invalid_argument (no prompts), limit (no threshold is
// as accurate).
Result<RouterCalibration> calibrate(
    const LocalStage& local, std::span<const LabelledPrompt> known, double accuracy,
    const RouterOptions& options = {},
    const Callback<bool(const Answer& answer, const LabelledPrompt& known)>& is_right = {});

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/router-inl.hpp"
#endif
