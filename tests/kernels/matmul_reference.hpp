// SPDX-License-Identifier: Apache-2.0
//
// For tests of products: operands in heap blocks of exactly their size, the exact product in
// double, and the allowed error of a kernel. Shares no code with the kernels: codes are read from
// the row-major blocks, 16-bit floats are converted here, sums are plain loops in double.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/core/arena.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/quant/quantize.hpp"

namespace nibble_test {

using namespace nibble;

// Some members of the family beyond GGUF's.
using Q4Bf16 = quant::Blocks<4, 64, bf16, quant::ZeroPoint::symmetric>;
using Q8F32 = quant::Blocks<8, 32, float, quant::ZeroPoint::symmetric>;
using Q4Minimum128 = quant::Blocks<4, 128, f16, quant::ZeroPoint::minimum>;
using Q8Minimum64 = quant::Blocks<8, 64, f16, quant::ZeroPoint::minimum>;

inline std::size_t size(Index n) { return static_cast<std::size_t>(n); }

// ---- Numbers -----------------------------------------------------------------------------------

inline double from_bits(unsigned bits, int mantissa_bits, int exponent_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1));
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const bool negative = (bits >> (mantissa_bits + exponent_bits) & 1) != 0;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                    : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return negative ? -magnitude : magnitude;
}
inline double to_double(f16 x) { return from_bits(x.bits, 10, 5); }
inline double to_double(bf16 x) { return from_bits(x.bits, 7, 8); }
inline double to_double(float x) { return x; }
inline double to_double(HalfE8M0 x) { return std::ldexp(1.0, x.bits - 128); }

// ---- Weights -----------------------------------------------------------------------------------

// Codes and small scales of super-blocks.
template <class Format>
int code_in_super_block(const typename Format::Block& block, Index j) {
  const auto& codes = block.codes;
  if constexpr (Format::kBits == 1) {
    return (codes[size(j / 8)] >> j % 8) % 2 == 1 ? 1 : -1;
  } else if constexpr (Format::kLength == 64) {
    constexpr int kPowers[] = {1, 4, 16, 64};
    return codes[size(j / 4)] / kPowers[j % 4] % 4 - 1;
  } else if constexpr (Format::kBits < 4) {
    const Index first = Format::kBits == 3 ? 32 : 0;
    constexpr int kPowers[] = {1, 4, 16, 64};
    const int low = codes[size(first + j / 128 * 32 + j % 32)] / kPowers[j / 32 % 4] % 4;
    const bool third = first > 0 && (codes[size(j % 32)] >> j / 32) % 2 == 1;
    if (first > 0) return third ? low : low - 4;
    return Format::kZeroPoint == quant::ZeroPoint::minimum ? low : low - 1;
  } else if constexpr (Format::kBits == 6) {
    const Index half = j / 128, part = j / 32 % 4;
    const int low = codes[size(64 * half + 32 * (part % 2) + j % 32)] >> (part < 2 ? 0 : 4);
    const int high = codes[size(128 + 32 * half + j % 32)] >> 2 * part;
    return low % 16 + 16 * (high % 4) - 32;
  } else {
    const Index first = Format::kBits == 5 ? 32 : 0;
    const int byte = codes[size(first + j / 64 * 32 + j % 32)];
    const bool fifth = first > 0 && (codes[size(j % 32)] >> j / 32) % 2 == 1;
    return (j / 32 % 2 == 0 ? byte % 16 : byte / 16) + (fifth ? 16 : 0);
  }
}
inline int small_minimum(const std::array<std::uint8_t, 12>& s, Index g) {
  return g < 4 ? s[size(g + 4)] % 64 : s[size(g + 4)] / 16 + s[size(g)] / 64 * 16;
}
inline int small_minimum(const std::array<std::uint8_t, 16>& s, Index g) { return s[size(g)] / 16; }
template <class Format, class Scales>
int plain_small_scale(const Scales& s, Index j) {
  if constexpr (Format::kBits == 2) return s[size(j / 16)] % 16;
  if constexpr (Format::kBits == 6) return s[size(j / 16)];
  const Index g = j / 32;
  return g < 4 ? s[size(g)] % 64 : s[size(g + 4)] % 16 + s[size(g - 4)] / 64 * 16;
}
template <class Format>
int small_scale(const typename Format::Block& block, Index j) {
  if constexpr (Format::kGroupLength > 32) {
    return 1;
  } else if constexpr (Format::kBits == 3) {
    const Index g = j / 16;
    const int low = block.scales[size(g % 8)], high = block.scales[size(8 + g % 4)];
    constexpr int kPowers[] = {1, 4, 16, 64};
    return (g < 8 ? low % 16 : low / 16) + high / kPowers[g / 4] % 4 * 16 - 32;
  } else {
    return plain_small_scale<Format>(block.scales, j);
  }
}

