// SPDX-License-Identifier: Apache-2.0
//
// compress: makes a model as small as a budget wants and loses as little as possible.
#include "compress/job.hpp"

#include <cctype>
#include <string>
#include <string_view>
#include <vector>

#include "common.hpp"
#include "compress/commands.hpp"
#include "nibble/core/thread_pool.hpp"

namespace {

using nibble::Index;

// "900KiB", "3.5MB", "120000".
std::uint64_t parse_bytes(const std::string& text) {
  std::size_t end = 0;
  double number = 0;
  try {
    number = std::stod(text, &end);
  } catch (const std::exception&) {
    throw CLI::ValidationError("'" + text + "' is not a number of bytes, such as 900KiB");
  }
  std::string unit = text.substr(end);
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const struct {
    const char* name;
    double bytes;
  } units[] = {{"", 1},
               {"B", 1},
               {"KB", 1e3},
               {"MB", 1e6},
               {"GB", 1e9},
               {"K", 1024},
               {"M", 1024. * 1024},
               {"G", 1024. * 1024 * 1024},
               {"KIB", 1024},
               {"MIB", 1024. * 1024},
               {"GIB", 1024. * 1024 * 1024}};
  for (const auto& known : units) {
    const double bytes = number * known.bytes;
    if (unit == known.name && bytes >= 1 && bytes < 1e15) return static_cast<std::uint64_t>(bytes);
  }
  throw CLI::ValidationError("'" + text + "' is not a number of bytes, such as 900KiB");
}

int compress(int argc, char** argv) {
  CLI::App app(
      "Makes a model as small as a budget wants: observes it on a text, tries each matrix in each "
      "format, takes the formats that lose least, and rounds as well as it can. compress observe, "
      "prune, factor and report are single steps (compress observe --help), as is quantize.\n"
      "What it writes runs in nibble, and in llama.cpp unless it has q3_h or q2_h.",
      "compress");
  example::JobOptions options;
  std::string budget, preset, memory = "1GiB";
  std::vector<std::string> format_names = {"q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k",
                                           "q6_k", "q8_0", "f16",  "q3_h", "q2_h"};
  Index n_threads = 0;
  app.add_option("MODEL", options.in, "a GGUF file or a folder as hubs have it")->required();
  app.add_option("OUT.gguf", options.out, "the file to write")
      ->check(example::is_not_empty)
      ->required();
  auto* const what = app.add_option_group("budget");
  what->add_option("--budget", budget, "bytes of the file, e.g. 900KiB")
      ->check(example::is_not_empty);
  what->add_option("--budget-us", options.budget.microseconds,
                   "microseconds of a token on this machine, as the products are timed")
      ->check(example::is_number)
      ->check(CLI::PositiveNumber);
  what->add_option("--preset", preset,
                   "q4: 4.5 bits a weight; q3: 3.5; q2: 2.75; smallest: the smallest that costs no "
                   "more than 0.05 nats")
      ->check(CLI::IsMember({"q4", "q3", "q2", "smallest"}));
  what->require_option(1);
  app.add_option("--text", options.text.path, "a text of the kind that the model is for")
      ->check(example::is_not_empty)
      ->required();
  app.add_option("--ctx", options.text.context, "tokens of a chunk of the text")
      ->check(CLI::Range(Index{8}, Index{1} << 20))
      ->capture_default_str();
  app.add_option("--calibration-tokens", options.text.n_calibration, "the most tokens to observe")
      ->check(CLI::Range(Index{8}, Index{1} << 30))
      ->capture_default_str();
  app.add_option("--trial-tokens", options.text.n_trial, "the most tokens to try formats on")
      ->check(CLI::Range(Index{8}, Index{1} << 30))
      ->capture_default_str();
  app.add_option("--report-tokens", options.text.n_report, "the most tokens to report on")
      ->check(CLI::Range(Index{8}, Index{1} << 30))
      ->capture_default_str();
  app.add_option("--formats", format_names, "the formats that may be used")
      ->delimiter(',')
      ->capture_default_str();
  options.rules.add_option_to(app);
  app.add_option("--exact", options.sample_paths,
                 "FILE.tsv of prompts and answers, with a tab between: how many answers are right")
      ->allow_extra_args(false);
  app.add_option(
         "--memory", memory,
         "the most memory for the second moments of inputs, by which columns are rounded one "
         "after the other; 0: without")
      ->capture_default_str();
  app.add_option("--plot", options.plot, "a picture of size against loss, FILE.svg (by gnuplot)")
      ->check(example::is_not_empty);
  example::add_threads(app, n_threads);
  app.footer(
      "OUT.gguf.trials keeps what was measured: if it is stopped, the same command goes on.\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted: OUT.gguf is then as it was,\n"
      "or, once the report begins, complete.");
  app.callback([&] {
    if (!budget.empty()) options.budget.bytes = parse_bytes(budget);
    options.memory = memory == "0" ? 0 : parse_bytes(memory);
    if (preset == "q4") options.budget.bits = 4.5;
    if (preset == "q3") options.budget.bits = 3.5;
    if (preset == "q2") options.budget.bits = 2.75;
    if (preset == "smallest") options.budget.most_divergence = 0.05;
    for (const std::string& name : format_names) {
      options.formats.push_back(example::parse_format(name));
    }
    options.rules.parse();
  });
  return example::run(app, argc, argv, [&]() -> nibble::Result<void> {
    example::catch_signals();
    NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = n_threads}));
    return example::Job(options, *pool).run();
  });
}

}  // namespace

int main(int argc, char** argv) {
  const struct {
    std::string_view name;
    int (*program)(int, char**);
  } steps[] = {{"observe", example::observe_step},
               {"prune", example::prune_step},
               {"factor", example::factor_step},
               {"report", example::report_step}};
  for (const auto& step : steps) {
    if (argc > 1 && argv[1] == step.name) return step.program(argc - 1, argv + 1);
  }
  return compress(argc, argv);
}
