// SPDX-License-Identifier: Apache-2.0
//
// Byte-pair encoding by a list of merges, for text without special tokens. A word begins as one
// token for each of its bytes (or, in a few vocabularies, for each of its characters); neighbours
// are merged in the order of the list.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/byte_characters.hpp"
#include "nibble/text/cut.hpp"
#include "nibble/text/merge_list.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Encodes texts one after the other; the buffers are reused, and the words of one text are
// remembered for the next.
class BpeEncoder {
 public:
  // `expected` bytes are going to be encoded: how many words are worth remembering.
  explicit BpeEncoder(const Vocabulary& vocabulary, std::size_t expected)
      : vocabulary_(vocabulary),
        words_(std::bit_ceil(std::clamp(expected / 16, std::size_t{16}, kMaxWords))) {
    const std::int32_t unk = vocabulary.settings().unk;
    if (unk != kNoToken && vocabulary.type(unk) == PieceType::unknown) unknown_ = unk;
  }

  // Appends the ids of `text`, which may be any bytes, at most kMaxBytes, to `ids`. Time
  // O(n log n), memory O(n).
  void encode(std::string_view text, std::vector<std::int32_t>& ids) {
    const PreTokenizer& pre_tokenizer = *vocabulary_.pre_tokenizer();
    WordCutter words(pre_tokenizer.cuts, text);
    for (std::string_view word; !(word = words.next()).empty();) encode_word(word, ids);
  }

 private:
  // A word that was encoded, with its ids.
  struct Word {
    static constexpr std::size_t kMaxBytes = 23, kMaxIds = 6;
    char bytes[kMaxBytes];
    std::uint8_t size = 0;  // 0: no word
    std::int32_t ids[kMaxIds];
    std::uint32_t n_ids = 0;
  };
  static constexpr std::size_t kMaxWords = std::size_t{1} << 13;

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
    if (word.size() > Word::kMaxBytes) return merge(word, ids);
    Word& known = words_[detail::hash_of(word) & (words_.size() - 1)];
    if (std::string_view(known.bytes, known.size) == word) {
      ids.insert(ids.end(), known.ids, known.ids + known.n_ids);
      return;
    }
    const std::size_t n = ids.size();
    merge(word, ids);
    if (ids.size() - n > Word::kMaxIds) return;
    known.size = static_cast<std::uint8_t>(word.copy(known.bytes, word.size()));
    known.n_ids = static_cast<std::uint32_t>(ids.size() - n);
    std::copy(ids.begin() + static_cast<std::ptrdiff_t>(n), ids.end(), known.ids);
  }

  void merge(std::string_view word, std::vector<std::int32_t>& ids) {
    if (vocabulary_.settings().ignore_merges) {
      characters_.clear();
      append_byte_characters(characters_, word);
      const std::int32_t id = vocabulary_.find(characters_);
      if (id != kNoToken && vocabulary_.type(id) == PieceType::normal) {
        ids.push_back(id);
        return;
      }
    }
    symbols_.clear();
    for (const char c : word)
      symbols_.add(1, vocabulary_.byte_token(static_cast<unsigned char>(c)));
    symbols_.merge([&](const MergeList::Symbol& a, const MergeList::Symbol& b) -> MergeList::Union {
      const std::int32_t rank = vocabulary_.find_merge(a.id, b.id);
      if (rank < 0) return {};
      return {vocabulary_.merges()[static_cast<std::size_t>(rank)].result,
              -static_cast<float>(rank)};
    });
    symbols_.for_each([&](const MergeList::Symbol& symbol) {
      const std::int32_t id = symbol.id != kNoToken ? symbol.id : unknown_;
      if (id != kNoToken) ids.push_back(id);
    });
  }

  const Vocabulary& vocabulary_;
  // For bytes without a token. (Files also name other tokens; text must not become those.)
  std::int32_t unknown_ = kNoToken;
  std::vector<Word> words_;  // by hash; a power of two
  std::string characters_;
  MergeList symbols_;
};

}}}  // namespace nibble::NIBBLE_ABI::text