// The level that a code of 4 bits means. IQ4: ggml's table. Floats of 4 bits, twice: a sign, an
// exponent of two bits with bias 1, one bit after the point.
inline int level_of(quant::MXFP4, int code) {
  const int exponent = code / 2 % 4, fraction = code % 2;
  const int magnitude = exponent == 0 ? fraction : (2 + fraction) << (exponent - 1);
  return code < 8 ? magnitude : -magnitude;
}
inline int iq4_level(int code) {
  constexpr int kLevels[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                             1,    13,   25,  38,  53,  69,  89,  113};
  return kLevels[code];
}
inline int level_of(quant::IQ4_NL, int code) { return iq4_level(code); }
inline int level_of(quant::IQ4_XS, int code) { return iq4_level(code); }
inline int small_scale_of_iq4(const quant::IQ4_XS::Block& block, Index g) {
  const int low = g % 2 == 0 ? block.scales[size(g / 2)] % 16 : block.scales[size(g / 2)] / 16;
  return low + 16 * (block.upper_scales >> (2 * g) & 3) - 32;
}

// Row-major weights (n, k) as files have them.
template <class Format>
struct Weights;

template <quant::BlockFormat Format>
struct Weights<Format> {
  using Block = typename Format::Block;
  static constexpr Index kLength = Format::kLength;
  static constexpr bool kHasMinimum = Format::kZeroPoint == quant::ZeroPoint::minimum;
  // Of what is multiplied.
  static constexpr int kProductBits = [] {
    if constexpr (quant::LevelFormat<Format>) return Format::kLevelBits;
    return Format::kBits;
  }();
  Index n = 0;
  Index k = 0;
  std::vector<Block> blocks;  // (n, row_blocks())

  Index row_blocks() const { return (k + kLength - 1) / kLength; }
  Block& block(Index row, Index b) { return blocks[size(row * row_blocks() + b)]; }
  const Block& block(Index row, Index b) const { return blocks[size(row * row_blocks() + b)]; }

  // The integer that the block's scale multiplies: code j, times its small scale if it has one.
  static int code(const Block& block, Index j) {
    if constexpr (quant::LevelFormat<Format>) {
      const int byte = block.codes[size(j / 32 * 16 + j % 16)];
      const int level = level_of(Format(), j / 16 % 2 == 0 ? byte % 16 : byte / 16);
      if constexpr (Format::kLength == 256) return level * small_scale_of_iq4(block, j / 32);
      return level;
    } else if constexpr (quant::SuperBlockFormat<Format>) {
      return code_in_super_block<Format>(block, j) * small_scale<Format>(block, j);
    } else if constexpr (Format::kBits == 8) {
      const int byte = block.codes[size(j)];
      return !kHasMinimum && byte >= 128 ? byte - 256 : byte;
    } else if constexpr (Format::kBits < 4) {  // block.hpp's table, weight by weight
      const int first = Format::kBits == 3 ? 4 : 0, in_half = static_cast<int>(j % 16);
      const int byte = block.codes[size(first + in_half / 8 * 4 + in_half % 4)];
      const int shift = (j < 16 ? 0 : 2) + (in_half % 8 < 4 ? 0 : 4);
      const int low = byte >> shift & 3;
      if (first == 0) return 4 * low + 2 - 8;
      return 2 * (low + (block.codes[size(j / 8)] >> j % 8 & 1) * 4) + 1 - 8;
    } else {
      const int first = Format::kBits == 5 ? 4 : 0;
      const int byte = block.codes[size(first + j % (kLength / 2))];
      int result = j < kLength / 2 ? byte % 16 : byte / 16;
      if (first > 0 && block.codes[size(j / 8)] >> j % 8 & 1) result += 16;
      return result - (kHasMinimum ? 0 : 1 << (Format::kBits - 1));
    }
  }
  static double minimum(const Block& block, Index j) {
    if constexpr (quant::SuperBlockFormat<Format> && kHasMinimum)
      return -to_double(block.minimum) * small_minimum(block.scales, j / Format::kGroupLength);
    else if constexpr (kHasMinimum)
      return to_double(block.minimum);
    else
      return 0;
  }
  double weight(Index row, Index i) const {
    const Block& b = block(row, i / kLength);
    return to_double(b.scale) * code(b, i % kLength) + minimum(b, i % kLength);
  }

