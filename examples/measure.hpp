// SPDX-License-Identifier: Apache-2.0
//
// What the example programs measure of a model: its speed, and how many answers are right.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/nibble.hpp"
#include "samples.hpp"

namespace example {

struct Speed {
  double prompt = 0, generation = 0;  // tokens per second
};

// Times a prompt and single tokens after it, the best of three runs.
inline nibble::Result<Speed> measure_speed(nibble::Session& session) {
  using Clock = std::chrono::steady_clock;
  const auto n_all = std::min<nibble::Index>(80, session.capacity());
  const nibble::Index n_prompt = n_all * 4 / 5;
  const nibble::Index vocab_size = session.model().config().vocab_size;
  std::vector<std::int32_t> ids;
  for (nibble::Index i = 0; i < n_all; ++i) {
    ids.push_back(static_cast<std::int32_t>(i * 37 % vocab_size));
  }
  const std::span<const std::int32_t> all(ids);
  const auto rate = [](nibble::Index n, Clock::time_point start) {
    return static_cast<double>(n) / std::chrono::duration<double>(Clock::now() - start).count();
  };
  Speed speed;
  for (int run = 0; run < 3; ++run) {
    if (interrupted) return nibble::Error{nibble::Errc::cancelled, "measuring speed"};
    NIBBLE_CHECK(session.rewind(0));
    auto start = Clock::now();
    NIBBLE_CHECK(session.append(all.first(static_cast<std::size_t>(n_prompt))));
    speed.prompt = std::max(speed.prompt, rate(n_prompt, start));
    start = Clock::now();
    for (auto i = static_cast<std::size_t>(n_prompt); i < ids.size(); ++i) {
      NIBBLE_CHECK(session.append(all.subspan(i, 1)));
    }
    speed.generation = std::max(speed.generation, rate(n_all - n_prompt, start));
  }
  return speed;
}

// Each line is a prompt, a tab, an answer. Errors: io, malformed.
inline nibble::Result<std::vector<Sample>> read_samples(const std::string& path) {
  NIBBLE_TRY(text, read_text(path));
  std::istringstream in(text);
  std::vector<Sample> samples;
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t tab = line.find('\t');
    if (tab == line.npos) {
      return nibble::Error{
          nibble::Errc::malformed,
          nibble::printable(path) + ": line " + std::to_string(samples.size() + 1) + " has no tab"};
    }
    samples.push_back({line.substr(0, tab), line.substr(tab + 1)});
  }
  return samples;
}

// The most likely answer to a prompt and a newline.
inline nibble::Result<std::string> answer_of(nibble::Session& session, const std::string& prompt) {
  NIBBLE_CHECK(session.rewind(0));
  std::string answer;
  const auto on_token = [&](const nibble::Token& token) {
    answer += token.text;
    return true;
  };
  NIBBLE_CHECK(nibble::generate(session, prompt + "\n", {}, on_token));
  return answer;
}

// A byte of 1 for each sample that gets its answer to the letter, of 0 for the others; with an
// adapter if there is one. Each worker has a session of its own. Errors: those of answer_of();
// cancelled.
inline nibble::Result<std::vector<std::byte>> right_answers(
    const nibble::Model& model, std::span<const Sample> samples, nibble::Executor& executor,
    const nibble::AdapterSet& adapter = {}) {
  struct Worker {
    std::optional<nibble::Session> session;
    std::optional<nibble::Error> error;
  };
  std::vector<Worker> workers(static_cast<std::size_t>(executor.n_workers()));
  for (Worker& worker : workers) {
    nibble::SessionOptions options;
    options.max_factor_rank = adapter.max_rank();
    NIBBLE_TRY(session, nibble::Session::create(model, options));
    worker.session.emplace(std::move(session));
    NIBBLE_CHECK(worker.session->set_adapter({adapter}));
  }
  std::vector<std::byte> is_right(samples.size());
  const auto ask = [&](nibble::Index task, nibble::Index w) {
    const auto i = static_cast<std::size_t>(task);
    Worker& worker = workers[static_cast<std::size_t>(w)];
    if (worker.error || interrupted) return;
    auto answer = answer_of(*worker.session, samples[i].prompt);
    if (!answer) {
      worker.error = std::move(answer).error();
    } else {
      is_right[i] = static_cast<std::byte>(*answer == samples[i].answer ? 1 : 0);
    }
  };
  executor.parallel_for(static_cast<nibble::Index>(samples.size()), ask);
  if (interrupted) return nibble::Error{nibble::Errc::cancelled, "asking"};
  for (Worker& worker : workers) {
    if (worker.error) return *std::move(worker.error);
  }
  return is_right;
}

// Percent of bytes that are 1; 0 if there are none.
inline double percent_of(std::span<const std::byte> is_right) {
  if (is_right.empty()) return 0;
  const auto n_right = std::count(is_right.begin(), is_right.end(), std::byte{1});
  return 100.0 * static_cast<double>(n_right) / static_cast<double>(is_right.size());
}

// Percent of the first `n` samples that get their answer to the letter.
inline nibble::Result<double> percent_right(const nibble::Model& model,
                                            std::span<const Sample> samples, std::size_t n,
                                            nibble::Executor& executor,
                                            const nibble::AdapterSet& adapter = {}) {
  NIBBLE_TRY(is_right,
             right_answers(model, samples.first(std::min(n, samples.size())), executor, adapter));
  return percent_of(is_right);
}

}  // namespace example
