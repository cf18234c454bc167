// SPDX-License-Identifier: Apache-2.0
//
// The program that every consumer project compiles. It answers one home command with the model
// given as its argument. Exit code 0 only if the answer is right.
#include <cstdio>
#include <string>

#include "nibble/nibble.hpp"

// Only the formats of this model: the consumer is compiled once for every way of using nibble.
using Model = nibble::BasicModel<nibble::graph::FormatList<nibble::quant::F32, nibble::quant::F16>>;
using Session = nibble::BasicSession<Model>;

int main(int argc, char** argv) {
  if (argc != 2) return std::puts("usage: consumer MODEL.gguf"), 2;
  const auto file = nibble::io::Gguf::open(argv[1]);
  if (!file) return std::puts(file.error().message.c_str()), 1;
  const auto model = Model::from_gguf(*file);
  if (!model) return std::puts(model.error().message.c_str()), 1;
  auto session = Session::create(*model);
  if (!session) return std::puts(session.error().message.c_str()), 1;
  std::string call;
  const auto done =
      nibble::generate(*session, "could you please dim the office light to 10 percent\n", {},
                       [&](const nibble::Token& token) { return call += token.text, true; });
  if (!done) return std::puts(done.error().message.c_str()), 1;
  std::printf("nibble %s on %s of %s: %s\n", NIBBLE_VERSION,
              to_string(nibble::simd::active_target()),
              to_string(nibble::simd::compiled_targets()).c_str(), call.c_str());
  return call == "light.set(room=office, level=10)" ? 0 : 1;
}
