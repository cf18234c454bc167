// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/loss.hpp"

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/differences.hpp"
#include "kernels/each_target.hpp"

namespace loss_test {

using namespace nibble;
using namespace nibble_test;

namespace {

// Softmax and log-softmax of x / temperature, in double.
struct Distribution {
  Doubles p, log_p;
  explicit Distribution(const Doubles& x, double temperature = 1) {
    double max = x[0], sum = 0;
    for (const double v : x) max = std::fmax(max, v);
    for (const double v : x) sum += std::exp((v - max) / temperature);
    for (const double v : x) {
      log_p.push_back((v - max) / temperature - std::log(sum));
      p.push_back(std::exp(log_p.back()));
    }
  }
};

struct Task {
  Doubles teacher;
  Index target = 0;
  double hard = 1, soft = 0, temperature = 1;
};

// hard * cross-entropy + soft * T^2 * KL(teacher || student).
double loss_of(const Doubles& x, const Task& t) {
  double loss = 0;
  if (t.target >= 0) {
    loss -= t.hard * Distribution(x).log_p[static_cast<std::size_t>(t.target)];
  }
  if (t.soft == 0) return loss;
  const Distribution q(x, t.temperature), p(t.teacher, t.temperature);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (p.p[i] == 0) continue;
    loss += t.soft * t.temperature * t.temperature * p.p[i] * (p.log_p[i] - q.log_p[i]);
  }
  return loss;
}

// The gradient, and the allowed errors: each softmax has those of kernels/softmax.hpp.
struct Expected {
  Doubles gradient, allowed;
};
Expected gradient_of(const Doubles& x, const Task& t) {
  const Distribution own(x), q(x, t.temperature), p(t.soft == 0 ? x : t.teacher, t.temperature);
  Expected e;
  const auto error_of = [](const Distribution& d, std::size_t i) {
    // 40 u of the sum, and of a term; a term that is no normal number may be 0.
    const double away = d.p[i] == 0 ? 0 : std::fabs(d.log_p[i]);
    return d.p[i] * (60 + 4 * away) * 0x1p-24 + 1e-36;
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    const bool is_target = static_cast<Index>(i) == t.target;
    const double hard = t.target >= 0 ? t.hard : 0, soft = t.soft * t.temperature;
    e.gradient.push_back(hard * (own.p[i] - is_target) + soft * (q.p[i] - p.p[i]));
    e.allowed.push_back(std::fabs(hard) * error_of(own, i) +
                        soft * (error_of(q, i) + error_of(p, i)) +
                        (is_target ? 2 * 0x1p-24 * std::fabs(hard) : 0.0));
  }
  return e;
}

int count_faults(const Floats& got, const Expected& e) {
  int faults = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - e.gradient[i]) <= e.allowed[i])) ++faults;
  }
  return faults;
}

Doubles doubles(const Floats& x) { return {x.begin(), x.end()}; }

std::vector<std::size_t> lengths() {
  std::vector<std::size_t> n = {63, 64, 65, 1000, 1025, 32003};
  for (std::size_t i = 1; i <= 49; ++i) n.push_back(i);
  return n;
}

}  // namespace

TEST_CASE("the formulas of the gradients of losses are those of central differences") {
  const Doubles x = doubles(random_floats(19, -3, 3)),
                teacher = doubles(random_floats(19, -3, 3, 2));
  for (const Task& t : {Task{{}, 4, 1.7, 0, 1}, Task{teacher, 4, 0.3, 0.7, 2.5},
                        Task{teacher, -1, 0.3, 0.7, 0.5}, Task{teacher, 18, 0, 1, 1}}) {
    const Expected e = gradient_of(x, t);
    const auto loss = [&](const Doubles& v) { return loss_of(v, t); };
    CHECK(worst_difference(loss, x, e.gradient) < 1e-6);
    Doubles wrong = e.gradient;
    for (double& v : wrong) v *= 1.01;
    CHECK(worst_difference(loss, x, wrong) > 1e-6);
  }
}

TEST_CASE("cross-entropy and its gradient") {
  for_each_target([](simd::Target) {
    const auto kernel = simd::kernel<kernels::CrossEntropyBack>();
    for (const std::size_t n : lengths()) {
      for (const float spread : {0.01f, 5.0f, 80.0f}) {
        CAPTURE(n);
        const Floats logits = random_floats(n, -spread, spread + 3, static_cast<unsigned>(n));
        for (const Index target :
             {Index{0}, static_cast<Index>(n) / 2, static_cast<Index>(n) - 1}) {
          Guarded x(logits, n % 3);
          const double loss = kernel(x.data(), static_cast<Index>(n), target, 0.25f);
          const Task task{{}, target, 0.25, 0, 1};
          const double expected = loss_of(doubles(logits), task) / 0.25;
          CHECK(std::fabs(loss - expected) <= 1e-5);
          const Expected e = gradient_of(doubles(logits), task);
          CHECK(count_faults(x.values(), e) == 0);
          CHECK(x.guards_intact());
          Floats wrong = x.values();
          wrong[static_cast<std::size_t>(target)] *= 1.01f;
          const double of_target = e.gradient[static_cast<std::size_t>(target)];
          if (std::fabs(of_target) > 1e-3) CHECK(count_faults(wrong, e) == 1);
        }
      }
    }
    // A token that is certain, a masked one, a diverged row.
    Floats x = {100, -200, -kInf, 0};
    CHECK(kernel(x.data(), 4, 0, 1.0f) == 0.0);
    for (const float v : x) CHECK(std::fabs(v) < 1e-37f);
    // The difference at the target is in double: floats near 1 would lose three of its digits.
    x = {10, 0};
    kernel(x.data(), 2, 0, 1.0f);
    CHECK(x[0] == doctest::Approx(-1 / (1 + std::exp(10.0))).epsilon(4e-6));
    CHECK(x[1] == doctest::Approx(1 / (1 + std::exp(10.0))).epsilon(4e-6));
    x = {1, 2, kNan, 0};
    CHECK(std::isnan(kernel(x.data(), 4, 0, 1.0f)));
    CHECK(std::isnan(x[1]));
  });
}

