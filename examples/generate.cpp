// SPDX-License-Identifier: Apache-2.0
//
// generate: continues a prompt with a model of any kind that is read. The text goes to stdout as it
// is generated, speed and memory use to stderr.
#include <chrono>
#include <optional>
#include <utility>

#include "adapters.hpp"
#include "common.hpp"
#include "nibble/generate/layer_drafts.hpp"
#include "nibble/generate/model_drafts.hpp"
#include "nibble/model/weight_conversion.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"
#include "nibble/text/tokenizer.hpp"
#include "once/all_architectures.hpp"
#include "settings.hpp"

namespace {

using example::interrupted;
using nibble::Index;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options : example::Settings {
  std::string prompt;
  std::string prompt_file;
  std::vector<std::string> adapters;
  bool logprobs = false;
  bool ids = false;
  bool memory = false;
  Index n_layers = 0;
  double exit_confidence = 1;
  std::vector<Index> exit_after;
  std::string draft;  // a model
  Index draft_layers = 0;
};

void add_options(CLI::App& app, Options& o) {
  example::add_model_options(app, o);
  auto* const prompt = app.add_option("--prompt", o.prompt, "the text to continue");
  auto* const prompt_file = app.add_option("--prompt-file", o.prompt_file,
                                           "a file with that text, taken as it is; - is stdin")
                                ->check(example::is_not_empty)
                                ->excludes(prompt);
  app.add_option("--adapter", o.adapters, example::kAdapterHelp)->allow_extra_args(false);
  app.add_option("--max-tokens", o.generate.max_tokens, "the most tokens to generate")
      ->check(example::at_least_one())
      ->capture_default_str();
  example::add_sampling_options(app, o);
  app.add_option("--time-limit", o.generate.time_limit_ms,
                 "milliseconds for reading the prompt and generating; 0: none")
      ->check(example::any_count())
      ->capture_default_str();
  app.add_flag("--parse-special", o.generate.parse_special,
               "names of control tokens in the prompt mean those tokens");
  app.add_option_function<bool>(
      "--bos", [&o](bool yes) { o.generate.add_bos = yes; },
      "whether to begin with the begin token: true or false; default: as the model wants");
  app.add_flag("--logprobs", o.logprobs, "a line per token, with its log-probability");
  app.add_option("--top-logprobs", o.generate.sampling.top_logprobs,
                 "below each token's line, how many of the most likely tokens in its place")
      ->check(example::any_count());
  app.add_option("--layers", o.n_layers, "only the first so many layers; 0: all")
      ->check(example::any_count());
  auto* const exit = app.add_option(
      "--exit-confidence", o.exit_confidence,
      "generated tokens end early, where the most likely token is more probable than the second by "
      "more than this");
  app.add_option("--exit-after", o.exit_after,
                 "after how many layers that is looked at, e.g. 4,8; default: after half of them")
      ->delimiter(',')
      ->check(example::at_least_one())
      ->needs(exit);
  app.add_flag("--ids", o.ids, "a line per token, with its id; the prompt's ids on stderr");
  auto* const speculate =
      app.add_option("--speculate", o.generate.speculation.max_drafts,
                     "guess up to so many tokens a step, from what came before; the text is the "
                     "same. 0: none")
          ->check(CLI::Range(Index{0}, nibble::kMaxDrafts))
          ->capture_default_str();
  auto* const draft =
      app.add_option("--draft", o.draft, "guess with this small model of the same tokens")
          ->check(example::is_not_empty)
          ->needs(speculate);
  app.add_option("--draft-layers", o.draft_layers, "guess with the model's own first so many layers")
      ->check(example::at_least_one())
      ->needs(speculate)
      ->excludes(draft);
  app.add_flag(
      "--memory", o.memory,
      "only say how much memory the model takes, which its header tells; no prompt needed");
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C).");
  app.callback([&o, prompt, prompt_file] {
    if (prompt->empty() && prompt_file->empty() && !o.memory) {
      throw CLI::RequiredError("--prompt or --prompt-file");
    }
    o.session.max_outputs = o.generate.speculation.max_drafts + 1;
    example::finish_settings(o);
  });
}

