// SPDX-License-Identifier: Apache-2.0
//
// gate: measures a model, compares it with a baseline and fails where it is worse: for pipelines
// that decide whether a model may be used. gate/workflow.yml is one.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "common.hpp"
#include "gate/baseline.hpp"
#include "gate/report.hpp"
#include "measure.hpp"
#include "nibble/generate/answer_metrics.hpp"
#include "nibble/generate/divergence.hpp"
#include "nibble/generate/perplexity.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/nibble.hpp"
#include "nibble/text/tokenizer.hpp"

namespace {

using example::gate::Group;
using nibble::Index;
using nibble::Result;
using Clock = std::chrono::steady_clock;

constexpr int kGateFailed = 3;

struct Options {
  std::string model, samples, text, reference, baseline, write_baseline, json, junit;
  std::vector<std::string> only;
  std::size_t n_samples = 0;
  Index context = 512, n_chunks = 8, n_threads = 0, max_tokens = 128;
};

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

bool is_wanted(const Options& o, Group group) {
  const char* const name = example::gate::kGroups[static_cast<std::size_t>(group)];
  return o.only.empty() || std::find(o.only.begin(), o.only.end(), name) != o.only.end();
}

class Measuring {
 public:
  explicit Measuring(const Options& options) : o_(options) {}

  void add(const char* name, double value) {
    const auto* const metric = example::gate::find_metric(name);
    if (is_wanted(o_, metric->group)) all_.push_back({metric, value});
  }
  const std::vector<example::gate::Measured>& all() const { return all_; }

  Result<void> run();

 private:
  Result<void> ask(const nibble::Model& model, nibble::Executor& executor);
  Result<void> predict(const nibble::Model& model, nibble::Executor& executor);

