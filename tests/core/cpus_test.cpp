// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/cpus.hpp"

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/native_thread.hpp"

namespace cpus_test {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

// A temporary folder that acts as the root of the file system.
struct FakeRoot {
  fs::path path = fs::temp_directory_path() /
                  ("nibble_cpus_test_" + std::to_string(nibble::monotonic_nanoseconds()));
  FakeRoot() { fs::remove_all(path); }
  ~FakeRoot() { fs::remove_all(path); }
  double quota() const { return nibble::cgroup_cpu_quota(path.string()); }
};

}  // namespace

TEST_CASE("available CPUs: at least one, no more than the machine has, none twice") {
  const nibble::AvailableCpus cpus = nibble::available_cpus();
  CHECK(cpus.n_cores >= 1);
  CHECK(cpus.n_logical >= cpus.n_cores);
  CHECK(std::set<int>(cpus.ids.begin(), cpus.ids.end()).size() == cpus.ids.size());
#if defined(__linux__)
  CHECK(cpus.n_logical <= static_cast<nibble::Index>(cpus.ids.size()));
#endif
}

#if defined(__linux__)
TEST_CASE("the affinity mask is respected") {
  const auto all = nibble::available_cpus();
  REQUIRE(!all.ids.empty());
  std::thread([&] {  // in its own thread, so that only this thread's mask changes
    REQUIRE(nibble::pin_this_thread(all.ids.back()));
    const auto one = nibble::available_cpus();
    CHECK(one.ids == std::vector<int>{all.ids.back()});
    CHECK(one.n_logical == 1);
    CHECK(one.n_cores == 1);
    CHECK(!nibble::pin_this_thread(-1));
    CHECK(!nibble::pin_this_thread(16000));
    CHECK(!nibble::pin_this_thread(1 << 30));
  })
      .join();
}
#endif

TEST_CASE("quota of control groups v2: the least of the group and those above it") {
  const FakeRoot root;
  CHECK(root.quota() == 0.0);  // no files at all
  write(root.path / "proc/self/cgroup", "0::/a/b\n");
  CHECK(root.quota() == 0.0);
  write(root.path / "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(root.quota() == 0.0);
  write(root.path / "sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  CHECK(root.quota() == 1.5);
  write(root.path / "sys/fs/cgroup/a/b/cpu.max", "400000 100000\n");
  CHECK(root.quota() == 1.5);
  write(root.path / "sys/fs/cgroup/cpu.max", "50000 100000\n");
  CHECK(root.quota() == 0.5);
  for (const char* broken : {"", "7", "x y", "100 0", "-5 100", "100 -5"}) {
    write(root.path / "sys/fs/cgroup/cpu.max", broken);
    CHECK(root.quota() == 1.5);
  }
}

TEST_CASE("quota of control groups v1, whose own path is not visible inside a container") {
  const FakeRoot root;
  write(root.path / "proc/self/cgroup",
        "5:cpuset:/x\n4:cpu,cpuacct:/docker/0123\n1:name=systemd:/\nnonsense\n:\n");
  write(root.path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  write(root.path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  CHECK(root.quota() == 0.0);
  write(root.path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n");
  CHECK(root.quota() == 3.0);
}

}  // namespace cpus_test
