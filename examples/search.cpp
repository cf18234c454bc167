// SPDX-License-Identifier: Apache-2.0
//
// search: which shape of a model to train, if it may have so many bytes and take so long on this
// machine. Prints the models that no other one beats in bytes, time and loss at once.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common.hpp"
#include "format_rules.hpp"
#include "gnuplot.hpp"
#include "home_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "search/search.hpp"

namespace {

using example::Contender;
using nibble::Errc;
using nibble::Index;
using nibble::Result;

struct Options {
  std::string like = example::kHomeModel;
  std::string format = "q8_0", plot;
  example::SearchOptions search;
  double kilobytes = 1000;
  Index n_threads = 1;

  void add_to(CLI::App& app);
};

void Options::add_to(CLI::App& app) {
  using example::add_number;
  example::SearchOptions& s = search;
  app.footer(
      "Shapes are ranked by their parameters, if their bytes fit and the products of a token, as\n"
      "measured here, leave time. Models of the best ones, with random weights, are measured\n"
      "whole; those that are fast enough are trained. After each turn the half with the lower loss\n"
      "goes on, twice as long. Ctrl-C prints what is known.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("--like", like, "model file whose tokenizer is used")->capture_default_str();
  add_number(app, "--kilobytes", kilobytes, "of the weights, at most (1000 bytes)", 1, 1e9);
  add_number(app, "--token-ms", s.token_ms, "most milliseconds of a token after others; 0: any", 0,
             1e6);
  add_number(app, "--command-ms", s.command_ms,
             "most milliseconds of a command, 17 tokens and 8 more; 0: any", 0, 1e6);
  app.add_option("--format", format, "of the matrices: trained for it and measured in it")
      ->check(example::is_format)
      ->capture_default_str();
  add_number(app, "--budgets", s.n_budgets, "the budget, its half, its quarter, ...: how many", 1,
             8);
  add_number(app, "--trained", s.n_trained, "shapes of each budget that training begins with", 1,
             1000);
  add_number(app, "--kept", s.n_kept, "shapes of each budget that are trained to the end", 1, 1000);
  add_number(app, "--steps", s.n_steps, "of these", 1, 10000000);
  add_number(app, "--sequences", s.n_sequences, "commands of a step", 1, 65536);
  add_number(app, "--rate", s.rate, "largest learning rate", 0, 1);
  add_number(app, "--layers", s.grid.most_layers, "most layers", 1, 1000);
  add_number(app, "--least-dim", s.grid.least_dim, "least width", 8, 16384);
  add_number(app, "--most-dim", s.grid.most_dim, "largest width", 8, 16384);
  add_number(app, "--step", s.grid.step, "widths are multiples of it", 8, 1024);
  app.add_option("--head-dims", s.grid.head_dims, "sizes of a head, multiples of 8")
      ->delimiter(',')
      ->check(CLI::Range(8, 256))
      ->capture_default_str();
  add_number(app, "--test", s.n_test, "held-out commands that trained models are asked", 1, 2000);
  example::add_seed(app, s.seed, "of weights and data");
  add_number(app, "--threads", n_threads, "threads, also of what is measured; 0: one per core", 0,
             1024);
  app.add_option("--plot", plot, "picture (.svg; needs gnuplot)");
  app.add_flag("--quiet", s.is_quiet, "no progress");
  app.callback([this] {
    search.format = example::parse_format(format);
    search.bytes = static_cast<std::uint64_t>(kilobytes * 1000);
  });
}

double time_of(const Contender& c, const example::SearchOptions& o) {
  return o.command_ms > 0 || o.token_ms <= 0 ? c.times.command : c.times.token;
}

// All that were trained to the same step; others have not shown what they can do.
std::vector<Contender> finished(const std::vector<Contender>& all) {
  std::uint64_t most = 0;
  for (const Contender& c : all) most = std::max(most, c.n_steps);
  std::vector<Contender> done;
  for (const Contender& c : all) {
    if (most > 0 && c.n_steps == most) done.push_back(c);
  }
  return done;
}

std::vector<std::size_t> front_of(const std::vector<Contender>& done,
                                  const example::SearchOptions& o) {
  std::vector<std::size_t> front =
      example::pareto_front(done, [&](const Contender& a, const Contender& b) {
        const double x = time_of(a, o), y = time_of(b, o);
        return a.bytes <= b.bytes && x <= y && a.loss <= b.loss &&
               (a.bytes < b.bytes || x < y || a.loss < b.loss);
      });
  std::sort(front.begin(), front.end(),
            [&](std::size_t a, std::size_t b) { return done[a].bytes < done[b].bytes; });
  return front;
}

void print_row(const Contender& c) {
  std::printf("%-40s %11s %11s %9.4f %9.4f %9.3f", example::shape_text(c.shape).c_str(),
              example::grouped(c.parameters).c_str(), example::grouped(c.bytes).c_str(),
              c.times.token, c.times.command, c.budget);
  if (c.n_steps > 0) {
    std::printf(" %6llu %8.4f", static_cast<unsigned long long>(c.n_steps), c.loss);
  }
  if (c.right) std::printf(" %7.2f", *c.right);
  std::printf("\n");
}

bool draw(const std::string& path, const std::vector<Contender>& all,
          const example::SearchOptions& o) {
  example::Gnuplot plot(path);
  if (!plot.is_open()) return false;
  const std::vector<Contender> done = finished(all);
  const std::vector<std::size_t> front = front_of(done, o);
  plot.print("set multiplot layout 1,2\nset key top right inside\nset ylabel 'loss, nats'\n");
  for (const bool against_time : {false, true}) {
    plot.print("set xlabel '%s'\n", against_time ? "ms" : "bytes");
    plot.print(
        "plot '-' with points pt 6 title 'all that were trained', "
        "'-' with points pt 7 title 'not beaten in bytes, time and loss'\n");
    const auto point = [&](const Contender& c) {
      plot.print("%g %g\n", against_time ? time_of(c, o) : static_cast<double>(c.bytes), c.loss);
    };
    for (const Contender& c : all) {
      if (c.n_steps > 0) point(c);
    }
    plot.print("e\n");
    for (const std::size_t i : front) point(done[i]);
    plot.print("e\n");
  }
  plot.print("unset multiplot\n");
  return plot.finish();
}

void print_results(const std::vector<Contender>& all, const example::SearchOptions& o) {
  const char* const head = "%-40s %11s %11s %9s %9s %9s %6s %8s %7s\n";
  const auto header = [&](const char* title) {
    std::printf(head, title, "parameters", "bytes", "ms/token", "ms/cmd", "budget", "steps", "loss",
                "right,%");
  };
  header("measured");
  for (const Contender& c : all) print_row(c);
  const std::vector<Contender> done = finished(all);
  if (done.empty()) return;
  std::printf("\n");
  header("not beaten in bytes, time and loss");
  for (const std::size_t i : front_of(done, o)) print_row(done[i]);
}

Result<void> run(const Options& o) {
  example::catch_signals();
  NIBBLE_TRY(like, nibble::io::Gguf::open(o.like));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(search, example::Search::create(like, o.search, *pool));
  Result<void> done = search.find();
  if (done) {
    std::printf(
        "%llu shapes; %llu fit %s bytes in %s, and their products the time (%zu products "
        "measured); %zu models measured fit\n",
        static_cast<unsigned long long>(search.n_shapes()),
        static_cast<unsigned long long>(search.n_fitting()),
        example::grouped(o.search.bytes).c_str(), o.format.c_str(), search.n_products(),
        search.contenders().size());
    std::fflush(stdout);
    done = search.train();
  }
  if (!done && done.error().code != Errc::cancelled) return done;
  if (search.contenders().empty()) return done;
  print_results(search.contenders(), o.search);
  if (!o.plot.empty() && !draw(o.plot, search.contenders(), o.search)) {
    return example::no_picture(o.plot);
  }
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Finds the shape of a model for given bytes and time.", "search");
  Options options;
  options.add_to(app);
  return example::run(app, argc, argv, [&] { return run(options); });
}
