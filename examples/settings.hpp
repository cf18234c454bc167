// SPDX-License-Identifier: Apache-2.0
//
// The options of programs that generate text: of the model and the machine, of how tokens are
// chosen.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.hpp"
#include "nibble/generate/dry_breakers.hpp"
#include "nibble/generate/sampler.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"
#include "nibble/text/tokenizer.hpp"

namespace example {

struct Settings {
  std::string model;
  nibble::Index n_threads = 0;
  bool pin = false;
  std::optional<nibble::simd::Target> target;
  std::string kv = to_string(nibble::ops::KvType::f16);
  nibble::SessionOptions session;
  nibble::GenerateOptions generate;
  std::vector<std::string> dry_breakers = {"\n", ":", "\"", "*"};
  bool quiet = false;
};

inline CLI::Range at_least_one() { return CLI::Range(nibble::Index{1}, nibble::Index{1} << 30); }
inline CLI::Range any_count() { return CLI::Range(nibble::Index{0}, nibble::Index{1} << 30); }

inline void add_model_options(CLI::App& app, Settings& o) {
  app.add_option(
         "MODEL.gguf", o.model,
         "the model; of a split one, any part; or a folder with config.json, an ONNX file in "
         "such a folder, a checkpoint of llama2.c")
      ->required();
  app.add_option(
         "--ctx", o.session.n_ctx,
         "positions of the cache; 0: as many as the model was trained with, but at most 4096")
      ->check(any_count());
  add_threads(app, o.n_threads);
  app.add_flag("--pin", o.pin, "pin threads to CPUs");
  app.add_option("--batch", o.session.max_step_tokens, "tokens of the prompt computed together")
      ->check(at_least_one())
      ->capture_default_str();
  app.add_option("--kv", o.kv, "type of the cache: f32, f16, bf16, int8 or int4")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8", "int4"}))
      ->capture_default_str();
  app.add_option_function<std::string>(
      "--target",
      [&o](const std::string& name) {
        auto target = nibble::simd::target_from_name(name);
        if (!target) throw CLI::ValidationError("--target", target.error().message);
        o.target = *target;
      },
      "the SIMD target, e.g. AVX2; default: the best there is");
  app.add_flag("--quiet", o.quiet, "nothing on stderr but errors");
}

// From "ID=NUMBER".
inline nibble::LogitBias bias_of(const std::string& text) {
  nibble::LogitBias result;
  const std::size_t at = text.find('=');
  if (at == text.npos || !CLI::detail::lexical_cast(text.substr(0, at), result.token) ||
      !CLI::detail::lexical_cast(text.substr(at + 1), result.bias)) {
    throw CLI::ValidationError("--logit-bias", text + " is not of the form ID=NUMBER");
  }
  return result;
}

inline nibble::SamplingStep step_of(const std::string& name) {
  std::string names;
  for (const nibble::SamplingStep step : nibble::kSamplingSteps) {
    if (name == to_string(step)) return step;
    names += std::string(names.empty() ? "" : ", ") + to_string(step);
  }
  throw CLI::ValidationError("--samplers", "there is no step '" + name + "', only " + names);
}

// From 0 on; what is more is said by Sampler::validate().
inline void add_positive(CLI::App& app, const char* name, float& value, const char* what) {
  app.add_option(name, value, what)
      ->check(is_number)
      ->check(is_not_negative)
      ->capture_default_str();
}

inline void add_repetition_options(CLI::App& app, Settings& o) {
  auto& sampling = o.generate.sampling;
  app.add_option("--repetition-penalty", sampling.repetition_penalty, "1: none")
      ->check(is_number)  // above 0, as Sampler::create() says
      ->capture_default_str();
  app.add_option("--frequency-penalty", sampling.frequency_penalty,
                 "taken from a logit for each time that the token has come")
      ->check(is_number)
      ->capture_default_str();
  app.add_option("--presence-penalty", sampling.presence_penalty, "taken once if it has come")
      ->check(is_number)
      ->capture_default_str();
  app.add_option("--repetition-window", sampling.repetition_window,
                 "tokens that these penalties look back")
      ->check(any_count())
      ->capture_default_str();
  add_positive(app, "--dry-multiplier", sampling.dry_multiplier,
               "strength of DRY, which lowers what continues a repetition; 0: off");
  add_positive(app, "--dry-base", sampling.dry_base,
               "DRY grows by this factor with each token of a repetition");
  add_number(app, "--dry-allowed-length", sampling.dry_allowed_length,
             "the shortest repetition that DRY sees", 1, nibble::kMaxDryWindow);
  add_number(app, "--dry-window", sampling.dry_window, "tokens that DRY looks back", 0,
             nibble::kMaxDryWindow);
  app.add_option("--dry-breaker", o.dry_breakers,
                 "no repetition contains it; may be given several times, instead of \\n : \" *")
      ->check(is_not_empty)
      ->allow_extra_args(false);
}

// What people seldom change.
inline void add_rare_sampling_options(CLI::App& app, Settings& o) {
  auto& sampling = o.generate.sampling;
  add_number(app, "--typical", sampling.typical_p,
             "only the most typical tokens that have this probability together; 1: all", 0, 1);
  add_number(app, "--xtc-probability", sampling.xtc_probability,
             "how often all likely tokens but the last are dropped", 0, 1);
  add_number(app, "--xtc-threshold", sampling.xtc_threshold,
             "the probability from which a token is likely", 0, 1);
  add_positive(app, "--temperature-range", sampling.temperature_range,
               "how far the temperature follows the entropy, down and up; 0: not");
  add_positive(app, "--temperature-exponent", sampling.temperature_exponent,
               "the power of the entropy's share that it follows");
  add_positive(app, "--mirostat-tau", sampling.mirostat_tau,
               "mirostat 2: the surprise in bits that it keeps to; 0: off");
  add_number(app, "--mirostat-eta", sampling.mirostat_eta, "mirostat 2: how fast it learns", 0, 1);
  app.add_option_function<std::vector<std::string>>(
         "--samplers",
         [&sampling](const std::vector<std::string>& names) {
           for (const std::string& name : names) sampling.steps.push_back(step_of(name));
         },
         "the order of the steps, with commas; what is not named is not done. Default: penalties, "
         "dry, top_k, typical, top_p, min_p, xtc, temperature; with mirostat: penalties, dry, "
         "temperature, mirostat")
      ->delimiter(',')
      ->allow_extra_args(false);
}

inline void add_sampling_options(CLI::App& app, Settings& o) {
  auto& sampling = o.generate.sampling;
  add_seed(app, sampling.seed, "of the random choices");
  app.add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->check(is_number)
      ->check(is_not_negative)
      ->capture_default_str();
  app.add_option("--top-k", sampling.top_k, "only the k most likely tokens; 0: all")
      ->check(any_count())
      ->capture_default_str();
  app.add_option("--top-p", sampling.top_p, "only the fewest that have this probability together")
      ->check(is_number)
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--min-p", sampling.min_p, "only those this likely relative to the likeliest")
      ->check(is_number)
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  add_repetition_options(app, o);
  add_rare_sampling_options(app, o);
  app.add_option("--stop", o.generate.stop, "end before this text; may be given several times")
      ->check(is_not_empty)
      ->allow_extra_args(false);
  app.add_option("--stop-token", o.generate.stop_tokens,
                 "end at the token with this id; may be given several times")
      ->allow_extra_args(false);
  app.add_option_function<std::vector<std::string>>(
         "--logit-bias",
         [&sampling](const std::vector<std::string>& all) {
           for (const std::string& text : all) sampling.logit_bias.push_back(bias_of(text));
         },
         "ID=NUMBER, added to the token's logit; -inf bans it; may be given several times")
      ->allow_extra_args(false);
}

// For the callback of a program: checks and takes over what all options together say.
inline void finish_settings(Settings& o) {
  // Which tokens there are is known only when the model is.
  auto rest = o.generate.sampling;
  rest.logit_bias.clear();
  const auto checked = nibble::Sampler::validate(rest, 1);
  if (!checked) throw CLI::ValidationError(checked.error().message);
  for (const nibble::ops::KvType type : nibble::ops::kKvTypes) {
    if (o.kv == to_string(type)) o.session.kv_type = type;
  }
}

// What only the model can tell.
inline nibble::Result<void> set_dry_breakers(Settings& o, const nibble::Model& model) {
  if (o.generate.sampling.dry_multiplier == 0 || model.tokenizer() == nullptr) return nibble::ok();
  NIBBLE_TRY(tokens, nibble::dry_breakers(model.tokenizer()->vocabulary(), o.dry_breakers));
  o.generate.sampling.dry_breakers = std::move(tokens);
  return nibble::ok();
}

}  // namespace example
