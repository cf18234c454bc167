// SPDX-License-Identifier: Apache-2.0
//
// finetune: teaches a model something new from a few examples, on the device, without changing it:
// what it learns is an adapter (LoRA) of some hundred kilobytes beside the model's weights, which
// may be quantized. Without other options the bundled model learns a room that it does not know.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common.hpp"
#include "format_rules.hpp"
#include "home_model.hpp"
#include "measure.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/train/initialize.hpp"
#include "nibble/train/lora.hpp"
#include "nibble/train/merge_adapter.hpp"
#include "nibble/train/peft.hpp"
#include "nibble/train/run.hpp"
#include "train/home_source.hpp"
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

struct Options {
  std::string out, model = example::kHomeModel;
  std::string room, device, samples, test, old, merged, merged_format, start;
  std::size_t n_samples = 50, n_new_tests = 500, n_old_tests = 2000;
  nibble::train::LoraOptions lora;
  std::uint64_t n_steps = 200, seed = 1;
  double rate = 1e-3, rehearsal = 0.75, dropout = 0;
  Index n_sequences = 32, n_threads = 0;
  bool quiet = false;

  void add_to(CLI::App& app);
};

// A check of a name: a call must stay one.
std::string is_name(const std::string& text) {
  const bool is_part_of_call = text.find_first_of("(),=") != text.npos;
  const bool is_printed = nibble::printable(text) == text;
  return text.empty() || is_part_of_call || !is_printed ? "'" + text + "' is no name" : "";
}

