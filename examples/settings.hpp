// SPDX-License-Identifier: Apache-2.0
//
// The options of programs that generate text: of the model and the machine, of how tokens are
// chosen.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.hpp"
#include "nibble/generate/sampler.hpp"
#include "nibble/nibble.hpp"
#include "nibble/simd/dispatch.hpp"

namespace example {

struct Settings {
  std::string model;
  nibble::Index n_threads = 0;
  bool pin = false;
  std::optional<nibble::simd::Target> target;
  std::string kv = to_string(nibble::ops::KvType::f16);
  nibble::SessionOptions session;
  nibble::GenerateOptions generate;
  bool quiet = false;
};

inline CLI::Range at_least_one() { return CLI::Range(nibble::Index{1}, nibble::Index{1} << 30); }
inline CLI::Range any_count() { return CLI::Range(nibble::Index{0}, nibble::Index{1} << 30); }

inline void add_model_options(CLI::App& app, Settings& o) {
  app.add_option("MODEL.gguf", o.model,
                 "the model; of a split one, any part; or a folder with config.json")
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
  app.add_option("--kv", o.kv, "type of the cache: f32, f16, bf16 or int8")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8"}))
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
  app.add_option("--repetition-penalty", sampling.repetition_penalty, "1: none")
      ->check(is_number)  // above 0, as Sampler::create() says
      ->capture_default_str();
  app.add_option("--repetition-window", sampling.repetition_window, "tokens that it looks back")
      ->check(any_count())
      ->capture_default_str();
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

}  // namespace example
