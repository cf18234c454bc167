// SPDX-License-Identifier: Apache-2.0
//
// Models whose zeros are left out: written by pack_sparse_model, used in place.
#include "nibble/compress/sparse_file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/generate/session.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/simd/dispatch.hpp"
#include "why.hpp"

namespace sparse_file_test {

using namespace nibble;

namespace {

// A file in memory, to be used in place: aligned, and as long-lived as the test's models.
class InMemory {
 public:
  explicit InMemory(const std::vector<std::byte>& bytes) {
    auto memory = AlignedBuffer::allocate(bytes.size());
    REQUIRE(memory);
    memory_ = *std::move(memory);
    std::copy(bytes.begin(), bytes.end(), memory_.data());
    size_ = bytes.size();
  }
  std::span<std::byte> bytes() const { return memory_.bytes().first(size_); }
  io::Gguf parse() const {
    auto file = io::Gguf::parse_static(bytes(), "in memory");
    REQUIRE_MESSAGE(file, test::why(file));
    return *std::move(file);
  }

 private:
  AlignedBuffer memory_;
  std::size_t size_ = 0;
};

// The bundled model in Q4_0, with every second block of 16 rows by 4 weights, and of the rest every
// third weight, set to zero in all matrices of layers; or two of each four weights.
std::vector<std::byte> pruned(bool two_of_four = false) {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR is not set");
  auto original = io::Gguf::open(std::string(folder) + "/examples/models/home-commands-f16.gguf");
  REQUIRE_MESSAGE(original, test::why(original));
  ConvertOptions options;
  options.format = quant::Format::q4_0;
  auto bytes = quantize_model(*original, options);
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  auto file = io::Gguf::parse(*bytes, "converted");
  REQUIRE_MESSAGE(file, test::why(file));
  for (const io::GgufTensor& tensor : file->tensors()) {
    if (tensor.type != io::GgmlType::q4_0 || tensor.name.substr(0, 4) != "blk.") continue;
    // Gguf refers to the bytes, which are ours.
    std::byte* const first = bytes->data() + (tensor.data.data() - bytes->data());
    auto* const blocks = reinterpret_cast<quant::Q4_0::Block*>(first);
    const std::uint64_t in_row = tensor.dims[0] / 32;
    for (std::uint64_t row = 0; row < tensor.dims[1]; ++row) {
      for (std::uint64_t b = 0; b < in_row; ++b) {
        auto& codes = blocks[row * in_row + b].codes;
        for (std::uint64_t i = 0; i < 16; ++i) {
          bool low = (row / 16 + b + i / 4) % 2 == 0 || (row + i) % 3 == 0;
          bool high = (row / 16 + b + i / 4) % 2 != 0 || (row + i) % 3 == 1;
          if (two_of_four) low = high = (row + i + i / 4) % 4 < 2;
          if (low) codes[i] = static_cast<std::uint8_t>((codes[i] & 0xF0) | 8);
          if (high) codes[i] = static_cast<std::uint8_t>((codes[i] & 0x0F) | 0x80);
        }
      }
    }
  }
  return *std::move(bytes);
}

std::vector<std::byte> packed(const io::Gguf& file, bool blocks, bool bitmask,
                              bool two_of_four = false) {
  compress::SparseOptions options;
  options.blocks = blocks;
  options.bitmask = bitmask;
  options.two_of_four = two_of_four;
  auto bytes = compress::pack_sparse_model(file, options);
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

std::vector<float> logits_of(const Model& model) {
  auto session = Session::create(model);
  REQUIRE_MESSAGE(session, test::why(session));
  const std::array<std::int32_t, 5> tokens = {1, 300, 17, 411, 13};
  auto logits = session->append(tokens);
  REQUIRE_MESSAGE(logits, test::why(logits));
  std::vector<float> all(logits->data(), logits->data() + logits->extent(1));
  const std::array<std::int32_t, 1> next = {8};  // one row: other tiles than for many
  logits = session->append(next);
  REQUIRE_MESSAGE(logits, test::why(logits));
  all.insert(all.end(), logits->data(), logits->data() + logits->extent(1));
  return all;
}

Model load_from(const io::Gguf& file) {
  auto model = Model::from_gguf<graph::AllFormats>(file);
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

std::size_t count(const io::Gguf& file, io::GgmlType type) {
  std::size_t n = 0;
  for (const io::GgufTensor& tensor : file.tensors()) n += tensor.type == type;
  return n;
}

}  // namespace

TEST_CASE("a model without its zeros computes what it computes with them") {
  using io::GgmlType;
  for (const GgmlType type :
       {GgmlType::packed_q4_0_16x4, GgmlType::packed_q4_0_bitmask, GgmlType::packed_q4_0_2of4}) {
    CAPTURE(io::type_traits(type).name);
    const bool blocks = type == GgmlType::packed_q4_0_16x4;
    const bool bitmask = type == GgmlType::packed_q4_0_bitmask;
    const bool two_of_four = type == GgmlType::packed_q4_0_2of4;
    const std::vector<std::byte> plain_bytes = pruned(two_of_four);
    const InMemory plain(plain_bytes);
    const io::Gguf plain_file = plain.parse();
    const std::vector<float> expected = logits_of(load_from(plain_file));
    const InMemory dense(packed(plain_file, false, false));
    const io::Gguf dense_file = dense.parse();
    CHECK(logits_of(load_from(dense_file)) == expected);

    const InMemory sparse(packed(plain_file, blocks, bitmask, two_of_four));
    const io::Gguf file = sparse.parse();
    CHECK(count(file, type) == 3 * 7);
    CHECK(sparse.bytes().size() < dense.bytes().size());
    const Model model = load_from(file);
    const std::vector<float> logits = logits_of(model);
    REQUIRE(logits.size() == expected.size());
    // With AMX, prompts are rounded to bf16 for dense blocks and not for these. Else, of blocks the
    // sums of steps are exact, but they are added in another order.
    const bool is_rounded = simd::active_target() == simd::Target::AMX;
    if (blocks || is_rounded) {
      float largest = 0, error = 0;
      for (std::size_t i = 0; i < logits.size(); ++i) {
        largest = std::max(largest, std::abs(expected[i]));
        error = std::max(error, std::abs(logits[i] - expected[i]));
      }
      CHECK(error <= (is_rounded ? 1e-2f : 1e-3f) * largest);
    } else {
      CHECK(logits == expected);
    }
    // Matrices are used where they are in the file, and what they say of their size is exact.
    std::size_t in_file = 0, in_tensors = 0;
    for (Index layer = 0; layer < model.config().n_layers; ++layer) {
      for (std::size_t s = 0; s < kSlotCount; ++s) {
        const graph::Weight& w = model.weights().at(static_cast<Slot>(s), layer);
        if (!w || w.n == 0) continue;
        CHECK(w.data >= sparse.bytes().data());
        CHECK(w.data < sparse.bytes().data() + sparse.bytes().size());
        in_file += static_cast<std::size_t>(w.bytes());
      }
    }
    for (const io::GgufTensor& tensor : file.tensors()) {
      if (tensor.type == type) in_tensors += tensor.data.size();
    }
    CHECK(in_file == in_tensors);
    // From memory that does not outlive the model, they are copied.
    const std::vector<std::byte> short_lived(sparse.bytes().begin(), sparse.bytes().end());
    auto borrowed = io::Gguf::parse(short_lived, "borrowed");
    REQUIRE_MESSAGE(borrowed, test::why(borrowed));
    CHECK(logits_of(load_from(*borrowed)) == logits);
  }
}

TEST_CASE("sparse tensors that are damaged are refused by name when a model is loaded") {
  const std::vector<std::byte> plain = pruned();
  auto file = io::Gguf::parse(plain, "pruned");
  REQUIRE_MESSAGE(file, test::why(file));
  for (const bool blocks : {true, false}) {
    const std::vector<std::byte> bytes = packed(*file, blocks, !blocks);
    const InMemory good(bytes);
    const io::Gguf good_file = good.parse();
    for (const io::GgufTensor& tensor : good_file.tensors()) {
      if (!io::type_traits(tensor.type).has_own_size) continue;
      const auto at = static_cast<std::size_t>(tensor.data.data() - good.bytes().data());
      for (const std::size_t byte :
           {std::size_t{0}, std::size_t{8}, std::size_t{24}, std::size_t{33}, std::size_t{41}}) {
        const InMemory bad(bytes);
        bad.bytes()[at + byte] ^= std::byte{0x40};
        const io::Gguf bad_file = bad.parse();
        const auto model = Model::from_gguf<graph::AllFormats>(bad_file);
        REQUIRE_FALSE(model);
        CHECK(model.error().code == Errc::malformed);
        CHECK(model.error().message.find(std::string(tensor.name)) != std::string::npos);
      }
      break;
    }
  }
}

TEST_CASE("what is packed already is not packed again; packing can be cancelled") {
  const std::vector<std::byte> plain = pruned();
  auto file = io::Gguf::parse(plain, "pruned");
  REQUIRE_MESSAGE(file, test::why(file));
  const InMemory once(packed(*file, true, true));
  const io::Gguf packed_file = once.parse();
  const auto twice = compress::pack_sparse_model(packed_file);
  REQUIRE_FALSE(twice);
  CHECK(twice.error().code == Errc::unsupported);
  int n = 0;
  const auto cancelled = compress::pack_sparse_model(
      *file, {}, [&](const compress::SparseTensor&) { return ++n < 3; });
  REQUIRE_FALSE(cancelled);
  CHECK(cancelled.error().code == Errc::cancelled);
  CHECK(n == 3);
  const auto folder = std::filesystem::temp_directory_path() / "nibble_sparse_no_folder" / "x.gguf";
  CHECK_FALSE(compress::pack_sparse_model(*file, folder.string()));
}

}  // namespace sparse_file_test
