// SPDX-License-Identifier: Apache-2.0
//
// Products of 8-bit weights with one scale per row and inputs with a zero point: exact in integers.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/quant/format.hpp"

namespace matmul_affine_test {

using namespace nibble;
using namespace nibble_test;
using kernels::ActivationScales;
using kernels::Matmul;
using quant::I8Channel;

namespace {

// Weights (n, k) and inputs (m, k) as plain integers: w in [-127, 127], u in [0, 255].
struct Problem {
  Index m, n, k;
  int zero_point = 0;
  std::vector<int> w, u;
  std::vector<float> w_scales, x_scales;

  Problem(Index rows, Index columns, Index length, std::mt19937& random)
      : m(rows), n(columns), k(length), zero_point(static_cast<int>(random() % 256)) {
    for (Index i = 0; i < n * k; ++i) w.push_back(static_cast<int>(random() % 255) - 127);
    for (Index i = 0; i < m * k; ++i) u.push_back(static_cast<int>(random() % 256));
    for (Index i = 0; i < n; ++i) w_scales.push_back(scale(random));
    for (Index i = 0; i < m; ++i) x_scales.push_back(scale(random));
  }
  static float scale(std::mt19937& random) {
    return 0.001f * static_cast<float>(1 + random() % 100);
  }
  std::int64_t sum(Index row, Index column) const {
    std::int64_t total = 0;
    for (Index i = 0; i < k; ++i) {
      total += std::int64_t{w[size(column * k + i)]} * (u[size(row * k + i)] - zero_point);
    }
    return total;
  }
};

AlignedBuffer packed(const Problem& p) {
  using L = quant::Packed<I8Channel>;
  std::vector<std::byte> rows;
  for (Index row = 0; row < p.n; ++row) {
    const auto* const scale = reinterpret_cast<const std::byte*>(&p.w_scales[size(row)]);
    rows.insert(rows.end(), scale, scale + 4);
    for (Index i = 0; i < p.k; ++i)
      rows.push_back(static_cast<std::byte>(p.w[size(row * p.k + i)]));
  }
  auto memory = AlignedBuffer::allocate(size(L::bytes(p.n, p.k)));
  REQUIRE(memory.has_value());
  for (Index panel = 0; panel < quant::n_panels(p.n); ++panel) {
    const Index first = panel * quant::kPanelRows;
    simd::kernel<kernels::PackPanel<I8Channel>>()(rows.data() + first * (4 + p.k),
                                                  std::min(quant::kPanelRows, p.n - first), p.k,
                                                  memory->data() + panel * L::panel_bytes(p.k));
  }
  return std::move(*memory);
}

// Stored codes in rows `stride` apart, zeros up to 32.
struct Input {
  Index stride;
  std::vector<std::int8_t> codes;
  std::vector<std::int32_t> code_sums;

