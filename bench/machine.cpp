// SPDX-License-Identifier: Apache-2.0
#define NIBBLE_USER_KERNELS "bench/probe-inl.h"

#include "bench/machine.hpp"

#include <benchmark/benchmark.h>
#include <time.h>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>

#include "nibble/core/available_memory.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/matmul_input.hpp"

namespace bench {
namespace {

constexpr int kRepetitions = 5;

// The work of one measurement; its tasks are distributed over the pool's workers.
using Task = nibble::Executor::Task;

// The best rate of several measurements of about `seconds` each. `amount` is what one call does.
template <class Call>
double best_rate(double amount, double seconds, Clock clock, Call&& call) {
  const auto time_of = [&](int n) {
    const double begin = seconds_now(clock);
    for (int i = 0; i < n; ++i) call();
    return seconds_now(clock) - begin;
  };
  double once = time_of(1);
  once = std::min(once, time_of(1));  // the first call was a warm-up
  const int n = std::clamp(static_cast<int>(seconds / std::max(once, 1e-7)), 1, 1'000'000);
  double best = 0;
  for (int r = 0; r < kRepetitions; ++r) best = std::max(best, amount * n / time_of(n));
  return best;
}

class Prober {
 public:
  Prober(const ProbeOptions& options, Index n_threads)
      : options_(options),
        pool_(pool(n_threads)),
        n_threads_(n_threads),
        clock_(n_threads == 1 ? options.clock : Clock::wall) {}

  // `memory` is `n_threads` parts of part_bytes(), one for each worker.
  double read(Level level, const Memory& memory) const {
    auto* const kernel = nibble::simd::kernel<ReadMemory>();
    double best = 0;
    const auto measure = [&](std::size_t ahead, bool four_streams) {
      const auto pass = [&](std::size_t offset, std::size_t bytes, int times) {
        benchmark::DoNotOptimize(kernel(memory.data() + offset, bytes, times, ahead, four_streams));
      };
      best = std::max(best, rate(level, pass));
    };
    measure(0, false);
    if (level < Level::l3) return best;
    // Whether the hardware needs software prefetch, and of which kind, differs from machine to
    // machine.
    for (const std::size_t ahead : {std::size_t{0}, std::size_t{2048}}) {
      measure(ahead, true);
      if (ahead != 0) measure(ahead, false);
    }
    return best;
  }

  double update(Level level, const Memory& memory) const {
    auto* const kernel = nibble::simd::kernel<UpdateMemory>();
    return 2 * rate(level, [&](std::size_t offset, std::size_t bytes, int times) {
             kernel(memory.data() + offset, bytes, times);
           });
  }

  double copy(Level level, const Memory& memory) const {
    auto* const kernel = nibble::simd::kernel<CopyMemory>();
    return rate(level, [&](std::size_t offset, std::size_t bytes, int times) {
      const std::size_t half = bytes / 2 / 1024 * 1024;
      kernel(memory.data() + offset, memory.data() + offset + half, half, times);
    });
  }

  template <Arithmetic kind>
  double arithmetic() const {
    return std::max(arithmetic<kind, false>(), arithmetic<kind, true>());
  }

  template <Arithmetic kind, bool kWide>
  double arithmetic() const {
    auto* const kernel = nibble::simd::kernel<MultiplyAdd<kind, kWide>>();
    const std::array<std::uint32_t, 16> zeros{};
    const auto count = kernel(zeros.data());
    if (count.done != count.sum) {
      std::fprintf(stderr, "benchmark: probe of %s on %s: %.0f products, %.0f found\n",
                   to_string(kind), nibble::simd::to_string(nibble::simd::active_target()),
                   count.done, count.sum);
      std::exit(1);
    }
    const Index n_tasks = 4 * n_threads_;
    const auto task = [&](Index, Index) { benchmark::DoNotOptimize(kernel(zeros.data())); };
    return best_rate(2 * count.done * static_cast<double>(n_tasks), options_.seconds, clock_,
                     [&] { pool_.parallel_for(n_tasks, Task(task)); });
  }

