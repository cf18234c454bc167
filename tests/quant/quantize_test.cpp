// SPDX-License-Identifier: Apache-2.0
#include "nibble/quant/quantize.hpp"

#include <bit>
#include <cstring>
#include <limits>

#include "doctest/doctest.h"
#include "oracle.hpp"

namespace quantize_test {
namespace {

using namespace nibble::quant;
using nibble::bf16;
using nibble::f16;

constexpr ZeroPoint kSymmetric = ZeroPoint::symmetric;
constexpr ZeroPoint kMinimum = ZeroPoint::minimum;
using Minimum8 = Blocks<8, 32, f16, ZeroPoint::minimum>;

// GGUF's formats, and other lengths and scale types of each kind.
#define ALL_FORMATS                                                        \
  Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Minimum8, Blocks<4, 64, bf16, kSymmetric>, \
      Blocks<4, 128, float, kMinimum>, Blocks<8, 256, bf16, kSymmetric>,   \
      Blocks<8, 128, float, kMinimum>, Blocks<4, 256, f16, kSymmetric>,    \
      Blocks<8, 64, float, kSymmetric>, Blocks<4, 32, float, kSymmetric>,  \
      Blocks<4, 64, bf16, kMinimum>

template <class F>
std::vector<typename F::Block> quantized(std::span<const float> x) {
  std::vector<typename F::Block> blocks(x.size() / F::kLength);
  quantize_row<F>(x, blocks);
  return blocks;
}

template <class F>
std::vector<float> dequantized(std::span<const typename F::Block> blocks) {
  std::vector<float> out(blocks.size() * F::kLength);
  dequantize_row<F>(blocks, out);
  return out;
}

template <class F>
bool all_finite(const typename F::Block& block) {
  float out[F::kLength];
  dequantize_block<F>(block, out);
  return std::all_of(out, out + F::kLength, [](float v) { return std::isfinite(v); });
}

// ggml's rules step by step, with every intermediate result rounded to f32 (volatile), so that the
// compiler cannot fuse anything.
template <class F>
std::vector<int> levels_by_the_book(const float* x) {
  constexpr int kOffset = 1 << (F::kBits - 1);
  std::vector<int> levels;
  volatile float low = x[0], high = x[0], peak = 0;
  for (int i = 0; i < F::kLength; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    if (std::fabs(x[i]) > std::fabs(peak)) peak = x[i];
  }
  volatile float d;
  if (test::kHasMinimum<F>) {
    volatile float range = high - low;
    d = range / static_cast<float>((1 << F::kBits) - 1);
  } else {
    d = F::kBits == 8 ? std::fabs(peak) / 127 : peak / -kOffset;
  }
  volatile float inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < F::kLength; ++i) {
    volatile float v = x[i];
    if (test::kHasMinimum<F>) v = v - low;
    v = v * inverse;
    if (!test::kHasMinimum<F> && F::kBits == 8) {
      levels.push_back(static_cast<int>(std::lround(v)));
    } else {
      const bool is_signed = !test::kHasMinimum<F>;
      v = v + (is_signed ? kOffset + 0.5f : 0.5f);
      const int code = std::min((1 << F::kBits) - 1, static_cast<int>(v));
      levels.push_back(is_signed ? code - kOffset : code);
    }
  }
  return levels;
}

// Weights at the ties between two codes, and one or two ulps to either side of them.
template <class F>
std::vector<float> tie_row(std::size_t n_blocks, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> x(n_blocks * F::kLength);
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const float d = std::uniform_real_distribution<float>(0.001f, 2.0f)(random);
    for (std::size_t i = 0; i < F::kLength; ++i) {
      const int top = F::kBits == 8 ? 126 : (1 << (F::kBits - 1)) - 1;
      const int k = std::uniform_int_distribution<int>(-top, top - 1)(random);
      float v = d * (static_cast<float>(k) + 0.5f);
      const auto nudge = std::uniform_int_distribution<int>(-2, 2)(random);
      v = std::bit_cast<float>(std::bit_cast<std::uint32_t>(v) + static_cast<std::uint32_t>(nudge));
      x[b * F::kLength + i] = v;
    }
    // Extreme values for which the block's scale is (nearly) d.
    constexpr float kHalf = 1 << (F::kBits - 1);
    x[b * F::kLength] =
        test::kHasMinimum<F> ? -d * (kHalf - 0.5f) : d * (F::kBits == 8 ? 127.0f : -kHalf);
    x[b * F::kLength + 1] = test::kHasMinimum<F> ? d * (kHalf - 0.5f) : 0.0f;
  }
  return x;
}

}  // namespace

