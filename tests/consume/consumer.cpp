// SPDX-License-Identifier: Apache-2.0
//
// The program that every consumer project compiles: a file, a vocabulary, threads and a kernel of
// its SIMD target, which need all that nibble depends on. Little code, because it is compiled once
// for every way of using nibble: with the headers that it needs, or with nibble.hpp (WHOLE). Exit
// code 0 only if the numbers are right.
#include <array>
#include <cstdio>
#include <string>

#ifdef WHOLE
#include "nibble/nibble.hpp"
#else
#include "nibble/core/thread_pool.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/ops/softmax.hpp"
#include "nibble/simd/dispatch.hpp"
#include "nibble/text/tokenizer.hpp"
#endif

int main(int argc, char** argv) {
  using namespace nibble;
  if (argc != 2) return std::puts("usage: consumer MODEL.gguf"), 2;
  const auto file = io::Gguf::open(argv[1]);
  if (!file) return std::puts(file.error().message.c_str()), 1;
  const auto tokenizer = text::Tokenizer::from_gguf(*file);
  if (!tokenizer) return std::puts(tokenizer.error().message.c_str()), 1;
  const std::string text = "dim the office light";
  const auto ids = tokenizer->encode(text);
  if (!ids || ids->empty()) return std::puts("the text has no tokens"), 1;
  const auto pool = ThreadPool::create({.n_threads = 2});
  if (!pool) return std::puts(pool.error().message.c_str()), 1;
  std::array<float, 2 * 20> rows;
  rows.fill(3);
  const MatrixView<float> matrix(rows.data(), 2, 20);
  ops::softmax(**pool, MatrixView<const float>(matrix), matrix);
  float sum = 0;
  for (const float x : rows) sum += x;
  std::printf("nibble %s on %s of %s: %s, %.3f\n", NIBBLE_VERSION, to_string(simd::active_target()),
              to_string(simd::compiled_targets()).c_str(), tokenizer->decode(*ids).c_str(),
              static_cast<double>(sum));
}
