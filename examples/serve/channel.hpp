// SPDX-License-Identifier: Apache-2.0
//
// The tokens of a request on their way from the thread that computes to the one that answers.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "nibble/generate/generator.hpp"

namespace example::server {

struct TokenEvent {
  std::size_t answer = 0;  // of a request with several
  std::int32_t id = 0;     // -1: no token, only a text
  float logprob = 0;
  std::string text;
  nibble::Finish finish = nibble::Finish::none;
  std::vector<nibble::TokenLogprob> top;
};

class Channel {
 public:
  // `wakes_for_each`: who waits wants every token, and not only the end.
  Channel(std::size_t n_answers, bool wakes_for_each, bool has_logprobs)
      : n_left_(n_answers), wakes_for_each_(wakes_for_each), has_logprobs_(has_logprobs) {}

  // From the thread that computes. False: the request is to end.
  bool push(std::size_t answer, const nibble::Token& token) noexcept {
    try {
      TokenEvent event{answer, token.id, token.logprob, std::string(token.text), token.finish, {}};
      if (has_logprobs_) event.top.assign(token.top_logprobs.begin(), token.top_logprobs.end());
      bool is_end = false;
      {
        const std::lock_guard lock(mutex_);
        events_.push_back(std::move(event));
        if (token.finish != nibble::Finish::none) is_end = --n_left_ == 0;
      }
      if (wakes_for_each_ || is_end) waiting_.notify_one();
      return true;
    } catch (const std::exception&) {  // no memory
      const std::lock_guard lock(mutex_);
      is_broken_ = true;
      return false;
    }
  }

  // What has come since the last call; waits for it, but not longer than the time. Without
  // `wakes_for_each`, waits for the end of all.
  std::vector<TokenEvent> take(std::chrono::milliseconds longest) {
    std::unique_lock lock(mutex_);
    waiting_.wait_for(lock, longest, [this] {
      return n_left_ == 0 || is_broken_ || (wakes_for_each_ && !events_.empty());
    });
    return std::exchange(events_, {});
  }
  bool has_ended() const {
    const std::lock_guard lock(mutex_);
    return n_left_ == 0 && events_.empty();
  }
  bool is_broken() const {
    const std::lock_guard lock(mutex_);
    return is_broken_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable waiting_;
  std::vector<TokenEvent> events_;
  std::size_t n_left_;  // answers that have not ended
  bool wakes_for_each_, has_logprobs_, is_broken_ = false;
};

}  // namespace example::server
