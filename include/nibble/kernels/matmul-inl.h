// SPDX-License-Identifier: Apache-2.0

#if defined(NIBBLE_KERNELS_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_INL_H_
#undef NIBBLE_KERNELS_MATMUL_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_INL_H_
#endif

#include "hwy/highway.h"
#include "nibble/kernels/activation-inl.h"
#include "nibble/kernels/float16-inl.h"
#include "nibble/kernels/matmul.hpp"

HWY_BEFORE_NAMESPACE();
namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- Vectors and tiles -------------------------------------------------------------------------
// A tile is kRows rows of activations times kPanels panels of weights; its sums stay in registers
// for the whole of k. The output of one panel is 16 lanes: kVectors vectors.

using DF32 = hn::CappedTag<float, 16>;
using DI32 = hn::Repartition<std::int32_t, DF32>;
using DI16 = hn::Repartition<std::int16_t, DF32>;
using DU8 = hn::Repartition<std::uint8_t, DF32>;
using DI8 = hn::Repartition<std::int8_t, DF32>;
using VF32 = hn::Vec<DF32>;
using VI32 = hn::Vec<DI32>;
using VU8 = hn::Vec<DU8>;
using VI8 = hn::Vec<DI8>;

inline constexpr int kLanes = static_cast<int>(HWY_MAX_LANES_D(DF32));
inline constexpr int kVectors = 16 / kLanes;  // per panel
inline constexpr int kVectorBytes = 4 * kLanes;

// Tiles of block formats need rows * vectors sums in f32 and as many integer sums within a block,
// and registers for weights and scales. AVX-512 has 32: 4 rows * 2 panels = 8 + 8 + 2 * (2 + 2).
// The others have 16 (NEON 32 of 128 bits): 2 rows of one panel.
// Tiles of plain formats have no integer sums: twice the rows.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
inline constexpr int kTileRows = 4;
inline constexpr int kTilePanels = 2;
#else
inline constexpr int kTileRows = 2;
inline constexpr int kTilePanels = 1;
#endif

HWY_INLINE VI8 broadcast4(const std::int8_t* codes) {
  std::int32_t word;
  std::memcpy(&word, codes, 4);
  return hn::BitCast(DI8(), hn::Set(DI32(), word));
}

template <class T>
HWY_INLINE VF32 load_f32(const T* p) {  // f16 or bf16
  const hn::Rebind<std::uint16_t, DF32> d16;
  return widen(T{}, DF32(), hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(p)));
}
HWY_INLINE VF32 load_f32(const float* p) { return hn::LoadU(DF32(), p); }

template <int kRows, int kColumns>
HWY_INLINE void store_sums(const VF32 (&sums)[kRows][kColumns], float* HWY_RESTRICT out) {
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
      hn::Store(sums[r][c], DF32(), out + (r * kColumns + c) * kLanes);
    }
  }
}

// ---- Sums of 8-bit products --------------------------------------------------------------------
// DotSum: the integer sum of one block's products for one vector of rows. Stored codes are
// unsigned; those of a symmetric format have an offset of 8 or 128, and `start` takes the
// correction −offset * sum(x), unless the target sums signed codes (kCorrected is false).

// Unsigned times signed as one operation: VNNI's, or Highway's exact sequence.
template <int kBits, bool kSymmetric>
struct DotSum {
  static constexpr bool kCorrected = kSymmetric;
  VI32 sum;
  HWY_INLINE void start(VI32 correction) { sum = correction; }
  HWY_INLINE void add(VU8 codes, VI8 x) { sum = hn::SumOfMulQuadAccumulate(DI32(), codes, x, sum); }
  HWY_INLINE void end_of_32() {}
};

