// SPDX-License-Identifier: Apache-2.0
//
// The steps of sampling by their definitions: slow, in double, on sorted probabilities.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

#include "nibble/generate/sampling.hpp"

namespace test {

using nibble::Index;
using nibble::SamplingOptions;
using nibble::SamplingStep;
using Logits = std::vector<float>;
using Ids = std::vector<std::int32_t>;

// The chain by its definitions.
class Oracle {
 public:
  Oracle(const SamplingOptions& options, std::size_t n_vocab)
      : o_(options),
        n_vocab_(static_cast<Index>(n_vocab)),
        state_(options.seed),
        limit_(2 * double{options.mirostat_tau}) {}

  std::int32_t sample(const Logits& logits, const Ids& recent) {
    tokens_.clear();
    is_sorted_ = near_ = false;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      tokens_.push_back({static_cast<std::int32_t>(i), double{logits[i]}});
    }
    for (const auto& b : o_.logit_bias) {
      tokens_[static_cast<std::size_t>(b.token)].logit += double{b.bias};
    }
    std::vector<SamplingStep> steps = o_.steps;
    using S = SamplingStep;
    if (steps.empty() && o_.mirostat_tau > 0) {
      steps = {S::penalties, S::dry, S::temperature, S::mirostat};
    } else if (steps.empty()) {
      steps = {S::penalties, S::dry,   S::top_k, S::typical,
               S::top_p,     S::min_p, S::xtc,   S::temperature};
    }
    for (const SamplingStep step : steps) apply(step, recent);
    const std::vector<double> p = probabilities();
    double left = uniform();
    std::size_t chosen = p.size();
    for (std::size_t i = 0; i < p.size() && left >= 0; ++i) {
      if (!(p[i] > 0)) continue;
      chosen = i;
      left -= p[i];
      decide(left, 0);
    }
    surprise_ = -std::log2(p[chosen]);
    if (std::count(steps.begin(), steps.end(), S::mirostat) > 0) {
      limit_ -= double{o_.mirostat_eta} * (surprise_ - double{o_.mirostat_tau});
    }
    return tokens_[chosen].id;
  }

