// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/cache_arrays.hpp"
#include "kernels/each_target.hpp"

namespace attention_test {

using namespace nibble;
using namespace nibble_test;

namespace {

// Runs tasks backwards, with different worker numbers: neither order nor scratch must matter.
class BackwardExecutor final : public Executor {
 public:
  explicit BackwardExecutor(Index n) : n_(n) {}
  Index n_workers() const noexcept override { return n_; }
  void parallel_for(Index n_tasks, Task task) noexcept override {
    for (Index i = n_tasks; i-- > 0;) task(i, i % n_);
  }

 private:
  Index n_;
};

struct Case {
  Index n_heads, n_kv_heads, head_dim;
  Index first_position, n_tokens;
  Index window = 0;
  ops::KvType type = ops::KvType::f32;
  Index n_positions() const { return first_position + n_tokens; }
  ops::AttentionShape shape() const {
    return {n_heads, n_kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)), window};
  }
};

struct Data {
  std::vector<float> q;     // (n_tokens, n_heads * head_dim)
  std::vector<float> k, v;  // (n_positions, n_kv_heads * head_dim), already rounded to the type
  // Of each element of v: what the code 0 stands for, and what one step of the code is worth; 0 if
  // there are no codes.
  std::vector<float> v_low, v_step;
};

// What 4-bit codes with an f16 scale and minimum make of a group of elements.
void round_to_int4(float* x, Index n) {
  const float minimum = to_f32(to_f16(*std::min_element(x, x + n)));
  const float range = std::max(*std::max_element(x, x + n) - minimum, 0.0f);
  const float scale = to_f32(to_f16(range / 15));
  for (Index i = 0; i < n; ++i) {
    const float steps = scale == 0 ? 0 : (x[i] - minimum) / scale;
    x[i] = minimum + scale * std::nearbyint(std::clamp(steps, 0.0f, 15.0f));
  }
}

// What a cache of `type` stores of `heads`, rows of head_dim: of int4 the keys.
void round_to(ops::KvType type, Index head_dim, std::vector<float>& heads) {
  ops::visit_kv_type(type, [&]<class T>(T) {
    for (std::size_t h = 0; h < heads.size(); h += static_cast<std::size_t>(head_dim)) {
      float* const x = &heads[h];
      float max = 0;
      for (Index i = 0; i < head_dim; ++i) max = std::max(max, std::abs(x[i]));
      for (Index i = 0; i < head_dim; ++i) {
        if constexpr (std::is_same_v<T, f16>) x[i] = to_f32(to_f16(x[i]));
        if constexpr (std::is_same_v<T, bf16>) x[i] = to_f32(to_bf16(x[i]));
        if constexpr (kernels::kHasKeyCodes<T>) {
          x[i] = std::nearbyint(x[i] * (127 / max)) * (max / 127);
        }
      }
    }
  });
}

bool has_codes(ops::KvType type) { return type == ops::KvType::int8 || type == ops::KvType::int4; }

// Sets v_low and v_step of n elements that share a scale.
void describe_codes(ops::KvType type, Data& data, std::size_t at, std::size_t n) {
  const bool is_int4 = type == ops::KvType::int4;
  const auto first = data.v.begin() + static_cast<std::ptrdiff_t>(at);
  const auto [min, max] = std::minmax_element(first, first + static_cast<std::ptrdiff_t>(n));
  const float step = is_int4 ? (*max - *min) / 15 : std::max(-*min, *max) / 127;
  for (std::size_t i = at; i < at + n; ++i) {
    data.v_low[i] = is_int4 ? *min : 0;
    data.v_step[i] = step;
  }
}

