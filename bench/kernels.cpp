// SPDX-License-Identifier: Apache-2.0
//
// bench_kernels: runs every kernel on every SIMD target of this machine. It first measures the
// limits of the machine, then reports GB/s, GOP/s and the fraction of the limit.
#include <benchmark/benchmark.h>

#include <set>
#include <sstream>

#include "bench/case.hpp"
#include "bench/options.hpp"
#include "bench/peers.hpp"
#include "bench/table.hpp"
#include "examples/common.hpp"
#include "nibble/kernels/pass.hpp"

namespace bench { namespace {

struct Options : RunOptions {
  std::vector<std::string> kernels, formats;
  bool quick = false, list = false;
  int repetitions = 0;
  double min_time = 0;
};

// A row of the table: a case on a target with a number of threads. A peer chooses its instructions
// itself; for a peer, the target is the one whose limits it is compared with.
struct Row {
  const Case* c = nullptr;
  Target target = {};
  Index n_threads = 1;

  bool operator==(const Row&) const = default;

  std::string name() const {
    std::string text;
    for (const std::string& part : {c->kernel, c->format, c->shape, c->data}) text += part + "/";
    text += c->peer.empty() ? nibble::simd::to_string(target) : c->peer;
    return text + "/t" + std::to_string(n_threads);
  }
};

// Every wanted name must be in `known`.
nibble::Result<void> check_names(const char* option, const std::vector<std::string>& wanted,
                                 const std::set<std::string>& known) {
  for (const std::string& name : wanted) {
    if (known.contains(name)) continue;
    std::string all;
    for (const std::string& k : known) all += (all.empty() ? "" : ", ") + k;
    return nibble::Error{nibble::Errc::invalid_argument,
                         std::string(option) + ": '" + name + "' is not one of " + all};
  }
  return nibble::ok();
}

nibble::Result<void> check_names(const Options& o, const std::vector<Case>& cases) {
  std::set<std::string> kernels, formats;
  for (const Case& c : cases) {
    kernels.insert(c.kernel);
    formats.insert(c.format);
  }
  NIBBLE_CHECK(check_names("--kernel", o.kernels, kernels));
  return check_names("--format", o.formats, formats);
}

// Whose code runs: nibble's targets, and peers.
struct Runners {
  std::vector<Target> targets;  // never empty: the peers are compared with the first one's limits
  std::vector<std::string> peers;
  bool nibble = true;  // false: peers only
};

// What --isa requests; it accepts names of peers as well as of targets.
nibble::Result<Runners> runners_of(const Options& o) {
  Runners runners;
  std::vector<std::string> targets;
  const std::vector<std::string> peers = peer_names();
  for (const std::string& name : o.isa) {
    const bool is_peer = std::find(peers.begin(), peers.end(), name) != peers.end();
    (is_peer ? runners.peers : targets).push_back(name);
  }
  if (o.isa.empty()) runners.peers = peers;
  runners.nibble = o.isa.empty() || !targets.empty();
  NIBBLE_TRY(found, targets_of(targets, nibble::simd::available_targets()));
  runners.targets = std::move(found);
  if (!runners.nibble) runners.targets.resize(1);
  return runners;
}

std::vector<Row> rows_of(const std::vector<Case>& cases, const Options& o, const Runners& runners) {
  const auto wanted = [](const std::vector<std::string>& names, const std::string& name) {
    return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
  };
  std::vector<Row> rows;
  for (const Case& c : cases) {
    if (!wanted(o.kernels, c.kernel) || !wanted(o.formats, c.format)) continue;
    if (o.quick && !c.quick) continue;
    if (c.peer.empty() ? !runners.nibble
                       : std::count(runners.peers.begin(), runners.peers.end(), c.peer) == 0) {
      continue;
    }
    for (const Target target : runners.targets) {
      if (c.needs_tiles && target != Target::AMX) continue;
      for (const Index n : threads_of(o.threads)) rows.push_back({&c, target, n});
      if (c.format == "none" || !c.peer.empty()) break;  // it has no SIMD code, or none to choose
    }
  }
  return rows;
}

// The row's code, ready to run. Its case's data is created when the case first runs. It has already
// been run once for this row, since Google Benchmark calls a row several times and also counts the
// first call.
Body& body_of(const Row& row) {
  static Row last{};
  static Body body;
  if (last.c != row.c) {
    Body next = row.c->prepare();  // before the old one is freed: it may share its weights
    body = std::move(next);
  }
  if (last != row) body(pool(row.n_threads));
  last = row;
  return body;
}

void run_row(benchmark::State& state, const Row& row, const Machine& machine) {
  if (!nibble::simd::force_target(row.target)) return state.SkipWithError("no such target");
  Body& body = body_of(row);
  nibble::Executor& executor = pool(row.n_threads);
  for (auto _ : state) {
    body(executor);
    benchmark::ClobberMemory();
  }
  using benchmark::Counter;
  const Bound bound = machine.bound(row.c->work, row.target, row.n_threads);
  constexpr auto kRate = Counter::kIsIterationInvariantRate;
  // Zeros are left out: their coefficient of variation is NaN, which JSON cannot represent.
  const auto add = [&](const char* name, double value, Counter::Flags flags) {
    if (value > 0) state.counters[name] = Counter(value, flags);
  };
  add("GB_per_s", row.c->work.bytes() * 1e-9, kRate);
  add("GOP_per_s", row.c->work.ops * 1e-9, kRate);
  add("fraction", bound.seconds, kRate);
  add("list", row.c->quick ? 1 : 2, Counter::kDefaults);  // 1: the short list
  state.SetLabel(bound.name);
}

void register_rows(const std::vector<Row>& rows, const Machine& machine, const Options& o) {
  const int repetitions = o.repetitions > 0 ? o.repetitions : o.quick ? 3 : 5;
  const double min_time = o.min_time > 0 ? o.min_time : o.quick ? 0.02 : 0.05;
  for (const Row& row : rows) {
    auto* const entry = benchmark::RegisterBenchmark(
        row.name().c_str(),
        [row, &machine](benchmark::State& state) { run_row(state, row, machine); });
    entry->MinTime(min_time)->Repetitions(repetitions)->ReportAggregatesOnly(repetitions > 1);
    if (clock_of(o) == Clock::wall || row.n_threads > 1) entry->UseRealTime();
  }
}

void add_context(const Machine& machine) {
  benchmark::AddCustomContext("nibble", NIBBLE_VERSION);
#if defined(__VERSION__)
  benchmark::AddCustomContext("compiler", __VERSION__);
#endif
  benchmark::AddCustomContext("cpu", cpu_name());
  benchmark::AddCustomContext("clock", machine.options().clock == Clock::cpu ? "cpu" : "wall");
  benchmark::AddCustomContext("pages", to_string(machine.options().pages));
  for (const auto& [key, value] : to_pairs(machine)) benchmark::AddCustomContext(key, value);
}

// Initializes Google Benchmark with its own options.
bool initialize(const std::vector<std::string>& extras) {
  // Static, because the report still uses the first argument.
  static std::vector<std::string> arguments = {"bench_kernels"};
  arguments.insert(arguments.end(), extras.begin(), extras.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int argc = static_cast<int>(argv.size());
  benchmark::Initialize(&argc, argv.data());
  return !benchmark::ReportUnrecognizedArguments(argc, argv.data());
}

// Two reporters of the same runs.
class Both final : public benchmark::BenchmarkReporter {
 public:
  Both(benchmark::BenchmarkReporter& first, benchmark::BenchmarkReporter& second)
      : first_(first), second_(second) {}
  benchmark::BenchmarkReporter& second() { return second_; }

  bool ReportContext(const Context& context) override {
    return first_.ReportContext(context) && second_.ReportContext(context);
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    first_.ReportRuns(runs);
    second_.ReportRuns(runs);
  }
  void Finalize() override {
    first_.Finalize();
    second_.Finalize();
  }

 private:
  benchmark::BenchmarkReporter& first_;
  benchmark::BenchmarkReporter& second_;
};

void add_options(CLI::App& app, Options& o) {
  add_run_options(app, o);
  app.add_option("--kernel", o.kernels, "kernels, e.g. matmul,softmax (default: all)")
      ->delimiter(',');
  app.add_option("--format", o.formats, "weight or cache formats, e.g. q4_0,f16 (default: all)")
      ->delimiter(',');
  app.add_flag("--quick", o.quick, "the short list: one size of each kernel");
  app.add_flag("--list", o.list, "names the rows, runs nothing");
  app.add_option("--repetitions", o.repetitions, "of which the median counts (5; quick: 3)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--min-time", o.min_time, "seconds of each repetition (0.05; quick: 0.02)")
      ->check(example::is_number)
      ->check(CLI::Range(1e-4, 60.0));
  add_out_option(app, o, "also writes FILE.json, as Google Benchmark does, or FILE.csv, the table");
  app.allow_extras();
  app.footer(
      "Rows are medians. GB/s counts what must move, GOP/s two per multiply-add; the limit is the\n"
      "probed bandwidth of the level that the data is at, or the peak of the arithmetic, "
      "whichever\n"
      "takes longer. Peers are compared to the limits of the best target.\n"
      "Options of Google Benchmark (--benchmark_...) work too.");
}

int bench_kernels(int argc, char** argv) {
  CLI::App app("Kernels against the limits of this machine.", "bench_kernels");
  Options o;
  add_options(app, o);
  return example::run(app, argc, argv, [&]() -> nibble::Result<int> {
    const auto usage = [&](const std::string& message) {
      std::fprintf(stderr, "bench_kernels: %s (see --help)\n", message.c_str());
      return example::kUsage;
    };
    for (const std::string& extra : app.remaining()) {
      if (!extra.starts_with("--benchmark_")) return usage("'" + extra + "' is not known");
    }
    const auto runners = runners_of(o);
    if (!runners) return usage(runners.error().message);

    const CaseOptions case_options{pages_of(o), Machine::caches().l3,
                                   o.tuning.value_or(nibble::Tuning())};
    std::vector<Case> cases;
    add_matmul(case_options, cases);
    add_attention(case_options, cases);
    add_norms(case_options, cases);
    add_activations(case_options, cases);
    add_fork_join(cases);
    add_peers(case_options, cases);
    if (const auto known = check_names(o, cases); !known) return usage(known.error().message);
    const std::vector<Row> rows = rows_of(cases, o, *runners);
    if (o.list) {
      for (const Row& row : rows) std::puts(row.name().c_str());
      return example::kOk;
    }
    if (rows.empty()) return usage("no kernel has such a format");
    if (!initialize(app.remaining())) return example::kUsage;

    OutFile out(o.out);  // first: a path that cannot be written is not found out after minutes
    if (const auto opened = out.open(); !opened) return opened.error();

    ProbeOptions probe;
    probe.targets = runners->targets;
    probe.threads = threads_of(o.threads);
    probe.pages = pages_of(o);
    probe.clock = clock_of(o);
    const Machine machine(probe);
    std::printf("%s\n", to_text(machine).c_str());
    add_context(machine);
    register_rows(rows, machine, o);
    TextTable text;
    CsvTable csv;
    benchmark::JSONReporter json;
    std::ostringstream results;
    Both both(text, out.is_csv() ? static_cast<benchmark::BenchmarkReporter&>(csv) : json);
    both.second().SetOutputStream(&results);
    benchmark::RunSpecifiedBenchmarks(
        out.is_wanted() ? &both : static_cast<benchmark::BenchmarkReporter*>(&text));
    std::puts(
        "\nThe machine after the run, relative to before (far from 1: do not trust the rows):");
    for (const Index n : probe.threads) {
      const auto [dram, f32] = machine.drift(n);
      std::printf("%d thread%s: DRAM bandwidth %.2f, f32 rate %.2f\n", static_cast<int>(n),
                  n == 1 ? "" : "s", dram, f32);
    }
    for (const Index n : probe.threads) {
      if (n == 1) continue;
      std::printf("%d idle threads take %.2f ms of CPU time in the second after a call\n",
                  static_cast<int>(n), 1e3 * idle_cpu_seconds(n, 1));
    }
    benchmark::Shutdown();
    if (out.is_wanted() && results.str().empty()) return usage("no row ran");
    if (const auto done = out.write(results.str()); !done) return done.error();
    return example::kOk;
  });
}

}}  // namespace bench

int main(int argc, char** argv) { return bench::bench_kernels(argc, argv); }
