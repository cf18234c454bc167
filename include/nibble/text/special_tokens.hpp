// SPDX-License-Identifier: Apache-2.0
//
// Finds tokens that are recognized as a whole in running text: user-defined pieces and, where the
// caller allows it, control tokens that are spelled out ("<|user|>").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/text/piece_trie.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Every call takes the vocabulary that the tokens were made from.
class SpecialTokens {
 public:
  // Collects user-defined pieces; with `control` also control and unknown ones.
  SpecialTokens(const Vocabulary& vocabulary, bool control)
      : tokens_(vocabulary, [control](PieceType type) {
          return type == PieceType::user_defined ||
                 (control && (type == PieceType::control || type == PieceType::unknown));
        }) {}

  struct Match {
    std::size_t at = std::string_view::npos;  // npos: no token occurs
    std::int32_t id = kNoToken;
  };

  // The leftmost token in `text`; if several begin there, the longest, as in SentencePiece and
  // Hugging Face. Time: the bytes up to the match times the length of the longest token that begins
  // there, however many tokens there are.
  Match find(const Vocabulary& vocabulary, std::string_view text) const noexcept {
    if (tokens_.is_empty()) return {};
    for (std::size_t at = 0; at < text.size(); ++at) {
      const std::int32_t id = tokens_.longest_prefix(vocabulary, text.substr(at));
      if (id != kNoToken) return {at, id};
    }
    return {};
  }

 private:
  PieceTrie tokens_;
};

}}}  // namespace nibble::NIBBLE_ABI::text
