// SPDX-License-Identifier: Apache-2.0
//
// Mixtures of experts: an Experts node compared with sums in double precision, for each way to
// choose experts and to weigh them; rows alone and together; routers that are broken.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/thread_pool.hpp"
#include "nibble/graph/apply_experts.hpp"
#include "nibble/graph/check.hpp"
#include "nibble/graph/describe.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/ops/pack.hpp"

namespace experts_test {
namespace {

using namespace nibble;
using namespace nibble::graph;

enum class E : unsigned char {
  table,
  router,
  gate,
  up,
  down,
  router_bias,
  choice_bias,
  gate_bias,
  up_bias,
  down_bias,
  of_token
};
constexpr std::size_t kSlots = 11;
constexpr Index kDim = 32, kFfn = 96, kExperts = 12, kUsed = 3, kWords = 20;

struct Plain : ExpertSlots<E::router, E::gate, E::up, E::down> {};
struct Biased : Plain {
  static constexpr auto router_bias = E::router_bias;
  static constexpr auto gate_bias = E::gate_bias;
  static constexpr auto up_bias = E::up_bias;
  static constexpr auto down_bias = E::down_bias;
};
struct ByChoiceBias : Plain {
  static constexpr auto choice_bias = E::choice_bias;
};
struct ByToken : Plain {
  static constexpr auto of_token = E::of_token;
};

// Numbers around 0 that differ by slot and place.
float number(E slot, Index i) {
  auto z = static_cast<std::uint64_t>(i) * 0x9E3779B97F4A7C15u +
           (static_cast<std::uint64_t>(slot) + 1) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 29)) * 0x94D049BB133111EBu;
  return static_cast<float>(z >> 40) / 0x1p23f - 1;
}

struct ExpertWeights {
  std::array<std::vector<float>, kSlots> values;
  std::vector<Weight> table = std::vector<Weight>(kSlots);
  std::vector<AlignedBuffer> memory;

  explicit ExpertWeights(bool in_q8 = false) {
    fill(E::table, kWords, kDim, 1);
    fill(E::router, kExperts, kDim, 1);
    fill(E::gate, kFfn, kDim, kExperts);
    fill(E::up, kFfn, kDim, kExperts);
    fill(E::down, kDim, kFfn, kExperts);
    fill(E::router_bias, 0, kExperts, 1);
    fill(E::choice_bias, 0, kExperts, 1);
    fill(E::gate_bias, 0, kFfn, kExperts);
    fill(E::up_bias, 0, kFfn, kExperts);
    fill(E::down_bias, 0, kDim, kExperts);
    fill(E::of_token, kWords, kUsed, 1);
    for (float& x : of(E::gate_bias)) x *= 9;  // some gates and factors are clamped
    for (float& x : of(E::up_bias)) x *= 9;
    for (std::size_t i = 0; i < of(E::of_token).size(); ++i) {
      of(E::of_token)[i] = static_cast<float>((5 * i + i / 7) % kExperts);
    }
    pack_all(in_q8);
  }
  std::vector<float>& of(E slot) { return values[static_cast<std::size_t>(slot)]; }
  const std::vector<float>& of(E slot) const { return values[static_cast<std::size_t>(slot)]; }

  // Again, from changed values.
  void pack_all(bool in_q8) {
    memory.clear();
    pack(E::table, kWords, kDim, 1, false);
    pack(E::router, kExperts, kDim, 1, false);
    for (const E slot : {E::gate, E::up}) pack(slot, kFfn, kDim, kExperts, in_q8);
    pack(E::down, kDim, kFfn, kExperts, in_q8);
    pack(E::of_token, kWords, kUsed, 1, false);
    for (const E slot : {E::router_bias, E::choice_bias}) pack(slot, 0, kExperts, 1, false);
    for (const E slot : {E::gate_bias, E::up_bias}) pack(slot, 0, kFfn, kExperts, false);
    pack(E::down_bias, 0, kDim, kExperts, false);
  }

