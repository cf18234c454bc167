// SPDX-License-Identifier: Apache-2.0
//
// Finds stop strings in a text that arrives in parts, and holds back what may begin one.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Holds text back that may begin a stop string. All texts shown, concatenated, are the text up to
// the first stop string, or all of it after flush(). The first stop string is the one that is
// complete first; if several are complete at the same byte, the longest. So the result does not
// depend on how the text is split into parts. Allocates when created and in reset(), but not for
// parts of the length promised to reset() with next() between them.
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
    for (const auto& [stop] : stops_) longest = (std::max)(longest, stop.size());
    buffer_.clear();
    buffer_.reserve(2 * (longest + longest_part) + 16);
    shown_ = 0;
    found_ = false;
  }

  // What text() shows has been taken: from now on it shows only what comes later.
  void next() {
    buffer_.erase(0, shown_);
    shown_ = 0;
  }

  // Takes a part; text() grows by what may be shown. After found(), nothing more is shown.
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

  // There are no more parts: what was held back is ordinary text, and is added to text().
  void flush() { shown_ = buffer_.size(); }

  std::string_view text() const noexcept { return std::string_view(buffer_).substr(0, shown_); }
  bool found() const noexcept { return found_; }

 private:
  // The length of the longest suffix of `text` that is the beginning of a stop string.
  std::size_t unfinished(std::string_view text) const noexcept {
    std::size_t longest = 0;
    for (const auto& [stop] : stops_) {
      for (std::size_t n = (std::min)(stop.size() - 1, text.size()); n > longest; --n) {
        if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
      }
    }
    return longest;
  }

  // Not plain strings: the linker may take the code of a vector of strings from another translation
  // unit, which is compiled for another machine.
  struct Stop {
    std::string text;
  };

  std::vector<Stop> stops_;
  std::string buffer_;     // what text() shows, then what is held back
  std::size_t shown_ = 0;  // bytes
  bool found_ = false;
};

}}  // namespace nibble::NIBBLE_ABI