#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL && HWY_TARGET <= HWY_SSSE3
// maddubs sums pairs of products in saturating 16 bits. 4-bit codes: |pair| ≤ 2 * 15 * 127 = 3810,
// so eight pairs (32 weights of a row) fit.
template <bool kSymmetric>
struct DotSum<4, kSymmetric> {
  static constexpr bool kCorrected = kSymmetric;
  VI32 sum;
  hn::Vec<DI16> pairs;
  HWY_INLINE void start(VI32 correction) {
    sum = correction;
    pairs = hn::Zero(DI16());
  }
  HWY_INLINE void add(VU8 codes, VI8 x) {
    pairs = hn::Add(pairs, hn::SatWidenMulPairwiseAdd(DI16(), codes, x));
  }
  HWY_INLINE void end_of_32() {
    sum = hn::Add(sum, hn::WidenMulPairwiseAdd(DI32(), pairs, hn::Set(DI16(), 1)));
    pairs = hn::Zero(DI16());
  }
};
// Signed 8-bit codes as magnitude times signed activation: |pair| ≤ 2 * 128 * 127 = 32512 fits.
template <>
struct DotSum<8, true> {
  static constexpr bool kCorrected = false;
  VI32 sum;
  HWY_INLINE void start(VI32 zero) { sum = zero; }
  HWY_INLINE void add(VU8 codes, VI8 x) {
    const VI8 w = hn::BitCast(DI8(), hn::Xor(codes, hn::Set(DU8(), 0x80)));
    const VI8 signed_x = hn::IfNegativeThenNegOrUndefIfZero(w, x);
    const auto pairs = hn::SatWidenMulPairwiseAdd(DI16(), hn::BitCast(DU8(), hn::Abs(w)), signed_x);
    sum = hn::Add(sum, hn::WidenMulPairwiseAdd(DI32(), pairs, hn::Set(DI16(), 1)));
  }
  HWY_INLINE void end_of_32() {}
};
#elif HWY_ARCH_ARM
// sdot is signed times signed: 4-bit codes are non-negative either way, 8-bit ones are made signed.
template <bool kSymmetric>
struct DotSum<4, kSymmetric> {
  static constexpr bool kCorrected = kSymmetric;
  VI32 sum;
  HWY_INLINE void start(VI32 correction) { sum = correction; }
  HWY_INLINE void add(VU8 codes, VI8 x) {
    sum = hn::SumOfMulQuadAccumulate(DI32(), hn::BitCast(DI8(), codes), x, sum);
  }
  HWY_INLINE void end_of_32() {}
};
template <>
struct DotSum<8, true> {
  static constexpr bool kCorrected = false;
  VI32 sum;
  HWY_INLINE void start(VI32 zero) { sum = zero; }
  HWY_INLINE void add(VU8 codes, VI8 x) {
    const VI8 w = hn::BitCast(DI8(), hn::Xor(codes, hn::Set(DU8(), 0x80)));
    sum = hn::SumOfMulQuadAccumulate(DI32(), w, x, sum);
  }
  HWY_INLINE void end_of_32() {}
};
#endif

// ---- Fetching ahead ----------------------------------------------------------------------------
// Weights mostly come from memory, and the processor's own prefetching starts anew at every panel
// and page, so tiles fetch themselves. Measured cold on a Zen 5 with K = N = 4096, Q4_0, as a
// fraction of the read bandwidth: M = 1 from 63 % to 94 %, M = 4 from 46 % to 87 %; M = 8 from 60 %
// to 95 % of its rate with the weights in L3.
//
// One tile of rows: panel after panel is one stream, fetched into L1 a fixed distance ahead. (Half
// the distance, or fetching into L2, gives 10 % less; two panels side by side give half.)
// Several tiles of rows: the panels that come next are fetched while the present ones are used, a
// share by each tile, so that memory never waits for arithmetic; into L2.
inline constexpr Index kFetchDistance = 9 * 1024;  // bytes

struct Ahead {
  const std::byte* next = nullptr;  // null: nothing to fetch
  int phase = 0;                    // fetch at every n_phases-th step, first after `phase` of them
  int n_phases = 1;
  bool into_l1 = false;

  // One step of a tile, in which it reads kBytes of its own weights.
  template <Index kBytes>
  HWY_INLINE void step() {
    if (next == nullptr) return;
    if (into_l1) {
      HWY_UNROLL(64) for (Index i = 0; i < kBytes; i += 64) { hwy::Prefetch(next + i); }
    } else if (phase-- == 0) {
      HWY_UNROLL(64) for (Index i = 0; i < kBytes; i += 64) { prefetch_l2(next + i); }
      phase = n_phases - 1;
    }
    next += kBytes;
  }

 private:
  static HWY_INLINE void prefetch_l2(const std::byte* p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
    __builtin_prefetch(p, 0, 2);
#else
    hwy::Prefetch(p);
#endif
  }
};

// ---- Tiles -------------------------------------------------------------------------------------
// tile(): the sums of kRows rows of `in` with kPanels panels at `weights`, written to
// sums[row][kPanels * 16]. Not inlined: one copy serves every epilogue.

