// SPDX-License-Identifier: Apache-2.0
//
// Products of tiles, on the target AMX: with its registers, or, where the machine has none, with a
// model of them (tile_model.hpp). (Products of integers and of bf16 weights are also among the
// others' tests.)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/matmul.hpp"
#ifdef NIBBLE_TILE_MODEL
#include "kernels/tile_model.hpp"
#endif

namespace matmul_tiles_test {

using namespace nibble;
using namespace nibble_test;
using kernels::ActivationScales;
using kernels::Matmul;

namespace {

// Runs the test on AMX; restores the default choice afterwards. Without a model and without the
// registers there is nothing to test.
template <class Body>
void on_amx(const Body& body) {
  if (!simd::available_targets().contains(simd::Target::AMX)) {
    MESSAGE("no AMX here, and no model of it");
    return;
  }
  REQUIRE(simd::force_target(simd::Target::AMX).has_value());
  REQUIRE(simd::kernel<kernels::WhichTarget>()() == simd::Target::AMX);
#ifdef NIBBLE_TILE_MODEL
  const auto before = tile_model::counts;
#endif
  body();
#ifdef NIBBLE_TILE_MODEL
  const auto after = tile_model::counts;
  CHECK(after.products > before.products);
  CHECK(after.configured > before.configured);
  CHECK(after.faults == before.faults);
  CHECK(after.alive == 0);  // registers were given back
#endif
  REQUIRE(simd::choose_target().has_value());
}

// What the codes of blocks stand for, as bf16: (m, stride), zeros up to a multiple of 32, then a
// gap of numbers that would show in a result.
struct RoundedInput {
  Index stride;
  std::vector<bf16> values;

