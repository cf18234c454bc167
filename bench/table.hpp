// SPDX-License-Identifier: Apache-2.0
//
// A run as a table, in text and in CSV, as reporters of Google Benchmark. (Google Benchmark's own
// CSV output begins with lines that are not CSV.)
#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

namespace bench {

// One line per row: the median of its repetitions.
class TextTable final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;
};

class CsvTable final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;
};

}  // namespace bench
