// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/delta_rule.hpp"

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"

namespace delta_rule_test {

using namespace nibble;
using namespace nibble_test;

namespace {

struct RuleShape {
  Index n_rows, key_dim, value_dim;
  kernels::DeltaState state() const { return {key_dim, value_dim}; }
};
struct RuleData {
  Floats queries, keys, values, decays, betas;
};
// Keys and queries have length 1.
Floats unit_rows(Index n, Index dim, unsigned seed) {
  Floats x = random_floats(static_cast<std::size_t>(n * dim), -1, 1, seed);
  for (Index i = 0; i < n; ++i) {
    float* const row = x.data() + i * dim;
    double sum = 0;
    for (Index j = 0; j < dim; ++j)
      sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
    for (Index j = 0; j < dim; ++j) row[j] /= static_cast<float>(std::sqrt(sum + 1e-6));
  }
  return x;
}
RuleData random_rule(const RuleShape& s, unsigned seed) {
  const auto n = static_cast<std::size_t>(s.n_rows);
  return {unit_rows(s.n_rows, s.key_dim, seed), unit_rows(s.n_rows, s.key_dim, seed + 1),
          random_floats(n * static_cast<std::size_t>(s.value_dim), -2, 2, seed + 2),
          random_floats(n, 0.6f, 1, seed + 3), random_floats(n, 0.1f, 1, seed + 4)};
}

struct RuleExpected {
  Exact value, allowed;
};
// Row by row, as the rule is defined. As keys have length 1, no step makes an error larger that is
// in the matrix: errors of rows add up. Each is a sum of key_dim or of kDeltaChunk products, of the
// size of the column of the matrix, at most.
template <bool kSubtracts>
RuleExpected expected(const RuleData& data, const RuleShape& s) {
  const auto at = [](Index i, Index width, Index j) {
    return static_cast<std::size_t>(i * width + j);
  };
  Exact matrix(static_cast<std::size_t>(s.key_dim * s.value_dim));
  Exact most(static_cast<std::size_t>(s.value_dim));
  RuleExpected e;
  for (Index row = 0; row < s.n_rows; ++row) {
    const auto r = static_cast<std::size_t>(row);
    for (long double& x : matrix) x *= data.decays[r];
    for (Index c = 0; c < s.value_dim; ++c) {
      const auto column = static_cast<std::size_t>(c);
      long double seen = 0, length = 0, result = 0;
      for (Index i = 0; i < s.key_dim; ++i) {
        seen += data.keys[at(row, s.key_dim, i)] * matrix[at(i, s.value_dim, c)];
      }
      const long double value = data.values[at(row, s.value_dim, c)];
      const long double delta = data.betas[r] * (kSubtracts ? value - seen : value);
      for (Index i = 0; i < s.key_dim; ++i) {
        long double& x = matrix[at(i, s.value_dim, c)];
        x += data.keys[at(row, s.key_dim, i)] * delta;
        length += x * x;
        result += data.queries[at(row, s.key_dim, i)] * x;
      }
      most[column] = std::max(most[column], std::sqrt(length) + std::fabs(value));
      e.value.push_back(result);
      e.allowed.push_back((s.key_dim + 2 * kernels::kDeltaChunk + row) * kU * most[column]);
    }
  }
  return e;
}

// The rows in calls of at most `cut`.
template <bool kSubtracts>
Floats run(const RuleData& data, const RuleShape& s, Index cut, Floats* state_after = nullptr) {
  const auto n_state = static_cast<std::size_t>(s.state().n_floats());
  Guarded state(Floats(n_state, 0.0f), 1);
  Guarded left(Floats(kernels::kDeltaLeft, 7.0f), 1);
  Guarded out(static_cast<std::size_t>(s.n_rows * s.value_dim), 2);
  Guarded queries(data.queries, 1), keys(data.keys, 2), values(data.values, 3);
  for (Index row = 0; row < s.n_rows; row += cut) {
    kernels::DeltaArgs args;
    args.n_rows = std::min(cut, s.n_rows - row);
    args.first_slot = row % kernels::kDeltaChunk;
    args.shape = s.state();
    args.queries = queries.data() + row * s.key_dim;
    args.keys = keys.data() + row * s.key_dim;
    args.values = values.data() + row * s.value_dim;
    args.query_stride = s.key_dim;
    args.value_stride = args.out_stride = s.value_dim;
    args.decays = data.decays.data() + row;
    args.betas = data.betas.data() + row;
    args.gate_stride = 1;
    args.state = state.data();
    args.left = left.data();
    args.out = out.data() + row * s.value_dim;
    simd::kernel<kernels::DeltaRule<kSubtracts>>()(args);
  }
  REQUIRE((state.guards_intact() && left.guards_intact() && out.guards_intact()));
  if (state_after != nullptr) *state_after = state.values();
  return out.values();
}

template <bool kSubtracts>
void check_rule() {
  for_each_target([](simd::Target) {
    for (const Index key_dim : {1, 5, 16, 33, 64}) {
      for (const Index value_dim : {1, 7, 16, 37, 131}) {
        for (const Index n_rows : {1, 15, 16, 17, 50}) {
          const RuleShape s{n_rows, key_dim, value_dim};
          CAPTURE(n_rows);
          CAPTURE(key_dim);
          CAPTURE(value_dim);
          const RuleData data = random_rule(s, static_cast<unsigned>(key_dim + value_dim));
          const RuleExpected e = expected<kSubtracts>(data, s);
          Floats state;
          const Floats y = run<kSubtracts>(data, s, n_rows, &state);
          REQUIRE(worst(y, e.value, e.allowed) <= 1.0);
          for (const Index cut : {1, 3, 16, 20}) {
            Floats other;
            REQUIRE(run<kSubtracts>(data, s, cut, &other) == y);
            REQUIRE(other == state);
          }
        }
      }
    }
  });
}

}  // namespace

TEST_CASE("the gated delta rule is right, bit for bit the same however the rows are cut") {
  check_rule<true>();
}
TEST_CASE("the decayed sum is right, bit for bit the same however the rows are cut") {
  check_rule<false>();
}

TEST_CASE("a long sequence, states that decay to nothing, and those that do not decay") {
  const RuleShape s{400, 24, 19};
  for (const float decay : {0.0f, 1e-30f, 1.0f}) {
    RuleData data = random_rule(s, 5);
    data.decays.assign(400, decay);
    const RuleExpected e = expected<true>(data, s);
    CHECK(worst(run<true>(data, s, 64), e.value, e.allowed) <= 1.0);
  }
}

TEST_CASE("the judge of the delta rule rejects what is wrong") {
  const RuleShape s{21, 20, 18};
  const RuleData data = random_rule(s, 3);
  const RuleExpected e = expected<true>(data, s);
  const auto off = [&](const auto& change) {
    RuleData wrong = data;
    change(wrong);
    return worst(run<true>(wrong, s, s.n_rows), e.value, e.allowed);
  };
  CHECK(off([](RuleData&) {}) <= 1.0);
  CHECK(off([](RuleData& d) { std::swap(d.keys, d.queries); }) > 1.0);
  CHECK(off([](RuleData& d) { d.decays[20] *= 0.9999f; }) > 1.0);
  CHECK(off([](RuleData& d) { d.betas[16] *= 0.9999f; }) > 1.0);
  CHECK(off([](RuleData& d) { d.keys[15 * 20 + 19] *= 0.999f; }) > 1.0);
  CHECK(worst(run<false>(data, s, s.n_rows), e.value, e.allowed) > 1.0);
}

}  // namespace delta_rule_test
