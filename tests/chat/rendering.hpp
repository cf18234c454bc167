// SPDX-License-Identifier: Apache-2.0
//
// Shared by the tests of templates.
#pragma once

#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/chat/jinja.hpp"
#include "why.hpp"

namespace chat_test {

using namespace nibble::chat;

// 2024-07-06 15:04:05, as in make_goldens.py.
inline std::tm golden_time() {
  std::tm time{};
  time.tm_year = 124;
  time.tm_mon = 6;
  time.tm_mday = 6;
  time.tm_wday = 6;
  time.tm_yday = 187;
  time.tm_hour = 15;
  time.tm_min = 4;
  time.tm_sec = 5;
  return time;
}

// The members of a JSON object as variables.
inline std::vector<Variable> variables_from(const Value& object) {
  std::vector<Variable> variables;
  for (const Entry& entry : object.entries())
    variables.push_back({std::string(entry.key.bytes()), entry.value});
  return variables;
}
inline std::vector<Variable> variables_from(std::string_view json) {
  const auto object = value_from_json(json, Origin::foreign);
  REQUIRE_MESSAGE(object, test::why(object));
  return variables_from(*object);
}

inline nibble::Result<MarkedText> rendered(std::string_view source, std::string_view json = "{}",
                                           const RenderLimits& limits = {}) {
  NIBBLE_TRY(parsed, JinjaTemplate::parse(source));
  return parsed.render(variables_from(json), limits, golden_time());
}

// What the template writes; in brackets, the error that it ends with.
inline std::string text_of(std::string_view source, std::string_view json = "{}") {
  const auto text = rendered(source, json);
  return text ? std::string(text->bytes()) : "(" + text.error().message + ")";
}

}  // namespace chat_test
