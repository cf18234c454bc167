// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ATTENTION_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_INL_H_
#endif

#include <limits>
#include <type_traits>

#include "nibble/core/scalar.hpp"
#include "nibble/kernels/attention_float-inl.h"
#include "nibble/kernels/attention_int4-inl.h"
#include "nibble/kernels/attention_int8-inl.h"
#include "nibble/kernels/math-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace attention {

// Loads or stores the first n elements, or a whole vector if n >= kLanes.
NIBBLE_LAZY HWY_INLINE V load_up_to(const float* p, Index n) {
  return n >= kLanes ? load(p) : load_n(p, static_cast<size_t>(n));
}
NIBBLE_LAZY HWY_INLINE void store_up_to(V v, Index n, float* p) {
  if (n >= kLanes) {
    hn::StoreU(v, D(), p);
  } else {
    hn::StoreN(v, D(), p, static_cast<size_t>(n));
  }
}

// n: a multiple of kLanes.
HWY_INLINE void fill(float* p, Index n, float x) {
  for (Index i = 0; i < n; i += kLanes) hn::StoreU(hn::Set(D(), x), D(), p + i);
}

// ---- Softmax -----------------------------------------------------------------------------------
// Each phase is done for all rows of a block, so that the horizontal maxima of the rows overlap.

using D4 = hn::CappedTag<float, kMaxRows>;
static_assert(hn::MaxLanes(D4()) == kMaxRows);

// The state of the rows of a block after the positions that they have seen so far.
struct RowStates {
  float* max;         // (kMaxRows)
  float* sums;        // (kMaxRows, kPanelPositions): lanes of the sum of weights
  float* correction;  // (kMaxRows): factor for the sums so far
};

// Turns scores (n_rows, kAttentionTile) into the weights that value_rows() of the element type
// reads. The weight is 0 where a row does not see a position that another row
// of its block sees. Exception: a row that has not seen anything yet has the lowest number as its
// maximum, and exp(0) = 1 for positions that it does not see. The first score that it sees, or the
// merge, multiplies these by 0.
template <class T>
HWY_INLINE void softmax(float* HWY_RESTRICT scores, int n_rows, const Seen& seen, const T* values,
                        Index head_dim, const RowStates& state, Prefetcher& prefetcher) {
  const D d;
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  float tops[kMaxRows] = {kLowest, kLowest, kLowest, kLowest};
  for (int r = 0; r < n_rows; ++r) {
    float* const row = scores + r * kAttentionTile;
    const V lowest = hn::Set(d, kLowest);
    V top = lowest;
    if (seen.all(r)) {
      for (Index p = seen.begin; p < seen.end; p += kLanes) top = hn::Max(top, load(row + p));
    } else {
      // A select, not arithmetic: scores of positions that are not seen may be NaN.
      for (Index p = seen.begin; p < seen.end; p += kLanes) {
        const V x = hn::IfThenElse(seen.mask(r, p), load(row + p), lowest);
        hn::StoreU(x, d, row + p);
        top = hn::Max(top, x);
      }
    }
    tops[r] = hn::ReduceMax(d, top);
  }
  const auto before = hn::LoadU(D4(), state.max);
  const auto max = hn::Max(before, hn::LoadU(D4(), tops));
  hn::StoreU(max, D4(), state.max);
  hn::StoreU(exp_nonpositive(D4(), hn::Sub(before, max)), D4(), state.correction);

  Weights<T> weights(values, head_dim, n_rows);
  for (int r = 0; r < n_rows; ++r) {
    float* const row = scores + r * kAttentionTile;
    const V shift = hn::Set(d, state.max[r]);
    float* const lanes = state.sums + r * kPanelPositions;
    V sum = hn::Mul(hn::Set(d, state.correction[r]), load(lanes));
    for (Index p = seen.begin; p < seen.end; p += kLanes) {
      const V e = exp_nonpositive(d, hn::Sub(load(row + p), shift));
      sum = hn::Add(sum, e);
      hn::StoreU(weights.of(e, r, p, seen), d, row + p);
    }
    hn::StoreU(sum, d, lanes);
    weights.end_row(r, prefetcher);
  }
  weights.finish(scores, n_rows, seen);
}

// ---- Changes of scores -------------------------------------------------------------------------

