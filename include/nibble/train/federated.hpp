// SPDX-License-Identifier: Apache-2.0
//
// Federated learning: clients train on data that never leaves them, and share what they have
// learned through a coordinator, in rounds. Two ways:
//
// Weights, or adapters (FedAvg: McMahan et al. 2017). The coordinator sends its model, each client
// trains it and sends it back, the coordinator takes the mean, weighted by numbers of examples.
// What is shared is what a client says: all parameters, or low-rank factors beside a base that all
// have. (The mean of factors is not that of their products; in practice it serves: Zhang et al.,
// "FedIT", 2023.)
//
// Predictions (FedMD: Li and Wang 2019; FedDF: Lin et al. 2020). Each client predicts the rows of
// examples that all have; the coordinator sends the mean of the predictions to all, who learn from
// it. Models may differ in all but their vocabulary. Rows are stored as k probabilities
// (top_logits.hpp), so their mean is one of probabilities, not of logits, which are not known.
//
// Any client may fail to answer: a round takes who has answered by its deadline. The next one sends
// everything to all again, so who comes back has the newest model. Answers that are broken, of
// another model or not finite exclude their client for the round. Nothing protects from a client
// that lies plausibly, or hides from the coordinator what a client sends.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/train/federated_messages.hpp"
#include "nibble/train/federated_transport.hpp"
#include "nibble/train/parameters.hpp"
#include "nibble/train/top_logits.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// ---- Means -------------------------------------------------------------------------------------

// What a client has sent.
struct SentValues {
  Index client = 0;
  std::uint64_t weight = 0;   // examples, from 1
  std::vector<float> values;  // of all parameters, one after another
};
struct SentPredictions {
  Index client = 0;
  std::uint64_t weight = 0;
  TopLogits predictions;
};

namespace detail {

// In order of client, whatever order they came in.
template <class Sent>
std::vector<const Sent*> by_client(std::span<const Sent> all) {
  std::vector<const Sent*> order;
  for (const Sent& one : all) order.push_back(&one);
  std::sort(order.begin(), order.end(),
            [](const Sent* a, const Sent* b) { return a->client < b->client; });
  return order;
}

template <class Sent>
double sum_of_weights(std::span<const Sent> all) noexcept {
  double sum = 0;
  for (const Sent& one : all) sum += static_cast<double>(one.weight);
  return sum;
}

}  // namespace detail

// The parameters become Σ weight · values / Σ weight: sums in double, in order of client, so that
// the result has the same bits whoever came first; rounded once. Needs at least one, each with as
// many values as all parameters have, weights from 1, and clients that differ.
inline void average_values(std::span<const SentValues> sent, std::span<const Parameter> into) {
  NIBBLE_ASSERT(!sent.empty());
  const auto order = detail::by_client(sent);
  const double all = detail::sum_of_weights(sent);
  std::size_t at = 0;
  for (const Parameter& p : into) {
    for (float& out : p.values) {
      double sum = 0;
      for (const SentValues* one : order) {
        sum += static_cast<double>(one->weight) * static_cast<double>(one->values[at]);
      }
      out = static_cast<float>(sum / all);
      ++at;
    }
  }
}

