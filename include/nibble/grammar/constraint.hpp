// SPDX-License-Identifier: Apache-2.0
//
// A grammar over the tokens of a vocabulary: which may come next, which must.
//
//   NIBBLE_TRY(grammar, grammar::from_gbnf("root ::= \"yes\" | \"no\""));
//   NIBBLE_TRY(trie, grammar::TokenTrie::create(tokenizer.vocabulary()));
//   NIBBLE_TRY(constraint, grammar::Constraint::create(grammar, trie));   // for all sequences
//   NIBBLE_TRY(matcher, grammar::Matcher::create(constraint));            // for one of them
//   grammar::TokenSet allowed(trie.n_tokens());
//   NIBBLE_CHECK(matcher.tokens(allowed));
//   NIBBLE_TRY(was_allowed, matcher.accept(token));
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/grammar/grammar.hpp"
#include "nibble/grammar/mask_cache.hpp"
#include "nibble/grammar/stack_states.hpp"
#include "nibble/grammar/token_trie.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

struct ConstraintOptions {
  // How much is remembered between tokens. When it is full, what is not in use is forgotten and
  // found again: only time depends on it.
  std::size_t n_states = 8192;  // states of the grammar with what lies below; at least 1 024
  std::size_t n_masks = 128;    // sets of many tokens; each has a bit for each token
};

// A grammar and a vocabulary, and what was found out about them: shared by all sequences that are
// bound by this grammar. Copies share it. Any number of threads may use it and its matchers at the
// same time; each matcher is for one thread at a time.
class Constraint {
 public:
  // Allocates all that it and its matchers' calls ever take. The trie must outlive it and its
  // matchers, and must not move. Errors: invalid_argument (options), out_of_memory.
  static Result<Constraint> create(const Grammar& grammar,
                                   const TokenTrie& trie NIBBLE_LIFETIMEBOUND,
                                   const ConstraintOptions& options = {});

  const TokenTrie& trie() const noexcept { return state_->trie; }
  const Grammar& grammar() const noexcept { return state_->grammar; }
  // How much was done for masks so far, in steps through the vocabulary's trie: a measure of time
  // that is the same on each machine.
  std::uint64_t n_walked() const noexcept {
    const WordLock lock(state_->mutex);
    return state_->masks.n_walked();
  }

 private:
  friend class Matcher;
  // A place in an answer.
  struct Place {
    StackId stacks;
    bool has_ended = false;  // an end token came
  };
  // The places of a matcher, in a list of all of them.
  struct History {
    explicit History(std::size_t n) : ring(n) {}

    Place& top() noexcept { return ring[position % ring.size()]; }
    void push(const Place& place) noexcept {
      ring[++position % ring.size()] = place;
      if (n_back + 1 < ring.size()) ++n_back;
    }

    std::vector<Place> ring;
    std::size_t position = 0;  // tokens so far
    std::size_t n_back = 0;    // how many of them can be taken back
    History* previous = nullptr;
    History* next = nullptr;
  };
  struct State {
    State(const Grammar& g, const TokenTrie& t, const ConstraintOptions& o)
        : grammar(g),
          trie(t),
          stacks(grammar.automaton(), o.n_states),
          masks(t, o.n_masks, o.n_states) {}

    void collect(StackId* at);
    template <class F>
    Result<void> run(F&& f);
    Error error_of(StackId error) const;

    Grammar grammar;
    const TokenTrie& trie;
    mutable std::atomic<std::uint32_t> mutex{0};  // of all that follows
    StackStates stacks;
    MaskCache masks;
    History* histories = nullptr;
  };

  explicit Constraint(Shared<State> state) noexcept : state_(std::move(state)) {}

  Shared<State> state_;
};

// Where one sequence is in a constraint's grammar.
class Matcher {
 public:
  // At the beginning. `max_back`: how many tokens can be taken back. Errors: out_of_memory.
  static Result<Matcher> create(const Constraint& constraint, std::size_t max_back = 64);

  Matcher(Matcher&&) noexcept = default;
  Matcher& operator=(Matcher&& other) noexcept {
    leave();
    constraint_ = std::move(other.constraint_);
    history_ = std::move(other.history_);
    return *this;
  }
  ~Matcher() { leave(); }

  // A second matcher at the same place, with the same tokens to take back. Errors: out_of_memory.
  Result<Matcher> fork() const;

  // All functions below: limit, if the grammar is too ambiguous at this place (more than
  // StackStates::kMaxItems ways to go on) or nested too deeply to be remembered (see
  // ConstraintOptions). Then nothing changes.

  // Goes on by a token. False, and nothing changes, if the grammar does not allow it. After an end
  // token, nothing is allowed.
  Result<bool> accept(std::int32_t token);
  // Goes on by a text, which counts as one token for rollback().
  Result<bool> accept_text(std::string_view text) {
    const WordLock lock(state().mutex);
    return go_on(text);
  }

