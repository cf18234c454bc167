// SPDX-License-Identifier: Apache-2.0
//
// Files of compressed models (docs/compressed-files.md): factors of low rank in every kind of
// tensor that holds matrices, and layers that share tensors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "model/random_model.hpp"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/sparse_file.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/model.hpp"
#include "nibble/simd/dispatch.hpp"
#include "why.hpp"

namespace compressed_files_test {

using namespace nibble;
using compress::SharedPair;
using quant::Format;
using test::ModelShape;
using test::RandomModel;

namespace {

using Bytes = std::vector<std::byte>;

constexpr const char* kA = "blk.0.ffn_up.factor_a.weight";
constexpr const char* kB = "blk.0.ffn_up.factor_b.weight";
constexpr std::uint64_t kN = 96, kK = 64, kRank = 32;

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result, test::why(result));
  return *std::move(result);
}

ModelShape shape_of_test() {
  ModelShape shape;
  shape.dim = 64;
  shape.head_dim = 16;
  shape.ffn_dim = 96;
  shape.rope_dim = 16;
  return shape;
}

io::Gguf parsed(const Bytes& bytes) { return must(io::Gguf::parse(bytes, "m.gguf")); }
Result<Model> load_from(const io::Gguf& file) { return Model::from_gguf<graph::AllFormats>(file); }

std::vector<float> logits_of(const Model& model) {
  auto session = must(Session::create(model));
  const std::vector<std::int32_t> tokens = {1, 30, 17, 4, 13, 22};
  const auto logits = must(session.append(tokens));
  return {logits.data(), logits.data() + logits.extent(1)};
}

// A file in memory that models use in place.
struct InMemory {
  explicit InMemory(const Bytes& bytes) : memory(must(AlignedBuffer::allocate(bytes.size()))) {
    std::copy(bytes.begin(), bytes.end(), memory.data());
    size = bytes.size();
  }
  io::Gguf parse() const {
    return must(io::Gguf::parse_static(memory.bytes().first(size), "in place"));
  }
  AlignedBuffer memory;
  std::size_t size = 0;
};

// A model with factors beside some matrices and instead of others.
Bytes with_factors(Format format) {
  const Bytes bytes = RandomModel(shape_of_test(), 5).gguf();
  InlineExecutor alone;
  return must(compress::factor_model(
      parsed(bytes),
      [&](std::string_view name) -> std::optional<compress::FactorChoice> {
        if (name.find("ffn_up") == name.npos && name.find("attn_q") == name.npos) return {};
        compress::FactorChoice choice{
            .rank = {.rank = 32, .multiple = 32}, .factors = format, .base = {}};
        if (name.find("ffn_up") != name.npos) choice.base = Format::q4_0;
        return choice;
      },
      alone));
}

// The file with some tensors in the place of others of their name, or beside them.
struct NewTensor {
  std::string name;
  io::GgmlType type;
  std::vector<std::uint64_t> dims;
  Bytes data;
};
Bytes replaced(const Bytes& bytes, const std::vector<NewTensor>& tensors) {
  const io::Gguf file = parsed(bytes);
  io::GgufWriter writer;
  writer.copy_metadata(file);
  for (const io::GgufTensor& tensor : file.tensors()) {
    const bool is_new = std::any_of(tensors.begin(), tensors.end(),
                                    [&](const NewTensor& t) { return t.name == tensor.name; });
    if (!is_new) writer.add_tensor(tensor);
  }
  for (const NewTensor& t : tensors) writer.add_tensor(t.name, t.type, t.dims, t.data);
  return must(writer.to_bytes());
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

const graph::Factors& factors_of(const Model& model) {
  const graph::Weight& w = model.weights().at(Slot::ffn_up, 0);
  REQUIRE(w.factors != nullptr);
  return *w.factors;
}

std::vector<float> row_of(const graph::Weight& w, Index row) {
  std::vector<float> values(static_cast<std::size_t>(w.k));
  w.ops->row(w.data, w.n, w.k, row, values.data());
  return values;
}

}  // namespace

TEST_CASE("a model with factors can be packed, in place and copied") {
  for (const Format format : {Format::f16, Format::q8_0}) {
    CAPTURE(std::string(to_string(format)));
    const Bytes factored = with_factors(format);
    ConvertOptions options;
    options.format = Format::q8_0;
    const InMemory plain(must(quantize_model(parsed(factored), options)));
    options.packed = true;
    const Bytes packed_bytes = must(quantize_model(parsed(factored), options));
    const InMemory packed(packed_bytes);
    const std::vector<float> expected = logits_of(must(load_from(plain.parse())));
    const Model model = must(load_from(packed.parse()));
    CHECK(logits_of(model) == expected);
    CHECK(factors_of(model).a.data >= packed.memory.data());
    CHECK(factors_of(model).a.data < packed.memory.data() + packed.size);
    const io::Gguf borrowed = parsed(packed_bytes);
    const Model copied = must(load_from(borrowed));
    CHECK(copied.weight_bytes_in_place() == 0);
    CHECK(logits_of(copied) == expected);
    const auto memory = must(Model::memory_needed<graph::AllFormats>(borrowed));
    CHECK(memory.weights == copied.weight_bytes());
  }
}