  // A value was so close to a limit that rounding decides.
  bool near() const { return near_; }
  // What the steps left, by id: the tokens of a probability that is seen.
  std::map<std::int32_t, double> kept() const {
    std::map<std::int32_t, double> all;
    const auto p = probabilities();
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] > 1e-6) all[tokens_[i].id] = p[i];
    }
    return all;
  }
  // Of the last token among those that were left, in bits.
  double surprise() const { return surprise_; }

 private:
  struct Token {
    std::int32_t id;
    double logit;
  };

  void decide(double value, double limit) { near_ = near_ || std::fabs(value - limit) < 3e-6; }

  std::vector<double> probabilities() const {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const Token& t : tokens_) most = std::max(most, t.logit);
    std::vector<double> p;
    for (const Token& t : tokens_) p.push_back(std::exp(t.logit - most));
    for (const double x : p) sum += x;
    for (double& x : p) x /= sum;
    return p;
  }
  double entropy() const {
    double sum = 0;
    for (const double p : probabilities()) sum -= p > 0 ? p * std::log(p) : 0;
    return sum;
  }
  void sort() {
    std::stable_sort(tokens_.begin(), tokens_.end(), [](const Token& a, const Token& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    });
    is_sorted_ = true;
  }

  std::map<std::int32_t, std::size_t> counts(const Ids& window) const {
    std::map<std::int32_t, std::size_t> counted;
    for (const std::int32_t id : window) ++counted[id];
    return counted;
  }
  static Ids last(const Ids& recent, Index n) {
    const auto keep = std::min(recent.size(), static_cast<std::size_t>(n));
    return Ids(recent.end() - static_cast<std::ptrdiff_t>(keep), recent.end());
  }
  // p-e-w's loop over all earlier occurrences of the last token.
  std::map<std::int32_t, std::size_t> repetitions(const Ids& window) const {
    const auto breaks = [&](std::int32_t id) {
      return std::count(o_.dry_breakers.begin(), o_.dry_breakers.end(), id) > 0;
    };
    std::map<std::int32_t, std::size_t> longest;
    const std::size_t n = window.size();
    for (std::size_t i = 0; i + 1 < n; ++i) {
      std::size_t length = 0;
      while (length <= i && window[i - length] == window[n - 1 - length] &&
             !breaks(window[i - length])) {
        ++length;
      }
      if (!breaks(window[i + 1]) && length > 0) {
        longest[window[i + 1]] = std::max(longest[window[i + 1]], length);
      }
    }
    return longest;
  }

  void apply(SamplingStep step, const Ids& recent) {
    switch (step) {
      case SamplingStep::penalties: return penalize(counts(last(recent, o_.repetition_window)));
      case SamplingStep::dry: return punish(repetitions(last(recent, o_.dry_window)));
      case SamplingStep::top_k:
        if (o_.top_k == 0 || o_.top_k >= n_vocab_) return;
        sort();
        return keep(static_cast<std::size_t>(o_.top_k));
      case SamplingStep::typical: return typical();
      case SamplingStep::top_p: return top_p();
      case SamplingStep::min_p: return min_p();
      case SamplingStep::xtc: return xtc();
      case SamplingStep::temperature: return temperature();
      case SamplingStep::mirostat: return mirostat();
    }
  }
  void keep(std::size_t n) { tokens_.resize(std::min(n, tokens_.size())); }

  void penalize(const std::map<std::int32_t, std::size_t>& counted) {
    for (Token& t : tokens_) {
      const auto found = counted.find(t.id);
      if (found == counted.end()) continue;
      const double r = double{o_.repetition_penalty};
      t.logit = t.logit > 0 ? t.logit / r : t.logit * r;
      t.logit -= static_cast<double>(found->second) * double{o_.frequency_penalty} +
                 double{o_.presence_penalty};
    }
    if (is_sorted_) sort();
  }
  void punish(const std::map<std::int32_t, std::size_t>& longest) {
    if (o_.dry_multiplier == 0) return;
    for (Token& t : tokens_) {
      const auto found = longest.find(t.id);
      if (found == longest.end()) continue;
      const double over =
          static_cast<double>(found->second) - static_cast<double>(o_.dry_allowed_length);
      if (over >= 0) t.logit -= double{o_.dry_multiplier} * std::pow(double{o_.dry_base}, over);
    }
    if (is_sorted_) sort();
  }
  void top_p() {
    if (o_.top_p >= 1) return;
    sort();
    const auto p = probabilities();
    double sum = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      sum += p[i];
      decide(sum, double{o_.top_p});
      if (sum >= double{o_.top_p}) return keep(i + 1);
    }
  }
  void min_p() {
    if (o_.min_p == 0) return;
    sort();
    const auto p = probabilities();
    std::size_t n = 1;
    for (std::size_t i = 1; i < p.size(); ++i) {
      decide(p[i] / p[0], double{o_.min_p});
      n += p[i] >= double{o_.min_p} * p[0];
    }
    keep(n);
  }
  void typical() {
    if (o_.typical_p >= 1) return;
    sort();
    const auto p = probabilities();
    const double h = entropy();
    struct Typical {
      double distance, p;
      std::size_t at;
    };
    std::vector<Typical> order;
    for (std::size_t i = 0; i < p.size(); ++i) {
      order.push_back({std::fabs(-std::log(p[i]) - h), p[i], i});
    }
    // Equally typical: the more likely first; then the nearest in the order of likelihood.
    std::stable_sort(order.begin(), order.end(), [&](const Typical& a, const Typical& b) {
      if (a.distance != b.distance) return a.distance < b.distance;
      if (a.p != b.p) return a.p > b.p;
      return -std::log(a.p) < h ? a.at > b.at : a.at < b.at;
    });
    std::vector<Token> kept;
    double sum = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      kept.push_back(tokens_[order[i].at]);
      sum += order[i].p;
      decide(sum, double{o_.typical_p});
      if (sum < double{o_.typical_p}) continue;
      if (i + 1 < order.size() && order[i + 1].p != order[i].p) {
        decide(order[i + 1].distance, order[i].distance);
      }
      break;
    }
    // Equal tokens beside the expectation.
    for (const double x : p) decide(-std::log(x), h);
    tokens_ = kept;
    sort();
  }
  void xtc() {
    if (o_.xtc_probability == 0 || o_.xtc_threshold > 0.5f) return;
    const double u = uniform();
    decide(u, double{o_.xtc_probability});
    if (u >= double{o_.xtc_probability}) return;
    const bool was_sorted = is_sorted_;
    sort();
    const auto p = probabilities();
    std::size_t n = 0;
    for (const double x : p) {
      decide(x, double{o_.xtc_threshold});
      n += x >= double{o_.xtc_threshold};
    }
    if (n > 1) tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(n - 1));
    is_sorted_ = was_sorted;
    if (was_sorted) return;
    std::sort(tokens_.begin(), tokens_.end(),
              [](const Token& a, const Token& b) { return a.id < b.id; });
  }
  void temperature() {
    double t = double{o_.temperature};
    if (o_.temperature_range > 0) {
      const auto p = probabilities();
      const double most = *std::max_element(p.begin(), p.end());
      const auto n =
          std::count_if(p.begin(), p.end(), [&](double x) { return x > most * std::exp(-64.0); });
      const double share = n > 1 ? entropy() / std::log(static_cast<double>(n)) : 0;
      const double low = std::max(0.0, t - double{o_.temperature_range});
      t = low + (t + double{o_.temperature_range} - low) *
                    std::pow(std::min(share, 1.0), double{o_.temperature_exponent});
    }
    if (t == 0) {
      sort();
      return keep(1);
    }
    for (Token& token : tokens_) token.logit /= t;
  }
  void mirostat() {
    if (o_.mirostat_tau == 0) return;
    sort();
    const auto p = probabilities();
    std::size_t n = 0;
    for (const double x : p) {
      decide(-std::log2(x), limit_);
      n += -std::log2(x) <= limit_;
    }
    keep(std::max(n, std::size_t{1}));
  }

  double uniform() {  // splitmix64
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
  }

  SamplingOptions o_;
  Index n_vocab_;
  std::uint64_t state_;
  double limit_, surprise_ = 0;
  std::vector<Token> tokens_;
  bool is_sorted_ = false, near_ = false;
};

}  // namespace test
