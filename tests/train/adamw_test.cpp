// SPDX-License-Identifier: Apache-2.0
//
// AdamW and SGD against torch.optim (goldens of double precision) and against their formulas in
// double; masks, clipping, gradients that are not finite; 8-bit moments.
#include "nibble/train/adamw.hpp"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/each_target.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/train/sgd.hpp"
#include "optimizer_goldens.hpp"

namespace adamw_test {

using namespace nibble;
using namespace nibble_test;
using train::AdamW, train::AdamWOptions, train::Parameter, train::Sgd, train::SgdOptions;

namespace {

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}
bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Some parameters with gradients.
struct Model {
  std::vector<Floats> values, gradients;
  std::vector<Parameter> parameters;

  void add(const std::string& name, Floats start, bool decays = true) {
    gradients.emplace_back(start.size());
    values.push_back(std::move(start));
    parameters.push_back({name, {}, {}, decays});
  }
  std::vector<Parameter>& list() {
    for (std::size_t i = 0; i < values.size(); ++i) {
      parameters[i].values = values[i];
      parameters[i].gradient = gradients[i];
    }
    return parameters;
  }
  Floats all() const {
    Floats out;
    for (const Floats& x : values) out.insert(out.end(), x.begin(), x.end());
    return out;
  }
  void random_gradients(unsigned seed, float size = 1) {
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      const Floats g =
          random_floats(gradients[i].size(), -size, size, seed + static_cast<unsigned>(100 * i));
      std::copy(g.begin(), g.end(), gradients[i].begin());  // they stay where they are
    }
  }
};

// The start and the gradients of make_goldens.py.
Model golden_model() {
  Floats start(test::kGoldenValues);
  for (int i = 0; i < test::kGoldenValues; ++i) {
    start[static_cast<std::size_t>(i)] = static_cast<float>(i % 7 - 3) / 4;
  }
  Model model;
  model.add("weight", start);
  model.add("bias", start, false);
  return model;
}
void golden_gradients(Model& model, int t) {
  for (int i = 0; i < test::kGoldenValues; ++i) {
    const auto at = static_cast<std::size_t>(i);
    model.gradients[0][at] = static_cast<float>((t * 7 + i * 5) % 11 - 5) / 8;
    model.gradients[1][at] = model.gradients[0][at] / 2;
  }
}
template <class Optimizer, class Options>
double golden_error(const Options& options, double rate, const double* golden) {
  Model model = golden_model();
  auto optimizer = Optimizer::create(model.list(), options);
  REQUIRE(optimizer);
  InlineExecutor executor;
  for (int t = 0; t < test::kGoldenSteps; ++t) {
    golden_gradients(model, t);
    REQUIRE(optimizer->step(executor, rate));
  }
  double worst = 0;
  const Floats got = model.all();
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - golden[i]));
  }
  return worst;
}

// A step of AdamW in double: the update is at most (1 − β₁) / √(1 − β₂) times the rate or so, and
// each of its about ten operations rounds by 2⁻²⁴.
struct Reference {
  std::vector<double> p, m, v;
  explicit Reference(const Floats& start)
      : p(start.begin(), start.end()), m(p.size()), v(p.size()) {}
  void step(const AdamWOptions& o, int t, double rate, const Floats& g, double scale = 1) {
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double x = static_cast<double>(g[i]) * scale;
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * x;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * x * x;
      const double mean = m[i] / (1 - std::pow(o.beta1, t));
      const double variance = v[i] / (1 - std::pow(o.beta2, t));
      p[i] -= rate * o.weight_decay * p[i];
      p[i] -= rate * mean / (std::sqrt(variance) + o.epsilon);
    }
  }
};

}  // namespace

TEST_CASE("AdamW and SGD do what torch.optim does") {
  for_each_target([](simd::Target) {
    // Values below 1 after 6 steps: a few roundings of 2⁻²⁵ each; updates are about the rate.
    CHECK(golden_error<AdamW>(AdamWOptions{}, 0.01, test::kAdamW) < 4e-7);
    AdamWOptions clipped;
    clipped.beta1 = 0.8;
    clipped.beta2 = 0.95;
    clipped.epsilon = 1e-3;
    clipped.weight_decay = 0.1;
    clipped.clip_norm = 0.75;
    CHECK(golden_error<AdamW>(clipped, 0.05, test::kAdamWClipped) < 4e-7);
    SgdOptions sgd;
    sgd.weight_decay = 0.05;
    CHECK(golden_error<Sgd>(sgd, 0.1, test::kSgd) < 4e-7);
    sgd.momentum = 0.9;
    CHECK(golden_error<Sgd>(sgd, 0.1, test::kMomentum) < 8e-7);
    sgd.nesterov = true;
    CHECK(golden_error<Sgd>(sgd, 0.1, test::kNesterov) < 8e-7);
  });
}