 private:
  void fill(E slot, Index n, Index k, Index n_experts) {
    const Index size = (n > 0 ? n : 1) * k * n_experts;
    for (Index i = 0; i < size; ++i) of(slot).push_back(number(slot, i));
    if (n == 0 || slot == E::table) return;
    for (float& x : of(slot)) x /= std::sqrt(static_cast<float>(k) / 6);
  }
  template <class F>
  void pack_as(Weight& w, const std::vector<float>& v) {
    w.ops = &kFormatOps<F>;
    const auto row_bytes = *quant::row_bytes<F>(static_cast<std::size_t>(w.k));
    std::vector<std::byte> rows(row_bytes * v.size() / static_cast<std::size_t>(w.k));
    REQUIRE(quant::row_from_f32(quant::kFormatOf<F>, v, rows));
    take(w, static_cast<std::size_t>(w.bytes()));
    InlineExecutor executor;
    for (Index e = 0; e < w.n_experts; ++e) {
      ops::pack<F>(executor, rows.data() + e * w.n * static_cast<Index>(row_bytes), w.n, w.k,
                   memory.back().data() + e * w.expert(0).bytes());
    }
  }
  void pack(E slot, Index n, Index k, Index n_experts, bool in_q8) {
    Weight& w = table[static_cast<std::size_t>(slot)];
    w = {nullptr, n, k, nullptr, n_experts};
    w.data = reinterpret_cast<const std::byte*>(&w);  // so that it has a size
    if (n > 0 && in_q8) return pack_as<quant::Q8_0>(w, of(slot));
    if (n > 0) return pack_as<quant::F32>(w, of(slot));
    take(w, static_cast<std::size_t>(w.bytes()));
    std::memcpy(memory.back().data(), of(slot).data(), of(slot).size() * sizeof(float));
  }
  void take(Weight& w, std::size_t bytes) {
    auto buffer = AlignedBuffer::allocate(bytes);
    REQUIRE(buffer.has_value());
    memory.push_back(*std::move(buffer));
    w.data = memory.back().data();
  }
};

using Rows2 = std::vector<std::vector<double>>;