Data draw(const Case& c, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Data data;
  data.q.resize(product(c.n_tokens, c.n_heads * c.head_dim));
  data.k.resize(product(c.n_positions(), c.n_kv_heads * c.head_dim));
  data.v.resize(data.k.size());
  for (float& x : data.q) x = normal(rng);
  for (float& x : data.k) x = normal(rng);
  for (float& x : data.v) x = normal(rng);
  round_to(c.type, c.head_dim, data.k);
  if (c.type == ops::KvType::int4) {
    for (std::size_t at = 0; at < data.v.size(); at += static_cast<std::size_t>(c.head_dim)) {
      for (Index i = 0; i < c.head_dim; i += 32) {
        round_to_int4(&data.v[at + static_cast<std::size_t>(i)],
                      std::min<Index>(32, c.head_dim - i));
      }
    }
  } else {
    round_to(c.type, c.head_dim, data.v);
  }
  data.v_low.resize(data.v.size());
  data.v_step.resize(data.v.size());
  const Index group = c.type == ops::KvType::int4 ? 32 : c.head_dim;
  for (Index head = 0; head < c.n_positions() * c.n_kv_heads && has_codes(c.type); ++head) {
    for (Index i = 0; i < c.head_dim; i += group) {
      const std::size_t at = product(head, c.head_dim) + static_cast<std::size_t>(i);
      const auto n = static_cast<std::size_t>(std::min(group, c.head_dim - i));
      describe_codes(c.type, data, at, n);
    }
  }
  return data;
}

// What the oracle deliberately does wrong; the kernel must then disagree with it.
struct Mutation {
  Index dropped = -1;  // a position that nobody sees
  Index mask = 0;      // added to the last position that a query sees
  Index window = 0;    // added to the window
  double scale = 1;    // times the scale
  Index kv_head = 0;   // added to the kv head
};

struct Expected {
  std::vector<double> out, tolerance;  // (n_tokens, n_heads * head_dim)
};

