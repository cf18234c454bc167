// SPDX-License-Identifier: Apache-2.0
//
// Chains of sampling steps, against the definitions (sampling_oracle.hpp).
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/sampling_oracle.hpp"
#include "nibble/generate/sampler.hpp"

namespace sampling_chain_test {

using nibble::Errc;
using nibble::Index;
using nibble::Sampler;
using nibble::SamplingOptions;
using nibble::SamplingStep;
using test::Ids;
using test::Logits;
using test::Oracle;

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

std::int32_t id_of(Sampler& sampler, const Logits& logits, const Ids& recent = {}) {
  const auto sampled = sampler.sample(logits, recent);
  REQUIRE(sampled);
  return sampled->id;
}

Logits random_logits(std::mt19937& random, std::size_t n, float spread) {
  std::normal_distribution<float> normal(0, spread);
  Logits logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

Logits logs(const std::vector<double>& p) {
  Logits logits;
  for (const double x : p) logits.push_back(static_cast<float>(std::log(x)));
  return logits;
}

struct Random {
  std::mt19937 engine;
  template <class... T>
  auto one_of(T... x) {
    const std::common_type_t<T...> all[] = {x...};
    return all[engine() % sizeof...(x)];
  }
  bool one_in(unsigned n) { return engine() % n == 0; }
};

SamplingOptions random_options(Random& random, std::size_t n) {
  SamplingOptions o = plain(random.engine());
  if (random.one_in(2)) o.temperature = random.one_of(0.0f, 0.3f, 0.8f, 2.0f);
  if (random.one_in(3)) o.top_k = static_cast<Index>(random.engine() % (n + 3));
  if (random.one_in(3)) o.top_p = random.one_of(0.95f, 0.6f, 0.2f, 1e-6f);
  if (random.one_in(3)) o.min_p = random.one_of(0.01f, 0.1f, 0.5f);
  if (random.one_in(3)) o.typical_p = random.one_of(0.95f, 0.6f, 0.2f, 1e-6f);
  if (random.one_in(3)) {
    o.xtc_probability = random.one_of(1.0f, 0.4f);
    o.xtc_threshold = random.one_of(0.02f, 0.1f, 0.3f, 0.7f);
  }
  if (random.one_in(3)) {
    // Exact in binary: sums that round to another logit would be ties for the sampler only.
    o.repetition_penalty = random.one_of(1.0f, 1.25f, 0.5f);
    o.frequency_penalty = random.one_of(0.0f, 0.5f, -0.25f);
    o.presence_penalty = random.one_of(0.0f, 0.75f, -0.125f);
    o.repetition_window = random.one_of(0, 3, 64);
  }
  if (random.one_in(3)) {
    o.dry_multiplier = random.one_of(0.3f, 0.8f);
    o.dry_base = random.one_of(1.0f, 1.2f, 1.75f);
    o.dry_allowed_length = random.one_of(1, 2, 3);
    o.dry_window = random.one_of(5, 20, 4096);
    if (random.one_in(2)) o.dry_breakers = {static_cast<std::int32_t>(n - 1), 0};
  }
  if (random.one_in(4)) {
    o.temperature_range = random.one_of(0.2f, 0.9f);
    o.temperature_exponent = random.one_of(1.0f, 0.5f, 2.0f);
  }
  if (random.one_in(4)) {
    o.mirostat_tau = random.one_of(0.5f, 1.5f, 3.0f);
    o.mirostat_eta = random.one_of(0.1f, 0.9f);
  }
  if (random.one_in(3)) o.logit_bias = {{0, 1.0f}, {static_cast<std::int32_t>(n - 1), -kInfinity}};
  if (random.one_in(2)) {
    o.steps.assign(std::begin(nibble::kSamplingSteps), std::end(nibble::kSamplingSteps));
    std::shuffle(o.steps.begin(), o.steps.end(), random.engine);
    o.steps.resize(1 + random.engine() % o.steps.size());
  }
  return o;
}

// Of few words, so that they repeat themselves.
Ids random_text(Random& random, std::size_t n_vocab) {
  Ids ids(random.engine() % 40);
  const std::size_t n = 1 + random.engine() % std::min(n_vocab, std::size_t{4});
  for (auto& id : ids) id = static_cast<std::int32_t>(random.engine() % n);
  return ids;
}

std::set<std::int32_t> seen(SamplingOptions options, const Logits& logits, const Ids& recent = {}) {
  Sampler sampler = make(options, logits.size());
  std::set<std::int32_t> ids;
  for (int i = 0; i < 2000; ++i) ids.insert(id_of(sampler, logits, recent));
  return ids;
}

// Pearson's statistic of n samples, for probabilities proportional to `expected`.
double chi_square(const SamplingOptions& options, const Logits& logits,
                  const std::vector<double>& expected, const Ids& recent = {}) {
  constexpr int kSamples = 20000;
  Sampler sampler = make(options, logits.size());
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kSamples; ++i) {
    ++counts[static_cast<std::size_t>(id_of(sampler, logits, recent))];
  }
  double sum = 0, statistic = 0;
  for (const double x : expected) sum += x;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double mean = kSamples * expected[i] / sum;
    if (mean == 0 && counts[i] > 0) return double{kInfinity};
    if (mean > 0) statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  return statistic;
}
constexpr double kLimit3 = 21.11, kLimit2 = 18.42;  // exceeded once in 10 000 times, by freedom

}  // namespace

