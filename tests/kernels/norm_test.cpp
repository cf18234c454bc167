// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/norm.hpp"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "nibble/ops/norm.hpp"

namespace norm_test {

using namespace nibble;
using kernels::NormArgs;

namespace {

using Floats = std::vector<float>;

constexpr double kU = 0x1p-24;

Floats random_row(std::size_t k, std::mt19937& random, float mean = 0.3f, float sigma = 2.0f) {
  std::normal_distribution<float> normal(mean, sigma);
  Floats x(k);
  for (float& v : x) v = normal(random);
  return x;
}

// A copy that starts at an odd multiple of 4 bytes and ends with its allocation.
struct Unaligned {
  explicit Unaligned(const Floats& x) : values(x.size() + 1) {
    std::copy(x.begin(), x.end(), values.begin() + 1);
  }
  float* data() { return values.data() + 1; }
  Floats row() const { return {values.begin() + 1, values.end()}; }
  Floats values;
};

// A row with its operands; empty weight or bias: none.
struct Problem {
  Floats x, weight, bias;
  float eps = 1e-5f;
};

// The expected row, and the allowed error of each value: the bounds of kernels/norm.hpp, derived
// there from the roundings between an input and a sum:
//   n = k / 16 + 8: additions in one of at least 16 chains, in the rest of the row, and of the
//   chains.
// RMSNorm: the sum of squares has a relative error of n u; mean, eps, root, reciprocal and two
//   products add 5 u after the root has halved the errors before it.
// LayerNorm: with c the shift and Q = mean (x - c)^2 <= 2 variance (otherwise the kernel repeats
//   the pass), the mean has an error of 1.42 (n + 2) u sigma, the variance a relative error of
//   (4.84 n + 16) u; the root halves that; the products and the sum at the end add 3 u |z| + 2 u
//   and 2 u |bias|.
struct Expected {
  std::vector<double> value, tolerance;
};

Expected rms_norm_oracle(const Problem& p) {
  const double k = static_cast<double>(p.x.size());
  double squares = 0;
  for (const float v : p.x) squares += double{v} * v;
  const double rms = std::sqrt(squares / k + p.eps);
  Expected e;
  for (std::size_t i = 0; i < p.x.size(); ++i) {
    e.value.push_back(p.x[i] / rms * (p.weight.empty() ? 1.0 : p.weight[i]));
    e.tolerance.push_back((k / 32 + 9) * kU * std::fabs(e.value[i]) + 1e-44);
  }
  return e;
}

Expected layer_norm_oracle(const Problem& p) {
  const double k = static_cast<double>(p.x.size());
  double mean = 0, variance = 0;
  for (const float v : p.x) mean += v / k;
  for (const float v : p.x) variance += (v - mean) * (v - mean) / k;
  const double sigma = std::sqrt(variance + p.eps), n = k / 16 + 8;
  Expected e;
  for (std::size_t i = 0; i < p.x.size(); ++i) {
    const double z = (p.x[i] - mean) / sigma;
    const double w = p.weight.empty() ? 1.0 : p.weight[i], b = p.bias.empty() ? 0.0 : p.bias[i];
    e.value.push_back(z * w + b);
    e.tolerance.push_back(((3 * n + 16) * (std::fabs(z) + 1) * std::fabs(w) + 2 * std::fabs(b)) *
                          kU);
  }
  return e;
}

// How many values are off by more than they may be. A NaN is.
int count_faults(const Expected& e, const Floats& out) {
  int faults = out.size() == e.value.size() ? 0 : 1;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!(std::fabs(out[i] - e.value[i]) <= e.tolerance[i])) ++faults;
  }
  return faults;
}

const float* or_null(const Floats& v) { return v.empty() ? nullptr : v.data(); }

template <class Kernel>
Floats run(const Problem& p) {
  Unaligned x(p.x), out(Floats(p.x.size(), 99.0f)), weight(p.weight), bias(p.bias);
  NormArgs args;
  args.x = x.data();
  args.k = static_cast<Index>(p.x.size());
  args.eps = p.eps;
  args.weight = p.weight.empty() ? nullptr : weight.data();
  args.bias = p.bias.empty() ? nullptr : bias.data();
  simd::kernel<Kernel>()(args, out.data());
  CHECK(out.values[0] == 99.0f * 0);  // the value before the row
  const Floats result = out.row();

  args.x = out.data();  // in place
  std::copy(p.x.begin(), p.x.end(), out.data());
  simd::kernel<Kernel>()(args, out.data());
  CHECK(out.row() == result);
  return result;
}

