// SPDX-License-Identifier: Apache-2.0
//
// Runs a step whose parts are in several places. Included by engine-inl.hpp.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <utility>

#include "nibble/core/arena.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/generate/placement.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/architecture.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

class PlacedRun {
 public:
  struct Sizes {
    graph::Limits limits;
    Index n_layers, dim, vocab_size;
  };
  // Errors: invalid_argument (layers that the model does not have, nothing that is taken),
  // out_of_memory.
  static Result<Owned<PlacedRun>> create(const Placement& placement, const Sizes& sizes);
  // Of all that create() allocates.
  static std::size_t bytes_needed(const Placement& placement, const Sizes& sizes) noexcept {
    return sizeof(PlacedRun) + memory_bytes(placement, sizes);
  }

  // Runs the step of `args`, whose sequences were set, through `layers` (n_layers). Its logits,
  // (n_outputs, vocab_size), not computed without has_outputs; a null view, if the back end failed.
  MatrixView<const float> run(const ModelGraph& model, const graph::Plan& plan,
                              const graph::RunArgs& args, std::span<const graph::LayerPart> layers,
                              bool has_outputs) noexcept;
  // Of segment i of the next step.
  void set_sequence(std::size_t i, const void* sequence) noexcept {
    sequences_[i].sequence = sequence;
  }
  // The error of the last step, if it has failed.
  Error failure() const;

 private:
  PlacedRun(const Placement& placement, const Sizes& sizes, AlignedBuffer memory);
  static std::size_t memory_bytes(const Placement& placement, const Sizes& sizes) noexcept;
  bool takes_layers() const noexcept { return placement_.first_layer < placement_.end_layer; }
  bool call(Part part, MatrixView<const float> in, MatrixView<float> out) noexcept;
  bool run_head() noexcept;
  // Layers [begin, end) here; is_first: with the embedding, unless that is taken.
  MatrixView<const float> run_here(Index begin, Index end, bool is_first,
                                   bool has_outputs) noexcept;
  MatrixView<float> rows() const noexcept {
    return MatrixView<float>(rows_, args_->step.n_rows(), sizes_.dim);
  }

  Placement placement_;
  Sizes sizes_;
  AlignedBuffer memory_;
  PartSequence* sequences_ = nullptr;  // (max_segments)
  float* rows_ = nullptr;              // (max_rows, dim): between parts
  float* outputs_ = nullptr;           // (max_outputs, dim): what the head gets
  float* logits_ = nullptr;            // (max_outputs, vocab_size): what it gives
  Part failed_ = Part::embedding;
  // The step that is running.
  const ModelGraph* model_ = nullptr;
  const graph::Plan* plan_ = nullptr;
  const graph::RunArgs* args_ = nullptr;
  std::span<const graph::LayerPart> layers_ = {};
};

NIBBLE_INLINE PlacedRun::PlacedRun(const Placement& placement, const Sizes& sizes,
                                   AlignedBuffer memory)
    : placement_(placement), sizes_(sizes), memory_(std::move(memory)) {
  const auto dim = static_cast<std::size_t>(sizes.dim);
  const auto n_outputs = static_cast<std::size_t>(sizes.limits.max_outputs);
  Arena arena(memory_.bytes());
  sequences_ = arena.take<PartSequence>(static_cast<std::size_t>(sizes.limits.max_segments));
  rows_ = arena.take<float>(static_cast<std::size_t>(sizes.limits.max_rows) * dim);
  if (!placement.head) return;
  outputs_ = arena.take<float>(n_outputs * dim);
  logits_ = arena.take<float>(n_outputs * static_cast<std::size_t>(sizes.vocab_size));
}

NIBBLE_INLINE std::size_t PlacedRun::memory_bytes(const Placement& placement,
                                                  const Sizes& sizes) noexcept {
  const auto floats = [](Index rows, Index columns) {
    return align_up(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) *
                    sizeof(float));
  };
  const graph::Limits& limits = sizes.limits;
  std::size_t bytes =
      align_up(static_cast<std::size_t>(limits.max_segments) * sizeof(PartSequence)) +
      floats(limits.max_rows, sizes.dim);
  if (placement.head) {
    bytes += floats(limits.max_outputs, sizes.dim) + floats(limits.max_outputs, sizes.vocab_size);
  }
  return bytes;
}

