// SPDX-License-Identifier: Apache-2.0
//
// What the pipeline measures of a model, its table, and its picture.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../gnuplot.hpp"
#include "../home_model.hpp"
#include "../measure.hpp"
#include "../train/model.hpp"

namespace example {

struct Measured {
  std::uint64_t n_parameters = 0;
  std::uint64_t bytes = 0;        // of weights, as stored
  double ms = 0;                  // of a command, on one thread
  double held_out = 0, hard = 0;  // percent of right answers
};

// Asks the first `n` samples of each split. Errors: those of files; cancelled.
inline nibble::Result<Measured> measure_file(const nibble::io::Gguf& file, const TestSplits& splits,
                                             std::size_t n, nibble::Executor& executor) {
  using Clock = std::chrono::steady_clock;
  Measured m;
  for (const auto& tensor : file.tensors()) {
    m.bytes += tensor.data.size();
    m.n_parameters += tensor.n_elements();
  }
  NIBBLE_TRY(model, load_to_ask(file, executor));
  NIBBLE_TRY(held_out, percent_right(model, splits.held_out, n, executor));
  NIBBLE_TRY(hard, percent_right(model, splits.hard, n, executor));
  m.held_out = held_out;
  m.hard = hard;
  NIBBLE_TRY(session, nibble::Session::create(model));
  // The best of several parts: other programs run, too.
  const std::size_t n_timed = std::min<std::size_t>(20, splits.held_out.size());
  for (int part = 0; part < 5; ++part) {
    const auto start = Clock::now();
    for (std::size_t i = 0; i < n_timed; ++i) {
      NIBBLE_CHECK(answer_of(session, splits.held_out[i].prompt));
    }
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count() /
                      static_cast<double>(n_timed);
    m.ms = part == 0 ? ms : std::min(m.ms, ms);
  }
  return m;
}

// The same of the file rounded to a format by the plain rule.
inline nibble::Result<Measured> measure_rounded(const nibble::io::Gguf& file,
                                                nibble::quant::Format format,
                                                const TestSplits& splits, std::size_t n,
                                                nibble::Executor& executor) {
  TrainedModel::Options options;
  options.deployed = format;
  NIBBLE_TRY(model, TrainedModel::create(file, options, false));
  NIBBLE_TRY(rounded, model.as_file());
  return measure_file(rounded, splits, n, executor);
}

struct TableRow {
  std::string name, format;
  Measured model;
  std::optional<Measured> direct;  // a model of that size and format, trained directly
};

class Table {
 public:
  // Prints the row, the head before the first.
  void add(TableRow row) {
    if (rows_.empty()) print_head();
    rows_.push_back(std::move(row));
    print(rows_.back());
  }
  const std::vector<TableRow>& rows() const { return rows_; }
  // All rows once more.
  void print_all() const {
    print_head();
    for (const TableRow& row : rows_) print(row);
  }

  // Bytes against right answers on the hard split: the pipeline's models, and those that were
  // trained directly. False without gnuplot.
  bool plot(const std::string& path) const {
    Gnuplot plot(path);
    if (!plot.is_open()) return false;
    plot.print(
        "set xlabel 'bytes of weights'\nset ylabel 'right answers to hard commands, %%'\n"
        "set logscale x\nset format x '%%.0s %%c'\nset yrange [0:100]\n"
        "plot '-' with labels offset 0,1 notitle, '-' with linespoints pt 7 title 'pipeline', '-' "
        "with points pt 4 title 'trained directly'\n");
    for (const TableRow& row : rows_) {
      plot.print("%llu %.3f '%s'\n", static_cast<unsigned long long>(row.model.bytes),
                 row.model.hard, plot_title(row.name).c_str());
    }
    plot.print("e\n");
    for (const TableRow& row : rows_) {
      plot.print("%llu %.3f\n", static_cast<unsigned long long>(row.model.bytes), row.model.hard);
    }
    plot.print("e\n");
    for (const TableRow& row : rows_) {
      if (!row.direct) continue;
      plot.print("%llu %.3f\n", static_cast<unsigned long long>(row.direct->bytes),
                 row.direct->hard);
    }
    plot.print("e\n");
    return plot.finish();
  }

 private:
  static void print_head() {
    std::printf("%-22s %-6s %11s %13s %8s %9s %9s   %s\n", "model", "format", "parameters", "bytes",
                "ms", "held-out", "hard", "trained directly");
  }
  static void print(const TableRow& row) {
    const Measured& m = row.model;
    std::printf("%-22s %-6s %11s %13s %8.2f %7.2f %% %7.2f %%", row.name.c_str(),
                row.format.c_str(), grouped(m.n_parameters).c_str(), grouped(m.bytes).c_str(), m.ms,
                m.held_out, m.hard);
    if (row.direct) std::printf("   %6.2f %% %6.2f %%", row.direct->held_out, row.direct->hard);
    std::printf("\n");
    std::fflush(stdout);
  }

  std::vector<TableRow> rows_;
};

}  // namespace example
