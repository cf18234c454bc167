// SPDX-License-Identifier: Apache-2.0
//
// Sums and products are exact operations of IEEE 754: results must be equal to scalar ones, bit by
// bit. Dropout is compared with a scalar version here.
#include "nibble/ops/elementwise.hpp"

#include <bit>
#include <cstring>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace elementwise_test {

using namespace nibble;
using namespace nibble_test;

namespace {

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::uint32_t mix(std::uint32_t h) {
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  h = (h ^ (h >> 15)) * 0x846CA68Bu;
  return h ^ (h >> 16);
}
float dropout_factor(const kernels::Dropout& dropout, Index index) {
  const auto i = static_cast<std::uint64_t>(index);
  const auto low = static_cast<std::uint32_t>(i), high = static_cast<std::uint32_t>(i >> 32);
  const std::uint32_t bits = mix((mix(low ^ dropout.key0) + high) ^ dropout.key1);
  return bits < dropout.threshold ? 0.0f : dropout.scale;
}

Floats run_dropout(const kernels::Dropout& dropout, Index first, const Floats& x) {
  Floats out(x.size());
  simd::kernel<kernels::ApplyDropout>()(dropout, first, x.data(), out.data(),
                                        static_cast<Index>(x.size()));
  return out;
}

// f16 by the definition of its fields, except NaN.
double value_of(f16 h) {
  const int exponent = (h.bits >> 10) & 31, mantissa = h.bits & 1023;
  const double sign = (h.bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return sign * (mantissa == 0 ? kInf : kNan);
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(mantissa + 1024, exponent - 25);
}
double value_of(bf16 b) {
  const int exponent = (b.bits >> 7) & 255, mantissa = b.bits & 127;
  const double sign = (b.bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 255) return sign * (mantissa == 0 ? kInf : kNan);
  if (exponent == 0) return sign * std::ldexp(mantissa, -133);
  return sign * std::ldexp(mantissa + 128, exponent - 134);
}

}  // namespace

TEST_CASE("add, multiply and scale of every length and address, in place too") {
  for_each_target([](simd::Target) {
    for_each_length([&](std::size_t n, std::size_t offset) {
      CAPTURE(n);
      CAPTURE(offset);
      const auto size = static_cast<Index>(n);
      const Floats x = random_floats(n, -6, 6), y = random_floats(n, -3, 3, 2);
      Floats sum(n), product(n), scaled(n);
      for (std::size_t i = 0; i < n; ++i) {
        sum[i] = x[i] + y[i];
        product[i] = x[i] * y[i];
        scaled[i] = x[i] * 1.7f;
      }
      Guarded a(x, offset), b(y, 1), out(n, 2 - offset);
      simd::kernel<kernels::Add>()(a.data(), b.data(), out.data(), size);
      REQUIRE(same_bits(out.values(), sum));
      simd::kernel<kernels::Multiply>()(a.data(), b.data(), out.data(), size);
      REQUIRE(same_bits(out.values(), product));
      simd::kernel<kernels::Scale>()(a.data(), 1.7f, out.data(), size);
      REQUIRE(same_bits(out.values(), scaled));
      REQUIRE(out.guards_intact());
      simd::kernel<kernels::Scale>()(a.data(), 1.7f, a.data(), size);
      REQUIRE(same_bits(a.values(), scaled));
      REQUIRE(a.guards_intact());
      Guarded again(x, offset);
      simd::kernel<kernels::Add>()(again.data(), b.data(), b.data(), size);
      REQUIRE(same_bits(b.values(), sum));
      REQUIRE(b.guards_intact());
    });
  });
}

TEST_CASE_TEMPLATE("every 16-bit float converts exactly", T, f16, bf16) {
  std::vector<T> all(65536);
  for (std::uint32_t i = 0; i < 65536; ++i) all[i].bits = static_cast<std::uint16_t>(i);
  for_each_target([&](simd::Target) {
    const auto convert = simd::kernel<kernels::ToF32<T>>();
    Floats out(all.size());
    convert(all.data(), out.data(), 65536);
    int n_wrong = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double want = value_of(all[i]);
      const bool right = std::isnan(want)
                             ? std::isnan(out[i])
                             : std::bit_cast<std::uint32_t>(out[i]) ==
                                   std::bit_cast<std::uint32_t>(static_cast<float>(want));
      n_wrong += right ? 0 : 1;
    }
    CHECK(n_wrong == 0);
    for_each_length([&](std::size_t n, std::size_t offset) {
      Guarded part(n, offset);
      convert(all.data() + 15000, part.data(), static_cast<Index>(n));
      REQUIRE(same_bits(part.values(), {out.begin() + 15000,
                                        out.begin() + 15000 + static_cast<std::ptrdiff_t>(n)}));
      REQUIRE(part.guards_intact());
    });
  });
}