// Rows of every kind, and of every length that might fail.
template <class Body>
void for_each_problem(Body&& body) {
  std::mt19937 random(3);
  std::vector<std::size_t> lengths = {63, 64, 65, 127, 255, 577, 1023, 4097};
  for (std::size_t k = 1; k <= 3 * 16 + 1; ++k) lengths.push_back(k);
  for (const std::size_t k : lengths) {
    CAPTURE(k);
    Problem p{random_row(k, random), random_row(k, random, 1.0f), random_row(k, random)};
    body(p);
    Problem plain = p;
    plain.weight.clear();
    body(plain);
    plain.bias.clear();
    body(plain);
    Problem large = p;
    large.x = random_row(k, random, 1e4f, 0.1f);
    body(large);
    large.x = random_row(k, random, -3e6f, 1.0f);
    body(large);
    Problem outlier = p;  // the first guess of the mean is far off
    outlier.x[0] = 1e4f;
    body(outlier);
    outlier.x.assign(k, -7.0f);
    outlier.x[0] = outlier.x[k / 4] = outlier.x[k / 2] = outlier.x[k / 2 + k / 4] = 1e5f;
    body(outlier);
    Problem small = p;
    for (float& v : small.x) v *= 1e-8f;
    body(small);  // eps decides
    if (k == 1) continue;
    small.eps = 0.0f;
    body(small);
  }
}

template <class Kernel>
void check_rms_norm() {
  for_each_problem(
      [](const Problem& p) { CHECK(count_faults(rms_norm_oracle(p), run<Kernel>(p)) == 0); });
}
template <class Kernel>
void check_layer_norm() {
  for_each_problem(
      [](const Problem& p) { CHECK(count_faults(layer_norm_oracle(p), run<Kernel>(p)) == 0); });
}

}  // namespace

TEST_CASE("RMSNorm and LayerNorm agree with a double oracle at every length") {
  nibble_test::for_each_target([](simd::Target) {
    check_rms_norm<kernels::RmsNorm<>>();
    check_layer_norm<kernels::LayerNorm<>>();
  });
}

TEST_CASE("constant, zero and non-finite rows") {
  nibble_test::for_each_target([](simd::Target) {
    for (const std::size_t k :
         {std::size_t{1}, std::size_t{5}, std::size_t{33}, std::size_t{1000}}) {
      for (const float value : {0.0f, 0.1f, -12345.678f, 1e17f}) {
        Problem p{Floats(k, value), {}, Floats(k, 0.25f)};
        CHECK(run<kernels::LayerNorm<>>(p) == p.bias);  // exactly: the variance is 0
        p.bias.clear();
        CHECK(count_faults(rms_norm_oracle(p), run<kernels::RmsNorm<>>(p)) == 0);
      }
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Problem p{Floats(k, 1.0f), {}, {}};
        p.x[k / 3] = bad;
        NormArgs args;
        args.x = p.x.data();
        args.k = static_cast<Index>(k);
        args.eps = p.eps;
        Floats out(k);
        simd::kernel<kernels::LayerNorm<>>()(args, out.data());
        for (const float v : out) CHECK(std::isnan(v));
        simd::kernel<kernels::RmsNorm<>>()(args, out.data());
        CHECK(std::isnan(out[k / 3]));
      }
    }
  });
}

