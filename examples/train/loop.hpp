// SPDX-License-Identifier: Apache-2.0
//
// Runs training steps to the end: progress, a curve, checkpoints. Ctrl-C leaves a checkpoint from
// which the next start continues bit for bit.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "../gnuplot.hpp"
#include "nibble/io/output_file.hpp"
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
  // The mean over the last steps; nothing if there were none.
  std::optional<double> last_loss() const {
    if (n_ > 0) return sum_ / static_cast<double>(n_);
    if (loss_.points.empty()) return std::nullopt;
    return loss_.points.back().value;
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
  std::string checkpoint;  // a path
  std::uint64_t n_steps = 0;
  // Every so many steps: a checkpoint, and measure(); 0: never.
  std::uint64_t every = 0;
  // Percent of right answers, for the curve.
  std::function<nibble::Result<double>()> measure;
  // Writes what was trained, where it is to be.
  std::function<nibble::Result<void>()> write;
  bool is_quiet = false;
};

// What the status line shows of a loop.
class Pace {
 public:
  explicit Pace(std::uint64_t first_step) : first_(first_step) {}

  std::string after(std::uint64_t step, const nibble::train::StepResult& result,
                    const LoopOptions& options) {
    loss_ = step == first_ + 1 ? result.loss : 0.95 * loss_ + 0.05 * result.loss;
    n_tokens_ += result.n_tokens;
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const double left = seconds / static_cast<double>(step - first_) *
                        static_cast<double>(options.n_steps - step);
    char text[160];
    std::snprintf(text, sizeof(text), "%s: step %llu of %llu, loss %.4f, %.0f tokens/s, %s left",
                  options.name.c_str(), static_cast<unsigned long long>(step),
                  static_cast<unsigned long long>(options.n_steps), loss_,
                  static_cast<double>(n_tokens_) / seconds, in_minutes(left).c_str());
    return text;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static std::string in_minutes(double seconds) {
    char text[32];
    const auto whole = static_cast<long long>(seconds);
    std::snprintf(text, sizeof(text), "%lld:%02lld", whole / 60, whole % 60);
    return text;
  }

  std::uint64_t first_;
  Clock::time_point start_ = Clock::now();
  nibble::Index n_tokens_ = 0;
  double loss_ = 0;
};

// Steps from where `run` is to the end. Errors: those of the run; cancelled, with a checkpoint, if
// the program was interrupted.
inline nibble::Result<void> take_steps(nibble::train::Run& run, const LoopOptions& options,
                                       Curve& curve) {
  StatusLine status(!options.is_quiet, StatusLine::kInLogs);
  Pace pace(run.n_steps());
  while (run.n_steps() < options.n_steps) {
    if (interrupted) {
      NIBBLE_CHECK(run.save(options.checkpoint));
      status.show({});
      std::fprintf(stderr, "%s: interrupted at step %llu; start it again to go on from %s\n",
                   options.name.c_str(), static_cast<unsigned long long>(run.n_steps()),
                   nibble::printable(options.checkpoint).c_str());
      return nibble::Error{nibble::Errc::cancelled, "interrupted"};
    }
    NIBBLE_TRY(result, run.step());
    const std::uint64_t done = run.n_steps();
    curve.add_loss(done, result.loss);
    status.show(pace.after(done, result, options));
    if (options.every == 0 || done % options.every != 0 || done == options.n_steps) continue;
    NIBBLE_CHECK(run.save(options.checkpoint));
    if (!options.measure) continue;
    auto percent = options.measure();
    if (percent) {
      curve.add_measured(done, *percent);
    } else if (percent.error().code != nibble::Errc::cancelled) {
      return std::move(percent).error();
    }
  }
  return nibble::ok();
}

// Trains to the end and writes the result. A checkpoint that is there is continued. It stays until
// the result is written: an error of writing costs no training. Errors: those of take_steps() and
// write().
inline nibble::Result<void> train_to_end(nibble::train::Run& run, const LoopOptions& options,
                                         Curve& curve) {
  // Whether the folder can be written to: an error now, not after hours.
  NIBBLE_CHECK(nibble::io::OutputFile::create(options.checkpoint));
  std::error_code ignored;
  if (std::filesystem::exists(options.checkpoint, ignored)) {
    NIBBLE_CHECK(run.load(options.checkpoint));
    std::fprintf(stderr, "%s: goes on at step %llu of %s\n", options.name.c_str(),
                 static_cast<unsigned long long>(run.n_steps()),
                 nibble::printable(options.checkpoint).c_str());
  }
  NIBBLE_CHECK(take_steps(run, options, curve));
  if (nibble::Result<void> written = options.write(); !written) {
    NIBBLE_CHECK(run.save(options.checkpoint));
    return written;
  }
  std::filesystem::remove(options.checkpoint, ignored);
  return nibble::ok();
}

}  // namespace example
