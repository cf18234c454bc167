// SPDX-License-Identifier: Apache-2.0
//
// What the host's system says of itself: memory, temperature, battery, load, energy. From the files
// of Linux (proc(5); Documentation/admin-guide/thermal, /power/powercap and /hwmon of its sources),
// read by a function of the caller, so that other systems and tests can give their own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "nibble/core/callback.hpp"
#include "nibble/serve/serving_metrics.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// The contents of a file, or nothing if it cannot be read.
using ReadText = Callback<std::optional<std::string>(const std::string& path)>;

// Reads whole small files of the system.
std::optional<std::string> read_system_file(const std::string& path);

struct HostReadings {
  std::optional<std::uint64_t> resident_bytes = {};  // of this process
  // Degrees Celsius: of the hottest thermal zone or, if there are none, of the processors. What is
  // beyond 150 is a broken sensor.
  std::optional<double> temperature = {};
  std::optional<double> battery = {};  // charge, 0 to 1, of the fullest
  bool is_charging = false;            // or no battery gives power
  // Processes that run or wait to, on the average of a minute, for each processor that is online.
  std::optional<double> load = {};
  // Since the host was made, in microjoules: of the processor packages (RAPL), or, if there are
  // none, of hardware monitors that count energy.
  std::optional<std::uint64_t> energy = {};
};

// Call it now and then, for example before metrics are written. One thread at a time.
class Host {
 public:
  // `page_bytes`: of the system's pages of memory, in which it counts those that are resident.
  explicit Host(ReadText read = read_system_file, std::uint64_t page_bytes = 4096);

  // What is not there is missing in the result.
  HostReadings read();
  // Reads, and sets the metrics that there are readings for.
  void collect(const ServingMetrics& metrics);

 private:
  static constexpr int kMost = 16;  // sensors of each kind that are looked at
  // A counter of energy that begins anew after `range`.
  struct EnergyCounter {
    std::string path;
    std::uint64_t range = 0, last = 0;
  };
  std::optional<std::uint64_t> number(const std::string& path) const;
  // Degrees; nothing if it is no temperature that processors live at.
  std::optional<double> celsius_in(const std::string& path) const;
  std::optional<double> temperature() const;
  std::optional<double> load() const;
  void find_energy();

  ReadText read_;
  std::uint64_t page_bytes_;
  EnergyCounter counters_[kMost];
  int n_counters_ = 0;
  std::uint64_t energy_ = 0, collected_energy_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/host_readings-inl.hpp"
#endif
