// SPDX-License-Identifier: Apache-2.0
//
// Products with tiles of 16 rows of inputs by 16 columns, on AMX. Included by kernels-inl.h once,
// behind the base of the level AMX and its matmul-inl.h: all other functions of the level are those
// of the base.
//   I8Channel      integers: the bits are those of other targets' products
//   bf16           weights as they are packed, times rounded rows (MatmulInput::rounded)
//   block formats  weights as bf16, times rounded rows; with codes, the base's products
// A row's result does not depend on the other rows, nor on how rows and columns are cut.
//
// What limits them, on a Granite Rapids of 3.6 GHz:
//   A product of tiles takes 16 cycles: 2 * 16 * 16 * 32 operations with bf16, 3.7 TFLOP/s; twice
//   that with 8-bit integers. A tile is 1 KiB: loading it takes 8 cycles from L1 and at least 16
//   from L2 (64 bytes a cycle). With 2 x 2 tiles of sums, 4 loads serve 4 products: 64 cycles of
//   arithmetic, 32 of loads from L1, 64 or more from L2. 4 + 2 + 2 tiles are all registers.
//   L3 and memory give 4 to 5 bytes a cycle, so weights must be read for many rows. The rows of a
//   task stay in L2 (2 MiB): kInputBytes for them, the rest for weights that are on their way. With
//   k = 4096 these are 160 rows of bf16; 32 columns of Q4_0 (73 KB) then last for 41 000 cycles.
//   Weights are widened once for up to 160 rows, in parts of 512 along k, for 32 columns: 32 KiB,
//   which come from L1 or L2 while the inputs come from L2. Sums go to memory and back between
//   parts: 8 KiB for 64 products, 1024 cycles, to which this adds about a tenth.
//   Widening is 13 vector operations for 32 weights, 27 000 cycles at k = 4096 for 32 columns. It
//   would add two thirds, so it is done between products, one part ahead, on ports that these do
//   not need: 83 operations for 64 cycles with 160 rows. Q4_0 would thus reach 3.3 TOP/s if all of
//   it is hidden, 2.0 if nothing is.
// None of it has been measured: there was no such processor.

#include <cstring>

#include "hwy/highway.h"
#include "nibble/kernels/amx-inl.h"
#include "nibble/kernels/matmul_input.hpp"
#include "nibble/kernels/which.hpp"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using namespace HWY_NAMESPACE;  // the base

// ---- Products of tiles -------------------------------------------------------------------------

inline constexpr Index kPairRows = 2 * kTileRows;  // whose inputs are in registers together
inline constexpr Index kTileWeights = 32;          // of a column, as bf16
// Of the rows of a task.
inline constexpr Index kInputBytes = Index{5} << 18;

// The configuration, changed only where the number of rows does.
class PairOfTiles {
 public:
  HWY_INLINE PairOfTiles() {}
  HWY_INLINE ~PairOfTiles() {}  // (written out, as an implicit one lacks the target's attributes)

  // For 1 to 32 rows. Of 16 rows or fewer the second tile is the first one again.
  HWY_INLINE void set_rows(Index n_rows) {
    if (n_rows == n_rows_) return;
    n_rows_ = n_rows;
    tiles.configure(HWY_MIN(n_rows, kTileRows), has_second() ? n_rows - kTileRows : n_rows);
  }
  HWY_INLINE Index n_rows() const { return n_rows_; }
  HWY_INLINE bool has_second() const { return n_rows_ > kTileRows; }

  TileRegisters tiles;

 private:
  Index n_rows_ = 0;
};

// Rows of bytes, and weights of two panels: tiles of them are kTileBytes apart.
struct PairOperands {
  const std::byte* inputs;
  Index input_stride;
  const std::byte* weights[2];
};

// between() is called once for each step.
template <class Value, class Between>
HWY_INLINE void add_tiles(PairOfTiles& pair, const PairOperands& at, Index n_steps,
                          Between& between) {
  TileRegisters& tiles = pair.tiles;
  const std::byte* x = at.inputs;
  const std::byte* y = x + (pair.has_second() ? kTileRows * at.input_stride : 0);
  const std::byte* v = at.weights[0];
  const std::byte* w = at.weights[1];
  for (Index i = 0; i < n_steps; ++i) {
    tiles.template load<4>(x, at.input_stride);
    tiles.template load<6>(v, kTileRowBytes);
    tiles.template multiply<0, 4, 6>(Value{});
    tiles.template load<7>(w, kTileRowBytes);
    tiles.template multiply<1, 4, 7>(Value{});
    tiles.template load<5>(y, at.input_stride);
    tiles.template multiply<2, 5, 6>(Value{});
    tiles.template multiply<3, 5, 7>(Value{});
    x += kTileRowBytes;
    y += kTileRowBytes;
    v += kTileBytes;
    w += kTileBytes;
    between();
  }
}

