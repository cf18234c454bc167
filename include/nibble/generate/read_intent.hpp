// SPDX-License-Identifier: Apache-2.0
//
// What a model takes a text for: one of some intents, with the values of its slots, and how sure it
// is of each.
#pragma once

#include <string>
#include <string_view>

#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/calibration.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/scored_text.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/intents.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Corrections of confidences. The default changes nothing.
struct IntentCalibration {
  Calibration intent, slot;
};

// The values of an answer that was bound by the grammar of these intents. The confidence of a part
// is the probability that the model gives it, given what comes before it in the answer: the product
// over the tokens that have a byte of it (IntentValue), each among those that the grammar allowed
// there; what the grammar left no choice about has 1. Errors: those of Intents::parse.
inline Result<grammar::IntentValue> intent_of(const ScoredText& answer,
                                              const grammar::Intents& intents,
                                              const IntentCalibration& calibration = {}) {
  NIBBLE_TRY(value, intents.parse(answer.text()));
  const auto confidence = [&](const auto& part, const Calibration& correct) {
    return correct(libm::exp(answer.logprob(part.begin, part.end)));
  };
  value.confidence = confidence(value, calibration.intent);
  for (grammar::SlotValue& slot : value.slot_values)
    slot.confidence = confidence(slot, calibration.slot);
  return value;
}

// Appends a prompt to the session and reads the model's answer as an intent. `constraint`: of the
// intents' grammar and the vocabulary of the model's tokenizer. Errors: those of generate() and
// intent_of(); limit (the answer has no end within max_tokens, the context or the time limit),
// cancelled.
inline Result<grammar::IntentValue> read_intent(Session& session, std::string_view prompt,
                                                const grammar::Intents& intents,
                                                const grammar::Constraint& constraint,
                                                const IntentCalibration& calibration = {},
                                                GenerateOptions options = {}) {
  options.grammar = &constraint;
  return catch_out_of_memory([&]() -> Result<grammar::IntentValue> {
    ScoredText answer;
    NIBBLE_TRY(done, generate(session, prompt, options, [&](const Token& token) {
                 answer.add(token);
                 return true;
               }));
    if (done.finish == Finish::cancelled) return Error{Errc::cancelled, "intent: cancelled"};
    if (done.finish != Finish::grammar_end && done.finish != Finish::end_of_text) {
      return Error{Errc::limit,
                   std::string("intent: the answer has no end: ") + to_string(done.finish)};
    }
    return intent_of(answer, intents, calibration);
  });
}

}}  // namespace nibble::NIBBLE_ABI
