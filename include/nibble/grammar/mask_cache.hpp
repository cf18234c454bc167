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

  // After StackStates::collect(): numbers of stacks have another meaning.
  void forget_stacks() noexcept {
    std::fill(plain_.begin(), plain_.end(), Scalar<std::uint32_t>{kNotKnown});
  }

 private:
  static constexpr std::uint32_t kNotKnown = 0xFFFFFFFF;
  static constexpr std::size_t kEntries = 4096;
  static constexpr std::size_t kListed = std::size_t{1} << 18;  // ids and nodes of all entries
  static constexpr std::uint32_t kMaxFew = 1024;                // tokens that are listed one by one
  static constexpr std::size_t kMaxFront = 8;

  // What a state allows, whatever lies below it on the stack.
  struct Entry {
    StateId state;
    // Repetitions to the rule's minimum and maximum. If `is_far`, the entry holds for all larger
    // maximums, too.
    std::uint32_t to_min = 0, to_max = 0;
    bool is_far = false;
    bool skips_plain = false;                // plain tokens are not among its tokens and exits
    bool has_set = false;                    // tokens: a set, or a list
    std::uint32_t tokens = 0, n_tokens = 0;  // where they are
    std::uint32_t exits = 0, n_exits = 0;    // nodes before which its rule ends
  };
  struct Listed {
    std::uint32_t value = 0;
  };
  struct Open {
    StackId stacks;
    std::uint32_t end;
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
    bool any_dead = false, any_alive = false;
    StackId error = kDead;
  };

  static bool has_plain(const ByteSet& bytes) noexcept {
    for (unsigned byte = 0; byte < 256; ++byte)
      if (TokenTrie::is_plain(byte) && bytes.contains(byte)) return true;
    return false;
  }
  const Trie& trie_of(const Entry& e) const noexcept {
    return e.skips_plain ? trie_->others() : trie_->all();
  }
  template <class Found>
  StackId walk(StackStates& stacks, const Trie& trie, std::uint32_t begin, std::uint32_t end,
               StackId from, Found found);
  StackId add_item(StackStates& stacks, const StackItem& item, TokenSet& out);
  StackId add_exits(StackStates& stacks, const Entry& entry, ContextId context, TokenSet& out);
  StackId make(StackStates& stacks, const StackItem& item, Entry& key, const Entry*& entry);
  const Entry* store(const Entry& entry);
  const Entry* find(const Entry& key) noexcept;
  std::size_t place_of(const Entry& key, bool is_far) const noexcept;
  StackId plain_length(StackStates& stacks, StackId from, std::uint32_t& length);
  Step step_plain(StackStates& stacks, const Front& from, Front& to) const;
  void clear() noexcept;

  const TokenTrie* trie_;
  std::size_t n_masks_;
  std::vector<Entry> entries_;
  std::vector<Scalar<std::uint32_t>> places_;  // open addressing; index + 1
  std::vector<Listed> listed_;
  std::vector<Scalar<std::uint64_t>> sets_;
  std::vector<Open> path_;
  // Of the entry that is being made.
  TokenSet found_;
  std::vector<Listed> exits_;
  // How many plain characters may follow, whichever they are: (stacks); see plain_length().
  std::vector<Scalar<std::uint32_t>> plain_;
  std::vector<StackId> chain_;
};

inline MaskCache::MaskCache(const TokenTrie& trie, std::size_t n_masks, std::size_t n_states)
    : trie_(&trie),
      n_masks_(n_masks),
      places_(2 * kEntries),
      path_(trie.all().depth() + 1),
      found_(trie.n_tokens()),
      plain_(n_states, Scalar<std::uint32_t>{kNotKnown}) {
  entries_.reserve(kEntries);
  listed_.reserve(kListed);
  sets_.reserve(n_masks * found_.words().size());
  exits_.reserve(kListed);
  chain_.reserve(trie.plain_length() + 1);
}

inline void MaskCache::clear() noexcept {
  entries_.clear();
  listed_.clear();
  sets_.clear();
  std::fill(places_.begin(), places_.end(), Scalar<std::uint32_t>{});
}

