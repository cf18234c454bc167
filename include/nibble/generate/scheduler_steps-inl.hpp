// SPDX-License-Identifier: Apache-2.0
//
// A step of those requests of a scheduler that run. Included by
// scheduler-inl.hpp.
#pragma once

#include <algorithm>
#include <utility>

#include "nibble/generate/sampler.hpp"
#include "nibble/generate/scheduler_state-inl.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Chooses the rows of a step; whether there are any.
NIBBLE_INLINE bool Scheduler::State::plan() {
  planned.clear();
  inputs.clear();
  const Index n = n_running.load(std::memory_order_relaxed);
  if (n == 0) return false;
  for (Lane& lane : lanes) lane.n_rows = 0;
  const Lane* const first = next_with_learned_rows();  // which are not held up
  const Index most = engine.max_step_tokens();
  const Index part = (most - (first == nullptr ? 0 : first->n_learned_rows())) / n;
  Index n_left = most, n_prompts = 0;
  for (Lane& lane : lanes) {
    lane.guesses = {};
    if (!lane.request) continue;
    if (!lane.is_prompt()) {
      plan_generation(lane, part);
      n_left -= lane.n_rows;
    } else if (!awaits_prefix(lane)) {
      follow_prompt(lane);
      n_prompts += lane.request ? 1 : 0;
    }
  }
  share(share_learned_rows(n_left), n_prompts);
  for (Lane& lane : lanes) {
    if (lane.n_rows > 0 && lane.is_prompt()) plan_prompt(lane);
    if (lane.n_rows > 0) planned.push_back(&lane);
  }
  plan_guesses();
  for (Lane* const lane : planned) inputs.push_back(input_of(*lane));
  return !planned.empty();
}

// Ends a prompt that its options' `progress` cancels.
NIBBLE_INLINE void Scheduler::State::follow_prompt(Lane& lane) {
  const Progress* const progress = lane.request->generation.options().progress;
  if (progress == nullptr || !*progress) return;
  const Index n_computed = lane.sequence.position() - lane.sequence.n_pending();
  if ((*progress)(static_cast<std::size_t>(n_computed),
                  static_cast<std::size_t>(lane.prompt_end()))) {
    return;
  }
  deliver(lane, lane.request->generation.end(Finish::cancelled));
}

// Of prompts whose learned rows have no place in this step yet, that which began first.
NIBBLE_INLINE Scheduler::State::Lane* Scheduler::State::next_with_learned_rows() noexcept {
  Lane* next = nullptr;
  for (Lane& lane : lanes) {
    const bool waits = lane.request && lane.leader == nullptr && lane.n_rows == 0;
    if (!waits || lane.n_learned_rows() == 0) continue;
    if (next == nullptr || lane.number < next->number) next = &lane;
  }
  return next;
}

// Places learned rows with a token behind them, as long as there is room; the others wait, so that
// they begin in their order. Returns how many rows are left.
NIBBLE_INLINE Index Scheduler::State::share_learned_rows(Index n_left) noexcept {
  for (Lane* lane; (lane = next_with_learned_rows()) != nullptr;) {
    const Index n = lane->n_learned_rows() + 1;
    if (n > n_left) break;
    lane->n_rows = 1;
    n_left -= n;
  }
  return n_left;
}

// Shares rows among the prompts: equal parts; what short ones leave goes to the others.
NIBBLE_INLINE void Scheduler::State::share(Index n_left, Index n_prompts) noexcept {
  while (n_left > 0 && n_prompts > 0) {
    const Index part = (std::max)(n_left / n_prompts, Index{1});
    n_prompts = 0;  // that want more
    for (Lane& lane : lanes) {
      if (!lane.request || !lane.is_prompt() || lane.leader != nullptr) continue;
      if (lane.n_rows == 0 && lane.n_learned_rows() > 0) continue;
      const Index wanted = lane.n_until_stop() - lane.n_rows;
      const Index n = (std::min)({wanted, part, n_left});
      lane.n_rows += n;
      n_left -= n;
      n_prompts += wanted > n ? 1 : 0;
    }
  }
}

