// SPDX-License-Identifier: Apache-2.0
//
// Finds tokens that are recognized as a whole in running text: user-defined pieces and, where the
// caller allows it, control tokens that are spelled out ("<|user|>").
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

// Holds only token ids; every call takes the vocabulary that they were made from.
class SpecialTokens {
 public:
  // Collects user-defined pieces; with `control` also control and unknown ones.
  SpecialTokens(const Vocabulary& vocabulary, bool control) {
    for (std::int32_t id = 0; vocabulary.contains(id); ++id) {
      const PieceType type = vocabulary.type(id);
      const bool wanted = type == PieceType::user_defined ||
                          (control && (type == PieceType::control || type == PieceType::unknown));
      // Among ids with equal texts, take only the one that find() returns.
      if (wanted && vocabulary.find(vocabulary.text(id)) == id) ids_.push_back(id);
    }
    std::sort(ids_.begin(), ids_.end(), [&](std::int32_t a, std::int32_t b) {
      return vocabulary.text(a) < vocabulary.text(b);
    });
    std::size_t i = 0;
    for (std::size_t byte = 0; byte < 256; ++byte) {
      begins_[byte] = i;
      while (i < ids_.size() && byte_at(vocabulary, ids_[i], 0) == byte) ++i;
    }
    begins_[256] = i;
  }

  struct Match {
    std::size_t at = std::string_view::npos;  // npos: no token occurs
    std::int32_t id = kNoToken;
  };

  // The leftmost token in `text`; if several begin there, the longest, as in SentencePiece and
  // Hugging Face. Time: the bytes up to the match times the length of the longest token that begins
  // there, however many tokens there are.
  Match find(const Vocabulary& vocabulary, std::string_view text) const noexcept {
    if (ids_.empty()) return {};
    for (std::size_t at = 0; at < text.size(); ++at) {
      const std::int32_t id = longest_prefix(vocabulary, text.substr(at));
      if (id != kNoToken) return {at, id};
    }
    return {};
  }

 private:
  static std::size_t byte_at(const Vocabulary& vocabulary, std::int32_t id,
                             std::size_t i) noexcept {
    return static_cast<unsigned char>(vocabulary.text(id)[i]);
  }

  // Descends the sorted tokens like a trie: first..last are the tokens that share the first `depth`
  // bytes with `text`. If one of them has exactly `depth` bytes, it comes first.
  std::int32_t longest_prefix(const Vocabulary& vocabulary, std::string_view text) const noexcept {
    const auto lead = static_cast<unsigned char>(text[0]);
    auto first = ids_.begin() + static_cast<std::ptrdiff_t>(begins_[lead]);
    auto last = ids_.begin() + static_cast<std::ptrdiff_t>(begins_[lead + std::size_t{1}]);
    std::int32_t longest = kNoToken;
    for (std::size_t depth = 1; first != last; ++depth) {
      if (vocabulary.text(*first).size() == depth) longest = *first++;
      if (depth == text.size()) break;
      const std::size_t next = static_cast<unsigned char>(text[depth]);
      first = std::partition_point(
          first, last, [&](std::int32_t id) { return byte_at(vocabulary, id, depth) < next; });
      last = std::partition_point(
          first, last, [&](std::int32_t id) { return byte_at(vocabulary, id, depth) == next; });
    }
    return longest;
  }

  std::vector<std::int32_t> ids_;          // sorted by text
  std::array<std::size_t, 257> begins_{};  // where in ids_ the tokens with each first byte begin
};

}}}  // namespace nibble::NIBBLE_ABI::text
