// SPDX-License-Identifier: Apache-2.0
//
// The Linux control groups that limit this process: of a container, a service, a user.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <string>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// The first 4 KiB of a file; empty when it cannot be read.
inline std::string read_beginning(const std::string& path) {
  std::array<char, 4096> buffer;
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return {};
  const std::size_t n = std::fread(buffer.data(), 1, buffer.size(), file);
  std::fclose(file);
  return std::string(buffer.data(), n);
}

// Calls f(folder, is_v2) for the group of this process that a controller ("cpu", "memory") has, and
// for all groups above it. A container often sees its own group mounted as the root, while the path
// still names the group as seen from outside. So folders may be missing. `root` is a prefix of the
// paths /proc and /sys.
template <class F>
void for_each_control_group(const std::string& root, const char* controller, F&& f) {
  const std::string groups = read_beginning(root + "/proc/self/cgroup");
  std::string wanted = ",";  // no operator+: GCC 12 gives a false warning for it at -O3
  wanted.append(controller).push_back(',');
  for (std::size_t begin = 0; begin < groups.size();) {  // lines of "id:controllers:path"
    const std::size_t end = (std::min)(groups.find('\n', begin), groups.size());
    const std::string line = groups.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = ",";
    controllers.append(line, first + 1, second - first - 1).push_back(',');
    const bool is_v2 = controllers == ",,";
    if (!is_v2 && controllers.find(wanted) == std::string::npos) continue;
    std::string mount = root + "/sys/fs/cgroup";
    if (!is_v2) mount.append("/").append(controller);
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    for (;;) {
      f(mount + group, is_v2);
      const std::size_t slash = group.rfind('/');
      if (slash == std::string::npos) break;
      group.resize(slash);
    }
  }
}

}}}  // namespace nibble::NIBBLE_ABI::detail
