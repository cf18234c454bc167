// SPDX-License-Identifier: Apache-2.0
//
// The reports of a gate: a table, JSON, and JUnit's XML, which CI systems show.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "baseline.hpp"
#include "nibble/core/utf8.hpp"

namespace example::gate {

// A number as people read it.
inline std::string short_text(double value) {
  char text[40];
  const bool is_whole =
      value > -1e15 && value < 1e15 && value == static_cast<double>(static_cast<long long>(value));
  std::snprintf(text, sizeof text, is_whole ? "%.0f" : "%.6g", value);
  return text;
}

// What a check says in words: "0.89, must be at least 0.905 (baseline 0.91)".
inline std::string in_words(const Check& check) {
  const Limit& limit = check.limit;
  return (check.value ? short_text(*check.value) : std::string("not measured")) + ", must be at " +
         (limit.metric->is_higher_better ? "least " : "most ") + short_text(limit.bound()) +
         " (baseline " + short_text(limit.value) + ")";
}

// A line for each metric: those that a baseline limits, then the others.
inline std::string report_text(const std::vector<Check>& checks,
                               const std::vector<Measured>& measured) {
  std::string text;
  const auto add = [&](const char* verdict, const char* name, const std::string& what) {
    char line[40];
    std::snprintf(line, sizeof line, "%-7s%-20s ", verdict, name);
    text += line + what + "\n";
  };
  for (const Check& check : checks) {
    add(check.has_passed ? "ok" : "FAILED", check.limit.metric->name, in_words(check));
  }
  for (const Measured& one : measured) {
    bool is_limited = false;
    for (const Check& check : checks) is_limited |= check.limit.metric == one.metric;
    if (!is_limited) add("", one.metric->name, short_text(one.value));
  }
  if (!checks.empty()) {
    const std::size_t n = n_failed(checks);
    text += n == 0 ? std::string("passed: ") : "failed: " + std::to_string(n) + " of ";
    text += std::to_string(checks.size()) + " metrics\n";
  }
  return text;
}

inline std::string report_json(std::string_view model, const std::vector<Check>& checks,
                               const std::vector<Measured>& measured) {
  using nibble::io::json_text;
  const auto number = [](double value) {
    return nibble::is_finite(value) ? nibble::io::number_text(value) : std::string("null");
  };
  std::string text = "{\"model\": " + json_text(model) +
                     ", \"passed\": " + (n_failed(checks) == 0 ? "true" : "false") +
                     ", \"measured\": {";
  const char* separator = "";
  for (const Measured& one : measured) {
    text += separator + json_text(one.metric->name) + ": " + number(one.value);
    separator = ", ";
  }
  text += "}, \"checks\": [";
  separator = "";
  for (const Check& check : checks) {
    text += std::string(separator) + "{\"metric\": " + json_text(check.limit.metric->name) +
            ", \"value\": " + (check.value ? number(*check.value) : std::string("null")) +
            ", \"baseline\": " + number(check.limit.value) +
            ", \"bound\": " + number(check.limit.bound()) +
            ", \"passed\": " + (check.has_passed ? "true" : "false") + "}";
    separator = ", ";
  }
  return text + "]}\n";
}

// A text as an attribute of XML 1.0: what XML cannot hold becomes '?'.
inline std::string xml_text(std::string_view text) {
  std::string out;
  for (const char c : nibble::printable(text)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c; break;
    }
  }
  return out;
}

// One test case for each check.
inline std::string report_junit(std::string_view model, const std::vector<Check>& checks) {
  const std::string suite = xml_text(model);
  std::string text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"" + suite +
                     "\" tests=\"" + std::to_string(checks.size()) + "\" failures=\"" +
                     std::to_string(n_failed(checks)) + "\" errors=\"0\">\n";
  for (const Check& check : checks) {
    text += "  <testcase classname=\"" + suite + "\" name=\"" + check.limit.metric->name + "\"";
    text += check.has_passed
                ? std::string("/>\n")
                : "><failure message=\"" + xml_text(in_words(check)) + "\"/></testcase>\n";
  }
  return text + "</testsuite>\n";
}

}  // namespace example::gate
