// SPDX-License-Identifier: Apache-2.0
//
// Grouped-query attention over a key-value cache: causal or not, with an optional sliding window,
// online softmax (no score matrix), any number of tokens of any number of sequences at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/kv_cache.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

struct AttentionShape {
  Index n_heads = 0;  // a multiple of n_kv_heads; head h reads kv head h / (n_heads / n_kv_heads)
  Index n_kv_heads = 0;
  Index head_dim = 0;  // any, also odd; multiples of 16 are fast
  float scale = 1;     // factor of the scores, usually 1 / sqrt(head_dim)
  Index window = 0;    // a query sees this many positions up to and including its own; 0: all
  Index ahead = 0;     // and this many after its own, up to the end of its segment; 0: causal
  kernels::ScoreOptions scores = {};

  constexpr Index group() const noexcept { return n_heads / n_kv_heads; }
  // What the query at `position` sees: [first_seen, end_seen), where end_seen is at most `end`.
  constexpr Index first_seen(Index position) const noexcept {
    return window > 0 ? std::max<Index>(0, position + 1 - window) : 0;
  }
  constexpr Index end_seen(Index position, Index end) const noexcept {
    return (std::min)(end, position + 1 + ahead);
  }
};

// Value of AttentionShape::ahead for attention that is not causal (encoders). All rows of a
// sequence must then be in one segment: a segment does not see later ones.
inline constexpr Index kAllAhead = Index{1} << 40;

// The scratch of attention must be large enough for these limits.
struct AttentionLimits {
  Index n_workers = 1;
  Index max_rows = 1;      // of one step
  Index max_segments = 1;  // of one step
  Index n_positions = 1;   // of one sequence
};

namespace detail {

// One row against many positions gives too few tasks for many workers. So the positions of a
// generated row are split too, at tile boundaries, into parts of at least kMinPart positions. The
// split depends only on the row's own position: a row's result is the same, whatever is computed
// beside it.
inline constexpr Index kMaxParts = 16;
inline constexpr Index kMinPart = 512;

constexpr Index attention_parts(Index n_positions) noexcept {
  return std::clamp<Index>(n_positions / kMinPart, 1, kMaxParts);
}

// Rows that are split alike: a segment of a prompt, or one row of a generation.
struct AttentionUnit {
  Index first_row, n_rows, first_position;
  Index rows_per_task, n_row_tasks;
  Index first_slot, end_slot;  // of tiles
  const std::int32_t* tiles;   // null: slot s is tile s
  const std::int32_t* pages;
  Index begin, end;  // positions [begin, end) are seen by some row
  bool is_prompt;
  Index n_parts;
  // Partial results, if n_parts > 1: (n_parts, n_heads) rows of head_dim, their maxima and sums.
  float* parts;

  Index n_tasks(const AttentionShape& shape) const noexcept {
    return shape.n_kv_heads * n_row_tasks * n_parts;
  }
};

// Floats of the partial results of one row.
constexpr Index attention_part_floats(const AttentionShape& shape, Index n_parts) noexcept {
  return n_parts * shape.n_heads * (shape.head_dim + 2);
}

// The layout of the scratch of attention.
struct AttentionScratch {
  Index worker_bytes = 0;
  Index max_units = 0;
  Index max_part_rows = 0;  // rows whose partial results exist at the same time
  Index row_floats = 0;     // floats of the partial results of one row
  Index n_pages = 0;        // space for the chosen pages of one segment
  Index units_at = 0, tiles_at = 0, parts_at = 0, bytes = 0;

  constexpr AttentionScratch(const AttentionShape& shape, const AttentionLimits& l) noexcept {
    const auto aligned = [](Index n) { return kernels::round_up(n, Index{kAlignment}); };
    const Index rows = (std::min)(l.max_rows, kernels::attention_tokens_per_task(shape.group()));
    worker_bytes = aligned(kernels::attention_scratch_floats(rows * shape.group(), shape.head_dim) *
                           Index{sizeof(float)});
    max_part_rows = (std::min)(l.max_rows, l.max_segments);
    max_units = l.max_segments + max_part_rows;
    const Index n_parts = attention_parts(l.n_positions);
    row_floats = n_parts > 1 ? attention_part_floats(shape, n_parts) : 0;
    n_pages = (l.n_positions + kernels::kAttentionTile - 1) / kernels::kAttentionTile;
    units_at = l.n_workers * worker_bytes;
    tiles_at = units_at + aligned(max_units * Index{sizeof(AttentionUnit)});
    parts_at = tiles_at + aligned(l.max_segments * n_pages * Index{sizeof(std::int32_t)});
    bytes = aligned(parts_at + max_part_rows * row_floats * Index{sizeof(float)});
  }
};

// The units of a step, in order, as many at a time as fit in the scratch.
class AttentionUnits {
 public:
  AttentionUnits(const AttentionShape& shape, const AttentionScratch& layout,
                 std::span<const Segment> segments, const PagePolicy* policy, Index layer,
                 std::byte* scratch) noexcept
      : shape_(shape),
        layout_(layout),
        segments_(segments),
        units_(reinterpret_cast<AttentionUnit*>(scratch + layout.units_at)),
        tiles_(reinterpret_cast<std::int32_t*>(scratch + layout.tiles_at)),
        parts_(reinterpret_cast<float*>(scratch + layout.parts_at)),
        policy_(policy),
        layer_(layer) {}

