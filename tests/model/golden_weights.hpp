// SPDX-License-Identifier: Apache-2.0
//
// The weights of the models in goldens/, of which only names and shapes are in the files.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "nibble/core/view.hpp"

namespace test::goldens {

// As weights() of make_goldens.py.
inline std::vector<float> random_weights(const std::string& name, nibble::Index n_rows,
                                         nibble::Index k) {
  std::uint64_t seed = 0xCBF29CE484222325u;
  for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  double centre = 0, amplitude = std::sqrt(3.0 / static_cast<double>(k));
  if (name.starts_with("rope_f")) {
    centre = 2, amplitude = 1;
  } else if (name.ends_with("ssm_a")) {
    centre = -0.6, amplitude = 0.5;
  } else if (name.find("norm.weight") != name.npos || name.find("norm_") != name.npos ||
             name.find("scale") != name.npos) {
    centre = 1, amplitude = 0.3;
  } else if (name.ends_with(".bias")) {
    amplitude = 0.3;
  } else if (name == "token_embd.weight" || name == "position_embd.weight" ||
             name == "token_types.weight") {
    amplitude = 1;
  }
  std::vector<float> values(static_cast<std::size_t>(std::max<nibble::Index>(n_rows, 1) * k));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    const double u = static_cast<double>(z >> 40) / 0x1p23 - 1;
    values[i] = static_cast<float>(centre + amplitude * u);
  }
  return values;
}

}  // namespace test::goldens