// The mean of predictions, row by row, of which `k` tokens are kept: Σ weight · p / Σ weight, where
// the probability that a client has left for all other tokens is spread evenly over them. All must
// have the same rows, vocabulary and temperature. With sharpness a > 0 the weight in a row is
// weight · (the largest probability of the row)ᵃ, so that who has no idea says little; 0: FedMD's.
// (The power is 1e-200 at least: what all are unsure of has a mean, too.)
// Errors: those of TopLogits::create; malformed (others than the first have other rows).
inline Result<TopLogits> average_predictions(std::span<const SentPredictions> sent, Index k,
                                             double sharpness = 0) {
  NIBBLE_ASSERT(!sent.empty());
  return catch_out_of_memory([&]() -> Result<TopLogits> {
    const auto order = detail::by_client(sent);
    const TopLogits& first = order[0]->predictions;
    const Index vocabulary = first.vocabulary();
    NIBBLE_TRY(mean, TopLogits::create(k, vocabulary, first.temperature()));
    std::vector<Scalar<double>> p(static_cast<std::size_t>(vocabulary));
    std::vector<Scalar<float>> logits;
    for (Index example = 0; example < first.n_examples(); ++example) {
      const Index n_rows = first.n_rows(example);
      logits.resize(static_cast<std::size_t>(n_rows * vocabulary));
      for (Index r = 0; r < n_rows; ++r) {
        std::fill(p.begin(), p.end(), Scalar<double>{});
        double of_all = 0, all = 0;  // what each token gets; weights
        for (const SentPredictions* one : order) {
          const TopLogits& from = one->predictions;
          if (from.vocabulary() != vocabulary || from.n_examples() != first.n_examples() ||
              from.n_rows(example) != n_rows || from.temperature() != first.temperature()) {
            return Error{Errc::malformed, "predictions of client " + to_text(one->client) +
                                              " are not of the same rows"};
          }
          const TopRow row = from.row(example, r);
          double most = 0;
          for (const f16 x : row.logprobs) most = larger(most, std::exp(double{to_f32(x)}));
          const double trust = sharpness > 0 ? larger(std::pow(most, sharpness), 1e-200) : 1.0;
          const double weight = static_cast<double>(one->weight) * trust;
          const Index n_others = vocabulary - static_cast<Index>(row.ids.size());
          const double share = n_others > 0 ? double{row.rest} / static_cast<double>(n_others) : 0;
          for (std::size_t i = 0; i < row.ids.size(); ++i) {
            p[row.ids[i]].value += weight * (std::exp(double{to_f32(row.logprobs[i])}) - share);
          }
          of_all += weight * share;
          all += weight;
        }
        float* const out = values(logits) + r * vocabulary;
        for (Index j = 0; j < vocabulary; ++j) {
          // Differences that cancel leave what is as good as nothing, or less.
          const double mean_p = (p[static_cast<std::size_t>(j)].value + of_all) / all;
          out[j] = static_cast<float>(first.temperature() * std::log(larger(mean_p, 1e-30)));
        }
      }
      NIBBLE_CHECK(mean.add(MatrixView<const float>(values(logits), n_rows, vocabulary)));
    }
    return mean;
  });
}

// ---- The coordinator ---------------------------------------------------------------------------

struct CoordinatorOptions {
  double seconds = 60;  // that a round waits for answers
  SentAs sent_as = SentAs::f32;
  // A client that claims more examples is excluded: its weight would drown the others.
  std::uint64_t most_examples = std::uint64_t{1} << 24;
};

struct Excluded {
  Index client = 0;
  Error error;
};

// What happened in a round. Each client that was asked is in one of the lists.
struct RoundReport {
  std::uint64_t round = 0;
  std::vector<Index> used;         // in order of client
  std::vector<Excluded> excluded;  // that answered what cannot be used
  std::vector<Index> silent;       // that were not reached or did not answer in time
  Index n_late = 0;                // answers to earlier rounds, which are dropped
  std::uint64_t n_examples = 0;    // of those that were used
  std::uint64_t bytes_sent = 0;    // to clients
  std::uint64_t bytes_received = 0;
};

// Which rows clients predict in a round: the coordinator has the examples, too.
struct PublicRows {
  std::vector<Index> n_rows;  // of each example
  Index vocabulary = 0;
  Index k = 0;
  double temperature = 1;
};

// The mean of the predictions of a round.
struct MeanPredictions {
  TopLogits predictions;
  std::uint64_t round = 0;
};

// Sends models or predictions and takes in what comes back. Keeps the answers of a round, n clients
// times what one sends. The transport must live as long.
class Coordinator {
 public:
  explicit Coordinator(Transport& transport, const CoordinatorOptions& options = {})
      : transport_(&transport), options_(options) {}

  std::uint64_t current_round() const noexcept { return round_; }  // that was begun last; 0: none

  // Begins a round of training: sends the parameters to these clients, to each once. Who cannot be
  // reached is silent. Errors: those of federated_values().
  Result<void> ask_to_train(std::span<const Parameter> model, std::span<const Index> clients) {
    NIBBLE_TRY(bytes, federated_values(FederatedKind::train, current_round() + 1, 0, model,
                                       options_.sent_as));
    return ask(bytes, clients);
  }
  // Waits for the answers and replaces the parameters by their mean; they stay as they are if there
  // is none. Errors: those of Transport::receive, out_of_memory.
  Result<RoundReport> average(std::span<const Parameter> model) {
    return catch_out_of_memory([&]() -> Result<RoundReport> {
      std::vector<SentValues> sent;
      NIBBLE_CHECK(collect([&](Index client, const FederatedMessage& m) -> Result<void> {
        NIBBLE_CHECK(check_answer(m, FederatedKind::update));
        NIBBLE_TRY(values, federated_values_of(m, model));
        sent.push_back({client, m.weight, std::move(values)});
        return ok();
      }));
      if (!sent.empty()) average_values(sent, model);
      return std::move(report_);
    });
  }

