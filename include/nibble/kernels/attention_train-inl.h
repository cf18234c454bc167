// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_ATTENTION_TRAIN_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_ATTENTION_TRAIN_INL_H_
#undef NIBBLE_KERNELS_ATTENTION_TRAIN_INL_H_
#else
#define NIBBLE_KERNELS_ATTENTION_TRAIN_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "nibble/core/libm.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/kernels/attention_train.hpp"
#include "nibble/kernels/elementwise-inl.h"
#include "nibble/kernels/math-inl.h"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace train_attention {

using kernels::kTrainKeys;
using kernels::kTrainRows;
using kernels::TrainAttentionArgs;
using D = PanelTag<float>;
using V = hn::Vec<D>;
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(D()));

// ---- Small products ----------------------------------------------------------------------------

// Rows of a register tile, and vectors of its columns: 8 sums hide the latency of a fused
// multiply-add (4 cycles, two per cycle); with 32 registers, more save loads.
inline constexpr int kTileRows = 4;
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr int kTileVectors = 4;
#else
inline constexpr int kTileVectors = 2;
#endif

// c = a b, or c += a b with kAdd. Element (i, t) of a is at a + i * row + t * step; rows of b and c
// are arrays, b_row and c_row apart.
struct Left {
  const float* at;
  Index row, step;
};

template <int kRows, int kVectors, bool kAdd>
HWY_INLINE void product_tile(Left a, const float* HWY_RESTRICT b, Index b_row, Index depth,
                             float* HWY_RESTRICT c, Index c_row) {
  const D d;
  RegisterTile<D, kRows, kVectors> sums;
  if constexpr (kAdd) {
    sums.load(c, c_row);
  } else {
    sums.fill(hn::Zero(d));
  }
  for (; depth > 0; --depth, a.at += a.step, b += b_row) {
    typename RegisterTile<D, kRows, kVectors>::Row row;
    row.load(b, 0);
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      sums.multiply_add(r, hn::Set(d, a.at[r * a.row]), row);
    }
  }
  sums.store(c, c_row);
}

// The last n < kLanes columns.
template <int kRows, bool kAdd>
HWY_INLINE void product_tail(Left a, const float* HWY_RESTRICT b, Index b_row, Index depth,
                             float* HWY_RESTRICT c, Index c_row, size_t n) {
  const D d;
  RegisterTile<D, kRows, 1> sums;
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
    sums.set(r, 0, kAdd ? hn::LoadN(d, c + r * c_row, n) : hn::Zero(d));
  }
  for (; depth > 0; --depth, a.at += a.step, b += b_row) {
    RegisterTile<D, 1, 1> row;
    row.set(0, 0, hn::LoadN(d, b, n));
    HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) {
      sums.multiply_add(r, hn::Set(d, a.at[r * a.row]), row);
    }
  }
  HWY_UNROLL(4) for (int r = 0; r < kRows; ++r) { hn::StoreN(sums.get(r, 0), d, c + r * c_row, n); }
}

template <int kRows, bool kAdd>
HWY_INLINE void product_rows(Left a, const float* b, Index b_row, Index depth, float* c,
                             Index c_row, Index n) {
  Index j = 0;
  for (; j + kTileVectors * kLanes <= n; j += kTileVectors * kLanes) {
    product_tile<kRows, kTileVectors, kAdd>(a, b + j, b_row, depth, c + j, c_row);
  }
  for (; j + kLanes <= n; j += kLanes) {
    product_tile<kRows, 1, kAdd>(a, b + j, b_row, depth, c + j, c_row);
  }
  if (j < n) {
    product_tail<kRows, kAdd>(a, b + j, b_row, depth, c + j, c_row, static_cast<size_t>(n - j));
  }
}

// m <= kTileRows rows, n columns. Not inlined: one copy for all products of a kernel.
template <bool kAdd>
HWY_NOINLINE void product(Index m, Index n, Index depth, Left a, const float* b, Index b_row,
                          float* c, Index c_row) {
  if (m == kTileRows) {
    product_rows<kTileRows, kAdd>(a, b, b_row, depth, c, c_row, n);
    return;
  }
  if (m >= 2) {
    product_rows<2, kAdd>(a, b, b_row, depth, c, c_row, n);
    a.at += 2 * a.row;
    c += 2 * c_row;
  }
  if (m % 2 == 1) product_rows<1, kAdd>(a, b, b_row, depth, c, c_row, n);
}

// ---- Transposed keys and values ----------------------------------------------------------------

