// SPDX-License-Identifier: Apache-2.0
//
// Compares byte for byte with what ggml wrote and read back (data folder: quant-vectors).
#include <cstring>
#include <optional>
#include <string>

#include "doctest/doctest.h"
#include "nibble/quant/error_stats.hpp"
#include "nibble/quant/format.hpp"
#include "oracle.hpp"
#include "test_data.hpp"

namespace {

using namespace nibble::quant;

template <class T>
std::vector<T> as(const std::vector<std::byte>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

struct Vectors {
  std::vector<float> x;           // 64 rows of 256
  std::vector<std::byte> stored;  // ggml's bytes
  std::vector<float> dequantized;
};

std::optional<Vectors> vectors(std::string name) {
  if (name.back() == 'k') name.back() = 'K';
  name += name == "iq4_nl" ? ".quantize_chunk" : ".both";
  const auto input = test::data_path("quant-vectors/input_64x256.f32");
  if (!input) return std::nullopt;
  const std::string stored = *test::data_path("quant-vectors/" + name + ".bin");
  return Vectors{as<float>(test::read_file(*input)), test::read_file(stored),
                 as<float>(test::read_file(stored + ".dequant.f32"))};
}

// The functions under test.
bool stores_the_same(Format format, const Vectors& v) {
  std::vector<std::byte> mine(*row_bytes(format, v.x.size()));
  return row_from_f32(format, v.x, mine).has_value() && mine == v.stored;
}
bool reads_the_same(Format format, const Vectors& v) {
  std::vector<float> mine(v.x.size());
  return row_to_f32(format, v.stored, mine).has_value() && mine.size() == v.dequantized.size() &&
         std::memcmp(mine.data(), v.dequantized.data(), mine.size() * sizeof(float)) == 0;
}

template <class F>
std::vector<typename F::Block> blocks_of(const Vectors& v) {
  return as<typename F::Block>(v.stored);
}

}  // namespace

TEST_CASE("stored bytes and dequantized weights equal ggml's") {
  for (const Format format : {Format::f16, Format::bf16, Format::q4_0, Format::q4_1, Format::q5_0,
                              Format::q5_1, Format::q8_0, Format::q4_k, Format::q5_k, Format::q6_k,
                              Format::q2_k, Format::q3_k, Format::iq4_nl, Format::iq4_xs}) {
    const auto v = vectors(to_string(format));
    if (!v) return;
    CAPTURE(to_string(format));
    REQUIRE(v->x.size() == 64 * 256);
    CHECK(stores_the_same(format, *v));
    CHECK(reads_the_same(format, *v));
  }
}

TEST_CASE("quantized activations equal ggml's") {
  auto v = vectors("q8_0");
  if (!v) return;
  v->stored = test::read_file(*test::data_path("quant-vectors/act_q8_0.ref.bin"));
  CHECK(stores_the_same(Format::q8_0, *v));
}

TEST_CASE("errors of ggml's blocks are as its manifest says") {
  const std::pair<Format, double> expected[] = {
      {Format::f16, 6.75176859e-05},  {Format::bf16, 0.000533434102}, {Format::q4_0, 0.0294271873},
      {Format::q4_1, 0.0318386285},   {Format::q5_0, 0.0152415232},   {Format::q5_1, 0.0135710928},
      {Format::q8_0, 0.00190647093},  {Format::q4_k, 0.0276667223},   {Format::q5_k, 0.0131207705},
      {Format::q6_k, 0.00586679158},  {Format::q2_k, 0.123502508},    {Format::q3_k, 0.0521443521},
      {Format::iq4_nl, 0.0280504298}, {Format::iq4_xs, 0.0284182041}};
  for (const auto& [format, rmse] : expected) {
    const auto v = vectors(to_string(format));
    if (!v) return;
    ErrorStats stats;
    stats.add(v->x, v->dequantized);
    CHECK(stats.rmse() == doctest::Approx(rmse).epsilon(1e-6));
  }
}

TEST_CASE("the comparisons say no: one bit of one byte, one scale 1 % off") {
  for (const Format format : {Format::f16, Format::bf16, Format::q4_0, Format::q4_1, Format::q5_0,
                              Format::q5_1, Format::q8_0, Format::q4_k, Format::q5_k, Format::q6_k,
                              Format::q2_k, Format::q3_k, Format::iq4_nl, Format::iq4_xs}) {
    auto v = vectors(to_string(format));
    if (!v) return;
    CAPTURE(to_string(format));
    for (const std::size_t at : {std::size_t{5}, v->stored.size() / 2 + 5, v->stored.size() - 1}) {
      v->stored[at] ^= std::byte{0x10};  // a high nibble
      CHECK(!stores_the_same(format, *v));
      CHECK(!reads_the_same(format, *v));
      v->stored[at] ^= std::byte{0x10};
    }
    CHECK(stores_the_same(format, *v));
    CHECK(reads_the_same(format, *v));
  }
}

TEST_CASE_TEMPLATE("ggml's blocks are within the bound, and are not when tampered with", F, Q4_0,
                   Q4_1, Q8_0) {
  const char* name = std::is_same_v<F, Q4_0> ? "q4_0" : std::is_same_v<F, Q4_1> ? "q4_1" : "q8_0";
  const auto v = vectors(name);
  if (!v) return;
  auto blocks = blocks_of<F>(*v);
  REQUIRE(test::within_bounds<F>(v->x, blocks));
  for (auto& block : blocks) {
    block.scale = nibble::to_f16(static_cast<float>(1.01 * test::decode(block.scale)));
  }
  CHECK(!test::within_bounds<F>(v->x, blocks));
  blocks = blocks_of<F>(*v);
  for (std::size_t b = 0; b < blocks.size(); b += 100) {
    auto& code = blocks[b].codes[b % blocks[b].codes.size()];
    code = static_cast<std::uint8_t>(code ^ 0x40);  // changes the high nibble by four
    CHECK(!test::within_bounds<F>(v->x, blocks));
    code = static_cast<std::uint8_t>(code ^ 0x40);
  }
}
