// SPDX-License-Identifier: Apache-2.0
//
// Values and errors of results, for tests.
#pragma once

#include <optional>
#include <utility>

#include "doctest/doctest.h"
#include "nibble/core/result.hpp"
#include "why.hpp"

namespace test {

template <class T>
T value_of(nibble::Result<T> result) {
  REQUIRE_MESSAGE(result, why(result));
  return *std::move(result);
}
// The code of the error, if there is one.
template <class T>
std::optional<nibble::Errc> code_of(const nibble::Result<T>& result) {
  return result ? std::optional<nibble::Errc>() : std::optional<nibble::Errc>(result.error().code);
}

}  // namespace test
