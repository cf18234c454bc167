// SPDX-License-Identifier: Apache-2.0
//
// The oracles are the C library's functions in long double. The allowed error is what
// kernels/activation.hpp and kernels/math-inl.h state.
#include "nibble/ops/activation.hpp"

#include <bit>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace activation_test {

using namespace nibble;
using namespace nibble_test;

namespace {

// The whole range of float, with more values where the functions bend, and with NaN and infinities.
const Floats& inputs() {
  static const Floats x = [] {
    Floats values = {0.0f, -0.0f, kInf, -kInf, kNan, 88.72283f, 88.72284f, -103.97f, -103.98f};
    for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 400009) {
      values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
    }
    for (int i = -8000; i <= 8000; ++i) values.push_back(static_cast<float>(i) * 0.00125061f);
    for (int i = -4000; i <= 4000; ++i) values.push_back(static_cast<float>(i) * 0.02750321f);
    return values;
  }();
  return x;
}

// One function: its kernel's tag, the oracle, and the allowed error.
template <class Tag>
struct Function;
template <>
struct Function<kernels::Identity> {
  static long double exact(long double x) { return x; }
  static long double allowed(long double, long double) { return 0; }
};
template <>
struct Function<kernels::Relu> {
  static long double exact(long double x) { return std::isnan(x) ? x : std::fmax(x, 0.0L); }
  static long double allowed(long double, long double) { return 0; }
};
template <>
struct Function<kernels::Exp> {
  static long double exact(long double x) { return std::exp(x); }
  static long double allowed(long double, long double y) { return ulp(y); }
};
template <>
struct Function<kernels::Tanh> {
  static long double exact(long double x) { return std::tanh(x); }
  static long double allowed(long double, long double y) { return 3 * ulp(y); }
};
template <>
struct Function<kernels::Erf> {
  static long double exact(long double x) { return std::erf(x); }
  static long double allowed(long double, long double y) { return 8 * ulp(y); }
};
template <>
struct Function<kernels::Sigmoid> {
  static long double exact(long double x) { return 1 / (1 + std::exp(-x)); }
  static long double allowed(long double x, long double y) {
    return (5 + 1.5L * std::fabs(x)) * kU * y + 0x1p-125L;
  }
};
template <>
struct Function<kernels::Silu> {
  static long double exact(long double x) {
    return x == -kInf ? 0.0L : x * (1 + std::tanh(x / 2)) / 2;  // computed unlike the kernel
  }
  static long double allowed(long double x, long double y) {
    const long double oracle = std::fabs(x) * 0x1p-62L;  // 1 + tanh cancels
    return (6 + 1.5L * std::fabs(x)) * kU * std::fabs(y) + std::fabs(x) * 0x1p-125L + 0x1p-149L +
           oracle;
  }
};
template <>
struct Function<kernels::GeluErf> {
  static long double exact(long double x) {
    return x == -kInf ? 0.0L : x * std::erfc(-x / std::sqrt(2.0L)) / 2;
  }
  static long double allowed(long double x, long double) {
    return 5 * kU * std::fabs(x) + 0x1p-149L;
  }
};
template <>
struct Function<kernels::GeluTanh> {
  static constexpr long double kPi = 3.14159265358979323846264338327950288L;
  static long double argument(long double x) {
    return std::sqrt(8 / kPi) * (x + 0.044715L * x * x * x);
  }
  static long double exact(long double x) {
    return x == -kInf ? 0.0L : x * (1 + std::tanh(argument(x) / 2)) / 2;
  }
  static long double allowed(long double x, long double y) {
    const long double oracle = std::fabs(x) * 0x1p-62L;
    return (6 + 4 * std::fabs(argument(x))) * kU * std::fabs(y) + std::fabs(x) * 0x1p-125L +
           0x1p-149L + oracle;
  }
};

struct Expected {
  Exact value, allowed;
};
template <class Tag>
Expected expected(const Floats& x) {
  Expected e;
  for (const float v : x) {
    e.value.push_back(Function<Tag>::exact(v));
    e.allowed.push_back(Function<Tag>::allowed(v, e.value.back()));
  }
  return e;
}