TEST_CASE("any chain, in any order, gives the tokens that the definitions give") {
  Random random{std::mt19937(21)};
  std::size_t n_near = 0, n_checked = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::size_t n = i % 50 == 0 ? 5000 : 2 + random.engine() % 30;
    Logits logits = random_logits(random.engine, n, random.one_of(0.3f, 1.0f, 3.0f));
    if (i % 4 == 0) {
      for (float& x : logits) x = std::round(2 * x) / 2;  // many are equal
    }
    const SamplingOptions options = random_options(random, n);
    Sampler sampler = make(options, n);
    Oracle oracle(options, n);
    Ids recent = random_text(random, n);
    CAPTURE(i);
    for (int k = 0; k < 6; ++k) {
      const auto expected = oracle.sample(logits, recent);
      const auto sampled = id_of(sampler, logits, recent);
      if (oracle.near()) {
        ++n_near;
        break;  // what follows depends on it
      }
      ++n_checked;
      CHECK(sampled == expected);
      recent.push_back(sampled);
      std::shuffle(logits.begin(), logits.end(), random.engine);
    }
  }
  CHECK(n_checked > 15000);
  CHECK(n_near < 600);
}

namespace {

struct Case {
  SamplingOptions options;
  Logits logits;
  Ids recent;
  std::map<std::int32_t, double> kept;
};

template <class T>
std::vector<T> read_list(std::istream& in) {
  std::size_t n = 0;
  in >> n;
  std::vector<T> values(n);
  for (T& x : values) in >> x;
  return values;
}

// A line that make_sampling_goldens.py wrote.
Case read_case(std::istream& in) {
  Case c;
  SamplingOptions& o = c.options;
  in >> o.temperature >> o.top_k >> o.top_p >> o.min_p >> o.typical_p >> o.xtc_threshold >>
      o.repetition_penalty >> o.frequency_penalty >> o.presence_penalty >> o.repetition_window >>
      o.dry_multiplier >> o.dry_base >> o.dry_allowed_length >> o.dry_window >>
      o.temperature_range >> o.temperature_exponent >> o.mirostat_tau;
  o.xtc_probability = 1;
  std::string names, name;
  in >> names;
  std::istringstream list(names);
  while (std::getline(list, name, ',')) {
    for (const SamplingStep step : nibble::kSamplingSteps) {
      if (name == to_string(step)) o.steps.push_back(step);
    }
  }
  c.logits = read_list<float>(in);
  c.recent = read_list<std::int32_t>(in);
  o.dry_breakers = read_list<std::int32_t>(in);
  std::size_t n = 0;
  in >> n;
  for (std::int32_t id; n > 0; --n) {
    double p = 0;
    in >> id >> p;
    if (p > 1e-6) c.kept[id] = p;
  }
  return c;
}

}  // namespace

