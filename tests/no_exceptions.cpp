// SPDX-License-Identifier: Apache-2.0
//
// The whole library without exceptions and RTTI: a model answers, and errors are values. It uses no
// test framework, because that would need exceptions itself; it exits with the number of the step
// that failed.
#include <cstdint>
#include <cstdio>
#include <string>

#include "nibble/model/convert.hpp"
#include "nibble/nibble.hpp"

#if NIBBLE_HAS_EXCEPTIONS
#error "compile this with -fno-exceptions"
#endif

#ifdef ONE_ARCHITECTURE  // compiled again and again, by other compilers and for other machines
using Architectures = nibble::ArchitectureList<nibble::Llama>;
// One format for each kind of kernel.
using Formats =
    nibble::graph::FormatList<nibble::quant::F32, nibble::quant::F16, nibble::quant::BF16,
                              nibble::quant::Q4_0, nibble::quant::Q8_0, nibble::quant::Q4_K,
                              nibble::quant::Q6_K>;
#else
using Formats = nibble::graph::AllFormats;
// Together they have all nodes of the graph.
using Architectures = nibble::ArchitectureList<nibble::Llama, nibble::Gpt2, nibble::Bert, nibble::Gemma4,
                                               nibble::GptOss, nibble::Lfm2, nibble::Qwen35Moe>;
#endif

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const auto missing = nibble::load<Formats, Architectures>("no/such/file.gguf");
  if (missing || missing.error().code != nibble::Errc::io) return 2;

  const auto model = nibble::load<Formats, Architectures>(argv[1]);
  if (!model) {
    std::puts(model.error().message.c_str());
    return 3;
  }
  auto session = nibble::Session::create(*model);
  if (!session) return 4;
  std::string answer;
  const auto done =
      nibble::generate(*session, "could you please dim the office light to 10 percent\n", {},
                       [&](const nibble::Token& token) {
                         answer += token.text;
                         return true;
                       });
  if (!done || answer != "light.set(room=office, level=10)") return 5;

  nibble::SessionOptions absurd;
  absurd.n_ctx = -1;
  if (nibble::Session::create(*model, absurd)) return 6;

  // With 32-bit pointers, what cannot be addressed is an error as well.
  if (sizeof(void*) == 4) {
    nibble::SessionOptions vast;
    vast.n_ctx = std::int64_t{1} << 24;
    if (nibble::Session::create(*model, vast)) return 7;
    vast.max_step_tokens = vast.n_ctx;
    if (nibble::Session::create(*model, vast)) return 8;
  }
  return 0;
}
