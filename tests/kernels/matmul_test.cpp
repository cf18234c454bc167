// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/matmul.hpp"

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/pass.hpp"

using namespace nibble;
using namespace nibble_test;
using kernels::Epilogue;
using kernels::Matmul;

#define NIBBLE_BLOCK_FORMATS                                                                      \
  quant::Q4_0, quant::Q4_1, quant::Q5_0, quant::Q5_1, quant::Q8_0, quant::Q4_K, quant::Q5_K,      \
      quant::Q6_K, quant::Q3_H, quant::Q2_H, quant::Q2_K, quant::Q3_K, quant::TQ2_0, quant::Q2_0, \
      quant::Q1_0, quant::IQ4_NL, quant::IQ4_XS, quant::MXFP4, Q4Bf16, Q8F32, Q4Minimum128,       \
      Q8Minimum64
#define NIBBLE_PLAIN_FORMATS quant::F32, quant::F16, quant::BF16

namespace {

template <class Format>
void multiply(const Activations& a, Index n, const AlignedBuffer& weights, Output& out) {
  simd::kernel<Matmul<Format>>()(matmul_args(a, n, weights, out));
}

// Blocks: one block, even and odd numbers of blocks, and a k that ends within a block.
template <class Format>
std::vector<Index> lengths() {
  if constexpr (quant::SuperBlockFormat<Format>) {
    return {256, 768, 2304};  // whole ones only; the last is widened in parts
  } else if constexpr (quant::BlockFormat<Format>) {
    constexpr Index kLength = Format::kLength;
    // The long one is widened in parts, too.
    if (Format::kBits == 5 || Format::kBits < 4 || quant::LevelFormat<Format>)
      return {kLength, 2 * kLength + 7, 71 * kLength};
    return {kLength, 2 * kLength, 2 * kLength + 7, 5 * kLength};
  } else {
    return {1, 2, 7, 33, 64};
  }
}

}  // namespace

TEST_CASE_TEMPLATE("products of every size are those in double", Format, NIBBLE_BLOCK_FORMATS,
                   NIBBLE_PLAIN_FORMATS) {
  constexpr Index kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17};
  constexpr Index kColumns[] = {1, 15, 16, 17, 31, 32, 33, 48, 100};
  std::mt19937 random(1);
  for (const Index k : lengths<Format>()) {
    CAPTURE(k);
    const auto w = Weights<Format>::random(100, k, random);
    const auto all_rows = Activations::random<Format>(17, k, random);
    const auto expected = expected_product(all_rows, w);
    for (const Index n : kColumns) {
      CAPTURE(n);
      const AlignedBuffer packed = pack(w, n);
      std::vector<Activations> inputs;
      for (const Index m : kRows) inputs.push_back(all_rows.first_rows(m));
      for_each_target([&](simd::Target) {
        for (const Activations& a : inputs) {
          Output out(a.m, n);
          multiply<Format>(a, n, packed, out);
          CAPTURE(a.m);
          REQUIRE(count_faults(expected, a.m, n, out) == 0);
        }
      });
    }
  }
}

// Extreme values: pairs or quadruples of products might not fit 16 bits, or a sign might be lost.
TEST_CASE_TEMPLATE("extreme codes do not saturate", Format, NIBBLE_BLOCK_FORMATS) {
  constexpr Index kRows = 5, kColumns = 33, k = 3 * Format::kLength;
  std::mt19937 random(2);
  // Two alternating bytes: the smallest, the largest, the middle, its neighbours, and mixtures.
  constexpr std::uint8_t kBytes[][2] = {{0x00, 0x00}, {0xFF, 0xFF}, {0x80, 0x80},
                                        {0x7F, 0x7F}, {0x80, 0x7F}, {0xFF, 0x00},
                                        {0x0F, 0xF0}, {0x88, 0x87}, {0x01, 0x81}};
  // Signs of x along k, in periods of four.
  constexpr int kSigns[][4] = {{1, 1, 1, 1},   {-1, -1, -1, -1}, {1, -1, 1, -1},
                               {1, 1, -1, -1}, {-1, 1, 1, 1},    {0, 1, 0, -1}};
  for (const auto& bytes : kBytes) {
    auto w = Weights<Format>::random(kColumns, k, random);
    for (auto& block : w.blocks) {
      for (std::size_t i = 0; i < block.codes.size(); ++i) block.codes[i] = bytes[i % 2];
    }
    const AlignedBuffer packed = pack(w, kColumns);
    for (const auto& signs : kSigns) {
      const auto a = Activations::quantized(kRows, k, quant::Packed<Format>::kStepLength, random,
                                            [&](Index, Index i) { return 127 * signs[i % 4]; });
      const auto expected = expected_product(a, w);
      CAPTURE(int{bytes[0]});
      CAPTURE(int{bytes[1]});
      CAPTURE(signs[0]);
      CAPTURE(signs[1]);
      for_each_target([&](simd::Target) {
        Output out(kRows, kColumns);
        multiply<Format>(a, kColumns, packed, out);
        REQUIRE(count_faults(expected, kRows, kColumns, out) == 0);
      });
    }
  }
}

