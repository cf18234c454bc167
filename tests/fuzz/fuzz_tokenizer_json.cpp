// SPDX-License-Identifier: Apache-2.0
//
// Any tokenizer.json: an error, or a vocabulary that encodes and decodes, and that a GGUF file
// keeps. With a NUL in the input, what follows the first one is tokenizer_config.json.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/text/stream_decoder.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/tokenizer_json.hpp"
#include "nibble/text/write_vocabulary.hpp"

using namespace nibble::text;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void use(Vocabulary vocabulary) {
  const Tokenizer t(std::move(vocabulary));
  const auto ids = t.encode("The the\n 12ab\u00E9\u2581<s>\xFF \u4F60", {.parse_special = true});
  if (!ids) return;
  StreamDecoder stream(t);
  std::string streamed;
  for (const std::int32_t id : *ids) {
    require(t.vocabulary().contains(id));
    streamed += stream.push(id);
  }
  streamed += stream.flush();
  require(streamed == t.decode(*ids));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t nul = input.find('\0');
  auto vocabulary = read_tokenizer_json(
      input.substr(0, nul), nul == input.npos ? std::string_view() : input.substr(nul + 1));
  if (!vocabulary) return 0;
  nibble::io::GgufWriter writer;
  write_vocabulary(*vocabulary, writer);
  if (const auto bytes = writer.to_bytes()) {
    const auto file = nibble::io::Gguf::parse(*bytes, "written");
    require(file.has_value());
    if (auto read = Vocabulary::from_gguf(*file)) {
      require(read->size() == vocabulary->size());
      use(*std::move(read));
    }
  }
  use(*std::move(vocabulary));
  return 0;
}
