// SPDX-License-Identifier: Apache-2.0
//
// Federated learning in one process: homes that are there or away, and what their models know after
// each round.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../train/accuracy.hpp"
#include "../train/model.hpp"
#include "homes.hpp"
#include "nibble/train/federated_client.hpp"
#include "options.hpp"

namespace example {

struct SimulationOptions : FederatedOptions {
  nibble::Index n_clients = 20, n_common = 256;
  std::size_t n_intents = 3, n_rooms = 4;
  std::uint64_t every = 2;  // rounds from one measurement to the next
  double away = 0.2;        // the probability that a home does not answer in a round
  double sharpness = 0;     // of the mean of predictions
  nibble::train::SentAs sent_as = nibble::train::SentAs::f32;
  bool is_quiet = false;
};

// How one way of learning went.
struct Progress {
  struct Point {
    std::uint64_t round = 0;
    double loss = 0;       // of held-out commands, nats a token
    double right = 0;      // percent of them
    double mebibytes = 0;  // sent in both directions so far
  };
  std::string name;
  std::vector<Point> points;
};

class Simulation {
 public:
  // The file and the executor must live as long.
  static nibble::Result<Simulation> create(const nibble::io::Gguf& like,
                                           const SimulationOptions& options,
                                           nibble::Executor& executor) {
    Simulation made(like, options, executor);
    NIBBLE_TRY(model, made.model());
    made.context_ = model.graph().config().n_ctx;
    NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
    NIBBLE_TRY(splits, TestSplits::read());
    made.test_ = std::move(splits.held_out);
    made.test_.resize(std::min(made.test_.size(), options.n_test));
    std::vector<nibble::train::Example> test;
    for (const Sample& sample : made.test_) {
      NIBBLE_TRY(tokens, sample_tokens(tokenizer, sample));
      test.emplace_back().tokens = std::move(tokens.ids);
    }
    made.test_examples_ = std::make_unique<nibble::train::MemorySource>(std::move(test));
    std::vector<nibble::train::Example> all;
    const std::vector<Habits> habits =
        deal_habits(options.n_clients, options.n_intents, options.n_rooms, options.seed);
    const std::uint64_t seed = nibble::train::detail::mixed(options.seed);
    for (std::size_t i = 0; i < habits.size(); ++i) {
      NIBBLE_TRY(examples, commands_of(tokenizer, &habits[i], options.n_examples, seed + 1 + i));
      all.insert(all.end(), examples.begin(), examples.end());
      made.own_.emplace_back(std::move(examples));
    }
    NIBBLE_TRY(common, commands_of(tokenizer, nullptr, options.n_common, seed));
    made.all_ = std::make_unique<nibble::train::MemorySource>(std::move(all));
    made.common_ = std::make_unique<nibble::train::MemorySource>(std::move(common));
    return made;
  }

  // Sharing weights. Errors, also of the others: those of training; cancelled. What is known until
  // then is in `progress`.
  nibble::Result<void> share_weights(Progress& progress);
  // Sharing predictions: a model of each home, and one that learns from all.
  nibble::Result<void> share_predictions(Progress& progress);
  // All data in one place, as many steps as a home takes: what nobody has.
  nibble::Result<void> train_together(Progress& progress) {
    return train_alone(*all_, "in one place", progress);
  }
  // The examples that all have, alone.
  nibble::Result<void> train_on_common(Progress& progress) {
    return train_alone(*common_, "common examples alone", progress);
  }
  // The first home, alone.
  nibble::Result<void> train_one_home(Progress& progress) {
    return train_alone(own_.front(), "one home alone", progress);
  }

 private:
  using Model = TrainedModel;

  Simulation(const nibble::io::Gguf& like, const SimulationOptions& options,
             nibble::Executor& executor)
      : like_(&like), options_(options), executor_(&executor) {}