TEST_CASE_TEMPLATE("a product in runs of panels is the whole product", Format, quant::Q4_0,
                   quant::BF16) {
  constexpr Index kRows = 7, kColumns = 100, k = 96;
  std::mt19937 random(3);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const AlignedBuffer packed = pack(w, kColumns);
  for_each_target([&](simd::Target) {
    Output whole(kRows, kColumns);
    multiply<Format>(a, kColumns, packed, whole);
    Output parts(kRows, kColumns);
    auto args = matmul_args(a, kColumns, packed, parts);
    const auto kernel = simd::kernel<Matmul<Format>>();
    args.first_panel = args.end_panel = 3;  // no panel
    kernel(args);
    CHECK(parts == Output(kRows, kColumns));
    constexpr Index kCuts[] = {0, 1, 4, 6, 7};
    for (std::size_t i = 0; i + 1 < std::size(kCuts); ++i) {
      args.first_panel = kCuts[i];
      args.end_panel = kCuts[i + 1];
      kernel(args);
      for (Index row = 0; row < kRows; ++row) {
        for (Index column = 0; column < kColumns; ++column) {
          const bool done = column < kCuts[i + 1] * quant::kPanelRows;
          REQUIRE(parts(row, column) == (done ? whole(row, column) : Output::kUntouched));
        }
      }
    }
    CHECK(parts == whole);
  });
}

// Few rows are multiplied by other tiles than many, and weights of some formats are widened for
// many.
TEST_CASE_TEMPLATE("a row's results are the same bits whatever rows are beside it", Format,
                   quant::Q4_0, quant::Q5_0, quant::Q4_K, quant::Q5_K, quant::Q6_K, quant::Q3_H,
                   quant::Q2_H, quant::Q2_K, quant::Q3_K, quant::TQ2_0, quant::Q2_0, quant::Q1_0,
                   quant::IQ4_NL, quant::IQ4_XS, quant::MXFP4) {
  constexpr Index kRows = 21, kColumns = 50, k = 2304;
  std::mt19937 random(6);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const AlignedBuffer packed = pack(w, kColumns);
  for_each_target([&](simd::Target) {
    Output together(kRows, kColumns);
    multiply<Format>(a, kColumns, packed, together);
    int different = 0;
    for (Index row = 0; row < kRows; ++row) {
      Output alone(1, kColumns);
      auto args = matmul_args(a, kColumns, packed, alone);
      args.input = args.input.rows_from(row);
      args.m = 1;
      simd::kernel<Matmul<Format>>()(args);
      for (Index column = 0; column < kColumns; ++column) {
        different += alone(0, column) != together(row, column);
      }
    }
    CHECK(different == 0);
  });
}

// ---- The check itself --------------------------------------------------------------------------

