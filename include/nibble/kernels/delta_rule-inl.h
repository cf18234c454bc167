// SPDX-License-Identifier: Apache-2.0

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_DELTA_RULE_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_DELTA_RULE_INL_H_
#undef NIBBLE_KERNELS_DELTA_RULE_INL_H_
#else
#define NIBBLE_KERNELS_DELTA_RULE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/delta_rule.hpp"
#include "nibble/kernels/registers-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

namespace delta_rule_detail {

using kernels::DeltaArgs;
using kernels::kDeltaChunk;
using D = PanelTag<float>;
using V = hn::Vec<D>;
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(D()));

// Rows whose keys and queries are multiplied by the matrix together. Registers: two sums for each
// row and vector, the vectors of the matrix, and one value.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr int kTileRows = 4, kTileVectors = 2;  // 16 + 2 + 1 of 32
#else
inline constexpr int kTileRows = 2, kTileVectors = 2;  // 8 + 2 + 1 of 16
#endif
inline constexpr int kRowVectors = 4;  // of one row: 8 + 4 + 1
static_assert(kDeltaChunk % kTileRows == 0);

// Calls body.template run<kVectors, kWhole>(column, n) for parts of [0, width): kMost vectors, two
// (memory is read faster than by rows of one), one, the n last columns.
template <int kMost, class Body>
HWY_INLINE void for_columns(Index width, const Body& body) {
  Index c = 0;
  for (; c + kMost * kLanes <= width; c += kMost * kLanes) body.template run<kMost, true>(c, 0);
  if constexpr (kMost > 2) {
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) body.template run<2, true>(c, 0);
  }
  for (; c + kLanes <= width; c += kLanes) body.template run<1, true>(c, 0);
  if (c < width) body.template run<1, false>(c, static_cast<size_t>(width - c));
}

// A row of kVectors vectors, or of the first n lanes of one.
template <int kVectors, bool kWhole>
HWY_INLINE void load(RegisterTile<D, 1, kVectors>& to, const float* p, size_t n) {
  if constexpr (kWhole) {
    to.load(p, 0);
  } else {
    to.set(0, 0, hn::LoadN(D(), p, n));
  }
}
template <bool kWhole>
HWY_INLINE void store(V v, float* p, size_t n) {
  if constexpr (kWhole) {
    hn::StoreU(v, D(), p);
  } else {
    hn::StoreN(v, D(), p, n);
  }
}

// Keys (if kSubtracts) and queries of kRows rows times the matrix: to `at_keys`, rows value_dim
// apart, and to `out`.
template <int kRows, bool kSubtracts>
struct TimesMatrix {
  const DeltaArgs& a;
  Index row;  // the first one
  float* at_keys;

  template <int kVectors, bool kWhole>
  HWY_INLINE void run(Index c, size_t n) const {
    const D d;
    const Index key_dim = a.shape.key_dim, width = a.shape.value_dim;
    RegisterTile<D, kRows, kVectors> of_keys, of_queries;
    of_keys.fill(hn::Zero(d));
    of_queries.fill(hn::Zero(d));
    const float* const keys = a.keys + row * a.query_stride;
    const float* const queries = a.queries + row * a.query_stride;
    const float* matrix = a.state + c;
    for (Index i = 0; i < key_dim; ++i, matrix += width) {
      RegisterTile<D, 1, kVectors> s;
      load<kVectors, kWhole>(s, matrix, n);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        if constexpr (kSubtracts) {
          of_keys.multiply_add(r, hn::Set(d, keys[r * a.query_stride + i]), s);
        }
        of_queries.multiply_add(r, hn::Set(d, queries[r * a.query_stride + i]), s);
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8) for (int v = 0; v < kVectors; ++v) {
        const Index at = c + v * kLanes;
        if constexpr (kSubtracts) {
          store<kWhole>(of_keys.get(r, v), at_keys + r * width + at, n);
        }
        store<kWhole>(of_queries.get(r, v), a.out + (row + r) * a.out_stride + at, n);
      }
    }
  }
};

