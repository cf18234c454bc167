// SPDX-License-Identifier: Apache-2.0
#include "bench/table.hpp"

#include <cstdio>
#include <ostream>

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

// Splits a row's name: kernel/format/shape/data/isa/threads.
std::vector<std::string> parts_of(const std::string& name) {
  std::vector<std::string> parts(1);
  for (const char c : name) {
    if (c == '/') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  parts.resize(6);
  parts[5].erase(0, 1);  // removes the "t" of "t2"
  return parts;
}

struct Line {
  std::vector<std::string> parts;
  double seconds, gigabytes, gigaops, fraction;
  std::string limit;
};

// The medians, or the runs themselves if there is only one per row.
std::vector<Line> lines_of(const std::vector<benchmark::BenchmarkReporter::Run>& runs) {
  using Run = benchmark::BenchmarkReporter::Run;
  std::vector<Line> lines;
  for (const Run& run : runs) {
    const bool is_row =
        run.run_type == Run::RT_Aggregate ? run.aggregate_name == "median" : run.repetitions <= 1;
    if (!is_row || run.error_occurred) continue;
    const bool wall = run.run_name.time_type == "real_time";
    const double time = wall ? run.GetAdjustedRealTime() : run.GetAdjustedCPUTime();
    lines.push_back({parts_of(run.run_name.function_name),
                     time / benchmark::GetTimeUnitMultiplier(run.time_unit),
                     counter(run, "GB_per_s"), counter(run, "GOP_per_s"), counter(run, "fraction"),
                     run.report_label});
  }
  return lines;
}

// The formatted value, or "-" if a row does not have it.
std::string number(const char* pattern, double value) {
  return value > 0 ? format(pattern, value) : "-";
}

constexpr const char* kRow = "%-21s %-10s %-22s %-5s %-10s %3s %10s %7s %8s %10s %6s\n";

}  // namespace

bool TextTable::ReportContext(const Context&) {
  std::printf(kRow, "kernel", "format", "shape", "data", "isa", "thr", "time", "GB/s", "GOP/s",
              "limit", "of it");
  return true;
}

void TextTable::ReportRuns(const std::vector<Run>& runs) {
  for (const Line& l : lines_of(runs)) {
    std::printf(kRow, l.parts[0].c_str(), l.parts[1].c_str(), l.parts[2].c_str(),
                l.parts[3].c_str(), l.parts[4].c_str(), l.parts[5].c_str(),
                time_text(l.seconds).c_str(), number("%.1f", l.gigabytes).c_str(),
                number("%.1f", l.gigaops).c_str(), l.limit.c_str(),
                number("%.0f %%", 100 * l.fraction).c_str());
  }
  std::fflush(stdout);
}

bool CsvTable::ReportContext(const Context&) {
  GetOutputStream() << "kernel,format,shape,data,isa,threads,seconds,GB_per_s,GOP_per_s,limit,"
                       "fraction\n";
  return true;
}

void CsvTable::ReportRuns(const std::vector<Run>& runs) {
  for (const Line& l : lines_of(runs)) {
    std::ostream& out = GetOutputStream();
    for (const std::string& part : l.parts) out << part << ',';
    out << format("%.6g,", l.seconds) << format("%.5g,", l.gigabytes) << format("%.5g,", l.gigaops)
        << l.limit << format(",%.4f\n", l.fraction);
  }
}

}  // namespace bench
