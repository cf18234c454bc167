// SPDX-License-Identifier: Apache-2.0
//
// Values as text, in Python's forms (str, repr) and as JSON (json.dumps), and values from JSON.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/value.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/number_text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

namespace detail {

// \x41, \u0041, \U00000041
inline std::string hex_escape(char kind, std::uint32_t code) {
  std::string text{'\\', kind};
  for (int shift = kind == 'x' ? 4 : kind == 'u' ? 12 : 28; shift >= 0; shift -= 4)
    text += "0123456789abcdef"[code >> shift & 15];
  return text;
}

// Appends a text with escape(character) in place of each character for which that is not empty.
template <class Escape>
void append_escaped(TextBuilder& out, const MarkedText& text, Escape escape) {
  const std::string_view bytes = text.bytes();
  std::size_t copied = 0;
  for (std::size_t at = 0; at < bytes.size() && out.is_whole();) {
    const Character c = first_character(bytes.substr(at));
    if (const std::string escaped = escape(c); !escaped.empty()) {
      out.append(text, copied, at - copied);
      out.append(escaped, text.origin(at));
      copied = at + c.size;
    }
    at += c.size;
  }
  out.append(text, copied);
}

inline void append_string_repr(TextBuilder& out, const MarkedText& text) {
  const bool has_single = text.bytes().find('\'') != std::string_view::npos;
  const bool has_double = text.bytes().find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.append({&quote, 1}, Origin::own);
  append_escaped(out, text, [&](const Character& character) -> std::string {
    const std::uint32_t c = character.code;
    if (c == '\\') return "\\\\";
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    if (c == static_cast<unsigned char>(quote)) return std::string("\\") + quote;
    if (is_printable(character)) return "";
    return hex_escape(c > 0xFFFF ? 'U' : c > 0xFF ? 'u' : 'x', c);
  });
  out.append({&quote, 1}, Origin::own);
}

}  // namespace detail

// Appends str(value), or repr(value): they differ for strings only.
inline void append_text(TextBuilder& out, const Value& value, bool is_repr = false) {
  const auto put = [&](std::string_view text) { out.append(text, Origin::own); };
  const auto put_items = [&](const char* open, const char* close) {
    put(open);
    for (std::size_t i = 0; i < value.items().size() && out.is_whole(); ++i) {
      if (i != 0) put(", ");
      append_text(out, value.items()[i], true);
    }
    put(close);
  };
  switch (value.type()) {
    case Type::undefined: return is_repr ? put("Undefined") : put("");
    case Type::none: return put("None");
    case Type::boolean: return put(value.integer() != 0 ? "True" : "False");
    case Type::integer: return put(to_text(value.integer()));
    case Type::number: return put(io::number_text(value.number()));
    case Type::string:
      return is_repr ? detail::append_string_repr(out, value.text()) : out.append(value.text());
    case Type::tuple: return put_items("(", value.items().size() == 1 ? ",)" : ")");
    case Type::list:
    case Type::lazy: return put_items("[", "]");
    case Type::dict: {
      put("{");
      bool is_first = true;
      for (const Entry& entry : value.entries()) {
        if (!out.is_whole()) return;
        if (!is_first) put(", ");
        is_first = false;
        append_text(out, entry.key, true);
        put(": ");
        append_text(out, entry.value, true);
      }
      return put("}");
    }
    case Type::space:
    case Type::function:
    case Type::loop: return put(std::string("<") + to_string(value.type()) + ">");
  }
}

// str(value), as a string.
inline Result<Value> to_string_value(Budget& budget, const Value& value) {
  if (value.is_string()) return value;
  TextBuilder out(budget);
  append_text(out, value);
  return out.finish();
}

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool is_indented = false;
  MarkedText indent = {};  // one level of it
  MarkedText item_separator = MarkedText(", ", Origin::own);
  MarkedText key_separator = MarkedText(": ", Origin::own);
};

namespace detail {

class JsonWriter {
 public:
  JsonWriter(Budget& budget, TextBuilder& out, const JsonStyle& style)
      : budget_(&budget), out_(&out), style_(&style) {}

  Result<void> write(const Value& value, std::size_t depth = 0) {
    NIBBLE_CHECK(budget_->step());
    switch (value.type()) {
      case Type::none: put("null"); return ok();
      case Type::boolean: put(value.integer() != 0 ? "true" : "false"); return ok();
      case Type::integer: put(to_text(value.integer())); return ok();
      case Type::number: put(number(value.number())); return ok();
      case Type::string: write_string(value.text()); return ok();
      case Type::list:
      case Type::tuple: {
        const auto& items = value.items();
        return write_all('[', ']', items.size(), depth,
                         [&](std::size_t i) { return write(items[i], depth + 1); });
      }
      case Type::dict: return write_dict(value, depth);
      default:
        return Error{Errc::invalid_argument,
                     std::string(to_string(value.type())) + " cannot be written as JSON"};
    }
  }

 private:
  void put(std::string_view text) { out_->append(text, Origin::own); }

  static std::string number(double value) {
    if (is_nan(value)) return "NaN";
    if (!is_finite(value)) return value < 0 ? "-Infinity" : "Infinity";
    return io::number_text(value);
  }

