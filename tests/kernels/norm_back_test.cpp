// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/norm_back.hpp"

#include <cmath>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/differences.hpp"
#include "kernels/each_target.hpp"
#include "nibble/ops/norm.hpp"

namespace norm_back_test {

using namespace nibble;
using namespace nibble_test;
using kernels::Gradient;
using kernels::NormBackArgs;

namespace {

Floats random_row(std::size_t k, std::mt19937& random, float mean = 0.3f, float sigma = 2.0f) {
  std::normal_distribution<float> normal(mean, sigma);
  Floats x(k);
  for (float& v : x) v = normal(random);
  return x;
}

// A row; an empty weight: ones.
struct Problem {
  Floats x, dy, weight;
  float eps = 1e-5f;
  double w(std::size_t i) const { return weight.empty() ? 1.0 : double{weight[i]}; }
};

// What is expected, and what errors the bounds of kernels/norm_back.hpp allow.
struct Expected {
  Doubles dx, dweight, dbias, dx_allowed, dweight_allowed, dbias_allowed;
};

constexpr double kUnit = 0x1p-24;

Expected rms_oracle(const Problem& p) {
  const std::size_t size = p.x.size();
  const double k = static_cast<double>(size), n = k / 16 + 8;
  double squares = 0, products = 0, magnitude = 0;
  for (std::size_t i = 0; i < size; ++i) {
    squares += double{p.x[i]} * p.x[i];
    products += p.w(i) * p.dy[i] * p.x[i] / k;
    magnitude += std::fabs(p.w(i) * p.dy[i] * p.x[i]) / k;
  }
  const double r = 1 / std::sqrt(squares / k + p.eps);
  Expected e;
  for (std::size_t i = 0; i < size; ++i) {
    const double g = p.w(i) * p.dy[i];
    e.dx.push_back(r * (g - p.x[i] * r * r * products));
    e.dx_allowed.push_back((2 * n + 16) * kUnit * r *
                           (std::fabs(g) + std::fabs(p.x[i]) * r * r * magnitude));
    e.dweight.push_back(p.dy[i] * p.x[i] * r);
    e.dweight_allowed.push_back((n / 2 + 8) * kUnit * std::fabs(e.dweight[i]));
  }
  return e;
}

Expected layer_oracle(const Problem& p) {
  const std::size_t size = p.x.size();
  const double k = static_cast<double>(size), n = k / 16 + 8;
  double mean = 0, variance = 0;
  for (const float v : p.x) mean += v / k;
  for (const float v : p.x) variance += (v - mean) * (v - mean) / k;
  const double s = 1 / std::sqrt(variance + p.eps);
  const auto z_of = [&](std::size_t i) { return (p.x[i] - mean) * s; };
  const auto e_z = [&](std::size_t i) { return (3 * n + 16) * kUnit * (std::fabs(z_of(i)) + 1); };
  double g_mean = 0, gz_mean = 0, g_size = 0, gz_size = 0, g_ez = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const double g = p.w(i) * p.dy[i];
    g_mean += g / k;
    gz_mean += g * z_of(i) / k;
    g_size += std::fabs(g) / k;
    gz_size += std::fabs(g * z_of(i)) / k;
    g_ez += std::fabs(g) * e_z(i) / k;
  }
  Expected e;
  for (std::size_t i = 0; i < size; ++i) {
    const double g = p.w(i) * p.dy[i], z = z_of(i);
    e.dx.push_back(s * (g - g_mean - z * gz_mean));
    e.dx_allowed.push_back(
        s * ((2 * n + 16) * kUnit * (std::fabs(g) + g_size + std::fabs(z) * gz_size) +
             e_z(i) * gz_size + std::fabs(z) * g_ez) +
        // The factor s: half the relative error of the variance.
        (3 * n + 16) * kUnit * std::fabs(e.dx[i]));
    e.dweight.push_back(p.dy[i] * z);
    e.dweight_allowed.push_back(std::fabs(p.dy[i]) * (e_z(i) + 2 * kUnit * std::fabs(z)));
    e.dbias.push_back(p.dy[i]);
    e.dbias_allowed.push_back(0);
  }
  return e;
}

// What a kernel makes of a problem; the gradients of weight and bias start from `start`.
struct Outputs {
  Floats dx, dweight, dbias;
};

constexpr float kStart = 0.5f;

template <class Kernel>
Outputs run(const Problem& p, const Floats& dx_before, bool has_bias, std::size_t offset = 1) {
  Guarded x(p.x, offset), dy(p.dy, 2), weight(p.weight, 3), dx(dx_before, 1);
  Guarded dweight(Floats(p.x.size(), kStart), 2), dbias(Floats(p.x.size(), kStart), 3);
  NormBackArgs args;
  args.x = x.data();
  args.dy = dy.data();
  args.weight = p.weight.empty() ? nullptr : weight.data();
  args.k = static_cast<Index>(p.x.size());
  args.eps = p.eps;
  args.dx = dx.data();
  args.dweight = dweight.data();
  args.dbias = has_bias ? dbias.data() : nullptr;
  simd::kernel<Kernel>()(args);
  CHECK((dx.guards_intact() && dweight.guards_intact() && dbias.guards_intact()));
  return {dx.values(), dweight.values(), dbias.values()};
}

int count_faults(const Floats& got, const Doubles& expected, const Doubles& allowed, double start) {
  int faults = got.size() == expected.size() ? 0 : 1;
  for (std::size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    const double value = start + expected[i];
    // What is added to another number is rounded once more.
    const double rounding = start == 0 ? 1e-40 : kUnit * std::fabs(value);
    if (!(std::fabs(got[i] - value) <= allowed[i] + rounding)) ++faults;
  }
  return faults;
}
int count_faults(const Outputs& r, const Expected& e, double dx_start = 0) {
  int faults = count_faults(r.dx, e.dx, e.dx_allowed, dx_start) +
               count_faults(r.dweight, e.dweight, e.dweight_allowed, kStart);
  if (!e.dbias.empty()) faults += count_faults(r.dbias, e.dbias, e.dbias_allowed, kStart);
  return faults;
}

template <class Body>
void for_each_problem(Body&& body) {
  std::mt19937 random(3);
  std::vector<std::size_t> lengths = {63, 64, 65, 127, 255, 576, 577, 1023};
  for (std::size_t k = 1; k <= 3 * 16 + 1; ++k) lengths.push_back(k);
  for (const std::size_t k : lengths) {
    CAPTURE(k);
    Problem p{random_row(k, random), random_row(k, random, 0.1f, 1.0f),
              random_row(k, random, 1.0f)};
    body(p);
    Problem other = p;
    other.weight.clear();
    body(other);
    other.x = random_row(k, random, 1e4f, 0.1f);
    body(other);
    other = p;
    for (float& v : other.x) v *= 1e-8f;
    body(other);  // eps decides
    other = p;
    other.x[0] = 1e3f;
    body(other);
  }
}

template <template <Gradient> class Kernel, class Oracle>
void check_kernel(const Oracle& oracle, bool has_bias) {
  for_each_target([&](simd::Target) {
    for_each_problem([&](const Problem& p) {
      const std::size_t k = p.x.size();
      const Expected e = oracle(p);
      const Outputs set = run<Kernel<Gradient::set>>(p, Floats(k, 99.0f), has_bias);
      CHECK(count_faults(set, e) == 0);
      if (!has_bias) CHECK(set.dbias == Floats(k, kStart));
      const Outputs added = run<Kernel<Gradient::add>>(p, Floats(k, 0.75f), has_bias, 0);
      CHECK(count_faults(added, e, 0.75) == 0);
      CHECK(added.dweight == set.dweight);

      // In place, and with frozen weights.
      Floats x = p.x, dy = p.dy;
      NormBackArgs args;
      args.x = x.data();
      args.dy = dy.data();
      args.weight = p.weight.empty() ? nullptr : p.weight.data();
      args.k = static_cast<Index>(k);
      args.eps = p.eps;
      args.dx = dy.data();
      simd::kernel<Kernel<Gradient::set>>()(args);
      CHECK(dy == set.dx);
      dy = p.dy;
      args.dx = x.data();
      simd::kernel<Kernel<Gradient::set>>()(args);
      CHECK(x == set.dx);
    });
  });
}

// The forward function and the gradients of the oracle, against central differences.
template <class Oracle>
void check_formula(const Oracle& oracle, bool centers) {
  std::mt19937 random(5);
  for (const std::size_t k : {std::size_t{2}, std::size_t{7}, std::size_t{33}}) {
    Problem p{random_row(k, random), random_row(k, random), random_row(k, random, 1.0f)};
    p.eps = 0.1f;
    const auto loss = [&](const Doubles& x, const Doubles& w) {
      double mean = 0, squares = 0, sum = 0;
      for (const double v : x) mean += centers ? v / static_cast<double>(k) : 0;
      for (const double v : x) squares += (v - mean) * (v - mean) / static_cast<double>(k);
      for (std::size_t i = 0; i < k; ++i) {
        sum += p.dy[i] * (x[i] - mean) / std::sqrt(squares + p.eps) * w[i];
      }
      return sum;
    };
    const Doubles x(p.x.begin(), p.x.end()), w(p.weight.begin(), p.weight.end());
    const Expected e = oracle(p);
    CHECK(worst_difference([&](const Doubles& v) { return loss(v, w); }, x, e.dx) < 1e-6);
    CHECK(worst_difference([&](const Doubles& v) { return loss(x, v); }, w, e.dweight) < 1e-6);
    Doubles wrong = e.dx;
    wrong[1] *= 1.01;
    CHECK(worst_difference([&](const Doubles& v) { return loss(v, w); }, x, wrong) > 1e-6);
  }
}

}  // namespace

