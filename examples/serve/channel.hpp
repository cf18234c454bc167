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
  using Clock = std::chrono::steady_clock;

  Channel(std::size_t n_answers, bool has_logprobs)
      : n_left_(n_answers), has_logprobs_(has_logprobs) {}

  // From the thread that computes. False: the request is to end.
  bool push(std::size_t answer, const nibble::Token& token) noexcept {
    try {
      TokenEvent event{answer, token.id, token.logprob, std::string(token.text), token.finish, {}};
      if (has_logprobs_) event.top.assign(token.top_logprobs.begin(), token.top_logprobs.end());
      bool wakes = false;
      {
        const std::lock_guard lock(mutex_);
        events_.push_back(std::move(event));
        if (token.finish != nibble::Finish::none) --n_left_;
        wakes = wants_each_ || n_left_ == 0;
      }
      if (wakes) waiting_.notify_one();
      return true;
    } catch (const std::exception&) {  // no memory
      const std::lock_guard lock(mutex_);
      is_broken_ = true;
      return false;
    }
  }

  // What has come since the last call, when all has ended or `longest` is over.
  std::vector<TokenEvent> take(std::chrono::milliseconds longest) {
    std::unique_lock lock(mutex_);
    waiting_.wait_for(lock, longest, [this] { return is_over(); });
    return std::exchange(events_, {});
  }
  // The same, but as soon as anything has come; not before `earliest`, so that who computes is not
  // held up for each token by threads that wake up.
  std::vector<TokenEvent> take_next(std::chrono::milliseconds longest, Clock::time_point earliest) {
    std::unique_lock lock(mutex_);
    waiting_.wait_until(lock, earliest, [this] { return is_over(); });
    wants_each_ = true;
    waiting_.wait_for(lock, longest, [this] { return is_over() || !events_.empty(); });
    wants_each_ = false;
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
  bool is_over() const { return n_left_ == 0 || is_broken_; }

  mutable std::mutex mutex_;
  std::condition_variable waiting_;
  std::vector<TokenEvent> events_;
  std::size_t n_left_;  // answers that have not ended
  bool has_logprobs_, is_broken_ = false;
  bool wants_each_ = false;  // somebody waits for the next token
};

}  // namespace example::server
