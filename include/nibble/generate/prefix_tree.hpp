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
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// What is computed of the beginning of a sequence.
struct Prefix {
  std::span<const std::int32_t> tokens;
  std::span<const ops::PageId> pages;  // (pages_for(tokens.size()))
  std::span<const float> state;        // recurrent state after the last token; empty: there is none
};

class PrefixTree {
 public:
  static constexpr int kRoot = 0, kNone = -1;

  struct Node {
    std::vector<Scalar<std::int32_t>> tokens;
    std::vector<Scalar<ops::PageId>> pages;  // that hold its positions: from first_page() on
    std::vector<Scalar<float>> state;        // after its last token, of a model that has state
    std::uint64_t weights = 0;               // that computed it
    std::uint64_t last_used = 0;
    Index begin = 0;  // position of its first token
    int parent = kNone, first_child = kNone, next = kNone;

    Index end() const noexcept { return begin + static_cast<Index>(tokens.size()); }
    // A page that is only in part its own is also in its parent, or a copy of it: its own is the
    // one with more positions.
    Index first_page() const noexcept { return begin / ops::kPagePositions; }
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

  PrefixTree(PagePool& pool, bool has_state)
      : pool_(&pool),
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

  // How far the tree has these tokens.
  Place find(std::span<const std::int32_t> tokens, std::uint64_t weights) const noexcept {
    Place at;
    while (at.n < static_cast<Index>(tokens.size())) {
      const auto rest = tokens.subspan(static_cast<std::size_t>(at.n));
      const int child = child_of(at.node, rest[0], weights);
      if (child == kNone) break;
      const auto& own = node(child).tokens;
      std::size_t n = 1;
      while (n < own.size() && n < rest.size() && own[n].value == rest[n]) ++n;
      at = {child, at.n + static_cast<Index>(n)};
      if (n < own.size()) break;
    }
    return at;
  }
  // The last place up to `at` from which a sequence can go on.
  Place reachable(Place at) const noexcept {
    if (!has_state_) return at;
    while (at.node != kRoot && (at.n < node(at.node).end() || node(at.node).state.empty())) {
      at = parent_of(at.node);
    }
    return at;
  }
  // Copies the tokens and pages before a place: (at.n) and (pages_for(at.n)).
  void copy(Place at, std::int32_t* tokens, ops::PageId* pages) const noexcept {
    Index page = ops::pages_for(at.n);
    for (; at.node != kRoot; at = parent_of(at.node)) {
      const Node& x = node(at.node);
      for (Index i = x.begin; i < at.n; ++i) {
        tokens[i] = x.tokens[static_cast<std::size_t>(i - x.begin)].value;
      }
      while (page > x.first_page()) {
        --page;
        pages[page] = x.pages[static_cast<std::size_t>(page - x.first_page())].value;
      }
    }
  }

  void touch(int index, std::uint64_t time) noexcept {
    for (; index != kNone; index = node(index).parent) at(index).last_used = time;
  }

