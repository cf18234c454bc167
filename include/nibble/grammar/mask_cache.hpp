// SPDX-License-Identifier: Apache-2.0
//
// Finds the tokens that a grammar allows, and remembers what does not depend on the whole stack.
//
// As in XGrammar (Dong et al. 2024): for a state on top of a stack, most tokens are decided
// whatever lies below it. Those are found once, by walking the trie of the vocabulary with that
// state alone. Where the state's rule ends inside of a token, what comes next depends on the stack:
// these places of the trie are remembered too, and walked for each mask, from where the rule
// returns to.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/config.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/grammar/automaton.hpp"
#include "nibble/grammar/stack_states.hpp"
#include "nibble/grammar/token_trie.hpp"
#include "nibble/io/byte_reader.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// All memory is allocated when it is made. Not for several threads at once.
class MaskCache {
 public:
  // Room for `n_masks` sets of many tokens and for many more small ones. The trie must outlive it.
  MaskCache(const TokenTrie& trie, std::size_t n_masks, std::size_t n_states);

  // Replaces `out` by the tokens that may follow; end tokens are not among them. Returns kDead, or
  // kNoRoom or kTooAmbiguous: then `out` says nothing.
  StackId tokens(StackStates& stacks, StackId at, TokenSet& out);

  // Whether a token that begins with the text of a node, and is longer, may follow after that text;
  // `at`: after it.
  StackId continues(StackStates& stacks, std::uint32_t node, StackId at, bool& result);

  // Nodes of tries that were looked at so far.
  std::uint64_t n_walked() const noexcept { return n_walked_; }

  // After StackStates::collect(): numbers of stacks have another meaning.
  void forget_stacks() noexcept {
    std::fill(plain_.begin(), plain_.end(), Scalar<std::uint32_t>{kNotKnown});
  }

 private:
  // Of plain_length(), besides numbers.
  static constexpr std::uint32_t kNotKnown = 0xFFFFFFFF;
  static constexpr std::uint32_t kMixed = 0xFFFFFFFE;  // after some characters it depends on which
  static constexpr std::uint32_t kEndless = 0xFFFFFFFD;  // any number of them
  static constexpr std::uint32_t kLeaves = 0x100;        // added if the rule may end on the way
  static constexpr std::uint32_t kLong = static_cast<std::uint32_t>(TokenTrie::kLong);
  static constexpr std::size_t kEntries = 4096;
  static constexpr std::size_t kListed = std::size_t{1} << 18;  // ids and nodes of all entries
  static constexpr std::uint32_t kMaxFew = 1024;                // tokens that are listed one by one
  static constexpr std::size_t kMaxFront = 8;

  // What a state allows, whatever lies below it on the stack.
  struct Entry {
    StateId state;
    std::uint32_t count = 0;                 // of its rule, see nearest()
    bool has_set = false;                    // tokens: a set, or a list
    std::uint32_t tokens = 0, n_tokens = 0;  // where they are
    std::uint32_t exits = 0, n_exits = 0;    // nodes before which its rule ends
  };
  // How the tokens of an item are found. Depends on its state and count.
  struct Plan {
    const TokenSet* plain = nullptr;  // allowed at once; null: none
    const Trie* trie = nullptr;       // of the tokens to walk
    // Tokens of more than kLong bytes are walked for each mask: that some tokens of 128 spaces come
    // to the maximum of a repetition must not make each count a case of its own.
    bool leaves_long = false;
  };
  struct Listed {
    std::uint32_t value = 0;
  };
  // A few numbers of stacks, each once.
  struct Front {
    StackId ids[kMaxFront];
    std::size_t n = 0;
    bool add(StackId id) noexcept {
      if (std::find(ids, ids + n, id) != ids + n) return true;
      if (n == kMaxFront) return false;
      ids[n++] = id;
      return true;
    }
    friend bool operator==(const Front& a, const Front& b) noexcept {
      return a.n == b.n && std::equal(a.ids, a.ids + a.n, b.ids);
    }
  };
  struct Step {
    bool any_dead = false, any_alive = false, leaves = false;
    StackId error = kDead;
  };