// Softmax over all scores, in double. The tolerance is a bound for arithmetic in f32 with unit
// roundoff u = 2^-24, n positions seen, T = n / 64 + 2 tiles or parts:
//   scores       |error| <= delta = (head_dim + 2) u max_j sum_d |scale q_d k_jd|, or 0 if they are
//                exact by construction
//   weights      relative, with R = max - min of the scores, at most 88 (below that weights are 0):
//                score - max: R u; exp (kernels/math-inl.h): (3 + 1.45 R) u; corrections for all
//                changes of the maximum: the same sums again, once 3 u and a product per tile
//   sums         n + T roundings in the numerator and in the denominator, 4 at the end
// Weights count twice, in the numerator and in the denominator:
//   |out - exact| <= (2 delta + 2 (5 R + 3 + 4 T) u + 2 (n + T) u + 4 u) sum_j softmax_j |v_j|
// and 1 % for second-order terms. A weight lost to underflow is below 2^-126.
// Codes: keys and values are stored with an error of 4 u. Each element of a query has an error of
// half a step, max_d |q_d| / 32512, which is part of delta. Each weight is multiplied by the scale
// of its value and then by the value's code; this product of weight and scale has an error of half
// the greatest such product of its tile of 64 positions and its group of dimensions / 32512. 4-bit
// codes of values: sums of products with codes and with minimums are rounded separately: their
// roundings are relative to |x - minimum| + |minimum| instead of |x|.
Expected oracle(const Case& c, const Data& data, bool exact_scores = false,
                const Mutation& mutation = {}) {
  const double u = 0x1p-24;
  const ops::AttentionShape shape = c.shape();
  const double scale = exact_scores ? 1.0 : static_cast<double>(shape.scale);
  Expected e;
  e.out.resize(data.q.size());
  e.tolerance.resize(data.q.size());
  std::vector<double> weights;
  for (Index t = 0; t < c.n_tokens; ++t) {
    for (Index h = 0; h < c.n_heads; ++h) {
      const Index position = c.first_position + t;
      const Index kv_head = (h / shape.group() + mutation.kv_head) % c.n_kv_heads;
      const float* const q = &data.q[product(t * c.n_heads + h, c.head_dim)];
      const auto row = [&](const std::vector<float>& m, Index j) {
        return &m[product(j * c.n_kv_heads + kv_head, c.head_dim)];
      };
      // What roundings of x are relative to, if code 0 stands for `low`.
      const auto magnitude = [](float x, float low) {
        return std::abs(static_cast<double>(x) - static_cast<double>(low)) +
               std::abs(static_cast<double>(low));
      };
      Index begin = 0;
      if (c.window > 0) {
        begin = std::max<Index>(0, position + 1 - c.window - mutation.window);
      }
      const Index end = std::min(position + 1 + mutation.mask, c.n_positions());
      weights.assign(static_cast<std::size_t>(c.n_positions()), 0.0);
      double max = -std::numeric_limits<double>::infinity();
      double min = std::numeric_limits<double>::infinity();
      double delta = 0;
      const bool has_codes = attention_test::has_codes(c.type);
      const double half_step = 0.5 / 32512;
      double top_q = 0;
      for (Index i = 0; i < c.head_dim; ++i) {
        top_q = std::max(top_q, scale * std::abs(static_cast<double>(q[i])));
      }
      for (Index j = begin; j < end; ++j) {
        double score = 0;
        double size = 0;
        double sum_k = 0;
        for (Index i = 0; i < c.head_dim; ++i) {
          sum_k += std::abs(static_cast<double>(row(data.k, j)[i]));
          const double term = scale * mutation.scale * static_cast<double>(q[i]) *
                              static_cast<double>(row(data.k, j)[i]);
          score += term;
          size += std::abs(term);
        }
        weights[static_cast<std::size_t>(j)] = score;
        if (j == mutation.dropped) continue;
        max = std::max(max, score);
        min = std::min(min, score);
        double off = static_cast<double>(c.head_dim + 2) * u * size;
        if (has_codes) off = 8 * u * size + half_step * top_q * sum_k;
        delta = std::max(delta, off);
      }
      double sum = 0;
      for (Index j = begin; j < end; ++j) {
        double& w = weights[static_cast<std::size_t>(j)];
        w = j == mutation.dropped ? 0 : std::exp(w - max);
        sum += w;
      }
      const double n = static_cast<double>(end - begin);
      const double n_tiles = n / 64 + 2;
      const double range = std::min(max - min, 88.0);
      const double roundings =
          2 * (5 * range + 3 + 4 * n_tiles) + 2 * (n + n_tiles) + 4 + (has_codes ? 8 : 0);
      // For each tile and dimension, the greatest product of weight and scale.
      std::vector<double> top_weight(product(c.n_positions() / 64 + 1, c.head_dim));
      const auto top_of = [&](Index j, Index i) -> double& {
        return top_weight[product(j / 64, c.head_dim) + static_cast<std::size_t>(i)];
      };
      for (Index j = begin; has_codes && j < end; ++j) {
        const double weight = weights[static_cast<std::size_t>(j)] / sum;
        for (Index i = 0; i < c.head_dim; ++i) {
          double& top = top_of(j, i);
          top = std::max(top, weight * static_cast<double>(row(data.v_step, j)[i]));
        }
      }
      const double relative = 1.01 * (2 * (exact_scores ? 0 : delta) + roundings * u);
      for (Index i = 0; i < c.head_dim; ++i) {
        double out = 0;
        double size = 0;
        double off = 0;
        for (Index j = begin; j < end; ++j) {
          const auto at = static_cast<std::size_t>(j);
          const float value = row(data.v, j)[i];
          const float low = row(data.v_low, j)[i];
          out += weights[at] / sum * static_cast<double>(value);
          size += weights[at] / sum * magnitude(value, low);
          if (value != low && has_codes) {
            const double code = std::abs(static_cast<double>(value) - static_cast<double>(low)) /
                                static_cast<double>(row(data.v_step, j)[i]);
            off += half_step * top_of(j, i) * code;
          }
        }
        const std::size_t index =
            product(t * c.n_heads + h, c.head_dim) + static_cast<std::size_t>(i);
        e.out[index] = out;
        e.tolerance[index] = relative * size + 1.01 * off + 0x1p-120;
      }
    }
  }
  return e;
}

// How many elements differ by more than the tolerance (NaN counts as different).
int n_wrong(const std::vector<float>& out, const Expected& e) {
  int n = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!(std::abs(static_cast<double>(out[i]) - e.out[i]) <= e.tolerance[i])) ++n;
  }
  return n;
}

