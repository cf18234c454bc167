// SPDX-License-Identifier: Apache-2.0
//
// Byte-level byte-pair encoding, for text without special tokens. The text is cut into words. A
// word begins as one token for each of its bytes; neighbours are merged in the order of the
// vocabulary's list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/text/byte_characters.hpp"
#include "nibble/text/cut.hpp"
#include "nibble/text/merge_list.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/word_memory.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Encodes texts one after the other; the buffers are reused, and words are remembered.
class BpeEncoder {
 public:
  // `expected` bytes are going to be encoded.
  BpeEncoder(const Vocabulary& vocabulary, std::size_t expected)
      : vocabulary_(vocabulary), memory_(expected) {}

  // Appends the ids of `text`, which may be any bytes. Time O(n log n), memory O(n).
  void encode(std::string_view text, std::vector<std::int32_t>& ids) {
    WordCutter words(vocabulary_.pre_tokenizer()->cuts, text);
    for (std::string_view word; !(word = words.next()).empty();)
      memory_.append(word, ids, [&](std::string_view w) { encode_word(w, ids); });
  }

 private:
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
    if (vocabulary_.settings().ignore_merges) {
      characters_.clear();
      append_byte_characters(characters_, word);
      const std::int32_t id = vocabulary_.find_ordinary(characters_);
      if (id != kNoToken) return ids.push_back(id);
    }
    symbols_.clear();
    for (const char c : word)
      symbols_.add(1, vocabulary_.byte_token(static_cast<unsigned char>(c)));
    symbols_.merge(ListedMerges{vocabulary_});
    const std::int32_t unknown = vocabulary_.unknown();
    symbols_.for_each([&](const MergeList::Symbol& symbol) {
      const std::int32_t id = symbol.id != kNoToken ? symbol.id : unknown;
      if (id != kNoToken) ids.push_back(id);
    });
  }

  const Vocabulary& vocabulary_;
  WordMemory memory_;
  std::string characters_;
  MergeList symbols_;
};

}}}  // namespace nibble::NIBBLE_ABI::text
