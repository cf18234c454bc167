// SPDX-License-Identifier: Apache-2.0
//
// bench_train: training steps of a model of a given shape, with random weights and tokens: tokens
// and steps per second, the arithmetic as a fraction of the machine's peak, where the time goes,
// and the memory that a step takes. bench/torch_train sets PyTorch beside it.
#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "bench/options.hpp"
#include "bench/print.hpp"
#include "bench/shape.hpp"
#include "examples/common.hpp"
#include "nibble/core/available_memory.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/train/adamw.hpp"
#include "nibble/train/initialize.hpp"
#include "nibble/train/trainer.hpp"

namespace bench { namespace {

using nibble::train::AdamW;
using nibble::train::Batch;
using nibble::train::TrainedWeights;
using nibble::train::Trainer;
using nibble::train::TrainingGraph;

struct Options : RunOptions {
  std::string shape = "home", moments = "f32";
  Index n_sequences = 0, length = 0;  // 0: those of the shape
  bool recompute = false;
  int repetitions = 10;
};

// ---- What is trained ---------------------------------------------------------------------------

// A shape and its batch.
struct Workload {
  Shape shape;
  std::vector<Index> lengths;  // rows of each sequence

  bool is_gpt2() const { return shape.config.architecture == "gpt2"; }
  Index n_rows() const { return std::accumulate(lengths.begin(), lengths.end(), Index{0}); }
};

// Rows of 64 home commands with their answers (examples/home_commands): the quantiles of 64 000
// examples, 28.9 in the mean.
constexpr std::array<Index, 64> kHomeLengths = {
    14, 16, 18, 19, 19, 20, 20, 21, 21, 22, 22, 22, 23, 23, 23, 24, 24, 24, 25, 25, 25, 25,
    26, 26, 26, 26, 27, 27, 27, 28, 28, 28, 28, 29, 29, 29, 30, 30, 30, 31, 31, 31, 32, 32,
    32, 33, 33, 33, 34, 34, 35, 35, 36, 36, 37, 37, 38, 39, 39, 40, 41, 42, 44, 48};

// What --shape may be.
const std::string kTrainShapes =
    std::string("home (the model that ships with nibble), gpt2 (124M), ") + kShapes;

Shape gpt2_shape(Index dim, Index n_layers, Index n_heads, Index vocab_size) {
  Shape shape = llama_shape(dim, n_layers, n_heads, n_heads, 4 * dim, vocab_size, true);
  shape.config.architecture = "gpt2";
  shape.config.n_ctx = 1024;
  shape.config.rope_dim = 0;
  return shape;
}

nibble::Result<Workload> workload_of(const Options& o) {
  Workload w;
  Index n_sequences = 4, length = 64;
  if (o.shape == "home") {
    w.shape = llama_shape(256, 3, 8, 2, 512, 512, true);
    n_sequences = kHomeLengths.size();
  } else if (o.shape == "gpt2") {
    w.shape = gpt2_shape(768, 12, 12, 50257);
  } else {
    NIBBLE_TRY(shape, shape_of(o.shape, kTrainShapes));
    if (shape.config.routing.n_experts > 1) {
      return nibble::Error{nibble::Errc::unsupported, "--shape: experts are not trained"};
    }
    w.shape = shape;
  }
  if (o.n_sequences > 0) n_sequences = o.n_sequences;
  for (Index i = 0; i < n_sequences; ++i) {
    const bool is_home = o.shape == "home" && o.length == 0;
    const auto at = static_cast<std::size_t>(i) % kHomeLengths.size();
    w.lengths.push_back(is_home ? kHomeLengths[at] : o.length > 0 ? o.length : length);
  }
  if (w.is_gpt2() && w.lengths.front() > w.shape.config.n_ctx) {
    return nibble::Error{nibble::Errc::invalid_argument, "--length: gpt2 has 1024 positions"};
  }
  return w;
}

// Random tokens; each row predicts the next one, and all count.
Batch batch_of(const Workload& w) {
  Batch batch;
  nibble::train::Random random(1);
  const auto n_tokens = static_cast<std::uint32_t>(Index{w.shape.config.vocab_size});
  batch.offsets.push_back(0);
  for (const Index length : w.lengths) {
    auto token = static_cast<std::int32_t>(random.below(n_tokens));
    for (Index i = 0; i < length; ++i) {
      batch.tokens.push_back(token);
      token = static_cast<std::int32_t>(random.below(n_tokens));
      batch.targets.push_back(token);
    }
    batch.offsets.push_back(batch.n_rows());
  }
  batch.weights.assign(batch.tokens.size(), 1.0f);
  batch.n_counted = batch.n_rows();
  batch.weight = static_cast<double>(batch.n_rows());
  return batch;
}

// Operations of a step: three products, one there and two back, for each matrix, and as many for
// attention, of which there are two (q · k and p · v) for each query and key that it sees. What
// --recompute computes again does not count.
double operations_of(const TrainedWeights& weights, const Workload& w) {
  const nibble::ModelConfig& c = w.shape.config;
  double rows = 0, seen = 0, values = 0;
  for (const Index n : w.lengths) {
    rows += static_cast<double>(n);
    seen += static_cast<double>(n) * static_cast<double>(n + 1) / 2;
  }
  for (const nibble::train::TrainedTensor& t : weights.tensors()) {
    const auto slot = static_cast<nibble::Slot>(t.slot);
    const bool is_table =
        slot == nibble::Slot::position_embd || (slot == nibble::Slot::token_embd && !w.shape.tied);
    if (t.n > 0 && !is_table) values += static_cast<double>(t.n) * static_cast<double>(t.k);
  }
  return 6 * values * rows + 12 * static_cast<double>(c.n_heads * c.head_dim * c.n_layers) * seen;
}

// ---- Steps -------------------------------------------------------------------------------------

enum Part { forward, loss, backward, update };
constexpr std::array<const char*, 4> kParts = {"forward", "loss", "backward", "update"};

struct Times {
  std::array<double, kParts.size()> seconds{};
  double total = 0;  // wall, or of the chosen clock
  double cpu = 0;    // of all threads
};

struct Result {
  Index n_threads = 1;
  Times times;  // medians
  double working_bytes = 0;
  double rate = 0;  // operations per second
  double peak = 0;  // the machine's
};

double process_seconds() {
  return static_cast<double>(std::clock()) / static_cast<double>(CLOCKS_PER_SEC);
}

class Training {
 public:
  static nibble::Result<Training> create(const Options& o, const Workload& w) {
    // Read first: memory that was allocated, but not yet touched, may count as available or not.
    const std::size_t available = nibble::available_memory();
    Training made(o, w);
    made.graph_ = w.is_gpt2() ? nibble::train::make_training_graph<nibble::Gpt2>(w.shape.config)
                              : nibble::train::make_training_graph<nibble::Llama>(w.shape.config);
    if (!made.graph_) return nibble::Error{nibble::Errc::out_of_memory, "a graph"};
    const auto choose =
        [&](const std::string&,
            const nibble::graph::WeightNeed& need) -> nibble::Result<nibble::train::WeightChoice> {
      using Kind = nibble::train::WeightChoice::Kind;
      const bool is_tied = need.tied_to != nibble::graph::kNoSlot;
      const bool is_there = is_tied ? !w.shape.tied : need.is_required || w.is_gpt2();
      return nibble::train::WeightChoice{.kind = is_there ? Kind::trained : Kind::absent};
    };
    NIBBLE_TRY(weights, TrainedWeights::create(*made.graph_, choose));
    made.weights_ = std::make_unique<TrainedWeights>(std::move(weights));
    nibble::train::AdamWOptions options{.beta2 = 0.95, .weight_decay = 0.1, .clip_norm = 1};
    if (o.moments == "8bit") options.moments = nibble::train::Moments::bits8;
    NIBBLE_TRY(optimizer, AdamW::create(made.weights_->parameters(), options));
    made.optimizer_ = std::make_unique<AdamW>(std::move(optimizer));
    NIBBLE_CHECK(made.check_memory(pool(threads_of(o.threads).back()).n_workers(), available));
    made.batch_ = batch_of(w);
    initialize(*made.weights_, w.shape.config.n_layers, 1);
    return made;
  }

