// SPDX-License-Identifier: Apache-2.0
//
// A completion's functions, and what a scheduler and the owner of a completion share. Included by
// scheduler-inl.hpp.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/generate/completion.hpp"
#include "nibble/generate/generation-inl.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Completion::State {
  // A token that was chosen. Its text is not kept: the reader makes it once more from the ids, so
  // that a completion takes bytes by its tokens, not by what a hostile vocabulary makes of them.
  struct Entry {
    std::int32_t id = 0;
    float logprob = 0, allowed_logprob = 0;
    Finish finish = Finish::none;
    bool is_shown = false;  // is a part of the text
  };

  State(const Model& m, detail::Generation g) : model(m), generation(std::move(g)) {}

  // Of the thread that steps.
  // Why nothing may be computed any more: also because nothing need be (a grammar of no text).
  Finish interrupted() const noexcept {
    if (is_cancelled.load(std::memory_order_relaxed)) return Finish::cancelled;
    return generation.finish() != Finish::none ? generation.finish() : generation.interrupted();
  }
  void deliver(const Token& token);
  void end(Finish why) { deliver(generation.end(why)); }

  // Where the prompt ends, behind learned rows of the adapter.
  Index prompt_end() const noexcept {
    return adapter.set.n_prefix() + static_cast<Index>(prompt.size());
  }

  // Of the reader.
  std::optional<Token> read();
  // Whether nothing more comes.
  bool is_over() const noexcept {
    return on_token ? finish.load(std::memory_order_acquire) != Finish::none : is_read;
  }

  Model model;  // whose tokenizer both texts need
  std::vector<std::int32_t> prompt;
  Callback<bool(const Token&)> on_token;
  Callback<void(const Token&)> observer;
  SequenceAdapter adapter;  // until it ends
  int priority = 0;
  Index n_pages = 0;             // of the cache, at most, if it shares none
  bool keeps_answer = false;     // in the prefix cache
  Finish ending = Finish::none;  // why it ends while it waits

  std::atomic<bool> is_cancelled{false};
  std::atomic<Finish> finish{Finish::none};
  std::atomic<std::size_t> n_ready{0};  // entries that are written
  std::atomic<std::uint32_t> n_changes{0};
  std::atomic<std::uint32_t> n_waiting{0};  // threads that sleep until n_changes changes

  detail::Generation generation;  // of the thread that steps
  std::vector<Entry> entries;     // (the most tokens + 1); empty with on_token
  std::optional<Error> error;     // written before `finish`

  std::optional<detail::GeneratedText> text;  // of the reader, with the rest
  std::size_t n_read = 0;
  bool is_read = false;  // the last entry too
};

NIBBLE_INLINE void Completion::State::deliver(const Token& token) {
  if (observer) observer(token);
  if (on_token) {
    if (!on_token(token)) is_cancelled.store(true, std::memory_order_relaxed);
  } else {
    const std::size_t n = n_ready.load(std::memory_order_relaxed);
    entries[n] = {token.id, token.logprob, token.allowed_logprob, token.finish,
                  generation.is_shown()};
    n_ready.store(n + 1, std::memory_order_release);
  }
  if (token.finish != Finish::none) finish.store(token.finish, std::memory_order_release);
  // Either this sees who waits, or who is about to sleep sees the change.
  n_changes.fetch_add(1);
  if (n_waiting.load() > 0) wake_all(n_changes);
}

NIBBLE_INLINE std::optional<Token> Completion::State::read() {
  if (n_read == n_ready.load(std::memory_order_acquire)) return std::nullopt;
  const Entry& entry = entries[n_read++];
  text->next();
  if (entry.is_shown) text->push(entry.id);
  if (entry.finish != Finish::none) {
    text->flush();
    is_read = true;
    // Who has the last token must not see that it has not ended: the other thread may be between
    // the two stores.
    finish.store(entry.finish, std::memory_order_release);
  }
  return Token{entry.id, entry.logprob, text->text(), entry.finish, {}, entry.allowed_logprob};
}

NIBBLE_INLINE Completion::Completion(Shared<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Completion& Completion::operator=(Completion&& other) noexcept {
  Completion taken(std::move(other));  // cancels, at the end of this function, what this object was
  std::swap(state_, taken.state_);
  return *this;
}

NIBBLE_INLINE Completion::~Completion() {
  if (state_) cancel();
}

NIBBLE_INLINE std::optional<Token> Completion::poll() { return state_->read(); }

NIBBLE_INLINE std::optional<Token> Completion::wait() {
  State& s = *state_;
  for (;;) {
    const std::uint32_t seen = s.n_changes.load();
    if (auto token = s.read()) return token;
    if (s.is_over()) return std::nullopt;
    s.n_waiting.fetch_add(1);
    sleep_while(s.n_changes, seen);
    s.n_waiting.fetch_sub(1);
  }
}

NIBBLE_INLINE void Completion::cancel() noexcept {
  state_->is_cancelled.store(true, std::memory_order_relaxed);
}

NIBBLE_INLINE Finish Completion::finish() const noexcept {
  return state_->finish.load(std::memory_order_acquire);
}

NIBBLE_INLINE Result<void> Completion::status() const {
  if (finish() == Finish::none || !state_->error) return ok();
  return *state_->error;
}

NIBBLE_INLINE std::span<const std::int32_t> Completion::prompt() const noexcept {
  return state_->prompt;
}

NIBBLE_INLINE Index Completion::n_prompt() const noexcept {
  return static_cast<Index>(state_->prompt.size());
}

NIBBLE_INLINE Index Completion::n_tokens() const noexcept {
  return finish() == Finish::none ? Index{0} : state_->generation.n_tokens();
}

}}  // namespace nibble::NIBBLE_ABI
