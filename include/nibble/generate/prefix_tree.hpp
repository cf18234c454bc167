// SPDX-License-Identifier: Apache-2.0
//
// The radix tree of a cache of prefixes: tokens, and pages of a PagePool that hold their keys and
// values. A node is a run of tokens after those of its parent. Included by prefix_cache-inl.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/generate/page_pool.hpp"
#include "nibble/graph/step.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// What is computed of the beginning of a sequence.
struct Prefix {
  std::span<const std::int32_t> tokens;  // learned rows of an adapter are graph::kNoToken
  std::span<const float> state;  // recurrent state after the last token; empty: there is none
  const ops::PageId* pages;      // (tables, columns), tables `stride` apart; -1: no longer there
  Index stride;

  Index n() const noexcept { return static_cast<Index>(tokens.size()); }
  Index n_columns() const noexcept { return ops::pages_for(n()); }
  ops::PageId page(Index table, Index column) const noexcept {
    return pages[table * stride + column];
  }
};

class PrefixTree {
 public:
  static constexpr int kRoot = 0, kNone = -1;

  struct Node {
    std::vector<Scalar<std::int32_t>> tokens;
    // Pages that hold its positions, (columns, tables), from first_column() on. -1: not there.
    std::vector<Scalar<ops::PageId>> pages;
    std::vector<Scalar<float>> state;  // after its last token, of a model that has state
    std::uint64_t weights = 0;         // that computed it
    std::uint64_t last_used = 0;
    Index begin = 0;          // position of its first token
    bool is_blocked = false;  // a node after it is in use, see n_in_use()
    int parent = kNone, first_child = kNone, next = kNone;

    Index end() const noexcept { return begin + static_cast<Index>(tokens.size()); }
    Index n_columns() const noexcept { return ops::pages_for(end()); }
    // A column that begins before it is also its parent's, where it may be a copy that ends
    // earlier.
    Index first_column() const noexcept { return begin / ops::kPagePositions; }
    std::size_t bytes() const noexcept {
      return sizeof(Node) + tokens.size() * sizeof(tokens[0]) + pages.size() * sizeof(pages[0]) +
             state.size() * sizeof(state[0]);
    }
  };

  // A position in a node: begin < n <= end. Or the root, and 0.
  struct Place {
    int node = kRoot;
    Index n = 0;
  };

  PrefixTree(PagePool& pool, const PageLayout& layout, bool has_state)
      : pool_(&pool),
        layout_(layout),
        has_state_(has_state),
        nodes_(1),
        held_(static_cast<std::size_t>(pool.n_pages())) {}
  PrefixTree(PrefixTree&&) = delete;
  ~PrefixTree() { clear(); }

  const Node& node(int index) const noexcept { return nodes_[static_cast<std::size_t>(index)]; }
  bool empty() const noexcept { return node(kRoot).first_child == kNone; }
  Index n_pages() const noexcept { return n_held_; }
  // Without pages.
  std::size_t node_bytes() const noexcept { return node_bytes_; }
  bool holds(ops::PageId page) const noexcept { return held_[index_of(page)].value > 0; }

  // How far the tree has these tokens, before which are n_rows learned rows of the adapter.
  Place find(std::span<const std::int32_t> tokens, std::uint64_t weights,
             Index n_rows = 0) const noexcept {
    const auto first = static_cast<std::size_t>(n_rows), end = first + tokens.size();
    const auto token = [&](std::size_t i) {
      return i < first ? graph::kNoToken : tokens[i - first];
    };
    Place at;
    while (static_cast<std::size_t>(at.n) < end) {
      const auto begin = static_cast<std::size_t>(at.n);
      const int child = child_of(at.node, token(begin), weights);
      if (child == kNone) break;
      const auto& own = node(child).tokens;
      std::size_t n = 1;
      while (n < own.size() && begin + n < end && own[n].value == token(begin + n)) ++n;
      at = {child, at.n + static_cast<Index>(n)};
      if (n < own.size()) break;
    }
    return at;
  }
  // The last place up to `at` from which a sequence can go on.
  Place reachable(Place at) const noexcept {
    for (; at.node != kRoot; at = parent_of(at.node)) {
      if (has_state_ && (at.n < node(at.node).end() || node(at.node).state.empty())) continue;
      // The columns that the next row reads must be there, in a row. If one is not, a place before
      // it may do.
      while (at.n > node(at.node).begin) {
        const Index missing = last_missing(at);
        if (missing < layout_.first_read(at.n)) return at;
        at.n = has_state_ ? 0 : missing * ops::kPagePositions;
      }
    }
    return at;
  }
  // Copies the tokens before a place, and calls f(column, pages) for the columns before it, the
  // last first; pages: (tables).
  template <class F>
  void copy(Place at, std::int32_t* tokens, F&& f) const noexcept {
    for (Index column = ops::pages_for(at.n); at.node != kRoot; at = parent_of(at.node)) {
      const Node& x = node(at.node);
      for (Index i = x.begin; i < at.n; ++i) {
        tokens[i] = x.tokens[static_cast<std::size_t>(i - x.begin)].value;
      }
      for (; column > x.first_column(); --column) f(column - 1, pages_of(x, column - 1));
    }
  }

