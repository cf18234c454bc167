// SPDX-License-Identifier: Apache-2.0
//
// Losses against their definitions in double, gradients against central differences of those.
#include "nibble/train/losses.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "kernels/arrays.hpp"
#include "nibble/train/accumulation.hpp"
#include "nibble/train/top_logits.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace losses_test {

using namespace nibble;
using namespace nibble::train;
using nibble_test::BackwardExecutor, nibble_test::Floats, nibble_test::random_floats;
using nibble_test::kInf, nibble_test::kNan;
using test::contains;

namespace {

using Doubles = std::vector<double>;

Doubles doubles(const Floats& x) { return {x.begin(), x.end()}; }

// Whether `got` is base + scale · gradient of f at x, by central differences with a step h: their
// error is about h² and 1e-16 / h, and floats of the size of 1 round by 2⁻²⁵.
template <class F>
void check_gradient(const Floats& got, double base, double scale, Doubles x, F f) {
  REQUIRE(got.size() == x.size());
  constexpr double kH = 1e-5;
  for (std::size_t i = 0; i < x.size(); ++i) {
    CAPTURE(i);
    const double kept = x[i];
    x[i] = kept + kH;
    const double above = f(x);
    x[i] = kept - kH;
    const double below = f(x);
    x[i] = kept;
    const double want = base + scale * (above - below) / (2 * kH);
    REQUIRE(std::fabs(static_cast<double>(got[i]) - want) < 1e-8 + 2e-7 * (1 + std::fabs(want)));
  }
}

double cosine_loss(const Doubles& s, const Doubles& t, const Doubles& p, const Floats& weights,
                   std::size_t m, std::size_t k, std::size_t n) {
  double loss = 0;
  for (std::size_t r = 0; r < m; ++r) {
    double yy = 0, tt = 0, yt = 0;
    for (std::size_t i = 0; i < n; ++i) {
      double y = p.empty() ? s[r * k + i] : 0;
      for (std::size_t j = 0; !p.empty() && j < k; ++j) y += p[i * k + j] * s[r * k + j];
      yy += y * y;
      tt += t[r * n + i] * t[r * n + i];
      yt += y * t[r * n + i];
    }
    const double cosine = yy > 0 && tt > 0 ? yt / std::sqrt(yy) / std::sqrt(tt) : 0;
    loss += (weights.empty() ? 1.0 : static_cast<double>(weights[r])) * (1 - cosine);
  }
  return loss;
}

double relation(const Doubles& s, const Doubles& t, const std::vector<Index>& offsets,
                std::size_t k, std::size_t n, std::size_t heads, bool causal) {
  const auto log_softmax = [&](const Doubles& x, std::size_t width, std::size_t head, Index i,
                               Index begin, Index end) {
    const std::size_t d = width / heads;
    Doubles out;
    double sum = 0;
    for (Index j = begin; j < end; ++j) {
      double dot = 0;
      for (std::size_t c = head * d; c < (head + 1) * d; ++c) {
        dot +=
            x[static_cast<std::size_t>(i) * width + c] * x[static_cast<std::size_t>(j) * width + c];
      }
      out.push_back(dot / std::sqrt(static_cast<double>(d)));
      sum += std::exp(out.back());
    }
    for (double& v : out) v -= std::log(sum);
    return out;
  };
  double loss = 0;
  for (std::size_t q = 0; q + 1 < offsets.size(); ++q) {
    for (std::size_t h = 0; h < heads; ++h) {
      for (Index i = offsets[q]; i < offsets[q + 1]; ++i) {
        const Index end = causal ? i + 1 : offsets[q + 1];
        const Doubles p = log_softmax(t, n, h, i, offsets[q], end);
        const Doubles g = log_softmax(s, k, h, i, offsets[q], end);
        for (std::size_t j = 0; j < p.size(); ++j) loss += std::exp(p[j]) * (p[j] - g[j]);
      }
    }
  }
  return loss / static_cast<double>(heads);
}

MatrixView<float> view(Floats& x, std::size_t m, std::size_t n) {
  return MatrixView<float>(x.data(), static_cast<Index>(m), static_cast<Index>(n));
}

}  // namespace