  static bool has_plain(const ByteSet& bytes) noexcept {
    for (unsigned byte = 0; byte < 256; ++byte)
      if (TokenTrie::is_plain(byte) && bytes.contains(byte)) return true;
    return false;
  }
  template <class Before, class Found>
  StackId walk(StackStates& stacks, const Trie& trie, std::uint32_t begin, std::uint32_t end,
               StackId from, std::size_t max_depth, Before before, Found found);
  StackId add_part(StackStates& stacks, const Trie& trie, std::uint32_t begin, std::uint32_t end,
                   StackId from, TokenSet& out) {
    return walk(
        stacks, trie, begin, end, from, Trie::kMaxDepth, [](std::uint32_t, StackId) {},
        [&](std::uint32_t i, StackId) { trie.add_tokens(i, out); });
  }
  StackId add_walked(StackStates& stacks, const Trie& trie, StackId from, TokenSet& out);
  StackId add_item(StackStates& stacks, const StackItem& item, TokenSet& out);
  StackId add_exits(StackStates& stacks, const Entry& entry, const Trie& trie, ContextId context,
                    TokenSet& out);
  static std::uint32_t nearest(const Automaton::Rule& rule, std::uint32_t count) noexcept;
  StackId plan_of(StackStates& stacks, const Automaton::Rule& rule, StackId inner, Plan& plan);
  StackId make(StackStates& stacks, const Plan& plan, const Automaton::Rule& rule, StackId inner,
               const Entry& key, const Entry*& entry);
  const Entry* store(const Entry& entry);
  const Entry* find(const Entry& key) const noexcept;
  std::size_t place_of(const Entry& key) const noexcept;
  StackId plain_length(StackStates& stacks, StackId from, std::uint32_t& length);
  Step step_plain(StackStates& stacks, const Front& from, Front& to) const;
  void clear() noexcept;

  const TokenTrie* trie_;
  std::uint64_t n_walked_ = 0;
  std::vector<Entry> entries_;
  std::vector<Scalar<std::uint32_t>> places_;  // open addressing; index + 1
  std::vector<Listed> listed_;
  std::vector<Scalar<std::uint64_t>> sets_;
  std::vector<StackId> path_;  // the stacks at each node above, by depth
  // Of the entry that is being made.
  TokenSet found_;
  std::vector<Listed> exits_;
  // See plain_length(): (stacks).
  std::vector<Scalar<std::uint32_t>> plain_;
  std::vector<StackId> chain_;
};

inline MaskCache::MaskCache(const TokenTrie& trie, std::size_t n_masks, std::size_t n_states)
    : trie_(&trie),
      places_(2 * kEntries),
      path_(trie.all().depth() + 1),
      found_(trie.n_tokens()),
      plain_(n_states, Scalar<std::uint32_t>{kNotKnown}) {
  entries_.reserve(kEntries);
  listed_.reserve(kListed);
  sets_.reserve(n_masks * found_.words().size());
  exits_.reserve(kListed);
  chain_.reserve(TokenTrie::kLong + 1);
}

inline void MaskCache::clear() noexcept {
  entries_.clear();
  listed_.clear();
  sets_.clear();
  std::fill(places_.begin(), places_.end(), Scalar<std::uint32_t>{});
}

// Walks the nodes of a part of the trie that stacks can follow, down to those of texts of
// `max_depth` bytes. `from`: the stacks before the first node, of which the part has no siblings
// above. before(node, stacks in front of it), then found(node, stacks behind it) if they can
// follow.
template <class Before, class Found>
StackId MaskCache::walk(StackStates& stacks, const Trie& trie, std::uint32_t begin,
                        std::uint32_t end, StackId from, std::size_t max_depth, Before before,
                        Found found) {
  if (begin >= end) return kDead;
  path_[trie.node(begin).depth - std::size_t{1}] = from;
  for (std::uint32_t i = begin; i < end;) {
    ++n_walked_;
    const Trie::Node& node = trie.node(i);
    const StackId above = path_[node.depth - std::size_t{1}];
    before(i, above);
    const StackId to = stacks.next(above, node.byte);
    if (to == kDead) {
      i = node.end;
      continue;
    }
    if (!is_number(to)) return to;
    path_[node.depth] = to;
    found(i, to);
    i = node.depth < max_depth ? i + 1 : node.end;
  }
  return kDead;
}