  // Takes back the last n tokens. Errors: invalid_argument (more than n_back()).
  Result<void> rollback(std::size_t n);
  // How many tokens can be taken back.
  std::size_t n_back() const noexcept { return history_->n_back; }

  // Goes to the beginning; no token can be taken back.
  Result<void> restart();

  // Replaces `allowed`, made for TokenTrie::n_tokens() tokens, by the tokens that may come next.
  // Errors: not_found if there is none, because the vocabulary cannot spell what the grammar wants.
  Result<void> tokens(TokenSet& allowed);

  // Whether the text may end here: end tokens are allowed.
  bool can_end() const noexcept;
  // Whether it must: nothing else is allowed. Or an end token came.
  bool is_finished() const noexcept;

  // Replaces `text` by the bytes that must come next, because nothing else can: at most `max`.
  Result<void> forced_text(std::string& text, std::size_t max = 256);
  // How many of the first bytes of `forced`, which forced_text() gave, end tokens for sure: behind
  // them, no token begins that goes on over the end of `forced`.
  Result<std::size_t> settled(std::string_view forced);

 private:
  Matcher(const Constraint& constraint, Owned<Constraint::History> history) noexcept
      : constraint_(constraint), history_(std::move(history)) {}

  Constraint::State& state() const noexcept { return *constraint_.state_; }
  Result<bool> go_on(std::string_view text);
  void enter() noexcept;
  void leave() noexcept;

  Constraint constraint_;
  Owned<Constraint::History> history_;  // null after a move
};

inline Result<Constraint> Constraint::create(const Grammar& grammar, const TokenTrie& trie,
                                             const ConstraintOptions& options) {
  if (options.n_states < 1024 || options.n_states > (std::size_t{1} << 22) || options.n_masks < 1 ||
      options.n_masks > (std::size_t{1} << 16)) {
    return Error{Errc::invalid_argument,
                 "grammar: n_states must be in [1024, 2^22], n_masks in [1, 2^16]"};
  }
  return catch_out_of_memory([&]() -> Result<Constraint> {
    Shared<State> state(Owned<State>(new (std::nothrow) State(grammar, trie, options)));
    if (!state) return Error{Errc::out_of_memory, "grammar"};
    return Constraint(std::move(state));
  });
}

// Forgets what no matcher needs; `at`, if it is not null, is needed too.
inline void Constraint::State::collect(StackId* at) {
  stacks.collect([&](auto&& use) {
    for (History* h = histories; h != nullptr; h = h->next) {
      for (std::size_t i = 0; i <= h->n_back; ++i) {
        use(h->ring[(h->position - i) % h->ring.size()].stacks);
      }
    }
    if (at != nullptr) use(*at);
  });
  masks.forget_stacks();
}

// Calls f(), which returns kDead when it is done; once more if there was no room.
template <class F>
Result<void> Constraint::State::run(F&& f) {
  StackId error = f();
  if (error == kNoRoom) {
    collect(nullptr);
    error = f();
  }
  if (error == kDead) return ok();
  return error_of(error);
}

inline Error Constraint::State::error_of(StackId error) const {
  if (error == kTooAmbiguous) {
    return Error{Errc::limit, "grammar: more than " + to_text(StackStates::kMaxItems) +
                                  " ways to go on at once: the grammar is too ambiguous"};
  }
  return Error{Errc::limit,
               "grammar: no room (nesting, or the number of sequences); see "
               "ConstraintOptions::n_states"};
}

inline Result<Matcher> Matcher::create(const Constraint& constraint, std::size_t max_back) {
  return catch_out_of_memory([&]() -> Result<Matcher> {
    Owned<Constraint::History> history(new (std::nothrow) Constraint::History(max_back + 1));
    if (!history) return Error{Errc::out_of_memory, "grammar"};
    Matcher matcher(constraint, std::move(history));
    matcher.enter();
    NIBBLE_CHECK(matcher.restart());
    return matcher;
  });
}

inline void Matcher::enter() noexcept {
  const WordLock lock(state().mutex);
  history_->next = state().histories;
  if (history_->next != nullptr) history_->next->previous = history_.get();
  state().histories = history_.get();
}

inline void Matcher::leave() noexcept {
  if (!history_) return;
  const WordLock lock(state().mutex);
  Constraint::History& h = *history_;
  if (h.next != nullptr) h.next->previous = h.previous;
  (h.previous != nullptr ? h.previous->next : state().histories) = h.next;
}

inline Result<Matcher> Matcher::fork() const {
  return catch_out_of_memory([&]() -> Result<Matcher> {
    Owned<Constraint::History> history(new (std::nothrow)
                                           Constraint::History(history_->ring.size()));
    if (!history) return Error{Errc::out_of_memory, "grammar"};
    Matcher matcher(constraint_, std::move(history));
    matcher.enter();
    const WordLock lock(state().mutex);
    Constraint::History& copy = *matcher.history_;
    std::copy(history_->ring.begin(), history_->ring.end(), copy.ring.begin());
    copy.position = history_->position;
    copy.n_back = history_->n_back;
    return matcher;
  });
}

