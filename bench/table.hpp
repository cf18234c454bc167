// SPDX-License-Identifier: Apache-2.0
//
// The text table of a run, as a reporter of Google Benchmark.
#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

namespace bench {

// The parts of a row's name: kernel/format/shape/data/isa/threads.
std::vector<std::string> parts_of(const std::string& name);

// One line per row: the median of its repetitions.
class TableReporter final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;
};

}  // namespace bench
