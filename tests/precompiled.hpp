// SPDX-License-Identifier: Apache-2.0
//
// What nearly every test includes of others, precompiled: it would take half of the time that a small
// test takes to compile. Nothing of nibble: its headers must include what they use, and hygiene
// (headers_alone) compiles each of them without this. Tests still include what they use.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
