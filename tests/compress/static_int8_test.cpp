// SPDX-License-Identifier: Apache-2.0
//
// Models of 8-bit weights with one scale for each row: converted, loaded, computed with other
// formats where a program has no kernels for them; and files that are wrong.
#include "nibble/compress/static_int8.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "compress/distance.hpp"
#include "doctest/doctest.h"
#include "model/random_model.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/load.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/weight_conversion.hpp"
#include "why.hpp"

namespace static_int8_test {

using namespace nibble;
using compress::ProductInput;
using compress::to_static_int8;
using quant::StaticScale;
using test::distance;

namespace {

constexpr StaticScale kSymmetric{0.04f, 0, false}, kAffine{0.04f, 120, true};

test::RandomModel random_model() {
  test::ModelShape shape;
  shape.dim = 48;
  shape.ffn_dim = 80;
  return test::RandomModel(shape, 7);
}

io::Gguf parsed(const std::vector<std::byte>& bytes) {
  auto file = io::Gguf::parse(bytes, "a model");
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

// A range for each matrix of the layers and for the output; the embedding is not tied.
std::vector<ProductInput> inputs_of(const io::Gguf& file, const StaticScale& scale) {
  std::vector<ProductInput> inputs;
  for (const io::GgufTensor& tensor : file.tensors()) {
    const bool is_read = tensor.n_dims == 2 && tensor.name != "token_embd.weight";
    if (is_read) inputs.push_back({std::string(tensor.name), scale});
  }
  return inputs;
}

std::vector<std::byte> converted(const io::Gguf& file, const StaticScale& scale,
                                 bool dynamic = false) {
  auto bytes = to_static_int8(file, inputs_of(file, scale), {.dynamic = dynamic});
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

Result<Model> loaded(const io::Gguf& file) { return Model::from_gguf<graph::AllFormats>(file); }
// With some formats only.
template <class Formats>
Result<Model> loaded_with(const io::Gguf& file) {
  return Model::from_gguf<Formats, ArchitectureList<Llama>>(file);
}

std::vector<float> logits_of(const Model& model) {
  auto session = Session::create(model);
  REQUIRE_MESSAGE(session, test::why(session));
  const std::array<std::int32_t, 6> tokens = {1, 30, 17, 4, 13, 22};
  const auto logits = session->append(tokens);
  REQUIRE_MESSAGE(logits, test::why(logits));
  return {logits->data(), logits->data() + logits->extent(1)};
}

// The file with tensors left out, or replaced.
struct Changed {
  std::string name;
  io::GgmlType type = io::GgmlType::f32;
  std::vector<std::uint64_t> dims;
  std::vector<std::byte> data;  // empty: left out
};
template <class T>
Changed changed(std::string name, io::GgmlType type, std::vector<T> values) {
  Changed c{std::move(name), type, {values.size()}, {}};
  c.data.resize(values.size() * sizeof(T));
  std::memcpy(c.data.data(), values.data(), c.data.size());
  return c;
}
std::vector<std::byte> with(const io::Gguf& file, const Changed& change) {
  io::GgufWriter writer;
  writer.copy_metadata(file);
  bool is_there = false;
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name != change.name) {
      writer.add_tensor(tensor);
      continue;
    }
    is_there = true;
    if (!change.data.empty()) {
      writer.add_tensor(change.name, change.type, change.dims, change.data);
    }
  }
  if (!is_there) writer.add_tensor(change.name, change.type, change.dims, change.data);
  auto bytes = writer.to_bytes();
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

std::string error_of(const io::Gguf& file, const Changed& change) {
  const auto bytes = with(file, change);
  const io::Gguf wrong = parsed(bytes);
  const auto model = loaded(wrong);
  CHECK(!model);
  return model ? "" : model.error().message;
}

bool has(const std::string& text, const char* part) { return text.find(part) != text.npos; }

using Floats = graph::FormatList<quant::F16, quant::F32>;
using F32Only = graph::FormatList<quant::F32>;

}  // namespace

TEST_CASE(
    "static INT8: the file has codes, scales and ranges; its weights are those of quant::fit") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const io::Gguf original = parsed(original_bytes);
  for (const StaticScale& scale : {kSymmetric, kAffine}) {
    const auto bytes = converted(original, scale);
    const io::Gguf file = parsed(bytes);
    const std::size_t n_inputs = inputs_of(original, scale).size();
    CHECK(file.tensors().size() ==
          original.tensors().size() + n_inputs * (scale.is_unsigned ? 3 : 2));
    for (const test::RandomTensor& t : model.tensors()) {
      const io::GgufTensor* const tensor = file.find_tensor(t.name());
      REQUIRE(tensor != nullptr);
      if (t.n == 0 || t.slot == Slot::token_embd) {
        CHECK(tensor->type == io::GgmlType::f32);
        continue;
      }
      CHECK(tensor->type == io::GgmlType::i8);
      const std::string name = t.name().substr(0, t.name().size() - 7);
      const io::GgufTensor* const scales = file.find_tensor(name + ".scales");
      const io::GgufTensor* const input_scale = file.find_tensor(name + ".input_scale");
      const io::GgufTensor* const input_zero = file.find_tensor(name + ".input_zero");
      REQUIRE(scales != nullptr);
      REQUIRE(input_scale != nullptr);
      CHECK((input_zero != nullptr) == scale.is_unsigned);
      float value;
      std::memcpy(&value, input_scale->data.data(), 4);
      CHECK(value == scale.scale);
      int faults = 0;
      for (Index row = 0; row < t.n; ++row) {
        double absmax = 0;
        for (Index i = 0; i < t.k; ++i) {
          absmax = std::max(absmax,
                            std::fabs(double{t.values[static_cast<std::size_t>(row * t.k + i)]}));
        }
        std::memcpy(&value, scales->data.data() + row * 4, 4);
        faults += value != static_cast<float>(absmax / 127);
        for (Index i = 0; i < t.k; ++i) {
          const auto at = static_cast<std::size_t>(row * t.k + i);
          const double error =
              double{t.values[at]} -
              double{value} * static_cast<int>(static_cast<std::int8_t>(tensor->data[at]));
          faults += std::fabs(error) > double{value} * (0.5 + 127 * 0x1p-22);
        }
      }
      CHECK(faults == 0);
    }
  }
}

TEST_CASE("static INT8: loaded models are near the original, with each kind of input") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const io::Gguf original = parsed(original_bytes);
  const auto original_model = loaded(original);
  REQUIRE_MESSAGE(original_model, test::why(original_model));
  const auto expected = logits_of(*original_model);
  const auto check = [&](const StaticScale& scale, bool dynamic, double tolerance) {
    const auto bytes = converted(original, scale, dynamic);
    const io::Gguf file = parsed(bytes);
    const auto int8 = loaded(file);
    REQUIRE_MESSAGE(int8, test::why(int8));
    CHECK(int8->conversions().empty());
    const graph::Weight& w = int8->weights().at(Slot::ffn_up, 1);
    CHECK(w.ops->format == quant::Format::i8_channel);
    CHECK(w.input == (dynamic ? StaticScale{} : scale));
    const auto memory = Model::memory_needed<graph::AllFormats>(file);
    REQUIRE_MESSAGE(memory, test::why(memory));
    CHECK(memory->weights == int8->weight_bytes());
    const double off = distance(logits_of(*int8), expected);
    const std::string kind = dynamic ? "dynamic" : scale.is_unsigned ? "affine" : "symmetric";
    MESSAGE(kind, ": ", off);
    CHECK(off < tolerance);
    CHECK(off > 1e-4);  // it was not f32
  };
  // Normed inputs have size 1, and ranges of 5: a step is 0.04 of it. Ten products in a row; random
  // weights amplify errors.
  check(kSymmetric, true, 0.05);
  check(kSymmetric, false, 0.08);
  check(kAffine, false, 0.08);
  // A range that is a hundred times too small is another model.
  const auto bytes = converted(original, {kSymmetric.scale / 100, 0, false});
  const io::Gguf file = parsed(bytes);
  const auto int8 = loaded(file);
  REQUIRE(int8);
  CHECK(distance(logits_of(*int8), expected) > 0.2);
}