TEST_CASE("accumulated gradients are scaled by one over all weights") {
  Accumulation sum;
  CHECK(sum.is_empty());
  CHECK(!sum.scale());
  REQUIRE(sum.add(6, 3));
  REQUIRE(sum.add(2, 5));
  CHECK(!sum.is_empty());
  CHECK(sum.n_batches() == 2);
  CHECK(sum.weight() == 8);
  CHECK(sum.mean_loss() == 1);
  CHECK(*sum.scale() == 0.125);
  for (const double bad : {std::nan(""), static_cast<double>(kInf)}) {
    const auto added = sum.add(bad, 1);
    REQUIRE(!added);
    CHECK(added.error().code == Errc::malformed);
    CHECK(contains(added.error().message, "batch 2"));
  }
  CHECK(sum.mean_loss() == 1);
  sum.reset();
  CHECK(sum.is_empty());
  CHECK(sum.mean_loss() == 0);
}

TEST_CASE("cosine alignment, with and without a projection, and its gradients") {
  for (const bool has_projection : {false, true}) {
    for (const bool has_weights : {false, true}) {
      CAPTURE(has_projection);
      CAPTURE(has_weights);
      const std::size_t m = 5, n = 7, k = has_projection ? 4 : 7;
      Floats s = random_floats(m * k, -1, 1), t = random_floats(m * n, -1, 1, 2);
      Floats p = random_floats(n * k, -1, 1, 3);
      const Floats weights = has_weights ? Floats{1, 0, 2, 0.5f, 1} : Floats{};
      const auto run = [&](Executor& executor, Floats& ds, Floats& dp, double scale) {
        ds.assign(m * k, 0.25f);
        dp.assign(n * k, 0.5f);
        Projection projection;
        if (has_projection) projection = {view(p, n, k), view(dp, n, k)};
        Doubles scratch(static_cast<std::size_t>(
            cosine_alignment_scratch(static_cast<Index>(m), static_cast<Index>(n))));
        return cosine_alignment(executor, view(s, m, k), view(t, m, n), weights, scale,
                                view(ds, m, k), projection, scratch);
      };
      InlineExecutor executor;
      Floats ds, dp;
      const double loss = run(executor, ds, dp, 1.5);
      const Doubles start = has_projection ? doubles(p) : Doubles{}, target = doubles(t);
      CHECK(loss == doctest::Approx(cosine_loss(doubles(s), target, start, weights, m, k, n)));
      check_gradient(ds, 0.25, 1.5, doubles(s), [&](const Doubles& x) {
        return cosine_loss(x, target, start, weights, m, k, n);
      });
      if (has_projection) {
        check_gradient(dp, 0.5, 1.5, start, [&](const Doubles& x) {
          return cosine_loss(doubles(s), target, x, weights, m, k, n);
        });
      }
      BackwardExecutor backward;
      Floats ds2, dp2;
      CHECK(run(backward, ds2, dp2, 1.5) == loss);
      CHECK(ds2 == ds);
      CHECK(dp2 == dp);
      if (has_projection) continue;
      std::fill_n(s.begin(), k, 0.0f);  // rows without a direction
      std::fill_n(t.begin() + n, n, 0.0f);
      const double odd = run(executor, ds, dp, 1);
      CHECK(odd == doctest::Approx(cosine_loss(doubles(s), doubles(t), {}, weights, m, k, n)));
      for (std::size_t i = 0; i < 2 * k; ++i) CHECK(ds[i] == 0.25f);
      // What is not finite is no row without a direction.
      for (const float bad : {kNan, kInf}) {
        for (Floats* const x : {&s, &t}) {
          const float kept = std::exchange((*x)[2 * k + 1], bad);
          CHECK(std::isnan(run(executor, ds, dp, 1)));
          (*x)[2 * k + 1] = kept;
        }
      }
    }
  }
}

