// SPDX-License-Identifier: Apache-2.0
//
// Types that are only read, against what the Python package gguf dequantizes (goldens) and ggml
// (data folder: quant-vectors).
#include "nibble/quant/read_only.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include "doctest/doctest.h"
#include "oracle.hpp"
#include "read_only_goldens.hpp"
#include "test_data.hpp"

namespace read_only_test {
namespace {

using namespace nibble::quant;
using nibble::io::GgmlType;

std::vector<std::byte> golden_bytes(const test::ReadOnlyGolden& golden) {
  const std::size_t size = nibble::io::type_traits(golden.type).type_size;
  std::vector<std::byte> bytes(size * test::kGoldenBlocks);
  std::uint32_t state = 1 + static_cast<std::uint32_t>(golden.type);
  for (std::byte& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    byte = static_cast<std::byte>(state >> 8 & 255);
  }
  for (std::size_t block = 0; block < bytes.size(); block += size) {
    for (const int at : golden.scales) {  // finite
      if (at >= 0) bytes[block + static_cast<std::size_t>(at) + 1] &= std::byte{0xBF};
    }
  }
  return bytes;
}

std::vector<float> weights_of(GgmlType type, const std::vector<std::byte>& bytes) {
  const nibble::io::GgmlTypeTraits traits = nibble::io::type_traits(type);
  std::vector<float> weights(bytes.size() / traits.type_size * traits.block_size);
  const ReadOnlyType* const from = read_only_type(type);
  REQUIRE(from != nullptr);
  read_row(*from, bytes.data(), weights);
  return weights;
}

std::uint64_t hash_of(const std::vector<float>& weights) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const std::byte byte : std::as_bytes(std::span(weights))) {
    hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001B3u;
  }
  return hash;
}

double relative_error(std::span<const float> x, std::span<const float> y) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    size += double{x[i]} * x[i];
  }
  return std::sqrt(error / size);
}

// The weights after a conversion to the nearest format.
std::vector<float> converted(const ReadOnlyType& from, const std::vector<std::byte>& bytes,
                             std::size_t n) {
  const Format to = from.nearest_for(n);
  std::vector<float> scratch(n), result(n);
  std::vector<std::byte> row(*row_bytes(to, n));
  read_row_as(from, to, bytes.data(), scratch, row.data());
  REQUIRE(row_to_f32(to, row, result));
  return result;
}

}  // namespace

TEST_CASE("weights of types that are only read are those of gguf, bit for bit") {
  for (const test::ReadOnlyGolden& golden : test::kReadOnlyGoldens) {
    CAPTURE(nibble::io::type_traits(golden.type).name);
    std::vector<std::byte> bytes = golden_bytes(golden);
    const auto weights = weights_of(golden.type, bytes);
    for (std::size_t i = 0; i < 4; ++i) CHECK(weights[i] == golden.first[i]);
    CHECK(hash_of(weights) == golden.hash);
    // The check sees one bit.
    bytes[bytes.size() / 2] ^= std::byte{0x10};
    CHECK(hash_of(weights_of(golden.type, bytes)) != golden.hash);
  }
}

TEST_CASE("and those of ggml") {
  const std::pair<GgmlType, const char*> files[] = {{GgmlType::q2_k, "q2_K.both"},
                                                    {GgmlType::q3_k, "q3_K.both"},
                                                    {GgmlType::iq4_nl, "iq4_nl.from_float_ref"},
                                                    {GgmlType::iq4_nl, "iq4_nl.quantize_chunk"},
                                                    {GgmlType::iq4_xs, "iq4_xs.both"}};
  for (const auto& [type, name] : files) {
    const auto path = test::data_path("quant-vectors/" + std::string(name) + ".bin");
    if (!path) return;
    CAPTURE(std::string(name));
    const auto stored = test::read_file(*path);
    const auto expected = test::read_file(*path + ".dequant.f32");
    const auto weights = weights_of(type, stored);
    REQUIRE(weights.size() * sizeof(float) == expected.size());
    CHECK(std::memcmp(weights.data(), expected.data(), expected.size()) == 0);
    // A conversion adds little to the error that the weights have already.
    const auto from = *read_only_type(type);
    const auto again = converted(from, stored, weights.size());
    const auto x = test::read_file(*test::data_path("quant-vectors/input_64x256.f32"));
    std::vector<float> original(weights.size());
    std::memcpy(original.data(), x.data(), x.size());
    CHECK(relative_error(original, again) < 1.2 * relative_error(original, weights));
  }
}

TEST_CASE("types with one or two bits by hand") {
  const std::vector<std::byte> scale = {std::byte{0x00}, std::byte{0x38}};  // 0.5
  std::vector<std::byte> bytes = scale;
  bytes.resize(18, std::byte{0});
  bytes[2] = std::byte{0x05};  // weights 0 and 2
  auto weights = weights_of(GgmlType::q1_0, bytes);
  REQUIRE(weights.size() == 128);
  for (std::size_t i = 0; i < 128; ++i) CHECK(weights[i] == (i == 0 || i == 2 ? 0.5f : -0.5f));

  bytes[2] = std::byte{0xE4};  // -1 0 1 2
  weights = weights_of(GgmlType::q2_0, bytes);
  REQUIRE(weights.size() == 64);
  for (std::size_t i = 0; i < 64; ++i) {
    CHECK(weights[i] == (i < 4 ? 0.5f * (static_cast<float>(i) - 1.0f) : -0.5f));
  }
}

TEST_CASE("weights that are integers times one scale stay what they are") {
  for (const ReadOnlyType& from : kReadOnlyTypes) {
    if (from.scale == nullptr) continue;
    const nibble::io::GgmlTypeTraits traits = nibble::io::type_traits(from.type);
    CAPTURE(traits.name);
    std::mt19937 random(3);
    std::vector<std::byte> bytes(std::size_t{8} * traits.type_size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    for (std::size_t block = 0; block < bytes.size(); block += traits.type_size) {
      if (from.type == GgmlType::mxfp4) {
        bytes[block] = static_cast<std::byte>(110 + random() % 10);
        continue;
      }
      // The f16 scale is at one of the ends.
      for (const std::size_t at : {block + 1, block + traits.type_size - 1}) {
        bytes[at] = (bytes[at] & std::byte{0x83}) | std::byte{0x20};
      }
    }
    const auto weights = weights_of(from.type, bytes);
    CHECK(converted(from, bytes, weights.size()) == weights);
  }
  // A scale beyond those of f16: rounded as any other weights.
  std::vector<std::byte> mxfp4(17, std::byte{0x77});
  mxfp4[0] = std::byte{90};
  const auto small = converted(*read_only_type(GgmlType::mxfp4), mxfp4, 32);
  CHECK(std::abs(small[0]) < 1e-9f);
}

}  // namespace read_only_test