TEST_CASE("chains keep the tokens that llama.cpp keeps, with its probabilities") {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");  // ctest sets it
  REQUIRE_MESSAGE(project != nullptr, "NIBBLE_PROJECT_DIR must name the project's folder");
  std::ifstream file(std::string(project) + "/tests/generate/sampling_goldens.txt");
  std::size_t n_cases = 0, n_near = 0;
  for (std::string line; std::getline(file, line);) {
    CAPTURE(line);
    std::istringstream in(line);
    const Case c = read_case(in);
    REQUIRE(!in.fail());
    ++n_cases;
    Oracle oracle(c.options, c.logits.size());
    oracle.sample(c.logits, c.recent);
    if (oracle.near()) {
      ++n_near;
      continue;
    }
    const auto kept = oracle.kept();
    REQUIRE(kept.size() == c.kept.size());
    for (const auto& [id, p] : c.kept) {
      REQUIRE(kept.count(id) == 1);
      CHECK(std::fabs(kept.at(id) - p) < 1e-5);
    }
    SamplingOptions once = c.options;  // mirostat's limit stays where it begins
    once.mirostat_eta = 0;
    Sampler sampler = make(once, c.logits.size());
    std::map<std::int32_t, int> counts;
    constexpr int kSamples = 400;
    for (int i = 0; i < kSamples; ++i) ++counts[id_of(sampler, c.logits, c.recent)];
    for (const auto& [id, n] : counts) REQUIRE(c.kept.count(id) == 1);
    for (const auto& [id, p] : c.kept) {
      // Seven standard deviations.
      CHECK(std::fabs(counts[id] - kSamples * p) <= 1 + 7 * std::sqrt(kSamples * p * (1 - p)));
    }
  }
  CHECK(n_cases == 300);
  CHECK(n_near < 30);
}

TEST_CASE("the order of the steps matters, as it should") {
  using S = SamplingStep;
  using Set = std::set<std::int32_t>;
  const Logits logits = logs({0.5, 0.25, 0.15, 0.1});
  SamplingOptions o = plain();
  o.temperature = 2;
  o.top_p = 0.7f;
  CHECK(seen(o, logits) == Set{0, 1});  // 0.5 + 0.25
  o.steps = {S::temperature, S::top_p};
  CHECK(seen(o, logits) == Set{0, 1, 2});  // square roots: 0.37 + 0.26 + 0.20
  o.steps = {S::temperature};
  CHECK(seen(o, logits) == Set{0, 1, 2, 3});  // a step that is not named is not done

  SamplingOptions penalized = plain();
  penalized.top_k = 2;
  penalized.presence_penalty = 5;
  CHECK(seen(penalized, logits, {0}) == Set{1, 2});
  penalized.steps = {S::top_k, S::penalties};
  penalized.presence_penalty = 1;
  CHECK(seen(penalized, logits, {0}) == Set{0, 1});

  SamplingOptions excluding = plain();
  excluding.xtc_probability = 1;
  excluding.xtc_threshold = 0.2f;
  excluding.top_k = 2;
  CHECK(seen(excluding, logits) == Set{1});
  excluding.steps = {S::xtc, S::top_k};
  CHECK(seen(excluding, logits) == Set{1, 2});
}

TEST_CASE("the default order is that of kSamplingSteps; with mirostat, without the other filters") {
  Random random{std::mt19937(22)};
  for (int i = 0; i < 200; ++i) {
    const Logits logits = random_logits(random.engine, 40, 2);
    SamplingOptions by_default = random_options(random, logits.size());
    by_default.steps.clear();
    SamplingOptions explicitly = by_default;
    for (const SamplingStep step : nibble::kSamplingSteps) {
      using S = SamplingStep;
      const bool stays =
          step == S::penalties || step == S::dry || step == S::temperature || step == S::mirostat;
      if (by_default.mirostat_tau == 0 || stays) explicitly.steps.push_back(step);
    }
    const Ids recent = random_text(random, logits.size());
    Sampler a = make(by_default, logits.size()), b = make(explicitly, logits.size());
    for (int k = 0; k < 5; ++k) CHECK(id_of(a, logits, recent) == id_of(b, logits, recent));
  }
}

TEST_CASE("penalties by frequency and presence change probabilities as their formulas say") {
  SamplingOptions o = plain(3);
  o.frequency_penalty = 0.5f;
  o.presence_penalty = 0.25f;
  const Logits logits = logs({0.4, 0.3, 0.2, 0.1});
  const Ids recent = {0, 2, 0, 0};
  const std::vector<double> expected = {0.4 * std::exp(-1.75), 0.3, 0.2 * std::exp(-0.75), 0.1};
  CHECK(chi_square(o, logits, expected, recent) < kLimit3);
  o.frequency_penalty = 0.4f;
  CHECK(chi_square(o, logits, expected, recent) > kLimit3);
  o.frequency_penalty = 0.5f;
  o.repetition_window = 3;
  CHECK(chi_square(o, logits, {0.4 * std::exp(-1.25), 0.3, 0.2 * std::exp(-0.75), 0.1}, recent) <
        kLimit3);
}

