// SPDX-License-Identifier: Apache-2.0
//
// What happens to finished sums: bias, activation, residual, and the gated product.
#include <cmath>
#include <numbers>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pass.hpp"

namespace matmul_epilogue_test {

using namespace nibble;
using namespace nibble_test;
using namespace nibble::kernels;

namespace {

constexpr double kU = 0x1p-24;

// An activation in double, the largest magnitude of its derivative near x, and the error that
// activation.hpp allows, all at x.
struct Reference {
  double value;
  double slope;
  double error;
};
Reference reference(Identity, double x) { return {x, 1, 0}; }
Reference reference(Relu, double x) { return {std::max(x, 0.0), 1, 0}; }
Reference reference(Silu, double x) {
  const double y = x / (1 + std::exp(-x));
  return {y, 1.1, (6 + std::abs(x)) * kU * std::abs(y)};
}
Reference reference(GeluErf, double x) {
  return {x / 2 * (1 + std::erf(x / std::numbers::sqrt2)), 1.13, 5 * kU * std::abs(x)};
}
Reference reference(GeluTanh, double x) {
  const double z = 2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  const double y = x / (1 + std::exp(-z));  // (1 + tanh(z / 2)) / 2, without cancellation
  return {y, 1.13, (6 + 4 * std::abs(z)) * kU * std::abs(y)};
}
Reference reference(Sigmoid, double x) {
  const double y = 1 / (1 + std::exp(-x));
  return {y, 0.25, (5 + std::abs(x)) * kU * y};
}
Reference reference(Exp, double x) {
  return {std::exp(x), 1.01 * std::exp(x), 2 * kU * std::exp(x)};
}
Reference reference(Tanh, double x) { return {std::tanh(x), 1, 3 * kU}; }
Reference reference(Erf, double x) { return {std::erf(x), 1.13, 8 * kU}; }

constexpr Index kRows = 5, kColumns = 37;

template <class Format>
struct Problem {
  static constexpr Index k = quant::BlockFormat<Format> ? 96 : 33;
  std::mt19937 random{6};
  Weights<Format> w = Weights<Format>::random(kColumns, k, random);
  Activations a = Activations::random<Format>(kRows, k, random);
  AlignedBuffer packed = pack(w, kColumns);
  Expected sums = expected_product(a, w);
  // The operands of the epilogue end where their memory ends.
  static constexpr Index kResidualStride = kColumns + 3;
  std::vector<float> bias = values(kColumns);
  std::vector<float> residual = values((kRows - 1) * kResidualStride + kColumns);

