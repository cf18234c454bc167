// SPDX-License-Identifier: Apache-2.0
//
// Runs a step in stages, between which rows may be done. Included by engine-inl.hpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/adapter_runs.hpp"
#include "nibble/generate/confidence.hpp"
#include "nibble/generate/depth.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/architecture.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// What each layer of an engine runs, and what it runs where it only stores keys and values: those
// that have none do nothing then.
struct EngineLayers {
  std::span<const graph::LayerPart> parts;      // (n_layers)
  std::span<const graph::LayerPart> key_parts;  // (n_layers)
  Index count() const noexcept { return static_cast<Index>(parts.size()); }
};

class StagedRun {
 public:
  struct Sizes {
    graph::Limits limits;
    Index n_tables, n_layers, dim, vocab_size;
  };
  // Checked options.
  static Result<Owned<StagedRun>> create(const EarlyExit& options, const Sizes& sizes);

  std::size_t bytes() const noexcept {
    return sizeof(*this) + ends_.size() * sizeof(Scalar<Index>) + memory_.size();
  }
  const EarlyExitCounts& counts() const noexcept { return counts_; }
  // Whether some row of the step may be done early.
  static bool is_for(const graph::Step& step) noexcept;
  // Runs the step of `args`. Its logits, (n_outputs, vocab_size).
  MatrixView<const float> run(const ModelGraph& model, const graph::Plan& plan,
                              const graph::RunArgs& args, const EngineLayers& layers) noexcept;
  // The first of some rows of the last step for which not everything is stored as all layers would;
  // `end` if there is none. (The last layer stores the same, run or not.)
  Index first_inexact(Index begin, Index end) const noexcept {
    const auto is_exact = [&](const Row& row) {
      return row.done_in == Row::kNever ||
             ends_[static_cast<std::size_t>(row.done_in)].value == sizes_.n_layers - 1;
    };
    while (begin < end && is_exact(rows_[begin])) ++begin;
    return begin;
  }

 private:
  struct Row {
    static constexpr Index kNever = -1;
    Index output = -1;       // which row of the result; -1: none
    Index done_in = kNever;  // the stage after which it was done
    bool may_be_done = false;
  };
  struct Stage {
    Index number, begin, end;  // layers
    bool is_last;
  };

  StagedRun(const EarlyExit& options, const Sizes& sizes, AlignedBuffer memory);
  static std::size_t memory_bytes(const Sizes& sizes) noexcept;
  void begin(const graph::Step& step) noexcept;
  // Runs the rows of the step for which `selects(row)`, in as many pieces as there must be, since a
  // run has at most max_segments segments. Rows of a sequence stay in their order.
  template <class Selects>
  void run_rows(const Selects& selects, const Stage& stage, bool has_outputs,
                std::span<const graph::LayerPart> parts) noexcept;
  void run_piece(Index n_rows, Index n_segments, const Stage& stage, bool has_outputs,
                 std::span<const graph::LayerPart> parts) noexcept;
  // Which rows and outputs of a piece have adapters, in its step.
  void put_adapters(Index n_rows, Index n_outputs, graph::Step& step) const noexcept;
  void take_outputs(const Stage& stage, std::span<const Index> rows,
                    MatrixView<const float> logits) noexcept;

  Sizes sizes_;
  std::vector<Scalar<Index>> ends_;  // of all stages but the last
  double threshold_;
  Confidence measure_;
  EarlyExitCounts counts_;
  AlignedBuffer memory_;
  Row* rows_ = nullptr;                    // (max_rows), of the step
  float* hidden_ = nullptr;                // (max_rows, dim): between stages
  float* logits_ = nullptr;                // (max_outputs, vocab_size)
  std::int32_t* tokens_ = nullptr;         // (max_rows): zeros, nobody reads what they stand for
  Index* row_ids_ = nullptr;               // (max_rows): rows of a piece
  Index* output_rows_ = nullptr;           // (max_outputs), of a piece
  Index* output_ids_ = nullptr;            // (max_outputs): the same as rows of the step
  graph::Segment* segments_ = nullptr;     // (n_tables, max_segments), of a piece
  graph::RowAdapter* adapters_ = nullptr;  // (2, max_segments): of its rows and of its outputs
  // The step that is running.
  const ModelGraph* model_ = nullptr;
  const graph::Plan* plan_ = nullptr;
  const graph::RunArgs* args_ = nullptr;
};

