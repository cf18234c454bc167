// SPDX-License-Identifier: Apache-2.0
//
// The trials of formats in a file beside the model that is written, so that a compression that was
// stopped goes on where it was: a line for each trial, with tensor, format and divergence.
#pragma once

#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "../common.hpp"
#include "nibble/compress/sensitivity.hpp"
#include "nibble/quant/format.hpp"

namespace example {

class TrialFile final : public nibble::compress::TrialLog {
 public:
  // `setup` says on what the trials depend (model, text, settings); a file of another one is begun
  // anew.
  TrialFile(std::string path, std::string setup) : path_(std::move(path)) {
    std::ifstream in(path_);
    std::string line;
    const bool is_same = std::getline(in, line) && line == "# " + setup;
    while (is_same && std::getline(in, line)) {
      std::istringstream fields(line);
      std::string tensor, format;
      double divergence = 0;
      if (fields >> tensor >> format >> divergence) known_[{tensor, format}] = divergence;
    }
    in.close();
    file_ = std::fopen(path_.c_str(), is_same ? "a" : "w");
    if (file_ != nullptr && !is_same) std::fprintf(file_, "# %s\n", setup.c_str());
  }
  TrialFile(const TrialFile&) = delete;
  TrialFile& operator=(const TrialFile&) = delete;
  ~TrialFile() override {
    if (file_ != nullptr) std::fclose(file_);
  }

  std::size_t n_known() const { return known_.size(); }

  bool find(std::string_view tensor, nibble::quant::Format format, double& divergence) override {
    const auto it = known_.find({std::string(tensor), to_string(format)});
    if (it == known_.end()) return false;
    divergence = it->second;
    return true;
  }

  bool add(std::string_view tensor, const nibble::compress::FormatTrial& trial, std::size_t n_done,
           std::size_t n_trials) override {
    const auto [it, is_new] = known_.emplace(
        std::pair{std::string(tensor), std::string(to_string(trial.format))}, trial.divergence);
    if (is_new) {
      ++n_measured_;
      if (file_ != nullptr) {
        std::fprintf(file_, "%s\t%s\t%.9g\n", it->first.first.c_str(), it->first.second.c_str(),
                     trial.divergence);
        std::fflush(file_);
      }
    }
    char text[160];
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double left = n_measured_ == 0 ? 0
                                         : seconds / static_cast<double>(n_measured_) *
                                               static_cast<double>(n_trials - n_done);
    std::snprintf(text, sizeof(text), "trial %zu of %zu, about %.0f seconds left: %.60s", n_done,
                  n_trials, left, nibble::printable(std::string(tensor)).c_str());
    status_.show(text);
    return !interrupted;
  }

 private:
  std::string path_;
  std::map<std::pair<std::string, std::string>, double> known_;
  std::FILE* file_ = nullptr;
  std::size_t n_measured_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  StatusLine status_{true, StatusLine::kInLogs};
};

}  // namespace example