  const Options& o_;
  std::vector<example::gate::Measured> all_;
};

// The bytes of a file or of all files in a folder.
Result<double> bytes_of(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::uintmax_t bytes = 0;
  if (fs::is_directory(path, error)) {
    for (fs::recursive_directory_iterator at(path, error), end; !error && at != end;
         at.increment(error)) {
      if (at->is_regular_file(error)) bytes += at->file_size(error);
    }
  } else {
    bytes = fs::file_size(path, error);
  }
  if (error)
    return nibble::Error{nibble::Errc::io, nibble::printable(path) + ": " + error.message()};
  return static_cast<double>(bytes);
}

// Asks each sample after the other, as one user would.
Result<void> Measuring::ask(const nibble::Model& model, nibble::Executor& executor) {
  NIBBLE_TRY(samples, example::read_samples(o_.samples));
  if (o_.n_samples > 0 && samples.size() > o_.n_samples) samples.resize(o_.n_samples);
  if (samples.empty()) {
    return nibble::Error{nibble::Errc::malformed, nibble::printable(o_.samples) + ": no samples"};
  }
  NIBBLE_TRY(session, nibble::Session::create(model, {.executor = &executor}));
  std::vector<double> first_ms, answer_ms;
  std::size_t n_exact = 0;
  double f1 = 0, generation_ms = 0;
  Index n_generated = 0;
  nibble::BleuSum bleu;
  nibble::GenerateOptions options;
  options.max_tokens = o_.max_tokens;
  example::StatusLine status(true, example::StatusLine::kInLogs);
  for (const example::Sample& sample : samples) {
    if (example::interrupted) return nibble::Error{nibble::Errc::cancelled, "asking"};
    status.show("sample " + std::to_string(answer_ms.size() + 1) + " of " +
                std::to_string(samples.size()));
    NIBBLE_CHECK(session.rewind(0));
    std::string answer;
    double first = 0;
    Index n_tokens = 0;
    const auto start = Clock::now();
    const auto on_token = [&](const nibble::Token& token) {
      if (token.id >= 0 && ++n_tokens == 1) first = milliseconds_since(start);
      answer += token.text;
      return true;
    };
    NIBBLE_CHECK(nibble::generate(session, sample.prompt + "\n", options, on_token));
    answer_ms.push_back(milliseconds_since(start));
    first_ms.push_back(n_tokens > 0 ? first : answer_ms.back());
    if (n_tokens > 1) {
      generation_ms += answer_ms.back() - first;
      n_generated += n_tokens - 1;
    }
    n_exact += nibble::exact_match(answer, sample.answer) ? 1 : 0;
    f1 += nibble::token_f1(answer, sample.answer);
    bleu.add(answer, sample.answer);
  }
  status.show({});
  using example::gate::percentile;
  const auto n = static_cast<double>(samples.size());
  add("first_token_ms_p50", percentile(first_ms, 0.5));
  add("first_token_ms_p95", percentile(first_ms, 0.95));
  add("answer_ms_p50", percentile(answer_ms, 0.5));
  add("answer_ms_p95", percentile(answer_ms, 0.95));
  add("answer_ms_p99", percentile(answer_ms, 0.99));
  if (generation_ms > 0) {
    add("tokens_per_second", 1000 * static_cast<double>(n_generated) / generation_ms);
  }
  add("exact_match", static_cast<double>(n_exact) / n);
  add("f1", f1 / n);
  add("bleu", bleu.value());
  return nibble::ok();
}

// Perplexity on the text, and how far the reference's predictions are.
Result<void> Measuring::predict(const nibble::Model& model, nibble::Executor& executor) {
  if (model.tokenizer() == nullptr) return *model.tokenizer_error();
  NIBBLE_TRY(text, example::read_text(o_.text));
  NIBBLE_TRY(tokens, model.tokenizer()->encode(text, {.add_eos = false}));
  const auto& settings = model.tokenizer()->vocabulary().settings();
  const std::int32_t bos = settings.add_bos ? settings.bos : nibble::text::kNoToken;
  const auto most = static_cast<std::size_t>(o_.n_chunks * o_.context);
  if (o_.n_chunks > 0 && tokens.size() > most) tokens.resize(most);
  nibble::SessionOptions options{.n_ctx = o_.context, .executor = &executor};
  options.max_step_tokens = options.max_outputs = (std::min)(o_.context, Index{256});
  NIBBLE_TRY(session, nibble::Session::create(model, options));
  example::StatusLine status(true, example::StatusLine::kInLogs);
  const nibble::Progress progress = [&](std::size_t done, std::size_t total) {
    status.show("chunk " + std::to_string(done) + " of " + std::to_string(total));
    return !example::interrupted;
  };
  if (is_wanted(o_, Group::perplexity)) {
    NIBBLE_TRY(found, nibble::perplexity(session, tokens, o_.context, bos, &progress));
    add("perplexity", found.value);
  }
  if (o_.reference.empty() || !is_wanted(o_, Group::kl)) return nibble::ok();
  NIBBLE_TRY(reference,
             nibble::load<nibble::graph::AllFormats>(o_.reference, {.executor = &executor}));
  NIBBLE_TRY(other, nibble::Session::create(reference, options));
  NIBBLE_TRY(found, nibble::divergence(other, session, tokens, o_.context, bos, &progress));
  add("kl_mean", found.mean);
  add("kl_p99", found.p99);
  return nibble::ok();
}

Result<void> Measuring::run() {
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o_.n_threads}));
  NIBBLE_TRY(bytes, bytes_of(o_.model));
  NIBBLE_TRY(model, nibble::load<nibble::graph::AllFormats>(o_.model, {.executor = pool.get()}));
  add("file_bytes", bytes);
  add("weight_bytes", static_cast<double>(model.weight_bytes()));
  if (!o_.samples.empty()) NIBBLE_CHECK(ask(model, *pool));
  // Before a second model is there.
  if (const auto ram = example::peak_ram()) add("peak_ram_bytes", static_cast<double>(*ram));
  if (!o_.text.empty()) NIBBLE_CHECK(predict(model, *pool));
  return nibble::ok();
}

