// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/softmax.hpp"

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace softmax_test {

using namespace nibble;
using namespace nibble_test;

namespace {

// The softmax in long double, and the error that kernels/softmax.hpp allows: of each term, of the
// sum, and of the final product.
struct Expected {
  Exact value, allowed;
  long double log_sum = 0, log_sum_allowed = 0;
};
Expected expected(const Floats& x, std::size_t n_valid, float scale) {
  Expected e;
  e.value.assign(x.size(), 0.0L);
  e.allowed.assign(x.size(), 0.0L);
  long double max = -std::numeric_limits<long double>::infinity(), sum = 0;
  for (std::size_t i = 0; i < n_valid; ++i) max = std::fmax(max, static_cast<long double>(x[i]));
  const auto exponent = [&](std::size_t i) {
    return (static_cast<long double>(x[i]) - max) * static_cast<long double>(scale);
  };
  for (std::size_t i = n_valid; i-- > 0;) sum += std::exp(exponent(i));
  const auto summand_error = [&](std::size_t i) { return (4 * std::fabs(exponent(i)) + 3) * kU; };
  long double sum_error = 40 * kU;
  for (std::size_t i = 0; i < n_valid; ++i) {
    e.value[i] = std::exp(exponent(i)) / sum;
    if (e.value[i] > 0) sum_error += e.value[i] * summand_error(i);
  }
  for (std::size_t i = 0; i < n_valid; ++i) {
    const long double relative =
        e.value[i] > 0 ? summand_error(i) + sum_error + 2 * kU : sum_error + 2 * kU;
    e.allowed[i] = e.value[i] * relative + 0x1p-126L;
  }
  e.log_sum = std::log(sum);
  e.log_sum_allowed = sum_error;
  return e;
}

Floats run(const Floats& x, std::size_t n_valid, float scale) {
  Floats out(x.size(), 3.0f);
  simd::kernel<kernels::Softmax>()(x.data(), out.data(), static_cast<Index>(x.size()),
                                   static_cast<Index>(n_valid), scale);
  return out;
}

}  // namespace

TEST_CASE("softmax of every length and address, masked and in place, touches nothing else") {
  for_each_target([](simd::Target) {
    const auto softmax = simd::kernel<kernels::Softmax>();
    for_each_length([&](std::size_t n, std::size_t offset) {
      CAPTURE(n);
      CAPTURE(offset);
      const Floats x = random_floats(n, -9, 9);
      for (const std::size_t n_valid : {n, n / 2, n - n / 5, std::size_t{0}}) {
        CAPTURE(n_valid);
        const float scale = n_valid == n ? 1.0f : 0.125f;
        const Expected e = expected(x, n_valid, scale);
        Guarded in(x, offset), out(n, 2 - offset);
        softmax(in.data(), out.data(), static_cast<Index>(n), static_cast<Index>(n_valid), scale);
        REQUIRE(worst(out.values(), e.value, e.allowed) <= 1.0);
        REQUIRE(out.guards_intact());
        softmax(in.data(), in.data(), static_cast<Index>(n), static_cast<Index>(n_valid), scale);
        REQUIRE(in.values() == out.values());
        REQUIRE(in.guards_intact());
      }
    });
  });
}

TEST_CASE("softmax and its logarithm keep their accuracy over long rows and far from zero") {
  struct Row {
    std::size_t n;
    float low, high, scale;
  };
  for (const Row& r :
       {Row{128256, -12, 12, 1.0f}, Row{100003, -0.01f, 0.01f, 1.0f}, Row{4099, 10000, 10020, 1.0f},
        Row{4096, -300, 300, 0.0883883f}, Row{2049, -1e30f, 1e30f, 1.0f}}) {
    CAPTURE(r.n);
    CAPTURE(r.high);
    const Floats x = random_floats(r.n, r.low, r.high);
    const Expected e = expected(x, r.n, r.scale), unscaled = expected(x, r.n, 1.0f);
    for_each_target([&](simd::Target) {
      CHECK(worst(run(x, r.n, r.scale), e.value, e.allowed) <= 1.0);
      const auto log_sum = ops::log_sum_exp(VectorView<const float>(x.data(), x.size()));
      CHECK(log_sum.max == *std::max_element(x.begin(), x.end()));
      CHECK(std::fabs(log_sum.log_sum - static_cast<double>(unscaled.log_sum)) <=
            static_cast<double>(unscaled.log_sum_allowed));
      CHECK(unscaled.log_sum_allowed < 1e-5L);
    });
  }
}

TEST_CASE("softmax of infinities and NaN") {
  for_each_target([](simd::Target) {
    const Floats masked = run({1.0f, -kInf, 1.0f, -kInf}, 4, 1.0f);
    CHECK(masked == Floats{0.5f, 0.0f, 0.5f, 0.0f});
    CHECK(run({5.0f}, 1, 1.0f) == Floats{1.0f});
    CHECK(run({0.0f, -200.0f}, 2, 1.0f) == Floats{1.0f, 0.0f});
    for (const float bad : {kNan, kInf}) {
      for (const std::size_t n : {3u, 40u}) {
        for (std::size_t at = 0; at < n; ++at) {
          Floats x(n, 1.0f);
          x[at] = bad;
          bool all_nan = true;
          for (const float v : run(x, n, 1.0f)) all_nan = all_nan && std::isnan(v);
          CHECK(all_nan);
          CHECK(std::isnan(ops::log_sum_exp(VectorView<const float>(x.data(), x.size())).log_sum));
          x.push_back(0.0f);  // beyond n_valid it is not read
          std::swap(x[at], x[n]);
          CHECK(run(x, n, 1.0f)[n] == 0.0f);
          CHECK_FALSE(std::isnan(run(x, n, 1.0f)[0]));
        }
      }
    }
    CHECK(std::isnan(run({-kInf, -kInf}, 2, 1.0f)[0]));
  });
}

TEST_CASE("argmax is the lowest index of the greatest number") {
  for_each_target([](simd::Target) {
    const auto argmax = simd::kernel<kernels::ArgMax>();
    for_each_length([&](std::size_t n, std::size_t offset) {
      if (n == 0) return;
      CAPTURE(n);
      Floats x = random_floats(n, -9, 9, static_cast<unsigned>(n));
      for (float& v : x) v = std::round(v);  // many ties
      Guarded in(x, offset);
      REQUIRE(argmax(in.data(), static_cast<Index>(n)) ==
              std::max_element(x.begin(), x.end()) - x.begin());
      for (std::size_t at = 0; at < n; ++at) {  // every lane and the tail can win
        Floats y(n, -1.0f);
        y[at] = 2.0f;
        if (at + 2 < n) y[at + 2] = 2.0f;
        REQUIRE(argmax(y.data(), static_cast<Index>(n)) == static_cast<Index>(at));
        Floats with_nan(n, kNan);
        with_nan[at] = -kInf;
        REQUIRE(argmax(with_nan.data(), static_cast<Index>(n)) == static_cast<Index>(at));
      }
      const Floats nans(n, kNan), lowest(n, -kInf);
      REQUIRE(argmax(nans.data(), static_cast<Index>(n)) == 0);
      REQUIRE(argmax(lowest.data(), static_cast<Index>(n)) == 0);
    });
    const Floats zeros = {-1.0f, -0.0f, 0.0f};
    CHECK(ops::argmax(VectorView<const float>(zeros.data(), 3)) == 1);
  });
}

TEST_CASE("the judge rejects what is wrong") {
  const Floats x = random_floats(67, -5, 5);
  const Expected e = expected(x, 67, 0.5f);
  const Floats right = run(x, 67, 0.5f);
  REQUIRE(worst(right, e.value, e.allowed) <= 1.0);
  CHECK(worst(run(x, 67, 0.505f), e.value, e.allowed) > 1.0);
  CHECK(worst(run(x, 66, 0.5f), e.value, e.allowed) > 1.0);  // a dropped tail
  Floats wrong = right;
  for (float& v : wrong) v *= 1.0001f;  // not normalized
  CHECK(worst(wrong, e.value, e.allowed) > 1.0);
  const Expected masked = expected(x, 60, 0.5f);
  CHECK(worst(right, masked.value, masked.allowed) > 1.0);  // looks into the future
}

TEST_CASE("softmax of matrices: causal rows see one position more each") {
  const Index m = 50, k = 700, stride = 704, first = 660;
  const Floats x = random_floats(static_cast<std::size_t>(m * stride), -5, 5);
  Floats out(x.size(), 7.0f), full(x.size(), 7.0f);
  BackwardExecutor executor;
  const MatrixView<const float> in(x.data(), {m, k}, {stride, 1});
  ops::softmax_causal(executor, in, MatrixView<float>(out.data(), {m, k}, {stride, 1}), first,
                      0.3f);
  ops::softmax(executor, in, MatrixView<float>(full.data(), {m, k}, {stride, 1}));
  CHECK(executor.n_tasks_run > 2);
  for (Index row = 0; row < m; ++row) {
    CAPTURE(row);
    const auto begin = static_cast<std::ptrdiff_t>(row * stride);
    const auto slice = [&](const Floats& all) {
      return Floats(all.begin() + begin, all.begin() + begin + k);
    };
    const auto n_valid = static_cast<std::size_t>(std::min(first + row, k));
    const Expected causal = expected(slice(x), n_valid, 0.3f);
    REQUIRE(worst(slice(out), causal.value, causal.allowed) <= 1.0);
    const Expected plain = expected(slice(x), static_cast<std::size_t>(k), 1.0f);
    REQUIRE(worst(slice(full), plain.value, plain.allowed) <= 1.0);
    REQUIRE(out[static_cast<std::size_t>(begin + k)] == 7.0f);
  }
}

}  // namespace softmax_test
