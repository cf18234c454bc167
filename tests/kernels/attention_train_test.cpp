// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/attention_train.hpp"

#include <memory>

#include "doctest/doctest.h"
#include "kernels/arrays.hpp"
#include "kernels/differences.hpp"
#include "kernels/each_target.hpp"

namespace attention_train_test {

using namespace nibble;
using namespace nibble_test;

namespace {

constexpr double kUnit = 0x1p-24;

struct Batch {
  ops::TrainAttentionShape shape;
  std::vector<Index> starts;
  Floats slopes, sinks;
  Floats q, k, v, dout;

  Index m() const { return starts.back(); }
  Index q_width() const { return shape.n_heads * shape.head_dim; }
  Index k_width() const { return shape.n_kv_heads * shape.head_dim; }
  Index v_width() const { return shape.n_kv_heads * shape.value_dim; }
  Index out_width() const { return shape.n_heads * shape.value_dim; }
};

Batch make_batch(ops::TrainAttentionShape shape, const std::vector<Index>& lengths, bool alibi,
                 bool sinks, float spread = 1.5f) {
  Batch b;
  b.starts = {0};
  for (const Index n : lengths) b.starts.push_back(b.starts.back() + n);
  b.shape = shape;
  const auto size = [&](Index width) { return static_cast<std::size_t>(b.m() * width); };
  b.q = random_floats(size(b.q_width()), -spread, spread, 1);
  b.k = random_floats(size(b.k_width()), -spread, spread, 2);
  b.v = random_floats(size(b.v_width()), -1, 1.5f, 3);
  b.dout = random_floats(size(b.out_width()), -1, 1.2f, 4);
  if (alibi) b.slopes = random_floats(static_cast<std::size_t>(shape.n_heads), 0, 0.5f, 5);
  if (sinks) b.sinks = random_floats(static_cast<std::size_t>(shape.n_heads), -1, 2, 6);
  return b;
}

// out, lse, dq, dk, dv and what errors are allowed, of textbook attention in double.
struct Oracle {
  Doubles out, lse, dq, dk, dv, dsinks;
  Doubles out_allowed, lse_allowed, dq_allowed, dk_allowed, dv_allowed, dsinks_allowed;
};

// One query row. Errors follow kernels/attention_train.hpp: a score has a relative error of its
// exponential of at most e; errors of sums of n terms are at most n u of their magnitudes.
class OracleRow {
 public:
  OracleRow(const Batch& b, Index first, Index end, Index row, Index h)
      : b_(b), s_(b.shape), first_(first), row_(row), h_(h), kv_(h / s_.group()) {
    const Index i = row - first;
    begin_ = first + (s_.window > 0 ? std::max<Index>(0, i + 1 - s_.window) : 0);
    end_ = std::min(end, s_.ahead >= end - first ? end : first + i + 1 + s_.ahead);
    scores();
  }

