// SPDX-License-Identifier: Apache-2.0
//
// bench_model: measures prompt processing and generation of a whole model, from a GGUF file or from
// a shape alone, in tokens per second and as a fraction of the machine's limit; and what requests
// get that are served together, or begin with the same prompt. For a file also the time and memory
// until the first token, compared with copying the file.
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "bench/hybrid_shapes.hpp"
#include "bench/options.hpp"
#include "bench/print.hpp"
#include "bench/served.hpp"
#include "bench/shared_prompt.hpp"
#include "bench/synthetic.hpp"
#include "examples/common.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"

namespace bench { namespace {

using nibble::Slot;

const std::string kModelShapes = std::string(kHybridShapes) + ", " + kShapes;

struct Options : RunOptions {
  std::string model, shape, format = "q4_0", kv = "f16";
  Index n_prompt = 512, n_generate = 128, batch = 512;
  std::vector<Index> sequences = {1};  // generated together
  bool serves = false;                 // also measures what requests get
  Index n_shared = 0;                  // tokens that the prompts of requests begin with
  std::string plot;
  int repetitions = 3;
};

nibble::ops::KvType kv_type_of(const Options& o) {
  for (const auto type : nibble::ops::kKvTypes) {
    if (o.kv == nibble::ops::to_string(type)) return type;
  }
  return nibble::ops::KvType::f16;  // the command line was checked
}

// Bytes of the cache per position.
double kv_bytes_per_position(const nibble::ModelConfig& c, nibble::ops::KvType type) {
  constexpr Index kMany = 4096;
  const nibble::ops::KvCacheLayout layout{type, c.n_layers, c.n_kv_heads, c.head_dim, kMany};
  return static_cast<double>(layout.bytes()) / kMany;
}

// What every token of a model costs, without attention.
struct ModelCost {
  double bytes = 0;                                // of the weights read in each step
  double expert_bytes = 0;                         // of all experts
  double used_share = 0;                           // of them, by a token
  double state_bytes = 0;                          // of a sequence, read in each step
  std::array<double, kArithmetics.size()> ops{};   // of the layers, per token
  std::array<double, kArithmetics.size()> head{};  // of the output matrix, per row of logits
};

Arithmetic arithmetic_of(nibble::quant::Format format) {
  using enum nibble::quant::Format;
  switch (format) {
    case q4_0:
    case q4_1:
    case q5_0:
    case q5_1:
    case q4_k:
    case q5_k:
    case q6_k:
    case q3_k:
    case q2_k:
    case tq2_0:
    case q2_0:
    case q1_0: return Arithmetic::int4;
    case q8_0: return Arithmetic::int8;
    case bf16: return Arithmetic::bf16;
    default: return Arithmetic::f32;
  }
}

// How many experts a token uses. Errors: those of a file that cannot be read.
nibble::Result<Index> used_experts(const Options& o) {
  if (o.model.empty()) {
    if (hybrid_graph(o.shape)) return Index{1};
    NIBBLE_TRY(shape, shape_of(o.shape));
    return shape.config.routing.n_used;
  }
  NIBBLE_TRY(file, nibble::open_model(o.model));
  NIBBLE_TRY(name, file.get_string("general.architecture"));
  NIBBLE_TRY(n_used, file.get_u64_or(std::string(name) + ".expert_used_count", 1));
  return static_cast<Index>(n_used);
}

double state_bytes_of(const nibble::Model& model) {
  struct Sizes final : nibble::graph::SurveySink {
    void state(Index, Index n_floats, Index n_chunk_floats) override {
      n += n_floats + n_chunk_floats;
    }
    Index n = 0;
  } sizes;
  model.architecture().survey(sizes);
  return static_cast<double>(sizes.n) * sizeof(float);
}

ModelCost cost_of(const nibble::Model& model, Index n_used) {
  ModelCost cost;
  cost.state_bytes = state_bytes_of(model);
  const std::size_t n_slots = model.architecture().n_slots();
  for (Index layer = -1; layer < model.config().n_layers; ++layer) {
    for (std::size_t s = 0; s < n_slots; ++s) {
      const auto slot = static_cast<Slot>(s);
      const nibble::graph::Weight& w = model.weights().at(slot, layer);
      // Of the embeddings one row is read.
      if (!w || w.is_vector() || slot == Slot::token_embd || slot == Slot::position_embd) continue;
      const bool has_experts = w.n_experts > 1;
      const double share =
          has_experts ? static_cast<double>(n_used) / static_cast<double>(w.n_experts) : 1;
      if (has_experts) cost.used_share = share;
      (has_experts ? cost.expert_bytes : cost.bytes) += static_cast<double>(w.bytes());
      auto& ops = slot == Slot::output ? cost.head : cost.ops;
      ops[static_cast<std::size_t>(arithmetic_of(w.ops->format))] +=
          2.0 * share * static_cast<double>(w.n_experts) * static_cast<double>(w.n) *
          static_cast<double>(w.k);
    }
  }
  return cost;
}

// One measured time.
struct Timing {
  bool is_prompt = true;
  Index n_tokens = 0;     // of each sequence
  Index n_sequences = 1;  // side by side
  Index n_threads = 1;
  double seconds = 0;
};

std::vector<std::int32_t> token_ids(const nibble::Model& model, Index n) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
  const Index vocabulary = model.config().vocab_size;
  for (Index i = 0; i < n; ++i) {
    ids[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 7919 % vocabulary);
  }
  return ids;
}

nibble::Result<void> prompt(nibble::Session& session, Index n) {
  const std::vector<std::int32_t> ids = token_ids(session.model(), n);
  NIBBLE_CHECK(session.append(ids));
  return nibble::ok();
}

// n tokens of each sequence, one of each in every step.
nibble::Result<void> generate(nibble::Engine& engine, std::vector<nibble::Sequence>& sequences,
                              Index n) {
  const std::vector<std::int32_t> ids = token_ids(engine.model(), n);
  std::vector<nibble::SequenceInput> inputs;
  for (nibble::Sequence& sequence : sequences) {
    inputs.push_back({.sequence = &sequence, .kind = nibble::ops::SegmentKind::generation});
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (nibble::SequenceInput& input : inputs) input.tokens = std::span(ids).subspan(i, 1);
    NIBBLE_CHECK(engine.run(inputs));
  }
  return nibble::ok();
}

// The median of the repetitions of run(), after one that warms up; reset() comes before each.
template <class Reset, class Run>
nibble::Result<double> median_seconds(const Options& o, Index n_threads, Reset reset, Run run) {
  std::vector<double> times;
  for (int r = 0; r <= o.repetitions; ++r) {
    NIBBLE_CHECK(reset());
    const Clock clock = n_threads == 1 ? clock_of(o) : Clock::wall;
    const double begin = seconds_now(clock);
    NIBBLE_CHECK(run());
    if (r > 0) times.push_back(seconds_now(clock) - begin);
  }
  return median(std::move(times));
}

// Measures prompt processing in a session and generation of the numbers of sequences that the
// options request.
nibble::Result<std::vector<Timing>> timings_of(const nibble::Model& model, const Options& o,
                                               Index n_threads, std::size_t& session_bytes) {
  std::vector<Timing> timings;
  if (o.n_prompt > 0) {
    nibble::SessionOptions session_options;
    session_options.n_ctx = o.n_prompt + 1;
    session_options.max_step_tokens = std::max<Index>(1, o.batch);
    session_options.kv_type = kv_type_of(o);
    session_options.executor = &pool(n_threads);
    NIBBLE_TRY(session, nibble::Session::create(model, session_options));
    session_bytes = session.bytes();
    NIBBLE_TRY(seconds, median_seconds(
                            o, n_threads, [&] { return session.rewind(0); },
                            [&] { return prompt(session, o.n_prompt); }));
    timings.push_back({true, o.n_prompt, 1, n_threads, seconds});
  }
  if (o.n_generate == 0) return timings;
  for (const Index n_sequences : o.sequences) {
    nibble::EngineOptions engine_options;
    engine_options.n_ctx = o.n_generate + 1;
    engine_options.max_sequences = n_sequences;
    engine_options.max_step_tokens = n_sequences;
    engine_options.kv_type = kv_type_of(o);
    engine_options.executor = &pool(n_threads);
    NIBBLE_TRY(engine, nibble::Engine::create(model, engine_options));
    session_bytes = std::max(session_bytes, engine.bytes());
    std::vector<nibble::Sequence> sequences;
    for (Index i = 0; i < n_sequences; ++i) {
      NIBBLE_TRY(sequence, engine.new_sequence());
      sequences.push_back(std::move(sequence));
    }
    const auto reset = [&]() -> nibble::Result<void> {
      for (nibble::Sequence& sequence : sequences) NIBBLE_CHECK(sequence.rewind(0));
      return nibble::ok();
    };
    NIBBLE_TRY(seconds, median_seconds(o, n_threads, reset,
                                       [&] { return generate(engine, sequences, o.n_generate); }));
    timings.push_back({false, o.n_generate, n_sequences, n_threads, seconds});
  }
  return timings;
}

// What requests get that are answered together.
nibble::Result<std::vector<Served>> served_of(const nibble::Model& model, const Options& o,
                                              Index n_threads) {
  std::vector<Served> all;
  if (!o.serves || o.n_generate == 0) return all;
  const std::vector<std::int32_t> ids = token_ids(model, kShortPrompt);
  for (const Index n_sequences : o.sequences) {
    NIBBLE_TRY(one, Serving::measure(model,
                                     {.n_sequences = n_sequences,
                                      .n_generate = o.n_generate,
                                      .repetitions = o.repetitions,
                                      .clock = n_threads == 1 ? clock_of(o) : Clock::wall,
                                      .kv_type = kv_type_of(o),
                                      .executor = &pool(n_threads)},
                                     ids));
    all.push_back(one);
  }
  return all;
}

// What requests save that begin with the same tokens.
nibble::Result<std::vector<SharedPrompt>> shared_of(const nibble::Model& model, const Options& o,
                                                    Index n_threads) {
  std::vector<SharedPrompt> all;
  if (o.n_shared == 0) return all;
  const SharedPromptOptions options{.n_shared = o.n_shared,
                                    .batch = o.batch,
                                    .repetitions = o.repetitions,
                                    .clock = n_threads == 1 ? clock_of(o) : Clock::wall,
                                    .kv_type = kv_type_of(o),
                                    .executor = &pool(n_threads)};
  NIBBLE_TRY(one, SharedPromptMeasurement(model, options).run());
  all.push_back(one);
  return all;
}

// A row of results: prompt processing or generation with some number of threads.
struct Result {
  std::string test;  // "pp512", "tg128"; "tg128x8" for 8 sequences together
  Index n_threads = 1;
  double tokens_per_second = 0;
  double gigabytes_per_second = 0;
  std::string limit;    // the limit that binds
  double fraction = 0;  // of that limit
};

// Compares timings with the limits of the machine.
class Comparison {
 public:
  Comparison(const nibble::Model& model, Index n_used, const Machine& machine,
             const Options& options)
      : model_(model), machine_(machine), options_(options), cost_(cost_of(model, n_used)) {}

