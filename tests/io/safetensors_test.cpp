// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/safetensors.hpp"

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace safetensors_test {

using nibble::Errc;
using namespace nibble::io;
using test::contains;
using test::safetensors_file;

namespace {

using Shape = std::vector<std::uint64_t>;

// A header with one tensor "t".
std::string one(const std::string& fields) { return "{\"t\":{" + fields + "}}"; }

}  // namespace

TEST_CASE("a hand-made file: tensors, metadata, escapes, empty and scalar tensors") {
  const auto bytes =
      safetensors_file(R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[3,27]},)"
                       R"( "__metadata__" : {"format":"pt","\u00fc":"a\nb"},)"
                       R"("odd":{"shape":[3],"data_offsets":[0,3],"dtype":"I8"},)"
                       R"("empty":{"dtype":"F64","shape":[4,0],"data_offsets":[27,27]},)"
                       R"("scalar":{"dtype":"BF16","shape":[],"data_offsets":[27,29]}})",
                       29);
  const auto file = Safetensors::parse(bytes, "hand");
  REQUIRE_MESSAGE(file, test::why(file));
  REQUIRE(file->tensors().size() == 4);
  CHECK(file->tensors()[0].name == "b");
  CHECK(file->tensors()[0].type == SafetensorType::f32);
  CHECK(file->tensors()[0].shape == Shape{2, 3});
  // The data is not aligned in the file; its bytes must still be right.
  const auto b = file->tensor("b");
  REQUIRE(b);
  REQUIRE(b->data.size() == 24);
  CHECK(b->data[0] == std::byte{3});
  CHECK(file->find_tensor("odd")->data.size() == 3);
  CHECK(file->find_tensor("empty")->shape == Shape{4, 0});
  CHECK(file->find_tensor("empty")->data.empty());
  CHECK(file->find_tensor("scalar")->shape.empty());
  CHECK(file->find_tensor("scalar")->data.size() == 2);
  CHECK(file->find_tensor("c") == nullptr);
  CHECK(file->tensor("c").error().code == Errc::not_found);
  CHECK(file->tensor("c").error().message == "hand: tensor 'c' is missing");

  REQUIRE(file->metadata().size() == 2);
  CHECK(*file->find_metadata("format") == "pt");
  CHECK(*file->find_metadata("\xc3\xbc") == "a\nb");
  CHECK(file->find_metadata("x") == nullptr);
}

TEST_CASE("a file without tensors, and bytes at an odd address") {
  const auto empty = safetensors_file("{}", 0);
  CHECK(Safetensors::parse(empty, "m")->tensors().empty());

  std::vector<std::byte> shifted(1);
  const auto good = safetensors_file(one(R"("dtype":"U16","shape":[2],"data_offsets":[0,4])"), 4);
  shifted.insert(shifted.end(), good.begin(), good.end());
  CHECK(Safetensors::parse(std::span(shifted).subspan(1), "m")->tensors()[0].data.size() == 4);
}

