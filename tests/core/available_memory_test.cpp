// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/available_memory.hpp"

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>

#include "doctest/doctest.h"
#include "nibble/core/native_thread.hpp"

namespace available_memory_test {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMiB = std::size_t{1} << 20;

// A temporary folder that acts as the root of the file system.
struct FakeRoot {
  fs::path path = fs::temp_directory_path() /
                  ("nibble_memory_test_" + std::to_string(nibble::monotonic_nanoseconds()));
  FakeRoot() {
    write("proc/meminfo", "MemTotal: 900000 kB\nMemFree: 1 kB\nMemAvailable: 102400 kB\n");
  }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;
  ~FakeRoot() { fs::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((path / name).parent_path());
    std::ofstream(path / name) << text;
  }
  std::size_t available() const { return nibble::available_memory(path.string()); }
};

}  // namespace

#if defined(__linux__)
TEST_CASE("available memory: what the system says, within the limits of the control groups") {
  CHECK(nibble::available_memory() > 0);
  CHECK(nibble::available_memory() < std::size_t{1} << 50);
  const FakeRoot root;
  CHECK(root.available() == 100 * kMiB);

  root.write("proc/self/cgroup", "0::/a/b\n");
  CHECK(root.available() == 100 * kMiB);  // folders that are missing limit nothing
  root.write("sys/fs/cgroup/a/b/memory.max", "max\n");
  root.write("sys/fs/cgroup/a/b/memory.current", "12345\n");
  CHECK(root.available() == 100 * kMiB);
  root.write("sys/fs/cgroup/a/memory.max", std::to_string(50 * kMiB) + "\n");
  CHECK(root.available() == 50 * kMiB);
  root.write("sys/fs/cgroup/a/memory.current", std::to_string(20 * kMiB) + "\n");
  CHECK(root.available() == 30 * kMiB);
  root.write("sys/fs/cgroup/memory.max", std::to_string(10 * kMiB) + "\n");
  CHECK(root.available() == 10 * kMiB);
  root.write("sys/fs/cgroup/memory.current", std::to_string(11 * kMiB) + "\n");
  CHECK(root.available() == 0);
}

TEST_CASE("available memory: control groups of the first version, and files that make no sense") {
  const FakeRoot root;
  root.write("proc/self/cgroup", "5:cpu,memory:/x\n4:pids:/y\n");
  root.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
  root.write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "77\n");
  CHECK(root.available() == 100 * kMiB);
  root.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", std::to_string(40 * kMiB));
  CHECK(root.available() == 40 * kMiB - 77);
  root.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "99999999999999999999999\n");
  CHECK(root.available() == 100 * kMiB);
  root.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "many\n");
  CHECK(root.available() == 100 * kMiB);
  root.write("proc/meminfo", "MemAvailable: lots\n");
  CHECK(root.available() > 100 * kMiB);  // the machine's memory
}
#endif

}  // namespace available_memory_test
