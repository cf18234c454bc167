// SPDX-License-Identifier: Apache-2.0
//
// Finds stop strings in a text that arrives in parts, holding back what may become one.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Holds text back that may begin a stop string. All texts shown, put together, are the text up to
// the first stop string, or all of it after flush(). The first is the one that is complete first,
// of several the longest: so it does not matter how the text is cut into parts. Allocates when
// created and reset, never for parts as promised there with next() between them.
class StopMatcher {
 public:
  // Stop strings must not be empty.
  explicit StopMatcher(const std::vector<std::string>& stops) : stops_(stops.size()) {
    for (std::size_t i = 0; i < stops.size(); ++i) stops_[i].text = stops[i];
    reset(0);
  }

  // Begins a new text whose parts are at most `longest_part` bytes.
  void reset(std::size_t longest_part) {
    std::size_t longest = 0;
    for (const auto& [stop] : stops_) longest = std::max(longest, stop.size());
    buffer_.clear();
    buffer_.reserve(2 * (longest + longest_part) + 16);
    shown_ = 0;
    found_ = false;
  }

  // What text() shows was taken: it shows only what comes from now on.
  void next() {
    buffer_.erase(0, shown_);
    shown_ = 0;
  }

  // Takes a part; text() grows by what may be shown. After found(), nothing more comes.
  void push(std::string_view part) {
    if (found_) return;
    buffer_ += part;
    const std::string_view text = buffer_;
    std::size_t begin = 0, end = text.npos;  // of the first stop string
    for (const auto& [stop] : stops_) {
      const std::size_t at = text.find(stop);
      if (at == text.npos) continue;
      if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
        begin = at;
        end = at + stop.size();
        found_ = true;
      }
    }
    if (found_) {
      buffer_.resize(begin);
      shown_ = begin;
    } else {
      shown_ = text.size() - unfinished(text);
    }
  }

  // No more parts: what was held back is text too, and is added to text().
  void flush() { shown_ = buffer_.size(); }

  std::string_view text() const noexcept { return std::string_view(buffer_).substr(0, shown_); }
  bool found() const noexcept { return found_; }

 private:
  // The length of the longest end of `text` that begins a stop string.
  std::size_t unfinished(std::string_view text) const noexcept {
    std::size_t longest = 0;
    for (const auto& [stop] : stops_) {
      for (std::size_t n = std::min(stop.size() - 1, text.size()); n > longest; --n) {
        if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
      }
    }
    return longest;
  }

  // Not bare strings: the code of a vector of those may be another translation unit's, compiled for
  // another machine.
  struct Stop {
    std::string text;
  };

  std::vector<Stop> stops_;
  std::string buffer_;     // what text() shows, then what is held back
  std::size_t shown_ = 0;  // bytes
  bool found_ = false;
};

}}  // namespace nibble::NIBBLE_ABI