  // Codes are any bytes, scales and minimums around 1/64 with both signs.
  static Weights random(Index n, Index k, std::mt19937& random) {
    using Scale = typename Format::Scale;
    std::uniform_real_distribution<float> magnitude(0.5f / 64, 1.5f / 64);
    const auto scale = [&] {
      if constexpr (std::is_same_v<Scale, HalfE8M0>) {
        return HalfE8M0{static_cast<std::uint8_t>(121 + random() % 3)};
      } else {
        const float x = magnitude(random);
        return quant::round_to<Scale>(random() % 2 == 0 ? x : -x);
      }
    };
    Weights w{n, k, {}};
    w.blocks.resize(size(n * w.row_blocks()));
    for (Block& b : w.blocks) {
      b.scale = scale();
      if constexpr (kHasMinimum) b.minimum = scale();
      for (std::uint8_t& byte : b.codes) byte = static_cast<std::uint8_t>(random());
      if constexpr (quant::SuperBlockFormat<Format> && requires { b.scales; }) {
        for (auto& s : b.scales) s = static_cast<std::int8_t>(random() | 0x11);  // none is zero
      }
      if constexpr (std::is_same_v<Format, quant::IQ4_XS>) {
        b.upper_scales = static_cast<std::uint16_t>(random());
      }
    }
    return w;
  }
  const Block* data() const { return blocks.data(); }
  Index row_size() const { return row_blocks(); }
};

template <class T>
struct Weights<quant::Float<T>> {
  Index n = 0;
  Index k = 0;
  std::vector<T> values;  // (n, k)

  double weight(Index row, Index i) const { return to_double(values[size(row * k + i)]); }
  static Weights random(Index n, Index k, std::mt19937& random) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    Weights w{n, k, {}};
    w.values.resize(size(n * k));
    for (T& v : w.values) v = quant::round_to<T>(uniform(random));
    return w;
  }
  const T* data() const { return values.data(); }
  Index row_size() const { return k; }
};

// The first n rows, packed.
template <class Format>
AlignedBuffer pack(const Weights<Format>& w, Index n) {
  using P = quant::Packed<Format>;
  auto memory = AlignedBuffer::allocate(size(P::bytes(n, w.k)));
  REQUIRE(memory.has_value());
  for (Index p = 0; p < quant::n_panels(n); ++p) {
    const Index first = p * quant::kPanelRows;
    P::pack_panel(w.data() + first * w.row_size(), std::min(quant::kPanelRows, n - first), w.k,
                  memory->data() + p * P::panel_bytes(w.k));
  }
  return std::move(*memory);
}

// ---- Activations -------------------------------------------------------------------------------

// Either representation of MatmulInput. Rows of codes and of x have gaps between them, filled with
// values that would show in a result.
struct Activations {
  Index m = 0;
  Index k = 0;
  Index length = 0;  // of a block; 0: plain
  std::vector<float> x;
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<std::int32_t> code_sums;
  std::vector<std::int32_t> half_sums;  // of blocks of 32

  static constexpr Index kGap = 5;
  Index stride() const { return k + kGap; }
  Index n_blocks() const { return length == 0 ? 0 : (k + length - 1) / length; }
  Index code_stride() const { return n_blocks() * length + kGap; }

  kernels::MatmulInput input() const {
    kernels::MatmulInput in;
    if (length == 0) {
      in.x = x.data();
      in.stride = stride();
    } else {
      in.codes = codes.data();
      in.scales = scales.data();
      in.code_sums = code_sums.data();
      if (length == 32) in.half_sums = half_sums.data();
      in.code_stride = code_stride();
      in.n_blocks = n_blocks();
    }
    return in;
  }

