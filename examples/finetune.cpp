// SPDX-License-Identifier: Apache-2.0
//
// finetune: teaches a model something new from a few examples, on the device, without changing it:
// what it learns is an adapter (LoRA) of some hundred kilobytes beside the model's weights, which
// may be quantized. Without other options the bundled model learns a room that it does not know.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common.hpp"
#include "format_rules.hpp"
#include "measure.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/train/initialize.hpp"
#include "nibble/train/lora.hpp"
#include "nibble/train/merge_adapter.hpp"
#include "nibble/train/peft.hpp"
#include "nibble/train/run.hpp"
#include "train/accuracy.hpp"
#include "train/loop.hpp"
#include "train/model.hpp"
#include "train/new_words.hpp"

namespace {

using example::NewWord;
using example::Sample;
using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::Result;

const char* const kModels = NIBBLE_EXAMPLES_DIR "/models";

struct Options {
  std::string out, model = std::string(kModels) + "/home-commands-f16.gguf";
  std::string room, device, samples, test, old, merged, merged_format, start;
  std::uint64_t n_samples = 50, n_new_tests = 500, n_old_tests = 2000;
  nibble::train::LoraOptions lora;
  std::uint64_t n_steps = 200, seed = 1;
  double rate = 1e-3, rehearsal = 0.75, dropout = 0;
  Index n_sequences = 32, n_threads = 0;
  bool quiet = false;

  std::optional<int> parse(int argc, char** argv, CLI::App& app);
};

std::optional<int> Options::parse(int argc, char** argv, CLI::App& app) {
  app.footer(
      "Samples are lines of a command, a tab and its answer. Ctrl-C leaves OUT.checkpoint; the "
      "same\n"
      "command then goes on from there. Exit codes: 0 done, 1 an error, 2 wrong usage, 130\n"
      "interrupted.");
  app.add_option("out", out,
                 "the adapter: llama.cpp's form if it ends with .gguf, else PEFT's folder")
      ->required()
      ->check(example::is_not_empty);
  app.add_option("--model", model, "the model, in any format that this program has")
      ->capture_default_str();
  auto* const word = app.add_option_group("lesson", "what is learned; by default a room, 'sauna'");
  word->add_option("--room", room, "a room with this name");
  word->add_option("--device", device, "a device with this name");
  word->add_option("--samples", samples, "what is in this file");
  word->require_option(0, 1);
  app.add_option("--n-samples", n_samples, "how many samples are made of a room or device")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--test", test, "with --samples: other samples, to measure what was learned");
  app.add_option("--old", old, "samples of what is not to be forgotten; default: home commands");
  app.add_option("--rehearsal", rehearsal, "part of them in each batch")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  app.add_option("--old-tests", n_old_tests,
                 "how many old commands of each test are asked; 0: none")
      ->check(CLI::Range(0, 2000))
      ->capture_default_str();
  app.add_option("--slots", lora.slot_names, "matrices with factors: names of slots, or all")
      ->capture_default_str();
  app.add_option("--rank", lora.rank, "of the factors")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--alpha", lora.alpha, "the factors count alpha / rank")
      ->check(example::is_number)
      ->capture_default_str();
  app.add_option("--dropout", dropout, "share of the inputs of factors that is dropped")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  app.add_option("--start", start, "go on from this adapter, of the same rank, alpha and slots");
  app.add_option("--merge", merged, "write also a model file with the adapter in its weights");
  app.add_option("--merge-format", merged_format,
                 "of the matrices that change; default: as before");
  app.add_option("--steps", n_steps, "updates of the factors")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--sequences", n_sequences, "sequences of a batch")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--rate", rate, "largest learning rate")
      ->check(example::is_number)
      ->capture_default_str();
  app.add_option("--seed", seed, "of factors and data")->capture_default_str();
  app.add_option("--threads", n_threads, "threads; 0: one per core")->check(CLI::Range(0, 1024));
  app.add_flag("--quiet", quiet, "no progress");
  const auto code = example::parse(app, argc, argv);
  if (!code && room.empty() && device.empty() && samples.empty()) room = "sauna";
  return code;
}

// What is learned, and what measures it.
struct Lesson {
  std::vector<Sample> samples, tests, old;
  std::string name;
  bool is_tested_by_samples = false;
};

