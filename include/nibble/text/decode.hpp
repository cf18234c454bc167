// SPDX-License-Identifier: Apache-2.0
//
// The text of a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/text/byte_characters.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Appends the text of one token to `out`: never more bytes than the piece has. Control and unknown
// tokens have no text; with `show_special` they have their names.
inline void append_token_text(const Vocabulary& vocabulary, std::int32_t id, bool show_special,
                              std::string& out) {
  std::string_view piece = vocabulary.text(id);
  switch (vocabulary.type(id)) {
    case PieceType::control:
    case PieceType::unknown:
      if (show_special) out.append(piece);
      return;
    case PieceType::byte: out.push_back(static_cast<char>(vocabulary.byte_value(id))); return;
    case PieceType::user_defined:
      if (vocabulary.is_byte_level()) return void(out.append(piece));
      break;
    case PieceType::normal:
    case PieceType::unused:
    case PieceType::undefined:
      if (vocabulary.is_byte_level()) return append_bytes(out, piece);
      break;
  }
  for (std::size_t at; (at = piece.find(kSpmSpace)) != piece.npos;) {
    out.append(piece.substr(0, at)).push_back(' ');
    piece.remove_prefix(at + kSpmSpace.size());
  }
  out.append(piece);
}

}}}  // namespace nibble::NIBBLE_ABI::text