TEST_CASE("static INT8: without kernels for it, a model runs in f16 and says so") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const io::Gguf original = parsed(original_bytes);
  const auto bytes = converted(original, kAffine);
  const io::Gguf file = parsed(bytes);
  const std::size_t n = inputs_of(original, kAffine).size();

  const auto f16 = loaded_with<Floats>(file);
  REQUIRE_MESSAGE(f16, test::why(f16));
  REQUIRE(f16->conversions().size() == 1);
  CHECK(f16->conversions()[0].from == io::GgmlType::i8);
  CHECK(f16->conversions()[0].to == quant::Format::f16);
  CHECK(f16->conversions()[0].n_tensors == n);
  CHECK(to_string(f16->conversions()[0]) ==
        std::to_string(n) + " matrices in I8 are computed with as f16");
  const graph::Weight& w = f16->weights().at(Slot::ffn_up, 1);
  CHECK(w.ops->format == quant::Format::f16);
  CHECK(!w.input);

  const auto f32 = loaded_with<F32Only>(file);
  REQUIRE_MESSAGE(f32, test::why(f32));
  CHECK(f32->conversions()[0].to == quant::Format::f32);
  // In f32 the weights are exactly scale * code; in f16 they are rounded once more.
  CHECK(distance(logits_of(*f16), logits_of(*f32)) < 0.01);
  const auto int8 = loaded(file);
  REQUIRE(int8);
  CHECK(distance(logits_of(*f32), logits_of(*int8)) > 1e-4);
  std::vector<float> row(80);
  const graph::Weight& down = f32->weights().at(Slot::ffn_down, 0);
  down.ops->row(down.data, down.n, down.k, 47, row.data());
  float scale;
  std::memcpy(&scale, file.find_tensor("blk.0.ffn_down.scales")->data.data() + 47 * 4, 4);
  const auto codes = file.find_tensor("blk.0.ffn_down.weight")->data.subspan(47 * 80, 80);
  int faults = 0;
  for (std::size_t i = 0; i < 80; ++i) {
    faults += row[i] != scale * static_cast<float>(static_cast<std::int8_t>(codes[i]));
  }
  CHECK(faults == 0);

  const auto none = loaded_with<graph::FormatList<quant::Q8_0>>(file);
  REQUIRE(!none);
  CHECK(has(none.error().message, "is not compiled") + has(none.error().message, "none of them") +
            has(none.error().message, "not compiled into this program") >=
        1);
}

