// SPDX-License-Identifier: Apache-2.0
//
// AdamW with moments of 8 bits: the step against the formulas in double, codes next to the exact
// moment and right on average, slow changes of moments, and training beside that with f32.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/schedule.hpp"

namespace moments8_test {

using namespace nibble;
using namespace nibble_test;
using train::AdamW, train::AdamWOptions, train::Moments;

namespace {

// The state of n values, and what it stands for.
struct State {
  Floats p;
  std::vector<std::int8_t> m;
  std::vector<std::uint8_t> v;
  Floats m_scales, v_scales;

  double mean(std::size_t i) const {
    const double code = m[i];
    return static_cast<double>(m_scales[i / 256]) * code * std::fabs(code) / (127.0 * 127.0);
  }
  double square(std::size_t i) const {
    return static_cast<double>(v_scales[i / 256]) * std::pow(v[i] / 255.0, 4);
  }
  void step(const kernels::AdamWStep& s, std::uint32_t key, const Floats& g,
            std::uint32_t first = 0) {
    simd::kernel<kernels::AdamW8>()(s, key, first, p.data(), g.data(), m.data(), v.data(),
                                    m_scales.data(), v_scales.data(), static_cast<Index>(p.size()));
  }
};

State random_state(std::size_t n) {
  State state{random_floats(n, -1, 1), {}, {}, {}, {}};
  const Floats codes = random_floats(2 * n, 0, 1, 9);
  for (std::size_t i = 0; i < n; ++i) {
    state.m.push_back(static_cast<std::int8_t>(std::lround(codes[i] * 254 - 127)));
    state.v.push_back(static_cast<std::uint8_t>(std::lround(20 + codes[n + i] * 235)));
  }
  const std::size_t n_blocks = (n + 255) / 256;
  state.m_scales = random_floats(n_blocks, 0.1f, 2, 5);
  state.v_scales = random_floats(n_blocks, 0.1f, 2, 6);
  return state;
}

const kernels::AdamWStep kStep{0.5f, 0.1f, 0.97f, 0.03f, 0.99f, 0.02f, 1.5f, 1e-6f};

struct Exact8 {
  std::vector<double> p, m, v;
};
Exact8 exact(const State& state, const kernels::AdamWStep& s, const Floats& g) {
  Exact8 out;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double x = static_cast<double>(s.gradient_scale) * static_cast<double>(g[i]);
    const double m = state.mean(i) + static_cast<double>(s.first_rest) * (x - state.mean(i));
    const double v = static_cast<double>(s.second_kept) * state.square(i) +
                     static_cast<double>(s.second_rest) * x * x;
    out.m.push_back(m);
    out.v.push_back(v);
    out.p.push_back(
        static_cast<double>(s.keep) * static_cast<double>(state.p[i]) -
        static_cast<double>(s.rate) * m /
            (static_cast<double>(s.second_scale) * std::sqrt(v) + static_cast<double>(s.epsilon)));
  }
  return out;
}

}  // namespace

TEST_CASE("a step is exact before it rounds moments, and rounds to a neighbour") {
  for_each_target([](simd::Target) {
    for (const std::size_t n : {1u, 2u, 7u, 31u, 255u, 256u, 257u, 600u, 1024u}) {
      CAPTURE(n);
      State state = random_state(n);
      const Floats g = random_floats(n, -1, 1, 3);
      const Exact8 want = exact(state, kStep, g);
      state.step(kStep, 12345, g);
      for (std::size_t i = 0; i < n; ++i) {
        CAPTURE(i);
        const std::size_t begin = i / 256 * 256, end = std::min(begin + 256, n);
        double m_max = 0, v_max = 0;
        for (std::size_t j = begin; j < end; ++j) {
          m_max = std::max(m_max, std::fabs(want.m[j]));
          v_max = std::max(v_max, want.v[j]);
        }
        // |p| < 1; the update is at most 0.02 · m / √v, where √v is 1/160 of its maximum or more.
        REQUIRE(std::fabs(static_cast<double>(state.p[i]) - want.p[i]) < 1e-6);
        REQUIRE(static_cast<double>(state.m_scales[i / 256]) ==
                doctest::Approx(m_max).epsilon(1e-6));
        REQUIRE(static_cast<double>(state.v_scales[i / 256]) ==
                doctest::Approx(v_max).epsilon(1e-6));
        const double m_code = 127 * std::sqrt(std::fabs(want.m[i]) / m_max);
        const double v_code = 255 * std::pow(want.v[i] / v_max, 0.25);
        REQUIRE(std::fabs(m_code - std::abs(state.m[i])) < 1.001);
        REQUIRE((state.m[i] == 0 || (state.m[i] > 0) == (want.m[i] > 0)));
        REQUIRE(std::fabs(v_code - state.v[i]) < 1.001);
        REQUIRE(state.v[i] > 0);
      }
    }
  });
}