TEST_CASE("a step of AdamW of every length and address") {
  for_each_target([](simd::Target) {
    for_each_length([](std::size_t n, std::size_t offset) {
      const Floats start = random_floats(n, -2, 2), g = random_floats(n, -1, 1, 2);
      const Floats m0 = random_floats(n, -1, 1, 3), v0 = random_floats(n, 0, 1, 4);
      const kernels::AdamWStep s{0.5f, 0.1f, 0.97f, 0.03f, 0.99f, 0.02f, 1.5f, 1e-6f};
      Guarded p(start, offset), m(m0, 1), v(v0, 2 - offset), gradient(g, offset);
      simd::kernel<kernels::AdamW>()(s, p.data(), gradient.data(), m.data(), v.data(),
                                     static_cast<Index>(n));
      Exact want_p, want_m, want_v;
      for (std::size_t i = 0; i < n; ++i) {
        const long double x = 0.5L * g[i];
        want_m.push_back(m0[i] + static_cast<long double>(s.first_rest) * (x - m0[i]));
        want_v.push_back(static_cast<long double>(s.second_kept) * v0[i] +
                         static_cast<long double>(s.second_rest) * x * x);
        want_p.push_back(static_cast<long double>(s.keep) * start[i] -
                         s.rate * want_m[i] / (s.second_scale * std::sqrt(want_v[i]) + s.epsilon));
      }
      REQUIRE(worst(m.values(), want_m, Exact(n, 4 * kU)) <= 1);
      REQUIRE(worst(v.values(), want_v, Exact(n, 4 * kU)) <= 1);
      // |p| < 2.1; the update with its rounding errors is below 1 and has small weight.
      REQUIRE(worst(p.values(), want_p, Exact(n, 6 * kU)) <= 1);
      REQUIRE((p.guards_intact() && m.guards_intact() && v.guards_intact()));

      const kernels::MomentumStep sgd{0.5f, 0.1f, 0.9f, 0.2f, true};
      Guarded q(start, offset), moment(m0, 1);
      simd::kernel<kernels::Momentum>()(sgd, q.data(), gradient.data(), moment.data(),
                                        static_cast<Index>(n));
      for (std::size_t i = 0; i < n; ++i) {
        const long double x = 0.5L * g[i] + static_cast<long double>(0.1f) * start[i];
        want_m[i] = static_cast<long double>(0.9f) * m0[i] + x;
        want_p[i] = start[i] - static_cast<long double>(0.2f) *
                                   (x + static_cast<long double>(0.9f) * want_m[i]);
      }
      REQUIRE(worst(moment.values(), want_m, Exact(n, 4 * kU)) <= 1);
      REQUIRE(worst(q.values(), want_p, Exact(n, 8 * kU)) <= 1);
      REQUIRE((q.guards_intact() && moment.guards_intact()));

      const double sum = simd::kernel<kernels::SquareSum>()(gradient.data(), static_cast<Index>(n));
      double want = 0;
      for (const float x : g) want += static_cast<double>(x) * static_cast<double>(x);
      REQUIRE(std::fabs(sum - want) <= 1e-14 * (want + 1e-300));
    });
  });
}

TEST_CASE("many steps of AdamW stay with those in double, for any number of threads") {
  AdamWOptions options;
  options.clip_norm = 40;  // of some steps
  const std::size_t n = 2 * train::Parameters::kChunk + 301;
  const auto run = [&](Executor& executor, bool compare) {
    Model model;
    model.add("a", random_floats(n, -1, 1));
    model.add("b", random_floats(77, -1, 1, 2));
    Reference a(model.values[0]), b(model.values[1]);
    auto optimizer = AdamW::create(model.list(), options);
    REQUIRE(optimizer);
    CHECK(optimizer->moment_bytes() == 8 * (n + 77));
    for (int t = 1; t <= 20; ++t) {
      model.random_gradients(static_cast<unsigned>(t), 0.1f * static_cast<float>(t));
      const double rate = 1e-3 * t;
      const long long before = allocation_count();
      const auto report = optimizer->step(executor, rate, 0.5);
      CHECK(allocation_count() == before);
      REQUIRE(report);
      double sum = 0;
      for (const Floats& g : model.gradients) {
        for (const float x : g) sum += 0.25 * static_cast<double>(x) * static_cast<double>(x);
      }
      CHECK(report->gradient_norm == doctest::Approx(std::sqrt(sum)).epsilon(1e-12));
      const double clip = std::min(1.0, 40 / (std::sqrt(sum) + 1e-6));
      CHECK(report->clip_factor == doctest::Approx(clip).epsilon(1e-12));
      CHECK((clip < 1) == (t > 7));
      a.step(options, t, rate, model.gradients[0], 0.5 * clip);
      b.step(options, t, rate, model.gradients[1], 0.5 * clip);
    }
    if (compare) {
      double worst = 0;
      for (std::size_t i = 0; i < n; ++i) {
        worst = std::max(worst, std::fabs(static_cast<double>(model.values[0][i]) - a.p[i]));
      }
      for (std::size_t i = 0; i < 77; ++i) {
        worst = std::max(worst, std::fabs(static_cast<double>(model.values[1][i]) - b.p[i]));
      }
      CHECK(worst < 2e-6);  // 20 roundings of values below 1.3, at random, and of updates
    }
    return model.all();
  };
  InlineExecutor one;
  const Floats alone = run(one, true);
  BackwardExecutor backward;
  CHECK(same_bits(run(backward, false), alone));
  auto pool = ThreadPool::create({2});
  REQUIRE(pool);
  CHECK(same_bits(run(**pool, false), alone));
}

