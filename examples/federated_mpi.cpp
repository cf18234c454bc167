// SPDX-License-Identifier: Apache-2.0
//
// federated_mpi: federated learning of home commands between processes, over MPI. Rank 0 is the
// coordinator, the others are homes, each with data that is its own:
//
//   mpirun --enable-recovery -n 5 federated_mpi
#include <mpi.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

#include "common.hpp"
#include "federated/homes.hpp"
#include "federated/options.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/train/federated_mpi.hpp"
#include "train/accuracy.hpp"
#include "train/model.hpp"

namespace {

using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::Result;
using namespace nibble::train;

struct Options : example::FederatedOptions {
  double seconds = 60;  // that a round waits
  Index slow = 0, killed = 0;

  void add_to(CLI::App& app);
};

void Options::add_to(CLI::App& app) {
  using example::add_number;
  n_rounds = 10;
  n_test = 200;
  local.n_steps = 15;
  local.rounds.peak = 4e-3;
  local.batches.max_sequences = 16;
  app.footer(
      "Run it by mpirun, with a process for the coordinator and one for each home. With\n"
      "--enable-recovery of Open MPI the others go on when one is killed; without it mpirun ends\n"
      "them all.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  FederatedOptions::add_to(app);
  add_number(app, "--seconds", seconds, "that a round waits for homes", 0.01, 1e6);
  add_number(app, "--slow", slow, "this rank answers round 2 too late, and comes back; 0: none", 0,
             1000000);
  add_number(app, "--killed", killed, "this rank kills itself in round 2; 0: none", 0, 1000000);
}

// A home whose troubles are staged.
class Home final : public FederatedClient {
 public:
  Home(LocalClient& client, const Options& options, Index rank)
      : client_(&client), options_(&options), rank_(rank) {}
  std::vector<Parameter> shared() override { return client_->shared(); }
  Result<std::uint64_t> train(std::uint64_t round) override {
    if (round == 2 && rank_ == options_->killed) std::raise(SIGKILL);
    if (round == 2 && rank_ == options_->slow) {
      std::this_thread::sleep_for(std::chrono::duration<double>(1.5 * options_->seconds));
    }
    return client_->train(round);
  }
  Result<void> learn(std::uint64_t round, std::uint64_t of, const TopLogits& mean) override {
    return client_->learn(round, of, mean);
  }
  Result<TopLogits> predict(std::uint64_t round) override { return client_->predict(round); }

 private:
  LocalClient* client_;
  const Options* options_;
  Index rank_;
};

Result<void> be_home(const Options& o, MpiTransport& place, const nibble::io::Gguf& like,
                     const example::TrainedModel& model, nibble::Executor& executor) {
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
  const auto habits = example::deal_habits(place.n_ranks() - 1, 3, 4, o.seed);
  const auto i = static_cast<std::size_t>(place.rank()) - 1;
  NIBBLE_TRY(examples, example::commands_of(tokenizer, &habits[i], o.n_examples,
                                            detail::mixed(o.seed) + 1 + i));
  const MemorySource own(std::move(examples));
  LocalClient client(model.graph(), model.weights(), &own, nullptr,
                     o.local_of(i, model.graph().config().n_ctx), executor);
  Home home(client, o, place.rank());
  // Who hears nothing for so long is alone: the coordinator is gone.
  const double patience = 10 * o.seconds + 60;
  for (;;) {
    NIBBLE_TRY(served, serve(place, home, patience));
    if (served != Served::answered) return nibble::ok();
  }
}

Result<bool> coordinate(const Options& o, MpiTransport& place, const example::TrainedModel& model,
                        nibble::Executor& executor) {
  NIBBLE_TRY(splits, example::TestSplits::read());
  Coordinator coordinator(place, {.seconds = o.seconds});
  const std::vector<Parameter> parameters = model.weights().parameters();
  std::vector<Index> ranks;
  for (Index rank = 1; rank < place.n_ranks(); ++rank) ranks.push_back(rank);
  std::uint64_t bytes = 0;
  bool are_all_there = true;
  while (coordinator.current_round() < o.n_rounds && !example::interrupted) {
    NIBBLE_CHECK(coordinator.ask_to_train(parameters, ranks));
    NIBBLE_TRY(round, coordinator.average(parameters));
    bytes += round.bytes_sent + round.bytes_received;
    are_all_there = round.silent.empty();
    NIBBLE_TRY(right, example::percent_right(model, splits.held_out, o.n_test, executor));
    std::printf(
        "round %3llu: %zu homes answered, %zu did not, %zu excluded, %lld late answers; "
        "sent %.3f MiB; right %.2f %%\n",
        static_cast<unsigned long long>(round.round), round.used.size(), round.silent.size(),
        round.excluded.size(), static_cast<long long>(round.n_late),
        static_cast<double>(bytes) / (1024.0 * 1024.0), right);
    for (const Excluded& one : round.excluded) std::printf("  %s\n", one.error.message.c_str());
    std::fflush(stdout);
  }
  NIBBLE_CHECK(coordinator.stop());
  are_all_there = place.flush(o.seconds) && are_all_there;
  if (example::interrupted) return Error{Errc::cancelled, "interrupted"};
  return are_all_there;
}

// Whether all processes are there, and MPI can end in an orderly way.
Result<bool> take_part(const Options& o) {
  NIBBLE_TRY(place, MpiTransport::create({.most_bytes = std::size_t{1} << 28}));
  if (place.n_ranks() < 2) {
    return Error{Errc::invalid_argument, "there is nobody else: run it by mpirun -n 3"};
  }
  NIBBLE_TRY(like, nibble::io::Gguf::open(o.like));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = 1}));
  NIBBLE_TRY(model, example::TrainedModel::create(like, {.shape = o.shape, .seed = o.seed}, true));
  if (place.rank() == kCoordinator) return coordinate(o, place, model, *pool);
  NIBBLE_CHECK(be_home(o, place, like, model, *pool));
  return true;
}

// MPI_Finalize() waits for all, the dead ones too: it gets ten seconds, if all seem to be there.
[[noreturn]] void end(bool is_orderly, int code) {
  std::fflush(stdout);
  if (!is_orderly) std::_Exit(code);
  std::thread([code] {
    std::this_thread::sleep_for(std::chrono::seconds(10));
    std::_Exit(code);
  }).detach();
  MPI_Finalize();
  std::_Exit(code);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Homes that teach one model over MPI, without showing their data.", "federated_mpi");
  Options options;
  options.add_to(app);
  return example::run(app, argc, argv, [&]() -> Result<int> {
    MPI_Init(&argc, &argv);
    example::catch_signals();
    const Result<bool> done = take_part(options);
    end(done && *done, example::ended(app, done ? Result<int>(example::kOk) : done.error()));
  });
}
