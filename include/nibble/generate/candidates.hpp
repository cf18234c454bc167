// SPDX-License-Identifier: Apache-2.0
//
// The tokens that a sampler chooses from, and their probabilities. Vocabularies have up to hundreds
// of thousands of tokens, so they are not sorted unless the options keep all.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The candidates are in order, the most likely first, and equally likely ones by id; except after
// take_all(), which leaves them in the order of their ids. So a result depends neither on how they
// are found nor on how they are sorted. `best` is the largest logit, a finite number. A candidate
// weighs exp(logit − best), or nothing if that is below exp(−64). Logits
// are finite or -infinity.
class Candidates {
 public:
  // Allocates what calls on vocab_size logits take: take_best() with top_k, or, if that is 0,
  // take_mass() and take_from(); with `any_order`, take_all() only.
  void reserve(std::size_t vocab_size, std::size_t top_k, bool any_order) {
    fill_table();
    if (any_order) return;
    const std::size_t n = top_k > 0 ? buffer_size(vocab_size, top_k) : vocab_size;
    if (items_.size() < n) items_.resize(n);
    if (top_k == 0 && spare_.size() < n) spare_.resize(n);
  }

  // The k largest logits, k < logits.size().
  void take_best(std::span<const float> logits, std::size_t k) noexcept {
    const std::size_t most = buffer_size(logits.size(), k);
    const auto begin = items_.begin();
    const auto nth = begin + static_cast<std::ptrdiff_t>(k - 1);
    float least = -kInfinity;  // of the k largest so far; an equal one comes later in the order
    n_ = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] > least)) continue;
      items_[n_++] = {logits[i], static_cast<std::int32_t>(i)};
      if (n_ < most) continue;
      std::nth_element(begin, nth, begin + static_cast<std::ptrdiff_t>(n_));
      least = nth->logit;
      n_ = k;
    }
    if (n_ > k) {
      std::nth_element(begin, nth, begin + static_cast<std::ptrdiff_t>(n_));
      n_ = k;
    }
    std::sort(begin, begin + static_cast<std::ptrdiff_t>(n_));
  }

  // The first in the order that weigh the share `top_p` of all, in (0, 1), and some that follow
  // them. Returns this weight.
  double take_mass(std::span<const float> logits, double best, double top_p) noexcept {
    // Weights are summed by the interval that their logits are in.
    std::fill(sums_.begin(), sums_.end(), Scalar<double>{});
    for (const float logit : logits) {
      const double x = best - static_cast<double>(logit);
      if (!(x < kEnd)) continue;
      const Exp e = exp_of(x);
      sums_[e.interval].value += e.fraction;
    }
    double all = 0;
    for (std::size_t i = 0; i < kTable; ++i) {
      sums_[i].value *= table_[i].value;
      all += sums_[i].value;
    }
    const double enough = top_p * all;
    // Rounding must not end this earlier than the sum of the single weights.
    double sum = 0;
    std::size_t last = 0;
    for (; last + 1 < kTable; ++last) {
      sum += sums_[last].value;
      if (sum >= enough * (1 + 1e-9)) break;
    }
    const double end = static_cast<double>(last + 1) / kIntervals;
    take_if(logits, [&](double logit) { return best - logit < end; });
    return enough;
  }

  // Those with a logit of at least `least`.
  void take_from(std::span<const float> logits, double least) noexcept {
    take_if(logits, [&](double logit) { return logit >= least; });
  }

  // All, in the order of their ids. The logits are not copied.
  void take_all(std::span<const float> logits) noexcept {
    all_ = logits.data();
    n_ = logits.size();
  }

  double mass(double best) const noexcept {
    double sum = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      sum += weight(best - static_cast<double>(items_[i].logit));
    }
    return sum;
  }

  // Keeps the first whose weights together reach `enough`; all if they do not.
  void keep_mass(double best, double enough) noexcept {
    double sum = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      sum += weight(best - static_cast<double>(items_[i].logit));
      if (sum >= enough) {
        n_ = i + 1;
        return;
      }
    }
  }

  // Keeps those with a logit of at least `least`, in order.
  void keep_from(double least) noexcept {
    while (n_ > 1 && !(static_cast<double>(items_[n_ - 1].logit) >= least)) --n_;
  }

  // The id of the candidate at the part `at` in [0, 1) of the way through all their weights, each
  // to the power of 1 / temperature. There must be candidates, the most likely one among them.
  std::int32_t draw(double best, double temperature, double at) noexcept {
    const float* const all = all_;
    all_ = nullptr;
    if (all == nullptr) {
      const std::size_t i =
          draw_index(best, temperature, at, [&](std::size_t j) { return items_[j].logit; });
      return items_[i].id;
    }
    return static_cast<std::int32_t>(
        draw_index(best, temperature, at, [&](std::size_t j) { return all[j]; }));
  }

 private:
  struct Candidate {
    float logit;
    std::int32_t id;
    friend bool operator<(const Candidate& a, const Candidate& b) noexcept {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    }
  };

  static constexpr double kEnd = 64;  // exp(-64) is no part of a sum of doubles that begins with 1
  static constexpr int kIntervals = 32;  // per unit
  static constexpr int kSteps = 128;     // per interval
  static constexpr std::size_t kTable = 64 * kIntervals;

  // With room for as many again, and for some more: take_best() then rarely has to throw out.
  static std::size_t buffer_size(std::size_t vocab_size, std::size_t k) noexcept {
    return vocab_size - k <= k + 256 ? vocab_size : 2 * k + 256;
  }

  void fill_table() {
    if (!table_.empty()) return;
    table_.resize(kTable);
    sums_.resize(kTable);
    for (std::size_t i = 0; i < kTable; ++i) {
      table_[i].value = libm::exp(-static_cast<double>(i) / kIntervals);
    }
    steps_.resize(kSteps);
    for (std::size_t i = 0; i < kSteps; ++i) {
      steps_[i].value = libm::exp(-static_cast<double>(i) / (kIntervals * kSteps));
    }
  }

  // exp(-x) of an x in [0, kEnd) is table_[interval] * fraction. Two tables and a short polynomial,
  // exact to rounding: libm's exponentials would be half of a sampler's time.
  struct Exp {
    std::size_t interval;
    double fraction;
  };
  Exp exp_of(double x) const noexcept {
    const auto step = static_cast<std::int32_t>(x * (kIntervals * kSteps));
    const double r = static_cast<double>(step) / (kIntervals * kSteps) - x;  // in (-1/4096, 0]
    const auto at = static_cast<std::size_t>(step);
    return {at / kSteps, steps_[at % kSteps].value * (1 + r * (1 + r * (1.0 / 2 + r * (1.0 / 6))))};
  }
  // exp(-x); x >= 0 or NaN.
  double weight(double x) const noexcept {
    if (!(x < kEnd)) return 0;
    const Exp e = exp_of(x);
    return table_[e.interval].value * e.fraction;
  }

  template <class Condition>
  void take_if(std::span<const float> logits, Condition&& is_wanted) noexcept {
    n_ = 0;
    for (std::size_t i = 0; i < logits.size();
         ++i) {  // without a branch that is often mispredicted
      items_[n_] = {logits[i], static_cast<std::int32_t>(i)};
      n_ += is_wanted(static_cast<double>(logits[i]));  // not NaN
    }
    sort();
  }

  // A number that is smaller the earlier a logit comes in the order.
  static std::uint32_t key(float logit) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(logit + 0.0f);  // -0 becomes 0
    return bits >> 31 != 0 ? bits : ~bits & 0x7FFFFFFFu;
  }

  // Sorts candidates that are in the order of their ids: byte by byte, which takes the same time
  // however many logits are equal, and leaves those as they are.
  void sort() noexcept;

  template <class LogitAt>
  std::size_t draw_index(double best, double temperature, double at, LogitAt&& logit_at) noexcept {
    const double inverse = 1 / temperature;
    const auto weight_of = [&](std::size_t i) {
      return weight((best - static_cast<double>(logit_at(i))) * inverse);
    };
    const std::size_t block = (n_ + kTable - 1) / kTable;
    double sum = 0;
    for (std::size_t begin = 0, b = 0; begin < n_; begin += block, ++b) {
      double of_block = 0;
      for (std::size_t i = begin; i < (std::min)(begin + block, n_); ++i) of_block += weight_of(i);
      sums_[b].value = of_block;
      sum += of_block;
    }
    // What weighs nothing is never chosen, even if rounding leaves a remainder.
    double left = sum * at, left_before = 0;
    std::size_t first = 0;
    for (std::size_t begin = 0, b = 0; begin < n_ && left >= 0; begin += block, ++b) {
      if (!(sums_[b].value > 0)) continue;
      first = begin;
      left_before = left;
      left -= sums_[b].value;
    }
    left = left_before;
    std::size_t chosen = first;
    for (std::size_t i = first; i < (std::min)(first + block, n_) && left >= 0; ++i) {
      const double w = weight_of(i);
      if (!(w > 0)) continue;
      chosen = i;
      left -= w;
    }
    return chosen;
  }

  std::vector<Candidate> items_, spare_;
  std::vector<Scalar<double>> table_;  // exp(-i / kIntervals)
  std::vector<Scalar<double>> steps_;  // exp(-i / (kIntervals * kSteps))
  std::vector<Scalar<double>> sums_;   // of weights, as many as in table_
  std::size_t n_ = 0;                  // candidates, in items_ or
  const float* all_ = nullptr;         // the logits of all
};

inline void Candidates::sort() noexcept {
  std::uint32_t counts[4][256] = {};
  for (std::size_t i = 0; i < n_; ++i) {
    const std::uint32_t k = key(items_[i].logit);
    for (unsigned byte = 0; byte < 4; ++byte) ++counts[byte][k >> (8 * byte) & 0xFF];
  }
  for (unsigned byte = 0; byte < 4; ++byte) {
    if (n_ == 0 || counts[byte][key(items_[0].logit) >> (8 * byte) & 0xFF] == n_) continue;
    std::uint32_t begin = 0;
    for (std::uint32_t& count : counts[byte]) begin += std::exchange(count, begin);
    for (std::size_t i = 0; i < n_; ++i) {
      spare_[counts[byte][key(items_[i].logit) >> (8 * byte) & 0xFF]++] = items_[i];
    }
    items_.swap(spare_);
  }
}

}}  // namespace nibble::NIBBLE_ABI