TEST_CASE("distillation and its gradient") {
  for_each_target([](simd::Target) {
    const auto kernel = simd::kernel<kernels::DistillBack>();
    for (const std::size_t n : lengths()) {
      for (const double temperature : {1.0, 0.5, 2.0, 8.0}) {
        CAPTURE(n);
        const Floats logits = random_floats(n, -6, 9, 3);
        Floats teacher = random_floats(n, -7, 8, 4);
        if (n > 5) teacher[3] = -kInf;
        const Index target = static_cast<Index>(n % 7) - 1;
        if (target >= static_cast<Index>(n)) continue;
        Guarded x(logits, n % 3), t(teacher, (n + 1) % 3);
        kernels::DistillBack::Args args;
        args.teacher = t.data();
        args.n = static_cast<Index>(n);
        args.target = target;
        args.hard = 0.3f;
        args.soft = 1.4f;
        args.temperature = static_cast<float>(temperature);
        const kernels::DistillLoss loss = kernel(args, x.data());
        const Doubles of_teacher = doubles(teacher);
        const Expected e = gradient_of(
            doubles(logits), {of_teacher, target, double{0.3f}, double{1.4f}, temperature});
        CHECK(count_faults(x.values(), e) == 0);
        CHECK(x.guards_intact());
        const double divergence = loss_of(doubles(logits), {of_teacher, -1, 0, 1, temperature}) /
                                  (temperature * temperature);
        CHECK(std::fabs(loss.divergence - divergence) <= 2e-6 * (1 + 15 / temperature));
        const double entropy = target < 0 ? 0.0 : loss_of(doubles(logits), {{}, target, 1, 0, 1});
        CHECK(std::fabs(loss.cross_entropy - entropy) <= 1e-5);
        Floats wrong = x.values();
        for (float& v : wrong) v *= 1.01f;
        if (n > 1) CHECK(count_faults(wrong, e) > 0);
      }
    }
  });
}

TEST_CASE("losses of matrices: rows without a target, weights, threads") {
  constexpr Index kM = 21, kN = 3001, kStride = 3005;
  const Floats logits = random_floats(kM * kStride, -4, 4), teacher = random_floats(kM * kN, -4, 4);
  std::vector<std::int32_t> targets;
  Floats weights;
  for (Index i = 0; i < kM; ++i) {
    targets.push_back(i % 4 == 3 ? -100 : static_cast<std::int32_t>(i * 131));
    weights.push_back(i == 5 ? 0.0f : 0.1f * static_cast<float>(i + 1));
  }
  const auto row_of = [&](const Floats& v, Index i, Index stride) {
    return Floats(v.begin() + i * stride, v.begin() + i * stride + kN);
  };
  const MatrixView<const float> teacher_view(teacher.data(), kM, kN);
  BackwardExecutor executor;
  for (const bool distills : {false, true}) {
    Floats x = logits;
    std::vector<double> losses(kM, -1.0);
    const MatrixView<float> view(x.data(), {kM, kN}, {kStride, 1});
    if (distills) {
      ops::distill_back(executor, view, teacher_view, targets, weights, {0.25f, 2.0f}, losses);
    } else {
      std::vector<double> only(kM, -1.0);
      ops::cross_entropy(executor, view, targets, only);
      ops::cross_entropy_back(executor, view, targets, weights, losses);
      CHECK(only == losses);
    }
    for (Index i = 0; i < kM; ++i) {
      CAPTURE(i);
      const auto at = static_cast<std::size_t>(i);
      const double weight = weights[at];
      Task task{doubles(row_of(teacher, i, kN)), targets[at], 1, 0, 1};
      if (distills) task = {task.teacher, task.target, 0.25, 0.75, 2};
      const Doubles row = doubles(row_of(logits, i, kStride));
      CHECK(std::fabs(losses[at] - loss_of(row, task)) <= 5e-5);
      task.hard *= weight;
      task.soft *= weight;
      CHECK(count_faults(row_of(x, i, kStride), gradient_of(row, task)) == 0);
      for (Index j = kN; j < kStride; ++j) {
        CHECK(x[static_cast<std::size_t>(i * kStride + j)] ==
              logits[static_cast<std::size_t>(i * kStride + j)]);
      }
    }
  }
  CHECK(executor.n_tasks_run > 0);
}

}  // namespace loss_test