// Quotes a text and escapes special characters, e.g. a newline as \n.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\';
    if (byte < 0x20 || byte == 0x7f) {
      char escape[5];
      std::snprintf(escape, sizeof(escape), "\\x%02x", byte);
      out += c == '\n' ? "\\n" : escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Whether each token has a line.
bool shows_lines(const Options& o) {
  return o.ids || o.logprobs || o.generate.sampling.top_logprobs > 0;
}

void print(const nibble::Token& token, const Options& o) {
  if (!shows_lines(o)) {
    std::fwrite(token.text.data(), 1, token.text.size(), stdout);
  } else {
    if (o.ids) std::printf("%7d ", static_cast<int>(token.id));
    if (o.logprobs) std::printf("%9.4f ", static_cast<double>(token.logprob));
    std::printf("%s\n", quoted(token.text).c_str());
    for (const nibble::TokenLogprob& top : token.top_logprobs) {
      std::printf("  %7d %9.4f\n", static_cast<int>(top.id), static_cast<double>(top.logprob));
    }
  }
  std::fflush(stdout);
}

struct Timing {
  Index n_prompt = 0;
  double prefill_seconds = 0;
  Index n_tokens = 0;
  double decode_seconds = 0;
  nibble::SpeculationStats guesses;
};

void print_summary(const Timing& t, nibble::Finish finish, const nibble::Model& model,
                   nibble::Session& session, Index n_threads) {
  const auto rate = [](Index n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
  };
  const auto count = [](Index n) { return static_cast<long long>(n); };
  // The first token comes from the logits of the prompt.
  const Index n_computed = std::max<Index>(t.n_tokens - 1, 0);
  std::fprintf(stderr, "prefill  %lld tokens, %.1f tokens/s\n", count(t.n_prompt),
               rate(t.n_prompt, t.prefill_seconds));
  std::fprintf(stderr, "decode   %lld tokens, %.1f tokens/s; finish: %s\n", count(t.n_tokens),
               rate(n_computed, t.decode_seconds), to_string(finish));
  if (const auto exits = session.engine().early_exit_counts(); exits.n_rows > 0) {
    std::fprintf(stderr, "depth    %.2f of %lld layers for a generated token, on average\n",
                 exits.layers_per_row(), count(model.config().n_layers));
  }
  if (t.guesses.n_steps > 0) {
    std::fprintf(stderr, "guesses  %lld, of which %lld right; %lld steps\n",
                 static_cast<long long>(t.guesses.n_drafted),
                 static_cast<long long>(t.guesses.n_accepted),
                 static_cast<long long>(t.guesses.n_steps));
  }
  std::fprintf(stderr, "machine  SIMD target %s, %lld threads\n",
               nibble::simd::to_string(nibble::simd::active_target()), count(n_threads));
  std::fprintf(stderr, "memory   weights %s, session %s",
               example::mebibytes(model.weight_bytes()).c_str(),
               example::mebibytes(session.bytes()).c_str());
  if (const auto peak = example::peak_ram()) {
    std::fprintf(stderr, ", peak RAM of the process %s", example::mebibytes(*peak).c_str());
  }
  std::fputc('\n', stderr);
}

nibble::Result<int> print_memory(const Options& o, nibble::Executor& executor) {
  NIBBLE_TRY(needed, (nibble::memory_needed<nibble::graph::AllFormats, nibble::AllArchitectures>(
                         o.model, {.executor = &executor})));
  std::printf("weights   %s of memory\n", example::mebibytes(needed.weights).c_str());
  std::printf("in place  %s of the file, mapped\n", example::mebibytes(needed.in_place).c_str());
  std::printf("loading   %s of memory more, until it is loaded\n",
              example::mebibytes(needed.loading).c_str());
  return example::kOk;
}

nibble::Result<void> set_depth(const Options& o, nibble::Engine& engine) {
  NIBBLE_CHECK(engine.set_depth({.n_layers = o.n_layers}));
  if (o.exit_confidence >= 1) return nibble::ok();
  const std::vector<Index> half = {engine.model().config().n_layers / 2};
  return engine.set_early_exit(
      {.after_layers = o.exit_after.empty() ? half : o.exit_after, .threshold = o.exit_confidence});
}

nibble::Result<nibble::ModelDrafts> make_drafts(const Options& o, const nibble::Model& model,
                                                nibble::Executor& executor) {
  NIBBLE_TRY(draft, (nibble::load<nibble::graph::AllFormats, nibble::AllArchitectures>(
                        o.draft, {.executor = &executor})));
  NIBBLE_TRY(session,
             nibble::Session::create(draft, {.n_ctx = o.session.n_ctx, .executor = &executor}));
  return nibble::ModelDrafts::create(std::move(session), model);
}

// Returns the exit code.
nibble::Result<int> run(Options& o) {
  example::catch_signals();
  NIBBLE_TRY(prompt, o.prompt_file.empty() ? nibble::Result<std::string>(o.prompt)
                                           : example::read_text(o.prompt_file));
  if (o.target) NIBBLE_CHECK(nibble::simd::force_target(*o.target));
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads, .pin = o.pin}));
  if (o.memory) return print_memory(o, *pool);
  o.session.executor = pool.get();
  o.generate.cancel = &interrupted;

  example::StatusLine status(!o.quiet, example::StatusLine::kInLogs);
  const auto on_load = [&](std::size_t done, std::size_t total) {
    status.show("loading: " + example::mebibytes(done) + " of " + example::mebibytes(total));
    return !interrupted.load();
  };
  const nibble::Progress progress(on_load);
  const auto model = nibble::load<nibble::graph::AllFormats, nibble::AllArchitectures>(
      o.model, {.executor = pool.get(), .progress = &progress});
  status.show({});
  if (!model) return model.error();
  for (const nibble::WeightConversion& conversion : model->conversions()) {
    if (!o.quiet) std::fprintf(stderr, "%s\n", to_string(conversion).c_str());
  }
  if (model->tokenizer() == nullptr) {
    return *model->tokenizer_error();
  }
  NIBBLE_CHECK(example::set_dry_breakers(o, *model));
  NIBBLE_TRY(adapters, example::open_adapters(o.model, *model, o.adapters));
  o.session.max_factor_rank = adapters.max_rank();
  NIBBLE_TRY(session, nibble::Session::create(*model, o.session));
  NIBBLE_CHECK(set_depth(o, session.engine()));
  NIBBLE_CHECK(session.set_adapter({adapters}));
  const auto on_prompt = [&](std::size_t done, std::size_t total) {
    status.show("prompt: " + std::to_string(done) + " of " + std::to_string(total) + " tokens");
    return true;
  };
  const nibble::Progress prompt_progress(on_prompt);
  o.generate.progress = &prompt_progress;
  std::optional<nibble::LayerDrafts> layer_drafts;
  if (o.draft_layers > 0) {
    NIBBLE_TRY(made, nibble::LayerDrafts::create(session, o.draft_layers));
    o.generate.speculation.source = &layer_drafts.emplace(std::move(made));
  }
  std::optional<nibble::ModelDrafts> drafts;
  if (!o.draft.empty()) {
    NIBBLE_TRY(made, make_drafts(o, *model, *pool));
    o.generate.speculation.source = &drafts.emplace(std::move(made));
  }
  NIBBLE_TRY(generator, nibble::Generator::create(session, o.generate));

  Timing timing;
  auto start = Clock::now();
  auto read = generator.prompt(prompt);
  status.show({});
  if (!read) {
    const bool is_limit = read.error().code == nibble::Errc::limit;
    return nibble::Error{read.error().code,
                         read.error().message + (is_limit ? " (see --ctx and --kv)" : "")};
  }
  timing.n_prompt = session.position();
  timing.prefill_seconds = seconds_since(start);
  if (o.ids && !o.quiet) {
    for (const std::int32_t id : session.tokens()) {
      std::fprintf(stderr, "%d ", static_cast<int>(id));
    }
    std::fputc('\n', stderr);
  }
  start = Clock::now();
  for (;;) {
    NIBBLE_TRY(token, generator.next());
    if (!token || std::ferror(stdout) != 0) break;
    print(*token, o);
  }
  timing.decode_seconds = seconds_since(start);
  timing.n_tokens = generator.n_tokens();
  timing.guesses = generator.speculation_stats();
  if (!shows_lines(o)) std::puts("");
  if (!example::is_stdout_written()) {
    return nibble::Error{nibble::Errc::io, "cannot write to stdout"};
  }
  const auto finish = interrupted ? nibble::Finish::cancelled : generator.finish();
  if (!o.quiet) print_summary(timing, finish, *model, session, pool->n_workers());
  return interrupted ? example::kInterrupted : example::kOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Continues a text with a model: a GGUF file, or a folder as hubs have them.",
               "generate");
  Options options;
  add_options(app, options);
  return example::run(app, argc, argv, [&] { return run(options); });
}