// The products of x and y with z, k values each.
HWY_INLINE void dot_pair(const float* x, const float* y, const float* z, Index k, float& of_x,
                         float& of_y) {
  const D d;
  V sum_x = hn::Zero(d), sum_y = hn::Zero(d);
  Index i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    const V v = hn::LoadU(d, z + i);
    sum_x = hn::MulAdd(hn::LoadU(d, x + i), v, sum_x);
    sum_y = hn::MulAdd(hn::LoadU(d, y + i), v, sum_y);
  }
  if (i < k) {
    const auto n = static_cast<size_t>(k - i);
    const V v = hn::LoadN(d, z + i, n);
    sum_x = hn::MulAdd(hn::LoadN(d, x + i, n), v, sum_x);
    sum_y = hn::MulAdd(hn::LoadN(d, y + i, n), v, sum_y);
  }
  of_x = hn::ReduceSum(d, sum_x);
  of_y = hn::ReduceSum(d, sum_y);
}

// The delta of a row, to its slot, and its result. of_keys[j] and of_queries[j]: the products of
// this row's key and query with the key in slot j, times what is left of that slot's delta.
template <bool kSubtracts>
struct FinishRow {
  const DeltaArgs& a;
  Index row, slot;
  float* deltas;  // (kDeltaChunk, value_dim)
  float left;     // of the matrix
  const float* of_keys;
  const float* of_queries;

  template <int kVectors, bool kWhole>
  HWY_INLINE void run(Index c, size_t n) const {
    const D d;
    const Index width = a.shape.value_dim;
    float* const own = deltas + slot * width + c;
    float* const out = a.out + row * a.out_stride + c;
    RegisterTile<D, 1, kVectors> delta, result, other;
    load<kVectors, kWhole>(delta, a.values + row * a.value_stride + c, n);
    load<kVectors, kWhole>(result, out, n);
    HWY_UNROLL(8) for (int v = 0; v < kVectors; ++v) {
      result.set(0, v, hn::Mul(hn::Set(d, left), result.get(0, v)));
    }
    if constexpr (kSubtracts) {  // `own` is the product of the key with the matrix
      load<kVectors, kWhole>(other, own, n);
      delta.multiply_add(0, hn::Set(d, -left), other);
    }
    for (Index j = 0; j < slot; ++j) {
      load<kVectors, kWhole>(other, deltas + j * width + c, n);
      if constexpr (kSubtracts) delta.multiply_add(0, hn::Set(d, -of_keys[j]), other);
      result.multiply_add(0, hn::Set(d, of_queries[j]), other);
    }
    const V beta = hn::Set(d, a.betas[row * a.gate_stride]);
    HWY_UNROLL(8) for (int v = 0; v < kVectors; ++v) {
      delta.set(0, v, hn::Mul(beta, delta.get(0, v)));
      store<kWhole>(delta.get(0, v), own + v * kLanes, n);
    }
    result.multiply_add(0, hn::Set(d, of_queries[slot]), delta);
    HWY_UNROLL(8) for (int v = 0; v < kVectors; ++v) {
      store<kWhole>(result.get(0, v), out + v * kLanes, n);
    }
  }
};

// kRows rows of the matrix, from `first` on, with the deltas of a whole chunk. The keys have been
// multiplied by what is left of their deltas.
template <int kRows>
struct FoldRows {
  const DeltaArgs& a;
  Index first;
  const float* keys;  // (kDeltaChunk, key_dim)
  const float* deltas;
  float left;  // of the matrix

