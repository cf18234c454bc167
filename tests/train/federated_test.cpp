// SPDX-License-Identifier: Apache-2.0
#include "nibble/train/federated.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "why.hpp"

namespace federated_test {

using namespace nibble;
using namespace nibble::train;
using test::contains, test::why;

namespace {

// Two parameters of 5 and 3 values.
struct Values {
  std::vector<float> a = std::vector<float>(5), b = std::vector<float>(3);

  std::vector<Parameter> parameters(const char* second = "b") {
    Parameter first, other;
    first.name = "a";
    first.values = a;
    other.name = second;
    other.values = b;
    return {first, other};
  }
};

Values random_values(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Values v;
  for (float& x : v.a) x = normal(random);
  for (float& x : v.b) x = 100 * normal(random);
  return v;
}

// Trains by adding a number that is its own.
class Adder final : public FederatedClient {
 public:
  Adder(float step, std::uint64_t n) : step_(step), n_(n) {}
  std::vector<Parameter> shared() override { return values.parameters(); }
  Result<std::uint64_t> train(std::uint64_t round) override {
    rounds.push_back(round);
    for (float& x : values.a) x += step_;
    for (float& x : values.b) x += step_;
    return n_;
  }
  Result<void> learn(std::uint64_t, std::uint64_t of_round, const TopLogits& mean) override {
    learned.push_back(of_round);
    n_learned += mean.n_examples();
    return ok();
  }
  Result<TopLogits> predict(std::uint64_t) override {
    NIBBLE_TRY(out, TopLogits::create(2, 4));
    const float logits[] = {step_, 0, 1, -1, 0, step_, 0, 0};
    NIBBLE_CHECK(out.add(MatrixView<const float>(logits, 2, 4)));
    return out;
  }

  Values values;
  std::vector<std::uint64_t> rounds, learned;
  Index n_learned = 0;

 private:
  float step_;
  std::uint64_t n_;
};

using Bytes = std::vector<std::byte>;

Bytes update(std::uint64_t round, std::uint64_t weight, Values values, const char* second = "b") {
  auto bytes = federated_values(FederatedKind::update, round, weight, values.parameters(second),
                                SentAs::f32);
  REQUIRE_MESSAGE(bytes.has_value(), why(bytes));
  return *std::move(bytes);
}

// A coordinator and four places.
struct Party {
  Mailboxes mailboxes{5};
  InProcessTransport place{mailboxes, kCoordinator};
  Coordinator coordinator;
  Values model = random_values(1);

