// SPDX-License-Identifier: Apache-2.0
//
// The utterances with which the shipped model was measured, and how many of them it gets right: an
// answer is right only if it is identical.
#pragma once

#include <array>
#include <fstream>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/model/model.hpp"

namespace test {

struct Split {
  std::string name;
  const char* file;
  int right_f32;  // as the model's README states, computed by PyTorch
};
inline const std::array kSplits = {Split{"held-out", "test_2000.tsv", 1991},
                                   Split{"hard", "hard_2000.tsv", 1782}};
inline constexpr std::size_t kUtterances = 2000;

struct Sample {
  std::string utterance;
  std::string call;
};

inline std::vector<Sample> read_samples(const char* file) {
  const std::string model = home_model_path();
  std::ifstream in(model.substr(0, model.rfind('/') + 1) + file);
  std::vector<Sample> samples;
  for (std::string line; std::getline(in, line);) {
    const std::size_t tab = line.find('\t');
    REQUIRE(tab != line.npos);
    samples.push_back({line.substr(0, tab), line.substr(tab + 1)});
  }
  REQUIRE(samples.size() == kUtterances);
  return samples;
}

// How many calls are right, asked in batches. -1: an error.
inline int count_right(const nibble::Model& model, const std::vector<Sample>& samples,
                       nibble::SchedulerOptions options = {}) {
  options.n_ctx = 256;
  options.max_batch = 16;
  options.max_step_tokens = 128;
  options.max_queue = static_cast<nibble::Index>(kUtterances);
  auto scheduler = nibble::Scheduler::create(model, options);
  if (!scheduler) return -1;
  std::vector<std::string> calls(samples.size());
  std::vector<nibble::Completion> completions;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    auto completion = scheduler->submit({.prompt = samples[i].utterance + "\n",
                                         .options = {.max_tokens = 64},
                                         .on_token = [&calls, i](const nibble::Token& token) {
                                           calls[i] += token.text;
                                           return true;
                                         }});
    if (!completion) return -1;
    completions.push_back(*std::move(completion));
  }
  while (scheduler->step()) {
  }
  int n_right = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (!completions[i].status()) return -1;
    n_right += calls[i] == samples[i].call ? 1 : 0;
  }
  return n_right;
}

}  // namespace test
