// SPDX-License-Identifier: Apache-2.0
//
// The trials of formats in a file beside the model that is written, so that a compression that was
// stopped goes on where it was: a line for each trial, with tensor, format and divergence.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "nibble/compress/predictions.hpp"
#include "nibble/compress/sensitivity.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/quant/format.hpp"

namespace example {

// On what trials depend, as a number: the model, what it was observed and tried on. (FNV-1a, over
// the beginning of each tensor: other models differ there.)
inline std::uint64_t trial_setup(const nibble::io::Gguf& file,
                                 std::span<const std::int32_t> calibration,
                                 const nibble::compress::TrialText& trial) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&](std::span<const std::byte> bytes) {
    for (const std::byte b : bytes)
      hash = (hash ^ std::to_integer<std::uint64_t>(b)) * 0x100000001b3u;
  };
  const auto add_number = [&](std::uint64_t n) { add(std::as_bytes(std::span(&n, 1))); };
  for (const auto& tensor : file.tensors()) {
    add(std::as_bytes(std::span(tensor.name.data(), tensor.name.size())));
    add_number(static_cast<std::uint64_t>(tensor.type));
    add(tensor.data.first(std::min(tensor.data.size(), std::size_t{1} << 12)));
  }
  add(std::as_bytes(calibration));
  for (std::size_t i = 0; i < trial.n_sequences(); ++i) {
    add(std::as_bytes(trial.ids(i)));
    add_number(trial.first_scored(i));
  }
  return hash;
}

class TrialFile final : public nibble::compress::TrialLog {
 public:
  // Trials of another setup are forgotten. Errors: io; invalid_argument (the file is none of
  // trials: it stays as it is).
  static nibble::Result<TrialFile> open(const std::string& path, std::uint64_t setup) {
    TrialFile log;
    char first[64];
    std::snprintf(first, sizeof(first), "%s%016llx", kFirst,
                  static_cast<unsigned long long>(setup));
    std::ifstream in(path);
    std::string line;
    if (std::getline(in, line)) {
      if (!line.starts_with(kFirst)) {
        return nibble::Error{
            nibble::Errc::invalid_argument,
            nibble::printable(path) + ": trials would be kept here, but it is another file"};
      }
      const bool is_same = line == first;
      while (is_same && std::getline(in, line) && !in.eof()) {  // a line that was cut has no end
        std::istringstream fields(line);
        std::string tensor, format;
        double divergence = 0;
        if (fields >> tensor >> format >> divergence) log.known_[{tensor, format}] = divergence;
      }
    }
    in.close();
    std::string text = std::string(first) + "\n";
    for (const auto& [trial, divergence] : log.known_) {
      text += line_of(trial.first, trial.second, divergence);
    }
    NIBBLE_TRY(out, nibble::io::OutputFile::create(path));
    NIBBLE_CHECK(out.write(std::as_bytes(std::span(text.data(), text.size()))));
    NIBBLE_CHECK(out.commit());
    log.file_.open(path, std::ios::app);
    return log;
  }

  std::size_t n_known() const { return known_.size(); }

  bool find(std::string_view tensor, nibble::quant::Format format, double& divergence) override {
    const auto it = known_.find({key_of(tensor), to_string(format)});
    if (it == known_.end()) return false;
    divergence = it->second;
    return true;
  }

  bool add(std::string_view tensor, const nibble::compress::FormatTrial& trial, std::size_t n_done,
           std::size_t n_trials) override {
    const std::string key = key_of(tensor), format = to_string(trial.format);
    if (known_.emplace(std::pair{key, format}, trial.divergence).second) {
      ++n_measured_;
      file_ << line_of(key, format, trial.divergence) << std::flush;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double left = n_measured_ == 0 ? 0
                                         : seconds / static_cast<double>(n_measured_) *
                                               static_cast<double>(n_trials - n_done);
    char text[160];
    std::snprintf(text, sizeof(text), "trial %zu of %zu, about %.0f seconds left: %.60s", n_done,
                  n_trials, left, key.c_str());
    status_->show(text);
    return !interrupted;
  }

 private:
  static constexpr const char* kFirst = "# nibble compress: trials of ";

  TrialFile() : status_(std::make_unique<StatusLine>(true, StatusLine::kInLogs)) {}

  // A tensor's name as one word.
  static std::string key_of(std::string_view tensor) {
    std::string key = nibble::printable(std::string(tensor));
    std::replace(key.begin(), key.end(), ' ', '_');
    return key;
  }
  static std::string line_of(const std::string& tensor, const std::string& format,
                             double divergence) {
    char number[32];
    std::snprintf(number, sizeof(number), "%.9g", divergence);
    return tensor + "\t" + format + "\t" + number + "\n";
  }

  std::map<std::pair<std::string, std::string>, double> known_;
  std::ofstream file_;
  std::size_t n_measured_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::unique_ptr<StatusLine> status_;
};

}  // namespace example
