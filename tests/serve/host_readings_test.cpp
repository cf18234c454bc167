// SPDX-License-Identifier: Apache-2.0
//
// What the host says of itself: simulated files, and this machine's.
#include "nibble/serve/host_readings.hpp"

#include <map>
#include <optional>
#include <string>

#include "doctest/doctest.h"
#include "why.hpp"

namespace host_readings_test {

using namespace nibble;
using serve::Host;

namespace {

using Files = std::map<std::string, std::string>;
Host host_of(const Files& files) {
  return Host([&files](const std::string& path) -> std::optional<std::string> {
    const auto found = files.find(path);
    if (found == files.end()) return std::nullopt;
    return found->second;
  });
}

}  // namespace

TEST_CASE("a machine without sensors") {
  const Files files;
  auto host = host_of(files);
  const auto readings = host.read();
  CHECK(!readings.resident_bytes);
  CHECK(!readings.temperature);
  CHECK(!readings.battery);
  CHECK(readings.is_charging);
  CHECK(!readings.energy);
}

TEST_CASE("memory, temperature, battery, energy") {
  const std::string rapl = "/sys/class/powercap/intel-rapl:";
  Files files = {{"/proc/self/statm", "1000 25 3 4 0 6 0\n"},
                 {"/sys/class/thermal/thermal_zone0/temp", "41000\n"},
                 {"/sys/class/thermal/thermal_zone2/temp", "55500\n"},
                 {"/sys/class/thermal/thermal_zone3/temp", "-5000\n"},
                 {"/sys/class/power_supply/BAT1/capacity", "37\n"},
                 {"/sys/class/power_supply/BAT1/status", "Discharging\n"},
                 {rapl + "0/energy_uj", "900\n"},
                 {rapl + "0/max_energy_range_uj", "1000\n"},
                 {rapl + "1/energy_uj", "50\n"},
                 {rapl + "1/max_energy_range_uj", "1000\n"},
                 {"/sys/class/hwmon/hwmon0/energy1_input", "7\n"}};
  auto host = host_of(files);
  auto readings = host.read();
  CHECK(readings.resident_bytes == 25 * 4096);
  CHECK(readings.temperature == 55.5);
  CHECK(readings.battery == 0.37);
  CHECK(!readings.is_charging);
  CHECK(readings.energy == 0);
  files[rapl + "0/energy_uj"] = "100\n";  // went through its end: 200 more
  files[rapl + "1/energy_uj"] = "80\n";
  files["/sys/class/power_supply/BAT1/status"] = "Charging\n";
  readings = host.read();
  CHECK(readings.energy == 230);
  CHECK(readings.is_charging);

  serve::Registry registry;
  const auto metrics = serve::ServingMetrics::create(registry);
  REQUIRE_MESSAGE(metrics, test::why(metrics));
  host.collect(*metrics);
  files[rapl + "1/energy_uj"] = "85\n";
  host.collect(*metrics);
  CHECK(metrics->energy->count() == 235);
  CHECK(metrics->temperature->value() == 55.5);
  CHECK(metrics->battery->value() == 0.37);
  CHECK(metrics->resident_memory->value() == 25 * 4096);

  for (const char* const bad : {"", "x", "99999999999999999999999", "12 13", "101\n"}) {
    files["/sys/class/power_supply/BAT1/capacity"] = bad;
    files["/proc/self/statm"] = bad;
    readings = host.read();
    CHECK(!readings.battery);
    if (std::string(bad) != "12 13") CHECK(!readings.resident_bytes);
  }
}

TEST_CASE("temperature of processors where there are no thermal zones") {
  Files files = {{"/sys/class/hwmon/hwmon0/name", "nvme\n"},
                 {"/sys/class/hwmon/hwmon0/temp1_input", "99000\n"},
                 {"/sys/class/hwmon/hwmon1/name", "k10temp\n"},
                 {"/sys/class/hwmon/hwmon1/temp1_input", "61500\n"},
                 {"/sys/class/hwmon/hwmon1/temp3_input", "62250\n"},
                 {"/sys/class/hwmon/hwmon1/temp1_max", "95000\n"}};
  CHECK(host_of(files).read().temperature == 62.25);
  files["/sys/class/hwmon/hwmon1/temp4_input"] = "150001\n";
  CHECK(host_of(files).read().temperature == 62.25);
  files["/sys/class/hwmon/hwmon1/temp4_input"] = "150000\n";
  CHECK(host_of(files).read().temperature == 150);
  files["/sys/class/thermal/thermal_zone5/temp"] = "45000\n";
  CHECK(host_of(files).read().temperature == 45);
}

TEST_CASE("load for each processor") {
  Files files = {{"/proc/loadavg", "3.04 2.00 1.00 1/100 12345\n"},
                 {"/sys/devices/system/cpu/online", "0-2,5\n"}};
  CHECK(host_of(files).read().load == doctest::Approx(0.76));
  files["/sys/devices/system/cpu/online"] = "0\n";
  CHECK(host_of(files).read().load == doctest::Approx(3.04));
  for (const char* const bad : {"", "x", "3-1", "0-", "0,", "0-99999999"}) {
    files["/sys/devices/system/cpu/online"] = bad;
    CHECK(!host_of(files).read().load);
  }
  files["/sys/devices/system/cpu/online"] = "0-1\n";
  for (const char* const bad : {"", "x", "3", "3.", "3.1 2", "3.141 2", "-1.00", "9999999.00"}) {
    files["/proc/loadavg"] = bad;
    CHECK(!host_of(files).read().load);
  }
  files.erase("/proc/loadavg");
  CHECK(!host_of(files).read().load);
}

TEST_CASE("energy of hardware monitors where there is no RAPL") {
  Files files = {{"/sys/class/hwmon/hwmon3/energy1_input", "7\n"}};
  auto host = host_of(files);
  files["/sys/class/hwmon/hwmon3/energy1_input"] = "10\n";
  CHECK(host.read().energy == 3);
}

#if defined(__linux__)
TEST_CASE("this process has resident memory") {
  Host host;
  const auto readings = host.read();
  REQUIRE(readings.resident_bytes);
  CHECK(*readings.resident_bytes > 100'000);
}
#endif

}  // namespace host_readings_test
