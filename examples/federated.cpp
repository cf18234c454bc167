// SPDX-License-Identifier: Apache-2.0
//
// federated: 20 homes teach one model, and none of them shows its data. Simulates federated
// learning of home commands in one process: what the model knows after each round, and how much was
// sent.
#include <string>
#include <vector>

#include "common.hpp"
#include "federated/simulation.hpp"
#include "gnuplot.hpp"
#include "nibble/core/thread_pool.hpp"

namespace {

using nibble::Errc;
using nibble::Index;
using nibble::Result;

struct Options {
  std::string share = "both", plot;
  example::SimulationOptions simulation;
  Index n_threads = 0;
  bool without_others = false;

  void add_to(CLI::App& app);
};

void Options::add_to(CLI::App& app) {
  using example::add_number;
  example::SimulationOptions& s = simulation;
  s.local.hard = 0.5;
  s.local.n_passes = 4;  // 64 examples are few steps
  s.local.n_steps = 40;
  s.local.rounds.peak = 4e-3;
  s.local.batches.max_sequences = 8;
  app.footer(
      "A home has few kinds of commands, for few rooms. In a round each home that is there trains\n"
      "for some steps; then weights, or predictions of examples that all have, become a mean.\n"
      "Ctrl-C prints and draws what is known.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("--share", share, "weights, predictions or both")
      ->check(CLI::IsMember({"weights", "predictions", "both"}))
      ->capture_default_str();
  add_number(app, "--clients", s.n_clients, "homes", 1, 1000);
  add_number(app, "--intents", s.n_intents, "kinds of commands of a home", 1, 14);
  add_number(app, "--rooms", s.n_rooms, "rooms of a home", 1, 12);
  add_number(app, "--common", s.n_common, "examples that all have, for predictions", 1, 1000000);
  add_number(app, "--common-round", s.local.n_public, "of them predicted in a round", 1, 1000000);
  add_number(app, "--top-k", s.local.k, "tokens that are sent of each prediction", 1, 100);
  add_number(app, "--sharpness", s.sharpness, "weight of sure predictions in the mean; 0: none", 0,
             100);
  add_number(app, "--passes", s.local.n_passes,
             "over the common examples of a round, to learn them", 1, 1000);
  add_number(app, "--hard", s.local.hard,
             "part of the common examples' own tokens in what is learned", 0, 1);
  add_number(app, "--away", s.away, "probability that a home does not answer in a round", 0, 1);
  app.add_flag_callback(
      "--halves", [&s] { s.sent_as = nibble::train::SentAs::f16; }, "weights travel as f16");
  app.add_flag("--alone", without_others,
               "train also one home alone, on the common examples alone, and all in one place");
  s.add_to(app);
  add_number(app, "--every", s.every, "rounds between measurements", 1, 1000000);
  example::add_threads(app, n_threads);
  app.add_option("--plot", plot, "picture (.svg; needs gnuplot)");
  app.add_flag("--quiet", s.is_quiet, "no progress");
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

Result<void> simulate(const Options& o) {
  using example::Simulation;
  example::catch_signals();
  NIBBLE_TRY(like, nibble::io::Gguf::open(o.simulation.like));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(simulation, Simulation::create(like, o.simulation, *pool));
  std::vector<example::Progress> all;
  Result<void> done = nibble::ok();
  const auto next = [&](bool is_wanted, Result<void> (Simulation::*how)(example::Progress&)) {
    if (!is_wanted || !done) return;
    done = (simulation.*how)(all.emplace_back());
  };
  next(o.share != "predictions", &Simulation::share_weights);
  next(o.share != "weights", &Simulation::share_predictions);
  next(o.without_others, &Simulation::train_together);
  next(o.without_others, &Simulation::train_one_home);
  next(o.without_others, &Simulation::train_on_common);
  if (!done && done.error().code != Errc::cancelled) return done;
  print_summary(all);
  if (!o.plot.empty() && !draw(o.plot, all)) return example::no_picture(o.plot);
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Simulates homes that teach one model without showing their data.", "federated");
  Options options;
  options.add_to(app);
  return example::run(app, argc, argv, [&] { return simulate(options); });
}
