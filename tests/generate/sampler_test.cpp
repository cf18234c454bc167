// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"

namespace sampler_test {

using nibble::Index;
using nibble::Sampler;
using nibble::SamplingOptions;
using Logits = std::vector<float>;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Keeps everything, with temperature 1.
SamplingOptions plain(std::uint64_t seed = 0) {
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 0;
  options.top_p = 1;
  options.min_p = 0;
  options.seed = seed;
  return options;
}

Sampler make(const SamplingOptions& options, std::size_t vocab_size) {
  auto sampler = Sampler::create(options, static_cast<Index>(vocab_size));
  REQUIRE(sampler);
  return *std::move(sampler);
}

template <class S>
nibble::TokenLogprob chosen(S&& sampler, const Logits& logits, const Ids& recent) {
  const auto sampled = sampler.sample(logits, recent);
  REQUIRE(sampled);
  return *sampled;
}

Logits random_logits(std::mt19937& random, std::size_t n, float spread) {
  std::normal_distribution<float> normal(0, spread);
  Logits logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

double log_softmax(const Logits& logits, std::size_t i) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(double{x} - max);
  return double{logits[i]} - max - std::log(sum);
}

// kernels::LogSum's bound and the rounding of the result to float.
bool is_logprob(float logprob, double expected) {
  return std::fabs(double{logprob} - expected) <= 1e-5 + std::fabs(expected) * 0x1p-24;
}

Logits penalized(Logits logits, const Ids& recent, const SamplingOptions& options) {
  const std::size_t n = recent.size();
  const std::size_t from = n - std::min(n, static_cast<std::size_t>(options.repetition_window));
  for (const std::int32_t id :
       std::set<std::int32_t>(recent.begin() + static_cast<std::ptrdiff_t>(from), recent.end())) {
    float& x = logits[static_cast<std::size_t>(id)];
    x = x > 0 ? x / options.repetition_penalty : x * options.repetition_penalty;
  }
  return logits;
}

struct Kept {
  std::set<std::int32_t> ids;
  bool near = false;  // a probability is so close to a limit that rounding decides
};

// By the definitions, on probabilities: each filter gets the tokens that the one before it left.
Kept kept(const Logits& logits, const SamplingOptions& options) {
  const auto at = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  Ids order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return at(a) > at(b); });
  if (options.top_k > 0) {
    order.resize(std::min(order.size(), static_cast<std::size_t>(options.top_k)));
  }
  std::vector<double> p;
  for (const std::int32_t id : order) p.push_back(std::exp(double{at(id)}));
  const double all = std::accumulate(p.begin(), p.end(), 0.0);
  Kept result;
  double before = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double needed = double{options.top_p} - before, relative = p[i] / p[0];
    result.near = result.near || (options.top_p < 1 && std::fabs(needed) < 1e-9) ||
                  (options.min_p < 1 && std::fabs(relative - double{options.min_p}) < 1e-9);
    if (needed > 0 && relative >= double{options.min_p}) result.ids.insert(order[i]);
    before += p[i] / all;
  }
  return result;
}

// Every token that the sampler can give: at a temperature so high that all kept tokens are equally
// likely.
std::set<std::int32_t> seen(SamplingOptions options, const Logits& logits, const Ids& recent) {
  options.temperature = 1e6f;
  Sampler sampler = make(options, logits.size());
  std::set<std::int32_t> ids;
  for (int i = 0; i < 400; ++i) ids.insert(chosen(sampler, logits, recent).id);
  return ids;
}

// Pearson's statistic of n samples, for probabilities proportional to `expected`.
double chi_square(const SamplingOptions& options, const Logits& logits,
                  const std::vector<double>& expected) {
  constexpr int kSamples = 20000;
  Sampler sampler = make(options, logits.size());
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kSamples; ++i) {
    ++counts[static_cast<std::size_t>(chosen(sampler, logits, {}).id)];
  }
  const double sum = std::accumulate(expected.begin(), expected.end(), 0.0);
  double statistic = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double mean = kSamples * expected[i] / sum;
    if (mean == 0 && counts[i] > 0) return kInfinity;
    if (mean > 0) statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  return statistic;
}

}  // namespace