TEST_CASE("relations of packed sequences, and their gradient") {
  const std::vector<Index> offsets = {0, 3, 4, 9};  // rows 9 and 10 belong to none
  const std::size_t m = 11, k = 6, n = 12;
  Floats s = random_floats(m * k, -1, 1), t = random_floats(m * n, -1.5f, 1.5f, 2);
  for (const bool causal : {false, true}) {
    for (const Index heads : {1, 2, 3}) {
      CAPTURE(causal);
      CAPTURE(heads);
      const RelationOptions options{heads, causal};
      const auto run = [&](Executor& executor, Floats& ds) {
        ds.assign(m * k, 0.25f);
        Doubles scratch(static_cast<std::size_t>(
            relation_scratch(executor.n_workers(), offsets, static_cast<Index>(k), options)));
        return relation_loss(executor, offsets, view(s, m, k), view(t, m, n), options, 0.75,
                             view(ds, m, k), scratch);
      };
      InlineExecutor executor;
      Floats ds;
      const double loss = run(executor, ds);
      const auto reference = [&](const Doubles& x) {
        return relation(x, doubles(t), offsets, k, n, static_cast<std::size_t>(heads), causal);
      };
      CHECK(loss == doctest::Approx(reference(doubles(s))));
      check_gradient(ds, 0.25, 0.75, doubles(s), reference);
      BackwardExecutor backward;
      Floats ds2;
      CHECK(run(backward, ds2) == loss);
      CHECK(ds2 == ds);
    }
  }
}

TEST_CASE("stored top logits: a file gives back what was stored") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("teacher.gguf");
  for (const Index vocabulary : {Index{11}, Index{70000}}) {
    CAPTURE(vocabulary);
    const auto width = static_cast<std::size_t>(vocabulary);
    auto made = TopLogits::create(4, vocabulary, 2.0);
    REQUIRE(made);
    Floats a = random_floats(3 * width, -4, 4), b = random_floats(width, -4, 4, 2);
    b[5] = -kInf;
    a[7] = a[9] = 9;  // equal: the smaller id is first chosen
    REQUIRE(made->add(view(a, 3, width)));
    REQUIRE(made->add(view(a, 0, width)));
    REQUIRE(made->add(view(b, 1, width)));
    REQUIRE(made->save(path));
    auto loaded = TopLogits::load(path);
    REQUIRE_MESSAGE(loaded, test::why(loaded));
    CHECK(loaded->k() == 4);
    CHECK(loaded->vocabulary() == vocabulary);
    CHECK(loaded->temperature() == 2.0);
    REQUIRE(loaded->n_examples() == 3);
    CHECK(loaded->n_rows(0) == 3);
    CHECK(loaded->n_rows(1) == 0);
    CHECK(loaded->n_rows(2) == 1);
    for (const auto& [example, r] : {std::pair<Index, Index>{0, 0}, {0, 2}, {2, 0}}) {
      const TopRow x = made->row(example, r), y = loaded->row(example, r);
      const float* const logits =
          example == 0 ? a.data() + static_cast<std::size_t>(r) * width : b.data();
      std::vector<std::pair<float, std::size_t>> order;
      double all = 0, rest = 0;
      for (std::size_t j = 0; j < width; ++j) {
        order.push_back({-logits[j], j});
        all += std::exp(static_cast<double>(logits[j]) / 2);
      }
      std::sort(order.begin(), order.end());
      for (std::size_t j = 4; j < width; ++j) {
        rest += std::exp(static_cast<double>(-order[j].first) / 2) / all;
      }
      order.resize(4);
      std::sort(order.begin(), order.end(),
                [](const auto& l, const auto& h) { return l.second < h.second; });
      for (std::size_t i = 0; i < 4; ++i) {
        REQUIRE(x.ids[i] == order[i].second);
        REQUIRE(y.ids[i] == order[i].second);
        REQUIRE(x.logprobs[i] == y.logprobs[i]);
        const double want = static_cast<double>(-order[i].first) / 2 - std::log(all);
        const double error = static_cast<double>(to_f32(y.logprobs[i])) - want;
        REQUIRE(std::fabs(error) < std::fabs(want) / 2000);  // half a step of f16
      }
      CHECK(static_cast<double>(y.rest) == doctest::Approx(rest).epsilon(1e-6));
      CHECK(x.rest == y.rest);
    }
    b[3] = kNan;
    const auto bad = made->add(view(b, 1, width));
    REQUIRE(!bad);
    CHECK(contains(bad.error().message, "row 0"));
    a[width + 3] = kInf;  // in the second row: the first is gone, too
    CHECK(contains(made->add(view(a, 2, width)).error().message, "row 1"));
    CHECK(made->n_examples() == 3);
    a[width + 3] = 0;
    REQUIRE(made->add(view(a, 2, width)));
    CHECK(made->n_rows(3) == 2);
    CHECK(made->row(3, 0).rest == made->row(0, 0).rest);
    CHECK(made->row(3, 0).ids[0] == made->row(0, 0).ids[0]);
    CHECK(!made->add(view(b, 1, width - 1)));
  }
  CHECK(!TopLogits::create(0, 5));
  CHECK(!TopLogits::create(6, 5));
  CHECK(!TopLogits::create(2, 5, 0));
}