  // Begins a round of predictions: sends the mean of the last one, if there is any. Errors: those
  // of TopLogits::to_bytes.
  Result<void> ask_to_predict(const std::optional<MeanPredictions>& mean,
                              std::span<const Index> clients) {
    const std::uint64_t next = current_round() + 1;
    auto bytes = mean ? federated_predictions(FederatedKind::predict, next, 0, mean->round,
                                              mean->predictions)
                      : federated_note(FederatedKind::first, next);
    if (!bytes) return std::move(bytes).error();
    return ask(*bytes, clients);
  }
  // Waits for the answers and leaves their mean in `mean`; it stays as it is if there is none.
  // Errors: those of Transport::receive and average_predictions.
  Result<RoundReport> average(const PublicRows& rows, std::optional<MeanPredictions>& mean,
                              double sharpness = 0) {
    return catch_out_of_memory([&]() -> Result<RoundReport> {
      std::vector<SentPredictions> sent;
      NIBBLE_CHECK(collect([&](Index client, const FederatedMessage& m) -> Result<void> {
        NIBBLE_CHECK(check_answer(m, FederatedKind::predictions));
        NIBBLE_TRY(predictions, TopLogits::of(m.file));
        NIBBLE_CHECK(check_rows(m, predictions, rows));
        sent.push_back({client, m.weight, std::move(predictions)});
        return ok();
      }));
      if (!sent.empty()) {
        NIBBLE_TRY(made, average_predictions(sent, rows.k, sharpness));
        mean.emplace(MeanPredictions{std::move(made), round_});
      }
      return std::move(report_);
    });
  }

  // Tells all clients that it is over, those that can be reached.
  Result<void> stop() {
    NIBBLE_TRY(bytes, federated_note(FederatedKind::stop, current_round()));
    for (Index client = 1; client < transport_->n_ranks(); ++client) {
      static_cast<void>(transport_->send(client, bytes));  // an error: nobody is there
    }
    return ok();
  }

 private:
  Result<void> ask(std::span<const std::byte> bytes, std::span<const Index> clients) {
    return catch_out_of_memory([&]() -> Result<void> {
      report_ = {};
      report_.round = ++round_;
      asked_.clear();
      for (const Index client : clients) {
        if (std::find(asked_.begin(), asked_.end(), client) != asked_.end()) continue;
        const Result<void> sent = transport_->send(client, bytes);
        if (!sent) {
          report_.silent.push_back(client);
          continue;
        }
        report_.bytes_sent += bytes.size();
        asked_.push_back(client);
      }
      return ok();
    });
  }

  // take(client, message) for the first answer of each client that was asked.
  template <class Take>
  Result<void> collect(Take&& take) {
    const std::int64_t begin = monotonic_nanoseconds();
    while (!asked_.empty()) {
      const double past = static_cast<double>(monotonic_nanoseconds() - begin) * 1e-9;
      NIBBLE_TRY(received, transport_->receive(larger(options_.seconds - past, 0.0)));
      if (!received) break;
      report_.bytes_received += received->bytes.size();
      // A flood of messages does not make the round longer.
      if (past > options_.seconds + 1) break;
      const auto asked = std::find(asked_.begin(), asked_.end(), received->from);
      Result<bool> taken = open(*received, asked != asked_.end(), take);
      if (taken && !*taken) {
        ++report_.n_late;
        continue;
      }
      if (asked == asked_.end()) continue;  // nobody has asked it
      asked_.erase(asked);
      if (taken) {
        report_.used.push_back(received->from);
      } else {
        report_.excluded.push_back({received->from, std::move(taken).error()});
      }
    }
    report_.silent.insert(report_.silent.end(), asked_.begin(), asked_.end());
    asked_.clear();
    std::sort(report_.used.begin(), report_.used.end());
    std::sort(report_.silent.begin(), report_.silent.end());
    return ok();
  }
  // False: an answer to an earlier round.
  template <class Take>
  Result<bool> open(const Received& received, bool is_asked, Take&& take) {
    const std::string from = "client " + to_text(received.from);
    if (received.is_lost) return Error{Errc::limit, from + ": its message is too large"};
    NIBBLE_TRY(message, read_federated(received.bytes, from));
    if (message.round < round_) return false;
    if (!is_asked) return true;
    if (message.round > round_) {
      return Error{Errc::malformed, from + ": an answer to round " + to_text(message.round) +
                                        ", which has not begun"};
    }
    NIBBLE_CHECK(take(received.from, message));
    report_.n_examples += message.weight;
    return true;
  }