Result<Lesson> make_lesson(const Options& o) {
  Lesson lesson;
  if (!o.old.empty()) {
    NIBBLE_TRY(old, example::read_samples(o.old));
    lesson.old = std::move(old);
  }
  if (o.samples.empty()) {
    const NewWord kind = o.room.empty() ? NewWord::device : NewWord::room;
    const std::string& word = o.room.empty() ? o.device : o.room;
    lesson.name = (kind == NewWord::room ? "commands for the room " : "commands for the device ") +
                  nibble::printable(word);
    lesson.samples =
        example::samples_with_word(example::home::Split::train, o.seed, kind, word, o.n_samples);
    lesson.tests = example::samples_with_word(example::home::Split::held_out, o.seed + 1, kind,
                                              word, o.n_new_tests);
    return lesson;
  }
  NIBBLE_TRY(samples, example::read_samples(o.samples));
  lesson.samples = std::move(samples);
  lesson.name = "samples of " + nibble::printable(o.test.empty() ? o.samples : o.test);
  lesson.is_tested_by_samples = o.test.empty();
  if (lesson.samples.empty()) {
    return Error{Errc::malformed, nibble::printable(o.samples) + ": there are no samples"};
  }
  if (o.test.empty()) {
    lesson.tests = lesson.samples;
    return lesson;
  }
  NIBBLE_TRY(tests, example::read_samples(o.test));
  lesson.tests = std::move(tests);
  return lesson;
}

// Percent of right answers.
struct Scores {
  double lesson = 0, held_out = 0, hard = 0;
};

class Examiner {
 public:
  static Result<Examiner> create(const Options& o, const nibble::Model& model, const Lesson& lesson,
                                 nibble::Executor& executor) {
    NIBBLE_TRY(splits, example::TestSplits::read(kModels));
    splits.held_out.resize(std::min(splits.held_out.size(), std::size_t{o.n_old_tests}));
    splits.hard.resize(splits.held_out.size());
    return Examiner(model, lesson, std::move(splits), executor);
  }

  Result<Scores> ask(const nibble::AdaptedWeights* adapted) const {
    NIBBLE_TRY(lesson, percent(lesson_->tests, adapted));
    NIBBLE_TRY(held_out, percent(splits_.held_out, adapted));
    NIBBLE_TRY(hard, percent(splits_.hard, adapted));
    return Scores{lesson, held_out, hard};
  }

 private:
  Examiner(const nibble::Model& model, const Lesson& lesson, example::TestSplits splits,
           nibble::Executor& executor)
      : model_(&model), lesson_(&lesson), splits_(std::move(splits)), executor_(&executor) {}

  Result<double> percent(const std::vector<Sample>& samples,
                         const nibble::AdaptedWeights* adapted) const {
    if (samples.empty()) return 0.0;
    NIBBLE_TRY(right, example::count_right(*model_, samples, *executor_, adapted));
    return 100.0 * static_cast<double>(right) / static_cast<double>(samples.size());
  }

  const nibble::Model* model_;
  const Lesson* lesson_;
  example::TestSplits splits_;
  nibble::Executor* executor_;
};

nibble::train::RunOptions run_options(const Options& o, Index context) {
  nibble::train::RunOptions options;
  options.schedule.peak = o.rate;
  options.schedule.floor = o.rate / 20;
  options.schedule.warm_up = o.n_steps / 20;
  options.schedule.n_steps = o.n_steps;
  options.optimizer.weight_decay = 0;
  options.optimizer.seed = o.seed;
  options.batches.context = context;
  options.batches.max_sequences = o.n_sequences;
  options.batches.max_rows = std::max(context, o.n_sequences * 40);
  options.batches.shuffles = false;
  options.batches.seed = o.seed;
  options.factor_dropout = static_cast<float>(o.dropout);
  return options;
}