inline Result<void> Matcher::restart() {
  const WordLock lock(state().mutex);
  StackId first = kDead;
  NIBBLE_CHECK(state().run([&] {
    first = state().stacks.start();
    return is_number(first) ? kDead : first;
  }));
  history_->position = history_->n_back = 0;
  history_->top() = {first, false};
  return ok();
}

inline Result<bool> Matcher::accept(std::int32_t token) {
  const TokenTrie& trie = state().trie;
  const WordLock lock(state().mutex);
  const Constraint::Place top = history_->top();
  if (trie.is_end(token)) {
    const bool is_allowed = !top.has_ended && state().stacks.can_end(top.stacks);
    if (is_allowed) history_->push({top.stacks, true});
    return is_allowed;
  }
  if (!trie.contains(token) || trie.text(token).empty()) return false;
  return go_on(trie.text(token));
}

inline Result<bool> Matcher::go_on(std::string_view text) {
  if (history_->top().has_ended) return false;
  StackId at = history_->top().stacks;
  for (const char c : text) {
    StackId next = state().stacks.next(at, static_cast<std::uint8_t>(c));
    if (next == kNoRoom) {
      state().collect(&at);
      next = state().stacks.next(at, static_cast<std::uint8_t>(c));
    }
    if (next == kDead) return false;
    if (!is_number(next)) return state().error_of(next);
    at = next;
  }
  history_->push({at, false});
  return true;
}

inline Result<void> Matcher::rollback(std::size_t n) {
  if (n > history_->n_back) {
    return Error{Errc::invalid_argument, "grammar: " + to_text(n) + " tokens to take back, only " +
                                             to_text(history_->n_back) + " are remembered"};
  }
  history_->position -= n;
  history_->n_back -= n;
  return ok();
}

inline Result<void> Matcher::tokens(TokenSet& allowed) {
  const TokenTrie& trie = state().trie;
  if (allowed.n_tokens() != trie.n_tokens()) {
    return Error{Errc::invalid_argument, "grammar: the set is for " + to_text(allowed.n_tokens()) +
                                             " tokens, there are " + to_text(trie.n_tokens())};
  }
  const WordLock lock(state().mutex);
  allowed.clear();
  if (history_->top().has_ended) return ok();
  NIBBLE_CHECK(state().run(
      [&] { return state().masks.tokens(state().stacks, history_->top().stacks, allowed); }));
  if (state().stacks.can_end(history_->top().stacks)) {
    for (const auto id : trie.ends()) allowed.add(id.value);
    return ok();
  }
  for (const auto word : allowed.words())
    if (word.value != 0) return ok();
  return Error{Errc::not_found,
               "grammar: no token of the vocabulary spells what must come next, and the text "
               "cannot end here"};
}

inline bool Matcher::can_end() const noexcept {
  const WordLock lock(state().mutex);
  return state().stacks.can_end(history_->top().stacks);
}

inline bool Matcher::is_finished() const noexcept {
  const WordLock lock(state().mutex);
  const Constraint::Place& top = history_->top();
  return top.has_ended || state().stacks.items(top.stacks).empty();
}

inline Result<void> Matcher::forced_text(std::string& text, std::size_t max) {
  const WordLock lock(state().mutex);
  if (history_->top().has_ended) {
    text.clear();
    return ok();
  }
  return catch_out_of_memory([&] {
    return state().run([&] {
      StackStates& stacks = state().stacks;
      StackId at = history_->top().stacks;
      text.clear();
      while (text.size() < max && !stacks.can_end(at)) {
        const int byte = stacks.only_byte(at);
        if (byte < -1) return byte == -2 ? kNoRoom : kTooAmbiguous;
        if (byte < 0) break;
        at = stacks.next(at, static_cast<std::uint8_t>(byte));
        if (!is_number(at)) return at;
        text.push_back(static_cast<char>(byte));
      }
      return kDead;
    });
  });
}

inline Result<std::size_t> Matcher::settled(std::string_view forced) {
  const Trie& trie = state().trie.all();
  const WordLock lock(state().mutex);
  std::size_t n_settled = forced.size();
  NIBBLE_CHECK(state().run([&] {
    StackId end = history_->top().stacks;
    for (const char c : forced) {
      end = state().stacks.next(end, static_cast<std::uint8_t>(c));
      if (!is_number(end)) return end;
    }
    n_settled = forced.size();
    const std::size_t first = forced.size() - (std::min)(forced.size(), trie.depth());
    for (std::size_t i = first; i < forced.size(); ++i) {
      std::uint32_t node = 0;
      if (!trie.find(forced.substr(i), node)) continue;
      bool goes_on = false;
      const StackId error = state().masks.continues(state().stacks, node, end, goes_on);
      if (error != kDead) return error;
      if (!goes_on) continue;
      n_settled = i;
      break;
    }
    return kDead;
  }));
  return n_settled;
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
