// SPDX-License-Identifier: Apache-2.0
#include "nibble/quant/format.hpp"

#include <cmath>
#include <limits>
#include <set>

#include "doctest/doctest.h"
#include "nibble/quant/ggml.hpp"
#include "oracle.hpp"

namespace {

using namespace nibble::quant;
using nibble::Errc;
using nibble::io::GgmlType;

static_assert(bits_per_weight(Format::f32) == 32 && bits_per_weight(Format::bf16) == 16);
static_assert(bits_per_weight(Format::q4_0) == 4.5 && bits_per_weight(Format::q4_1) == 5);
static_assert(bits_per_weight(Format::q5_0) == 5.5 && bits_per_weight(Format::q4_k) == 4.5);
static_assert(bits_per_weight(Format::q6_k) == 6.5625);
static_assert(bits_per_weight(Format::q3_h) == 3.5 && bits_per_weight(Format::q2_h) == 2.5);
static_assert(bits_per_weight(Format::iq4_xs) == 4.25 && bits_per_weight(Format::mxfp4) == 4.25);
static_assert(bits_per_weight(Format::q8_0) == 8.5 && bits_per_weight(Format::u8_affine) == 8);
static_assert(visit_format(Format::q4_1, [](auto tag) {
  return std::is_same_v<typename decltype(tag)::type, Q4_1>;
}));

}  // namespace

TEST_CASE("names go both ways, in either case") {
  std::set<std::string> names;
  for (const Format format : kFormats) {
    const std::string name = to_string(format);
    names.insert(name);
    const auto back = format_from_name(name);
    REQUIRE(back);
    CHECK(*back == format);
  }
  CHECK(names.size() == kFormats.size());
  CHECK(*format_from_name("Q4_0") == Format::q4_0);
  CHECK(*format_from_name("BF16") == Format::bf16);
  for (const char* bad : {"", "q4", "q4_0 ", "q4_00", "unknown", "Q8_K"}) {
    CAPTURE(bad);
    const auto none = format_from_name(bad);
    REQUIRE(!none);
    CHECK(none.error().code == Errc::invalid_argument);
    CHECK(none.error().message.find("q4_0") != std::string::npos);
  }
}

TEST_CASE("every format has its own type, and GGUF's types map to ours") {
  std::set<int> sizes;
  for (const Format format : kFormats) {
    const auto type = ggml_type_of(format);
    if (format == Format::i8_channel || format == Format::u8_affine) {
      REQUIRE(!type);
      CHECK(type.error().code == Errc::unsupported);
      continue;
    }
    REQUIRE(type);
    CHECK(*format_of(*type) == format);
    // Two independent tables must agree on sizes.
    CHECK(*row_bytes(format, 256) == *nibble::io::row_bytes(*type, 256));
  }
  for (const auto type : {GgmlType::iq2_xs, GgmlType::i8, GgmlType::q8_1, GgmlType{999}}) {
    REQUIRE(!format_of(type));
    CHECK(format_of(type).error().code == Errc::unsupported);
  }
  CHECK(format_of(GgmlType::iq2_xs).error().message.find("IQ2_XS") != std::string::npos);
  CHECK(format_of(GgmlType{999}).error().message.find("999") != std::string::npos);
}

TEST_CASE("sizes of rows") {
  CHECK(*row_bytes(Format::f32, 3) == 12);
  CHECK(*row_bytes(Format::q4_0, 64) == 36);
  CHECK(*row_bytes(Format::i8_channel, 5) == 9);
  CHECK(*row_bytes(Format::u8_affine, 5) == 13);
  CHECK(*row_bytes(Format::q8_0, 0) == 0);
  CHECK(row_bytes(Format::q4_1, 33).error().code == Errc::invalid_argument);
  constexpr std::size_t kMax = std::numeric_limits<std::size_t>::max();
  CHECK(row_bytes(Format::f32, kMax).error().code == Errc::limit);
  CHECK(row_bytes(Format::q8_0, kMax / 32 * 32).error().code == Errc::limit);
  CHECK(row_bytes(Format::u8_affine, kMax - 7).error().code == Errc::limit);
  CHECK(*row_bytes(Format::u8_affine, kMax - 8) == kMax);
}

TEST_CASE("rows convert both ways at any alignment, and refuse wrong sizes") {
  // Upper bounds of the RMSE of standard normal weights in each format.
  const std::pair<Format, double> at_most[] = {
      {Format::f32, 0.0},        {Format::f16, 4e-4},    {Format::bf16, 3e-3},
      {Format::q8_0, 7e-3},      {Format::q4_0, 0.11},   {Format::q4_1, 0.1},
      {Format::q5_0, 0.055},     {Format::q5_1, 0.045},  {Format::q4_k, 0.08},
      {Format::q5_k, 0.04},      {Format::q6_k, 0.02},   {Format::i8_channel, 0.01},
      {Format::u8_affine, 0.01}, {Format::q2_k, 0.35},   {Format::q3_k, 0.18},
      {Format::tq2_0, 1.0},      {Format::q2_0, 0.8},    {Format::q1_0, 0.7},
      {Format::iq4_nl, 0.08},    {Format::iq4_xs, 0.09}, {Format::mxfp4, 0.13}};
  const auto x = test::normal_row(512, 1.0f, 8);
  for (const auto& limit : at_most) {
    const Format format = limit.first;
    CAPTURE(to_string(format));
    const std::size_t n_bytes = *row_bytes(format, x.size());
    std::vector<std::byte> buffer(n_bytes + 3, std::byte{0xAA});
    const auto row = std::span(buffer).subspan(1, n_bytes);
    REQUIRE(row_from_f32(format, x, row));
    CHECK(buffer.front() == std::byte{0xAA});
    CHECK(buffer[n_bytes + 1] == std::byte{0xAA});
    std::vector<float> y(x.size() + 1, -7.0f);
    REQUIRE(row_to_f32(format, row, std::span(y).first(x.size())));
    CHECK(y.back() == -7.0f);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += (y[i] - x[i]) * double{y[i] - x[i]};
    CHECK(std::sqrt(sum / 512) <= limit.second);
    if (format != Format::f32) CHECK(sum > 0);

    for (const std::size_t wrong : {n_bytes - 1, n_bytes + 1, std::size_t{0}}) {
      const auto other = std::span(buffer).first(wrong);
      CHECK(row_from_f32(format, x, other).error().code == Errc::invalid_argument);
      CHECK(row_to_f32(format, other, std::span(y).first(512)).error().code ==
            Errc::invalid_argument);
    }
  }
  CHECK(row_from_f32(Format::q4_0, std::span(x).first(40), {}).error().code ==
        Errc::invalid_argument);
  CHECK(row_to_f32(Format::q4_0, {}, {}).has_value());
}