TEST_CASE("pruned weights, their gradients and moments stay zero; others do not change by it") {
  for (const bool is_small : {false, true}) {
    CAPTURE(is_small);
    const Index rows = 300, columns = 70;  // of two words, and more than one chunk
    std::vector<std::uint64_t> mask(static_cast<std::size_t>(rows) * 2);
    const auto stays = [](Index i, Index j) { return (i * 7 + j * j) % 3 != 0; };
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        if (stays(i, j))
          mask[static_cast<std::size_t>(2 * i + j / 64)] |= std::uint64_t{1} << j % 64;
      }
    }
    Model model;
    model.add("w", random_floats(static_cast<std::size_t>(rows * columns), -1, 1));
    model.list()[0].mask = mask;
    model.list()[0].columns = columns;
    AdamWOptions options;
    if (is_small) options.moments = train::Moments::bits8;
    auto optimizer = AdamW::create(model.list(), options);
    REQUIRE(optimizer);
    auto sgd = Sgd::create(model.list(), {0.9, 0.1, 0, false});
    REQUIRE(sgd);
    InlineExecutor executor;
    for (unsigned t = 1; t <= 3; ++t) {
      model.random_gradients(t);
      REQUIRE(optimizer->step(executor, 0.01));
      model.random_gradients(t + 50);
      model.gradients[0][0] = kNan;  // (0, 0) is pruned
      REQUIRE(sgd->step(executor, 0.01));
    }
    const auto state = optimizer->state();
    const std::size_t size = is_small ? 1 : sizeof(float);
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        const auto at = static_cast<std::size_t>(i * columns + j);
        const std::byte zero[4] = {};
        const bool m = std::memcmp(state[0].bytes.data() + at * size, zero, size) == 0;
        const bool v = std::memcmp(state[1].bytes.data() + at * size, zero, size) == 0;
        const bool s = std::memcmp(sgd->state()[0].bytes.data() + at * 4, zero, 4) == 0;
        REQUIRE((model.values[0][at] == 0) == !stays(i, j));
        REQUIRE((model.gradients[0][at] == 0) == !stays(i, j));
        REQUIRE(s == !stays(i, j));
        REQUIRE(v == !stays(i, j));
        if (!stays(i, j)) REQUIRE(m);
      }
    }
  }
}

TEST_CASE("rates of parameters: a factor, and none") {
  Model model;
  model.add("once", Floats(5, 1.0f));
  model.add("half", Floats(5, 1.0f));
  model.add("kept", Floats(5, 1.0f));
  model.list()[1].rate_factor = 0.5f;
  model.list()[2].rate_factor = 0;
  auto optimizer = Sgd::create(model.list());
  REQUIRE(optimizer);
  for (Floats& g : model.gradients) g.assign(5, 0.25f);
  InlineExecutor executor;
  REQUIRE(optimizer->step(executor, 0.5));
  CHECK(model.values[0] == Floats(5, 0.875f));
  CHECK(model.values[1] == Floats(5, 0.9375f));
  CHECK(model.values[2] == Floats(5, 1.0f));
}

TEST_CASE("a gradient that is not finite stops the step and changes nothing") {
  for (const float bad : {kNan, kInf, -kInf}) {
    Model model;
    model.add("first", random_floats(300, -1, 1));
    model.add("second", random_floats(20000, -1, 1));
    auto optimizer = AdamW::create(model.list());
    REQUIRE(optimizer);
    InlineExecutor executor;
    model.random_gradients(1);
    REQUIRE(optimizer->step(executor, 0.01));
    const Floats before = model.all();
    model.gradients[1][19999] = bad;
    const auto report = optimizer->step(executor, 0.01);
    REQUIRE(!report);
    CHECK(contains(report.error().message, "'second'"));
    CHECK(contains(report.error().message, "value 19999"));
    CHECK(same_bits(model.all(), before));
    CHECK(optimizer->n_steps() == 1);
  }
}

