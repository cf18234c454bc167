// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/gguf.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace gguf_test {

using nibble::Errc;
using namespace nibble::io;
using test::contains;
using test::FileBuilder;

namespace {

// A file with one entry of every value type, an array of each, and two tensors.
FileBuilder every_type(std::uint32_t version) {
  FileBuilder b = test::gguf_header(2, 17, version);
  b.string("u8").u32(0).u8(200);
  b.string("i8").u32(1).number(std::int8_t{-100});
  b.string("u16").u32(2).number(std::uint16_t{60000});
  b.string("i16").u32(3).number(std::int16_t{-30000});
  b.string("u32").u32(4).u32(4000000000u);
  b.string("i32").u32(5).number(std::int32_t{-2000000000});
  b.string("f32").u32(6).number(1.5f);
  b.string("bool").u32(7).u8(1);
  b.string("string").u32(8).string("h\xc3\xa9llo");
  b.string("u64").u32(10).u64(UINT64_MAX);
  b.string("i64").u32(11).number(INT64_MIN);
  b.string("f64").u32(12).number(0.1);
  b.string("strings").u32(9).u32(8).u64(3).string("a").string("").string("bcd");
  b.string("floats").u32(9).u32(6).u64(2).number(0.25f).number(-3.0f);
  b.string("ints").u32(9).u32(5).u64(3).number(1).number(-2).number(3);
  b.string("bools").u32(9).u32(7).u64(2).u8(0).u8(1);
  b.string("none").u32(9).u32(4).u64(0);
  b.string("w").u32(2).u64(32).u64(2).u32(2).u64(0);  // Q4_0, 2 rows of 32: 36 bytes
  b.string("scalar").u32(0).u32(0).u64(64);           // F32 without dimensions
  b.pad(32);
  for (unsigned i = 0; i < 36; ++i) b.u8(i);
  b.pad(32);
  b.number(42.0f);
  return b;
}

template <class T>
Errc code_of(const nibble::Result<T>& result) {
  REQUIRE(!result);
  return result.error().code;
}

}  // namespace

TEST_CASE("every metadata type and the tensors of a hand-made file, versions 2 and 3") {
  for (const std::uint32_t version : {2u, 3u}) {
    const auto bytes = every_type(version).bytes();
    const auto gguf = Gguf::parse(bytes, "hand.gguf");
    REQUIRE_MESSAGE(gguf, test::why(gguf));
    CHECK(gguf->version() == version);
    CHECK(gguf->alignment() == 32);
    CHECK(gguf->metadata().size() == 17);
    CHECK(gguf->metadata()[3].key == "i16");

    CHECK(*gguf->get<std::uint8_t>("u8") == 200);
    CHECK(*gguf->get<std::int8_t>("i8") == -100);
    CHECK(*gguf->get<std::uint16_t>("u16") == 60000);
    CHECK(*gguf->get<std::int16_t>("i16") == -30000);
    CHECK(*gguf->get_u32("u32") == 4000000000u);
    CHECK(*gguf->get_i32("i32") == -2000000000);
    CHECK(*gguf->get_f32("f32") == 1.5f);
    CHECK(*gguf->get_bool("bool"));
    CHECK(*gguf->get_string("string") == "h\xc3\xa9llo");
    CHECK(*gguf->get_u64("u64") == UINT64_MAX);
    CHECK(*gguf->get<std::int64_t>("i64") == INT64_MIN);
    CHECK(*gguf->get<double>("f64") == 0.1);
    CHECK(*gguf->get_f32("f64") == 0.1f);

    CHECK(*gguf->get_strings("strings") == std::vector<std::string_view>{"a", "", "bcd"});
    CHECK(*gguf->get_array<float>("floats") == std::vector<float>{0.25f, -3.0f});
    CHECK(*gguf->get_array<std::int32_t>("ints") == std::vector<std::int32_t>{1, -2, 3});
    CHECK(*gguf->get_array<double>("ints") == std::vector<double>{1, -2, 3});
    CHECK(*gguf->get_array<bool>("bools") == std::vector<bool>{false, true});
    CHECK(gguf->get_array<float>("none")->empty());

    REQUIRE(gguf->tensors().size() == 2);
    const GgufTensor& w = gguf->tensors()[0];
    CHECK(w.name == "w");
    CHECK(w.type == GgmlType::q4_0);
    CHECK(w.n_dims == 2);
    CHECK(w.dims == std::array<std::uint64_t, 4>{32, 2, 1, 1});
    CHECK(w.n_elements() == 64);
    REQUIRE(w.data.size() == 36);
    CHECK(w.data[35] == std::byte{35});
    const auto scalar = gguf->tensor("scalar");
    REQUIRE(scalar);
    CHECK(scalar->n_dims == 0);
    CHECK(load_le<float>(scalar->data.data()) == 42.0f);
    CHECK(gguf->find_tensor("nothing") == nullptr);
    CHECK(code_of(gguf->tensor("nothing")) == Errc::not_found);
  }
}

