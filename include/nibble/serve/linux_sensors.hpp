// SPDX-License-Identifier: Apache-2.0
//
// What Linux says of temperature, battery and load, for a governor: the files of sysfs and procfs.
// For programs; on other systems nothing is known.
#pragma once

#include <string>

#include "nibble/core/view.hpp"
#include "nibble/serve/governor.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// The hottest thermal zone, or where there is none the hottest processor sensor of hwmon; the
// emptiest battery of the device itself (not of a mouse), and whether any supply is plugged in; the
// processes that run or want to (the mean of a minute) for each of `n_cpus`, at least 1. Values
// that no device has (outside -40 to 150 degrees, 0 to 100 %) are left out. `root` is a prefix of
// the paths /proc and /sys. Never fails: what cannot be read is not known.
Readings read_linux_sensors(Index n_cpus, const std::string& root = "");

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/linux_sensors-inl.hpp"
#endif