  // The minimum time follows from the machine's limits: reading the weights once per step (of
  // experts those that some token uses, if each is as likely as another) and, to generate,
  // recurrent state, all multiply-adds, and attention.
  Result operator()(const Timing& timing) const {
    const auto [prompt, n, n_sequences, n_threads, seconds] = timing;
    const nibble::ModelConfig& c = model_.config();
    const Limits& limits = machine_.limits(nibble::simd::active_target(), n_threads);
    const auto each = static_cast<double>(n);
    const double tokens = each * static_cast<double>(n_sequences);
    // Positions that all tokens together look at.
    const double seen = static_cast<double>(n_sequences) * each * (each + 1) / 2;
    const double attention_ops =
        4.0 * static_cast<double>(c.n_heads * c.head_dim * c.n_layers) * seen;
    const double steps = prompt ? std::ceil(each / static_cast<double>(options_.batch)) : each;
    const double n_outputs = prompt ? steps : tokens;
    const double kv_bytes = prompt ? 0 : seen * kv_bytes_per_position(c, kv_type_of(options_));
    Work work;
    const double unused = std::pow(1 - cost_.used_share, tokens / steps);
    const double step_bytes = cost_.bytes + cost_.expert_bytes * (1 - unused);
    const double states = prompt ? 0 : cost_.state_bytes * static_cast<double>(n_sequences);
    work.bytes_read = (step_bytes + states) * steps + kv_bytes;
    work.footprint = cost_.bytes + cost_.expert_bytes + states;
    const Bound memory = machine_.bound(work, limits.target, n_threads);
    double arithmetic = attention_ops / limits.rate[static_cast<std::size_t>(Arithmetic::f32)];
    std::size_t most = 0;
    for (std::size_t i = 0; i < kArithmetics.size(); ++i) {
      arithmetic += (cost_.ops[i] * tokens + cost_.head[i] * n_outputs) / limits.rate[i];
      if (cost_.ops[i] > cost_.ops[most]) most = i;
    }
    const bool by_memory = memory.seconds > arithmetic;
    Result r;
    r.test = (prompt ? "pp" : "tg") + std::to_string(n);
    if (n_sequences > 1) r.test += "x" + std::to_string(n_sequences);
    r.n_threads = n_threads;
    r.tokens_per_second = tokens / seconds;
    r.gigabytes_per_second = work.bytes_read / seconds * 1e-9;
    r.limit = by_memory ? memory.name : to_string(kArithmetics[most]);
    r.fraction = (by_memory ? memory.seconds : arithmetic) / seconds;
    return r;
  }