// Walks the nodes of a part of the trie that stacks can follow. found(node, stacks there).
template <class Found>
StackId MaskCache::walk(StackStates& stacks, const Trie& trie, std::uint32_t begin,
                        std::uint32_t end, StackId from, Found found) {
  std::size_t depth = 0;
  path_[0] = {from, end};
  for (std::uint32_t i = begin; i < end;) {
    while (path_[depth].end <= i) --depth;
    const Trie::Node node = trie.node(i);
    const StackId to = stacks.next(path_[depth].stacks, node.byte);
    if (to == kDead) {
      i = node.end;
      continue;
    }
    if (!is_number(to)) return to;
    found(i, to);
    ++i;
    if (node.end > i) path_[++depth] = {to, node.end};
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
  return walk(stacks, trie_->all(), node + 1, trie_->all().node(node).end, at,
              [&](std::uint32_t i, StackId) { result |= !trie_->all().tokens(i).empty(); });
}

inline StackId MaskCache::add_item(StackStates& stacks, const StackItem& item, TokenSet& out) {
  const Automaton::Rule& rule = stacks.automaton().rule(stacks.automaton().state(item.state).rule);
  Entry key;
  key.state = item.state;
  key.to_max = kUnbounded;
  if (rule.is_counted) {
    key.to_min = rule.min > item.count ? rule.min - item.count : 0;
    if (rule.max != kUnbounded) key.to_max = rule.max - item.count;
  }
  const StackId inner = stacks.inner(item.state, item.count);
  if (!is_number(inner)) return inner;
  std::uint32_t n_plain = 0;
  if (const StackId error = plain_length(stacks, inner, n_plain); error != kDead) return error;
  // Where the rule may end before plain characters, longer tokens are not decided here.
  if (n_plain < trie_->plain_length() && has_plain(rule.follow)) n_plain = 0;
  key.skips_plain = n_plain > 0;
  const Entry* entry = find(key);
  if (entry == nullptr) {
    if (const StackId error = make(stacks, item, key, entry); error != kDead) return error;
    if (entry == nullptr) {  // too much to remember: the whole walk, with the stack
      const Trie& all = trie_->all();
      return walk(stacks, all, 1, all.n_nodes(), stacks.alone(item), [&](std::uint32_t i, StackId) {
        for (const auto id : all.tokens(i)) out.add(id.value);
      });
    }
  }
  if (n_plain > 0) trie_->add_plain(n_plain, out);
  if (entry->has_set) {
    out.add(
        std::span<const Scalar<std::uint64_t>>(sets_).subspan(entry->tokens, out.words().size()));
  } else {
    for (std::uint32_t i = 0; i < entry->n_tokens; ++i)
      out.add(static_cast<std::int32_t>(listed_[entry->tokens + i].value));
  }
  return add_exits(stacks, *entry, item.context, out);
}

// The tokens in which the rule ends and something else goes on.
inline StackId MaskCache::add_exits(StackStates& stacks, const Entry& entry, ContextId context,
                                    TokenSet& out) {
  if (entry.n_exits == 0) return kDead;
  const StackId from = stacks.returned(context);
  if (!is_number(from)) return from;
  if (stacks.items(from).empty()) return kDead;
  const Trie& trie = trie_of(entry);
  for (std::uint32_t i = 0; i < entry.n_exits; ++i) {
    const std::uint32_t node = listed_[entry.exits + i].value;
    const StackId error =
        walk(stacks, trie, node, trie.node(node).end, from, [&](std::uint32_t found, StackId) {
          for (const auto id : trie.tokens(found)) out.add(id.value);
        });
    if (error != kDead) return error;
  }
  return kDead;
}

// Walks the trie with the item alone. `entry` stays null if there is no room to remember it.
inline StackId MaskCache::make(StackStates& stacks, const StackItem& item, Entry& key,
                               const Entry*& entry) {
  const Trie& trie = trie_of(key);
  const Automaton::Rule& rule = stacks.automaton().rule(stacks.automaton().state(item.state).rule);
  found_.clear();
  exits_.clear();
  std::uint32_t largest = item.count;  // count of the item's rule
  bool is_full = false;
  const StackId inner = stacks.inner(item.state, item.count);
  if (!is_number(inner)) return inner;
  const StackId error =
      walk(stacks, trie, 1, trie.n_nodes(), inner, [&](std::uint32_t i, StackId at) {
        for (const auto id : trie.tokens(i)) {
          found_.add(id.value);
          ++key.n_tokens;
        }
        largest = (std::max)(largest, stacks.inner_count(at));
        if (!stacks.leaves(at)) return;
        for (std::uint32_t c = i + 1; c < trie.node(i).end; c = trie.node(c).end) {
          if (!rule.follow.contains(trie.node(c).byte)) continue;
          is_full = is_full || exits_.size() == exits_.capacity();
          if (!is_full) exits_.push_back({c});
        }
      });
  if (error != kDead || is_full) return error;
  // If the maximum was out of reach it decided nothing, and the same holds for all larger ones.
  if (rule.is_counted && rule.max != kUnbounded && largest + 1 < rule.max) {
    key.is_far = true;
    key.to_max = largest - item.count + 2;
  }
  entry = store(key);
  return kDead;
}

inline const MaskCache::Entry* MaskCache::store(const Entry& key) {
  Entry entry = key;
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
    entry.n_tokens = static_cast<std::uint32_t>(listed_.size()) - entry.tokens;
  }
  entry.exits = static_cast<std::uint32_t>(listed_.size());
  listed_.insert(listed_.end(), exits_.begin(), exits_.end());
  std::size_t at = place_of(entry, entry.is_far);
  while (places_[at].value != 0) at = (at + 1) % places_.size();
  entries_.push_back(entry);
  places_[at].value = static_cast<std::uint32_t>(entries_.size());
  return &entries_.back();
}