// The same for the last row_bytes < 64 of each row, a multiple of 4: nothing behind them is read.
template <class Value>
HWY_NOINLINE void add_last_tiles(PairOfTiles& pair, const PairOperands& at, Index row_bytes) {
  HWY_ALIGN std::byte inputs[kPairRows * kTileRowBytes] = {};
  HWY_ALIGN std::byte weights[2][kTileBytes] = {};
  for (Index r = 0; r < pair.n_rows(); ++r) {
    std::memcpy(inputs + r * kTileRowBytes, at.inputs + r * at.input_stride,
                static_cast<size_t>(row_bytes));
  }
  for (int i = 0; i < 2; ++i) {
    std::memcpy(weights[i], at.weights[i], static_cast<size_t>(row_bytes / 4 * kTileRowBytes));
  }
  const auto nothing = [] {};
  add_tiles<Value>(pair, {inputs, kTileRowBytes, {weights[0], weights[1]}}, 1, nothing);
}

// Sums in memory: those with the first panel at `sums`, [row][16], with the second `apart` floats
// further on.
HWY_INLINE void start_sums(PairOfTiles& pair) {
  pair.tiles.template zero<0>();
  pair.tiles.template zero<1>();
  pair.tiles.template zero<2>();
  pair.tiles.template zero<3>();
}
HWY_INLINE void load_sums(PairOfTiles& pair, const float* sums, Index apart) {
  pair.tiles.template load<0>(sums, kTileRowBytes);
  pair.tiles.template load<1>(sums + apart, kTileRowBytes);
  if (!pair.has_second()) return;
  pair.tiles.template load<2>(sums + kTileRows * kTileRows, kTileRowBytes);
  pair.tiles.template load<3>(sums + kTileRows * kTileRows + apart, kTileRowBytes);
}
HWY_INLINE void store_sums(const PairOfTiles& pair, float* sums, Index apart) {
  pair.tiles.template store<0>(sums, kTileRowBytes);
  pair.tiles.template store<1>(sums + apart, kTileRowBytes);
  if (!pair.has_second()) return;
  pair.tiles.template store<2>(sums + kTileRows * kTileRows, kTileRowBytes);
  pair.tiles.template store<3>(sums + kTileRows * kTileRows + apart, kTileRowBytes);
}

// The two panels that are multiplied together: of two columns, or of a matrix and its gate.
struct PanelPairs {
  const kernels::MatmulArgs& args;
  Index panel_bytes;

  HWY_INLINE Index step() const { return args.gate != nullptr ? 1 : 2; }
  // Without a second panel it is the first one again.
  HWY_INLINE void at(Index panel, const std::byte* (&out)[2]) const {
    const bool is_last = panel + 1 >= args.end_panel;
    out[0] = args.weights + panel * panel_bytes;
    out[1] = args.gate != nullptr ? args.gate + panel * panel_bytes
             : is_last            ? out[0]
                                  : out[0] + panel_bytes;
  }
  HWY_INLINE void finish(Index panel, Index row, Index n_rows, const float* sums,
                         const float* more) const {
    const kernels::TileAt at{row, panel * quant::kPanelRows, static_cast<int>(n_rows), kVectors};
    if (args.gate != nullptr) return args.finish(args, sums, more, at);
    args.finish(args, sums, nullptr, at);
    if (panel + 1 >= args.end_panel) return;
    const Index next_column = at.column + quant::kPanelRows;
    args.finish(args, more, nullptr, {at.row, next_column, at.n_rows, at.n_vectors});
  }
};

// ---- Weights as they are packed ----------------------------------------------------------------

