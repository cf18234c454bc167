// SPDX-License-Identifier: Apache-2.0
//
// What the machine can do at most, measured in this run: read and copy bandwidth of each level of
// memory and peak rates of arithmetic, for each SIMD target and number of threads; and which of
// them bounds a piece of work.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bench/arithmetic.hpp"
#include "bench/memory.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/simd/target.hpp"

namespace bench {

using nibble::Index;
using nibble::simd::Target;

enum class Level : std::uint8_t { l1, l2, l3, dram };
inline constexpr std::array<Level, 4> kLevels = {Level::l1, Level::l2, Level::l3, Level::dram};

constexpr const char* to_string(Level level) noexcept {
  constexpr const char* kNames[] = {"l1", "l2", "l3", "dram"};
  return kNames[static_cast<int>(level)];
}

// How long things take by: the clock on the wall, or the CPU time of the calling thread, which
// other programs on a busy machine do not disturb as much. The latter only says something where
// that thread does all the work.
enum class Clock : std::uint8_t { wall, cpu };

double seconds_now(Clock clock);

// How memory is used, which makes a difference to its bandwidth: a store elsewhere first reads what
// it overwrites.
enum class Traffic : std::uint8_t { read, copy, update };
inline constexpr std::size_t kTrafficCount = 3;

constexpr const char* to_string(Traffic traffic) noexcept {
  constexpr const char* kNames[] = {"read", "copy", "update"};
  return kNames[static_cast<int>(traffic)];
}

// What one run of something moves and computes.
struct Work {
  double bytes_read = 0;
  double bytes_written = 0;
  // Bytes that the next run touches again, which decides the level they are at.
  double footprint = 0;
  bool in_place = false;  // writes where it read
  double ops = 0;         // a multiply-add counts two
  Arithmetic arithmetic = Arithmetic::f32;

  double bytes() const { return bytes_read + bytes_written; }
  // Up to a fifth of stores counts as reading.
  Traffic traffic() const {
    if (bytes_written <= 0.2 * bytes()) return Traffic::read;
    return in_place ? Traffic::update : Traffic::copy;
  }
};

inline constexpr double kCold = std::numeric_limits<double>::infinity();  // footprint: no reuse

// Bytes; of one core, except l3: of all.
struct Caches {
  std::size_t l1 = 32 << 10;
  std::size_t l2 = 512 << 10;
  std::size_t l3 = 16 << 20;
};

// For one target and number of threads; bytes or operations per second. DRAM: the best of all
// targets.
struct Limits {
  Target target = {};
  Index n_threads = 1;
  using Levels = std::array<double, kLevels.size()>;
  std::array<Levels, kTrafficCount> memory{};  // on pages as chosen
  Levels read_other_pages{};                   // on the others
  std::array<double, kArithmetics.size()> rate{};
};

// The limit that binds: the least time that a run can take, and what decides it.
struct Bound {
  double seconds = 0;     // 0: nothing known
  std::string name = "";  // "dram read", "l2 copy", "int8"
};

struct ProbeOptions {
  std::vector<Target> targets;
  std::vector<Index> threads;
  Pages pages = Pages::small;  // that bound() assumes
  Clock clock = Clock::wall;   // of single threads
  double seconds = 0.01;       // per measurement; the best of kRepetitions of it counts
};

class Machine {
 public:
  // Runs the probes: about a second for each target and number of threads. Changes the active
  // target. Says on stderr what it does.
  explicit Machine(const ProbeOptions& options);

  static Caches caches();
  // So much memory, read in turn, is in no cache, even one that keeps part of it on purpose.
  static std::size_t cold_bytes() { return std::max(std::size_t{512} << 20, 8 * caches().l3); }
  // True if memory asked to be on huge pages was.
  bool has_huge_pages() const { return has_huge_pages_; }
  const ProbeOptions& options() const { return options_; }
  const std::vector<Limits>& limits() const { return limits_; }
  // Must have been probed.
  const Limits& limits(Target target, Index n_threads) const;

  // The level at which `footprint` bytes are, split over threads.
  Level level_of(double footprint, Index n_threads) const;
  Bound bound(const Work& work, Target target, Index n_threads) const;

  // The DRAM bandwidth and f32 rate of the first target again, relative to the first time: how
  // much the machine changed since, as {dram, f32}.
  std::array<double, 2> drift(Index n_threads) const;

 private:
  ProbeOptions options_;
  bool has_huge_pages_ = false;
  std::vector<Limits> limits_;
};

// A pool of n threads, made at the first call and kept. Ends the program where there are none.
nibble::Executor& pool(Index n_threads);

// Text tables of the limits, and key-value pairs for reports: "AVX2 t1 read dram small" = GB/s.
std::string to_text(const Machine& machine);
std::vector<std::pair<std::string, std::string>> to_pairs(const Machine& machine);

}  // namespace bench