Result<nibble::Adapter> learn(const Options& o, const nibble::io::Gguf& file,
                              const nibble::Model& model, const Lesson& lesson,
                              nibble::Executor& executor) {
  NIBBLE_TRY(graph, example::training_graph(file));
  NIBBLE_TRY(weights, nibble::train::adapter_weights(*graph, model.weights(), o.lora));
  NIBBLE_TRY(architecture, file.get_string("general.architecture"));
  nibble::train::initialize(weights, graph->config().n_layers, o.seed);
  if (!o.start.empty()) {
    NIBBLE_TRY(adapter, nibble::train::open_adapter(o.start, file));
    Result<void> set = nibble::train::set_adapter(weights, adapter);
    if (!set) return std::move(set).error().in(nibble::printable(o.start));
  }
  const nibble::text::Tokenizer* const tokenizer = model.tokenizer();
  if (tokenizer == nullptr) return *model.tokenizer_error();
  const example::LessonSource source(*tokenizer, lesson.samples, lesson.old, o.rehearsal, o.seed,
                                     static_cast<Index>(o.n_steps) * o.n_sequences);
  NIBBLE_TRY(run, nibble::train::Run::create(*graph, weights, source,
                                             run_options(o, graph->config().n_ctx), executor));
  std::printf(
      "%s parameters beside %s of weights; factors, gradients and moments %s, results of a "
      "batch %s\n",
      example::grouped(static_cast<std::uint64_t>(weights.n_trained())).c_str(),
      example::mebibytes(model.weight_bytes()).c_str(),
      example::mebibytes(weights.bytes() + run.optimizer().moment_bytes()).c_str(),
      example::mebibytes(run.working_bytes()).c_str());
  example::Curve curve("loss");
  example::LoopOptions loop;
  loop.name = "finetune";
  loop.checkpoint = o.out + ".checkpoint";
  loop.n_steps = o.n_steps;
  loop.is_quiet = o.quiet;
  NIBBLE_CHECK(example::train_to_end(run, loop, curve));
  return nibble::train::adapter_of(weights, architecture, o.lora);
}

Result<void> write(const Options& o, const nibble::Adapter& adapter, const nibble::io::Gguf& file,
                   nibble::Executor& executor) {
  if (o.out.ends_with(".gguf")) {
    NIBBLE_CHECK(nibble::train::write_adapter(adapter, o.out));
  } else {
    std::error_code error;
    std::filesystem::create_directory(o.out, error);
    if (error) return Error{Errc::io, nibble::printable(o.out) + ": " + error.message()};
    NIBBLE_CHECK(nibble::train::write_peft(adapter, file, o.out));
  }
  if (o.merged.empty()) return nibble::ok();
  std::optional<nibble::quant::Format> format;
  if (!o.merged_format.empty()) format = example::parse_format(o.merged_format);
  const nibble::AppliedAdapter applied[] = {{&adapter, 1}};
  NIBBLE_TRY(merged, nibble::train::MergedModel::create(file, applied, format, executor));
  return merged.write(o.merged);
}

Result<void> finetune(const Options& o) {
  using Clock = std::chrono::steady_clock;
  NIBBLE_TRY(lesson, make_lesson(o));
  NIBBLE_TRY(file, nibble::io::Gguf::open(o.model));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(model, example::load_to_ask(file, *pool));
  NIBBLE_TRY(examiner, Examiner::create(o, model, lesson, *pool));
  NIBBLE_TRY(before, examiner.ask(nullptr));
  const auto start = Clock::now();
  NIBBLE_TRY(adapter, learn(o, file, model, lesson, *pool));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  NIBBLE_CHECK(write(o, adapter, file, *pool));
  NIBBLE_TRY(adapted, nibble::AdaptedWeights::create(model, adapter));
  NIBBLE_TRY(after, examiner.ask(&adapted));
  std::printf("%s: %zu samples learned in %.1f s\n", nibble::printable(o.out).c_str(),
              lesson.samples.size(), seconds);
  const auto line = [](const std::string& name, std::size_t n, double from, double to) {
    std::printf("%-44s %6.2f %% -> %6.2f %% of %zu right (%+.2f)\n", name.c_str(), from, to, n,
                to - from);
  };
  line((lesson.is_tested_by_samples ? "the learned " : "new ") + lesson.name, lesson.tests.size(),
       before.lesson, after.lesson);
  if (o.n_old_tests > 0) {
    line("old commands", o.n_old_tests, before.held_out, after.held_out);
    line("old commands, hard", o.n_old_tests, before.hard, after.hard);
  }
  return nibble::ok();
}

int program(int argc, char** argv) {
  Options options;
  CLI::App app("Teaches a model something new from a few examples: writes an adapter.", "finetune");
  if (const auto code = options.parse(argc, argv, app)) return *code;
  example::catch_signals();
  const Result<void> done = finetune(options);
  if (!done) {
    const int code = example::fail(app, done.error());
    return done.error().code == Errc::cancelled ? example::kInterrupted : code;
  }
  return example::finished(app);
}

}  // namespace

int main(int argc, char** argv) { return example::guarded("finetune", program, argc, argv); }