  // All start alike: means of models that begin apart agree later.
  nibble::Result<Model> model() const {
    return Model::create(*like_, {.shape = options_.shape, .seed = options_.seed}, true);
  }
  nibble::train::LocalOptions local(std::size_t client) const {
    return options_.local_of(client, context_);
  }
  bool is_away(std::uint64_t round, nibble::Index client) const {
    nibble::train::Random random(nibble::train::detail::mixed(options_.seed ^ round << 32) +
                                 static_cast<std::uint64_t>(client));
    return random.uniform() < options_.away;
  }
  nibble::Result<void> train_alone(const nibble::train::Source& source, const char* name,
                                   Progress& progress);
  nibble::Result<void> serve_all(nibble::train::Mailboxes& mailboxes, std::uint64_t round,
                                 std::vector<nibble::train::LocalClient>& clients,
                                 StatusLine& status, const std::string& name);
  nibble::Result<void> report(const Model& model, const nibble::train::RoundReport& round,
                              std::uint64_t bytes, Progress& progress);
  nibble::Result<double> right(const Model& model) {
    return percent_right(model, test_, test_.size(), *executor_);
  }
  nibble::Result<double> loss(const Model& model);
  static nibble::Error stopped() { return {nibble::Errc::cancelled, "interrupted"}; }

