// SPDX-License-Identifier: Apache-2.0
//
// A JSON value as a tree, for files whose keys are looked up rather than read in order: the
// configuration of a model. It takes some hundred bytes per value, so callers limit the text.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/json.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace io {

class JsonValue {
 public:
  enum class Kind : unsigned char { null, boolean, number, string, array, object };

  // The whole text, or the next value of a reader. Errors: those of JsonReader; malformed (nested
  // more than JsonReader::kMaxDepth deep).
  static Result<JsonValue> parse(std::string_view text) {
    JsonReader json(text);
    NIBBLE_TRY(value, read(json));
    if (!json.at_end()) return json.error("more text behind the value");
    return value;
  }
  static Result<JsonValue> read(JsonReader& json, int depth = 0);

  Kind kind() const noexcept { return kind_; }
  bool is_null() const noexcept { return kind_ == Kind::null; }

  // What is of another kind has the value false, 0, "" or no elements.
  bool boolean() const noexcept { return number_ != 0 && kind_ == Kind::boolean; }
  double number() const noexcept { return kind_ == Kind::number ? number_ : 0; }
  const std::string& string() const noexcept { return string_; }
  // Of an array, or the values of an object.
  std::span<const JsonValue> elements() const noexcept { return elements_; }
  // The keys of an object, in the order of its values.
  std::span<const std::string> keys() const noexcept { return keys_; }

  // The value of a key; null if there is none, or if this is no object. Of several the last counts.
  const JsonValue* find(std::string_view key) const noexcept {
    for (std::size_t i = keys_.size(); i-- > 0;) {
      if (keys_[i] == key) return &elements_[i];
    }
    return nullptr;
  }

 private:
  Kind kind_ = Kind::null;
  double number_ = 0;  // or a boolean
  std::string string_;
  std::vector<JsonValue> elements_;
  std::vector<std::string> keys_;
};

inline Result<JsonValue> JsonValue::read(JsonReader& json, int depth) {
  JsonValue value;
  const char first = json.peek();
  if ((first == '{' || first == '[') && depth >= JsonReader::kMaxDepth) {
    return json.error("nested too deeply");
  }
  const auto add_element = [&]() -> Result<void> {
    NIBBLE_TRY(element, read(json, depth + 1));
    value.elements_.push_back(std::move(element));
    return ok();
  };
  if (first == '{') {
    value.kind_ = Kind::object;
    NIBBLE_CHECK(json.object([&](std::string key) {
      value.keys_.push_back(std::move(key));
      return add_element();
    }));
  } else if (first == '[') {
    value.kind_ = Kind::array;
    NIBBLE_CHECK(json.array(add_element));
  } else if (first == '"') {
    NIBBLE_TRY(text, json.string());
    value.kind_ = Kind::string;
    value.string_ = std::move(text);
  } else if (first == 't' || first == 'f') {
    NIBBLE_TRY(truth, json.boolean());
    value.kind_ = Kind::boolean;
    value.number_ = truth ? 1 : 0;
  } else if (!json.accept_null()) {
    NIBBLE_TRY(number, json.number());
    value.kind_ = Kind::number;
    value.number_ = number;
  }
  return value;
}

}}}  // namespace nibble::NIBBLE_ABI::io