Result<void> write_file(const std::string& path, const std::string& text) {
  NIBBLE_TRY(file, nibble::io::OutputFile::create(path));
  NIBBLE_CHECK(file.write(std::as_bytes(std::span(text))));
  return file.commit();
}

Result<int> judge(const Options& o) {
  using namespace example::gate;
  std::vector<Limit> limits;
  if (!o.baseline.empty()) {  // first: a mistake in it costs no time
    NIBBLE_TRY(text, example::read_text(o.baseline));
    auto parsed = parse_baseline(text);
    if (!parsed) return std::move(parsed).error().in(nibble::printable(o.baseline));
    for (const Limit& limit : *parsed) {
      if (is_wanted(o, limit.metric->group)) limits.push_back(limit);
    }
    if (limits.empty()) {
      return nibble::Error{nibble::Errc::invalid_argument,
                           nibble::printable(o.baseline) +
                               ": it limits none of the groups of --only: all would pass"};
    }
  }
  example::catch_signals();
  Measuring measuring(o);
  NIBBLE_CHECK(measuring.run());
  const std::vector<Check> checks = compare(limits, measuring.all());
  if (!o.write_baseline.empty()) {
    NIBBLE_CHECK(write_file(o.write_baseline, baseline_text(measuring.all())));
  }
  if (!o.json.empty()) {
    NIBBLE_CHECK(write_file(o.json, report_json(o.model, checks, measuring.all())));
  }
  if (!o.junit.empty()) NIBBLE_CHECK(write_file(o.junit, report_junit(o.model, checks)));
  const std::string report = report_text(checks, measuring.all());
  std::fwrite(report.data(), 1, report.size(), stdout);
  return n_failed(checks) == 0 ? example::kOk : kGateFailed;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Measures a model and compares it with a baseline: size, latency, RAM, and how good its "
      "answers are. Latency, RAM and answers need --samples, perplexity --text, the divergence "
      "--text and --reference.",
      "gate");
  Options o;
  app.add_option("MODEL", o.model, "a GGUF file or a folder as hubs have it")->required();
  app.add_option("--samples", o.samples,
                 "prompts with their right answers: a tab between, one a line")
      ->check(example::is_not_empty);
  auto* const text = app.add_option("--text", o.text, "a text that the model should predict")
                         ->check(example::is_not_empty);
  app.add_option("--reference", o.reference, "the model whose predictions it should have")
      ->needs(text)
      ->check(example::is_not_empty);
  app.add_option("--baseline", o.baseline, "the figures that it must keep to")
      ->check(example::is_not_empty);
  app.add_option("--write-baseline", o.write_baseline,
                 "writes what was measured as a baseline, with the usual tolerances")
      ->check(example::is_not_empty);
  app.add_option("--json", o.json, "writes a report as JSON")->check(example::is_not_empty);
  app.add_option("--junit", o.junit, "writes a report as JUnit's XML")
      ->check(example::is_not_empty);
  app.add_option("--only", o.only, "of the metrics, only these groups")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"size", "latency", "ram", "quality", "perplexity", "kl"}));
  app.add_option("--n-samples", o.n_samples, "the most samples to ask; 0: all")
      ->check(example::is_not_negative);
  example::add_number(app, "--max-tokens", o.max_tokens, "the most tokens of an answer", 1,
                      1 << 20);
  example::add_number(app, "--ctx", o.context, "tokens of a chunk of the text", 4, 1 << 30);
  example::add_number(app, "--chunks", o.n_chunks, "the most chunks of the text; 0: all", 0,
                      1 << 30);
  example::add_threads(app, o.n_threads);
  app.footer(
      "Exit codes: 0 passed, 1 an error, 2 wrong usage, 3 worse than the baseline, 130 "
      "interrupted.");
  return example::run(app, argc, argv, [&] { return judge(o); });
}
