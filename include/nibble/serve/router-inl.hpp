// SPDX-License-Identifier: Apache-2.0
//
// The functions of the router. Included by router.hpp.
#pragma once

#include <atomic>
#include <new>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/serve/router.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

namespace detail {

// Decides during an answer, token by token, whether it is good enough.
class RouteDecision {
 public:
  explicit RouteDecision(const RouterOptions& options) noexcept
      : options_(options), seen_(options.calibration(1)) {}

  // Whether it is known by now that the answer is not sure enough.
  bool add(Index n_tokens, double confidence) noexcept {
    const Index last = options_.decide_after;
    if (last > 0 && n_tokens > last) return false;
    seen_ = options_.calibration(confidence);
    // The lowest can only become lower; a mean counts when it is complete.
    const bool is_known = options_.measure == AnswerConfidence::lowest || n_tokens == last;
    return is_known && !(seen_ >= options_.threshold);
  }
  double confidence() const noexcept { return seen_; }
  bool is_unsure() const noexcept { return !(seen_ >= options_.threshold); }

 private:
  const RouterOptions& options_;
  double seen_;  // of an answer without tokens: 1
};

}  // namespace detail

struct Router::State {
  State(RouterStages with_stages, const RouterOptions& with_options)
      : stages(std::move(with_stages)),
        options(with_options),
        cache(with_options.cache),
        breaker(with_options.breaker) {}
  RouterStages stages;
  RouterOptions options;
  std::atomic<std::uint32_t> mutex{0};  // of what follows
  AnswerCache cache;
  CircuitBreaker breaker;
  RouterCounts counts;
};

// A call that the circuit breaker allowed and must hear of, also if the host's function throws.
class Router::Call {
 public:
  Call(State& state, std::int64_t now) : state_(state) {
    const WordLock lock(state_.mutex);
    number_ = state_.breaker.try_call(now);
    if (number_ == 0) ++state_.counts.n_not_asked;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (number_ == 0) return;
    const WordLock lock(state_.mutex);
    ++state_.counts.n_failed;
    state_.breaker.failed(number_, state_.stages.now_ms());
  }
  bool is_allowed() const noexcept { return number_ != 0; }
  std::uint64_t take_number() noexcept { return std::exchange(number_, 0); }

 private:
  State& state_;
  std::uint64_t number_ = 0;
};

NIBBLE_INLINE LocalStage local_stage(Session session, GenerateOptions options,
                                     AnswerConfidence measure) {
  return [session = std::move(session), options = std::move(options), measure](
             std::string_view prompt, FunctionRef<bool(Index, double)> gives_up) mutable {
    return nibble::detail::answer(session, prompt, options, measure, gives_up);
  };
}

NIBBLE_INLINE Result<Router> Router::create(RouterStages stages, const RouterOptions& options) {
  const auto& o = options;
  if (!stages.local || !stages.remote || !stages.now_ms ||
      (!stages.count_tokens && o.max_context > 0)) {
    return Error{Errc::invalid_argument,
                 "router: it needs a model here, a service, a clock, and for max_context a count "
                 "of tokens"};
  }
  if (is_nan(o.threshold) || !is_finite(o.calibration.slope) || o.calibration.slope < 0 ||
      !is_finite(o.calibration.offset) || o.decide_after < 0 || o.max_context < 0 ||
      o.timeout_ms < 1 || o.cache.max_age_ms < 0 || o.breaker.failures < 1 ||
      o.breaker.open_ms < 1 || o.breaker.longest_open_ms < o.breaker.open_ms) {
    return Error{Errc::invalid_argument,
                 "router: the threshold must be a number, the calibration rising, times of the "
                 "service, failures and waits of the breaker at least 1, all others at least 0, "
                 "and the longest wait the longest"};
  }
  Router router;
  router.state_ = Owned<State>(new (std::nothrow) State(std::move(stages), options));
  if (!router.state_) return Error{Errc::out_of_memory, "router: out of memory"};
  return router;
}

NIBBLE_INLINE Result<Router> Router::create(Session session, RouterStages stages,
                                            const RouterOptions& options,
                                            GenerateOptions generate) {
  const text::Tokenizer* const tokenizer = session.model().tokenizer();
  if (tokenizer == nullptr) return *session.model().tokenizer_error();
  const Model model = session.model();  // shares the weights and keeps the tokenizer alive
  stages.count_tokens = [model](std::string_view prompt) -> Result<Index> {
    NIBBLE_TRY(tokens, model.tokenizer()->encode(prompt, {.add_eos = false}));
    return static_cast<Index>(tokens.size());
  };
  stages.local = local_stage(std::move(session), std::move(generate), options.measure);
  return create(std::move(stages), options);
}

NIBBLE_INLINE Result<RoutedAnswer> Router::answer(std::string_view prompt) {
  auto answered = catch_out_of_memory([&] { return route(*state_, prompt); });
  if (answered) return answered;
  const WordLock lock(state_->mutex);
  ++state_->counts.n_errors;
  return answered;
}

NIBBLE_INLINE RouterCounts Router::counts() const {
  const WordLock lock(state_->mutex);
  RouterCounts counts = state_->counts;
  counts.n_opened = state_->breaker.n_opened();
  counts.n_kept = state_->cache.n_answers();
  counts.n_kept_bytes = state_->cache.bytes();
  return counts;
}
NIBBLE_INLINE BreakerState Router::breaker() const {
  const WordLock lock(state_->mutex);
  return state_->breaker.state();
}

