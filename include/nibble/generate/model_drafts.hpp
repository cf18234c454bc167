// SPDX-License-Identifier: Apache-2.0
//
// Guesses the next tokens with a small model of the same vocabulary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/generate/draft_source.hpp"
#include "nibble/generate/likely_draft.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
#include "nibble/text/tokenizer.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// A session of the small model follows the text; its most likely tokens are the guesses (Y.
// Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023), as long as
// it is fairly sure. It pays where the small model is many times faster and often right. Texts that
// are longer than its context get no guesses, nor do rows of numbers; a small model with recurrent
// state computes too much anew, since it cannot go back.
class ModelDrafts final : public DraftSource {
 public:
  // `session`: of the small model, for nothing else. `model`: the one whose tokens are guessed.
  // Error: invalid_argument (their vocabularies differ, which the message says where).
  static Result<ModelDrafts> create(Session session, const Model& model) {
    NIBBLE_CHECK(compare(session.model(), model));
    return ModelDrafts(std::move(session));
  }

  void observe(std::span<const std::int32_t>, Index first_new) noexcept override {
    n_same_ = (std::min)(n_same_, first_new);
  }

  Index draft(std::span<const std::int32_t> tokens, std::span<Draft> drafts) noexcept override {
    if (!follow(tokens)) return 0;
    Index n = 0;
    for (Draft& draft : drafts) {
      const auto logits = session_.logits();
      if (!logits) break;
      const auto likely = detail::likely_draft((*logits)[0]);
      if (!likely) break;
      draft = *likely;
      ++n;
      if (!session_.sequence().push(draft.token)) break;  // its context is full
    }
    return n;
  }

 private:
  explicit ModelDrafts(Session session) noexcept : session_(std::move(session)) {}

  static Result<void> compare(const Model& draft, const Model& model) {
    const auto differ = [](const std::string& what) {
      return Error{Errc::invalid_argument, "drafts: the two models have other tokens: " + what};
    };
    const Index a = draft.config().vocab_size, b = model.config().vocab_size;
    if (a != b) return differ("there are " + to_text(a) + " and " + to_text(b));
    if (draft.tokenizer() == nullptr || model.tokenizer() == nullptr) return ok();
    const text::Vocabulary& x = draft.tokenizer()->vocabulary();
    const text::Vocabulary& y = model.tokenizer()->vocabulary();
    for (std::int32_t id = 0; x.contains(id) && y.contains(id); ++id) {
      if (x.text(id) != y.text(id)) return differ("token " + to_text(id) + " is not the same");
    }
    return ok();
  }

  // Gives the session these tokens; whether it could.
  bool follow(std::span<const std::int32_t> tokens) noexcept {
    const auto own = session_.tokens();
    auto n = static_cast<std::size_t>((std::min)(n_same_, session_.position()));
    while (n < own.size() && n < tokens.size() && own[n] == tokens[n]) ++n;
    n_same_ = static_cast<Index>(n);
    if (!session_.rewind(n_same_)) return false;
    if (n == tokens.size()) return true;
    if (!session_.append(tokens.subspan(n))) return false;
    n_same_ = static_cast<Index>(tokens.size());
    return true;
  }

  Session session_;
  Index n_same_ = 0;  // tokens of the session that are known to be those of the text
};

}}  // namespace nibble::NIBBLE_ABI