TEST_CASE("temperature 0 takes the lowest index of the greatest logit") {
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    Logits logits = random_logits(random, 1 + random() % 600, 4);
    for (float& x : logits) x = std::round(x);  // many are equal
    SamplingOptions options;
    options.top_k = static_cast<Index>(random() % 5);
    options.seed = random();
    Sampler sampler = make(options, logits.size());
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    CHECK(chosen(sampler, logits, {}).id == best);
    options.repetition_penalty = 2;  // uses the list of candidates
    Sampler penalizing = make(options, logits.size());
    CHECK(chosen(penalizing, logits, {}).id == best);
  }
}

TEST_CASE("the log-probability is the model's own, whatever is sampled") {
  std::mt19937 random(4);
  for (int i = 0; i < 200; ++i) {
    const Logits logits = random_logits(random, 1 + random() % 600, i % 2 == 0 ? 1.0f : 12.0f);
    SamplingOptions options = plain(random());
    options.temperature = static_cast<float>(i % 3);
    if (i % 4 == 0) options.top_k = 3;
    if (i % 5 == 0) options.repetition_penalty = 1.5f;
    Sampler sampler = make(options, logits.size());
    const auto sampled = chosen(sampler, logits, Ids{0});
    CHECK(is_logprob(sampled.logprob, log_softmax(logits, static_cast<std::size_t>(sampled.id))));
  }
}

TEST_CASE("tokens come as often as their probability says, at any temperature") {
  const std::vector<double> p = {0.04, 0.30, 0.01, 0.20, 0.15, 0.12, 0.10, 0.08};
  constexpr double kLimit = 29.88;  // exceeded once in 10 000 times, with 7 degrees of freedom
  Logits logits;
  for (const double x : p) logits.push_back(static_cast<float>(std::log(x)) + 3);
  for (const float temperature : {1.0f, 0.5f, 2.0f}) {
    std::vector<double> expected, other;
    for (const double x : p) {
      expected.push_back(std::pow(x, 1 / double{temperature}));
      other.push_back(std::pow(x, 0.9 / double{temperature}));
    }
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      CAPTURE(temperature);
      CAPTURE(seed);
      SamplingOptions options = plain(seed);
      options.temperature = temperature;
      CHECK(chi_square(options, logits, expected) < kLimit);
      CHECK(chi_square(options, logits, other) > kLimit);  // a difference would be noticed
      options.top_k = 100;                                 // sorted or not, the result is the same
      options.min_p = 1e-9f;
      CHECK(chi_square(options, logits, expected) < kLimit);
      options.top_k = 4;
      auto four = expected;
      four[0] = four[2] = four[6] = four[7] = 0;
      CHECK(chi_square(options, logits, four) < kLimit);
    }
  }
}

TEST_CASE("top-k, top-p, min-p and the penalty keep what their definitions keep, in that order") {
  std::mt19937 random(6);
  const auto one_of = [&](auto... x) {
    const float all[] = {x...};
    return all[random() % sizeof...(x)];
  };
  int n_near = 0;
  std::size_t n_kept = 0;
  for (int i = 0; i < 400; ++i) {
    Logits logits = random_logits(random, 1 + random() % 20, one_of(0.5f, 1.0f, 3.0f));
    if (i % 2 == 0) {
      for (float& x : logits) x = std::round(2 * x) / 2;  // many are equal
    }
    SamplingOptions options = plain(random());
    if (i % 3 != 0) options.top_k = static_cast<Index>(random() % 24);
    options.top_p = one_of(1.0f, 0.95f, 0.7f, 0.3f, 1e-6f);
    options.min_p = one_of(0.0f, 0.02f, 0.2f, 0.6f, 1.0f);
    options.repetition_penalty = one_of(1.0f, 1.3f, 3.0f, 0.5f);
    options.repetition_window = static_cast<Index>(random() % 6);
    Ids recent(random() % 8);
    for (auto& id : recent) id = static_cast<std::int32_t>(random() % logits.size());
    const Kept expected = kept(penalized(logits, recent, options), options);
    n_near += expected.near;
    if (expected.near) continue;
    n_kept += expected.ids.size();
    CAPTURE(i);
    CHECK(seen(options, logits, recent) == expected.ids);
  }
  CHECK(n_near < 20);
  CHECK(n_kept > 800);
}