  std::vector<float> values(Index n) {
    std::uniform_real_distribution<float> uniform(-2, 2);
    std::vector<float> v(size(n));
    for (float& x : v) x = uniform(random);
    return v;
  }
};

// The errors of the sum, of the addition of the bias (rounded), of the activation, and of the last
// addition.
template <class Activation, bool kBias, bool kResidual, class Format>
Expected finished(const Problem<Format>& p) {
  Expected e = p.sums;
  for (Index row = 0; row < kRows; ++row) {
    for (Index column = 0; column < kColumns; ++column) {
      const std::size_t i = size(row * kColumns + column);
      double v = e.value[i];
      double error = e.tolerance[i];
      if (kBias) {
        v += p.bias[size(column)];
        error += kU * (std::abs(v) + error);
      }
      const Reference f = reference(Activation{}, v);
      v = f.value;
      error = f.slope * error + 1.01 * f.error;  // its argument is not exactly v
      if (kResidual) {
        v += p.residual[size(row * p.kResidualStride + column)];
        error += kU * (std::abs(v) + error);
      }
      e.value[i] = v;
      e.tolerance[i] = error;
    }
  }
  return e;
}

template <class Format, class Activation, bool kBias, bool kResidual>
void check_epilogue() {
  const Problem<Format> p;
  const Expected expected = finished<Activation, kBias, kResidual>(p);
  for_each_target([&](simd::Target) {
    const auto kernel = simd::kernel<Matmul<Format>>();
    Output out(kRows, kColumns);
    auto args = matmul_args(p.a, kColumns, p.packed, out);
    args.finish = simd::kernel<FinishTile<Epilogue<Activation, kBias, kResidual>>>();
    if (kBias) args.epilogue.bias = p.bias.data();  // what is not used is not read: null
    if (kResidual) {
      args.epilogue.residual = p.residual.data();
      args.epilogue.residual_stride = p.kResidualStride;
    }
    kernel(args);
    CHECK(count_faults(expected, kRows, kColumns, out) == 0);
    if constexpr (kResidual) {  // in place
      Output sum(kRows, kColumns);
      for (Index row = 0; row < kRows; ++row) {
        for (Index column = 0; column < kColumns; ++column) {
          sum(row, column) = p.residual[size(row * p.kResidualStride + column)];
        }
      }
      args.out = sum.data();
      args.epilogue.residual = sum.data();
      args.epilogue.residual_stride = sum.stride();
      kernel(args);
      CHECK(sum == out);
    }
  });
}

template <class Format, class Activation>
void check_gated() {
  Problem<Format> p;
  const auto gate = Weights<Format>::random(kColumns, p.k, p.random);
  const Expected gate_sums = expected_product(p.a, gate);
  const AlignedBuffer packed_gate = pack(gate, kColumns);
  Expected expected = p.sums;
  for (std::size_t i = 0; i < expected.value.size(); ++i) {
    const Reference f = reference(Activation{}, gate_sums.value[i]);
    const double f_error = f.slope * gate_sums.tolerance[i] + 1.01 * f.error;
    const double up = p.sums.value[i];
    const double up_error = p.sums.tolerance[i];
    const double error = std::abs(f.value) * up_error + std::abs(up) * f_error + up_error * f_error;
    expected.value[i] = f.value * up;
    expected.tolerance[i] = error + kU * (std::abs(f.value * up) + error);
  }
  for_each_target([&](simd::Target) {
    Output out(kRows, kColumns);
    auto args = matmul_args(p.a, kColumns, p.packed, out);
    args.gate = packed_gate.data();
    args.finish = simd::kernel<FinishGatedTile<Activation>>();
    simd::kernel<Matmul<Format>>()(args);
    CHECK(count_faults(expected, kRows, kColumns, out) == 0);

    // A fault that the check must find: the operands are exchanged.
    std::swap(args.gate, args.weights);
    simd::kernel<Matmul<Format>>()(args);
    CHECK(count_faults(expected, kRows, kColumns, out) > kRows * kColumns / 2);
  });
}

}  // namespace

TEST_CASE("bias, activation and residual are added where they are asked for") {
  check_epilogue<quant::Q4_0, Identity, true, false>();
  check_epilogue<quant::Q4_0, Identity, false, true>();
  check_epilogue<quant::Q4_0, Identity, true, true>();
  check_epilogue<quant::Q4_0, Silu, false, false>();
  check_epilogue<quant::Q4_0, Silu, true, false>();
  check_epilogue<quant::Q4_0, Silu, false, true>();
  check_epilogue<quant::Q4_0, Silu, true, true>();
  check_epilogue<quant::F32, Identity, true, true>();
  check_epilogue<quant::F32, GeluErf, true, true>();
}

TEST_CASE("every activation in an epilogue") {
  check_epilogue<quant::Q4_0, Relu, true, true>();
  check_epilogue<quant::Q4_0, GeluErf, true, true>();
  check_epilogue<quant::Q4_0, GeluTanh, true, true>();
  check_epilogue<quant::Q4_0, Sigmoid, true, true>();
  check_epilogue<quant::Q4_0, Exp, true, true>();
  check_epilogue<quant::Q4_0, Tanh, true, true>();
  check_epilogue<quant::Q4_0, Erf, true, true>();
}

TEST_CASE("gated products are two products and an activation") {
  check_gated<quant::Q4_0, Silu>();
  check_gated<quant::Q4_0, GeluTanh>();
  check_gated<quant::F32, Silu>();
}

TEST_CASE("the check of epilogues sees small faults") {
  Problem<quant::Q4_0> p;
  const Expected expected = finished<Silu, true, true>(p);
  const auto faults = [&] {
    Output out(kRows, kColumns);
    auto args = matmul_args(p.a, kColumns, p.packed, out);
    args.epilogue = {p.bias.data(), p.residual.data(), p.kResidualStride};
    args.finish = simd::kernel<FinishTile<Epilogue<Silu, true, true>>>();
    simd::kernel<Matmul<quant::Q4_0>>()(args);
    return count_faults(expected, kRows, kColumns, out);
  };
  REQUIRE(faults() == 0);
  p.bias[36] *= 1.001f;
  CHECK(faults() > 0);
  p.bias[36] /= 1.001f;
  p.residual[0] += 1e-5f;
  CHECK(faults() > 0);
  std::swap(p.bias[3], p.bias[4]);
  CHECK(faults() > kRows);
}

}  // namespace matmul_epilogue_test