TEST_CASE("DRY lowers what would continue a repetition, by its length") {
  SamplingOptions o = plain(4);
  o.dry_multiplier = 0.4f;
  o.dry_base = 2;
  const Logits logits(4, 0.0f);
  // After 0 1 2: 3 came. Now 0 1 2 again: a repetition of 3, 0.4 * 2^(3 - 2).
  const Ids recent = {0, 1, 2, 3, 0, 1, 2};
  CHECK(chi_square(o, logits, {1, 1, 1, std::exp(-0.8)}, recent) < kLimit3);
  CHECK(chi_square(o, logits, {1, 1, 1, std::exp(-0.4)}, recent) > kLimit3);
  o.dry_breakers = {1};  // a repetition of 1 only
  CHECK(chi_square(o, logits, {1, 1, 1, 1}, recent) < kLimit3);
  o.dry_breakers = {0};
  CHECK(chi_square(o, logits, {1, 1, 1, std::exp(-0.4)}, recent) < kLimit3);
  o.dry_breakers = {3};  // is never lowered
  CHECK(chi_square(o, logits, {1, 1, 1, 1}, recent) < kLimit3);
  // However long a repetition: no token becomes impossible, and the others stay in proportion.
  o.dry_breakers = {};
  CHECK(seen(o, logits, Ids(4000, 3)) == std::set<std::int32_t>{0, 1, 2});
  CHECK(seen(o, Logits(1, 0.0f), Ids(4000, 0)) == std::set<std::int32_t>{0});
}

TEST_CASE("XTC drops the top choices with its probability, and never all") {
  const std::vector<double> p = {0.4, 0.3, 0.2, 0.1};
  const Logits logits = logs(p);
  SamplingOptions o = plain(5);
  o.xtc_threshold = 0.15f;
  o.xtc_probability = 1;
  CHECK(chi_square(o, logits, {0, 0, 0.2, 0.1}) < 15.14);
  o.xtc_probability = 0.5f;
  const double left = 0.5 / 0.3;
  const std::vector<double> half = {0.2, 0.15, 0.1 + 0.2 * left, 0.05 + 0.1 * left};
  CHECK(chi_square(o, logits, half) < kLimit3);
  o.top_k = 3;  // on a list as well: there the last of them is all that is left
  CHECK(chi_square(o, logits, {0.4 / 1.8, 0.3 / 1.8, 0.2 / 1.8 + 0.5, 0}) < kLimit2);
  o.top_k = 0;
  o.xtc_probability = 0.45f;
  CHECK(chi_square(o, logits, half) > kLimit3);
  o.xtc_probability = 1;
  o.xtc_threshold = 0.35f;  // only one: it stays
  CHECK(chi_square(o, logits, p) < kLimit3);
  o.xtc_threshold = 0.6f;
  CHECK(chi_square(o, logits, p) < kLimit3);
}

TEST_CASE("typical sampling can drop the most likely token") {
  // Entropy 1.28: surprises are 0.69, 1.61, 1.90 and 1.90.
  const Logits logits = logs({0.5, 0.2, 0.15, 0.15});
  SamplingOptions o = plain(6);
  o.typical_p = 0.15f;
  CHECK(seen(o, logits) == std::set<std::int32_t>{1});
  o.typical_p = 0.25f;
  CHECK(seen(o, logits) == std::set<std::int32_t>{0, 1});
  o.temperature = 0;
  o.typical_p = 0.15f;
  CHECK(seen(o, logits) == std::set<std::int32_t>{1});
}