TEST_CASE("a damaged file of top logits is refused or holds distributions") {
  const test::TemporaryFolder folder;
  const std::string path = folder.path("teacher.gguf");
  auto made = TopLogits::create(3, 20);
  REQUIRE(made);
  Floats a = random_floats(100, -2, 2);
  REQUIRE(made->add(view(a, 5, 20)));
  REQUIRE(made->save(path));
  const auto good = test::read_file(path);
  int n_refused = 0;
  for (std::size_t at = 0; at < good.size(); ++at) {
    auto bytes = good;
    bytes[at] ^= std::byte{0x80};
    folder.write("teacher.gguf", bytes);
    auto loaded = TopLogits::load(path);
    n_refused += loaded ? 0 : 1;
    for (Index e = 0; loaded && e < loaded->n_examples(); ++e) {
      for (Index r = 0; r < loaded->n_rows(e); ++r) {
        for (const std::uint32_t id : loaded->row(e, r).ids) REQUIRE(id < 20);
      }
    }
  }
  CHECK(n_refused > 300);
  folder.write("teacher.gguf", std::span(good).first(good.size() - 32));
  CHECK(!TopLogits::load(path));
}

TEST_CASE("the loss against stored logits is the KL divergence with one outcome for the rest") {
  for (const double temperature : {1.0, 2.5}) {
    for (const Index k : {1, 4, 9}) {
      CAPTURE(temperature);
      CAPTURE(k);
      const std::size_t n = 9;
      auto made = TopLogits::create(k, 9, temperature);
      REQUIRE(made);
      Floats teacher = random_floats(n, -3, 3), z = random_floats(n, -3, 3, 2);
      REQUIRE(made->add(view(teacher, 1, n)));
      const TopRow row = made->row(0, 0);
      const auto reference = [&](const Doubles& x) {
        double all = 0, p_all = static_cast<double>(row.rest), q_rest = 0, loss = 0;
        for (const double v : x) all += std::exp(v / temperature);
        for (const f16 l : row.logprobs) p_all += std::exp(static_cast<double>(to_f32(l)));
        for (std::size_t j = 0; j < n; ++j) {
          const double q = std::exp(x[j] / temperature) / all;
          bool is_top = false;
          for (std::size_t i = 0; i < row.ids.size(); ++i) {
            if (row.ids[i] != j) continue;
            is_top = true;
            const double p = std::exp(static_cast<double>(to_f32(row.logprobs[i]))) / p_all;
            loss += p * std::log(p / q);
          }
          if (!is_top) q_rest += q;
        }
        const double p_rest = static_cast<double>(row.rest) / p_all;
        return p_rest > 0 ? loss + p_rest * std::log(p_rest / q_rest) : loss;
      };
      Floats gradient(n, 0.25f);
      const double loss = top_logits_loss(row, temperature, z.data(), 9, 3.0, gradient.data());
      CHECK(loss == doctest::Approx(reference(doubles(z))).epsilon(1e-10));
      check_gradient(gradient, 0.25, 3.0, doubles(z), reference);

      // The teacher itself has no loss, but for the rounding of what is stored.
      Floats none(n);
      CHECK(std::fabs(top_logits_loss(row, temperature, teacher.data(), 9, 1.0, none.data())) <
            1e-5);
      // Far away everything stays finite.
      Floats far(n, -2000.0f);
      far[row.ids[0]] = 2000;
      CHECK(std::isfinite(top_logits_loss(row, temperature, far.data(), 9, 1.0, none.data())));
      for (const float x : none) CHECK(std::isfinite(x));
    }
  }
}