// Everything that is not written explicitly is 0xFF, a NaN in every type: the cache, the scratch
// (one guard line longer than needed) and the gaps between rows. Tokens are run in steps of `step`.
std::vector<float> run(const Case& c, const Data& data, Executor& executor, Index step = 0,
                       float scale = 0) {
  constexpr std::size_t kGuard = 64;
  constexpr Index kGap = 5;
  const Index kv_columns = c.n_kv_heads * c.head_dim;
  const Index columns = c.n_heads * c.head_dim;
  if (step == 0) step = c.n_tokens;
  const ops::KvCacheLayout layout{c.type, 2, c.n_kv_heads, c.head_dim, c.n_positions()};
  AlignedBuffer memory = filled(layout.bytes() + kGuard, 0xFF);
  auto cache = ops::KvCache::create(memory.bytes(), layout);
  REQUIRE(cache);
  ops::AttentionShape shape = c.shape();
  if (scale != 0) shape.scale = scale;
  const std::size_t scratch_bytes = ops::attention_scratch_bytes(
      shape, {.n_workers = executor.n_workers(), .max_rows = step, .n_positions = c.n_positions()});
  AlignedBuffer scratch = filled(scratch_bytes + kGuard, 0xFF);
  const auto padded = static_cast<std::size_t>(columns + kGap);
  std::vector<float> out(static_cast<std::size_t>(c.n_tokens) * padded,
                         std::numeric_limits<float>::quiet_NaN());

  cache->append(executor, 1, 0, rows_of(data.k, 0, c.first_position, kv_columns),
                rows_of(data.v, 0, c.first_position, kv_columns));
  for (Index t = 0; t < c.n_tokens; t += step) {
    const Index n = std::min(step, c.n_tokens - t);
    const Index position = c.first_position + t;
    cache->append(executor, 1, position, rows_of(data.k, position, n, kv_columns),
                  rows_of(data.v, position, n, kv_columns));
    ops::attention(
        executor, rows_of(data.q, t, n, columns), *cache, 1, shape, position,
        MatrixView<float>(out.data() + t * (columns + kGap), {n, columns}, {columns + kGap, 1}),
        scratch.bytes().first(scratch_bytes));
  }

  for (const AlignedBuffer* b : {&memory, &scratch}) {
    for (std::size_t i = b->size() - kGuard; i < b->size(); ++i) {
      REQUIRE(static_cast<unsigned char>(b->data()[i]) == 0xFF);
    }
  }
  std::vector<float> dense;
  for (Index t = 0; t < c.n_tokens; ++t) {
    const float* const row = out.data() + t * (columns + kGap);
    dense.insert(dense.end(), row, row + columns);
    for (Index i = 0; i < kGap; ++i) REQUIRE(std::isnan(row[columns + i]));
  }
  return dense;
}

void check_on_every_target(const std::vector<Case>& cases) {
  std::vector<Data> data;
  std::vector<Expected> expected;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    data.push_back(draw(cases[i], static_cast<unsigned>(i)));
    expected.push_back(oracle(cases[i], data.back()));
  }
  for_each_target([&](simd::Target) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const Case& c = cases[i];
      CAPTURE(c.n_heads);
      CAPTURE(c.n_kv_heads);
      CAPTURE(c.head_dim);
      CAPTURE(c.first_position);
      CAPTURE(c.n_tokens);
      CAPTURE(c.window);
      CAPTURE(std::string(ops::to_string(c.type)));
      BackwardExecutor executor(1 + static_cast<Index>(i % 3));
      CHECK(n_wrong(run(c, data[i], executor), expected[i]) == 0);
    }
  });
}

}  // namespace

TEST_CASE("attention: every length up to 40 and around the borders of tiles, all tokens at once") {
  std::vector<Case> cases;
  for (Index n = 1; n <= 40; ++n) cases.push_back({8, 2, 16, 0, n});
  for (const Index n : {47, 48, 49, 63, 64, 65, 79, 80, 81, 127, 128, 129, 193}) {
    cases.push_back({2, 1, 8, 0, n});
  }
  check_on_every_target(cases);
}