TEST_CASE("numbers convert between widths where the value allows it, and nothing else converts") {
  const auto bytes = every_type(3).bytes();
  const auto gguf = Gguf::parse(bytes, "hand.gguf");
  REQUIRE(gguf);
  CHECK(*gguf->get_u64("u8") == 200);
  CHECK(*gguf->get<std::int64_t>("i16") == -30000);
  CHECK(*gguf->get_f32("u16") == 60000.0f);
  CHECK(code_of(gguf->get<std::int8_t>("u8")) == Errc::malformed);
  CHECK(code_of(gguf->get_u64("i8")) == Errc::malformed);
  CHECK(code_of(gguf->get_u32("u64")) == Errc::malformed);
  CHECK(code_of(gguf->get_u32("f32")) == Errc::malformed);
  CHECK(code_of(gguf->get_u32("bool")) == Errc::malformed);
  CHECK(code_of(gguf->get_bool("u8")) == Errc::malformed);
  CHECK(code_of(gguf->get_string("u8")) == Errc::malformed);
  CHECK(code_of(gguf->get_u32("string")) == Errc::malformed);
  CHECK(code_of(gguf->get_u32("ints")) == Errc::malformed);
  CHECK(code_of(gguf->get_array<float>("u8")) == Errc::malformed);
  CHECK(code_of(gguf->get_array<std::uint32_t>("ints")) == Errc::malformed);
  CHECK(code_of(gguf->get_array<float>("strings")) == Errc::malformed);
  CHECK(code_of(gguf->get_strings("floats")) == Errc::malformed);

  const auto narrow = gguf->get_u32("u64");
  CHECK(narrow.error().message ==
        "hand.gguf: key 'u64': expected an unsigned integer in range, "
        "found u64");
  CHECK(gguf->get_u32("i8").error().message ==
        "hand.gguf: key 'i8': expected an unsigned integer in range, found i8 = -100");
  CHECK(gguf->get_array<std::uint32_t>("ints").error().message ==
        "hand.gguf: key 'ints': element 1 of array of 3 i32 is not an unsigned integer in range");

  CHECK(code_of(gguf->get_u32("missing")) == Errc::not_found);
  CHECK(*gguf->get_u32_or("missing", 7) == 7);
  CHECK(*gguf->get_u32_or("u8", 7) == 200);
  CHECK(code_of(gguf->get_u32_or("string", 7)) ==
        Errc::malformed);  // present but invalid: no fallback
  CHECK(*gguf->get_string_or("missing", "x") == "x");
  CHECK(*gguf->get_f32_or("missing", 0.5f) == 0.5f);
  CHECK(*gguf->get_bool_or("missing", true));
  CHECK(*gguf->get_u64_or("missing", 1) == 1);
  CHECK(*gguf->get_i32_or("missing", -1) == -1);
}

TEST_CASE("doubles narrow to floats unless they would become infinite") {
  FileBuilder b = test::gguf_header(0, 3);
  b.string("big").u32(12).number(1e300);
  b.string("inf").u32(12).number(std::numeric_limits<double>::infinity());
  b.string("nan").u32(12).number(std::numeric_limits<double>::quiet_NaN());
  const auto bytes = b.bytes();
  const auto gguf = Gguf::parse(bytes, "m");
  REQUIRE(gguf);
  CHECK(code_of(gguf->get_f32("big")) == Errc::malformed);
  CHECK(*gguf->get<double>("big") == 1e300);
  CHECK(std::isinf(*gguf->get_f32("inf")));
  CHECK(std::isnan(*gguf->get_f32("nan")));
}

TEST_CASE("what a Gguf hands out survives moving it") {
  const test::TemporaryFolder folder;
  auto opened = Gguf::open(folder.write("m.gguf", every_type(3).bytes()));
  REQUIRE(opened);
  const std::string_view text = *opened->get_string("string");
  const GgufTensor tensor = *opened->tensor("w");
  const Gguf moved = std::move(*opened);
  CHECK(text == "h\xc3\xa9llo");
  CHECK(tensor.data[7] == std::byte{7});
  CHECK(moved.tensor("w")->data.data() == tensor.data.data());
  CHECK(reinterpret_cast<std::uintptr_t>(tensor.data.data()) % moved.alignment() == 0);
  moved.advise(Advice::will_need);
}

TEST_CASE("alignment moves the data; the padding behind the last tensor may be missing") {
  FileBuilder b = test::gguf_header(1, 1);
  b.string("general.alignment").u32(4).u32(1024);
  b.string("t").u32(1).u64(3).u32(24).u64(0).pad(1024).u8(1).u8(2).u8(3);
  const auto bytes = b.bytes();
  REQUIRE(bytes.size() == 1024 + 3);
  const auto gguf = Gguf::parse(bytes, "m");
  REQUIRE(gguf);
  CHECK(gguf->alignment() == 1024);
  CHECK(gguf->tensors()[0].data.data() == bytes.data() + 1024);
}

TEST_CASE("bytes that do not start at a multiple of 8 are refused") {
  FileBuilder b;
  b.u8(0);
  const auto good = every_type(3).bytes();
  auto shifted = b.bytes();
  shifted.insert(shifted.end(), good.begin(), good.end());
  CHECK(code_of(Gguf::parse(std::span(shifted).subspan(1), "m")) == Errc::invalid_argument);
}

