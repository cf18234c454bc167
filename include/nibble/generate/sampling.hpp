// SPDX-License-Identifier: Apache-2.0
//
// Options for choosing a token; sampler.hpp applies them to logits.
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct LogitBias {
  std::int32_t token = 0;
  float bias = 0;  // added to the token's logit; -infinity: the token never comes
};

struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;  // natural logarithm of the model's own probability, before any option
  // The same among the tokens that a grammar allowed; 0 where it allowed one only, or there is
  // none.
  float allowed_logprob = 0;
};

// A step of the chain that leads from logits to a token. Each gets the tokens and the probabilities
// that the step before it left. The options of the same names say what it does.
enum class SamplingStep : unsigned char {
  penalties,  // repetition, frequency and presence
  dry,
  top_k,
  typical,
  top_p,
  min_p,
  xtc,
  temperature,
  mirostat,
};

// In the order in which they are done if the caller gives none. With mirostat, which chooses the
// number of candidates itself, top_k, typical, top_p, min_p and xtc are then left out.
NIBBLE_HIDDEN inline constexpr SamplingStep kSamplingSteps[] = {
    SamplingStep::penalties, SamplingStep::dry,         SamplingStep::top_k,
    SamplingStep::typical,   SamplingStep::top_p,       SamplingStep::min_p,
    SamplingStep::xtc,       SamplingStep::temperature, SamplingStep::mirostat};

constexpr const char* to_string(SamplingStep step) noexcept {
  switch (step) {
    case SamplingStep::penalties: return "penalties";
    case SamplingStep::dry: return "dry";
    case SamplingStep::top_k: return "top_k";
    case SamplingStep::typical: return "typical";
    case SamplingStep::top_p: return "top_p";
    case SamplingStep::min_p: return "min_p";
    case SamplingStep::xtc: return "xtc";
    case SamplingStep::temperature: return "temperature";
    case SamplingStep::mirostat: return "mirostat";
  }
  return "unknown";
}

struct SamplingOptions {
  // Logits are divided by it. 0: only the most likely token of those that are left.
  float temperature = 0.0f;
  Index top_k = 40;     // only the k most likely; 0: all
  float top_p = 0.95f;  // only the fewest that have this probability together; 1: all
  float min_p = 0.05f;  // only those at least this likely relative to the most likely; 0: all
  float repetition_penalty = 1.0f;  // logits of recent tokens: divided if positive, else multiplied
  Index repetition_window = 64;     // how many recent tokens the three penalties look at
  std::uint64_t seed = 0;
  std::vector<LogitBias> logit_bias = {};  // before all steps; a token named twice gets both

  float frequency_penalty = 0.0f;  // taken from a token's logit for each time it is in the window
  float presence_penalty = 0.0f;   // taken once, if it is there

  // "Don't repeat yourself" (p-e-w, text-generation-webui pull request 5677): a token that would
  // continue a repetition of the last n tokens loses multiplier * base^(n - allowed_length); n is
  // the longest such repetition in the window, and at least allowed_length.
  float dry_multiplier = 0.0f;  // 0: off
  float dry_base = 1.75f;
  Index dry_allowed_length = 2;
  Index dry_window = 4096;                      // how many recent tokens, at most kMaxDryWindow
  std::vector<std::int32_t> dry_breakers = {};  // no repetition contains these; see dry_breakers()

  // Locally typical sampling (Meister et al. 2023): only the fewest that have this probability
  // together, those first whose surprise -log p is nearest to its expectation. 1: all.
  float typical_p = 1.0f;

  // "Exclude top choices" (p-e-w, text-generation-webui pull request 6335): with this probability,
  // all tokens go that are at least as likely as the threshold, except the least likely of them.
  float xtc_probability = 0.0f;
  float xtc_threshold = 0.1f;  // above 0.5: off

  // Dynamic temperature: temperature - range where one token has all the probability (but at least
  // 0) to temperature + range where all have the same; between them, (entropy / log n)^exponent of
  // the way, for n tokens. 0: off.
  float temperature_range = 0.0f;
  float temperature_exponent = 1.0f;

  // Mirostat 2 (Basu et al. 2021, with the surprise of llama.cpp and text-generation-webui): keeps
  // tokens of a surprise -log2 p up to a limit, which begins at 2 tau and then follows what was
  // drawn: limit -= eta * (surprise among the tokens kept - tau).
  float mirostat_tau = 0.0f;  // in bits; 0: off
  float mirostat_eta = 0.1f;

  Index top_logprobs = 0;  // of how many of the most likely tokens the log-probability is said too

  // The order of the steps, each at most once. What is not named is not done. Empty: the default,
  // kSamplingSteps.
  std::vector<SamplingStep> steps = {};
};

inline constexpr Index kMaxDryWindow = Index{1} << 20;

}}  // namespace nibble::NIBBLE_ABI