// 4 rows of x, 4 columns of them, to 4 rows of `to`.
HWY_INLINE void transpose_4x4(const float* HWY_RESTRICT x, Index x_row, float* HWY_RESTRICT to) {
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;  // NEON of 32 bits has no doubles
  const auto r0 = hn::LoadU(d, x), r1 = hn::LoadU(d, x + x_row);
  const auto r2 = hn::LoadU(d, x + 2 * x_row), r3 = hn::LoadU(d, x + 3 * x_row);
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, to + kTrainKeys);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, to + 2 * kTrainKeys);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, to + 3 * kTrainKeys);
}

// Row p of x (n, dim) becomes column p of its tile, a (dim, kTrainKeys) matrix; tiles follow each
// other. Columns up to the next multiple of 16 are zeros.
NIBBLE_LAZY HWY_INLINE void transpose_tiles(const float* x, Index x_row, Index n, Index dim,
                                            float* to) {
  for (Index first = 0; first < n; first += kTrainKeys, to += kTrainKeys * dim) {
    const Index rows = (std::min)(kTrainKeys, n - first);
    const float* const from = x + first * x_row;
    Index p = 0;
    for (; p + 4 <= rows; p += 4) {
      Index i = 0;
      for (; i + 4 <= dim; i += 4) {
        transpose_4x4(from + p * x_row + i, x_row, to + i * kTrainKeys + p);
      }
      for (; i < dim; ++i) {
        for (Index r = p; r < p + 4; ++r) to[i * kTrainKeys + r] = from[r * x_row + i];
      }
    }
    for (const Index end = (rows + 15) / 16 * 16; p < end; ++p) {
      for (Index i = 0; i < dim; ++i) {
        to[i * kTrainKeys + p] = p < rows ? from[p * x_row + i] : 0.0f;
      }
    }
  }
}

// ---- Tiles of scores ---------------------------------------------------------------------------

// What some rows see of the tile of keys that begins at `first`, relative to it.
struct Range {
  Index begin, end;
  HWY_INLINE bool is_empty() const { return begin >= end; }
};
HWY_INLINE Range seen(const TrainAttentionArgs& args, Index first_row, Index last_row,
                      Index first) {
  return {(std::max)(Index{0}, args.first_seen(first_row) - first),
          (std::min)(kTrainKeys, args.end_seen(last_row) - first)};
}
// Whole vectors from here on.
HWY_INLINE Index vector_start(Index p) { return p / kLanes * kLanes; }

// The lanes of the vector at p that are in the range.
HWY_INLINE hn::Mask<D> lanes_in(Range r, Index p) {
  const hn::RebindToSigned<D> di;
  const auto position = hn::Iota(di, static_cast<std::int32_t>(p));
  const auto first = hn::Set(di, static_cast<std::int32_t>(r.begin));
  const auto last = hn::Set(di, static_cast<std::int32_t>(r.end));
  return hn::RebindMask(D(), hn::And(hn::Ge(position, first), hn::Lt(position, last)));
}

// One query head.
struct Head {
  const TrainAttentionArgs& args;
  Index h;
  float slope;  // of alibi

  HWY_INLINE Head(const TrainAttentionArgs& a, Index head)
      : args(a), h(head), slope(a.alibi_slopes != nullptr ? a.alibi_slopes[head] : 0.0f) {}
  HWY_INLINE const float* q(Index i) const {
    return args.q + i * args.q_stride + h * args.head_dim;
  }
  HWY_INLINE float* out(Index i) const {
    return args.out + i * args.out_stride + h * args.value_dim;
  }
  HWY_INLINE const float* dout(Index i) const {
    return args.dout + i * args.dout_stride + h * args.value_dim;
  }
  HWY_INLINE float* dq(Index i) const { return args.dq + i * args.dq_stride + h * args.head_dim; }
  HWY_INLINE float& lse(Index i) const { return args.lse[i * args.lse_stride + h]; }

  // The scores at position p of products s, without alibi: they are what a soft cap's slope needs.
  HWY_INLINE V capped(V s) const {
    const D d;
    s = hn::Mul(s, hn::Set(d, args.scale));
    if (args.soft_cap == 0) return s;
    return hn::Mul(hn::Set(d, args.soft_cap), tanh(d, hn::Mul(s, hn::Set(d, 1 / args.soft_cap))));
  }
  // Minus slope * |distance|; the vector begins `distance` positions after the query's own.
  HWY_INLINE V with_alibi(V s, Index distance) const {
    if (args.alibi_slopes == nullptr) return s;
    const D d;
    const V away = hn::Iota(d, static_cast<float>(distance));
    return hn::NegMulAdd(hn::Set(d, slope), hn::Abs(away), s);
  }
};