TEST_CASE("attention: every number of positions before one token") {
  std::vector<Case> cases;
  for (Index n = 0; n < 40; ++n) {
    cases.push_back({4, 1, 24, n, 1, 0, ops::kKvTypes[n % 5]});
  }
  for (const Index n : {62, 63, 64, 65, 126, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1100}) {
    cases.push_back({3, 1, 20, n, 1, 0, ops::kKvTypes[n % 5]});
  }
  check_on_every_target(cases);
}

TEST_CASE("attention: head sizes in every element type") {
  std::vector<Case> cases;
  for (const ops::KvType type : ops::kKvTypes) {
    for (const Index d : {1, 2, 3, 7, 8, 15, 16, 17, 32, 33, 48, 63, 64, 80, 96, 128, 130, 256}) {
      cases.push_back({4, 2, d, 66, 5, 0, type});
    }
  }
  check_on_every_target(cases);
}

TEST_CASE("attention: ratios of heads to kv heads") {
  std::vector<Case> cases;
  struct Ratio {
    Index n_heads, n_kv_heads;
  };
  for (const Ratio r : {Ratio{1, 1},
                        {6, 6},
                        {4, 2},
                        {9, 3},
                        {8, 2},
                        {32, 8},
                        {5, 1},
                        {12, 2},
                        {14, 2},
                        {16, 2},
                        {32, 4},
                        {71, 1}}) {
    for (const Index n : {1, 2, 3, 12}) {
      cases.push_back({r.n_heads, r.n_kv_heads, 16, 61, n, 0, ops::kKvTypes[n % 5]});
    }
  }
  check_on_every_target(cases);
}

TEST_CASE("attention: sliding windows") {
  std::vector<Case> cases;
  for (const Index window : {1, 2, 5, 15, 16, 17, 63, 64, 65, 100, 150, 1000}) {
    cases.push_back({4, 2, 16, 0, 140, window});
    cases.push_back({4, 2, 16, 121, 9, window, ops::KvType::bf16});
    cases.push_back({4, 1, 12, 131, 1, window, ops::KvType::f16});
    cases.push_back({4, 1, 20, 133, 3, window, ops::KvType::int8});
    cases.push_back({4, 1, 40, 133, 3, window, ops::KvType::int4});
    cases.push_back({4, 2, 65, 100, 40, window, ops::KvType::int4});
  }
  cases.push_back({2, 1, 16, 1500, 1, 700});
  cases.push_back({2, 1, 16, 1500, 3, 801});
  check_on_every_target(cases);
}

TEST_CASE("attention: one token against positions that are split into parts, and several") {
  std::vector<Case> cases;
  for (const Index n : {1, 2, 3, 5, 8, 9})
    cases.push_back({6, 2, 16, 1030, n, 0, ops::kKvTypes[n % 5]});
  cases.push_back({40, 2, 16, 800, 3});  // two token tasks and parts
  check_on_every_target(cases);
}

TEST_CASE("attention: token by token, in pieces and at once agree") {
  for (const ops::KvType type : {ops::KvType::f32, ops::KvType::int8, ops::KvType::int4}) {
    const Case c{9, 3, 32, 3, 90, 0, type};
    const Data data = draw(c, 7);
    const Expected e = oracle(c, data);
    for_each_target([&](simd::Target) {
      InlineExecutor executor;
      const std::vector<float> at_once = run(c, data, executor);
      for (const Index step : {1, 7, 64}) {
        const std::vector<float> in_steps = run(c, data, executor, step);
        CHECK(n_wrong(in_steps, e) == 0);
        int n_different = 0;
        for (std::size_t i = 0; i < at_once.size(); ++i) {
          const auto difference =
              static_cast<double>(at_once[i]) - static_cast<double>(in_steps[i]);
          if (!(std::abs(difference) <= 2 * e.tolerance[i])) ++n_different;
        }
        CHECK(n_different == 0);
      }
    });
  }
}

TEST_CASE("attention: the number of workers does not change a bit") {
  for (const Case& c : {Case{8, 2, 16, 0, 100}, Case{6, 2, 16, 1500, 1}, Case{6, 2, 16, 900, 4},
                        Case{6, 2, 16, 1500, 1, 0, ops::KvType::int8},
                        Case{6, 2, 48, 1500, 1, 0, ops::KvType::int4}}) {
    const Data data = draw(c, 11);
    InlineExecutor one;
    BackwardExecutor five(5);
    CHECK(run(c, data, one) == run(c, data, five));
  }
}

