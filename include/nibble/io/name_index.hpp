// SPDX-License-Identifier: Apache-2.0
//
// Finding the entries of a file by name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble::inline NIBBLE_ABI::io {

// The positions of items in the order of their names: lookup in O(log n) that no choice of names
// can slow down. Fails if two names are equal.
template <class Item, class NameOf>
Result<std::vector<std::size_t>> index_by_name(const std::vector<Item>& items, NameOf name_of,
                                               const char* what) {
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return name_of(items[a]) < name_of(items[b]); });
  const auto twin = std::adjacent_find(
      order.begin(), order.end(),
      [&](std::size_t a, std::size_t b) { return name_of(items[a]) == name_of(items[b]); });
  if (twin != order.end()) {
    return Error{Errc::malformed,
                 std::string(what) + " " + quoted(name_of(items[*twin])) + " appears twice"};
  }
  return order;
}

template <class Item, class NameOf>
const Item* find_by_name(const std::vector<Item>& items, const std::vector<std::size_t>& order,
                         NameOf name_of, std::string_view name) noexcept {
  const auto it =
      std::lower_bound(order.begin(), order.end(), name,
                       [&](std::size_t i, std::string_view n) { return name_of(items[i]) < n; });
  return it != order.end() && name_of(items[*it]) == name ? &items[*it] : nullptr;
}

}  // namespace nibble::inline NIBBLE_ABI::io
