// SPDX-License-Identifier: Apache-2.0
//
// The SentencePiece algorithm for text without special tokens. Spaces become U+2581. Neighbours are
// merged: the pair whose union has the highest score first (GGUF's "llama" vocabularies), or in the
// order of a list of merges. Byte pieces spell what remains.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/cut.hpp"
#include "nibble/text/merge_list.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/word_memory.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Appends `text` with U+2581 in place of spaces.
inline void append_escaped(std::string& out, std::string_view text) {
  for (std::size_t at; (at = text.find(' ')) != text.npos; text.remove_prefix(at + 1))
    out.append(text.substr(0, at)).append(kSpmSpace);
  out.append(text);
}

// Encodes texts one after the other; the buffers are reused, and words are remembered.
class SpmEncoder {
 public:
  // `expected` bytes are going to be encoded.
  SpmEncoder(const Vocabulary& vocabulary, std::size_t expected)
      : vocabulary_(vocabulary), memory_(expected) {}

  // Appends the ids of `text` to `ids`. With `space_prefix`, it encodes as if a space stood before
  // the text. The text may be any bytes; those that are not UTF-8 are encoded one by one.
  //
  // The text is split into characters. Then, repeatedly, two neighbours are merged: those whose
  // union is the piece with the highest score; among equal scores, the leftmost two. A character
  // that is not a piece is spelled in byte pieces, or becomes one unknown token if a byte piece is
  // missing. Text that spells the name of a control, unknown or byte piece never becomes that
  // piece.
  //
  // Time O(n log n), memory O(n).
  void encode(std::string_view text, bool space_prefix, std::vector<std::int32_t>& ids) {
    text_.clear();
    if (space_prefix) text_.append(kSpmSpace);
    append_escaped(text_, text);
    if (vocabulary_.pre_tokenizer() == nullptr || vocabulary_.pre_tokenizer()->cuts.empty())
      return encode_piece(text_, ids);
    WordCutter pieces(vocabulary_.pre_tokenizer()->cuts, text_);
    for (std::string_view piece; !(piece = pieces.next()).empty();) {
      const std::int32_t id =
          vocabulary_.settings().ignore_merges ? vocabulary_.find_ordinary(piece) : kNoToken;
      if (id != kNoToken) {
        ids.push_back(id);
      } else {
        encode_piece(piece, ids);
      }
    }
  }

  // How many pieces were looked up so far: at most four per character.
  std::size_t n_lookups() const noexcept { return n_lookups_; }

 private:
  using Symbol = MergeList::Symbol;

  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) {
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
    symbols_.for_each([&](const Symbol& symbol) {
      if (symbol.id != kNoToken) return ids.push_back(symbol.id);
      spell(word.substr(symbol.begin, symbol.size), ids);
    });
  }

  std::int32_t look_up(std::string_view text) noexcept {
    ++n_lookups_;
    return vocabulary_.find_ordinary(text);
  }

  void spell(std::string_view character, std::vector<std::int32_t>& ids) {
    const std::size_t n = ids.size();
    for (const char c : character) {
      const std::int32_t id = vocabulary_.byte_token(static_cast<unsigned char>(c));
      if (id == kNoToken) {
        ids.resize(n);
        if (vocabulary_.unknown() != kNoToken) ids.push_back(vocabulary_.unknown());
        return;
      }
      ids.push_back(id);
    }
  }

  const Vocabulary& vocabulary_;
  WordMemory memory_;
  std::string text_;  // with U+2581 for spaces
  MergeList symbols_;
  std::size_t n_lookups_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::text
