// SPDX-License-Identifier: Apache-2.0
//
// Intents with typed slots: what somebody may want of a program. A model writes them as calls, in
// few tokens, and they are read back as values.
//
//   light.set(room=office, level=10)
//
//   NIBBLE_TRY(intents, grammar::Intents::create({{"light.set", {
//       {.name = "room", .choices = {"office", "kitchen"}},
//       {.name = "level", .kind = grammar::SlotKind::integer, .min = 0, .max = 100}}}}));
//   NIBBLE_TRY(constraint, grammar::Constraint::create(intents.grammar(), trie));
//   NIBBLE_TRY(wanted, read_intent(session, prompt, intents, constraint));  // generate/
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/utf8.hpp"
#include "nibble/grammar/code_points.hpp"
#include "nibble/grammar/grammar.hpp"
#include "nibble/grammar/json_rules.hpp"
#include "nibble/grammar/rules.hpp"
#include "nibble/io/json.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

enum class SlotKind : std::uint8_t {
  choice,   // one of `choices`
  integer,  // a whole number from `min` to `max`
  word,     // 1 to max_length characters but spaces and those of the notation: water_the_plants
  text,     // at most max_length characters of any kind, in quotes, as a JSON string
};

struct Slot {
  std::string name;
  SlotKind kind = SlotKind::choice;
  std::vector<std::string> choices = {};
  std::int64_t min = 0, max = 100;  // at most 10^15 from 0
  std::uint32_t max_length = 80;    // 1 to 10 000
  bool is_optional = false;
  std::uint32_t max_items = 0;  // not 0: a list of 1 to so many of them, [milk, eggs]; no integers
};

struct Intent {
  std::string name;
  std::vector<Slot> slot_types = {};
};

// A slot of a call.
struct SlotValue {
  std::string name;
  std::string text = {};                // a choice, a word, a text; of an integer: its digits
  std::int64_t integer = 0;             // of a slot of that kind
  std::vector<std::string> items = {};  // of a list
  std::size_t begin = 0, end = 0;       // the bytes of the call that say it, see IntentValue
  // How likely the model found it, given what came before: see read_intent(). 1: not known.
  double confidence = 1;
};

// A call. Its bytes are those of the intent, up to the opening bracket, then those of each slot:
// from the comma before it to the end of its value; the last bracket is of what comes last. So each
// byte is a part of exactly one thing that was decided.
struct IntentValue {
  std::size_t index = 0;  // of the intent
  std::string name;
  std::vector<SlotValue> slot_values = {};  // of those that are there
  std::size_t begin = 0, end = 0;
  double confidence = 1;

  // Null if the slot is not there.
  const SlotValue* find(std::string_view slot) const noexcept {
    for (const SlotValue& value : slot_values)
      if (value.name == slot) return &value;
    return nullptr;
  }
};

// Immutable; threads may share it.
class Intents {
 public:
  static constexpr std::size_t kMaxIntents = 4096, kMaxSlots = 64;

  // Errors: invalid_argument (no intents; a name or choice that is empty, there twice, or has a
  // character of the notation or a control character; limits that nothing meets); limit (too many
  // of them, see Rules).
  static Result<Intents> create(std::vector<Intent> intents);

  const grammar::Grammar& grammar() const noexcept { return grammar_; }
  const std::vector<Intent>& intents() const noexcept { return intents_; }

  // The values of a call. Slots come in the order in which their intent has them. Errors: malformed
  // (it is no call of an intent; the message has the byte).
  Result<IntentValue> parse(std::string_view text) const;

 private:
  Intents(std::vector<Intent> intents, grammar::Grammar grammar) noexcept
      : intents_(std::move(intents)), grammar_(std::move(grammar)) {}

  std::vector<Intent> intents_;
  grammar::Grammar grammar_;
};

namespace detail {

// What names, choices and words do not have.
NIBBLE_HIDDEN inline constexpr std::string_view kNotation = ",()[]=\"\\";

inline bool is_intent_text(std::string_view text) noexcept {
  if (text.empty() || text.front() == ' ' || text.back() == ' ') return false;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) return false;
    if (kNotation.find(c) != kNotation.npos) return false;
  }
  for (std::size_t n = 0; !text.empty(); text.remove_prefix(n)) {
    n = utf8_length(text);
    if (n == 0) return false;
  }
  return true;
}