TEST_CASE_TEMPLATE("the check sees small faults in products of blocks", Format,
                   NIBBLE_BLOCK_FORMATS) {
  constexpr Index kRows = 3, kColumns = 33, kBlocks = 5, k = kBlocks * Format::kLength;
  std::mt19937 random(4);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const auto expected = expected_product(a, w);
  const Index n_inputs = a.n_blocks();
  const auto faults = [&](const Activations& x, const Weights<Format>& weights) {
    Output out(kRows, kColumns);
    multiply<Format>(x, kColumns, pack(weights, kColumns), out);
    return count_faults(expected, kRows, kColumns, out);
  };
  for_each_target([&](simd::Target target) {
    REQUIRE(faults(a, w) == 0);

    const auto one_percent_more = [](auto scale) {
      if constexpr (std::is_same_v<decltype(scale), HalfE8M0>) {  // the next one is twice as much
        ++scale.bits;
        return scale;
      } else {
        return quant::round_to<decltype(scale)>(static_cast<float>(to_double(scale) * 1.01));
      }
    };
    auto bad = w;
    bad.block(32, 4).scale = one_percent_more(w.block(32, 4).scale);
    CHECK(faults(a, bad) > 0);
    if constexpr (Weights<Format>::kHasMinimum) {
      bad = w;
      bad.block(20, 2).minimum = one_percent_more(w.block(20, 2).minimum);
      CHECK(faults(a, bad) > 0);
    }
    for (const std::uint8_t bit :
         {std::uint8_t{0x01}, std::uint8_t{0x10}}) {  // the smallest change of a code
      bad = w;
      bad.block(16, 1).codes.back() ^= bit;
      CHECK(faults(a, bad) > 0);
    }
    bad = w;
    for (Index row = 0; row < kColumns; ++row) {
      bad.block(row, kBlocks - 1) = typename Format::Block{};
    }
    CHECK(faults(a, bad) >= kRows * kColumns * 9 / 10);

    auto bad_x = a;
    bad_x.scales[size(2 * n_inputs + 3)] *= 1.01f;
    CHECK(faults(bad_x, w) >= kColumns / 2);
    bad_x = a;
    bad_x.codes[0] = static_cast<std::int8_t>(a.codes[0] > 0 ? a.codes[0] - 1 : a.codes[0] + 1);
    // Its sum stays what it was, so that weights that are stored as 0 do not see it: of signs, half.
    CHECK(faults(bad_x, w) >= kColumns / (Format::kBits == 1 ? 4 : 2));
    // The correction for unsigned codes. Targets that sum signed 8-bit codes do not read it; x86
    // with VNNI and SSE2 do.
    using enum simd::Target;
    const bool reads_sums = Weights<Format>::kHasMinimum || Weights<Format>::kProductBits < 8 ||
                            target <= AVX3_DL || target == SSE2;
    bad_x = a;
    // The minimums of super-blocks are small: one more in a sum of codes would not show.
    constexpr bool kTwoScales = [] {
      if constexpr (quant::SuperBlockFormat<Format>) return Format::kGroupLength == 16;
      return false;
    }();
    (kTwoScales ? bad_x.half_sums : bad_x.code_sums)[size(n_inputs + 1)] +=
        quant::SuperBlockFormat<Format> ? 80 : 8;
    const int n_faults = faults(bad_x, w);
    CHECK(reads_sums ? n_faults >= kColumns / 2 : n_faults == 0);

    // Rows and columns that are not computed.
    const AlignedBuffer packed = pack(w, kColumns);
    Output out(kRows, kColumns);
    auto args = matmul_args(a, kColumns, packed, out);
    const auto kernel = simd::kernel<Matmul<Format>>();
    args.n = kColumns - 1;
    kernel(args);
    CHECK(count_faults(expected, kRows, kColumns, out) == kRows);
    args.n = kColumns;
    args.m = kRows - 1;
    kernel(args);
    CHECK(count_faults(expected, kRows, kColumns, out) == 1);  // the corner that is in neither
    out(0, kColumns) = 0;                                      // beyond the row
    CHECK(count_faults(expected, kRows, kColumns, out) == 2);
    out(0, 0) = std::nanf("");
    CHECK(count_faults(expected, kRows, kColumns, out) == 3);
  });
}

TEST_CASE_TEMPLATE("the check sees small faults in products of plain weights", Format,
                   NIBBLE_PLAIN_FORMATS) {
  constexpr Index kRows = 3, kColumns = 33, k = 65;
  std::mt19937 random(5);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const auto expected = expected_product(a, w);
  const auto faults = [&](const Activations& x, const Weights<Format>& weights) {
    Output out(kRows, kColumns);
    multiply<Format>(x, kColumns, pack(weights, kColumns), out);
    return count_faults(expected, kRows, kColumns, out);
  };
  for_each_target([&](simd::Target) {
    REQUIRE(faults(a, w) == 0);
    using T = typename Format::Element;
    auto bad = w;
    T& weight = bad.values[size(20 * k + 64)];
    weight = quant::round_to<T>(static_cast<float>(to_double(weight) * 1.01));
    CHECK(faults(a, bad) > 0);
    bad = w;
    for (Index row = 0; row < kColumns; ++row) bad.values[size(row * k + k - 1)] = T{};
    CHECK(faults(a, bad) >= kRows * kColumns * 9 / 10);
    auto bad_x = a;
    bad_x.x.back() *= 1.001f;
    CHECK(faults(bad_x, w) >= kColumns / 2);
  });
}