  std::size_t part_bytes(Level level) const {
    const Caches caches = Machine::caches();
    const auto n = static_cast<std::size_t>(n_threads_);
    const std::size_t all = Machine::cold_bytes() / n;
    switch (level) {
      case Level::l1: return std::min(all, caches.l1 / 2);
      case Level::l2: return std::min(all, caches.l2 / 2);
      case Level::l3: return std::min(all, std::max(2 * caches.l2, caches.l3 / 4 / n));
      case Level::dram: break;
    }
    return all;
  }
  std::size_t bytes(Level level) const {
    return part_bytes(level) * static_cast<std::size_t>(n_threads_);
  }

 private:
  // Bytes per second of pass(offset, bytes, times). For a cache level, each worker walks its own
  // part many times. For DRAM, all workers walk once through all memory, cut into chunks.
  template <class Pass>
  double rate(Level level, Pass&& pass) const {
    constexpr std::size_t kPiece = std::size_t{4} << 20;
    const std::size_t part = part_bytes(level);
    if (level == Level::dram) {
      const auto n = static_cast<Index>(bytes(level) / kPiece);
      const auto task = [&](Index i, Index) {
        pass(static_cast<std::size_t>(i) * kPiece, kPiece, 1);
      };
      return best_rate(static_cast<double>(n) * static_cast<double>(kPiece), options_.seconds,
                       clock_, [&] { pool_.parallel_for(n, Task(task)); });
    }
    const int times = static_cast<int>(std::max<std::size_t>(1, kPiece / part));
    const Index n = 4 * n_threads_;
    const auto task = [&](Index, Index worker) {
      pass(static_cast<std::size_t>(worker) * part, part, times);
    };
    return best_rate(static_cast<double>(n) * times * static_cast<double>(part), options_.seconds,
                     clock_, [&] { pool_.parallel_for(n, Task(task)); });
  }