template <class Tag>
Floats run(const Floats& x) {
  Floats y(x.size());
  simd::kernel<kernels::Activate<Tag>>()(x.data(), y.data(), static_cast<Index>(x.size()));
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("an activation stays within its stated error, over the whole range", Tag,
                   kernels::Identity, kernels::Relu, kernels::Exp, kernels::Tanh, kernels::Erf,
                   kernels::Sigmoid, kernels::Silu, kernels::GeluErf, kernels::GeluTanh) {
  const Expected e = expected<Tag>(inputs());
  for_each_target(
      [&](simd::Target) { CHECK(worst(run<Tag>(inputs()), e.value, e.allowed) <= 1.0); });
}

TEST_CASE("special values") {
  for_each_target([](simd::Target) {
    const Floats x = {-kInf, kInf, kNan, 0.0f, -0.0f, -1e38f, 1e38f};
    const Floats e = run<kernels::Exp>(x);
    CHECK(e[0] == 0.0f);
    CHECK(e[1] == kInf);
    CHECK(std::isnan(e[2]));
    CHECK(e[3] == 1.0f);
    const auto check_gate = [&](const Floats& y) {
      CHECK(y[0] == 0.0f);
      CHECK(y[1] == kInf);
      CHECK(std::isnan(y[2]));
      CHECK(y[3] == 0.0f);
      CHECK(y[5] == 0.0f);
      CHECK(y[6] == 1e38f);
    };
    check_gate(run<kernels::Silu>(x));
    check_gate(run<kernels::GeluErf>(x));
    check_gate(run<kernels::GeluTanh>(x));
    check_gate(run<kernels::Relu>(x));
    const Floats s = run<kernels::Sigmoid>(x);
    CHECK(s[0] == 0.0f);
    CHECK(s[1] == 1.0f);
    CHECK(s[3] == 0.5f);
    const Floats t = run<kernels::Tanh>(x);
    CHECK(t[0] == -1.0f);
    CHECK(t[1] == 1.0f);
    CHECK(std::signbit(t[4]));
    for (const float v : run<kernels::Erf>(inputs())) CHECK_FALSE(std::fabs(v) > 1.0f);
  });
}

TEST_CASE("activations of every length and address, in place too, touch nothing else") {
  for_each_target([](simd::Target) {
    const auto activate = simd::kernel<kernels::Activate<kernels::Silu>>();
    const auto gated = simd::kernel<kernels::ActivateGated<kernels::GeluErf>>();
    for_each_length([&](std::size_t n, std::size_t offset) {
      CAPTURE(n);
      CAPTURE(offset);
      const auto size = static_cast<Index>(n);
      const Floats x = random_floats(n, -6, 6), up = random_floats(n, -3, 3, 2);
      Guarded in(x, offset), other(up, 1), out(n, 2 - offset);

      activate(in.data(), out.data(), size);
      const Expected silu = expected<kernels::Silu>(x);
      REQUIRE(worst(out.values(), silu.value, silu.allowed) <= 1.0);
      REQUIRE(out.guards_intact());

      gated(in.data(), other.data(), out.data(), size);
      Expected gelu = expected<kernels::GeluErf>(x);
      for (std::size_t i = 0; i < n; ++i) {
        gelu.value[i] *= up[i];
        gelu.allowed[i] = gelu.allowed[i] * std::fabs(up[i]) + kU * std::fabs(gelu.value[i]);
      }
      REQUIRE(worst(out.values(), gelu.value, gelu.allowed) <= 1.0);
      REQUIRE(out.guards_intact());

      const Floats apart = out.values();
      gated(in.data(), other.data(), other.data(), size);  // in place of up
      REQUIRE(other.values() == apart);
      gated(in.data(), Guarded(up, 0).data(), in.data(), size);  // in place of the gate
      REQUIRE(in.values() == apart);
      REQUIRE(in.guards_intact());
    });
  });
}

TEST_CASE("the judge rejects what is wrong") {
  const Floats x = random_floats(100, -4, 4);
  const Expected e = expected<kernels::Silu>(x);
  const Floats right = run<kernels::Silu>(x);
  REQUIRE(worst(right, e.value, e.allowed) <= 1.0);
  Floats wrong = right;
  for (float& v : wrong) v *= 1.01f;
  CHECK(worst(wrong, e.value, e.allowed) > 1.0);
  wrong = right;
  wrong.back() = 0.0f;  // a tail that was not computed
  CHECK(worst(wrong, e.value, e.allowed) > 1.0);
  wrong = right;
  wrong[3] = -wrong[3];
  CHECK(worst(wrong, e.value, e.allowed) > 1.0);
  wrong = right;
  wrong[5] = kNan;
  CHECK(worst(wrong, e.value, e.allowed) > 1.0);
  for (std::size_t i = 0; i < x.size(); ++i) wrong[i] = std::nextafter(right[i], kInf) * 1.00001f;
  CHECK(worst(wrong, e.value, e.allowed) > 1.0);
  CHECK(worst(run<kernels::GeluErf>(x), e.value, e.allowed) > 1.0);
  const Expected gelu = expected<kernels::GeluErf>(x);
  CHECK(worst(run<kernels::GeluTanh>(x), gelu.value, gelu.allowed) > 1.0);
}

TEST_CASE("activations of matrices go row by row, whatever the strides and workers") {
  const Index m = 37, k = 1500, stride = 1510;
  const Floats x = random_floats(static_cast<std::size_t>(m * stride), -5, 5);
  Floats out(x.size(), 7.0f);
  BackwardExecutor executor;
  const MatrixView<const float> in(x.data(), {m, k}, {stride, 1});
  ops::silu(executor, in, MatrixView<float>(out.data(), {m, k}, {stride, 1}));
  CHECK(executor.n_tasks_run > 1);
  const Expected e = expected<kernels::Silu>(x);
  Floats got;
  Exact value, allowed;
  bool gaps_intact = true;
  for (Index i = 0; i < m * stride; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (i % stride >= k) {
      gaps_intact = gaps_intact && out[at] == 7.0f;
      continue;
    }
    got.push_back(out[at]);
    value.push_back(e.value[at]);
    allowed.push_back(e.allowed[at]);
  }
  CHECK(worst(got, value, allowed) <= 1.0);
  CHECK(gaps_intact);

  Floats gated(x.size(), 7.0f);
  ops::activate_gated<kernels::Silu>(executor, in, in,
                                     MatrixView<float>(gated.data(), {m, k}, {stride, 1}));
  CHECK(gated[5] == out[5] * x[5]);
  const std::size_t last = static_cast<std::size_t>((m - 1) * stride + k - 1);
  CHECK(gated[last] == out[last] * x[last]);
}

}  // namespace activation_test