NIBBLE_INLINE void Scheduler::State::plan_prompt(Lane& lane) {
  n_cache_hits.fetch_add(lane.n_found > 0 ? 1 : 0, std::memory_order_relaxed);
  n_cached_tokens.fetch_add(std::exchange(lane.n_found, 0), std::memory_order_relaxed);
  // As in a session: a prompt of one token is computed as generated tokens are.
  lane.kind = lane.prompt_end() == 1 ? ops::SegmentKind::generation : ops::SegmentKind::prompt;
  lane.n_outputs = 0;
  lane.ends_prompt = lane.n_rows == lane.n_left_of_prompt();
  if (!lane.ends_prompt) return;
  if (find_certain(lane)) lane.n_outputs = lane.certain == text::kNoToken ? 1 : 0;
}

// Takes what the grammar makes certain, as long as its rows have room in this step; they are
// computed with the token that is pending. As in a Generator: more than one token in a row, also if
// they take several steps, are computed as a prompt is.
NIBBLE_INLINE void Scheduler::State::plan_generation(Lane& lane, Index max_rows) {
  detail::Generation& generation = lane.request->generation;
  for (;;) {
    if (lane.certain == text::kNoToken && !find_certain(lane)) return;
    if (lane.certain == text::kNoToken || lane.sequence.n_pending() == max_rows) break;
    const bool is_full = lane.sequence.position() == engine.n_ctx();
    const Finish why = is_full ? Finish::context_full : lane.request->interrupted();
    if (why != Finish::none) return deliver(lane, generation.end(why));
    take(lane, {std::exchange(lane.certain, text::kNoToken), 0});
    if (!lane.request) return;
  }
  const bool are_more = lane.certain != text::kNoToken;
  lane.n_rows = lane.sequence.n_pending();
  lane.n_outputs = are_more ? 0 : 1;
  lane.kind = are_more || lane.goes_on || lane.n_rows > 1 ? ops::SegmentKind::prompt
                                                          : ops::SegmentKind::generation;
  lane.goes_on = are_more;
  lane.ends_prompt = false;
}

// Finds the next token if the grammar leaves no choice. False: that has failed, and the request has
// ended.
NIBBLE_INLINE bool Scheduler::State::find_certain(Lane& lane) {
  auto forced = catch_out_of_memory([&] { return lane.request->generation.forced(); });
  if (!forced) {
    lane.n_rows = 0;
    fail(lane, std::move(forced).error().in("scheduler"));
    return false;
  }
  lane.certain = *forced;
  return true;
}

// Chooses guesses of those that want them, if the step computes one row of each request, as far as
// there is room for rows and outputs.
NIBBLE_INLINE void Scheduler::State::plan_guesses() {
  const auto has_one_row = [](const Lane* lane) {
    return !lane->is_prompt() && lane->kind == ops::SegmentKind::generation;
  };
  if (!ngrams || !std::all_of(planned.begin(), planned.end(), has_one_row)) return;
  const auto n = static_cast<Index>(planned.size());
  detail::StepLoad load{n, static_cast<double>(n)};
  for (Lane* const lane : planned) {
    const Index room = (std::min)(engine.max_step_tokens(), engine.max_outputs()) - load.n_rows;
    if (lane->speculator) guess(*lane, room, load);
  }
}

NIBBLE_INLINE void Scheduler::State::guess(Lane& lane, Index most, detail::StepLoad& load) {
  detail::Generation& generation = lane.request->generation;
  const std::span<const std::int32_t> tokens = lane.sequence.tokens();
  // The last token of an answer is never computed.
  const Index n_left = generation.options().max_tokens - generation.n_tokens() - 1;
  most = (std::min)({most, n_left, engine.n_ctx() - lane.sequence.position()});
  lane.guesses =
      lane.speculator->guess(tokens, most, load, step_times,
                             [&](auto guesses) { return generation.n_allowed(guesses); });
  const auto n = static_cast<Index>(lane.guesses.size());
  lane.n_outputs += n;
  load.n_rows += n;
  load.n_tokens += lane.speculator->n_expected();
}

