// SPDX-License-Identifier: Apache-2.0
//
// For tests of the scheduler: requests, and what a request gets alone.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "generate/small_models.hpp"
#include "nibble/generate/scheduler.hpp"

namespace test {

inline Ids some_tokens(std::size_t n, std::size_t seed) {
  Ids tokens(n);
  for (std::size_t i = 0; i < n; ++i) {
    tokens[i] = static_cast<std::int32_t>((i * 31 + seed * 17 + i * i % 7) % 50);
  }
  return tokens;
}

inline nibble::Scheduler make_scheduler(const nibble::Model& model,
                                        const nibble::SchedulerOptions& options = {}) {
  return must(nibble::Scheduler::create(model, options));
}

// What one request gets.
struct Answer {
  Ids ids;
  std::vector<std::uint32_t> logprobs;  // bits
  std::string text;
  nibble::Finish finish = nibble::Finish::none;

  void add(const nibble::Token& token) {
    CHECK(finish == nibble::Finish::none);  // nothing follows the last
    finish = token.finish;
    text += token.text;
    if (token.id < 0) return;
    ids.push_back(token.id);
    logprobs.push_back(std::bit_cast<std::uint32_t>(token.logprob));
  }
  friend bool operator==(const Answer&, const Answer&) = default;
};

// Takes what is there.
inline void poll_all(nibble::Completion& completion, Answer& answer) {
  while (const auto token = completion.poll()) answer.add(*token);
}

// The same request in a session of its own.
inline Answer alone(const nibble::Model& model, const nibble::GenerateRequest& request,
                    const nibble::SessionOptions& options = {}) {
  auto session = make_session(options, model);
  REQUIRE(session.set_adapter(request.adapter));
  auto generator = make_generator(session, request.options);
  const auto read = request.tokens.empty() ? generator.prompt(request.prompt)
                                           : generator.prompt(request.tokens);
  REQUIRE_MESSAGE(read, why(read));
  Answer answer;
  for (;;) {
    const auto token = must(generator.next());
    if (!token) break;
    answer.add(*token);
  }
  answer.finish = generator.finish();
  return answer;
}

// A session's options like these of a scheduler.
inline nibble::SessionOptions session_options(const nibble::SchedulerOptions& options) {
  return {.n_ctx = options.n_ctx, .kv_type = options.kv_type};
}

}  // namespace test