TEST_CASE("gradients whose squares are no floats stop the step, unless they are clipped") {
  for (const auto moments : {train::Moments::f32, train::Moments::bits8}) {
    for (const float large : {kFloatMax, 2e19f}) {
      Model model;
      model.add("w", random_floats(300, -1, 1));
      AdamWOptions options;
      options.moments = moments;
      auto optimizer = AdamW::create(model.list(), options);
      options.clip_norm = 1;
      auto clipping = AdamW::create(model.list(), options);
      REQUIRE((optimizer && clipping));
      InlineExecutor executor;
      model.random_gradients(1);
      model.gradients[0][7] = large;
      const Floats before = model.all();
      const auto report = optimizer->step(executor, 0.01);
      REQUIRE(!report);
      CHECK(contains(report.error().message, "too large"));
      CHECK(same_bits(model.all(), before));
      CHECK(optimizer->n_steps() == 0);

      const auto clipped = clipping->step(executor, 0.01);  // the sum of squares is in double
      REQUIRE(clipped);
      CHECK(clipped->gradient_norm == doctest::Approx(static_cast<double>(large)).epsilon(1e-6));
      for (int i = 0; i < 3; ++i) REQUIRE(clipping->step(executor, 0.01));
      for (const float x : model.values[0]) REQUIRE(std::isfinite(x));
    }
  }
}

TEST_CASE("wrong parameters, options and rates are errors that name them") {
  Floats x(10), g(10), y(10);
  const auto fails = [&](std::vector<Parameter> list, const char* why) {
    auto made = AdamW::create(list);
    REQUIRE(!made);
    CHECK_MESSAGE(contains(made.error().message, why), made.error().message);
    auto sgd = Sgd::create(list);
    REQUIRE(!sgd);
  };
  std::uint64_t words[2] = {};
  const std::span<float> all(x);
  fails({}, "no parameters");
  fails({{"", x, g}}, "no name");
  fails({{"x", {}, {}}}, "'x' is empty");
  fails({{"x", x, all.first(9)}}, "10 values, but 9");
  fails({{"x", x, g}, {"x", y, g}}, "twice");
  const std::span<float> slopes(g);
  fails({{"x", all.first(6), slopes.first(6)}, {"y", all.subspan(5), {y.data(), 5}}},
        "'x' and 'y' share values or gradients");
  fails({{"x", all.first(6), slopes.first(6)}, {"y", {y.data(), 5}, slopes.subspan(5)}},
        "'x' and 'y' share values or gradients");
  fails({{"x", all.first(6), all.subspan(4)}}, "'x' has its gradient where its values are");
  fails({{"x", x, g, true, -1}}, "factor");
  fails({{"x", x, g, true, kNan}}, "factor");
  fails({{"x", x, g, true, 1, 3}}, "10 values are no rows of 3");
  fails({{"x", x, g, true, 1, -5}}, "rows of -5");
  fails({{"x", x, g, true, 1, 0, words}}, "no columns");
  fails({{"x", x, g, true, 1, 10, words}}, "mask of 2 words instead of 1");

  const auto refuses = [&](const AdamWOptions& options, const char* name) {
    auto made = AdamW::create({{"x", x, g}}, options);
    REQUIRE(!made);
    CHECK(contains(made.error().message, name));
  };
  refuses({1.0}, "beta1");
  refuses({0.9, -0.1}, "beta2");
  refuses({0.9, 0.9, 0}, "epsilon");
  refuses({0.9, 0.9, 1e-50}, "epsilon");  // 0 in f32: 0 / 0 where there is no gradient
  refuses({0.9, 0.9, 1e-8, std::nan("")}, "weight_decay");
  refuses({0.9, 0.9, 1e-8, 0, -1}, "clip_norm");
  CHECK(!Sgd::create({{"x", x, g}}, {1.0, 0, 0, false}));
  CHECK(!Sgd::create({{"x", x, g}}, {0, -1, 0, false}));
  CHECK(!Sgd::create({{"x", x, g}}, {0, 0, std::nan(""), false}));

  auto made = AdamW::create({{"x", x, g}});
  REQUIRE(made);
  InlineExecutor executor;
  CHECK(!made->step(executor, std::nan("")));
  CHECK(!made->step(executor, -1e-3));
  CHECK(!made->step(executor, 1e-3, std::nan("")));
  CHECK(made->n_steps() == 0);
}

}  // namespace adamw_test