  void add_to(Oracle& o, Index kv_terms) const {
    const Index d = s_.head_dim, dv = s_.value_dim;
    const auto n = static_cast<double>(end_ - begin_);
    const auto terms = static_cast<double>(kv_terms);
    Doubles out(static_cast<std::size_t>(dv)), out_error(out.size());
    double e_mean = 0;
    for (std::size_t j = 0; j < p_.size(); ++j) e_mean += p_[j] * e_[j];
    const double e_lse = e_mean + 2 * kUnit * std::fabs(lse_) + 4 * kUnit;
    for (std::size_t j = 0; j < p_.size(); ++j) {
      for (Index c = 0; c < dv; ++c) {
        const auto at = static_cast<std::size_t>(c);
        out[at] += p_[j] * v(j, c);
        out_error[at] += p_[j] * std::fabs(v(j, c)) * (e_[j] + e_mean + (n / 8 + 80) * kUnit);
      }
    }
    double mean = 0, mean_error = 0, dout_norm = 0, out_norm = 0;
    for (Index c = 0; c < dv; ++c) {
      const auto at = static_cast<std::size_t>(c);
      const auto to = static_cast<std::size_t>(row_ * b_.out_width() + h_ * dv + c);
      o.out[to] = out[at];
      o.out_allowed[to] = out_error[at] + 1e-37;
      mean += dout(c) * out[at];
      mean_error += std::fabs(dout(c)) * out_error[at];
      dout_norm += dout(c) * dout(c);
      out_norm += out[at] * out[at];
    }
    dout_norm = std::sqrt(dout_norm);
    o.lse[static_cast<std::size_t>(row_ * s_.n_heads + h_)] = lse_;
    o.lse_allowed[static_cast<std::size_t>(row_ * s_.n_heads + h_)] = e_lse;
    const double products = static_cast<double>(dv + 4) * kUnit * dout_norm;
    mean_error += products * std::sqrt(out_norm);
    if (!b_.sinks.empty()) {
      const auto h = static_cast<std::size_t>(h_);
      const double p = std::exp(b_.sinks[h] - lse_);
      o.dsinks[h] -= p * mean;
      o.dsinks_allowed[h] += p * (mean_error + std::fabs(mean) * (e_lse + 4 * kUnit));
    }
    for (std::size_t j = 0; j < p_.size(); ++j) {
      double dp = 0, v_norm = 0;
      for (Index c = 0; c < dv; ++c) {
        dp += dout(c) * v(j, c);
        v_norm += v(j, c) * v(j, c);
      }
      const double e_p = e_[j] + e_lse + 4 * kUnit * std::fabs(score_[j] - lse_) + 4 * kUnit;
      const double ds = p_[j] * (dp - mean) * slope_[j] * s_.scale;
      const double ds_error =
          std::fabs(s_.scale) * p_[j] *
          ((e_p + 16 * kUnit) * std::fabs(dp - mean) + products * std::sqrt(v_norm) + mean_error);
      for (Index c = 0; c < dv; ++c) {
        const auto to = kv_at(j, b_.v_width(), dv, c);
        o.dv[to] += p_[j] * dout(c);
        o.dv_allowed[to] += p_[j] * std::fabs(dout(c)) * (e_p + terms * kUnit);
      }
      for (Index c = 0; c < d; ++c) {
        const auto from = static_cast<std::size_t>(row_ * b_.q_width() + h_ * d + c);
        const auto to = kv_at(j, b_.k_width(), d, c);
        o.dq[from] += ds * k(j, c);
        o.dq_allowed[from] += std::fabs(k(j, c)) * (ds_error + n * kUnit * std::fabs(ds)) + 1e-37;
        o.dk[to] += ds * q(c);
        o.dk_allowed[to] += std::fabs(q(c)) * (ds_error + terms * kUnit * std::fabs(ds)) + 1e-37;
      }
    }
  }

 private:
  double q(Index c) const {
    return b_.q[static_cast<std::size_t>(row_ * b_.q_width() + h_ * s_.head_dim + c)];
  }
  double dout(Index c) const {
    return b_.dout[static_cast<std::size_t>(row_ * b_.out_width() + h_ * s_.value_dim + c)];
  }
  std::size_t kv_at(std::size_t j, Index width, Index dim, Index c) const {
    return static_cast<std::size_t>((begin_ + static_cast<Index>(j)) * width + kv_ * dim + c);
  }
  double k(std::size_t j, Index c) const { return b_.k[kv_at(j, b_.k_width(), s_.head_dim, c)]; }
  double v(std::size_t j, Index c) const { return b_.v[kv_at(j, b_.v_width(), s_.value_dim, c)]; }