inline StackId MaskCache::tokens(StackStates& stacks, StackId at, TokenSet& out) {
  out.clear();
  // (The items may move while new sets are made.)
  for (std::size_t i = 0; i < stacks.items(at).size(); ++i) {
    const StackItem item = stacks.items(at)[i];
    const StackId error = add_item(stacks, item, out);
    if (error != kDead) return error;
  }
  return kDead;
}

inline StackId MaskCache::continues(StackStates& stacks, std::uint32_t node, StackId at,
                                    bool& result) {
  result = false;
  const Trie& all = trie_->all();
  return walk(
      stacks, all, node + 1, all.node(node).end, at, Trie::kMaxDepth, [](std::uint32_t, StackId) {},
      [&](std::uint32_t i, StackId) { result = result || all.has_token(i); });
}

inline StackId MaskCache::add_item(StackStates& stacks, const StackItem& item, TokenSet& out) {
  const Automaton::Rule& rule = stacks.automaton().rule(stacks.automaton().state(item.state).rule);
  Entry key;
  key.state = item.state;
  key.count = nearest(rule, item.count);
  const StackId inner = stacks.inner(key.state, key.count);
  if (!is_number(inner)) return inner;
  Plan plan;
  if (const StackId error = plan_of(stacks, rule, inner, plan); error != kDead) return error;
  const Entry* entry = find(key);
  if (entry == nullptr) {
    const StackId error = make(stacks, plan, rule, inner, key, entry);
    if (error != kDead) return error;
    // Too much to remember: the whole walk, with the stack.
    if (entry == nullptr) return add_walked(stacks, trie_->all(), stacks.alone(item), out);
  }
  if (plan.plain != nullptr) out.add(plan.plain->words());
  if (entry->has_set) {
    out.add(
        std::span<const Scalar<std::uint64_t>>(sets_).subspan(entry->tokens, out.words().size()));
  } else {
    for (std::uint32_t i = 0; i < entry->n_tokens; ++i)
      out.add(static_cast<std::int32_t>(listed_[entry->tokens + i].value));
  }
  const StackId error = add_exits(stacks, *entry, *plan.trie, item.context, out);
  if (error != kDead || !plan.leaves_long) return error;
  return add_walked(stacks, trie_->long_ones(), stacks.alone(item), out);
}

// A count from which tokens of at most kLong bytes, each of which is at most one repetition, see
// the same limits as from `count`.
inline std::uint32_t MaskCache::nearest(const Automaton::Rule& rule, std::uint32_t count) noexcept {
  constexpr std::uint32_t kFar = kLong + 2;
  if (!rule.is_counted) return 0;
  if (count < rule.min) return rule.min - count > kFar ? rule.min - kFar : count;
  if (rule.max == kUnbounded || rule.max - count <= kFar) return count;
  return (std::max)(rule.max - kFar, rule.min);
}

inline StackId MaskCache::plan_of(StackStates& stacks, const Automaton::Rule& rule, StackId inner,
                                  Plan& plan) {
  std::uint32_t n_plain = 0;
  if (const StackId error = plain_length(stacks, inner, n_plain); error != kDead) return error;
  const bool is_finite = n_plain != kMixed && n_plain != kEndless;
  // Where the rule may end before plain characters, longer tokens are not decided by it.
  const bool may_leave = is_finite && n_plain >= kLeaves && has_plain(rule.follow);
  if (is_finite && n_plain >= kLeaves) n_plain -= kLeaves;
  if (n_plain == kMixed || n_plain == 0 || may_leave) {
    plan.trie = &trie_->all();
  } else {
    plan.trie = &trie_->others();
    plan.plain = is_finite ? &trie_->plain(n_plain) : &trie_->plain();
  }
  plan.leaves_long = rule.is_counted || (plan.plain != nullptr && is_finite);
  return kDead;
}

// All tokens of a trie, one by one.
inline StackId MaskCache::add_walked(StackStates& stacks, const Trie& trie, StackId from,
                                     TokenSet& out) {
  if (!is_number(from)) return from;
  return add_part(stacks, trie, 1, trie.n_nodes(), from, out);
}

