// SPDX-License-Identifier: Apache-2.0
//
// train: trains a language model, from scratch or from a model file. Without other options it makes
// the model that ships with nibble again: home commands from a grammar, 3 500 steps of 64.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "common.hpp"
#include "format_rules.hpp"
#include "nibble/compress/imatrix.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/train/run.hpp"
#include "train/accuracy.hpp"
#include "train/beside.hpp"
#include "train/home_source.hpp"
#include "train/loop.hpp"
#include "train/model.hpp"

namespace {

using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::Result;

const char* const kModels = NIBBLE_EXAMPLES_DIR "/models";

struct Options {
  std::string out, like = std::string(kModels) + "/home-commands-f16.gguf";
  bool goes_on = false;
  std::string text, plot, deployed, teacher;
  example::Shape shape;
  std::uint64_t n_steps = 3500, warm_up = 100, seed = 1, every = 500;
  double rate = 3e-3, decay = 0.1, alpha = 0.5, temperature = 2;
  std::size_t n_utterances = 2000;
  Index n_sequences = 64, context = 0, n_threads = 0, n_accumulated = 1;
  bool small_moments = false, recompute = false, answers_only = false, quiet = false;
  bool searches = false;
  std::string imatrix;
  std::size_t n_beside = 0;
  std::string format = "f32";

