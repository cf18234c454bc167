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
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

NIBBLE_HIDDEN inline constexpr std::string_view kSpmSpace = "\xE2\x96\x81";  // U+2581, "▁"

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
    merge(vocabulary);
    for (std::int32_t i = symbols_.empty() ? kNone : 0; i != kNone; i = at(i).next)
      spell(vocabulary, at(i), ids);
  }

  // Three bytes for each of these bytes can still be counted in 31 bits.
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 29;

  // How many pieces were looked up so far: at most four per character.
  std::size_t n_lookups() const noexcept { return n_lookups_; }

 private:
  static constexpr std::int32_t kNone = -1;

  struct Symbol {
    std::uint32_t begin = 0;  // in text_
    std::uint32_t size = 0;   // 0: merged into its left neighbour
    std::int32_t previous = kNone;
    std::int32_t next = kNone;
    std::int32_t id = kNoToken;
  };

  // Two neighbours that can be merged, unless one of them changes before their turn.
  struct Pair {
    float score;
    std::int32_t left;
    std::uint32_t size;  // of both together
    std::int32_t id;     // of both together
  };

  // Order for the standard heap functions, which keep the greatest element on top.
  static bool comes_later(const Pair& a, const Pair& b) noexcept {
    return a.score < b.score || (a.score == b.score && a.left > b.left);
  }

  Symbol& at(std::int32_t i) noexcept { return symbols_[static_cast<std::size_t>(i)]; }

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
      const auto i = static_cast<std::int32_t>(symbols_.size());
      text_.append(character);
      symbols_.push_back({begin, size, i - 1, i + 1, look_up(vocabulary, begin, size)});
    };
    if (space_prefix) add(kSpmSpace);
    while (!text.empty()) {
      const std::size_t size = std::max<std::size_t>(utf8_length(text), 1);
      add(text[0] == ' ' ? kSpmSpace : text.substr(0, size));
      text.remove_prefix(size);
    }
    if (!symbols_.empty()) symbols_.back().next = kNone;
  }

  void merge(const Vocabulary& vocabulary) {
    pairs_.clear();
    for (std::int32_t i = 0; !symbols_.empty() && at(i).next != kNone; ++i) offer(vocabulary, i);
    std::make_heap(pairs_.begin(), pairs_.end(), comes_later);
    while (!pairs_.empty()) {
      std::pop_heap(pairs_.begin(), pairs_.end(), comes_later);
      const Pair pair = pairs_.back();
      pairs_.pop_back();
      Symbol& left = at(pair.left);
      // Symbols only grow or vanish, so an unchanged sum of sizes means unchanged neighbours.
      if (left.size == 0 || left.next == kNone) continue;
      Symbol& right = at(left.next);
      if (left.size + right.size != pair.size) continue;

      left.size = pair.size;
      left.id = pair.id;
      left.next = right.next;
      right.size = 0;
      if (left.next != kNone) at(left.next).previous = pair.left;

      const std::size_t n = pairs_.size();
      if (left.previous != kNone) offer(vocabulary, left.previous);
      if (left.next != kNone) offer(vocabulary, pair.left);
      for (auto end = pairs_.begin() + static_cast<std::ptrdiff_t>(n); end != pairs_.end();)
        std::push_heap(pairs_.begin(), ++end, comes_later);
    }
  }

  // Adds the pair of symbol `left` and the one after it to pairs_ (not yet as a heap) if their
  // union is a piece.
  void offer(const Vocabulary& vocabulary, std::int32_t left) {
    const Symbol& a = at(left);
    const std::uint32_t size = a.size + at(a.next).size;
    const std::int32_t id = look_up(vocabulary, a.begin, size);
    if (id != kNoToken) pairs_.push_back({vocabulary.score(id), left, size, id});
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
  std::vector<Symbol> symbols_;
  std::vector<Pair> pairs_;
  std::size_t n_lookups_ = 0;
};

// Appends the text of one token to `out`: never more bytes than the piece has. Control and unknown
// tokens have no text; with `show_special` they have their names.
inline void spm_append_text(const Vocabulary& vocabulary, std::int32_t id, bool show_special,
                            std::string& out) {
  std::string_view piece = vocabulary.text(id);
  switch (vocabulary.type(id)) {
    case PieceType::control:
    case PieceType::unknown:
      if (show_special) out.append(piece);
      return;
    case PieceType::byte: out.push_back(static_cast<char>(vocabulary.byte_value(id))); return;
    case PieceType::user_defined: out.append(piece); return;
    case PieceType::normal:
    case PieceType::unused:
    case PieceType::undefined: break;
  }
  for (std::size_t at; (at = piece.find(kSpmSpace)) != piece.npos;) {
    out.append(piece.substr(0, at)).push_back(' ');
    piece.remove_prefix(at + kSpmSpace.size());
  }
  out.append(piece);
}

}}}  // namespace nibble::NIBBLE_ABI::text
