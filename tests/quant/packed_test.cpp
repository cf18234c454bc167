// SPDX-License-Identifier: Apache-2.0
#include "nibble/quant/packed.hpp"

#include <cstring>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/matmul_reference.hpp"

using namespace nibble;
using namespace nibble_test;
using quant::Packed;
using quant::PackedMatrix;

namespace {

// A format of a program's own is not taken for one of GGUF's super-blocks, whatever its members.
struct Grouped : quant::Blocks<4, 256, f16, quant::ZeroPoint::minimum> {
  static constexpr int kGroupLength = 32;
};
static_assert(quant::BlockFormat<Grouped> && !quant::SuperBlockFormat<Grouped>);
static_assert(quant::SuperBlockFormat<quant::Q4_K> && quant::SuperBlockFormat<quant::Q6_K>);

// One panel has 16 rows. A group has a cache line of scales (and one of minimums), then its codes.
template <class Format>
constexpr Index group(Index k) {
  return Packed<Format>::bytes(16, k);
}
static_assert(group<quant::Q4_0>(2 * 32) == 64 + 16 * 2 * 16);
static_assert(group<quant::Q4_1>(2 * 32) == 64 + 64 + 16 * 2 * 16);
static_assert(group<quant::Q8_0>(2 * 32) == 64 + 16 * 2 * 32);
static_assert(group<quant::Q5_0>(2 * 32) == 64 + 16 * 2 * 20);
static_assert(group<quant::Q5_1>(2 * 32) == 64 + 64 + 16 * 2 * 20);
static_assert(group<quant::Q3_H>(2 * 32) == 64 + 16 * 2 * 12);
static_assert(group<quant::Q2_H>(2 * 32) == 64 + 16 * 2 * 8);
static_assert(group<quant::Q4_K>(256) == 16 * 144 && group<quant::Q5_K>(256) == 16 * 176);
static_assert(group<quant::Q6_K>(256) == 16 * 212);
static_assert(group<quant::Q2_K>(256) == 16 * 84 && group<quant::Q3_K>(256) == 16 * 112);
static_assert(group<quant::TQ2_0>(256) == 16 * 68);
static_assert(group<quant::IQ4_NL>(2 * 32) == 64 + 16 * 2 * 16);
static_assert(group<quant::MXFP4>(4 * 32) == 64 + 16 * 4 * 16);
static_assert(group<quant::IQ4_XS>(256) == 16 * 136);
static_assert(group<quant::Q2_0>(64) == 16 * 20 && group<quant::Q1_0>(128) == 16 * 20);
static_assert(group<Q4Bf16>(2 * 64) == 64 + 16 * 2 * 32);
static_assert(group<Q8F32>(32) == 64 + 16 * 32);
static_assert(group<Q4Minimum128>(2 * 128) == 64 + 64 + 16 * 2 * 64);
static_assert(group<Q8Minimum64>(2 * 64) == 64 + 64 + 16 * 2 * 64);

// Sizes are whole groups and whole panels.
static_assert(Packed<quant::Q4_0>::bytes(1, 1) == group<quant::Q4_0>(64));
static_assert(Packed<quant::Q4_0>::bytes(17, 65) == 2 * 2 * group<quant::Q4_0>(64));
static_assert(Packed<quant::Q4_0>::bytes(0, 64) == 0);
static_assert(Packed<quant::Q4_0>::n_blocks(65) == 3 && Packed<quant::Q4_0>::padded_k(65) == 128);
static_assert(Packed<Q8F32>::bytes(33, 65) == 3 * 3 * group<Q8F32>(32));

// Float weights: 16 for each k, up to whole cache lines.
static_assert(Packed<quant::F32>::bytes(16, 7) == 7 * 64);
static_assert(Packed<quant::F16>::bytes(17, 7) == 2 * 4 * 64);
static_assert(Packed<quant::BF16>::bytes(17, 7) == 2 * 4 * 64);

template <class Format>
PackedMatrix<Format> matrix(const AlignedBuffer& memory, Index n, Index k) {
  return {memory.data(), n, k};
}

template <class T>
int count_different(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0 ? 0 : 1;
}

// Byte i of the chunk of fifth bits that goes with four chunks of 4-bit codes, whose bytes hold
// weights `apart` from each other.
template <class BitOf>
int upper_bits(const BitOf& bit_of, int i, int apart) {
  int byte = 0;
  for (int c = 0; c < 4; ++c) {
    byte |= bit_of(4 * c + i) << (4 + c) | bit_of(4 * c + i + apart) << c;
  }
  return byte;
}

// The bytes of a panel, computed from the table in packed.hpp.
template <class Format>
std::vector<int> documented(const Weights<Format>& w) {
  using Scale = typename Format::Scale;
  constexpr int kScaleBytes = static_cast<int>(sizeof(Scale));
  constexpr bool kSigned8 = Format::kBits == 8 && !Weights<Format>::kHasMinimum;
  constexpr int kBlocks = 4 / kScaleBytes;  // 64 bytes of scales
  constexpr int kCodeBytes = Format::kLength * Format::kBits / 8;
  const int n_groups = static_cast<int>((w.row_blocks() + kBlocks - 1) / kBlocks);
  std::vector<int> bytes;
  const auto put_scale = [&](Index row, Index b, bool is_minimum) {
    unsigned char stored[kScaleBytes] = {};
    if (row < w.n && b < w.row_blocks()) {
      if constexpr (Weights<Format>::kHasMinimum) {
        if (is_minimum) std::memcpy(stored, &w.block(row, b).minimum, sizeof(Scale));
      }
      if (!is_minimum) std::memcpy(stored, &w.block(row, b).scale, sizeof(Scale));
    }
    bytes.insert(bytes.end(), stored, stored + kScaleBytes);
  };
  for (int g = 0; g < n_groups; ++g) {
    for (const bool is_minimum : {false, true}) {
      if (is_minimum && !Weights<Format>::kHasMinimum) continue;
      for (int b = 0; b < kBlocks; ++b) {
        for (int row = 0; row < 16; ++row) put_scale(row, g * kBlocks + b, is_minimum);
      }
    }
    for (int b = g * kBlocks; b < (g + 1) * kBlocks; ++b) {
      for (int chunk = 0; chunk < kCodeBytes / 4; ++chunk) {
        for (int row = 0; row < 16; ++row) {
          for (int i = 4 * chunk; i < 4 * chunk + 4; ++i) {
            const bool exists = row < w.n && b < w.row_blocks();
            int byte = exists ? w.block(row, b).codes[size(i)] : 0;
            if ((Format::kBits == 5 || Format::kBits == 3) && chunk == 0 && exists) {
              const auto& codes = w.block(row, b).codes;
              byte = upper_bits([&](int j) { return codes[size(j / 8)] >> j % 8 & 1; }, i, 16);
            }
            bytes.push_back(kSigned8 ? (byte + 128) % 256 : byte);
          }
        }
      }
    }
  }
  return bytes;
}

std::vector<int> stored(const AlignedBuffer& memory) {
  std::vector<int> bytes;
  for (const std::byte b : memory.bytes()) bytes.push_back(std::to_integer<int>(b));
  return bytes;
}

// The bytes of a panel of whole super-blocks, likewise.
template <class Format>
std::vector<int> documented_k_blocks(const Weights<Format>& w) {
  constexpr bool kIsFew = Format::kBits < 4;
  constexpr bool kIsGroups16 = Format::kGroupLength == 16;
  constexpr int kUpper = Format::kBits - (kIsFew ? 2 : 4), kBelow = kIsFew ? 4 : 16;
  std::vector<int> bytes;
  const auto for_rows = [&](const auto& byte_of) {
    for (int row = 0; row < 16; ++row) {
      for (int i = 0; i < 4; ++i) bytes.push_back(row < w.n ? byte_of(row, i) : 0);
    }
  };
  for (Index b = 0; b < w.row_blocks(); ++b) {
    for_rows([&](Index row, int i) {
      const auto& block = w.block(row, b);
      int bits = block.scale.bits;
      if constexpr (Weights<Format>::kHasMinimum) bits |= block.minimum.bits << 16;
      return static_cast<unsigned>(bits) >> 8 * i & 255;
    });
    if constexpr (requires { w.block(0, b).scales; }) {
      for (std::size_t chunk = 0; chunk < w.block(0, b).scales.size() / 4; ++chunk) {
        for_rows([&](Index row, int i) {
          const int at = kIsGroups16 && (i == 1 || i == 2) ? 3 - i : i;
          return static_cast<std::uint8_t>(w.block(row, b).scales[4 * chunk + size(at)]);
        });
      }
    }
    if constexpr (Format::kLength < 256) {  // 32 / kBits weights of a chunk
      constexpr int kPerChunk = 32 / Format::kBits;
      for (int chunk = 0; chunk < Format::kLength / kPerChunk; ++chunk) {
        for_rows([&](Index row, int i) {
          int byte = 0;
          for (int c = 0; c < kPerChunk / 4; ++c) {
            const int at = kPerChunk * chunk + 4 * c + i;
            const int code = nibble_test::code_in_super_block<Format>(w.block(row, b), at) + 1;
            byte |= (Format::kBits == 1 ? code / 2 : code) << Format::kBits * c;
          }
          return byte;
        });
      }
      continue;
    }
    for (int step = 0; step < 8; ++step) {
      const auto code = [&](Index row, int j) {
        constexpr int kOffset = Format::kBits == 6 ? 32 : Format::kBits == 3 ? 4 : 1;
        return nibble_test::code_in_super_block<Format>(w.block(row, b), 32 * step + j) +
               (Weights<Format>::kHasMinimum ? 0 : kOffset);
      };
      // Of the low and the high half of byte i of chunk c of 4-bit codes.
      const auto low = [&](int c, int i) {
        return (kIsGroups16 ? c / 2 * 16 + c % 2 * 4 : 4 * c) + i;
      };
      constexpr int kApart = kIsGroups16 ? 8 : 16;
      for (int chunk = 0; chunk < kUpper; ++chunk) {
        for_rows([&](Index row, int i) {
          if constexpr (Format::kBits == 6) {
            const int first = low(2 * chunk, i), next = low(2 * chunk + 1, i);
            return code(row, first) / 16 << 4 | code(row, first + kApart) / 16 |
                   code(row, next) / 16 << 6 | code(row, next + kApart) / 16 << 2;
          } else {
            int byte = 0;
            for (int c = 0; c < 4; ++c) {
              byte |= code(row, low(c, i)) / kBelow << (4 + c);
              byte |= code(row, low(c, i) + kApart) / kBelow << c;
            }
            return byte;
          }
        });
      }
      for (int chunk = 0; chunk < (kIsFew ? 2 : 4); ++chunk) {
        for_rows([&](Index row, int i) {
          const auto two = [&](int c) {
            return code(row, low(c, i)) % kBelow | code(row, low(c, i) + kApart) % kBelow
                                                       << (kIsFew ? 2 : 4);
          };
          return kIsFew ? two(2 * chunk) | two(2 * chunk + 1) << 4 : two(chunk);
        });
      }
    }
  }
  return bytes;
}

template <class Format>
std::vector<int> documented_super_blocks(const Weights<Format>& w) {
  if constexpr (quant::LevelFormat<Format>) {
    // IQ4_XS: the scale and the upper bits of the small ones, the small ones, the codes of a step
    // as in its 16 bytes. These are the words of the block in their order.
    std::vector<int> words;
    for (Index b = 0; b < w.row_blocks(); ++b) {
      for (std::size_t i = 0; i < sizeof(typename Format::Block); i += 4) {
        for (Index row = 0; row < 16; ++row) {
          unsigned char word[4] = {};
          if (row < w.n) {
            std::memcpy(word, reinterpret_cast<const char*>(&w.block(row, b)) + i, 4);
          }
          words.insert(words.end(), word, word + 4);
        }
      }
    }
    return words;
  } else {
    return documented_k_blocks(w);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("blocks are packed as documented, and come back", Format, quant::Q4_0,
                   quant::Q4_1, quant::Q5_0, quant::Q5_1, quant::Q8_0, Q4Bf16, Q8F32, Q4Minimum128,
                   Q8Minimum64, quant::Q3_H, quant::Q2_H, quant::IQ4_NL, quant::MXFP4) {
  using P = Packed<Format>;
  std::mt19937 random(1);
  for (const Index n : {1, 2, 15, 16, 17, 33}) {
    for (const Index k : {P::kLength, 2 * P::kLength, 3 * P::kLength, 4 * P::kLength + 5}) {
      CAPTURE(n);
      CAPTURE(k);
      const auto w = Weights<Format>::random(n, k, random);
      const AlignedBuffer memory = pack(w, n);
      REQUIRE(static_cast<Index>(memory.size()) == P::bytes(n, k));
      REQUIRE(reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
      REQUIRE(P::panel_bytes(k) % 64 == 0);
      const auto packed = matrix<Format>(memory, n, k);
      int faults = 0;
      for (Index row = 0; row < n; ++row) {
        for (Index b = 0; b < w.row_blocks(); ++b) {
          const auto block = P::unpack_block(packed.panel(row / 16), row % 16, b);
          faults += count_different(block, w.block(row, b));
        }
      }
      CHECK(faults == 0);
      if (n <= 16) CHECK(stored(memory) == documented(w));

      // Whatever is beyond n and k is zero weights, independent of what the memory held before.
      faults = 0;
      const Index rows = quant::n_panels(n) * 16;
      for (Index row = 0; row < rows; ++row) {
        for (Index b = row < n ? w.row_blocks() : 0; b < P::padded_k(k) / P::kLength; ++b) {
          const auto block = P::unpack_block(packed.panel(row / 16), row % 16, b);
          if (to_double(block.scale) * Weights<Format>::code(block, 0) != 0) ++faults;
          if (Weights<Format>::minimum(block, 0) != 0) ++faults;
          for (const auto byte : block.codes) faults += byte != 0;
        }
      }
      CHECK(faults == 0);
      AlignedBuffer again = pack(w, n);
      const Index last = quant::n_panels(n) - 1;
      std::byte* const panel = again.data() + last * P::panel_bytes(k);
      std::memset(panel, 0xA5, size(P::panel_bytes(k)));
      P::pack_panel(w.data() + last * 16 * w.row_size(), n - last * 16, k, panel);
      CHECK(stored(again) == stored(memory));
    }
  }
}

TEST_CASE_TEMPLATE("super-blocks are packed as documented, and come back", Format, quant::Q4_K,
                   quant::Q5_K, quant::Q6_K, quant::Q2_K, quant::Q3_K, quant::TQ2_0, quant::Q2_0,
                   quant::Q1_0, quant::IQ4_XS) {
  using P = Packed<Format>;
  std::mt19937 random(4);
  for (const Index n : {1, 15, 16, 17}) {
    for (const Index k : {256, 768}) {
      CAPTURE(n);
      CAPTURE(k);
      const auto w = Weights<Format>::random(n, k, random);
      const AlignedBuffer memory = pack(w, n);
      REQUIRE(static_cast<Index>(memory.size()) == P::bytes(n, k));
      if (n <= 16) CHECK(stored(memory) == documented_super_blocks(w));
      const auto packed = matrix<Format>(memory, n, k);
      int faults = 0;
      for (Index row = 0; row < n; ++row) {
        for (Index b = 0; b < w.row_blocks(); ++b) {
          const auto block = P::unpack_block(packed.panel(row / 16), row % 16, b);
          faults += count_different(block, w.block(row, b));
        }
      }
      for (Index row = n; row < quant::n_panels(n) * 16; ++row) {
        const auto block = P::unpack_block(packed.panel(row / 16), row % 16, 0);
        faults += to_double(block.scale) != 0;
      }
      CHECK(faults == 0);
    }
  }
}

TEST_CASE("places of single bytes in a packed panel") {
  // Q4_0, two rows of three blocks: a scale is 2 bytes, a group has two blocks, 64 + 2 * 256 bytes.
  Weights<quant::Q4_0> w{2, 96, std::vector<quant::Q4_0::Block>(6)};
  w.block(0, 0).scale.bits = 0x1122;
  w.block(1, 1).scale.bits = 0x3344;
  w.block(1, 2).scale.bits = 0x5566;
  w.block(0, 0).codes[0] = 0xA0;   // weights 0 and 16 of the row
  w.block(0, 0).codes[15] = 0xA1;  // weights 15 and 31
  w.block(1, 1).codes[6] = 0xA2;
  w.block(1, 2).codes[9] = 0xA3;
  const AlignedBuffer memory = pack(w, 2);
  std::vector<int> expected(2 * (64 + 512), 0);
  expected[0] = 0x22;
  expected[1] = 0x11;
  expected[32 + 2] = 0x44;
  expected[32 + 3] = 0x33;
  expected[576 + 2] = 0x66;
  expected[576 + 3] = 0x55;
  expected[64] = 0xA0;
  expected[64 + 3 * 64 + 3] = 0xA1;
  expected[64 + 256 + 64 + 4 + 2] = 0xA2;
  expected[576 + 64 + 2 * 64 + 4 + 1] = 0xA3;
  CHECK(stored(memory) == expected);

  // Q8_0: the top bit of signed codes is flipped; missing weights have code 128, which is zero.
  Weights<quant::Q8_0> w8{1, 32, std::vector<quant::Q8_0::Block>(1)};
  w8.block(0, 0).codes[5] = 0x81;  // -127
  w8.block(0, 0).codes[6] = 0x7F;
  const AlignedBuffer memory8 = pack(w8, 1);
  const auto bytes = stored(memory8);
  REQUIRE(bytes.size() == 64 + 2 * 512);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const int value = i == 64 + 64 + 1 ? 0x01 : i == 64 + 64 + 2 ? 0xFF : i < 64 ? 0 : 0x80;
    REQUIRE(bytes[i] == value);
  }
}

TEST_CASE_TEMPLATE("plain weights are packed as documented, and come back", Format, quant::F32,
                   quant::F16, quant::BF16) {
  using P = Packed<Format>;
  using T = typename Format::Element;
  constexpr Index kPair = std::is_same_v<T, bf16> ? 2 : 1;
  std::mt19937 random(2);
  for (const Index n : {1, 15, 16, 17, 33}) {
    for (const Index k : {1, 2, 7, 33}) {
      CAPTURE(n);
      CAPTURE(k);
      const auto w = Weights<Format>::random(n, k, random);
      const AlignedBuffer memory = pack(w, n);
      const auto packed = matrix<Format>(memory, n, k);
      REQUIRE(static_cast<Index>(memory.size()) == P::bytes(n, k));
      REQUIRE(P::panel_bytes(k) % 64 == 0);
      // [k / kPair][16 rows][kPair], zeros beyond n and k.
      std::vector<T> expected(memory.size() / sizeof(T), T{});
      const Index panel_values = P::panel_bytes(k) / static_cast<Index>(sizeof(T));
      int faults = 0;
      for (Index row = 0; row < n; ++row) {
        for (Index i = 0; i < k; ++i) {
          const T value = w.values[size(row * k + i)];
          const Index place = (i / kPair * 16 + row % 16) * kPair + i % kPair;
          expected[size(row / 16 * panel_values + place)] = value;
          faults += count_different(P::weight(packed.panel(row / 16), row % 16, i), value);
        }
      }
      CHECK(faults == 0);
      CHECK(std::memcmp(expected.data(), memory.data(), memory.size()) == 0);
    }
  }
}

TEST_CASE("plain rows may start at any address") {
  std::mt19937 random(3);
  const auto w = Weights<quant::F32>::random(5, 7, random);
  const AlignedBuffer expected = pack(w, 5);
  std::vector<std::byte> moved(w.values.size() * sizeof(float) + 1);
  std::memcpy(moved.data() + 1, w.values.data(), moved.size() - 1);
  auto memory = AlignedBuffer::allocate(expected.size());
  REQUIRE(memory.has_value());
  Packed<quant::F32>::pack_panel(moved.data() + 1, 5, 7, memory->data());
  CHECK(stored(*memory) == stored(expected));
}
