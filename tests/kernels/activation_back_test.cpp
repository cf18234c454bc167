// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/activation_back.hpp"

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/differences.hpp"
#include "kernels/each_target.hpp"
#include "nibble/ops/activation.hpp"
#include "nibble/ops/elementwise.hpp"

namespace activation_back_test {

using namespace nibble;
using namespace nibble_test;

namespace {

using Real = long double;

Real logistic(Real x) { return 1 / (1 + std::exp(-x)); }
constexpr Real kRootOf8OverPi = 1.595769121605730711759784L;
constexpr Real kPi = 3.14159265358979323846264L;
Real inner(Real x) { return kRootOf8OverPi * (x + 0.044715L * x * x * x); }
Real inner_slope(Real x) { return kRootOf8OverPi * (1 + 3 * 0.044715L * x * x); }

// The function, its slope, and the allowed error of the slope.
template <class Activation>
struct Exactly;
template <>
struct Exactly<kernels::Identity> {
  static Real value(Real x) { return x; }
  static Real slope(Real) { return 1; }
  static Real allowed(Real) { return 0; }
};
template <>
struct Exactly<kernels::Relu> {
  static Real value(Real x) { return x > 0 ? x : 0; }
  static Real slope(Real x) { return x > 0 ? 1 : 0; }
  static Real allowed(Real) { return 0; }
};
template <>
struct Exactly<kernels::Silu> {
  static Real value(Real x) { return x * logistic(x); }
  static Real slope(Real x) { return logistic(x) * (1 + x * logistic(-x)); }
  static Real allowed(Real x) {
    return (10 + 2 * std::fabs(x)) * kU * logistic(x) * (1 + std::fabs(x)) + 0x1p-120L;
  }
};
template <>
struct Exactly<kernels::GeluErf> {
  static Real value(Real x) { return x * std::erfc(-x / std::sqrt(2.0L)) / 2; }
  static Real slope(Real x) {
    return std::erfc(-x / std::sqrt(2.0L)) / 2 + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi);
  }
  static Real allowed(Real) { return 10 * kU; }
};
template <>
struct Exactly<kernels::GeluTanh> {
  static Real value(Real x) { return x * logistic(inner(x)); }
  static Real slope(Real x) {
    const Real y = inner(x);
    return logistic(y) * (1 + x * inner_slope(x) * logistic(-y));
  }
  static Real allowed(Real x) {
    const Real y = inner(x);
    return (16 + 6 * std::fabs(y)) * kU * logistic(y) * (1 + std::fabs(x * inner_slope(x))) +
           0x1p-119L;
  }
};
template <>
struct Exactly<kernels::Sigmoid> {
  static Real value(Real x) { return logistic(x); }
  static Real slope(Real x) { return logistic(x) * logistic(-x); }
  static Real allowed(Real x) { return (12 + 3 * std::fabs(x)) * kU; }
};
template <>
struct Exactly<kernels::Tanh> {
  static Real value(Real x) { return std::tanh(x); }
  static Real slope(Real x) { return 1 - std::tanh(x) * std::tanh(x); }
  static Real allowed(Real) { return 10 * kU; }
};

// Dense where slopes change, and over all of the range.
Floats inputs() {
  Floats x;
  for (float v = -16; v <= 16; v += 1.0f / 64) x.push_back(v);
  for (const float v : random_floats(2000, -8, 8)) x.push_back(v);
  for (const float v : random_floats(500, -200, 200, 2)) x.push_back(v);
  for (float v = 1e-38f; v < 1e38f; v *= 7) {
    x.push_back(v);
    x.push_back(-v);
  }
  return x;
}

template <class Activation>
double worst_slope(const Floats& x, const Floats& dy, const Floats& dx) {
  Exact exact, allowed;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Real at = x[i], slope = Exactly<Activation>::slope(at);
    exact.push_back(dy[i] * slope);
    allowed.push_back(
        std::fabs(dy[i]) * (Exactly<Activation>::allowed(at) + 4 * kU * std::fabs(slope)) + 1e-38L);
  }
  return worst(dx, exact, allowed);
}