  explicit Party(CoordinatorOptions options = {.seconds = 0}) : coordinator(place, options) {}
  void ask(std::vector<Index> clients) {
    const auto asked = coordinator.ask_to_train(model.parameters(), clients);
    REQUIRE_MESSAGE(asked.has_value(), why(asked));
  }
  RoundReport average() {
    auto report = coordinator.average(model.parameters());
    REQUIRE_MESSAGE(report.has_value(), why(report));
    return *std::move(report);
  }
  void send(Index from, const Bytes& bytes) { mailboxes.put(kCoordinator, {from, bytes}); }
};

}  // namespace

TEST_CASE("the mean of values is that of an oracle, whatever order they come in") {
  std::vector<SentValues> sent;
  for (const Index client : {3, 1, 7, 4, 2}) {
    const Values v = random_values(static_cast<unsigned>(client));
    SentValues one{client, static_cast<std::uint64_t>(10 + 7 * client), v.a};
    one.values.insert(one.values.end(), v.b.begin(), v.b.end());
    sent.push_back(one);
  }
  std::vector<std::vector<float>> results;
  for (int turn = 0; turn < 4; ++turn) {
    Values out;
    average_values(sent, out.parameters());
    std::vector<float> all = out.a;
    all.insert(all.end(), out.b.begin(), out.b.end());
    for (std::size_t i = 0; i < all.size(); ++i) {
      long double sum = 0, weights = 0;
      for (const SentValues& one : sent) {
        sum += static_cast<long double>(one.weight) * static_cast<long double>(one.values[i]);
        weights += static_cast<long double>(one.weight);
      }
      // One rounding to f32; that of the sum in double is 2^29 times smaller.
      const auto right = static_cast<double>(sum / weights);
      CHECK(std::fabs(static_cast<double>(all[i]) - right) <= std::fabs(right) * 0x1p-23);
    }
    results.push_back(all);
    std::rotate(sent.begin(), sent.begin() + 1, sent.end());
    if (turn == 1) std::swap(sent[0], sent[3]);
  }
  for (const auto& result : results) CHECK(result == results.front());
}

TEST_CASE("the mean has one order of sums") {
  // 2^60 + 1 is 2^60 in double: what is left of 1 depends on the order.
  std::vector<SentValues> sent;
  for (const auto& [client, x] : {std::pair{2, 0x1p60f}, {1, 1.0f}, {3, -0x1p60f}, {4, 2.0f}}) {
    sent.push_back({client, 1, std::vector<float>(8, x)});
  }
  for (int turn = 0; turn < 4; ++turn) {
    Values out;
    average_values(sent, out.parameters());
    CHECK(out.a[0] == 0.5f);  // ((1 + 2^60) - 2^60) + 2, of four
    std::rotate(sent.begin(), sent.begin() + 1, sent.end());
  }
}

TEST_CASE("a round takes who answers, and counts bytes") {
  for (const SentAs sent_as : {SentAs::f32, SentAs::f16}) {
    Party party({.seconds = 0, .sent_as = sent_as});
    const Values before = party.model;
    Adder one(1, 10), two(-2, 30), three(5, 60);
    InProcessTransport at1(party.mailboxes, 1), at2(party.mailboxes, 2), at3(party.mailboxes, 3);
    party.ask({1, 2, 3, 4});
    const auto away = serve(at3, three, 0, sent_as);  // answers first
    CHECK((away && *away == Served::answered));
    CHECK(*serve(at1, one, 0, sent_as) == Served::answered);
    RoundReport report = party.average();
    CHECK(report.round == 1);
    CHECK(report.used == std::vector<Index>{1, 3});
    CHECK(report.silent == std::vector<Index>{2, 4});
    CHECK(report.excluded.empty());
    CHECK(report.n_examples == 70);
    const std::size_t size =
        federated_values(FederatedKind::train, 1, 0, party.model.parameters(), sent_as)->size();
    CHECK(report.bytes_sent == 4 * size);
    CHECK(report.bytes_received == 2 * size);
    const float mean = (10 * 1.0f + 60 * 5.0f) / 70;
    const float tolerance = sent_as == SentAs::f32 ? 1e-4f : 0.3f;  // 2^-11 of a few hundred
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(std::fabs(party.model.b[i] - (before.b[i] + mean)) < tolerance);
    }

    // Who was away gets the newest model alone, and its answers to older rounds do not count.
    party.ask({1, 2, 3, 4});
    party.send(4, update(1, 1, random_values(5)));
    CHECK(*serve(at2, two, 0, sent_as) == Served::answered);
    CHECK(two.rounds == std::vector<std::uint64_t>{2});
    report = party.average();
    CHECK(report.used == std::vector<Index>{2});
    CHECK(report.n_late == 1);
    CHECK(report.silent == std::vector<Index>{1, 3, 4});
    CHECK(party.model.a == two.values.a);  // the only one

    // Nobody: the model stays.
    party.ask({1});
    CHECK(party.average().used.empty());
    CHECK(party.model.a == two.values.a);
    CHECK(party.coordinator.stop().has_value());
    CHECK(*serve(at1, one, 0, sent_as) == Served::stopped);
  }
}

TEST_CASE("threads answer in any order, with the same bits") {
  std::vector<float> first;
  for (int turn = 0; turn < 4; ++turn) {
    Party party({.seconds = 60});
    std::vector<std::thread> threads;
    for (Index rank = 1; rank <= 4; ++rank) {
      threads.emplace_back([&, rank] {
        InProcessTransport at(party.mailboxes, rank);
        Adder client(0.37f * static_cast<float>(rank), static_cast<std::uint64_t>(3 * rank));
        for (;;) {
          const auto served = serve(at, client, 60);
          if (!served || *served != Served::answered) return;
        }
      });
    }
    for (int round = 0; round < 5; ++round) {
      party.ask({1, 2, 3, 4});
      CHECK(party.average().used.size() == 4);
    }
    CHECK(party.coordinator.stop().has_value());
    for (std::thread& thread : threads) thread.join();
    if (turn == 0) first = party.model.b;
    CHECK(party.model.b == first);
  }
}