TEST_CASE("losses of a batch: rows that count, however they are stored and computed") {
  const MemorySource source({{{1, 2, 3, 4}, {0, 0, 1, 0.5f}}, {{5, 6, 7}, {0, 1, 0}}});
  BatchOptions options;
  options.context = options.max_rows = 8;
  options.vocabulary = 10;
  options.shuffles = false;
  auto batches = Batches::create(source, options);
  REQUIRE(batches);
  Batch batch;
  REQUIRE(batches->next(batch));
  REQUIRE(batch.n_rows() == 5);  // of which rows 1, 2 and 3 count: 1, 0.5 and 1
  REQUIRE(batch.n_counted == 3);

  Floats teacher = random_floats(50, -2, 2), student = random_floats(50, -2, 2, 2);
  auto whole = TopLogits::create(3, 10), counted = TopLogits::create(3, 10);
  REQUIRE(whole->add(view(teacher, 3, 10)));
  REQUIRE(whole->add(MatrixView<const float>(teacher.data() + 30, 2, 10)));
  REQUIRE(counted->add(MatrixView<const float>(teacher.data() + 10, 2, 10)));
  REQUIRE(counted->add(MatrixView<const float>(teacher.data() + 30, 1, 10)));

  Floats want(50);
  double want_loss = 0;
  const double weights[] = {0, 1, 0.5, 1, 0};
  for (const Index r : {1, 2, 3}) {
    const TopRow row = whole->row(r < 3 ? 0 : 1, r < 3 ? r : 0);
    const auto at = static_cast<std::size_t>(r);
    want_loss += weights[at] * top_logits_loss(row, 1, student.data() + 10 * r, 10, 2 * weights[at],
                                               want.data() + 10 * r);
  }
  InlineExecutor inline_executor;
  BackwardExecutor backward;
  Doubles losses(5);
  for (const TopLogits* stored : {&*whole, &*counted}) {
    for (Executor* executor :
         {static_cast<Executor*>(&inline_executor), static_cast<Executor*>(&backward)}) {
      Floats all(50), some(30);
      const auto loss = top_logits_loss(*executor, *stored, batch, view(student, 5, 10), 2,
                                        view(all, 5, 10), losses);
      REQUIRE(loss);
      CHECK(*loss == want_loss);
      CHECK(all == want);
      const auto part = top_logits_loss(*executor, *stored, batch,
                                        MatrixView<const float>(student.data() + 10, 3, 10), 2,
                                        view(some, 3, 10), losses);
      REQUIRE(part);
      CHECK(*part == want_loss);
      CHECK(std::equal(some.begin(), some.end(), want.begin() + 10));
    }
  }
  Floats gradient(50);
  CHECK(!top_logits_loss(backward, *whole, batch, view(student, 4, 10), 2, view(gradient, 4, 10),
                         losses));
  CHECK(!top_logits_loss(backward, *whole, batch, view(student, 5, 9), 2, view(gradient, 5, 9),
                         losses));
  auto fewer = TopLogits::create(3, 10);
  REQUIRE(fewer->add(view(teacher, 3, 10)));
  const auto missing = top_logits_loss(backward, *fewer, batch, view(student, 5, 10), 2,
                                       view(gradient, 5, 10), losses);
  REQUIRE(!missing);
  CHECK(contains(missing.error().message, "example 1"));
}

}  // namespace losses_test