  void scores() {
    double max = -kInf, sum = 0;
    const auto h = static_cast<std::size_t>(h_);
    for (Index j = begin_; j < end_; ++j) {
      const auto at = static_cast<std::size_t>(j - begin_);
      double dot = 0, q_norm = 0, k_norm = 0;
      for (Index c = 0; c < s_.head_dim; ++c) {
        dot += q(c) * k(at, c);
        q_norm += q(c) * q(c);
        k_norm += k(at, c) * k(at, c);
      }
      double score = dot * s_.scale;
      double error = static_cast<double>(s_.head_dim + 4) * kUnit * std::fabs(s_.scale) *
                     std::sqrt(q_norm * k_norm);
      double slope = 1;
      if (s_.soft_cap != 0) {
        const double t = std::tanh(score / s_.soft_cap);
        score = s_.soft_cap * t;
        slope = 1 - t * t;
        error += 10 * kUnit * std::fabs(score);
      }
      if (!b_.slopes.empty()) {
        const double penalty = b_.slopes[h] * std::fabs(static_cast<double>(row_ - j));
        score -= penalty;
        error += 2 * kUnit * (std::fabs(score) + penalty);
      }
      score_.push_back(score);
      slope_.push_back(slope);
      e_.push_back(error);
      max = std::fmax(max, score);
    }
    if (!b_.sinks.empty()) {
      max = std::fmax(max, b_.sinks[h]);
      sum = std::exp(b_.sinks[h] - max);
    }
    for (const double score : score_) sum += std::exp(score - max);
    lse_ = max + std::log(sum);
    for (std::size_t j = 0; j < score_.size(); ++j) {
      p_.push_back(std::exp(score_[j] - lse_));
      e_[j] += (4 * std::fabs(score_[j] - max) + 3) * kUnit;
    }
  }