TEST_CASE("attention: scores of +-10000 saturate and do not overflow") {
  // Integers: scores are exact, so only exp and the sums may err.
  for (const Index n_positions : {3, 100, 700}) {
    Case c{4, 2, 16, n_positions - 3, 3};
    std::mt19937 rng(5);
    Data data = draw(c, 5);
    for (float& x : data.q) x = rng() % 2 == 0 ? 25.0f : -25.0f;
    for (float& x : data.k) x = rng() % 2 == 0 ? 25.0f : -25.0f;
    // For the first query head of each group: the highest score twice, the lowest once, and one
    // score that is 25 below the highest.
    for (Index column = 0; column < 2 * 16; ++column) {
      const auto key = [&](Index position) -> float& {
        return data.k[product(position, 32) + static_cast<std::size_t>(column)];
      };
      const Index head = column / 16 * 2;
      const float q = data.q[product(head, 16) + static_cast<std::size_t>(column % 16)];
      key(0) = -q;
      key(n_positions - 3) = q;
      if (n_positions > 60) {
        key(50) = q;
        key(51) = column % 16 == 0 ? 0.96f * q : q;  // 24 instead of 25
      }
    }
    const Expected e = oracle(c, data, true);
    for_each_target([&](simd::Target) {
      InlineExecutor executor;
      const std::vector<float> out = run(c, data, executor, 0, 1.0f);
      CHECK(n_wrong(out, e) == 0);
    });
  }
}

TEST_CASE("attention: equal scores average the values") {
  Case c{2, 1, 16, 99, 1};
  Data data = draw(c, 3);
  std::fill(data.q.begin(), data.q.end(), 0.0f);
  for (std::size_t i = 0; i < data.v.size(); ++i) data.v[i] = static_cast<float>(i / 16);
  for_each_target([&](simd::Target) {
    InlineExecutor executor;
    for (const float x : run(c, data, executor)) CHECK(x == doctest::Approx(49.5).epsilon(1e-6));
  });
}

TEST_CASE("attention: what overflows in f16 is an infinity on every target") {
  const Case c{2, 1, 18, 99, 1, 0, ops::KvType::f16};
  Data values = draw(c, 6), keys = values;
  std::fill(values.q.begin(), values.q.end(), 0.0f);
  for (const std::size_t i : {3u, 17u}) values.v[product(50, 18) + i] = 1e6f;
  std::fill(keys.q.begin(), keys.q.end(), 1.0f);
  keys.k[product(50, 18) + 3] = 1e6f;
  for_each_target([&](simd::Target) {
    InlineExecutor executor;
    const std::vector<float> out = run(c, values, executor);
    for (std::size_t i = 0; i < out.size(); ++i) {
      CHECK(std::isinf(out[i]) == (i % 18 == 3 || i % 18 == 17));
    }
    // The score and the maximum are infinite: their difference is not a number.
    for (const float x : run(c, keys, executor)) CHECK(std::isnan(x));
  });
}

TEST_CASE("attention: sums of 8-bit integers as great as they get") {
  // 1024 queries are rounded to 1024 times the largest number, and keys to codes of 127.
  const Case c{2, 1, 1024, 20, 1, 0, ops::KvType::int8};
  for (const float q : {-1.0f, 1.0f}) {
    Data data = draw(c, 8);
    std::fill(data.q.begin(), data.q.end(), q);
    for (std::size_t i = 0; i < data.k.size(); ++i) data.k[i] = i / 1024 % 2 == 0 ? 0.03f : -0.03f;
    const Expected e = oracle(c, data);
    for_each_target([&](simd::Target) {
      InlineExecutor executor;
      CHECK(n_wrong(run(c, data, executor), e) == 0);
    });
  }
}