// Fetches the panels that come next, some lines in each step.
class NextPanels {
 public:
  HWY_INLINE NextPanels(Fetch into, Index panel_bytes, Index n_steps)
      : into_(into), lines_((panel_bytes / 64 + n_steps - 1) / HWY_MAX(n_steps, Index{1})) {}
  HWY_INLINE void start(const std::byte* const (&panels)[2], Index panel_bytes) {
    next_[0] = panels[0];
    next_[1] = panels[1];
    left_ = into_ == Fetch::none ? 0 : panel_bytes / 64;
  }
  HWY_INLINE void operator()() {
    if (left_ <= 0) return;
    left_ -= lines_;
    for (Index i = 0; i < lines_; ++i) {
      prefetch_lines<64>(into_, next_[0] + 64 * i);
      prefetch_lines<64>(into_, next_[1] + 64 * i);
    }
    next_[0] += 64 * lines_;
    next_[1] += 64 * lines_;
  }

 private:
  Fetch into_;
  Index lines_;
  const std::byte* next_[2] = {};
  Index left_ = 0;
};

// Integer sums of one panel, to floats, as channel_tile and complete_sums do it.
template <bool kAffine>
HWY_NOINLINE void scale_channel_sums(const kernels::MatmulInput& in, Index n_rows,
                                     const std::byte* panel, float* HWY_RESTRICT sums) {
  using L = quant::Packed<quant::I8Channel>;
  const DF32 d;
  for (Index c = 0; c < quant::kPanelRows; c += kLanes) {
    const VF32 scale = hn::LoadU(d, reinterpret_cast<const float*>(panel) + c);
    VI32 of_zero = hn::Zero(DI32());
    if constexpr (kAffine) {
      const auto* code_sums = reinterpret_cast<const std::int32_t*>(panel + L::kSumOffset);
      of_zero = hn::Mul(hn::LoadU(DI32(), code_sums + c), hn::Set(DI32(), in.zero_point));
    }
    for (Index r = 0; r < n_rows; ++r) {
      float* const at = sums + r * quant::kPanelRows + c;
      const VI32 correction = hn::ShiftLeft<4>(hn::Set(DI32(), in.code_sums[r * in.n_blocks]));
      VI32 total = hn::Add(hn::BitCast(DI32(), hn::Load(d, at)), correction);
      if constexpr (kAffine) total = hn::Sub(total, of_zero);
      const VF32 scaled = hn::Mul(hn::ConvertTo(d, total), scale);
      hn::Store(hn::Mul(scaled, hn::Set(d, in.row_scales[r])), d, at);
    }
  }
}

// Form: quant::BF16, quant::I8Channel or AffineChannel.
template <class Form>
HWY_NOINLINE void compute_packed(const kernels::MatmulArgs& args) {
  using L = PackedOf<Form>;
  constexpr bool kFloats = std::is_same_v<Form, quant::BF16>;
  using Value = std::conditional_t<kFloats, bf16, std::int8_t>;
  constexpr Index kSums = kPairRows * quant::kPanelRows;
  HWY_ALIGN float sums[2 * kSums];
  const PanelPairs panels{args, L::panel_bytes(args.k)};
  const Index row_bytes = L::padded_k(args.k) * Index{sizeof(Value)};
  const Index n_steps = row_bytes / kTileRowBytes, rest = row_bytes % kTileRowBytes;
  NextPanels ahead(args.tuning.many_rows, panels.panel_bytes,
                   n_steps * ((args.m + kPairRows - 1) / kPairRows));
  PairOfTiles pair;
  for (Index panel = args.first_panel; panel < args.end_panel; panel += panels.step()) {
    const std::byte* weights[2];
    if (panel + panels.step() < args.end_panel) {
      panels.at(panel + panels.step(), weights);
      ahead.start(weights, panels.panel_bytes);
    }
    panels.at(panel, weights);
    for (Index row = 0; row < args.m; row += kPairRows) {
      const auto in = args.input.rows_from(row);
      PairOperands at;
      if constexpr (kFloats) {
        at = {reinterpret_cast<const std::byte*>(in.rounded),
              2 * in.rounded_stride,
              {weights[0], weights[1]}};
      } else {
        at = {reinterpret_cast<const std::byte*>(in.codes),
              in.code_stride,
              {weights[0] + L::kCodeOffset, weights[1] + L::kCodeOffset}};
      }
      pair.set_rows(HWY_MIN(kPairRows, args.m - row));
      start_sums(pair);
      add_tiles<Value>(pair, at, n_steps, ahead);
      if (rest > 0) {
        at.inputs += n_steps * kTileRowBytes;
        for (const std::byte*& w : at.weights) w += n_steps * kTileBytes;
        add_last_tiles<Value>(pair, at, rest);
      }
      store_sums(pair, sums, kSums);
      if constexpr (!kFloats) {
        constexpr bool kAffine = std::is_same_v<Form, AffineChannel>;
        scale_channel_sums<kAffine>(in, pair.n_rows(), weights[0], sums);
        scale_channel_sums<kAffine>(in, pair.n_rows(), weights[1], sums + kSums);
      }
      panels.finish(panel, row, pair.n_rows(), sums, sums + kSums);
    }
  }
}

