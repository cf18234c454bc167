// SPDX-License-Identifier: Apache-2.0
//
// encode_texts FILE: FILE is a tokenizer.json, a SentencePiece model or a GGUF file. Reads texts
// (length in 32 bits, bytes) from the standard input. For each it writes a line: whether decoding
// gives the text back, then its ids, without those that are added at the ends.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "nibble/text/sentencepiece_model.hpp"
#include "nibble/text/stream_decoder.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/tokenizer_json.hpp"

namespace text = nibble::text;

static nibble::Result<text::Tokenizer> open(const std::string& path) {
  const bool is_json = path.ends_with(".json");
  if (!is_json && !path.ends_with(".model")) {
    NIBBLE_TRY(file, nibble::io::Gguf::open(path));
    return text::Tokenizer::from_gguf(file);
  }
  std::ifstream file(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  NIBBLE_TRY(vocabulary,
             is_json ? text::read_tokenizer_json(bytes) : text::read_sentencepiece_model(bytes));
  return text::Tokenizer(std::move(vocabulary));
}

int main(int n_args, char** args) {
  if (n_args != 2) return 1;
  const auto tokenizer = open(args[1]);
  if (!tokenizer) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
    return 1;
  }
  std::uint32_t size = 0;
  std::string input;
  while (std::fread(&size, sizeof size, 1, stdin) == 1) {
    input.resize(size);
    if (std::fread(input.data(), 1, size, stdin) != size) return 1;
    const auto ids =
        tokenizer->encode(input, {.add_bos = false, .add_eos = false, .parse_special = true});
    if (!ids) return 1;
    const text::DecodeOptions show = {.show_special = true};
    text::StreamDecoder stream(*tokenizer, show);
    std::string streamed;
    for (const std::int32_t id : *ids) streamed += stream.push(id);
    streamed += stream.flush();
    std::printf("%d", tokenizer->decode(*ids, show) == input && streamed == input);
    for (const std::int32_t id : *ids) std::printf(" %d", static_cast<int>(id));
    std::puts("");
  }
}