// The tokens in which the rule ends and something else goes on.
inline StackId MaskCache::add_exits(StackStates& stacks, const Entry& entry, const Trie& trie,
                                    ContextId context, TokenSet& out) {
  if (entry.n_exits == 0) return kDead;
  const StackId from = stacks.returned(context);
  if (!is_number(from)) return from;
  if (stacks.items(from).empty()) return kDead;
  for (std::uint32_t i = 0; i < entry.n_exits; ++i) {
    const std::uint32_t node = listed_[entry.exits + i].value;
    const StackId error = add_part(stacks, trie, node, trie.node(node).end, from, out);
    if (error != kDead) return error;
  }
  return kDead;
}

// Walks the trie with the item alone. `entry` stays null if there is no room to remember it.
inline StackId MaskCache::make(StackStates& stacks, const Plan& plan, const Automaton::Rule& rule,
                               StackId inner, const Entry& key, const Entry*& entry) {
  const Trie& trie = *plan.trie;
  found_.clear();
  exits_.clear();
  bool is_full = false;
  const auto leave = [&](std::uint32_t i, StackId above) {
    if (!stacks.leaves(above) || !rule.follow.contains(trie.node(i).byte)) return;
    is_full = is_full || exits_.size() == exits_.capacity();
    if (!is_full) exits_.push_back({i});
  };
  const std::size_t max_depth = plan.leaves_long ? TokenTrie::kLong : Trie::kMaxDepth;
  const StackId error = walk(stacks, trie, 1, trie.n_nodes(), inner, max_depth, leave,
                             [&](std::uint32_t i, StackId) { trie.add_tokens(i, found_); });
  if (error == kDead && !is_full) entry = store(key);
  return error;
}

inline const MaskCache::Entry* MaskCache::store(const Entry& key) {
  Entry entry = key;
  entry.n_tokens = static_cast<std::uint32_t>(found_.count());
  entry.has_set = entry.n_tokens > kMaxFew;
  entry.n_exits = static_cast<std::uint32_t>(exits_.size());
  const std::size_t n_listed = exits_.size() + (entry.has_set ? 0 : entry.n_tokens);
  const std::size_t n_words = entry.has_set ? found_.words().size() : 0;
  const auto has_room = [&] {
    return entries_.size() < kEntries && listed_.capacity() - listed_.size() >= n_listed &&
           sets_.capacity() - sets_.size() >= n_words;
  };
  if (!has_room()) clear();
  if (!has_room()) return nullptr;
  if (entry.has_set) {
    entry.tokens = static_cast<std::uint32_t>(sets_.size());
    sets_.insert(sets_.end(), found_.words().begin(), found_.words().end());
  } else {
    entry.tokens = static_cast<std::uint32_t>(listed_.size());
    found_.for_each([&](std::int32_t id) { listed_.push_back({static_cast<std::uint32_t>(id)}); });
  }
  entry.exits = static_cast<std::uint32_t>(listed_.size());
  listed_.insert(listed_.end(), exits_.begin(), exits_.end());
  std::size_t at = place_of(entry);
  while (places_[at].value != 0) at = (at + 1) % places_.size();
  entries_.push_back(entry);
  places_[at].value = static_cast<std::uint32_t>(entries_.size());
  return &entries_.back();
}

inline std::size_t MaskCache::place_of(const Entry& key) const noexcept {
  const std::uint64_t hash =
      (std::uint64_t{key.state.value} << 32 | key.count) * 0xD6E8FEB86659FD93u;
  return io::narrow<std::size_t>((hash ^ hash >> 32) % places_.size());
}

inline const MaskCache::Entry* MaskCache::find(const Entry& key) const noexcept {
  for (std::size_t at = place_of(key); places_[at].value != 0; at = (at + 1) % places_.size()) {
    const Entry& e = entries_[places_[at].value - 1];
    if (e.state == key.state && e.count == key.count) return &e;
  }
  return nullptr;
}