TEST_CASE("factors without their zeros") {
  const Bytes factored = with_factors(Format::q4_0);
  // Every second block of 16 rows by 4 weights of B is zero.
  const io::GgufTensor b = must(parsed(factored).tensor(kB));
  Bytes data(b.data.begin(), b.data.end());
  auto* const blocks = reinterpret_cast<quant::Q4_0::Block*>(data.data());
  for (std::size_t i = 0; i < data.size() / sizeof(*blocks); ++i) {
    for (std::size_t j = 0; j < 16; ++j) {
      if (j / 4 % 2 == 0) blocks[i].codes[j] = 0x88;
    }
  }
  const Bytes zeros = replaced(factored, {{kB, io::GgmlType::q4_0, {kK, kRank}, data}});
  const Bytes sparse = must(compress::pack_sparse_model(parsed(zeros)));
  const io::Gguf file = parsed(sparse);
  CHECK(must(file.tensor(kB)).type == io::GgmlType::packed_q4_0_16x4);
  const Model model = must(load_from(file));
  CHECK(factors_of(model).b.ops->format == Format::q4_0_16x4);
  const std::vector<float> logits = logits_of(model);
  const std::vector<float> expected = logits_of(must(load_from(parsed(zeros))));
  // With AMX, prompts are rounded to bf16 for dense blocks and not for these.
  const bool is_rounded = simd::active_target() == simd::Target::AMX;
  float largest = 0;
  for (const float logit : expected) largest = std::max(largest, std::abs(logit));
  for (std::size_t i = 0; i < logits.size(); ++i) {
    CHECK(std::abs(logits[i] - expected[i]) <= (is_rounded ? 1e-2f : 1e-3f) * largest);
  }
}

TEST_CASE("factors in a type that is only read, and in codes with scales") {
  const Bytes factored = with_factors(Format::f16);
  SUBCASE("NVFP4") {
    Bytes data(kRank * kK / 64 * 36);
    for (std::size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<std::byte>(i * 37 % 256);
      if (i % 36 < 4) data[i] = std::byte{0x10};  // 2^-5
    }
    const Bytes bytes = replaced(factored, {{kB, io::GgmlType::nvfp4, {kK, kRank}, data}});
    const Model model = must(load_from(parsed(bytes)));
    const graph::Weight& b = factors_of(model).b;
    CHECK(b.ops->format == Format::q8_0);  // the nearest
    REQUIRE(model.conversions().size() == 1);
    CHECK(model.conversions()[0].from == io::GgmlType::nvfp4);
    for (Index row = 0; row < static_cast<Index>(kRank); ++row) {
      std::vector<float> stored(kK);
      REQUIRE(quant::row_to_f32(io::GgmlType::nvfp4,
                                std::span(data).subspan(static_cast<std::size_t>(row) * 36, 36),
                                stored));
      const std::vector<float> packed = row_of(b, row);
      for (std::size_t i = 0; i < kK; ++i) {
        CHECK(std::fabs(packed[i] - stored[i]) <= 6.0f / 32 / 127);
      }
    }
    logits_of(model);
  }
  SUBCASE("I8") {
    std::vector<std::int8_t> codes(kN * kRank);
    std::vector<float> scales(kN);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<std::int8_t>(static_cast<int>(i * 31 % 255) - 127);
    }
    for (std::size_t i = 0; i < kN; ++i) scales[i] = 0.001f * static_cast<float>(1 + i % 5);
    const std::vector<NewTensor> tensors = {
        {kA, io::GgmlType::i8, {kRank, kN}, bytes_of(codes)},
        {"blk.0.ffn_up.factor_a.scales", io::GgmlType::f32, {kN}, bytes_of(scales)},
        {"blk.0.ffn_up.factor_a.input_scale", io::GgmlType::f32, {1}, bytes_of<float>({0.25f})},
        {"blk.0.ffn_up.factor_a.input_zero", io::GgmlType::i32, {1}, bytes_of<int>({100})}};
    const Bytes bytes = replaced(factored, tensors);
    const Model model = must(load_from(parsed(bytes)));
    const graph::Weight& a = factors_of(model).a;
    CHECK(a.ops->format == Format::i8_channel);
    CHECK(a.input == quant::StaticScale{0.25f, 100, true});
    for (std::size_t row = 0; row < kN; ++row) {
      const std::vector<float> packed = row_of(a, static_cast<Index>(row));
      for (std::size_t i = 0; i < kRank; ++i) {
        CHECK(packed[i] == scales[row] * static_cast<float>(codes[row * kRank + i]));
      }
    }
    logits_of(model);
    // Without the kernels for it the codes are converted.
    const auto floats = must(Model::from_gguf(parsed(bytes)));
    CHECK(factors_of(floats).a.ops->format == Format::f16);
    // Without scales they mean nothing.
    const auto error = load_from(parsed(replaced(factored, {tensors.front()}))).error();
    CHECK(error.code == Errc::not_found);
    CHECK(error.message.find("'blk.0.ffn_up.factor_a.scales'") != std::string::npos);
  }
}

