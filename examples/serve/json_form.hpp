// SPDX-License-Identifier: Apache-2.0
//
// A JSON text of which an object is expected, read member by member.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/json.hpp"

namespace example::server {

using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::ok;
using nibble::Result;
using nibble::io::JsonReader;

class JsonForm {
 protected:
  explicit JsonForm(std::string_view text) : json_(text) {}

  // All of the text is an object.
  template <class Member>
  Result<void> whole_object(Member member) {
    NIBBLE_CHECK(object(member));
    if (!json_.at_end()) return json_.error("more text behind the object");
    return ok();
  }
  // An object whose members that are null count as not given. member(key) reads a value.
  template <class Member>
  Result<void> object(Member member) {
    if (json_.peek() != '{') return json_.error("expected an object");
    return json_.object([&](const std::string& key) -> Result<void> {
      if (json_.accept_null()) return ok();
      auto read = member(key);
      if (!read) return std::move(read).error().in(nibble::printable(key.substr(0, 64)));
      return ok();
    });
  }

  // A number in [least, most].
  Result<double> number(double least, double most) {
    NIBBLE_TRY(value, json_.number());
    if (value >= least && value <= most) return value;
    return Error{Errc::invalid_argument, "must be in [" + plain(least) + ", " + plain(most) + "]"};
  }
  Result<float> number32(double least, double most) {
    NIBBLE_TRY(value, number(least, most));
    return static_cast<float>(value);
  }
  // A whole number in [least, most], which are at most 2^53.
  Result<Index> integer(double least, double most) {
    NIBBLE_TRY(value, number(least, most));
    if (value != std::floor(value)) return Error{Errc::invalid_argument, "must be an integer"};
    return static_cast<Index>(value);
  }
  static std::string plain(double value) {
    std::string text = std::to_string(value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
    return text;
  }
  // The text of an object or array, whose first character it begins with.
  Result<std::string> raw_of_kind(char first, const char* what) {
    if (json_.peek() != first) return json_.error(std::string("expected ") + what);
    NIBBLE_TRY(value, json_.raw());
    return std::string(value);
  }
  static Error unsupported(const std::string& what) { return Error{Errc::unsupported, what}; }

  JsonReader json_;
};

}  // namespace example::server