TEST_CASE("the repetition penalty lowers recent tokens, once each") {
  const auto best = [](const Logits& logits, const Ids& recent, float penalty, Index window = 64) {
    SamplingOptions options;
    options.repetition_penalty = penalty;
    options.repetition_window = window;
    const auto sampled = chosen(make(options, logits.size()), logits, recent);
    CHECK(is_logprob(sampled.logprob, log_softmax(logits, static_cast<std::size_t>(sampled.id))));
    return sampled.id;
  };
  const Logits positive = {2.0f, 1.5f, 0.1f}, negative = {-1.0f, -1.2f, -9.0f};
  CHECK(best(positive, {}, 1.5f) == 0);
  CHECK(best(positive, {0}, 1.5f) == 1);
  CHECK(best(positive, {0, 1}, 1.5f) == 0);
  CHECK(best(positive, {0}, 1.3f) == 0);
  CHECK(best(positive, {0, 0, 0}, 1.3f) == 0);  // not 2 / 1.3^3
  CHECK(best(negative, {0}, 1.5f) == 1);
  CHECK(best(negative, {0}, 1.1f) == 0);
  CHECK(best({0.0f, -0.5f}, {0}, 100.0f) == 0);
  CHECK(best(positive, {1}, 0.5f) == 1);  // below 1 it is a reward
  CHECK(best(positive, {0, 2, 2}, 1.5f, 2) == 0);
  CHECK(best(positive, {0, 2, 2}, 1.5f, 3) == 1);
  CHECK(best(positive, {2, 2, 0}, 1.5f, 1) == 1);
  CHECK(best(positive, {0}, 1.5f, 0) == 0);
}

TEST_CASE("the same seed gives the same tokens, on every machine; another seed gives others") {
  // The first numbers of splitmix64 for these seeds, as published with it, in thousandths.
  const Logits flat(1000, 0.5f);
  Sampler zero = make(plain(0), flat.size());
  CHECK(chosen(zero, flat, {}).id == 883);
  Sampler sampler = make(plain(1234567), flat.size());
  CHECK(chosen(sampler, flat, {}).id == 350);
  CHECK(chosen(sampler, flat, {}).id == 173);

  std::mt19937 random(8);
  const Logits logits = random_logits(random, 300, 2);
  const auto sequence = [&](std::uint64_t seed) {
    SamplingOptions options = plain(seed);
    options.top_p = 0.95f;
    Sampler s = make(options, logits.size());
    Ids ids;
    for (int i = 0; i < 50; ++i) ids.push_back(chosen(s, logits, ids).id);
    return ids;
  };
  CHECK(sequence(7) == sequence(7));
  CHECK(sequence(7) != sequence(8));
}

namespace {

// As the definition says: all logits are sorted, and each option keeps a beginning of them.
std::int32_t by_definition(const Logits& logits, const SamplingOptions& o, double uniform) {
  Ids order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](std::int32_t id) { return double{logits[static_cast<std::size_t>(id)]}; };
  const bool all = (o.top_k == 0 || o.top_k >= static_cast<Index>(logits.size())) && o.top_p == 1 &&
                   o.min_p == 0;
  const double best = *std::max_element(logits.begin(), logits.end());
  if (!all) {
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return at(a) > at(b); });
  }
  if (o.top_k > 0 && static_cast<std::size_t>(o.top_k) < order.size()) {
    order.resize(static_cast<std::size_t>(o.top_k));
  }
  double mass = 0, sum = 0;
  for (const auto id : order) mass += std::exp(at(id) - best);
  std::size_t n = order.size();
  for (std::size_t i = 0; o.top_p < 1 && i < order.size(); ++i) {
    sum += std::exp(at(order[i]) - best);
    if (sum >= double{o.top_p} * mass) {
      n = i + 1;
      break;
    }
  }
  order.resize(n);
  while (o.min_p > 0 && at(order.back()) < best + std::log(double{o.min_p})) order.pop_back();
  double total = 0;
  for (const auto id : order) total += std::exp((at(id) - best) / double{o.temperature});
  double left = total * uniform;
  for (const auto id : order) {
    left -= std::exp((at(id) - best) / double{o.temperature});
    if (left < 0) return id;
  }
  return order.back();
}

}  // namespace

