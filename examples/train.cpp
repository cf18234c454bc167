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
#include "home_model.hpp"
#include "nibble/compress/imatrix.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/train/run.hpp"
#include "train/accuracy.hpp"
#include "train/beside.hpp"
#include "train/home_source.hpp"
#include "train/loop.hpp"
#include "train/model.hpp"
#include "train/shape_options.hpp"
#include "train/teacher.hpp"

namespace {

using nibble::Index;
using nibble::Result;

struct Options {
  std::string out, like = example::kHomeModel;
  bool goes_on = false;
  std::string text, plot, deployed, teacher;
  example::Shape shape;
  std::uint64_t n_steps = 3500, warm_up = 100, seed = 1, every = 500;
  double rate = 3e-3, decay = 0.1, alpha = 0.5, temperature = 2;
  std::size_t n_utterances = 2000;
  Index n_sequences = 64, context = 0, n_threads = 0, n_accumulated = 1;
  bool small_moments = false, recompute = false, answers_only = false, quiet = false;
  bool searches = false, is_static = false, has_zero_points = false;
  std::string imatrix;
  std::size_t n_beside = 0;
  std::string format = "f32";

  void add_to(CLI::App& app);
};

// A check of an option: formats of files, and the one that files have in two tensors.
std::string is_deployed_format(const std::string& name) {
  const std::string wrong = example::is_format(name);
  return wrong.empty() || name == "i8_channel" ? "" : wrong + ", i8_channel";
}

void Options::add_to(CLI::App& app) {
  using example::add_number;
  app.footer(
      "Ctrl-C leaves OUT.checkpoint; the same command then goes on from there, bit for bit.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("OUT", out, "the trained model (GGUF)")->required()->check(example::is_not_empty);
  app.add_option("--like", like, "model file whose tokenizer and dimensions are used")
      ->capture_default_str();
  auto* const goes_on_flag =
      app.add_flag("--continue", goes_on, "start from the weights of --like, not from scratch");
  auto* const text_file =
      app.add_option("--text", text, "train on this text, in windows; default: home commands");
  example::add_shape_options(app, shape, "of OUT; default: as --like");
  add_number(app, "--steps", n_steps, "updates of the weights", 1, 100000000);
  add_number(app, "--sequences", n_sequences, "sequences of a batch", 1, 65536);
  add_number(app, "--accumulate", n_accumulated, "batches of a step", 1, 65536);
  app.add_option("--context", context, "tokens of a sequence, at most the model's; default: these")
      ->check(CLI::Range(1, 1 << 30));
  add_number(app, "--rate", rate, "largest learning rate", 0, 1);
  add_number(app, "--warm-up", warm_up, "steps until it is reached", 0, 100000000);
  add_number(app, "--decay", decay, "weight decay of matrices", 0, 100);
  auto* const qat =
      app.add_option(
             "--qat", deployed,
             "train for this format: forward passes run its kernels, the file gets its codes")
          ->check(is_deployed_format);
  auto* const is_static_flag =
      app.add_flag("--static", is_static,
                   "with --qat i8_channel: also track the ranges of the inputs of products, for "
                   "static INT8")
          ->needs(qat);
  app.add_flag("--zero-point", has_zero_points,
               "with --static: codes of inputs from 0 to 255, with a zero point")
      ->needs(is_static_flag);
  auto* const search =
      app.add_flag("--search", searches,
                   "with --qat: search the scales of blocks, which helps 2 and 3 bits; slower")
          ->needs(qat);
  app.add_option("--imatrix", imatrix,
                 "with --search: what errors in columns count, as compress observe writes it")
      ->check(example::is_not_empty)
      ->needs(search);
  app.add_option("--beside", n_beside,
                 "with --qat and --continue: compare with --like on so many drawn commands")
      ->check(CLI::Range(1, 1000000))
      ->needs(qat)
      ->needs(goes_on_flag)
      ->excludes(text_file);
  app.add_option("--teacher", teacher, "learn also from the predictions of this model");
  add_number(app, "--alpha", alpha, "part of the right tokens in the loss, beside the teacher's", 0,
             1);
  add_number(app, "--temperature", temperature, "of both predictions", 0.1, 100);
  app.add_option("--format", format, "of the matrices in OUT: f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  app.add_flag("--answers-only", answers_only, "only answers count in the loss, not commands")
      ->excludes(text_file);
  app.add_flag("--small-moments", small_moments, "AdamW's moments in 8 bits");
  app.add_flag("--recompute", recompute, "less memory: compute each layer again on the way back");
  add_number(app, "--every", every, "steps between checkpoints and measurements; 0: none", 0,
             100000000);
  add_number(app, "--utterances", n_utterances,
             "commands of each test split that are asked at the end", 0, 1000000);
  example::add_seed(app, seed, "of weights and data");
  example::add_threads(app, n_threads);
  app.add_option("--plot", plot, "picture of the losses (.svg; needs gnuplot)");
  app.add_flag("--quiet", quiet, "no progress");
  app.callback([this] {
    if (goes_on && !shape.is_same()) {
      throw CLI::ValidationError("--continue", "the dimensions are then those of --like");
    }
    if (is_static && deployed != "i8_channel") {
      throw CLI::ValidationError("--static", "is for --qat i8_channel");
    }
  });
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

Result<example::TrainedModel::Options> model_options(const Options& o,
                                                     const nibble::io::Gguf& like) {
  example::TrainedModel::Options options;
  options.shape = o.shape;
  options.seed = o.seed;
  if (o.deployed.empty()) return options;
  NIBBLE_TRY(deployed, nibble::quant::format_from_name(o.deployed));
  options.deployed = deployed;
  options.searches = o.searches;
  if (o.imatrix.empty()) return options;
  NIBBLE_TRY(read, nibble::compress::read_imatrix(o.imatrix));
  NIBBLE_CHECK(nibble::compress::check_imatrix(read, like));
  for (const auto& entry : read.entries) {
    const auto columns = entry.importance();
    options.importance[entry.name].assign(columns.begin(), columns.end());
  }
  return options;
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
  // The seed of what is in order tells checkpoints of other data apart.
  options.batches =
      example::command_batches(context, o.n_sequences, o.answers_only ? ~o.seed : o.seed);
  if (!o.text.empty()) {
    options.batches.max_rows = o.n_sequences * context;
    options.batches.shuffles = true;
  }
  options.n_accumulated = o.n_accumulated;
  options.checkpoints = o.recompute;
  options.distillation = {static_cast<float>(o.alpha), static_cast<float>(o.temperature)};
  return options;
}

// None, unless they are to be tracked.
std::optional<nibble::train::InputRangeOptions> range_options(const Options& o) {
  if (!o.is_static) return std::nullopt;
  nibble::train::InputRangeOptions options;
  options.is_unsigned = o.has_zero_points;
  // A short run uses ranges too.
  options.n_first = std::clamp<Index>(static_cast<Index>(o.n_steps / 10), 1, options.n_first);
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
  example::catch_signals();
  NIBBLE_TRY(like, nibble::io::Gguf::open(o.like));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(options_of_model, model_options(o, like));
  NIBBLE_TRY(model, example::TrainedModel::create(like, options_of_model, !o.goes_on));
  const auto& config = model.graph().config();
  const Index own_context = config.n_ctx;
  const Index context = o.context > 0 ? std::min(o.context, own_context) : own_context;
  Data data;
  NIBBLE_CHECK(open_data(o, like, context, data));
  const nibble::train::RunOptions options = run_options(o, context);
  std::unique_ptr<example::FileTeacher> teacher;
  if (!o.teacher.empty()) {
    NIBBLE_TRY(opened,
               example::FileTeacher::open(o.teacher, config.vocab_size, options.batches, *pool));
    teacher = std::move(opened);
  }
  nibble::Owned<nibble::train::InputRanges> ranges;
  if (const auto of_ranges = range_options(o)) {
    NIBBLE_TRY(made, nibble::train::InputRanges::create(model.weights(), *of_ranges, *pool));
    ranges = std::move(made);
  }
  NIBBLE_TRY(
      run, nibble::train::Run::create(model.graph(), model.weights(), data.source(), options, *pool,
                                      teacher ? teacher->get() : nullptr, nullptr, ranges.get()));
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
    NIBBLE_TRY(read, example::TestSplits::read());
    splits = std::move(read);
    loop.measure = [&] { return example::percent_right(model, splits->held_out, 200, *pool); };
  }
  loop.write = [&]() -> Result<void> {
    NIBBLE_TRY(file, model.file(example::parse_format(o.format)));
    return file.write(o.out);
  };
  NIBBLE_CHECK(example::train_to_end(run, loop, curve));
  std::printf("%s: ", nibble::printable(o.out).c_str());
  if (const auto loss = curve.last_loss()) {
    std::printf("loss %.4f\n", *loss);
  } else {
    std::printf("written\n");  // all steps were taken before
  }
  if (splits && o.n_utterances > 0) {
    NIBBLE_CHECK(report(model, *splits, o.n_utterances, *pool));
  }
  if (o.n_beside > 0) {
    NIBBLE_CHECK(example::print_beside(like, model, *options_of_model.deployed, range_options(o),
                                       o.n_beside, o.seed + 1000, *pool));
  }
  if (!o.plot.empty() && !example::plot_curves(o.plot, {&curve})) {
    return example::no_picture(o.plot);
  }
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a language model, from scratch or from a model file.", "train");
  Options options;
  options.add_to(app);
  return example::run(app, argc, argv, [&] { return train(options); });
}