  const nibble::Model& model_;
  const Machine& machine_;
  const Options& options_;
  ModelCost cost_;
};

// Loading a file, from opening it to the first token.
struct LoadResult {
  Index n_threads = 1;
  bool is_packed = false;    // used in place; otherwise packed while it is loaded
  double copy_seconds = 0;   // reading the whole file into fresh memory, on one thread
  double load_seconds = 0;   // until the model is loaded
  double token_seconds = 0;  // from the beginning until the first logits
  double peak_bytes = 0;     // memory gained meanwhile, including pages of the file; 0: unknown
  double needed_bytes = 0;   // weights and session
};

// The file is in the page cache: the first round, which is not counted, reads it.
class LoadMeasurement {
 public:
  explicit LoadMeasurement(const Options& options) : options_(options) {}

  // Medians of the repetitions, which alternate between copying and loading.
  nibble::Result<LoadResult> run(Index n_threads) const {
    const Clock clock = n_threads == 1 ? clock_of(options_) : Clock::wall;
    LoadResult result;
    std::vector<double> copies, loads, tokens;
    for (int r = 0; r <= options_.repetitions; ++r) {
      NIBBLE_TRY(copy, copy_seconds(clock));
      NIBBLE_TRY(once, load(n_threads, clock));
      if (r == 0) continue;
      copies.push_back(copy);
      loads.push_back(once.load_seconds);
      tokens.push_back(once.token_seconds);
      result = once;
    }
    result.copy_seconds = median(copies);
    result.load_seconds = median(loads);
    result.token_seconds = median(tokens);
    return result;
  }

