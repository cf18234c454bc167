// SPDX-License-Identifier: Apache-2.0
//
// How long models take on this machine: the products of a shape, from which no model of it can be
// faster, and whole models of random weights.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "../train/model.hpp"
#include "nibble/compress/product_time.hpp"
#include "nibble/model/tuning.hpp"
#include "shapes.hpp"

namespace example {

// Milliseconds of a token's products, by shape. Each product is measured once.
class ProductTimes {
 public:
  // The executor must live as long. `most_bytes`: of the models that are looked at.
  ProductTimes(const nibble::graph::FormatOps& format, std::uint64_t most_bytes,
               nibble::Executor& executor)
      : format_(&format), most_bytes_(most_bytes), executor_(&executor) {}

  std::size_t n_measured() const { return known_.size(); }
  // Errors: those of compress::product_microseconds.
  nibble::Result<double> milliseconds(const Shape& shape, std::uint64_t vocabulary, bool is_tied) {
    double sum = 0;
    for (const ShapeMatrix& m : matrices_of(shape, vocabulary, is_tied)) {
      if (!m.is_multiplied) continue;
      const auto found = known_.find({m.n, m.k});
      if (found != known_.end()) {
        sum += found->second * static_cast<double>(m.count);
        continue;
      }
      NIBBLE_TRY(microseconds,
                 nibble::compress::product_microseconds(
                     *format_, static_cast<nibble::Index>(m.n), static_cast<nibble::Index>(m.k),
                     static_cast<std::size_t>(most_bytes_), *executor_));
      known_[{m.n, m.k}] = microseconds;
      sum += microseconds * static_cast<double>(m.count);
    }
    return sum / 1000;
  }

 private:
  const nibble::graph::FormatOps* format_;
  std::uint64_t most_bytes_;
  nibble::Executor* executor_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, double> known_;  // microseconds
};

// Of a whole model; medians.
struct ModelTimes {
  double token = 0;    // ms of a token after others
  double command = 0;  // ms of a home command: a prompt of 17 tokens and 8 more
};

inline nibble::Result<ModelTimes> times_of(const nibble::Model& model) {
  using Clock = std::chrono::steady_clock;
  constexpr nibble::Index kPrompt = 17, kAnswer = 8;
  constexpr int kTurns = 15;
  NIBBLE_TRY(session, nibble::Session::create(model));
  const nibble::Index vocab_size = model.config().vocab_size;
  std::vector<std::int32_t> ids;
  for (nibble::Index i = 0; i < kPrompt + kAnswer; ++i) {
    ids.push_back(static_cast<std::int32_t>(i * 37 % vocab_size));
  }
  const std::span<const std::int32_t> all(ids);
  const auto past = [](Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  std::vector<double> tokens, commands;
  for (int turn = 0; turn <= kTurns; ++turn) {
    NIBBLE_CHECK(session.rewind(0));
    const auto start = Clock::now();
    NIBBLE_CHECK(session.append(all.first(kPrompt)));
    const auto answer = Clock::now();
    for (std::size_t i = kPrompt; i < ids.size(); ++i) {
      NIBBLE_CHECK(session.append(all.subspan(i, 1)));
    }
    if (turn == 0) continue;  // warms the caches
    tokens.push_back(past(answer) / static_cast<double>(kAnswer));
    commands.push_back(past(start));
  }
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  return ModelTimes{median(tokens), median(commands)};
}

}  // namespace example
