// SPDX-License-Identifier: Apache-2.0
//
// What became of a model, step by step: size, predictions, speed, right answers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "../measure.hpp"
#include "nibble/compress/predictions.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/nibble.hpp"

namespace example {

struct ReportRow {
  std::string step;
  std::uint64_t bytes = 0;  // of all tensors
  double bits = 0;          // of a weight
  nibble::Divergence divergence;
  double tokens_per_second = 0;  // generated
  std::vector<double> right;     // percent of the answers, for each file of samples
};

struct SampleFile {
  std::string name;
  std::vector<Sample> samples;
};

// Errors: those of read_samples(); invalid_argument (a file without samples).
inline nibble::Result<std::vector<SampleFile>> read_sample_files(
    const std::vector<std::string>& paths) {
  std::vector<SampleFile> files;
  for (const std::string& path : paths) {
    NIBBLE_TRY(samples, read_samples(path));
    if (samples.empty()) {
      return nibble::Error{nibble::Errc::invalid_argument,
                           nibble::printable(path) + ": no samples"};
    }
    files.push_back({path.substr(path.find_last_of('/') + 1), std::move(samples)});
  }
  return files;
}

// A session for sequences of up to `context` tokens, and for measuring speed.
inline nibble::SessionOptions comparing_session(nibble::Index context, nibble::Executor& executor) {
  const nibble::Index step = std::min<nibble::Index>(context, 64);
  return {.n_ctx = std::max<nibble::Index>(context, 80),
          .max_step_tokens = step,
          .max_outputs = step,
          .executor = &executor};
}

// As nibble::Progress: goes on until the program is interrupted.
inline bool until_interrupted(std::size_t, std::size_t) { return !interrupted; }

// Measures a model against the reference.
inline nibble::Result<ReportRow> report_row(std::string step, const nibble::io::Gguf& file,
                                            const nibble::Model& model,
                                            const nibble::compress::ReferencePredictions& reference,
                                            const std::vector<SampleFile>& samples,
                                            nibble::Executor& executor) {
  ReportRow row;
  row.step = std::move(step);
  std::uint64_t n_weights = 0;
  for (const auto& tensor : file.tensors()) {
    row.bytes += tensor.data.size();
    n_weights += tensor.n_elements();
  }
  row.bits = 8 * static_cast<double>(row.bytes) / static_cast<double>(n_weights);
  NIBBLE_TRY(session, nibble::Session::create(
                          model, comparing_session(reference.text().longest(), executor)));
  StatusLine status(true, StatusLine::kInLogs);
  const nibble::Progress progress = [&](std::size_t done, std::size_t total) {
    status.show(row.step + ": sequence " + std::to_string(done) + " of " + std::to_string(total));
    return !interrupted;
  };
  NIBBLE_TRY(divergence, reference.compare(session, &progress));
  row.divergence = divergence;
  NIBBLE_TRY(speed, measure_speed(session));
  row.tokens_per_second = speed.generation;
  for (const SampleFile& file_of_samples : samples) {
    status.show(row.step + ": answers of " + file_of_samples.name);
    NIBBLE_TRY(is_right, right_answers(model, file_of_samples.samples, executor));
    row.right.push_back(percent_of(is_right));
  }
  return row;
}

inline void print_report(const std::vector<ReportRow>& rows,
                         const std::vector<SampleFile>& samples) {
  int width = 4;
  for (const ReportRow& row : rows) width = std::max(width, static_cast<int>(row.step.size()));
  std::printf("%-*s %14s %7s %11s %11s %9s %9s", width, "step", "bytes", "bits", "perplexity",
              "KL, nats", "same top", "tokens/s");
  for (const SampleFile& file : samples) std::printf(" %14.14s", file.name.c_str());
  std::printf("\n");
  for (const ReportRow& row : rows) {
    std::printf("%-*s %14s %7.3f %11.4f %11.3g %8.2f%% %9.1f", width, row.step.c_str(),
                grouped(row.bytes).c_str(), row.bits, row.divergence.perplexity_b,
                row.divergence.mean, 100 * row.divergence.same_best, row.tokens_per_second);
    for (const double right : row.right) std::printf(" %13.2f%%", right);
    std::printf("\n");
  }
}

}  // namespace example