TEST_CASE("a residual sum before the norm is stored and normalized") {
  nibble_test::for_each_target([](simd::Target) {
    std::mt19937 random(4);
    for (const std::size_t k :
         {std::size_t{1}, std::size_t{17}, std::size_t{64}, std::size_t{777}}) {
      const Problem p{random_row(k, random), random_row(k, random, 1.0f), random_row(k, random)};
      const Floats addend = random_row(k, random, 100.0f, 0.5f);
      Problem sum = p;
      for (std::size_t i = 0; i < k; ++i) sum.x[i] += addend[i];
      const auto check = [&](auto add_kernel, auto kernel) {
        const Floats expected = run<decltype(kernel)>(sum);
        for (const int place : {0, 1, 2}) {  // where the sum goes: apart, over x, over the addend
          Floats x = p.x, added = addend, apart(k), out(k);
          float* const to = place == 0 ? apart.data() : place == 1 ? x.data() : added.data();
          NormArgs args;
          args.x = x.data();
          args.k = static_cast<Index>(k);
          args.eps = p.eps;
          args.weight = or_null(p.weight);
          args.bias = or_null(p.bias);
          args.addend = added.data();
          args.sum = to;
          simd::kernel<decltype(add_kernel)>()(args, out.data());
          CHECK(out == expected);
          CHECK(Floats(to, to + k) == sum.x);
        }
      };
      check(kernels::RmsNorm<true>(), kernels::RmsNorm<>());
      check(kernels::LayerNorm<kernels::Identity, false, true>(), kernels::LayerNorm<>());
    }
  });
}

TEST_CASE_TEMPLATE("LayerNorm with an activation and dropout is those one after the other",
                   Activation, kernels::Silu, kernels::GeluErf, kernels::GeluTanh) {
  nibble_test::for_each_target([](simd::Target) {
    std::mt19937 random(5);
    const kernels::Dropout dropout(0.4f, 99);
    const Index first_index = (Index{1} << 32) - 20;
    for (const std::size_t k :
         {std::size_t{1}, std::size_t{15}, std::size_t{64}, std::size_t{77}}) {
      const Problem p{random_row(k, random), random_row(k, random, 1.0f), random_row(k, random)};
      Floats expected = run<kernels::LayerNorm<>>(p);
      simd::kernel<kernels::Activate<Activation>>()(expected.data(), expected.data(),
                                                    static_cast<Index>(k));
      CHECK(run<kernels::LayerNorm<Activation>>(p) == expected);

      NormArgs args;
      args.x = p.x.data();
      args.k = static_cast<Index>(k);
      args.eps = p.eps;
      args.weight = p.weight.data();
      args.bias = p.bias.data();
      args.dropout = dropout;
      args.first_index = first_index;
      Floats out(k);
      simd::kernel<kernels::LayerNorm<Activation, true>>()(args, out.data());
      simd::kernel<kernels::ApplyDropout>()(dropout, first_index, expected.data(), expected.data(),
                                            static_cast<Index>(k));
      CHECK(out == expected);
    }
  });
}

namespace {

template <int kBlock>
struct Quantized {
  std::vector<std::int8_t> codes;
  Floats scales;
  std::vector<std::int32_t> code_sums;

