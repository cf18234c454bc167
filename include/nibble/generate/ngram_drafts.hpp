// SPDX-License-Identifier: Apache-2.0
//
// Guesses the next token from what followed the same few tokens before.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/generate/draft_source.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// A table of which token came last after a run of 8, of 4 and of 2 tokens; the longest run that is
// known gives the guess. Good where a text repeats a part of the prompt or of itself: edits,
// summaries, code, lists, calls. (Known as prompt look-up: A. Saxena, "Prompt Lookup Decoding",
// 2023. That runs are hashed into a table of one size, so that a token costs the same whatever came
// before, is as in llama.cpp's ngram-mod, pull request 19164.)
//
// The table is not of one text: what it has learned stays, and the latest takes the place of older
// tokens. Allocates when it is made.
class NgramDrafts final : public DraftSource {
 public:
  // Entries of 8 bytes, a power of two from 2^8 to 2^26; a token of the text takes up to three.
  // Errors: invalid_argument, out_of_memory.
  static Result<NgramDrafts> create(std::size_t n_entries = std::size_t{1} << 15) {
    if (!std::has_single_bit(n_entries) || n_entries < (std::size_t{1} << 8) ||
        n_entries > (std::size_t{1} << 26)) {
      return Error{Errc::invalid_argument, "n-grams: a table of " + to_text(n_entries) +
                                               " entries; must be a power of two from 2^8 to 2^26"};
    }
    return catch_out_of_memory([&]() -> Result<NgramDrafts> { return NgramDrafts(n_entries); });
  }

  void observe(std::span<const std::int32_t> tokens, Index first_new) noexcept override {
    for (auto i = static_cast<std::size_t>(first_new); i < tokens.size(); ++i) {
      if (tokens[i] < 0) continue;
      for (const Run& run : kRuns) {
        if (run.length > i) continue;
        learn(key_of(tokens.subspan(i - run.length, run.length)), tokens[i]);
      }
    }
  }

  Index draft(std::span<const std::int32_t> tokens, std::span<Draft> drafts) noexcept override {
    // The end of the text, which grows by each guess.
    constexpr std::size_t kSpace = kLongest + static_cast<std::size_t>(kMaxDrafts);
    std::int32_t end[kSpace];
    std::size_t n = (std::min)(tokens.size(), kLongest), n_drafts = 0;
    const auto last = tokens.last(n);
    for (std::size_t i = 0; i < n; ++i) end[i] = last[i];
    while (n_drafts < drafts.size() && n < kSpace &&
           guess(std::span(end).first(n), drafts[n_drafts])) {
      end[n++] = drafts[n_drafts++].token;
    }
    return static_cast<Index>(n_drafts);
  }

  bool is_free() const noexcept override { return true; }

 private:
  struct Run {
    std::size_t length;
    std::uint8_t kind;  // of guesses that it gives
  };
  static constexpr std::size_t kLongest = 8;
  NIBBLE_HIDDEN static constexpr Run kRuns[] = {{kLongest, 0}, {4, 2}, {2, 4}};

  struct Entry {
    std::uint32_t mark = 0;   // of the run: the upper bits of its key, and whether it was confirmed
    std::int32_t token = -1;  // that came after it; -1: an empty entry
  };
  static constexpr std::uint32_t kConfirmed = 1;

  explicit NgramDrafts(std::size_t n_entries) : entries_(n_entries) {}

  // As FNV-1a over whole tokens, with the mixing of MurmurHash3 at the end.
  static std::uint64_t key_of(std::span<const std::int32_t> run) noexcept {
    std::uint64_t key = 0xCBF29CE484222325u + run.size();
    for (const std::int32_t token : run) {
      key = (key ^ static_cast<std::uint32_t>(token)) * 0x9E3779B97F4A7C15u;
    }
    key = (key ^ key >> 33) * 0xFF51AFD7ED558CCDu;
    return key ^ key >> 33;
  }
  static std::uint32_t mark_of(std::uint64_t key) noexcept {
    return static_cast<std::uint32_t>(key >> 32) & ~kConfirmed;
  }
  Entry& entry_of(std::uint64_t key) noexcept {
    return entries_[static_cast<std::uint32_t>(key) & (entries_.size() - 1)];
  }

  void learn(std::uint64_t key, std::int32_t token) noexcept {
    Entry& entry = entry_of(key);
    const bool is_same = (entry.mark & ~kConfirmed) == mark_of(key) && entry.token == token;
    entry = {mark_of(key) | (is_same ? kConfirmed : 0), token};
  }

  bool guess(std::span<const std::int32_t> text, Draft& draft) noexcept {
    for (const Run& run : kRuns) {
      if (run.length > text.size()) continue;
      const std::uint64_t key = key_of(text.last(run.length));
      const Entry& entry = entry_of(key);
      if (entry.token < 0 || (entry.mark & ~kConfirmed) != mark_of(key)) continue;
      const bool is_confirmed = (entry.mark & kConfirmed) != 0;
      draft = {entry.token, static_cast<std::uint8_t>(run.kind + (is_confirmed ? 0 : 1))};
      return true;
    }
    return false;
  }

  std::vector<Entry> entries_;
};

}}  // namespace nibble::NIBBLE_ABI