NIBBLE_INLINE SequenceInput Scheduler::State::input_of(Lane& lane) noexcept {
  SequenceInput input{.sequence = &lane.sequence,
                      .tokens = lane.guesses,  // after the pending tokens
                      .n_outputs = lane.n_outputs,
                      .kind = lane.kind};
  if (!lane.is_prompt()) return input;
  input.tokens =
      std::span<const std::int32_t>(lane.request->prompt)
          .subspan(lane.request->prompt.size() - static_cast<std::size_t>(lane.n_left_of_prompt()),
                   static_cast<std::size_t>(lane.n_rows));
  return input;
}

// Takes from the cache of prefixes the pages that the step needs. If nothing else helps, all: pages
// that are the cache's and a sequence's need then not be copied.
NIBBLE_INLINE void Scheduler::State::make_room() noexcept {
  if (!prefixes) return;
  const Index n = engine.pages_needed(inputs);
  if (prefixes->make_room(n) < n) prefixes->clear();
}

NIBBLE_INLINE void Scheduler::State::run() {
  n_steps.fetch_add(1, std::memory_order_relaxed);
  for (const Lane* const lane : planned) {
    if (lane->is_prompt()) n_prompt_tokens.fetch_add(lane->n_rows, std::memory_order_relaxed);
  }
  make_room();
  const std::int64_t start = ngrams ? monotonic_nanoseconds() : 0;
  const auto logits = engine.run(inputs);
  if (logits) {
    if (ngrams) measure(monotonic_nanoseconds() - start);
    return finish_rows(planned, *logits);
  }
  // One of them has made the step fail: alone, it fails again, and the others do not.
  for (std::size_t i = 0; i < planned.size(); ++i) run_alone(*planned[i], inputs[i]);
}

NIBBLE_INLINE void Scheduler::State::run_alone(Lane& lane, SequenceInput input) {
  Lane* const only = &lane;
  auto logits = engine.run({&input, 1});
  if (!logits && !lane.guesses.empty()) {  // what fails may be the guesses
    lane.guesses = {};
    lane.n_outputs = 1;
    input = input_of(lane);
    logits = engine.run({&input, 1});
  }
  if (!logits) return fail(lane, std::move(logits).error());
  if (lane.speculator) lane.speculator->ran(static_cast<Index>(lane.guesses.size()), 0);
  finish_rows({&only, 1}, *logits);
}

// Learns how long a step without prompts took.
NIBBLE_INLINE void Scheduler::State::measure(std::int64_t nanoseconds) noexcept {
  Index n_rows = 0;
  bool has_prompt = false;
  for (const Lane* const lane : planned) {
    has_prompt = has_prompt || lane->kind == ops::SegmentKind::prompt;
    n_rows += lane->n_rows + static_cast<Index>(lane->guesses.size());
  }
  if (has_prompt || n_rows > detail::StepTimes::kMaxRows) return;
  step_times.add(n_rows, static_cast<double>(nanoseconds));
  for (Lane* const lane : planned) {
    const auto n_guesses = static_cast<Index>(lane->guesses.size());
    if (lane->speculator) lane->speculator->ran(n_guesses, step_times.of(n_rows));
    n_drafted.fetch_add(n_guesses, std::memory_order_relaxed);
  }
}