 private:
  nibble::Result<double> copy_seconds(Clock clock) const {
    const double begin = seconds_now(clock);
    NIBBLE_TRY(model, nibble::io::Gguf::open(options_.model));
    for (const nibble::io::MappedFile& file : model.files()) {
      NIBBLE_TRY(memory, nibble::AlignedBuffer::allocate(file.bytes().size()));
      NIBBLE_CHECK(file.read(file.bytes(), memory.data()));
    }
    return seconds_now(clock) - begin;
  }

  nibble::Result<LoadResult> load(Index n_threads, Clock clock) const {
    nibble::LoadOptions load_options;
    load_options.executor = &pool(n_threads);
    load_options.tuning = options_.tuning;
    nibble::SessionOptions session_options;
    session_options.executor = load_options.executor;
    const bool has_peak = reset_peak();
    const double before = status_bytes("VmRSS");
    LoadResult result;
    result.n_threads = n_threads;
    const double begin = seconds_now(clock);
    NIBBLE_TRY(model, nibble::load(options_.model, load_options));
    result.load_seconds = seconds_now(clock) - begin;
    NIBBLE_TRY(session, nibble::Session::create(model, session_options));
    const std::int32_t token = 1 % static_cast<std::int32_t>(Index{model.config().vocab_size});
    NIBBLE_CHECK(session.append({&token, 1}));
    result.token_seconds = seconds_now(clock) - begin;
    result.peak_bytes = has_peak ? status_bytes("VmHWM") - before : 0;
    result.needed_bytes = static_cast<double>(model.weight_bytes() + session.bytes());
    result.is_packed = model.weight_bytes_in_place() > 0;
    return result;
  }

