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
    for (std::size_t i = 0; i < stops.size(); ++i) stops_[i].set(stops[i]);
    reset(0);
  }

  // Begins a new text whose parts are at most `longest_part` bytes.
  void reset(std::size_t longest_part) {
    std::size_t longest = 0;
    for (Stop& stop : stops_) {
      longest = (std::max)(longest, stop.text.size());
      stop.n_matched = 0;
    }
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

  // Takes a part; text() grows by what may be shown. After found(), nothing more is shown. Time:
  // the bytes of the part times the number of stop strings, whatever their length.
  void push(std::string_view part) {
    if (found_) return;
    for (const char c : part) {
      buffer_ += c;
      std::size_t longest = 0;
      for (Stop& stop : stops_) {
        if (stop.push(c)) longest = (std::max)(longest, stop.text.size());
      }
      if (longest == 0) continue;
      found_ = true;
      buffer_.resize(buffer_.size() - longest);
      shown_ = buffer_.size();
      return;
    }
    std::size_t held = 0;  // the longest end of the text that begins a stop string
    for (const Stop& stop : stops_) held = (std::max)(held, stop.n_matched);
    shown_ = buffer_.size() - held;
  }

  // There are no more parts: what was held back is ordinary text, and is added to text().
  void flush() { shown_ = buffer_.size(); }

  std::string_view text() const noexcept { return std::string_view(buffer_).substr(0, shown_); }
  bool found() const noexcept { return found_; }

 private:
  // Also how far the text so far ends with the beginning of this stop string (Knuth, Morris and
  // Pratt 1977). Not plain strings and numbers: the linker may take the code of their vectors from
  // another translation unit, which is compiled for another machine.
  struct Stop {
    struct Border {
      std::size_t size =
          0;  // of the longest beginning of text[0, i] that also is its end, but not all
    };

    void set(const std::string& stop) {
      text = stop;
      borders.resize(stop.size());
      for (std::size_t i = 1; i < stop.size(); ++i) {
        n_matched = borders[i - 1].size;
        push(stop[i]);
        borders[i].size = n_matched;
      }
    }
    // Whether the text, with this byte, ends with the stop string.
    bool push(char c) noexcept {
      while (n_matched > 0 && text[n_matched] != c) n_matched = borders[n_matched - 1].size;
      if (text[n_matched] == c) ++n_matched;
      return n_matched == text.size();
    }

    std::string text;
    std::vector<Border> borders;
    std::size_t n_matched = 0;  // bytes
  };

  std::vector<Stop> stops_;
  std::string buffer_;     // what text() shows, then what is held back
  std::size_t shown_ = 0;  // bytes
  bool found_ = false;
};

}}  // namespace nibble::NIBBLE_ABI