TEST_CASE("the formulas of the gradients of norms are those of central differences") {
  check_formula(rms_oracle, false);
  check_formula(layer_oracle, true);
}

TEST_CASE("RMSNorm backward") { check_kernel<kernels::RmsNormBack>(rms_oracle, false); }

TEST_CASE("LayerNorm backward") { check_kernel<kernels::LayerNormBack>(layer_oracle, true); }

TEST_CASE("the checks of gradients of norms see small faults") {
  std::mt19937 random(8);
  Problem p{random_row(577, random), random_row(577, random), random_row(577, random, 1.0f)};
  p.dy.back() = 2.0f;
  const auto check = [&](const Expected& e, const Outputs& good) {
    REQUIRE(count_faults(good, e) == 0);
    Outputs r = good;
    for (float& v : r.dx) v *= 1.001f;
    CHECK(count_faults(r, e) > 0);
    r = good;
    for (float& v : r.dweight) v = kStart + (v - kStart) * 1.01f;
    CHECK(count_faults(r, e) > 0);
    r = good;
    r.dx.back() = 0;
    CHECK(count_faults(r, e) == 1);
    r = good;
    r.dweight.back() = kStart;
    CHECK(count_faults(r, e) == 1);
  };
  const Floats before(577, 0.0f);
  check(rms_oracle(p), run<kernels::RmsNormBack<>>(p, before, false));
  check(layer_oracle(p), run<kernels::LayerNormBack<>>(p, before, true));
  // Sums without the last value.
  Problem cut = p;
  cut.dy.back() = 0;
  CHECK(count_faults(run<kernels::RmsNormBack<>>(cut, before, false), rms_oracle(p)) > 100);
  CHECK(count_faults(run<kernels::LayerNormBack<>>(cut, before, true), layer_oracle(p)) > 100);
}