TEST_CASE("any bytes read as a row of some weights") {
  std::mt19937 random(6);
  std::vector<float> y(256);
  for (int round = 0; round < 50; ++round) {
    for (const Format format : kFormats) {
      std::vector<std::byte> row(*row_bytes(format, y.size()));
      for (std::byte& b : row) b = static_cast<std::byte>(random());
      CHECK(row_to_f32(format, row, y).has_value());
    }
  }
}

TEST_CASE("a weight that a format cannot hold is an error that says which") {
  // The largest weight of a row of otherwise small ones that each format holds, and one beyond.
  const float under_f16 = std::nextafter(65520.0f, 0.0f);  // rounds to 65504
  const float max = std::numeric_limits<float>::max();
  struct Limit {
    Format format;
    float holds, beyond;
  };
  const Limit limits[] = {
      {Format::f16, under_f16, 65520.0f},
      {Format::bf16, 0x1.fep127f, max},
      {Format::q8_0, 127.0f * 65504.0f, 127.0f * 65536.0f},
      {Format::q4_0, 8.0f * 65504.0f, 8.0f * 65520.0f},
      {Format::q4_1, 15.0f * 65504.0f, 15.0f * 65536.0f},
      {Format::q5_0, 16.0f * 65504.0f, 16.0f * 65520.0f},
      {Format::q5_1, 31.0f * 65504.0f, 31.0f * 65536.0f},
      {Format::q4_k, 63.0f * 15.0f * 65000.0f, 63.0f * 15.0f * 66000.0f},
      {Format::q5_k, 63.0f * 31.0f * 65000.0f, 63.0f * 31.0f * 66000.0f},
      {Format::q6_k, 128.0f * 31.0f * 65000.0f, 0x1p31f},
      {Format::iq4_nl, 113.0f * 65000.0f, 0x1p24f},
      {Format::iq4_xs, 32.0f * 113.0f * 65000.0f, 0x1p29f},
      {Format::mxfp4, 0x1p119f, 0x1.8p120f},
      {Format::i8_channel, 0x1p120f, 0x1.8p120f},
      {Format::u8_affine, 0x1p120f, 0x1.8p120f},
  };
  for (const Limit& limit : limits) {
    CAPTURE(to_string(limit.format));
    std::vector<float> x(512, 0.0f), y(512);
    std::vector<std::byte> row(*row_bytes(limit.format, x.size()));
    for (const float sign : {1.0f, -1.0f}) {
      const bool has_minimum = limit.format == Format::q4_1 || limit.format == Format::q5_1 ||
                               limit.format == Format::q4_k || limit.format == Format::q5_k;
      if (has_minimum && sign < 0) continue;  // below
      x[70] = sign * limit.holds;
      CHECK(row_from_f32(limit.format, x, row));
      REQUIRE(row_to_f32(limit.format, row, y));
      CHECK(std::abs(y[70] / x[70] - 1) < 1e-3f);
      x[70] = sign * limit.beyond;
      const auto stored = row_from_f32(limit.format, x, row);
      REQUIRE(!stored);
      CHECK(stored.error().code == Errc::limit);
      CHECK(stored.error().message.find("weight 70, ") == 0);
      CHECK(stored.error().message.find(to_string(limit.format)) != std::string::npos);
      if (limit.format == Format::f16 || limit.format == Format::bf16) continue;
      x[70] = std::numeric_limits<float>::quiet_NaN();
      CHECK(row_from_f32(limit.format, x, row).error().code == Errc::malformed);
    }
  }
  // A minimum has a range of its own.
  std::vector<float> x(32, -65504.0f);
  std::vector<std::byte> row(*row_bytes(Format::q4_1, x.size()));
  CHECK(row_from_f32(Format::q4_1, x, row));
  x.assign(32, -65520.0f);
  CHECK(row_from_f32(Format::q4_1, x, row).error().code == Errc::limit);
  x.assign(32, 65520.0f);
  CHECK(row_from_f32(Format::q4_1, x, row).error().code == Errc::limit);
  // Floats hold what is no finite number.
  x[3] = std::numeric_limits<float>::infinity();
  x[4] = std::numeric_limits<float>::quiet_NaN();
  for (const Format format : {Format::f32, Format::bf16}) {
    row.resize(*row_bytes(format, x.size()));
    CHECK(row_from_f32(format, x, row));
  }
}