  explicit Input(const Problem& p)
      : stride((p.k + 31) / 32 * 32 + 32), codes(size(p.m * stride)), code_sums(size(p.m)) {
    for (Index row = 0; row < p.m; ++row) {
      for (Index i = 0; i < p.k; ++i) {
        const int code = p.u[size(row * p.k + i)] - 128;
        codes[size(row * stride + i)] = static_cast<std::int8_t>(code);
        code_sums[size(row)] -= 8 * code;
      }
    }
  }
};

Output multiply(const Problem& p, const AlignedBuffer& weights, const Input& x) {
  Output out(p.m, p.n);
  kernels::MatmulArgs a;
  a.input.codes = x.codes.data();
  a.input.row_scales = p.x_scales.data();
  a.input.code_sums = x.code_sums.data();
  a.input.code_stride = x.stride;
  a.input.n_blocks = 1;
  a.input.zero_point = p.zero_point - 128;
  a.m = p.m;
  a.weights = weights.data();
  a.n = p.n;
  a.k = p.k;
  a.end_panel = quant::n_panels(p.n);
  a.out = out.data();
  a.out_stride = out.stride();
  a.finish = simd::kernel<kernels::FinishTile<kernels::Epilogue<>>>();
  simd::kernel<Matmul<I8Channel, ActivationScales::affine>>()(a);
  return out;
}

// Scales that are powers of two leave integers below 2^24 as they are: the result must be exact.
// Otherwise its conversion and two factors are rounded.
int count_faults(const Problem& p, const Output& out) {
  int faults = 0;
  for (Index row = 0; row < p.m; ++row) {
    for (Index column = 0; column < p.n; ++column) {
      const double exact = static_cast<double>(p.sum(row, column)) * double{p.x_scales[size(row)]} *
                           double{p.w_scales[size(column)]};
      const double error = std::fabs(double{out(row, column)} - exact);
      faults += !(error <= 4 * 0x1p-24 * std::fabs(exact));
    }
  }
  return faults;
}

}  // namespace

TEST_CASE("products of inputs with a zero point are those in integers") {
  std::mt19937 random(1);
  for (const Index k : {1, 4, 31, 32, 33, 100, 320}) {
    for (const Index m : {1, 2, 3, 4, 5, 7, 8, 9, 17}) {
      for (const Index n : {1, 16, 17, 33, 100}) {
        Problem p(m, n, k, random);
        const AlignedBuffer weights = packed(p);
        const Input x(p);
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(k);
        for_each_target(
            [&](simd::Target) { REQUIRE(count_faults(p, multiply(p, weights, x)) == 0); });
      }
    }
  }
}

TEST_CASE("products of inputs with a zero point: integers come out as they are") {
  std::mt19937 random(2);
  Problem p(5, 33, 100, random);
  p.w_scales.assign(p.w_scales.size(), 0.25f);
  p.x_scales.assign(p.x_scales.size(), 4.0f);
  const AlignedBuffer weights = packed(p);
  for_each_target([&](simd::Target) {
    const Output out = multiply(p, weights, Input(p));
    int faults = 0;
    for (Index row = 0; row < p.m; ++row) {
      for (Index column = 0; column < p.n; ++column) {
        faults += double{out(row, column)} != static_cast<double>(p.sum(row, column));
      }
    }
    CHECK(faults == 0);
  });
}

// |sum| is at most 2^16 * 127 * 255 = 0.99 * 2^31.
TEST_CASE("extreme codes with a zero point, in the longest rows") {
  for (const Index k : {Index{64}, quant::Packed<I8Channel>::kMaxAffineK}) {
    for (const int zero_point : {0, 255, 128, 1}) {
      for (const int u : {0, 255, 127, 128}) {
        std::mt19937 random(3);
        Problem p(2, 17, 1, random);
        p.k = k;
        p.zero_point = zero_point;
        p.u.assign(size(p.m * k), u);
        p.w.clear();
        for (Index row = 0; row < p.n; ++row) {
          for (Index i = 0; i < k; ++i)
            p.w.push_back(row % 3 == 0 ? -127 : row % 3 == 1 ? 127 : -1);
        }
        const AlignedBuffer weights = packed(p);
        const Input x(p);
        CAPTURE(k);
        CAPTURE(zero_point);
        CAPTURE(u);
        for_each_target(
            [&](simd::Target) { CHECK(count_faults(p, multiply(p, weights, x)) == 0); });
      }
    }
  }
}

TEST_CASE("the check of products with a zero point sees small faults") {
  std::mt19937 random(4);
  const Problem p(3, 33, 67, random);
  const AlignedBuffer weights = packed(p);
  const Input x(p);
  for_each_target([&](simd::Target) {
    REQUIRE(count_faults(p, multiply(p, weights, x)) == 0);
    Problem other = p;
    other.zero_point += p.zero_point < 255 ? 1 : -1;
    CHECK(count_faults(p, multiply(other, weights, x)) > 90);
    other = p;
    other.x_scales[2] *= 1.00001f;
    CHECK(count_faults(p, multiply(other, weights, x)) > 16);
    Problem bad = p;
    bad.w[size(32 * p.k + 66)] += bad.w[size(32 * p.k + 66)] < 127 ? 1 : -1;
    CHECK(count_faults(p, multiply(p, packed(bad), x)) >= 2);
    // A sum of codes in the panel that is off by one.
    AlignedBuffer damaged = packed(p);
    using L = quant::Packed<I8Channel>;
    std::int32_t sum = L::code_sum(damaged.data(), 5) + 1;
    std::memcpy(damaged.data() + L::kSumOffset + 5 * 4, &sum, 4);
    CHECK(count_faults(p, multiply(p, damaged, x)) == (p.zero_point == 128 ? 0 : 3));
  });
}

}  // namespace matmul_affine_test
