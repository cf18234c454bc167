// SPDX-License-Identifier: Apache-2.0
//
// The tokens that a sampler chooses from, and their probabilities. Vocabularies have up to hundreds
// of thousands of tokens, so they are not sorted unless the options keep all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/repeats.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// What a chain of steps needs memory for.
struct CandidateNeeds {
  bool changes = false;       // change() or add() on all tokens
  bool weighs = false;        // probabilities: all but keep_best()
  bool lists = false;         // another filter than keep_best() on all tokens
  std::size_t most_best = 0;  // the largest k of keep_best() on all tokens; 0: none
};

// The tokens that are left, and their probabilities. At first all: nothing is copied then. The
// first filter makes a list of those that it keeps, the most likely first, and equally likely ones
// by id. So a result depends neither on how they are found nor on how they are sorted.
//
// A candidate's probability is proportional to its weight exp(-x), or nothing if that is below
// exp(-64). x >= 0 is its distance: (best - logit) / temperature, with the largest logit that is
// left. Logits are finite or -infinity. Allocates in reserve() only.
//
// A step that follows a temperature gets, and gives, logits that were divided by it.
class Candidates {
 public:
  void reserve(std::size_t vocab_size, const CandidateNeeds& needs) {
    if (needs.changes) own_.resize(vocab_size);
    if (needs.weighs) fill_tables();
    const std::size_t k = needs.most_best;
    const std::size_t n = needs.lists || k >= vocab_size ? vocab_size
                          : k > 0                        ? buffer_size(vocab_size, k)
                                                         : 1;
    items_.resize(n);
    if (n == vocab_size) spare_.resize(n);
  }

  // All tokens again, at temperature 1. The logits must live until the next start().
  void start(std::span<const float> logits) noexcept {
    all_ = logits.data();
    first_ = 0;
    n_ = logits.size();
    scale_ = 1;
    knows_best_ = false;
  }

  // Adds to one of all tokens' logits.
  void add(std::int32_t id, float bias) noexcept {
    float& logit = own()[id];
    logit = is_finite(static_cast<double>(bias))
                ? changed(logit, [&](double x) { return x + static_cast<double>(bias); })
                : bias;
    knows_best_ = false;
  }

  // Changes the logits of candidates with a number n other than 0: logit = f(logit, n). All such
  // tokens are among `ids`, which may repeat themselves; afterwards the numbers are 0. -infinity
  // stays, and no logit becomes it.
  template <class F>
  void change(std::span<const std::int32_t> ids, Repeats& numbers, F&& f) noexcept {
    if (all_ != nullptr) {
      float* const logits = own();
      for (const std::int32_t id : ids) {
        const std::uint32_t n = numbers.take(id);
        if (n > 0) logits[id] = changed(logits[id], [&](double x) { return f(x, n); });
      }
      knows_best_ = false;
      return;
    }
    for (std::size_t i = first_; i < first_ + n_; ++i) {
      const std::uint32_t n = numbers.of(items_[i].id);
      if (n > 0) items_[i].logit = changed(items_[i].logit, [&](double x) { return f(x, n); });
    }
    for (const std::int32_t id : ids) numbers.take(id);
    const auto begin = items_.begin() + static_cast<std::ptrdiff_t>(first_);
    std::sort(begin, begin + static_cast<std::ptrdiff_t>(n_));
    know_first();
  }

  // All logits, if these are all tokens and set_best() must be called before what follows.
  std::span<const float> unknown_best() const noexcept {
    return knows_best_ ? std::span<const float>() : std::span<const float>(all_, n_);
  }
  // The id of the largest of all logits; the lowest such id.
  void set_best(std::int32_t id) noexcept {
    best_ = {all_[id], id};
    knows_best_ = true;
  }
  // Whether any candidate has a probability.
  bool any() const noexcept { return n_ > 0 && is_finite(best_logit()); }

  // The k most likely.
  void keep_best(std::size_t k) noexcept {
    if (all_ == nullptr) {
      n_ = (std::min)(n_, k);
    } else if (k == 1 && knows_best_) {
      items_[0] = best_;
      list(1);
    } else if (k < n_) {
      take_best(k);
    } else {
      take_if([](float logit) { return is_finite(static_cast<double>(logit)); });
    }
  }