// Products of rows [i, i + m) of a, `dim` wide, with the transposed tile `b`: columns of what the
// rows see.
HWY_INLINE void score_rows(const float* a, Index a_row, Index m, Index dim, const float* b, Range r,
                           float* to) {
  const Index begin = vector_start(r.begin);
  const Index width = (r.end - begin + kLanes - 1) / kLanes * kLanes;
  product<false>(m, width, dim, {a, a_row, 1}, b + begin, kTrainKeys, to + begin, kTrainKeys);
}

// ---- Forward -----------------------------------------------------------------------------------

// The largest score so far and the sum of exponentials relative to it, for each row of a tile.
struct Running {
  float max[kTrainRows];
  double sum[kTrainRows];
};

// Turns the products of row i with the tile at `first` into exponentials, zeros where the row does
// not see the keys that its block of rows (`all`) sees. Rescales what the row has summed up.
HWY_INLINE void exponentials(const Head& head, Index i, Index first, Range all, float* s,
                             Running& running, Index r) {
  const D d;
  const Range own = seen(head.args, i, i, first);
  const Index begin = vector_start(all.begin);
  V top = hn::Set(d, -kInfinity);
  for (Index p = begin; p < all.end; p += kLanes) {
    const V score = head.with_alibi(head.capped(hn::LoadU(d, s + p)), first + p - i);
    hn::StoreU(score, d, s + p);
    top = max_skip_nan(hn::IfThenElse(lanes_in(own, p), score, hn::Set(d, -kInfinity)), top);
  }
  const float max = larger(hn::ReduceMax(d, top), running.max[r]);
  V sum = hn::Zero(d);
  for (Index p = begin; p < all.end; p += kLanes) {
    const V e = exp_nonpositive(d, hn::Sub(hn::LoadU(d, s + p), hn::Set(d, max)));
    const V kept = hn::IfThenElseZero(lanes_in(own, p), e);
    hn::StoreU(kept, d, s + p);
    sum = hn::Add(sum, kept);
  }
  if (max != running.max[r]) {
    if (running.sum[r] != 0) {  // otherwise there is nothing to rescale
      const float factor = hn::GetLane(exp_nonpositive(d, hn::Set(d, running.max[r] - max)));
      running.sum[r] *= static_cast<double>(factor);
      float* const out = head.out(i);
      Impl<kernels::Scale>::run(out, factor, out, head.args.value_dim);
    }
    running.max[r] = max;
  }
  running.sum[r] += static_cast<double>(hn::ReduceSum(d, sum));
}

// Rows [row, row + m) of a head with all keys that they see.
NIBBLE_LAZY HWY_INLINE void forward_rows(const Head& head, Index row, Index m, const float* keys,
                                         float* s) {
  const TrainAttentionArgs& args = head.args;
  Running running;
  for (Index r = 0; r < m; ++r) {
    running.max[r] = args.sink_logits != nullptr ? args.sink_logits[head.h] : -kInfinity;
    running.sum[r] = args.sink_logits != nullptr ? 1.0 : 0.0;
    std::memset(head.out(row + r), 0, static_cast<size_t>(args.value_dim) * sizeof(float));
  }
  const Index end = args.end_seen(row + m - 1);
  for (Index first = args.first_seen(row) / kTrainKeys * kTrainKeys; first < end;
       first += kTrainKeys) {
    for (Index r = 0; r < m; r += kTileRows) {
      const Index n_rows = (std::min)(Index{kTileRows}, m - r);
      const Range all = seen(args, row + r, row + r + n_rows - 1, first);
      if (all.is_empty()) continue;
      float* const block = s + r * kTrainKeys;
      score_rows(head.q(row + r), args.q_stride, n_rows, args.head_dim,
                 keys + first * args.head_dim, all, block);
      for (Index j = 0; j < n_rows; ++j) {
        exponentials(head, row + r + j, first, all, block + j * kTrainKeys, running, r + j);
      }
      product<true>(n_rows, args.value_dim, all.end - all.begin, {block + all.begin, kTrainKeys, 1},
                    args.v + (first + all.begin) * args.v_stride, args.v_stride, head.out(row + r),
                    args.out_stride);
    }
  }
  for (Index r = 0; r < m; ++r) {
    float* const out = head.out(row + r);
    Impl<kernels::Scale>::run(out, static_cast<float>(1.0 / running.sum[r]), out, args.value_dim);
    head.lse(row + r) =
        static_cast<float>(static_cast<double>(running.max[r]) + libm::log(running.sum[r]));
  }
}