// See ScoreOptions. n: a multiple of kPanelPositions.
NIBBLE_LAZY HWY_NOINLINE void change_scores(const kernels::ScoreOptions& options, Index head,
                                            Index position, Index first_key, Index n,
                                            float* HWY_RESTRICT scores) {
  const D d;
  if (options.soft_cap != 0) {
    const V cap = hn::Set(d, options.soft_cap);
    const V inverse = hn::Set(d, 1 / options.soft_cap);
    for (Index i = 0; i < n; i += kLanes) {
      const V x = tanh(d, hn::Mul(load(scores + i), inverse));
      hn::StoreU(hn::Mul(x, cap), d, scores + i);
    }
  }
  if (options.alibi_slopes != nullptr) {
    const V slope = hn::Set(d, options.alibi_slopes[head]);
    for (Index i = 0; i < n; i += kLanes) {
      const auto distance = hn::Iota(DI(), static_cast<std::int32_t>(first_key + i - position));
      const V away = hn::Abs(hn::ConvertTo(d, distance));
      hn::StoreU(hn::NegMulAdd(slope, away, load(scores + i)), d, scores + i);
    }
  }
  if (options.function != nullptr) {
    options.function(options.data, head, position, first_key, n, scores);
  }
}

// The factor for the sums of values if `sum` is the sum of weights exp(score - max) and the sink
// adds one more weight to it.
NIBBLE_LAZY HWY_INLINE float factor_with_sink(float sink, float max, float sum) {
  const D d;
  const float top = larger(sink, max);
  const float own = hn::GetLane(exp_nonpositive(d, hn::Set(d, max - top)));
  const float others = hn::GetLane(exp_nonpositive(d, hn::Set(d, sink - top)));
  return own / (own * sum + others);
}

// ---- A task ------------------------------------------------------------------------------------

// A task processes its rows in blocks of up to kMaxRows: all its blocks for one tile of positions,
// then the next tile. For a prompt, the scores of the last block are also computed for kMaxRows
// rows, with zeros for the missing ones: with fewer rows, scores would be summed in another order.
template <class T>
class Task {
 public:
  using Args = typename kernels::Attend<T>::Args;

  HWY_INLINE explicit Task(const Args& args)
      : a_(args),
        n_rows_(args.n_tokens * args.group),
        n_padded_(kernels::round_up(n_rows_, kMaxRows)),
        is_few_(n_rows_ <= 2 * kMaxRows),
        padded_dim_(kernels::round_up(args.head_dim, 32)),
        tile_size_(kernels::tile_size<T>(args.head_dim)),
        values_at_(kernels::value_panel<T>(0, args.head_dim)) {
    max_ = a_.scratch;
    correction_ = max_ + kernels::round_up(n_rows_, kPanelPositions);
    weight_sums_ = correction_ + kernels::round_up(n_rows_, kPanelPositions);
    scores_ = weight_sums_ + n_padded_ * kPanelPositions;
    sums_ = scores_ + n_padded_ * kAttentionTile;
    queries_ = sums_ + n_padded_ * padded_dim_;
  }

  HWY_INLINE void run() {
    start();
    for (Index slot = a_.first_slot; slot < a_.end_slot; ++slot) {
      const Index tile = a_.tiles == nullptr ? slot : Index{a_.tiles[slot]};
      tile_ = tile * kAttentionTile;
      keys_ = a_.cache + kernels::page_of(a_.pages, tile) * tile_size_;
      prefetcher_ = Prefetcher(keys_, is_few_, a_.tuning);
      for (Index row = 0; row < n_rows_; row += kMaxRows) score(row);
      for (Index row = 0; row < n_rows_; row += kMaxRows) add_values(row);
    }
    finish();
  }

 private:
  HWY_INLINE Index rows_at(Index row) const { return std::min<Index>(kMaxRows, n_rows_ - row); }
  // How many rows of the block at `row` have their scores computed.
  HWY_INLINE Index scored_at(Index row) const { return a_.is_prompt ? kMaxRows : rows_at(row); }
  HWY_INLINE Index position_of(Index row) const { return a_.first_position + row / a_.group; }

  // The range of positions that a row sees, relative to the tile.
  HWY_INLINE Index seen_from(Index row) const {
    Index lo = a_.begin;
    if (a_.window > 0) lo = (std::max)(lo, position_of(row) + 1 - a_.window);
    return std::clamp<Index>(lo - tile_, 0, kAttentionTile);
  }
  HWY_INLINE Index seen_to(Index row) const {
    const Index hi = (std::min)(a_.end, position_of(row) + 1 + a_.ahead);
    return std::clamp<Index>(hi - tile_, 0, kAttentionTile);
  }

