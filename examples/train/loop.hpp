// SPDX-License-Identifier: Apache-2.0
//
// Runs training steps to the end: progress, a curve, checkpoints. Ctrl-C leaves a checkpoint from
// which the next start continues bit for bit.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "../gnuplot.hpp"
#include "nibble/train/run.hpp"

namespace example {

// The losses of a run, averaged over some steps, and what was measured now and then.
class Curve {
 public:
  struct Point {
    std::uint64_t step = 0;
    double value = 0;
  };
  struct Line {
    std::string name;
    std::vector<Point> points;
  };

  explicit Curve(std::string name) : loss_{std::move(name), {}} {}

  void add_loss(std::uint64_t step, double loss) {
    sum_ += loss;
    if (++n_ < kSteps) return;
    loss_.points.push_back({step, sum_ / static_cast<double>(n_)});
    sum_ = 0;
    n_ = 0;
  }
  void add_measured(std::uint64_t step, double percent) {
    measured_.points.push_back({step, percent});
  }
  const Line& loss() const { return loss_; }
  const Line& measured() const { return measured_; }

 private:
  static constexpr std::uint64_t kSteps = 10;
  Line loss_, measured_{"right answers, %", {}};
  double sum_ = 0;
  std::uint64_t n_ = 0;
};

// Draws losses (logarithmic, left) and what was measured (right) against steps. False without
// gnuplot.
inline bool plot_curves(const std::string& path, const std::vector<const Curve*>& curves) {
  Gnuplot plot(path);
  if (!plot.is_open()) return false;
  plot.print("set xlabel 'step'\nset ylabel 'loss, nats'\nset logscale y\nset ytics nomirror\n");
  plot.print("set y2label 'right answers, %%'\nset y2tics\nset y2range [0:100]\n");
  const char* separator = "plot ";
  for (const Curve* curve : curves) {
    plot.print("%s'-' with lines title '%s'", separator, curve->loss().name.c_str());
    separator = ", ";
    if (!curve->measured().points.empty()) {
      plot.print(", '-' axes x1y2 with linespoints title '%s: %s'", curve->loss().name.c_str(),
                 curve->measured().name.c_str());
    }
  }
  plot.print("\n");
  for (const Curve* curve : curves) {
    for (const Curve::Line* line : {&curve->loss(), &curve->measured()}) {
      if (line == &curve->measured() && line->points.empty()) continue;
      for (const Curve::Point& p : line->points) {
        plot.print("%llu %.6g\n", static_cast<unsigned long long>(p.step), p.value);
      }
      plot.print("e\n");
    }
  }
  return plot.finish();
}

struct LoopOptions {
  std::string name;        // in progress
  std::string checkpoint;  // path; empty: none
  std::uint64_t n_steps = 0;
  // Every so many steps: a checkpoint, and measure(); 0: never.
  std::uint64_t every = 0;
  // Percent of right answers, for the curve.
  std::function<nibble::Result<double>()> measure;
  bool is_quiet = false;
};

namespace detail {

inline std::string in_minutes(double seconds) {
  char text[32];
  const auto whole = static_cast<int>(seconds);
  std::snprintf(text, sizeof(text), "%d:%02d", whole / 60, whole % 60);
  return text;
}

}  // namespace detail

// Steps from where `run` is to the end. Errors: those of the run; cancelled if the program was
// interrupted (the checkpoint is written then). A checkpoint that is there is continued first; it
// is removed at the end.
inline nibble::Result<void> train_to_end(nibble::train::Run& run, const LoopOptions& options,
                                         Curve& curve) {
  using Clock = std::chrono::steady_clock;
  std::error_code ignored;
  if (!options.checkpoint.empty() && std::filesystem::exists(options.checkpoint, ignored)) {
    NIBBLE_CHECK(run.load(options.checkpoint));
    std::fprintf(stderr, "%s: goes on at step %llu of %s\n", options.name.c_str(),
                 static_cast<unsigned long long>(run.n_steps()), options.checkpoint.c_str());
  }
  StatusLine status(!options.is_quiet, StatusLine::kInLogs);
  const auto start = Clock::now();
  const std::uint64_t first = run.n_steps();
  nibble::Index n_tokens = 0;
  double loss = 0;
  while (run.n_steps() < options.n_steps) {
    if (interrupted) {
      if (options.checkpoint.empty()) {
        return nibble::Error{nibble::Errc::cancelled, options.name + ": interrupted"};
      }
      NIBBLE_CHECK(run.save(options.checkpoint));
      return nibble::Error{nibble::Errc::cancelled,
                           options.name + ": interrupted at step " + std::to_string(run.n_steps()) +
                               "; start it again to go on from " + options.checkpoint};
    }
    NIBBLE_TRY(result, run.step());
    const std::uint64_t done = run.n_steps();
    loss = done == first + 1 ? result.loss : 0.95 * loss + 0.05 * result.loss;
    n_tokens += result.n_tokens;
    curve.add_loss(done, result.loss);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const double left =
        seconds / static_cast<double>(done - first) * static_cast<double>(options.n_steps - done);
    char text[160];
    std::snprintf(text, sizeof(text), "%s: step %llu of %llu, loss %.4f, %.0f tokens/s, %s left",
                  options.name.c_str(), static_cast<unsigned long long>(done),
                  static_cast<unsigned long long>(options.n_steps), loss,
                  static_cast<double>(n_tokens) / seconds, detail::in_minutes(left).c_str());
    status.show(text);
    if (options.every > 0 && done % options.every == 0 && done < options.n_steps) {
      if (!options.checkpoint.empty()) NIBBLE_CHECK(run.save(options.checkpoint));
      if (options.measure) {
        NIBBLE_TRY(percent, options.measure());
        curve.add_measured(done, percent);
      }
    }
  }
  status.show({});
  if (!options.checkpoint.empty()) std::filesystem::remove(options.checkpoint, ignored);
  return nibble::ok();
}

}  // namespace example