// ---- Backward ----------------------------------------------------------------------------------

// Memory of a backward task.
struct BackScratch {
  const float* keys;
  const float* values;
  float* p;   // (kTrainRows, kTrainKeys): scores, then P
  float* ds;  // likewise: dout v^T, then dS * scale
};

// The sum of a[j] * b[j].
NIBBLE_LAZY HWY_INLINE float dot(const float* a, const float* b, Index n) {
  const D d;
  V s0 = hn::Zero(d), s1 = hn::Zero(d);
  Index j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    s0 = hn::MulAdd(hn::LoadU(d, a + j), hn::LoadU(d, b + j), s0);
    s1 = hn::MulAdd(hn::LoadU(d, a + j + kLanes), hn::LoadU(d, b + j + kLanes), s1);
  }
  for (; j < n; j += kLanes) {
    const auto rest = static_cast<size_t>((std::min)(kLanes, n - j));
    s0 = hn::MulAdd(hn::LoadN(d, a + j, rest), hn::LoadN(d, b + j, rest), s0);
  }
  return hn::ReduceSum(d, hn::Add(s0, s1));
}

// Row i: products become P and dS * scale over what its block of rows sees, zeros where the row
// itself sees nothing. `mean` is D of the row.
HWY_INLINE void score_gradients(const Head& head, Index i, Index first, Range all, float mean,
                                float* p, float* ds) {
  const D d;
  const Range own = seen(head.args, i, i, first);
  const V lse = hn::Set(d, head.lse(i));
  const float cap = head.args.soft_cap;
  const V inverse_cap = hn::Set(d, cap == 0 ? 0.0f : 1 / cap);
  for (Index at = vector_start(all.begin); at < all.end; at += kLanes) {
    const auto is_seen = lanes_in(own, at);
    const V capped = head.capped(hn::LoadU(d, p + at));
    const V score = head.with_alibi(capped, first + at - i);
    const V e = hn::IfThenElseZero(is_seen, exp_nonpositive(d, hn::Sub(score, lse)));
    const V t = hn::Mul(capped, inverse_cap);
    const V slope = hn::Mul(hn::Set(d, head.args.scale), hn::NegMulAdd(t, t, hn::Set(d, 1.0f)));
    const V difference = hn::Sub(hn::LoadU(d, ds + at), hn::Set(d, mean));
    hn::StoreU(e, d, p + at);
    hn::StoreU(hn::IfThenElseZero(is_seen, hn::Mul(hn::Mul(e, difference), slope)), d, ds + at);
  }
}

// Rows [row, row + m) of a head with the tile of keys at `first`: computes P and dS, and adds to
// dq. Writes what each block of rows sees to `blocks`.
NIBBLE_LAZY HWY_INLINE void backward_rows(const Head& head, Index row, Index m, Index first,
                                          const float* mean, const BackScratch& scratch,
                                          Range* blocks) {
  const TrainAttentionArgs& args = head.args;
  for (Index r = 0; r < m; r += kTileRows) {
    const Index n_rows = (std::min)(Index{kTileRows}, m - r);
    const Range all = seen(args, row + r, row + r + n_rows - 1, first);
    blocks[r / kTileRows] = all;
    if (all.is_empty()) continue;
    float* const p = scratch.p + r * kTrainKeys;
    float* const ds = scratch.ds + r * kTrainKeys;
    score_rows(head.q(row + r), args.q_stride, n_rows, args.head_dim,
               scratch.keys + first * args.head_dim, all, p);
    score_rows(head.dout(row + r), args.dout_stride, n_rows, args.value_dim,
               scratch.values + first * args.value_dim, all, ds);
    for (Index j = 0; j < n_rows; ++j) {
      score_gradients(head, row + r + j, first, all, mean[r + j], p + j * kTrainKeys,
                      ds + j * kTrainKeys);
    }
    product<true>(n_rows, args.head_dim, all.end - all.begin, {ds + all.begin, kTrainKeys, 1},
                  args.k + (first + all.begin) * args.k_stride, args.k_stride, head.dq(row + r),
                  args.dq_stride);
  }
}

