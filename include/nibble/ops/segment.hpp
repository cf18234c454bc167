// SPDX-License-Identifier: Apache-2.0
//
// Segments: the rows of a step that belong to one sequence. Does not include Highway: cheap to
// include.
#pragma once

#include <cstdint>
#include <span>

#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// The number of a page of the cache. A page has space for kPagePositions positions of one sequence,
// in every layer and kv head.
using PageId = std::int32_t;
inline constexpr Index kPagePositions = 64;

constexpr Index pages_for(Index n_positions) noexcept {
  return (n_positions + kPagePositions - 1) / kPagePositions;
}

// What a row's result may depend on, besides its sequence. Rows of a prompt may share work with
// each other. A generated row is computed as if it were alone, also where several of them, such as
// the drafts of speculative decoding, are in one segment. A result never depends on other segments
// or on the number of threads.
enum class SegmentKind : std::uint8_t { prompt, generation };

// Rows [first_row, first_row + n_rows) of a step, at consecutive positions of one sequence.
struct Segment {
  Index first_row = 0;
  Index n_rows = 0;
  Index first_position = 0;
  SegmentKind kind = SegmentKind::prompt;
  // Page i holds positions [64 i, 64 i + 64); the pages include those of these rows. Where a window
  // hides all positions of a page from these rows, it may be -1. Empty: page i is i, for a cache of
  // one sequence.
  std::span<const PageId> pages = {};
  // The recurrent state of the sequence after the position before first_position: what each step
  // changes, and what changes once in a chunk of positions. Null if there is none.
  float* state = nullptr;
  float* chunk_state = nullptr;

  constexpr Index end_position() const noexcept { return first_position + n_rows; }
};

// A segment that is the whole step, for a sequence whose pages are consecutive: used by operations
// on one sequence only.
constexpr Segment single_segment(Index n_rows, Index first_position) noexcept {
  return {.n_rows = n_rows,
          .first_position = first_position,
          .kind = n_rows == 1 ? SegmentKind::generation : SegmentKind::prompt};
}

// Sparse attention: chooses the pages of a sequence that the rows of a segment read in a layer. A
// row still does not see positions after its own in these pages, and a window of the attention
// still applies.
class PagePolicy {
 public:
  virtual ~PagePolicy() = default;

  // Writes the indices of the pages (position / 64) in ascending order and returns how many there
  // are. `pages` has space for all n_pages of the sequence. The pages of the segment's own rows
  // must be among those chosen. May be called by several threads at once, but at most once per
  // segment and layer; must not allocate.
  virtual Index choose(Index layer, const Segment& segment,
                       std::span<std::int32_t> pages) const noexcept = 0;
};

// Chooses the pages of the first `n_sinks` positions and of the last `window` positions of each row
// ("attention sinks": G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks",
// 2023), in whole pages.
class SinkWindowPolicy final : public PagePolicy {
 public:
  constexpr SinkWindowPolicy(Index n_sinks, Index window) noexcept
      : n_sinks_(n_sinks), window_(window) {}

  Index choose(Index, const Segment& segment,
               std::span<std::int32_t> pages) const noexcept override {
    const Index first_seen = segment.first_position + 1 - window_;
    const Index n_first = pages_for(n_sinks_);
    Index n = 0;
    for (Index page = 0; page < static_cast<Index>(pages.size()); ++page) {
      if (page >= n_first && (page + 1) * kPagePositions <= first_seen) continue;
      pages[static_cast<std::size_t>(n++)] = static_cast<std::int32_t>(page);
    }
    return n;
  }

 private:
  Index n_sinks_, window_;
};

}}}  // namespace nibble::NIBBLE_ABI::ops
