// SPDX-License-Identifier: Apache-2.0
//
// What a model is measured by before it may be used, the file with the figures that it must keep
// to, and the comparison.
//
//   {"metrics": {"exact_match": {"value": 0.91, "absolute": 0.005},
//                "answer_ms_p95": {"value": 40, "relative": 0.25}}}
//
// A figure may be worse than the value by the value times `relative` plus `absolute`; neither, by
// nothing. Which way is worse is known for each metric.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/io/number_text.hpp"

namespace example::gate {

enum class Group : std::uint8_t { size, latency, ram, quality, perplexity, kl };
inline constexpr const char* kGroups[] = {"size", "latency", "ram", "quality", "perplexity", "kl"};

// A metric, and how much worse it may be where a baseline is made of what was measured.
struct Metric {
  const char* name;
  Group group;
  bool is_higher_better;
  double relative, absolute;
};
inline constexpr Metric kMetrics[] = {
    {"file_bytes", Group::size, false, 0.01, 0},
    {"weight_bytes", Group::size, false, 0.01, 0},
    {"first_token_ms_p50", Group::latency, false, 0.25, 1},
    {"first_token_ms_p95", Group::latency, false, 0.25, 1},
    {"answer_ms_p50", Group::latency, false, 0.25, 1},
    {"answer_ms_p95", Group::latency, false, 0.25, 1},
    {"answer_ms_p99", Group::latency, false, 0.5, 1},
    {"tokens_per_second", Group::latency, true, 0.2, 0},
    {"peak_ram_bytes", Group::ram, false, 0.1, 1 << 20},
    {"exact_match", Group::quality, true, 0, 0.005},
    {"f1", Group::quality, true, 0, 0.005},
    {"bleu", Group::quality, true, 0, 0.01},
    {"perplexity", Group::perplexity, false, 0.01, 0},
    {"kl_mean", Group::kl, false, 0.1, 0.001},
    {"kl_p99", Group::kl, false, 0.25, 0.01},
};

inline const Metric* find_metric(std::string_view name) noexcept {
  for (const Metric& metric : kMetrics) {
    if (metric.name == name) return &metric;
  }
  return nullptr;
}

struct Measured {
  const Metric* metric = nullptr;
  double value = 0;
};

// A line of a baseline.
struct Limit {
  const Metric* metric = nullptr;
  double value = 0, relative = 0, absolute = 0;

  // The worst that passes.
  double bound() const noexcept {
    const double room = (value < 0 ? -value : value) * relative + absolute;
    return metric->is_higher_better ? value - room : value + room;
  }
};

// Errors: malformed (no JSON of this form, a metric that does not exist or is there twice, a
// tolerance below 0).
inline nibble::Result<std::vector<Limit>> parse_baseline(std::string_view text) {
  using nibble::io::JsonValue;
  const auto wrong = [](const std::string& what) {
    return nibble::Error{nibble::Errc::malformed, "baseline: " + what};
  };
  NIBBLE_TRY(file, JsonValue::parse(text));
  const JsonValue* const metrics = file.find("metrics");
  if (metrics == nullptr || metrics->kind() != JsonValue::Kind::object) {
    return wrong("there is no object \"metrics\"");
  }
  std::vector<Limit> limits;
  for (std::size_t i = 0; i < metrics->keys().size(); ++i) {
    const std::string name = nibble::printable(metrics->keys()[i]);
    const JsonValue& entry = metrics->elements()[i];
    Limit limit;
    limit.metric = find_metric(name);
    if (limit.metric == nullptr) return wrong("there is no metric '" + name + "'");
    for (const Limit& other : limits) {
      if (other.metric == limit.metric) return wrong(name + " is there twice");
    }
    if (entry.kind() != JsonValue::Kind::object || entry.find("value") == nullptr) {
      return wrong(name + " has no \"value\"");
    }
    for (std::size_t j = 0; j < entry.keys().size(); ++j) {
      const std::string& key = entry.keys()[j];
      double* const to = key == "value"      ? &limit.value
                         : key == "relative" ? &limit.relative
                         : key == "absolute" ? &limit.absolute
                                             : nullptr;
      if (to == nullptr || entry.elements()[j].kind() != JsonValue::Kind::number) {
        return wrong(name + ": '" + nibble::printable(key) +
                     "' is not \"value\", \"relative\" or \"absolute\" with a number");
      }
      *to = entry.elements()[j].number();
    }
    if (!(limit.relative >= 0 && limit.absolute >= 0)) {
      return wrong(name + ": a tolerance is below 0");
    }
    limits.push_back(limit);
  }
  if (limits.empty()) return wrong("it has no metrics, so everything would pass");
  return limits;
}

// A baseline of what was measured, with the usual tolerances.
inline std::string baseline_text(const std::vector<Measured>& measured) {
  using nibble::io::number_text;
  std::string text = "{\n  \"metrics\": {";
  const char* separator = "\n";
  for (const Measured& one : measured) {
    text += std::string(separator) + "    " + nibble::io::json_text(one.metric->name) +
            ": {\"value\": " + number_text(one.value) +
            ", \"relative\": " + number_text(one.metric->relative) +
            ", \"absolute\": " + number_text(one.metric->absolute) + "}";
    separator = ",\n";
  }
  return text + "\n  }\n}\n";
}

struct Check {
  Limit limit;
  std::optional<double> value;  // what was measured, if it was
  bool has_passed = false;
};

// Each limit with what was measured. What was not measured, or is no number, does not pass.
inline std::vector<Check> compare(const std::vector<Limit>& limits,
                                  const std::vector<Measured>& measured) {
  std::vector<Check> checks;
  for (const Limit& limit : limits) {
    Check check;
    check.limit = limit;
    for (const Measured& one : measured) {
      if (one.metric == limit.metric) check.value = one.value;
    }
    if (check.value && nibble::is_finite(*check.value)) {
      // What is written in decimal digits is not quite the number that was measured.
      const double rounding = 1e-12 * (limit.value < 0 ? -limit.value : limit.value);
      check.has_passed = limit.metric->is_higher_better ? *check.value >= limit.bound() - rounding
                                                        : *check.value <= limit.bound() + rounding;
    }
    checks.push_back(check);
  }
  return checks;
}

inline std::size_t n_failed(const std::vector<Check>& checks) {
  return static_cast<std::size_t>(
      std::count_if(checks.begin(), checks.end(), [](const Check& c) { return !c.has_passed; }));
}

// The smallest of the values that a part `share` of them does not exceed (nearest rank); 0 of none.
inline double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double rank = share * static_cast<double>(values.size());
  auto i = static_cast<std::size_t>(rank);
  if (static_cast<double>(i) < rank) ++i;
  return values[std::min(i > 0 ? i - 1 : 0, values.size() - 1)];
}

}  // namespace example::gate