  void write_string(const MarkedText& text) {
    put("\"");
    append_escaped(*out_, text, [&](const Character& c) {
      std::string escaped = io::json_escape(c.code, style_->ensure_ascii);
      const bool is_utf8 = c.size > 1 || c.code < 0x80;
      if (!is_utf8 && escaped.empty()) escaped = io::kReplacement;
      return escaped;
    });
    put("\"");
  }

  // Keys that are no strings are written as strings.
  Result<void> write_key(const Value& key) {
    if (key.is_string()) {
      write_string(key.text());
      return ok();
    }
    if (!key.is_number() && !key.is(Type::none))
      return Error{Errc::invalid_argument,
                   std::string(to_string(key.type())) + " cannot be a key in JSON"};
    put("\"");
    NIBBLE_CHECK(write(key));
    put("\"");
    return ok();
  }

  Result<void> write_dict(const Value& value, std::size_t depth) {
    std::vector<Entry> sorted;
    if (style_->sort_keys) {
      sorted = value.entries();
      std::stable_sort(sorted.begin(), sorted.end(), [](const Entry& a, const Entry& b) {
        return a.key.bytes() < b.key.bytes();
      });
    }
    const auto& entries = style_->sort_keys ? sorted : value.entries();
    return write_all('{', '}', entries.size(), depth, [&](std::size_t i) -> Result<void> {
      NIBBLE_CHECK(write_key(entries[i].key));
      out_->append(style_->key_separator);
      return write(entries[i].value, depth + 1);
    });
  }

  template <class Write>
  Result<void> write_all(char open, char close, std::size_t n, std::size_t depth, Write write_one) {
    put({&open, 1});
    for (std::size_t i = 0; i < n; ++i) {
      if (i != 0) out_->append(style_->item_separator);
      break_line(depth + 1);
      NIBBLE_CHECK(write_one(i));
    }
    if (n != 0) break_line(depth);
    put({&close, 1});
    return ok();
  }

  void break_line(std::size_t depth) {
    if (!style_->is_indented) return;
    put("\n");
    for (; depth > 0; --depth) out_->append(style_->indent);
  }

  Budget* budget_;
  TextBuilder* out_;
  const JsonStyle* style_;
};

}  // namespace detail

// json.dumps(value); bytes that are no UTF-8 become U+FFFD each. Errors: invalid_argument (values
// that JSON does not have), limit.
inline Result<Value> to_json(Budget& budget, const Value& value, const JsonStyle& style = {}) {
  TextBuilder out(budget);
  NIBBLE_CHECK(detail::JsonWriter(budget, out, style).write(value));
  return out.finish();
}

namespace detail {

// Python's dict of these entries: of those with the same key, the first one's place and the last
// one's value. All keys are strings.
inline void merge_equal_keys(std::vector<Entry>& entries) {
  std::vector<std::size_t> order(entries.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto key = [&](std::size_t i) { return entries[i].key.bytes(); };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
  std::size_t first = 0;  // in `order`, of those with this key
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (key(order[i]) != key(order[first])) {
      first = i;
      continue;
    }
    entries[order[first]].value = std::move(entries[order[i]].value);
    entries[order[i]].value = Value();  // to be removed: no value of JSON is undefined
  }
  std::erase_if(entries, [](const Entry& entry) { return entry.value.is_undefined(); });
}

}  // namespace detail

// The next value of a reader; its strings have this origin. Integers that 64 bits cannot hold
// become floating-point numbers. Errors: those of JsonReader; malformed (nested too deeply).
inline Result<Value> read_json(io::JsonReader& json, Origin origin, int depth = 0) {
  const char first = json.peek();
  if ((first == '{' || first == '[') && depth >= io::JsonReader::kMaxDepth - 1)
    return json.error("nested too deeply");
  if (first == '{') {
    std::vector<Entry> entries;
    NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
      NIBBLE_TRY(value, read_json(json, origin, depth + 1));
      entries.push_back({Value::string(key, origin), std::move(value)});
      return ok();
    }));
    detail::merge_equal_keys(entries);
    return Value::dict(std::move(entries));
  }
  if (first == '[') {
    std::vector<Value> items;
    NIBBLE_CHECK(json.array([&]() -> Result<void> {
      NIBBLE_TRY(value, read_json(json, origin, depth + 1));
      items.push_back(std::move(value));
      return ok();
    }));
    return Value::list(std::move(items));
  }
  if (first == '"') {
    NIBBLE_TRY(text, json.string());
    return Value::string(text, origin);
  }
  if (first == 't' || first == 'f') {
    NIBBLE_TRY(truth, json.boolean());
    return Value::boolean(truth);
  }
  if (json.accept_null()) return Value::none();
  NIBBLE_TRY(text, json.raw());
  const bool is_negative = text.starts_with('-');
  io::JsonReader digits(is_negative ? text.substr(1) : text);
  const auto magnitude = digits.unsigned_integer();
  if (magnitude && digits.at_end() && *magnitude <= std::uint64_t{INT64_MAX}) {
    const auto integer = static_cast<std::int64_t>(*magnitude);
    return Value::integer(is_negative ? -integer : integer);
  }
  NIBBLE_TRY(number, io::JsonReader(text).number());
  return Value::number(number);
}

// A whole text.
inline Result<Value> value_from_json(std::string_view text, Origin origin) {
  io::JsonReader json(text);
  NIBBLE_TRY(value, read_json(json, origin));
  if (!json.at_end()) return json.error("more text behind the value");
  return value;
}

}}}  // namespace nibble::NIBBLE_ABI::chat