  // Bytes that insert() would add beside pages at most, and the pages that it would add.
  std::size_t bytes_for(const Prefix& prefix, Place from) const noexcept {
    return 2 * sizeof(Node) + prefix.state.size() * sizeof(float) +
           (prefix.tokens.size() - static_cast<std::size_t>(from.n)) * sizeof(std::int32_t) +
           (prefix.pages.size() + 2) * sizeof(ops::PageId);
  }
  Index pages_for(const Prefix& prefix, Place from) const noexcept {
    if (static_cast<Index>(prefix.tokens.size()) == from.n) return 0;
    Index n = 0;
    for (const ops::PageId page :
         prefix.pages.subspan(static_cast<std::size_t>(from.n / ops::kPagePositions))) {
      n += !holds(page);
    }
    return n;
  }
  // Adds what comes after `from`, which is where find() finds the tokens of the prefix. Strong
  // guarantee: if it throws, nothing has changed.
  void insert(const Prefix& prefix, Place from, std::uint64_t weights, std::uint64_t time) {
    const auto n = static_cast<Index>(prefix.tokens.size());
    reserve_nodes();
    std::vector<Scalar<float>> state(prefix.state.size());
    for (std::size_t i = 0; i < state.size(); ++i) state[i].value = prefix.state[i];
    int last = from.node;
    if (n > from.n && can_extend(from)) {
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
    if (last != kRoot && node(last).end() == n) {
      node_bytes_ += (state.size() - node(last).state.size()) * sizeof(state[0]);
      at(last).state = std::move(state);
    }
    touch(last, time);
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

  // Drops the leaf that was used longest ago, whose pages no sequence uses, and which was not used
  // at `time`. False if there is none.
  bool evict(std::uint64_t time) noexcept {
    int oldest = kNone;
    for (std::size_t i = 1; i < nodes_.size(); ++i) {
      const Node& x = nodes_[i];
      const bool is_leaf = x.parent != kNone && x.first_child == kNone;
      if (!is_leaf || x.last_used == time || is_in_use(x)) continue;
      if (oldest == kNone || x.last_used < node(oldest).last_used) oldest = static_cast<int>(i);
    }
    if (oldest != kNone) remove(oldest);
    return oldest != kNone;
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
  bool is_in_use(const Node& x) const noexcept {
    return std::any_of(x.pages.begin(), x.pages.end(), [&](const Scalar<ops::PageId>& page) {
      return pool_->n_users(page.value) > held_[index_of(page.value)].value;
    });
  }

  void hold(ops::PageId page) noexcept {
    pool_->share(page);
    if (held_[index_of(page)].value++ == 0) ++n_held_;
  }
  void let_go(ops::PageId page) noexcept {
    if (--held_[index_of(page)].value == 0) --n_held_;
    pool_->drop(page);
  }

  // A node without children, whose state nobody needs, can grow.
  bool can_extend(Place from) const noexcept {
    const Node& x = node(from.node);
    return from.node != kRoot && !has_state_ && x.first_child == kNone && from.n == x.end();
  }
  void extend(int index, const Prefix& prefix) {
    Node& x = at(index);
    const Index end = x.end();
    const auto first = static_cast<std::size_t>(end / ops::kPagePositions);
    x.tokens.reserve(prefix.tokens.size() - static_cast<std::size_t>(x.begin));
    x.pages.reserve(prefix.pages.size() - static_cast<std::size_t>(x.first_page()));
    node_bytes_ -= x.bytes();
    if (end % ops::kPagePositions != 0) {  // it has the beginning of this page
      let_go(x.pages.back().value);
      x.pages.pop_back();
    }
    append(x, prefix, static_cast<std::size_t>(end), first);
    node_bytes_ += x.bytes();
  }
  void fill(Node& leaf, const Prefix& prefix, Index begin, std::uint64_t weights) {
    leaf.weights = weights;
    leaf.begin = begin;
    const auto first = static_cast<std::size_t>(leaf.first_page());
    leaf.tokens.reserve(prefix.tokens.size() - static_cast<std::size_t>(begin));
    leaf.pages.reserve(prefix.pages.size() - first);
    for (const ops::PageId page : prefix.pages.subspan(first)) leaf.pages.push_back({page});
    for (const std::int32_t token : prefix.tokens.subspan(static_cast<std::size_t>(begin))) {
      leaf.tokens.push_back({token});
    }
  }
  // There must be capacity.
  void append(Node& x, const Prefix& prefix, std::size_t token, std::size_t page) noexcept {
    for (const std::int32_t id : prefix.tokens.subspan(token)) x.tokens.push_back({id});
    for (const ops::PageId id : prefix.pages.subspan(page)) {
      x.pages.push_back({id});
      hold(id);
    }
  }

  // The node `upper` gets what comes before a place within a node.
  void prepare_split(Place place, Node& upper) const {
    const Node& lower = node(place.node);
    const auto n = static_cast<std::ptrdiff_t>(place.n - lower.begin);
    const auto n_pages = static_cast<std::ptrdiff_t>(ops::pages_for(place.n) - lower.first_page());
    upper.tokens.assign(lower.tokens.begin(), lower.tokens.begin() + n);
    upper.pages.assign(lower.pages.begin(), lower.pages.begin() + n_pages);
    upper.weights = lower.weights;
    upper.last_used = lower.last_used;
    upper.begin = lower.begin;
    upper.parent = lower.parent;
    upper.next = lower.next;
  }
  int split(Place place, Node upper) noexcept {
    if (place.n % ops::kPagePositions != 0) hold(upper.pages.back().value);  // both have it
    const int index = take(std::move(upper));
    Node& lower = at(place.node);
    node_bytes_ -= lower.bytes();
    *link_to(place.node) = index;
    at(index).first_child = place.node;
    lower.parent = index;
    lower.next = kNone;
    const Index n_pages = place.n / ops::kPagePositions - lower.first_page();
    lower.tokens.erase(lower.tokens.begin(), lower.tokens.begin() + (place.n - lower.begin));
    lower.pages.erase(lower.pages.begin(), lower.pages.begin() + n_pages);
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
  bool has_state_;
  std::vector<Node> nodes_;                 // the first is the root; a free one has no parent
  std::vector<Scalar<std::int32_t>> held_;  // (pages of the pool): how many nodes have each
  int free_ = kNone;                        // linked by `next`
  Index n_held_ = 0;                        // different pages
  std::size_t node_bytes_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
