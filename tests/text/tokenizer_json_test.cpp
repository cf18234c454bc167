// SPDX-License-Identifier: Apache-2.0
#include "nibble/text/tokenizer_json.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "golden_texts.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/write_vocabulary.hpp"
#include "test_data.hpp"
#include "text_fixtures.hpp"
#include "tokenizer_json_golden.hpp"

namespace tokenizer_json_test {

using namespace nibble::text;
using nibble::Errc;
using Ids = std::vector<std::int32_t>;

namespace {

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

constexpr std::string_view kByteLevel = R"({"type":"ByteLevel","add_prefix_space":false})";

// A tokenizer.json; a test changes its parts.
struct File {
  std::string model_members = R"("type":"BPE","unk_token":null)";
  std::vector<std::pair<std::string, std::int64_t>> vocab;
  std::string merges;
  std::string added = R"({"id":260,"content":"<s>","special":true,"normalized":false},
                         {"id":261,"content":"</s>","special":true,"rstrip":true},
                         {"id":262,"content":"<think>","special":false})";
  std::string normalizer = "null", pre_tokenizer = std::string(kByteLevel), processor = "null";

  File() {
    text_fixtures::BpeParts parts;
    for (const auto& [a, b] : {std::pair("t", "h"), {"th", "e"}, {"Ġ", "the"}}) {
      parts.add(a, b);
      if (!merges.empty()) merges += ',';
      merges += parts.merges.size() == 2 ? "[\"th\",\"e\"]"
                                         : in_quotes(std::string(a).append(" ").append(b));
    }
    for (std::size_t i = 0; i < parts.pieces.size(); ++i)
      vocab.emplace_back(parts.pieces[i].text, static_cast<std::int64_t>(i));
  }

  std::string text() const {
    std::string pieces;
    for (const auto& [piece, id] : vocab)
      pieces.append(pieces.empty() ? "" : ",")
          .append(in_quotes(piece))
          .append(":")
          .append(std::to_string(id));
    std::string out = R"({"version":"1.0","truncation":null,"added_tokens":[)";
    out += added;
    out += "],\"normalizer\":" + normalizer + ",\"pre_tokenizer\":" + pre_tokenizer;
    out += ",\"post_processor\":" + processor + ",\"decoder\":{\"type\":\"ByteLevel\"}";
    out += ",\"model\":{" + model_members + ",\"vocab\":{" + pieces + "},\"merges\":[" + merges;
    return out + "]}}";
  }
  nibble::Result<Vocabulary> read(std::string_view config = {}) const {
    return read_tokenizer_json(text(), config);
  }
};

Tokenizer tokenizer_of(const File& file, std::string_view config = {}) {
  auto vocabulary = file.read(config);
  REQUIRE(vocabulary);
  return Tokenizer(*std::move(vocabulary));
}

Ids encode(const Tokenizer& t, std::string_view text, const EncodeOptions& options = {}) {
  const auto ids = t.encode(text, options);
  REQUIRE(ids);
  return *ids;
}

void check_error(const nibble::Result<Vocabulary>& result, Errc code, const std::string& part) {
  CAPTURE(part);
  REQUIRE(!result);
  CAPTURE(result.error().message);
  CHECK(result.error().code == code);
  CHECK(result.error().message.find(part) != std::string::npos);
}

void check_equal(const Vocabulary& a, const Vocabulary& b) {
  REQUIRE(a.size() == b.size());
  for (std::int32_t id = 0; a.contains(id); ++id) {
    CHECK(a.text(id) == b.text(id));
    CHECK(a.type(id) == b.type(id));
    CHECK(a.ends_generation(id) == b.ends_generation(id));
    CHECK(a.strips_after(id) == b.strips_after(id));
    CHECK(a.strips_before(id) == b.strips_before(id));
  }
  CHECK(a.merges().size() == b.merges().size());
  const VocabularySettings &s = a.settings(), &t = b.settings();
  CHECK(s.kind == t.kind);
  CHECK(s.pre == t.pre);
  CHECK(Ids{s.bos, s.eos, s.unk, s.pad, s.eot, s.eom, s.mask} ==
        Ids{t.bos, t.eos, t.unk, t.pad, t.eot, t.eom, t.mask});
  CHECK(s.add_bos == t.add_bos);
  CHECK(s.add_eos == t.add_eos);
  CHECK(s.add_space_prefix == t.add_space_prefix);
  for (const detail::OwnFlag& own : detail::kOwnFlags) {
    CAPTURE(std::string(own.key));
    CHECK(s.*own.flag == t.*own.flag);
  }
  CHECK(s.white_space == t.white_space);
  CHECK(s.merges_spaces == t.merges_spaces);
  CHECK(s.characters_map == t.characters_map);
}

Vocabulary through_gguf(const Vocabulary& vocabulary, std::size_t n_rows = 0) {
  nibble::io::GgufWriter writer;
  write_vocabulary(vocabulary, writer, n_rows);
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = nibble::io::Gguf::parse(*bytes, "made.gguf");
  REQUIRE(file);
  auto read = Vocabulary::from_gguf(*file);
  REQUIRE(read);
  return *std::move(read);
}

}  // namespace