  // code(row, i) in [-127, 127] for each i < k.
  template <class Code>
  static Activations quantized(Index m, Index k, Index length, std::mt19937& random,
                               const Code& code) {
    std::uniform_real_distribution<float> uniform(0.001f, 0.03f);
    Activations a;
    a.m = m;
    a.k = k;
    a.length = length;
    a.codes.assign(size((m - 1) * a.code_stride() + a.n_blocks() * length), 77);
    a.code_sums.assign(size(m * a.n_blocks()), 0);
    for (Index row = 0; row < m; ++row) {
      for (Index i = 0; i < a.n_blocks() * length; ++i) {
        const int c = i < k ? code(row, i) : 0;
        a.codes[size(row * a.code_stride() + i)] = static_cast<std::int8_t>(c);
        a.code_sums[size(row * a.n_blocks() + i / length)] -= 8 * c;
      }
      for (Index b = 0; b < a.n_blocks(); ++b) {
        a.scales.push_back(uniform(random));
        std::int16_t halves[2] = {};
        for (Index i = b * length; i < (b + 1) * length; ++i) {
          const int c = a.codes[size(row * a.code_stride() + i)];
          halves[i / 16 % 2] = static_cast<std::int16_t>(halves[i / 16 % 2] - 8 * c);
        }
        a.half_sums.push_back((halves[0] & 0xFFFF) | halves[1] * 0x10000);
      }
    }
    return a;
  }

  // The representation that `Format` needs.
  template <class Format>
  static Activations random(Index m, Index k, std::mt19937& random) {
    if constexpr (quant::BlockFormat<Format>) {
      return quantized(m, k, quant::Packed<Format>::kStepLength, random,
                       [&](Index, Index) { return static_cast<int>(random() % 255) - 127; });
    } else {
      std::uniform_real_distribution<float> uniform(-2, 2);
      Activations a;
      a.m = m;
      a.k = k;
      a.x.assign(size((m - 1) * a.stride() + k), 1e20f);
      for (Index row = 0; row < m; ++row) {
        for (Index i = 0; i < k; ++i) a.x[size(row * a.stride() + i)] = uniform(random);
      }
      return a;
    }
  }

  Activations first_rows(Index rows) const {
    Activations a;
    a.m = rows;
    a.k = k;
    a.length = length;
    if (length == 0) {
      a.x.assign(x.data(), x.data() + (rows - 1) * stride() + k);
    } else {
      a.codes.assign(codes.data(), codes.data() + (rows - 1) * code_stride() + n_blocks() * length);
      a.scales.assign(scales.data(), scales.data() + rows * n_blocks());
      a.code_sums.assign(code_sums.data(), code_sums.data() + rows * n_blocks());
      a.half_sums.assign(half_sums.data(), half_sums.data() + rows * n_blocks());
    }
    return a;
  }
};

// ---- What a product should be ------------------------------------------------------------------

// Values (m, n) in double, and the largest error that a correct kernel may have. With u = 2^-24,
// and A the sum of the magnitudes of the N terms that a kernel adds up in f32:
//   the N − 1 additions round partial sums, which are at most A:  (N − 1) u A
//   each term has rounded factors or is a rounded product:        r u A
// Float formats: a term is one x * w, r = 1. Block formats: a block's integer sum is exact, below
// 2^24 and so exact in f32; that of 32 weights of a super-block, too. The term scale * x_scale *
// sum has two roundings, and so has minimum * x_sum. N is the number of blocks, or twice that with
// minimums. Fused multiply-adds round less. Second-order terms are covered by one more u A.
struct Expected {
  Index m = 0;
  Index n = 0;
  std::vector<double> value;
  std::vector<double> tolerance;

  double at(Index row, Index column) const { return value[size(row * n + column)]; }
  double tolerance_at(Index row, Index column) const { return tolerance[size(row * n + column)]; }
};

