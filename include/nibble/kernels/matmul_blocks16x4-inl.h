// SPDX-License-Identifier: Apache-2.0
//
// The sums of a panel of which only blocks of 16 rows by 4 weights are stored (quant/sparse.hpp).

#include "nibble/kernels/target-inl.h"
#if defined(NIBBLE_KERNELS_MATMUL_BLOCKS16X4_INL_H_) == defined(NIBBLE_TARGET_TOGGLE)
#ifdef NIBBLE_KERNELS_MATMUL_BLOCKS16X4_INL_H_
#undef NIBBLE_KERNELS_MATMUL_BLOCKS16X4_INL_H_
#else
#define NIBBLE_KERNELS_MATMUL_BLOCKS16X4_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "hwy/highway.h"
#include "nibble/kernels/matmul_masked-inl.h"

NIBBLE_BEFORE_NAMESPACE();
namespace nibble { inline namespace NIBBLE_ABI { namespace NIBBLE_TARGET_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ---- Blocks of 16 rows by 4 --------------------------------------------------------------------
// The zero weights of blocks that are not stored must add nothing, so the correction for unsigned
// codes (see DotSum) depends on the panel.

namespace sparse_detail {

// Few rows: the sum of a step's products of unsigned codes for one vector of rows, and with codes 8
// the correction, which all vectors share.
using BlockDot = DotSum<4, false, kStep, false>;

// Many rows: codes are made signed while they are expanded. Where an instruction multiplies
// unsigned by signed bytes, activations get an offset of 128 instead, and 128 times the sum of a
// step's codes (|sum| ≤ 64) is subtracted: `correction`, made when the codes are expanded.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSSE3
HWY_INLINE VU8 input_of(VI8 x) { return hn::BitCast(DU8(), hn::Xor(x, hn::Set(DI8(), -128))); }
#if HWY_TARGET > HWY_AVX3_DL
// In saturating 16 bits: |pair| ≤ 2 * 255 * 8 = 4080, of which a step has eight.
struct SignedDot {
  Register<DI16> pairs;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { pairs.set(hn::Zero(DI16())); }
  HWY_INLINE void add(VI8 w, VU8 x) {
    add_in_order(pairs, hn::SatWidenMulPairwiseAdd(DI16(), x, w));
  }
  static HWY_INLINE VI8 correction(VI8 code_sum) {
    const VU8 offset = hn::Set(DU8(), 128);
    return hn::BitCast(DI8(), hn::SatWidenMulPairwiseAdd(DI16(), offset, code_sum));
  }
  HWY_INLINE VI32 total(VI8 correction) const {
    const VI16 sum = hn::Sub(pairs.get(), hn::BitCast(DI16(), correction));
    return hn::WidenMulPairwiseAdd(DI32(), sum, hn::Set(DI16(), 1));
  }
};
#else
struct SignedDot {
  Register<DI32> sum;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { sum.set(hn::Zero(DI32())); }
  HWY_INLINE void add(VI8 w, VU8 x) {
    sum.set(hn::SumOfMulQuadAccumulate(DI32(), x, w, sum.get()));
  }
  static HWY_INLINE VI8 correction(VI8 code_sum) {
    const VU8 offset = hn::Set(DU8(), 128);
    const VI32 zero = hn::Zero(DI32());
    return hn::BitCast(DI8(), hn::SumOfMulQuadAccumulate(DI32(), offset, code_sum, zero));
  }
  HWY_INLINE VI32 total(VI8 correction) const {
    return hn::Sub(sum.get(), hn::BitCast(DI32(), correction));
  }
};
#endif
#else
HWY_INLINE VI8 input_of(VI8 x) { return x; }
#if HWY_ARCH_ARM  // whose BlockDot multiplies signed numbers
struct SignedDot {
  BlockDot sum;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { sum.start(hn::Zero(DI32())); }
  HWY_INLINE void add(VI8 w, VI8 x) { sum.add(hn::BitCast(DU8(), w), x, false); }
  static HWY_INLINE VI8 correction(VI8 code_sum) { return code_sum; }
  HWY_INLINE VI32 total(VI8) const { return sum.total(); }
};
#else
struct SignedDot {
  Register<DI32> sum;
  HWY_INLINE SignedDot() {}
  HWY_INLINE void start() { sum.set(hn::Zero(DI32())); }
  HWY_INLINE void add(VI8 w, VI8 x) {
    sum.set(hn::SumOfMulQuadAccumulate(DI32(), w, x, sum.get()));
  }
  static HWY_INLINE VI8 correction(VI8 code_sum) { return code_sum; }
  HWY_INLINE VI32 total(VI8) const { return sum.get(); }
};
#endif
#endif

// The codes of a block of 16 rows by 4 weights, unsigned.
HWY_INLINE void read_block(const std::byte* block, Register<DU8> (&codes)[kVectors]) {
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(block);
  if constexpr (kVectors == 1) {
    const hn::Half<DU8> half;
    const hn::Repartition<std::uint16_t, hn::Half<DU8>> half16;
    const auto both = hn::LoadU(half, bytes);
    const auto high = hn::BitCast(half, hn::ShiftRight<4>(hn::BitCast(half16, both)));
    codes[0].set(low_nibbles(hn::Combine(DU8(), high, both)));
  } else {
    HWY_UNROLL(2) for (int c = 0; c < kVectors / 2; ++c) {
      const VU8 both = hn::LoadU(DU8(), bytes + c * kVectorBytes);
      codes[c].set(low_nibbles(both));
      codes[c + kVectors / 2].set(high_nibbles(both));
    }
  }
}

// Where the blocks of a step begin in the inputs.
HWY_INLINE const std::uint8_t* offsets_of(std::uint32_t entry) {
  return layout::kBlockOffsets.of[entry & 0xFF];
}
HWY_INLINE std::uint32_t entry_at(const std::byte* entries, Index e) {
  return layout::load<std::uint32_t>(entries + 4 * e);
}
HWY_INLINE int n_blocks_of(std::uint32_t entry) {
  return static_cast<int>(hwy::PopCount(entry & 0xFF));
}

HWY_INLINE VF32 load_scale(const std::byte* scales, int c) {
  return load_f32(reinterpret_cast<const f16*>(scales) + c * kLanes);
}

// A run: steps that follow each other and have the same number of blocks. Adds their products with
// kRows rows to sums[kRows][16].
struct Run {
  const std::byte* entries;
  Index n;
  const std::byte* steps;  // as they are stored, or expanded
};

template <int kBlocks, int kRows>
HWY_NOINLINE void add_stored(const kernels::MatmulInput& in, const Run& run,
                             StreamPrefetcher prefetcher, float* HWY_RESTRICT sums_inout) {
  constexpr Index kBytes = layout::kScaleBytes + kBlocks * layout::kBlockBytes;
  Sums<kRows, kVectors> sums;
  sums.load(sums_inout, quant::kPanelRows);
  const VU8 eight = hn::Set(DU8(), 8);
  const std::byte* HWY_RESTRICT at = run.steps;
  for (Index e = 0; e < run.n; ++e, at += kBytes) {
    const std::uint32_t entry = entry_at(run.entries, e);
    const auto step = static_cast<Index>(entry >> 8);
    const std::int8_t* HWY_RESTRICT x = in.codes + step * kStep;
    const std::uint8_t* HWY_RESTRICT offsets = offsets_of(entry);
    prefetch_lines<kBytes>(prefetcher.into, at + prefetcher.distance);
    BlockDot dot[kRows][kVectors], correction[kRows];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      correction[r].start(hn::Zero(DI32()));
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].start(hn::Zero(DI32())); }
    }
    HWY_UNROLL(8) for (int b = 0; b < kBlocks; ++b) {
      Register<DU8> codes[kVectors];
      read_block(at + layout::kScaleBytes + b * layout::kBlockBytes, codes);
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const VI8 input = broadcast4(x + offsets[b] + r * in.code_stride);
        correction[r].add(eight, input, false);
        HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
          dot[r][c].add(codes[c].get(), input, false);
        }
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VI32 subtract = correction[r].total();
      const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + step]);
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        const VF32 total = hn::ConvertTo(DF32(), hn::Sub(dot[r][c].total(), subtract));
        const VF32 scale = hn::Mul(load_scale(at, c), x_scale);
        sums.set(r, c, hn::MulAdd(total, scale, sums.get(r, c)));
      }
    }
  }
  sums.store(sums_inout, quant::kPanelRows);
}

