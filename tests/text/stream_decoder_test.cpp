// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/stream_decoder.hpp"

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "text_fixtures.hpp"

namespace stream_decoder_test {

using namespace nibble::text;
using nibble::utf8_length;
using Ids = std::vector<std::int32_t>;

namespace {

std::string streamed(const Tokenizer& t, const Ids& ids, const DecodeOptions& options = {}) {
  StreamDecoder decoder(t, options);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  text += decoder.flush();
  return text;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t n = utf8_length(text);
    if (n == 0) return false;
    text.remove_prefix(n);
  }
  return true;
}

Ids bytes_of(std::string_view text) {
  Ids ids;
  for (const char c : text) ids.push_back(3 + static_cast<unsigned char>(c));
  return ids;
}

}  // namespace

TEST_CASE("parts come as soon as they are whole") {
  const Tokenizer t = text_fixtures::small_tokenizer();
  StreamDecoder decoder(t);
  CHECK(decoder.push(1) == "");
  CHECK(decoder.push(t.vocabulary().find("▁the")) == "the");
  CHECK(decoder.push(t.vocabulary().find("▁the")) == " the");
  for (const std::int32_t byte : {0xF0, 0x9F, 0x9A}) CHECK(decoder.push(3 + byte) == "");
  CHECK(decoder.push(3 + 0x80) == "🚀");
  CHECK(decoder.push(3 + 0xC3) == "");
  CHECK(decoder.push(2) == "");   // no text: the decoder still waits
  CHECK(decoder.push(-7) == "");  // no such token
  const std::string never_whole = "\xC3";
  CHECK(decoder.push(t.vocabulary().find("a")) == never_whole + "a");
  CHECK(decoder.push(3 + 0xE2) == "");
  CHECK(decoder.flush() == "\xE2");
  CHECK(decoder.flush() == "");
  CHECK(decoder.push(t.vocabulary().find("▁the")) == "the");  // back in the initial state
}

TEST_CASE("a stream that continues a text keeps its first space") {
  const Tokenizer t = text_fixtures::small_tokenizer();
  StreamDecoder decoder(t, {.at_start = false});
  CHECK(decoder.push(t.vocabulary().find("▁the")) == " the");
  decoder.flush();
  CHECK(decoder.push(t.vocabulary().find("▁the")) == " the");
  CHECK(streamed(t, {1, 2}, {.show_special = true}) == "<s></s>");
}

TEST_CASE("characters cut anywhere are never shown in parts") {
  const Tokenizer t = text_fixtures::small_tokenizer();
  const std::string text = "aé你🚀ß\xCC\x81😶‍🌫️ z";
  REQUIRE(is_utf8(text));
  // Pieces up to a position, single bytes up to a second one, then pieces again: for every pair of
  // positions at which the pieces end between characters.
  for (std::size_t from = 0; from <= text.size(); ++from) {
    for (std::size_t to = from; to <= text.size(); ++to) {
      if (!is_utf8(text.substr(0, from)) || !is_utf8(text.substr(to))) continue;
      auto ids = t.encode(text.substr(0, from), {.add_bos = false});
      REQUIRE(ids);
      for (const std::int32_t id : bytes_of(text.substr(from, to - from))) ids->push_back(id);
      SpmEncoder(t.vocabulary(), text.size()).encode(text.substr(to), false, *ids);
      StreamDecoder decoder(t);
      std::string all;
      for (const std::int32_t id : *ids) {
        const std::string_view part = decoder.push(id);
        CHECK(is_utf8(part));
        all += part;
      }
      CHECK(decoder.flush() == "");
      CHECK(all == text);
      CHECK(t.decode(*ids) == text);
    }
  }
}

TEST_CASE("streamed is decoded, for any tokens at all") {
  const Tokenizer t = text_fixtures::small_tokenizer();
  std::mt19937 random(23);
  for (int i = 0; i < 2000; ++i) {
    Ids ids(random() % 40);
    for (std::int32_t& id : ids)
      id = random() % 3 ? 3 + static_cast<std::int32_t>(random() % 256)  // bytes: invalid UTF-8
                        : static_cast<std::int32_t>(random() % 520) - 4;
    const DecodeOptions options = {.show_special = random() % 2 != 0,
                                   .at_start = random() % 2 != 0};
    CHECK(streamed(t, ids, options) == t.decode(ids, options));
  }
}

TEST_CASE("no token costs an allocation") {
  auto pieces = text_fixtures::small_pieces();
  pieces.push_back({std::string(500, '='), 0, PieceType::normal});  // 512: no small string
  auto vocabulary = Vocabulary::make(text_fixtures::views(pieces), {});
  REQUIRE(vocabulary);
  const Tokenizer t(*std::move(vocabulary));
  StreamDecoder decoder(t, {.show_special = true});
  std::mt19937 random(29);
#if NIBBLE_TEST_COUNTS_ALLOCATIONS
  const long long before_string = allocation_count();
  const std::string long_text(1000, 'x');
  REQUIRE(allocation_count() > before_string);  // the counter works
#endif

  std::size_t bytes = 0;
  const long long before = allocation_count();
  for (const std::int32_t id : {3 + 0xF0, 3 + 0x9F, 3 + 0x9A, 512})
    bytes += decoder.push(id).size();
  for (int i = 0; i < 100000; ++i) {
    bytes += decoder.push(static_cast<std::int32_t>(random() % 513)).size();
    if (i % 1000 == 999) bytes += decoder.flush().size();
  }
  const long long spent = allocation_count() - before;
  CHECK(spent == 0);
  CHECK(bytes > 100000);
}

}  // namespace stream_decoder_test