  const ProbeOptions& options_;
  nibble::Executor& pool_;
  Index n_threads_;
  Clock clock_;
};

void use(Target target) {
  if (!nibble::simd::force_target(target)) std::abort();  // the caller checked what is available
}

template <std::size_t... kIndices>
void probe_arithmetic(const Prober& prober, Limits& limits, std::index_sequence<kIndices...>) {
  ((limits.rate[kIndices] = prober.arithmetic<kArithmetics[kIndices]>()), ...);
}

std::string format(const char* pattern, double value) {
  char text[32];
  std::snprintf(text, sizeof(text), pattern, value);
  return text;
}

}  // namespace

double seconds_now(Clock clock) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  if (clock == Clock::cpu) {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string cpu_name() {
#if defined(__APPLE__)
  char name[256] = {};
  std::size_t size = sizeof(name) - 1;
  if (sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0) return name;
#else
  // On x86 each processor has a "model name"; on ARM there is a "Model" of the board, or nothing.
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name") && !line.starts_with("Model")) continue;
    const std::size_t begin = line.find_first_not_of(": \t", line.find(':'));
    if (begin != std::string::npos) return line.substr(begin);
  }
#endif
  return "unknown processor";
}

nibble::Executor& pool(Index n_threads) {
  static std::map<Index, nibble::Owned<nibble::ThreadPool>> pools;
  auto& entry = pools[n_threads];
  if (entry == nullptr) {
    auto made = nibble::ThreadPool::create({.n_threads = n_threads});
    if (!made) {
      std::fprintf(stderr, "benchmark: %s\n", made.error().message.c_str());
      std::exit(1);
    }
    entry = *std::move(made);
  }
  return *entry;
}

Caches Machine::caches() {
  Caches caches;
  for (const auto& cache : benchmark::CPUInfo::Get().caches) {
    if (cache.type == "Instruction" || cache.size <= 0) continue;
    const auto size = static_cast<std::size_t>(cache.size);
    if (cache.level == 1) caches.l1 = size;
    if (cache.level == 2) caches.l2 = size;
    if (cache.level == 3) caches.l3 = size;
  }
  return caches;
}

std::size_t Machine::cold_bytes() {
  static const std::size_t bytes = [] {
    constexpr std::size_t kLeast = std::size_t{64} << 20;
    const std::size_t wanted = std::max(std::size_t{512} << 20, 8 * caches().l3);
    return std::min(wanted, std::max(kLeast, nibble::available_memory() / 4));
  }();
  return bytes;
}

Machine::Machine(const ProbeOptions& options) : options_(options) {
  const auto allocate = [&](std::size_t bytes, Pages pages) {
    const std::size_t before = bytes_on_huge_pages();
    Memory memory(bytes, pages);
    if (pages == Pages::huge) has_huge_pages_ = bytes_on_huge_pages() >= before + bytes / 2;
    return memory;
  };
  for (const Index n_threads : options.threads) {
    const Prober prober(options_, n_threads);
    const std::size_t first = limits_.size();
    Memory memory;
    if (options.memory) memory = allocate(prober.bytes(Level::dram), options.pages);
    for (const Target target : options.targets) {
      use(target);
      std::fprintf(stderr, "probing %s, %d thread%s ...\n", nibble::simd::to_string(target),
                   static_cast<int>(n_threads), n_threads == 1 ? "" : "s");
      Limits limits;
      limits.target = target;
      limits.n_threads = n_threads;
      if (options.memory) {
        for (const Level level : kLevels) {
          const auto l = static_cast<std::size_t>(level);
          limits.memory[0][l] = prober.read(level, memory);
          limits.memory[1][l] = prober.copy(level, memory);
          limits.memory[2][l] = prober.update(level, memory);
        }
      }
      probe_arithmetic(prober, limits, std::make_index_sequence<kArithmetics.size()>());
      // AVX3_DL's kernels use bf16 dot products if the processor has them; this target has them
      // too.
      constexpr Target kHasDots = Target::AVX3_ZEN4;
      if (target == Target::AVX3_DL && nibble::ops::takes_rounded_rows() &&
          nibble::simd::available_targets().contains(kHasDots)) {
        use(kHasDots);
        limits.rate[static_cast<int>(Arithmetic::bf16)] = prober.arithmetic<Arithmetic::bf16>();
      }
      limits_.push_back(limits);
    }
    if (!options.memory) continue;
    memory = Memory();  // before the other is taken
    memory = allocate(prober.bytes(Level::dram),
                      options.pages == Pages::huge ? Pages::small : Pages::huge);
    for (std::size_t i = first; i < limits_.size(); ++i) {
      use(limits_[i].target);
      for (const Level level : kLevels) {
        const auto l = static_cast<std::size_t>(level);
        limits_[i].read_other_pages[l] = prober.read(level, memory);
      }
    }
  }
  // DRAM bandwidth does not depend on the instruction set: the best target's value limits all
  // targets.
  constexpr auto kDram = static_cast<std::size_t>(Level::dram);
  const auto take_best = [&](auto get) {
    for (Limits& a : limits_) {
      for (Limits& b : limits_) {
        if (a.n_threads == b.n_threads) get(a) = std::max(get(a), get(b));
      }
    }
  };
  for (std::size_t t = 0; t < kTrafficCount; ++t) {
    take_best([t](Limits& l) -> double& { return l.memory[t][kDram]; });
  }
  take_best([](Limits& l) -> double& { return l.read_other_pages[kDram]; });
}

const Limits& Machine::limits(Target target, Index n_threads) const {
  for (const Limits& limits : limits_) {
    if (limits.target == target && limits.n_threads == n_threads) return limits;
  }
  std::abort();  // a bug in the caller
}

Level Machine::level_of(double footprint, Index n_threads) const {
  const Caches caches = Machine::caches();
  const auto n = static_cast<double>(n_threads);
  if (footprint <= static_cast<double>(caches.l1) * n) return Level::l1;
  if (footprint <= static_cast<double>(caches.l2) * n) return Level::l2;
  if (footprint <= static_cast<double>(caches.l3)) return Level::l3;
  return Level::dram;
}

Bound Machine::bound(const Work& work, Target target, Index n_threads) const {
  const Limits& l = limits(target, n_threads);
  Bound bound;
  if (work.bytes() > 0) {
    const auto level = level_of(work.footprint, n_threads);
    const auto i = static_cast<std::size_t>(level);
    const Traffic traffic = work.traffic();
    bound.seconds = work.bytes() / l.memory[static_cast<std::size_t>(traffic)][i];
    bound.name = std::string(to_string(level)) + " " + to_string(traffic);
  }
  if (work.ops > 0) {
    const double seconds = work.ops / l.rate[static_cast<std::size_t>(work.arithmetic)];
    if (seconds > bound.seconds) bound = {seconds, to_string(work.arithmetic)};
  }
  return bound;
}

std::array<double, 2> Machine::drift(Index n_threads) const {
  const Limits& first = limits(options_.targets.front(), n_threads);
  const Prober prober(options_, n_threads);
  use(first.target);
  const Memory memory(prober.bytes(Level::dram), options_.pages);
  return {prober.read(Level::dram, memory) / first.memory[0][static_cast<int>(Level::dram)],
          prober.arithmetic<Arithmetic::f32>() / first.rate[static_cast<int>(Arithmetic::f32)]};
}

std::vector<std::pair<std::string, std::string>> to_pairs(const Machine& machine) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const Limits& l : machine.limits()) {
    const std::string key = std::string("limit/") + nibble::simd::to_string(l.target) + "/t" +
                            std::to_string(l.n_threads) + "/";
    const auto add = [&](const std::string& name, double value) {
      pairs.emplace_back(key + name, format("%.4g", value * 1e-9));
    };
    for (const Level level : kLevels) {
      const auto i = static_cast<std::size_t>(level);
      for (const Traffic t : {Traffic::read, Traffic::copy, Traffic::update}) {
        add(std::string(to_string(t)) + "_" + to_string(level),
            l.memory[static_cast<std::size_t>(t)][i]);
      }
      add(std::string("read_other_pages_") + to_string(level), l.read_other_pages[i]);
    }
    for (const Arithmetic a : kArithmetics) add(to_string(a), l.rate[static_cast<std::size_t>(a)]);
  }
  return pairs;
}

