// SPDX-License-Identifier: Apache-2.0
//
// Finds the pieces that a text begins with: the pieces in order, searched like a trie.
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
class PieceTrie {
 public:
  PieceTrie() = default;
  // The pieces of the vocabulary whose type is_wanted(type). Among ids with equal texts, only the
  // one that find() returns. Pieces without text are left out.
  template <class IsWanted>
  PieceTrie(const Vocabulary& vocabulary, IsWanted is_wanted) {
    for (std::int32_t id = 0; vocabulary.contains(id); ++id)
      if (is_wanted(vocabulary.type(id)) && vocabulary.find(vocabulary.text(id)) == id)
        ids_.push_back(id);
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

  bool is_empty() const noexcept { return ids_.empty(); }

  // Calls f(id, size) for the pieces that `text`, which is not empty, begins with: the shortest one
  // first. Time: the length of the text that pieces begin with, however many pieces there are.
  template <class Function>
  void for_each_prefix(const Vocabulary& vocabulary, std::string_view text, Function f) const {
    // first..last are the pieces that share the first `depth` bytes with `text`. If one of them has
    // exactly `depth` bytes, it comes first.
    const auto lead = static_cast<unsigned char>(text[0]);
    auto first = ids_.begin() + static_cast<std::ptrdiff_t>(begins_[lead]);
    auto last = ids_.begin() + static_cast<std::ptrdiff_t>(begins_[lead + std::size_t{1}]);
    for (std::size_t depth = 1; first != last; ++depth) {
      if (vocabulary.text(*first).size() == depth) f(*first++, depth);
      if (depth == text.size()) break;
      const std::size_t next = static_cast<unsigned char>(text[depth]);
      first = std::partition_point(
          first, last, [&](std::int32_t id) { return byte_at(vocabulary, id, depth) < next; });
      last = std::partition_point(
          first, last, [&](std::int32_t id) { return byte_at(vocabulary, id, depth) == next; });
    }
  }

  // The longest piece that `text`, which is not empty, begins with, or kNoToken.
  std::int32_t longest_prefix(const Vocabulary& vocabulary, std::string_view text) const noexcept {
    std::int32_t longest = kNoToken;
    for_each_prefix(vocabulary, text, [&](std::int32_t id, std::size_t) { longest = id; });
    return longest;
  }

 private:
  static std::size_t byte_at(const Vocabulary& vocabulary, std::int32_t id,
                             std::size_t i) noexcept {
    return static_cast<unsigned char>(vocabulary.text(id)[i]);
  }

  std::vector<std::int32_t> ids_;          // sorted by text
  std::array<std::size_t, 257> begins_{};  // where in ids_ the pieces with each first byte begin
};

}}}  // namespace nibble::NIBBLE_ABI::text