TEST_CASE("Q4_0, Q4_1 and Q8_0 blocks worked out by hand") {
  float x[32];
  for (int i = 0; i < 32; ++i) x[i] = static_cast<float>(i % 16 - 8);  // peak -8: d = 1
  Q4_0::Block q4_0;
  quantize_block<Q4_0>(x, q4_0);
  CHECK(q4_0.scale.bits == 0x3C00);
  for (unsigned j = 0; j < 16; ++j) CHECK(q4_0.codes[j] == (j | j << 4));

  for (int i = 0; i < 32; ++i) x[i] = 3.0f + 0.5f * static_cast<float>(i < 16 ? i : 31 - i);
  Q4_1::Block q4_1;
  quantize_block<Q4_1>(x, q4_1);
  CHECK(q4_1.scale.bits == 0x3800);    // 0.5
  CHECK(q4_1.minimum.bits == 0x4200);  // 3
  for (unsigned j = 0; j < 16; ++j) CHECK(q4_1.codes[j] == (j | (15 - j) << 4));

  for (int i = 0; i < 32; ++i) x[i] = static_cast<float>(i - 16);
  x[31] = -127.0f;
  x[1] = 2.5f;  // ties go away from zero
  x[2] = -2.5f;
  Q8_0::Block q8_0;
  quantize_block<Q8_0>(x, q8_0);
  CHECK(q8_0.scale.bits == 0x3C00);
  CHECK(q8_0.codes[31] == 0x81);  // -127
  CHECK(q8_0.codes[0] == 0xF0);   // -16
  CHECK(q8_0.codes[1] == 3);
  CHECK(q8_0.codes[2] == 0xFD);  // -3
}

TEST_CASE_TEMPLATE("errors stay within the derived bound at every scale", F, ALL_FORMATS) {
  for (const float sigma : {1.0f, 0.02f, 37.3f, 1e-3f, 1e-6f, 1e-8f, 2500.0f}) {
    CAPTURE(sigma);
    const auto x = test::normal_row(64 * F::kLength, sigma, 11);
    const auto blocks = quantized<F>(x);
    CHECK(test::within_bounds<F>(x, blocks));
  }
  const auto ties = tie_row<F>(200, 3);
  CHECK(test::within_bounds<F>(ties, quantized<F>(ties)));
}

TEST_CASE_TEMPLATE("codes are those of the rules, ties included, fused arithmetic or not", F,
                   ALL_FORMATS) {
  int n_different = 0;
  for (const auto& x : {tie_row<F>(300, 1), test::normal_row(300 * F::kLength, 1.0f, 2)}) {
    const auto blocks = quantized<F>(x);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const auto expected = levels_by_the_book<F>(x.data() + b * F::kLength);
      for (int i = 0; i < F::kLength; ++i) {
        n_different += test::level<F>(blocks[b], i) != expected[static_cast<std::size_t>(i)];
      }
    }
  }
  CHECK(n_different == 0);
}

TEST_CASE_TEMPLATE("dequantized weights are the exact ones rounded once", F, ALL_FORMATS) {
  const auto x = test::normal_row(64 * F::kLength, 0.7f, 5);
  const auto blocks = quantized<F>(x);
  const auto y = dequantized<F>(blocks);
  // Only an f32 scale with a minimum rounds twice (product, sum).
  const bool once = sizeof(typename F::Scale) == 2 || !test::kHasMinimum<F>;
  int n_wrong = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double exact = test::weight<F>(blocks[i / F::kLength], static_cast<int>(i % F::kLength));
    n_wrong += once ? y[i] != static_cast<float>(exact) : std::abs(y[i] - exact) > 0x1p-22;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE_TEMPLATE("what a block stands for quantizes to the same weights again", F, ALL_FORMATS) {
  // Compares weights, not bytes: a block without a code at the end of its range may get another
  // scale. With an exact scale (a power of two) and a full range, it compares bytes too.
  std::vector<float> x(F::kLength);
  constexpr int kHalf = 1 << (F::kBits - 1);
  const int bottom = test::kHasMinimum<F> ? 0 : F::kBits == 8 ? -127 : -kHalf;
  const int top = test::kHasMinimum<F> ? 2 * kHalf - 1 : kHalf - 1;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int k = bottom + static_cast<int>(i * 37) % (top - bottom + 1);
    x[i] = 0.125f * static_cast<float>(k);
  }
  x[1] = 0.125f * static_cast<float>(top);
  x[0] = 0.125f * static_cast<float>(bottom);
  const auto blocks = quantized<F>(x);
  CHECK(dequantized<F>(blocks) == x);
  const auto again = quantized<F>(dequantized<F>(blocks));
  CHECK(std::memcmp(again.data(), blocks.data(), sizeof(blocks[0]) * blocks.size()) == 0);
}

