// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a cache are free, and how many sequences use each of the others; how layers share
// them.
#pragma once

#include <algorithm>
#include <span>

#include "nibble/core/scalar.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// How layers share the pages of a cache. A page has space for 64 positions of some layers, all
// with the same table of pages: all layers, if they read all positions or all the same window. If
// only some have a window, layers are cut into groups that are all of one kind, with a table each.
// Tables of layers with a window drop pages before it.
struct PageLayout {
  // Most pages of a sequence of n positions, of which max_rows are computed in one step.
  Index most_pages(Index n, Index max_rows) const noexcept {
    return n_full * ops::pages_for(n) + n_windowed() * most_columns(n, max_rows);
  }
  // The same of one table with a window: steps begin and end within pages.
  Index most_columns(Index n, Index max_rows) const noexcept {
    return (std::min)(ops::pages_for(n), ops::pages_for(kept + max_rows) + 1);
  }
  // The first column that a step at a position keeps of tables with a window.
  Index first_kept(Index position) const noexcept {
    return (std::max)(Index{0}, position + 1 - kept) / ops::kPagePositions;
  }
  // The first column that the row at a position reads in them.
  Index first_read(Index position) const noexcept {
    return (std::max)(Index{0}, position + 1 - window) / ops::kPagePositions;
  }
  Index n_windowed() const noexcept { return n_tables - n_full; }

  Index n_tables = 1;
  Index n_full = 1;  // the first of them keep all pages
  Index window = 0;  // the largest
  Index kept = 0;    // positions that tables with a window keep
};

class PagePool {
 public:
  PagePool() noexcept = default;
  // users: (n_pages), zeros, in the caller's memory.
  explicit PagePool(std::span<std::int32_t> users) noexcept
      : users_(users), n_free_(static_cast<Index>(users.size())) {}

  Index n_pages() const noexcept { return static_cast<Index>(users_.size()); }
  Index n_free() const noexcept { return n_free_; }
  Index n_users(ops::PageId page) const noexcept { return users_of(page); }
  bool is_shared(ops::PageId page) const noexcept { return users_of(page) > 1; }

  // Takes a free page: the one after `before` if it is free, because keys and values of consecutive
  // pages are read as one stream. There must be a free page.
  ops::PageId take(ops::PageId before) noexcept {
    NIBBLE_ASSERT(n_free_ > 0);
    const auto n = static_cast<ops::PageId>(users_.size());
    ops::PageId page = before + 1 < n ? before + 1 : 0;
    while (users_of(page) != 0) page = page + 1 < n ? page + 1 : 0;
    users_of(page) = 1;
    --n_free_;
    return page;
  }
  // Takes n free pages that follow each other, the first of which is a multiple of `multiple`;
  // returns the first, or -1 if there are none.
  ops::PageId take_run(Index n, Index multiple) noexcept {
    for (Index first = 0; first + n <= n_pages(); first += multiple) {
      const auto run = users_.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
      if (std::any_of(run.begin(), run.end(), [](std::int32_t users) { return users != 0; })) {
        continue;
      }
      std::fill(run.begin(), run.end(), 1);
      n_free_ -= n;
      return static_cast<ops::PageId>(first);
    }
    return -1;
  }
  // One more sequence uses the page.
  void share(ops::PageId page) noexcept {
    NIBBLE_ASSERT(users_of(page) > 0);
    ++users_of(page);
  }
  // One sequence fewer uses it; if none does, the page is free.
  void drop(ops::PageId page) noexcept {
    NIBBLE_ASSERT(users_of(page) > 0);
    if (--users_of(page) == 0) ++n_free_;
  }

 private:
  std::int32_t& users_of(ops::PageId page) const noexcept {
    NIBBLE_ASSERT(page >= 0 && static_cast<std::size_t>(page) < users_.size());
    return users_[static_cast<std::size_t>(page)];
  }

  std::span<std::int32_t> users_;
  Index n_free_ = 0;
};

}}  // namespace nibble::NIBBLE_ABI
