// SPDX-License-Identifier: Apache-2.0
//
// The SentencePiece algorithm for text without special tokens. The text is normalized, and spaces
// become U+2581. Neighbours are merged: the pair whose union has the highest score first (GGUF's
// "llama" vocabularies), or in the order of a list of merges. Byte pieces spell what remains.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/cut.hpp"
#include "nibble/text/merge_list.hpp"
#include "nibble/text/spm_normalizer.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/word_memory.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Encodes texts one after the other; the buffers are reused, and words are remembered.
class SpmEncoder {
 public:
  // `expected` bytes are going to be encoded.
  SpmEncoder(const Vocabulary& vocabulary, std::size_t expected)
      : vocabulary_(vocabulary), normalizer_(vocabulary.settings()), memory_(expected) {}

  // Appends the ids of `text` to `ids`. With `space_prefix`, it encodes as if a space stood before
  // the text. The text may be any bytes; those that are not UTF-8 are encoded one by one (with a
  // table of characters, as U+FFFD).
  //
  // The text is split into characters. Then, repeatedly, two neighbours are merged: those whose
  // union is the piece with the highest score; among equal scores, the leftmost two. A character
  // that is not a piece is spelled in byte pieces, or becomes one unknown token if a byte piece is
  // missing (with fuse_unknown, several side by side become one). Text that spells the name of a
  // control, unknown or byte piece never becomes that piece.
  //
  // Time O(n log n), memory O(n).
  void encode(std::string_view text, bool space_prefix, std::vector<std::int32_t>& ids) {
    std::string_view rest = normalizer_.normalize(text, space_prefix);
    if (vocabulary_.pre_tokenizer() != nullptr && !vocabulary_.pre_tokenizer()->cuts.empty()) {
      WordCutter pieces(vocabulary_.pre_tokenizer()->cuts, rest);
      for (std::string_view piece; !(piece = pieces.next()).empty();) encode_piece(piece, ids);
      return;
    }
    while (!rest.empty()) {
      const std::string_view piece =
          vocabulary_.settings().splits_spaces ? vocabulary_.first_word(rest) : rest;
      encode_piece(piece, ids);
      rest.remove_prefix(piece.size());
    }
  }

  // How many pieces were looked up so far: at most four per character.
  std::size_t n_lookups() const noexcept { return n_lookups_; }

 private:
  using Symbol = MergeList::Symbol;

  // A piece of the text between cuts.
  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) {
    if (vocabulary_.settings().ignore_merges) {
      const std::int32_t id = vocabulary_.find_ordinary(piece);
      if (id != kNoToken) return ids.push_back(id);
    }
    while (!piece.empty()) {
      const std::string_view word = vocabulary_.first_word(piece);
      memory_.append(word, ids, [&](std::string_view w) { encode_word(w, ids); });
      piece.remove_prefix(word.size());
    }
  }

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
    symbols_.clear();
    for (std::size_t at = 0; at < word.size();) {
      const std::size_t size = (std::max)(utf8_length(word.substr(at)), std::size_t{1});
      symbols_.add(static_cast<std::uint32_t>(size), look_up(word.substr(at, size)));
      at += size;
    }
    if (vocabulary_.settings().kind == VocabularyKind::bpe) {
      symbols_.merge(ListedMerges{vocabulary_});
    } else {
      symbols_.merge([&](const Symbol& a, const Symbol& b) -> MergeList::Union {
        const std::int32_t id = look_up(word.substr(a.begin, a.size + b.size));
        return {id, id == kNoToken ? 0 : vocabulary_.score(id)};
      });
    }
    bool was_unknown = false;
    symbols_.for_each([&](const Symbol& symbol) {
      const bool is_spelled =
          symbol.id == kNoToken && spell(word.substr(symbol.begin, symbol.size), ids);
      const std::int32_t id = symbol.id != kNoToken ? symbol.id : vocabulary_.unknown();
      const bool is_unknown = symbol.id == kNoToken && !is_spelled;
      const bool is_in_run = is_unknown && was_unknown && vocabulary_.settings().fuse_unknown;
      if (!is_spelled && !is_in_run && id != kNoToken) ids.push_back(id);
      was_unknown = is_unknown;
    });
  }

  std::int32_t look_up(std::string_view text) noexcept {
    ++n_lookups_;
    return vocabulary_.find_ordinary(text);
  }

  // Appends the byte pieces of a character; false if one is missing.
  bool spell(std::string_view character, std::vector<std::int32_t>& ids) {
    const std::size_t n = ids.size();
    for (const char c : character) {
      const std::int32_t id = vocabulary_.byte_token(static_cast<unsigned char>(c));
      if (id == kNoToken) {
        ids.resize(n);
        return false;
      }
      ids.push_back(id);
    }
    return true;
  }

  const Vocabulary& vocabulary_;
  SpmNormalizer normalizer_;
  WordMemory memory_;
  MergeList symbols_;
  std::size_t n_lookups_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::text
