// SPDX-License-Identifier: Apache-2.0
//
// A session's functions. Included by session.hpp.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "nibble/generate/session.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_INLINE Session::Session(Engine engine, Sequence sequence) noexcept
    : engine_(std::move(engine)), sequence_(std::move(sequence)) {}

NIBBLE_INLINE Result<Session> Session::create(const Model& model, const SessionOptions& options) {
  if (options.max_outputs < 1) {
    return Error{Errc::invalid_argument,
                 "session: max_outputs " + to_text(options.max_outputs) + " out of range"};
  }
  NIBBLE_TRY(engine, Engine::create(model, {.n_ctx = options.n_ctx,
                                            .max_step_tokens = options.max_step_tokens,
                                            .max_outputs = options.max_outputs,
                                            .kv_type = options.kv_type,
                                            .executor = options.executor}));
  NIBBLE_TRY(sequence, engine.new_sequence());
  return Session(std::move(engine), std::move(sequence));
}

NIBBLE_INLINE const Model& Session::model() const noexcept { return engine_.model(); }
NIBBLE_INLINE std::span<const std::int32_t> Session::tokens() const noexcept {
  return sequence_.tokens();
}
NIBBLE_INLINE Index Session::position() const noexcept { return sequence_.position(); }
NIBBLE_INLINE Index Session::capacity() const noexcept { return sequence_.capacity(); }
NIBBLE_INLINE Index Session::max_outputs() const noexcept { return engine_.max_outputs(); }
NIBBLE_INLINE std::size_t Session::bytes() const noexcept {
  return engine_.bytes() + sequence_.bytes();
}
NIBBLE_INLINE Engine& Session::engine() noexcept { return engine_; }
NIBBLE_INLINE Sequence& Session::sequence() noexcept { return sequence_; }

NIBBLE_INLINE Result<void> Session::rewind(Index position) {
  if (position < 0 || position > sequence_.position()) return sequence_.rewind(position);
  const Index reachable = sequence_.last_reachable(position);
  const auto all = sequence_.tokens();
  const std::vector<std::int32_t> again(all.data() + reachable, all.data() + position);
  for (const std::int32_t token : again) {
    if (token != graph::kNoToken) continue;
    return Error{Errc::unsupported,
                 "session: rows of numbers would have to be computed anew, and are not kept; keep "
                 "a fork() of the sequence to come back to"};
  }
  NIBBLE_CHECK(sequence_.rewind(reachable));
  if (!again.empty()) NIBBLE_CHECK(append(again));
  return ok();
}

NIBBLE_INLINE Result<MatrixView<const float>> Session::append(std::span<const std::int32_t> ids,
                                                              Index n_outputs) {
  const auto n = static_cast<Index>(ids.size());
  const auto kind = n == 1 ? ops::SegmentKind::generation : ops::SegmentKind::prompt;
  if (n_outputs < 1) {
    return Error{Errc::invalid_argument, "session: " + to_text(n_outputs) + " outputs of " +
                                             to_text(n) + " tokens"};
  }
  // Everything is checked before the first step, so that errors change nothing.
  NIBBLE_CHECK(engine_.can_run(
      {.sequence = &sequence_, .tokens = ids, .n_outputs = n_outputs, .kind = kind}));
  const Index max_rows = engine_.max_step_tokens();
  MatrixView<const float> logits;
  while (!ids.empty()) {
    // The last step must hold all outputs.
    const auto left = static_cast<Index>(ids.size());
    Index now = (std::min)(left, max_rows);
    if (left > now && left - now < n_outputs) now = left - n_outputs;
    const auto count = static_cast<std::size_t>(now);
    const SequenceInput input{.sequence = &sequence_,
                              .tokens = ids.first(count),
                              .n_outputs = now == left ? n_outputs : 0,
                              .kind = kind};
    NIBBLE_TRY(rows, engine_.run({&input, 1}));
    logits = rows;
    ids = ids.subspan(count);
  }
  return logits;
}

}}  // namespace nibble::NIBBLE_ABI
