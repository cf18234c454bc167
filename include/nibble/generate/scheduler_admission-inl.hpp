// SPDX-License-Identifier: Apache-2.0
//
// How requests of a scheduler begin and end, and what they share. Included by
// scheduler-inl.hpp.
#pragma once

#include <algorithm>
#include <utility>

#include "nibble/core/native_thread.hpp"
#include "nibble/generate/scheduler_state-inl.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

NIBBLE_INLINE bool Scheduler::State::has_work() noexcept {
  if (n_running.load(std::memory_order_relaxed) > 0) return true;
  const WordLock lock(mutex);
  return !queue.empty();
}

// Lets a batch gather, if nothing runs that would be held up. (In short sleeps: what wakes a thread
// at a change or after a time is not to be had alike on all systems.)
NIBBLE_INLINE void Scheduler::State::wait_for_more() noexcept {
  constexpr std::int64_t kMostMicroseconds = 200;
  const std::int64_t wait = max_wait_ms.load(std::memory_order_relaxed);
  if (wait == 0 || n_running.load(std::memory_order_relaxed) > 0) return;
  while (!is_stopped) {
    std::int64_t left = 0;
    {
      const WordLock lock(mutex);
      if (queue.empty() || static_cast<Index>(queue.size()) >= options.max_batch) return;
      left = window_start + wait * 1'000'000 - monotonic_nanoseconds();
    }
    if (left <= 0) return;
    sleep_microseconds((std::min)(left / 1000 + 1, kMostMicroseconds));
  }
}

// Cannot fail: set_depth() has checked it.
NIBBLE_INLINE void Scheduler::State::change_depth() noexcept {
  if (!depth_changes.load(std::memory_order_relaxed)) return;
  const WordLock lock(mutex);
  depth_changes.store(false, std::memory_order_relaxed);
  std::swap(left_out, next_left_out);
  (void)engine.set_depth({next_n_layers, left_out});
}

// Callbacks are called without the lock, since they may submit.
NIBBLE_INLINE void Scheduler::State::begin_and_end() {
  for (Lane& lane : lanes) {
    if (!lane.request) continue;
    const Finish why = lane.request->interrupted();
    if (why != Finish::none) deliver(lane, lane.request->generation.end(why));
  }
  {
    const WordLock lock(mutex);
    end_waiting();
  }
  begin_waiting();
  for (const Shared<Request>& request : ended) {
    request->end(request->ending);
    n_ended.fetch_add(1, std::memory_order_relaxed);
  }
  ended.clear();
}

NIBBLE_INLINE void Scheduler::State::end_waiting() {
  std::size_t n = 0;
  for (Shared<Request>& request : queue) {
    request->ending = request->interrupted();
    if (request->ending != Finish::none) {
      ended.push_back(std::move(request));
    } else {
      std::swap(queue[n++], request);
    }
  }
  queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(n), queue.end());
}

NIBBLE_INLINE void Scheduler::State::begin_waiting() noexcept {
  const auto is_free = [](const Lane& lane) { return !lane.request; };
  for (;;) {
    const auto lane = std::find_if(lanes.begin(), lanes.end(), is_free);
    if (lane == lanes.end()) return;
    const Shared<Request> next = first_waiting();
    if (!next || !begin(*lane, next)) return;
    remove_waiting(next);
    n_running.fetch_add(1, std::memory_order_relaxed);
  }
}

NIBBLE_INLINE Shared<Completion::State> Scheduler::State::first_waiting() noexcept {
  const WordLock lock(mutex);
  return queue.empty() ? Shared<Request>() : queue.back();
}

// Others may have come meanwhile, but only step() removes requests.
NIBBLE_INLINE void Scheduler::State::remove_waiting(const Shared<Request>& request) noexcept {
  const WordLock lock(mutex);
  for (std::size_t i = queue.size(); i-- > 0;) {
    if (queue[i].get() != request.get()) continue;
    queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(i));
    return;
  }
}

// Whether all pages that the request may need are free, beside those that others may need.
NIBBLE_INLINE bool Scheduler::State::begin(Lane& lane, Shared<Request> request) noexcept {
  lane.request = std::move(request);
  lane.number = n_begun + 1;
  lane.restart(lane.request->adapter);
  find_prefix(lane);
  if (promised_pages() <= engine.n_pages()) {
    ++n_begun;
    begin_speculation(lane);
    return true;
  }
  lane.request = {};
  lane.leader = nullptr;
  lane.restart({});
  return false;
}

// Allocates nothing, since there is a source.
NIBBLE_INLINE void Scheduler::State::begin_speculation(Lane& lane) noexcept {
  lane.speculator.reset();
  Speculation wanted = lane.request->generation.options().speculation;
  if (wanted.max_drafts == 0 || lane.sequence.state_->has_state()) return;
  if (wanted.source == nullptr) wanted.source = &*ngrams;
  auto made = detail::Speculator::create(wanted, engine.model().config().vocab_size);
  if (made) lane.speculator.emplace(*std::move(made));
}