// The answer of the service if there is one; nothing where the model here has to answer. Error:
// cancelled.
NIBBLE_INLINE Result<std::optional<Answer>> Router::ask(State& s, std::string_view prompt,
                                                        const std::string& key) {
  const std::int64_t start = s.stages.now_ms();
  Call call(s, start);
  if (!call.is_allowed()) return std::optional<Answer>();
  auto answer = s.stages.remote(prompt, s.options.timeout_ms);
  const std::int64_t now = s.stages.now_ms();
  const WordLock lock(s.mutex);
  const std::uint64_t number = call.take_number();
  if (answer) {
    // A late one counts against the service, but another one would be later still.
    const bool is_late = now - start > s.options.timeout_ms;
    ++(is_late ? s.counts.n_late : s.counts.n_in_time);
    is_late ? s.breaker.failed(number, now) : s.breaker.succeeded(number);
    answer->is_second = true;
    const bool is_whole =
        answer->finish != Finish::cancelled && answer->finish != Finish::time_limit;
    if (is_whole) s.cache.put(key, *answer, now);
    return std::optional<Answer>(*std::move(answer));
  }
  const Errc code = answer.error().code;
  if (code == Errc::cancelled) {
    ++s.counts.n_refused;
    s.breaker.given_up(number, now);
    return std::move(answer).error();
  }
  if (code == Errc::invalid_argument) {
    ++s.counts.n_refused;
    s.breaker.succeeded(number);  // it is there
  } else {
    ++s.counts.n_failed;
    s.breaker.failed(number, now);
  }
  return std::optional<Answer>();
}

NIBBLE_INLINE RoutedAnswer Router::routed(State& s, Answer answer, Route route, double confidence) {
  const WordLock lock(s.mutex);
  switch (route) {
    case Route::local: ++s.counts.n_local; break;
    case Route::cached: ++s.counts.n_cached; break;
    case Route::remote: ++s.counts.n_remote; break;
    case Route::fallback: ++s.counts.n_fallback; break;
  }
  return {std::move(answer), route, confidence};
}

NIBBLE_INLINE std::optional<Answer> Router::find(State& s, const std::string& key) {
  const std::int64_t now = s.stages.now_ms();
  const WordLock lock(s.mutex);
  const Answer* const kept = s.cache.find(key, now);
  return kept == nullptr ? std::nullopt : std::optional<Answer>(*kept);
}
NIBBLE_INLINE bool Router::may_ask(State& s) {
  const std::int64_t now = s.stages.now_ms();
  const WordLock lock(s.mutex);
  return s.breaker.allows(now);
}

NIBBLE_INLINE Result<RoutedAnswer> Router::route(State& s, std::string_view prompt) {
  const std::string key = normalized_prompt(prompt);
  if (auto kept = find(s, key)) return routed(s, *std::move(kept), Route::cached, 1);

  bool is_long = false;
  if (s.options.max_context > 0) {
    NIBBLE_TRY(n_tokens, s.stages.count_tokens(prompt));
    is_long = n_tokens > s.options.max_context;
  }
  detail::RouteDecision decision(s.options);
  bool gave_up = is_long;  // there is no answer of the model here yet
  Result<Answer> local = Error{};
  if (!is_long) {
    // An answer is given up only where the service may be asked: it would have to be made again.
    local = s.stages.local(prompt, [&](Index n_tokens, double confidence) {
      if (!gave_up) gave_up = decision.add(n_tokens, confidence) && may_ask(s);
      return gave_up;
    });
    if (!gave_up) {
      if (!local && local.error().code == Errc::cancelled) return std::move(local).error();
      const bool has_ended =
          local && (local->finish == Finish::cancelled || local->finish == Finish::time_limit);
      if (has_ended || (local && !decision.is_unsure())) {
        return routed(s, *std::move(local), Route::local, decision.confidence());
      }
    }
  }
  {
    const WordLock lock(s.mutex);
    if (is_long) ++s.counts.n_long;
    if (!is_long && decision.is_unsure()) ++s.counts.n_unsure;
  }
  NIBBLE_TRY(remote, ask(s, prompt, key));
  const double confidence = decision.confidence();
  if (remote) return routed(s, *std::move(remote), Route::remote, confidence);
  if (gave_up) local = s.stages.local(prompt, [](Index, double) { return false; });
  if (!local) return std::move(local).error();
  return routed(s, *std::move(local), Route::fallback, confidence);
}

NIBBLE_INLINE Result<RouterCalibration> calibrate(
    const LocalStage& local, std::span<const LabelledPrompt> known, double accuracy,
    const RouterOptions& options,
    const Callback<bool(const Answer& answer, const LabelledPrompt& known)>& is_right) {
  return catch_out_of_memory([&]() -> Result<RouterCalibration> {
    RouterOptions plain = options;
    plain.calibration = {};
    std::vector<JudgedConfidence> judged;
    for (const LabelledPrompt& one : known) {
      detail::RouteDecision decision(plain);
      NIBBLE_TRY(answer, local(one.prompt, [&](Index n_tokens, double confidence) {
                   decision.add(n_tokens, confidence);
                   return false;
                 }));
      judged.push_back(
          {decision.confidence(), is_right ? is_right(answer, one) : answer.text == one.answer});
    }
    RouterCalibration result;
    NIBBLE_TRY(line, fit_calibration(judged));
    result.calibration = line;
    std::vector<LabelledAnswer> labelled;
    for (const JudgedConfidence& one : judged) {
      labelled.push_back({line(one.confidence), one.is_right, true});
    }
    NIBBLE_TRY(threshold, choose_threshold(labelled, accuracy));
    result.threshold = threshold;
    return result;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