  std::optional<int> parse(int argc, char** argv, CLI::App& app);
};

std::optional<int> Options::parse(int argc, char** argv, CLI::App& app) {
  app.footer(
      "Ctrl-C leaves OUT.checkpoint; the same command then goes on from there, bit for bit.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("out", out, "the trained model (GGUF)")->required()->check(example::is_not_empty);
  app.add_option("--like", like, "model file whose tokenizer and dimensions are used")
      ->capture_default_str();
  app.add_flag("--continue", goes_on, "start from the weights of --like, not from scratch");
  app.add_option("--text", text, "train on this text, in windows; default: home commands");
  app.add_option("--layers", shape.n_layers, "another number of layers")
      ->check(CLI::Range(1, 1000));
  app.add_option("--dim", shape.dim, "another width")->check(CLI::Range(8, 16384));
  app.add_option("--heads", shape.n_heads, "another number of heads")->check(CLI::Range(1, 256));
  app.add_option("--kv-heads", shape.n_kv_heads, "heads of keys and values")
      ->check(CLI::Range(1, 256));
  app.add_option("--ffn", shape.ffn, "another feed-forward width")->check(CLI::Range(8, 65536));
  app.add_option("--steps", n_steps, "updates of the weights")
      ->check(CLI::Range(1, 100000000))
      ->capture_default_str();
  app.add_option("--sequences", n_sequences, "sequences of a batch")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--accumulate", n_accumulated, "batches of a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--context", context, "tokens of a sequence; default: the model's");
  app.add_option("--rate", rate, "largest learning rate")
      ->check(example::is_number)
      ->capture_default_str();
  app.add_option("--warm-up", warm_up, "steps until it is reached")->capture_default_str();
  app.add_option("--decay", decay, "weight decay of matrices")
      ->check(example::is_number)
      ->capture_default_str();
  app.add_option("--qat", deployed,
                 "train for this format: forward passes run its kernels, the file gets its codes")
      ->check(example::is_format);
  app.add_flag("--search", searches,
               "with --qat: search the scales of blocks, which helps 2 and 3 bits; slower");
  app.add_option("--imatrix", imatrix,
                 "with --search: what errors in columns count, as compress observe writes it")
      ->check(example::is_not_empty);
  app.add_option("--beside", n_beside,
                 "with --qat and --continue: compare with --like on so many drawn commands")
      ->check(CLI::Range(1, 1000000));
  app.add_option("--teacher", teacher, "learn also from the predictions of this model");
  app.add_option("--alpha", alpha, "part of the right tokens in the loss, beside the teacher's")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--temperature", temperature, "of both predictions")
      ->check(CLI::Range(0.1, 100.0))
      ->capture_default_str();
  app.add_option("--format", format, "of the matrices in OUT: f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  app.add_flag("--answers-only", answers_only, "only answers count in the loss, not commands");
  app.add_flag("--small-moments", small_moments, "AdamW's moments in 8 bits");
  app.add_flag("--recompute", recompute, "less memory: compute each layer again on the way back");
  app.add_option("--every", every, "steps between checkpoints and measurements; 0: none")
      ->capture_default_str();
  app.add_option("--utterances", n_utterances,
                 "commands of each test split that are asked at the end")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_option("--seed", seed, "of weights and data")->capture_default_str();
  app.add_option("--threads", n_threads, "threads; 0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--plot", plot, "picture of the losses (.svg; needs gnuplot)");
  app.add_flag("--quiet", quiet, "no progress");
  return example::parse(app, argc, argv);
}

// The data of a run: home commands, or a text in windows.
struct Data {
  std::optional<nibble::text::Tokenizer> tokenizer;
  std::optional<nibble::train::WindowSource> text;
  std::optional<example::HomeSource> home;

  const nibble::train::Source& source() const {
    return text ? static_cast<const nibble::train::Source&>(*text) : *home;
  }
};

Result<void> open_data(const Options& o, const nibble::io::Gguf& like, Index context, Data& data) {
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(like));
  data.tokenizer = std::move(tokenizer);
  const auto n = static_cast<Index>(o.n_steps) * o.n_sequences * o.n_accumulated;
  if (o.text.empty()) {
    data.home.emplace(*data.tokenizer, o.seed, n,
                      o.answers_only ? example::Learned::answer : example::Learned::all);
    return nibble::ok();
  }
  const auto encode = [&](std::string_view text, std::vector<std::int32_t>& out) {
    return data.tokenizer->encode(text, {.add_bos = false, .add_eos = false}, out);
  };
  NIBBLE_TRY(text, nibble::train::WindowSource::open_text(o.text, encode, context));
  data.text.emplace(std::move(text));
  return nibble::ok();
}

nibble::train::RunOptions run_options(const Options& o, Index context) {
  nibble::train::RunOptions options;
  options.schedule.peak = o.rate;
  options.schedule.floor = o.rate / 100;
  options.schedule.warm_up = std::min(o.warm_up, o.n_steps);
  options.schedule.n_steps = o.n_steps;
  options.optimizer.weight_decay = o.decay;
  options.optimizer.seed = o.seed;
  if (o.small_moments) options.optimizer.moments = nibble::train::Moments::bits8;
  options.batches.context = context;
  options.batches.max_sequences = o.n_sequences;
  // Commands are a third of the context long; a batch that does not fit is a little smaller.
  options.batches.max_rows =
      o.text.empty() ? std::max(context, o.n_sequences * 40) : o.n_sequences * context;
  options.batches.shuffles = !o.text.empty();
  options.batches.seed = o.seed;
  options.n_accumulated = o.n_accumulated;
  options.checkpoints = o.recompute;
  options.distillation = {static_cast<float>(o.alpha), static_cast<float>(o.temperature)};
  return options;
}

// Exact answers to the first n commands of both splits.
Result<void> report(const example::TrainedModel& model, const example::TestSplits& splits,
                    std::size_t n, nibble::Executor& executor) {
  NIBBLE_TRY(held_out, example::percent_right(model, splits.held_out, n, executor));
  NIBBLE_TRY(hard, example::percent_right(model, splits.hard, n, executor));
  std::printf("right answers: %.2f %% of the held-out commands, %.2f %% of the hard ones\n",
              held_out, hard);
  return nibble::ok();
}

Result<void> train(const Options& o) {
  NIBBLE_TRY(like, nibble::io::Gguf::open(o.like));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  example::TrainedModel::Options model_options;
  model_options.shape = o.shape;
  model_options.seed = o.seed;
  if (!o.deployed.empty()) {
    model_options.deployed = example::parse_format(o.deployed);
    model_options.searches = o.searches;
    if (!o.imatrix.empty()) {
      NIBBLE_TRY(read, nibble::compress::read_imatrix(o.imatrix));
      NIBBLE_CHECK(nibble::compress::check_imatrix(read, like));
      for (const auto& entry : read.entries) {
        const auto columns = entry.importance();
        model_options.importance[entry.name].assign(columns.begin(), columns.end());
      }
    }
  }
  NIBBLE_TRY(model, example::TrainedModel::create(like, model_options, !o.goes_on));
  const Index own_context = model.graph().config().n_ctx;
  const Index context = o.context > 0 ? std::min(o.context, own_context) : own_context;
  Data data;
  NIBBLE_CHECK(open_data(o, like, context, data));
  const nibble::train::RunOptions options = run_options(o, context);

  std::optional<nibble::io::Gguf> teacher_file;
  std::optional<example::TrainedModel> teacher_model;
  std::optional<nibble::train::ModelTeacher> teacher;
  if (!o.teacher.empty()) {
    NIBBLE_TRY(file, nibble::io::Gguf::open(o.teacher));
    teacher_file = std::move(file);
    NIBBLE_TRY(taught, example::TrainedModel::create(*teacher_file, {}, false));
    teacher_model.emplace(std::move(taught));
    if (teacher_model->graph().config().vocab_size != model.graph().config().vocab_size) {
      return Error{Errc::invalid_argument,
                   teacher_file->name() + ": a teacher of another vocabulary"};
    }
    NIBBLE_TRY(made,
               nibble::train::ModelTeacher::create(teacher_model->graph(), teacher_model->weights(),
                                                   options.batches, *pool, o.teacher));
    teacher.emplace(std::move(made));
  }

  NIBBLE_TRY(run, nibble::train::Run::create(model.graph(), model.weights(), data.source(), options,
                                             *pool, teacher ? &*teacher : nullptr));
  const auto n = static_cast<std::uint64_t>(model.weights().n_trained());
  std::printf("%s parameters; weights, gradients and moments %s, results of a batch %s\n",
              example::grouped(n).c_str(),
              example::mebibytes(model.weights().bytes() + run.optimizer().moment_bytes()).c_str(),
              example::mebibytes(run.working_bytes()).c_str());
  example::Curve curve("loss");
  example::LoopOptions loop;
  loop.name = "train";
  loop.checkpoint = o.out + ".checkpoint";
  loop.n_steps = o.n_steps;
  loop.every = o.every;
  loop.is_quiet = o.quiet;
  std::optional<example::TestSplits> splits;
  if (o.text.empty()) {
    NIBBLE_TRY(read, example::TestSplits::read(kModels));
    splits = std::move(read);
    loop.measure = [&] { return example::percent_right(model, splits->held_out, 200, *pool); };
  }
  NIBBLE_CHECK(example::train_to_end(run, loop, curve));
  NIBBLE_TRY(file, model.file(example::parse_format(o.format)));
  NIBBLE_CHECK(file.write(o.out));
  std::printf("%s: loss %.4f\n", nibble::printable(o.out).c_str(), curve.last_loss());
  if (splits && o.n_utterances > 0) {
    NIBBLE_CHECK(report(model, *splits, o.n_utterances, *pool));
  }
  if (o.n_beside > 0 && model_options.deployed && o.goes_on && o.text.empty()) {
    NIBBLE_CHECK(example::print_beside(like, model, *model_options.deployed, o.n_beside,
                                       o.seed + 1000, *pool));
  }
  if (!o.plot.empty() && !example::plot_curves(o.plot, {&curve})) {
    return Error{Errc::io, nibble::printable(o.plot) + ": no picture; is gnuplot installed?"};
  }
  return nibble::ok();
}

int program(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a language model, from scratch or from a model file.", "train");
  if (const auto code = options.parse(argc, argv, app)) return *code;
  example::catch_signals();
  const Result<void> done = train(options);
  if (!done) {
    const int code = example::fail(app, done.error());
    return done.error().code == Errc::cancelled ? example::kInterrupted : code;
  }
  return example::finished(app);
}

}  // namespace

int main(int argc, char** argv) { return example::guarded("train", program, argc, argv); }