  // The first, in the order of their distance from the distance `centre`, that have the share
  // `share` in (0, 1) of all weights together. Of two equally far, the more likely one is first.
  // centre = 0: the most likely (top-p). centre = mean_distance(): the most typical.
  void keep_near(double centre, double share) noexcept {
    const Distance distance_of = distances();  // the most likely may go
    const double enough = all_ == nullptr ? share * weigh().sum : take_near(centre, share);
    std::size_t end = first_;
    while (end < first_ + n_ && distance_of(items_[end].logit) < centre) ++end;
    std::size_t begin = end;
    double sum = 0;
    while (end - begin < n_) {
      const bool goes_up =  // to the more likely one
          end == first_ + n_ || (begin > first_ && centre - distance_of(items_[begin - 1].logit) <=
                                                       distance_of(items_[end].logit) - centre);
      sum += weight(distance_of(items_[goes_up ? --begin : end++].logit));
      if (sum >= enough) break;
    }
    first_ = begin;
    n_ = end - begin;
    know_first();
  }

  // Those up to a distance, and always the most likely one.
  void keep_up_to(double most) noexcept {
    if (most < 0) return keep_best(1);
    const double least = best_logit() - most / scale_;
    if (all_ != nullptr) {
      return take_if([=](float logit) { return static_cast<double>(logit) >= least; });
    }
    while (n_ > 1 && !(static_cast<double>(items_[first_ + n_ - 1].logit) >= least)) --n_;
  }

  // Without all whose probability is at least `threshold` in (0, 1], except the last of these.
  void drop_before_last(double threshold) noexcept;

  // Divides logits by it; 0: only the most likely is left.
  void divide_by(double temperature) noexcept {
    constexpr double kLeast = 1e-100;  // so that 1 / temperature is a number
    if (temperature < kLeast) return keep_best(1);
    scale_ /= temperature;
  }

  // The sum of the weights, the expectation of the distance, and how many have a weight. The
  // surprise -log(p) of a candidate is its distance + log(sum), and the entropy the mean of these.
  struct Weighed {
    double sum = 0, mean_distance = 0;
    std::size_t n = 0;
    double entropy() const noexcept { return mean_distance + libm::log(sum); }
  };
  Weighed weigh() const noexcept {
    Weighed w;
    for_each([&w, this, distance_of = distances()](float logit) {
      const double x = distance_of(logit), one = weight(x);
      if (!(one > 0)) return;
      w.sum += one;
      w.mean_distance += one * x;
      ++w.n;
    });
    w.mean_distance /= w.sum;
    return w;
  }

  // The candidate at the part `at` in [0, 1) of the way through all weights, in order (all tokens:
  // in the order of their ids). There must be one.
  struct Drawn {
    std::int32_t id;
    double probability;  // among the candidates
  };
  Drawn draw(double at) noexcept;

  // The list that a filter has left.
  std::size_t size() const noexcept { return n_; }
  std::int32_t id(std::size_t i) const noexcept { return items_[first_ + i].id; }
  float logit(std::size_t i) const noexcept { return items_[first_ + i].logit; }

 private:
  struct Candidate {
    float logit;
    std::int32_t id;
    friend bool operator<(const Candidate& a, const Candidate& b) noexcept {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    }
  };

