// SPDX-License-Identifier: Apache-2.0
//
// Keeps one text to a grammar while it is generated: what is not allowed is not chosen, and what is
// certain needs no model.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

class GrammarGuide {
 public:
  // Allocates what allow() and accept() take. Errors: out_of_memory.
  static Result<GrammarGuide> create(const grammar::Constraint& constraint, Index vocab_size) {
    NIBBLE_TRY(matcher, grammar::Matcher::create(constraint));
    return GrammarGuide(std::move(matcher), constraint.trie(), vocab_size);
  }
  // One that goes on from here.
  Result<GrammarGuide> fork() const {
    NIBBLE_TRY(matcher, matcher_.fork());
    return GrammarGuide(std::move(matcher), *trie_, static_cast<Index>(masked_.size()));
  }

  // The logits (vocab_size), with -infinity for what the grammar does not allow. Valid until the
  // next call. Errors: those of Matcher::tokens.
  Result<std::span<const float>> allow(std::span<const float> logits) {
    NIBBLE_CHECK(matcher_.tokens(allowed_));
    std::fill(masked_.begin(), masked_.end(), Scalar<float>{-kInfinity});
    allowed_.for_each([&](std::int32_t id) {
      const auto i = static_cast<std::size_t>(id);
      if (i < logits.size()) masked_[i].value = logits[i];
    });
    return std::span<const float>(values(masked_), masked_.size());
  }

  // Goes on by a token. Errors: those of Matcher::accept; invalid_argument (it is not allowed).
  Result<void> accept(std::int32_t id) {
    NIBBLE_TRY(is_allowed, matcher_.accept(id));
    if (is_allowed) return ok();
    return Error{Errc::invalid_argument,
                 "no token is left that the grammar allows (see logit_bias)"};
  }

  // How many of these tokens, of which each follows the one before, may come by a choice. Not one
  // after which something is certain: it is computed together with that (see forced()), not as a
  // token alone.
  Index n_allowed(std::span<const std::int32_t> guesses) {
    struct WayBack {
      ~WayBack() { (void)matcher.rollback(n); }
      grammar::Matcher& matcher;
      std::size_t n = 0;
    } way_back{matcher_};
    Index n_alone = 0;
    for (const std::int32_t id : guesses) {
      const auto is_allowed = matcher_.accept(id);
      if (!is_allowed || !*is_allowed) break;
      ++way_back.n;
      if (!matcher_.forced_text(text_, 1) || !text_.empty()) break;
      ++n_alone;
    }
    return n_alone;
  }

  // Goes on by the next token if it is certain without a model, and returns it; else kNoToken. A
  // certain text becomes the tokens that the tokenizer makes of it. Allocates where such a text
  // begins.
  Result<std::int32_t> forced(const text::Tokenizer& tokenizer) {
    if (next_ == certain_.size()) NIBBLE_CHECK(find_certain(tokenizer));
    if (next_ == certain_.size()) return text::kNoToken;
    NIBBLE_CHECK(accept(certain_[next_]));
    return certain_[next_++];
  }

  // Whether nothing but an end token is allowed.
  bool is_finished() const noexcept { return matcher_.is_finished(); }

 private:
  GrammarGuide(grammar::Matcher matcher, const grammar::TokenTrie& trie, Index vocab_size)
      : matcher_(std::move(matcher)),
        trie_(&trie),
        allowed_(trie.n_tokens()),
        masked_(static_cast<std::size_t>(vocab_size)) {}

  Result<void> find_certain(const text::Tokenizer& tokenizer) {
    certain_.clear();
    next_ = 0;
    NIBBLE_CHECK(matcher_.forced_text(text_));
    if (text_.empty()) return ok();
    NIBBLE_TRY(n_settled, matcher_.settled(text_));
    if (n_settled == 0) return ok();
    text::EncodeOptions encode;
    encode.add_bos = encode.add_eos = false;
    encode.is_continuation = true;
    NIBBLE_CHECK(tokenizer.encode(text_, encode, certain_));
    // Only tokens that spell this text, and nothing else (a tokenizer may normalize).
    std::size_t n = 0, at = 0;
    for (; n < certain_.size(); ++n) {
      const std::string_view token = trie_->text(certain_[n]);
      if (token.empty() || at + token.size() > n_settled ||
          std::string_view(text_).substr(at, token.size()) != token) {
        break;
      }
      at += token.size();
    }
    certain_.resize(n);
    return ok();
  }

  grammar::Matcher matcher_;
  const grammar::TokenTrie* trie_;
  grammar::TokenSet allowed_;
  std::vector<Scalar<float>> masked_;  // (vocab_size)
  std::string text_;
  std::vector<std::int32_t> certain_;
  std::size_t next_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
