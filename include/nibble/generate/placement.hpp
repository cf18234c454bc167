// SPDX-License-Identifier: Apache-2.0
//
// Parts of a model in other places: a host program has an accelerator (a neural unit for the
// embedding and the output matrix, say), or other processors for some of the layers. It takes over
// parts of each step through one function; what it does not take runs here. Rows of f32 cross
// between the parts, nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/view.hpp"
#include "nibble/model/config.hpp"
#include "nibble/ops/segment.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// What stands before a model's layers (from tokens to rows of the model's width), its layers, and
// what follows them (from rows to logits: the last norm and the output matrix).
enum class Part : std::uint8_t { embedding, layers, head };

// The rows of one sequence in a step.
struct PartSequence {
  // Which sequence: an address that stays the same while it lives, never to be read from. A back
  // end of layers keeps keys and values by it. Positions from first_position on that it has already
  // were forgotten and are computed anew; a fork is a new sequence that begins behind position 0,
  // which a back end that cannot know its past refuses.
  const void* sequence = nullptr;
  Index first_row = 0, n_rows = 0, first_position = 0;
  ops::SegmentKind kind = ops::SegmentKind::prompt;
};

// A part of one step, with all that goes into it and all that comes out.
struct PartCall {
  Part part = Part::embedding;
  Index first_layer = 0, end_layer = 0;          // of Part::layers: [first_layer, end_layer)
  std::span<const PartSequence> sequences = {};  // that have rows in the step
  // Of Part::embedding: (n_rows). A token of -1 stands for a row of `in`.
  std::span<const std::int32_t> tokens = {};
  // Of layers: (n_rows, width). Of the head: (n_outputs, width), the rows that want logits. Of the
  // embedding: rows that the step was given in place of tokens (SequenceInput::rows), or none.
  MatrixView<const float> in = {};
  // What is to be filled. Of the embedding and of layers: (n_rows, width), for layers the same
  // memory as `in`. Of the head: (n_outputs, vocab_size).
  MatrixView<float> out = {};
};

// What a host program supplies. Called by the thread that runs the engine, within the step.
class BackEnd {
 public:
  virtual ~BackEnd() = default;
  // Computes the part of `call`; false: it could not, and the step is an error that changes
  // nothing. Must not throw, and must not run the engine that calls it.
  virtual bool compute(const PartCall& call) noexcept = 0;
};

// Which parts a back end takes over.
struct Placement {
  BackEnd* back_end = nullptr;  // must outlive the engine; null: all parts run here
  bool embedding = false;
  Index first_layer = 0, end_layer = 0;  // layers [first_layer, end_layer); none if they are equal
  bool head = false;
};

// The bytes that cross in one step of n_rows rows, n_outputs of which want logits: to a part, and
// back from it. (Tokens are 4 bytes, numbers f32.)
struct Crossing {
  std::size_t to = 0, from = 0;
};
inline Crossing crossing(const ModelConfig& config, Part part, Index n_rows,
                         Index n_outputs) noexcept {
  const auto bytes = [](Index rows, Index columns) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * sizeof(float);
  };
  switch (part) {
    case Part::embedding: return {bytes(n_rows, 1), bytes(n_rows, config.dim)};
    case Part::layers: return {bytes(n_rows, config.dim), bytes(n_rows, config.dim)};
    case Part::head: break;
  }
  return {bytes(n_outputs, config.dim), bytes(n_outputs, config.vocab_size)};
}

}}  // namespace nibble::NIBBLE_ABI