NIBBLE_INLINE StagedRun::StagedRun(const EarlyExit& options, const Sizes& sizes,
                                   AlignedBuffer memory)
    : sizes_(sizes),
      threshold_(options.threshold),
      measure_(options.measure),
      memory_(std::move(memory)) {
  for (const Index n : options.after_layers) ends_.push_back({n});
  const graph::Limits& limits = sizes.limits;
  const auto n_rows = static_cast<std::size_t>(limits.max_rows);
  const auto n_outputs = static_cast<std::size_t>(limits.max_outputs);
  Arena arena(memory_.bytes());
  rows_ = arena.take<Row>(n_rows);
  hidden_ = arena.take<float>(n_rows * static_cast<std::size_t>(sizes.dim));
  logits_ = arena.take<float>(n_outputs * static_cast<std::size_t>(sizes.vocab_size));
  tokens_ = arena.take<std::int32_t>(n_rows);
  row_ids_ = arena.take<Index>(n_rows);
  output_rows_ = arena.take<Index>(n_outputs);
  output_ids_ = arena.take<Index>(n_outputs);
  segments_ =
      arena.take<graph::Segment>(static_cast<std::size_t>(sizes.n_tables * limits.max_segments));
  adapters_ = arena.take<graph::RowAdapter>(2 * static_cast<std::size_t>(limits.max_segments));
}

NIBBLE_INLINE std::size_t StagedRun::memory_bytes(const Sizes& s) noexcept {
  const auto n_rows = static_cast<std::size_t>(s.limits.max_rows);
  const auto n_outputs = static_cast<std::size_t>(s.limits.max_outputs);
  return align_up(n_rows * sizeof(Row)) +
         align_up(n_rows * static_cast<std::size_t>(s.dim) * sizeof(float)) +
         align_up(n_outputs * static_cast<std::size_t>(s.vocab_size) * sizeof(float)) +
         align_up(n_rows * sizeof(std::int32_t)) + align_up(n_rows * sizeof(Index)) +
         2 * align_up(n_outputs * sizeof(Index)) +
         align_up(static_cast<std::size_t>(s.n_tables * s.limits.max_segments) *
                  sizeof(graph::Segment)) +
         align_up(2 * static_cast<std::size_t>(s.limits.max_segments) * sizeof(graph::RowAdapter));
}

NIBBLE_INLINE Result<Owned<StagedRun>> StagedRun::create(const EarlyExit& options,
                                                         const Sizes& sizes) {
  NIBBLE_TRY(memory, AlignedBuffer::allocate(memory_bytes(sizes)));
  Owned<StagedRun> run(new (std::nothrow) StagedRun(options, sizes, std::move(memory)));
  if (!run) return Error{Errc::out_of_memory, "early exit"};
  return run;
}

NIBBLE_INLINE bool StagedRun::is_for(const graph::Step& step) noexcept {
  auto output = step.output_rows.begin();
  for (const graph::Segment& s : step.segments) {
    while (output != step.output_rows.end() && *output < s.first_row) ++output;
    const bool has_output = output != step.output_rows.end() && *output < s.first_row + s.n_rows;
    if (has_output && s.kind == ops::SegmentKind::generation) return true;
  }
  return false;
}

NIBBLE_INLINE void StagedRun::begin(const graph::Step& step) noexcept {
  std::fill_n(rows_, step.n_rows(), Row{});
  for (Index i = 0; i < step.n_outputs(); ++i) {
    rows_[step.output_rows[static_cast<std::size_t>(i)]].output = i;
  }
  for (const graph::Segment& s : step.segments) {
    if (s.kind != ops::SegmentKind::generation) continue;
    for (Index i = s.first_row; i < s.first_row + s.n_rows; ++i) {
      rows_[i].may_be_done = rows_[i].output >= 0;
      counts_.n_rows += rows_[i].may_be_done;
    }
  }
}

NIBBLE_INLINE MatrixView<const float> StagedRun::run(const ModelGraph& model,
                                                     const graph::Plan& plan,
                                                     const graph::RunArgs& args,
                                                     const EngineLayers& layers) noexcept {
  model_ = &model;
  plan_ = &plan;
  args_ = &args;
  begin(args.step);
  const auto n_ends = static_cast<Index>(ends_.size());
  for (Index i = 0; i <= n_ends; ++i) {
    const auto end_of = [&](Index stage) { return ends_[static_cast<std::size_t>(stage)].value; };
    const Stage stage{i, i == 0 ? 0 : end_of(i - 1), i == n_ends ? layers.count() : end_of(i),
                      i == n_ends};
    run_rows([](const Row& row) { return row.done_in == Row::kNever; }, stage, true, layers.parts);
    const Stage rest{i, stage.end, layers.count(), true};
    run_rows([&](const Row& row) { return row.done_in == i; }, rest, false, layers.key_parts);
  }
  return MatrixView<const float>(logits_, args.step.n_outputs(), sizes_.vocab_size);
}

