// SPDX-License-Identifier: Apache-2.0
//
// Models in several files: read as one, never one part as the whole.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "nibble/io/gguf.hpp"
#include "split_files.hpp"

namespace gguf_split_test {

using namespace nibble;
using namespace nibble::io;

namespace {

// Seven tensors of different sizes.
std::vector<std::byte> seven_tensors() {
  GgufWriter writer;
  writer.set("general.architecture", "llama");
  writer.set("general.name", "seven");
  for (std::uint64_t i = 0; i < 7; ++i) {
    const std::uint64_t dims[] = {10 + i, 3};
    static std::vector<std::vector<std::byte>> data;
    data.emplace_back(*tensor_bytes(GgmlType::f32, dims), static_cast<std::byte>(i + 1));
    writer.add_tensor("t" + std::to_string(i), GgmlType::f32, dims, data.back());
  }
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.has_value());
  return *std::move(bytes);
}

Error error_of(const std::string& path) {
  const auto file = Gguf::open(path);
  REQUIRE_FALSE(file.has_value());
  return file.error();
}

bool has(const Error& error, const std::string& part) {
  return test::contains(error.message, part);
}

}  // namespace

TEST_CASE("the path of any part opens the whole model") {
  const auto bytes = seven_tensors();
  const auto whole = Gguf::parse(bytes, "whole");
  REQUIRE(whole);
  for (const unsigned n_parts : {2u, 3u, 7u}) {
    const test::TemporaryFolder folder;
    const auto paths = test::write_split(*whole, folder, n_parts);
    for (const std::string& path : paths) {
      CAPTURE(path);
      const auto file = Gguf::open(path);
      REQUIRE_MESSAGE(file, file.error().message);
      CHECK(file->name() == path);
      CHECK(file->files().size() == n_parts);
      CHECK_FALSE(file->is_borrowed());
      REQUIRE(file->tensors().size() == 7);
      for (const GgufTensor& tensor : whole->tensors()) {
        const GgufTensor* const found = file->find_tensor(tensor.name);
        REQUIRE(found != nullptr);
        CHECK(found->dims == tensor.dims);
        CHECK(std::equal(found->data.begin(), found->data.end(), tensor.data.begin(),
                         tensor.data.end()));
      }
      // What says that these were parts is gone: a copy of the whole is a whole.
      CHECK(file->metadata().size() == whole->metadata().size());
      CHECK(file->find("split.count") == nullptr);
      CHECK(*file->get_string("general.name") == "seven");
      GgufWriter writer;
      writer.copy_metadata(*file);
      for (const GgufTensor& tensor : file->tensors()) writer.add_tensor(tensor);
      const auto copy = writer.to_bytes();
      REQUIRE(copy);
      CHECK(*copy == bytes);
    }
  }
}

