// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "nibble/nibble.hpp"

int main() {
  const auto file = nibble::io::Gguf::open("missing.gguf");  // an error, not the end of the program
  std::printf("nibble %s on %s\n", NIBBLE_VERSION, to_string(nibble::simd::active_target()));
  return file ? 1 : 0;
}
