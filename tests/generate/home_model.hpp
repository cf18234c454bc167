// SPDX-License-Identifier: Apache-2.0
//
// The model that ships with the examples. A prompt is an utterance and a newline; the answer is one
// call and the end token.
#pragma once

#include <cstdlib>
#include <string>

#include "doctest/doctest.h"
#include "nibble/model/model.hpp"
#include "why.hpp"

namespace test {

inline std::string home_model_path() {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");  // ctest sets it
  REQUIRE_MESSAGE(project != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  return std::string(project) + "/examples/models/home-commands-f16.gguf";
}

// Loaded once.
inline const nibble::Model& home_model() {
  static const nibble::Model model = [] {
    auto loaded = nibble::load(home_model_path());
    REQUIRE_MESSAGE(loaded, test::why(loaded));
    return *std::move(loaded);
  }();
  return model;
}

}  // namespace test
