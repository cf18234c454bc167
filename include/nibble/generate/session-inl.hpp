// SPDX-License-Identifier: Apache-2.0
//
// A session's functions. Included by session.hpp.
#pragma once

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "nibble/generate/session.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Session::State {
  State(Engine e, Sequence s) noexcept : engine(std::move(e)), sequence(std::move(s)) {}

  static Result<EngineOptions> engine_options(const SessionOptions& options);
  Result<MatrixView<const float>> append(std::span<const std::int32_t> ids, Index n_outputs,
                                         const Progress* progress);
  Result<MatrixView<const float>> compute_pending(Index n_outputs, const Progress* progress);
  // How many guesses a step can compute after the last token, which is pending.
  Index most_ahead() const noexcept;
  // Computes the pending tokens and, after them, guesses of the next ones, each row as if it were
  // alone. The logits are then those after the last token. Errors: as append(); nothing changes.
  Result<void> look_ahead(std::span<const std::int32_t> guesses);
  // As Sequence::push(); a token that is the next guess keeps those after it.
  Result<void> accept(std::int32_t id);
  // Whether the pending token was such a guess and its row is still what a step would give: then it
  // is computed, and the logits are those after it.
  bool take_ahead() noexcept;
  // Whether last_logits are still those after the last token.
  bool has_logits() const noexcept;
  // Fails if tokens would have to be computed again that are rows of numbers.
  Result<void> check_ids(Index begin, Index end) const;

  Engine engine;
  Sequence sequence;
  MatrixView<const float> last_logits;   // (1, vocab_size)
  std::uint64_t logits_step = 0;         // of the engine, that computed them
  std::uint64_t logits_version = 0;      // of the sequence, that they belong to
  MatrixView<const float> ahead_logits;  // (guesses + 1, vocab_size)
  Index ahead_row = 0;                   // of them, that after the last token that is computed
  std::uint64_t ahead_step = 0, ahead_settings = 0;  // of the engine, when it computed them
  std::uint64_t ahead_version = 0;                   // of the sequence, that they belong to
};