TEST_CASE("a part that is missing, cut, renamed or of another model is named") {
  const auto bytes = seven_tensors();
  const auto whole = Gguf::parse(bytes, "whole");
  REQUIRE(whole);
  const test::TemporaryFolder folder;
  const auto paths = test::write_split(*whole, folder, 3);
  const auto replace_last = [&](auto change) {
    GgufWriter writer = test::split_part(*whole, 2, 3);
    change(writer);
    REQUIRE(writer.write(paths[2]).has_value());
    return error_of(paths[0]);
  };

  Error error = replace_last([](GgufWriter& w) { w.set("split.no", std::uint16_t{1}); });
  CHECK(error.code == Errc::malformed);
  CHECK(error.message == paths[2] + ": not a part of the same model as " + paths[0]);
  error = replace_last([](GgufWriter& w) { w.set("split.count", std::uint16_t{4}); });
  CHECK(has(error, paths[2] + ": not a part of the same model"));
  error = replace_last([](GgufWriter& w) { w.set("split.tensors.count", 8); });
  CHECK(has(error, paths[2] + ": not a part of the same model"));
  error = replace_last([](GgufWriter& w) { w.set("general.name", "eight"); });
  CHECK(has(error, "key 'general.name' differs"));
  error = replace_last([&](GgufWriter& w) { w.add_tensor(whole->tensors()[0]); });
  CHECK(error.code == Errc::malformed);
  CHECK(has(error, "have 8 tensors together, not 7"));
  {  // no part: a whole file of that name
    GgufWriter writer;
    writer.set("general.name", "seven");
    REQUIRE(writer.write(paths[2]).has_value());
    CHECK(has(error_of(paths[0]), paths[2] + ": not a part of the same model"));
  }
  {  // the same tensor twice
    GgufWriter twice;
    twice.set("split.no", std::uint16_t{2});
    twice.set("split.count", std::uint16_t{3});
    twice.set("split.tensors.count", 7);
    for (int i = 0; i < 3; ++i) twice.add_tensor(whole->tensors()[static_cast<std::size_t>(i)]);
    REQUIRE(twice.write(paths[2]).has_value());
    CHECK(has(error_of(paths[0]), "tensor 't0' appears twice"));
  }

  std::filesystem::remove(paths[1]);
  error = error_of(paths[2]);
  CHECK(has(error, "part 2 of 3 is missing or unusable: " + paths[1]));
  CHECK(error.code == Errc::io);
  folder.write(test::split_name("model", 1, 3), std::span(bytes).first(40));
  CHECK(has(error_of(paths[0]), "part 2 of 3 is missing or unusable: " + paths[1]));

  // Under another name its fellows cannot be found.
  const std::string renamed = folder.path("renamed.gguf");
  std::filesystem::copy(paths[0], renamed);
  error = error_of(renamed);
  CHECK(error.code == Errc::unsupported);
  CHECK(error.message ==
        renamed +
            ": part 1 of 3 of a model in several files, which are found by their names: this one "
            "must end in -00001-of-00003.gguf");
}

TEST_CASE("a part in memory is refused; a set of one is a whole") {
  const auto bytes = seven_tensors();
  const auto whole = Gguf::parse(bytes, "whole");
  REQUIRE(whole);
  const auto part = test::split_part(*whole, 1, 2).to_bytes();
  REQUIRE(part);
  const auto refused = Gguf::parse(*part, "part");
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().message ==
        "part: part 2 of 2 of a model in several files; only Gguf::open() reads all parts");
  auto memory = AlignedBuffer::allocate(part->size());
  REQUIRE(memory);
  std::copy(part->begin(), part->end(), memory->data());
  CHECK_FALSE(Gguf::parse_static(memory->bytes(), "part").has_value());
  CHECK_FALSE(Gguf::parse(*std::move(memory), "part").has_value());

  const auto one = test::split_part(*whole, 0, 1).to_bytes();
  REQUIRE(one);
  CHECK(Gguf::parse(*one, "one").has_value());
}

TEST_CASE("what else people pass as a model is recognized") {
  const test::TemporaryFolder folder;
  const auto error = [&](const std::string& content) {
    const auto bytes = test::FileBuilder().raw(content).bytes();
    return error_of(folder.write("model.gguf", bytes)).message;
  };
  const auto safetensors = test::safetensors_file("{}", 8);
  CHECK(
      test::contains(error_of(folder.write("m.safetensors", safetensors)).message,
                     "m.safetensors: a safetensors file, not a GGUF file; a model of this kind is "
                     "a folder with config.json"));
  CHECK(test::contains(error("PK\3\4 and so on"), "a PyTorch file"));
  CHECK(test::contains(error("\x80\2 and so on"), "save it again, model.save_pretrained(FOLDER)"));
  CHECK(test::contains(error("tjgg and so on"), "from before GGUF"));
  CHECK(test::contains(error("lmgg"), "from before GGUF"));
  CHECK(test::contains(error("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"));
  CHECK(test::contains(error("<!DOCTYPE html>"), "a web page"));
  CHECK(test::contains(error("once upon a time"), "not a GGUF file"));
  CHECK(test::contains(error(""), "the file is empty"));
#if !defined(_WIN32)
  const Error in_folder = error_of(folder.path(""));
  CHECK(in_folder.code == Errc::io);
  CHECK(has(in_folder,
            "is a folder, not a GGUF file; a model of this kind is a folder with config.json"));
#endif
}

}  // namespace gguf_split_test
