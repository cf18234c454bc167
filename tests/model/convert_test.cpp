// SPDX-License-Identifier: Apache-2.0
#include "nibble/model/convert.hpp"
#include "nibble/model/format_mix.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "test_data.hpp"
#include "why.hpp"

using namespace nibble;
using quant::Format;

namespace {

constexpr std::array kFileFormats = {Format::f32,  Format::f16,  Format::bf16,
                                     Format::q8_0, Format::q4_0, Format::q4_1};

std::string shipped_path() {
  const char* const folder = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE_MESSAGE(folder != nullptr, "NIBBLE_PROJECT_DIR is not set");
  return std::string(folder) + "/examples/models/home-commands-f16.gguf";
}

io::Gguf open_shipped() {
  auto file = io::Gguf::open(shipped_path());
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

// A model converted in memory, with its bytes.
struct Converted {
  std::vector<std::byte> bytes;
  std::vector<ConvertedTensor> report;
  io::Gguf parse() const {
    auto file = io::Gguf::parse(bytes, "converted");
    REQUIRE_MESSAGE(file, test::why(file));
    return *std::move(file);
  }
};

Converted convert(const io::Gguf& file, const ConvertOptions& options) {
  Converted result;
  auto bytes = quantize_model(file, options, [&](const ConvertedTensor& tensor) {
    result.report.push_back(tensor);
    return true;
  });
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  result.bytes = *std::move(bytes);
  return result;
}

Error convert_error(const io::Gguf& file, const ConvertOptions& options) {
  auto bytes = quantize_model(file, options);
  REQUIRE(!bytes);
  return bytes.error();
}

// A file of one tensor "w" of f32 with the given shape.
class OneTensor {
 public:
  OneTensor(std::vector<std::uint64_t> dims, std::vector<float> values) {
    io::GgufWriter writer;
    writer.set("general.architecture", "llama");
    writer.add_tensor("w", io::GgmlType::f32, dims, std::as_bytes(std::span(values)));
    auto bytes = writer.to_bytes();
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    bytes_ = *std::move(bytes);
  }
  io::Gguf parse() const {
    auto file = io::Gguf::parse(bytes_, "one");
    REQUIRE_MESSAGE(file, test::why(file));
    return *std::move(file);
  }

 private:
  std::vector<std::byte> bytes_;
};

std::vector<float> weights_of(const io::GgufTensor& tensor) {
  std::vector<float> weights(static_cast<std::size_t>(tensor.n_elements()));
  REQUIRE(quant::row_to_f32(tensor.type, tensor.data, weights));
  return weights;
}

template <class F>
void check_rows(const io::GgufTensor& old, const io::GgufTensor& made) {
  const std::vector<float> x = weights_of(old);
  const auto k = static_cast<std::size_t>(old.dims[0]);
  const std::size_t row_bytes = made.data.size() / (x.size() / k);
  for (std::size_t row = 0; row < x.size() / k; ++row) {
    const std::span<const float> weights(x.data() + row * k, k);
    std::vector<typename F::Block> blocks(k / F::kLength);
    quant::quantize_row<F>(weights, blocks);
    REQUIRE(row_bytes == blocks.size() * sizeof(blocks[0]));
    REQUIRE(std::memcmp(blocks.data(), made.data.data() + row * row_bytes, row_bytes) == 0);
  }
}

}  // namespace

TEST_CASE("matrices get the bytes of the row quantizers, vectors stay f32") {
  const io::Gguf file = open_shipped();
  for (const Format format : {Format::q8_0, Format::q4_0, Format::q4_1}) {
    CAPTURE(to_string(format));
    const Converted converted = convert(file, {.format = format});
    const io::Gguf made = converted.parse();
    REQUIRE(made.tensors().size() == file.tensors().size());
    std::size_t n_matrices = 0;
    for (std::size_t i = 0; i < file.tensors().size(); ++i) {
      const io::GgufTensor& old = file.tensors()[i];
      const io::GgufTensor& tensor = made.tensors()[i];
      CAPTURE(std::string(old.name));
      CHECK(tensor.name == old.name);
      CHECK(tensor.dims == old.dims);
      CHECK(tensor.n_dims == old.n_dims);
      if (old.n_dims < 2) {
        CHECK(tensor.type == io::GgmlType::f32);
        CHECK(weights_of(tensor) == weights_of(old));
        continue;
      }
      ++n_matrices;
      CHECK(tensor.type == *quant::ggml_type_of(format));
      if (format == Format::q8_0) check_rows<quant::Q8_0>(old, tensor);
      if (format == Format::q4_0) check_rows<quant::Q4_0>(old, tensor);
      if (format == Format::q4_1) check_rows<quant::Q4_1>(old, tensor);
    }
    CHECK(n_matrices == 22);  // 3 layers of 7, and the embedding
  }
}

TEST_CASE("the metadata is kept, its file type and quantization version are new") {
  const io::Gguf file = open_shipped();
  const std::map<Format, std::uint32_t> kFileTypes = {{Format::f32, 0},  {Format::f16, 1},
                                                      {Format::q4_0, 2}, {Format::q4_1, 3},
                                                      {Format::q8_0, 7}, {Format::bf16, 32}};
  for (const Format format : kFileFormats) {
    CAPTURE(to_string(format));
    const Converted converted = convert(file, {.format = format});
    const io::Gguf made = converted.parse();
    CHECK(*made.get_u32("general.file_type") == kFileTypes.at(format));
    const bool is_quantized =
        format == Format::q8_0 || format == Format::q4_0 || format == Format::q4_1;
    if (is_quantized) CHECK(*made.get_u32("general.quantization_version") == 2);
    for (const io::GgufEntry& entry : file.metadata()) {
      CAPTURE(std::string(entry.key));
      if (entry.key == "general.file_type" || entry.key == "general.quantization_version") continue;
      const io::GgufValue* const value = made.find(entry.key);
      REQUIRE(value != nullptr);
      CHECK(value->type() == entry.value.type());
      CHECK(std::ranges::equal(value->encoded(), entry.value.encoded()));
    }
  }
}

TEST_CASE("f16 to f32 and back, and q8_0 to f32 and back, are the same bytes") {
  const io::Gguf file = open_shipped();
  const Converted wide = convert(file, {.format = Format::f32});
  const Converted back = convert(wide.parse(), {.format = Format::f16});
  const Converted same = convert(file, {.format = Format::f16});
  CHECK(back.bytes == same.bytes);
  for (const ConvertedTensor& tensor : wide.report) CHECK(tensor.errors.max_abs == 0.0);

  // A quantized model is read as its dequantized weights; rounding these again changes nothing.
  const Converted small = convert(file, {.format = Format::q8_0});
  const Converted small_wide = convert(small.parse(), {.format = Format::f32});
  const Converted small_back = convert(small_wide.parse(), {.format = Format::q8_0});
  const io::Gguf a = small.parse(), b = small_back.parse();
  for (std::size_t i = 0; i < a.tensors().size(); ++i) {
    CHECK(weights_of(a.tensors()[i]) == weights_of(b.tensors()[i]));
  }
}

TEST_CASE("in its own format a tensor is copied, also where a second rounding would change it") {
  std::vector<std::byte> block(18, std::byte{0x99});  // codes 9: the weight equals the scale
  block[0] = std::byte{0x00};
  block[1] = std::byte{0x3C};  // 1; rounding 32 ones again gives the scale -1/8
  io::GgufWriter writer;
  writer.add_tensor("w", io::GgmlType::q4_0, std::array<std::uint64_t, 2>{32, 1}, block);
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto file = io::Gguf::parse(*bytes, "q4_0");
  REQUIRE(file);
  const Converted copied = convert(*file, {.format = Format::q4_0});
  CHECK(std::ranges::equal(copied.parse().tensor("w")->data, block));
  const Converted wide = convert(*file, {.format = Format::f32});
  CHECK(weights_of(*wide.parse().tensor("w")) == std::vector<float>(32, 1.0f));
  const Converted rounded = convert(wide.parse(), {.format = Format::q4_0});
  CHECK(!std::ranges::equal(rounded.parse().tensor("w")->data, block));
}

TEST_CASE("threads change neither bytes nor statistics") {
  const io::Gguf file = open_shipped();
  const Converted alone = convert(file, {.format = Format::q4_1});
  auto pool = ThreadPool::create({.n_threads = 3, .n_cpus = 3});
  REQUIRE(pool);
  const Converted together = convert(file, {.format = Format::q4_1, .executor = pool->get()});
  CHECK(together.bytes == alone.bytes);
  REQUIRE(together.report.size() == alone.report.size());
  for (std::size_t i = 0; i < alone.report.size(); ++i) {
    CHECK(together.report[i].errors.sum_squared_error == alone.report[i].errors.sum_squared_error);
  }
}

TEST_CASE("the report of a tensor states sizes and errors") {
  std::vector<float> values(64, 0.0f);
  values[0] = -8.0f;   // scale 1
  values[1] = 0.25f;   // rounds to 0
  values[2] = 3.0f;    // exact
  values[33] = 16.0f;  // scale -2
  values[34] = 15.0f;  // rounds to 14 (a tie: code 0.5)
  const OneTensor one({32, 2}, values);
  const Converted converted = convert(one.parse(), {.format = Format::q4_0});
  REQUIRE(converted.report.size() == 1);
  const ConvertedTensor& w = converted.report[0];
  CHECK(w.from == io::GgmlType::f32);
  CHECK(w.to == Format::q4_0);
  CHECK(w.reason == FormatReason::asked);
  CHECK(w.bytes_from == 256);
  CHECK(w.bytes_to == 36);
  CHECK(w.errors.count == 64);
  CHECK(w.errors.rounded_to_zero == 1);
  CHECK(w.errors.sign_flips == 0);
  CHECK(w.errors.max_abs == 1.0);
  CHECK(w.errors.sum_squared_error == doctest::Approx(0.0625 + 1.0));
}

TEST_CASE("formats by name, and rows that are no whole number of blocks") {
  const io::Gguf file = open_shipped();
  ConvertOptions options;
  options.format = Format::q4_0;
  std::vector<std::string> asked;
  options.choose = [&](std::string_view name) -> std::optional<Format> {
    asked.emplace_back(name);
    if (name == "token_embd.weight") return Format::q8_0;
    return std::nullopt;
  };
  const Converted converted = convert(file, options);
  const io::Gguf made = converted.parse();
  CHECK(made.tensor("token_embd.weight")->type == io::GgmlType::q8_0);
  CHECK(made.tensor("blk.0.attn_q.weight")->type == io::GgmlType::q4_0);
  CHECK(*made.get_u32("general.file_type") == 2);
  CHECK(asked.size() == 22);  // matrices only

  const OneTensor odd({48, 3}, std::vector<float>(144, 0.5f));
  const Converted kept = convert(odd.parse(), {.format = Format::q4_0});
  REQUIRE(kept.report.size() == 1);
  CHECK(kept.report[0].to == Format::f16);
  CHECK(kept.report[0].reason == FormatReason::row_length);
  CHECK(kept.parse().tensor("w")->type == io::GgmlType::f16);
  CHECK(weights_of(*kept.parse().tensor("w")) == std::vector<float>(144, 0.5f));
}

TEST_CASE("weights that are not finite or do not fit are errors that say where") {
  std::vector<float> values(32 * 5000, 1.0f);
  values[32 * 4999 + 7] = std::numeric_limits<float>::quiet_NaN();
  const Error nan = convert_error(OneTensor({32, 5000}, values).parse(), {.format = Format::q8_0});
  CHECK(nan.code == Errc::malformed);
  CHECK(nan.message == "one: tensor 'w': weight 7 of row 4999 is not a finite number");
  // Also if nothing is to be converted.
  CHECK(convert_error(OneTensor({32, 5000}, values).parse(), {.format = Format::f32}).code ==
        Errc::malformed);

  values[32 * 4999 + 7] = 1.0f;
  values[32 * 3 + 2] = 1e6f;
  const Error large = convert_error(OneTensor({32, 5000}, values).parse(), {.format = Format::f16});
  CHECK(large.code == Errc::limit);
  CHECK(large.message ==
        "one: tensor 'w': weight 2 of row 3, 1e+06, is too large for f16; choose another format "
        "for this tensor: f32 holds it");
  CHECK(quantize_model(OneTensor({32, 5000}, values).parse(), {.format = Format::bf16}));
}

TEST_CASE("a weight beyond the scale of a block is an error, not another weight") {
  // Far inside the tensor, so that one task of several finds it; small weights around it.
  std::vector<float> values(32 * 5000, 1.0f);
  values[32 * 3000 + 9] = -1e7f;
  const OneTensor one({32, 5000}, values);
  for (const Format format : {Format::q8_0, Format::q4_0, Format::q4_1}) {
    CAPTURE(to_string(format));
    for (const bool packed : {false, true}) {
      const Error error = convert_error(one.parse(), {.format = format, .packed = packed});
      CHECK(error.code == Errc::limit);
      CHECK(error.message ==
            std::string("one: tensor 'w': weight 9 of row 3000, -1e+07, is too large for ") +
                to_string(format) + "; choose another format for this tensor: f32 holds it");
    }
  }
  for (const Format format : {Format::f32, Format::bf16}) {
    CHECK(quantize_model(one.parse(), {.format = format}));
  }
}

TEST_CASE("what cannot be converted is an error") {
  const io::Gguf file = open_shipped();
  CHECK(convert_error(file, {.format = Format::i8_channel}).code == Errc::unsupported);
  ConvertOptions options;
  options.choose = [](std::string_view) { return Format::u8_affine; };
  CHECK(convert_error(file, options).code == Errc::unsupported);

  io::GgufWriter writer;
  const std::vector<std::byte> block(256);
  writer.add_tensor("k", io::GgmlType::i8, std::array<std::uint64_t, 2>{256, 1}, block);
  const auto bytes = writer.to_bytes();
  REQUIRE(bytes);
  const auto other = io::Gguf::parse(*bytes, "k.gguf");
  REQUIRE(other);
  const Error error = convert_error(*other, {});
  CHECK(error.code == Errc::unsupported);
  CHECK(error.message.find("k.gguf: tensor 'k'") == 0);

  const Converted packed = convert(file, {.format = Format::q8_0, .packed = true});
  const Error again = convert_error(packed.parse(), {});
  CHECK(again.code == Errc::unsupported);
  CHECK(again.message.find("convert the file that it was made from") != std::string::npos);
}

TEST_CASE("weights of any type that is read can be converted") {
  for (const auto& [type, k] : {std::pair{io::GgmlType::iq3_s, 768},
                                {io::GgmlType::tq1_0, 256},
                                {io::GgmlType::q6_k, 512},
                                {io::GgmlType::nvfp4, 192}}) {
    CAPTURE(io::type_traits(type).name);
    const auto dims = std::array<std::uint64_t, 2>{static_cast<std::uint64_t>(k), 33};
    std::mt19937 random(1);
    std::vector<std::byte> stored(static_cast<std::size_t>(*io::tensor_bytes(type, dims)));
    for (std::byte& byte : stored) byte = static_cast<std::byte>(random() % 64);  // finite scales
    io::GgufWriter writer;
    writer.add_tensor("w", type, dims, stored);
    const auto bytes = writer.to_bytes();
    REQUIRE(bytes);
    const auto file = io::Gguf::parse(*bytes, "file");
    REQUIRE(file);
    const Converted wide = convert(*file, {.format = Format::f32});
    CHECK(wide.report[0].from == type);
    CHECK(wide.report[0].errors.max_abs == 0);
    CHECK(weights_of(*wide.parse().tensor("w")) == weights_of(*file->tensor("w")));
    const Converted small = convert(*file, {.format = Format::q8_0});
    CHECK(small.parse().tensor("w")->type == io::GgmlType::q8_0);
    CHECK(small.report[0].errors.snr_db() > 35);
  }
}

TEST_CASE("rows that are no whole super-blocks get a format that is a little better") {
  const std::vector<float> values(96 * 2, 0.25f);
  for (const auto& [wanted, made] : {std::pair{Format::q4_k, Format::q5_0},
                                     {Format::q5_k, Format::q5_1},
                                     {Format::q6_k, Format::q8_0},
                                     {Format::q3_k, Format::q4_0},
                                     {Format::iq4_xs, Format::iq4_nl}}) {
    const Converted converted = convert(OneTensor({96, 2}, values).parse(), {.format = wanted});
    CHECK(converted.report[0].to == made);
    CHECK(converted.report[0].reason == FormatReason::row_length);
    const Converted odd = convert(OneTensor({48, 4}, values).parse(), {.format = wanted});
    CHECK(odd.report[0].to == Format::f16);
  }
}

TEST_CASE("mixes of formats give the matrices that matter more a better one") {
  constexpr int kLayers = 16;
  const auto make = [](bool tied) {
    io::GgufWriter writer;
    writer.set("general.architecture", std::string_view("llama"));
    writer.set("llama.attention.head_count", std::uint32_t{8});
    writer.set("llama.attention.head_count_kv", tied ? std::uint32_t{2} : std::uint32_t{8});
    const std::vector<float> zeros(256);
    const auto add = [&](const std::string& name) {
      writer.add_tensor(name, io::GgmlType::f32, std::array<std::uint64_t, 2>{256, 1},
                        std::as_bytes(std::span(zeros)));
    };
    add("token_embd.weight");
    add("position_embd.weight");
    if (!tied) add("output.weight");
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const char* part : {"attn_q", "attn_v", "ffn_down", "ffn_up"}) {
        add("blk." + std::to_string(layer) + "." + part + ".weight");
      }
    }
    auto bytes = writer.to_bytes();
    REQUIRE(bytes);
    return *std::move(bytes);
  };
  const auto untied_bytes = make(false), tied_bytes = make(true);
  const auto untied = *io::Gguf::parse(untied_bytes, "untied");
  const auto tied = *io::Gguf::parse(tied_bytes, "tied");

  const MixedFormats q4_k_m(untied, *format_mix_from_name("Q4_K_M"));
  CHECK(q4_k_m("token_embd.weight") == Format::q4_k);
  CHECK(q4_k_m("output.weight") == Format::q6_k);
  CHECK(q4_k_m("position_embd.weight") == Format::f32);
  // The first and last eighth of the layers, and each third between.
  const std::vector<int> better = {0, 1, 4, 7, 10, 13, 14, 15};
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const bool more = std::ranges::find(better, layer) != better.end();
    CHECK(q4_k_m(prefix + "attn_q.weight") == Format::q4_k);
    CHECK(q4_k_m(prefix + "ffn_up.weight") == Format::q4_k);
    CHECK(q4_k_m(prefix + "attn_v.weight") == (more ? Format::q6_k : Format::q4_k));
    CHECK(q4_k_m(prefix + "attn_qkv.weight") == (more ? Format::q6_k : Format::q4_k));
    CHECK(q4_k_m(prefix + "ffn_down.weight") == (more ? Format::q6_k : Format::q4_k));
    const MixedFormats q4_k_s(untied, *format_mix_from_name("q4_k_s"));
    CHECK(q4_k_s(prefix + "attn_v.weight") == (layer < 4 ? Format::q5_k : Format::q4_k));
    CHECK(q4_k_s(prefix + "ffn_down.weight") == (layer < 2 ? Format::q5_k : Format::q4_k));
    const MixedFormats q4_0(untied, *format_mix_from_name("q4_0"));
    CHECK(q4_0(prefix + "attn_v.weight") == Format::q4_0);
    const MixedFormats q3_k_m(untied, *format_mix_from_name("q3_k_m"));
    CHECK(q3_k_m(prefix + "attn_q.weight") == Format::q3_k);
    CHECK(q3_k_m(prefix + "attn_v.weight") == (layer < 2 ? Format::q5_k : Format::q4_k));
    CHECK(q3_k_m(prefix + "ffn_down.weight") == (layer < 1 ? Format::q5_k : Format::q4_k));
    CHECK(q3_k_m(prefix + "attn_output.weight") == Format::q4_k);
    for (const bool shares : {false, true}) {
      const MixedFormats q2_k(shares ? tied : untied, *format_mix_from_name("q2_k"));
      CHECK(q2_k(prefix + "ffn_up.weight") == Format::q2_k);
      CHECK(q2_k(prefix + "attn_v.weight") == (shares ? Format::q4_k : Format::q3_k));
      CHECK(q2_k(prefix + "ffn_down.weight") == Format::q3_k);
      CHECK(q2_k(prefix + "attn_output.weight") == Format::q3_k);
    }
  }
  // Tied: the embeddings are the output.
  CHECK(MixedFormats(tied, *format_mix_from_name("q4_0"))("token_embd.weight") == Format::q6_k);
  CHECK(MixedFormats(tied, *format_mix_from_name("q8_0"))("token_embd.weight") == Format::q8_0);
  CHECK(MixedFormats(untied, *format_mix_from_name("q4_0"))("token_embd.weight") == Format::q4_0);
  CHECK(format_mix_from_name("iq3_m").error().code == Errc::invalid_argument);

  ConvertOptions options;
  options.format = Format::q4_k;
  options.file_type = 14;
  options.choose = q4_k_m;
  const Converted converted = convert(untied, options);
  CHECK(*converted.parse().get_u32("general.file_type") == 14);
  CHECK(converted.parse().tensor("output.weight")->type == io::GgmlType::q6_k);
}

