// SPDX-License-Identifier: Apache-2.0
//
// Products with other representations of activations than their format needs by default, and with
// one scale per row of weights; and the kernels that make these representations.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/quant/format.hpp"

namespace matmul_forms_test {

using namespace nibble;
using namespace nibble_test;
using kernels::ActivationScales;
using kernels::Epilogue;
using kernels::Matmul;
using quant::I8Channel;

namespace {

constexpr Index kRows[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 17};
constexpr Index kColumns[] = {1, 16, 17, 33, 100};

// ---- One scale per row of activations ----------------------------------------------------------

// Quantized activations whose blocks all have the scale of the first. The oracle of products per
// block and its tolerance apply, because the scale of a row is one more rounded factor of each
// term.
struct RowScaledActivations {
  Activations a;
  std::vector<float> row_scales;

  template <class Format>
  static RowScaledActivations random(Index m, Index k, std::mt19937& random) {
    RowScaledActivations r{Activations::random<Format>(m, k, random), {}};
    const Index n = r.a.n_blocks();
    for (Index row = 0; row < m; ++row) {
      r.row_scales.push_back(r.a.scales[size(row * n)]);
      for (Index b = 0; b < n; ++b) r.a.scales[size(row * n + b)] = r.row_scales.back();
    }
    return r;
  }
};

template <class Format>
void multiply_row_scaled(const RowScaledActivations& x, Index n, const AlignedBuffer& weights,
                         Output& out) {
  auto args = matmul_args(x.a, n, weights, out);
  args.input.scales = nullptr;
  args.input.row_scales = x.row_scales.data();
  simd::kernel<Matmul<Format, ActivationScales::per_row>>()(args);
}

using Q4Long = quant::Blocks<4, 128, f16, quant::ZeroPoint::symmetric>;

// Which representations of activations a format has products for; the others do not compile.
using kernels::kHasProducts;
static_assert(kHasProducts<quant::Q4_0, ActivationScales::per_row>);
static_assert(kHasProducts<quant::Q6_K, ActivationScales::per_block>);
static_assert(!kHasProducts<quant::Q4_K, ActivationScales::per_row>);
static_assert(!kHasProducts<quant::Q5_K, ActivationScales::per_row>);
static_assert(!kHasProducts<quant::Q6_K, ActivationScales::per_row>);
static_assert(!kHasProducts<quant::Q4_0TwoOfFour, ActivationScales::per_row>);
static_assert(kHasProducts<I8Channel, ActivationScales::affine>);
static_assert(!kHasProducts<quant::Q8_0, ActivationScales::affine>);

}  // namespace

TEST_CASE_TEMPLATE("products with one scale per row of activations are those in double", Format,
                   quant::Q4_0, quant::Q4_1, quant::Q8_0, Q4Long, Q8Minimum64) {
  std::mt19937 random(1);
  constexpr Index kLength = Format::kLength;
  for (const Index k : {kLength, 2 * kLength + 7, 5 * kLength}) {
    const auto w = Weights<Format>::random(100, k, random);
    for (const Index m : kRows) {
      const auto x = RowScaledActivations::random<Format>(m, k, random);
      const auto expected = expected_product(x.a, w);
      for (const Index n : kColumns) {
        const AlignedBuffer packed = pack(w, n);
        CAPTURE(k);
        CAPTURE(m);
        CAPTURE(n);
        for_each_target([&](simd::Target) {
          Output out(m, n);
          multiply_row_scaled<Format>(x, n, packed, out);
          REQUIRE(count_faults(expected, m, n, out) == 0);
        });
      }
    }
  }
}

TEST_CASE("the check sees a scale of a row that is a little wrong, and one of another row") {
  using Format = quant::Q4_0;
  constexpr Index m = 7, n = 33, k = 5 * Format::kLength;
  std::mt19937 random(2);
  const auto w = Weights<Format>::random(n, k, random);
  auto x = RowScaledActivations::random<Format>(m, k, random);
  const auto expected = expected_product(x.a, w);
  const AlignedBuffer packed = pack(w, n);
  for_each_target([&](simd::Target) {
    const auto faults = [&] {
      Output out(m, n);
      multiply_row_scaled<Format>(x, n, packed, out);
      return count_faults(expected, m, n, out);
    };
    REQUIRE(faults() == 0);
    x.row_scales[5] *= 1.0001f;
    CHECK(faults() >= n / 2);
    x.row_scales[5] /= 1.0001f;
    std::swap(x.row_scales[2], x.row_scales[3]);
    CHECK(faults() >= n);
    std::swap(x.row_scales[2], x.row_scales[3]);
    x.a.code_sums[size(4 * x.a.n_blocks() + 3)] += 8;
    CHECK(faults() >= n / 2);
    x.a.code_sums[size(4 * x.a.n_blocks() + 3)] -= 8;
  });
}

// ---- One scale per row of weights --------------------------------------------------------------

namespace {

// Stored rows of I8Channel: a scale and k codes.
struct Channels {
  Index n, k;
  std::vector<std::byte> bytes;

