// SPDX-License-Identifier: Apache-2.0
//
// Guesses the next tokens with the first layers of the model itself.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/view.hpp"
#include "nibble/generate/draft_source.hpp"
#include "nibble/generate/likely_draft.hpp"
#include "nibble/generate/session.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Self-speculation, as in LayerSkip (M. Elhoushi et al., "LayerSkip: Enabling Early Exit Inference
// and Self-Speculative Decoding", 2024): no second model and no memory of its own. A guess costs the
// first n_layers layers and the output matrix, so it pays for models that were trained to be right
// early, or whose later layers do little; for others a generator soon asks no more.
class LayerDrafts final : public DraftSource {
 public:
  // `session`: the one whose generator takes the guesses; what it owns is owned here too. Errors:
  // invalid_argument (n_layers not from 1 to below the number of layers), unsupported (as
  // Engine::draft()).
  static Result<LayerDrafts> create(Session& session, Index n_layers) {
    const Index n = session.model().config().n_layers;
    if (n_layers < 1 || n_layers >= n) {
      return Error{Errc::invalid_argument, "drafts: by " + to_text(n_layers) + " layers of " +
                                               to_text(n) + "; must be fewer, and at least 1"};
    }
    NIBBLE_CHECK(session.engine().check_draft(n_layers));
    return LayerDrafts(Session(session.state_), n_layers);
  }

  void observe(std::span<const std::int32_t>, Index) noexcept override {}

  Index draft(std::span<const std::int32_t> tokens, std::span<Draft> drafts) noexcept override {
    Sequence& sequence = session_.sequence();
    if (sequence.tokens().size() != tokens.size() || sequence.n_pending() == 0) return 0;
    Index n = 0;
    for (Draft& draft : drafts) {
      const SequenceInput pending{.sequence = &sequence, .kind = ops::SegmentKind::generation};
      const auto logits = session_.engine().draft({&pending, 1}, n_layers_);
      if (!logits) break;
      const auto likely = detail::likely_draft((*logits)[0]);
      if (!likely) break;
      draft = *likely;
      ++n;
      if (!sequence.push(draft.token)) break;  // the context is full
    }
    // Its own tokens can always be forgotten: nothing after `tokens` is computed.
    (void)sequence.rewind(static_cast<Index>(tokens.size()));
    return n;
  }

 private:
  LayerDrafts(Session session, Index n_layers) noexcept
      : session_(std::move(session)), n_layers_(n_layers) {}

  Session session_;
  Index n_layers_;
};

}}  // namespace nibble::NIBBLE_ABI