  const Batch& b_;
  const ops::TrainAttentionShape& s_;
  Index first_, row_, h_, kv_, begin_ = 0, end_ = 0;
  Doubles score_, slope_, p_, e_;
  double lse_ = 0;
};

Oracle oracle_of(const Batch& b) {
  Oracle o;
  const auto zeros = [&](Index width) { return Doubles(static_cast<std::size_t>(b.m() * width)); };
  o.out = o.out_allowed = zeros(b.out_width());
  o.lse = o.lse_allowed = zeros(b.shape.n_heads);
  o.dsinks = o.dsinks_allowed = Doubles(b.sinks.size());
  o.dq = o.dq_allowed = zeros(b.q_width());
  o.dk = o.dk_allowed = zeros(b.k_width());
  o.dv = o.dv_allowed = zeros(b.v_width());
  for (std::size_t s = 0; s + 1 < b.starts.size(); ++s) {
    for (Index row = b.starts[s]; row < b.starts[s + 1]; ++row) {
      for (Index h = 0; h < b.shape.n_heads; ++h) {
        OracleRow(b, b.starts[s], b.starts[s + 1], row, h)
            .add_to(o, (b.starts[s + 1] - b.starts[s]) * b.shape.group() + 4);
      }
    }
  }
  return o;
}

// A matrix whose rows have gaps.
struct Rows {
  Floats values;
  Index m, width, stride;
  Rows(const Floats& x, Index rows, Index w, Index gap)
      : values(static_cast<std::size_t>(rows * (w + gap)), kGap),
        m(rows),
        width(w),
        stride(w + gap) {
    for (Index i = 0; i < rows && !x.empty(); ++i) {
      std::copy_n(x.begin() + i * w, w, values.begin() + i * stride);
    }
  }
  MatrixView<float> view() { return {values.data(), {m, width}, {stride, 1}}; }
  Floats packed() const {
    Floats x;
    for (Index i = 0; i < m; ++i) {
      x.insert(x.end(), values.begin() + i * stride, values.begin() + i * stride + width);
      for (Index j = width; j < stride; ++j) {
        CHECK(values[static_cast<std::size_t>(i * stride + j)] == kGap);
      }
    }
    return x;
  }
  static constexpr float kGap = -77.0f;
};

struct Computed {
  Floats out, lse, dq, dk, dv, dsinks;
  bool operator==(const Computed&) const = default;
};

Computed compute(const Batch& b, Executor& executor, Index gap = 3) {
  const Index m = b.m();
  Index longest = 0;
  for (std::size_t i = 0; i + 1 < b.starts.size(); ++i) {
    longest = std::max(longest, b.starts[i + 1] - b.starts[i]);
  }
  auto shape = b.shape;
  shape.alibi_slopes = b.slopes.empty() ? nullptr : b.slopes.data();
  shape.sink_logits = b.sinks.empty() ? nullptr : b.sinks.data();
  const std::size_t bytes =
      ops::train_attention_scratch_bytes(shape, longest, executor.n_workers());
  std::vector<std::byte> memory(bytes + 64, std::byte{0xFF});  // NaN
  void* at = memory.data();
  std::size_t space = memory.size();
  auto* const aligned = static_cast<std::byte*>(std::align(64, bytes, at, space));
  const std::span<std::byte> scratch(aligned, bytes);
  Rows q(b.q, m, b.q_width(), gap), k(b.k, m, b.k_width(), gap + 1), v(b.v, m, b.v_width(), gap);
  Rows dout(b.dout, m, b.out_width(), gap), out({}, m, b.out_width(), 2);
  Rows lse({}, m, shape.n_heads, 1), dq({}, m, b.q_width(), gap), dk({}, m, b.k_width(), 1);
  Rows dv({}, m, b.v_width(), 5);
  ops::train_attention(executor, q.view(), k.view(), v.view(), shape, b.starts, out.view(),
                       lse.view(), scratch);
  std::fill(scratch.begin(), scratch.end(), std::byte{0xFF});
  ops::train_attention_back(executor, q.view(), k.view(), v.view(), out.view(), lse.view(),
                            dout.view(), shape, b.starts, dq.view(), dk.view(), dv.view(), scratch);
  Floats dsinks(b.sinks.size(), 0.0f);
  if (!b.sinks.empty()) {
    const auto add_to = [&](Floats& sums) {
      ops::attention_sinks_back(executor, out.view(), lse.view(), dout.view(), shape,
                                VectorView<float>(sums.data(), shape.n_heads));
    };
    add_to(dsinks);
    Floats twice = dsinks;
    add_to(twice);
    for (std::size_t h = 0; h < twice.size(); ++h) CHECK(twice[h] == 2 * dsinks[h]);
  }
  return {out.packed(), lse.packed(), dq.packed(), dk.packed(), dv.packed(), dsinks};
}

// The largest error, in units of the allowed one.
double worst_of(const Floats& got, const Doubles& expected, const Doubles& allowed) {
  double result = got.size() == expected.size() ? 0 : kInf;
  for (std::size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    const double error = std::fabs(got[i] - expected[i]) / allowed[i];
    if (!(error <= result)) result = std::isnan(error) ? double{kInf} : error;
  }
  return result;
}
double worst_of(const Computed& c, const Oracle& o) {
  return std::max({worst_of(c.out, o.out, o.out_allowed), worst_of(c.lse, o.lse, o.lse_allowed),
                   worst_of(c.dq, o.dq, o.dq_allowed), worst_of(c.dk, o.dk, o.dk_allowed),
                   worst_of(c.dv, o.dv, o.dv_allowed),
                   worst_of(c.dsinks, o.dsinks, o.dsinks_allowed)});
}

ops::TrainAttentionShape shape_of(Index heads, Index kv_heads, Index dim, Index value_dim,
                                  Index window = 0, Index ahead = 0, float cap = 0) {
  ops::TrainAttentionShape s;
  s.n_heads = heads;
  s.n_kv_heads = kv_heads;
  s.head_dim = dim;
  s.value_dim = value_dim;
  s.scale = 1.3f / std::sqrt(static_cast<float>(dim));
  s.window = window;
  s.ahead = ahead;
  s.soft_cap = cap;
  return s;
}

constexpr Index kAll = Index{1} << 40;

std::vector<Batch> batches() {
  const std::vector<Index> lengths = {1, 30, 2, 0, 65, 33, 131, 64};
  std::vector<Batch> all;
  all.push_back(make_batch(shape_of(2, 2, 32, 32), lengths, false, false));
  all.push_back(make_batch(shape_of(3, 1, 64, 64), lengths, false, false));
  all.push_back(make_batch(shape_of(4, 2, 64, 64, 0, kAll), lengths, false, false));
  all.push_back(make_batch(shape_of(2, 1, 17, 9, 7), lengths, false, false));
  all.push_back(make_batch(shape_of(2, 1, 1, 3, 1), lengths, false, false));
  all.push_back(make_batch(shape_of(1, 1, 6, 35, 70, 5), lengths, false, false));
  all.push_back(make_batch(shape_of(1, 1, 24, 40, 11, kAll), lengths, true, false));
  all.push_back(make_batch(shape_of(2, 1, 48, 48, 0, 0, 2.0f), lengths, true, true));
  all.push_back(make_batch(shape_of(2, 2, 33, 16, 40, 70, 5.0f), lengths, false, true));
  all.push_back(make_batch(shape_of(1, 1, 32, 32), {300}, false, false, 5.0f));
  return all;
}

}  // namespace

TEST_CASE("attention of training: forward and backward are textbook attention") {
  const std::vector<Batch> all = batches();
  for (std::size_t i = 0; i < all.size(); ++i) {
    CAPTURE(i);
    const Oracle oracle = oracle_of(all[i]);
    for_each_target([&](simd::Target) {
      InlineExecutor one;
      const Computed c = compute(all[i], one);
      CHECK(worst_of(c, oracle) <= 1.0);
      // Bit-equal on any number of workers, and whatever the strides are.
      BackwardExecutor three;
      CHECK(compute(all[i], three) == c);
      CHECK(compute(all[i], one, 8) == c);
    });
  }
}

TEST_CASE("the formulas of the gradients of attention are those of central differences") {
  const auto check = [](Batch b) {
    const Oracle o = oracle_of(b);
    const auto loss_with = [&](Floats Batch::*member) {
      return [&b, member](const Doubles& x) {
        // Floats hold the inputs: moved by 2^-10, which they hold exactly.
        Batch moved = b;
        for (std::size_t i = 0; i < x.size(); ++i) (moved.*member)[i] = static_cast<float>(x[i]);
        const Oracle at = oracle_of(moved);
        double loss = 0;
        for (std::size_t i = 0; i < at.out.size(); ++i) loss += at.out[i] * b.dout[i];
        return loss;
      };
    };
    const auto worst_for = [&](Floats Batch::*member, const Doubles& gradient) {
      constexpr double kH = 0x1p-10;
      const auto loss = loss_with(member);
      Doubles x((b.*member).begin(), (b.*member).end());
      double worst = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        // Four points: the error is of order h^4.
        const double at = x[i];
        const auto moved = [&](double by) {
          x[i] = at + by;
          const double value = loss(x);
          x[i] = at;
          return value;
        };
        const double slope =
            (8 * (moved(kH) - moved(-kH)) - (moved(2 * kH) - moved(-2 * kH))) / (12 * kH);
        const double error = std::fabs(slope - gradient[i]);
        if (!(error <= worst)) worst = error;
      }
      return worst;
    };
    CHECK(worst_for(&Batch::q, o.dq) < 1e-7);
    CHECK(worst_for(&Batch::k, o.dk) < 1e-7);
    CHECK(worst_for(&Batch::v, o.dv) < 1e-7);
    CHECK(worst_for(&Batch::sinks, o.dsinks) < 1e-7);
    Doubles wrong = o.dk;
    for (double& v : wrong) v *= 1.01;
    CHECK(worst_for(&Batch::k, wrong) > 1e-5);
  };
  // Inputs are multiples of 2^-12, so that moved ones are exact.
  const auto rounded = [](Batch b) {
    for (Floats* const x : {&b.q, &b.k, &b.v, &b.sinks}) {
      for (float& v : *x) v = std::round(v * 4096) / 4096;
    }
    return b;
  };
  check(rounded(make_batch(shape_of(2, 1, 3, 2), {3, 5}, false, false)));
  check(rounded(make_batch(shape_of(2, 2, 2, 3, 3, 1, 1.5f), {4, 2}, true, true)));
  check(rounded(make_batch(shape_of(1, 1, 4, 4, 0, kAll), {5}, true, false)));
}

