// SPDX-License-Identifier: Apache-2.0
//
// How much memory this process can still get. The memory of the machine alone is wrong in every
// container.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>

#include "nibble/core/control_groups.hpp"

#if !defined(_WIN32)
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

inline constexpr std::size_t kUnlimited = (std::numeric_limits<std::size_t>::max)();

// The number behind `name` (empty: at the beginning) in a text, times `unit`; `none` if there is
// none ("max") or if it does not fit.
inline std::size_t number_after(const std::string& text, const char* name, std::size_t unit,
                                std::size_t none) {
  const std::size_t at = text.find(name);
  if (at == std::string::npos) return none;
  const char* const begin = text.c_str() + at + std::string(name).size();
  char* end = nullptr;
  const unsigned long long number = std::strtoull(begin, &end, 10);
  return end == begin || number > kUnlimited / unit ? none
                                                    : static_cast<std::size_t>(number) * unit;
}

inline std::size_t memory_of_control_groups(const std::string& root) {
  std::size_t least = kUnlimited;
  for_each_control_group(root, "memory", [&](const std::string& folder, bool is_v2) {
    const auto number_in = [&](const char* v2, const char* v1, std::size_t none) {
      return number_after(read_beginning(folder + (is_v2 ? v2 : v1)), "", 1, none);
    };
    const std::size_t most = number_in("/memory.max", "/memory.limit_in_bytes", kUnlimited);
    const std::size_t used = number_in("/memory.current", "/memory.usage_in_bytes", 0);
    if (most != kUnlimited) least = (std::min)(least, most - (std::min)(most, used));
  });
  return least;
}

}  // namespace detail

// Bytes that this process can take now without swapping, as far as the system tells: what it has
// available, within what the Linux control groups of the process (v1 and v2) and `ulimit -v` still
// allow. Where only the size of the memory is known, as on macOS, that; where nothing is, as on
// Windows, the largest std::size_t. A control group counts the files that it has read as used,
// though they would make room: so there may be more. `root` is a prefix of the paths /proc and
// /sys. Never fails.
inline std::size_t available_memory(const std::string& root = "") {
  std::size_t bytes = detail::kUnlimited;
#if !defined(_WIN32)
#if defined(_SC_PHYS_PAGES)
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    bytes = static_cast<std::size_t>(pages) * static_cast<std::size_t>(page);
  }
#endif
  const auto in_file = [&](const char* path, const char* name, std::size_t none) {
    return detail::number_after(detail::read_beginning(root + path), name, 1024, none);
  };
  bytes = (std::min)(bytes, in_file("/proc/meminfo", "MemAvailable:", detail::kUnlimited));
  bytes = (std::min)(bytes, detail::memory_of_control_groups(root));
  struct rlimit limit {};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const std::size_t space =
        (std::min)(std::uint64_t{limit.rlim_cur}, std::uint64_t{detail::kUnlimited});
    const std::size_t used = in_file("/proc/self/status", "VmSize:", 0);
    bytes = (std::min)(bytes, space - (std::min)(space, used));
  }
#endif
  return bytes;
}

}}  // namespace nibble::NIBBLE_ABI
