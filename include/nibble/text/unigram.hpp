// SPDX-License-Identifier: Apache-2.0
//
// SentencePiece's unigram model ("t5"), for text without special tokens. The text is normalized by
// the table of the vocabulary, and spaces become U+2581. Of all ways to spell it in pieces, the one
// whose scores have the greatest sum is taken.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/piece_trie.hpp"
#include "nibble/text/spm_normalizer.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/word_memory.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Encodes texts one after the other; the buffers are reused, and words are remembered.
class UnigramEncoder {
 public:
  // `pieces` are those of the vocabulary that text may become; `expected` bytes are going to be
  // encoded.
  UnigramEncoder(const Vocabulary& vocabulary, const PieceTrie& pieces, std::size_t expected)
      : vocabulary_(vocabulary),
        pieces_(pieces),
        normalizer_(vocabulary.settings()),
        memory_(expected) {}

  // Appends the ids of `text` to `ids`. The text may be any bytes; those that are no UTF-8 become
  // U+FFFD. What pieces cannot spell becomes byte pieces, if there are all 256, or one unknown
  // token for characters in a row. Time: the text times the longest piece (each of whose bytes is
  // searched among the pieces that share those before it); memory O(n).
  void encode(std::string_view text, bool space_prefix, std::vector<std::int32_t>& ids) {
    std::string_view rest = normalizer_.normalize(text, space_prefix);
    while (!rest.empty()) {
      const std::string_view word = vocabulary_.first_word(rest);
      memory_.append(word, ids, [&](std::string_view w) { encode_word(w, ids); });
      rest.remove_prefix(word.size());
    }
  }

 private:
  // The best way to spell the text up to some place.
  struct Best {
    double score = 0;
    std::size_t begin = 0;       // of the last piece
    std::int32_t id = kNoToken;  // of the last piece; kNoToken: a character that none spells
    bool is_reached = false;
  };
  // An unknown character scores less than every piece.
  static constexpr double kUnknownPenalty = 10;

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
    best_.assign(word.size() + 1, Best());
    best_[0].is_reached = true;
    for (std::size_t at = 0; at < word.size();) {
      const std::size_t size = (std::max)(utf8_length(word.substr(at)), std::size_t{1});
      bool is_spelled = false;
      const auto offer = [&](std::int32_t id, std::size_t length, double score) {
        Best& best = best_[at + length];
        score += best_[at].score;
        if (!best.is_reached || score > best.score) best = {score, at, id, true};
      };
      pieces_.for_each_prefix(vocabulary_, word.substr(at),
                              [&](std::int32_t id, std::size_t length) {
                                is_spelled = is_spelled || length == size;
                                offer(id, length, double{vocabulary_.score(id)});
                              });
      if (!is_spelled) offer(kNoToken, size, double{vocabulary_.least_score()} - kUnknownPenalty);
      at += size;
    }
    spell(word, ids);
  }

  // Appends the ids of the best way, which is known from its end.
  void spell(std::string_view word, std::vector<std::int32_t>& ids) {
    const std::size_t n = ids.size();
    bool is_unknown = false;  // what follows
    for (std::size_t end = word.size(); end > 0;) {
      const Best& best = best_[end];
      if (best.id != kNoToken) {
        ids.push_back(best.id);
      } else if (vocabulary_.spells_bytes()) {
        for (std::size_t i = end; i-- > best.begin;)
          ids.push_back(vocabulary_.byte_token(static_cast<unsigned char>(word[i])));
      } else if (!is_unknown) {
        ids.push_back(vocabulary_.unknown());
      }
      is_unknown = best.id == kNoToken;
      end = best.begin;
    }
    std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(n), ids.end());
  }

  const Vocabulary& vocabulary_;
  const PieceTrie& pieces_;
  SpmNormalizer normalizer_;
  WordMemory memory_;
  std::vector<Best> best_;  // by the place where the way ends
};

}}}  // namespace nibble::NIBBLE_ABI::text