TEST_CASE("no row sees another sequence") {
  Batch b = make_batch(shape_of(2, 1, 32, 32, 0, kAll), {30, 31, 29}, false, false);
  InlineExecutor one;
  const Computed before = compute(b, one);
  const auto nan_rows = [&](Floats& x, Index width) {
    std::fill(x.begin() + 30 * width, x.begin() + 61 * width, kNan);
  };
  nan_rows(b.q, b.q_width());
  nan_rows(b.k, b.k_width());
  nan_rows(b.v, b.v_width());
  nan_rows(b.dout, b.out_width());
  const Computed after = compute(b, one);
  const auto compare = [](const Floats& x, const Floats& y, Index width) {
    CHECK(std::equal(x.begin(), x.begin() + 30 * width, y.begin()));
    CHECK(std::equal(x.begin() + 61 * width, x.end(), y.begin() + 61 * width));
    CHECK(std::isnan(y[static_cast<std::size_t>(30 * width)]));
    CHECK(std::isnan(y[static_cast<std::size_t>(61 * width - 1)]));
  };
  compare(before.out, after.out, b.out_width());
  compare(before.lse, after.lse, b.shape.n_heads);
  compare(before.dq, after.dq, b.q_width());
  compare(before.dk, after.dk, b.k_width());
  compare(before.dv, after.dv, b.v_width());
}