  explicit Quantized(std::size_t k)
      : codes(static_cast<std::size_t>(kernels::QuantizeRow<kBlock>::padded(static_cast<Index>(k))),
              std::int8_t{99}),
        scales(static_cast<std::size_t>(
            kernels::QuantizeRow<kBlock>::n_blocks(static_cast<Index>(k)))),
        code_sums(scales.size()) {}
  kernels::QuantizedRow out() { return {codes.data(), scales.data(), code_sums.data()}; }
};

// How many values of a quantized norm break its contract: the error is that of the norm plus half a
// scale, the scale is that of the absmax, sums are exact, the padding is zero.
template <int kBlock>
int count_quantized_faults(const Expected& e, const Quantized<kBlock>& q) {
  int faults = 0;
  const std::size_t k = e.value.size();
  const std::size_t length = kBlock == 0 ? q.codes.size() : std::size_t{kBlock};
  for (std::size_t block = 0; block < q.scales.size(); ++block) {
    const double scale = q.scales[block];
    double absmax = 0, slack = 0;
    std::int64_t sum = 0;
    int highest = 0;
    for (std::size_t i = block * length; i < (block + 1) * length; ++i) {
      sum += q.codes[i];
      if (i >= k) {
        if (q.codes[i] != 0) ++faults;
        continue;
      }
      highest = std::max(highest, std::abs(int{q.codes[i]}));
      absmax = std::max(absmax, std::fabs(e.value[i]));
      slack = std::max(slack, e.tolerance[i]);
      const double error = std::fabs(e.value[i] - scale * q.codes[i]);
      if (!(error <= scale * (0.5 + 127 * 0x1p-21) + 2 * e.tolerance[i])) ++faults;
    }
    if (!(std::fabs(scale * 127 - absmax) <= slack + absmax * 4 * kU)) ++faults;
    if (highest != (absmax == 0 ? 0 : 127)) ++faults;
    if (q.code_sums[block] != -8 * sum) ++faults;
  }
  return faults;
}

// Fused, and as separate steps: codes differ only where both are next to a tie.
int n_compared = 0, n_different = 0;

template <int kBlock, class Fused, class Norm>
void check_quantized(const Problem& p, const Expected& e) {
  const std::size_t k = p.x.size();
  Quantized<kBlock> fused(k), apart(k);
  Unaligned x(p.x), weight(p.weight), bias(p.bias);
  NormArgs args;
  args.x = x.data();
  args.k = static_cast<Index>(k);
  args.eps = p.eps;
  args.weight = p.weight.empty() ? nullptr : weight.data();
  args.bias = p.bias.empty() ? nullptr : bias.data();
  simd::kernel<Fused>()(args, fused.out());
  CHECK(count_quantized_faults(e, fused) == 0);

  const Floats row = run<Norm>(p);
  simd::kernel<kernels::QuantizeRow<kBlock>>()(row.data(), args.k, apart.out());
  int n_far = 0;
  for (std::size_t i = 0; i < k; ++i) {
    ++n_compared;
    if (fused.codes[i] == apart.codes[i]) continue;
    ++n_different;
    const double scale = apart.scales[kBlock == 0 ? 0 : i / std::size_t{kBlock == 0 ? 1 : kBlock}];
    const double from_tie = std::fabs(std::fabs(row[i] / scale - apart.codes[i]) - 0.5);
    if (std::abs(fused.codes[i] - apart.codes[i]) > 1 || from_tie > 127 * 16 * kU) ++n_far;
  }
  CHECK(n_far == 0);
}

}  // namespace

TEST_CASE("norms with quantized output") {
  n_compared = n_different = 0;
  nibble_test::for_each_target([](simd::Target) {
    for_each_problem([](const Problem& p) {
      const Expected rms = rms_norm_oracle(p), layer = layer_norm_oracle(p);
      // At least one value must be far from 0: a block of only rounding errors has no meaningful
      // absmax.
      check_quantized<32, kernels::RmsNormQuantize<32>, kernels::RmsNorm<>>(p, rms);
      check_quantized<64, kernels::RmsNormQuantize<64>, kernels::RmsNorm<>>(p, rms);
      check_quantized<0, kernels::RmsNormQuantize<0>, kernels::RmsNorm<>>(p, rms);
      check_quantized<32, kernels::LayerNormQuantize<32>, kernels::LayerNorm<>>(p, layer);
      check_quantized<128, kernels::LayerNormQuantize<128>, kernels::LayerNorm<>>(p, layer);
      check_quantized<0, kernels::LayerNormQuantize<0>, kernels::LayerNorm<>>(p, layer);
    });
  });
  MESSAGE(n_different << " of " << n_compared << " codes differ between fused and unfused norms");
  CHECK(n_different * 1000 <= n_compared);
}

TEST_CASE("a residual sum, normalized and quantized") {
  nibble_test::for_each_target([](simd::Target) {
    std::mt19937 random(6);
    Problem p{random_row(333, random), random_row(333, random, 1.0f), random_row(333, random)};
    Floats sum(333);
    const Floats addend = random_row(333, random);
    NormArgs args;
    args.x = p.x.data();
    args.k = 333;
    args.eps = p.eps;
    args.weight = p.weight.data();
    args.bias = p.bias.data();
    args.addend = addend.data();
    args.sum = sum.data();
    Quantized<32> rms(333), layer(333);
    simd::kernel<kernels::RmsNormQuantize<32, true>>()(args, rms.out());
    for (std::size_t i = 0; i < 333; ++i) CHECK(sum[i] == p.x[i] + addend[i]);
    sum.assign(333, 0.0f);
    simd::kernel<kernels::LayerNormQuantize<32, true>>()(args, layer.out());
    for (std::size_t i = 0; i < 333; ++i) CHECK(sum[i] == p.x[i] + addend[i]);
    p.x = sum;
    CHECK(count_quantized_faults(rms_norm_oracle(p), rms) == 0);
    CHECK(count_quantized_faults(layer_norm_oracle(p), layer) == 0);
  });
}