template <class Activation>
Floats back(const Floats& x, const Floats& dy) {
  Floats dx(x.size());
  simd::kernel<kernels::ActivateBack<Activation>>()(x.data(), dy.data(), dx.data(),
                                                    static_cast<Index>(x.size()));
  return dx;
}

}  // namespace

#define NIBBLE_ACTIVATIONS                                                              \
  kernels::Identity, kernels::Relu, kernels::Silu, kernels::GeluErf, kernels::GeluTanh, \
      kernels::Sigmoid, kernels::Tanh

TEST_CASE_TEMPLATE("slopes: the formula is that of differences, kernels are near the formula",
                   Activation, NIBBLE_ACTIVATIONS) {
  for (double x = -6.03; x < 6; x += 0.25) {
    const auto value = [](const Doubles& v) {
      return static_cast<double>(Exactly<Activation>::value(v[0]));
    };
    CHECK(worst_difference(value, {x}, {static_cast<double>(Exactly<Activation>::slope(x))}) <
          1e-6);
  }
  const Floats x = inputs(), dy = random_floats(x.size(), -3, 3, 4);
  for_each_target([&](simd::Target) {
    const Floats dx = back<Activation>(x, dy);
    CHECK(worst_slope<Activation>(x, dy, dx) <= 1.0);
    Floats wrong = dx;
    for (float& v : wrong) v *= 1.01f;
    CHECK(worst_slope<Activation>(x, dy, wrong) > 1.0);
  });
}

TEST_CASE_TEMPLATE("slopes at infinity are limits, and NaN stays", Activation, kernels::Silu,
                   kernels::GeluErf, kernels::GeluTanh, kernels::Sigmoid, kernels::Tanh) {
  constexpr bool kIsFlat =
      std::is_same_v<Activation, kernels::Sigmoid> || std::is_same_v<Activation, kernels::Tanh>;
  for_each_target([&](simd::Target) {
    const Floats dx = back<Activation>({kInf, -kInf, kNan, 1.0f, 0.0f}, {2, 2, 2, kNan, kInf});
    CHECK(dx[0] == doctest::Approx(kIsFlat ? 0.0 : 2.0).epsilon(1e-6));
    CHECK(std::fabs(dx[1]) <= 1e-6f);
    CHECK(std::isnan(dx[2]));
    CHECK(std::isnan(dx[3]));
    CHECK(dx[4] == kInf);
  });
}

TEST_CASE_TEMPLATE("gated: both gradients, of every length, in place", Activation,
                   NIBBLE_ACTIVATIONS) {
  for_each_target([](simd::Target) {
    const auto kernel = simd::kernel<kernels::ActivateGatedBack<Activation>>();
    const auto plain = simd::kernel<kernels::ActivateBack<Activation>>();
    for_each_length([&](std::size_t n, std::size_t offset) {
      const auto size = static_cast<Index>(n);
      const Floats gate = random_floats(n, -5, 5), up = random_floats(n, -2, 2, 2),
                   dy = random_floats(n, -3, 3, 3);
      Guarded g(gate, offset), u(up, offset + 1), y(dy, 1), dgate(n, 2), dup(n, offset);
      kernel(g.data(), u.data(), y.data(), dgate.data(), dup.data(), size);
      CHECK((dgate.guards_intact() && dup.guards_intact()));
      Exact up_exact, up_allowed;
      Floats both(n), slopes(n);
      for (std::size_t i = 0; i < n; ++i) {
        both[i] = dy[i] * up[i];
        const Real value = Exactly<Activation>::value(gate[i]);
        up_exact.push_back(dy[i] * value);
        // The bounds of kernels/activation.hpp are below this for these inputs.
        up_allowed.push_back(std::fabs(dy[i]) * 60 * kU * (1 + std::fabs(Real{gate[i]})));
      }
      CHECK(worst(dup.values(), up_exact, up_allowed) <= 1.0);
      CHECK(worst_slope<Activation>(gate, both, dgate.values()) <= 1.0);
      kernel(g.data(), u.data(), y.data(), g.data(), u.data(), size);
      CHECK(g.values() == dgate.values());
      CHECK(u.values() == dup.values());
      CHECK((g.guards_intact() && u.guards_intact()));
      // Not gated.
      Guarded x(gate, offset), dx(n, 1);
      plain(x.data(), y.data(), dx.data(), size);
      CHECK(worst_slope<Activation>(gate, dy, dx.values()) <= 1.0);
      CHECK(dx.guards_intact());
      plain(x.data(), y.data(), y.data(), size);
      CHECK(y.values() == dx.values());
    });
  });
}