TEST_CASE("every matrix may have a format of its own, a gate and its product too") {
  const io::Gguf file = open_shipped();
  ConvertOptions options;
  options.format = Format::q4_0;
  options.choose = [](std::string_view name) {
    const bool other = name == "blk.1.ffn_up.weight" || name == "blk.0.attn_k.weight";
    return other ? std::optional(Format::q8_0) : std::nullopt;
  };
  const Converted converted = convert(file, options);
  CHECK(converted.parse().tensor("blk.1.ffn_up.weight")->type == io::GgmlType::q8_0);
  CHECK(converted.parse().tensor("blk.1.ffn_gate.weight")->type == io::GgmlType::q4_0);
}

#if !defined(_WIN32)
TEST_CASE("a file that another program cuts is an error while it is converted") {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("nibble_cut_test_" + std::to_string(std::random_device{}()));
  std::filesystem::create_directory(folder);
  const std::string path = (folder / "in.gguf").string();
  io::GgufWriter writer;
  const std::vector<std::byte> weights(4 << 20);
  for (const char* const name : {"a", "b"}) {
    writer.add_tensor(name, io::GgmlType::f32, std::array<std::uint64_t, 2>{1024, 1024}, weights);
  }
  for (const Format format : {Format::q8_0, Format::f32}) {
    REQUIRE(writer.write(path));
    const auto file = io::Gguf::open(path);
    REQUIRE(file);
    const auto cut = quantize_model(*file, (folder / "out.gguf").string(), {.format = format},
                                    [&](const ConvertedTensor& tensor) {
                                      CHECK(tensor.name == "a");
                                      std::filesystem::resize_file(path, 0);
                                      return true;
                                    });
    REQUIRE(!cut);
    CHECK(cut.error().code == Errc::io);
    CHECK(cut.error().message == path + ": tensor 'b': the file has become shorter");
    CHECK(!std::filesystem::exists(folder / "out.gguf"));
  }
  std::filesystem::remove_all(folder);
}
#endif

TEST_CASE("a file is written whole or not at all") {
  const io::Gguf file = open_shipped();
  const auto folder = std::filesystem::temp_directory_path() /
                      ("nibble_convert_test_" + std::to_string(std::random_device{}()));
  std::filesystem::create_directory(folder);
  const std::string path = (folder / "out.gguf").string();
  int n_seen = 0;
  const Result<void> cancelled = quantize_model(
      file, path, {.format = Format::q4_0}, [&](const ConvertedTensor&) { return ++n_seen < 3; });
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code == Errc::cancelled);
  CHECK(std::filesystem::is_empty(folder));

  // An error of the file that is written names only that file.
  const Result<void> refused = quantize_model(file, folder.string(), {.format = Format::q4_0});
  REQUIRE(!refused);
  CHECK(refused.error().message == folder.string() + ": cannot be written: it is a directory");

  REQUIRE(quantize_model(file, path, {.format = Format::q4_0}));
  CHECK(test::read_file(path) == convert(file, {.format = Format::q4_0}).bytes);
  std::filesystem::remove_all(folder);
}