TEST_CASE("factors whose axes are stored in the other order") {
  const Bytes factored = with_factors(Format::f32);
  const io::Gguf file = parsed(factored);
  const io::GgufTensor b = must(file.tensor(kB));
  std::vector<float> transposed(kRank * kK);
  for (std::size_t r = 0; r < kRank; ++r) {
    for (std::size_t k = 0; k < kK; ++k) {
      std::memcpy(&transposed[k * kRank + r], b.data.data() + (r * kK + k) * sizeof(float),
                  sizeof(float));
    }
  }
  io::GgufWriter writer;
  writer.copy_metadata(file);
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name != kB) writer.add_tensor(tensor);
  }
  const InMemory others(must(writer.to_bytes()));
  auto copy = must(AlignedBuffer::allocate(others.size));
  std::copy_n(others.memory.data(), others.size, copy.data());
  io::GgufTensor swapped = b;
  swapped.data = std::as_bytes(std::span(transposed));
  swapped.swapped = {kK, kRank, sizeof(float)};
  const io::Gguf joined =
      must(io::Gguf::join(std::move(copy), std::span(&swapped, 1), {}, "joined"));
  CHECK(logits_of(must(load_from(joined))) == logits_of(must(load_from(file))));
}

TEST_CASE("a file may have fewer tensors than layers, if they share them") {
  ModelShape shape = shape_of_test();
  shape.n_layers = 24;
  const Bytes bytes = RandomModel(shape, 3).gguf();
  const io::Gguf file = parsed(bytes);
  std::vector<SharedPair> pairs;
  for (const io::GgufTensor& tensor : file.tensors()) {
    const std::string name(tensor.name);
    if (!name.starts_with("blk.") || name.starts_with("blk.0.")) continue;
    pairs.push_back({name, "blk.0" + name.substr(name.find('.', 4))});
  }
  const Bytes shared = must(compress::share_tensors(file, pairs));
  const io::Gguf small = parsed(shared);
  CHECK(small.tensors().size() == 12);
  const Model model = must(load_from(small));
  CHECK(model.weights().at(Slot::ffn_up, 23).data == model.weights().at(Slot::ffn_up, 0).data);
  logits_of(model);

  // Names that are not there cannot stand for layers.
  io::GgufWriter writer;
  writer.copy_metadata(small);
  writer.set_array("nibble.shared_tensors", std::vector<std::string>{"a=b"});
  for (const io::GgufTensor& tensor : small.tensors()) writer.add_tensor(tensor);
  const auto error = load_from(parsed(must(writer.to_bytes()))).error();
  CHECK(error.code == Errc::malformed);
  CHECK(error.message.find("24 layers but 12 tensors") != std::string::npos);
}

TEST_CASE("factors of rotations may be shared, and are checked all the same") {
  // As many pairs of a head as the model is wide: a norm has the shape of rope_freqs.
  ModelShape shape;
  shape.dim = 8;
  shape.n_heads = 2;
  shape.n_kv_heads = 1;
  shape.head_dim = shape.rope_dim = 16;
  shape.rope_factors = true;
  const Bytes bytes = RandomModel(shape, 9).gguf();
  const io::Gguf file = parsed(bytes);
  const auto norm_with = [&](float value) {
    std::vector<float> norm = {1.5f, 0.75f, 2, 1, 1, value, 1, 3};
    return NewTensor{"output_norm.weight", io::GgmlType::f32, {8}, bytes_of(norm)};
  };
  const std::vector<SharedPair> pairs = {{"rope_freqs.weight", "output_norm.weight"}};
  NewTensor as_stored = norm_with(2.5f);
  as_stored.name = "rope_freqs.weight";
  const Bytes stored = replaced(bytes, {norm_with(2.5f), as_stored});
  const Bytes shared = must(compress::share_tensors(parsed(stored), pairs));
  CHECK(logits_of(must(load_from(parsed(shared)))) == logits_of(must(load_from(parsed(stored)))));
  CHECK(logits_of(must(load_from(parsed(shared)))) != logits_of(must(load_from(file))));
  for (const float bad : {-1.0f, 0.0f, std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity()}) {
    CAPTURE(bad);
    const Bytes wrong =
        must(compress::share_tensors(parsed(replaced(bytes, {norm_with(bad)})), pairs));
    const auto loaded = load_from(parsed(wrong));
    REQUIRE(!loaded);
    CHECK(loaded.error().code == Errc::malformed);
    CHECK(loaded.error().message.find("not positive") != std::string::npos);
  }
}

}  // namespace compressed_files_test
