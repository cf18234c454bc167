// SPDX-License-Identifier: Apache-2.0
//
// Text that remembers of each byte where it came from: from the template itself, or from what
// others wrote (messages, descriptions of tools). So names of control tokens can be recognized in
// the first and stay ordinary text in the second, however the template cut and joined them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

enum class Origin : char { own, foreign };

class MarkedText {
 public:
  MarkedText() = default;
  MarkedText(std::string_view bytes, Origin origin) { append(bytes, origin); }

  std::string_view bytes() const noexcept { return bytes_; }
  std::size_t size() const noexcept { return bytes_.size(); }
  Origin origin(std::size_t at) const noexcept { return static_cast<Origin>(origins_[at]); }

  // Whether some of the bytes from `at` on were written by others.
  bool has_foreign(std::size_t at = 0, std::size_t n = std::string_view::npos) const noexcept {
    const std::string_view part = std::string_view(origins_).substr(at, n);
    return part.find(static_cast<char>(Origin::foreign)) != part.npos;
  }

  void append(std::string_view bytes, Origin origin) {
    bytes_.append(bytes);
    origins_.append(bytes.size(), static_cast<char>(origin));
  }
  // A part of another text.
  void append(const MarkedText& text, std::size_t at = 0, std::size_t n = std::string::npos) {
    bytes_.append(text.bytes_, at, n);
    origins_.append(text.origins_, at, n);
  }
  // Every byte replaced by change(byte).
  template <class Change>
  void transform(Change change) {
    std::transform(bytes_.begin(), bytes_.end(), bytes_.begin(), change);
  }

 private:
  std::string bytes_;
  std::string origins_;  // (size) one Origin per byte
};

}}}  // namespace nibble::NIBBLE_ABI::chat