TEST_CASE("codes are right on average: mean and square over many keys") {
  for_each_target([](simd::Target) {
    const std::size_t n = 256;
    const int n_keys = 4000;
    const State start = random_state(n);
    const Floats g = random_floats(n, -1, 1, 3);
    const Exact8 want = exact(start, kStep, g);
    std::vector<double> m_sum(n), v_sum(n);
    double m_scale = 0, v_scale = 0;
    for (int k = 0; k < n_keys; ++k) {
      State state = start;
      state.step(kStep, static_cast<std::uint32_t>(k) * 0x9E3779B9u, g);
      for (std::size_t i = 0; i < n; ++i) {
        m_sum[i] += state.mean(i) / n_keys;
        v_sum[i] += state.square(i) / n_keys;
      }
      m_scale = static_cast<double>(state.m_scales[0]);
      v_scale = static_cast<double>(state.v_scales[0]);
    }
    for (std::size_t i = 0; i < n; ++i) {
      CAPTURE(i);
      // A step between codes, of which the deviation is at most a half; 512 means, five and a half
      // standard deviations. The digits of the chance are 1/4096 for m.
      const double m_code = std::floor(127 * std::sqrt(std::fabs(want.m[i]) / m_scale));
      const double m_step = m_scale * (2 * m_code + 1) / (127.0 * 127.0);
      const double v_code = std::floor(255 * std::pow(want.v[i] / v_scale, 0.25));
      const double v_step = v_scale * (std::pow((v_code + 1) / 255, 4) - std::pow(v_code / 255, 4));
      const double allowed = 5.5 * 0.5 / std::sqrt(n_keys);
      REQUIRE(std::fabs(m_sum[i] - want.m[i]) < (allowed + 1.0 / 4096) * m_step);
      REQUIRE(std::fabs(v_sum[i] - want.v[i]) < allowed * v_step);
    }
  });
}

TEST_CASE("what becomes of a block depends on its position, not on what is done with it") {
  for_each_target([](simd::Target) {
    const std::size_t n = 700;
    State whole = random_state(n), parts = whole;
    const Floats g = random_floats(n, -1, 1, 3);
    whole.step(kStep, 77, g);
    const auto update = simd::kernel<kernels::AdamW8>();
    for (std::size_t at = 0; at < n; at += 256) {
      const auto size = static_cast<Index>(std::min<std::size_t>(256, n - at));
      update(kStep, 77, static_cast<std::uint32_t>(at), parts.p.data() + at, g.data() + at,
             parts.m.data() + at, parts.v.data() + at, parts.m_scales.data() + at / 256,
             parts.v_scales.data() + at / 256, size);
    }
    CHECK(parts.p == whole.p);
    CHECK(parts.m == whole.m);
    CHECK(parts.v == whole.v);
  });
}

TEST_CASE("zero stays zero, and numbers too small for a scale become zero") {
  for_each_target([](simd::Target) {
    State state{Floats(300, 1.0f), std::vector<std::int8_t>(300), std::vector<std::uint8_t>(300),
                Floats(2), Floats(2)};
    kernels::AdamWStep step = kStep;
    step.keep = 1;
    for (int i = 0; i < 3; ++i) state.step(step, 1, Floats(300, 0.0f));
    CHECK(state.p == Floats(300, 1.0f));
    CHECK(state.m == std::vector<std::int8_t>(300));
    CHECK(state.v == std::vector<std::uint8_t>(300));
    for (int i = 0; i < 3; ++i) state.step(step, 1, Floats(300, 1e-30f));
    for (const float p : state.p) REQUIRE(std::isfinite(p));
    for (const float scale : state.v_scales) REQUIRE(scale == 0);
    for (int i = 0; i < 3; ++i) state.step(step, 1, Floats(300, 1e15f));
    for (const float p : state.p) REQUIRE(std::isfinite(p));
  });
}