// Expanded steps: f32 scales, corrections, and a signed byte for each code.
constexpr Index kWideHeader = 128;
constexpr Index kWideBlock = 64;
constexpr Index wide_bytes(int n_blocks) { return kWideHeader + kWideBlock * n_blocks; }

// Expands the step at `record`; returns the end of `out`.
HWY_INLINE std::byte* widen_blocks(const std::byte* record, int n_blocks, std::byte* out) {
  auto* const bytes = reinterpret_cast<std::int8_t*>(out);
  Register<DI8> code_sums[kVectors];
  HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { code_sums[c].set(hn::Zero(DI8())); }
  for (int b = 0; b < n_blocks; ++b) {
    Register<DU8> codes[kVectors];
    read_block(record + layout::kScaleBytes + b * layout::kBlockBytes, codes);
    HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
      const VI8 code = hn::BitCast(DI8(), hn::Sub(codes[c].get(), hn::Set(DU8(), 8)));
      hn::StoreU(code, DI8(), bytes + kWideHeader + b * kWideBlock + c * kVectorBytes);
      code_sums[c].set(hn::Add(code_sums[c].get(), code));
    }
  }
  HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
    hn::StoreU(load_scale(record, c), DF32(), reinterpret_cast<float*>(out) + c * kLanes);
    hn::StoreU(SignedDot::correction(code_sums[c].get()), DI8(), bytes + 64 + c * kVectorBytes);
  }
  return out + wide_bytes(n_blocks);
}