NIBBLE_INLINE Result<Owned<PlacedRun>> PlacedRun::create(const Placement& placement,
                                                         const Sizes& sizes) {
  const Index first = placement.first_layer, end = placement.end_layer;
  if (sizes.n_layers < 1) {
    return Error{Errc::invalid_argument, "engine: placement of parts of a model without layers"};
  }
  if (first < 0 || end < first || end > sizes.n_layers) {
    return Error{Errc::invalid_argument, "engine: placement of layers " + to_text(first) + " to " +
                                             to_text(end) + " of a model of " +
                                             to_text(sizes.n_layers)};
  }
  if (first == end && !placement.embedding && !placement.head) {
    return Error{Errc::invalid_argument, "engine: a back end that takes nothing over"};
  }
  NIBBLE_TRY(memory, AlignedBuffer::allocate(memory_bytes(placement, sizes)));
  Owned<PlacedRun> run(new (std::nothrow) PlacedRun(placement, sizes, std::move(memory)));
  if (!run) return Error{Errc::out_of_memory, "placement"};
  return run;
}

NIBBLE_INLINE bool PlacedRun::call(Part part, MatrixView<const float> in,
                                   MatrixView<float> out) noexcept {
  const graph::Step& step = args_->step;
  const std::size_t n = step.segments.size();
  for (std::size_t i = 0; i < n; ++i) {
    const graph::Segment& s = step.segments[i];
    sequences_[i] = {sequences_[i].sequence, s.first_row, s.n_rows, s.first_position, s.kind};
  }
  PartCall call{.part = part, .sequences = {sequences_, n}, .in = in, .out = out};
  if (part == Part::embedding) call.tokens = step.tokens;
  if (part == Part::layers) {
    call.first_layer = placement_.first_layer;
    call.end_layer = placement_.end_layer;
  }
  failed_ = part;
  return placement_.back_end->compute(call);
}

NIBBLE_INLINE bool PlacedRun::run_head() noexcept {
  const graph::Step& step = args_->step;
  const MatrixView<float> in(outputs_, step.n_outputs(), sizes_.dim);
  for (Index i = 0; i < step.n_outputs(); ++i) {
    const Index row = step.output_rows[static_cast<std::size_t>(i)];
    std::memcpy(outputs_ + i * sizes_.dim, rows_ + row * sizes_.dim,
                static_cast<std::size_t>(sizes_.dim) * sizeof(float));
  }
  return call(Part::head, MatrixView<const float>(in),
              MatrixView<float>(logits_, step.n_outputs(), sizes_.vocab_size));
}

NIBBLE_INLINE MatrixView<const float> PlacedRun::run_here(Index begin, Index end, bool is_first,
                                                          bool has_outputs) noexcept {
  graph::RunArgs args = *args_;
  const graph::LayerRange range{.parts = layers_,
                                .begin = begin,
                                .end = end,
                                .is_given = !is_first || placement_.embedding,
                                .rows = rows_,
                                .has_outputs = has_outputs};
  args.range = &range;
  return model_->run(*plan_, sizes_.limits, args);
}

NIBBLE_INLINE MatrixView<const float> PlacedRun::run(const ModelGraph& model,
                                                     const graph::Plan& plan,
                                                     const graph::RunArgs& args,
                                                     std::span<const graph::LayerPart> layers,
                                                     bool has_outputs) noexcept {
  model_ = &model;
  plan_ = &plan;
  args_ = &args;
  layers_ = layers;
  if (placement_.embedding && !call(Part::embedding, args.step.rows, rows())) return {};
  Index next = 0;
  if (takes_layers()) {
    const bool is_needed = placement_.first_layer > 0 || !placement_.embedding;
    if (is_needed) run_here(0, placement_.first_layer, true, false);
    if (!call(Part::layers, MatrixView<const float>(rows()), rows())) return {};
    next = placement_.end_layer;
  }
  const bool is_head_here = !placement_.head && has_outputs;
  MatrixView<const float> logits(logits_, args.step.n_outputs(), sizes_.vocab_size);
  if (next < sizes_.n_layers || !placement_.head) {
    const auto rows_here = run_here(next, sizes_.n_layers, !takes_layers(), is_head_here);
    if (!placement_.head) logits = rows_here;
  }
  if (placement_.head && has_outputs && !run_head()) return {};
  return logits;
}

NIBBLE_INLINE Error PlacedRun::failure() const {
  std::string part = "embedding";
  if (failed_ == Part::head) part = "head";
  if (failed_ == Part::layers) {
    part = "layers " + to_text(placement_.first_layer) + " to " + to_text(placement_.end_layer);
  }
  return Error{Errc::io, "engine: the back end could not compute the " + part};
}

}}}  // namespace nibble::NIBBLE_ABI::detail