TEST_CASE("dropout drops the same elements on every target, in any chunks") {
  const kernels::Dropout dropout(0.3f, 42);
  for (const Index first : {Index{0}, Index{12345}, (Index{1} << 32) - 30, Index{7} << 40}) {
    CAPTURE(first);
    const Floats x = random_floats(100, 1, 2);
    Floats want(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      want[i] = x[i] * dropout_factor(dropout, first + static_cast<Index>(i));
    }
    for_each_target([&](simd::Target) {
      CHECK(same_bits(run_dropout(dropout, first, x), want));
      for_each_length([&](std::size_t n, std::size_t offset) {
        Guarded out(n, offset);
        const auto skip = static_cast<Index>(n);
        simd::kernel<kernels::ApplyDropout>()(dropout, first + skip, x.data() + n, out.data(),
                                              skip);
        const auto begin = want.begin() + static_cast<std::ptrdiff_t>(n);
        REQUIRE(same_bits(out.values(), {begin, begin + static_cast<std::ptrdiff_t>(n)}));
        REQUIRE(out.guards_intact());
      });
    });
  }
}

TEST_CASE("dropout with p = 0 is exactly the identity, and a dropped NaN stays") {
  Floats x = {0.5f, 0.0f, -0.0f, kInf, -kInf, kNan, 1e-45f, -1e-40f, 3e38f, 0x1.fffffep0f};
  x.resize(40, 0.1f);
  for_each_target([&](simd::Target) {
    CHECK(same_bits(run_dropout(kernels::Dropout(0.0f, 99), 5, x), x));
    CHECK(same_bits(run_dropout(kernels::Dropout(), 0, x), x));  // element 0 has bits 0
    for (const float v : run_dropout(kernels::Dropout(0.99f, 1), 0, Floats(50, kNan))) {
      CHECK(std::isnan(v));
    }
  });
}

TEST_CASE("dropout keeps 1 - p, without regard to neighbours, seeds and rows") {
  constexpr std::size_t kN = 1 << 18;
  const Floats ones(kN, 1.0f);
  for (const float p : {0.001f, 0.1f, 0.5f, 0.9f}) {
    CAPTURE(p);
    const Floats a = run_dropout({p, 1}, 0, ones), b = run_dropout({p, 2}, 0, ones);
    const double keep = 1.0 - static_cast<double>(p);
    const double sigma = std::sqrt(keep * (1 - keep) / kN);
    double sum = 0;
    for (const float v : a) sum += static_cast<double>(v);
    CHECK(std::fabs(sum / kN - 1.0) < 5 * sigma / keep);
    // The covariance of two kept-or-not sequences, in units of its standard deviation.
    const auto covariance = [&](const Floats& x, const Floats& y, std::size_t lag) {
      double c = 0;
      for (std::size_t i = 0; i + lag < kN; ++i) {
        c += ((x[i + lag] > 0) - keep) * ((y[i] > 0) - keep);
      }
      return std::fabs(c) / (keep * (1 - keep) * std::sqrt(static_cast<double>(kN - lag)));
    };
    for (const std::size_t lag : {1u, 2u, 16u, 64u, 768u, 4096u, 65536u}) {
      CAPTURE(lag);
      CHECK(covariance(a, a, lag) < 5);
    }
    CHECK(covariance(a, b, 0) < 5);
    CHECK(covariance(a, a, 0) > 100);
  }
}

TEST_CASE("elementwise operations on matrices go row by row, whatever the strides and workers") {
  const Index m = 37, k = 1500, stride = 1504;
  const Floats x = random_floats(static_cast<std::size_t>(m * stride), -5, 5);
  const Floats y = random_floats(x.size(), -5, 5, 2);
  const MatrixView<const float> a(x.data(), {m, k}, {stride, 1}), b(y.data(), {m, k}, {stride, 1});
  const kernels::Dropout dropout(0.2f, 3);
  BackwardExecutor executor;
  Floats sum(x.size(), 7.0f), product = sum, scaled = sum, dropped = sum;
  const auto out = [&](Floats& values) {
    return MatrixView<float>(values.data(), {m, k}, {stride, 1});
  };
  ops::add(executor, a, b, out(sum));
  ops::multiply(executor, a, b, out(product));
  ops::scale(executor, a, 0.3f, out(scaled));
  ops::dropout(executor, a, dropout, out(dropped));
  CHECK(executor.n_tasks_run > 4);
  int n_wrong = 0;
  for (Index row = 0; row < m; ++row) {
    for (Index col = 0; col < stride; ++col) {
      const auto i = static_cast<std::size_t>(row * stride + col);
      const bool in = col < k;
      n_wrong += sum[i] == (in ? x[i] + y[i] : 7.0f) ? 0 : 1;
      n_wrong += product[i] == (in ? x[i] * y[i] : 7.0f) ? 0 : 1;
      n_wrong += scaled[i] == (in ? x[i] * 0.3f : 7.0f) ? 0 : 1;
      n_wrong += dropped[i] == (in ? x[i] * dropout_factor(dropout, row * k + col) : 7.0f) ? 0 : 1;
    }
  }
  CHECK(n_wrong == 0);
}

}  // namespace elementwise_test