  template <int kVectors, bool kWhole>
  HWY_INLINE void run(Index c, size_t n) const {
    const D d;
    const Index key_dim = a.shape.key_dim, width = a.shape.value_dim;
    float* const matrix = a.state + first * width + c;
    RegisterTile<D, kRows, kVectors> sums;
    RegisterTile<D, 1, kVectors> delta;
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      load<kVectors, kWhole>(delta, matrix + r * width, n);
      HWY_UNROLL(8) for (int v = 0; v < kVectors; ++v) {
        sums.set(r, v, hn::Mul(hn::Set(d, left), delta.get(0, v)));
      }
    }
    for (Index j = 0; j < kDeltaChunk; ++j) {
      load<kVectors, kWhole>(delta, deltas + j * width + c, n);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        sums.multiply_add(r, hn::Set(d, keys[j * key_dim + first + r]), delta);
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8) for (int v = 0; v < kVectors; ++v) {
        store<kWhole>(sums.get(r, v), matrix + r * width + v * kLanes, n);
      }
    }
  }
};

HWY_INLINE void fold(const DeltaArgs& a, float* keys, const float* deltas, const float* decays) {
  constexpr int kRows = 4;
  const Index key_dim = a.shape.key_dim;
  for (Index j = 0; j < kDeltaChunk; ++j) {
    for (Index i = 0; i < key_dim; ++i) keys[j * key_dim + i] *= decays[j];
  }
  const float left = decays[kDeltaChunk];
  Index i = 0;
  for (; i + kRows <= key_dim; i += kRows) {
    for_columns<kTileVectors>(a.shape.value_dim, FoldRows<kRows>{a, i, keys, deltas, left});
  }
  for (; i < key_dim; ++i) {
    for_columns<kTileVectors>(a.shape.value_dim, FoldRows<1>{a, i, keys, deltas, left});
  }
}

}  // namespace delta_rule_detail

template <bool kSubtracts>
struct Impl<kernels::DeltaRule<kSubtracts>> {
  static void run(const kernels::DeltaArgs& a) {
    using namespace delta_rule_detail;
    const Index value_dim = a.shape.value_dim;
    float* const keys = a.state + a.shape.keys_at();
    float* const deltas = a.state + a.shape.deltas_at();
    float* const decays = a.left;
    Index slot = a.first_slot;
    for (Index row = 0; row < a.n_rows;) {
      const Index n = (std::min)(a.n_rows - row, kDeltaChunk - slot);
      Index i = 0;
      for (; i + kTileRows <= n; i += kTileRows) {
        const TimesMatrix<kTileRows, kSubtracts> rows{a, row + i, deltas + (slot + i) * value_dim};
        for_columns<kTileVectors>(value_dim, rows);
      }
      for (; i < n; ++i) {
        const TimesMatrix<1, kSubtracts> one{a, row + i, deltas + (slot + i) * value_dim};
        for_columns<kRowVectors>(value_dim, one);
      }
      for (i = 0; i < n; ++i) finish(a, row + i, slot + i, keys, deltas, decays);
      row += n;
      slot += n;
      if (slot < kDeltaChunk) continue;
      fold(a, keys, deltas, decays);
      slot = 0;
    }
  }

 private:
  static void finish(const kernels::DeltaArgs& a, Index row, Index slot, float* keys, float* deltas,
                     float* decays) {
    using namespace delta_rule_detail;
    const Index key_dim = a.shape.key_dim;
    const float* const key = a.keys + row * a.query_stride;
    const float* const query = a.queries + row * a.query_stride;
    std::memcpy(keys + slot * key_dim, key, static_cast<size_t>(key_dim) * sizeof(float));
    const float decay = a.decays[row * a.gate_stride];
    float& left = decays[kDeltaChunk];
    left = slot == 0 ? decay : left * decay;
    for (Index j = 0; j < slot; ++j) decays[j] *= decay;
    decays[slot] = 1;
    float of_keys[kDeltaChunk], of_queries[kDeltaChunk];
    for (Index j = 0; j <= slot; ++j) {
      dot_pair(key, query, keys + j * key_dim, key_dim, of_keys[j], of_queries[j]);
      of_keys[j] *= decays[j];
      of_queries[j] *= decays[j];
    }
    for_columns<kRowVectors>(
        a.shape.value_dim, FinishRow<kSubtracts>{a, row, slot, deltas, left, of_keys, of_queries});
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