TEST_CASE("dynamic temperature goes from its least to its most with the entropy") {
  SamplingOptions o = plain(7);
  o.temperature_range = 1;
  const std::vector<double> p = {0.7, 0.1, 0.1, 0.1};
  double entropy = 0;
  for (const double x : p) entropy -= x * std::log(x);
  const double t = 2 * entropy / std::log(4.0);
  std::vector<double> expected, other;
  for (const double x : p) {
    expected.push_back(std::pow(x, 1 / t));
    other.push_back(std::pow(x, 0.9 / t));
  }
  CHECK(chi_square(o, logs(p), expected) < kLimit3);
  CHECK(chi_square(o, logs(p), other) > kLimit3);
  CHECK(chi_square(o, Logits(4, 1.0f), {1, 1, 1, 1}) < kLimit3);
  // A temperature of 0 is reached where one token has everything.
  CHECK(seen(o, {0, 200, 0, 0}) == std::set<std::int32_t>{1});
}

TEST_CASE("mirostat brings the mean surprise to its target, whatever it was") {
  Random random{std::mt19937(23)};
  for (const float tau : {1.0f, 2.5f, 4.0f}) {
    for (const float spread : {0.7f, 2.0f}) {
      SamplingOptions o = plain(random.engine());
      o.mirostat_tau = tau;
      Sampler sampler = make(o, 400);
      Oracle oracle(o, 400);
      double surprise = 0;
      constexpr int kTokens = 4000;
      std::size_t n_different = 0;
      for (int i = 0; i < kTokens; ++i) {
        const Logits logits = random_logits(random.engine, 400, spread);
        n_different += id_of(sampler, logits) != oracle.sample(logits, {});
        surprise += oracle.surprise();
      }
      CHECK(n_different <= 2);  // by rounding
      CAPTURE(tau);
      CAPTURE(spread);
      CHECK(std::fabs(surprise / kTokens - double{tau}) < 0.05 * double{tau});
    }
  }
}

TEST_CASE("log-probabilities of the most likely tokens") {
  Random random{std::mt19937(24)};
  for (int i = 0; i < 100; ++i) {
    Logits logits = random_logits(random.engine, 1 + random.engine() % 300, 3);
    for (std::size_t j = 1; j < logits.size(); j += 3) logits[j] = -kInfinity;
    if (i % 2 == 0) {
      for (float& x : logits) x = std::round(x);
    }
    SamplingOptions o = random_options(random, logits.size() + 1);
    o.dry_breakers.clear();
    o.logit_bias.clear();
    o.top_logprobs = random.one_of(0, 1, 20, 1000);
    Sampler sampler = make(o, logits.size());
    CHECK(sampler.top_logprobs().empty());
    const Ids recent = random_text(random, logits.size());
    const auto sampled = sampler.sample(logits, recent);
    REQUIRE(sampled);
    std::vector<std::pair<double, std::int32_t>> expected;
    double sum = 0;
    for (std::size_t j = 0; j < logits.size(); ++j) {
      sum += std::exp(double{logits[j]});
      if (logits[j] > -kInfinity)
        expected.push_back({-double{logits[j]}, static_cast<std::int32_t>(j)});
    }
    std::sort(expected.begin(), expected.end());
    expected.resize(std::min(expected.size(), static_cast<std::size_t>(o.top_logprobs)));
    REQUIRE(sampler.top_logprobs().size() == expected.size());
    for (std::size_t j = 0; j < expected.size(); ++j) {
      const auto& one = sampler.top_logprobs()[j];
      CHECK(one.id == expected[j].second);
      CHECK(double{one.logprob} ==
            doctest::Approx(-expected[j].first - std::log(sum)).epsilon(1e-5));
      if (one.id == sampled->id) CHECK(one.logprob == sampled->logprob);
    }
    // To ask for them changes no token.
    o.top_logprobs = 0;
    Sampler without = make(o, logits.size());
    CHECK(id_of(without, logits, recent) == sampled->id);
    for (int k = 0; k < 5; ++k)
      CHECK(id_of(without, logits, recent) == id_of(sampler, logits, recent));
  }
}

