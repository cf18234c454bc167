// SPDX-License-Identifier: Apache-2.0
//
// The error, for the message of an assertion; empty if there is none. (If doctest is told to show
// assertions that hold, it also evaluates their messages.)
#pragma once

#include <string>

#include "nibble/core/result.hpp"

namespace test {

template <class R>
std::string why(const R& result) {
  return result ? std::string() : result.error().message;
}

}  // namespace test
