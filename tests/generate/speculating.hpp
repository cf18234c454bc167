// SPDX-License-Identifier: Apache-2.0
//
// For tests of speculation: sources of guesses that are right or wrong as a test wants it, and what
// a generator gives.
#pragma once

#include <bit>
#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "generate/prefixes.hpp"
#include "nibble/generate/draft_source.hpp"
#include "nibble/generate/generator.hpp"

namespace test {

// Guesses the tokens of a known text, each of them wrong with some probability.
class KnownText final : public nibble::DraftSource {
 public:
  explicit KnownText(Ids text, double wrong = 0, bool is_free = true)
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
  Ids text_;
  double wrong_;
  bool is_free_;
  std::mt19937 random_{1};
};

struct Output {
  Ids ids;
  std::vector<std::uint32_t> logprobs;  // bits, of the tokens and of the most likely ones
  nibble::Finish finish = nibble::Finish::none;

  friend bool operator==(const Output&, const Output&) = default;
};

// At most n tokens.
inline Output output_of(nibble::Generator& generator, std::size_t n = 100000) {
  Output got;
  while (got.ids.size() < n) {
    const auto token = must(generator.next());
    if (!token) break;
    got.ids.push_back(token->id);
    got.logprobs.push_back(std::bit_cast<std::uint32_t>(token->logprob));
    for (const nibble::TokenLogprob& top : token->top_logprobs) {
      got.logprobs.push_back(static_cast<std::uint32_t>(top.id));
      got.logprobs.push_back(std::bit_cast<std::uint32_t>(top.logprob));
    }
  }
  got.finish = generator.finish();
  return got;
}

inline Ids tokens_of(const nibble::Session& session) {
  return {session.tokens().begin(), session.tokens().end()};
}

inline std::vector<float> logits_of(nibble::Session& session) {
  const auto logits = must(session.logits());
  return {logits.data(), logits.data() + logits.extent(1)};
}

}  // namespace test