// The same rows and keys: adds to dk and dv. A block of keys, aligned like vectors, takes the
// blocks of rows that see one of them: of these it finds numbers or zeros.
NIBBLE_LAZY HWY_INLINE void backward_keys(const Head& head, Index row, Index m, Index first,
                                          const BackScratch& scratch, const Range* blocks) {
  const TrainAttentionArgs& args = head.args;
  const Index n_blocks = (m + kTileRows - 1) / kTileRows;
  const Range all = seen(args, row, row + m - 1, first);
  Index from = 0;
  for (Index key = all.begin / kTileRows * kTileRows; key < all.end; key += kTileRows) {
    const Index n_keys = (std::min)(Index{kTileRows}, args.n - first - key);
    while (from < n_blocks && blocks[from].end <= key) ++from;
    Index to = from;
    while (to < n_blocks && blocks[to].begin < key + kTileRows) ++to;
    if (from == to) continue;
    const Index begin = from * kTileRows, n_rows = (std::min)(m, to * kTileRows) - begin;
    const Index at = begin * kTrainKeys + key;
    product<true>(n_keys, args.value_dim, n_rows, {scratch.p + at, 1, kTrainKeys},
                  head.dout(row + begin), args.dout_stride,
                  args.dv + (first + key) * args.dv_stride, args.dv_stride);
    product<true>(n_keys, args.head_dim, n_rows, {scratch.ds + at, 1, kTrainKeys},
                  head.q(row + begin), args.q_stride, args.dk + (first + key) * args.dk_stride,
                  args.dk_stride);
  }
}

HWY_INLINE void set_zero(float* x, Index stride, Index n, Index width) {
  for (Index i = 0; i < n; ++i) {
    std::memset(x + i * stride, 0, static_cast<size_t>(width) * sizeof(float));
  }
}

}  // namespace train_attention

template <>
struct Impl<kernels::TrainAttention> {
  NIBBLE_LAZY static void run(const kernels::TrainAttentionArgs& args) {
    using namespace train_attention;
    float* const s = args.scratch;
    float* const keys = s + 2 * kTrainRows * kTrainKeys;
    transpose_tiles(args.k, args.k_stride, args.n, args.head_dim, keys);
    for (Index h = 0; h < args.group; ++h) {
      const Head head(args, h);
      for (Index row = 0; row < args.n; row += kTrainRows) {
        forward_rows(head, row, (std::min)(kTrainRows, args.n - row), keys, s);
      }
    }
  }
};

template <>
struct Impl<kernels::TrainAttentionBack> {
  NIBBLE_LAZY static void run(const kernels::TrainAttentionArgs& args) {
    using namespace train_attention;
    float* const tiles = args.scratch;
    float* const keys = tiles + 2 * kTrainRows * kTrainKeys;
    float* const values =
        keys + (args.n + kTrainKeys - 1) / kTrainKeys * kTrainKeys * args.head_dim;
    transpose_tiles(args.k, args.k_stride, args.n, args.head_dim, keys);
    transpose_tiles(args.v, args.v_stride, args.n, args.value_dim, values);
    set_zero(args.dk, args.dk_stride, args.n, args.head_dim);
    set_zero(args.dv, args.dv_stride, args.n, args.value_dim);
    const BackScratch scratch{keys, values, tiles, tiles + kTrainRows * kTrainKeys};
    for (Index h = 0; h < args.group; ++h) {
      const Head head(args, h);
      set_zero(args.dq + h * args.head_dim, args.dq_stride, args.n, args.head_dim);
      for (Index row = 0; row < args.n; row += kTrainRows) {
        const Index m = (std::min)(kTrainRows, args.n - row);
        float mean[kTrainRows];
        for (Index r = 0; r < m; ++r) {
          mean[r] = dot(head.dout(row + r), head.out(row + r), args.value_dim);
        }
        const Index end = args.end_seen(row + m - 1);
        for (Index first = args.first_seen(row) / kTrainKeys * kTrainKeys; first < end;
             first += kTrainKeys) {
          Range blocks[kTrainRows / kTileRows];
          backward_rows(head, row, m, first, mean, scratch, blocks);
          backward_keys(head, row, m, first, scratch, blocks);
        }
      }
    }
  }
};

template <>
struct Impl<kernels::TrainSinkBack> {
  NIBBLE_LAZY static double run(const kernels::TrainAttentionArgs& args, float sink) {
    const train_attention::Head head(args, 0);
    double sum = 0;
    for (Index i = 0; i < args.n; ++i) {
      const double p = libm::exp(static_cast<double>(sink) - static_cast<double>(head.lse(i)));
      const float mean = train_attention::dot(head.dout(i), head.out(i), args.value_dim);
      sum -= p * static_cast<double>(mean);
    }
    return sum;
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
