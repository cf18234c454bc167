// SPDX-License-Identifier: Apache-2.0
//
// Looks up the entries of a file by name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

// Maps names to positions. Lookup is O(log n) for any choice of names. The index does not own the
// names: their bytes must stay at the same address.
class NameIndex {
 public:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  void reserve(std::size_t n_names) { entries_.reserve(n_names); }
  // Adds the name of the next item.
  void add(std::string_view name) { entries_.push_back({name, entries_.size()}); }

  // Call it once, after all names are added. An error if two names are equal; `what` says in the
  // message what kind of name it is.
  Result<void> sort(const char* what) {
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
      return a.name != b.name ? a.name < b.name : a.position < b.position;
    });
    for (std::size_t i = 1; i < entries_.size(); ++i) {
      if (entries_[i - 1].name != entries_[i].name) continue;
      return Error{Errc::malformed,
                   std::string(what) + " " + quoted(entries_[i].name) + " appears twice"};
    }
    return ok();
  }

  // The position of the item of this name, or kNone.
  std::size_t find(std::string_view name) const noexcept {
    std::size_t first = 0, end = entries_.size();
    while (first < end) {
      const std::size_t middle = first + (end - first) / 2;
      if (entries_[middle].name < name) {
        first = middle + 1;
      } else {
        end = middle;
      }
    }
    return first < entries_.size() && entries_[first].name == name ? entries_[first].position
                                                                   : kNone;
  }

 private:
  struct Entry {
    std::string_view name;
    std::size_t position;
  };
  std::vector<Entry> entries_;
};

}}}  // namespace nibble::NIBBLE_ABI::io