template <int kRows, int kPanels, quant::BlockFormat Format>
HWY_NOINLINE void tile(Format, const kernels::MatmulInput& in, Index k,
                       const std::byte* HWY_RESTRICT weights, Ahead ahead,
                       float* HWY_RESTRICT sums_out) {
  using L = quant::Packed<Format>;
  using Scale = typename Format::Scale;
  using Dot = DotSum<Format::kBits, !L::kHasMinimum>;
  constexpr int kColumns = kPanels * kVectors;
  constexpr int kLength = static_cast<int>(L::kLength);
  constexpr int kChunksPer32 = Format::kBits;  // 32 weights of a row: kBits chunks of 4 bytes

  VF32 sums[kRows][kColumns];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { sums[r][c] = hn::Zero(DF32()); }
  }
  const Index panel_bytes = L::panel_bytes(k);
  // Only the blocks that k has, not those that fill up the last group: inputs are not padded to it.
  const Index n_blocks = L::n_blocks(k);
  for (Index group_block = 0; group_block < n_blocks; group_block += L::kGroupBlocks) {
    ahead.step<kPanels * L::kGroupBytes>();
    const int in_group = static_cast<int>(HWY_MIN(L::kGroupBlocks, n_blocks - group_block));
    for (int b = 0; b < in_group; ++b) {
      const Index block = group_block + b;
      const std::int8_t* HWY_RESTRICT x = in.codes + block * kLength;
      Dot dot[kRows][kColumns];
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        VI32 start = hn::Zero(DI32());
        if constexpr (Dot::kCorrected) {
          start = hn::Set(DI32(), in.neg8sums[r * in.n_blocks + block]);
          if constexpr (Format::kBits == 8) start = hn::ShiftLeft<4>(start);
        }
        HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].start(start); }
      }
      const std::byte* HWY_RESTRICT codes =
          weights + L::kCodeOffset + b * static_cast<int>(L::kChunks) * quant::kChunkBytes;
      for (int part = 0; part < kLength / 32; ++part) {
        HWY_UNROLL(8) for (int j = 0; j < kChunksPer32; ++j) {
          const int chunk = part * kChunksPer32 + j;
          VU8 low[kColumns], high[kColumns];
          HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(
                codes + c / kVectors * panel_bytes + chunk * quant::kChunkBytes +
                c % kVectors * kVectorBytes);
            low[c] = high[c] = hn::LoadU(DU8(), bytes);
            if constexpr (Format::kBits == 4) {
              low[c] = hn::And(low[c], hn::Set(DU8(), 0x0F));
              high[c] = hn::ShiftRight<4>(high[c]);
            }
          }
          HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
            const std::int8_t* xr = x + r * in.code_stride + 4 * chunk;
            const VI8 x_low = broadcast4(xr);
            HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].add(low[c], x_low); }
            if constexpr (Format::kBits == 4) {
              const VI8 x_high = broadcast4(xr + kLength / 2);
              HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].add(high[c], x_high); }
            }
          }
        }
        HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
          HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { dot[r][c].end_of_32(); }
        }
      }
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        const auto* scales = reinterpret_cast<const Scale*>(weights + c / kVectors * panel_bytes +
                                                            b * L::kScaleRowBytes);
        const VF32 scale = load_f32(scales + c % kVectors * kLanes);
        HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
          const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + block]);
          sums[r][c] =
              hn::MulAdd(hn::ConvertTo(DF32(), dot[r][c].sum), hn::Mul(scale, x_scale), sums[r][c]);
        }
        if constexpr (L::kHasMinimum) {
          const auto* minimums = reinterpret_cast<const Scale*>(
              weights + c / kVectors * panel_bytes + L::kMinimumOffset + b * L::kScaleRowBytes);
          const VF32 minimum = load_f32(minimums + c % kVectors * kLanes);
          HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
            const Index i = r * in.n_blocks + block;  // sum(x) = scale * sum(codes)
            const float x_sum = in.scales[i] * -0.125f * static_cast<float>(in.neg8sums[i]);
            sums[r][c] = hn::MulAdd(minimum, hn::Set(DF32(), x_sum), sums[r][c]);
          }
        }
      }
    }
    weights += L::kGroupBytes;
  }
  store_sums<kRows, kColumns>(sums, sums_out);
}

