// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/causal_conv.hpp"

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace causal_conv_test {

using namespace nibble;
using namespace nibble_test;

namespace {

using Activated = kernels::ConvActivated<kernels::Silu>;
using Gated = kernels::ConvGated;

struct ConvShape {
  Index n_rows, n_channels, n_taps;
  std::size_t size() const { return static_cast<std::size_t>(n_rows * n_channels); }
  std::size_t state_size() const { return static_cast<std::size_t>((n_taps - 1) * n_channels); }
};
struct ConvData {
  Floats x, before, after, taps, bias, state;  // taps: (n_channels, n_taps)
};
ConvData random_conv(const ConvShape& s, unsigned seed) {
  return {random_floats(s.size(), -2, 2, seed),
          random_floats(s.size(), -2, 2, seed + 1),
          random_floats(s.size(), -2, 2, seed + 2),
          random_floats(static_cast<std::size_t>(s.n_channels * s.n_taps), -1, 1, seed + 3),
          random_floats(static_cast<std::size_t>(s.n_channels), -1, 1, seed + 4),
          random_floats(s.state_size(), -4, 4, seed + 5)};
}

Floats in_panels(const Floats& taps, const ConvShape& s) {
  const Index n_panels = (s.n_channels + kernels::kConvPanel - 1) / kernels::kConvPanel;
  Floats panels(static_cast<std::size_t>(n_panels * s.n_taps * kernels::kConvPanel));
  for (Index c = 0; c < s.n_channels; ++c) {
    for (Index j = 0; j < s.n_taps; ++j) {
      panels[static_cast<std::size_t>((c / 16 * s.n_taps + j) * 16 + c % 16)] =
          taps[static_cast<std::size_t>(c * s.n_taps + j)];
    }
  }
  return panels;
}

struct ConvExpected {
  Exact value, allowed;
};
// All rows with the state before them, as one sequence.
template <class Form>
ConvExpected expected(const ConvData& data, const ConvShape& s) {
  constexpr bool kGated = std::is_same_v<Form, Gated>;
  ConvExpected e;
  for (Index row = 0; row < s.n_rows; ++row) {
    for (Index c = 0; c < s.n_channels; ++c) {
      long double sum = data.bias[static_cast<std::size_t>(c)], size = std::fabs(sum);
      for (Index j = 0; j < s.n_taps; ++j) {
        const Index from = row + j - (s.n_taps - 1);
        long double value = 0;
        if (from < 0) {
          value = data.state[static_cast<std::size_t>((from + s.n_taps - 1) * s.n_channels + c)];
        } else {
          const auto at = static_cast<std::size_t>(from * s.n_channels + c);
          value = data.x[at];
          if (kGated) value *= data.before[at];
        }
        const long double product = value * data.taps[static_cast<std::size_t>(c * s.n_taps + j)];
        sum += product;
        size += std::fabs(product);
      }
      const long double error = 6 * kU * size;
      if (kGated) {
        const long double after = data.after[static_cast<std::size_t>(row * s.n_channels + c)];
        e.value.push_back(sum * after);
        e.allowed.push_back(2 * error * std::fabs(after));
      } else {  // the slope of SiLU is at most 1.1
        const long double y = sum / (1 + std::exp(-sum));
        e.value.push_back(y);
        e.allowed.push_back(1.1L * error + (7 + 1.5L * std::fabs(sum)) * kU * std::fabs(y));
      }
    }
  }
  return e;
}

// The rows in calls of at most `cut`; `data.state` becomes that after them.
template <class Form>
Floats run(ConvData& data, const ConvShape& s, Index cut, std::size_t offset = 0) {
  Guarded out(s.size(), offset), x(data.x, offset + 1), before(data.before, offset),
      after(data.after, offset + 2), state(data.state, offset), bias(data.bias, offset);
  const Floats panels = in_panels(data.taps, s);
  for (Index row = 0; row < s.n_rows; row += cut) {
    const Index at = row * s.n_channels;
    kernels::CausalConvArgs args;
    args.n_rows = std::min(cut, s.n_rows - row);
    args.n_channels = args.stride = args.state_stride = args.out_stride = s.n_channels;
    args.n_taps = s.n_taps;
    args.x = x.data() + at;
    args.before = before.data() + at;
    args.after = after.data() + at;
    args.taps = panels.data();
    args.bias = bias.data();
    args.state = state.data();
    args.out = out.data() + at;
    simd::kernel<kernels::CausalConv<Form>>()(args);
  }
  REQUIRE((out.guards_intact() && state.guards_intact()));
  data.state = state.values();
  return out.values();
}

}  // namespace

TEST_CASE_TEMPLATE("causal convolutions are right, however the rows are cut", Form, Activated,
                   Gated) {
  for_each_target([](simd::Target) {
    for (Index n_taps = kernels::kMinConvTaps; n_taps <= kernels::kMaxConvTaps; ++n_taps) {
      for (const Index n_channels : {1, 3, 15, 16, 17, 33, 70}) {
        for (const Index n_rows : {1, 2, 3, 9}) {
          const ConvShape s{n_rows, n_channels, n_taps};
          CAPTURE(n_taps);
          CAPTURE(n_channels);
          CAPTURE(n_rows);
          const ConvData data = random_conv(s, static_cast<unsigned>(n_channels + n_rows));
          ConvData whole = data;
          const Floats y = run<Form>(whole, s, n_rows);
          const ConvExpected e = expected<Form>(data, s);
          REQUIRE(worst(y, e.value, e.allowed) <= 1.0);
          for (const Index cut : {1, 2, 4}) {
            ConvData parts = data;
            REQUIRE(run<Form>(parts, s, cut, 3) == y);
            REQUIRE(parts.state == whole.state);
          }
        }
      }
    }
  });
}

TEST_CASE_TEMPLATE("the judge of convolutions rejects what is wrong", Form, Activated, Gated) {
  const ConvShape s{7, 20, 4};
  const ConvData data = random_conv(s, 1);
  const ConvExpected e = expected<Form>(data, s);
  const auto off = [&](const auto& change) {
    ConvData wrong = data;
    change(wrong);
    return worst(run<Form>(wrong, s, s.n_rows), e.value, e.allowed);
  };
  CHECK(off([](ConvData&) {}) <= 1.0);
  CHECK(off([](ConvData& d) { std::reverse(d.taps.begin(), d.taps.end()); }) > 1.0);
  CHECK(off([](ConvData& d) { d.state.assign(d.state.size(), 0.0f); }) > 1.0);
  CHECK(off([](ConvData& d) { d.taps[79] *= 1.00001f; }) > 1.0);
  CHECK(off([](ConvData& d) { d.x[0] *= 1.00001f; }) > 1.0);
  ConvData without_state = data;  // the state is the last rows
  without_state.state.assign(data.state.size(), 9.0f);
  run<Form>(without_state, s, s.n_rows);
  ConvData with_state = data;
  run<Form>(with_state, s, s.n_rows);
  CHECK(without_state.state == with_state.state);
}

}  // namespace causal_conv_test