  void touch(int index, std::uint64_t time) noexcept {
    for (; index != kNone; index = node(index).parent) at(index).last_used = time;
  }

  // Bytes that insert() would add beside pages, at most, and how many pages.
  std::size_t bytes_for(const Prefix& prefix, Place from) const noexcept {
    return 2 * sizeof(Node) + prefix.state.size() * sizeof(float) +
           static_cast<std::size_t>(prefix.n() - from.n) * sizeof(std::int32_t) +
           static_cast<std::size_t>((prefix.n_columns() + 2) * layout_.n_tables) *
               sizeof(ops::PageId);
  }
  Index pages_for(const Prefix& prefix, Place from) const noexcept {
    Index n = 0;
    if (prefix.n() == from.n) return n;
    for (Index c = from.n / ops::kPagePositions; c < prefix.n_columns(); ++c) {
      for (Index table = 0; table < layout_.n_tables; ++table) n += is_new(prefix.page(table, c));
    }
    return n;
  }
  // Adds what comes after `from`, which is where find() finds the tokens of the prefix. A node ends
  // there then. Strong guarantee: if it throws, nothing has changed.
  void insert(const Prefix& prefix, Place from, std::uint64_t weights, std::uint64_t time) {
    const Index n = prefix.n();
    reserve_nodes();
    std::vector<Scalar<float>> state(prefix.state.size());
    for (std::size_t i = 0; i < state.size(); ++i) state[i].value = prefix.state[i];
    int last = from.node;
    if (n > from.n && can_extend(prefix, from)) {
      extend(last, prefix);
    } else {
      Node leaf, upper;
      if (n > from.n) fill(leaf, prefix, from.n, weights);
      if (from.node != kRoot && from.n < node(from.node).end()) {
        prepare_split(from, upper);
        last = split(from, std::move(upper));
      }
      if (n > from.n) last = add_leaf(last, std::move(leaf));
    }
    if (n > from.n) adopt_pages(node(last).parent, prefix);
    if (last != kRoot && node(last).end() == n) {
      node_bytes_ += (state.size() - node(last).state.size()) * sizeof(state[0]);
      at(last).state = std::move(state);
    }
    touch(last, time);
  }

  // Gives the nodes up to `from` those pages of layers with a window that they do not have and the
  // prefix has. Returns how many there are, or would be if `is_trial`.
  Index fill_gaps(const Prefix& prefix, Place from, bool is_trial) noexcept {
    Index n = 0;
    for (Place at = from; at.node != kRoot; at = parent_of(at.node)) {
      Node& x = nodes_[static_cast<std::size_t>(at.node)];
      for (Index c = x.first_column(); c < (std::min)(x.n_columns(), prefix.n_columns()); ++c) {
        if ((std::min)(x.end(), (c + 1) * ops::kPagePositions) > from.n) break;
        for (Index table = layout_.n_full; table < layout_.n_tables; ++table) {
          ops::PageId& page = pages_of(x, c)[table].value;
          if (page >= 0 || prefix.page(table, c) < 0) continue;
          ++n;
          if (!is_trial) hold(page = prefix.page(table, c));
        }
      }
    }
    return n;
  }
  // Adds a node as its parent's child, as it is. There must be no child yet with its weights that
  // begins with its first token. Returns its index. Strong guarantee.
  int add(int parent, Node made) {
    NIBBLE_ASSERT(!has_child(parent, made.tokens[0].value, made.weights));
    reserve_nodes();
    return add_leaf(parent, std::move(made));
  }
  bool has_child(int parent, std::int32_t token, std::uint64_t weights) const noexcept {
    return child_of(parent, token, weights) != kNone;
  }