// ---- Weights of block formats, widened to bf16 -------------------------------------------------

// Code i of each lane.
template <int kBits, bool kHasMinimum, int i>
HWY_INLINE VF32 code_as_float(VI32 words) {
  if constexpr (kHasMinimum) {
    const auto byte = hn::And(hn::ShiftRight<8 * i>(words), hn::Set(DI32(), 0xFF));
    return hn::ConvertTo(DF32(), byte);
  } else {
    const VI32 at_top = hn::ShiftLeft<32 - kBits - 8 * i>(words);
    return hn::ConvertTo(DF32(), hn::ShiftRight<32 - kBits>(at_top));
  }
}

// Two numbers of each lane as a pair of bf16, rounded to nearest, ties away from zero. (NaN must
// not have all bits of its fraction set: see canonical().)
HWY_INLINE hn::Vec<DU32> pair_of_bf16(VF32 first, VF32 second) {
  const auto half = hn::Set(DU32(), 0x8000u);
  const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(DU32(), first), half));
  const auto high = hn::Add(hn::BitCast(DU32(), second), half);
  return hn::Or(low, hn::And(high, hn::Set(DU32(), 0xFFFF0000u)));
}
HWY_INLINE VF32 canonical(VF32 scale) {
  const auto bits = hn::Set(DU32(), 0x7FC00000u);
  return hn::IfThenElse(hn::IsNaN(scale), hn::BitCast(DF32(), bits), scale);
}

// Four weights of each lane: two rows of a tile.
template <int kBits, bool kHasMinimum>
HWY_INLINE void put_weights(VU8 codes, VF32 scale, VF32 minimum, std::uint32_t* to) {
  if constexpr (!kHasMinimum) codes = hn::Xor(codes, hn::Set(DU8(), 1 << (kBits - 1)));
  const VI32 words = hn::BitCast(DI32(), codes);
  const auto weight = [&]<int i>(std::integral_constant<int, i>) NIBBLE_ATTR {
    const VF32 code = code_as_float<kBits, kHasMinimum, i>(words);
    return kHasMinimum ? hn::MulAdd(code, scale, minimum) : hn::Mul(code, scale);
  };
  constexpr std::integral_constant<int, 0> k0;
  constexpr std::integral_constant<int, 1> k1;
  constexpr std::integral_constant<int, 2> k2;
  constexpr std::integral_constant<int, 3> k3;
  hn::StoreU(pair_of_bf16(weight(k0), weight(k1)), DU32(), to);
  hn::StoreU(pair_of_bf16(weight(k2), weight(k3)), DU32(), to + kTileRows);
}

// A group of a panel as tiles of weights.
template <class Format>
HWY_NOINLINE void widen_group(const std::byte* group, std::byte* HWY_RESTRICT out) {
  using Steps = PackedSteps<Format, kVectors>;
  constexpr int kBits = Steps::kBits;
  constexpr int kTiles = Steps::kLength / static_cast<int>(kTileWeights);
  auto* HWY_RESTRICT words = reinterpret_cast<std::uint32_t*>(out);
  Steps steps(group, 0, 0);
  steps.start_group();
  for (int step = 0; step < Steps::kGroup; ++step) {
    for (int chunk = 0; chunk < kTiles * Steps::kChunks; ++chunk) {
      int first = 4 * chunk;  // weight of the step
      if constexpr (kBits < 8) first += first / Steps::kApart * Steps::kApart;
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        CodePair pair;
        steps.read(step, chunk, c, pair);
        VF32 scale = canonical(steps.scale(step, c)), minimum = scale;
        if constexpr (Steps::kHasMinimum) minimum = canonical(steps.minimum(step, c));
        if constexpr (Steps::kTwoScales) {
          const VI32 both = hn::BitCast(DI32(), steps.halves(step, step % 2 != 0, c));
          const VI32 of_half =
              first < 16 ? hn::ShiftRight<16>(hn::ShiftLeft<16>(both)) : hn::ShiftRight<16>(both);
          scale = hn::Mul(scale, hn::ConvertTo(DF32(), of_half));
        }
        const auto put = [&](VU8 codes, int weight) NIBBLE_ATTR {
          put_weights<kBits, Steps::kHasMinimum>(codes, scale, minimum,
                                                 words + weight / 2 * kTileRows + c * kLanes);
        };
        put(pair.low.get(), first);
        if constexpr (kBits < 8) put(pair.high.get(), first + Steps::kApart);
      }
    }
    words += kTiles * kTileBytes / 4;
  }
}

