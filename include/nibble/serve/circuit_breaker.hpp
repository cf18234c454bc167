// SPDX-License-Identifier: Apache-2.0
//
// A circuit breaker: after some failures in a row a service is not asked for a while, then once, to
// see whether it answers again (Nygard, "Release It!", 2007).
#pragma once

#include <cstdint>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

struct BreakerOptions {
  std::uint32_t failures = 5;  // in a row, after which it opens; at least 1
  // For so long nothing is asked then. The wait doubles each time that the one call that ends it
  // fails, up to the longest.
  std::int64_t open_ms = 1'000, longest_open_ms = 60'000;
};

enum class BreakerState : std::uint8_t {
  closed,     // calls go through
  open,       // none does
  half_open,  // one is on its way, and all depends on it
};

// Times are those of any clock that does not stop, in milliseconds. One that is set back ends the
// wait. Not thread-safe.
class CircuitBreaker {
 public:
  explicit CircuitBreaker(const BreakerOptions& options = {}) noexcept
      : options_(options), open_ms_(options.open_ms) {}

  BreakerState state() const noexcept { return state_; }
  // How often it has opened.
  std::uint64_t n_opened() const noexcept { return n_opened_; }

  // Whether try_call() would allow a call.
  bool allows(std::int64_t now) const noexcept {
    if (state_ == BreakerState::closed) return true;
    return state_ == BreakerState::open && (now < since_ || now - since_ >= open_ms_);
  }

  // Permission for one call: a number for one of the three functions below, which must be called
  // when the call ends. 0: no.
  std::uint64_t try_call(std::int64_t now) noexcept {
    if (!allows(now)) return 0;
    if (state_ == BreakerState::open) change(BreakerState::half_open);
    return period_;
  }
  void succeeded(std::uint64_t call) noexcept {
    if (call != period_) return;  // the call is from before the state changed: old news
    n_failures_ = 0;
    if (state_ != BreakerState::half_open) return;
    open_ms_ = options_.open_ms;
    change(BreakerState::closed);
  }
  void failed(std::uint64_t call, std::int64_t now) noexcept {
    if (call != period_) return;
    const bool is_probe = state_ == BreakerState::half_open;
    if (!is_probe && ++n_failures_ < options_.failures) return;
    if (is_probe) {
      open_ms_ = open_ms_ > options_.longest_open_ms / 2 ? options_.longest_open_ms : open_ms_ * 2;
    }
    open(now);
    ++n_opened_;
  }
  // The call ended without news of the service: its caller gave it up.
  void given_up(std::uint64_t call, std::int64_t now) noexcept {
    if (call == period_ && state_ == BreakerState::half_open) open(now);
  }

 private:
  void open(std::int64_t now) noexcept {
    since_ = now;
    change(BreakerState::open);
  }
  void change(BreakerState state) noexcept {
    state_ = state;
    n_failures_ = 0;
    ++period_;
  }

  BreakerOptions options_;
  std::int64_t open_ms_, since_ = 0;
  std::uint64_t period_ = 1, n_opened_ = 0;  // period: counts the changes of the state
  std::uint32_t n_failures_ = 0;
  BreakerState state_ = BreakerState::closed;
};

}}}  // namespace nibble::NIBBLE_ABI::serve