TEST_CASE("static INT8: weights that f16 does not hold run in f32") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const auto bytes = converted(parsed(original_bytes), kSymmetric);
  std::vector<float> scales(80, 600.0f);
  const auto large = with(parsed(bytes), changed("blk.0.ffn_up.scales", io::GgmlType::f32, scales));
  const io::Gguf file = parsed(large);
  const auto f16 = loaded_with<Floats>(file);
  REQUIRE_MESSAGE(f16, test::why(f16));
  CHECK(f16->weights().at(Slot::ffn_up, 0).ops->format == quant::Format::f32);
  CHECK(f16->weights().at(Slot::ffn_up, 1).ops->format == quant::Format::f16);
  CHECK(f16->conversions().size() == 2);
}

TEST_CASE("static INT8: what is wrong with a file is said") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const auto bytes = converted(parsed(original_bytes), kAffine);
  const io::Gguf file = parsed(bytes);
  const std::string name = "blk.1.attn_q";
  using enum io::GgmlType;
  const auto n = static_cast<std::size_t>(48);

  CHECK(has(error_of(file, {name + ".scales", f32, {}, {}}), "blk.1.attn_q.scales"));
  CHECK(has(error_of(file, changed(name + ".scales", f32, std::vector<float>(n - 1, 1.0f))),
            "expected 48 of F32"));
  CHECK(has(error_of(file, changed(name + ".scales", i32, std::vector<std::int32_t>(n, 1))),
            "expected 48 of F32"));
  for (const float bad : {-1.0f, NAN, INFINITY, 1e37f}) {
    std::vector<float> scales(n, 0.5f);
    scales[17] = bad;
    const std::string message = error_of(file, changed(name + ".scales", f32, scales));
    CHECK(has(message, "blk.1.attn_q.weight"));
    CHECK(has(message, "the scale of row 17"));
  }
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY, 1e-40f}) {
    CHECK(has(error_of(file, changed(name + ".input_scale", f32, std::vector<float>{bad})),
              "the input of tensor 'blk.1.attn_q.weight'"));
  }
  CHECK(has(error_of(file, changed(name + ".input_scale", f32, std::vector<float>{1, 1})),
            "expected 1 of F32"));
  for (const std::int32_t bad : {-1, 256, INT32_MIN}) {
    CHECK(has(error_of(file, changed(name + ".input_zero", i32, std::vector<std::int32_t>{bad})),
              "zero point"));
  }
  CHECK(has(error_of(file, {name + ".input_scale", f32, {}, {}}), "scale 0"));
  // A range of a tensor that is not there, or not in 8 bits, belongs to nothing.
  CHECK(has(error_of(file, changed("blk.1.attn_x.scales", f32, std::vector<float>{1})),
            "blk.1.attn_x.scales"));
  CHECK(has(error_of(file, changed("token_embd.input_scale", f32, std::vector<float>{1})),
            "token_embd.input_scale"));
  // A code of -128.
  const io::GgufTensor* const codes = file.find_tensor(name + ".weight");
  Changed change{name + ".weight", i8, {48, 48}, {codes->data.begin(), codes->data.end()}};
  change.data[30 * 48 + 5] = std::byte{0x80};
  CHECK(has(error_of(file, change), "row 30 of a matrix of 8-bit weights has a code of -128"));
  // A vector of codes.
  CHECK(has(error_of(file, changed("blk.1.attn_norm.weight", i8, std::vector<std::int8_t>(48, 1))),
            "type I8"));
  // Without ranges it is right.
  const auto without_zero = with(file, {name + ".input_zero", i32, {}, {}});
  CHECK(loaded(parsed(without_zero)).has_value());
}