  nibble::Result<Result> measure(Index n_threads) {
    nibble::Executor& executor = pool(n_threads);
    NIBBLE_TRY(trainer, Trainer::create(*graph_, *weights_, trainer_options(), executor));
    const Clock clock = n_threads == 1 ? clock_of(options_) : Clock::wall;
    std::array<std::vector<double>, kParts.size()> parts;
    std::vector<double> totals, cpus;
    for (int r = 0; r <= options_.repetitions; ++r) {
      NIBBLE_TRY(times, step(trainer, executor, clock));
      if (r == 0) continue;
      for (std::size_t i = 0; i < kParts.size(); ++i) parts[i].push_back(times.seconds[i]);
      totals.push_back(times.total);
      cpus.push_back(times.cpu);
    }
    Result result;
    result.n_threads = n_threads;
    for (std::size_t i = 0; i < kParts.size(); ++i) result.times.seconds[i] = median(parts[i]);
    result.times.total = median(totals);
    result.times.cpu = median(cpus);
    result.working_bytes = static_cast<double>(trainer.working_bytes());
    result.rate = operations() / result.times.total;
    return result;
  }

  double n_parameters() const { return static_cast<double>(weights_->n_trained()); }
  double n_rows() const { return static_cast<double>(workload_.n_rows()); }
  double operations() const { return operations_of(*weights_, workload_); }  // of a step
  // Of weights, gradients and moments.
  double state_bytes() const {
    return static_cast<double>(weights_->bytes() + optimizer_->moment_bytes());
  }
  double first_loss() const { return first_loss_; }
  double last_loss() const { return last_loss_; }

