// SPDX-License-Identifier: Apache-2.0
#include "nibble/io/gguf_writer.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "file_builder.hpp"
#include "largest_allocation.hpp"
#include "test_data.hpp"

#if !defined(_WIN32)
#include <sys/resource.h>

#include <csignal>
#endif

namespace gguf_writer_test {

using nibble::Errc;
using namespace nibble::io;
using test::contains;

namespace {

using Dims = std::array<std::uint64_t, 2>;

const auto kData = [] {
  std::array<std::byte, 72> data{};
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i + 1);
  return data;
}();

Errc write_error(const GgufWriter& writer) {
  const auto bytes = writer.to_bytes();
  REQUIRE(!bytes);
  return bytes.error().code;
}

// Same metadata in the same order and encoding, same tensors in the same order with the same bytes.
void check_same_content(const Gguf& a, const Gguf& b) {
  REQUIRE(a.metadata().size() == b.metadata().size());
  for (std::size_t i = 0; i < a.metadata().size(); ++i) {
    CHECK(a.metadata()[i].key == b.metadata()[i].key);
    CHECK(a.metadata()[i].value.type() == b.metadata()[i].value.type());
    CHECK(std::ranges::equal(a.metadata()[i].value.encoded(), b.metadata()[i].value.encoded()));
  }
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (std::size_t i = 0; i < a.tensors().size(); ++i) {
    CHECK(a.tensors()[i].name == b.tensors()[i].name);
    CHECK(a.tensors()[i].type == b.tensors()[i].type);
    CHECK(a.tensors()[i].n_dims == b.tensors()[i].n_dims);
    CHECK(a.tensors()[i].dims == b.tensors()[i].dims);
    CHECK(std::ranges::equal(a.tensors()[i].data, b.tensors()[i].data));
  }
}

}  // namespace

TEST_CASE("the bytes of a small file, checked by hand") {
  GgufWriter writer;
  writer.set("general.architecture", "llama");
  writer.set("n", std::uint32_t{5});
  writer.set_array("words", std::vector<std::string>{"ab", ""});
  writer.add_tensor("a", GgmlType::f32, std::array<std::uint64_t, 1>{3},
                    std::span(kData).first(12));
  writer.add_tensor("b", GgmlType::q4_0, Dims{32, 2}, std::span(kData).first(36));
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);

  test::FileBuilder b = test::gguf_header(2, 3);
  b.string("general.architecture").u32(8).string("llama");
  b.string("n").u32(4).u32(5);
  b.string("words").u32(9).u32(8).u64(2).string("ab").string("");
  b.string("a").u32(1).u64(3).u32(0).u64(0);
  b.string("b").u32(2).u64(32).u64(2).u32(2).u64(32);
  b.pad(32);
  for (unsigned i = 1; i <= 12; ++i) b.u8(i);
  b.pad(32);
  for (unsigned i = 1; i <= 36; ++i) b.u8(i);
  b.pad(32);
  CHECK(*bytes == b.bytes());
}