  const nibble::io::Gguf* like_;
  SimulationOptions options_;
  nibble::Executor* executor_;
  nibble::Index context_ = 0;
  std::vector<Sample> test_;
  std::vector<nibble::train::MemorySource> own_;
  std::unique_ptr<nibble::train::MemorySource> all_, common_, test_examples_;
};

// Each home that is there does what it was asked for.
inline nibble::Result<void> Simulation::serve_all(nibble::train::Mailboxes& mailboxes,
                                                  std::uint64_t round,
                                                  std::vector<nibble::train::LocalClient>& clients,
                                                  StatusLine& status, const std::string& name) {
  for (std::size_t i = 0; i < clients.size(); ++i) {
    if (interrupted) return stopped();
    const auto rank = static_cast<nibble::Index>(i) + 1;
    if (is_away(round, rank)) continue;
    status.show(name + ": round " + std::to_string(round) + " of " +
                std::to_string(options_.n_rounds) + ", home " + std::to_string(rank));
    nibble::train::InProcessTransport place(mailboxes, rank);
    NIBBLE_CHECK(nibble::train::serve(place, clients[i], 0, options_.sent_as));
  }
  return nibble::ok();
}

inline nibble::Result<double> Simulation::loss(const Model& model) {
  using namespace nibble::train;
  BatchOptions o = local(0).batches;
  o.shuffles = false;
  o.vocabulary = model.graph().config().vocab_size;
  NIBBLE_TRY(batches, Batches::create(*test_examples_, o));
  TrainerOptions trainer_options;
  trainer_options.max_rows = o.max_rows;
  trainer_options.n_positions = o.context;
  NIBBLE_TRY(trainer, Trainer::create(model.graph(), model.weights(), trainer_options, *executor_));
  double sum = 0, weight = 0;
  for (Batch batch;;) {
    NIBBLE_CHECK(batches.next(batch));
    if (batch.epoch > 0) break;
    NIBBLE_TRY(of_batch, trainer.cross_entropy(batch));  // gradients are cleared by who trains
    sum += of_batch;
    weight += batch.weight;
  }
  return sum / weight;
}

inline nibble::Result<void> Simulation::report(const Model& model,
                                               const nibble::train::RoundReport& round,
                                               std::uint64_t bytes, Progress& progress) {
  if (round.round % options_.every != 0 && round.round != options_.n_rounds) return nibble::ok();
  NIBBLE_TRY(nats, loss(model));
  NIBBLE_TRY(percent, right(model));
  const double mebibytes = static_cast<double>(bytes) / (1024.0 * 1024.0);
  progress.points.push_back({round.round, nats, percent, mebibytes});
  std::printf(
      "%-22s round %3llu: %3zu homes answered, %2zu did not, %2zu excluded; sent %9.3f MiB; loss "
      "%.4f; right %6.2f %%\n",
      progress.name.c_str(), static_cast<unsigned long long>(round.round), round.used.size(),
      round.silent.size(), round.excluded.size(), mebibytes, nats, percent);
  std::fflush(stdout);
  for (const nibble::train::Excluded& one : round.excluded) {
    std::printf("  %s\n", one.error.message.c_str());
  }
  return nibble::ok();
}

inline nibble::Result<void> Simulation::share_weights(Progress& progress) {
  using namespace nibble::train;
  progress.name = options_.sent_as == SentAs::f16 ? "weights, f16" : "weights";
  NIBBLE_TRY(global, model());
  NIBBLE_TRY(local_model, model());  // which homes use in turn
  Mailboxes mailboxes(options_.n_clients + 1);
  InProcessTransport place(mailboxes, kCoordinator);
  Coordinator coordinator(place, {.seconds = 0, .sent_as = options_.sent_as});
  std::vector<LocalClient> clients;
  std::vector<nibble::Index> ranks;
  for (std::size_t i = 0; i < own_.size(); ++i) {
    clients.emplace_back(local_model.graph(), local_model.weights(), &own_[i], nullptr, local(i),
                         *executor_);
    ranks.push_back(static_cast<nibble::Index>(i) + 1);
  }
  const std::vector<Parameter> parameters = global.weights().parameters();
  std::uint64_t bytes = 0;
  StatusLine status(!options_.is_quiet, StatusLine::kInLogs);
  while (coordinator.current_round() < options_.n_rounds) {
    NIBBLE_CHECK(coordinator.ask_to_train(parameters, ranks));
    NIBBLE_CHECK(serve_all(mailboxes, coordinator.current_round(), clients, status, progress.name));
    NIBBLE_TRY(round, coordinator.average(parameters));
    bytes += round.bytes_sent + round.bytes_received;
    status.show({});
    NIBBLE_CHECK(report(global, round, bytes, progress));
  }
  return nibble::ok();
}

inline nibble::Result<void> Simulation::share_predictions(Progress& progress) {
  using namespace nibble::train;
  progress.name = "predictions";
  Mailboxes mailboxes(options_.n_clients + 1);
  InProcessTransport place(mailboxes, kCoordinator);
  Coordinator coordinator(place, {.seconds = 0});
  std::vector<Model> models;
  std::vector<nibble::Index> ranks;
  for (nibble::Index i = 0; i <= options_.n_clients; ++i) {
    NIBBLE_TRY(made, model());
    models.push_back(std::move(made));
    if (i > 0) ranks.push_back(i);
  }
  std::vector<LocalClient> clients;
  for (std::size_t i = 0; i < own_.size(); ++i) {
    clients.emplace_back(models[i + 1].graph(), models[i + 1].weights(), &own_[i], common_.get(),
                         local(i), *executor_);
  }
  LocalClient pupil(models[0].graph(), models[0].weights(), nullptr, common_.get(), local(0),
                    *executor_);
  std::optional<MeanPredictions> mean;
  std::uint64_t bytes = 0;
  const nibble::Index vocabulary = models[0].graph().config().vocab_size;
  StatusLine status(!options_.is_quiet, StatusLine::kInLogs);
  while (coordinator.current_round() < options_.n_rounds) {
    NIBBLE_CHECK(coordinator.ask_to_predict(mean, ranks));
    const std::uint64_t n = coordinator.current_round();
    NIBBLE_CHECK(serve_all(mailboxes, n, clients, status, progress.name));
    NIBBLE_TRY(rows, LocalClient::rows_of(*common_, n, options_.local, vocabulary));
    NIBBLE_TRY(round, coordinator.average(rows, mean, options_.sharpness));
    if (!round.used.empty()) NIBBLE_CHECK(pupil.learn(n, mean->round, mean->predictions));
    bytes += round.bytes_sent + round.bytes_received;
    status.show({});
    NIBBLE_CHECK(report(models[0], round, bytes, progress));
  }
  return nibble::ok();
}

inline nibble::Result<void> Simulation::train_alone(const nibble::train::Source& source,
                                                    const char* name, Progress& progress) {
  using namespace nibble::train;
  progress.name = name;
  NIBBLE_TRY(trained, model());
  LocalClient client(trained.graph(), trained.weights(), &source, nullptr, local(0), *executor_);
  StatusLine status(!options_.is_quiet, StatusLine::kInLogs);
  for (std::uint64_t round = 1; round <= options_.n_rounds; ++round) {
    if (interrupted) return stopped();
    status.show(progress.name + ": round " + std::to_string(round) + " of " +
                std::to_string(options_.n_rounds));
    NIBBLE_CHECK(client.train(round));
  }
  status.show({});
  NIBBLE_TRY(nats, loss(trained));
  NIBBLE_TRY(percent, right(trained));
  progress.points.push_back({options_.n_rounds, nats, percent, 0});
  std::printf("%-22s %llu steps: loss %.4f; right %6.2f %%\n", name,
              static_cast<unsigned long long>(options_.n_rounds) *
                  static_cast<unsigned long long>(options_.local.n_steps),
              nats, percent);
  std::fflush(stdout);
  return nibble::ok();
}

}  // namespace example
