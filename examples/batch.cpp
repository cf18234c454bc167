// SPDX-License-Identifier: Apache-2.0
//
// batch: answers many prompts with a GGUF model, some of them at a time. The answers go to stdout
// as they finish, speed and memory use to stderr.
#include <algorithm>
#include <chrono>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapters.hpp"
#include "common.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"
#include "settings.hpp"

namespace {

using example::interrupted;
using nibble::Error;
using nibble::Index;
using nibble::Result;
using Clock = std::chrono::steady_clock;

struct Options : example::Settings {
  std::string prompts;
  Index n_parallel = 8;
  std::vector<std::string> adapters;
  std::size_t prefix_cache_mib = 0;
  std::string restore, save;  // files of prefixes
  bool json = false;
  bool newline = false;
};

void add_options(CLI::App& app, Options& o) {
  example::add_model_options(app, o);
  app.add_option("PROMPTS", o.prompts, "a file with a prompt in each line; - is stdin")
      ->required()
      ->check(example::is_not_empty);
  app.add_option("--parallel", o.n_parallel, "the most prompts that are answered together")
      ->check(CLI::Range(Index{1}, Index{1} << 10))
      ->capture_default_str();
  auto* const prefix_cache =
      app.add_option("--prefix-cache", o.prefix_cache_mib,
                     "MiB for what prompts begin with, so that it is computed once; 0: none")
          ->check(CLI::Range(std::size_t{0}, std::size_t{1} << 30))
          ->capture_default_str();
  app.add_option("--restore-prefixes", o.restore, "a file that --save-prefixes has written")
      ->needs(prefix_cache)
      ->check(example::is_not_empty);
  app.add_option("--save-prefixes", o.save,
                 "a file for what prompts began with, written at the end")
      ->needs(prefix_cache)
      ->check(example::is_not_empty);
  app.add_flag("--json", o.json,
               "lines are JSON: {\"prompt\": \"...\"} in, an object for each answer out; with "
               "\"adapter\": \"FILE:STRENGTH\" a line has its own in place of those of --adapter");
  app.add_option("--adapter", o.adapters, example::kAdapterHelp)->allow_extra_args(false);
  app.add_flag("--newline", o.newline, "a prompt includes the end of its line");
  app.add_option("--max-tokens", o.generate.max_tokens, "the most tokens of an answer")
      ->check(example::at_least_one())
      ->capture_default_str();
  example::add_sampling_options(app, o);
  app.add_option("--time-limit", o.generate.time_limit_ms,
                 "milliseconds for an answer, from when its prompt is taken; 0: none")
      ->check(example::any_count())
      ->capture_default_str();
  app.add_option("--speculate", o.generate.speculation.max_drafts,
                 "guess up to so many tokens of an answer in a step, from what other answers said; "
                 "the texts are the same. 0: none")
      ->check(CLI::Range(Index{0}, nibble::kMaxDrafts))
      ->capture_default_str();
  app.add_flag("--parse-special", o.generate.parse_special,
               "names of control tokens in the prompts mean those tokens");
  app.footer(
      "An answer is a line: the number of its prompt, a tab, the text, with \\n for a newline.\n"
      "Each prompt has the random numbers of --seed plus its number.\n"
      "Exit codes: 0 done, 1 failed (also if some prompts did), 2 wrong usage, 130 interrupted "
      "(Ctrl-C).");
  app.callback([&o] { example::finish_settings(o); });
}

struct Prompt {
  std::string text;
  std::vector<std::string> adapters;  // files
};

// The prompt of a line. Errors: malformed.
Result<Prompt> prompt_of(const std::string& line, const Options& o) {
  Prompt prompt{line, o.adapters};
  if (o.json) {
    NIBBLE_TRY(value, nibble::io::JsonValue::parse(line));
    const auto* const text = value.find("prompt");
    if (text == nullptr || text->kind() != nibble::io::JsonValue::Kind::string) {
      return Error{nibble::Errc::malformed, "there is no string \"prompt\""};
    }
    prompt.text = text->string();
    if (const auto* const adapter = value.find("adapter")) prompt.adapters = {adapter->string()};
  }
  if (o.newline) prompt.text += '\n';
  return prompt;
}

Result<std::vector<Prompt>> read_prompts(const Options& o) {
  NIBBLE_TRY(text, example::read_text(o.prompts));
  std::istringstream in(std::move(text));
  std::vector<Prompt> prompts;
  std::string line;
  for (std::size_t n = 1; std::getline(in, line); ++n) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    auto prompt = prompt_of(line, o);
    if (!prompt) {
      return std::move(prompt).error().in(nibble::printable(o.prompts) + ": line " +
                                          std::to_string(n));
    }
    prompts.push_back(*std::move(prompt));
  }
  return prompts;
}