template <int kBlocks, int kRows>
HWY_NOINLINE void add_widened(const kernels::MatmulInput& in, const Run& run,
                              float* HWY_RESTRICT sums_inout) {
  Sums<kRows, kVectors> sums;
  sums.load(sums_inout, quant::kPanelRows);
  const std::byte* HWY_RESTRICT at = run.steps;
  for (Index e = 0; e < run.n; ++e, at += wide_bytes(kBlocks)) {
    const std::uint32_t entry = entry_at(run.entries, e);
    const auto step = static_cast<Index>(entry >> 8);
    const std::int8_t* HWY_RESTRICT x = in.codes + step * kStep;
    const std::uint8_t* HWY_RESTRICT offsets = offsets_of(entry);
    const auto* const bytes = reinterpret_cast<const std::int8_t*>(at);
    SignedDot dot[kRows][kVectors];
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) { dot[r][c].start(); }
    }
    HWY_UNROLL(8) for (int b = 0; b < kBlocks; ++b) {
      const std::int8_t* const block = bytes + kWideHeader + b * kWideBlock;
      Register<DI8> codes[kVectors];
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        VI8 v = hn::LoadU(DI8(), block + c * kVectorBytes);
#if HWY_ARCH_X86 && (HWY_COMPILER_GCC || HWY_COMPILER_CLANG)
        // Of two rows, one multiplies what is in a register and the other what is in memory: so
        // that neither the number of loads nor that of instructions is what limits this loop.
        if (kRows == 2) asm("" : "+v"(v.raw));
#endif
        codes[c].set(v);
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const auto input = input_of(broadcast4(x + offsets[b] + r * in.code_stride));
        HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
          const bool again = kRows == 2 && r == 1;
          dot[r][c].add(again ? hn::LoadU(DI8(), block + c * kVectorBytes) : codes[c].get(), input);
        }
      }
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const VF32 x_scale = hn::Set(DF32(), in.scales[r * in.n_blocks + step]);
      HWY_UNROLL(4) for (int c = 0; c < kVectors; ++c) {
        const VI8 correction = hn::LoadU(DI8(), bytes + 64 + c * kVectorBytes);
        const VF32 total = hn::ConvertTo(DF32(), dot[r][c].total(correction));
        const float* const scales = reinterpret_cast<const float*>(at) + c * kLanes;
        const VF32 scale = hn::Mul(hn::LoadU(DF32(), scales), x_scale);
        sums.set(r, c, hn::MulAdd(total, scale, sums.get(r, c)));
      }
    }
  }
  sums.store(sums_inout, quant::kPanelRows);
}

// Calls f(number of blocks as a constant).
template <class Function>
HWY_INLINE void with_blocks(int n_blocks, const Function& f) {
  switch (n_blocks) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 5: return f(std::integral_constant<int, 5>());
    case 6: return f(std::integral_constant<int, 6>());
    case 7: return f(std::integral_constant<int, 7>());
    default: return f(std::integral_constant<int, 8>());
  }
}