  explicit RoundedInput(const Activations& a)
      : stride((a.k + 31) / 32 * 32 + 6), values(size(a.m * stride), quant::round_to<bf16>(1e20f)) {
    for (Index row = 0; row < a.m; ++row) {
      for (Index i = 0; i < (a.k + 31) / 32 * 32; ++i) {
        values[size(row * stride + i)] = i < a.k ? to_bf16(number(a, row, i)) : bf16{};
      }
    }
  }
  static float number(const Activations& a, Index row, Index i) {
    const float scale = a.scales[size(row * a.n_blocks() + i / a.length)];
    return static_cast<float>(a.codes[size(row * a.code_stride() + i)]) * scale;
  }
  double at(Index row, Index i) const { return to_double(values[size(row * stride + i)]); }
};

// A weight as f32 and then as bf16, to nearest, ties away from zero.
double rounded_weight(double exact) {
  const auto f = static_cast<float>(exact);
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return from_bits((bits + 0x8000u) >> 16, 7, 8);
}

// The sum of products of rounded inputs and rounded weights: N = k terms, exact products, whose
// sums are rounded at most once for each term and twice for each 32 of them.
template <class Format>
Expected expected_of_rounded(const RoundedInput& x, Index m, const Weights<Format>& w) {
  Expected e{m, w.n, {}, {}};
  for (Index row = 0; row < m; ++row) {
    for (Index column = 0; column < w.n; ++column) {
      double sum = 0, magnitudes = 0;
      for (Index i = 0; i < w.k; ++i) {
        const double term = x.at(row, i) * rounded_weight(w.weight(column, i));
        sum += term;
        magnitudes += std::abs(term);
      }
      e.value.push_back(sum);
      e.tolerance.push_back(static_cast<double>(w.k + w.k / 16 + 4) * 0x1p-24 * magnitudes);
    }
  }
  return e;
}

template <class Format>
kernels::MatmulArgs rounded_args(const Activations& a, const RoundedInput& x, Index n,
                                 const AlignedBuffer& packed, Output& out) {
  kernels::MatmulArgs args = matmul_args(a, n, packed, out);
  args.input.rounded = x.values.data();
  args.input.rounded_stride = x.stride;
  return args;
}

template <class Format>
constexpr Index length_of() {  // more than two parts, and no whole number of them
  return quant::SuperBlockFormat<Format> ? 5 * 256 : 1124;
}

// How many outputs of rows [from, from + part.m) of `whole` are not those of `part`.
int n_different(const Output& whole, Index from, const Output& part, Index m, Index n) {
  int different = 0;
  for (Index row = 0; row < m; ++row) {
    for (Index column = 0; column < n; ++column) {
      different += whole(from + row, column) != part(row, column);
    }
  }
  return different;
}

}  // namespace

#define NIBBLE_TILE_FORMATS                                                                  \
  quant::Q4_0, quant::Q4_1, quant::Q5_0, quant::Q5_1, quant::Q8_0, quant::Q4_K, quant::Q5_K, \
      quant::Q6_K, quant::Q3_H, quant::Q2_H, Q4Bf16, Q8F32, Q4Minimum128, Q8Minimum64

TEST_CASE_TEMPLATE("tiles multiply rounded rows by rounded weights of block formats", Format,
                   NIBBLE_TILE_FORMATS) {
  constexpr Index kRows = 165, kColumns = 45, k = length_of<Format>();
  std::mt19937 random(31);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const RoundedInput x(a);
  const AlignedBuffer packed = pack(w, kColumns);
  const Expected exact = expected_of_rounded(x, kRows, w);
  on_amx([&] {
    Output all(kRows, kColumns);
    auto args = rounded_args<Format>(a, x, kColumns, packed, all);
#ifdef NIBBLE_TILE_MODEL
    tile_model::counts.end_of_inputs = nullptr;
#endif
    simd::kernel<Matmul<Format>>()(args);
    CHECK(count_faults(exact, kRows, kColumns, all) == 0);
#ifdef NIBBLE_TILE_MODEL  // nothing behind the last row is read
    const auto* const end = reinterpret_cast<const std::byte*>(x.values.data() + x.values.size());
    CHECK(tile_model::counts.end_of_inputs <= end);
#endif

    // What the format and the codes mean: each term has two factors rounded to 8 bits.
    Expected meant = expected_product(a, w);
    for (Index row = 0; row < kRows; ++row) {
      for (Index column = 0; column < kColumns; ++column) {
        double magnitudes = 0;
        for (Index i = 0; i < k; ++i) {
          magnitudes += std::abs(double{RoundedInput::number(a, row, i)} * w.weight(column, i));
        }
        meant.tolerance[size(row * kColumns + column)] += (0x1p-7 + 0x1p-15) * magnitudes;
      }
    }
    CHECK(count_faults(meant, kRows, kColumns, all) == 0);

    // A row does not depend on its neighbours, a column not on how panels are cut.
    for (const Index m : {1, 15, 16, 17, 32, 33}) {
      CAPTURE(m);
      constexpr Index kFrom = 29;
      Output some(m, kColumns);
      auto part = rounded_args<Format>(a, x, kColumns, packed, some);
      part.input = part.input.rows_from(kFrom);
      part.m = m;
      part.first_panel = 1;
      simd::kernel<Matmul<Format>>()(part);
      part.first_panel = 0;
      part.end_panel = 1;
      simd::kernel<Matmul<Format>>()(part);
      CHECK(n_different(all, kFrom, some, m, kColumns) == 0);
      CHECK(some.n_guard_faults() == 0);
    }
    // Codes without rounded rows are multiplied as on other targets.
    Output of_codes(kRows, kColumns);
    simd::kernel<Matmul<Format>>()(matmul_args(a, kColumns, packed, of_codes));
    CHECK(count_faults(expected_product(a, w), kRows, kColumns, of_codes) == 0);
    CHECK(n_different(all, 0, of_codes, kRows, kColumns) > kRows * kColumns / 2);
  });
}

TEST_CASE("tiles multiply a matrix and its gate together") {
  using Format = quant::Q4_1;
  constexpr Index kRows = 37, kColumns = 77, k = 1124;
  std::mt19937 random(32);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto gate = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const RoundedInput x(a);
  const AlignedBuffer packed = pack(w, kColumns), packed_gate = pack(gate, kColumns);
  Expected expected = expected_of_rounded(x, kRows, w);
  const Expected gates = expected_of_rounded(x, kRows, gate);
  for (std::size_t i = 0; i < expected.value.size(); ++i) {
    const double g = gates.value[i], v = expected.value[i];
    expected.tolerance[i] = std::abs(g) * expected.tolerance[i] +
                            gates.tolerance[i] * (std::abs(v) + expected.tolerance[i]) +
                            0x1p-24 * std::abs(g * v);
    expected.value[i] = g * v;
  }
  on_amx([&] {
    Output out(kRows, kColumns);
    auto args = rounded_args<Format>(a, x, kColumns, packed, out);
    args.gate = packed_gate.data();
    args.finish = simd::kernel<kernels::FinishGatedTile<kernels::Identity>>();
    simd::kernel<Matmul<Format>>()(args);
    CHECK(count_faults(expected, kRows, kColumns, out) == 0);
  });
}

TEST_CASE("the check sees small faults in products of tiles") {
  using Format = quant::Q4_0;
  constexpr Index kRows = 20, kColumns = 20, k = 640;
  std::mt19937 random(33);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const RoundedInput x(a);
  const Expected expected = expected_of_rounded(x, kRows, w);
  const auto faults = [&](const Weights<Format>& weights, const RoundedInput& input, Index length) {
    const AlignedBuffer packed = pack(weights, kColumns);
    Output out(kRows, kColumns);
    auto args = rounded_args<Format>(a, input, kColumns, packed, out);
    args.k = length;
    simd::kernel<Matmul<Format>>()(args);
    return count_faults(expected, kRows, kColumns, out);
  };
  on_amx([&] {
    CHECK(faults(w, x, k) == 0);
    auto other = w;
    other.block(3, 19).codes[15] ^= 0x10;  // the last weight of a column
    CHECK(faults(other, x, k) >= kRows * 9 / 10);
    other = w;
    other.block(19, 0).scale.bits ^= 0x100;  // a quarter of it
    CHECK(faults(other, x, k) >= kRows * 3 / 4);
    auto input = x;
    input.values[size(19 * x.stride + k - 1)].bits ^= 0x20;
    CHECK(faults(w, input, k) >= kColumns * 3 / 4);
  });
}

// Integers are exact, and scaled in the same way: AMX must not differ from its base by a bit.
TEST_CASE_TEMPLATE("integer tiles give the bits of other products", Scales,
                   std::integral_constant<ActivationScales, ActivationScales::per_block>,
                   std::integral_constant<ActivationScales, ActivationScales::affine>) {
  using L = quant::Packed<quant::I8Channel>;
  using Kernel = Matmul<quant::I8Channel, Scales::value>;
  constexpr Index kRows = 70, kColumns = 43;
  std::mt19937 random(34);
  for (const Index k : {1, 31, 33, 64, 100, 500}) {
    CAPTURE(k);
    std::vector<std::byte> rows(size(kColumns * (k + 4)));
    for (auto& b : rows) b = static_cast<std::byte>(random());
    for (Index row = 0; row < kColumns; ++row) {
      const float scale = 0.01f + 0.001f * static_cast<float>(row);
      std::memcpy(&rows[size(row * (k + 4))], &scale, 4);
    }
    auto packed = AlignedBuffer::allocate(size(L::bytes(kColumns, k)));
    REQUIRE(packed.has_value());
    for (Index p = 0; p < quant::n_panels(kColumns); ++p) {
      L::pack_panel(&rows[size(16 * p * (k + 4))], std::min<Index>(16, kColumns - 16 * p), k,
                    packed->data() + p * L::panel_bytes(k));
    }
    const Index stride = L::padded_k(k) + 32;
    std::vector<std::int8_t> codes(size(kRows * stride), std::int8_t{99});
    std::vector<float> scales(size(kRows));
    std::vector<std::int32_t> sums(size(kRows), 0);
    for (Index row = 0; row < kRows; ++row) {
      scales[size(row)] = 0.02f + 0.003f * static_cast<float>(row);
      for (Index i = 0; i < L::padded_k(k); ++i) {
        const int code = i < k ? static_cast<int>(random() % 255) - 127 : 0;
        codes[size(row * stride + i)] = static_cast<std::int8_t>(code);
        sums[size(row)] -= 8 * code;
      }
    }
    const auto product = [&](Index m, Output& out) {
      kernels::MatmulArgs args;
      args.input.codes = codes.data();
      args.input.row_scales = scales.data();
      args.input.code_sums = sums.data();
      args.input.code_stride = stride;
      args.input.n_blocks = 1;
      args.input.zero_point = 77;
      args.m = m;
      args.weights = packed->data();
      args.n = kColumns;
      args.k = k;
      args.end_panel = quant::n_panels(kColumns);
      args.out = out.data();
      args.out_stride = out.stride();
      args.finish = simd::kernel<kernels::FinishTile<kernels::Epilogue<>>>();
      simd::kernel<Kernel>()(args);
    };
    Output expected(kRows, kColumns);
    product(kRows, expected);
    on_amx([&] {
      for (const Index m : {7, 8, 16, 17, 33, 70}) {
        CAPTURE(m);
        Output out(m, kColumns);
        product(m, out);
        CHECK(n_different(expected, 0, out, m, kColumns) == 0);
        CHECK(out.n_guard_faults() == 0);
      }
    });
  }
}

TEST_CASE("codes of blocks are rounded to bf16 as numbers are") {
  std::mt19937 random(35);
  for (const Index k : {1, 32, 45, 200}) {
    CAPTURE(k);
    const auto a = Activations::random<quant::Q4_0>(3, k, random);
    const RoundedInput expected(a);
    for_each_target([&](simd::Target) {
      for (Index row = 0; row < 3; ++row) {
        const Index n = (k + 31) / 32 * 32;
        std::vector<bf16> out(size(n + 1), bf16{77});
        simd::kernel<kernels::RoundCodes<32>>()(a.codes.data() + row * a.code_stride(),
                                                a.scales.data() + row * a.n_blocks(), k,
                                                out.data());
        CHECK(
            std::equal(out.begin(), out.end() - 1, &expected.values[size(row * expected.stride)]));
        CHECK(out[size(n)].bits == 77);
      }
    });
  }
}

// Which rows are multiplied how is decided by what they are for: not by tasks, nor by neighbours.
TEST_CASE("rows of prompts are multiplied with tiles, generated ones as everywhere") {
  using Format = quant::Q4_0;
  using ops::Segment, ops::SegmentKind;
  constexpr Index kRows = 230, kColumns = 40, k = 96;
  std::mt19937 random(36);
  const auto w = Weights<Format>::random(kColumns, k, random);
  const auto a = Activations::random<Format>(kRows, k, random);
  const RoundedInput x(a);
  const AlignedBuffer packed = pack(w, kColumns);
  const Segment segments[] = {
      {.first_row = 0, .n_rows = 1, .kind = SegmentKind::generation},
      {.first_row = 1, .n_rows = 70, .kind = SegmentKind::prompt},
      {.first_row = 71, .n_rows = 1, .kind = SegmentKind::prompt},
      {.first_row = 72, .n_rows = 3, .kind = SegmentKind::generation},
      {.first_row = 75, .n_rows = 1, .kind = SegmentKind::generation},
      {.first_row = 76, .n_rows = 154, .kind = SegmentKind::prompt},
  };
  on_amx([&] {
    Output rounded(kRows, kColumns), of_codes(kRows, kColumns), out(kRows, kColumns);
    const auto kernel = simd::kernel<Matmul<Format>>();
    kernel(rounded_args<Format>(a, x, kColumns, packed, rounded));
    kernel(matmul_args(a, kColumns, packed, of_codes));
    ops::Product product{kernel, rounded_args<Format>(a, x, kColumns, packed, out), segments};
    InlineExecutor executor;
    ops::run(executor, {&product, 1});
    int different = out.n_guard_faults();
    for (const Segment& s : segments) {
      const Output& as = s.kind == SegmentKind::prompt ? rounded : of_codes;
      for (Index row = s.first_row; row < s.first_row + s.n_rows; ++row) {
        for (Index column = 0; column < kColumns; ++column) {
          different += out(row, column) != as(row, column);
        }
      }
    }
    CHECK(different == 0);
  });
}

}  // namespace matmul_tiles_test
