// SPDX-License-Identifier: Apache-2.0
//
// The values that templates compute with: Python's, as far as templates need them. They are
// immutable and share their content, so copies are cheap and nothing can contain itself.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/characters.hpp"
#include "nibble/chat/marked_text.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// What one rendering may use. A template comes with a model, from anywhere.
struct RenderLimits {
  std::size_t max_steps = 4'000'000;              // operations, and elements that they look at
  std::size_t max_bytes = std::size_t{64} << 20;  // of all texts and lists that it makes
};

// Counts what is used, and never gives anything back: so it bounds time and memory.
class Budget {
 public:
  explicit Budget(const RenderLimits& limits) noexcept
      : steps_(limits.max_steps), bytes_(limits.max_bytes) {}

  Result<void> step(std::size_t n = 1) { return take(steps_, n, "takes too many steps"); }
  // For looking at text, which goes through many bytes in one step.
  Result<void> look_at(std::string_view text) { return step(1 + text.size() / 64); }
  // For looking for `part` in `text`, at worst at every place.
  Result<void> search(std::string_view text, std::string_view part) {
    const std::uint64_t n = std::uint64_t{text.size()} / 64 +
                            std::uint64_t{text.size()} * std::uint64_t{part.size()} / 1024;
    return step(n < steps_ ? 1 + static_cast<std::size_t>(n) : steps_ + 1);
  }
  Result<void> grow(std::size_t n) { return take(bytes_, n, "makes too much text"); }
  // How many filters that call each other are running, for a Deeper.
  int& filter_depth() noexcept { return filter_depth_; }

 private:
  Result<void> take(std::size_t& left, std::size_t n, const char* what) {
    if (n > left) {
      left = 0;
      return Error{Errc::limit, std::string("the template ") + what};
    }
    left -= n;
    return ok();
  }

  std::size_t steps_, bytes_;
  int filter_depth_ = 0;
};

// Counts how many functions that call each other are running, while it exists.
class Deeper {
 public:
  explicit Deeper(int& depth) noexcept : depth_(&depth) { ++depth; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;
  ~Deeper() { --*depth_; }

 private:
  int* depth_;
};

enum class Type : unsigned char {
  undefined,
  none,
  boolean,
  integer,
  number,  // a floating-point number
  string,
  list,
  tuple,
  lazy,  // a list that Python computes when it is used: true even if empty, without a length
  dict,
  space,     // a namespace, the one thing that can change; the interpreter has its content
  function,  // likewise
  loop,      // the state of a loop
};

constexpr const char* to_string(Type type) noexcept {
  switch (type) {
    case Type::undefined: return "an undefined value";
    case Type::none: return "None";
    case Type::boolean: return "a bool";
    case Type::integer: return "an int";
    case Type::number: return "a float";
    case Type::string: return "a string";
    case Type::list: return "a list";
    case Type::tuple: return "a tuple";
    case Type::lazy: return "a generator";
    case Type::dict: return "a dict";
    case Type::space: return "a namespace";
    case Type::function: return "a function";
    case Type::loop: return "a loop";
  }
  return "";
}

class Value {
 public:
  struct Entry;
  // Values inside values inside values: more is an error, since such a value is walked recursively.
  static constexpr int kMaxDepth = 64;

  Value() noexcept = default;  // undefined
  static Value none() noexcept { return Value(Type::none, 0); }
  static Value boolean(bool value) noexcept { return Value(Type::boolean, value ? 1 : 0); }
  static Value integer(std::int64_t value) noexcept { return Value(Type::integer, value); }
  static Value number(double value) noexcept {
    Value result(Type::number, 0);
    result.number_ = value;
    return result;
  }
  static Value string(MarkedText text) {
    return Value(Type::string, 0, new TextContent{{0}, std::move(text)});
  }
  static Value string(std::string_view text, Origin origin = Origin::own) {
    return string(MarkedText(text, origin));
  }
  // type: list, tuple or lazy. Errors: limit (nested too deeply).
  static Result<Value> list(std::vector<Value> items, Type type = Type::list) {
    NIBBLE_TRY(depth, depth_above(items));
    return Value(type, 0, new ListContent{{depth}, std::move(items)});
  }
  static Result<Value> dict(std::vector<Entry> entries);
  // A value whose meaning the interpreter knows. type: space, function.
  static Value reference(Type type, std::int64_t id) noexcept { return Value(type, id); }
  // `items` is a list, `at` which of them it is that the loop is at.
  static Value loop(const Value& items);

  Type type() const noexcept { return type_; }
  bool is(Type type) const noexcept { return type_ == type; }
  bool is_undefined() const noexcept { return type_ == Type::undefined; }
  bool is_string() const noexcept { return type_ == Type::string; }
  bool is_list() const noexcept {
    return type_ == Type::list || type_ == Type::tuple || type_ == Type::lazy;
  }
  bool is_number() const noexcept {
    return type_ == Type::integer || type_ == Type::number || type_ == Type::boolean;
  }

