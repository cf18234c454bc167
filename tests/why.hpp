// SPDX-License-Identifier: Apache-2.0
//
// What went wrong, for the message of an assertion; empty if nothing did. (doctest also makes the
// messages of assertions that hold when it is told to show them.)
#pragma once

#include <string>

#include "nibble/core/result.hpp"

namespace test {

template <class R>
std::string why(const R& result) {
  return result ? std::string() : result.error().message;
}

}  // namespace test