TEST_CASE("a zero row quantizes to zeros, a diverged one shows") {
  nibble_test::for_each_target([](simd::Target) {
    Floats x(100, 0.0f);
    NormArgs args;
    args.x = x.data();
    args.k = 100;
    args.eps = 1e-6f;
    for (const auto kernel : {simd::kernel<kernels::RmsNormQuantize<32>>(),
                              simd::kernel<kernels::LayerNormQuantize<32>>()}) {
      x[7] = 0.0f;
      Quantized<32> q(100);
      kernel(args, q.out());
      for (const auto code : q.codes) CHECK(code == 0);
      CHECK(q.scales == Floats(4, 0.0f));
      x[7] = std::numeric_limits<float>::quiet_NaN();
      kernel(args, q.out());
      CHECK(!std::isfinite(q.scales[0]));
      CHECK(!std::isfinite(q.scales[3]));
    }
  });
}

TEST_CASE("norm operations on matrices") {
  std::mt19937 random(7);
  constexpr Index kM = 70, kK = 600, kStride = 611;
  struct ThreeWorkers final : Executor {
    Index n_workers() const noexcept override { return 3; }
    void parallel_for(Index n_tasks, Task task) noexcept override {
      for (Index i = n_tasks; i-- > 0;) task(i, i);
    }
  } executor;
  Floats x = random_row(kM * kStride, random);
  const Floats addend = random_row(kM * kStride, random), weight = random_row(kK, random, 1.0f);
  const Floats bias = random_row(kK, random);
  const MatrixView<float> xv(x.data(), {kM, kK}, {kStride, 1});
  const MatrixView<const float> av(addend.data(), {kM, kK}, {kStride, 1});
  const VectorView<const float> wv(weight.data(), kK), bv(bias.data(), kK);
  Floats out(kM * kK), sum(kM * kK);
  const MatrixView<float> ov(out.data(), kM, kK), sv(sum.data(), kM, kK);
  const auto problem = [&](Index row, bool with_addend) {
    Problem p{Floats(kK), weight, bias};
    for (Index i = 0; i < kK; ++i) {
      p.x[static_cast<std::size_t>(i)] = xv(row, i) + (with_addend ? av(row, i) : 0.0f);
    }
    return p;
  };
  const auto out_row = [&](Index row) {
    return Floats(out.begin() + row * kK, out.begin() + (row + 1) * kK);
  };
  auto memory = AlignedBuffer::allocate(ops::QuantizedRows<32>::bytes_needed(kM, kK));
  REQUIRE(memory);
  const auto codes = ops::QuantizedRows<32>::over(memory->bytes(), kM, kK);
  const auto quantized_row = [&](Index row) {
    Quantized<32> q(kK);
    std::copy_n(codes[row].codes, q.codes.size(), q.codes.begin());
    std::copy_n(codes[row].scales, q.scales.size(), q.scales.begin());
    std::copy_n(codes[row].code_sums, q.code_sums.size(), q.code_sums.begin());
    return q;
  };

  ops::rms_norm(executor, xv, wv, 1e-5f, ov);
  for (Index row = 0; row < kM; ++row) {
    CHECK(count_faults(rms_norm_oracle(problem(row, false)), out_row(row)) == 0);
  }
  ops::layer_norm(executor, ops::SumInput{xv, av, sv}, wv, bv, 1e-5f, ov);
  for (Index row = 0; row < kM; ++row) {
    CHECK(count_faults(layer_norm_oracle(problem(row, true)), out_row(row)) == 0);
    CHECK(sv(row, 3) == xv(row, 3) + av(row, 3));
  }
  ops::rms_norm(executor, ops::SumInput{xv, av, sv}, wv, 1e-5f, codes);
  for (Index row = 0; row < kM; ++row) {
    CHECK(count_quantized_faults(rms_norm_oracle(problem(row, true)), quantized_row(row)) == 0);
  }
  ops::layer_norm(executor, xv, wv, bv, 1e-5f, codes);
  for (Index row = 0; row < kM; ++row) {
    CHECK(count_quantized_faults(layer_norm_oracle(problem(row, false)), quantized_row(row)) == 0);
  }

  // Dropout depends on the element's number in the matrix.
  const kernels::Dropout dropout(0.5f, 1);
  ops::layer_norm<kernels::GeluErf>(executor, xv, wv, bv, 1e-5f, ov);
  Floats expected = out;
  simd::kernel<kernels::ApplyDropout>()(dropout, 0, expected.data(), expected.data(), kM * kK);
  ops::layer_norm<kernels::GeluErf>(executor, xv, wv, bv, 1e-5f, dropout, ov);
  CHECK(out == expected);

  // No weight, no bias, in place.
  Problem p = problem(5, false);
  p.weight.clear();
  p.bias.clear();
  ops::layer_norm(executor, xv, {}, {}, 1e-5f, xv);
  CHECK(count_faults(layer_norm_oracle(p), problem(5, false).x) == 0);
}

