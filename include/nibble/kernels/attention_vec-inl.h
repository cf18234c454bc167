// SPDX-License-Identifier: Apache-2.0
//
// Attention: vectors, register tiles and prefetching, for every element type of the cache.

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ATTENTION_VEC_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_VEC_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_VEC_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_VEC_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/attention.hpp"
#include "nibble/kernels/prefetch-inl.h"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace attention {
namespace hn = hwy::HWY_NAMESPACE;

using kernels::kAttentionTile;
using kernels::kKeyPair;
using kernels::kPanelPositions;

using D = PanelTag<float>;  // a vector is a panel or a fraction of one
using V = hn::Vec<D>;
using DI = hn::RebindToSigned<D>;
using DU = hn::RebindToUnsigned<D>;
using DU16 = hn::Rebind<std::uint16_t, D>;
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(D()));

// Query rows of a register tile.
inline constexpr int kMaxRows = static_cast<int>(kernels::kAttentionBlock);

HWY_INLINE V load(const float* p) { return hn::LoadU(D(), p); }

// Which positions of a tile count. A block of rows works on the panels from `begin` to `end`; row r
// of it sees positions [from[r], to[r]).
struct Seen {
  Index begin, end;
  Index from[kMaxRows], to[kMaxRows];

  HWY_INLINE bool all(int r) const { return from[r] <= begin && to[r] >= end; }
  // Which lanes of the vector at position p row r sees.
  HWY_INLINE hn::Mask<D> mask(int r, Index p) const {
    const DI di;
    const auto position = hn::Iota(di, static_cast<std::int32_t>(p));
    const auto first = hn::Set(di, static_cast<std::int32_t>(from[r]));
    const auto last = hn::Set(di, static_cast<std::int32_t>(to[r]));
    return hn::RebindMask(D(), hn::And(hn::Ge(position, first), hn::Lt(position, last)));
  }
};

// ---- Fetching ahead ----------------------------------------------------------------------------
// A tile's keys and values are contiguous in memory, and so are tiles. But the hardware prefetchers
// stop at every page, and lose track when a register tile reads several panels side by side.
// Therefore the first rows of a task fetch for all of its rows, a fixed distance ahead of what they
// read, as the matrix products of decode do: as Tuning says.
class Prefetcher {
 public:
  HWY_INLINE Prefetcher() = default;  // nothing to fetch
  // is_few: as a stream. (After the last tile comes another part or kv head.)
  HWY_INLINE Prefetcher(const void* from, bool is_few, const Tuning& tuning)
      : next_(static_cast<const std::byte*>(from) + tuning.cache_distance),
        into_(is_few ? tuning.cache : tuning.many_rows) {
    if (into_ == Fetch::none) next_ = nullptr;
  }

  // Called when kBytes more are being read.
  template <Index kBytes>
  HWY_INLINE void step() {
    if (next_ == nullptr) return;
    prefetch_lines<kBytes>(into_, next_);
    next_ += kBytes;
  }

 private:
  const std::byte* next_ = nullptr;
  Fetch into_ = Fetch::none;
};

}}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE::attention
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
