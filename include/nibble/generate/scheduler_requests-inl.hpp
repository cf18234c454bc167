// SPDX-License-Identifier: Apache-2.0
//
// How a scheduler takes requests, on the threads that submit them. Included by
// scheduler-inl.hpp.
#pragma once

#include <algorithm>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/generate/scheduler_state-inl.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_INLINE Result<Completion> Scheduler::submit(GenerateRequest request) {
  return catch_out_of_memory([&]() -> Result<Completion> {
    {
      const WordLock lock(state_->mutex);  // before the work of a prompt that would be refused
      NIBBLE_CHECK(state_->check_queue());
    }
    NIBBLE_TRY(made, state_->make_request(std::move(request)));
    Completion completion(made);
    NIBBLE_CHECK(state_->enqueue(std::move(made)));
    return completion;
  });
}

NIBBLE_INLINE Result<void> Scheduler::State::check_queue() {
  if (is_stopped) return Error{Errc::cancelled, "scheduler: it is stopped"};
  if (static_cast<Index>(queue.size()) < options.max_queue) return ok();
  n_refused.fetch_add(1, std::memory_order_relaxed);
  return Error{Errc::limit, "scheduler: " + to_text(options.max_queue) +
                                " requests wait already (see max_queue); try again later"};
}

NIBBLE_INLINE Result<std::vector<std::int32_t>> Scheduler::State::prompt_of(
    GenerateRequest& from) const {
  const auto bad = [](const std::string& what) {
    return Error{Errc::invalid_argument, "scheduler: " + what};
  };
  if (!from.tokens.empty() && !from.prompt.empty()) return bad("a prompt of text and of tokens");
  if (from.tokens.empty()) {
    NIBBLE_TRY(ids, detail::encode_prompt(engine.model(), from.prompt, from.options, true));
    if (ids.empty()) return bad("the prompt is empty");
    return ids;
  }
  const Index vocab_size = engine.model().config().vocab_size;
  for (const std::int32_t id : from.tokens) {
    if (id >= 0 && id < vocab_size) continue;
    return bad("token " + to_text(id) + " of the prompt is not in [0, " + to_text(vocab_size) +
               ")");
  }
  return std::move(from.tokens);
}

// The last token that is generated is never computed.
NIBBLE_INLINE Index Scheduler::State::pages_for(Index n_prompt, Index max_tokens) const noexcept {
  const Index n_generated = (std::min)(max_tokens, engine.n_ctx() - n_prompt);
  return engine.pages_for((std::max)(n_prompt, n_prompt + n_generated - 1));
}

NIBBLE_INLINE Result<void> Scheduler::State::check_options(const GenerateOptions& wanted) const {
  NIBBLE_CHECK(detail::Generation::validate(wanted, engine.model()));
  if (wanted.when_full == WhenFull::roll) {
    return Error{Errc::unsupported, "scheduler: when_full = roll is for sessions"};
  }
  const Index n = wanted.speculation.max_drafts;
  if (n >= 0 && n <= options.max_drafts) return ok();
  return Error{Errc::invalid_argument, "scheduler: speculation.max_drafts " + to_text(n) +
                                           "; at most " + to_text(options.max_drafts) +
                                           " (see max_drafts in the scheduler's options)"};
}

NIBBLE_INLINE Result<Shared<Completion::State>> Scheduler::State::make_request(
    GenerateRequest from) const {
  const std::int64_t now = monotonic_nanoseconds();
  const Model& model = engine.model();
  NIBBLE_CHECK(check_options(from.options));
  NIBBLE_CHECK(engine.check_adapter(from.adapter));
  const Index n_learned = from.adapter.set.n_prefix();
  if (n_learned > 0 && n_learned + options.max_batch > engine.max_step_tokens()) {
    return Error{Errc::limit, "scheduler: an adapter with a prefix of " + to_text(n_learned) +
                                  " rows needs a max_step_tokens of " +
                                  to_text(n_learned + options.max_batch) + " in the options"};
  }
  const bool is_text = from.tokens.empty();
  NIBBLE_TRY(prompt, prompt_of(from));
  const Index end = n_learned + static_cast<Index>(prompt.size());
  if (end > engine.n_ctx()) {
    return Error{Errc::limit, "scheduler: a prompt of " + to_text(end) +
                                  " tokens does not fit in a context of " +
                                  to_text(engine.n_ctx())};
  }
  const Index n_pages = pages_for(end, from.options.max_tokens);
  if (n_pages > engine.n_pages()) {
    return Error{Errc::limit, "scheduler: prompt and max_tokens may need " + to_text(n_pages) +
                                  " pages of the cache, which has " + to_text(engine.n_pages()) +
                                  " (see cache_positions)"};
  }
  NIBBLE_TRY(generation, detail::Generation::create(from.options, model));
  const bool at_start = is_text && !detail::has_text(*model.tokenizer(), prompt);
  NIBBLE_TRY(text, generation.new_text(from.options, at_start));
  generation.begin(std::move(text), now);

  Shared<Request> made(Owned<Request>(new (std::nothrow) Request(model, std::move(generation))));
  if (!made) return Error{Errc::out_of_memory, "a request"};
  made->prompt = std::move(prompt);
  made->adapter = std::move(from.adapter);
  made->priority = from.priority;
  made->n_pages = n_pages;
  made->keeps_answer = from.keeps_answer;
  made->on_token = std::move(from.on_token);
  made->observer = std::move(from.observer);
  if (!made->on_token) {
    const Index most = (std::min)(from.options.max_tokens, engine.n_ctx() - end);
    made->entries.resize(static_cast<std::size_t>(most) + 1);
    made->text.emplace(model.tokenizer(), from.options.stop, at_start);
  }
  return made;
}

NIBBLE_INLINE Result<void> Scheduler::State::enqueue(Shared<Request> request) {
  {
    const WordLock lock(mutex);
    NIBBLE_CHECK(check_queue());
    if (queue.empty()) window_start = monotonic_nanoseconds();
    const auto comes_later = [&](const Shared<Request>& other) {
      return other->priority < request->priority;
    };
    const auto at = std::partition_point(queue.begin(), queue.end(), comes_later);
    queue.insert(at, std::move(request));
  }
  n_submitted.fetch_add(1);
  if (n_sleepers.load() > 0) wake_all(n_submitted);
  return ok();
}

}}  // namespace nibble::NIBBLE_ABI