TEST_CASE("the checks of norms see small faults") {
  std::mt19937 random(8);
  Problem p{random_row(577, random), random_row(577, random, 1.0f), random_row(577, random)};
  const Expected rms = rms_norm_oracle(p), layer = layer_norm_oracle(p);
  const Floats good_rms = run<kernels::RmsNorm<>>(p), good_layer = run<kernels::LayerNorm<>>(p);
  REQUIRE(count_faults(rms, good_rms) == 0);
  REQUIRE(count_faults(layer, good_layer) == 0);

  Floats out = good_rms;
  for (float& v : out) v *= 1.0001f;
  CHECK(count_faults(rms, out) > 0);
  out = good_layer;
  for (float& v : out) v *= 1.01f;
  CHECK(count_faults(layer, out) > 0);
  out = good_layer;
  out.back() = 0.0f;  // a dropped tail
  CHECK(count_faults(layer, out) > 0);
  Problem short_row = p;  // a sum without its tail
  short_row.x.back() = 0.0f;
  CHECK(count_faults(rms, run<kernels::RmsNorm<>>(short_row)) > 1);
  CHECK(count_faults(layer, run<kernels::LayerNorm<>>(short_row)) > 1);
  out = good_layer;  // the variance with the divisor k - 1
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = p.bias[i] + (out[i] - p.bias[i]) * std::sqrt(576.0f / 577.0f);
  }
  CHECK(count_faults(layer, out) > 0);

  // E[x^2] - E[x]^2 in floats: the kernel must not compute it this way.
  p.x = random_row(577, random, 1e4f, 0.1f);
  float sum = 0, squares = 0;
  for (const float v : p.x) {
    sum += v;
    squares += v * v;
  }
  const float mean = sum / 577, variance = std::fabs(squares / 577 - mean * mean);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = (p.x[i] - mean) / std::sqrt(variance + p.eps) * p.weight[i] + p.bias[i];
  }
  CHECK(count_faults(layer_norm_oracle(p), out) > 500);

  // Quantized.
  p.x = random_row(577, random);
  Quantized<32> good(577);
  NormArgs args;
  args.x = p.x.data();
  args.k = 577;
  args.eps = p.eps;
  args.weight = p.weight.data();
  simd::kernel<kernels::RmsNormQuantize<32>>()(args, good.out());
  const Expected e = rms_norm_oracle(p);
  REQUIRE(count_quantized_faults(e, good) == 0);
  Quantized<32> q = good;
  q.scales[4] *= 1.01f;
  CHECK(count_quantized_faults(e, q) > 0);
  q = good;
  q.code_sums[4] -= 8;
  CHECK(count_quantized_faults(e, q) > 0);
  q = good;
  q.codes[576] = 0;
  q.code_sums[18] += 8 * good.codes[576];
  CHECK(count_quantized_faults(e, q) > 0);
}

}  // namespace norm_test
