// SPDX-License-Identifier: Apache-2.0
//
// For tests of speculation: a source of guesses that are right or wrong as a test wants it.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "nibble/generate/draft_source.hpp"

namespace test {

// Guesses the tokens of a known text, each of them wrong with some probability.
class KnownText final : public nibble::DraftSource {
 public:
  explicit KnownText(std::vector<std::int32_t> text, double wrong = 0, bool is_free = true)
      : text_(std::move(text)), wrong_(wrong), is_free_(is_free) {}

  void observe(std::span<const std::int32_t>, nibble::Index) noexcept override {}
  nibble::Index draft(std::span<const std::int32_t> tokens,
                      std::span<nibble::Draft> drafts) noexcept override {
    ++n_asked;
    std::size_t n = 0;
    for (; n < drafts.size() && tokens.size() + n < text_.size(); ++n) {
      std::int32_t id = text_[tokens.size() + n];
      if (static_cast<double>(random_() % 1000) < 1000 * wrong_) id = (id + 1) % 50;
      drafts[n] = {id, static_cast<std::uint8_t>(n)};
    }
    return static_cast<nibble::Index>(n);
  }
  bool is_free() const noexcept override { return is_free_; }
  void set_wrong(double wrong) { wrong_ = wrong; }

  int n_asked = 0;

 private:
  std::vector<std::int32_t> text_;
  double wrong_;
  bool is_free_;
  std::mt19937 random_{1};
};

}  // namespace test