TEST_CASE("whatever is not sorted: the tokens are those that sorting everything gives") {
  std::mt19937 random(12);
  const auto one_of = [&](auto... x) {
    const float all[] = {static_cast<float>(x)...};
    return all[random() % sizeof...(x)];
  };
  int n_different = 0;
  for (int i = 0; i < 600; ++i) {
    Logits logits =
        random_logits(random, i % 40 == 0 ? 30000 : 1 + random() % 700, one_of(0, 0.01, 1, 4, 20));
    if (i % 3 == 0) {
      for (float& x : logits) x = std::round(2 * x) / 2;  // many are equal, some of them -0
    }
    for (std::size_t j = 1; j < logits.size(); j += 7) logits[j] = -kInfinity;
    SamplingOptions options;
    options.temperature = one_of(0.01, 0.8, 1, 3, 1e6);
    options.top_k = i % 2 == 0 ? 0 : static_cast<Index>(random() % 800);
    options.top_p = one_of(1, 0.95, 0.5, 0.999999, 1e-6);
    options.min_p = one_of(0, 0.05, 0.5, 1e-9, 1);
    options.seed = random();
    Sampler sampler = make(options, logits.size());
    // Flat logits give the same random numbers as parts of their count.
    constexpr std::size_t kParts = 1u << 17;
    SamplingOptions plainly = plain(options.seed);
    Sampler uniform = make(plainly, kParts);
    static const Logits flat(kParts, 0.0f);
    for (int k = 0; k < (i % 40 == 0 ? 3 : 2); ++k) {
      const double u = (chosen(uniform, flat, {}).id + 0.5) / static_cast<double>(kParts);
      n_different += chosen(sampler, logits, {}).id != by_definition(logits, options, u);
    }
  }
  // Only where the boundary between two tokens is within the rounding to these parts.
  CHECK(n_different <= 8);
}

TEST_CASE("a bias is added to a token's logit; -infinity bans it") {
  const auto sample = [](const Logits& logits, const SamplingOptions& options,
                         const Ids& recent = {}) {
    const auto sampled = chosen(make(options, logits.size()), logits, recent);
    CHECK(is_logprob(sampled.logprob, log_softmax(logits, static_cast<std::size_t>(sampled.id))));
    return sampled.id;
  };
  const Logits logits = {1.0f, 3.0f, 2.0f, -1.0f};
  SamplingOptions options;
  options.logit_bias = {{3, 4.5f}};
  CHECK(sample(logits, options) == 3);
  options.logit_bias = {{3, 3.5f}};
  CHECK(sample(logits, options) == 1);
  options.logit_bias = {{1, -kInfinity}, {2, -1.5f}};
  CHECK(sample(logits, options) == 0);
  options.logit_bias = {{3, 2.0f}, {0, 0.5f}, {3, 2.5f}};  // added up
  CHECK(sample(logits, options) == 3);
  // The penalty acts on the biased logit: -1 + 5 is positive, and is divided.
  options.logit_bias = {{3, 5.0f}};
  options.repetition_penalty = 2;
  CHECK(sample(logits, options, {3, 3}) == 1);
  options.repetition_penalty = 1.3f;
  CHECK(sample(logits, options, {3, 3}) == 3);

  // At a temperature: banned tokens never come, and others as often as their biased logit says.
  SamplingOptions drawn = plain();
  drawn.logit_bias = {{1, -kInfinity}, {0, 1.0f}};
  CHECK(chi_square(drawn, logits, {std::exp(2.0), 0, std::exp(2.0), std::exp(-1.0)}) < 16.27);
  CHECK(chi_square(drawn, logits, {std::exp(1.8), 0, std::exp(2.0), std::exp(-1.0)}) > 16.27);
}

