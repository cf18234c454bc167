// SPDX-License-Identifier: Apache-2.0
//
// Speculation: where guesses of the next tokens come from, and how a generator is told to use them.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// A guess of a token. Guesses of one kind are about equally likely to be right; 0 is the surest.
// How likely that is, the generator finds out.
struct Draft {
  std::int32_t token = 0;
  std::uint8_t kind = 0;  // less than kDraftKinds
};

inline constexpr Index kDraftKinds = 8;
inline constexpr Index kMaxDrafts = 7;  // in one step, besides the token before them

// Guesses what a model will say next. Nothing depends on its guesses but time. Called by one
// generator at a time, on its thread; must not throw, and should not allocate.
class DraftSource {
 public:
  virtual ~DraftSource() = default;

  // The tokens of the sequence have changed: those from position `first_new` on are new. -1 stands
  // for rows of numbers.
  virtual void observe(std::span<const std::int32_t> tokens, Index first_new) noexcept = 0;

  // Guesses the tokens that follow, as many as there is space for or as it has a guess for, and
  // returns how many. `tokens` are those of the last observe(), at least one.
  virtual Index draft(std::span<const std::int32_t> tokens, std::span<Draft> drafts) noexcept = 0;

  // Whether a guess takes next to no time. If not, it is asked only while that pays.
  virtual bool is_free() const noexcept { return false; }
};

// Speculative decoding: tokens are guessed, and one step of the model computes what follows each of
// them; where guesses are right, a step gives several tokens. A step of a few rows takes little
// longer than one of a single row, because weights are read once.
//
// The tokens, their log-probabilities and the random numbers that are used are, bit for bit, those
// without speculation, with any sampling options: each row is computed as if it were alone, each
// token is chosen by the sampler from the model's own logits, in order, and a guess only counts if
// it is that token. (The rule of Y. Leviathan et al., "Fast Inference from Transformers via
// Speculative Decoding", 2023, accepts a guess that has probability q with min(1, p / q), where p
// is what the model gives it. Guesses here are not drawn at random, so q is 1, and the guess is
// accepted as often, with probability p; but the same seed would give other tokens.)
struct Speculation {
  // Guesses in one step, at most kMaxDrafts; 0: none. The session's max_outputs must be one more.
  // How many are computed is decided in each step, by how often such guesses were right and by the
  // time that steps took; none, while they would cost more than they bring.
  Index max_drafts = 0;
  // Where guesses come from; it must outlive the generator. Null: what followed the same few tokens
  // before (NgramDrafts), in all texts of the generator.
  DraftSource* source = nullptr;
  // Computes all guesses, whether that pays or not: to measure, and for tests.
  bool always = false;

  friend bool operator==(const Speculation&, const Speculation&) = default;
};

// Since a generator was made.
struct SpeculationStats {
  std::int64_t n_steps = 0;     // of the model, each of which gives at least a token
  std::int64_t n_drafted = 0;   // guesses that were computed
  std::int64_t n_accepted = 0;  // of them, that were right: tokens without a step
};

}}  // namespace nibble::NIBBLE_ABI
