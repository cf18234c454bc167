// SPDX-License-Identifier: Apache-2.0
//
// Vocabularies for tests of grammars.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/text/vocabulary.hpp"
#include "why.hpp"

namespace test {

// All 256 bytes, a control, an unknown and an end token, and these texts.
class SmallVocabulary {
 public:
  static constexpr std::int32_t kUnknown = 0, kControl = 1, kEnd = 2;

  explicit SmallVocabulary(const std::vector<std::string>& texts) {
    using nibble::text::PieceType;
    add("<unk>", PieceType::unknown);
    add("<role>", PieceType::control);
    add("</s>", PieceType::control);
    for (int byte = 0; byte < 256; ++byte) {
      constexpr char kDigits[] = "0123456789ABCDEF";
      add(std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">", PieceType::byte);
    }
    for (const std::string& text : texts) add(text, PieceType::normal);
    std::vector<nibble::text::Piece> pieces;
    for (std::size_t i = 0; i < names_.size(); ++i) pieces.push_back({names_[i], 0, types_[i]});
    nibble::text::VocabularySettings settings;
    settings.bos = nibble::text::kNoToken;
    settings.unk = kUnknown;
    settings.eos = kEnd;
    settings.add_space_prefix = false;
    auto made = nibble::text::Vocabulary::make(pieces, settings);
    REQUIRE_MESSAGE(made, why(made));
    all_.push_back(*std::move(made));
  }

  const nibble::text::Vocabulary& get() const { return all_.front(); }

 private:
  void add(std::string name, nibble::text::PieceType type) {
    names_.push_back(std::move(name));
    types_.push_back(type);
  }

  std::vector<std::string> names_;
  std::vector<nibble::text::PieceType> types_;
  std::vector<nibble::text::Vocabulary> all_;  // one
};

// Every text of one to `length` of these parts.
inline std::vector<std::string> combinations(const std::vector<std::string>& parts, int length) {
  std::vector<std::string> all, last = {""};
  for (int i = 0; i < length; ++i) {
    std::vector<std::string> next;
    for (const std::string& begin : last)
      for (const std::string& part : parts) next.push_back(begin + part);
    all.insert(all.end(), next.begin(), next.end());
    last = next;
  }
  return all;
}

}  // namespace test