inline Result<void> check_slot(const Slot& slot) {
  const auto bad = [&](const std::string& what) {
    return Error{Errc::invalid_argument, "the slot '" + printable(slot.name) + "' " + what};
  };
  if (!is_intent_text(slot.name)) return bad("has no name that a call can have");
  if (slot.max_items > 0 && slot.kind == SlotKind::integer) return bad("is a list of integers");
  if (slot.max_items > 10'000) return bad("is a list of more than 10000 items");
  switch (slot.kind) {
    case SlotKind::choice:
      if (slot.choices.empty()) return bad("has nothing to choose from");
      for (const std::string& choice : slot.choices) {
        if (!is_intent_text(choice)) {
          return bad("has the choice '" + printable(choice) + "', which a call cannot have");
        }
      }
      break;
    case SlotKind::integer: {
      constexpr std::int64_t kLargest = 1'000'000'000'000'000;
      if (slot.min < -kLargest || slot.max > kLargest) return bad("has limits beyond 10^15");
      if (slot.min > slot.max) return bad("has a minimum above its maximum");
      break;
    }
    case SlotKind::word:
    case SlotKind::text:
      if (slot.max_length < 1 || slot.max_length > 10'000) {
        return bad("must have 1 to 10000 characters at most");
      }
      break;
  }
  return ok();
}

// Whether two of them have the same name.
template <class Named>
bool has_twice(const std::vector<Named>& all) {
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t k = 0; k < i; ++k)
      if (all[i].name == all[k].name) return true;
  return false;
}

inline Result<void> check_intents(const std::vector<Intent>& intents) {
  const auto bad = [](Errc code, const std::string& what) {
    return Error{code, "intents: " + what};
  };
  if (intents.empty()) return bad(Errc::invalid_argument, "there are none");
  if (intents.size() > Intents::kMaxIntents) return bad(Errc::limit, "there are more than 4096");
  if (has_twice(intents)) return bad(Errc::invalid_argument, "two have the same name");
  for (const Intent& intent : intents) {
    const std::string name = "'" + printable(intent.name) + "'";
    if (!is_intent_text(intent.name)) {
      return bad(Errc::invalid_argument, name + " is no name that a call can have");
    }
    if (intent.slot_types.size() > Intents::kMaxSlots) {
      return bad(Errc::limit, name + " has more than 64 slots");
    }
    if (has_twice(intent.slot_types)) {
      return bad(Errc::invalid_argument, name + " has two slots of the same name");
    }
    for (const Slot& slot : intent.slot_types) {
      if (auto checked = check_slot(slot); !checked) {
        return std::move(checked).error().in("intents: " + name);
      }
    }
  }
  return ok();
}

class IntentRules {
 public:
  IntentRules() : json_(rules_, JsonSpace::single) {
    CodePoints others{{0, 0x20}, {0x7F, 0x7F}};
    for (const char c : kNotation) others.add(static_cast<std::uint32_t>(c));
    letter_ = rules_.set(others.complement());
  }

  Result<Grammar> of(const std::vector<Intent>& intents) {
    const RuleId root = rules_.add_rule("root");
    std::vector<ExprId> calls;
    for (const Intent& intent : intents) {
      calls.push_back(rules_.sequence(
          {rules_.text(intent.name + "("), members(intent.slot_types), rules_.text(")")}));
    }
    rules_.define(root, rules_.choice(calls));
    return Grammar::create(rules_, root);
  }

 private:
  // From the last slot to the first: what may follow if slots came before, and if none did.
  ExprId members(const std::vector<Slot>& all) {
    ExprId behind = rules_.empty(), fresh = behind;
    for (std::size_t i = all.size(); i-- > 0;) {
      const Slot& slot = all[i];
      const ExprId said = rules_.sequence({rules_.text(slot.name + "="), value(slot)});
      const ExprId rest = named(behind);
      const ExprId first = rules_.sequence({said, rest});
      const ExprId next = rules_.sequence({rules_.text(", "), said, rest});
      behind = slot.is_optional ? rules_.choice({next, rest}) : next;
      fresh = named(slot.is_optional ? rules_.choice({first, fresh}) : first);
    }
    return fresh;
  }

  ExprId named(ExprId body) {
    const RuleId id = rules_.add_rule("slots");
    rules_.define(id, body);
    return rules_.call(id);
  }

  ExprId value(const Slot& slot) {
    const ExprId one = named(single(slot));
    if (slot.max_items == 0) return one;
    const ExprId more =
        rules_.repeat(rules_.sequence({rules_.text(", "), one}), 0, slot.max_items - 1);
    return rules_.sequence({rules_.text("["), one, more, rules_.text("]")});
  }

  ExprId single(const Slot& slot) {
    switch (slot.kind) {
      case SlotKind::integer: return json_.integers(slot.min, slot.max);
      case SlotKind::word: return rules_.repeat(letter_, 1, slot.max_length);
      case SlotKind::text:
        return json_.quoted(rules_.repeat(json_.any_character(), 0, slot.max_length));
      case SlotKind::choice: break;
    }
    std::vector<ExprId> ways;
    for (const std::string& choice : slot.choices) ways.push_back(rules_.text(choice));
    return rules_.choice(ways);
  }

  Rules rules_;
  JsonRules json_;
  ExprId letter_;
};