  // Makes the next units; returns false when there are no more.
  bool next() noexcept {
    n_units_ = 0;
    Index n_part_rows = 0;
    for (; segment_ < segments_.size(); ++segment_, row_ = 0) {
      const Segment& s = segments_[segment_];
      if (n_chosen_ == segment_) choose_tiles(s);
      const bool is_prompt = s.kind == SegmentKind::prompt;
      for (; row_ < s.n_rows; row_ += is_prompt ? s.n_rows : 1) {
        if (n_units_ == layout_.max_units) return true;
        AttentionUnit unit = unit_of(s, is_prompt ? s.n_rows : 1);
        if (unit.n_parts > 1) {
          if (n_part_rows == layout_.max_part_rows) return true;
          unit.parts = parts_ + n_part_rows++ * layout_.row_floats;
        }
        units_[n_units_++] = unit;
      }
    }
    return n_units_ > 0;
  }
  std::span<const AttentionUnit> units() const noexcept {
    return {units_, static_cast<std::size_t>(n_units_)};
  }

 private:
  void choose_tiles(const Segment& s) noexcept {
    ++n_chosen_;
    n_tiles_ = 0;
    if (policy_ == nullptr) return;
    const Index n_pages = pages_for(s.end_position());
    NIBBLE_ASSERT(n_pages <= layout_.n_pages);
    tiles_of_segment_ = tiles_ + static_cast<Index>(segment_) * layout_.n_pages;
    n_tiles_ = policy_->choose(layer_, s, {tiles_of_segment_, static_cast<std::size_t>(n_pages)});
    NIBBLE_ASSERT(n_tiles_ >= 1 && n_tiles_ <= n_pages);
  }

  AttentionUnit unit_of(const Segment& s, Index n_rows) const noexcept {
    AttentionUnit u{};
    u.first_row = s.first_row + row_;
    u.n_rows = n_rows;
    u.first_position = s.first_position + row_;
    u.rows_per_task = (std::min)(n_rows, kernels::attention_tokens_per_task(shape_.group()));
    u.n_row_tasks = (n_rows + u.rows_per_task - 1) / u.rows_per_task;
    u.pages = s.pages.empty() ? nullptr : s.pages.data();
    u.begin = shape_.first_seen(u.first_position);
    u.end = shape_.end_seen(u.first_position + n_rows - 1, s.end_position());
    u.is_prompt = s.kind == SegmentKind::prompt;
    Index n_seen = u.end - u.begin;
    if (policy_ != nullptr) {
      u.tiles = tiles_of_segment_;
      u.end_slot = n_tiles_;
      // Pages before the window need not be there any more.
      while (u.tiles[u.first_slot] < u.begin / kPagePositions) ++u.first_slot;
      n_seen = (u.end_slot - u.first_slot) * kPagePositions;
    } else {
      u.first_slot = u.begin / kPagePositions;
      u.end_slot = pages_for(u.end);
    }
    u.n_parts = u.is_prompt ? 1 : attention_parts(n_seen);
    return u;
  }

