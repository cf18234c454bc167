// SPDX-License-Identifier: Apache-2.0
#include "bench/table.hpp"

#include <cstdio>

namespace bench {
namespace {

std::string format(const char* pattern, double value) {
  char text[32];
  std::snprintf(text, sizeof(text), pattern, value);
  return text;
}

std::string time_text(double seconds) {
  if (seconds < 1e-6) return format("%.0f ns", seconds * 1e9);
  if (seconds < 1e-3) return format("%.2f us", seconds * 1e6);
  if (seconds < 1) return format("%.2f ms", seconds * 1e3);
  return format("%.2f s", seconds);
}

double counter(const benchmark::BenchmarkReporter::Run& run, const char* name) {
  const auto at = run.counters.find(name);
  return at == run.counters.end() ? 0 : at->second.value;
}

// "-" for what a row does not have.
std::string number(const char* pattern, double value) {
  return value > 0 ? format(pattern, value) : "-";
}

constexpr const char* kRow = "%-21s %-6s %-22s %-5s %-10s %3s %10s %7s %8s %10s %6s\n";

}  // namespace

std::vector<std::string> parts_of(const std::string& name) {
  std::vector<std::string> parts(1);
  for (const char c : name) {
    if (c == '/') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

bool TableReporter::ReportContext(const Context&) {
  std::printf(kRow, "kernel", "format", "shape", "data", "isa", "thr", "time", "GB/s", "GOP/s",
              "limit", "of it");
  return true;
}

void TableReporter::ReportRuns(const std::vector<Run>& runs) {
  for (const Run& run : runs) {
    const bool is_row =
        run.run_type == Run::RT_Aggregate ? run.aggregate_name == "median" : run.repetitions <= 1;
    if (!is_row) continue;
    std::vector<std::string> parts = parts_of(run.run_name.function_name);
    parts.resize(6);
    const bool wall = run.run_name.time_type == "real_time";
    const double seconds = (wall ? run.GetAdjustedRealTime() : run.GetAdjustedCPUTime()) /
                           benchmark::GetTimeUnitMultiplier(run.time_unit);
    const double fraction = counter(run, "fraction");
    std::printf(kRow, parts[0].c_str(), parts[1].c_str(), parts[2].c_str(), parts[3].c_str(),
                parts[4].c_str(), parts[5].c_str() + 1, time_text(seconds).c_str(),
                number("%.1f", counter(run, "GB_per_s")).c_str(),
                number("%.1f", counter(run, "GOP_per_s")).c_str(), run.report_label.c_str(),
                fraction > 0 ? format("%.0f %%", 100 * fraction).c_str() : "-");
  }
  std::fflush(stdout);
}

}  // namespace bench