// What the products of all formats need of one of them.
struct WideFormat {
  void (*widen)(const std::byte* group, std::byte* out);
  Index group_bytes, group_length;
  Index groups;    // of a part
  Index n_groups;  // of a panel
  Index panel_bytes;

  HWY_INLINE Index length() const { return groups * group_length; }  // of a part
};
template <class Format>
HWY_INLINE WideFormat wide_format(Index k) {
  using L = quant::Packed<Format>;
  return {&widen_group<Format>, L::kGroupBytes,
          L::kGroupLength,      kernels::kMaxTileGroup / L::kGroupLength,
          L::n_groups(k),       L::panel_bytes(k)};
}

// Widens a part of two panels, a group at a time, while products are computed.
class Widening {
 public:
  static constexpr Index kPanelBytes = kernels::kMaxTileGroup / kTileWeights * kTileBytes;

  HWY_INLINE Widening(const WideFormat& format, Fetch into) : format_(format), into_(into) {}

  // n_groups of each panel, to out[0] and out[1]; those at `ahead` are fetched. By n_calls calls.
  HWY_INLINE void start(const std::byte* const (&panels)[2], const std::byte* const (&ahead)[2],
                        Index n_groups, Index n_calls, std::byte (*out)[kPanelBytes]) {
    for (int i = 0; i < 2; ++i) {
      from_[i] = panels[i];
      ahead_[i] = ahead[i];
      to_[i] = out[i];
    }
    left_ = total_ = 2 * n_groups;
    n_calls_ = n_calls;
    due_ = 0;
  }
  HWY_INLINE void operator()() {
    due_ += total_;
    while (due_ >= n_calls_ && left_ > 0) {
      due_ -= n_calls_;
      widen_one();
    }
  }
  HWY_INLINE void complete() {
    while (left_ > 0) widen_one();
  }

 private:
  HWY_INLINE void widen_one() {
    const Index i = left_-- % 2;
    for (Index at = 0; at < format_.group_bytes; at += 64) {
      prefetch_lines<64>(into_, ahead_[i] + at);
    }
    format_.widen(from_[i], to_[i]);
    from_[i] += format_.group_bytes;
    ahead_[i] += format_.group_bytes;
    to_[i] += format_.group_length / kTileWeights * kTileBytes;
  }

  const WideFormat& format_;
  const Fetch into_;
  const std::byte* from_[2];
  const std::byte* ahead_[2];
  std::byte* to_[2];
  Index left_ = 0, total_ = 0, n_calls_ = 1, due_ = 0;
};