  Index row_bytes() const { return 4 + k; }
  float scale(Index row) const {
    float s;
    std::memcpy(&s, bytes.data() + row * row_bytes(), 4);
    return s;
  }
  void set_scale(Index row, float s) { std::memcpy(bytes.data() + row * row_bytes(), &s, 4); }
  std::byte& code(Index row, Index i) { return bytes[size(row * row_bytes() + 4 + i)]; }
  int code(Index row, Index i) const {
    return static_cast<std::int8_t>(bytes[size(row * row_bytes() + 4 + i)]);
  }

  static Channels random(Index n, Index k, std::mt19937& random) {
    Channels w{n, k, std::vector<std::byte>(size(n * (4 + k)))};
    for (Index row = 0; row < n; ++row) {
      w.set_scale(row, 0.001f * static_cast<float>(1 + random() % 100));
      for (Index i = 0; i < k; ++i) w.code(row, i) = static_cast<std::byte>(random() % 256);
    }
    return w;
  }
  AlignedBuffer pack(Index rows) const {
    using P = quant::Packed<I8Channel>;
    auto memory = AlignedBuffer::allocate(size(P::bytes(rows, k)));
    REQUIRE(memory.has_value());
    for (Index p = 0; p < quant::n_panels(rows); ++p) {
      const Index first = p * quant::kPanelRows;
      P::pack_panel(bytes.data() + first * row_bytes(), std::min(quant::kPanelRows, rows - first),
                    k, memory->data() + p * P::panel_bytes(k));
    }
    return std::move(*memory);
  }
};

// Rows of codes, padded to whole steps of 32, with a gap between them.
struct ChannelInput {
  Index m, k;
  Index stride = (k + 31) / 32 * 32 + 5;
  std::vector<std::int8_t> codes = std::vector<std::int8_t>(size((m - 1) * stride + stride - 5));
  std::vector<float> scales = std::vector<float>(size(m));
  std::vector<std::int32_t> code_sums = std::vector<std::int32_t>(size(m));