TEST_CASE("every metadata type comes back, from memory and through a copy") {
  GgufWriter writer;
  writer.set("u8", std::uint8_t{255});
  writer.set("i8", std::int8_t{-128});
  writer.set("u16", std::uint16_t{65535});
  writer.set("i16", std::int16_t{-32768});
  writer.set("u32", UINT32_MAX);
  writer.set("i32", INT32_MIN);
  writer.set("u64", UINT64_MAX);
  writer.set("i64", INT64_MIN);
  writer.set("f32", 0.1f);
  writer.set("f64", 0.1);
  writer.set("true", true);
  writer.set("string", "text");
  writer.set_array("u8s", std::vector<std::uint8_t>{1, 2});
  writer.set_array("i8s", std::vector<std::int8_t>{-1, 2});
  writer.set_array("u16s", std::vector<std::uint16_t>{1, 2});
  writer.set_array("i16s", std::vector<std::int16_t>{-1, 2});
  writer.set_array("u32s", std::vector<std::uint32_t>{1, 2});
  writer.set_array("i32s", std::vector<std::int32_t>{-1, 2});
  writer.set_array("u64s", std::vector<std::uint64_t>{1, 2});
  writer.set_array("i64s", std::vector<std::int64_t>{-1, 2});
  writer.set_array("f32s", std::vector<float>{0.5f});
  writer.set_array("f64s", std::vector<double>{0.5});
  writer.set_array("bools", std::vector<bool>{true, false, true});
  writer.set_array("strings", std::vector<std::string_view>{"a", "b"});
  writer.set_array("empty", std::vector<float>{});

  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto gguf = Gguf::parse(*bytes, "m");
  REQUIRE(gguf);
  const GgufType types[] = {GgufType::u8,  GgufType::i8,  GgufType::u16,     GgufType::i16,
                            GgufType::u32, GgufType::i32, GgufType::u64,     GgufType::i64,
                            GgufType::f32, GgufType::f64, GgufType::boolean, GgufType::string};
  REQUIRE(gguf->metadata().size() == 25);
  for (std::size_t i = 0; i < 12; ++i) {
    CHECK(gguf->metadata()[i].value.type() == types[i]);
    CHECK(gguf->metadata()[12 + i].value.is_array());
    CHECK(gguf->metadata()[12 + i].value.element_type() == types[i]);
  }
  CHECK(*gguf->get<std::uint8_t>("u8") == 255);
  CHECK(*gguf->get<std::int8_t>("i8") == -128);
  CHECK(*gguf->get<std::uint16_t>("u16") == 65535);
  CHECK(*gguf->get<std::int16_t>("i16") == -32768);
  CHECK(*gguf->get_u32("u32") == UINT32_MAX);
  CHECK(*gguf->get_i32("i32") == INT32_MIN);
  CHECK(*gguf->get_u64("u64") == UINT64_MAX);
  CHECK(*gguf->get<std::int64_t>("i64") == INT64_MIN);
  CHECK(*gguf->get_f32("f32") == 0.1f);
  CHECK(*gguf->get<double>("f64") == 0.1);
  CHECK(*gguf->get_bool("true"));
  CHECK(*gguf->get_string("string") == "text");
  for (const char* key : {"i8s", "i16s", "i32s", "i64s"}) {
    CHECK(*gguf->get_array<std::int64_t>(key) == std::vector<std::int64_t>{-1, 2});
  }
  for (const char* key : {"u8s", "u16s", "u32s", "u64s"}) {
    CHECK(*gguf->get_array<std::uint8_t>(key) == std::vector<std::uint8_t>{1, 2});
  }
  CHECK(*gguf->get_array<double>("f32s") == std::vector<double>{0.5});
  CHECK(*gguf->get_array<float>("f64s") == std::vector<float>{0.5f});
  CHECK(*gguf->get_array<bool>("bools") == std::vector<bool>{true, false, true});
  CHECK(*gguf->get_strings("strings") == std::vector<std::string_view>{"a", "b"});

  GgufWriter copier;
  copier.copy_metadata(*gguf);
  CHECK(*copier.to_bytes() == *bytes);
  copier.set("u16", "now a text");
  const auto changed_bytes = copier.to_bytes();
  const auto changed = Gguf::parse(*changed_bytes, "m");
  REQUIRE(changed);
  CHECK(changed->metadata()[2].key == "u16");  // in its old position
  CHECK(*changed->get_string("u16") == "now a text");
}

TEST_CASE("alignment is honoured, and the data of every tensor starts at a multiple of it") {
  GgufWriter writer;
  writer.set("general.alignment", std::uint32_t{64});
  writer.add_tensor("a", GgmlType::f32, std::array<std::uint64_t, 1>{3},
                    std::span(kData).first(12));
  writer.add_tensor("b", GgmlType::f32, std::array<std::uint64_t, 1>{17},
                    std::span(kData).first(68));
  writer.add_tensor("c", GgmlType::i8, std::array<std::uint64_t, 1>{1}, std::span(kData).first(1));
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  CHECK(bytes->size() % 64 == 0);
  const auto gguf = Gguf::parse(*bytes, "m");
  REQUIRE(gguf);
  const auto offset = [&](std::size_t i) { return gguf->tensors()[i].data.data() - bytes->data(); };
  CHECK(offset(0) % 64 == 0);
  CHECK(offset(1) == offset(0) + 64);
  CHECK(offset(2) == offset(0) + 192);
}

TEST_CASE("the bytes before the tensors are known without their data") {
  GgufWriter writer;
  writer.set("general.name", "a name");
  const Dims dims = {4, 2};
  writer.add_tensor("a", GgmlType::f32, dims, std::span<const std::byte>(kData).first(32));
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = Gguf::parse(*bytes, "small");
  REQUIRE(file);
  CHECK(*writer.header_bytes() ==
        static_cast<std::uint64_t>(file->tensors()[0].data.data() - bytes->data()));
  writer.add_tensor("a", GgmlType::f32, dims, std::span<const std::byte>(kData).first(32));
  CHECK(writer.header_bytes().error().code == Errc::invalid_argument);  // added twice
}