// Reads a call from the left.
class IntentReader {
 public:
  explicit IntentReader(std::string_view text) noexcept : text_(text) {}

  Result<IntentValue> call(const std::vector<Intent>& intents) {
    const std::size_t open = text_.find('(');
    IntentValue value;
    value.name = std::string(text_.substr(0, (std::min)(open, text_.size())));
    while (value.index < intents.size() && intents[value.index].name != value.name) ++value.index;
    if (open == text_.npos || value.index == intents.size()) {
      return Error{Errc::malformed, "'" + printable(value.name) + "' is none of the intents"};
    }
    value.end = at_ = open + 1;
    for (const Slot& slot : intents[value.index].slot_types) NIBBLE_CHECK(read(slot, value));
    if (!accept(")") || at_ != text_.size()) return error("expected ')' and the end");
    (value.slot_values.empty() ? value.end : value.slot_values.back().end) = at_;
    return value;
  }

 private:
  Error error(const std::string& what) const {
    return {Errc::malformed, "a call of an intent: byte " + to_text(at_) + ": " + what};
  }
  bool accept(std::string_view mark) noexcept {
    if (!text_.substr(at_).starts_with(mark)) return false;
    at_ += mark.size();
    return true;
  }

  // The slot, if it comes next.
  Result<void> read(const Slot& slot, IntentValue& call) {
    SlotValue value;
    value.begin = at_;
    const bool is_first = call.slot_values.empty();
    if ((!is_first && !accept(", ")) || !accept(slot.name + "=")) {
      at_ = value.begin;
      return slot.is_optional ? ok() : Result<void>(error("expected " + printable(slot.name)));
    }
    value.name = slot.name;
    if (slot.max_items == 0) {
      NIBBLE_CHECK(read_one(slot, value.text, value.integer));
    } else {
      if (!accept("[")) return error("expected a list");
      do {
        if (value.items.size() == slot.max_items) return error("the list is too long");
        NIBBLE_CHECK(read_one(slot, value.items.emplace_back(), value.integer));
      } while (accept(", "));
      if (!accept("]")) return error("expected the end of the list");
    }
    value.end = at_;
    call.slot_values.push_back(std::move(value));
    return ok();
  }

  Result<void> read_one(const Slot& slot, std::string& said, std::int64_t& integer) {
    const std::size_t begin = at_;
    if (slot.kind == SlotKind::text) {
      io::JsonReader json(text_.substr(at_));
      NIBBLE_TRY(raw, json.raw());
      if (raw.empty() || raw.data() != text_.data() + at_)
        return error("expected a text in quotes");
      at_ += raw.size();
      io::JsonReader again(raw);
      NIBBLE_TRY(text, again.string());
      said = std::move(text);
    } else {
      at_ = (std::min)(text_.find_first_of(kNotation, at_), text_.size());
      said = std::string(text_.substr(begin, at_ - begin));
    }
    if (is_of(slot, said, integer)) return ok();
    at_ = begin;
    return error("'" + printable(said) + "' is no value of " + printable(slot.name));
  }

  static bool is_of(const Slot& slot, const std::string& said, std::int64_t& integer) {
    switch (slot.kind) {
      case SlotKind::integer: return read_integer(slot, said, integer);
      case SlotKind::choice:
        return std::find(slot.choices.begin(), slot.choices.end(), said) != slot.choices.end();
      case SlotKind::word:
        if (!is_intent_text(said) || said.find(' ') != said.npos) return false;
        break;
      case SlotKind::text: break;
    }
    std::size_t n = 0;
    for (const char c : said) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    return n <= slot.max_length;
  }

  static bool read_integer(const Slot& slot, std::string_view digits, std::int64_t& integer) {
    const bool is_negative = digits.starts_with('-');
    if (is_negative) digits.remove_prefix(1);
    const bool has_sign_or_zero_more = is_negative || digits.size() > 1;
    if (digits.empty() || digits.size() > 16 || (digits[0] == '0' && has_sign_or_zero_more)) {
      return false;
    }
    integer = 0;
    for (const char c : digits) {
      if (c < '0' || c > '9') return false;
      integer = integer * 10 + (c - '0');
    }
    if (is_negative) integer = -integer;
    return integer >= slot.min && integer <= slot.max;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace detail

inline Result<Intents> Intents::create(std::vector<Intent> intents) {
  return catch_out_of_memory([&]() -> Result<Intents> {
    NIBBLE_CHECK(detail::check_intents(intents));
    auto grammar = detail::IntentRules().of(intents);
    if (!grammar) return std::move(grammar).error().in("intents");
    return Intents(std::move(intents), *std::move(grammar));
  });
}

inline Result<IntentValue> Intents::parse(std::string_view text) const {
  return catch_out_of_memory([&] { return detail::IntentReader(text).call(intents_); });
}

}}}  // namespace nibble::NIBBLE_ABI::grammar