TEST_CASE("a square above zero never becomes zero: its value would run away") {
  for_each_target([](simd::Target) {
    State state{Floats(256, 1.0f), std::vector<std::int8_t>(256), std::vector<std::uint8_t>(256),
                Floats(1), Floats(1)};
    Floats g(256, 1e-6f);  // of which the squares are 10⁻¹² of the largest, code 0.26
    g[0] = 1;
    for (std::uint32_t t = 0; t < 50; ++t) {
      state.step(kStep, t, g);
      for (const std::uint8_t code : state.v) REQUIRE(code > 0);
    }
  });
}

TEST_CASE("8-bit moments take 2.1 bytes a parameter, small tensors included") {
  Floats a(64 * 1000), g(a.size()), b(200), gb(200);
  AdamWOptions options;
  options.moments = Moments::bits8;
  auto optimizer = AdamW::create({{"a", a, g}, {"b", b, gb}}, options);
  REQUIRE(optimizer);
  CHECK(static_cast<double>(optimizer->moment_bytes()) <=
        2.1 * static_cast<double>(a.size() + b.size()));
}

TEST_CASE("a moment that changes slower than a code step changes all the same") {
  // Large gradients for 300 steps, then small ones: v falls by 0.1 % a step, codes are 1 to 3 %
  // apart. One value stays large and keeps the scale.
  const auto run = [](Moments moments) {
    Floats p(256), g(256);
    AdamWOptions options;
    options.moments = moments;
    auto optimizer = AdamW::create({{"p", p, g}}, options);
    REQUIRE(optimizer);
    InlineExecutor executor;
    for (int t = 0; t < 1800; ++t) {
      std::fill(g.begin(), g.end(), t < 300 ? 1.0f : 0.01f);
      g[0] = 1;
      REQUIRE(optimizer->step(executor, 1e-3));
    }
    const auto state = optimizer->state();
    double sum = 0;
    for (std::size_t i = 1; i < 256; ++i) {
      if (moments == Moments::f32) {
        float v = 0;
        std::memcpy(&v, state[1].bytes.data() + 4 * i, 4);
        sum += static_cast<double>(v);
      } else {
        float scale = 0;
        std::memcpy(&scale, state[3].bytes.data(), 4);
        sum += static_cast<double>(scale) *
               std::pow(std::to_integer<int>(state[1].bytes[i]) / 255.0, 4);
      }
    }
    return sum / 255;
  };
  const double want = run(Moments::f32), got = run(Moments::bits8);
  MESSAGE("mean square: f32 ", want, ", 8 bits ", got);
  CHECK(got == doctest::Approx(want).epsilon(0.03));
}

TEST_CASE("training with 8-bit moments ends where that with f32 does") {
  // Least squares with noise: 3000 values of different curvature, 500 steps.
  const std::size_t n = 3000;
  const auto run = [&](Moments moments) {
    const Floats target = random_floats(n, -1, 1, 8);
    Floats p(n), g(n);
    AdamWOptions options;
    options.moments = moments;
    options.weight_decay = 0;
    options.beta2 = 0.99;
    auto optimizer = AdamW::create({{"p", p, g}}, options);
    REQUIRE(optimizer);
    InlineExecutor executor;
    const train::Schedule schedule{train::Schedule::Shape::cosine, 0.02, 0, 20, 500};
    for (std::uint64_t t = 0; t < 500; ++t) {
      const Floats noise = random_floats(n, -0.5f, 0.5f, static_cast<unsigned>(1000 + t));
      for (std::size_t i = 0; i < n; ++i) {
        const float curvature = std::pow(10.0f, -2.0f * static_cast<float>(i % 50) / 50);
        g[i] = curvature * (p[i] - target[i] + noise[i]);
      }
      REQUIRE(optimizer->step(executor, schedule.at(t)));
    }
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      sum += std::pow(static_cast<double>(p[i]) - static_cast<double>(target[i]), 2);
    }
    return sum / static_cast<double>(n);
  };
  const double f32 = run(Moments::f32), bits8 = run(Moments::bits8);
  MESSAGE("mean squared error: f32 ", f32, ", 8 bits ", bits8);
  CHECK(f32 < 0.01);  // 1/3 at the start
  CHECK(bits8 < 1.1 * f32);
}

}  // namespace moments8_test