// The products of m rows, at most kMaxWideRows.
inline constexpr Index kMaxWideRows = 160;
NIBBLE_LAZY HWY_NOINLINE void compute_widened(const kernels::MatmulArgs& args,
                                              const WideFormat& format, Index first_row, Index m) {
  constexpr Index kSums = kMaxWideRows * quant::kPanelRows;
  HWY_ALIGN std::byte weights[2][2][Widening::kPanelBytes];  // a part in use, one being made
  HWY_ALIGN float sums[2 * kSums];
  const PanelPairs panels{args, format.panel_bytes};
  const auto in = args.input.rows_from(first_row);
  const Index length = format.length();
  const Index n_parts = (format.n_groups + format.groups - 1) / format.groups;
  const Index n_pairs = (args.end_panel - args.first_panel + panels.step() - 1) / panels.step();
  const Index n_row_pairs = (m + kPairRows - 1) / kPairRows;
  const auto panel_of = [&](Index i) { return args.first_panel + i / n_parts * panels.step(); };
  const auto steps_of = [&](Index i) {
    const Index left = args.k - i % n_parts * length;
    return (HWY_MIN(left, length) + kTileWeights - 1) / kTileWeights;
  };
  Widening wide(format, args.tuning.many_rows);
  // All parts are one sequence, from panels to panels.
  const Index n = n_pairs * n_parts;
  const auto part_at = [&](Index i, const std::byte*(&out)[2]) NIBBLE_ATTR {
    panels.at(panel_of(i), out);
    for (const std::byte*& part : out) part += i % n_parts * format.groups * format.group_bytes;
  };
  const auto start = [&](Index i, Index n_calls) NIBBLE_ATTR {
    const std::byte *from[2], *ahead[2];
    part_at(i, from);
    part_at(HWY_MIN(i + 1, n - 1), ahead);
    const Index left = format.n_groups - i % n_parts * format.groups;
    wide.start(from, ahead, HWY_MIN(left, format.groups), n_calls, weights[i % 2]);
  };
  PairOfTiles pair;
  start(0, 1);
  for (Index i = 0; i < n; ++i) {
    wide.complete();
    if (i + 1 < n) start(i + 1, n_row_pairs * steps_of(i));
    const bool is_first = i % n_parts == 0, is_last = i % n_parts == n_parts - 1;
    for (Index row = 0; row < m; row += kPairRows) {
      const bf16* const inputs = in.rounded + row * in.rounded_stride + i % n_parts * length;
      float* const row_sums = sums + row * quant::kPanelRows;
      pair.set_rows(HWY_MIN(kPairRows, m - row));
      if (is_first) {
        start_sums(pair);
      } else {
        load_sums(pair, row_sums, kSums);
      }
      add_tiles<bf16>(pair,
                      {reinterpret_cast<const std::byte*>(inputs),
                       2 * in.rounded_stride,
                       {weights[i % 2][0], weights[i % 2][1]}},
                      steps_of(i), wide);
      store_sums(pair, row_sums, kSums);
    }
    if (is_last) panels.finish(panel_of(i), first_row, m, sums, sums + kSums);
  }
}

// ---- Kernels -----------------------------------------------------------------------------------

template <class Format>
requires kernels::kHasTileProducts<Format>
struct Impl<kernels::Matmul<Format, kernels::ActivationScales::per_block>> {
  static void run(const kernels::MatmulArgs& args) {
    if (args.input.rounded == nullptr || args.k == 0) {
      return HWY_NAMESPACE::Impl<kernels::Matmul<Format>>::run(args);
    }
    if constexpr (quant::BlockFormat<Format>) {
      const WideFormat format = wide_format<Format>(args.k);
      for (Index row = 0; row < args.m; row += kMaxWideRows) {
        compute_widened(args, format, row, HWY_MIN(kMaxWideRows, args.m - row));
      }
    } else {
      compute_packed<Format>(args);
    }
  }
};

template <kernels::ActivationScales kScales>
requires(
    kScales !=
    kernels::ActivationScales::per_row) struct Impl<kernels::Matmul<quant::I8Channel, kScales>> {
  static void run(const kernels::MatmulArgs& args) {
    // Fewer rows than these take longer in tiles of 32.
    constexpr Index kFewest = 8;
    constexpr bool kAffine = kScales == kernels::ActivationScales::affine;
    if (args.m < kFewest) {
      return HWY_NAMESPACE::Impl<kernels::Matmul<quant::I8Channel, kScales>>::run(args);
    }
    compute_packed<std::conditional_t<kAffine, AffineChannel, quant::I8Channel>>(args);
  }
};

template <>
struct Impl<kernels::TileTaskRows> {
  NIBBLE_LAZY static Index run(Index row_bytes) {
    const Index rows = kInputBytes / HWY_MAX(row_bytes, Index{1}) / kPairRows * kPairRows;
    return HWY_MIN(HWY_MAX(rows, kPairRows), Index{1024});
  }
};

template <>
struct Impl<kernels::TakesRoundedRows> {
  NIBBLE_LAZY static bool run() { return true; }
};

template <>
struct Impl<kernels::WhichTarget> {
  NIBBLE_LAZY static simd::Target run() { return simd::Target::AMX; }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();
