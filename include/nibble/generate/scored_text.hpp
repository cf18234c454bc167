// SPDX-License-Identifier: Apache-2.0
//
// How likely the parts of an answer were, token by token.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "nibble/generate/generator.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The text of an answer, with the log-probability of each of its tokens among those that were
// allowed. Takes the tokens of a Generator or of a Completion. Allocates.
class ScoredText {
 public:
  void add(const Token& token) {
    pending_ += static_cast<double>(token.allowed_logprob);
    const bool is_last = token.finish != Finish::none;
    if (token.text.empty() && !is_last) return;  // its text comes with a later token
    const std::size_t begin = text_.size();
    text_ += token.text;
    spans_.push_back({begin, text_.size(), pending_});
    pending_ = 0;
  }

  const std::string& text() const noexcept { return text_; }

  // Natural logarithm of the probability of the tokens that have a byte of [begin, end), each given
  // what came before it. The end token counts for the part that ends with the text.
  double logprob(std::size_t begin, std::size_t end) const noexcept {
    double sum = 0;
    for (const Span& span : spans_) {
      const bool has_byte = (std::max)(span.begin, begin) < (std::min)(span.end, end);
      const bool is_end = span.begin == span.end && span.begin == end;
      if (has_byte || is_end) sum += span.logprob;
    }
    return sum;
  }

 private:
  struct Span {
    std::size_t begin, end;
    double logprob;
  };
  std::string text_;
  std::vector<Span> spans_;
  double pending_ = 0;
};

}}  // namespace nibble::NIBBLE_ABI
