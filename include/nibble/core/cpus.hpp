// SPDX-License-Identifier: Apache-2.0
//
// Which CPUs this process may use: its affinity mask, the physical cores behind it and the CPU
// quota of its container. The number of CPUs of the machine alone is wrong in every container.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <string>
#include <vector>

#include "nibble/core/control_groups.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include "nibble/core/windows.hpp"
#else
#include <unistd.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI {

struct AvailableCpus {
  // Logical CPUs that the calling thread may run on: first one of each physical core, then the
  // other ones. Empty where the system does not tell.
  std::vector<int> ids;
  Index n_logical = 1;  // how many of them can run at once under the quota; at least 1
  Index n_cores = 1;    // physical cores among them, as far as known, under the quota; at least 1
};

// Never fails. Where the system does not tell, it assumes one CPU and no quota.
AvailableCpus available_cpus();

// Pins the calling thread to logical CPU `cpu`. Returns false when the system refuses or has no
// such call (macOS).
bool pin_this_thread(int cpu) noexcept;

// CPU time that the Linux control groups (v1 and v2) of this process allow, in CPUs: the smallest
// quota / period from its group up to the root; 0 when there is no limit. `root` is a prefix of the
// paths /proc and /sys.
double cgroup_cpu_quota(const std::string& root = "");

namespace detail {

// quota / period; 0 when there is no limit ("max", -1 or empty).
inline double quota_ratio(const std::string& quota, const std::string& period) {
  const long long q = std::strtoll(quota.c_str(), nullptr, 10);
  const long long p = std::strtoll(period.c_str(), nullptr, 10);
  return q > 0 && p > 0 ? static_cast<double>(q) / static_cast<double>(p) : 0.0;
}

}  // namespace detail

inline double cgroup_cpu_quota(const std::string& root) {
  double least = 0;
  detail::for_each_control_group(root, "cpu", [&](const std::string& folder, bool is_v2) {
    double quota;
    if (is_v2) {  // "150000 100000" or "max 100000"
      const std::string text = detail::read_beginning(folder + "/cpu.max");
      const std::size_t space = text.find(' ');
      quota = space == std::string::npos ? 0 : detail::quota_ratio(text, text.substr(space));
    } else {
      quota = detail::quota_ratio(detail::read_beginning(folder + "/cpu.cfs_quota_us"),
                                  detail::read_beginning(folder + "/cpu.cfs_period_us"));
    }
    if (quota > 0 && (least <= 0 || quota < least)) least = quota;
  });
  return least;
}

#if defined(__linux__)

inline AvailableCpus available_cpus() {
  AvailableCpus cpus;
  // Larger than any kernel's mask: the kernel fills in what it knows, and fails if the mask is too
  // small.
  std::array<unsigned long, 1024> mask{};
  if (sched_getaffinity(0, sizeof(mask), reinterpret_cast<cpu_set_t*>(mask.data())) != 0) mask = {};
  // Siblings of one core list each other in ascending order, so the first names the core.
  std::vector<int> cores;  // the core of each entry of cpus.ids
  std::vector<int> seconds;
  constexpr std::size_t kBits = sizeof(unsigned long) * 8;
  for (std::size_t i = 0; i < mask.size() * kBits; ++i) {
    if ((mask[i / kBits] >> (i % kBits) & 1) == 0) continue;
    const std::string siblings = detail::read_beginning("/sys/devices/system/cpu/cpu" + to_text(i) +
                                                        "/topology/thread_siblings_list");
    const int core = siblings.empty() ? static_cast<int>(i) : std::atoi(siblings.c_str());
    bool is_first = true;
    for (const int other : cores) is_first = is_first && other != core;
    if (is_first) cores.push_back(core);
    (is_first ? cpus.ids : seconds).push_back(static_cast<int>(i));
  }
  cpus.n_cores = std::max<Index>(1, static_cast<Index>(cpus.ids.size()));
  for (const int id : seconds) cpus.ids.push_back(id);
  cpus.n_logical = std::max<Index>(1, static_cast<Index>(cpus.ids.size()));

  // Rounded to the nearest whole CPU: a throttled thread delays all others at the next join.
  if (const double quota = cgroup_cpu_quota(); quota > 0 && quota < 1e6) {
    const Index whole = std::max<Index>(1, static_cast<Index>(quota + 0.5));
    cpus.n_logical = (std::min)(cpus.n_logical, whole);
    cpus.n_cores = (std::min)(cpus.n_cores, whole);
  }
  return cpus;
}

inline bool pin_this_thread(int cpu) noexcept {
  constexpr std::size_t kBits = sizeof(unsigned long) * 8;
  std::array<unsigned long, 256> mask{};  // 16384 CPUs
  if (cpu < 0 || static_cast<std::size_t>(cpu) >= mask.size() * kBits) return false;
  mask[static_cast<std::size_t>(cpu) / kBits] = 1ul << (static_cast<std::size_t>(cpu) % kBits);
  return sched_setaffinity(0, sizeof(mask), reinterpret_cast<const cpu_set_t*>(mask.data())) == 0;
}

#elif defined(_WIN32)

inline AvailableCpus available_cpus() {
  AvailableCpus cpus;
#if defined(_WIN64)
  unsigned long long process = 0, system = 0;
#else
  unsigned long process = 0, system = 0;
#endif
  if (GetProcessAffinityMask(GetCurrentProcess(), &process, &system) != 0) {
    for (int i = 0; process != 0; ++i, process >>= 1) {
      if ((process & 1) != 0) cpus.ids.push_back(i);
    }
  }
  cpus.n_logical = std::max<Index>(1, static_cast<Index>(cpus.ids.size()));
  cpus.n_cores = cpus.n_logical;  // counts both threads of a core
  return cpus;
}

inline bool pin_this_thread(int cpu) noexcept {
  constexpr int kBits = static_cast<int>(sizeof(std::size_t) * 8);
  if (cpu < 0 || cpu >= kBits) return false;
  return SetThreadAffinityMask(GetCurrentThread(), std::size_t{1} << cpu) != 0;
}

#else

inline AvailableCpus available_cpus() {
  AvailableCpus cpus;
#if defined(__APPLE__)
  const auto count = [](const char* name) -> Index {
    int n = 0;
    std::size_t size = sizeof(n);
    return sysctlbyname(name, &n, &size, nullptr, 0) == 0 && n > 0 ? n : 1;
  };
  cpus.n_logical = count("hw.logicalcpu");
  cpus.n_cores = count("hw.physicalcpu");
#else
  cpus.n_logical = std::max<Index>(1, static_cast<Index>(sysconf(_SC_NPROCESSORS_ONLN)));
  cpus.n_cores = cpus.n_logical;
#endif
  return cpus;
}

inline bool pin_this_thread(int) noexcept { return false; }

#endif

}}  // namespace nibble::NIBBLE_ABI