TEST_CASE("byte-level BPE: pieces, merges in both spellings, added tokens, roles") {
  File file;
  file.processor = R"({"type":"Sequence","processors":[{"type":"ByteLevel"},
      {"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
       {"Sequence":{"id":"A","type_id":0}}],"special_tokens":{}}]})";
  const std::string config =
      R"({"eos_token":{"content":"</s>","lstrip":false},"pad_token":"<think>",
      "add_eos_token":null,"extra":{"a":[1,-2.5e3,true]}})";
  const Tokenizer t = tokenizer_of(file, config);
  const Vocabulary& v = t.vocabulary();
  CHECK(v.size() == 263);
  CHECK(v.text(258) == "Ġthe");
  CHECK(v.type(258) == PieceType::normal);
  CHECK(v.type(259) == PieceType::unused);  // no piece has this id
  CHECK(v.type(260) == PieceType::control);
  CHECK(v.type(262) == PieceType::user_defined);
  CHECK(v.strips_after(261));
  CHECK(!v.strips_after(260));
  CHECK(v.settings().pre == "gpt-2");
  CHECK(v.settings().bos == 260);
  CHECK(v.settings().eos == 261);
  CHECK(v.settings().pad == 262);
  CHECK(v.settings().unk == kNoToken);
  CHECK(v.settings().add_bos);
  CHECK(!v.settings().add_eos);
  CHECK(v.ends_generation(261));
  CHECK(encode(t, "the the<think>", {}) == Ids{260, 257, 258, 262});
  CHECK(encode(t, "<s>", {.add_bos = false}).size() == 3);
  CHECK(t.decode(encode(t, "the the\xFF")) == "the the\xFF");
  // Told otherwise.
  CHECK(!tokenizer_of(file, R"({"add_bos_token":false})").vocabulary().settings().add_bos);
  check_equal(v, through_gguf(v));
  const Vocabulary padded = through_gguf(v, 300);
  CHECK(padded.size() == 300);
  CHECK(padded.text(299) == "[PAD299]");
  CHECK(padded.type(299) == PieceType::unused);
}

TEST_CASE("a template or a processor may add tokens at both ends") {
  File file;
  for (const char* processor :
       {R"({"type":"RobertaProcessing","sep":["</s>",261],"cls":["<s>",260],"trim_offsets":true})",
        R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},
            {"Sequence":{"id":"A"}},{"SpecialToken":{"id":"</s>"}}]})"}) {
    file.processor = processor;
    CHECK(encode(tokenizer_of(file), "the") == Ids{260, 257, 261});
  }
}