// Runs `expression` on tokens, in memory full of NaN.
template <class Expression>
std::vector<std::vector<float>> run_tokens(const Expression& expression, const ExpertWeights& w,
                                           const std::vector<std::int32_t>& tokens) {
  const auto n = static_cast<Index>(tokens.size());
  const Limits limits{.max_rows = n + 2, .max_workers = 3};
  const Plan plan = make_plan(expression, limits);
  CAPTURE(std::string(plan.error != nullptr ? plan.error : ""));
  REQUIRE(plan.is_valid());
  auto arena = AlignedBuffer::allocate(plan.bytes);
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(arena.has_value());
  REQUIRE(pool);
  std::memset(arena->data(), 255, plan.bytes);
  const Segment segment{.n_rows = n};
  const Index last = n - 1;
  RunArgs args;
  args.step = {.tokens = tokens, .segments = {&segment, 1}, .output_rows = {&last, 1}};
  args.weights = {w.table, kSlots};
  args.arena = arena->bytes();
  args.executor = pool->get();
  const auto checked = check_run(expression, plan, limits, args);
  CAPTURE(checked ? std::string() : checked.error().message);
  REQUIRE(checked);
  const auto out = run(expression, plan, limits, args);
  std::vector<std::vector<float>> rows;
  for (Index i = 0; i < out.extent(0); ++i) {
    rows.emplace_back(&out(i, 0), &out(i, 0) + out.extent(1));
  }
  return rows;
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double plain_gate(double gate, double up) { return gate * sigmoid_of(gate) * up; }
double clamped_gate(double gate, double up) {
  gate = std::min(gate, 7.0);
  return gate * sigmoid_of(1.702 * gate) * (std::clamp(up, -7.0, 7.0) + 1);
}

struct Oracle {
  Routing routing;
  bool has_biases = false, has_choice_bias = false, is_by_token = false;
  double (*gate)(double, double) = plain_gate;

  // The experts of a row by a plain sort, and their weights.
  std::vector<std::pair<std::size_t, double>> route(const ExpertWeights& w, std::int32_t token,
                                                    std::vector<double> scores) const {
    const auto n = scores.size();
    if (routing.scores == RouterScores::sigmoid) {
      for (double& s : scores) s = sigmoid_of(s);
    } else if (routing.scores == RouterScores::softmax) {
      double sum = 0;
      for (double& s : scores) sum += s = std::exp(s);
      for (double& s : scores) s /= sum;
    }
    std::vector<double> ranked = scores;
    for (std::size_t e = 0; e < n && has_choice_bias; ++e) {
      ranked[e] += double{w.of(E::choice_bias)[e]};
    }
    const std::size_t size = n / static_cast<std::size_t>(routing.n_groups);
    std::vector<std::pair<double, std::size_t>> groups;
    for (std::size_t g = 0; g < n / size; ++g) {
      std::vector<double> of_group(ranked.begin() + static_cast<std::ptrdiff_t>(g * size),
                                   ranked.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
      std::sort(of_group.rbegin(), of_group.rend());
      groups.emplace_back(-of_group[0] - (size > 1 ? of_group[1] : 0), g);
    }
    std::sort(groups.begin(), groups.end());
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < static_cast<std::size_t>(routing.n_used_groups); ++i) {
      for (std::size_t e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e) {
        order.emplace_back(-ranked[e], e);
      }
    }
    std::sort(order.begin(), order.end());
    std::vector<std::pair<std::size_t, double>> chosen;
    double sum = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(routing.n_used); ++i) {
      std::size_t e = order[i].second;
      if (is_by_token) {
        const auto at = static_cast<std::size_t>(token) * kUsed + i;
        e = static_cast<std::size_t>(w.of(E::of_token)[at]);
      }
      const bool among = routing.scores == RouterScores::softmax_of_chosen;
      chosen.emplace_back(e, among ? std::exp(scores[e]) : scores[e]);
      sum += chosen.back().second;
    }
    const bool divides = routing.is_normalized || routing.scores == RouterScores::softmax_of_chosen;
    for (auto& [e, weight] : chosen) {
      weight *= double{routing.scale} / (divides ? sum : 1);
    }
    return chosen;
  }

  Rows2 operator()(const ExpertWeights& w, const std::vector<std::int32_t>& tokens) const {
    const auto product = [&](E slot, std::size_t expert, const std::vector<double>& x,
                             std::size_t n, E bias_slot, bool has_bias) {
      std::vector<double> y(n);
      for (std::size_t i = 0; i < n; ++i) {
        y[i] = has_bias ? double{w.of(bias_slot)[expert * n + i]} : 0;
        for (std::size_t j = 0; j < x.size(); ++j) {
          y[i] += x[j] * double{w.of(slot)[(expert * n + i) * x.size() + j]};
        }
      }
      return y;
    };
    Rows2 out;
    for (const std::int32_t token : tokens) {
      std::vector<double> x(kDim), sum(kDim);
      for (std::size_t j = 0; j < x.size(); ++j) {
        x[j] = double{w.of(E::table)[static_cast<std::size_t>(token) * kDim + j]};
      }
      const auto scores = product(E::router, 0, x, kExperts, E::router_bias, has_biases);
      for (const auto& [e, weight] : route(w, token, scores)) {
        auto inner = product(E::gate, e, x, kFfn, E::gate_bias, has_biases);
        const auto up = product(E::up, e, x, kFfn, E::up_bias, has_biases);
        for (std::size_t j = 0; j < inner.size(); ++j) inner[j] = gate(inner[j], up[j]);
        const auto y = product(E::down, e, inner, kDim, E::down_bias, has_biases);
        for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += weight * y[j];
      }
      out.push_back(sum);
    }
    return out;
  }
};

const std::vector<std::int32_t> kSome = {4, 0, 19, 7, 7, 2, 11, 13, 1, 5, 18, 3, 6};

// The largest difference, relative to the largest number.
double distance_of(const std::vector<std::vector<float>>& rows, const Rows2& expected) {
  double off = 0, most = 0;
  REQUIRE(rows.size() == expected.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < rows[i].size(); ++j) {
      const double d = std::fabs(double{rows[i][j]} - expected[i][j]);
      off = d <= off ? off : std::isnan(d) ? INFINITY : d;
      most = std::fmax(most, std::fabs(expected[i][j]));
    }
  }
  return off / most;
}

template <class Slots, class Activation = kernels::Silu>
auto layer_of_experts(const Routing& routing) {
  return embedding<E::table>(Dim<>{kDim}) >>
         experts<Slots, Activation>(routing, Dim<>{kFfn}, Dim<>{kDim});
}

