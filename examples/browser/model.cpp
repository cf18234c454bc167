// SPDX-License-Identifier: Apache-2.0
//
// Makes the page's model: browser_model IN.gguf OUT.gguf writes IN's matrices in Q4_0. Runs while
// the page is built, in Node.
#include <cstdio>

#include "nibble/io/gguf.hpp"
#include "nibble/model/convert.hpp"

int main(int argc, char** argv) {
  const auto make = [&]() -> nibble::Result<void> {
    NIBBLE_TRY(file, nibble::io::Gguf::open(argv[1]));
    return nibble::quantize_model(file, argv[2], {.format = nibble::quant::Format::q4_0});
  };
  if (argc != 3) return std::puts("usage: browser_model IN.gguf OUT.gguf"), 2;
  const auto done = make();
  if (!done) std::puts(done.error().message.c_str());
  return done ? 0 : 1;
}