TEST_CASE_TEMPLATE("zeros of either sign stay zero", F, ALL_FORMATS) {
  for (const float zero : {0.0f, -0.0f}) {
    const std::vector<float> x(F::kLength, zero);
    const auto blocks = quantized<F>(x);
    for (int i = 0; i < F::kLength; ++i) CHECK(test::level<F>(blocks[0], i) == 0);
    for (const float v : dequantized<F>(blocks)) CHECK(v == 0.0f);
  }
}

TEST_CASE("of two peaks of opposite sign the first gives Q4_0 its scale") {
  std::vector<float> x(32, 0.0f);
  x[4] = 8.0f;
  x[9] = -8.0f;
  CHECK(quantized<Q4_0>(x)[0].scale.bits == 0xBC00);  // -1
  x[3] = -8.0f;
  CHECK(quantized<Q4_0>(x)[0].scale.bits == 0x3C00);
}

TEST_CASE("the scale of zeros has GGUF's sign") {
  const std::vector<float> x(32, 0.0f);
  CHECK(quantized<Q4_0>(x)[0].scale.bits == 0x8000);  // 0 / -8
  CHECK(quantized<Q8_0>(x)[0].scale.bits == 0);
  CHECK(quantized<Q4_1>(x)[0].scale.bits == 0);
}

TEST_CASE_TEMPLATE("denormal and tiny weights", F, ALL_FORMATS) {
  for (const float size : {0x1p-149f, 3e-45f, 1e-40f, 0x1p-127f, 0x1p-126f, 1e-36f, 1e-12f}) {
    CAPTURE(size);
    auto x = test::normal_row(8 * F::kLength, 1.0f, 9);
    for (float& v : x) v *= size;
    const auto blocks = quantized<F>(x);
    CHECK(test::within_bounds<F>(x, blocks));
    for (const auto& block : blocks) CHECK(all_finite<F>(block));
  }
}

TEST_CASE_TEMPLATE("NaN counts as zero, infinities as 2^120", F, ALL_FORMATS) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kMax = std::numeric_limits<float>::max();
  auto x = test::normal_row(F::kLength, 1.0f, 4);
  auto plain = x;
  x[5] = kNan;
  x[0] = -kNan;
  plain[5] = plain[0] = 0.0f;
  auto a = quantized<F>(x), b = quantized<F>(plain);
  CHECK(std::memcmp(&a[0], &b[0], sizeof(a[0])) == 0);

  for (const float huge : {kInf, kMax, 0x1.8p120f}) {
    x[7] = huge;
    plain[7] = 0x1p120f;
    x[8] = -huge;
    plain[8] = -0x1p120f;
    a = quantized<F>(x);
    b = quantized<F>(plain);
    CHECK(std::memcmp(&a[0], &b[0], sizeof(a[0])) == 0);
    CHECK(all_finite<F>(a[0]));
  }
  const std::vector<float> nothing(F::kLength, kNan);
  for (const float v : dequantized<F>(quantized<F>(nothing))) CHECK(v == 0.0f);
}

TEST_CASE_TEMPLATE("values beyond what a scale can hold saturate, with their sign", F,
                   ALL_FORMATS) {
  for (const float size : {1e5f, 6e5f, 1e6f, 8.4e6f, 1e9f, 1e30f}) {
    CAPTURE(size);
    auto x = test::normal_row(4 * F::kLength, size, 21);
    const auto blocks = quantized<F>(x);
    const auto y = dequantized<F>(blocks);
    int n_bad = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      n_bad += !std::isfinite(y[i]);
      // The error is never larger than that of zero plus the block's own bound.
      const float* block = x.data() + i / F::kLength * F::kLength;
      const double step = std::abs(test::exact_scale<F>(block).scale);
      n_bad += std::abs(double{y[i]} - x[i]) > std::abs(x[i]) + step * 1.01;
    }
    CHECK(n_bad == 0);
  }
}