TEST_CASE("every element type has its size") {
  struct {
    const char* name;
    std::size_t bytes;  // of 8 elements
  } const types[] = {
      {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
      {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
      {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
      {"I64", 64},        {"U64", 64},
  };
  CHECK(std::size(types) == std::size(kSafetensorTypes));
  for (const auto& type : types) {
    CAPTURE(type.name);
    const std::string size = std::to_string(type.bytes);
    const auto bytes = safetensors_file(one("\"dtype\":\"" + std::string(type.name) +
                                            "\",\"shape\":[8],\"data_offsets\":[0," + size + "]"),
                                        type.bytes);
    const auto file = Safetensors::parse(bytes, "m");
    REQUIRE_MESSAGE(file, test::why(file));
    CHECK(type_traits(file->tensors()[0].type).name == type.name);
  }
}

TEST_CASE("named corruptions give named errors") {
  struct {
    std::string json;
    std::size_t data;
    Errc code;
    const char* message;
  } const cases[] = {
      {"[]", 0, Errc::malformed, "does not start with '{'"},
      {" {}", 0, Errc::malformed, "does not start with '{'"},
      {"{} x", 0, Errc::malformed, "more text"},
      {"{", 0, Errc::malformed, "JSON at byte"},
      {"{}", 1, Errc::malformed, "1 bytes at the end belong to no tensor"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, Errc::malformed,
       "metadata key 'a' appears twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, Errc::malformed,
       "__metadata__ appears twice"},
      {R"({"__metadata__":{"a":1}})", 0, Errc::malformed, "expected '\"'"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])") + "x", 4, Errc::malformed,
       "more text"},
      {one(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), 4, Errc::unsupported,
       "tensor 't': element type 'F31' is unknown"},
      {one(R"("dtype":"F32","shape":[1])"), 4, Errc::malformed, "is missing"},
      {one(R"("dtype":"F32","data_offsets":[0,4])"), 4, Errc::malformed, "is missing"},
      {one(R"("shape":[1],"data_offsets":[0,4])"), 4, Errc::malformed, "is missing"},
      {one(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"), 4, Errc::malformed,
       "repeated key 'dtype'"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1)"), 4, Errc::malformed,
       "unexpected or repeated key 'more'"},
      {one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4, Errc::malformed,
       "unsigned integer"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4, Errc::malformed,
       "fewer than two"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"), 4, Errc::malformed,
       "more than two"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, Errc::malformed,
       "end before they begin"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), 4, Errc::malformed,
       "data_offsets end at 8 of 4 bytes"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), 8, Errc::malformed,
       "span 8 bytes, the shape needs 4"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8, Errc::malformed, "a hole"},
      {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0, Errc::limit,
       "overflows"},
      {one(R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,0])"), 0,
       Errc::malformed, "64 bits"},
      {one(R"("dtype":"F4","shape":[3],"data_offsets":[0,1])"), 1, Errc::malformed, "last byte"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, Errc::malformed, "tensor 'b': its data overlaps another tensor's"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       4, Errc::malformed, "tensor 'a' appears twice"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, Errc::malformed, "tensor 'b': a hole"},
  };
  for (const auto& c : cases) {
    CAPTURE(c.json);
    const auto bytes = safetensors_file(c.json, c.data);
    const auto file = Safetensors::parse(bytes, "m.safetensors");
    REQUIRE(!file);
    CAPTURE(file.error().message);
    CHECK(file.error().code == c.code);
    CHECK(contains(file.error().message, c.message));
    CHECK(file.error().message.starts_with("m.safetensors: "));
  }

  const auto truncated = test::FileBuilder().u64(50).raw("{}").bytes();
  CHECK(Safetensors::parse(truncated, "m").error().code == Errc::malformed);
  const auto absurd = test::FileBuilder().u64(100'000'001).raw("{}").bytes();
  CHECK(Safetensors::parse(absurd, "m").error().code == Errc::limit);
  CHECK(Safetensors::parse({}, "m").error().code == Errc::malformed);
}

TEST_CASE("opening: from a file, moved, and missing") {
  const test::TemporaryFolder folder;
  const auto path = folder.write(
      "m", safetensors_file(one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 4));
  auto file = Safetensors::open(path);
  REQUIRE(file);
  const Safetensors moved = std::move(*file);
  CHECK(moved.tensor("t")->data[3] == std::byte{3});
  CHECK(moved.name() == path);
  CHECK(Safetensors::open(folder.path("none")).error().code == Errc::io);
}

TEST_CASE("reference files: gpt-nano-sort") {
  const auto path = test::data_path("models/gpt-nano-sort/model.by-us.safetensors");
  if (!path) return;
  const auto model = Safetensors::open(*path);
  REQUIRE(model);
  const auto* embedding = model->find_tensor("transformer.wte.weight");
  REQUIRE(embedding != nullptr);
  CHECK(embedding->type == SafetensorType::f32);
  CHECK(embedding->shape == Shape{3, 48});
  CHECK(model->find_tensor("transformer.h.2.mlp.c_fc.weight")->shape == Shape{192, 48});
  CHECK(model->find_tensor("transformer.h.0.attn.bias")->shape == Shape{1, 1, 11, 11});

  const auto partials =
      Safetensors::open(*test::data_path("models/gpt-nano-sort/partials.by-us.safetensors"));
  REQUIRE(partials);
  CHECK(partials->find_tensor("block2") != nullptr);

  // Check values, not only names: the probabilities of the last layer sum to one.
  const auto* probs = partials->find_tensor("probs");
  REQUIRE(probs != nullptr);
  REQUIRE(probs->type == SafetensorType::f32);
  REQUIRE(probs->shape.back() == 3);
  for (std::size_t i = 0; i < probs->data.size(); i += 12) {
    float row[3];
    std::memcpy(row, probs->data.data() + i, sizeof row);
    CHECK(row[0] + row[1] + row[2] == doctest::Approx(1.0).epsilon(1e-5));
  }
}

}  // namespace safetensors_test