std::string to_text(const Machine& machine) {
  const Pages pages = machine.options().pages;
  const Pages other = pages == Pages::small ? Pages::huge : Pages::small;
  std::string text = cpu_name() + "\nLimits of this machine: read bandwidth in GB/s on ";
  text += to_string(pages);
  text += " pages, multiply-add peaks in GOP/s (two per multiply-add)\n";
  char line[160];
  std::snprintf(line, sizeof(line), "%-10s %3s %7s %7s %7s %7s %11s %8s %7s %7s %7s %7s %7s\n",
                "isa", "thr", "L1", "L2", "L3", "DRAM",
                (std::string("DRAM ") + to_string(other)).c_str(), "DRAM cpy", "f32", "bf16",
                "int16", "int8", "int4");
  text += line;
  for (const Limits& l : machine.limits()) {
    const Limits::Levels& read = l.memory[0];
    const auto giga = [](double v) { return v * 1e-9; };
    std::snprintf(line, sizeof(line),
                  "%-10s %3d %7.0f %7.0f %7.0f %7.1f %11.1f %8.1f %7.0f %7.0f %7.0f %7.0f %7.0f\n",
                  nibble::simd::to_string(l.target), static_cast<int>(l.n_threads), giga(read[0]),
                  giga(read[1]), giga(read[2]), giga(read[3]), giga(l.read_other_pages[3]),
                  giga(l.memory[1][3]), giga(l.rate[0]), giga(l.rate[1]), giga(l.rate[2]),
                  giga(l.rate[3]), giga(l.rate[4]));
    text += line;
  }
  if (!Machine::is_cold()) {
    text += "There is RAM for " +
            format("%.0f", static_cast<double>(Machine::cold_bytes()) / 0x1p20) +
            " MiB of data only, and the last cache has " +
            format("%.0f", static_cast<double>(Machine::caches().l3) / 0x1p20) +
            " MiB: DRAM and cold rows may look too fast.\n";
  }
  if (!machine.has_huge_pages()) text += "The system gave no huge pages when asked for them.\n";
  return text;
}

}  // namespace bench
