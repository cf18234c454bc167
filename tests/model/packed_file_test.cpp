// SPDX-License-Identifier: Apache-2.0
//
// Files with packed matrices: written by quantize_model, used in place.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/slot.hpp"
#include "why.hpp"

using namespace nibble;
using quant::Format;

namespace {

io::Gguf shipped() {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR is not set");
  auto file = io::Gguf::open(std::string(folder) + "/examples/models/home-commands-f16.gguf");
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

std::vector<std::byte> converted(const io::Gguf& file, Format format, bool packed) {
  ConvertOptions options;
  options.format = format;
  options.packed = packed;
  auto bytes = quantize_model(file, options);
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

// A copy of a file in memory, `past` bytes after a multiple of 64.
class InMemory {
 public:
  InMemory(const std::vector<std::byte>& bytes, std::size_t past) {
    auto memory = AlignedBuffer::allocate(bytes.size() + past);
    REQUIRE(memory);
    memory_ = *std::move(memory);
    bytes_ = memory_.bytes().subspan(past);
    std::copy(bytes.begin(), bytes.end(), bytes_.begin());
  }
  std::span<std::byte> bytes() const { return bytes_; }
  // To be used in place: the bytes stay as long as the test's models.
  io::Gguf parse() const {
    auto file = io::Gguf::parse_static(bytes_, "in memory");
    REQUIRE_MESSAGE(file, test::why(file));
    return *std::move(file);
  }

 private:
  AlignedBuffer memory_;
  std::span<std::byte> bytes_;
};

std::vector<float> logits_of(const Model& model) {
  auto session = Session::create(model);
  REQUIRE_MESSAGE(session, test::why(session));
  const std::array<std::int32_t, 5> tokens = {1, 300, 17, 411, 13};
  const auto logits = session->append(tokens);
  REQUIRE_MESSAGE(logits, test::why(logits));
  return {logits->data(), logits->data() + logits->extent(1)};
}

Model load_from(const io::Gguf& file) {
  auto model = Model::from_gguf<graph::AllFormats>(file);
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

}  // namespace

TEST_CASE("a packed model computes the same bits as the plain one it was made with, in place") {
  const io::Gguf original = shipped();
  for (const Format format : {Format::f32, Format::f16, Format::bf16, Format::q8_0, Format::q4_0,
                              Format::q4_1, Format::q5_0, Format::q5_1, Format::q4_k, Format::q5_k,
                              Format::q6_k, Format::q2_k, Format::q3_k}) {
    CAPTURE(std::string(to_string(format)));
    const InMemory plain(converted(original, format, false), 0);
    const InMemory packed(converted(original, format, true), 0);
    const io::Gguf plain_file = plain.parse();
    const io::Gguf packed_file = packed.parse();
    const Model plain_model = load_from(plain_file);
    const Model packed_model = load_from(packed_file);
    CHECK(logits_of(plain_model) == logits_of(packed_model));

    // Every matrix is in the file; only the vectors were copied.
    const auto in_file = [&](const graph::Weight& w) {
      return w.data >= packed.bytes().data() &&
             w.data < packed.bytes().data() + packed.bytes().size();
    };
    int n_matrices = 0;
    for (Index layer = -1; layer < packed_model.config().n_layers; ++layer) {
      for (std::size_t s = 0; s < kSlotCount; ++s) {
        const graph::Weight& w = packed_model.weights().at(static_cast<Slot>(s), layer);
        if (!w) continue;
        CHECK(in_file(w) == (w.n > 0));
        n_matrices += w.n > 0 ? 1 : 0;
      }
    }
    CHECK(n_matrices == 1 + 1 + 3 * 7);  // the embedding, the output tied to it, three layers
  }
}

TEST_CASE("a model keeps the file it was loaded from as long as it reads it in place") {
  const auto path = std::filesystem::temp_directory_path() / "nibble_packed_file_test.gguf";
  ConvertOptions options;
  options.format = Format::q4_0;
  options.packed = true;
  REQUIRE(quantize_model(shipped(), path.string(), options));
  auto model = load(path.string());
  std::filesystem::remove(path);  // the mapping stays valid
  REQUIRE_MESSAGE(model, test::why(model));
  const Model moved = *std::move(model);
  const InMemory plain(converted(shipped(), Format::q4_0, false), 0);
  CHECK(logits_of(moved) == logits_of(load_from(plain.parse())));
}

// Run with an address sanitizer, these find a model that refers to what is gone.
TEST_CASE("a model outlives the Gguf it was made from, wherever its bytes were") {
  const std::vector<std::byte> bytes = converted(shipped(), Format::q4_0, true);
  const InMemory plain(converted(shipped(), Format::q4_0, false), 0);
  const std::vector<float> expected = logits_of(load_from(plain.parse()));

  SUBCASE("a mapped file") {
    const test::TemporaryFolder folder;
    const std::string path = folder.write("packed.gguf", bytes);
    const auto load_locally = [&] {
      const auto file = io::Gguf::open(path);
      REQUIRE(file);
      return load_from(*file);
    };
    const Model model = load_locally();
    CHECK(model.weight_bytes_in_place() > model.weight_bytes() / 2);
    CHECK(logits_of(model) == expected);
  }
  SUBCASE("a buffer that the Gguf keeps") {
    const auto load_locally = [&] {
      auto memory = AlignedBuffer::allocate(bytes.size());
      REQUIRE(memory);
      std::copy(bytes.begin(), bytes.end(), memory->data());
      const auto file = io::Gguf::parse(*std::move(memory), "kept");
      REQUIRE(file);
      CHECK_FALSE(file->is_borrowed());
      return load_from(*file);
    };
    const Model model = load_locally();
    CHECK(model.weight_bytes_in_place() > model.weight_bytes() / 2);
    CHECK(logits_of(model) == expected);
  }
  SUBCASE("bytes that the caller keeps: copied, from any address") {
    for (const std::size_t past : {0, 8}) {
      const auto load_locally = [&] {
        const InMemory memory(bytes, past);
        const auto file = io::Gguf::parse(memory.bytes(), "borrowed");
        REQUIRE(file);
        CHECK(file->is_borrowed());
        const Model model = load_from(*file);
        std::fill(memory.bytes().begin(), memory.bytes().end(), std::byte{255});
        return model;
      };
      const Model model = load_locally();
      CHECK(model.weight_bytes_in_place() == 0);
      CHECK(logits_of(model) == expected);
    }
  }
}

TEST_CASE("a changed packed weight changes the result") {
  const InMemory packed(converted(shipped(), Format::q4_0, true), 0);
  const io::Gguf file = packed.parse();
  const auto before = logits_of(load_from(file));
  const io::GgufTensor* const tensor = file.find_tensor("blk.1.ffn_down.weight");
  REQUIRE(tensor != nullptr);
  const auto at = static_cast<std::size_t>(tensor->data.data() - packed.bytes().data());
  packed.bytes()[at + 64] ^= std::byte{0x70};  // the first codes, after two blocks' scales
  CHECK(logits_of(load_from(file)) != before);
}

TEST_CASE("packed weights that cannot be used in place are errors that name the tensor") {
  const auto bytes = converted(shipped(), Format::q4_0, true);
  const InMemory unaligned(bytes, 8);
  const auto model = Model::from_gguf(unaligned.parse());
  REQUIRE(!model);
  CHECK(model.error().message.find("token_embd.weight") != std::string::npos);
  CHECK(model.error().message.find("64 bytes") != std::string::npos);

  // A packed model cannot be converted.
  const InMemory packed(bytes, 0);
  const auto again = quantize_model(packed.parse(), ConvertOptions{.format = Format::f16});
  REQUIRE(!again);
  CHECK(again.error().code == Errc::unsupported);
  CHECK(again.error().message ==
        "in memory: tensor 'token_embd.weight': packed Q4_0: the file was made by quantize "
        "--packed, which cannot be undone; convert the file that it was made from");
}