  // Of a boolean, an integer, a reference.
  std::int64_t integer() const noexcept { return integer_; }
  // Of anything for which is_number() is true.
  double number() const noexcept {
    return type_ == Type::number ? number_ : static_cast<double>(integer_);
  }
  // Of a string; empty for anything else.
  std::string_view bytes() const noexcept {
    return is_string() ? text().bytes() : std::string_view();
  }
  const MarkedText& text() const noexcept {
    NIBBLE_ASSERT(is_string());
    return static_cast<const TextContent*>(content_.get())->text;
  }
  const std::vector<Value>& items() const noexcept {
    NIBBLE_ASSERT(is_list());
    return static_cast<const ListContent*>(content_.get())->items;
  }
  const std::vector<Entry>& entries() const noexcept;
  // Of a loop: what it runs over, and which of it is now the value of its variable.
  const std::vector<Value>& loop_items() const noexcept;
  std::size_t& loop_position() const noexcept;

  // The entry of a dict whose key is this text; null if there is none.
  const Value* find(std::string_view key) const noexcept;

  bool is_true() const noexcept;

 private:
  struct Content {
    int depth = 0;  // values inside values below this one
  };
  struct TextContent : Content {
    MarkedText text;
  };
  struct ListContent : Content {
    std::vector<Value> items;
  };
  struct DictContent;
  struct LoopContent;

  Value(Type type, std::int64_t integer) noexcept : type_(type), integer_(integer) {}
  template <class T>
  Value(Type type, std::int64_t integer, T* content)
      : type_(type), integer_(integer), content_(Owned<Content>(content)) {
#if NIBBLE_HAS_EXCEPTIONS
    if (!content_) throw std::bad_alloc();
#endif
  }

  int depth() const noexcept { return content_ ? content_->depth : 0; }
  static Result<int> depth_above(int depth) {
    if (depth >= kMaxDepth) return Error{Errc::limit, "values are nested too deeply"};
    return depth + 1;
  }
  static Result<int> depth_above(const std::vector<Value>& items) {
    int depth = 0;
    for (const Value& item : items) depth = (std::max)(depth, item.depth());
    return depth_above(depth);
  }