template <class Format>
Expected expected_product(const Activations& a, const Weights<Format>& w) {
  Expected e{a.m, w.n, {}, {}};
  for (Index row = 0; row < a.m; ++row) {
    for (Index column = 0; column < w.n; ++column) {
      double sum = 0;
      double magnitudes = 0;
      double n_roundings = 0;
      if constexpr (quant::BlockFormat<Format>) {
        constexpr Index kLength = quant::Packed<Format>::kStepLength;
        for (Index b = 0; b < a.n_blocks(); ++b) {
          const auto& block = w.block(column, b * kLength / Format::kLength);
          const Index first = b * kLength % Format::kLength;  // in the block
          double products = 0;
          double minimums = 0;
          for (Index j = 0; j < kLength; ++j) {
            const double x = a.codes[size(row * a.code_stride() + b * kLength + j)];
            products += x * Weights<Format>::code(block, first + j);
            minimums += x * Weights<Format>::minimum(block, first + j);
          }
          const double x_scale = a.scales[size(row * a.n_blocks() + b)];
          const double main = to_double(block.scale) * x_scale * products;
          const double rest = x_scale * minimums;
          sum += main + rest;
          magnitudes += std::abs(main) + std::abs(rest);
        }
        const Index n_terms = a.n_blocks() * (Weights<Format>::kHasMinimum ? 2 : 1);
        // Two terms that are added before they are scaled: three roundings.
        const bool adds_first =
            quant::SuperBlockFormat<Format> && Format::kBits == 2 && Weights<Format>::kHasMinimum;
        n_roundings = static_cast<double>(n_terms) - 1 + 2 + 1 + (adds_first ? 1 : 0);
      } else {
        for (Index i = 0; i < a.k; ++i) {
          const double term = double{a.x[size(row * a.stride() + i)]} * w.weight(column, i);
          sum += term;
          magnitudes += std::abs(term);
        }
        n_roundings = static_cast<double>(a.k) - 1 + 1 + 1;
      }
      e.value.push_back(sum);
      e.tolerance.push_back(n_roundings * 0x1p-24 * magnitudes);
    }
  }
  return e;
}

// ---- Outputs -----------------------------------------------------------------------------------

// An (m, n) matrix that starts at an unaligned address, with guards before, after and between its
// rows.
class Output {
 public:
  static constexpr float kUntouched = 1e30f;
  static constexpr Index kGuard = 37;  // more than two vectors of the widest target

  Output(Index m, Index n) : m_(m), n_(n), memory_(size(m * stride() + 2 * kGuard), kUntouched) {}
  Index stride() const { return n_ + 5; }
  float* data() { return memory_.data() + kGuard; }
  float& operator()(Index row, Index column) { return memory_[size(at(row, column))]; }
  float operator()(Index row, Index column) const { return memory_[size(at(row, column))]; }

  // How many values outside the matrix were written.
  int n_guard_faults() const {
    const auto total = memory_.size();
    int faults = 0;
    for (std::size_t i = 0; i < total; ++i) {
      const Index place = static_cast<Index>(i) - kGuard;
      const bool inside = place >= 0 && place / stride() < m_ && place % stride() < n_;
      if (!inside && memory_[i] != kUntouched) ++faults;
    }
    return faults;
  }
  bool operator==(const Output& other) const { return memory_ == other.memory_; }

 private:
  Index at(Index row, Index column) const { return kGuard + row * stride() + column; }
  Index m_, n_;
  std::vector<float> memory_;
};

// How many values of the (m, n) corner of `e` the output does not match, and how many guards are
// broken.
inline int count_faults(const Expected& e, Index m, Index n, const Output& out) {
  int faults = out.n_guard_faults();
  for (Index row = 0; row < m; ++row) {
    for (Index column = 0; column < n; ++column) {
      // Written so that a NaN is a fault.
      if (!(std::abs(out(row, column) - e.at(row, column)) <= e.tolerance_at(row, column))) {
        ++faults;
      }
    }
  }
  return faults;
}

// The arguments of a whole product without an epilogue, for the active target.
inline kernels::MatmulArgs matmul_args(const Activations& a, Index n, const AlignedBuffer& weights,
                                       Output& out) {
  kernels::MatmulArgs args;
  args.input = a.input();
  args.m = a.m;
  args.weights = weights.data();
  args.n = n;
  args.k = a.k;
  args.end_panel = quant::n_panels(n);
  args.out = out.data();
  args.out_stride = out.stride();
  args.finish = simd::kernel<kernels::FinishTile<kernels::Epilogue<>>>();
  return args;
}

}  // namespace nibble_test