TEST_CASE("SentencePiece as BPE: spaces, byte pieces, an unknown token") {
  File file;
  file.model_members = R"("type":"BPE","unk_token":"<unk>","byte_fallback":true)";
  file.vocab = {{"<unk>", 0}, {"▁", 1}, {"a", 2}, {"b", 3}, {"ab", 4}, {"▁ab", 5}, {"▁▁", 6}};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
    file.vocab.emplace_back(name, 7 + byte);
  }
  file.merges = R"("a b",["▁","ab"],"▁ ▁")";
  file.added = R"({"id":0,"content":"<unk>","special":true},
                  {"id":263,"content":"<s>","special":true})";
  file.normalizer = R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
      {"type":"Replace","pattern":{"String":" "},"content":"▁"}]})";
  file.pre_tokenizer = "null";
  const EncodeOptions parse = {.parse_special = true};
  const Tokenizer t = tokenizer_of(file);
  CHECK(encode(t, "ab ab") == Ids{5, 5});
  CHECK(encode(t, "  ab") == Ids{6, 5});
  CHECK(encode(t, "aé") == Ids{1, 2, 7 + 0xC3, 7 + 0xA9});
  CHECK(encode(t, "<s>ab<s>ab", parse) == Ids{263, 5, 263, 5});
  CHECK(t.vocabulary().type(0) == PieceType::unknown);
  CHECK(t.vocabulary().type(8) == PieceType::byte);
  CHECK(t.decode(encode(t, "ab  é")) == "ab  é");
  // Metaspace says the same, and may say that only the beginning gets a space.
  file.normalizer = "null";
  file.pre_tokenizer = R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"first"})";
  CHECK(encode(tokenizer_of(file), "ab<s>ab", parse) == Ids{5, 263, 4});
  file.pre_tokenizer = R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"never"})";
  CHECK(encode(tokenizer_of(file), "ab ab", parse) == Ids{4, 5});
  // As GGUF: scores instead of merges.
  const Tokenizer read(through_gguf(t.vocabulary()));
  CHECK(read.vocabulary().settings().kind == VocabularyKind::spm);
  CHECK(encode(read, "ab  ab é") == encode(t, "ab  ab é"));
}

TEST_CASE("expressions are known in their different spellings") {
  const auto pre_of = [](const std::vector<std::string>& expressions) {
    File file;
    std::string steps;
    for (const std::string& e : expressions)
      steps += "{\"type\":\"Split\",\"pattern\":{\"Regex\":" + in_quotes(e) +
               "},\"behavior\":\"Isolated\",\"invert\":false},";
    file.pre_tokenizer = R"({"type":"Sequence","pretokenizers":[)" + steps +
                         R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
    const auto v = file.read();
    if (!v) CHECK(v.error().code == Errc::unsupported);
    return v ? v->settings().pre : "";
  };
  const std::string qwen2 = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                            R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  CHECK(pre_of({qwen2}) == "qwen2");
  CHECK(pre_of({R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|)"
                R"( ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"}) == "qwen2");
  CHECK(pre_of({"\\p{N}",
                "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                "|\\s+(?!\\S)|\\s+"}) == "smollm");
  CHECK(pre_of({qwen2 + "x"}) == "");
  CHECK(pre_of({"a", qwen2}) == "");
  CHECK(pre_of({}) == "");
  // Every expression that is known names a pre-tokenizer.
  for (const detail::Expression& e : detail::kExpressions)
    CHECK(find_pre_tokenizer(e.pre) != nullptr);
  File file;
  file.pre_tokenizer = R"({"type":"Sequence","pretokenizers":[{"type":"Digits",
      "individual_digits":true},{"type":"ByteLevel","add_prefix_space":false}]})";
  CHECK(tokenizer_of(file).vocabulary().settings().pre == "smollm");
}

TEST_CASE("text is composed where the file says so") {
  File file;
  file.normalizer = R"({"type":"NFC"})";
  const Tokenizer t = tokenizer_of(file);
  CHECK(encode(t, "e\u0301") == Ids{0xC3, 0xA9});
  CHECK(t.vocabulary().settings().compose);
  check_equal(t.vocabulary(), through_gguf(t.vocabulary()));
}