  template <class Code>
  void fill(std::mt19937& random, const Code& code) {
    for (Index row = 0; row < m; ++row) {
      scales[size(row)] = 0.001f * static_cast<float>(1 + random() % 100);
      code_sums[size(row)] = 0;
      for (Index i = 0; i < k; ++i) {
        const int c = code(i);
        codes[size(row * stride + i)] = static_cast<std::int8_t>(c);
        code_sums[size(row)] -= 8 * c;
      }
      for (Index i = k; i < stride && row + 1 < m; ++i) {  // zeros up to 32, then a gap
        codes[size(row * stride + i)] = i < stride - 5 ? std::int8_t{0} : std::int8_t{77};
      }
    }
  }
  kernels::MatmulArgs args(Index n, const AlignedBuffer& weights, Output& out) const {
    kernels::MatmulArgs a;
    a.input.codes = codes.data();
    a.input.row_scales = scales.data();
    a.input.code_sums = code_sums.data();
    a.input.code_stride = stride;
    a.input.n_blocks = 1;
    a.m = m;
    a.weights = weights.data();
    a.n = n;
    a.k = k;
    a.end_panel = quant::n_panels(n);
    a.out = out.data();
    a.out_stride = out.stride();
    a.finish = simd::kernel<kernels::FinishTile<kernels::Epilogue<>>>();
    return a;
  }
};

// The sum is exact; its conversion and two factors are rounded: 3 u, and 1 u for their products.
Expected expected_product(const ChannelInput& x, const Channels& w) {
  Expected e{x.m, w.n, {}, {}};
  for (Index row = 0; row < x.m; ++row) {
    for (Index column = 0; column < w.n; ++column) {
      std::int64_t sum = 0;
      for (Index i = 0; i < x.k; ++i) {
        sum += std::int64_t{x.codes[size(row * x.stride + i)]} * w.code(column, i);
      }
      const double value =
          static_cast<double>(sum) * double{x.scales[size(row)]} * double{w.scale(column)};
      e.value.push_back(value);
      e.tolerance.push_back(4 * 0x1p-24 * std::abs(value));
    }
  }
  return e;
}

int any_code(std::mt19937& random) { return static_cast<int>(random() % 255) - 127; }

}  // namespace

TEST_CASE("products with one scale per row of weights are those in double") {
  std::mt19937 random(3);
  for (const Index k : {1, 4, 31, 32, 33, 100, 320}) {
    const Channels w = Channels::random(100, k, random);
    for (const Index m : kRows) {
      ChannelInput x{m, k};
      x.fill(random, [&](Index) { return any_code(random); });
      const Expected expected = expected_product(x, w);
      for (const Index n : kColumns) {
        const AlignedBuffer packed = w.pack(n);
        CAPTURE(k);
        CAPTURE(m);
        CAPTURE(n);
        for_each_target([&](simd::Target) {
          Output out(m, n);
          simd::kernel<Matmul<I8Channel>>()(x.args(n, packed, out));
          REQUIRE(count_faults(expected, m, n, out) == 0);
        });
      }
    }
  }
}

// |sum| is at most 2^17 * 128 * 127 = 0.99 * 2^31; the corrected sum of unsigned codes wraps in
// between.
TEST_CASE("sums of the longest rows with the greatest codes fit") {
  constexpr Index m = 5, n = 17, k = quant::Packed<I8Channel>::kMaxK;
  std::mt19937 random(4);
  for (const int sign : {1, -1}) {
    Channels w = Channels::random(n, k, random);
    for (Index i = 0; i < k; ++i) {
      for (Index row = 0; row < n; ++row) {
        w.code(row, i) = static_cast<std::byte>(row % 2 == 0 ? -128 : 127);
      }
    }
    ChannelInput x{m, k};
    x.fill(random, [&](Index) { return sign * 127; });
    const Expected expected = expected_product(x, w);
    const AlignedBuffer packed = w.pack(n);
    for_each_target([&](simd::Target) {
      Output out(m, n);
      simd::kernel<Matmul<I8Channel>>()(x.args(n, packed, out));
      CHECK(count_faults(expected, m, n, out) == 0);
    });
  }
}

TEST_CASE("the check sees small faults in products with one scale per row of weights") {
  constexpr Index m = 3, n = 33, k = 67;
  std::mt19937 random(5);
  const Channels w = Channels::random(n, k, random);
  ChannelInput x{m, k};
  x.fill(random, [&](Index) { return any_code(random) | 1; });  // no zeros
  const Expected expected = expected_product(x, w);
  for_each_target([&](simd::Target) {
    const auto faults = [&](const Channels& weights) {
      Output out(m, n);
      simd::kernel<Matmul<I8Channel>>()(x.args(n, weights.pack(n), out));
      return count_faults(expected, m, n, out);
    };
    REQUIRE(faults(w) == 0);
    Channels bad = w;
    bad.code(32, 66) ^= std::byte{1};
    CHECK(faults(bad) == m);
    bad = w;
    bad.set_scale(16, w.scale(16) * 1.00001f);
    CHECK(faults(bad) >= m - 1);
    x.scales[2] *= 1.00001f;
    CHECK(faults(w) >= n / 2);
    x.scales[2] /= 1.00001f;
  });
}

// ---- bf16 by bf16 ------------------------------------------------------------------------------

TEST_CASE("products of rows rounded to bf16 are those of the rounded rows in double") {
  std::mt19937 random(6);
  bool any = false;
  for (const Index k : {1, 2, 7, 8, 9, 33, 64, 131}) {
    const auto w = Weights<quant::BF16>::random(100, k, random);
    for (const Index m : kRows) {
      Activations a = Activations::random<quant::BF16>(m, k, random);
      // (m, k + 1 + gap): a zero after an odd k, then values that would show in a result.
      const Index stride = k + k % 2 + Activations::kGap;
      std::vector<bf16> rounded(size((m - 1) * stride + k + k % 2), quant::round_to<bf16>(1e20f));
      for (Index row = 0; row < m; ++row) {
        for (Index i = 0; i < k; ++i) {
          float& x = a.x[size(row * a.stride() + i)];
          const bf16 value = quant::round_to<bf16>(x);
          rounded[size(row * stride + i)] = value;
          x = static_cast<float>(to_double(value));
        }
        if (k % 2 != 0) rounded[size(row * stride + k)] = bf16{};
      }
      const Expected expected = nibble_test::expected_product(a, w);
      for (const Index n : kColumns) {
        const AlignedBuffer packed = pack(w, n);
        CAPTURE(k);
        CAPTURE(m);
        CAPTURE(n);
        for_each_target([&](simd::Target) {
          if (!simd::kernel<kernels::TakesRoundedRows>()()) return;
          any = true;
          Output out(m, n);
          auto args = matmul_args(a, n, packed, out);
          args.input.x = nullptr;
          args.input.rounded = rounded.data();
          args.input.rounded_stride = stride;
          simd::kernel<Matmul<quant::BF16>>()(args);
          REQUIRE(count_faults(expected, m, n, out) == 0);
          // A fault that the check must find: the smallest change of one value.
          rounded[size((m - 1) * stride + k - 1)].bits ^= 1;
          simd::kernel<Matmul<quant::BF16>>()(args);
          if (n >= 16) REQUIRE(count_faults(expected, m, n, out) > 0);
          rounded[size((m - 1) * stride + k - 1)].bits ^= 1;
        });
      }
    }
  }
  if (!any) MESSAGE("no target here multiplies bf16 as one operation: not tested");
}

// ---- Making the forms --------------------------------------------------------------------------

TEST_CASE("rows are rounded to bf16 to nearest, ties to even") {
  std::mt19937 random(7);
  for (const Index k : {0, 1, 2, 15, 16, 17, 100, 1001}) {
    std::vector<float> x(size(k));
    for (float& v : x) v = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (k > 16) {
      constexpr std::uint32_t kBits[] = {0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000,
                                         0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x00008000};
      for (std::size_t i = 0; i < std::size(kBits); ++i) x[i] = std::bit_cast<float>(kBits[i]);
    }
    for_each_target([&](simd::Target) {
      std::vector<bf16> out(size(k + 3), bf16{0x1234});
      simd::kernel<kernels::RoundRow>()(x.data(), k, out.data());
      int faults = 0;
      for (Index i = 0; i < k; ++i) {
        faults += out[size(i)].bits != quant::round_to<bf16>(x[size(i)]).bits;
      }
      CHECK(faults == 0);
      const Index end = k + k % 2;
      if (k % 2 != 0) CHECK(out[size(k)].bits == 0);
      CHECK(out[size(end)].bits == 0x1234);
    });
  }
}

TEST_CASE_TEMPLATE("sums of blocks", Length, std::integral_constant<int, 32>,
                   std::integral_constant<int, 64>, std::integral_constant<int, 128>) {
  constexpr int kLength = Length::value;
  std::mt19937 random(8);
  std::vector<std::int8_t> codes(size(7 * kLength));
  for (auto& c : codes) c = static_cast<std::int8_t>(any_code(random));
  std::fill_n(codes.begin(), kLength, std::int8_t{-127});
  for_each_target([&](simd::Target) {
    std::vector<std::int32_t> sums(8, 99);
    simd::kernel<kernels::BlockSums<kLength>>()(codes.data(), 7, sums.data());
    for (std::size_t b = 0; b < 7; ++b) {
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < kLength; ++i) sum += codes[b * kLength + i];
      CHECK(sums[b] == -8 * sum);
    }
    CHECK(sums[7] == 99);
  });
}

}  // namespace matmul_forms_test
