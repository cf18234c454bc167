// SPDX-License-Identifier: Apache-2.0
//
// A grammar: the texts that a model may write. Made from GBNF (gbnf.hpp), from a JSON Schema
// (json_schema.hpp) or from rules of one's own; constraint.hpp applies it to a vocabulary.
#pragma once

#include <new>
#include <utility>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/grammar/automaton.hpp"
#include "nibble/grammar/rules.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace grammar {

// Immutable: copies share it, on any threads.
class Grammar {
 public:
  // `all_match`: a rule that is needed and matches no text is an error; else only if nothing is
  // left without it. Errors: those of Automaton::compile.
  static Result<Grammar> create(const Rules& rules, RuleId root, bool all_match = true) {
    NIBBLE_TRY(automaton, Automaton::compile(rules, root, all_match));
    Shared<const Automaton> shared(
        Owned<const Automaton>(new (std::nothrow) const Automaton(std::move(automaton))));
    if (!shared) return Error{Errc::out_of_memory, "grammar"};
    return Grammar(std::move(shared));
  }

  const Automaton& automaton() const noexcept { return *automaton_; }

 private:
  explicit Grammar(Shared<const Automaton> automaton) noexcept : automaton_(std::move(automaton)) {}

  Shared<const Automaton> automaton_;
};

}}}  // namespace nibble::NIBBLE_ABI::grammar