TEST_CASE("what GGUF has no key for is kept in keys of our own") {
  File file;
  file.added = R"({"id":260,"content":"<s>","special":true,"lstrip":true},
                  {"id":261,"content":"</s>","special":true,"lstrip":true,"rstrip":true})";
  const EncodeOptions parse = {.parse_special = true};
  for (const bool ignore : {false, true}) {
    file.model_members =
        std::string(R"("type":"BPE","ignore_merges":)") + (ignore ? "true" : "false");
    for (const char* pre : {"gpt-2", "llama-bpe"}) {  // of the second it is the default
      auto vocabulary = file.read();
      REQUIRE(vocabulary);
      VocabularySettings settings = vocabulary->settings();
      settings.pre = pre;
      settings.add_space_prefix = false;
      std::vector<Piece> pieces;
      for (std::int32_t id = 0; vocabulary->contains(id); ++id)
        pieces.push_back({vocabulary->text(id), 0, vocabulary->type(id),
                          vocabulary->strips_after(id), vocabulary->strips_before(id)});
      const auto made = Vocabulary::make(pieces, settings);
      REQUIRE(made);
      CHECK(made->settings().ignore_merges == ignore);
      check_equal(*made, through_gguf(*made));
    }
  }
  const Tokenizer t = tokenizer_of(file);
  CHECK(encode(t, "the \u3000\t<s> </s>\n the", parse) == Ids{257, 260, 261, 257});
  CHECK(encode(t, "<s> ", parse) == Ids{260, ' '});
  CHECK(encode(Tokenizer(through_gguf(t.vocabulary())), "the \u3000\t<s> </s>\n the", parse) ==
        Ids{257, 260, 261, 257});
  // Each flag alone, with each kind.
  for (const VocabularyKind kind :
       {VocabularyKind::spm, VocabularyKind::wordpiece, VocabularyKind::unigram}) {
    for (const detail::OwnFlag& own : detail::kOwnFlags) {
      VocabularySettings settings;
      settings.kind = kind;
      settings.*own.flag = !(settings.*own.flag);
      settings.white_space = WhiteSpace::ends;
      settings.merges_spaces = kind != VocabularyKind::wordpiece;
      const std::vector<Piece> pieces = {{"<unk>", 0, PieceType::unknown},
                                         {"<s>", 0, PieceType::control},
                                         {"</s>", 0, PieceType::control}};
      const auto made = Vocabulary::make(pieces, settings);
      REQUIRE(made);
      check_equal(*made, through_gguf(*made));
    }
  }
  for (const auto& [key, value] : {std::pair{detail::kStripAfterKey, 263},
                                   {detail::kStripBeforeKey, -1},
                                   {detail::kWhiteSpaceKey, 3}}) {
    nibble::io::GgufWriter writer;
    write_vocabulary(t.vocabulary(), writer);
    if (key == detail::kWhiteSpaceKey) {
      writer.set(key, static_cast<std::uint32_t>(value));
    } else {
      writer.set_array(key, std::vector<std::int32_t>{value});
    }
    const auto bytes = writer.to_bytes();
    REQUIRE(bytes);
    const auto gguf = nibble::io::Gguf::parse(*bytes, "made.gguf");
    REQUIRE(gguf);
    check_error(Vocabulary::from_gguf(*gguf), Errc::malformed, std::string(key));
  }
}

