// SPDX-License-Identifier: Apache-2.0
#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/quant/sparse.hpp"

namespace matmul_sparse_test {

using namespace nibble;
using namespace nibble_test;
using kernels::Matmul;
using quant::Q4_0;
using quant::Q4_0Bitmask;
using quant::Q4_0Blocks16x4;
using quant::Q4_0TwoOfFour;

#define NIBBLE_SPARSE Q4_0Bitmask, Q4_0Blocks16x4, Q4_0TwoOfFour

namespace {

// A part `density` of the weights is not zero: single ones, or whole blocks of 16 rows by 4. Codes
// are as large as they can be.
Weights<Q4_0> sparse_weights(Index n, Index k, double density, bool in_blocks,
                             std::mt19937& random) {
  auto w = Weights<Q4_0>::random(n, k, random);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<bool> keep(size(n * k));
  for (Index row = 0; row < n; ++row) {
    for (Index i = 0; i < k; ++i) {
      const Index leader = in_blocks ? row / 16 * 16 * k + i / 4 * 4 : row * k + i;
      if (leader == row * k + i) keep[size(leader)] = uniform(random) < density;
      if (keep[size(leader)]) continue;
      auto& both = w.block(row, i / 32).codes[size(i % 16)];
      both = static_cast<std::uint8_t>(i % 32 < 16 ? (both & 0xF0) | 8 : (both & 0x0F) | 0x80);
    }
  }
  return w;
}

// At most two of each four weights stay, if F needs that: the first ones, or of every other four
// the last ones.
template <class F>
void make_fit(Weights<Q4_0>& w) {
  if constexpr (std::is_same_v<F, Q4_0TwoOfFour>) {
    for (Index row = 0; row < w.n; ++row) {
      for (Index i = 0; i < w.k; i += 4) {
        int left = 2;
        for (Index j = 0; j < 4; ++j) {
          const Index at = (row + i / 4) % 2 == 0 ? i + j : i + 3 - j;
          auto& both = w.block(row, at / 32).codes[size(at % 16)];
          const int code = at % 32 < 16 ? both % 16 : both / 16;
          if (code != 8 && left-- > 0) continue;
          both = static_cast<std::uint8_t>(at % 32 < 16 ? (both & 0xF0) | 8 : (both & 0x0F) | 0x80);
        }
      }
    }
  }
}

// The first n rows, in memory of exactly their size.
template <class F>
AlignedBuffer pack_sparse(const Weights<Q4_0>& w, Index n) {
  using P = quant::Packed<F>;
  auto memory = AlignedBuffer::allocate(size(P::packed_bytes(w.data(), n, w.k)));
  REQUIRE(memory.has_value());
  P::pack(w.data(), n, w.k, memory->data());
  const auto bytes = memory->bytes().first(size(P::bytes(memory->data())));
  REQUIRE(P::check_matrix(bytes, n, w.k).has_value());
  return std::move(*memory);
}

// Bytes of codes of a block that have a weight that is not zero.
std::vector<Index> nonzero_codes(const Weights<Q4_0>& w, Index row, Index b) {
  std::vector<Index> at;
  for (Index i = 0; i < 16; ++i) {
    if (w.block(row, b).codes[size(i)] != 0x88) at.push_back(i);
  }
  REQUIRE(!at.empty());
  return at;
}

template <class F>
void multiply(const Activations& a, Index n, const AlignedBuffer& weights, Output& out) {
  simd::kernel<Matmul<F>>()(matmul_args(a, n, weights, out));
}

}  // namespace

TEST_CASE_TEMPLATE("sparse products of every size and density are those in double", F,
                   NIBBLE_SPARSE) {
  constexpr Index kRows[] = {1, 2, 3, 4, 5, 7, 17, 65};
  std::mt19937 random(1);
  for (const Index k : {32, 64, 96, 1440}) {
    const auto all_rows = Activations::random<Q4_0>(65, k, random);
    for (const double density : {0.0, 0.03, 0.5, 0.97, 1.0}) {
      for (const bool in_blocks : {false, true}) {
        CAPTURE(k);
        CAPTURE(density);
        CAPTURE(in_blocks);
        auto w = sparse_weights(49, k, density, in_blocks, random);
        make_fit<F>(w);
        const auto expected = expected_product(all_rows, w);
        for (const Index n : {1, 16, 33, 49}) {
          const AlignedBuffer packed = pack_sparse<F>(w, n);
          for_each_target([&](simd::Target) {
            for (const Index m : kRows) {
              const Activations a = all_rows.first_rows(m);
              Output out(m, n);
              multiply<F>(a, n, packed, out);
              CAPTURE(n);
              CAPTURE(m);
              REQUIRE(count_faults(expected, m, n, out) == 0);
            }
          });
        }
      }
    }
  }
}

// The largest products of one sign, in every number of blocks.
TEST_CASE_TEMPLATE("extreme codes do not saturate sparse sums", F, NIBBLE_SPARSE) {
  constexpr Index kColumns = 33, k = 256;
  std::mt19937 random(2);
  for (const int byte : {0x00, 0xFF, 0x0F, 0xF0, 0x97}) {
    auto w = Weights<Q4_0>::random(kColumns, k, random);
    for (Index row = 0; row < kColumns; ++row) {
      for (Index b = 0; b < k / 32; ++b) {
        auto& codes = w.block(row, b).codes;
        codes.fill(static_cast<std::uint8_t>(byte));
        // Step b keeps b + 1 of its 8 blocks.
        for (Index i = 0; i < 16; ++i) {
          auto& both = codes[size(i)];
          if (i / 4 > b) both = static_cast<std::uint8_t>((both & 0xF0) | 8);
          if (4 + i / 4 > b) both = static_cast<std::uint8_t>((both & 0x0F) | 0x80);
        }
      }
    }
    make_fit<F>(w);
    const AlignedBuffer packed = pack_sparse<F>(w, kColumns);
    for (const int sign : {1, -1}) {
      for (const Index m : {1, 2, 9}) {
        const auto a = Activations::quantized(m, k, 32, random, [&](Index, Index i) {
          return 127 * (sign > 0 ? 1 : (i % 2 == 0 ? -1 : 1));
        });
        const auto expected = expected_product(a, w);
        for_each_target([&](simd::Target) {
          Output out(m, kColumns);
          multiply<F>(a, kColumns, packed, out);
          CAPTURE(byte);
          CAPTURE(m);
          REQUIRE(count_faults(expected, m, kColumns, out) == 0);
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("sparse products: a row's bits do not depend on other rows or on runs of panels",
                   F, NIBBLE_SPARSE) {
  constexpr Index kRows = 70, kColumns = 50, k = 1312;
  std::mt19937 random(3);
  auto w = sparse_weights(kColumns, k, 0.5, std::is_same_v<F, Q4_0Blocks16x4>, random);
  make_fit<F>(w);
  const auto a = Activations::random<Q4_0>(kRows, k, random);
  const AlignedBuffer packed = pack_sparse<F>(w, kColumns);
  for_each_target([&](simd::Target) {
    Output together(kRows, kColumns);
    multiply<F>(a, kColumns, packed, together);
    int different = 0;
    for (Index row = 0; row < kRows; ++row) {
      Output alone(1, kColumns);
      auto args = matmul_args(a, kColumns, packed, alone);
      args.input = args.input.rows_from(row);
      args.m = 1;
      simd::kernel<Matmul<F>>()(args);
      for (Index c = 0; c < kColumns; ++c) different += alone(0, c) != together(row, c);
    }
    CHECK(different == 0);
    Output parts(kRows, kColumns);
    auto args = matmul_args(a, kColumns, packed, parts);
    constexpr Index kCuts[] = {0, 1, 3, 4};
    for (std::size_t i = 0; i + 1 < std::size(kCuts); ++i) {
      args.first_panel = kCuts[i];
      args.end_panel = kCuts[i + 1];
      simd::kernel<Matmul<F>>()(args);
    }
    CHECK(parts == together);
  });
}

TEST_CASE_TEMPLATE("a gate may have zeros in other places", F, NIBBLE_SPARSE) {
  constexpr Index kColumns = 40, k = 160;
  std::mt19937 random(4);
  auto up = sparse_weights(kColumns, k, 0.5, true, random);
  auto gate = sparse_weights(kColumns, k, 0.3, true, random);
  make_fit<F>(up);
  make_fit<F>(gate);
  const AlignedBuffer packed_up = pack_sparse<F>(up, kColumns);
  const AlignedBuffer packed_gate = pack_sparse<F>(gate, kColumns);
  for (const Index m : {1, 6}) {
    const auto a = Activations::random<Q4_0>(m, k, random);
    const auto expected_up = expected_product(a, up);
    const auto expected_gate = expected_product(a, gate);
    for_each_target([&](simd::Target) {
      Output out(m, kColumns);
      auto args = matmul_args(a, kColumns, packed_up, out);
      args.gate = packed_gate.data();
      args.finish = simd::kernel<kernels::FinishGatedTile<kernels::Identity>>();
      simd::kernel<Matmul<F>>()(args);
      for (Index row = 0; row < m; ++row) {
        for (Index c = 0; c < kColumns; ++c) {
          const double u = expected_up.at(row, c), g = expected_gate.at(row, c);
          const double tolerance = expected_up.tolerance_at(row, c) * std::abs(g) +
                                   expected_gate.tolerance_at(row, c) * std::abs(u) +
                                   0x1p-22 * std::abs(u * g);
          REQUIRE(std::abs(out(row, c) - u * g) <= tolerance);
        }
      }
    });
  }
}

// ---- The check itself --------------------------------------------------------------------------

TEST_CASE_TEMPLATE("the check sees small faults in sparse products", F, NIBBLE_SPARSE) {
  constexpr Index kRows = 3, kColumns = 33, kBlocks = 5, k = kBlocks * 32;
  constexpr bool kInBlocks = std::is_same_v<F, Q4_0Blocks16x4>;
  std::mt19937 random(5);
  auto w = sparse_weights(kColumns, k, 0.5, kInBlocks, random);
  make_fit<F>(w);
  const auto a = Activations::random<Q4_0>(kRows, k, random);
  const auto expected = expected_product(a, w);
  const auto faults_of = [&](const Activations& x, const AlignedBuffer& packed) {
    Output out(kRows, kColumns);
    multiply<F>(x, kColumns, packed, out);
    return count_faults(expected, kRows, kColumns, out);
  };
  const auto faults = [&](const Weights<Q4_0>& weights) {
    return faults_of(a, pack_sparse<F>(weights, kColumns));
  };
  for_each_target([&](simd::Target) {
    REQUIRE(faults(w) == 0);
    auto bad = w;
    bad.block(32, 4).scale =
        quant::round_to<f16>(static_cast<float>(to_double(w.block(32, 4).scale) * 1.01));
    CHECK(faults(bad) > 0);
    for (const Index flip : nonzero_codes(w, 16, 1)) {
      bad = w;
      auto& both = bad.block(16, 1).codes[size(flip)];
      // The smallest change of a code that is not zero, and stays so.
      const bool high = both / 16 != 8;
      const int code = high ? both / 16 : both % 16;
      REQUIRE(code != 8);
      const int changed = code == 9 ? 10 : code == 7 ? 6 : code ^ 1;
      both = static_cast<std::uint8_t>(high ? both % 16 + 16 * changed : both / 16 * 16 + changed);
      CHECK(faults(bad) > 0);
    }
    bad = w;
    for (Index row = 0; row < kColumns; ++row) bad.block(row, kBlocks - 1).codes.fill(0x88);
    CHECK(faults(bad) >= kRows * kColumns * 8 / 10);
    auto bad_x = a;
    bad_x.scales[size(2 * kBlocks + 3)] *= 1.01f;
    CHECK(faults_of(bad_x, pack_sparse<F>(w, kColumns)) >= kColumns / 2);
    // A bit of the packed zeros moves to its neighbour: the number of codes stays.
    AlignedBuffer moved = pack_sparse<F>(w, kColumns);
    std::byte* const panel =
        moved.data() + (quant::Packed<F>::panel(moved.data(), 1) - moved.data());
    std::byte& byte = panel[kInBlocks ? 4 : 32];
    unsigned bits = std::to_integer<unsigned>(byte);
    if (std::is_same_v<F, Q4_0TwoOfFour>) {  // positions
      bits ^= 1;
    } else {
      for (int bit = 0; bit < 7; ++bit) {
        if ((bits >> bit & 3) != 1) continue;
        bits ^= 3u << bit;
        break;
      }
    }
    REQUIRE(bits != std::to_integer<unsigned>(byte));
    byte = static_cast<std::byte>(bits);
    CHECK(faults_of(a, moved) > 0);
  });
}

}  // namespace matmul_sparse_test