  // Drops what no sequence uses of the leaf that was used longest ago, but not at `time`: all of
  // it, or its end. False if there is none.
  bool evict(std::uint64_t time) noexcept {
    int oldest = kNone;
    for (std::size_t i = 1; i < nodes_.size(); ++i) {
      const Node& x = nodes_[i];
      const bool is_leaf = x.parent != kNone && x.first_child == kNone;
      if (!is_leaf || x.last_used == time || n_columns_in_use(x) == n_columns_of(x)) continue;
      if (oldest == kNone || x.last_used < node(oldest).last_used) oldest = static_cast<int>(i);
    }
    if (oldest != kNone) cut(oldest, n_columns_in_use(node(oldest)));
    return oldest != kNone;
  }
  // How many pages evict() would leave, at most: also those of nodes before one that is in use,
  // though a sequence has dropped them or copied them to write to.
  Index n_in_use() noexcept {
    for (Node& x : nodes_) x.is_blocked = false;
    for (std::size_t i = 1; i < nodes_.size(); ++i) {
      if (nodes_[i].parent == kNone || n_columns_in_use(nodes_[i]) == 0) continue;
      for (int j = nodes_[i].parent; j != kNone && !node(j).is_blocked; j = node(j).parent) {
        at(j).is_blocked = true;
      }
    }
    Index n = 0;
    for (const Node& x : nodes_) {
      const Index n_columns = x.is_blocked ? n_columns_of(x) : n_columns_in_use(x);
      for (Index i = 0; i < n_columns * layout_.n_tables; ++i) {
        const ops::PageId page = x.pages[static_cast<std::size_t>(i)].value;
        n += page >= 0 && !(i < layout_.n_tables && is_of_parent(x, i));
      }
    }
    return n;
  }
  void clear() noexcept {
    for (std::size_t i = 1; i < nodes_.size(); ++i) {
      for (const auto& [page] : nodes_[i].pages) let_go(page);
    }
    nodes_.resize(1);
    nodes_[0] = Node();
    free_ = kNone;
    node_bytes_ = 0;
  }

  // Calls f(index, node) for all nodes, parents before their children.
  template <class F>
  void for_each(F&& f) const {
    for (int i = node(kRoot).first_child; i != kNone;) {
      f(i, node(i));
      if (node(i).first_child != kNone) {
        i = node(i).first_child;
        continue;
      }
      while (i != kNone && node(i).next == kNone) i = node(i).parent;
      if (i != kNone) i = node(i).next;
    }
  }

 private:
  static std::size_t index_of(ops::PageId page) noexcept { return static_cast<std::size_t>(page); }
  Node& at(int index) noexcept { return nodes_[static_cast<std::size_t>(index)]; }
  Place parent_of(int index) const noexcept { return {node(index).parent, node(index).begin}; }

  void reserve_nodes() {
    if (nodes_.capacity() < nodes_.size() + 2) nodes_.reserve(2 * nodes_.size() + 2);
  }
  int child_of(int parent, std::int32_t token, std::uint64_t weights) const noexcept {
    int i = node(parent).first_child;
    while (i != kNone && (node(i).tokens[0].value != token || node(i).weights != weights)) {
      i = node(i).next;
    }
    return i;
  }
  Index n_columns_of(const Node& x) const noexcept {
    return static_cast<Index>(x.pages.size()) / layout_.n_tables;
  }
  bool is_in_use(ops::PageId page) const noexcept {
    return page >= 0 && pool_->n_users(page) > held_[index_of(page)].value;
  }
  // The columns of a node up to the last that a sequence uses. (A state belongs to the end of all.)
  Index n_columns_in_use(const Node& x) const noexcept {
    std::size_t n = x.pages.size();
    while (n > 0 && !is_in_use(x.pages[n - 1].value)) --n;
    if (n > 0 && has_state_) n = x.pages.size();
    return (static_cast<Index>(n) + layout_.n_tables - 1) / layout_.n_tables;
  }

