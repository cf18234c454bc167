// SPDX-License-Identifier: Apache-2.0
//
// How many layers of a model a token goes through: fewer, where a host wants less work (it is hot,
// it is busy) or where the model is sure of the next token early. Nothing of this is on unless
// Engine::set_depth() or Engine::set_early_exit() is called.
//
// A token that leaves out a layer passes it unchanged. The layer still stores keys and values of
// it, made of the row that passes ("state propagation" of CALM), so later tokens can read all
// positions in all layers, however deep they go themselves. What follows such a token is therefore
// an approximation too (unless only the last layer was left out, which would store the same):
// Sequence::n_exact() says how many of the first tokens are exact, and after going back there
// (rewind) what follows is exact again.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/view.hpp"
#include "nibble/generate/confidence.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The layers of steps from now on.
struct Depth {
  Index n_layers = 0;                    // the first so many; 0: all
  std::span<const Index> left_out = {};  // of these, layers that are left out
};

// Early exit by confidence: CALM (Schuster et al., "Confident Adaptive Language Modeling", 2022)
// and LayerSkip (Elhoushi et al., 2024). After some layers the end of the model (norm, output
// matrix) is applied to the row of a token. If the model is sure of the next token by then, the
// rest of the layers only store keys and values, and these logits are the result.
//
// It holds for generated tokens (SegmentKind::generation) whose logits are wanted, each for itself:
// what a token gets does not depend on who shares the step. Prompts go through all layers.
//
// Each check costs what the output matrix costs: with a large vocabulary as much as several layers.
// Models that were not trained for it are seldom sure early; measure first (EarlyExitCounts).
struct EarlyExit {
  // After how many layers it is checked, ascending, each from 1 to below the number of layers.
  // Empty: never.
  std::span<const Index> after_layers = {};
  double threshold = 0.9;  // a row is done if its confidence is above it
  Confidence measure = Confidence::margin;
};

// Of rows for which an exit was possible, since set_early_exit().
struct EarlyExitCounts {
  std::uint64_t n_rows = 0;    // whose logits were wanted
  std::uint64_t n_exits = 0;   // of them, those that did not go through all layers
  std::uint64_t n_layers = 0;  // that they went through, all together
  std::uint64_t n_checks = 0;  // how often the output matrix was applied for a check

  // On average.
  double layers_per_row() const noexcept {
    return n_rows == 0 ? 0 : static_cast<double>(n_layers) / static_cast<double>(n_rows);
  }
};

}}  // namespace nibble::NIBBLE_ABI