template <int kRows, int kPanels, class T>
HWY_NOINLINE void tile(quant::Plain<T>, const kernels::MatmulInput& in, Index k,
                       const std::byte* HWY_RESTRICT weights, Ahead ahead,
                       float* HWY_RESTRICT sums_out) {
  using L = quant::Packed<quant::Plain<T>>;
  constexpr int kColumns = kPanels * kVectors;
  VF32 sums[kRows][kColumns];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) { sums[r][c] = hn::Zero(DF32()); }
  }
  const Index panel_bytes = L::panel_bytes(k);
  const auto add = [&](const VF32(&w)[kColumns], Index i) HWY_ATTR {
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VF32 x = hn::Set(DF32(), in.x[r * in.stride + i]);
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        sums[r][c] = hn::MulAdd(x, w[c], sums[r][c]);
      }
    }
  };
  VF32 w[kColumns];
  if constexpr (L::kPair == 2) {
    Index i = 0;
    for (; i < k; i += 2) {
      ahead.step<kPanels * quant::kChunkBytes>();
      VF32 w_odd[kColumns];
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        const hn::Repartition<std::uint32_t, DF32> du32;
        const auto pair = hn::LoadU(
            du32, reinterpret_cast<const std::uint32_t*>(weights + c / kVectors * panel_bytes +
                                                         i / 2 * quant::kChunkBytes +
                                                         c % kVectors * kVectorBytes));
        w[c] = hn::BitCast(DF32(), hn::ShiftLeft<16>(pair));
        w_odd[c] = hn::BitCast(DF32(), hn::And(pair, hn::Set(du32, 0xFFFF0000u)));
      }
      add(w, i);
      if (i + 1 < k) add(w_odd, i + 1);
    }
  } else {
    for (Index i = 0; i < k; ++i) {
      ahead.step<kPanels * quant::kPanelRows* static_cast<Index>(sizeof(T))>();
      HWY_UNROLL(8) for (int c = 0; c < kColumns; ++c) {
        const auto* row = reinterpret_cast<const T*>(weights + c / kVectors * panel_bytes) +
                          i * quant::kPanelRows;
        w[c] = load_f32(row + c % kVectors * kLanes);
      }
      add(w, i);
    }
  }
  store_sums<kRows, kColumns>(sums, sums_out);
}

// Rows per tile of a format.
template <class Format>
inline constexpr int kRowsOf = kTileRows;
template <class T>
inline constexpr int kRowsOf<quant::Plain<T>> = 2 * kTileRows;

inline constexpr int kTileSums = 2 * kTileRows * kTilePanels * static_cast<int>(quant::kPanelRows);

// ---- Epilogues ---------------------------------------------------------------------------------

// The kLanes outputs of one vector: (row, column), (row, column + 1) … The first `count` are
// columns of the matrix, the rest is never stored. A type of this namespace, so that
// argument-dependent lookup finds a program's `finish` here although it is declared later.
struct Outputs {
  Index row;
  Index column;
  size_t count;
};

template <class Activation, bool kBias, bool kResidual>
HWY_INLINE VF32 finish(kernels::Epilogue<Activation, kBias, kResidual>, DF32 d, VF32 v,
                       const kernels::EpilogueArgs& args, Outputs at) {
  if constexpr (kBias) v = hn::Add(v, hn::LoadN(d, args.bias + at.column, at.count));
  v = activate(Activation{}, d, v);
  if constexpr (kResidual) {
    const float* row = args.residual + at.row * args.residual_stride;
    v = hn::Add(v, hn::LoadN(d, row + at.column, at.count));
  }
  return v;
}

// ---- Kernels -----------------------------------------------------------------------------------
// A kernel is a format's walk over tiles and an epilogue's way to finish one, joined by a pointer:
// there are many pairs of them, and compiling each pair would cost more than the call per tile
// does.

// A tile of the output: rows and panels from (row, panel) on.
struct TileAt {
  Index row;
  Index panel;
  int n_rows;
  int n_panels;
};

// Finishes and stores the outputs of a tile. sums, gate: (n_rows, n_panels * 16); gate only where
// args.gate is.
using FinishTile = void(const kernels::MatmulArgs& args, const float* sums, const float* gate,
                        const TileAt& tile);

// Calls store(index into sums, outputs) for each vector of a tile's outputs.
template <class Store>
HWY_INLINE void for_each_vector(const kernels::MatmulArgs& args, const TileAt& tile,
                                const Store& store) {
  const int n_vectors = tile.n_panels * kVectors;
  for (int r = 0; r < tile.n_rows; ++r) {
    for (int c = 0; c < n_vectors; ++c) {
      const Index column = tile.panel * quant::kPanelRows + c * kLanes;
      if (column >= args.n) break;
      store((r * n_vectors + c) * kLanes,
            Outputs{tile.row + r, column, static_cast<size_t>(HWY_MIN(args.n - column, kLanes))});
    }
  }
}