TEST_CASE("broken answers exclude their clients") {
  const Values good = random_values(9);
  Values larger_one = good;
  larger_one.b.push_back(1);
  // A value in the bytes becomes NaN: the writer would refuse it.
  Bytes nan = update(1, 5, good);
  const float last = good.b[2];
  const float broken = std::numeric_limits<float>::quiet_NaN();
  bool is_found = false;
  for (std::size_t i = 0; i + 4 <= nan.size(); i += 4) {
    if (std::memcmp(nan.data() + i, &last, 4) != 0) continue;
    std::memcpy(nan.data() + i, &broken, 4);
    is_found = true;
  }
  REQUIRE(is_found);
  Bytes cut = update(1, 5, good);
  cut.resize(cut.size() - 40);
  const auto note = federated_note(FederatedKind::update, 1);
  auto other_kind =
      federated_values(FederatedKind::train, 1, 5, Values(good).parameters(), SentAs::f32);
  const std::vector<std::pair<Bytes, const char*>> cases = {
      {nan, "client 2: parameter 'b' has a value that is not finite"},
      {update(1, 5, larger_one), "client 2: another model: no parameter 'b' of 3 values"},
      {update(1, 5, good, "c"), "client 2: another model: no parameter 'b' of 3 values"},
      {update(2, 5, good), "client 2: an answer to round 2, which has not begun"},
      {update(1, 0, good), "client 2: claims to have trained on 0 examples"},
      {update(1, ~std::uint64_t{0}, good), "client 2: claims to have trained on 1844674"},
      {*note, "client 2: claims to have trained on 0 examples"},
      {*other_kind, "client 2: an answer of another kind"},
      {cut, "client 2"},
      {{}, "client 2"},
      {Bytes(100, std::byte{0x47}), "client 2"},
  };
  for (const auto& [bytes, message] : cases) {
    CAPTURE(message);
    Party party;
    party.ask({1, 2});
    party.send(2, bytes);
    party.send(2, update(1, 5, random_values(3)));  // a second answer does not count
    party.send(1, update(1, 5, good));
    const RoundReport report = party.average();
    CHECK(report.used == std::vector<Index>{1});
    REQUIRE(report.excluded.size() == 1);
    CHECK(report.excluded[0].client == 2);
    CHECK_MESSAGE(contains(report.excluded[0].error.message, message),
                  report.excluded[0].error.message);
    CHECK(party.model.a == good.a);
    CHECK(party.model.b == good.b);
  }
  // Whoever was not asked says nothing, and one that answers twice counts once.
  Party party;
  party.ask({1, 2});
  party.send(3, update(1, 1000, random_values(3)));
  party.send(1, update(1, 5, good));
  party.send(1, update(1, 5, random_values(3)));
  const RoundReport report = party.average();
  CHECK(report.used == std::vector<Index>{1});
  CHECK(report.excluded.empty());
  CHECK(party.model.b == good.b);

  // A model that is broken is not sent; clients refuse another model than theirs.
  party.model.a[0] = std::numeric_limits<float>::infinity();
  const std::vector<Index> all{1};
  const auto refused = party.coordinator.ask_to_train(party.model.parameters(), all);
  REQUIRE(!refused);
  CHECK(contains(refused.error().message, "'a': a value that is not finite"));
  Adder client(1, 1);
  InProcessTransport at4(party.mailboxes, 4);
  party.mailboxes.put(4, {kCoordinator, update(1, 1, good, "c")});
  const auto served = serve(at4, client, 0);
  REQUIRE(!served);
  CHECK(client.rounds.empty());
  // Clients do not listen to each other.
  party.mailboxes.put(4, {3, update(1, 1, good)});
  CHECK(*serve(at4, client, 0) == Served::nothing);
}

TEST_CASE("a client that is listed twice is asked once") {
  Party party;
  party.ask({1, 2, 1, 1});
  Adder one(1, 10);
  InProcessTransport at1(party.mailboxes, 1);
  CHECK(at1.receive(0)->has_value());
  CHECK(!at1.receive(0)->has_value());
  party.send(1, update(1, 5, random_values(3)));
  party.send(1, update(1, 5, random_values(4)));
  const RoundReport report = party.average();
  CHECK(report.used == std::vector<Index>{1});
  CHECK(report.silent == std::vector<Index>{2});
  CHECK(report.n_examples == 5);
  CHECK(party.model.a == random_values(3).a);
}

TEST_CASE("a client that others flood with messages does not wait for ever") {
  // Always has one more message of another client.
  class Flood final : public Transport {
   public:
    Index rank() const noexcept override { return 1; }
    Index n_ranks() const noexcept override { return 3; }
    Result<void> send(Index, std::span<const std::byte>) override { return ok(); }
    Result<std::optional<Received>> receive(double) override {
      return std::optional<Received>(Received{2, {}});
    }
  };
  Flood flood;
  Adder client(1, 1);
  const auto served = serve(flood, client, 0);
  REQUIRE(served);
  CHECK(*served == Served::nothing);
}

