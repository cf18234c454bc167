// SPDX-License-Identifier: Apache-2.0
//
// The value of a result that has to be one.
#pragma once

#include <utility>

#include "doctest/doctest.h"
#include "nibble/core/result.hpp"
#include "why.hpp"

namespace test {

template <class T>
T must(nibble::Result<T> result) {
  REQUIRE_MESSAGE(result, why(result));
  return *std::move(result);
}

}  // namespace test