NIBBLE_INLINE Session::Session(Shared<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<EngineOptions> Session::State::engine_options(const SessionOptions& options) {
  if (options.max_outputs < 1) {
    return Error{Errc::invalid_argument,
                 "session: max_outputs " + to_text(options.max_outputs) + " out of range"};
  }
  return EngineOptions{.n_ctx = options.n_ctx,
                       .window_margin = options.window_margin,
                       .max_step_tokens = options.max_step_tokens,
                       .max_outputs = options.max_outputs,
                       .kv_type = options.kv_type,
                       .executor = options.executor,
                       .exchangeable_weights = options.exchangeable_weights,
                       .max_factor_rank = options.max_factor_rank,
                       .observer = options.observer,
                       .product_observer = options.product_observer,
                       .placement = options.placement};
}

NIBBLE_INLINE Result<Session> Session::create(const Model& model, const SessionOptions& options) {
  NIBBLE_TRY(engine_options, State::engine_options(options));
  NIBBLE_TRY(engine, Engine::create(model, engine_options, Engine::Gives::logits));
  NIBBLE_TRY(sequence, engine.new_sequence());
  Shared<State> state(
      Owned<State>(new (std::nothrow) State(std::move(engine), std::move(sequence))));
  if (!state) return Error{Errc::out_of_memory, "a session"};
  return Session(std::move(state));
}

NIBBLE_INLINE Result<std::size_t> Session::bytes_needed(const Model& model,
                                                        const SessionOptions& options) {
  return catch_out_of_memory([&]() -> Result<std::size_t> {
    NIBBLE_TRY(engine_options, State::engine_options(options));
    Engine::State engine(model, engine_options);
    NIBBLE_CHECK(engine.measure());
    NIBBLE_CHECK(engine.check_gives(Engine::Gives::logits));
    return engine.memory_parts().total() + sizeof(State) + Shared<State>::count_bytes();
  });
}

NIBBLE_INLINE const Model& Session::model() const noexcept { return state_->engine.model(); }
NIBBLE_INLINE std::span<const std::int32_t> Session::tokens() const noexcept {
  return state_->sequence.tokens();
}
NIBBLE_INLINE Index Session::position() const noexcept { return state_->sequence.position(); }
NIBBLE_INLINE Index Session::capacity() const noexcept { return state_->sequence.capacity(); }
NIBBLE_INLINE Index Session::max_outputs() const noexcept { return state_->engine.max_outputs(); }
NIBBLE_INLINE std::size_t Session::bytes() const noexcept {
  return state_->engine.bytes() + state_->sequence.bytes() + sizeof(State) +
         Shared<State>::count_bytes();
}
NIBBLE_INLINE Engine& Session::engine() noexcept { return state_->engine; }
NIBBLE_INLINE Sequence& Session::sequence() noexcept { return state_->sequence; }

NIBBLE_INLINE Result<void> Session::set_adapter(const SequenceAdapter& adapter) {
  return state_->sequence.set_adapter(adapter);
}

NIBBLE_INLINE Result<void> Session::State::check_ids(Index begin, Index end) const {
  if (sequence.state_->has_ids(begin, end)) return ok();
  return Error{Errc::unsupported,
               "session: rows of numbers would have to be computed anew, and are not kept; keep a "
               "fork() of the sequence to come back to"};
}

NIBBLE_INLINE Result<void> Session::rewind(Index position) {
  Sequence::State& s = *state_->sequence.state_;
  if (position < 0 || position > s.n_tokens) return state_->sequence.rewind(position);
  NIBBLE_CHECK(state_->check_ids(s.last_reachable(position), position));
  s.cut(position);
  return ok();
}

NIBBLE_INLINE Result<void> Session::roll(Index n_first, Index n_last) {
  Sequence::State& s = *state_->sequence.state_;
  if (n_first >= 0) n_first = (std::max)(n_first, s.n_prefix());
  if (n_first < 0 || n_last < 0 || n_first > s.n_tokens || n_last > s.n_tokens - n_first) {
    return Error{Errc::invalid_argument, "session: cannot keep " + to_text(n_first) + " and " +
                                             to_text(n_last) + " tokens of " + to_text(s.n_tokens)};
  }
  NIBBLE_CHECK(state_->check_ids(s.last_reachable(n_first), n_first));
  NIBBLE_CHECK(state_->check_ids(s.n_tokens - n_last, s.n_tokens));
  const std::int32_t* const last = s.tokens + s.n_tokens - n_last;
  s.cut(n_first);
  s.add(last, n_last);
  return ok();
}

NIBBLE_INLINE Result<MatrixView<const float>> Session::append(std::span<const std::int32_t> tokens,
                                                              Index n_outputs,
                                                              const Progress* progress) {
  return state_->append(tokens, n_outputs, progress);
}

NIBBLE_INLINE bool Session::State::has_logits() const noexcept {
  return last_logits.data() != nullptr && logits_step == engine.state_->n_steps &&
         logits_version == sequence.state_->version;
}

NIBBLE_INLINE Result<MatrixView<const float>> Session::logits() {
  Sequence::State& s = *state_->sequence.state_;
  if (s.n_tokens == 0) return Error{Errc::invalid_argument, "session: there are no tokens yet"};
  if (s.n_pending() == 0) {
    if (state_->has_logits()) return state_->last_logits;
    NIBBLE_CHECK(state_->check_ids(s.last_reachable(s.n_tokens - 1), s.n_tokens));
    s.uncompute(s.n_tokens - 1);
  }
  if (state_->take_ahead()) return state_->last_logits;
  return state_->append({}, 1, nullptr);
}

NIBBLE_INLINE Index Session::State::most_ahead() const noexcept {
  const Sequence::State& s = *sequence.state_;
  const Index n = (std::min)({s.capacity - s.n_tokens, engine.max_outputs() - 1,
                              engine.max_step_tokens() - s.n_pending()});
  // (A policy chooses the pages of all rows of a step at once, so they are not as if alone.)
  if (n < 1 || engine.state_->args.step.policy != nullptr) return 0;
  const Index n_rows = s.n_pending() + n;
  const Index n_pages = s.n_pages_for(n_rows, n_rows) - s.n_unread_pages();
  return n_pages <= s.pool->pages.n_free() ? n : 0;
}

NIBBLE_INLINE Result<void> Session::State::look_ahead(std::span<const std::int32_t> guesses) {
  Sequence::State& s = *sequence.state_;
  const auto n = static_cast<Index>(guesses.size());
  SequenceInput input{.sequence = &sequence,
                      .tokens = guesses,
                      .n_outputs = n + 1,
                      .kind = ops::SegmentKind::generation};
  NIBBLE_CHECK(engine.state_->can_run({&input, 1}));
  const std::uint64_t version = s.version;
  const Index before = s.n_tokens;
  s.add(guesses.data(), n);
  auto logits = engine.state_->run({&input, 1}, engine.max_step_tokens());
  if (logits)
    s.put_ahead(n);
  else
    s.cut(before);
  s.version = version;  // its tokens are what they were
  if (!logits) return std::move(logits).error();
  ahead_logits = *logits;
  ahead_row = 0;
  ahead_settings = engine.state_->n_settings;
  last_logits = ahead_logits.rows(0, 1);
  logits_step = ahead_step = engine.state_->n_steps;
  logits_version = ahead_version = version;
  return ok();
}

NIBBLE_INLINE Result<void> Session::State::accept(std::int32_t id) {
  Sequence::State& s = *sequence.state_;
  const bool is_known = s.version == ahead_version;
  if (!is_known || !s.accept_ahead(id)) return sequence.push(id);
  ahead_version = s.version;
  return ok();
}

NIBBLE_INLINE bool Session::State::take_ahead() noexcept {
  Sequence::State& s = *sequence.state_;
  if (s.n_ahead == 0 || s.n_pending() != 1) return false;
  if (ahead_version != s.version || ahead_step != engine.state_->n_steps ||
      ahead_settings != engine.state_->n_settings) {
    s.forget_ahead();
    return false;
  }
  s.take_ahead();
  last_logits = ahead_logits.rows(++ahead_row, 1);
  logits_step = ahead_step;
  logits_version = s.version;
  return true;
}

NIBBLE_INLINE Result<MatrixView<const float>> Session::State::append(
    std::span<const std::int32_t> ids, Index n_outputs, const Progress* progress) {
  NIBBLE_CHECK(engine.state_->compute_again(sequence, static_cast<Index>(ids.size())));
  Sequence::State& s = *sequence.state_;
  const Index before = s.n_tokens, total = static_cast<Index>(ids.size()) + s.n_pending();
  if (n_outputs < 1) {
    return Error{Errc::invalid_argument,
                 "session: " + to_text(n_outputs) + " outputs of " + to_text(total) + " tokens"};
  }
  // Everything that can be is checked before the first step.
  NIBBLE_CHECK(engine.can_run({.sequence = &sequence, .tokens = ids, .n_outputs = n_outputs}));
  // Should a later step fail, what it forgets is computed anew.
  if (total > engine.max_step_tokens() && s.may_lose(before, s.n_computed + total)) {
    NIBBLE_CHECK(check_ids(0, before));
  }
  s.add(ids.data(), static_cast<Index>(ids.size()));
  auto logits = compute_pending(n_outputs, progress);
  if (!logits) {
    s.cut(before);
    return logits;
  }
  last_logits = logits->rows(n_outputs - 1, 1);
  logits_step = engine.state_->n_steps;
  logits_version = s.version;
  return logits;
}

NIBBLE_INLINE Result<MatrixView<const float>> Session::State::compute_pending(
    Index n_outputs, const Progress* progress) {
  const Index total = sequence.n_pending(), max_rows = engine.max_step_tokens();
  const auto kind = total == 1 ? ops::SegmentKind::generation : ops::SegmentKind::prompt;
  for (;;) {
    const Index left = sequence.n_pending();
    if (progress != nullptr && *progress &&
        !(*progress)(static_cast<std::size_t>(total - left), static_cast<std::size_t>(total))) {
      return Error{Errc::cancelled, "session: reading a prompt"};
    }
    // The last step must hold all outputs.
    Index now = (std::min)(left, max_rows);
    if (left > now && left - now < n_outputs) now = left - n_outputs;
    const SequenceInput input{
        .sequence = &sequence, .n_outputs = now == left ? n_outputs : 0, .kind = kind};
    NIBBLE_TRY(logits, engine.state_->run({&input, 1}, now));
    if (now == left) return logits;
  }
}

}}  // namespace nibble::NIBBLE_ABI