TEST_CASE("f16 scales saturate exactly where they would round to infinity") {
  std::vector<float> x(32, 0.0f);
  const float below = std::nextafter(65520.0f, 0.0f);
  x[3] = -8.0f * below;
  CHECK(quantized<Q4_0>(x)[0].scale.bits == 0x7BFF);
  CHECK(test::level<Q4_0>(quantized<Q4_0>(x)[0], 3) == -8);
  x[3] = -8.0f * 65520.0f;
  x[4] = 65504.0f * 5;
  const auto block = quantized<Q4_0>(x)[0];
  CHECK(block.scale.bits == 0x7BFF);
  CHECK(test::level<Q4_0>(block, 3) == -8);
  CHECK(test::level<Q4_0>(block, 4) == 5);
  // A minimum below f16's range: weights that the block can represent are kept, the others
  // saturate.
  std::vector<float> z(32, -1e6f);
  z[1] = 0.0f;
  const auto q4_1 = quantized<Q4_1>(z)[0];
  CHECK(q4_1.minimum.bits == 0xFBFF);
  CHECK(test::weight<Q4_1>(q4_1, 0) == -65504.0);
  CHECK(std::abs(test::weight<Q4_1>(q4_1, 1)) <= 65504.0 * 0x1p-10);
  // All weights are outside f16's range, on the same side.
  const std::vector<float> above(32, 2e6f), under(32, -2e6f);
  CHECK(test::weight<Q4_1>(quantized<Q4_1>(under)[0], 0) == -65504.0);
  CHECK(test::weight<Q4_1>(quantized<Q4_1>(above)[0], 0) > 65504.0);
}

TEST_CASE_TEMPLATE("a block says whether it could hold its weights", F, ALL_FORMATS) {
  const auto holds = [](const std::vector<float>& x) {
    std::vector<typename F::Block> blocks(x.size() / F::kLength);
    return quantize_row<F>(x, blocks);
  };
  auto x = test::normal_row(3 * F::kLength, 1.0f, 31);
  CHECK(holds(x));
  CHECK(holds(std::vector<float>(F::kLength, 0.0f)));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), 0x1.8p120f, -0x1.8p120f,
                          std::numeric_limits<float>::infinity()}) {
    for (const std::size_t at : {std::size_t{0}, x.size() / 2, x.size() - 1}) {
      auto y = x;
      y[at] = bad;
      CHECK(!holds(y));
    }
  }
  x[0] = 2e7f;  // beyond 255 steps of the largest f16
  CHECK(holds(x) == !std::is_same_v<typename F::Scale, nibble::f16>);
}

// ---- The checkers can say no --------------------------------------------------------------------

namespace {

// Weights with rounding errors of up to 0.49 of a step, on both sides of many codes.
template <class F>
std::vector<float> sweep() {
  std::vector<float> x(F::kLength);
  constexpr int kHalf = 1 << (F::kBits - 1);
  const int bottom = test::kHasMinimum<F> ? 0 : F::kBits == 8 ? -127 : -kHalf;
  const int top = test::kHasMinimum<F> ? 2 * kHalf - 1 : kHalf - 1;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int k = bottom + 1 + static_cast<int>(i / 2 * 5) % (top - bottom - 1);
    x[i] = 0.125f * (static_cast<float>(k) + (i % 2 ? 0.49f : -0.49f));
  }
  x[0] = 0.125f * static_cast<float>(bottom);
  x[1] = 0.125f * static_cast<float>(top);
  return x;
}

}  // namespace

TEST_CASE_TEMPLATE("the bound rejects a scale that is 1 % off", F, Q4_0, Q4_1, Q8_0, Minimum8) {
  const auto x = sweep<F>();
  auto blocks = quantized<F>(x);
  REQUIRE(test::within_bounds<F>(x, blocks));
  const auto scale = blocks[0].scale;
  for (const float factor : {1.01f, 0.99f}) {
    blocks[0].scale = round_to<typename F::Scale>(static_cast<float>(test::decode(scale)) * factor);
    CHECK(!test::within_bounds<F>(x, blocks));
  }
}

TEST_CASE_TEMPLATE("the bound rejects every flipped bit of every code", F, Q4_0, Q4_1, Q8_0) {
  // Weights close to their codes (a quarter of a step away), so that even the neighbouring code is
  // too far.
  auto x = sweep<F>();
  for (std::size_t i = 2; i < x.size(); ++i) {
    x[i] += 0.125f * (i % 2 ? -0.24f : 0.24f);
  }
  auto blocks = quantized<F>(x);
  REQUIRE(test::within_bounds<F>(x, blocks));
  for (std::uint8_t& code : blocks[0].codes) {
    for (int bit = 0; bit < 8; ++bit) {
      code = static_cast<std::uint8_t>(code ^ 1 << bit);
      CHECK(!test::within_bounds<F>(x, blocks));
      code = static_cast<std::uint8_t>(code ^ 1 << bit);
    }
  }
  CHECK(test::within_bounds<F>(x, blocks));
}

}  // namespace quantize_test
