// SPDX-License-Identifier: Apache-2.0
//
// federated_mpi: federated learning of home commands between processes, over MPI. Rank 0 is the
// coordinator, the others are homes, each with data that is its own:
//
//   mpirun --enable-recovery -n 5 federated_mpi
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common.hpp"
#include "federated/homes.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/train/federated_client.hpp"
#include "nibble/train/federated_mpi.hpp"
#include "train/accuracy.hpp"
#include "train/model.hpp"

namespace {

using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::Result;
using namespace nibble::train;

const char* const kModels = NIBBLE_EXAMPLES_DIR "/models";

struct Options {
  std::string like = std::string(kModels) + "/home-commands-f16.gguf";
  example::Shape shape = {2, 64, 2, 1, 192};
  Index n_examples = 400, n_sequences = 16, slow = 0, killed = 0;
  std::uint64_t n_rounds = 10, seed = 1;
  std::size_t n_test = 200;
  double seconds = 60, rate = 4e-3;
  LocalOptions local;

  std::optional<int> parse(int argc, char** argv, CLI::App& app);
};

std::optional<int> Options::parse(int argc, char** argv, CLI::App& app) {
  local.n_steps = 15;
  app.footer(
      "Run it by mpirun, with a process for the coordinator and one for each home. With Open "
      "MPI's\n"
      "--enable-recovery the others go on when one is killed; without it mpirun ends them all.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("--like", like, "model file whose tokenizer is used")->capture_default_str();
  app.add_option("--rounds", n_rounds, "rounds")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--seconds", seconds, "that a round waits for homes")
      ->check(CLI::Range(0.01, 1e6))
      ->capture_default_str();
  app.add_option("--examples", n_examples, "commands that a home has")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--steps", local.n_steps, "of a home in a round")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--sequences", n_sequences, "commands of a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--rate", rate, "largest learning rate")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--slow", slow, "this rank answers round 2 too late, and comes back");
  app.add_option("--killed", killed, "this rank kills itself in round 2");
  app.add_option("--test", n_test, "held-out commands of a measurement")
      ->check(CLI::Range(1, 2000))
      ->capture_default_str();
  app.add_option("--seed", seed, "of homes and weights")->capture_default_str();
  if (const auto code = example::parse(app, argc, argv)) return code;
  local.rounds.peak = rate;
  local.rounds.floor = rate / 10;
  local.rounds.n_steps = n_rounds;
  local.batches.max_sequences = n_sequences;
  local.batches.seed = seed;
  return std::nullopt;
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
                     example::TrainedModel& model, nibble::Executor& executor) {
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
  const auto habits = example::deal_habits(place.n_ranks() - 1, 3, 4, o.seed);
  const auto i = static_cast<std::size_t>(place.rank()) - 1;
  NIBBLE_TRY(examples, example::commands_of(tokenizer, &habits[i], o.n_examples,
                                            detail::mixed(o.seed) + 1 + i));
  const MemorySource own(std::move(examples));
  LocalOptions local = o.local;
  local.batches.seed += i;
  LocalClient client(model.graph(), model.weights(), &own, nullptr, local, executor);
  Home home(client, o, place.rank());
  // Who hears nothing for so long is alone: the coordinator is gone.
  const double patience = 10 * o.seconds + 60;
  for (;;) {
    NIBBLE_TRY(served, serve(place, home, patience));
    if (served != Served::answered) return nibble::ok();
  }
}

Result<bool> coordinate(const Options& o, MpiTransport& place, example::TrainedModel& model,
                        nibble::Executor& executor) {
  NIBBLE_TRY(splits, example::TestSplits::read(kModels));
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
  Options options = o;
  options.local.batches.context = model.graph().config().n_ctx;
  options.local.batches.max_rows = std::max(options.local.batches.context, o.n_sequences * 40);
  if (place.rank() == kCoordinator) return coordinate(options, place, model, *pool);
  NIBBLE_CHECK(be_home(options, place, like, model, *pool));
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

int program(int argc, char** argv) {
  Options options;
  CLI::App app("Homes that teach one model over MPI, without showing their data.", "federated_mpi");
  if (const auto code = options.parse(argc, argv, app)) return *code;
  MPI_Init(&argc, &argv);
  example::catch_signals();
  const Result<bool> done = take_part(options);
  int code = example::kOk;
  if (!done) {
    code = example::fail(app, done.error());
    if (done.error().code == Errc::cancelled) code = example::kInterrupted;
  } else {
    code = example::finished(app);
  }
  end(done && *done, code);
}

}  // namespace

int main(int argc, char** argv) { return example::guarded("federated_mpi", program, argc, argv); }