// How many pages those that run may need at most. Each needs its own, but those of its prefix that
// the cache of prefixes has too. What this cache cannot give up because it is in use counts once.
// All other pages are free, or become free (PrefixCache::make_room).
//
// A page that is not full counts for the cache and for the sequence, which copies it when it goes
// on to write to it; a page of a layer with a window also, until the sequence drops it.
NIBBLE_INLINE Index Scheduler::State::promised_pages() noexcept {
  Index n = prefixes ? prefixes->n_pages_in_use() : 0;
  for (const Lane& lane : lanes) {
    if (!lane.request) continue;
    n += lane.request->n_pages - (prefixes ? prefixes->n_shared_pages(lane.sequence) : 0);
  }
  return n;
}

// ---- Prefixes ----------------------------------------------------------------------------------

// Gives a prompt what the cache has of its beginning. If one that has begun before is computing
// more, and that is worth it, the prompt waits (awaits_prefix). Where the cache has more, but not
// the recurrent state there, the prompt leaves it for others.
NIBBLE_INLINE void Scheduler::State::find_prefix(Lane& lane) noexcept {
  lane.leader = nullptr;
  if (!prefixes) return;
  Lane* leader = nullptr;
  Index n_most = 0;
  for (Lane& other : lanes) {
    if (!other.request || other.number >= lane.number || !other.is_prompt()) continue;
    const Index n = n_in_common(lane, other);
    if (n <= n_most) continue;
    n_most = n;
    leader = &other;
  }
  const bool is_computed = leader != nullptr && leader->sequence.position() >= n_most;
  if (is_computed) keep_prefix(*leader);
  (void)prefixes->match(lane.request->prompt, lane.sequence);
  // There may be no room for what a prefix takes more: a page that is not full.
  if (promised_pages() > engine.n_pages()) lane.restart(lane.request->adapter);
  const Index n_there = lane.sequence.position() - lane.sequence.n_pending();
  lane.n_found = (std::max)(Index{0}, n_there - lane.request->adapter.set.n_prefix());
  const auto is_worth = [&](Index n) {
    const Index n_saved = n - n_there;
    return n_saved >= ops::kPagePositions || 2 * n_saved >= lane.prompt_end() - n_there;
  };
  lane.stop =
      prefixes->has_state() ? prefixes->n_known(lane.request->prompt, lane.request->adapter) : 0;
  if (!is_worth(lane.stop)) lane.stop = 0;
  if (leader == nullptr || is_computed || !is_worth(n_most)) return;
  lane.leader = leader;
  lane.leader_number = leader->number;
  lane.n_awaited = n_most;
}

// How many tokens of a prompt, with learned rows before them, the prompt of another will give it.
// (The last is always computed.)
NIBBLE_INLINE Index Scheduler::State::n_in_common(const Lane& lane, const Lane& other) noexcept {
  if (!(lane.request->adapter == other.request->adapter)) return 0;
  const auto &own = lane.request->prompt, &theirs = other.request->prompt;
  const std::size_t end = (std::min)(own.size() - 1, theirs.size());
  std::size_t n = 0;
  while (n < end && own[n] == theirs[n]) ++n;
  return n == 0 ? 0 : lane.request->adapter.set.n_prefix() + static_cast<Index>(n);
}

// Whether a prompt still waits for another to compute its beginning. When that is done, it has it.
// Nobody waits for one that has begun later, so they never wait for each other.
NIBBLE_INLINE bool Scheduler::State::awaits_prefix(Lane& lane) noexcept {
  if (lane.leader == nullptr) return false;
  Lane& leader = *lane.leader;
  const bool is_computing =
      leader.request && leader.number == lane.leader_number && leader.is_prompt();
  if (is_computing && leader.sequence.position() < lane.n_awaited) {
    if (prefixes->has_state()) leader.stop_at(lane.n_awaited);
    return true;
  }
  lane.restart(lane.request->adapter);
  find_prefix(lane);
  return lane.leader != nullptr;
}

// Puts what is computed of a prompt into the cache. Its pages that are not whole may count twice
// then (promised_pages); if there is no room for that, or no memory, it stays out.
NIBBLE_INLINE void Scheduler::State::keep_prefix(Lane& lane) noexcept {
  if (!is_kept(*lane.request)) return;
  const Index n_twice = lane.sequence.n_pages() - prefixes->n_whole_pages(lane.sequence);
  if (promised_pages() + n_twice <= engine.n_pages()) (void)prefixes->insert(lane.sequence);
}

// The lane is free then. The cache gets the prompt, which it may not have yet, and the answer, if
// that is asked for.
NIBBLE_INLINE void Scheduler::State::end(Lane& lane) noexcept {
  if (is_kept(*lane.request)) {
    const Index end = lane.prompt_end();
    const bool is_whole = lane.request->keeps_answer || lane.sequence.position() <= end;
    if (is_whole || lane.sequence.rewind(end)) (void)prefixes->insert(lane.sequence);
  }
  lane.request->adapter = {};  // a Completion may live on
  lane.request = {};
  lane.leader = nullptr;
  lane.certain = text::kNoToken;
  lane.goes_on = false;
  lane.speculator.reset();
  lane.guesses = {};
  lane.restart({});
}

}}  // namespace nibble::NIBBLE_ABI