 private:
  Training(const Options& o, const Workload& w) : options_(o), workload_(w) {}

  nibble::train::TrainerOptions trainer_options() const {
    nibble::train::TrainerOptions options;
    options.max_rows = workload_.n_rows();
    options.max_sequences = static_cast<Index>(workload_.lengths.size());
    options.n_positions = *std::max_element(workload_.lengths.begin(), workload_.lengths.end());
    options.checkpoints = options_.recompute;
    return options;
  }

  // Before memory is touched that is not there.
  nibble::Result<void> check_memory(Index n_workers, std::size_t available) const {
    const auto plan = Trainer::plan_for(*graph_, *weights_, trainer_options(), n_workers);
    if (!plan.is_valid()) return nibble::Error{nibble::Errc::limit, plan.error};
    const double needed = state_bytes() + static_cast<double>(plan.bytes);
    if (needed <= static_cast<double>(available)) return nibble::ok();
    std::string text;
    print(text, "training takes %.0f MiB, but %.0f MiB of RAM are available", needed / 0x1p20,
          static_cast<double>(available) / 0x1p20);
    return nibble::Error{nibble::Errc::limit, text};
  }

  nibble::Result<Times> step(Trainer& trainer, nibble::Executor& executor, Clock clock) {
    Times times;
    double before = seconds_now(clock);
    const double begin = before, cpu = process_seconds();
    const auto lap = [&](Part part) {
      const double now = seconds_now(clock);
      times.seconds[static_cast<std::size_t>(part)] += now - before;
      before = now;
    };
    weights_->clear_gradients(executor);
    lap(update);
    losses_.resize(batch_.tokens.size());
    NIBBLE_CHECK(trainer.accumulate(batch_, [&](nibble::MatrixView<float> logits) {
      lap(forward);
      nibble::ops::cross_entropy_back(executor, logits, batch_.targets, batch_.weights, losses_);
      lap(loss);
    }));
    lap(backward);
    NIBBLE_CHECK(optimizer_->step(executor, 1e-3, 1 / batch_.weight));
    lap(update);
    times.total = before - begin;
    times.cpu = process_seconds() - cpu;
    last_loss_ = 0;
    for (const double x : losses_) last_loss_ += x / batch_.weight;
    if (first_loss_ == 0) first_loss_ = last_loss_;
    return times;
  }

  const Options& options_;
  const Workload& workload_;
  nibble::Owned<TrainingGraph> graph_;
  std::unique_ptr<TrainedWeights> weights_;  // where trainers refer to
  std::unique_ptr<AdamW> optimizer_;
  Batch batch_;
  std::vector<double> losses_;
  double first_loss_ = 0, last_loss_ = 0;
};

// ---- Results -----------------------------------------------------------------------------------

struct Summary {
  const Options& options;
  const Workload& workload;
  std::string isa;
  double n_parameters = 0, n_rows = 0, state_bytes = 0, peak_bytes = 0;
  double operations = 0;  // of a step
  double first_loss = 0, last_loss = 0;

