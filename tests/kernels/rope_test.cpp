// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/rope.hpp"

#include <complex>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace rope_test {

using namespace nibble;
using namespace nibble_test;

namespace {

struct Shape {
  Index n_heads, head_dim, rope_dim;
  std::size_t size() const { return static_cast<std::size_t>(n_heads * head_dim); }
};

// Each pair as a complex number times cos + i sin; and the error of two products and their sum.
struct Expected {
  Exact value, allowed;
};
template <class Style>
Expected expected(const Floats& x, const Shape& s, const Floats& cos, const Floats& sin) {
  Expected e{Exact(x.begin(), x.end()), Exact(x.size(), 0.0L)};
  for (Index head = 0; head < s.n_heads; ++head) {
    for (Index i = 0; i < s.rope_dim / 2; ++i) {
      constexpr bool kAdjacent = std::is_same_v<Style, kernels::AdjacentPairs>;
      const auto a = static_cast<std::size_t>(head * s.head_dim + (kAdjacent ? 2 * i : i));
      const auto b = a + (kAdjacent ? 1u : static_cast<std::size_t>(s.rope_dim / 2));
      const std::complex<long double> turn(cos[static_cast<std::size_t>(i)],
                                           sin[static_cast<std::size_t>(i)]);
      const auto turned = std::complex<long double>(x[a], x[b]) * turn;
      e.value[a] = turned.real();
      e.value[b] = turned.imag();
      e.allowed[a] = 2 * kU * (std::fabs(x[a] * turn.real()) + std::fabs(x[b] * turn.imag()));
      e.allowed[b] = 2 * kU * (std::fabs(x[a] * turn.imag()) + std::fabs(x[b] * turn.real()));
    }
  }
  return e;
}

struct Angles {
  Floats cos, sin;
};
Angles random_angles(Index n) {
  Angles angles;
  for (const float a : random_floats(static_cast<std::size_t>(n), -3, 3, 9)) {
    angles.cos.push_back(std::cos(a));
    angles.sin.push_back(std::sin(a));
  }
  return angles;
}

template <class Style>
Floats run(const Floats& x, const Shape& s, const Angles& angles) {
  Floats y = x;
  simd::kernel<kernels::Rope<Style>>()(y.data(), s.n_heads, s.head_dim, s.rope_dim,
                                       angles.cos.data(), angles.sin.data());
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("rope turns every pair of every head, and nothing else", Style,
                   kernels::AdjacentPairs, kernels::HalfSplit) {
  for_each_target([](simd::Target) {
    const auto rope = simd::kernel<kernels::Rope<Style>>();
    for (Index rope_dim = 0; rope_dim <= 3 * 32 + 2; rope_dim += 2) {
      for (const Index rest : {0, 1, 6}) {
        for (const Index n_heads : {1, 3}) {
          const Shape s{n_heads, rope_dim + rest, rope_dim};
          CAPTURE(s.rope_dim);
          CAPTURE(s.head_dim);
          const Floats x = random_floats(s.size(), -4, 4);
          const Angles angles = random_angles(rope_dim / 2);
          const Expected e = expected<Style>(x, s, angles.cos, angles.sin);
          Guarded in(x, static_cast<std::size_t>(n_heads)), cos(angles.cos, 1), sin(angles.sin, 2);
          rope(in.data(), n_heads, s.head_dim, rope_dim, cos.data(), sin.data());
          REQUIRE(worst(in.values(), e.value, e.allowed) <= 1.0);
          REQUIRE(in.guards_intact());
        }
      }
    }
  });
}

TEST_CASE_TEMPLATE("the judge rejects what is wrong", Style, kernels::AdjacentPairs,
                   kernels::HalfSplit) {
  using Other = std::conditional_t<std::is_same_v<Style, kernels::HalfSplit>,
                                   kernels::AdjacentPairs, kernels::HalfSplit>;
  const Shape s{2, 40, 36};
  const Floats x = random_floats(s.size(), -4, 4);
  const Angles angles = random_angles(18);
  const Expected e = expected<Style>(x, s, angles.cos, angles.sin);
  REQUIRE(worst(run<Style>(x, s, angles), e.value, e.allowed) <= 1.0);
  CHECK(worst(run<Other>(x, s, angles), e.value, e.allowed) > 1.0);
  CHECK(worst(run<Style>(x, s, {angles.sin, angles.cos}), e.value, e.allowed) > 1.0);
  Angles wrong = angles;
  for (float& v : wrong.sin) v = -v;  // the opposite rotation
  CHECK(worst(run<Style>(x, s, wrong), e.value, e.allowed) > 1.0);
  wrong = angles;
  wrong.cos.back() *= 1.00001f;
  CHECK(worst(run<Style>(x, s, wrong), e.value, e.allowed) > 1.0);
  CHECK(worst(run<Style>(x, {2, 40, 34}, angles), e.value, e.allowed) > 1.0);
  CHECK(worst(run<Style>(x, {1, 40, 36}, angles), e.value, e.allowed) > 1.0);
}

TEST_CASE_TEMPLATE("the backward rotation is the transposed one", Style, kernels::AdjacentPairs,
                   kernels::HalfSplit) {
  for_each_target([](simd::Target) {
    for (Index rope_dim = 0; rope_dim <= 3 * 32 + 2; rope_dim += 2) {
      const Shape s{2, rope_dim + 3, rope_dim};
      CAPTURE(s.rope_dim);
      const Floats dy = random_floats(s.size(), -4, 4);
      Angles angles = random_angles(rope_dim / 2), opposite;
      for (float& v : angles.cos) v *= 1.25f;  // a magnitude
      for (float& v : angles.sin) v *= 1.25f;
      opposite = angles;
      for (float& v : opposite.sin) v = -v;
      const Expected e = expected<Style>(dy, s, opposite.cos, opposite.sin);
      Guarded dx(dy, 1);
      simd::kernel<kernels::Rope<Style, true>>()(dx.data(), s.n_heads, s.head_dim, rope_dim,
                                                 angles.cos.data(), angles.sin.data());
      REQUIRE(worst(dx.values(), e.value, e.allowed) <= 1.0);
      REQUIRE(dx.guards_intact());
      if (rope_dim > 0) {
        const Floats wrong = run<Style>(dy, s, angles);
        REQUIRE(worst(wrong, e.value, e.allowed) > 1.0);
      }
      // <dy, rope(x)> = <rope_back(dy), x>: rope is linear, so this is its gradient.
      const Floats x = random_floats(s.size(), -4, 4, 7), y = run<Style>(x, s, angles);
      double forward = 0, backward = 0, size = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        forward += static_cast<double>(dy[i]) * static_cast<double>(y[i]);
        backward += static_cast<double>(dx.values()[i]) * static_cast<double>(x[i]);
        size += std::fabs(static_cast<double>(dy[i]) * static_cast<double>(y[i])) + 16;
      }
      REQUIRE(std::fabs(forward - backward) <= 4 * 0x1p-24 * size);
    }
  });
}

TEST_CASE("rows turn back by their own positions") {
  constexpr Index kTokens = 7, kDim = 12, kWidth = 2 * kDim, kPairs = 4;
  const Angles angles = random_angles(kTokens * kPairs);
  const MatrixView<const float> cos(angles.cos.data(), kTokens, kPairs),
      sin(angles.sin.data(), kTokens, kPairs);
  const Floats before = random_floats(kTokens * kWidth, -1, 1);
  Floats x = before;
  InlineExecutor executor;
  const MatrixView<float> view(x.data(), kTokens, kWidth);
  const auto position = [](Index row) { return kTokens - 1 - row; };
  ops::rope<kernels::HalfSplit>(executor, view, kDim, cos, sin, position);
  ops::rope<kernels::HalfSplit, true>(executor, view, kDim, cos, sin, position);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(x[i] - before[i]) < 1e-6f);
}