  struct Distance {
    double best, scale;
    double operator()(float logit) const noexcept {
      return (best - static_cast<double>(logit)) * scale;
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

  void fill_tables() {
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

  // The logits of all tokens, in memory that may be written.
  float* own() noexcept {
    float* const logits = values(own_);
    if (all_ != logits) std::memcpy(logits, all_, n_ * sizeof(float));
    all_ = logits;
    return logits;
  }

  template <class F>
  float changed(float logit, F&& f) const noexcept {
    const auto x = static_cast<double>(logit);
    if (!is_finite(x)) return logit;
    constexpr auto kMost = static_cast<double>(kFloatMax);
    const double y = f(x * scale_) / scale_;
    return static_cast<float>(y > kMost ? kMost : y < -kMost ? -kMost : y);
  }

  void list(std::size_t n) noexcept {
    all_ = nullptr;
    first_ = 0;
    n_ = n;
    know_first();
  }
  void know_first() noexcept {
    if (n_ > 0) best_ = items_[first_];
    knows_best_ = true;
  }

  double best_logit() const noexcept { return static_cast<double>(best_.logit); }
  double distance(float logit) const noexcept { return distances()(logit); }
  // A copy of what distances need: in a loop that writes candidates or sums, the compiler would
  // read members again each time.
  Distance distances() const noexcept { return {best_logit(), scale_}; }
  template <class F>
  void for_each(F&& f) const noexcept {
    if (all_ != nullptr) {
      for (std::size_t i = 0; i < n_; ++i) f(all_[i]);
    } else {
      for (std::size_t i = first_; i < first_ + n_; ++i) f(items_[i].logit);
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

  void take_best(std::size_t k) noexcept;
  double take_near(double centre, double share) noexcept;
  template <class Condition>
  void take_if(Condition&& is_wanted) noexcept;
  void sort() noexcept;
  template <class LogitAt>
  Drawn draw_index(double at, LogitAt&& logit_at) noexcept;

  // A number that is smaller the earlier a logit comes in the order.
  static std::uint32_t key(float logit) noexcept {
    const auto bits = __builtin_bit_cast(std::uint32_t, logit + 0.0f);  // -0 becomes 0
    return bits >> 31 != 0 ? bits : ~bits & 0x7FFFFFFFu;
  }

  std::vector<Candidate> items_, spare_;
  std::vector<Scalar<float>> own_;     // logits of all, once they are changed
  std::vector<Scalar<double>> table_;  // exp(-i / kIntervals)
  std::vector<Scalar<double>> steps_;  // exp(-i / (kIntervals * kSteps))
  std::vector<Scalar<double>> sums_;   // of weights, as many as in table_
  const float* all_ = nullptr;         // the logits of all tokens; null: a list, in
  std::size_t first_ = 0, n_ = 0;      // items_[first_] to items_[first_ + n_ - 1]
  double scale_ = 1;                   // 1 / temperature
  Candidate best_{};
  bool knows_best_ = false;
};

// Of all tokens.
inline void Candidates::take_best(std::size_t k) noexcept {
  const std::span<const float> logits(all_, n_);
  const std::size_t most = buffer_size(logits.size(), k);
  const auto begin = items_.begin();
  const auto nth = begin + static_cast<std::ptrdiff_t>(k - 1);
  float least = -kInfinity;  // of the k largest so far; an equal one comes later in the order
  std::size_t n = 0;
  constexpr std::size_t kBlock = 32;
  for (std::size_t first = 0; first < logits.size(); first += kBlock) {
    const auto block = logits.subspan(first, (std::min)(kBlock, logits.size() - first));
    // Most blocks have none; compilers make vectors of this test.
    if (block.size() == kBlock) {
      int n_larger = 0;
      for (std::size_t i = 0; i < kBlock; ++i) n_larger += block[i] > least;
      if (n_larger == 0) continue;
    }
    for (std::size_t i = 0; i < block.size(); ++i) {
      if (!(block[i] > least)) continue;
      items_[n++] = {block[i], static_cast<std::int32_t>(first + i)};
      if (n < most) continue;
      std::nth_element(begin, nth, begin + static_cast<std::ptrdiff_t>(n));
      least = nth->logit;
      n = k;
    }
  }
  if (n > k) {
    std::nth_element(begin, nth, begin + static_cast<std::ptrdiff_t>(n));
    n = k;
  }
  std::sort(begin, begin + static_cast<std::ptrdiff_t>(n));
  list(n);
}

// Of all tokens, lists those that keep_near() keeps, and some that follow them. Returns the weight
// that they must have.
inline double Candidates::take_near(double centre, double share) noexcept {
  // Weights are summed by the interval that their distances are in.
  std::fill(sums_.begin(), sums_.end(), Scalar<double>{});
  Scalar<double>* const sums = sums_.data();
  const auto distance_of = distances();
  for (const float logit : std::span<const float>(all_, n_)) {
    const double x = distance_of(logit);
    if (!(x < kEnd)) continue;
    const Exp e = exp_of(x);
    sums[e.interval].value += e.fraction;
  }
  double all = 0;
  for (std::size_t i = 0; i < kTable; ++i) {
    sums_[i].value *= table_[i].value;
    all += sums_[i].value;
  }
  const double enough = share * all;
  // Rounding must not end this earlier than the sum of the single weights.
  auto begin = static_cast<std::size_t>(centre * kIntervals), end = begin;
  double sum = 0;
  double reached = centre - static_cast<double>(begin) / kIntervals;  // of what is summed
  while (end - begin < kTable && !(sum >= enough * (1 + 1e-9))) {
    const double up = centre - (static_cast<double>(begin) - 1) / kIntervals;
    const double down = static_cast<double>(end + 1) / kIntervals - centre;
    const bool goes_up = end == kTable || (begin > 0 && up < down);
    reached = larger(reached, goes_up ? up : down);
    sum += sums_[goes_up ? --begin : end++].value;
  }
  const double reach = reached * (1 + 1e-9) + 1e-9;
  const double least = best_logit() - (centre + reach) / scale_;
  if (begin == 0) {  // up to the most likely
    take_if([=](float logit) { return static_cast<double>(logit) >= least; });
    return enough;
  }
  const double most = best_logit() - (centre - reach) / scale_;
  take_if([=](float logit) {
    const auto x = static_cast<double>(logit);
    return (static_cast<unsigned>(x >= least) & static_cast<unsigned>(x <= most)) != 0;
  });
  return enough;
}

// Lists those of all tokens with logits that are wanted.
template <class Condition>
void Candidates::take_if(Condition&& is_wanted) noexcept {
  const std::span<const float> logits(all_, n_);
  std::size_t n = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    items_[n] = {logits[i], static_cast<std::int32_t>(i)};
    n += is_wanted(logits[i]);  // without a branch that is often mispredicted
  }
  n_ = n;
  sort();
  list(n);
}

// Sorts candidates that are in the order of their ids: byte by byte, which takes the same time
// however many logits are equal, and leaves those as they are.
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

inline void Candidates::drop_before_last(double threshold) noexcept {
  const double least = threshold * weigh().sum;
  const auto is_likely = [&](float logit) { return weight(distance(logit)) >= least; };
  if (all_ == nullptr) {
    std::size_t n = 0;
    while (n < n_ && is_likely(items_[first_ + n].logit)) ++n;
    if (n < 2) return;
    first_ += n - 1;
    n_ -= n - 1;
    return know_first();
  }
  Candidate last = best_;
  for (std::size_t i = 0; i < n_; ++i) {
    const Candidate one = {all_[i], static_cast<std::int32_t>(i)};
    if (last < one && is_likely(one.logit)) last = one;
  }
  if (last.id == best_.id) return;
  float* const logits = own();
  for (std::size_t i = 0; i < n_; ++i) {
    if (Candidate{logits[i], static_cast<std::int32_t>(i)} < last) logits[i] = -kInfinity;
  }
  best_ = last;
}

inline Candidates::Drawn Candidates::draw(double at) noexcept {
  if (all_ != nullptr) return draw_index(at, [all = all_](std::size_t i) { return all[i]; });
  if (n_ == 1) return {items_[first_].id, 1};
  Drawn drawn = draw_index(at, [this](std::size_t i) { return items_[first_ + i].logit; });
  drawn.id = id(static_cast<std::size_t>(drawn.id));
  return drawn;
}

// The id of the result is an index of the candidates.
template <class LogitAt>
Candidates::Drawn Candidates::draw_index(double at, LogitAt&& logit_at) noexcept {
  const auto distance_of = distances();
  const auto weight_of = [&](std::size_t i) { return weight(distance_of(logit_at(i))); };
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
  return {static_cast<std::int32_t>(chosen), weight_of(chosen) / sum};
}

}}  // namespace nibble::NIBBLE_ABI
