// SPDX-License-Identifier: Apache-2.0
//
// The limits of the machine, measured in this run, for each SIMD target and number of threads: read
// and copy bandwidth of each memory level, and peak rates of arithmetic. Also which of these limits
// bounds a given piece of work.
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

// The clock for measurements: wall time, or CPU time of the calling thread, which is less disturbed
// by other programs on a busy machine. CPU time is meaningful only if that thread does all the
// work.
enum class Clock : std::uint8_t { wall, cpu };

double seconds_now(Clock clock);

// Of at least one value; of an even number of them the lower one in the middle.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) / 2];
}

// The processor, as the system calls it; "unknown processor" where it does not say.
std::string cpu_name();

// How memory is accessed. This affects the bandwidth: a store to other memory first reads what it
// overwrites.
enum class Traffic : std::uint8_t { read, copy, update };
inline constexpr std::size_t kTrafficCount = 3;

constexpr const char* to_string(Traffic traffic) noexcept {
  constexpr const char* kNames[] = {"read", "copy", "update"};
  return kNames[static_cast<int>(traffic)];
}

// The bytes moved and operations done by one run of a kernel.
struct Work {
  double bytes_read = 0;
  double bytes_written = 0;
  // Bytes that the next run touches again; they determine the memory level.
  double footprint = 0;
  bool in_place = false;  // writes to the memory that it read
  double ops = 0;         // a multiply-add counts two
  Arithmetic arithmetic = Arithmetic::f32;

  double bytes() const { return bytes_read + bytes_written; }
  // If up to a fifth of the traffic is stores, it counts as reading.
  Traffic traffic() const {
    if (bytes_written <= 0.2 * bytes()) return Traffic::read;
    return in_place ? Traffic::update : Traffic::copy;
  }
};

inline constexpr double kCold = std::numeric_limits<double>::infinity();  // footprint: no reuse

// Sizes in bytes: l1 and l2 of one core, l3 of all.
struct Caches {
  std::size_t l1 = 32 << 10;
  std::size_t l2 = 512 << 10;
  std::size_t l3 = 16 << 20;
};

// The limits for one target and number of threads, in bytes or operations per second. The DRAM
// values are the best of all targets.
struct Limits {
  Target target = {};
  Index n_threads = 1;
  using Levels = std::array<double, kLevels.size()>;
  std::array<Levels, kTrafficCount> memory{};  // with the chosen pages
  Levels read_other_pages{};                   // with the other kind of pages
  std::array<double, kArithmetics.size()> rate{};
};

// The limit that binds: the minimum time of a run, and what determines it.
struct Bound {
  double seconds = 0;     // 0: unknown
  std::string name = "";  // "dram read", "l2 copy", "int8"
};

struct ProbeOptions {
  std::vector<Target> targets;
  std::vector<Index> threads;
  Pages pages = Pages::small;  // as bound() assumes
  Clock clock = Clock::wall;   // for single threads
  double seconds = 0.01;       // per measurement; the best of kRepetitions counts
  bool memory = true;          // false: arithmetic alone, without bandwidths (they are 0)
};

class Machine {
 public:
  // Runs the probes: about a second per target and number of threads. Changes the active target.
  // Reports progress on stderr.
  explicit Machine(const ProbeOptions& options);

  static Caches caches();
  // If this much memory is read in turn, none of it is in a cache, even in one that deliberately
  // keeps a part of it. But at most a quarter of the RAM that was available at the first call, or
  // 64 MiB if that is more, since some processors report the cache of a whole server for two cores
  // of it; is_cold() tells whether this is still well beyond the cache.
  static std::size_t cold_bytes();
  static bool is_cold() { return cold_bytes() >= 2 * caches().l3; }
  // True if memory that was requested on huge pages is on huge pages.
  bool has_huge_pages() const { return has_huge_pages_; }
  const ProbeOptions& options() const { return options_; }
  const std::vector<Limits>& limits() const { return limits_; }
  // This target and number of threads must have been probed.
  const Limits& limits(Target target, Index n_threads) const;

  // The memory level that holds `footprint` bytes, distributed over threads.
  Level level_of(double footprint, Index n_threads) const;
  Bound bound(const Work& work, Target target, Index n_threads) const;

  // Measures the DRAM bandwidth and f32 rate of the first target again. Returns them relative to
  // the first measurement, as {dram, f32}: how much the machine has changed since.
  std::array<double, 2> drift(Index n_threads) const;

 private:
  ProbeOptions options_;
  bool has_huge_pages_ = false;
  std::vector<Limits> limits_;
};

// A pool of n threads, created at the first call and kept. Ends the program if it cannot be
// created.
nibble::Executor& pool(Index n_threads);

// The limits as text tables, and as key-value pairs for reports: "limit/AVX2/t1/read_dram" = GB/s
std::string to_text(const Machine& machine);
std::vector<std::pair<std::string, std::string>> to_pairs(const Machine& machine);

}  // namespace bench