TEST_CASE("reference file: stories260K") {
  const auto path = test::data_path("models/stories260K/stories260K.gguf");
  if (!path) return;
  const auto gguf = Gguf::open(*path);
  REQUIRE(gguf);
  CHECK(gguf->version() == 3);
  CHECK(gguf->metadata().size() == 19);
  CHECK(*gguf->get_string("general.architecture") == "llama");
  CHECK(*gguf->get_u32("llama.block_count") == 5);
  CHECK(*gguf->get_u32("llama.embedding_length") == 64);
  CHECK(*gguf->get_u32("llama.attention.head_count_kv") == 4);
  CHECK(*gguf->get_f32("llama.attention.layer_norm_rms_epsilon") == 1e-5f);
  CHECK(*gguf->get_f32_or("llama.rope.freq_base", 10000.0f) == 10000.0f);
  const auto tokens = gguf->get_strings("tokenizer.ggml.tokens");
  REQUIRE(tokens);
  CHECK(tokens->size() == 512);
  CHECK((*tokens)[1] == "<s>");
  CHECK(gguf->get_array<float>("tokenizer.ggml.scores")->size() == 512);
  CHECK(gguf->get_array<std::int32_t>("tokenizer.ggml.token_type")->at(0) == 2);

  CHECK(gguf->tensors().size() == 48);
  const auto embedding = gguf->tensor("token_embd.weight");
  REQUIRE(embedding);
  CHECK(embedding->type == GgmlType::f32);
  CHECK(embedding->dims == std::array<std::uint64_t, 4>{64, 512, 1, 1});
  CHECK(gguf->tensor("blk.4.ffn_down.weight")->dims == std::array<std::uint64_t, 4>{172, 64, 1, 1});

  // The same weights are in the llama2.c file, after its header of seven int32.
  const auto other = test::data_path("models/stories260K/stories260K.bin");
  const auto raw = test::read_file(*other);
  REQUIRE(raw.size() > 28 + embedding->data.size());
  CHECK(std::ranges::equal(embedding->data, std::span(raw).subspan(28, embedding->data.size())));
}

TEST_CASE("reference files: home-commands and the vocabularies") {
  struct {
    const char* file;
    GgmlType embedding;
  } const models[] = {{"models/home-commands/home-commands-f16.gguf", GgmlType::f16},
                      {"models/home-commands/home-commands-f32.gguf", GgmlType::f32}};
  for (const auto& model : models) {
    const auto path = test::data_path(model.file);
    if (!path) return;
    const auto gguf = Gguf::open(*path);
    REQUIRE(gguf);
    CHECK(gguf->tensors().size() == 29);
    CHECK(gguf->tensor("token_embd.weight")->type == model.embedding);
    CHECK(*gguf->get_u32("llama.attention.head_count_kv") == 2);
    CHECK(*gguf->get_bool("tokenizer.ggml.add_bos_token"));
    CHECK(*gguf->get_f32("llama.rope.freq_base") == 10000.0f);
  }
  struct {
    const char* file;
    std::size_t tokens, merges;
  } const vocabularies[] = {{"llama-spm", 32000, 0},
                            {"phi-3", 32064, 0},
                            {"gpt-2", 50257, 50000},
                            {"starcoder", 49152, 48872},
                            {"llama-bpe", 128256, 127066}};
  for (const auto& vocabulary : vocabularies) {
    CAPTURE(vocabulary.file);
    const auto path =
        test::data_path("tokenizers/ggml-vocab-" + std::string(vocabulary.file) + ".gguf");
    if (!path) return;
    const auto gguf = Gguf::open(*path);
    REQUIRE(gguf);
    CHECK(gguf->tensors().empty());
    CHECK(gguf->get_strings("tokenizer.ggml.tokens")->size() == vocabulary.tokens);
    if (vocabulary.merges != 0) {
      CHECK(gguf->get_strings("tokenizer.ggml.merges")->size() == vocabulary.merges);
    }
  }
}

TEST_CASE("names in messages are printable, whatever the file or its path says") {
  const auto none = Gguf::open("no\x1b]0;such\x07\xc2\x9b \xc3\xa9\xff\xe2\x80\xae.gguf");
  REQUIRE(!none);
  CHECK(contains(none.error().message, "no?]0;such?? \xc3\xa9??.gguf: cannot open: "));

  const auto bytes = test::gguf_header(0, 0).bytes();
  const auto file = Gguf::parse(bytes, "a\nb.gguf");
  REQUIRE(file);
  CHECK(file->name() == "a?b.gguf");
  CHECK(file->get_u32("no.key").error().message == "a?b.gguf: the metadata has no key 'no.key'");
  CHECK(file->tensor("bad\x1b").error().message == "a?b.gguf: tensor 'bad?' is missing");
  // A name of 64 bytes whose last character is cut is shown without it.
  const std::string long_name = std::string(63, 'x') + "\xc3\xa9 and more";
  CHECK(contains(file->tensor(long_name).error().message, std::string(63, 'x') + "...' is"));
}

}  // namespace gguf_test