TEST_CASE("static INT8: what is wrong with a conversion is said") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const io::Gguf file = parsed(original_bytes);
  const auto error = [&](std::vector<ProductInput> inputs) {
    const auto bytes = to_static_int8(file, inputs);
    CHECK(!bytes);
    return bytes ? "" : bytes.error().message;
  };
  CHECK(has(error({}), "no ranges of inputs"));
  CHECK(has(error({{"blk.7.attn_q.weight", kSymmetric}}), "another model"));
  CHECK(has(error({{"blk.0.attn_q.weight", kSymmetric}, {"blk.0.attn_q.weight", kAffine}}),
            "two ranges"));
  CHECK(has(error({{"blk.0.attn_norm.weight", kSymmetric}}), "dimensions"));
  for (const StaticScale& bad :
       {StaticScale{}, StaticScale{NAN, 0, false}, StaticScale{INFINITY, 0, false},
        StaticScale{-1, 0, false}, StaticScale{1, 256, true}, StaticScale{1, 3, false}}) {
    CHECK(has(error({{"blk.0.attn_q.weight", bad}}), "tensor 'blk.0.attn_q.weight'"));
  }
  int n_calls = 0;
  const auto cancelled =
      to_static_int8(file, inputs_of(file, kSymmetric), {}, [&](const compress::Int8Matrix& m) {
        CHECK(m.errors.count == m.n * m.k);
        return ++n_calls < 3;
      });
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code == Errc::cancelled);
  CHECK(n_calls == 3);

  Changed change{"blk.0.ffn_up.weight", io::GgmlType::f32, {48, 80}, {}};
  const auto source = file.find_tensor(change.name)->data;
  change.data.assign(source.begin(), source.end());
  const float nan = NAN;
  std::memcpy(change.data.data() + (33 * 48 + 7) * 4, &nan, 4);
  const auto with_nan = with(file, change);
  const io::Gguf bad = parsed(with_nan);
  const auto bytes = to_static_int8(bad, inputs_of(bad, kSymmetric));
  REQUIRE(!bytes);
  CHECK(has(bytes.error().message, "weight 7 of row 33 is not a finite number"));
}

TEST_CASE("static INT8: a converted file is loaded from disk, and cannot be converted again") {
  const auto model = random_model();
  const auto original_bytes = model.gguf();
  const io::Gguf original = parsed(original_bytes);
  const auto path = std::filesystem::temp_directory_path() / "nibble_static_int8_test.gguf";
  REQUIRE(to_static_int8(original, inputs_of(original, kAffine), path.string()));
  {
    const auto file = io::Gguf::open(path.string());
    REQUIRE_MESSAGE(file, test::why(file));
    const auto from_disk = loaded(*file);
    REQUIRE_MESSAGE(from_disk, test::why(from_disk));
    const auto bytes = converted(original, kAffine);
    const io::Gguf in_memory = parsed(bytes);
    const auto same = loaded(in_memory);
    REQUIRE(same);
    CHECK(logits_of(*from_disk) == logits_of(*same));
    const auto again = to_static_int8(*file, inputs_of(original, kAffine));
    REQUIRE(!again);
    CHECK(has(again.error().message, "I8"));
  }
  std::filesystem::remove(path);
}

}  // namespace static_int8_test