// Cuts n entries into runs; calls f(number of blocks, first entry, length).
template <class Function>
HWY_INLINE void for_each_run(const std::byte* entries, Index n, const Function& f) {
  for (Index e = 0; e < n;) {
    const Index first = e;
    const int n_blocks = n_blocks_of(entry_at(entries, e));
    for (++e; e < n && n_blocks_of(entry_at(entries, e)) == n_blocks; ++e) {
    }
    f(n_blocks, first, e - first);
  }
}

}  // namespace sparse_detail

template <>
struct SparsePanel<quant::Q4_0Blocks16x4> {
  template <int kRows>
  static HWY_INLINE void sums_of_rows(const kernels::MatmulInput& in, Index, const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT out) {
    std::fill_n(out, kRows * quant::kPanelRows, 0.0f);
    const Index n = n_entries(panel);
    const std::byte* steps = records(panel, n);
    sparse_detail::for_each_run(
        panel + 4, n, [&](int n_blocks, Index first, Index length) NIBBLE_ATTR {
          const sparse_detail::Run run{panel + 4 * (first + 1), length, steps};
          sparse_detail::with_blocks(n_blocks, [&](auto blocks) NIBBLE_ATTR {
            sparse_detail::add_stored<decltype(blocks)::value, kRows>(in, run, prefetcher, out);
          });
          steps += length * bytes_of(n_blocks);
        });
  }

  template <int kMaxRows>
  static HWY_INLINE void sums_of_many(const kernels::MatmulInput& in, Index m, Index,
                                      const std::byte* panel,
                                      sparse_detail::StreamPrefetcher prefetcher,
                                      float* HWY_RESTRICT sums) {
    std::fill_n(sums, m * quant::kPanelRows, 0.0f);
    const Index n = n_entries(panel);
    const std::byte* steps = records(panel, n);
    sparse_detail::for_each_run(
        panel + 4, n, [&](int n_blocks, Index first, Index length) NIBBLE_ATTR {
          // What is expanded at a time stays in L1, together with the inputs of a tile.
          alignas(64) std::byte part[kPartBytes];
          const Index max = kPartBytes / sparse_detail::wide_bytes(n_blocks);
          for (Index done = 0; done < length; done += max) {
            const Index n_part = HWY_MIN(max, length - done);
            std::byte* end = part;
            for (Index i = 0; i < n_part; ++i, steps += bytes_of(n_blocks)) {
              prefetcher.step(steps);
              end = sparse_detail::widen_blocks(steps, n_blocks, end);
            }
            const sparse_detail::Run run{panel + 4 * (first + done + 1), n_part, part};
            sparse_detail::with_blocks(n_blocks, [&](auto blocks) NIBBLE_ATTR {
              add_run<decltype(blocks)::value, kMaxRows>(in, m, run, sums);
            });
          }
        });
  }

  static Index lines_of_step(Index panel_bytes, Index k) noexcept {
    return SparsePanel<quant::Q4_0Bitmask>::lines_of_step(panel_bytes, k);
  }

 private:
  static constexpr Index kPartBytes = 20 << 10;

  template <int kBlocks, int kMaxRows>
  static HWY_INLINE void add_run(const kernels::MatmulInput& in, Index m,
                                 const sparse_detail::Run& run, float* HWY_RESTRICT sums) {
    for (Index row = 0; row < m;) {
      const kernels::MatmulInput rows = in.rows_from(row);
      float* const at = sums + row * quant::kPanelRows;
      if (kMaxRows >= 4 && m - row >= 4) {
        sparse_detail::add_widened<kBlocks, (kMaxRows >= 4 ? 4 : 1)>(rows, run, at);
        row += 4;
      } else if (kMaxRows >= 2 && m - row >= 2) {
        sparse_detail::add_widened<kBlocks, (kMaxRows >= 2 ? 2 : 1)>(rows, run, at);
        row += 2;
      } else {
        sparse_detail::add_widened<kBlocks, 1>(rows, run, at);
        ++row;
      }
    }
  }
  static constexpr Index bytes_of(int n_blocks) {
    return quant::sparse::kScaleBytes + n_blocks * quant::sparse::kBlockBytes;
  }
  static HWY_INLINE Index n_entries(const std::byte* panel) {
    return static_cast<Index>(quant::sparse::load<std::uint32_t>(panel));
  }
  static HWY_INLINE const std::byte* records(const std::byte* panel, Index n) {
    return panel + quant::sparse::records_at(n);
  }
};

}}}  // namespace nibble::NIBBLE_ABI::NIBBLE_TARGET_NAMESPACE
NIBBLE_AFTER_NAMESPACE();

#endif  // per-target include guard
