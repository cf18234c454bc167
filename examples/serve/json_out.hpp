// SPDX-License-Identifier: Apache-2.0
//
// JSON texts for answers, made of texts that are JSON already.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/io/json_text.hpp"

namespace example::server {

// A value as JSON. Texts that are JSON already are of this type, so that nothing is quoted twice.
class Json {
 public:
  Json(const char* text) : Json(std::string_view(text)) {}             // NOLINT: all are implicit
  Json(const std::string& text) : Json(std::string_view(text)) {}      // NOLINT
  Json(std::string_view text) : text_(nibble::io::json_text(text)) {}  // NOLINT
  Json(bool value) : text_(value ? "true" : "false") {}                // NOLINT
  template <std::integral T>
  Json(T value) : text_(std::to_string(value)) {}  // NOLINT
  Json(double value) {                             // NOLINT
    char text[40] = "null";                        // no number: JSON has none for it
    if (std::isfinite(value)) std::snprintf(text, sizeof(text), "%.9g", value);
    text_ = text;
  }

  static Json raw(std::string text) { return Json(std::move(text), 0); }
  static Json null() { return raw("null"); }

  using Member = std::pair<const char*, Json>;
  static Json object(std::initializer_list<Member> members) {
    Json made = raw("{}");
    for (const Member& member : members) made.add(member.first, member.second);
    return made;
  }
  static Json array(const std::vector<Json>& elements) {
    std::string text = "[";
    for (const Json& element : elements) {
      if (text.size() > 1) text += ',';
      text += element.text_;
    }
    return raw(text + ']');
  }

  // One member more of an object.
  Json& add(const char* key, const Json& value) {
    text_.pop_back();
    if (text_.size() > 1) text_ += ',';
    text_.append("\"").append(key).append("\":").append(value.text_).append("}");
    return *this;
  }

  const std::string& text() const { return text_; }

 private:
  Json(std::string text, int) : text_(std::move(text)) {}

  std::string text_;
};

}  // namespace example::server