  bool is_new(ops::PageId page) const noexcept { return page >= 0 && !holds(page); }
  void hold(ops::PageId page) noexcept {
    if (page < 0) return;
    pool_->share(page);
    if (held_[index_of(page)].value++ == 0) ++n_held_;
  }
  void let_go(ops::PageId page) noexcept {
    if (page < 0) return;
    if (--held_[index_of(page)].value == 0) --n_held_;
    pool_->drop(page);
  }

  // The pages of a column of a node: (tables).
  const Scalar<ops::PageId>* pages_of(const Node& x, Index column) const noexcept {
    return x.pages.data() + (column - x.first_column()) * layout_.n_tables;
  }
  Scalar<ops::PageId>* pages_of(Node& x, Index column) noexcept {
    return x.pages.data() + (column - x.first_column()) * layout_.n_tables;
  }
  // The last column before a place that layers with a window do not have; -1: they have all.
  Index last_missing(Place at) const noexcept {
    Index column = layout_.n_windowed() == 0 ? 0 : ops::pages_for(at.n);
    for (; at.node != kRoot; at = parent_of(at.node)) {
      while (column > node(at.node).first_column()) {
        const Scalar<ops::PageId>* const pages = pages_of(node(at.node), --column);
        for (Index table = layout_.n_full; table < layout_.n_tables; ++table) {
          if (pages[table].value < 0) return column;
        }
      }
    }
    return -1;
  }

  // Whether a page of a node's first column is the one of its parent's last.
  bool is_of_parent(const Node& x, Index table) const noexcept {
    if (x.begin % ops::kPagePositions == 0) return false;
    const ops::PageId page = x.pages[static_cast<std::size_t>(table)].value;
    const auto back = io::narrow<std::ptrdiff_t>(layout_.n_tables - table);
    return page == (node(x.parent).pages.end() - back)->value;
  }
  // A node that ends within a page, before the end of the prefix, gets the prefix's page in its
  // place: that holds the same, and more. Else a copy would be kept for the beginning alone.
  void adopt_pages(int index, const Prefix& prefix) noexcept {
    for (; index != kRoot; index = node(index).parent) {
      Node& x = at(index);
      if (x.end() % ops::kPagePositions == 0) return;
      const Index column = x.n_columns() - 1;
      for (Index table = 0; table < layout_.n_tables; ++table) {
        const ops::PageId page = prefix.page(table, column);
        if (page < 0) continue;
        hold(page);
        let_go(std::exchange(pages_of(x, column)[table].value, page));
      }
      if (x.begin <= column * ops::kPagePositions) return;
    }
  }

  // A node without children can grow, unless its state is that of its end, or the column that it
  // ends in would be lost.
  bool can_extend(const Prefix& prefix, Place from) const noexcept {
    const Node& x = node(from.node);
    if (from.node == kRoot || has_state_ || x.first_child != kNone || from.n < x.end())
      return false;
    for (Index table = 0; table < layout_.n_tables; ++table) {
      const bool is_there = prefix.page(table, from.n / ops::kPagePositions) >= 0;
      if (from.n % ops::kPagePositions != 0 && !is_there) return false;
    }
    return true;
  }
  void extend(int index, const Prefix& prefix) {
    Node& x = at(index);
    const Index begin = x.end(), first = begin / ops::kPagePositions;
    x.tokens.reserve(static_cast<std::size_t>(prefix.n() - x.begin));
    x.pages.reserve(
        static_cast<std::size_t>((prefix.n_columns() - x.first_column()) * layout_.n_tables));
    node_bytes_ -= x.bytes();
    for (Index i = first; i < x.n_columns(); ++i) {  // it has the beginning of this column
      for (Index table = 0; table < layout_.n_tables; ++table) {
        let_go(pages_of(x, i)[table].value);
      }
      x.pages.resize(static_cast<std::size_t>((i - x.first_column()) * layout_.n_tables));
    }
    const std::size_t n_old = x.pages.size();
    append(x, prefix, begin);
    for (std::size_t i = n_old; i < x.pages.size(); ++i) hold(x.pages[i].value);
    node_bytes_ += x.bytes();
  }
  void fill(Node& leaf, const Prefix& prefix, Index begin, std::uint64_t weights) const {
    leaf.weights = weights;
    leaf.begin = begin;
    append(leaf, prefix, begin);
  }
  // Tokens from `begin` on, and the columns that hold them.
  void append(Node& x, const Prefix& prefix, Index begin) const {
    for (const std::int32_t id : prefix.tokens.subspan(static_cast<std::size_t>(begin))) {
      x.tokens.push_back({id});
    }
    for (Index c = begin / ops::kPagePositions; c < prefix.n_columns(); ++c) {
      for (Index table = 0; table < layout_.n_tables; ++table) {
        x.pages.push_back({prefix.page(table, c)});
      }
    }
  }