// The adapters of prompts, each read once.
class Adapters {
 public:
  Result<void> read(const std::string& path, const nibble::Model& model,
                    const std::vector<Prompt>& prompts) {
    for (const Prompt& prompt : prompts) {
      if (find(prompt) != nullptr) continue;
      NIBBLE_TRY(set, example::open_adapters(path, model, prompt.adapters));
      max_rank_ = std::max(max_rank_, set.max_rank());
      sets_.emplace_back(prompt.adapters, std::move(set));
    }
    return nibble::ok();
  }
  Index max_rank() const { return max_rank_; }
  // Null before it is read.
  const nibble::AdapterSet* find(const Prompt& prompt) const {
    for (const auto& [names, set] : sets_) {
      if (names == prompt.adapters) return &set;
    }
    return nullptr;
  }

 private:
  std::vector<std::pair<std::vector<std::string>, nibble::AdapterSet>> sets_;
  Index max_rank_ = 0;
};

// One prompt and its answer.
struct Job {
  std::optional<nibble::Completion> completion;
  std::string text;
  Clock::time_point begin, first, last;
  Index n_tokens = 0;
};

class Batch {
 public:
  Batch(nibble::Scheduler& scheduler, const Options& options, const Adapters& adapters,
        std::vector<Prompt> prompts)
      : scheduler_(scheduler),
        options_(options),
        adapters_(adapters),
        prompts_(std::move(prompts)),
        jobs_(prompts_.size()) {}

  // Until all are answered, or it is interrupted.
  Result<void> run() {
    begin_ = Clock::now();
    bool more = true;
    while (more || n_begun_ < jobs_.size()) {
      while (n_begun_ < jobs_.size() && !interrupted &&
             scheduler_.stats().n_waiting < options_.n_parallel) {
        begin(n_begun_++);
      }
      more = scheduler_.step();
      std::erase_if(open_, [&](std::size_t i) { return take_tokens(i); });
      if (!example::is_stdout_written()) {
        return Error{nibble::Errc::io, "cannot write to stdout"};
      }
      if (interrupted && !more) break;
    }
    end_ = Clock::now();
    return nibble::ok();
  }

  void print_summary(const nibble::Model& model, Index n_threads) const;
  bool has_failed() const { return n_failed_ > 0; }

 private:
  void begin(std::size_t i) {
    Job& job = jobs_[i];
    job.begin = Clock::now();
    nibble::GenerateRequest request{.prompt = prompts_[i].text, .options = options_.generate};
    request.adapter.set = *adapters_.find(prompts_[i]);
    request.options.sampling.seed += i;
    auto completion = scheduler_.submit(std::move(request));
    if (!completion) {
      const bool is_limit = completion.error().code == nibble::Errc::limit;
      return print_error(
          i, {completion.error().code, completion.error().message + (is_limit ? " (--ctx)" : "")});
    }
    job.completion.emplace(*std::move(completion));
    open_.push_back(i);
  }

  // Whether the answer is finished.
  bool take_tokens(std::size_t i) {
    Job& job = jobs_[i];
    while (const auto token = job.completion->poll()) {
      job.text += token->text;
      if (token->id >= 0) {
        job.last = Clock::now();
        if (job.n_tokens++ == 0) job.first = job.last;
      }
      if (token->finish != nibble::Finish::none) finish(i, token->finish);
    }
    if (job.completion->finish() == nibble::Finish::none) return false;
    job.completion.reset();
    return true;
  }

  void finish(std::size_t i, nibble::Finish why) {
    if (why == nibble::Finish::failed) {
      print_error(i, jobs_[i].completion->status().error());
    } else if (why != nibble::Finish::cancelled) {
      print(i, why);
      done_.push_back(i);
    }
    jobs_[i].text = {};
  }

  void print(std::size_t i, nibble::Finish finish) const;
  void print_error(std::size_t i, const Error& error) {
    ++n_failed_;
    std::fprintf(stderr, "batch: prompt %zu: %s\n", i + 1, error.message.c_str());
    if (!options_.json) return;
    std::printf("{\"number\": %zu, \"error\": %s}\n", i + 1,
                nibble::io::json_text(error.message).c_str());
  }

  nibble::Scheduler& scheduler_;
  const Options& options_;
  const Adapters& adapters_;
  std::vector<Prompt> prompts_;
  std::vector<Job> jobs_;
  std::size_t n_begun_ = 0, n_failed_ = 0;
  std::vector<std::size_t> open_, done_;
  Clock::time_point begin_, end_;
};

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

// An answer as one line.
std::string one_line(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n' || c == '\\') out += '\\';
    out += c == '\n' ? 'n' : c;
  }
  return out;
}

void Batch::print(std::size_t i, nibble::Finish finish) const {
  const Job& job = jobs_[i];
  if (!options_.json) {
    std::printf("%zu\t%s\n", i + 1, one_line(job.text).c_str());
    return;
  }
  std::printf(
      "{\"number\": %zu, \"text\": %s, \"finish\": \"%s\", \"prompt_tokens\": %lld, \"tokens\": "
      "%lld, \"first_token_ms\": %.3f, \"ms\": %.3f}\n",
      i + 1, nibble::io::json_text(job.text).c_str(), to_string(finish),
      static_cast<long long>(job.completion->n_prompt()), static_cast<long long>(job.n_tokens),
      job.n_tokens > 0 ? milliseconds(job.begin, job.first) : 0.0,
      milliseconds(job.begin, Clock::now()));
}