TEST_CASE("logits that are not numbers, and none left, are errors that use no random number") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Logits flat(1000, 0.5f);
  for (const bool draws : {false, true}) {
    for (const Index top : {Index{0}, Index{3}}) {
      SamplingOptions o = plain(1234567);
      o.temperature = draws ? 1.0f : 0.0f;
      o.top_logprobs = top;
      o.logit_bias = {{4, -kInfinity}};
      Sampler sampler = make(o, flat.size());
      const auto error_of = [&](const Logits& logits) {
        const auto sampled = sampler.sample(logits, Ids{1});
        REQUIRE(!sampled);
        return sampled.error();
      };
      for (const float bad : {nan, kInfinity}) {
        for (const std::size_t at : {std::size_t{0}, std::size_t{997}}) {
          Logits logits = flat;
          logits[at] = bad;
          CHECK(error_of(logits).code == Errc::malformed);
          CHECK(error_of(logits).message.find("not numbers") != std::string::npos);
          logits.assign(1000, bad);
          CHECK(error_of(logits).code == Errc::malformed);
        }
      }
      Logits masked(1000, -kInfinity);
      CHECK(error_of(masked).code == Errc::invalid_argument);
      CHECK(error_of(masked).message.find("no token is left") != std::string::npos);
      masked[4] = 7;  // the bias bans the only one
      CHECK(error_of(masked).code == Errc::invalid_argument);
      masked[5] = -3e38f;
      CHECK(id_of(sampler, masked) == 5);
      Sampler fresh = make(o, flat.size());
      id_of(fresh, flat);
      CHECK(id_of(sampler, flat) == id_of(fresh, flat));
    }
  }
}

TEST_CASE("a chain is as fast to a hostile text: no repetition costs more than its length") {
  SamplingOptions o = plain(9);
  o.dry_multiplier = 1;
  o.dry_window = nibble::kMaxDryWindow;
  o.repetition_window = std::numeric_limits<Index>::max();
  o.frequency_penalty = 3e38f;
  o.presence_penalty = 3e38f;
  Ids recent(std::size_t{1} << 20, 1);  // each suffix matches at each place: 2^39 comparisons
  for (std::size_t i = 0; i < 9; ++i) recent[i * 1000] = -1;
  Sampler sampler = make(o, 3);
  for (int i = 0; i < 3; ++i) CHECK(id_of(sampler, {0, 0, 0}, recent) != 1);
  o.logit_bias = {{0, -kInfinity}, {2, -kInfinity}};
  Sampler only = make(o, 3);
  CHECK(id_of(only, {0, 0, 0}, recent) == 1);
}

TEST_CASE("what mirostat has learned stays with other options, unless target or seed change") {
  SamplingOptions o = plain(11);
  o.mirostat_tau = 2;
  o.mirostat_eta = 1;
  Random random{std::mt19937(25)};
  const Logits logits = random_logits(random.engine, 100, 2);
  const auto ids_after = [&](auto change) {
    Sampler sampler = make(o, logits.size());
    for (int i = 0; i < 7; ++i) id_of(sampler, logits);
    SamplingOptions changed = o;
    change(changed);
    REQUIRE(sampler.set_options(changed));
    Ids ids;
    for (int i = 0; i < 30; ++i) ids.push_back(id_of(sampler, logits));
    return ids;
  };
  const Ids same = ids_after([](SamplingOptions&) {});
  CHECK(ids_after([](SamplingOptions& c) { c.top_logprobs = 5; }) == same);
  Sampler straight = make(o, logits.size());
  Ids all;
  for (int i = 0; i < 37; ++i) all.push_back(id_of(straight, logits));
  CHECK(Ids(all.begin() + 7, all.end()) == same);
  Sampler anew = make(o, logits.size());
  REQUIRE(anew.set_options([&] {
    SamplingOptions other = o;
    other.seed = 12;
    return other;
  }()));
  REQUIRE(anew.set_options(o));
  CHECK(id_of(anew, logits) == all[0]);
}

TEST_CASE("no step of a chain costs an allocation") {
  Random random{std::mt19937(26)};
  const Logits logits = random_logits(random.engine, 3000, 3);
  Ids recent(500);
  for (auto& id : recent) id = static_cast<std::int32_t>(random.engine() % 3);
  std::int64_t sum = 0;
  for (int i = 0; i < 300; ++i) {
    SamplingOptions o = random_options(random, logits.size());
    o.top_logprobs = random.one_of(0, 5, 5000);
    Sampler sampler = make(o, logits.size());
    const auto before = allocation_count();
    for (int k = 0; k < 10; ++k) {
      const auto sampled = sampler.sample(logits, recent);
      sum += sampled ? sampled->id : -1000000;
    }
    CHECK(allocation_count() == before);
  }
  CHECK(sum > 0);
}

}  // namespace sampling_chain_test