  // The node `upper` gets what comes before a place within a node.
  void prepare_split(Place place, Node& upper) const {
    const Node& lower = node(place.node);
    const Index n_pages = (ops::pages_for(place.n) - lower.first_column()) * layout_.n_tables;
    upper.tokens.assign(lower.tokens.data(), lower.tokens.data() + (place.n - lower.begin));
    upper.pages.assign(lower.pages.data(), lower.pages.data() + n_pages);
    upper.weights = lower.weights;
    upper.last_used = lower.last_used;
    upper.begin = lower.begin;
    upper.parent = lower.parent;
    upper.next = lower.next;
  }
  int split(Place place, Node upper) noexcept {
    if (place.n % ops::kPagePositions != 0) {  // both have the column
      for (Index i = 1; i <= layout_.n_tables; ++i) {
        hold((upper.pages.end() - io::narrow<std::ptrdiff_t>(i))->value);
      }
    }
    const int index = take(std::move(upper));
    Node& lower = at(place.node);
    node_bytes_ -= lower.bytes();
    *link_to(place.node) = index;
    at(index).first_child = place.node;
    lower.parent = index;
    lower.next = kNone;
    const Index n_pages = (place.n / ops::kPagePositions - lower.first_column()) * layout_.n_tables;
    lower.tokens.erase(lower.tokens.begin(),
                       lower.tokens.begin() + io::narrow<std::ptrdiff_t>(place.n - lower.begin));
    lower.pages.erase(lower.pages.begin(),
                      lower.pages.begin() + io::narrow<std::ptrdiff_t>(n_pages));
    lower.begin = place.n;
    node_bytes_ += lower.bytes();
    return index;
  }
  int add_leaf(int parent, Node leaf) noexcept {
    for (const auto& [page] : leaf.pages) hold(page);
    leaf.parent = parent;
    leaf.next = node(parent).first_child;
    const int index = take(std::move(leaf));
    at(parent).first_child = index;
    return index;
  }
  // Leaves the first columns of a leaf.
  void cut(int index, Index n_columns) noexcept {
    if (n_columns == 0) return remove(index);
    Node& x = at(index);
    node_bytes_ -= x.bytes();
    const auto n_pages = static_cast<std::size_t>(n_columns * layout_.n_tables);
    for (std::size_t i = n_pages; i < x.pages.size(); ++i) let_go(x.pages[i].value);
    x.pages.resize(n_pages);
    x.tokens.resize(
        static_cast<std::size_t>((x.first_column() + n_columns) * ops::kPagePositions - x.begin));
    node_bytes_ += x.bytes();
  }
  void remove(int index) noexcept {
    *link_to(index) = node(index).next;
    for (const auto& [page] : node(index).pages) let_go(page);
    node_bytes_ -= node(index).bytes();
    at(index) = Node();
    at(index).next = free_;
    free_ = index;
  }
  // What points to a node: its parent, or the child before it.
  int* link_to(int index) noexcept {
    int* link = &at(node(index).parent).first_child;
    while (*link != index) link = &at(*link).next;
    return link;
  }
  // A place in nodes_, where there must be capacity.
  int take(Node&& made) noexcept {
    node_bytes_ += made.bytes();
    int index = free_;
    if (index != kNone) {
      free_ = node(index).next;
      at(index) = std::move(made);
    } else {
      index = static_cast<int>(nodes_.size());
      nodes_.push_back(std::move(made));
    }
    return index;
  }

  PagePool* pool_;
  PageLayout layout_;
  bool has_state_;
  std::vector<Node> nodes_;                 // the first is the root; a free one has no parent
  std::vector<Scalar<std::int32_t>> held_;  // (pages of the pool): how many nodes have each
  int free_ = kNone;                        // linked by `next`
  Index n_held_ = 0;                        // different pages
  std::size_t node_bytes_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