TEST_CASE("attention: sums of 4-bit codes as great as they get, beside a great minimum") {
  const Case c{2, 1, 96, 70, 1, 0, ops::KvType::int4};
  Data data = draw(c, 12);
  std::fill(data.q.begin(), data.q.end(), 0.0f);  // equal weights
  for (std::size_t i = 0; i < data.v.size(); i += 32) {
    const float minimum = i / 32 % 2 == 0 ? 1000.0f : -1000.0f;
    for (std::size_t j = i; j < i + 32; ++j) {  // all codes but one are 15
      data.v[j] = minimum + (j % 32 == (i / 96) % 32 ? 0.0f : 0.9375f);
    }
    describe_codes(c.type, data, i, 32);
  }
  const Expected e = oracle(c, data);
  for_each_target([&](simd::Target) {
    InlineExecutor executor;
    CHECK(n_wrong(run(c, data, executor), e) == 0);
  });
}

TEST_CASE("attention: positions that were written and taken back do not matter") {
  const Case c{4, 2, 16, 20, 1};
  const Data data = draw(c, 9);
  const Expected e = oracle(c, data);
  for_each_target([&](simd::Target) {
    InlineExecutor executor;
    const ops::KvCacheLayout layout{c.type, 1, 2, 16, 100};
    AlignedBuffer memory = filled(layout.bytes(), 0);
    auto cache = ops::KvCache::create(memory.bytes(), layout);
    REQUIRE(cache);
    const std::vector<float> bad(100 * 32, std::numeric_limits<float>::infinity());
    cache->append(executor, 0, 0, rows_of(bad, 0, 100, 32), rows_of(bad, 0, 100, 32));
    cache->append(executor, 0, 0, rows_of(data.k, 0, 21, 32), rows_of(data.v, 0, 21, 32));
    const ops::AttentionShape shape = c.shape();
    AlignedBuffer scratch = filled(ops::attention_scratch_bytes(shape, {.n_positions = 100}), 0xFF);
    std::vector<float> out = data.q;  // in place
    ops::attention(executor, MatrixView<const float>(out.data(), 1, 64), *cache, 0, shape, 20,
                   MatrixView<float>(out.data(), 1, 64), scratch.bytes());
    CHECK(n_wrong(out, e) == 0);
  });
}

TEST_CASE("attention: the tolerance notices mistakes") {
  std::vector<Case> cases;
  cases.push_back({9, 3, 20, 0, 70});
  cases.push_back({8, 2, 64, 40, 6, 30, ops::KvType::f16});
  cases.push_back({4, 2, 128, 512, 1, 0, ops::KvType::bf16});
  cases.push_back({4, 2, 32, 512, 1, 400});
  cases.push_back({4, 2, 64, 100, 3, 0, ops::KvType::int8});
  cases.push_back({4, 2, 80, 100, 3, 0, ops::KvType::int4});
  for (const Case& c : cases) {
    CAPTURE(c.n_tokens);
    const Data data = draw(c, 21);
    InlineExecutor executor;
    const std::vector<float> out = run(c, data, executor);
    REQUIRE(n_wrong(out, oracle(c, data)) == 0);
    const Index last = c.n_positions() - 1;
    const Index first_seen = c.window > 0 ? std::max<Index>(0, last + 1 - c.window) : 0;
    for (const Index position : {first_seen, (first_seen + last) / 2, last}) {
      CHECK(n_wrong(out, oracle(c, data, false, {.dropped = position})) > 0);
    }
    CHECK(n_wrong(out, oracle(c, data, false, {.mask = c.n_positions() > 1 ? -1 : 0})) > 0);
    if (c.n_tokens > 1) CHECK(n_wrong(out, oracle(c, data, false, {.mask = 1})) > 0);
    CHECK(n_wrong(out, oracle(c, data, false, {.scale = 1.01})) > 0);
    CHECK(n_wrong(out, oracle(c, data, false, {.scale = 0.99})) > 0);
    CHECK(n_wrong(out, oracle(c, data, false, {.kv_head = 1})) > 0);
    if (c.window > 0) {
      CHECK(n_wrong(out, oracle(c, data, false, {.window = 1})) > 0);
      CHECK(n_wrong(out, oracle(c, data, false, {.window = -1})) > 0);
    }
  }
}

}  // namespace attention_test
