// SPDX-License-Identifier: Apache-2.0
//
// Remembers the ids of words: most words of a text come again.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/text/hash_index.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

class WordMemory {
 public:
  // `expected` bytes are going to be encoded: how many words are worth remembering.
  explicit WordMemory(std::size_t expected)
      : words_(std::bit_ceil(std::clamp(expected / 16, std::size_t{16}, std::size_t{kMaxWords}))) {}

  // Appends the ids of `word` to `ids`: those that are remembered, or those that encode(word)
  // appends. A word of another hash takes the place of one that is remembered.
  template <class Encode>
  void append(std::string_view word, std::vector<std::int32_t>& ids, Encode encode) {
    if (word.size() > Word::kMaxBytes) return encode(word);
    Word& known = words_[io::narrow<std::size_t>(detail::hash_of(word) & (words_.size() - 1))];
    const std::size_t n = ids.size();
    if (std::string_view(known.bytes, known.size) == word) {
      ids.resize(n + known.n_ids);
      std::copy_n(known.ids, known.n_ids, ids.data() + n);
      return;
    }
    encode(word);
    const std::size_t n_ids = ids.size() - n;
    if (n_ids > Word::kMaxIds) return;
    known.size = static_cast<std::uint8_t>(word.copy(known.bytes, word.size()));
    known.n_ids = static_cast<std::uint8_t>(n_ids);
    std::copy_n(ids.data() + n, n_ids, known.ids);
  }

 private:
  struct Word {
    static constexpr std::size_t kMaxBytes = 18, kMaxIds = 5;
    std::int32_t ids[kMaxIds];
    std::uint8_t n_ids = 0;
    std::uint8_t size = 0;  // 0: no word
    char bytes[kMaxBytes];
  };
  static constexpr std::size_t kMaxWords = std::size_t{1} << 14;

  std::vector<Word> words_;  // by hash; a power of two
};

}}}  // namespace nibble::NIBBLE_ABI::text
