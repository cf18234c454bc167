// SPDX-License-Identifier: Apache-2.0
//
// Command-line options that the programs share: targets, thread counts, pages, clock, the file of
// results.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/machine.hpp"
#include "nibble/core/cpus.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/model/tuning.hpp"

namespace bench {

inline constexpr Index kMaxThreads = 256;

struct RunOptions {
  std::vector<std::string> isa;
  std::vector<Index> threads;
  std::string pages = "small";
  std::string clock = "wall";
  std::optional<nibble::Tuning> tuning = std::nullopt;
  std::string out;
};

// --isa, --threads and --clock.
inline void add_machine_options(CLI::App& app, RunOptions& o) {
  app.add_option("--isa", o.isa, "SIMD targets, e.g. AVX2,SSE4 (default: all available)")
      ->delimiter(',');
  app.add_option("-t,--threads", o.threads, "thread counts (default: 1 and one per core)")
      ->delimiter(',')
      ->check(CLI::Range(Index{1}, kMaxThreads));
  app.add_option("--clock", o.clock,
                 "wall, or cpu: one thread's rows and limits in CPU time, for a busy machine")
      ->check(CLI::IsMember({"wall", "cpu"}))
      ->capture_default_str();
}

inline void add_run_options(CLI::App& app, RunOptions& o) {
  add_machine_options(app, o);
  app.add_option("--pages", o.pages, "of weights, caches and activations: small or huge (2 MiB)")
      ->check(CLI::IsMember({"small", "huge"}))
      ->capture_default_str();
  app.add_option_function<std::string>(
      "--tuning",
      [&o](const std::string& text) {
        const auto tuning = nibble::parse_tuning(text);
        if (!tuning) throw CLI::ValidationError("--tuning", tuning.error().message);
        o.tuning = *tuning;
      },
      "how weights are read, e.g. weights=once@10240 (default: of models what is measured)");
}

inline void add_out_option(CLI::App& app, RunOptions& o, const char* help) {
  app.add_option("-o,--out", o.out, help)->check([](const std::string& name) {
    return name.ends_with(".json") || name.ends_with(".csv") ? std::string()
                                                             : "must end in .json or .csv";
  });
}

// The file that --out names, or none. It is opened before the measurements, and there when they are
// done.
class OutFile {
 public:
  explicit OutFile(const std::string& path) : path_(path) {}

  bool is_wanted() const { return !path_.empty(); }
  bool is_csv() const { return path_.ends_with(".csv"); }

  nibble::Result<void> open() {
    if (!is_wanted()) return nibble::ok();
    NIBBLE_TRY(file, nibble::io::OutputFile::create(path_));
    file_.emplace(std::move(file));
    return nibble::ok();
  }
  nibble::Result<void> write(const std::string& text) {
    if (!is_wanted()) return nibble::ok();
    NIBBLE_CHECK(file_->write(std::as_bytes(std::span(text))));
    return file_->commit();
  }

 private:
  std::string path_;
  std::optional<nibble::io::OutputFile> file_;
};

// The targets with these names, or all of `available`. Errors: a name that is unknown or not
// available.
inline nibble::Result<std::vector<Target>> targets_of(const std::vector<std::string>& names,
                                                      nibble::simd::TargetSet available) {
  std::vector<Target> targets;
  for (const std::string& name : names) {
    NIBBLE_TRY(target, nibble::simd::target_from_name(name));
    if (!available.contains(target)) {
      return nibble::Error{nibble::Errc::unsupported, "SIMD target '" + name +
                                                          "' is not available; there are " +
                                                          nibble::simd::to_string(available)};
    }
    if (std::find(targets.begin(), targets.end(), target) == targets.end()) {
      targets.push_back(target);
    }
  }
  if (names.empty()) available.for_each([&](Target t) { targets.push_back(t); });
  return targets;
}

inline std::vector<Index> threads_of(std::vector<Index> threads) {
  if (threads.empty()) threads = {1, std::min(kMaxThreads, nibble::available_cpus().n_cores)};
  std::sort(threads.begin(), threads.end());
  threads.erase(std::unique(threads.begin(), threads.end()), threads.end());
  return threads;
}

inline Pages pages_of(const RunOptions& o) {
  return o.pages == "huge" ? Pages::huge : Pages::small;
}
inline Clock clock_of(const RunOptions& o) { return o.clock == "cpu" ? Clock::cpu : Clock::wall; }

}  // namespace bench