TEST_CASE("parts that cannot be followed are refused") {
  constexpr std::string_view kReplace =
      R"({"type":"Replace","pattern":{"String":" "},"content":"\u2581"})";
  constexpr std::string_view kMetaspace = R"({"type":"Metaspace","replacement":"\u2581"})";
  const auto bpe = [](std::string_view normalizer, std::string_view pre_tokenizer) {
    File file;
    file.normalizer = normalizer;
    file.pre_tokenizer = pre_tokenizer;
    return file.read();
  };
  const auto refused = [](const nibble::Result<Vocabulary>& result, const std::string& part) {
    check_error(result, Errc::unsupported, part);
  };
  CHECK(bpe(kReplace, "null"));
  CHECK(bpe("null", kMetaspace));
  refused(bpe("null", "null"), "U+2581");
  refused(bpe(R"({"type":"NFC"})", "null"), "U+2581");
  refused(bpe("null", R"({"type":"Split","pattern":{"String":" "}})"), "Split");
  refused(bpe(R"({"type":"Prepend","prepend":"\u2581"})", "null"), "Prepend");
  refused(bpe(kReplace, kByteLevel), "ByteLevel");
  refused(bpe("null", R"({"type":"Metaspace"})"), "replacement");
  refused(bpe("null", R"({"type":"Metaspace","replacement":"_"})"), "replacement");
  refused(bpe("null", R"({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"x"})"),
          "prepend_scheme");
  File file;
  file.added = R"({"id":260,"content":"<s>","special":true,"single_word":true})";
  refused(file.read(), "single_word");

  const auto unigram = [](const std::string& steps, const std::string& pre_tokenizer) {
    return read_tokenizer_json(
        R"({"normalizer":{"type":"Sequence","normalizers":[)" + steps + R"(]},"pre_tokenizer":)" +
        pre_tokenizer +
        R"(,"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],["a",-1]]}})");
  };
  const std::string metaspace(kMetaspace), map = R"({"type":"Precompiled","precompiled_charsmap":)";
  const std::string whole = map + R"("BAAAAAAAAAAAYQA="})", strip = R"({"type":"Strip"})";
  const auto replace = [](const std::string& content) {
    return R"({"type":"Replace","pattern":{"Regex":" {2,}"},"content":")" + content + "\"}";
  };
  CHECK(unigram(whole + "," + strip + "," + replace(" "), metaspace));
  CHECK(unigram("", metaspace));
  refused(unigram("", "null"), "Metaspace");
  refused(unigram(R"({"type":"Precompiled"})", metaspace), "without a table");
  refused(unigram(map + "\"\"}", metaspace), "without a table");
  for (const char* broken :
       {"BAAAAAAAAAAAYQA", "BAAA!AAAAAAAYQA=", "BA=A", "BAAAAAAAAAAAYQB=", "B==="})
    check_error(unigram(map + '"' + broken + "\"}", metaspace), Errc::malformed, "base 64");
  refused(unigram(replace("x"), metaspace), "Replace");
  refused(unigram(replace(""), metaspace), "Replace");
  refused(unigram(strip, metaspace), "Strip");
  refused(unigram(replace(" ") + "," + strip, metaspace), "Strip");
  refused(unigram(strip + "," + whole, metaspace), "Precompiled");
  refused(unigram(strip + "," + replace(" "),
                  R"({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first"})"),
          "first");
  const auto split = [](const std::string& scheme) {
    return R"({"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},{"type":"Metaspace",)"
           R"("replacement":"\u2581","prepend_scheme":")" +
           scheme + "\"}]}";
  };
  CHECK(unigram(whole, split("always")));
  refused(unigram(whole, split("first")), "WhitespaceSplit");
  refused(unigram(whole, split("never")), "WhitespaceSplit");
  refused(unigram(replace("\u2581"), split("always")), "WhitespaceSplit");

  const auto wordpiece = [](const std::string& pre_tokenizer, const std::string& member) {
    return read_tokenizer_json(R"({"normalizer":null,"pre_tokenizer":)" + pre_tokenizer +
                               R"(,"model":{"type":"WordPiece","unk_token":"[UNK]",)" + member +
                               R"("vocab":{"[UNK]":0,"a":1}}})");
  };
  const std::string bert = R"({"type":"BertPreTokenizer"})";
  CHECK(wordpiece(bert, ""));
  CHECK(wordpiece(bert, R"("max_input_chars_per_word":100,)"));
  refused(wordpiece(bert, R"("max_input_chars_per_word":200,)"), "200");
  refused(wordpiece("null", ""), "WordPiece");
  refused(wordpiece(R"({"type":"Whitespace"})", ""), "Whitespace");
}