TEST_CASE("matrices: gates, products, soft caps and dropout") {
  constexpr Index kM = 33, kK = 1003, kStride = 1010;
  constexpr std::size_t kSize = kM * kStride;
  const Floats a = random_floats(kSize, -4, 4), b = random_floats(kSize, -4, 4, 2),
               dy = random_floats(kSize, -1, 1, 3);
  const auto view = [](auto& v) {
    using T = std::remove_reference_t<decltype(*v.data())>;
    return MatrixView<T>(v.data(), {kM, kK}, {kStride, 1});
  };
  const auto same = [&](const Floats& v, auto&& f, double allowed) {
    int faults = 0;
    for (std::size_t i = 0; i < kSize; ++i) {
      const bool is_gap = i % kStride >= kK;
      const double expected = is_gap ? 7.0 : static_cast<double>(f(i));
      if (!(std::fabs(v[i] - expected) <= (is_gap ? 0 : allowed))) ++faults;
    }
    return faults == 0;
  };
  BackwardExecutor executor;
  Floats da(kSize, 7.0f), db(kSize, 7.0f);
  ops::multiply_back(executor, view(a), view(b), view(dy), view(da), view(db));
  CHECK(same(
      da, [&](std::size_t i) { return dy[i] * b[i]; }, 1e-7));
  CHECK(same(
      db, [&](std::size_t i) { return dy[i] * a[i]; }, 1e-7));
  ops::activate_gated_back<kernels::Silu>(executor, view(a), view(b), view(dy), view(da), view(db));
  const auto silu_slope = [&](std::size_t i) { return Exactly<kernels::Silu>::slope(a[i]); };
  CHECK(same(
      da, [&](std::size_t i) { return dy[i] * b[i] * silu_slope(i); }, 1e-5));
  ops::activate_back<kernels::Silu>(executor, view(a), view(dy), view(da));
  CHECK(same(
      da, [&](std::size_t i) { return dy[i] * silu_slope(i); }, 3e-6));

  // A soft cap, from its output.
  constexpr float kCap = 1.5f;
  Floats y(kSize, 7.0f);
  ops::soft_cap(executor, view(a), kCap, view(y));
  ops::soft_cap_back(executor, view(y), kCap, view(dy), view(da));
  const auto slope = [&](std::size_t i) {
    const Real t = std::tanh(Real{a[i]} / kCap);
    return 1 - t * t;
  };
  CHECK(same(
      da, [&](std::size_t i) { return dy[i] * slope(i); }, 1e-6));
  CHECK(!same(
      da, [&](std::size_t i) { return dy[i] * slope(i) * 1.01L; }, 1e-6));
  const auto capped = [](const Doubles& v) { return kCap * std::tanh(v[0] / kCap); };
  CHECK(worst_difference(capped, {double{a[5]}}, {static_cast<double>(slope(5))}) < 1e-6);

  // Dropout is linear: its backward pass is itself, with the same mask.
  const kernels::Dropout dropout(0.3f, 17);
  Floats ones(kSize, 1.0f), dropped(kSize, 7.0f);
  ops::dropout(executor, view(ones), dropout, view(dropped));
  ops::dropout(executor, view(dy), dropout, view(da));
  CHECK(same(
      da, [&](std::size_t i) { return dy[i] * dropped[i]; }, 0));
  CHECK(executor.n_tasks_run > 3);
}

}  // namespace activation_back_test