TEST_CASE("NaN and infinity reach the rows that see them, and in v rows that share their tile") {
  constexpr Index kM = 70, kAt = 50, kDim = 8;
  const Batch good = make_batch(shape_of(1, 1, kDim, kDim), {kM}, false, false);
  for_each_target([&](simd::Target) {
    InlineExecutor one;
    const Computed before = compute(good, one);
    // Rows [0, first_other) are as before, rows [first, end) have no number that is finite.
    const auto check = [&](Floats Batch::*member, Index first_other, Index first, Index end) {
      for (const float value : {kNan, kInf}) {
        Batch b = good;
        const auto row = (b.*member).begin() + kAt * kDim;
        std::fill(row, row + kDim, value);
        const Computed after = compute(b, one);
        CHECK(std::equal(after.out.begin(), after.out.begin() + first_other * kDim,
                         before.out.begin()));
        CHECK(std::none_of(after.out.begin() + first * kDim, after.out.begin() + end * kDim,
                           [](float x) { return std::isfinite(x); }));
        if (end == kM) continue;
        CHECK(std::equal(after.out.begin() + end * kDim, after.out.end(),
                         before.out.begin() + end * kDim));
      }
    };
    check(&Batch::q, kAt, kAt, kAt + 1);
    check(&Batch::k, kAt, kAt, kM);
    check(&Batch::v, kAt - 3, kAt, kM);
  });
}

TEST_CASE("the checks of attention see small faults") {
  for (const Batch& good : {batches()[0], batches()[3], batches()[8]}) {
    const Oracle oracle = oracle_of(good);
    InlineExecutor one;
    REQUIRE(worst_of(compute(good, one), oracle) <= 1.0);
    const auto check = [&](auto&& change) {
      Batch b = good;
      change(b);
      CHECK(worst_of(compute(b, one), oracle) > 1.0);
    };
    check([](Batch& b) { b.shape.scale *= 1.01f; });
    check([](Batch& b) { b.shape.ahead += 1; });
    check([](Batch& b) { b.shape.window = b.shape.window == 0 ? 100 : b.shape.window + 1; });
    check([](Batch& b) { b.shape.soft_cap = b.shape.soft_cap == 0 ? 50.0f : 5.05f; });
    check([](Batch& b) { b.starts[2] += 1; });
    check([](Batch& b) { b.dout.back() *= 1.01f; });
    check([](Batch& b) { b.v.back() *= 1.01f; });
    Computed c = compute(good, one);
    for (Floats Computed::*member :
         {&Computed::out, &Computed::dq, &Computed::dk, &Computed::dv, &Computed::dsinks}) {
      if ((c.*member).empty()) continue;
      Computed wrong = c;
      for (float& v : wrong.*member) v *= 1.001f;
      CHECK(worst_of(wrong, oracle) > 1.0);
    }
  }
}

}  // namespace attention_train_test
