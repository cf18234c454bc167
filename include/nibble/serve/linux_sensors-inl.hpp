// SPDX-License-Identifier: Apache-2.0
//
// The functions of linux_sensors.hpp, which includes this.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "nibble/core/control_groups.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/serve/linux_sensors.hpp"

#if defined(__linux__)
#include <dirent.h>
#endif

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

namespace detail {

// A file's beginning without the new line at its end.
inline std::string sensor_text(const std::string& path) {
  std::string text = nibble::detail::read_beginning(path);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

// A decimal number at the beginning of a text, whatever the locale; NaN if there is none or it is
// too long to be one of a sensor.
inline double sensor_number(std::string_view text) noexcept {
  const bool is_negative = text.starts_with('-');
  if (is_negative) text.remove_prefix(1);
  double value = 0, unit = 1;
  std::size_t n = 0;
  bool is_fraction = false;
  for (const char c : text) {
    if (c == '.' && n > 0 && !is_fraction) {
      is_fraction = true;
      continue;
    }
    if (c < '0' || c > '9') break;
    if (++n > 15) return Readings::kUnknown;
    value = value * 10 + (c - '0');
    if (is_fraction) unit *= 10;
  }
  if (n == 0) return Readings::kUnknown;
  return (is_negative ? -value : value) / unit;
}

// NaN outside [least, most].
inline double within(double value, double least, double most) noexcept {
  return !is_nan(value) && value >= least && value <= most ? value : Readings::kUnknown;
}

// Calls f(path) for what is in a folder, in any order, at most a thousand of them.
template <class F>
void for_each_in_folder([[maybe_unused]] const std::string& folder, [[maybe_unused]] F&& f) {
#if defined(__linux__)
  DIR* const open = opendir(folder.c_str());
  if (open == nullptr) return;
  for (int i = 0; i < 1000; ++i) {
    const dirent* const entry = readdir(open);
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") f(folder + "/" + name);
  }
  closedir(open);
#endif
}

inline double temperature_in(const std::string& path) {
  return within(sensor_number(sensor_text(path)) / 1000, -40, 150);  // thousandths of degrees
}
inline double larger_known(double a, double b) noexcept {
  return is_nan(a) || (!is_nan(b) && b > a) ? b : a;
}

inline double hottest_processor(const std::string& sys) {
  double hottest = Readings::kUnknown;
  for_each_in_folder(sys + "/class/thermal", [&](const std::string& zone) {
    if (zone.find("/thermal_zone") == std::string::npos) return;  // a cooling device
    hottest = larger_known(hottest, temperature_in(zone + "/temp"));
  });
  if (!is_nan(hottest)) return hottest;
  for_each_in_folder(sys + "/class/hwmon", [&](const std::string& chip) {
    constexpr std::string_view kProcessors[] = {"coretemp", "k10temp", "zenpower", "cpu_thermal"};
    const std::string name = sensor_text(chip + "/name");
    if (std::find(std::begin(kProcessors), std::end(kProcessors), name) == std::end(kProcessors)) {
      return;
    }
    for_each_in_folder(chip, [&](const std::string& file) {
      const std::string_view last = std::string_view(file).substr(chip.size() + 1);
      if (!last.starts_with("temp") || !last.ends_with("_input")) return;
      hottest = larger_known(hottest, temperature_in(file));
    });
  });
  return hottest;
}

}  // namespace detail

NIBBLE_INLINE Readings read_linux_sensors(Index n_cpus, const std::string& root) {
  using detail::sensor_number;
  using detail::sensor_text;
  Readings readings;
  readings.temperature = detail::hottest_processor(root + "/sys");
  detail::for_each_in_folder(root + "/sys/class/power_supply", [&](const std::string& supply) {
    if (sensor_text(supply + "/type") != "Battery") {
      if (sensor_text(supply + "/online") == "1") readings.is_plugged_in = true;
      return;
    }
    if (sensor_text(supply + "/scope") == "Device") return;
    const double charge =
        detail::within(sensor_number(sensor_text(supply + "/capacity")), 0, 100) / 100;
    if (is_nan(readings.battery) || charge < readings.battery) readings.battery = charge;
  });
  const double load = detail::within(sensor_number(sensor_text(root + "/proc/loadavg")), 0, 1e6);
  readings.load = load / static_cast<double>((std::max)(Index{1}, n_cpus));
  return readings;
}

}}}  // namespace nibble::NIBBLE_ABI::serve