  Type type_ = Type::undefined;
  union {
    std::int64_t integer_ = 0;
    double number_;
  };
  Shared<Content> content_;
};

struct Value::Entry {
  Value key;
  Value value;
};
struct Value::DictContent : Content {
  std::vector<Entry> entries;  // in the order in which they were added
};
struct Value::LoopContent : Content {
  Value items;
  std::size_t position = 0;
};

inline Result<Value> Value::dict(std::vector<Entry> entries) {
  int depth = 0;
  for (const Entry& entry : entries)
    depth = (std::max)({depth, entry.key.depth(), entry.value.depth()});
  NIBBLE_TRY(above, depth_above(depth));
  return Value(Type::dict, 0, new DictContent{{above}, std::move(entries)});
}

inline Value Value::loop(const Value& items) {
  return Value(Type::loop, 0, new LoopContent{{items.depth()}, items, 0});
}

inline const std::vector<Value::Entry>& Value::entries() const noexcept {
  NIBBLE_ASSERT(is(Type::dict));
  return static_cast<const DictContent*>(content_.get())->entries;
}
inline const std::vector<Value>& Value::loop_items() const noexcept {
  NIBBLE_ASSERT(is(Type::loop));
  return static_cast<const LoopContent*>(content_.get())->items.items();
}
inline std::size_t& Value::loop_position() const noexcept {
  NIBBLE_ASSERT(is(Type::loop));
  return static_cast<LoopContent*>(content_.get())->position;
}

inline const Value* Value::find(std::string_view key) const noexcept {
  if (!is(Type::dict)) return nullptr;
  for (const Entry& entry : entries()) {
    if (entry.key.is_string() && entry.key.bytes() == key) return &entry.value;
  }
  return nullptr;
}

inline bool Value::is_true() const noexcept {
  switch (type_) {
    case Type::undefined:
    case Type::none: return false;
    case Type::boolean:
    case Type::integer: return integer_ != 0;
    case Type::number: return !(number_ == 0);
    case Type::string: return text().size() != 0;
    case Type::list:
    case Type::tuple: return !items().empty();
    case Type::dict: return !entries().empty();
    case Type::lazy:
    case Type::space:
    case Type::function:
    case Type::loop: return true;
  }
  return false;
}

using Entry = Value::Entry;

// Python's ==. Numbers of different types can be equal; lists and tuples cannot.
Result<bool> equal(Budget& budget, const Value& a, const Value& b);

// Python's order; unordered: one is no number (nan). Errors: invalid_argument for values without an
// order.
Result<std::partial_ordering> compare(Budget& budget, const Value& a, const Value& b);

namespace detail {

inline std::partial_ordering order_of(const Value& a, const Value& b) noexcept {
  if (!a.is(Type::number) && !b.is(Type::number)) return a.integer() <=> b.integer();
  return a.number() <=> b.number();
}

inline Result<bool> equal_entries(Budget& budget, const Value& a, const Value& b) {
  if (a.entries().size() != b.entries().size()) return false;
  for (const Entry& left : a.entries()) {
    bool is_found = false;
    for (const Entry& right : b.entries()) {
      NIBBLE_TRY(is_key, equal(budget, left.key, right.key));
      if (!is_key) continue;
      NIBBLE_TRY(is_same, equal(budget, left.value, right.value));
      is_found = is_same;
      break;
    }
    if (!is_found) return false;
  }
  return true;
}

}  // namespace detail

inline Result<bool> equal(Budget& budget, const Value& a, const Value& b) {
  NIBBLE_CHECK(budget.step());
  if (a.is_number() && b.is_number()) return std::is_eq(detail::order_of(a, b));
  if (a.type() != b.type()) return false;
  if (a.is_string()) {
    if (a.text().size() != b.text().size()) return false;
    NIBBLE_CHECK(budget.look_at(a.bytes()));
    return a.bytes() == b.bytes();
  }
  if (a.is_list()) {
    if (a.items().size() != b.items().size()) return false;
    for (std::size_t i = 0; i < a.items().size(); ++i) {
      NIBBLE_TRY(is_same, equal(budget, a.items()[i], b.items()[i]));
      if (!is_same) return false;
    }
    return true;
  }
  if (a.is(Type::dict)) return detail::equal_entries(budget, a, b);
  return a.integer() == b.integer() && !a.is(Type::loop);  // undefined, none, references
}

inline Result<std::partial_ordering> compare(Budget& budget, const Value& a, const Value& b) {
  NIBBLE_CHECK(budget.step());
  if (a.is_number() && b.is_number()) return detail::order_of(a, b);
  if (a.is_string() && b.is_string()) {
    NIBBLE_CHECK(budget.look_at(a.bytes()));
    // The order of bytes is that of characters.
    return std::partial_ordering(a.bytes() <=> b.bytes());
  }
  if (a.type() == b.type() && (a.is(Type::list) || a.is(Type::tuple))) {
    const std::size_t n = (std::min)(a.items().size(), b.items().size());
    for (std::size_t i = 0; i < n; ++i) {
      NIBBLE_TRY(is_same, equal(budget, a.items()[i], b.items()[i]));
      if (!is_same) return compare(budget, a.items()[i], b.items()[i]);
    }
    return std::partial_ordering(a.items().size() <=> b.items().size());
  }
  return Error{Errc::invalid_argument,
               std::string(to_string(a.type())) + " and " + to_string(b.type()) + " have no order"};
}

// Makes a text in parts, within a budget. What no longer fits is left out, and finish() says so.
class TextBuilder {
 public:
  explicit TextBuilder(Budget& budget) : budget_(&budget), status_(budget.grow(kOverhead)) {}

  void append(std::string_view bytes, Origin origin) {
    if (takes(bytes.size())) text_.append(bytes, origin);
  }
  void append(const MarkedText& text, std::size_t at = 0, std::size_t n = std::string::npos) {
    if (takes((std::min)(n, text.size() - at))) text_.append(text, at, n);
  }
  // A part of a text, given by a view of its bytes.
  void append(const MarkedText& text, std::string_view part) {
    append(text, static_cast<std::size_t>(part.data() - text.bytes().data()), part.size());
  }
  template <class Change>
  void transform(Change change) {
    text_.transform(change);
  }

  // False if something was left out: going on is no use.
  bool is_whole() const noexcept { return status_.has_value(); }
  Result<void> check_whole() const {
    if (is_whole()) return ok();
    return Error(status_.error());
  }
  std::size_t size() const noexcept { return text_.size(); }
  Result<MarkedText> take() {
    if (!status_) return std::move(status_).error();
    return std::move(text_);
  }
  Result<Value> finish() {
    NIBBLE_TRY(text, take());
    return Value::string(std::move(text));
  }

 private:
  static constexpr std::size_t kOverhead = 128;  // of a string, besides its bytes
  static constexpr std::size_t kPerPart = 8;     // for the time that it takes

  bool takes(std::size_t n) {
    if (status_ && n != 0) status_ = budget_->grow(n + kPerPart);
    return is_whole();
  }

  Budget* budget_;
  Result<void> status_;
  MarkedText text_;
};

// A part of `text`, given by a view of its bytes.
inline Result<Value> part_of(Budget& budget, const MarkedText& text, std::string_view part) {
  TextBuilder out(budget);
  out.append(text, part);
  return out.finish();
}

inline Result<Value> make_list(Budget& budget, std::vector<Value> items, Type type = Type::list) {
  NIBBLE_CHECK(budget.grow((items.size() + 4) * sizeof(Value)));
  return Value::list(std::move(items), type);
}

}}}  // namespace nibble::NIBBLE_ABI::chat