  HWY_INLINE void start() {
    if (a_.is_prompt)
      fill(queries_ + (n_padded_ - kMaxRows) * padded_dim_, kMaxRows * padded_dim_, 0);
    for (Index row = 0; row < n_rows_; ++row) {
      const Index r = row % kMaxRows;
      const float* const q = a_.q + row / a_.group * a_.q_stride + row % a_.group * a_.head_dim;
      put_query(a_.cache, q, a_.scale, a_.head_dim, r, scored_at(row - r),
                queries_ + (row - r) * padded_dim_);
    }
    fill(max_, kernels::round_up(n_rows_, kPanelPositions), -kFloatMax);
    fill(weight_sums_, n_rows_ * kPanelPositions, 0);
    fill(sums_, n_rows_ * padded_dim_, 0);
  }

  HWY_INLINE void score(Index row) {
    const Index n = rows_at(row);
    const Index lo = seen_from(row);
    const Index hi = seen_to(row + n - 1);
    if (lo >= hi) return;
    switch (scored_at(row)) {
      case 4: score_rows_at<4>(row, lo, hi); break;
      case 3: score_rows_at<3>(row, lo, hi); break;
      case 2: score_rows_at<2>(row, lo, hi); break;
      default: score_rows_at<1>(row, lo, hi);
    }
    Seen seen;
    seen.begin = lo / kPanelPositions * kPanelPositions;
    seen.end = kernels::round_up(hi, kPanelPositions);
    for (Index r = 0; r < n; ++r) {
      seen.from[r] = seen_from(row + r);
      seen.to[r] = seen_to(row + r);
    }
    if (a_.scores.changes_scores()) {
      for (Index r = row; r < row + n; ++r) {
        change_scores(a_.scores, a_.first_head + r % a_.group, position_of(r), tile_ + seen.begin,
                      seen.end - seen.begin, scores_ + r * kAttentionTile + seen.begin);
      }
    }
    const RowStates state{max_ + row, weight_sums_ + row * kPanelPositions, correction_ + row};
    softmax(scores_ + row * kAttentionTile, static_cast<int>(n), seen, keys_ + values_at_,
            a_.head_dim, state, prefetcher_of(row));
  }
  template <int kRows>
  HWY_INLINE void score_rows_at(Index row, Index lo, Index hi) {
    score_rows<kRows>(queries_ + row * padded_dim_, keys_, lo, hi, a_.head_dim,
                      scores_ + row * kAttentionTile, is_stream<kRows>(row), prefetcher_of(row));
  }

  HWY_INLINE void add_values(Index row) {
    const Index n = rows_at(row);
    const Index lo = seen_from(row);
    const Index hi = seen_to(row + n - 1);
    if (lo >= hi) return;
    switch (n) {
      case 4: value_rows_at<4>(row, lo, hi); break;
      case 3: value_rows_at<3>(row, lo, hi); break;
      case 2: value_rows_at<2>(row, lo, hi); break;
      default: value_rows_at<1>(row, lo, hi);
    }
  }
  template <int kRows>
  HWY_INLINE void value_rows_at(Index row, Index lo, Index hi) {
    value_rows<kRows>(scores_ + row * kAttentionTile, keys_ + values_at_, lo, hi, a_.head_dim,
                      correction_ + row, sums_ + row * padded_dim_, padded_dim_,
                      is_stream<kRows>(row), prefetcher_of(row));
  }

  // Whether the tile comes from memory for these rows: true for the first rows, which prefetch for
  // all. (Also true for the last few of many rows: it makes no difference to them, and decode needs
  // no test at run time.)
  template <int kRows>
  static HWY_INLINE bool is_stream(Index row) {
    return kRows < kMaxRows || row == 0;
  }
  HWY_INLINE Prefetcher& prefetcher_of(Index row) {
    return row == 0 ? prefetcher_ : no_prefetcher_;
  }

