// SPDX-License-Identifier: Apache-2.0
//
// The utterances with which the shipped model was measured, and how many of them it gets right: an
// answer is right only if it is identical.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_model.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/session.hpp"

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

// How many calls are right, with several sessions in parallel over one model. -1: an error.
inline int count_right(const nibble::Model& model, const std::vector<Sample>& samples,
                       const nibble::SessionOptions& options = {}) {
  std::atomic<std::size_t> next{0};
  std::atomic<int> n_right{0}, n_failed{0};
  const auto work = [&] {
    auto session = nibble::Session::create(model, options);
    if (!session) ++n_failed;
    for (std::size_t i; session && (i = next++) < samples.size();) {
      std::string call;
      const auto on_token = [&](const nibble::Token& token) {
        call += token.text;
        return true;
      };
      const bool is_done = session->rewind(0) &&
                           nibble::generate(*session, samples[i].utterance + "\n", {}, on_token);
      n_failed += is_done ? 0 : 1;
      n_right += call == samples[i].call ? 1 : 0;
    }
  };
  std::vector<std::thread> threads(std::clamp(std::thread::hardware_concurrency(), 1u, 8u));
  for (std::thread& thread : threads) thread = std::thread(work);
  for (std::thread& thread : threads) thread.join();
  return n_failed == 0 ? n_right.load() : -1;
}

}  // namespace test
