// SPDX-License-Identifier: Apache-2.0
//
// Whether a new bundle works: its first answers are the known ones, and come in time. What is asked
// is a file of the bundle (role "health"), so it is signed too:
//
//   {"max_first_token_seconds":0.5,"max_seconds":3,
//    "cases":[{"prompt":"dim the office light\n","answer":"light.set(room=office"}]}
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/json.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

struct HealthPlan {
  struct Case {
    std::string prompt;
    std::string answer;  // with which the answer begins
  };
  double max_first_token_seconds = 0;  // 0: any
  double max_seconds = 0;              // of a whole answer; 0: any
  std::vector<Case> cases;
};

// Errors: malformed, limit.
inline Result<HealthPlan> parse_health_plan(std::string_view text) {
  return catch_out_of_memory([&]() -> Result<HealthPlan> {
    constexpr std::size_t kMaxBytes = std::size_t{1} << 20;
    if (text.size() > kMaxBytes) return Error{Errc::limit, "the size of a health check"};
    HealthPlan plan;
    io::JsonReader json(text);
    const auto set = [](auto& out, auto value) -> Result<void> {
      if (!value) return std::move(value).error();
      out = *std::move(value);
      return ok();
    };
    NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
      if (key == "max_first_token_seconds") {
        return set(plan.max_first_token_seconds, json.number());
      }
      if (key == "max_seconds") return set(plan.max_seconds, json.number());
      if (key != "cases") return json.error("a key that is not known: " + io::quoted(key));
      return json.array([&]() -> Result<void> {
        HealthPlan::Case& added = plan.cases.emplace_back();
        return json.object([&](const std::string& name) -> Result<void> {
          if (name == "prompt") return set(added.prompt, json.string());
          if (name == "answer") return set(added.answer, json.string());
          return json.error("a key that is not known: " + io::quoted(name));
        });
      });
    }));
    if (!json.at_end()) return json.error("more text behind the health check");
    if (plan.cases.empty()) return json.error("a health check without cases");
    return plan;
  });
}

struct HealthAnswer {
  std::string text;
  double first_token_seconds = 0;
  double seconds = 0;
};

// Asks all of it. Errors: invalid_argument (an answer that is another, or late; says which), those
// of ask().
inline Result<void> check_health(const HealthPlan& plan,
                                 FunctionRef<Result<HealthAnswer>(const std::string& prompt)> ask) {
  return catch_out_of_memory([&]() -> Result<void> {
    for (const HealthPlan::Case& asked : plan.cases) {
      NIBBLE_TRY(answer, ask(asked.prompt));
      const auto unhealthy = [&](const std::string& what) {
        return Error{Errc::invalid_argument, "health check, " + io::quoted(asked.prompt) + ": " + what};
      };
      if (!std::string_view(answer.text).starts_with(asked.answer)) {
        return unhealthy("answered " + io::quoted(answer.text) + ", not " + io::quoted(asked.answer));
      }
      const auto late = [](double seconds, double most) { return most > 0 && !(seconds <= most); };
      if (late(answer.first_token_seconds, plan.max_first_token_seconds)) {
        return unhealthy("the first token after " + to_text(answer.first_token_seconds) + " s");
      }
      if (late(answer.seconds, plan.max_seconds)) {
        return unhealthy("the answer after " + to_text(answer.seconds) + " s");
      }
    }
    return ok();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::serve
