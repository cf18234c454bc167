// SPDX-License-Identifier: Apache-2.0
//
// What the parts of a tokenizer.json mean: the ids of Hugging Face's tokenizers.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "golden_texts.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/tokenizer_json.hpp"
#include "nibble/text/write_vocabulary.hpp"
#include "tokenizer_parts_golden.hpp"
#include "why.hpp"

namespace tokenizer_parts_test {

using namespace nibble::text;

namespace {

std::string json_of(const golden::Parts& parts) {
  std::string normalizer = parts.normalizer, model;
  for (const golden::NamedModel& known : golden::kModels)
    if (known.name == std::string_view(parts.model)) model = known.json;
  if (const std::size_t at = normalizer.find("\"@\""); at != normalizer.npos)
    normalizer.replace(at, 3, golden::kTable);
  return std::string("{\"added_tokens\":") + golden::kAddedTokens +
         ",\"normalizer\":" + normalizer + ",\"pre_tokenizer\":" + parts.pre_tokenizer +
         ",\"model\":" + model + "}";
}

// As in tests/text/oracle/parts.py.
std::uint64_t digest_of(const Tokenizer& t) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  const auto add = [&](std::uint64_t n) { hash = (hash ^ n) * 0x100000001B3u; };
  golden::Random random{1};
  for (int i = 0; i < golden::kPartsTexts; ++i) {
    std::string text;
    for (std::size_t n = random.below(9); n > 0; --n)
      text += golden::kPartsFragments[random.below(std::size(golden::kPartsFragments))];
    const auto ids = t.encode(text, {.add_bos = false, .add_eos = false, .parse_special = true});
    REQUIRE_MESSAGE(ids, test::why(ids));
    for (const std::int32_t id : *ids) add(static_cast<std::uint64_t>(id));
    add(0);
  }
  return hash;
}

}  // namespace

TEST_CASE("parts of tokenizer.json: the ids of Hugging Face's tokenizers, also through GGUF") {
  for (const golden::Parts& parts : golden::kParts) {
    CAPTURE(std::string(parts.model));
    CAPTURE(std::string(parts.normalizer));
    CAPTURE(std::string(parts.pre_tokenizer));
    auto vocabulary = read_tokenizer_json(json_of(parts));
    REQUIRE_MESSAGE(vocabulary, test::why(vocabulary));
    nibble::io::GgufWriter writer;
    write_vocabulary(*vocabulary, writer);
    const auto bytes = writer.to_bytes();
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    const auto file = nibble::io::Gguf::parse(*bytes, "made.gguf");
    REQUIRE_MESSAGE(file, test::why(file));
    auto read = Vocabulary::from_gguf(*file);
    REQUIRE_MESSAGE(read, test::why(read));
    CHECK(digest_of(Tokenizer(*std::move(vocabulary))) == parts.ids);
    CHECK(digest_of(Tokenizer(*std::move(read))) == parts.ids);
  }
}

}  // namespace tokenizer_parts_test
