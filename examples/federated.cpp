// SPDX-License-Identifier: Apache-2.0
//
// federated: 20 homes teach one model, and none of them shows its data. Simulates federated
// learning of home commands in one process: what the model knows after each round, and how much was
// sent.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "common.hpp"
#include "federated/simulation.hpp"
#include "gnuplot.hpp"
#include "nibble/core/thread_pool.hpp"

namespace {

using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::Result;

const char* const kModels = NIBBLE_EXAMPLES_DIR "/models";

struct Options {
  std::string like = std::string(kModels) + "/home-commands-f16.gguf";
  std::string share = "both", plot;
  example::SimulationOptions simulation;
  Index n_sequences = 8, n_threads = 0;
  double rate = 4e-3;
  bool halves = false, without_others = false;

  std::optional<int> parse(int argc, char** argv, CLI::App& app);
};

std::optional<int> Options::parse(int argc, char** argv, CLI::App& app) {
  example::SimulationOptions& s = simulation;
  s.shape = {2, 64, 2, 1, 192};
  s.local.hard = 0.5;
  s.local.n_passes = 4;  // 64 examples are few steps
  s.local.n_steps = 40;
  app.footer(
      "A home has few kinds of commands, for few rooms. In a round each home that is there trains\n"
      "for some steps; then weights, or predictions of examples that all have, become a mean.\n"
      "Ctrl-C prints and draws what is known.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("--like", like, "model file whose tokenizer is used")->capture_default_str();
  app.add_option("--share", share, "weights, predictions or both")
      ->check(CLI::IsMember({"weights", "predictions", "both"}))
      ->capture_default_str();
  app.add_option("--clients", s.n_clients, "homes")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--examples", s.n_examples, "commands that a home has")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--intents", s.n_intents, "kinds of commands of a home")
      ->check(CLI::Range(1, 14))
      ->capture_default_str();
  app.add_option("--rooms", s.n_rooms, "rooms of a home")
      ->check(CLI::Range(1, 12))
      ->capture_default_str();
  app.add_option("--common", s.n_common, "examples that all have, for predictions")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--common-round", s.local.n_public, "of them predicted in a round")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--top-k", s.local.k, "tokens that are sent of each prediction")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--sharpness", s.sharpness, "weight of sure predictions in the mean; 0: none")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--passes", s.local.n_passes, "over the common examples of a round, to learn them")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--hard", s.local.hard,
                 "part of the common examples' own tokens in what is learned")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--rounds", s.n_rounds, "rounds")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--steps", s.local.n_steps, "of a home in a round")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--sequences", n_sequences, "commands of a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--rate", rate, "largest learning rate")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--away", s.away, "probability that a home does not answer in a round")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_flag("--halves", halves, "weights travel as f16");
  app.add_flag("--alone", without_others,
               "train also one home alone, on the common examples alone, and all in one place");
  app.add_option("--layers", s.shape.n_layers, "of the model")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--dim", s.shape.dim, "its width")
      ->check(CLI::Range(8, 16384))
      ->capture_default_str();
  app.add_option("--heads", s.shape.n_heads, "its heads")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--kv-heads", s.shape.n_kv_heads, "its heads of keys and values")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--ffn", s.shape.ffn, "its feed-forward width")
      ->check(CLI::Range(8, 65536))
      ->capture_default_str();
  app.add_option("--every", s.every, "rounds between measurements")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--test", s.n_test, "held-out commands of a measurement")
      ->check(CLI::Range(1, 2000))
      ->capture_default_str();
  app.add_option("--seed", s.seed, "of homes, weights and absences");
  app.add_option("--threads", n_threads, "threads; 0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--plot", plot, "picture (.svg; needs gnuplot)");
  app.add_flag("--quiet", s.is_quiet, "no progress");
  if (const auto code = example::parse(app, argc, argv)) return code;
  s.local.rounds.peak = rate;
  s.local.rounds.floor = rate / 10;
  s.local.rounds.n_steps = s.n_rounds;
  s.local.batches.max_sequences = n_sequences;
  if (halves) s.sent_as = nibble::train::SentAs::f16;
  return std::nullopt;
}

