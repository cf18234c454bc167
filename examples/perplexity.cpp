// SPDX-License-Identifier: Apache-2.0
//
// perplexity: how well a model predicts a text, as llama.cpp's llama-perplexity measures it.
#include <chrono>
#include <cmath>
#include <vector>

#include "common.hpp"
#include "nibble/generate/perplexity.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"
#include "nibble/text/tokenizer.hpp"

namespace {

using nibble::Index;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string model, text, kv = "f16";
  Index context = 512, n_threads = 0, n_chunks = 0;
  nibble::SessionOptions session{.max_step_tokens = 256};
};

nibble::Result<void> measure(const Options& o) {
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(text, example::read_text(o.text));
  NIBBLE_TRY(model, nibble::load<nibble::graph::AllFormats>(o.model, {.executor = pool.get()}));
  if (model.tokenizer() == nullptr) return *model.tokenizer_error();
  nibble::SessionOptions options = o.session;
  options.n_ctx = o.context;
  options.max_step_tokens = (std::min)(options.max_step_tokens, o.context);
  options.max_outputs = options.max_step_tokens;
  options.executor = pool.get();
  for (const auto type : nibble::ops::kKvTypes) {
    if (o.kv == to_string(type)) options.kv_type = type;
  }
  NIBBLE_TRY(session, nibble::Session::create(model, options));
  NIBBLE_TRY(tokens, model.tokenizer()->encode(text, {.add_eos = false}));
  const auto& settings = model.tokenizer()->vocabulary().settings();
  const std::int32_t bos = settings.add_bos ? settings.bos : nibble::text::kNoToken;
  if (o.n_chunks > 0 &&
      tokens.size() / static_cast<std::size_t>(o.context) > static_cast<std::size_t>(o.n_chunks)) {
    tokens.resize(static_cast<std::size_t>(o.n_chunks * o.context));
  }

  example::catch_signals();
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  nibble::Result<nibble::Perplexity> result = nibble::Error{};
  {
    example::StatusLine status(true, example::StatusLine::kInLogs);
    const auto show = [&](std::size_t done, std::size_t total) {
      char line[96];
      std::snprintf(line, sizeof(line), "chunk %zu of %zu, %.0f seconds left", done, total,
                    seconds() / static_cast<double>(done) * static_cast<double>(total - done));
      status.show(line);
      return !example::interrupted;
    };
    const nibble::Progress progress = show;
    result = nibble::perplexity(session, tokens, o.context, bos, &progress);
  }
  if (!result) return result.error();
  std::printf("perplexity %.4f +- %.4f: %lld tokens scored in %lld chunks of %lld\n", result->value,
              result->standard_error, static_cast<long long>(result->n_scored),
              static_cast<long long>(result->n_chunks), static_cast<long long>(o.context));
  const auto n_computed = static_cast<double>(result->n_chunks * o.context);
  std::fprintf(stderr, "%.1f seconds, %.1f tokens per second, %s\n", seconds(),
               n_computed / seconds(), nibble::simd::to_string(nibble::simd::active_target()));
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Measures the perplexity of a text: chunks of --ctx tokens, of each of which the second half "
      "is scored, as in llama.cpp's llama-perplexity.",
      "perplexity");
  Options o;
  app.add_option("MODEL", o.model, "a GGUF file or a folder as hubs have it")->required();
  app.add_option("TEXT", o.text, "the file with the text; - is stdin")
      ->check(example::is_not_empty)
      ->required();
  app.add_option("--ctx", o.context, "tokens of a chunk")
      ->check(CLI::Range(Index{4}, Index{1} << 30))
      ->capture_default_str();
  app.add_option("--chunks", o.n_chunks, "the most chunks to measure; 0: all")
      ->check(CLI::Range(Index{0}, Index{1} << 30))
      ->capture_default_str();
  app.add_option("--kv", o.kv, "type of the cache: f32, f16, bf16, int8 or int4")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8", "int4"}))
      ->capture_default_str();
  app.add_option("--batch", o.session.max_step_tokens, "tokens computed together")
      ->check(CLI::Range(Index{1}, Index{1} << 16))
      ->capture_default_str();
  example::add_threads(app, o.n_threads);
  app.footer("Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.");
  return example::run(app, argc, argv, [&] { return measure(o); });
}
