// SPDX-License-Identifier: Apache-2.0
//
// The SentencePiece algorithm for GGUF's "llama" vocabularies, for text without special tokens.
// Spaces become U+2581. Neighbours are merged, the pair whose union has the highest score first.
// Byte pieces spell what remains.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/text/merge_list.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Encodes texts one after the other; the buffers are reused.
class SpmEncoder {
 public:
  // Appends the ids of `text` to `ids`. With `space_prefix`, it encodes as if a space stood before
  // the text. The text may be any bytes, at most kMaxBytes; bytes that are not UTF-8 are encoded
  // one by one.
  //
  // The text is split into characters. Then, repeatedly, the two neighbours whose union is the
  // piece with the highest score are merged; among equal scores, the leftmost two. A character that
  // is not a piece is spelled in byte pieces, or becomes one unknown token if a byte piece is
  // missing. Text that spells the name of a control, unknown or byte piece never becomes that
  // piece.
  //
  // Time O(n log n), memory O(n).
  void encode(const Vocabulary& vocabulary, std::string_view text, bool space_prefix,
              std::vector<std::int32_t>& ids) {
    cut(vocabulary, text, space_prefix);
    symbols_.merge([&](const Symbol& a, const Symbol& b) -> MergeList::Union {
      const std::int32_t id = look_up(vocabulary, a.begin, a.size + b.size);
      return {id, id == kNoToken ? 0 : vocabulary.score(id)};
    });
    symbols_.for_each([&](const Symbol& symbol) { spell(vocabulary, symbol, ids); });
  }

  // Three bytes for each of these bytes can still be counted in 31 bits.
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 29;

  // How many pieces were looked up so far: at most four per character.
  std::size_t n_lookups() const noexcept { return n_lookups_; }

 private:
  using Symbol = MergeList::Symbol;

  // The token for `size` bytes of the text at `begin`, if text may become that token.
  std::int32_t look_up(const Vocabulary& vocabulary, std::uint32_t begin, std::uint32_t size) {
    ++n_lookups_;
    const std::int32_t id = vocabulary.find(std::string_view(text_).substr(begin, size));
    if (id == kNoToken) return id;
    const PieceType type = vocabulary.type(id);
    const bool named_only =
        type == PieceType::control || type == PieceType::unknown || type == PieceType::byte;
    return named_only ? kNoToken : id;
  }

  void cut(const Vocabulary& vocabulary, std::string_view text, bool space_prefix) {
    NIBBLE_ASSERT(text.size() <= kMaxBytes);
    const auto n_spaces =
        static_cast<std::size_t>(std::count(text.begin(), text.end(), ' ')) + space_prefix;
    text_.clear();
    text_.reserve(text.size() + n_spaces * kSpmSpace.size());
    symbols_.clear();
    const auto add = [&](std::string_view character) {
      const auto begin = io::narrow<std::uint32_t>(text_.size());
      const auto size = io::narrow<std::uint32_t>(character.size());
      text_.append(character);
      symbols_.add(size, look_up(vocabulary, begin, size));
    };
    if (space_prefix) add(kSpmSpace);
    while (!text.empty()) {
      const std::size_t size = std::max<std::size_t>(utf8_length(text), 1);
      add(text[0] == ' ' ? kSpmSpace : text.substr(0, size));
      text.remove_prefix(size);
    }
  }

  void spell(const Vocabulary& vocabulary, const Symbol& symbol, std::vector<std::int32_t>& ids) {
    if (symbol.id != kNoToken) {
      ids.push_back(symbol.id);
      return;
    }
    const std::size_t n = ids.size();
    for (const char c : std::string_view(text_).substr(symbol.begin, symbol.size)) {
      const std::int32_t id = vocabulary.byte_token(static_cast<unsigned char>(c));
      if (id == kNoToken) {
        ids.resize(n);
        ids.push_back(vocabulary.settings().unk);  // there is one if a byte piece is missing
        return;
      }
      ids.push_back(id);
    }
  }

  std::string text_;  // with U+2581 for spaces
  MergeList symbols_;
  std::size_t n_lookups_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::text