TEST_CASE("the table of angles is right up to position 2^31") {
  constexpr Index kPairs = 32;
  std::vector<double> frequencies(kPairs);
  ops::rope_frequencies(frequencies, 500000.0);
  const std::vector<Index> positions = {0, 1, 2, 511, 131071, (Index{1} << 31) - 1, Index{1} << 31};
  const auto n = static_cast<Index>(positions.size());
  Floats cos(positions.size() * kPairs), sin(cos.size());
  ops::rope_table(frequencies, positions, MatrixView<float>(cos.data(), n, kPairs),
                  MatrixView<float>(sin.data(), n, kPairs));
  for (std::size_t row = 0; row < positions.size(); ++row) {
    for (std::size_t i = 0; i < kPairs; ++i) {
      CAPTURE(positions[row]);
      CAPTURE(i);
      // exp and log instead of pow, in long double
      const long double frequency =
          std::exp(-std::log(500000.0L) * static_cast<long double>(i) / kPairs);
      const long double angle = static_cast<long double>(positions[row]) * frequency;
      const long double allowed = kU + angle * 0x1p-51L;
      REQUIRE(std::fabs(cos[row * kPairs + i] - std::cos(angle)) <= allowed);
      REQUIRE(std::fabs(sin[row * kPairs + i] - std::sin(angle)) <= allowed);
    }
  }
}

