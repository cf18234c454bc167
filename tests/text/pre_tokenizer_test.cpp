// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/pre_tokenizer.hpp"

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "golden_texts.hpp"

namespace pre_tokenizer_test {

using namespace nibble::text;

namespace {

std::vector<std::string> words_of(std::string_view name, std::string_view text) {
  const PreTokenizer* const pre_tokenizer = find_pre_tokenizer(name);
  REQUIRE(pre_tokenizer != nullptr);
  std::vector<std::string> words;
  WordCutter cutter(pre_tokenizer->cuts, text);
  for (std::string_view word; !(word = cutter.next()).empty();) words.emplace_back(word);
  return words;
}

using Words = std::vector<std::string>;

std::uint64_t digest_of(const PreTokenizer& pre_tokenizer) {
  return golden::digest_of_texts([&](const std::string& text, auto add) {
    WordCutter cutter(pre_tokenizer.cuts, text);
    for (std::string_view word; !(word = cutter.next()).empty();) add(word.size());
  });
}

std::size_t count_words(const PreTokenizer& pre_tokenizer, std::string_view text) {
  std::size_t n_words = 0, n_bytes = 0;
  WordCutter cutter(pre_tokenizer.cuts, text);
  for (std::string_view word; !(word = cutter.next()).empty(); ++n_words) n_bytes += word.size();
  CHECK(n_bytes == text.size());
  return n_words;
}

}  // namespace

TEST_CASE("the words of every pre-tokenizer are those of its regular expressions") {
  for (const golden::Digest& digest : golden::kDigests) {
    CAPTURE(std::string(digest.name));
    const PreTokenizer* const pre_tokenizer = find_pre_tokenizer(digest.name);
    REQUIRE(pre_tokenizer != nullptr);
    CHECK(digest_of(*pre_tokenizer) == digest.value);
  }
  // Every name has cuts that one of these has.
  for (const PreTokenizer& pre_tokenizer : detail::kPreTokenizers) {
    CAPTURE(std::string(pre_tokenizer.name));
    if (pre_tokenizer.cuts.empty()) continue;
    const bool known = std::any_of(
        std::begin(golden::kDigests), std::end(golden::kDigests), [&](const golden::Digest& d) {
          return find_pre_tokenizer(d.name)->cuts.data() == pre_tokenizer.cuts.data();
        });
    CHECK(known);
  }
}

TEST_CASE("words that show the families") {
  CHECK(words_of("gpt-2", "We'll  see 1234!!\n x") ==
        Words{"We", "'ll", " ", " see", " 1234", "!!", "\n", " x"});
  CHECK(words_of("llama-bpe", "WE'LL see 1234!!\n\n x") ==
        Words{"WE", "'LL", " see", " ", "123", "4", "!!\n\n", " x"});
  CHECK(words_of("qwen2", "\tx 12") == Words{"\tx", " ", "1", "2"});
  CHECK(words_of("gpt-4o", "HTTPServer's/\n/") == Words{"HTTPServer's", "/\n/"});
  CHECK(words_of("tekken", "HTTPServerX's") == Words{"HTTPServer", "X", "'s"});
  CHECK(words_of("superbpe", "to be 1234567") == Words{"to be ", "1", "234", "567"});
  // \d is a decimal digit; other numbers, which \p{N}+ also has, are not counted.
  CHECK(words_of("superbpe", "①②③④") == Words{"①②③④"});
  CHECK(words_of("superbpe", "12345①123456") == Words{"12", "345①", "123", "456"});
  CHECK(words_of("superbpe", "①12②123½") == Words{"①12②", "123½"});
  CHECK(words_of("superbpe", "x٣٤٣٤") == Words{"x", "٣", "٤٣٤"});
  CHECK(words_of("afmoe", "a①②③④1234") == Words{"a", "①②③④1", "234"});
  CHECK(words_of("exaone-moe", "to be, or") == Words{"to be", ",", " or"});
  // Bytes that are no UTF-8 are signs.
  CHECK(words_of("llama-bpe", "a\xFF\xE4\xBD z") == Words{"a", "\xFF\xE4\xBD", " z"});
  CHECK(find_pre_tokenizer("no such") == nullptr);
  CHECK(find_pre_tokenizer("") == nullptr);
}

TEST_CASE("time is linear in the text, whatever it is") {
  const auto cpu_time = [](std::size_t size) {
    const std::clock_t begin = std::clock();
    for (const golden::Digest& digest : golden::kDigests) {
      for (const std::string_view part :
           {"a", "A", " ", "1", "\xD9\xA3", "'", "!", "\n", " \n", "1a", "a ", "\xCC\x81", "\x01",
            "\xFF", " 1", "\xE2\x85\xA7"}) {
        std::string text;
        while (text.size() < size) text += part;
        CHECK(count_words(*find_pre_tokenizer(digest.name), text) > 0);
      }
    }
    return static_cast<double>(std::clock() - begin);
  };
  // 16 times the text: quadratic time would be 256 times as long.
  cpu_time(1 << 11);
  CHECK(cpu_time(1 << 15) < 64 * cpu_time(1 << 11));
}

}  // namespace pre_tokenizer_test