TEST_CASE("the mean of predictions is that of an oracle") {
  constexpr Index kVocabulary = 12, k = 4;
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<SentPredictions> sent;
  for (Index client = 1; client <= 3; ++client) {
    auto made = TopLogits::create(k, kVocabulary, 1.5);
    REQUIRE(made.has_value());
    for (const Index n_rows : {2, 1, 3}) {
      std::vector<float> logits(static_cast<std::size_t>(n_rows * kVocabulary));
      for (float& x : logits) x = normal(random);
      REQUIRE(made->add(MatrixView<const float>(logits.data(), n_rows, kVocabulary)).has_value());
    }
    sent.push_back({client, static_cast<std::uint64_t>(client * client), *std::move(made)});
  }
  for (const double sharpness : {0.0, 2.0}) {
    const auto mean = average_predictions(sent, k, sharpness);
    REQUIRE_MESSAGE(mean.has_value(), why(mean));
    for (Index e = 0; e < 3; ++e) {
      REQUIRE(mean->n_rows(e) == sent[0].predictions.n_rows(e));
      for (Index r = 0; r < mean->n_rows(e); ++r) {
        std::vector<double> p(kVocabulary, 0.0);
        double weights = 0;
        for (const SentPredictions& one : sent) {
          const TopRow row = one.predictions.row(e, r);
          std::vector<double> own(kVocabulary, static_cast<double>(row.rest) / (kVocabulary - k));
          double most = 0;
          for (std::size_t i = 0; i < row.ids.size(); ++i) {
            own[row.ids[i]] = std::exp(static_cast<double>(to_f32(row.logprobs[i])));
            most = std::max(most, own[row.ids[i]]);
          }
          const double w = static_cast<double>(one.weight) * std::pow(most, sharpness);
          weights += w;
          for (std::size_t j = 0; j < own.size(); ++j) p[j] += w * own[j];
        }
        double all = 0;
        for (double& x : p) x /= weights;
        for (const double x : p) all += x;  // f16 does not sum up to 1
        const TopRow row = mean->row(e, r);
        double rest = 1;
        std::vector<double> sorted = p;
        std::sort(sorted.rbegin(), sorted.rend());
        for (std::size_t i = 0; i < row.ids.size(); ++i) {
          const double right = p[row.ids[i]] / all;
          // f16 log-probabilities: |ln p| < 8 is off by 2^-9 at most.
          CHECK(std::fabs(std::exp(static_cast<double>(to_f32(row.logprobs[i]))) - right) <
                0.004 * right);
          CHECK(p[row.ids[i]] >= sorted[k - 1]);
          rest -= right;
        }
        CHECK(std::fabs(static_cast<double>(row.rest) - rest) < 1e-4);
      }
    }
    std::rotate(sent.begin(), sent.begin() + 1, sent.end());
    const auto again = average_predictions(sent, k, sharpness);
    CHECK(again->row(2, 1).rest == mean->row(2, 1).rest);
  }
  // So sharp that all weights would be zero.
  const auto sharpest = average_predictions(sent, k, 1e6);
  REQUIRE_MESSAGE(sharpest.has_value(), why(sharpest));
  double sum = static_cast<double>(sharpest->row(0, 0).rest);
  for (const f16 x : sharpest->row(0, 0).logprobs) sum += std::exp(static_cast<double>(to_f32(x)));
  CHECK(sum == doctest::Approx(1).epsilon(0.01));
}

TEST_CASE("predictions are shared in rounds") {
  Party party;
  std::optional<MeanPredictions> mean;
  Adder one(1, 10), two(3, 10);
  InProcessTransport at1(party.mailboxes, 1), at2(party.mailboxes, 2);
  const std::vector<Index> both{1, 2};
  const PublicRows rows{{2}, 4, 2, 1};
  const auto round = [&](bool with_two) {
    REQUIRE(party.coordinator.ask_to_predict(mean, both).has_value());
    CHECK(*serve(at1, one, 0) == Served::answered);
    if (with_two) CHECK(*serve(at2, two, 0) == Served::answered);
    auto report = party.coordinator.average(rows, mean);
    REQUIRE_MESSAGE(report.has_value(), why(report));
    return *std::move(report);
  };
  CHECK(round(false).used == std::vector<Index>{1});
  CHECK(one.n_learned == 0);  // nothing yet
  CHECK(mean->round == 1);
  CHECK(round(false).silent == std::vector<Index>{2});
  CHECK(one.n_learned == 1);
  CHECK(round(true).used == both);
  CHECK(two.rounds == std::vector<std::uint64_t>{3});  // two that it has missed
  CHECK(one.learned == std::vector<std::uint64_t>{1, 2});
  CHECK(two.learned == std::vector<std::uint64_t>{2});

  // Rows of other examples are refused.
  REQUIRE(party.coordinator.ask_to_predict(mean, both).has_value());
  CHECK(*serve(at1, one, 0) == Served::answered);
  const auto report = party.coordinator.average(PublicRows{{3}, 4, 2, 1}, mean);
  REQUIRE(report.has_value());
  REQUIRE(report->excluded.size() == 1);
  CHECK(contains(report->excluded[0].error.message, "client 1: predictions of other rows"));
  CHECK(mean->round == 3);  // stays
}

}  // namespace federated_test