TEST_CASE("chunks of rows are whole, disjoint and no more than there is scratch for") {
  for (Index m = 0; m <= 1200; ++m) {
    const ops::RowChunks chunks(m);
    Index rows = 0;
    int faults = 0;
    for (Index chunk = 0; chunk < chunks.n(); ++chunk) {
      faults += chunks.begin(chunk) != rows || chunks.end(chunk) <= rows;
      rows = chunks.end(chunk);
    }
    CHECK((faults == 0 && rows == m));
    for (const Index more : {0, 1, 31, 500}) {
      CHECK(chunks.n() <= ops::RowChunks::max_chunks(m + more));
    }
  }
}

TEST_CASE("norms of matrices: sums over rows do not depend on the number of threads") {
  std::mt19937 random(9);
  constexpr Index kM = 210, kK = 203, kStride = 211;
  const Floats x = random_row(kM * kStride, random), dy = random_row(kM * kStride, random);
  const Floats weight = random_row(kK, random, 1.0f);
  const MatrixView<const float> xv(x.data(), {kM, kK}, {kStride, 1});
  const MatrixView<const float> dyv(dy.data(), {kM, kK}, {kStride, 1});
  const VectorView<const float> wv(weight.data(), kK);
  std::vector<std::byte> scratch(ops::norm_back_scratch_bytes(kM, kK));
  const auto run_with = [&](Executor& executor, bool is_layer) {
    Floats dx(kM * kK, -1.0f), dweight(kK, kStart), dbias(kK, kStart);
    std::fill(scratch.begin(), scratch.end(), std::byte{0xFF});
    const MatrixView<float> dxv(dx.data(), kM, kK);
    const VectorView<float> dwv(dweight.data(), kK), dbv(dbias.data(), kK);
    if (is_layer) {
      ops::layer_norm_back(executor, xv, wv, 1e-5f, dyv, dxv, dwv, dbv, scratch);
    } else {
      ops::rms_norm_back(executor, xv, wv, 1e-5f, dyv, dxv, dwv, scratch);
    }
    dx.insert(dx.end(), dweight.begin(), dweight.end());
    dx.insert(dx.end(), dbias.begin(), dbias.end());
    return dx;
  };
  for (const bool is_layer : {false, true}) {
    InlineExecutor one;
    const Floats expected = run_with(one, is_layer);
    for (const Index n : {2, 3, 8}) {
      BackwardExecutor many(n);
      CHECK(run_with(many, is_layer) == expected);
      CHECK(many.n_tasks_run > 0);
    }
    Doubles dweight(kK, kStart), dbias(kK, kStart), allowed(kK), bias_allowed(kK);
    int faults = 0;
    for (Index row = 0; row < kM; ++row) {
      Problem p{Floats(x.begin() + row * kStride, x.begin() + row * kStride + kK),
                Floats(dy.begin() + row * kStride, dy.begin() + row * kStride + kK), weight};
      const Expected e = is_layer ? layer_oracle(p) : rms_oracle(p);
      faults += count_faults(Floats(expected.begin() + row * kK, expected.begin() + (row + 1) * kK),
                             e.dx, e.dx_allowed, 0);
      for (std::size_t i = 0; i < kK; ++i) {
        // 32 additions in a chunk, and one for each of 7 chunks.
        dweight[i] += e.dweight[i];
        allowed[i] += e.dweight_allowed[i] + 40 * kUnit * std::fabs(e.dweight[i]);
        if (is_layer) dbias[i] += e.dbias[i];
        if (is_layer) bias_allowed[i] += 40 * kUnit * std::fabs(e.dbias[i]);
      }
    }
    CHECK(faults == 0);
    const auto sums = expected.begin() + kM * kK;
    CHECK(count_faults(Floats(sums, sums + kK), dweight, allowed, 1e-30) == 0);
    CHECK(count_faults(Floats(sums + kK, sums + 2 * kK), dbias, bias_allowed, 1e-30) == 0);

    // Only what is wanted; nothing needs scratch then.
    Floats dx(kM * kK);
    if (is_layer) {
      ops::layer_norm_back(one, xv, wv, 1e-5f, dyv, MatrixView<float>(dx.data(), kM, kK), {}, {},
                           {});
    } else {
      ops::rms_norm_back(one, xv, wv, 1e-5f, dyv, MatrixView<float>(dx.data(), kM, kK), {}, {});
    }
    CHECK(std::equal(dx.begin(), dx.end(), expected.begin()));
  }
}

