// SPDX-License-Identifier: Apache-2.0
//
// home_commands: the model that ships with nibble translates a spoken-style home command into the
// one call that it means. Answers a few commands live, then compares weight formats on the test
// utterances, or on as many new ones as wanted: how many calls are exactly right, how fast, in how
// much memory.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "apart.hpp"
#include "common.hpp"
#include "home_commands/questions.hpp"
#include "home_model.hpp"
#include "measure.hpp"
#include "nibble/core/cpus.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/load.hpp"
#include "nibble/nibble.hpp"
#include "paired.hpp"

namespace {

using example::home::Questions;
using example::home::QuestionSource;
using nibble::Index;
using nibble::Result;
using nibble::quant::Format;
using Clock = std::chrono::steady_clock;

// Only these are compiled; without lists all that load() knows would be.
using Formats = nibble::graph::FormatList<nibble::quant::F32, nibble::quant::F16,
                                          nibble::quant::Q8_0, nibble::quant::Q4_0>;
using Architectures = nibble::ArchitectureList<nibble::Llama>;

struct TableRow {
  Format format;
  const char* name;
};
constexpr std::array kTable = {TableRow{Format::f32, "F32"}, TableRow{Format::f16, "F16"},
                               TableRow{Format::q8_0, "INT8"}, TableRow{Format::q4_0, "INT4"}};

constexpr std::array kLiveUtterances = {
    "could you please dim the office light to 10 percent",
    "wake me up at six thirty am tomorrow",
    "could you add milk and eggs to my list",
    "it is too cold, heat the nursery to twenty one degrees please",
    "please kitcheen printter on pllese",
    "tell me why cats purr",
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// ---- One command -------------------------------------------------------------------------------

struct Answer {
  std::string call;
  double logprob = 0;  // of the whole call, including its end
  double seconds = 0;
  Index n_tokens = 0;  // of utterance and call together
};

// The call that the utterance means: the most likely continuation of the utterance and a newline.
Result<Answer> answer(nibble::Session& session, const std::string& utterance,
                      nibble::FunctionRef<void(std::string_view)> on_text) {
  Answer result;
  const auto start = Clock::now();
  NIBBLE_CHECK(session.rewind(0));
  const auto on_token = [&](const nibble::Token& token) {
    result.call += token.text;
    result.logprob += static_cast<double>(token.logprob);
    on_text(token.text);
    return true;
  };
  NIBBLE_TRY(done, nibble::generate(session, utterance + "\n", {}, on_token));
  result.seconds = seconds_since(start);
  result.n_tokens = done.n_prompt + done.n_tokens;
  return result;
}

Result<Answer> answer_and_print(nibble::Session& session, const std::string& utterance) {
  const auto print = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  NIBBLE_TRY(result, answer(session, utterance, print));
  std::printf("   (%.1f ms, confidence %.1f %%)\n", 1000 * result.seconds,
              100 * std::exp(result.logprob));
  return result;
}

// Returns the mean time per command.
Result<double> answer_live(const std::string& model_path) {
  NIBBLE_TRY(file, nibble::io::Gguf::open(model_path));
  NIBBLE_TRY(model, nibble::Model::from_gguf<Formats, Architectures>(file));
  NIBBLE_TRY(session, nibble::Session::create(model));
  double seconds = 0;
  for (const char* const utterance : kLiveUtterances) {
    std::printf("  %s\n    -> ", utterance);
    NIBBLE_TRY(result, answer_and_print(session, utterance));
    seconds += result.seconds;
  }
  return seconds / kLiveUtterances.size();
}

Result<void> answer_stdin(const std::string& model_path) {
  NIBBLE_TRY(file, nibble::io::Gguf::open(model_path));
  NIBBLE_TRY(model, nibble::Model::from_gguf<Formats, Architectures>(file));
  NIBBLE_TRY(session, nibble::Session::create(model));
  std::string utterance;
  for (;;) {
    if (example::is_terminal(stderr)) std::fputs("> ", stderr);
    if (!std::getline(std::cin, utterance)) {
      if (!std::cin.bad()) return nibble::ok();
      return nibble::Error{nibble::Errc::io, "stdin: cannot read"};
    }
    if (utterance.empty()) continue;
    if (const auto result = answer_and_print(session, utterance); !result) {
      std::printf("%s\n", result.error().message.c_str());  // too long; the next one may be shorter
    }
  }
}

// ---- Many commands -----------------------------------------------------------------------------

struct Score {
  std::uint64_t weight_bytes = 0;  // as stored in the file
  std::array<Index, 2> right = {};
  double command_seconds = 0;  // mean
  double tokens_per_second = 0;
};

// Asks all questions; `is_right` gets a byte of 1 for each right answer. Each question runs on one
// thread; n_threads of them run at the same time, with their own sessions over one model.
Result<Score> measure(const nibble::io::Gguf& file, const QuestionSource& source, Index n_threads,
                      const char* name, std::span<std::byte> is_right) {
  NIBBLE_TRY(model, nibble::Model::from_gguf<Formats, Architectures>(file));
  Score score;
  for (const auto& tensor : file.tensors()) score.weight_bytes += tensor.data.size();

  struct Worker {
    std::array<Index, 2> right = {};
    double seconds = 0;
    Index n_tokens = 0;
    std::optional<nibble::Error> error;
    std::thread thread;
  };
  Questions questions(source);
  const auto work = [&](Worker& worker) -> Result<void> {
    NIBBLE_TRY(session, nibble::Session::create(model));
    while (const auto question = questions.take()) {
      NIBBLE_TRY(result, answer(session, question->sample.prompt, [](std::string_view) {}));
      const int right = result.call == question->sample.answer ? 1 : 0;
      is_right[question->at] = static_cast<std::byte>(right);
      worker.right[question->at / source.n] += right;
      worker.seconds += result.seconds;
      worker.n_tokens += result.n_tokens;
    }
    return nibble::ok();
  };

  const auto start = Clock::now();
  std::vector<Worker> workers(static_cast<std::size_t>(n_threads));
  for (Worker& worker : workers) {
    const auto fail = [&worker, &questions](nibble::Error error) {
      worker.error = std::move(error);
      questions.stop();  // all workers stop after an error
    };
    try {
      worker.thread = std::thread([&work, &worker, fail] {
        if (Result<void> done = work(worker); !done) fail(std::move(done).error());
      });
    } catch (const std::system_error& error) {
      fail({nibble::Errc::limit, std::string("cannot start a thread: ") + error.what()});
      break;
    }
  }
  {
    example::StatusLine status;
    for (std::size_t done; (done = questions.n_taken()) < questions.size();) {
      status.show(std::string(name) + ": " + std::to_string(done) + " of " +
                  std::to_string(questions.size()));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  for (Worker& worker : workers) {
    if (worker.thread.joinable()) worker.thread.join();
  }
  const double seconds = seconds_since(start);
  Index n_tokens = 0;
  for (Worker& worker : workers) {
    if (worker.error) return *std::move(worker.error);
    for (std::size_t split = 0; split < 2; ++split) score.right[split] += worker.right[split];
    score.command_seconds += worker.seconds / static_cast<double>(questions.size());
    n_tokens += worker.n_tokens;
  }
  score.tokens_per_second = static_cast<double>(n_tokens) / seconds;
  return score;
}

// Score and peak memory of the model in a format. Each runs in its own process and gets the
// converted model in memory, as if it were a file of that format.
Result<example::Apart<Score>> measure_apart(const std::string& model_path, const TableRow& row,
                                            const QuestionSource& source, Index n_threads,
                                            std::span<std::byte> is_right) {
  if (row.format == Format::f16) {
    return example::run_apart<Score>([&]() -> Result<Score> {
      NIBBLE_TRY(file, nibble::io::Gguf::open(model_path));
      return measure(file, source, n_threads, row.name, is_right);
    });
  }
  std::error_code error;
  const auto file_size = std::filesystem::file_size(model_path, error);
  const auto capacity = nibble::io::narrow<std::size_t>(2 * (error ? 0 : file_size) + (1u << 20));
  NIBBLE_TRY(converted, example::SharedBytes::allocate(capacity));
  const auto convert = [&]() -> Result<std::size_t> {
    NIBBLE_TRY(file, nibble::io::Gguf::open(model_path));
    NIBBLE_TRY(bytes, nibble::quantize_model(file, {.format = row.format}));
    if (bytes.size() > capacity) {
      return nibble::Error{nibble::Errc::limit,
                           nibble::printable(model_path) + ": is no F16 model"};
    }
    std::copy(bytes.begin(), bytes.end(), converted.bytes().begin());
    return bytes.size();
  };
  NIBBLE_TRY(size, example::run_apart<std::size_t>(convert));
  return example::run_apart<Score>([&]() -> Result<Score> {
    NIBBLE_TRY(file, nibble::io::Gguf::parse(converted.bytes().first(size.value), row.name));
    return measure(file, source, n_threads, row.name, is_right);
  });
}

// As many as fit in about half a minute.
std::size_t affordable(std::size_t n_all, Index n_threads, double command_seconds) {
  const double budget = 30.0 * static_cast<double>(n_threads) / (kTable.size() * 2);
  const double fitting = budget / std::max(command_seconds, 1e-6);
  if (fitting >= static_cast<double>(n_all)) return n_all;
  return std::min(n_all, std::max<std::size_t>(50, static_cast<std::size_t>(fitting)));
}

// Where the other formats differ from the first, command by command: two models that are right as
// often can be so on different commands.
void print_pairs(std::span<example::SharedBytes> is_right, std::size_t n) {
  std::printf("\nBeside %s, points +- standard error (right only here, right only there):\n",
              kTable[0].name);
  for (std::size_t row = 1; row < kTable.size(); ++row) {
    std::printf("%-6s", kTable[row].name);
    for (std::size_t split = 0; split < 2; ++split) {
      const auto paired = example::compare_pairs(is_right[0].bytes().subspan(split * n, n),
                                                 is_right[row].bytes().subspan(split * n, n));
      std::printf("  %s %+.2f +- %.2f (%lld, %lld)", split == 0 ? "held-out" : "hard",
                  paired.points(n), paired.error_of_points(n),
                  static_cast<long long>(paired.only_second),
                  static_cast<long long>(paired.only_first));
    }
    std::printf("\n");
  }
}

Result<void> print_table(const std::string& model_path, const QuestionSource& source,
                         Index n_threads) {
  const int width = static_cast<int>(std::max<std::size_t>(4, std::to_string(source.n).size()));
  const int column = 2 * width + 10;
  std::printf("%-6s %13s %*s %*s %11s %9s %10s\n", "format", "weight bytes", column,
              "held-out right", column, "hard right", "ms/command", "tokens/s", "peak RAM");
  std::vector<example::SharedBytes> is_right;
  for (const TableRow& row : kTable) {
    NIBBLE_TRY(shared, example::SharedBytes::allocate(2 * source.n));
    is_right.push_back(std::move(shared));
    NIBBLE_TRY(measured,
               measure_apart(model_path, row, source, n_threads, is_right.back().bytes()));
    const Score& score = measured.value;
    std::printf("%-6s %13s", row.name, example::grouped(score.weight_bytes).c_str());
    for (const Index right : score.right) {
      std::printf(" %*lld/%-*zu %6.2f %%", width, static_cast<long long>(right), width, source.n,
                  100.0 * static_cast<double>(right) / static_cast<double>(source.n));
    }
    std::printf(" %11.2f %9.0f %10s\n", 1000 * score.command_seconds, score.tokens_per_second,
                measured.peak_ram ? example::mebibytes(*measured.peak_ram).c_str() : "unknown");
    std::fflush(stdout);
  }
  print_pairs(is_right, source.n);
  std::printf(
      "\nSIMD target %s (available: %s), %lld commands side by side, a thread each.\n"
      "INT8 is Q8_0, INT4 is Q4_0; norms stay F32. tokens/s: utterances and calls, all threads\n"
      "together. Peak RAM: of a process that loads and runs this model and nothing else.\n",
      to_string(nibble::simd::active_target()),
      to_string(nibble::simd::available_targets()).c_str(), static_cast<long long>(n_threads));
  return nibble::ok();
}

// Path of the model: where it was when this program was compiled, or next to the program.
std::string default_model(const char* program) {
  const std::filesystem::path built = example::kHomeModel, name = built.filename();
  const auto here = std::filesystem::path(program).parent_path();
  for (const auto& path : {built, here / "models" / name, here / name}) {
    std::error_code error;
    if (std::filesystem::exists(path, error)) return path.string();
  }
  return built.string();
}

struct Options {
  std::string model_path;
  std::size_t n = 0;            // of each test file; 0: see affordable()
  std::size_t n_generated = 0;  // of each kind; 0: the test files
  std::uint64_t seed = 1;
  Index n_threads = 0;
  bool is_interactive = false;
};

// What is asked, and says so.
Result<QuestionSource> choose_questions(const Options& options, Index n_threads,
                                        double command_seconds) {
  if (options.n_generated > 0) {
    std::printf(
        "\n%zu held-out and %zu hard utterances drawn with seed %llu; right: to the letter\n\n",
        options.n_generated, options.n_generated, static_cast<unsigned long long>(options.seed));
    return QuestionSource{{}, options.seed, options.n_generated};
  }
  const auto folder = std::filesystem::path(options.model_path).parent_path();
  NIBBLE_TRY(source, example::home::questions_in_files(folder));
  if (source.n == 0)
    return nibble::Error{nibble::Errc::malformed,
                         nibble::printable(folder.string()) + ": no utterances"};
  source.n = options.n == 0 ? affordable(source.n, n_threads, command_seconds)
                            : std::min(source.n, options.n);
  std::printf(
      "\nThe first %zu of %zu held-out and of %zu hard utterances; right: to the letter\n\n",
      source.n, source.files[0].size(), source.files[1].size());
  return source;
}

Result<void> run(const Options& options) {
  NIBBLE_CHECK(nibble::simd::ensure_target());
  if (options.is_interactive) return answer_stdin(options.model_path);
  std::printf("%s\n\n", std::filesystem::path(options.model_path).filename().string().c_str());
  NIBBLE_TRY(live, example::run_apart<double>([&] { return answer_live(options.model_path); }));
  const Index n_threads =
      options.n_threads == 0 ? nibble::available_cpus().n_cores : options.n_threads;
  NIBBLE_TRY(source, choose_questions(options, n_threads, live.value));
  return print_table(options.model_path, source, n_threads);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Turns home commands into calls with the model that ships with nibble, and compares weight "
      "formats.",
      "home_commands");
  Options options;
  options.model_path = default_model(argv[0]);
  app.add_option("--model", options.model_path,
                 "an F16 model; test_2000.tsv and hard_2000.tsv beside it")
      ->capture_default_str();
  auto* const files =
      app.add_option("--utterances", options.n,
                     "how many of each test file; 0: as many as half a minute allows")
          ->check(example::is_not_negative);
  auto* const generated =
      app.add_option("--generated", options.n_generated,
                     "instead of the test files: so many new utterances of each kind, drawn from "
                     "the grammar")
          ->check(CLI::Range(1, 10'000'000))
          ->excludes(files);
  app.add_option("--seed", options.seed, "which new utterances")
      ->check(example::is_not_negative)
      ->needs(generated)
      ->capture_default_str();
  app.add_option("--threads", options.n_threads, "commands that run side by side; 0: one per core")
      ->check(CLI::Range(0, 1024));
  app.add_flag("--interactive", options.is_interactive,
               "answer the commands on stdin, a line each");
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage.");
  return example::run(app, argc, argv, [&] { return run(options); });
}