TEST_CASE("what is wrong or not supported is an error that names it") {
  const auto with = [](auto change) {
    File file;
    change(file);
    return file.read();
  };
  using F = File&;
  check_error(with([](F f) { f.model_members = R"("type":"Other")"; }), Errc::unsupported, "Other");
  check_error(with([](F f) { f.normalizer = R"({"type":"NFKC"})"; }), Errc::unsupported, "NFKC");
  check_error(with([](F f) { f.pre_tokenizer = R"({"type":"Odd"})"; }), Errc::unsupported, "Odd");
  check_error(with([](F f) { f.pre_tokenizer = R"({"type":"ByteLevel"})"; }), Errc::unsupported,
              "add_prefix_space");
  check_error(with([](F f) { f.processor = R"({"type":"Odd"})"; }), Errc::unsupported, "Odd");
  check_error(with([](F f) {
                f.processor = R"({"type":"TemplateProcessing","single":[
                    {"SpecialToken":{"id":"<s>"}},{"SpecialToken":{"id":"</s>"}}]})";
              }),
              Errc::unsupported, "more than one token");
  check_error(with([](F f) { f.model_members += R"(,"end_of_word_suffix":"</w>")"; }),
              Errc::unsupported, "end_of_word_suffix");
  check_error(with([](F f) { f.merges += R"(,"t xx")"; }), Errc::malformed, "merge 3");
  check_error(with([](F f) { f.merges += R"(,"nospace")"; }), Errc::malformed, "merge 3");
  check_error(with([](F f) { f.merges += R"(,["t"])"; }), Errc::malformed, "fewer than two");
  check_error(with([](F f) { f.merges += R"(,["t","h","e"])"; }), Errc::malformed, "more than two");
  check_error(with([](F f) { f.merges += ",1"; }), Errc::malformed, "JSON");
  check_error(with([](F f) { f.vocab.emplace_back("big", 3'000'000'000); }), Errc::limit,
              "3000000000");
  check_error(with([](F f) { f.vocab.emplace_back("negative", -1); }), Errc::malformed, "JSON");
  check_error(with([](F f) { f.added = R"({"content":"x"})"; }), Errc::malformed, "without an id");
  check_error(with([](F f) { f.added = "7"; }), Errc::malformed, "JSON");
  check_error(with([](F f) {
                f.vocab.clear();
                f.added.clear();
              }),
              Errc::malformed, "no pieces");
  check_error(with([](F f) { f.normalizer = std::string(100, '[') + std::string(100, ']'); }),
              Errc::malformed, "nested too deeply");
  check_error(with([](F f) { f.normalizer = "[" + std::string(3 << 20, ' ') + "]"; }), Errc::limit,
              "bytes");
  check_error(read_tokenizer_json(""), Errc::malformed, "tokenizer.json");
  check_error(read_tokenizer_json("{} x"), Errc::malformed, "behind");
  check_error(read_tokenizer_json("{}"), Errc::malformed, "no pieces");
  check_error(File().read("{"), Errc::malformed, "tokenizer_config.json");
  check_error(File().read("{} {}"), Errc::malformed, "tokenizer_config.json");
  check_error(File().read(R"({"bos_token":1})"), Errc::malformed, "tokenizer_config.json");
  check_error(File().read(R"({"add_bos_token":"yes"})"), Errc::malformed, "true or false");
}

TEST_CASE("a file that is cut short is an error") {
  const std::string text = File().text();
  for (std::size_t n = 0; n < text.size(); n += n < 400 || n + 400 > text.size() ? 1u : 37u)
    CHECK(!read_tokenizer_json(std::string_view(text).substr(0, n)));
}

TEST_CASE("tokenizers of models: the ids of Hugging Face's tokenizers, also through GGUF") {
  for (const golden::IdsDigest& digest : golden::kIdsDigests) {
    const std::string folder = std::string("tokenizers/hf/") + digest.folder;
    const auto path = test::data_path(folder + "/tokenizer.json");
    if (!path) return;
    CAPTURE(folder);
    const std::string config =
        test::read_text(path->substr(0, path->rfind('/')) + "/tokenizer_config.json");
    auto vocabulary = read_tokenizer_json(test::read_text(*path), config);
    REQUIRE(vocabulary);
    const auto digest_of = [](const Tokenizer& t) {
      return golden::digest_of_texts([&](const std::string& text, auto add) {
        for (const std::int32_t id : encode(t, text, {.add_bos = false, .parse_special = true}))
          add(static_cast<std::size_t>(id));
      });
    };
    const Vocabulary read = through_gguf(*vocabulary);
    CHECK(read.settings().bos == vocabulary->settings().bos);
    CHECK(read.settings().eos == vocabulary->settings().eos);
    CHECK(vocabulary->ends_generation(vocabulary->settings().eos));
    CHECK(digest_of(Tokenizer(*std::move(vocabulary))) == digest.value);
    CHECK(digest_of(Tokenizer(through_gguf(read))) == digest.value);
  }
}

}  // namespace tokenizer_json_test