TEST_CASE("other options for a sampler: its random numbers go on, unless the seed changes") {
  const Logits flat(1000, 0.5f);
  Sampler sampler = make(plain(1234567), flat.size());
  CHECK(chosen(sampler, flat, {}).id == 350);  // as above
  SamplingOptions options = plain(1234567);
  options.repetition_penalty = 2;
  options.min_p = 0.5f;
  REQUIRE(sampler.set_options(options));
  CHECK(chosen(sampler, flat, {}).id == 173);
  options.seed = 0;
  REQUIRE(sampler.set_options(options));
  CHECK(chosen(sampler, flat, {}).id == 883);
  options.top_p = 7;
  CHECK(!sampler.set_options(options));
  CHECK(sampler.options().top_p == 1);
}

TEST_CASE("rows of numbers among the recent tokens are not penalized") {
  SamplingOptions options;
  options.repetition_penalty = 10;
  CHECK(chosen(make(options, 3), Logits{1, 2, 1.5f}, Ids{-1, 1, -1, 3}).id == 2);
}

TEST_CASE("an option outside its range is an error that names it") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto error_of = [](auto change, Index vocab_size = 10) {
    SamplingOptions options;
    change(options);
    const auto sampler = Sampler::create(options, vocab_size);
    REQUIRE(!sampler);
    CHECK(sampler.error().code == nibble::Errc::invalid_argument);
    return sampler.error().message;
  };
  const auto names = [&](const char* name, auto member, auto... values) {
    for (const auto& value : {values...}) {
      const std::string message = error_of([&](SamplingOptions& o) { o.*member = value; });
      CHECK_MESSAGE(message.find(name) != std::string::npos, message);
    }
  };
  names("temperature", &SamplingOptions::temperature, -0.1f, nan, kInfinity, -kInfinity);
  names("top_p", &SamplingOptions::top_p, 0.0f, -1.0f, 1.01f, nan, kInfinity);
  names("min_p", &SamplingOptions::min_p, -0.1f, 1.01f, nan, kInfinity);
  names("repetition_penalty", &SamplingOptions::repetition_penalty, 0.0f, -1.0f, nan, kInfinity);
  names("frequency_penalty", &SamplingOptions::frequency_penalty, nan, kInfinity, -kInfinity);
  names("presence_penalty", &SamplingOptions::presence_penalty, nan, kInfinity, -kInfinity);
  names("dry_multiplier", &SamplingOptions::dry_multiplier, -0.1f, nan, kInfinity);
  names("dry_base", &SamplingOptions::dry_base, 0.99f, -1.0f, nan, kInfinity);
  names("typical_p", &SamplingOptions::typical_p, 0.0f, -1.0f, 1.01f, nan, kInfinity);
  names("xtc_probability", &SamplingOptions::xtc_probability, -0.1f, 1.01f, nan, kInfinity);
  names("xtc_threshold", &SamplingOptions::xtc_threshold, 0.0f, 1.01f, nan, kInfinity);
  names("temperature_range", &SamplingOptions::temperature_range, -0.1f, nan, kInfinity);
  names("temperature_exponent", &SamplingOptions::temperature_exponent, -0.1f, nan, kInfinity);
  names("mirostat_tau", &SamplingOptions::mirostat_tau, -0.1f, nan, kInfinity);
  names("mirostat_eta", &SamplingOptions::mirostat_eta, -0.1f, 1.01f, nan);
  names("top_k", &SamplingOptions::top_k, Index{-1}, std::numeric_limits<Index>::min());
  names("repetition_window", &SamplingOptions::repetition_window, Index{-1});
  names("dry_allowed_length", &SamplingOptions::dry_allowed_length, Index{0}, Index{-1});
  names("dry_window", &SamplingOptions::dry_window, Index{-1}, nibble::kMaxDryWindow + 1);
  names("top_logprobs", &SamplingOptions::top_logprobs, Index{-1});
  names("dry_breakers", &SamplingOptions::dry_breakers, Ids{-1}, Ids{3, 10});
  using Steps = std::vector<nibble::SamplingStep>;
  const auto top_k = nibble::SamplingStep::top_k, xtc = nibble::SamplingStep::xtc;
  names("top_k is there twice", &SamplingOptions::steps, Steps{top_k, xtc, top_k});
  names("no step 200", &SamplingOptions::steps, Steps{static_cast<nibble::SamplingStep>(200)});
  for (const nibble::LogitBias bias :
       {nibble::LogitBias{-1, 1}, {10, 1}, {0, nan}, {0, kInfinity}}) {
    CHECK(error_of([&](SamplingOptions& o) { o.logit_bias = {bias}; }).find("logit_bias") !=
          std::string::npos);
  }
  CHECK(error_of(
            [](SamplingOptions& o) {
              o.logit_bias = {{0, -kInfinity}, {1, -kInfinity}};
            },
            2)
            .find("no token is left") != std::string::npos);
  SamplingOptions twice;
  twice.logit_bias = {{0, -kInfinity}, {0, -kInfinity}};
  CHECK(chosen(make(twice, 2), Logits{5, 1}, {}).id == 1);
  for (const Index vocab_size : {Index{0}, Index{-1}}) {
    CHECK(error_of([](SamplingOptions&) {}, vocab_size).find("vocabulary") != std::string::npos);
  }
  constexpr Index kMost = std::numeric_limits<Index>::max();
  SamplingOptions largest = plain();
  largest.top_k = largest.repetition_window = largest.top_logprobs = kMost;
  largest.dry_allowed_length = kMost;
  largest.dry_multiplier = 1;
  CHECK(chosen(make(largest, 3), Logits{0, 0, 0}, Ids{1}).id < 3);
}