// How many plain characters may follow, whichever they are: up to kLong; or kEndless, or kMixed.
inline StackId MaskCache::plain_length(StackStates& stacks, StackId from, std::uint32_t& length) {
  Front front, next;
  front.add(from);
  chain_.clear();  // sets of stacks that were met alone, one character apart
  length = kLong;
  bool is_cut = true;  // after kLong characters, more may follow
  std::uint32_t leaves = 0;
  for (std::uint32_t n = 0; n < kLong; ++n) {
    if (front.n == 1 && chain_.size() == n) {
      std::uint32_t known = plain_[front.ids[0].value].value;
      if (known == kMixed || known == kEndless) {
        length = known;
        break;
      }
      if (known != kNotKnown) {
        if (known >= kLeaves) leaves = kLeaves;
        known -= known >= kLeaves ? kLeaves : 0;
        is_cut = n + known >= kLong;
        length = (std::min)(kLong, n + known);
        break;
      }
      chain_.push_back(front.ids[0]);
    }
    next.n = 0;
    const Step step = step_plain(stacks, front, next);
    if (step.error != kDead) return step.error;
    if (step.leaves) leaves = kLeaves;
    if (step.any_dead) {
      length = step.any_alive ? kMixed : n;
      is_cut = false;
      break;
    }
    if (next == front) {
      length = kEndless;
      break;
    }
    front = next;
  }
  const bool is_finite = length <= kLong;
  for (std::uint32_t i = 0; i < chain_.size(); ++i) {
    std::uint32_t& known = plain_[chain_[i].value].value;
    if (!is_finite) {
      known = length;
    } else if (!is_cut) {
      known = length - i + leaves;
    } else if (i == 0) {  // of the others a little less is known
      known = kLong + leaves;
    }
  }
  if (is_finite) length += leaves;
  return kDead;
}

namespace detail {

// The bytes of the characters that a JSON string has as they are.
struct ByteSequence {
  std::uint8_t n;
  ByteRange bytes[4];
};
NIBBLE_HIDDEN inline constexpr ByteRange kContinuation{0x80, 0xBF};
NIBBLE_HIDDEN inline constexpr ByteSequence kPlainSequences[] = {
    {1, {{0x20, 0x21}, {}, {}, {}}},
    {1, {{0x23, 0x5B}, {}, {}, {}}},
    {1, {{0x5D, 0x7E}, {}, {}, {}}},
    {2, {{0xC2, 0xDF}, kContinuation, {}, {}}},
    {3, {{0xE0, 0xE0}, {0xA0, 0xBF}, kContinuation, {}}},
    {3, {{0xE1, 0xEC}, kContinuation, kContinuation, {}}},
    {3, {{0xED, 0xED}, {0x80, 0x9F}, kContinuation, {}}},
    {3, {{0xEE, 0xEF}, kContinuation, kContinuation, {}}},
    {4, {{0xF0, 0xF0}, {0x90, 0xBF}, kContinuation, kContinuation}},
    {4, {{0xF1, 0xF3}, kContinuation, kContinuation, kContinuation}},
    {4, {{0xF4, 0xF4}, {0x80, 0x8F}, kContinuation, kContinuation}},
};

}  // namespace detail

// One plain character more, of all that there are.
inline MaskCache::Step MaskCache::step_plain(StackStates& stacks, const Front& from,
                                             Front& to) const {
  const Automaton& automaton = stacks.automaton();
  Step result;
  for (const detail::ByteSequence& sequence : detail::kPlainSequences) {
    Front front = from;
    for (std::uint8_t k = 0; k < sequence.n && front.n > 0; ++k) {
      Front next;
      const bool is_last = k + 1 == sequence.n;
      for (unsigned byte = sequence.bytes[k].first; byte <= sequence.bytes[k].last;) {
        const auto b = static_cast<std::uint8_t>(byte);
        for (std::size_t i = 0; i < front.n; ++i) {
          const StackId id = stacks.next(front.ids[i], b);
          if (!is_number(id)) return {.error = id};
          if (id == kDead) {
            result.any_dead = true;
            continue;
          }
          result.leaves = result.leaves || stacks.leaves(id);
          result.any_alive = result.any_alive || is_last;
          if (!(is_last ? to : next).add(id)) return {.any_dead = true, .any_alive = true};
        }
        const std::size_t c = automaton.class_of(b) + 1;
        byte = c < automaton.n_classes() ? automaton.byte_of_class(c) : 256;
      }
      if (!is_last) front = next;
    }
    if (result.any_dead && result.any_alive) return result;
  }
  return result;
}
}}}  // namespace nibble::NIBBLE_ABI::grammar