TEST_CASE("norms of heads: all heads add to one weight") {
  std::mt19937 random(10);
  constexpr Index kM = 40, kHeads = 3, kDim = 20, kWidth = kHeads * kDim;
  const Floats x = random_row(kM * kWidth, random), dy = random_row(kM * kWidth, random);
  const Floats weight = random_row(kDim, random, 1.0f);
  Floats dx(kM * kWidth, 0.25f), dweight(kDim, 0.0f);
  std::vector<std::byte> scratch(ops::norm_back_scratch_bytes(kM, kDim));
  BackwardExecutor executor;
  ops::rms_norm_heads_back<Gradient::add>(executor, MatrixView<const float>(x.data(), kM, kWidth),
                                          kDim, VectorView<const float>(weight.data(), kDim), 1e-6f,
                                          MatrixView<const float>(dy.data(), kM, kWidth),
                                          MatrixView<float>(dx.data(), kM, kWidth),
                                          VectorView<float>(dweight.data(), kDim), scratch);
  Doubles sum(kDim), allowed(kDim);
  for (Index i = 0; i < kM * kHeads; ++i) {
    Problem p{Floats(x.begin() + i * kDim, x.begin() + (i + 1) * kDim),
              Floats(dy.begin() + i * kDim, dy.begin() + (i + 1) * kDim), weight, 1e-6f};
    const Expected e = rms_oracle(p);
    CHECK(count_faults(Floats(dx.begin() + i * kDim, dx.begin() + (i + 1) * kDim), e.dx,
                       e.dx_allowed, 0.25) == 0);
    for (std::size_t j = 0; j < kDim; ++j) {
      sum[j] += e.dweight[j];
      allowed[j] += e.dweight_allowed[j] + 100 * kUnit * std::fabs(e.dweight[j]);
    }
  }
  CHECK(count_faults(dweight, sum, allowed, 0) == 0);
}

TEST_CASE("the gradient of a bias is the sum of the rows") {
  constexpr Index kM = 777, kK = 61;
  const Floats dy = random_floats(kM * kK, -1, 1);
  std::vector<std::byte> scratch(ops::row_sum_scratch_bytes(kM, kK));
  const auto run_with = [&](Executor& executor) {
    Floats dbias(kK, 2.0f);
    ops::bias_back(executor, MatrixView<const float>(dy.data(), kM, kK),
                   VectorView<float>(dbias.data(), kK), scratch);
    return dbias;
  };
  InlineExecutor one;
  BackwardExecutor three;
  const Floats dbias = run_with(one);
  CHECK(run_with(three) == dbias);
  CHECK(three.n_tasks_run > 0);
  for (Index j = 0; j < kK; ++j) {
    double sum = 2, size = 2;
    for (Index i = 0; i < kM; ++i) {
      sum += dy[static_cast<std::size_t>(i * kK + j)];
      size += std::fabs(dy[static_cast<std::size_t>(i * kK + j)]);
    }
    CHECK(std::fabs(dbias[static_cast<std::size_t>(j)] - sum) <= 64 * kUnit * size);
  }
}

}  // namespace norm_back_test