TEST_CASE("what already ends at a multiple of the alignment is not padded") {
  GgufWriter writer;
  // 24 bytes of header, 20 for the number, 39 for the text and 45 for the tensor's info make 128.
  writer.set("key4", std::uint32_t{1});
  writer.set("s", "123456789012345678");
  writer.add_tensor(std::string(13, 't'), GgmlType::f32, std::array<std::uint64_t, 1>{8},
                    std::span(kData).first(32));
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  REQUIRE(bytes->size() == 128 + 32);
  const auto gguf = Gguf::parse(*bytes, "m");
  REQUIRE(gguf);
  CHECK(gguf->tensors()[0].data.data() == bytes->data() + 128);
  CHECK(gguf->tensors()[0].data[31] == std::byte{32});
}

TEST_CASE("sources are called one after another, in order, when the file is written") {
  std::vector<int> calls;
  std::vector<std::byte> buffer;  // shared: only one tensor in memory at a time
  GgufWriter writer;
  for (int i = 0; i < 3; ++i) {
    writer.add_tensor(std::string("t") + std::to_string(i), GgmlType::i8, Dims{5, 2},
                      [&, i]() -> nibble::Result<std::span<const std::byte>> {
                        calls.push_back(i);
                        buffer.assign(10, static_cast<std::byte>(i + 1));
                        return std::span<const std::byte>(buffer);
                      });
  }
  CHECK(calls.empty());
  const test::TemporaryFolder folder;
  REQUIRE(writer.write(folder.path("m.gguf")));
  CHECK(calls == std::vector<int>{0, 1, 2});
  const auto gguf = Gguf::open(folder.path("m.gguf"));
  REQUIRE(gguf);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(gguf->tensors()[i].data.size() == 10);
    CHECK(std::ranges::count(gguf->tensors()[i].data, static_cast<std::byte>(i + 1)) == 10);
  }
}

TEST_CASE("what is wrong with keys, names, shapes and data comes out of writing") {
  const auto data = std::span<const std::byte>(kData);
  {
    GgufWriter writer;
    writer.set("", 1);
    writer.set("later", 1);
    CHECK(write_error(writer) == Errc::malformed);
  }
  {
    GgufWriter writer;
    writer.set(std::string(65536, 'k'), 1);
    CHECK(write_error(writer) == Errc::malformed);
  }
  for (const std::uint32_t alignment : {0u, 4u, 48u, 1u << 21}) {
    GgufWriter writer;
    writer.set("general.alignment", alignment);
    CHECK(write_error(writer) == Errc::malformed);
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", GgmlType::q4_0, Dims{33, 1}, data);
    CHECK(write_error(writer) == Errc::malformed);
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", static_cast<GgmlType>(4), Dims{32, 1}, data);
    CHECK(write_error(writer) == Errc::unsupported);
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", GgmlType::i8, std::array<std::uint64_t, 5>{1, 1, 1, 1, 1}, data);
    CHECK(write_error(writer) == Errc::invalid_argument);
  }
  {
    GgufWriter writer;
    writer.add_tensor(std::string(65, 'n'), GgmlType::i8, Dims{36, 2}, data);
    CHECK(write_error(writer) == Errc::malformed);
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", GgmlType::i8, Dims{36, 2}, data);
    writer.add_tensor("t", GgmlType::i8, Dims{36, 2}, data);
    CHECK(write_error(writer) == Errc::invalid_argument);
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", GgmlType::i8, Dims{36, 1}, data);
    CHECK(write_error(writer) == Errc::invalid_argument);
    CHECK(writer.to_bytes().error().message == "tensor 't': 72 bytes of data for a shape of 36");
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", GgmlType::i8, Dims{36, 1}, GgufWriter::TensorSource());
    CHECK(write_error(writer) == Errc::invalid_argument);
  }
  {
    GgufWriter writer;
    writer.add_tensor("t", GgmlType::f32, Dims{1ull << 60, 1}, data);
    writer.add_tensor("u", GgmlType::f32, Dims{1ull << 61, 1}, data);
    writer.add_tensor("v", GgmlType::f32, Dims{1ull << 61, 1}, data);
    CHECK(write_error(writer) == Errc::limit);
  }
}