  const Options& options_;
};

// The results besides the rows.
struct Summary {
  std::string model, format, isa, tuning;
  double weight_bytes = 0, session_bytes = 0, load_seconds = 0, source_bytes = 0;
  double peak_bytes = 0;             // of the process, until the end of the runs
  std::vector<LoadResult> loads;     // empty for a shape
  std::vector<Served> served;        // empty without --sequences
  std::vector<SharedPrompt> shared;  // empty without --shared-prompt
};

void print_text(const Summary& s, const std::vector<Result>& results) {
  std::printf(
      "%s %s on %s: %.1f MiB of weights, loaded in %.3f s, %.1f MiB of session, peak RAM %.1f MiB",
      s.model.c_str(), s.format.c_str(), s.isa.c_str(), s.weight_bytes / 0x1p20, s.load_seconds,
      s.session_bytes / 0x1p20, s.peak_bytes / 0x1p20);
  if (s.source_bytes > 0) {
    std::printf(" (while loading %.1f MiB for the source of random weights)",
                s.source_bytes / 0x1p20);
  }
  std::printf("\ntuning %s", s.tuning.c_str());
  if (!s.loads.empty()) {
    std::printf("\n%-8s %3s %10s %10s %10s %7s %9s %6s", "load", "thr", "copy ms", "load ms",
                "token ms", "of copy", "peak MiB", "needed");
  }
  for (const LoadResult& r : s.loads) {
    std::printf("\n%-8s %3d %10.1f %10.1f %10.1f %5.0f %% %9.1f ", r.is_packed ? "packed" : "plain",
                static_cast<int>(r.n_threads), 1e3 * r.copy_seconds, 1e3 * r.load_seconds,
                1e3 * r.token_seconds, 100 * r.token_seconds / r.copy_seconds,
                r.peak_bytes / 0x1p20);
    std::printf("%6.1f", r.needed_bytes / 0x1p20);
  }
  std::printf("\n%-8s %3s %10s %7s %10s %6s\n", "test", "thr", "tokens/s", "GB/s", "limit",
              "of it");
  for (const Result& r : results) {
    std::printf("%-8s %3d %10.2f %7.1f %10s %4.0f %%\n", r.test.c_str(),
                static_cast<int>(r.n_threads), r.tokens_per_second, r.gigabytes_per_second,
                r.limit.c_str(), 100 * r.fraction);
  }
  print_served(s.served);
  print_shared(s.shared);
}

std::string json_of(const Summary& s, const std::vector<Result>& results) {
  std::string out;
  print(out,
        "{\n  \"model\": %s,\n  \"format\": \"%s\",\n  \"isa\": \"%s\",\n  \"tuning\": \"%s\",\n"
        "  \"weight_bytes\": %.0f,\n  \"session_bytes\": %.0f,\n  \"load_seconds\": %.6f,\n"
        "  \"source_bytes\": %.0f,\n  \"peak_bytes\": %.0f,\n  \"loads\": [",
        quoted(s.model).c_str(), s.format.c_str(), s.isa.c_str(), s.tuning.c_str(), s.weight_bytes,
        s.session_bytes, s.load_seconds, s.source_bytes, s.peak_bytes);
  const char* separator = "\n";
  for (const LoadResult& r : s.loads) {
    print(out,
          "%s    {\"file\": \"%s\", \"threads\": %d, \"copy_seconds\": %.6f, "
          "\"load_seconds\": %.6f, \"first_token_seconds\": %.6f, \"peak_bytes\": %.0f, "
          "\"needed_bytes\": %.0f}",
          separator, r.is_packed ? "packed" : "plain", static_cast<int>(r.n_threads),
          r.copy_seconds, r.load_seconds, r.token_seconds, r.peak_bytes, r.needed_bytes);
    separator = ",\n";
  }
  print(out, "%s  ],\n  \"served\": %s,\n  \"shared\": %s,\n  \"results\": [",
        s.loads.empty() ? "" : "\n", json_of(s.served).c_str(), json_of(s.shared).c_str());
  separator = "\n";
  for (const Result& r : results) {
    print(out,
          "%s    {\"test\": \"%s\", \"threads\": %d, \"tokens_per_second\": %.4f, "
          "\"GB_per_s\": %.4f, \"limit\": \"%s\", \"fraction\": %.4f}",
          separator, r.test.c_str(), static_cast<int>(r.n_threads), r.tokens_per_second,
          r.gigabytes_per_second, r.limit.c_str(), r.fraction);
    separator = ",\n";
  }
  print(out, "\n  ]\n}\n");
  return out;
}

std::string csv_of(const Summary& s, const std::vector<Result>& results) {
  std::string out =
      "model,format,isa,test,threads,tokens_per_second,GB_per_s,limit,fraction,load_seconds,"
      "peak_bytes,tuning\n";
  for (const Result& r : results) {
    print(out, "%s,%s,%s,%s,%d,%.4f,%.4f,%s,%.4f,%.6f,%.0f,%s\n", quoted(s.model).c_str(),
          s.format.c_str(), s.isa.c_str(), r.test.c_str(), static_cast<int>(r.n_threads),
          r.tokens_per_second, r.gigabytes_per_second, r.limit.c_str(), r.fraction, s.load_seconds,
          s.peak_bytes, s.tuning.c_str());
  }
  return out;
}

nibble::Result<nibble::Model> get_model(const Options& o, Summary& summary) {
  nibble::LoadOptions load;
  load.executor = &pool(threads_of(o.threads).back());
  load.tuning = o.tuning;
  const double begin = seconds_now(Clock::wall);
  if (!o.model.empty()) {
    NIBBLE_TRY(model, nibble::load(o.model, load));
    summary.load_seconds = seconds_now(Clock::wall) - begin;
    return model;
  }
  NIBBLE_TRY(format, nibble::quant::format_from_name(o.format));
  std::size_t source_bytes = 0;
  const auto make = [&]() -> nibble::Result<nibble::Model> {
    if (auto graph = hybrid_graph(o.shape)) {
      return synthetic_model(std::move(graph), true, format, load, source_bytes);
    }
    NIBBLE_TRY(shape, shape_of(o.shape));
    return synthetic_model(shape, format, load, source_bytes);
  };
  NIBBLE_TRY(model, make());
  summary.load_seconds = seconds_now(Clock::wall) - begin;
  summary.source_bytes = static_cast<double>(source_bytes);
  return model;
}

nibble::Result<void> measure(const Options& o, Target target) {
  OutFile out(o.out);  // first: a path that cannot be written is not found out after minutes
  NIBBLE_CHECK(out.open());
  NIBBLE_CHECK(nibble::simd::force_target(target));
  Summary summary;
  summary.model = o.model.empty() ? o.shape : o.model;
  summary.format = o.model.empty() ? o.format : "file";
  summary.isa = nibble::simd::to_string(target);
  // Measured first, while there is memory for a second copy.
  if (!o.model.empty()) {
    for (const Index n : threads_of(o.threads)) {
      NIBBLE_TRY(row, LoadMeasurement(o).run(n));
      summary.loads.push_back(row);
    }
  }
  NIBBLE_TRY(model, get_model(o, summary));
  summary.weight_bytes = static_cast<double>(model.weight_bytes());
  summary.tuning = to_string(model.tuning());
  std::vector<Timing> timings;
  std::size_t session_bytes = 0;
  for (const Index n : threads_of(o.threads)) {
    NIBBLE_TRY(some, timings_of(model, o, n, session_bytes));
    timings.insert(timings.end(), some.begin(), some.end());
    NIBBLE_TRY(served, served_of(model, o, n));
    summary.served.insert(summary.served.end(), served.begin(), served.end());
    NIBBLE_TRY(shared, shared_of(model, o, n));
    summary.shared.insert(summary.shared.end(), shared.begin(), shared.end());
  }
  summary.session_bytes = static_cast<double>(session_bytes);
  summary.peak_bytes = static_cast<double>(example::peak_ram().value_or(0));
  if (!o.plot.empty() && !draw(o.plot, summary.served, threads_of(o.threads))) {
    return example::no_picture(o.plot);
  }
  // Probed after the runs, so that the peak of memory is the model's, not the probes'.
  ProbeOptions probe;
  probe.targets = {target};
  probe.threads = threads_of(o.threads);
  probe.pages = pages_of(o);
  probe.clock = clock_of(o);
  const Machine machine(probe);
  NIBBLE_TRY(n_used, used_experts(o));
  const Comparison compare(model, n_used, machine, o);
  std::vector<Result> results;
  for (const Timing& timing : timings) results.push_back(compare(timing));
  print_text(summary, results);
  return out.write(out.is_csv() ? csv_of(summary, results) : json_of(summary, results));
}

int bench_model(int argc, char** argv) {
  CLI::App app("Prompt and generation rates of a whole model.", "bench_model");
  Options o;
  add_run_options(app, o);
  auto* const model = app.add_option("-m,--model", o.model, "a GGUF file");
  app.add_option("--shape", o.shape, "random weights instead: " + kModelShapes)->excludes(model);
  app.add_option(
         "--format", o.format,
         "of random weights: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k or q6_k")
      ->capture_default_str();
  app.add_option("--kv", o.kv, "cache: f32 f16 bf16 int8 int4")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8", "int4"}))
      ->capture_default_str();
  app.add_option("-p,--prompt", o.n_prompt, "tokens of the prompt, 0: none")
      ->check(CLI::Range(Index{0}, Index{1} << 20))
      ->capture_default_str();
  app.add_option("-n,--generate", o.n_generate, "tokens to generate, 0: none")
      ->check(CLI::Range(Index{0}, Index{1} << 20))
      ->capture_default_str();
  auto* const sequences =
      app.add_option("--sequences", o.sequences,
                     "how many sequences generate together, a row for each: 1,2,4,8; also what "
                     "requests get that are served together")
          ->delimiter(',')
          ->check(CLI::Range(Index{1}, Index{1} << 10))
          ->capture_default_str();
  app.add_option("--shared-prompt", o.n_shared,
                 "also the prompts of 16 requests that begin with so many tokens, with a cache of "
                 "prefixes and without")
      ->check(CLI::Range(Index{1}, Index{1} << 20));
  app.add_option("--plot", o.plot, "a picture of the requests served, FILE.svg (by gnuplot)")
      ->needs(sequences);
  app.add_option("-b,--batch", o.batch, "tokens of the prompt that are computed together")
      ->check(CLI::Range(Index{1}, Index{1} << 16))
      ->capture_default_str();
  app.add_option("-r,--repetitions", o.repetitions, "of which the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_out_option(app, o, "also writes FILE.json or FILE.csv");
  return example::run(app, argc, argv, [&]() -> nibble::Result<int> {
    o.serves = !sequences->empty();
    const auto usage = [&](const std::string& message) {
      std::fprintf(stderr, "bench_model: %s (see --help)\n", message.c_str());
      return example::kUsage;
    };
    if (o.model.empty() == o.shape.empty()) return usage("either --model or --shape");
    if (!o.shape.empty()) {
      const auto format = nibble::quant::format_from_name(o.format);
      if (!format) return usage("--format '" + o.format + "': " + format.error().message);
      const auto shape = shape_of(o.shape, kModelShapes);
      if (!shape && !hybrid_graph(o.shape)) return usage(shape.error().message);
    }
    const auto available = nibble::simd::available_targets();
    const auto targets = targets_of(o.isa, available);
    if (!targets) return usage(targets.error().message);
    if (targets->size() > 1 && !o.isa.empty()) return usage("one --isa at a time");
    NIBBLE_CHECK(measure(o, targets->front()));
    return example::kOk;
  });
}

}}  // namespace bench

int main(int argc, char** argv) { return bench::bench_model(argc, argv); }