TEST_CASE("a token of logit minus infinity never comes") {
  const Logits logits = {-kInfinity, 1.0f, -kInfinity, 1.5f, -kInfinity};
  for (int i = 0; i < 8; ++i) {
    SamplingOptions options = plain();
    options.temperature = 1e6f;
    if (i & 1) options.top_p = 0.999999f;
    if (i & 2) options.min_p = 1e-30f;
    if (i & 4) options.repetition_penalty = 1.5f;
    CAPTURE(i);
    Sampler sampler = make(options, logits.size());
    std::set<std::int32_t> ids;
    for (int n = 0; n < 200; ++n) {
      const auto sampled = chosen(sampler, logits, Ids{0, 1, 4});
      ids.insert(sampled.id);
      CHECK(is_logprob(sampled.logprob, log_softmax(logits, static_cast<std::size_t>(sampled.id))));
    }
    CHECK(ids == std::set<std::int32_t>{1, 3});
  }
}

TEST_CASE("a vocabulary of one token") {
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingOptions options;
    options.temperature = temperature;
    options.repetition_penalty = 1.5f;
    const auto sampled = chosen(make(options, 1), Logits{-7.0f}, Ids{0, 0});
    CHECK(sampled.id == 0);
    CHECK(std::fabs(sampled.logprob) <= 1e-5f);
  }
}

TEST_CASE("no sample costs an allocation") {
  std::mt19937 random(9);
  const Logits logits = random_logits(random, 3000, 3);
  const Ids recent(100, 17);
  SamplingOptions all;
  all.temperature = 0.8f;
  all.repetition_penalty = 1.1f;
  all.logit_bias = {{17, 1.0f}, {3, -kInfinity}};
  SamplingOptions top_p = all, min_p = plain();
  top_p.top_k = 0;
  min_p.min_p = 0.01f;
  Sampler samplers[] = {make({}, logits.size()), make(plain(), logits.size()),
                        make(all, logits.size()), make(top_p, logits.size()),
                        make(min_p, logits.size())};
  std::int64_t sum = 0;
  const auto before = allocation_count();
  for (Sampler& sampler : samplers) {
    for (int i = 0; i < 20; ++i) sum += chosen(sampler, logits, recent).id;
  }
  const auto spent = allocation_count() - before;
  CHECK(spent == 0);
  CHECK(sum > 0);
}

}  // namespace sampler_test