template <class Selects>
void StagedRun::run_rows(const Selects& selects, const Stage& stage, bool has_outputs,
                         std::span<const graph::LayerPart> parts) noexcept {
  Index n_rows = 0, n_segments = 0;
  const std::span<const graph::Segment> all = args_->step.segments;
  const auto n_all = all.size();
  for (std::size_t s = 0; s < n_all; ++s) {
    for (Index row = all[s].first_row, end = row + all[s].n_rows; row < end;) {
      if (!selects(rows_[row])) {
        ++row;
        continue;
      }
      if (n_segments == sizes_.limits.max_segments) {
        run_piece(n_rows, n_segments, stage, has_outputs, parts);
        n_rows = n_segments = 0;
      }
      graph::Segment segment = all[s];
      segment.first_row = n_rows;
      segment.first_position += row - all[s].first_row;
      for (; row < end && selects(rows_[row]); ++row) row_ids_[n_rows++] = row;
      segment.n_rows = n_rows - segment.first_row;
      for (Index table = 0; table < sizes_.n_tables; ++table) {
        if (table > 0) {
          const auto at = static_cast<std::size_t>(table - 1) * n_all + s;
          segment.pages = args_->table_segments[at].pages;
        }
        segments_[table * sizes_.limits.max_segments + n_segments] = segment;
      }
      ++n_segments;
    }
  }
  if (n_segments > 0) run_piece(n_rows, n_segments, stage, has_outputs, parts);
}

NIBBLE_INLINE void StagedRun::run_piece(Index n_rows, Index n_segments, const Stage& stage,
                                        bool has_outputs,
                                        std::span<const graph::LayerPart> parts) noexcept {
  graph::RunArgs args = *args_;
  const auto n = static_cast<std::size_t>(n_segments);
  for (Index table = 1; table < sizes_.n_tables; ++table) {  // without gaps
    std::copy_n(segments_ + table * sizes_.limits.max_segments, n_segments,
                segments_ + table * n_segments);
  }
  args.step.segments = {segments_, n};
  args.table_segments = {segments_ + n_segments, n * static_cast<std::size_t>(sizes_.n_tables - 1)};
  if (stage.begin > 0) {  // embeddings are replaced by the rows between stages
    args.step.tokens = {tokens_, static_cast<std::size_t>(n_rows)};
    args.step.rows = {};
  }
  Index n_outputs = 0;
  for (Index i = 0; has_outputs && i < n_rows; ++i) {
    const Row& row = rows_[row_ids_[i]];
    if (row.output < 0 || (!stage.is_last && !row.may_be_done)) continue;
    output_rows_[n_outputs] = i;
    output_ids_[n_outputs++] = row_ids_[i];
  }
  put_adapters(n_rows, n_outputs, args.step);
  const graph::LayerRange range{.parts = parts,
                                .begin = stage.begin,
                                .end = stage.end,
                                .is_given = stage.begin > 0,
                                .rows = hidden_,
                                .row_ids = row_ids_,
                                .has_outputs = n_outputs > 0};
  args.range = &range;
  if (n_outputs == 0) output_rows_[0] = 0;  // a step has one
  args.step.output_rows = {output_rows_, static_cast<std::size_t>((std::max)(n_outputs, Index{1}))};
  const auto logits = model_->run(*plan_, sizes_.limits, args);
  take_outputs(stage, {output_ids_, static_cast<std::size_t>(n_outputs)}, logits);
}

NIBBLE_INLINE void StagedRun::put_adapters(Index n_rows, Index n_outputs,
                                           graph::Step& step) const noexcept {
  const std::span<const graph::RowAdapter> of_step = args_->step.row_adapters;
  if (of_step.empty()) return;
  const auto put = [&](const Index* rows, Index n, graph::RowAdapter* memory) {
    AdapterRuns runs(memory);
    for (Index i = 0; i < n; ++i) {
      graph::RowAdapter adapter = adapter_of(rows[i], of_step);
      if (adapter.n_rows == 0) continue;
      adapter.first_row = i;
      adapter.n_rows = 1;
      runs.add(adapter);
    }
    return runs.all();
  };
  step.row_adapters = put(row_ids_, n_rows, adapters_);
  step.output_adapters = put(output_ids_, n_outputs, adapters_ + sizes_.limits.max_segments);
}

NIBBLE_INLINE void StagedRun::take_outputs(const Stage& stage, std::span<const Index> rows,
                                           MatrixView<const float> logits) noexcept {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Row& row = rows_[rows[i]];
    const VectorView<const float> of_row = logits[static_cast<Index>(i)];
    if (!stage.is_last) {
      ++counts_.n_checks;
      const double confidence = confidence_of(of_row, measure_);
      if (is_nan(confidence) || !(confidence > threshold_)) continue;
      row.done_in = stage.number;
      ++counts_.n_exits;
    }
    if (row.may_be_done) counts_.n_layers += static_cast<std::uint64_t>(stage.end);
    std::memcpy(logits_ + row.output * sizes_.vocab_size, of_row.data(),
                static_cast<std::size_t>(sizes_.vocab_size) * sizeof(float));
  }
}

}}}  // namespace nibble::NIBBLE_ABI::detail