  Result<void> check_answer(const FederatedMessage& m, FederatedKind wanted) const {
    if (m.kind != wanted) {
      return Error{Errc::malformed, m.file.name() + ": an answer of another kind"};
    }
    if (m.weight < 1 || m.weight > options_.most_examples) {
      return Error{Errc::malformed, m.file.name() + ": claims to have trained on " +
                                        to_text(m.weight) + " examples"};
    }
    return ok();
  }
  static Result<void> check_rows(const FederatedMessage& m, const TopLogits& p,
                                 const PublicRows& rows) {
    bool is_right = p.vocabulary() == rows.vocabulary && p.k() == rows.k &&
                    p.temperature() == rows.temperature &&
                    p.n_examples() == static_cast<Index>(rows.n_rows.size());
    for (Index i = 0; is_right && i < p.n_examples(); ++i) {
      is_right = p.n_rows(i) == rows.n_rows[static_cast<std::size_t>(i)];
    }
    if (is_right) return ok();
    return Error{Errc::malformed, m.file.name() + ": predictions of other rows"};
  }

  Transport* transport_;
  CoordinatorOptions options_;
  std::uint64_t round_ = 0;
  RoundReport report_;        // of this round
  std::vector<Index> asked_;  // that have not answered
};

// ---- Clients -----------------------------------------------------------------------------------

// What a client can do. federated_client.hpp has one that trains.
class FederatedClient {
 public:
  virtual ~FederatedClient() = default;
  // Whose values are shared. Those of a round are written there before train().
  virtual std::vector<Parameter> shared() = 0;
  // Trains on what the client has; the number of examples, from 1.
  virtual Result<std::uint64_t> train(std::uint64_t round) = 0;
  // Learns from the mean of all predictions of a round before, of_round.
  virtual Result<void> learn(std::uint64_t round, std::uint64_t of_round,
                             const TopLogits& mean) = 0;
  // Predictions of the rows of this round.
  virtual Result<TopLogits> predict(std::uint64_t round) = 0;
};

enum class Served : unsigned char { nothing, answered, stopped };

namespace detail {

inline Result<std::vector<std::byte>> federated_answer(FederatedClient& client,
                                                       const FederatedMessage& message,
                                                       SentAs sent_as) {
  if (message.kind == FederatedKind::train) {
    const std::vector<Parameter> parameters = client.shared();
    NIBBLE_TRY(values, federated_values_of(message, parameters));
    const float* next = values.data();
    for (const Parameter& p : parameters) {
      std::copy_n(next, p.values.size(), p.values.begin());
      next += p.values.size();
    }
    NIBBLE_TRY(n, client.train(message.round));
    return federated_values(FederatedKind::update, message.round, n, parameters, sent_as);
  }
  if (message.kind == FederatedKind::predict) {
    NIBBLE_TRY(mean, TopLogits::of(message.file));
    NIBBLE_CHECK(client.learn(message.round, message.of_round, mean));
  } else if (message.kind != FederatedKind::first) {
    return Error{Errc::malformed, message.file.name() + ": a message that is not for clients"};
  }
  NIBBLE_TRY(n, client.train(message.round));
  NIBBLE_TRY(predictions, client.predict(message.round));
  return federated_predictions(FederatedKind::predictions, message.round, n, message.round,
                               predictions);
}

}  // namespace detail

// Waits up to `seconds` for the coordinator and does what the newest of its messages asks for: who
// has been away skips rounds. Errors: those of the transport, the client and the message; limit (a
// message that is too large).
inline Result<Served> serve(Transport& transport, FederatedClient& client, double seconds,
                            SentAs sent_as = SentAs::f32) {
  return catch_out_of_memory([&]() -> Result<Served> {
    std::optional<FederatedMessage> newest;
    const std::int64_t begin = monotonic_nanoseconds();
    for (;;) {
      const double past = static_cast<double>(monotonic_nanoseconds() - begin) * 1e-9;
      NIBBLE_TRY(received, transport.receive(newest ? 0 : larger(seconds - past, 0.0)));
      if (!received) break;
      if (received->from != kCoordinator) {  // clients have nothing to say to clients
        if (past > seconds + 1) break;       // nor does a flood of it make the wait longer
        continue;
      }
      if (received->is_lost) return Error{Errc::limit, "coordinator: its message is too large"};
      NIBBLE_TRY(message, read_federated(received->bytes, "coordinator"));
      if (message.kind == FederatedKind::stop) return Served::stopped;
      newest.emplace(std::move(message));
    }
    if (!newest) return Served::nothing;
    NIBBLE_TRY(answer, detail::federated_answer(client, *newest, sent_as));
    NIBBLE_CHECK(transport.send(kCoordinator, answer));
    return Served::answered;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::train