// The value that the part p of all do not exceed.
double quantile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::size_t>(p * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

void Batch::print_summary(const nibble::Model& model, Index n_threads) const {
  std::vector<double> first, rates;
  for (const std::size_t i : done_) {
    const Job& job = jobs_[i];
    if (job.n_tokens == 0) continue;
    first.push_back(milliseconds(job.begin, job.first));
    if (job.n_tokens == 1) continue;
    rates.push_back(1e3 * static_cast<double>(job.n_tokens - 1) /
                    milliseconds(job.first, job.last));
  }
  const auto stats = scheduler_.stats();
  const double seconds = 1e-3 * milliseconds(begin_, end_);
  const auto per_second = [&](std::int64_t n) { return static_cast<double>(n) / seconds; };
  const auto count = [](std::int64_t n) { return static_cast<long long>(n); };
  std::fprintf(stderr, "answers  %zu of %zu, %lld steps in %.3f s\n", done_.size(), jobs_.size(),
               count(stats.n_steps), seconds);
  std::fprintf(stderr, "prompts  %lld tokens, %.1f tokens/s", count(stats.n_prompt_tokens),
               per_second(stats.n_prompt_tokens));
  if (options_.prefix_cache_mib > 0) {
    std::fprintf(stderr, ", %lld more for %lld prompts from the prefix cache",
                 count(stats.n_cached_tokens), count(stats.n_cache_hits));
  }
  std::fputc('\n', stderr);
  std::fprintf(stderr, "decode   %lld tokens, %.1f tokens/s; of one answer %.1f tokens/s\n",
               count(stats.n_generated_tokens), per_second(stats.n_generated_tokens),
               quantile(rates, 0.5));
  if (options_.generate.speculation.max_drafts > 0) {
    std::fprintf(stderr, "guesses  %lld of %lld were right\n", count(stats.n_accepted),
                 count(stats.n_drafted));
  }
  std::fprintf(stderr, "first    token after %.1f ms, of 95 %% within %.1f ms\n",
               quantile(first, 0.5), quantile(first, 0.95));
  std::fprintf(stderr, "machine  SIMD target %s, %lld threads\n",
               nibble::simd::to_string(nibble::simd::active_target()), count(n_threads));
  std::fprintf(stderr, "memory   weights %s, scheduler %s",
               example::mebibytes(model.weight_bytes()).c_str(),
               example::mebibytes(scheduler_.bytes()).c_str());
  if (const auto peak = example::peak_ram()) {
    std::fprintf(stderr, ", peak RAM of the process %s", example::mebibytes(*peak).c_str());
  }
  std::fputc('\n', stderr);
}

// Returns the exit code.
Result<int> run(Options& o) {
  example::catch_signals();
  NIBBLE_TRY(prompts, read_prompts(o));
  if (o.target) NIBBLE_CHECK(nibble::simd::force_target(*o.target));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads, .pin = o.pin}));
  const auto on_load = [](std::size_t, std::size_t) { return !interrupted.load(); };
  const nibble::Progress progress(on_load);
  NIBBLE_TRY(model, nibble::load<nibble::graph::AllFormats>(
                        o.model, {.executor = pool.get(), .progress = &progress}));
  NIBBLE_CHECK(example::set_dry_breakers(o, model));
  Adapters adapters;
  NIBBLE_CHECK(adapters.read(o.model, model, prompts));
  NIBBLE_TRY(scheduler,
             nibble::Scheduler::create(
                 model, {.n_ctx = o.session.n_ctx,
                         .max_batch = o.n_parallel,
                         .max_step_tokens = std::max(o.session.max_step_tokens, o.n_parallel),
                         .prefix_cache_bytes = o.prefix_cache_mib << 20,
                         .max_drafts = o.generate.speculation.max_drafts,
                         .kv_type = o.session.kv_type,
                         .max_factor_rank = adapters.max_rank(),
                         .executor = pool.get()}));
  o.generate.cancel = &interrupted;
  if (!o.restore.empty()) NIBBLE_CHECK(scheduler.restore_prefixes(o.restore));
  Batch batch(scheduler, o, adapters, std::move(prompts));
  NIBBLE_CHECK(batch.run());
  if (!o.save.empty()) NIBBLE_CHECK(scheduler.save_prefixes(o.save));
  if (!o.quiet) batch.print_summary(model, pool->n_workers());
  if (interrupted) return example::kInterrupted;
  return batch.has_failed() ? example::kFailed : example::kOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers the prompts of a file with a model, many at a time.", "batch");
  Options options;
  add_options(app, options);
  return example::run(app, argc, argv, [&] { return run(options); });
}