  const AttentionShape& shape_;
  const AttentionScratch& layout_;
  std::span<const Segment> segments_;
  AttentionUnit* units_;
  std::int32_t* tiles_;
  float* parts_;
  const PagePolicy* policy_;
  Index layer_;
  std::size_t segment_ = 0;
  Index row_ = 0;             // within the segment
  std::size_t n_chosen_ = 0;  // segments whose tiles are chosen
  std::int32_t* tiles_of_segment_ = nullptr;
  Index n_tiles_ = 0;
  Index n_units_ = 0;
};

// Merges the partial results of those units that have some.
NIBBLE_LAZY void merge_attention(Executor& executor, std::span<const AttentionUnit> units,
                                 const AttentionShape& shape, MatrixView<float> out) noexcept {
  const Index group = shape.group();
  auto* const merge = simd::kernel<kernels::MergeAttention>();
  const auto n_units = static_cast<Index>(units.size());
  executor.parallel_for(n_units * shape.n_kv_heads, [&](Index index, Index) {
    const AttentionUnit& unit = units[static_cast<std::size_t>(index / shape.n_kv_heads)];
    if (unit.n_parts == 1) return;
    const Index head = index % shape.n_kv_heads * group;
    const Index n_rows = unit.n_parts * shape.n_heads;
    kernels::MergeAttention::Args args;
    args.out = unit.parts + head * shape.head_dim;
    args.max = unit.parts + n_rows * shape.head_dim + head;
    args.sum = args.max + n_rows;
    args.n_parts = unit.n_parts;
    args.part_rows = shape.n_heads;
    args.n_rows = group;
    args.head_dim = shape.head_dim;
    if (shape.scores.sink_logits != nullptr) args.sink_logits = shape.scores.sink_logits + head;
    args.merged = out.data() + unit.first_row * out.stride(0) + head * shape.head_dim;
    merge(args);
  });
}

}  // namespace detail

// Bytes of scratch that attention() needs within `limits`. At most the last multiple of kAlignment
// that does not exceed kMaxBytes, even if it needs more.
constexpr std::size_t attention_scratch_bytes(const AttentionShape& shape,
                                              const AttentionLimits& limits) noexcept {
  const Index bytes = detail::AttentionScratch(shape, limits).bytes;
  return align_up(static_cast<std::size_t>(std::min<Index>(bytes, kMaxBytes - 63)));
}

// out[i] = attention of row i, at its position in its segment, to those positions of its sequence
// that it sees. The cache must hold all of these, including those of the segment's own rows.
//   q    (rows, n_heads * head_dim)  rows may be strided, elements of a row are consecutive
//   out  the same shape; may be q itself
// Arithmetic is in f32; for 8-bit integers there are also exact sums of integer products. Keys and
// values must be finite where they were written; positions that a row does not see are not used.
// Scores may have any magnitude as long as they are finite. `policy` chooses which pages are read
// (null: all that are seen). A row's result depends on its sequence and on the kind of its segment,
// not on what else is computed. Scratch: attention_scratch_bytes() of the shape and `limits`,
// aligned to kAlignment.
template <class T>
void attention(Executor& executor, MatrixView<const float> q, KvLayer<T> cache,
               const AttentionShape& shape, std::span<const Segment> segments,
               const AttentionLimits& limits, MatrixView<float> out, std::span<std::byte> scratch,
               const PagePolicy* policy = nullptr, Index layer = 0,
               const Tuning& tuning = {}) noexcept {
  using Element = std::remove_const_t<T>;
  using Kernel = kernels::Attend<Element>;
  const Index group = shape.group();
  const Index head_dim = shape.head_dim;
  NIBBLE_ASSERT(shape.n_kv_heads >= 1 && group >= 1 && shape.n_heads == group * shape.n_kv_heads);
  NIBBLE_ASSERT(cache.n_kv_heads == shape.n_kv_heads && cache.head_dim == head_dim);
  NIBBLE_ASSERT(q.extent(1) == shape.n_heads * head_dim && q.stride(1) == 1);
  NIBBLE_ASSERT(out.extent(0) == q.extent(0) && out.extent(1) == q.extent(1));
  NIBBLE_ASSERT(out.stride(1) == 1 && q.extent(0) <= limits.max_rows);
  NIBBLE_ASSERT(static_cast<Index>(segments.size()) <= limits.max_segments);
  NIBBLE_ASSERT(executor.n_workers() <= limits.n_workers);
  NIBBLE_ASSERT(scratch.size() >= attention_scratch_bytes(shape, limits));
  for ([[maybe_unused]] const Segment& segment : segments) {
    NIBBLE_ASSERT(detail::has_pages(segment, cache.n_pages));
    NIBBLE_ASSERT(segment.end_position() <= limits.n_positions);
  }

  const detail::AttentionScratch memory(shape, limits);
  detail::AttentionUnits all(shape, memory, segments, policy, layer, scratch.data());
  auto* const attend = simd::kernel<Kernel>();
  while (all.next()) {
    const std::span<const detail::AttentionUnit> units = all.units();
    Index n_tasks = 0;
    bool has_parts = false;
    for (const detail::AttentionUnit& unit : units) {
      n_tasks += unit.n_tasks(shape);
      has_parts = has_parts || unit.n_parts > 1;
    }
    executor.parallel_for(n_tasks, [&](Index index, Index worker) {
      std::size_t i = 0;
      for (; index >= units[i].n_tasks(shape); ++i) index -= units[i].n_tasks(shape);
      const detail::AttentionUnit& unit = units[i];
      // Row tasks of one kv head follow each other: its keys and values stay in a shared cache.
      const Index part = index % unit.n_parts;
      const Index first = index / unit.n_parts % unit.n_row_tasks * unit.rows_per_task;
      const Index kv_head = index / unit.n_parts / unit.n_row_tasks;
      const Index row = unit.first_row + first;
      typename Kernel::Args args;
      args.n_tokens = (std::min)(unit.rows_per_task, unit.n_rows - first);
      args.first_head = kv_head * group;
      args.q = q.data() + row * q.stride(0) + args.first_head * head_dim;
      args.q_stride = q.stride(0);
      args.group = group;
      args.head_dim = head_dim;
      args.cache = cache.of(kv_head);
      args.pages = unit.pages;
      args.tiles = unit.tiles;
      args.first_position = unit.first_position + first;
      args.window = shape.window;
      args.ahead = shape.ahead;
      args.is_prompt = unit.is_prompt;
      args.scale = shape.scale;
      args.scores = shape.scores;
      args.tuning = tuning;
      args.scratch = reinterpret_cast<float*>(scratch.data() + worker * memory.worker_bytes);
      args.begin = shape.first_seen(args.first_position);
      args.end = shape.end_seen(args.first_position + args.n_tokens - 1, unit.end);
      args.first_slot = unit.first_slot;
      args.end_slot = unit.end_slot;
      if (unit.n_parts == 1) {
        if (unit.tiles == nullptr) {
          args.first_slot = args.begin / kPagePositions;
          args.end_slot = pages_for(args.end);
        }
        args.out = out.data() + row * out.stride(0) + args.first_head * head_dim;
        args.out_stride = out.stride(0);
      } else {
        const Index n_slots = unit.end_slot - unit.first_slot;
        args.first_slot = unit.first_slot + n_slots * part / unit.n_parts;
        args.end_slot = unit.first_slot + n_slots * (part + 1) / unit.n_parts;
        const Index n_rows = unit.n_parts * shape.n_heads;
        const Index part_row = part * shape.n_heads + args.first_head;
        args.out = unit.parts + part_row * head_dim;
        args.out_stride = group * head_dim;
        args.max = unit.parts + n_rows * head_dim + part_row;
        args.sum = args.max + n_rows;
      }
      attend(args);
    });
    if (has_parts) detail::merge_attention(executor, units, shape, out);
  }
}

