// SPDX-License-Identifier: Apache-2.0
//
// A number for some tokens of a vocabulary: how often each was among the recent ones, or how long a
// repetition it would continue.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// All numbers are 0 before and after a use: fill, read, take() each of `recent`. So no use costs
// more than its recent tokens. Ids outside the vocabulary, as rows of numbers have, have the number
// 0 and repeat nothing. Allocates in reserve() only.
class Repeats {
 public:
  // `max_window`: for find_repeated().
  void reserve(std::size_t vocab_size, std::size_t max_window) {
    numbers_.resize(vocab_size);
    lengths_.resize(max_window);
  }

  void count(std::span<const std::int32_t> recent) noexcept {
    for (const std::int32_t id : recent) {
      if (has(id)) ++at(id);
    }
  }

  // For each token that follows an earlier occurrence of the last n of `recent` (newest last): the
  // largest such n, from `shortest` >= 1 on. Occurrences may overlap with the end. `breakers`,
  // sorted, are no part of them. At most as many recent tokens as in reserve().
  //
  // The lengths are those of the Z-algorithm on the reversed tokens (Gusfield 1997, 1.3), linear
  // in their number whatever they repeat.
  void find_repeated(std::span<const std::int32_t> recent, Index shortest,
                     std::span<const std::int32_t> breakers) noexcept {
    const std::size_t n = recent.size();
    const auto back = [&](std::size_t i) { return recent[n - 1 - i]; };  // 0: the newest
    const auto breaks = [&](std::int32_t id) {
      return !has(id) || std::binary_search(breakers.begin(), breakers.end(), id);
    };
    std::size_t longest = 0;  // up to the last breaker
    while (longest < n && !breaks(back(longest))) ++longest;
    if (static_cast<Index>(longest) < shortest) return;
    std::size_t begin = 0,
                end = 0;  // the match that ends last: [begin, end) is as [0, end - begin)
    for (std::size_t i = 1; i < n; ++i) {
      std::size_t length =
          i < end ? (std::min)(end - i, static_cast<std::size_t>(lengths_[i - begin].value)) : 0;
      while (i + length < n && back(length) == back(i + length)) ++length;
      lengths_[i].value = static_cast<std::int32_t>(length);
      if (i + length > end) {
        begin = i;
        end = i + length;
      }
      length = (std::min)(length, longest);
      if (static_cast<Index>(length) < shortest || breaks(back(i - 1))) continue;
      std::uint32_t& number = at(back(i - 1));
      number = (std::max)(number, static_cast<std::uint32_t>(length));
    }
  }

  std::uint32_t of(std::int32_t id) const noexcept {
    return has(id) ? numbers_[static_cast<std::size_t>(id)].value : 0;
  }
  // The number, which becomes 0.
  std::uint32_t take(std::int32_t id) noexcept {
    const std::uint32_t number = of(id);
    if (number > 0) at(id) = 0;
    return number;
  }

 private:
  bool has(std::int32_t id) const noexcept {
    return id >= 0 && static_cast<std::size_t>(id) < numbers_.size();
  }
  std::uint32_t& at(std::int32_t id) noexcept {
    return numbers_[static_cast<std::size_t>(id)].value;
  }

  std::vector<Scalar<std::uint32_t>> numbers_;  // (vocab_size)
  std::vector<Scalar<std::int32_t>> lengths_;   // (max_window)
};

}}  // namespace nibble::NIBBLE_ABI