void Options::add_to(CLI::App& app) {
  using example::add_number;
  app.footer(
      "Samples are lines of a command, a tab and its answer. Ctrl-C leaves OUT.checkpoint; the\n"
      "same command then goes on from there.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("OUT", out,
                 "the adapter: llama.cpp's form if it ends with .gguf, else PEFT's folder")
      ->required()
      ->check(example::is_not_empty);
  app.add_option("--model", model, "the model, in any format that this program has")
      ->capture_default_str();
  auto* const lesson =
      app.add_option_group("lesson", "what is learned; by default a room, 'sauna'");
  lesson->add_option("--room", room, "a room with this name")->check(is_name);
  lesson->add_option("--device", device, "a device with this name")->check(is_name);
  auto* const samples_file = lesson->add_option("--samples", samples, "what is in this file")
                                 ->check(example::is_not_empty);
  lesson->require_option(0, 1);
  add_number(app, "--n-samples", n_samples, "how many samples are made of a room or device", 1,
             100000);
  app.add_option("--test", test, "with --samples: other samples, to measure what was learned")
      ->check(example::is_not_empty)
      ->needs(samples_file);
  app.add_option("--old", old, "samples of what is not to be forgotten; default: home commands");
  add_number(app, "--rehearsal", rehearsal, "part of them in each batch", 0, 0.99);
  add_number(app, "--old-tests", n_old_tests,
             "how many old commands of each test are asked; 0: none", 0, 2000);
  app.add_option("--slots", lora.slot_names, "matrices with factors: names of slots, or all")
      ->capture_default_str();
  add_number(app, "--rank", lora.rank, "of the factors", 1, 4096);
  add_number(app, "--alpha", lora.alpha, "the factors count alpha / rank", 0, 1e6f);
  add_number(app, "--dropout", dropout, "share of the inputs of factors that is dropped", 0, 0.99);
  app.add_option("--start", start, "go on from this adapter, of the same rank, alpha and slots");
  auto* const merge =
      app.add_option("--merge", merged, "write also a model file with the adapter in its weights");
  app.add_option("--merge-format", merged_format, "of the matrices that change; default: as before")
      ->check(example::is_format)
      ->needs(merge);
  add_number(app, "--steps", n_steps, "updates of the factors", 1, 1000000);
  add_number(app, "--sequences", n_sequences, "sequences of a batch", 1, 65536);
  add_number(app, "--rate", rate, "largest learning rate", 0, 1);
  example::add_seed(app, seed, "of factors and data");
  example::add_threads(app, n_threads);
  app.add_flag("--quiet", quiet, "no progress");
  app.callback([this] {
    while (out.size() > 1 && out.ends_with('/')) out.pop_back();  // OUT.checkpoint is beside it
    if (room.empty() && device.empty() && samples.empty()) room = "sauna";
  });
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

Result<Scores> ask(const nibble::Model& model, const Lesson& lesson,
                   const example::TestSplits& splits, std::size_t n_old, nibble::Executor& executor,
                   const nibble::AdapterSet& adapter) {
  const auto percent = [&](const std::vector<Sample>& samples, std::size_t n) {
    return example::percent_right(model, samples, n, executor, adapter);
  };
  NIBBLE_TRY(of_lesson, percent(lesson.tests, lesson.tests.size()));
  NIBBLE_TRY(held_out, percent(splits.held_out, n_old));
  NIBBLE_TRY(hard, percent(splits.hard, n_old));
  return Scores{of_lesson, held_out, hard};
}

// What decides about the examples, as a number: a checkpoint of other ones is not continued.
std::uint64_t seed_of_data(const Options& o, const Lesson& lesson) {
  std::uint64_t seed = nibble::train::detail::mixed(o.seed);
  const auto add = [&](std::string_view text) {
    seed = nibble::train::detail::mixed(seed ^ example::home::Crc32().add(text).value());
  };
  for (const auto* const samples : {&lesson.samples, &lesson.old}) {
    add("samples");
    for (const Sample& sample : *samples) add(sample.prompt + '\t' + sample.answer);
  }
  add(nibble::to_text(o.rehearsal));
  add(std::filesystem::path(o.model).filename().string());
  return seed;
}

nibble::train::RunOptions run_options(const Options& o, const Lesson& lesson, Index context) {
  nibble::train::RunOptions options;
  options.schedule.peak = o.rate;
  options.schedule.floor = o.rate / 20;
  options.schedule.warm_up = o.n_steps / 20;
  options.schedule.n_steps = o.n_steps;
  options.optimizer.weight_decay = 0;
  options.optimizer.seed = o.seed;
  options.batches = example::command_batches(context, o.n_sequences, seed_of_data(o, lesson));
  options.factor_dropout = static_cast<float>(o.dropout);
  return options;
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

struct Finetuned {
  nibble::Adapter adapter;
  double seconds = 0;
};

// Learns the adapter and writes it.
Result<Finetuned> learn(const Options& o, const nibble::io::Gguf& file, const nibble::Model& model,
                        const Lesson& lesson, nibble::Executor& executor) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
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
  NIBBLE_TRY(run,
             nibble::train::Run::create(*graph, weights, source,
                                        run_options(o, lesson, graph->config().n_ctx), executor));
  std::printf(
      "%s parameters beside %s of weights; factors, gradients and moments %s, results of a "
      "batch %s\n",
      example::grouped(static_cast<std::uint64_t>(weights.n_trained())).c_str(),
      example::mebibytes(model.weight_bytes()).c_str(),
      example::mebibytes(weights.bytes() + run.optimizer().moment_bytes()).c_str(),
      example::mebibytes(run.working_bytes()).c_str());
  Finetuned learned;
  example::Curve curve("loss");
  example::LoopOptions loop;
  loop.name = "finetune";
  loop.checkpoint = o.out + ".checkpoint";
  loop.n_steps = o.n_steps;
  loop.is_quiet = o.quiet;
  loop.write = [&]() -> Result<void> {
    learned.adapter = nibble::train::adapter_of(weights, architecture, o.lora);
    learned.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return write(o, learned.adapter, file, executor);
  };
  NIBBLE_CHECK(example::train_to_end(run, loop, curve));
  return learned;
}

Result<void> finetune(const Options& o) {
  example::catch_signals();
  NIBBLE_TRY(lesson, make_lesson(o));
  NIBBLE_TRY(file, nibble::io::Gguf::open(o.model));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(model, example::load_to_ask(file, *pool));
  NIBBLE_TRY(splits, example::TestSplits::read());
  const auto scores = [&](const nibble::AdapterSet& adapter) {
    return ask(model, lesson, splits, o.n_old_tests, *pool, adapter);
  };
  NIBBLE_TRY(before, scores({}));
  NIBBLE_TRY(learned, learn(o, file, model, lesson, *pool));
  NIBBLE_TRY(adapter, nibble::AdapterSet::create(model, learned.adapter));
  NIBBLE_TRY(after, scores(adapter));
  std::printf("%s: %zu samples learned in %.1f s\n", nibble::printable(o.out).c_str(),
              lesson.samples.size(), learned.seconds);
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

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Teaches a model something new from a few examples: writes an adapter.", "finetune");
  Options options;
  options.add_to(app);
  return example::run(app, argc, argv, [&] { return finetune(options); });
}
