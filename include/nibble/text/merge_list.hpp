// SPDX-License-Identifier: Apache-2.0
//
// A text as a list of symbols, neighbours of which are merged, the best pair first: what
// SentencePiece and byte-level BPE have in common.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

class MergeList {
 public:
  struct Symbol {
    std::uint32_t begin = 0;  // in the text
    std::uint32_t size = 0;   // 0: merged into its left neighbour
    std::int32_t previous = kNone;
    std::int32_t next = kNone;
    std::int32_t id = kNoToken;
  };
  // What two neighbours become together. Pairs with a higher score are merged first; among equal
  // scores, the leftmost.
  struct Union {
    std::int32_t id = kNoToken;  // kNoToken: they are not merged
    float score = 0;
  };

  void clear() noexcept { symbols_.clear(); }
  // Adds a symbol of `size` bytes behind the last one.
  void add(std::uint32_t size, std::int32_t id) {
    const auto i = static_cast<std::int32_t>(symbols_.size());
    const std::uint32_t begin = i == 0 ? 0 : symbols_.back().begin + symbols_.back().size;
    symbols_.push_back({begin, size, i - 1, i + 1, id});
  }

  // Merges until no pair is left that union_of(left, right) -> Union gives a token. Time
  // O(n log n), memory O(n).
  template <class UnionOf>
  void merge(UnionOf union_of) {
    if (symbols_.empty()) return;
    symbols_.back().next = kNone;
    pairs_.clear();
    for (std::int32_t i = 0; at(i).next != kNone; ++i) offer(i, union_of);
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
      if (left.previous != kNone) offer(left.previous, union_of);
      if (left.next != kNone) offer(pair.left, union_of);
      for (auto end = pairs_.begin() + static_cast<std::ptrdiff_t>(n); end != pairs_.end();)
        std::push_heap(pairs_.begin(), ++end, comes_later);
    }
  }

  // Calls f(symbol) for the symbols that are left, in their order.
  template <class Function>
  void for_each(Function f) const {
    for (std::int32_t i = symbols_.empty() ? kNone : 0; i != kNone;) {
      const Symbol& symbol = symbols_[static_cast<std::size_t>(i)];
      f(symbol);
      i = symbol.next;
    }
  }

 private:
  static constexpr std::int32_t kNone = -1;

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

  // Adds the pair of symbol `left` and the one after it to pairs_ (not yet as a heap) if they can
  // be merged.
  template <class UnionOf>
  void offer(std::int32_t left, UnionOf& union_of) {
    const Symbol& a = at(left);
    const Symbol& b = at(a.next);
    const Union both = union_of(a, b);
    if (both.id != kNoToken) pairs_.push_back({both.score, left, a.size + b.size, both.id});
  }

  std::vector<Symbol> symbols_;
  std::vector<Pair> pairs_;
};

// What the vocabulary's list of merges makes of two symbols.
struct ListedMerges {
  const Vocabulary& vocabulary;

  MergeList::Union operator()(const MergeList::Symbol& a,
                              const MergeList::Symbol& b) const noexcept {
    const std::int32_t rank = vocabulary.find_merge(a.id, b.id);
    if (rank < 0) return {};
    return {vocabulary.merges()[static_cast<std::size_t>(rank)].result, -static_cast<float>(rank)};
  }
};

}}}  // namespace nibble::NIBBLE_ABI::text