// The same for any element type of the cache. policy_layer: the layer that the policy is asked
// about, where it is another one than the cache's; -1: the same.
NIBBLE_LAZY void attention(Executor& executor, MatrixView<const float> q, const KvCache& cache,
                           Index layer, const AttentionShape& shape,
                           std::span<const Segment> segments, const AttentionLimits& limits,
                           MatrixView<float> out, std::span<std::byte> scratch,
                           const PagePolicy* policy = nullptr, const Tuning& tuning = {},
                           Index policy_layer = -1) noexcept {
  if (policy_layer < 0) policy_layer = layer;
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    attention(executor, q, cache.layer<T>(layer), shape, segments, limits, out, scratch, policy,
              policy_layer, tuning);
  });
}

// For a single sequence whose pages are consecutive: rows at first_position and after. Scratch: for
// limits of these rows and positions.
template <class T>
void attention(Executor& executor, MatrixView<const float> q, KvLayer<T> cache,
               const AttentionShape& shape, Index first_position, MatrixView<float> out,
               std::span<std::byte> scratch) noexcept {
  if (q.extent(0) == 0) return;
  const Segment all = single_segment(q.extent(0), first_position);
  const AttentionLimits limits{
      .n_workers = executor.n_workers(), .max_rows = all.n_rows, .n_positions = all.end_position()};
  attention(executor, q, cache, shape, std::span<const Segment>(&all, 1), limits, out, scratch);
}
NIBBLE_LAZY void attention(Executor& executor, MatrixView<const float> q, const KvCache& cache,
                           Index layer, const AttentionShape& shape, Index first_position,
                           MatrixView<float> out, std::span<std::byte> scratch) noexcept {
  visit_kv_type(cache.layout().type, [&]<class T>(T) {
    attention(executor, q, cache.layer<T>(layer), shape, first_position, out, scratch);
  });
}

}}}  // namespace nibble::NIBBLE_ABI::ops