template <class Slots, class Activation = kernels::Silu>
void check_experts(const Oracle& oracle, std::vector<Rows2>& all) {
  const ExpertWeights weights, in_q8(true);
  const auto expression = layer_of_experts<Slots, Activation>(oracle.routing);
  const auto rows = run_tokens(expression, weights, kSome);
  const auto expected = oracle(weights, kSome);
  CHECK(distance_of(rows, expected) < 3e-6);
  for (const Rows2& other : all) CHECK(distance_of(rows, other) > 1e-2);
  all.push_back(expected);
  // Alone and together, bit by bit.
  for (const ExpertWeights* w : {&weights, &in_q8}) {
    const auto together = run_tokens(expression, *w, kSome);
    for (std::size_t i = 0; i < kSome.size(); ++i) {
      const auto alone = run_tokens(expression, *w, {kSome[i]});
      CHECK(alone[0] == together[i]);
    }
  }
  CHECK(distance_of(run_tokens(expression, in_q8, kSome), expected) < 0.05);
}

}  // namespace

TEST_CASE("experts: each way to choose and to weigh them, rows alone and together") {
  std::vector<Rows2> all;
  Oracle o{.routing = {.n_experts = kExperts, .n_used = kUsed}};
  check_experts<Plain>(o, all);
  o.routing.is_normalized = true;
  check_experts<Plain>(o, all);
  o.routing.scores = RouterScores::sigmoid;
  o.routing.scale = 2.5f;
  check_experts<Plain>(o, all);
  o.has_choice_bias = true;
  check_experts<ByChoiceBias>(o, all);
  o.routing.n_groups = 4;
  o.routing.n_used_groups = 2;
  check_experts<ByChoiceBias>(o, all);
  o = {.routing = {.n_experts = kExperts,
                   .n_used = kUsed,
                   .is_normalized = true,
                   .n_groups = 6,
                   .n_used_groups = 2}};
  check_experts<Plain>(o, all);
  o = {.routing = {.n_experts = kExperts, .n_used = kUsed}, .is_by_token = true};
  check_experts<ByToken>(o, all);
  o = {.routing = {.n_experts = kExperts,
                   .n_used = kUsed,
                   .scores = RouterScores::softmax_of_chosen},
       .has_biases = true};
  check_experts<Biased>(o, all);
  o.gate = clamped_gate;
  check_experts<Biased, ClampedSwiglu>(o, all);
}

TEST_CASE("experts: a router that is broken makes rows that are no numbers, not wrong ones") {
  const Routing routing{.n_experts = kExperts, .n_used = kUsed, .is_normalized = true};
  const auto count = [](const std::vector<float>& row) {
    return std::count_if(row.begin(), row.end(), [](float x) { return !std::isnan(x); });
  };
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    ExpertWeights weights;
    weights.of(E::router)[5 * kDim + 3] = bad;
    weights.pack_all(false);
    for (const auto scores :
         {RouterScores::softmax, RouterScores::softmax_of_chosen, RouterScores::sigmoid}) {
      Routing other = routing;
      other.scores = scores;
      for (const auto& row : run_tokens(layer_of_experts<Plain>(other), weights, kSome)) {
        CHECK(count(row) == 0);
      }
    }
  }
  for (const float bad : {NAN, INFINITY, -INFINITY, 3e38f}) {
    ExpertWeights weights;
    weights.of(E::choice_bias)[2] = bad;
    weights.pack_all(false);
    Routing other{.n_experts = kExperts, .n_used = kUsed, .n_groups = 4, .n_used_groups = 2};
    for (const auto& row : run_tokens(layer_of_experts<ByChoiceBias>(other), weights, kSome)) {
      CHECK(count(row) == 0);
    }
  }
  // Experts of a token that do not exist, or one of them twice: only its rows.
  const float first = ExpertWeights().of(E::of_token)[7 * kUsed];
  for (const float bad : {-1.0f, float{kExperts}, 1e30f, NAN, first}) {
    ExpertWeights weights;
    weights.of(E::of_token)[7 * kUsed + 1] = bad;
    weights.pack_all(false);
    const auto rows = run_tokens(layer_of_experts<ByToken>(routing), weights, kSome);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CHECK(count(rows[i]) == (kSome[i] == 7 ? 0 : kDim));
    }
  }
}

