// SPDX-License-Identifier: Apache-2.0
//
// cut_texts PRE: reads texts (length in 32 bits, bytes) from the standard input and writes the
// lengths of their words, a line for each text.
#include <cstdint>
#include <cstdio>
#include <string>

#include "nibble/text/pre_tokenizer.hpp"

int main(int n_args, char** args) {
  using namespace nibble::text;
  const PreTokenizer* const pre_tokenizer = n_args == 2 ? find_pre_tokenizer(args[1]) : nullptr;
  if (pre_tokenizer == nullptr) return 1;
  std::uint32_t size = 0;
  std::string text;
  while (std::fread(&size, sizeof size, 1, stdin) == 1) {
    text.resize(size);
    if (std::fread(text.data(), 1, size, stdin) != size) return 1;
    WordCutter words(pre_tokenizer->cuts, text);
    for (std::string_view word; !(word = words.next()).empty();) std::printf("%zu ", word.size());
    std::puts("");
  }
}