TEST_CASE("frequencies: formula, factors and linear scaling") {
  std::vector<double> plain(4), scaled(4), factored(4);
  ops::rope_frequencies(plain, 10000.0);
  const double by_hand[] = {1.0, 0.1, 0.01, 0.001};
  for (std::size_t i = 0; i < 4; ++i) CHECK(std::fabs(plain[i] - by_hand[i]) < 1e-16);
  ops::rope_frequencies(scaled, 10000.0, {}, 4.0);
  const Floats factors = {1.0f, 2.0f, 8.0f, 32.0f};
  ops::rope_frequencies(factored, 10000.0, factors, 2.0);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(scaled[i] == plain[i] / 4.0);
    CHECK(factored[i] == plain[i] / (2.0 * static_cast<double>(factors[i])));
  }
}

TEST_CASE("YaRN: fast pairs keep their frequency, slow ones are stretched") {
  // Over 4096 positions these pairs turn 652, 206, 65, 20.6, 6.5, 2.06, 0.65, 0.2 times.
  std::vector<double> plain(8), yarn(8);
  ops::rope_frequencies(plain, 10000.0);
  ops::rope_frequencies(yarn, 10000.0, {}, 8.0, {4096, 32, 1});
  // 32 turns: pair 2.6, so the ramp begins at 2; 1 turn: pair 5.6, so it ends at 6.
  for (std::size_t i = 0; i < 8; ++i) {
    const double stretched = i < 2 ? 0 : i < 6 ? (static_cast<double>(i) - 2) / 4 : 1;
    CAPTURE(i);
    CHECK(std::fabs(yarn[i] / plain[i] - (1 - stretched + stretched / 8)) < 1e-12);
  }
  // A ramp that is no longer than nothing.
  ops::rope_frequencies(yarn, 10000.0, {}, 8.0, {1, 1, 1});
  for (std::size_t i = 1; i < 8; ++i) CHECK(std::fabs(yarn[i] - plain[i] / 8) < 1e-15);
  const Index position = 3;
  Floats cos(8), sin(8), cos_times(8), sin_times(8);
  const auto view = [](Floats& v) { return MatrixView<float>(v.data(), 1, 8); };
  ops::rope_table(plain, {&position, 1}, view(cos), view(sin));
  ops::rope_table(plain, {&position, 1}, view(cos_times), view(sin_times), 2.0);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(cos_times[i] == 2 * cos[i]);
    CHECK(sin_times[i] == 2 * sin[i]);
  }
}

TEST_CASE("what rope is for: the product of a query and a key depends on their distance alone") {
  constexpr Index kDim = 64, kHeads = 2, kTokens = 400;
  std::vector<double> frequencies(kDim / 2);
  ops::rope_frequencies(frequencies, 10000.0);
  std::vector<Index> positions;
  for (Index i = 0; i < kTokens; ++i) positions.push_back(i);
  Floats cos(kTokens * kDim / 2), sin(cos.size());
  ops::rope_table(frequencies, positions, MatrixView<float>(cos.data(), kTokens, kDim / 2),
                  MatrixView<float>(sin.data(), kTokens, kDim / 2));
  // The same query and key at every position, rows with a gap.
  constexpr Index kWidth = kHeads * kDim, kStride = kWidth + 3;
  const Floats q = random_floats(kWidth, -1, 1, 3), k = random_floats(kWidth, -1, 1, 4);
  const auto everywhere = [&](const Floats& row) {
    Floats all(kTokens * kStride, 7.0f);
    for (Index t = 0; t < kTokens; ++t) {
      std::copy(row.begin(), row.end(), all.begin() + t * kStride);
    }
    return all;
  };
  Floats qs = everywhere(q), ks = everywhere(k);
  BackwardExecutor executor;
  const MatrixView<const float> c(cos.data(), kTokens, kDim / 2), s(sin.data(), kTokens, kDim / 2);
  for (Floats* all : {&qs, &ks}) {
    ops::rope<kernels::HalfSplit>(
        executor, MatrixView<float>(all->data(), {kTokens, kWidth}, {kStride, 1}), kDim, c, s);
    for (Index t = 0; t < kTokens; ++t) {
      REQUIRE((*all)[static_cast<std::size_t>(t * kStride + kWidth)] == 7.0f);
    }
  }
  CHECK(executor.n_tasks_run > 2);
  const auto product = [&](Index a, Index b, Index head) {
    double sum = 0;
    for (Index i = 0; i < kDim; ++i) {
      sum += static_cast<double>(qs[static_cast<std::size_t>(a * kStride + head * kDim + i)]) *
             static_cast<double>(ks[static_cast<std::size_t>(b * kStride + head * kDim + i)]);
    }
    return sum;
  };
  for (Index head = 0; head < kHeads; ++head) {
    CHECK(std::fabs(product(100, 90, head) - product(399, 389, head)) < 1e-5);
    CHECK(std::fabs(product(100, 90, head) - product(90, 100, head)) > 1e-3);
    CHECK(std::fabs(product(7, 7, head) - product(0, 0, head)) < 1e-5);
  }
}

}  // namespace rope_test