inline std::size_t MaskCache::place_of(const Entry& key, bool is_far) const noexcept {
  std::uint64_t hash = std::uint64_t{key.state.value} << 32 | key.to_min;
  hash = (hash ^ hash >> 29) * 0xD6E8FEB86659FD93u;
  hash =
      (hash ^ hash >> 32 ^ (is_far ? 1u : 0u) ^ (is_far ? 0u : key.to_max)) * 0xD6E8FEB86659FD93u;
  return (hash ^ hash >> 32) % places_.size();
}

inline const MaskCache::Entry* MaskCache::find(const Entry& key) noexcept {
  for (const bool is_far : {false, true}) {
    for (std::size_t at = place_of(key, is_far); places_[at].value != 0;
         at = (at + 1) % places_.size()) {
      const Entry& e = entries_[places_[at].value - 1];
      if (e.state == key.state && e.to_min == key.to_min && e.is_far == is_far &&
          e.skips_plain == key.skips_plain &&
          (is_far ? e.to_max <= key.to_max : e.to_max == key.to_max)) {
        return &e;
      }
    }
  }
  return nullptr;
}

// How many plain characters may follow, whichever they are: up to TokenTrie::plain_length(). 0 also
// if some may follow after these and some not.
inline StackId MaskCache::plain_length(StackStates& stacks, StackId from, std::uint32_t& length) {
  const auto all = static_cast<std::uint32_t>(trie_->plain_length());
  Front front, next;
  front.add(from);
  chain_.clear();  // sets of stacks that were met alone, one character apart
  length = all;
  for (std::uint32_t n = 0; n < all; ++n) {
    const bool is_single = front.n == 1 && chain_.size() == n;
    if (is_single && plain_[front.ids[0].value].value != kNotKnown) {
      const std::uint32_t known = plain_[front.ids[0].value].value;
      length = known == 0 ? 0 : (std::min)(all, n + known);
      break;
    }
    if (is_single) chain_.push_back(front.ids[0]);
    next.n = 0;
    const Step step = step_plain(stacks, front, next);
    if (step.error != kDead) return step.error;
    if (step.any_dead) {
      length = step.any_alive ? 0 : n;
      break;
    }
    if (next == front) break;
    front = next;
  }
  for (std::uint32_t i = 0; i < chain_.size(); ++i) {
    std::uint32_t& known = plain_[chain_[i].value].value;
    if (length < all) {
      known = length > i ? length - i : 0;
    } else if (i == 0) {  // of the others a little less is known
      known = all;
    }
  }
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
