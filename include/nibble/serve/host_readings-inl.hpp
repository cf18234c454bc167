// SPDX-License-Identifier: Apache-2.0
//
// How the host's files are read. Included by host_readings.hpp.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/text.hpp"
#include "nibble/serve/host_readings.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

namespace detail {

// The digits at the beginning of a text, which is shortened by them.
inline std::optional<std::uint64_t> leading_number(std::string_view& text) noexcept {
  std::uint64_t n = 0;
  std::size_t n_digits = 0;
  for (; n_digits < text.size() && text[n_digits] >= '0' && text[n_digits] <= '9'; ++n_digits) {
    if (n > (UINT64_MAX - 9) / 10) return std::nullopt;
    n = n * 10 + static_cast<std::uint64_t>(text[n_digits] - '0');
  }
  text.remove_prefix(n_digits);
  if (n_digits == 0) return std::nullopt;
  return n;
}

}  // namespace detail

NIBBLE_INLINE std::optional<std::string> read_system_file(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return std::nullopt;
  char text[4096];
  const std::size_t n = std::fread(text, 1, sizeof text, file);
  const bool is_read = std::ferror(file) == 0;
  std::fclose(file);
  if (!is_read) return std::nullopt;
  return std::string(text, n);
}

NIBBLE_INLINE Host::Host(ReadText read, std::uint64_t page_bytes)
    : read_(std::move(read)), page_bytes_(page_bytes) {
  find_energy();
}

// A number alone in its file. Files may have minus signs: what is below 0 is no number here.
NIBBLE_INLINE std::optional<std::uint64_t> Host::number(const std::string& path) const {
  const std::optional<std::string> text = read_(path);
  if (!text) return std::nullopt;
  std::string_view rest = *text;
  const auto n = detail::leading_number(rest);
  if (!rest.empty() && rest != "\n") return std::nullopt;
  return n;
}

NIBBLE_INLINE std::optional<double> Host::celsius_in(const std::string& path) const {
  constexpr std::uint64_t kHottest = 150'000;
  const auto thousandths = number(path);
  if (!thousandths || *thousandths > kHottest) return std::nullopt;
  return static_cast<double>(*thousandths) / 1000;
}

NIBBLE_INLINE std::optional<double> Host::temperature() const {
  std::optional<double> hottest;
  const auto add = [&](const std::string& path) {
    const auto found = celsius_in(path);
    if (found && (!hottest || *found > *hottest)) hottest = found;
  };
  for (int i = 0; i < kMost; ++i) add("/sys/class/thermal/thermal_zone" + to_text(i) + "/temp");
  if (hottest) return hottest;
  for (int i = 0; i < kMost; ++i) {
    const std::string folder = "/sys/class/hwmon/hwmon" + to_text(i);
    const std::optional<std::string> name = read_(folder + "/name");
    if (!name || (*name != "coretemp\n" && *name != "k10temp\n" && *name != "zenpower\n" &&
                  *name != "cpu_thermal\n")) {
      continue;
    }
    for (int j = 1; j <= kMost; ++j) add(folder + "/temp" + to_text(j) + "_input");
  }
  return hottest;
}

NIBBLE_INLINE std::optional<double> Host::load() const {
  // "3.14 2.00 1.00 1/100 12345": two digits behind the point.
  const std::optional<std::string> average = read_("/proc/loadavg");
  const std::optional<std::string> online = read_("/sys/devices/system/cpu/online");
  if (!average || !online) return std::nullopt;
  std::string_view rest = *average;
  const auto whole = detail::leading_number(rest);
  if (!whole || *whole > 1'000'000 || !rest.starts_with('.')) return std::nullopt;
  rest.remove_prefix(1);
  const std::size_t n_digits = rest.size();
  const auto hundredths = detail::leading_number(rest);
  if (!hundredths || n_digits - rest.size() != 2) return std::nullopt;
  // "0-3,5": first and last number of each range.
  std::uint64_t n_cpus = 0;
  for (rest = *online;;) {
    const auto first = detail::leading_number(rest);
    auto last = first;
    if (rest.starts_with('-')) {
      rest.remove_prefix(1);
      last = detail::leading_number(rest);
    }
    constexpr std::uint64_t kMostCpus = 1 << 20;
    if (!first || !last || *last < *first || *last > kMostCpus) return std::nullopt;
    n_cpus += *last - *first + 1;
    if (!rest.starts_with(',')) break;
    rest.remove_prefix(1);
  }
  return (static_cast<double>(*whole) + static_cast<double>(*hundredths) / 100) /
         static_cast<double>(n_cpus);
}

NIBBLE_INLINE void Host::find_energy() {
  const auto add = [&](const std::string& path, std::uint64_t range) {
    const auto now = number(path);
    if (now && n_counters_ < kMost) counters_[n_counters_++] = {path, range, *now};
  };
  for (int i = 0; i < kMost; ++i) {  // packages; what is within them has a second number
    const std::string folder = "/sys/class/powercap/intel-rapl:" + to_text(i);
    const auto range = number(folder + "/max_energy_range_uj");
    if (range) add(folder + "/energy_uj", *range);
  }
  if (n_counters_ > 0) return;
  for (int i = 0; i < kMost; ++i) {
    add("/sys/class/hwmon/hwmon" + to_text(i) + "/energy1_input", UINT64_MAX);
  }
}

NIBBLE_INLINE HostReadings Host::read() {
  HostReadings readings;
  if (const auto statm = read_("/proc/self/statm")) {  // pages: of the program, resident, ...
    std::string_view rest = *statm;
    if (detail::leading_number(rest) && rest.starts_with(" ")) {
      rest.remove_prefix(1);
      const auto n = detail::leading_number(rest);
      if (n && *n < UINT64_MAX / page_bytes_) readings.resident_bytes = *n * page_bytes_;
    }
  }
  readings.temperature = temperature();
  readings.load = load();
  readings.is_charging = true;
  for (int i = 0; i < 4; ++i) {
    const std::string folder = "/sys/class/power_supply/BAT" + to_text(i);
    const auto percent = number(folder + "/capacity");
    if (!percent || *percent > 100) continue;
    const double charge = static_cast<double>(*percent) / 100;
    if (!readings.battery || charge > *readings.battery) readings.battery = charge;
    const auto status = read_(folder + "/status");
    if (status && status->starts_with("Discharging")) readings.is_charging = false;
  }
  for (int i = 0; i < n_counters_; ++i) {
    EnergyCounter& counter = counters_[i];
    const auto now = number(counter.path);
    if (!now) continue;
    energy_ += *now >= counter.last ? *now - counter.last : counter.range - counter.last + *now;
    counter.last = *now;
  }
  if (n_counters_ > 0) readings.energy = energy_;
  return readings;
}

NIBBLE_INLINE void Host::collect(const ServingMetrics& metrics) {
  const HostReadings readings = read();
  if (readings.resident_bytes) {
    metrics.resident_memory->set(static_cast<double>(*readings.resident_bytes));
  }
  if (readings.temperature) metrics.temperature->set(*readings.temperature);
  if (readings.battery) metrics.battery->set(*readings.battery);
  if (readings.energy) {
    metrics.energy->add(*readings.energy - collected_energy_);
    collected_energy_ = *readings.energy;
  }
}

}}}  // namespace nibble::NIBBLE_ABI::serve