// Right answers against rounds and against what was sent. False without gnuplot.
bool draw(const std::string& path, const std::vector<example::Progress>& all) {
  example::Gnuplot plot(path);
  if (!plot.is_open()) return false;
  plot.print("set multiplot layout 1,2\nset key bottom right inside\nset yrange [0:100]\n");
  plot.print("set ylabel 'right answers, %%'\n");
  for (const bool against_bytes : {false, true}) {
    plot.print("set xlabel '%s'\n", against_bytes ? "MiB sent, all homes together" : "rounds");
    if (against_bytes) plot.print("set logscale x\n");
    const char* separator = "plot ";
    for (const example::Progress& one : all) {
      if (one.points.empty() || one.points.back().mebibytes == 0) continue;
      plot.print("%s'-' with linespoints title '%s'", separator, one.name.c_str());
      separator = ", ";
    }
    plot.print("\n");
    for (const example::Progress& one : all) {
      if (one.points.empty() || one.points.back().mebibytes == 0) continue;
      for (const auto& p : one.points) {
        plot.print("%g %g\n", against_bytes ? p.mebibytes : static_cast<double>(p.round), p.right);
      }
      plot.print("e\n");
    }
  }
  plot.print("unset multiplot\n");
  return plot.finish();
}

void print_summary(const std::vector<example::Progress>& all) {
  std::printf("\n%-24s %8s %10s %8s %8s\n", "", "rounds", "MiB sent", "loss", "right");
  for (const example::Progress& one : all) {
    if (one.points.empty()) continue;
    const auto& last = one.points.back();
    std::printf("%-24s %8llu %10.3f %8.4f %6.2f %%\n", one.name.c_str(),
                static_cast<unsigned long long>(last.round), last.mebibytes, last.loss, last.right);
  }
}

Result<void> simulate(Options& o) {
  NIBBLE_TRY(like, nibble::io::Gguf::open(o.like));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  example::SimulationOptions& s = o.simulation;
  NIBBLE_TRY(architecture, like.get_string("general.architecture"));
  NIBBLE_TRY(context, like.get_u64(std::string(architecture) + ".context_length"));
  s.local.batches.context = static_cast<Index>(context);
  s.local.batches.max_rows = std::max(s.local.batches.context, o.n_sequences * 40);
  NIBBLE_TRY(simulation, example::Simulation::create(like, s, kModels, *pool));
  std::vector<example::Progress> all;
  Result<void> done = nibble::ok();
  const auto next = [&](bool is_wanted,
                        Result<void> (example::Simulation::*how)(example::Progress&)) {
    if (!is_wanted || !done) return;
    done = (simulation.*how)(all.emplace_back());
  };
  using example::Simulation;
  next(o.share != "predictions", &Simulation::share_weights);
  next(o.share != "weights", &Simulation::share_predictions);
  next(o.without_others, &Simulation::train_together);
  next(o.without_others, &Simulation::train_one_home);
  next(o.without_others, &Simulation::train_on_common);
  if (!done && done.error().code != Errc::cancelled) return done;
  print_summary(all);
  if (!o.plot.empty() && !draw(o.plot, all)) {
    return Error{Errc::io, nibble::printable(o.plot) + ": no picture; is gnuplot installed?"};
  }
  return done;
}

int program(int argc, char** argv) {
  Options options;
  CLI::App app("Simulates homes that teach one model without showing their data.", "federated");
  if (const auto code = options.parse(argc, argv, app)) return *code;
  example::catch_signals();
  const Result<void> done = simulate(options);
  if (!done) {
    const int code = example::fail(app, done.error());
    return done.error().code == Errc::cancelled ? example::kInterrupted : code;
  }
  return example::finished(app);
}

}  // namespace

int main(int argc, char** argv) { return example::guarded("federated", program, argc, argv); }