TEST_CASE("experts: those that no row uses are not read") {
  const Routing routing{.n_experts = kExperts, .n_used = kUsed};
  const ExpertWeights weights;
  const auto expected = run_tokens(layer_of_experts<ByToken>(routing), weights, {7, 2});
  ExpertWeights broken;
  for (std::size_t e = 0; e < kExperts; ++e) {
    bool is_used = false;
    for (const std::size_t token : {7u, 2u}) {
      for (std::size_t i = 0; i < kUsed; ++i) {
        is_used = is_used || broken.of(E::of_token)[token * kUsed + i] == static_cast<float>(e);
      }
    }
    if (is_used) continue;
    for (const E slot : {E::gate, E::up, E::down}) {
      auto& values = broken.of(slot);
      const std::size_t size = values.size() / kExperts;
      std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(e * size), size, NAN);
    }
  }
  broken.pack_all(false);
  CHECK(run_tokens(layer_of_experts<ByToken>(routing), broken, {7, 2}) == expected);
}

TEST_CASE("experts: numbers that do not go together, and what describe() says") {
  const auto error_of = [](Routing routing, Index ffn_dim = kFfn) -> std::string {
    const auto expression =
        embedding<E::table>(Dim<>{kDim}) >> experts<Plain>(routing, Dim<>{ffn_dim}, Dim<>{kDim});
    const Plan plan = make_plan(expression, {.max_rows = 4});
    return plan.error == nullptr ? "" : plan.error;
  };
  CHECK(error_of({.n_experts = 8, .n_used = 2}).empty());
  for (const Routing& wrong :
       {Routing{.n_experts = 0}, Routing{.n_experts = 5000}, Routing{.n_experts = 8, .n_used = 0},
        Routing{.n_experts = 8, .n_used = 9}, Routing{.n_experts = 8, .n_groups = 3},
        Routing{.n_experts = 8, .n_used = 5, .n_groups = 2, .n_used_groups = 1},
        Routing{.n_experts = 8, .n_groups = 2, .n_used_groups = 3}}) {
    CHECK(error_of(wrong).starts_with("experts: "));
  }
  CHECK(error_of({.n_experts = 8, .n_used = 2}, 0) == "experts: their matrices have no rows");
  CHECK_FALSE(error_of({.n_experts = 8, .n_used = 2}, Index{1} << 60).empty());
  CHECK(describe(fuse(layer_of_experts<Biased, ClampedSwiglu>({.n_experts = 12, .n_used = 3}))) ==
        "embedding(0, 32) >> experts(1, 3 of 12, 96, 32, clamped_swiglu)");
  CHECK(describe(sigmoid_rows()) == "sigmoid_rows");
}

TEST_CASE("sigmoid_rows: rows times the sigmoid of a number for each") {
  // The first row of the router as a matrix of one row.
  ExpertWeights weights;
  weights.of(E::router).resize(kDim);
  Weight& w = weights.table[static_cast<std::size_t>(E::router)];
  w.n = 1;
  const auto start = embedding<E::table>(Dim<>{kDim});
  const auto expression =
      start >> fork(linear<E::up>(Dim<>{kFfn}), linear<E::router>(Dim<>{1})) >> sigmoid_rows();
  weights.table[static_cast<std::size_t>(E::up)].n_experts = 1;
  const auto rows = run_tokens(fuse(expression), weights, kSome);
  Rows2 expected;
  for (const std::int32_t token : kSome) {
    const auto dot = [&](E slot, std::size_t row) {
      double sum = 0;
      for (std::size_t j = 0; j < kDim; ++j) {
        sum += double{weights.of(E::table)[static_cast<std::size_t>(token) * kDim + j]} *
               double{weights.of(slot)[row * kDim + j]};
      }
      return sum;
    };
    expected.emplace_back();
    for (std::size_t i = 0; i < kFfn; ++i) {
      expected.back().push_back(dot(E::up, i) * sigmoid_of(dot(E::router, 0)));
    }
  }
  CHECK(distance_of(rows, expected) < 1e-6);
}

}  // namespace experts_test