  double bytes_per_parameter() const { return state_bytes / n_parameters; }
};

void print_text(const Summary& s, const std::vector<Result>& results) {
  std::printf(
      "%s on %s: %.0f parameters, moments %s%s; %.0f tokens in %zu sequences a step, %.2f "
      "GFLOP\n",
      s.options.shape.c_str(), s.isa.c_str(), s.n_parameters, s.options.moments.c_str(),
      s.options.recompute ? ", layers computed again" : "", s.n_rows, s.workload.lengths.size(),
      s.operations * 1e-9);
  std::printf(
      "weights, gradients and moments %.1f MiB, %.2f bytes a parameter; peak RAM %.1f MiB; "
      "loss %.4f, at last %.4f\n",
      s.state_bytes / 0x1p20, s.bytes_per_parameter(), s.peak_bytes / 0x1p20, s.first_loss,
      s.last_loss);
  std::printf("%3s %10s %8s %8s %8s %6s %9s", "thr", "tokens/s", "steps/s", "GFLOP/s", "peak",
              "of it", "step MiB");
  for (const char* part : kParts) std::printf(" %9s", part);
  std::printf(" %9s\n", "CPU ms");
  for (const Result& r : results) {
    std::printf("%3d %10.0f %8.3f %8.1f %8.1f %4.0f %% %9.1f", static_cast<int>(r.n_threads),
                s.n_rows / r.times.total, 1 / r.times.total, r.rate * 1e-9, r.peak * 1e-9,
                100 * r.rate / r.peak, r.working_bytes / 0x1p20);
    for (const double seconds : r.times.seconds) std::printf(" %6.1f ms", 1e3 * seconds);
    std::printf(" %9.1f\n", 1e3 * r.times.cpu);
  }
}

std::string json_of(const Summary& s, const std::vector<Result>& results) {
  const nibble::ModelConfig& c = s.workload.shape.config;
  std::string out;
  print(out, "{\n  \"shape\": %s,\n  \"isa\": \"%s\",\n", quoted(s.options.shape).c_str(),
        s.isa.c_str());
  print(out,
        "  \"architecture\": \"%s\",\n  \"dim\": %d,\n  \"layers\": %d,\n  \"heads\": %d,\n"
        "  \"kv_heads\": %d,\n  \"ffn\": %d,\n  \"vocab\": %d,\n  \"context\": %d,\n"
        "  \"tied\": %s,\n",
        c.architecture.c_str(), static_cast<int>(c.dim), static_cast<int>(c.n_layers),
        static_cast<int>(c.n_heads), static_cast<int>(c.n_kv_heads), static_cast<int>(c.ffn_dim),
        static_cast<int>(c.vocab_size), static_cast<int>(c.n_ctx),
        s.workload.shape.tied ? "true" : "false");
  print(out, "  \"lengths\": [");
  for (std::size_t i = 0; i < s.workload.lengths.size(); ++i) {
    print(out, "%s%d", i == 0 ? "" : ", ", static_cast<int>(s.workload.lengths[i]));
  }
  print(out,
        "],\n  \"moments\": \"%s\",\n  \"recompute\": %s,\n  \"parameters\": %.0f,\n"
        "  \"state_bytes\": %.0f,\n  \"bytes_per_parameter\": %.4f,\n  \"peak_bytes\": %.0f,\n"
        "  \"step_flop\": %.0f,\n  \"first_loss\": %.6f,\n  \"last_loss\": %.6f,\n"
        "  \"results\": [",
        s.options.moments.c_str(), s.options.recompute ? "true" : "false", s.n_parameters,
        s.state_bytes, s.bytes_per_parameter(), s.peak_bytes, s.operations, s.first_loss,
        s.last_loss);
  const char* separator = "\n";
  for (const Result& r : results) {
    print(out,
          "%s    {\"threads\": %d, \"tokens_per_second\": %.4f, \"steps_per_second\": %.5f, "
          "\"GFLOP_per_s\": %.4f, \"peak_GFLOP_per_s\": %.4f, \"fraction\": %.4f, "
          "\"working_bytes\": %.0f, \"cpu_seconds\": %.6f",
          separator, static_cast<int>(r.n_threads), s.n_rows / r.times.total, 1 / r.times.total,
          r.rate * 1e-9, r.peak * 1e-9, r.rate / r.peak, r.working_bytes, r.times.cpu);
    for (std::size_t i = 0; i < kParts.size(); ++i) {
      print(out, ", \"%s_seconds\": %.6f", kParts[i], r.times.seconds[i]);
    }
    print(out, "}");
    separator = ",\n";
  }
  print(out, "\n  ]\n}\n");
  return out;
}

std::string csv_of(const Summary& s, const std::vector<Result>& results) {
  std::string out =
      "shape,isa,moments,recompute,threads,tokens_per_second,steps_per_second,GFLOP_per_s,"
      "peak_GFLOP_per_s,fraction,working_bytes,state_bytes,bytes_per_parameter,cpu_seconds";
  for (const char* part : kParts) print(out, ",%s_seconds", part);
  out += '\n';
  for (const Result& r : results) {
    print(out, "%s,%s,%s,%d,%d,%.4f,%.5f,%.4f,%.4f,%.4f,%.0f,%.0f,%.4f,%.6f",
          quoted(s.options.shape).c_str(), s.isa.c_str(), s.options.moments.c_str(),
          s.options.recompute ? 1 : 0, static_cast<int>(r.n_threads), s.n_rows / r.times.total,
          1 / r.times.total, r.rate * 1e-9, r.peak * 1e-9, r.rate / r.peak, r.working_bytes,
          s.state_bytes, s.bytes_per_parameter(), r.times.cpu);
    for (const double seconds : r.times.seconds) print(out, ",%.6f", seconds);
    out += '\n';
  }
  return out;
}

nibble::Result<void> run(const Options& o, const Workload& workload, Target target) {
  OutFile out(o.out);  // first: a path that cannot be written is not found out after minutes
  NIBBLE_CHECK(out.open());
  NIBBLE_CHECK(nibble::simd::force_target(target));
  Summary summary{o, workload, nibble::simd::to_string(target)};
  std::vector<Result> results;
  NIBBLE_TRY(training, Training::create(o, workload));
  for (const Index n : threads_of(o.threads)) {
    NIBBLE_TRY(result, training.measure(n));
    results.push_back(result);
  }
  summary.n_parameters = training.n_parameters();
  summary.n_rows = training.n_rows();
  summary.state_bytes = training.state_bytes();
  summary.operations = training.operations();
  summary.first_loss = training.first_loss();
  summary.last_loss = training.last_loss();
  summary.peak_bytes = static_cast<double>(example::peak_ram().value_or(0));
  // Probed after the runs, so that the peak of memory is the training's, not the probes'.
  ProbeOptions probe;
  probe.targets = {target};
  probe.threads = threads_of(o.threads);
  probe.clock = clock_of(o);
  probe.memory = false;
  const Machine machine(probe);
  for (Result& r : results) {
    r.peak = machine.limits(target, r.n_threads).rate[static_cast<std::size_t>(Arithmetic::f32)];
  }
  print_text(summary, results);
  return out.write(out.is_csv() ? csv_of(summary, results) : json_of(summary, results));
}

int bench_train(int argc, char** argv) {
  CLI::App app("Training steps of a model with random weights.", "bench_train");
  Options o;
  add_machine_options(app, o);
  app.add_option("--shape", o.shape, kTrainShapes)->capture_default_str();
  app.add_option("--sequences", o.n_sequences, "of a step (default: 64 of home, 4 of others)")
      ->check(CLI::Range(Index{1}, Index{1} << 16));
  app.add_option("--length", o.length,
                 "tokens of a sequence (default: those of home commands, 64 of others)")
      ->check(CLI::Range(Index{1}, Index{1} << 16));
  app.add_option("--moments", o.moments, "AdamW's: f32 or 8bit")
      ->check(CLI::IsMember({"f32", "8bit"}))
      ->capture_default_str();
  app.add_flag("--recompute", o.recompute, "compute each layer again on the way back");
  app.add_option("-r,--repetitions", o.repetitions, "steps, of which the median counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  add_out_option(app, o, "also writes FILE.json or FILE.csv");
  return example::run(app, argc, argv, [&]() -> nibble::Result<int> {
    const auto usage = [&](const std::string& message) {
      std::fprintf(stderr, "bench_train: %s (see --help)\n", message.c_str());
      return example::kUsage;
    };
    const auto workload = workload_of(o);
    if (!workload) return usage(workload.error().message);
    const auto targets = targets_of(o.isa, nibble::simd::available_targets());
    if (!targets) return usage(targets.error().message);
    if (targets->size() > 1 && !o.isa.empty()) return usage("one --isa at a time");
    if (const auto done = run(o, *workload, targets->front()); !done) {
      return done.error();
    }
    return example::kOk;
  });
}

}}  // namespace bench

int main(int argc, char** argv) { return bench::bench_train(argc, argv); }