template <class Epilogue>
HWY_NOINLINE void finish_tile(const kernels::MatmulArgs& args, const float* HWY_RESTRICT sums,
                              const float*, const TileAt& tile) {
  for_each_vector(args, tile, [&](int i, Outputs at) HWY_ATTR {
    const VF32 v = finish(Epilogue{}, DF32(), hn::Load(DF32(), sums + i), args.epilogue, at);
    hn::StoreN(v, DF32(), args.out + at.row * args.out_stride + at.column, at.count);
  });
}

template <class Activation>
HWY_NOINLINE void finish_gated_tile(const kernels::MatmulArgs& args, const float* HWY_RESTRICT sums,
                                    const float* HWY_RESTRICT gate, const TileAt& tile) {
  for_each_vector(args, tile, [&](int i, Outputs at) HWY_ATTR {
    const VF32 g = activate(Activation{}, DF32(), hn::Load(DF32(), gate + i));
    const VF32 v = hn::Mul(g, hn::Load(DF32(), sums + i));
    hn::StoreN(v, DF32(), args.out + at.row * args.out_stride + at.column, at.count);
  });
}

template <class Format, int kRows, int kPanels>
HWY_INLINE void compute_tile(const kernels::MatmulArgs& args, FinishTile* finish, Index panel,
                             Index row) {
  HWY_ALIGN float sums[kTileSums];
  HWY_ALIGN float gate[kTileSums];
  const auto input = args.input.rows_from(row);
  const Index panel_bytes = quant::Packed<Format>::panel_bytes(args.k);
  const Index offset = panel * panel_bytes;
  Ahead ahead;
  ahead.into_l1 = args.m <= kRowsOf<Format>;
  ahead.n_phases = static_cast<int>((args.m + kRowsOf<Format> - 1) / kRowsOf<Format>);
  ahead.phase = static_cast<int>(row / kRowsOf<Format>);
  const bool is_last = panel + kPanels >= args.end_panel;
  const auto at = [&](const std::byte* weights) HWY_ATTR {
    const std::byte* const tile_weights = weights + offset;
    ahead.next = tile_weights + kPanels * panel_bytes;
    if (ahead.into_l1) {
      ahead.next = tile_weights + kFetchDistance;
    } else if (is_last) {
      ahead.next = nullptr;
    }
    return tile_weights;
  };
  tile<kRows, kPanels>(Format{}, input, args.k, at(args.weights), ahead, sums);
  if (args.gate != nullptr) {
    tile<kRows, kPanels>(Format{}, input, args.k, at(args.gate), ahead, gate);
  }
  finish(args, sums, gate, {row, panel, kRows, kPanels});
}

template <class Format, int kPanels>
HWY_INLINE void for_each_row_tile(const kernels::MatmulArgs& args, FinishTile* finish,
                                  Index panel) {
  constexpr int kRows = kRowsOf<Format>;
  Index row = 0;
  for (; row + kRows <= args.m; row += kRows) {
    compute_tile<Format, kRows, kPanels>(args, finish, panel, row);
  }
  if constexpr (kRows > 4) {
    for (; row + 4 <= args.m; row += 4) compute_tile<Format, 4, kPanels>(args, finish, panel, row);
  }
  if constexpr (kRows > 2) {
    for (; row + 2 <= args.m; row += 2) compute_tile<Format, 2, kPanels>(args, finish, panel, row);
  }
  for (; row < args.m; ++row) compute_tile<Format, 1, kPanels>(args, finish, panel, row);
}

template <class Format>
HWY_NOINLINE void for_each_tile(const kernels::MatmulArgs& args, FinishTile* finish) {
  Index panel = args.first_panel;
  const bool one_row_tile = args.m <= kRowsOf<Format>;  // see Ahead
  for (; !one_row_tile && panel + kTilePanels <= args.end_panel; panel += kTilePanels) {
    for_each_row_tile<Format, kTilePanels>(args, finish, panel);
  }
  for (; panel < args.end_panel; ++panel) for_each_row_tile<Format, 1>(args, finish, panel);
}

template <class Format, class Epilogue>
struct Impl<kernels::Matmul<Format, Epilogue>> {
  static void run(const kernels::MatmulArgs& args) {
    for_each_tile<Format>(args, &finish_tile<Epilogue>);
  }
};

template <class Format, class Activation>
struct Impl<kernels::MatmulGated<Format, Activation>> {
  static void run(const kernels::MatmulArgs& args) {
    for_each_tile<Format>(args, &finish_gated_tile<Activation>);
  }
};

}  // namespace nibble::inline NIBBLE_ABI::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