// After the rows of these requests were computed: logits (their outputs, vocab_size).
NIBBLE_INLINE void Scheduler::State::finish_rows(std::span<Lane* const> of_step,
                                                 MatrixView<const float> logits) {
  Index n_outputs = 0;
  for (Lane* const lane : of_step) {
    const bool stops = lane->is_prompt() && lane->sequence.position() == lane->stop;
    if (lane->ends_prompt || stops) keep_prefix(*lane);
    if (lane->ends_prompt && lane->speculator) lane->speculator->restart(lane->sequence.tokens(), 0);
    if (!lane->guesses.empty()) {
      lane->sequence.state_->put_ahead(static_cast<Index>(lane->guesses.size()));
    }
    lane->output = lane->n_outputs > 0 ? n_outputs : Index{-1};
    n_outputs += lane->n_outputs;
    lane->is_full = lane->sequence.position() == engine.n_ctx();
  }
  sample(of_step, logits);
  for (Lane* const lane : of_step) {
    if (lane->output >= 0) choose(*lane, logits);
  }
}

// Choosing takes a request's own sampler and tokens only, so all may choose at once.
NIBBLE_INLINE void Scheduler::State::sample(std::span<Lane* const> of_step,
                                            MatrixView<const float> logits) noexcept {
  const auto sample_one = [&](Index task, Index) {
    Lane& lane = *of_step[static_cast<std::size_t>(task)];
    if (lane.output < 0 || lane.is_full) return;
    lane.sampled =
        lane.request->generation.sample(logits.rows(lane.output, 1), lane.sequence.tokens());
  };
  const auto n = static_cast<Index>(of_step.size());
  if (options.executor != nullptr && n > 1) return options.executor->parallel_for(n, sample_one);
  for (Index i = 0; i < n; ++i) sample_one(i, 0);
}

// Takes the chosen token; if that was guessed, those after it too, as long as they were. (Nothing is
// certain after a guess: such guesses are not computed, see Generation::n_allowed.)
NIBBLE_INLINE void Scheduler::State::choose(Lane& lane, MatrixView<const float> logits) {
  while (choose_one(lane)) {
    if (lane.request->interrupted() != Finish::none) return;
    lane.sequence.state_->take_ahead();
    n_accepted.fetch_add(1, std::memory_order_relaxed);
    lane.sampled =
        lane.request->generation.sample(logits.rows(++lane.output, 1), lane.sequence.tokens());
  }
}

// Whether the token was guessed, so that the row after it is computed.
NIBBLE_INLINE bool Scheduler::State::choose_one(Lane& lane) {
  if (lane.is_full) {
    deliver(lane, lane.request->generation.end(Finish::context_full));
    return false;
  }
  if (lane.sampled) return take(lane, *lane.sampled);
  fail(lane, std::move(lane.sampled).error().in("scheduler"));
  return false;
}

// Adds a token to the text. Whether it was guessed and the text goes on.
NIBBLE_INLINE bool Scheduler::State::take(Lane& lane, const TokenLogprob& token) {
  const bool is_ahead = lane.sequence.state_->accept_ahead(token.id);
  if (!is_ahead) {
    if (auto pushed = lane.sequence.push(token.id); !pushed) {
      fail(lane, std::move(pushed).error());
      return false;
    }
  }
  if (lane.speculator) lane.speculator->take(lane.sequence.tokens());
  n_generated_tokens.fetch_add(1, std::memory_order_relaxed);
  const bool is_full = lane.sequence.position() == engine.n_ctx();
  deliver(lane, lane.request->generation.take(token, is_full));
  return is_ahead && lane.request;
}

NIBBLE_INLINE void Scheduler::State::fail(Lane& lane, Error error) {
  lane.request->error.emplace(std::move(error));
  deliver(lane, lane.request->generation.end(Finish::failed));
}

// Gives a token to who asked for it. After the last, the lane is free.
NIBBLE_INLINE void Scheduler::State::deliver(Lane& lane, const Token& token) {
  lane.request->deliver(token);
  if (token.finish == Finish::none) return;
  n_running.fetch_sub(1, std::memory_order_relaxed);
  n_ended.fetch_add(1, std::memory_order_relaxed);
  end(lane);
}

}}  // namespace nibble::NIBBLE_ABI