TEST_CASE("a file appears whole or not at all, and nothing is left beside it") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("m.gguf");
  GgufWriter good;
  good.set("version", 1);
  REQUIRE(good.write(path));
  CHECK(folder.count() == 1);

  GgufWriter failing;
  failing.add_tensor("a", GgmlType::i8, Dims{36, 2}, kData);
  failing.add_tensor("b", GgmlType::i8, Dims{36, 2},
                     []() -> nibble::Result<std::span<const std::byte>> {
                       return nibble::Error{Errc::cancelled, "stopped by the user"};
                     });
  const auto status = failing.write(path);
  REQUIRE(!status);
  CHECK(status.error().code == Errc::cancelled);
  CHECK(status.error().message == "tensor 'b': stopped by the user");
  CHECK(folder.count() == 1);
  CHECK(*Gguf::open(path)->get_i32("version") == 1);  // the old file is unchanged

  GgufWriter better;
  better.set("version", 2);
  REQUIRE(better.write(path));
  CHECK(folder.count() == 1);
  CHECK(*Gguf::open(path)->get_i32("version") == 2);

  const auto nowhere = good.write(folder.path("no/such/folder.gguf"));
  REQUIRE(!nowhere);
  CHECK(nowhere.error().code == Errc::io);
  CHECK(contains(nowhere.error().message, "no/such/folder.gguf: cannot create"));
  // A folder has this name.
  const auto folder_name = good.write(folder.path(""));
  REQUIRE(!folder_name);
  CHECK(folder_name.error().code == Errc::io);
  CHECK(folder.count() == 1);
}

#if !defined(_WIN32)
TEST_CASE("a device that is full is an error, and the part is removed") {
  const test::TemporaryFolder folder;
  GgufWriter writer;
  const std::vector<std::byte> data(1 << 16);
  writer.add_tensor("t", GgmlType::i8, std::array<std::uint64_t, 1>{1 << 16}, data);

  // A limit on the file size simulates a full device: the first writes are cut short.
  rlimit old{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  small.rlim_cur = 10000;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const auto status = writer.write(folder.path("m.gguf"));
  REQUIRE(setrlimit(RLIMIT_FSIZE, &old) == 0);
  std::signal(SIGXFSZ, old_handler);

  REQUIRE(!status);
  CHECK(status.error().code == Errc::io);
  CHECK(contains(status.error().message, "m.gguf: cannot write"));
  CHECK(folder.count() == 0);
}
#endif

TEST_CASE("tensors in another order are written as they are meant, without a copy of them") {
  constexpr std::uint64_t kRows = 700, kColumns = 900;  // several parts
  std::vector<float> stored(kRows * kColumns);
  for (std::size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<float>(i);
  GgufTensor tensor;
  tensor.name = "t";
  tensor.n_dims = 2;
  tensor.dims = {kRows, kColumns, 1, 1};
  tensor.data = std::as_bytes(std::span(stored));
  tensor.swapped = {kRows, kColumns, sizeof(float)};
  GgufWriter writer;
  writer.add_tensor(tensor);
  const test::TemporaryFolder folder;
  test::largest_allocation = 0;
  REQUIRE(writer.write(folder.path("t.gguf")));
  CHECK(test::largest_allocation < tensor.data.size() / 2);
  const auto file = Gguf::open(folder.path("t.gguf"));
  REQUIRE(file);
  std::vector<float> read(stored.size());
  REQUIRE(file->bytes_of(file->tensors()[0]).read(0, std::as_writable_bytes(std::span(read))));
  std::size_t n_wrong = 0;
  for (std::size_t i = 0; i < read.size(); ++i) {
    n_wrong += read[i] != stored[narrow<std::size_t>(i % kRows * kColumns + i / kRows)] ? 1 : 0;
  }
  CHECK(n_wrong == 0);

  // From a file, by reading it.
  GgufWriter again;
  again.add_tensor(*file, file->tensors()[0]);
  CHECK(*again.to_bytes() == test::read_file(folder.path("t.gguf")));
}

TEST_CASE("reference files come back with the same bytes") {
  const char* files[] = {"models/stories260K/stories260K.gguf",
                         "models/home-commands/home-commands-f16.gguf",
                         "tokenizers/ggml-vocab-llama-bpe.gguf"};
  const test::TemporaryFolder folder;
  for (const char* file : files) {
    CAPTURE(file);
    const auto path = test::data_path(file);
    if (!path) return;
    const auto original = Gguf::open(*path);
    REQUIRE(original);
    GgufWriter writer;
    writer.copy_metadata(*original);
    for (const GgufTensor& tensor : original->tensors()) writer.add_tensor(tensor);
    REQUIRE(writer.write(folder.path("copy.gguf")));
    const auto copy = Gguf::open(folder.path("copy.gguf"));
    REQUIRE(copy);
    check_same_content(*original, *copy);
    CHECK(test::read_file(*path) == test::read_file(folder.path("copy.gguf")));
    CHECK(*writer.to_bytes() == test::read_file(folder.path("copy.gguf")));
  }
}

}  // namespace gguf_writer_test