  HWY_INLINE void finish() {
    for (Index row = 0; row < n_rows_; ++row) {
      float* const out = a_.out + row / a_.group * a_.out_stride + row % a_.group * a_.head_dim;
      const float* const sums = sums_ + row * padded_dim_;
      V lanes = hn::Zero(D());
      for (Index i = 0; i < kPanelPositions; i += kLanes) {
        lanes = hn::Add(lanes, load(weight_sums_ + row * kPanelPositions + i));
      }
      const float sum = hn::ReduceSum(D(), lanes);
      float factor = 1;
      if (a_.max == nullptr) {
        const float* const sinks = a_.scores.sink_logits;
        factor = sinks == nullptr
                     ? 1 / sum
                     : factor_with_sink(sinks[a_.first_head + row % a_.group], max_[row], sum);
      }
      for (Index i = 0; i < a_.head_dim; i += kLanes) {
        store_up_to(hn::Mul(load(sums + i), hn::Set(D(), factor)), a_.head_dim - i, out + i);
      }
      if (a_.max != nullptr) {
        a_.max[row] = max_[row];
        a_.sum[row] = sum;
      }
    }
  }

  const Args& a_;
  Index n_rows_;
  Index n_padded_;  // n_rows_, rounded up to whole blocks
  bool is_few_;     // bound by memory, not by arithmetic
  Index padded_dim_;
  Index tile_size_;
  Index values_at_;  // offset within a tile
  Index tile_ = 0;   // first position of the tile
  Prefetcher prefetcher_, no_prefetcher_;
  const T* keys_ = nullptr;  // keys of the tile
  float* max_;               // (n_rows)
  float* correction_;        // (n_rows)
  float* weight_sums_;       // (n_rows, kPanelPositions)
  float* scores_;            // (n_padded, kAttentionTile)
  float* sums_;              // (n_rows, padded_dim)
  float* queries_;           // what put_query() writes, n_padded rows
};

// ---- Partial results ---------------------------------------------------------------------------

NIBBLE_LAZY HWY_INLINE void merge(const kernels::MergeAttention::Args& a) {
  const D d;
  for (Index row = 0; row < a.n_rows; ++row) {
    float max = -kFloatMax;
    for (Index p = 0; p < a.n_parts; ++p) max = larger(max, a.max[p * a.part_rows + row]);
    float* const merged = a.merged + row * a.head_dim;
    float sum = 0;
    for (Index p = 0; p < a.n_parts; ++p) {
      const Index part = p * a.part_rows + row;
      const float weight = hn::GetLane(exp_nonpositive(d, hn::Set(d, a.max[part] - max)));
      sum += weight * a.sum[part];
      const float* const out = a.out + part * a.head_dim;
      for (Index i = 0; i < a.head_dim; i += kLanes) {
        const Index n = a.head_dim - i;
        const V before = p == 0 ? hn::Zero(d) : load_up_to(merged + i, n);
        const V x = load_up_to(out + i, n);
        store_up_to(hn::MulAdd(hn::Set(d, weight), x, before), n, merged + i);
      }
    }
    const V factor = hn::Set(
        d, a.sink_logits == nullptr ? 1 / sum : factor_with_sink(a.sink_logits[row], max, sum));
    for (Index i = 0; i < a.head_dim; i += kLanes) {
      const Index n = a.head_dim - i;
      store_up_to(hn::Mul(load_up_to(merged + i, n), factor), n, merged + i);
    }
  }
}

// ---- Filling the cache -------------------------------------------------------------------------

template <class T>
HWY_INLINE void store_keys_values(const typename kernels::StoreKeysValues<T>::Args& a) {
  const Index tile_size = kernels::tile_size<T>(a.head_dim);
  for (Index t = 0; t < a.n_tokens; ++t) {
    const Index position = a.first_position + t;
    T* const tile = a.cache + kernels::page_of(a.pages, position / kAttentionTile) * tile_size;
    store_key_value(a.key + t * a.key_stride, a.value + t * a.value_stride,
                    position % kAttentionTile, a.head_dim, tile);
  }
}

}  // namespace attention

// Levels add instructions for products of 8-bit integers.
template <class T>
concept AttendedHere =
    !NIBBLE_IS_LEVEL || std::is_same_v<T, std::int8_t> || std::is_same_v<T, kernels::CodePair>;

template <AttendedHere T>
struct Impl<kernels::Attend<T>> {
  static void run(const typename kernels::Attend<T>::Args& a) { attention::Task<T>(a).run(); }
};

#if !NIBBLE_IS_LEVEL
template <>
struct Impl<kernels::MergeAttention> {
  NIBBLE_LAZY static void run(const kernels::MergeAttention::Args& a) { attention::merge(a); }
};

template <class T>
struct Impl<kernels::StoreKeysValues<T>> {
  static void run(const typename kernels::StoreKeysValues<T>::Args& a) {
    attention::store_keys_values<T>(a);
  }
};
#endif

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
