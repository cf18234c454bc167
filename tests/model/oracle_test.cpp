// SPDX-License-Identifier: Apache-2.0
//
// Sessions compared with the reference in double: models of random weights and unusual shapes,
// written as GGUF, loaded, and run in uneven chunks.
#include <cmath>
#include <random>
#include <string>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "model/reference_of.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/llama.hpp"
#include "why.hpp"

namespace oracle_test {
namespace {

using namespace nibble;
using test::Architecture;
using test::Format;
using test::ModelShape;
using test::RandomModel;

// See tests/graph/run_test.cpp: rounding, and quantized activations, relative to the largest logit.
constexpr double kRounding = 10 * 0x1p-24 * 4.5 * 4;
constexpr double kQuantization = 0.03;

struct Loaded {
  explicit Loaded(const RandomModel& source) : bytes(source.gguf()) {
    auto file = io::Gguf::parse(bytes, "memory.gguf");
    REQUIRE_MESSAGE(file, test::why(file));
    auto loaded = Model::from_gguf(*file);
    REQUIRE_MESSAGE(loaded, test::why(loaded));
    model.emplace(*std::move(loaded));
    bytes.assign(bytes.size(), std::byte{255});  // a loaded model needs its file no more
  }
  std::vector<std::byte> bytes;
  std::optional<Model> model;
};

// Appends tokens in chunks of 1, 2, 3, …, some of which are larger than a batch, asks for fewer
// logits than tokens, and compares them all. Returns the largest difference relative to the largest
// logit.
double largest_error(RandomModel& source, ops::KvType kv_type) {
  const Loaded loaded(source);
  auto session = Session::create(
      *loaded.model, {.n_ctx = 20, .max_step_tokens = 4, .max_outputs = 4, .kv_type = kv_type});
  REQUIRE_MESSAGE(session, test::why(session));
  const auto tokens = source.tokens(20);
  const auto expected = test::reference_of(source).logits({tokens.begin(), tokens.end()});
  double largest = 0, off = 0;
  std::size_t next = 0, piece = 1, n_compared = 0;
  while (next < tokens.size()) {
    const std::size_t n = std::min(piece, tokens.size() - next);
    const std::size_t n_outputs = std::min(n, 1 + piece % 3);
    const auto logits =
        session->append(std::span(tokens).subspan(next, n), static_cast<Index>(n_outputs));
    REQUIRE_MESSAGE(logits, test::why(logits));
    REQUIRE(logits->extent(0) == static_cast<Index>(n_outputs));
    REQUIRE(logits->extent(1) == source.shape().vocab_size);
    for (std::size_t i = 0; i < n_outputs; ++i) {
      const auto& row = expected[next + n - n_outputs + i];
      for (std::size_t j = 0; j < row.size(); ++j) {
        const auto logit =
            static_cast<double>((*logits)(static_cast<Index>(i), static_cast<Index>(j)));
        const double difference = std::fabs(logit - row[j]);
        off = difference <= off ? off : std::isnan(difference) ? INFINITY : difference;
        largest = std::fmax(largest, std::fabs(row[j]));
        ++n_compared;
      }
    }
    next += n;
    ++piece;
  }
  CHECK(session->position() == 20);
  REQUIRE(n_compared >= 10 * static_cast<std::size_t>(source.shape().vocab_size));
  return off / largest;
}

void check(const ModelShape& shape, std::uint32_t seed) {
  CAPTURE(seed);
  CAPTURE(shape.dim);
  CAPTURE(shape.head_dim);
  CAPTURE(shape.n_heads);
  CAPTURE(shape.n_kv_heads);
  CAPTURE(shape.window);
  RandomModel source(shape, seed);
  CHECK(largest_error(source, ops::KvType::f32) <= kRounding);
}

ModelShape odd_shape(std::mt19937& random, Architecture architecture) {
  const auto pick = [&](std::initializer_list<Index> from) {
    return *(from.begin() + random() % from.size());
  };
  ModelShape s;
  s.architecture = architecture;
  s.vocab_size = pick({5, 17, 33, 50});
  s.dim = pick({7, 18, 30, 45});
  s.ffn_dim = pick({1, 13, 50, 77});
  s.n_layers = pick({1, 2, 3});
  s.n_kv_heads = pick({1, 2, 3});
  s.n_heads = s.n_kv_heads * pick({1, 2, 3, 4});
  s.head_dim = pick({1, 2, 5, 6, 10, 16});
  s.window = pick({0, 0, 1, 3, 7});
  s.n_ctx = 20;
  s.rope_dim = s.head_dim < 2 ? 2 : s.head_dim / 2 * 2;
  if (s.head_dim < 2 && architecture == Architecture::llama) s.head_dim = 2;
  if (s.rope_dim > 2 && random() % 2 == 0) s.rope_dim -= 2;
  s.rope_theta = random() % 2 == 0 ? 10000.0f : 500.0f;
  s.rope_scale = random() % 3 == 0 ? 4.0f : 1.0f;
  s.rope_factors = architecture == Architecture::llama && random() % 2 == 0;
  s.tied = architecture == Architecture::llama && random() % 2 == 0;
  s.qkv_bias = random() % 2 == 0;
  s.formats = {Format::f32, Format::f16, Format::bf16};
  return s;
}

}  // namespace

TEST_CASE("Llama of odd shapes") {
  std::mt19937 random(1);
  for (std::uint32_t seed = 0; seed < 60; ++seed)
    check(odd_shape(random, Architecture::llama), seed);
}

TEST_CASE("GPT-2 of odd shapes") {
  std::mt19937 random(2);
  for (std::uint32_t seed = 0; seed < 60; ++seed)
    check(odd_shape(random, Architecture::gpt2), seed);
}

TEST_CASE("each option of the Llama architecture, on every target") {
  const ModelShape plain{.head_dim = 6, .rope_dim = 6};
  std::vector<ModelShape> shapes(13, plain);
  shapes[1].tied = true;
  shapes[2].qkv_bias = true;
  shapes[3].rope_factors = true;
  shapes[4].rope_scale = 2.5f;
  shapes[5].rope_dim = 4;
  shapes[6].window = 5;
  shapes[7].n_heads = 6, shapes[7].n_kv_heads = 2;
  shapes[8].norm_eps = 0.5f;
  shapes[9].output_bias = true;
  shapes[10].gate_bias = true;
  shapes[11].up_bias = true;
  shapes[12].output_bias = shapes[12].gate_bias = shapes[12].up_bias = shapes[12].down_bias = true;
  nibble_test::for_each_target([&](simd::Target) {
    for (const ModelShape& shape : shapes) check(shape, 3);
  });
}

TEST_CASE("quantized weights are read as they are meant") {
  ModelShape shape{.dim = 64, .head_dim = 16, .ffn_dim = 96, .rope_dim = 16};
  for (const Format format :
       {Format::q8_0, Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1}) {
    CAPTURE(quant::to_string(format));
    shape.formats = {format};
    RandomModel source(shape, 4);
    CHECK(largest_error(source, ops::KvType::f32) <= kRounding + kQuantization);
  }
  shape.dim = 256, shape.ffn_dim = 512, shape.head_dim = shape.rope_dim = 64;
  shape.tied = true;  // as in files whose output is in Q6_K: rows of it are embeddings too
  for (const auto& formats : std::vector<std::vector<Format>>{
           {Format::q4_k}, {Format::q5_k}, {Format::q6_k}, {Format::q6_k, Format::q4_k}}) {
    CAPTURE(quant::to_string(formats[0]));
    shape.formats = formats;
    RandomModel source(shape, 4);
    CHECK(largest_error(source, ops::KvType::f32) <= kRounding + kQuantization);
  }
}

// Gate and up are one product if they have the same format, and two otherwise.
TEST_CASE("gate and up in different formats, without and with biases") {
  ModelShape shape{.dim = 64, .head_dim = 16, .ffn_dim = 96, .rope_dim = 16};
  for (const auto& formats : std::vector<std::vector<Format>>{
           {Format::f16, Format::f32}, {Format::q8_0, Format::f16, Format::q4_0}}) {
    for (const bool biases : {false, true}) {
      CAPTURE(biases);
      shape.formats = formats;
      shape.gate_bias = shape.up_bias = biases;
      RandomModel source(shape, 4);
      const auto format_of = [&](Slot slot) {
        for (const test::RandomTensor& t : source.tensors()) {
          if (t.slot == slot && t.layer == 0) return t.format;
        }
        return Format::i8_channel;  // not there
      };
      REQUIRE(format_of(Slot::ffn_gate) != format_of(Slot::ffn_up));
      CHECK(largest_error(source, ops::KvType::f32) <=
            kRounding + (formats.size() == 2 ? 0 : kQuantization));
    }
  }
}

TEST_CASE("16-bit caches are near") {
  RandomModel source({.head_dim = 6, .rope_dim = 6}, 5);
  CHECK(largest_error(source, ops::KvType::f16) <= 8 * 0x1p-11);
  CHECK(largest_error(source, ops::KvType::bf16) <= 8 * 0x1p-8);
}

TEST_CASE("a rope factor without a type, and its old name") {
  RandomModel source({.rope_scale = 3}, 6);
  const auto rotation = [&](const char* key, const char* type) {
    io::GgufWriter writer = source.metadata();
    io::GgufWriter changed;
    // The same metadata without the scaling that the model wrote.
    const auto bytes = writer.to_bytes();
    REQUIRE(bytes.has_value());
    const auto file = io::Gguf::parse(*bytes, "metadata");
    REQUIRE(file.has_value());
    for (const io::GgufEntry& entry : file->metadata()) {
      if (entry.key.find("rope.scaling") == std::string::npos) changed.set(entry.key, entry.value);
    }
    if (key != nullptr) changed.set(key, 3.0f);
    if (type != nullptr) changed.set("llama.rope.scaling.type", type);
    const std::uint64_t dims[] = {48, 37};
    changed.add_tensor("token_embd.weight", io::GgmlType::f32, dims, source.tensors()[0].bytes);
    const auto written = changed.to_bytes();
    REQUIRE(written.has_value());
    const auto read = io::Gguf::parse(*written, "changed");
    REQUIRE(read.has_value());
    const auto config = Llama::config(*read);
    return config ? config->rope_scale : -1.0f;
  };
  CHECK(rotation(nullptr, nullptr) == 1.0f);
  CHECK(rotation("llama.rope.scaling.factor", nullptr) == 3.0f);
  CHECK(rotation("llama.rope.scaling.factor", "linear") == 3.0f);
  CHECK(rotation("llama.rope.scaling.factor", "none") == 1.0f);
  CHECK(rotation("llama.rope.scale_linear", nullptr) == 3.0f);
  CHECK(rotation("llama.rope.scaling.factor", "yarn") == 3.0f);
  CHECK(rotation("llama.rope.scaling.factor", "longrope") == 3.0f);
  CHECK(rotation("llama.rope.scaling.factor", "sunk") == -1.0f);  // refused
}

}  // namespace oracle_test
