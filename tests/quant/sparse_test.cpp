// SPDX-License-Identifier: Apache-2.0
#include "nibble/quant/sparse.hpp"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/ops/embedding.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/weighted.hpp"

namespace sparse_test {

using namespace nibble;
using quant::Packed;
using quant::Q4_0;
using quant::Q4_0Bitmask;
using quant::Q4_0Blocks16x4;
using quant::Q4_0TwoOfFour;

namespace {

std::size_t size(Index n) { return static_cast<std::size_t>(n); }

// Rows (n, k) of Q4_0 and their weights in double, read from the blocks here.
struct Rows {
  Index n, k;
  std::vector<Q4_0::Block> blocks;

  Rows(Index rows, Index columns) : n(rows), k(columns), blocks(size(rows * columns / 32)) {}

  int code(Index row, Index i) const {
    const int both = blocks[size(row * (k / 32) + i / 32)].codes[size(i % 16)];
    return i % 32 < 16 ? both % 16 : both / 16;
  }
  void set(Index row, Index i, int value) {
    auto& both = blocks[size(row * (k / 32) + i / 32)].codes[size(i % 16)];
    both = static_cast<std::uint8_t>(i % 32 < 16 ? both / 16 * 16 + value : both % 16 + value * 16);
  }
  double weight(Index row, Index i) const {
    const double scale = static_cast<double>(to_f32(blocks[size(row * (k / 32) + i / 32)].scale));
    return scale * (code(row, i) - 8);
  }
};

// A part `density` of the weights is not zero: single ones, or whole blocks of 16 rows by 4.
Rows random_rows(Index n, Index k, double density, bool in_blocks, std::mt19937& random) {
  Rows rows(n, k);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (auto& block : rows.blocks) {
    block.scale = quant::round_to<f16>(static_cast<float>(0.01 + 0.02 * uniform(random)));
    if (random() % 4 == 0) block.scale.bits |= 0x8000;
  }
  std::vector<bool> keep(size(n * k));
  for (Index row = 0; row < n; ++row) {
    for (Index i = 0; i < k; ++i) {
      const Index leader = in_blocks ? row / 16 * 16 * k + i / 4 * 4 : row * k + i;
      if (leader == row * k + i) keep[size(leader)] = uniform(random) < density;
      const int code = static_cast<int>(random() % 15);
      rows.set(row, i, keep[size(leader)] ? code + (code >= 8 ? 1 : 0) : 8);
    }
  }
  return rows;
}

template <class F>
std::vector<std::byte> pack(const Rows& rows) {
  const Index bytes = Packed<F>::packed_bytes(rows.blocks.data(), rows.n, rows.k);
  std::vector<std::byte> out(size(bytes), std::byte{0xEE});
  Packed<F>::pack(rows.blocks.data(), rows.n, rows.k, out.data());
  return out;
}

template <class F>
int n_wrong(const Rows& rows, const std::vector<std::byte>& packed) {
  int wrong = 0;
  std::vector<float> out(size(rows.k));
  for (Index row = 0; row < rows.n; ++row) {
    ops::packed_row(quant::PackedMatrix<F>{packed.data(), rows.n, rows.k}, row, out.data());
    for (Index i = 0; i < rows.k; ++i) {
      wrong += static_cast<double>(out[size(i)]) != rows.weight(row, i);
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE_TEMPLATE("sparse matrices hold every weight", F, Q4_0Bitmask, Q4_0Blocks16x4) {
  std::mt19937 random(1);
  for (const Index n : {1, 15, 16, 17, 33, 48}) {
    for (const Index k : {32, 64, 96, 352}) {
      for (const double density : {0.0, 0.03, 0.5, 0.97, 1.0}) {
        for (const bool in_blocks : {false, true}) {
          CAPTURE(n);
          CAPTURE(k);
          CAPTURE(density);
          const Rows rows = random_rows(n, k, density, in_blocks, random);
          const auto packed = pack<F>(rows);
          REQUIRE(Packed<F>::check_matrix(packed, n, k).has_value());
          REQUIRE(Packed<F>::bytes(packed.data()) == static_cast<Index>(packed.size()));
          REQUIRE(n_wrong<F>(rows, packed) == 0);
        }
      }
    }
  }
}

TEST_CASE("sizes are those that the layout states") {
  std::mt19937 random(2);
  constexpr Index n = 64, k = 1024;
  for (const double density : {0.0, 0.1, 0.5, 1.0}) {
    const Rows rows = random_rows(n, k, density, false, random);
    Index n_codes = 0;
    for (Index row = 0; row < n; ++row) {
      for (Index i = 0; i < k; ++i) n_codes += rows.code(row, i) != 8;
    }
    const double bits = 8.0 * static_cast<double>(pack<Q4_0Bitmask>(rows).size()) / (n * k);
    const double d = static_cast<double>(n_codes) / (n * k);
    CHECK(bits >= 1.5 + 4 * d);
    CHECK(bits <= 1.5 + 4 * d + 4.0 / 64 + 0.1);  // half bytes; header, ends of panels
    const Rows blocks = random_rows(n, k, density, true, random);
    Index n_blocks = 0, n_steps = 0;
    for (Index row = 0; row < n; row += 16) {
      for (Index i = 0; i < k; i += 32) {
        Index in_step = 0;
        for (Index g = 0; g < 32; g += 4) in_step += blocks.code(row, i + g) != 8;
        n_blocks += in_step;
        n_steps += in_step > 0;
      }
    }
    const auto bytes = static_cast<Index>(pack<Q4_0Blocks16x4>(blocks).size());
    CHECK(bytes >= n_blocks * 32 + n_steps * 36);
    CHECK(bytes <= n_blocks * 32 + n_steps * 36 + 128 * (n / 16) + 256);
  }
}

TEST_CASE_TEMPLATE("a scale of zero makes zeros", F, Q4_0Bitmask, Q4_0Blocks16x4) {
  std::mt19937 random(3);
  Rows rows = random_rows(32, 64, 1, false, random);
  Rows zero = rows;
  for (Index row = 0; row < 32; ++row) {
    zero.blocks[size(2 * row + 1)].scale = {static_cast<std::uint16_t>(row % 2 == 0 ? 0 : 0x8000)};
  }
  const auto packed = pack<F>(zero);
  REQUIRE(Packed<F>::check_matrix(packed, 32, 64).has_value());
  CHECK(n_wrong<F>(zero, packed) == 0);
  CHECK(packed.size() < pack<F>(rows).size());
}

TEST_CASE_TEMPLATE("data from outside are checked", F, Q4_0Bitmask, Q4_0Blocks16x4) {
  std::mt19937 random(4);
  constexpr Index n = 40, k = 96;
  const Rows rows = random_rows(n, k, 0.4, std::is_same_v<F, Q4_0Blocks16x4>, random);
  const auto good = pack<F>(rows);
  const auto check = [](std::span<const std::byte> data, Index rows_, Index columns) {
    return Packed<F>::check_matrix(data, rows_, columns);
  };
  REQUIRE(check(good, n, k).has_value());
  CHECK_FALSE(check(good, n + 1, k).has_value());
  CHECK_FALSE(check(good, n - 16, k).has_value());
  CHECK_FALSE(check(good, n, k + 32).has_value());
  CHECK_FALSE(check(good, n, k - 1).has_value());
  CHECK_FALSE(check(good, 0, k).has_value());
  CHECK_FALSE(check(good, n, 0).has_value());
  CHECK_FALSE(check(good, Index{1} << 62, 32).has_value());
  CHECK_FALSE(check({}, n, k).has_value());
  // Cut off or longer: blocks of exactly that size, so that a sanitizer sees what is read beyond.
  for (std::size_t length = 0; length < good.size(); length += 32) {
    const std::vector<std::byte> cut(good.begin(), good.begin() + static_cast<Index>(length));
    REQUIRE_FALSE(check(cut, n, k).has_value());
  }
  auto longer = good;
  longer.resize(good.size() + 64);
  CHECK_FALSE(check(longer, n, k).has_value());

  // Every word of the header and the offsets changed.
  const std::size_t header = 8 * (4 + 3 + 1);
  for (std::size_t at = 0; at < header; ++at) {
    for (const int value : {1, 64, 255}) {
      auto bad = good;
      bad[at] ^= static_cast<std::byte>(value);
      REQUIRE_FALSE(check(bad, n, k).has_value());
    }
  }
  // Every bit of the rest: it is refused, or only weights differ and reading them stays inside.
  int n_refused = 0;
  std::vector<float> out(k);
  for (std::size_t at = header; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      auto bad = good;
      bad[at] ^= std::byte{1} << bit;
      if (!check(bad, n, k)) {
        ++n_refused;
        continue;
      }
      for (Index row = 0; row < n; ++row) Packed<F>::row(bad.data(), k, row, out.data());
    }
  }
  // (Where a mask has a bit more, the steps that follow begin a byte later, in the codes: as long
  // as the last one ends inside the panel, only weights differ.)
  if (std::is_same_v<F, Q4_0Blocks16x4>) CHECK(n_refused > 0);
}

TEST_CASE("more codes than a panel has are refused, and so are steps that come twice") {
  std::mt19937 random(5);
  {
    const Rows rows = random_rows(16, 32, 0.5, false, random);
    auto bad = pack<Q4_0Bitmask>(rows);
    const std::size_t mask = 64 + 32;  // header, scales
    for (std::size_t i = 0; i < 64; ++i) bad[mask + i] = std::byte{0xFF};
    CHECK_FALSE(Packed<Q4_0Bitmask>::check_matrix(bad, 16, 32).has_value());
  }
  {
    const Rows rows = random_rows(16, 64, 1, true, random);
    auto bad = pack<Q4_0Blocks16x4>(rows);
    std::memcpy(bad.data() + 64 + 8, bad.data() + 64 + 4, 4);  // the second entry: as the first
    CHECK_FALSE(Packed<Q4_0Blocks16x4>::check_matrix(bad, 16, 64).has_value());
    // The same step in two entries of different numbers of blocks, wherever it is.
    for (Index step = 0; step < 6; ++step) {
      Rows some = random_rows(16, 6 * 32, 1, true, random);
      for (Index s = 0; s < 6; ++s) {
        for (Index i = 32 * s + 4 * (s / 2 + 1); i < 32 * (s + 1); ++i) {  // s / 2 + 1 blocks
          for (Index row = 0; row < 16; ++row) some.set(row, i, 8);
        }
      }
      const auto good = pack<Q4_0Blocks16x4>(some);
      REQUIRE(Packed<Q4_0Blocks16x4>::check_matrix(good, 16, 6 * 32).has_value());
      for (Index other = 0; other < 6; ++other) {
        if (other == step) continue;
        auto twice = good;
        twice[size(64 + 4 * (other + 1) + 1)] = static_cast<std::byte>(step);
        CAPTURE(step);
        CAPTURE(other);
        CHECK_FALSE(Packed<Q4_0Blocks16x4>::check_matrix(twice, 16, 6 * 32).has_value());
      }
    }
    auto many = pack<Q4_0Blocks16x4>(rows);
    const std::uint32_t n_entries = 0xFFFFFFFF;
    std::memcpy(many.data() + 64, &n_entries, 4);
    CHECK_FALSE(Packed<Q4_0Blocks16x4>::check_matrix(many, 16, 64).has_value());
  }
}

TEST_CASE("two of four: what has more is not held") {
  std::mt19937 random(6);
  for (const Index n : {1, 16, 33}) {
    for (const Index k : {32, 96}) {
      for (int kept = 0; kept <= 2; ++kept) {
        Rows rows = random_rows(n, k, 1, false, random);
        for (Index row = 0; row < n; ++row) {
          for (Index i = 0; i < k; i += 4) {
            const auto first = static_cast<Index>(random() % 4);
            for (Index j = kept; j < 4; ++j) rows.set(row, i + (first + j) % 4, 8);
          }
        }
        using P = Packed<Q4_0TwoOfFour>;
        REQUIRE(P::can_hold(rows.blocks.data(), n, k));
        const auto packed = pack<Q4_0TwoOfFour>(rows);
        REQUIRE(P::check_matrix(packed, n, k).has_value());
        REQUIRE(n_wrong<Q4_0TwoOfFour>(rows, packed) == 0);
        CHECK_FALSE(P::check_matrix(packed, n + 16, k).has_value());
        for (std::size_t length = 0; length < packed.size(); length += 32) {
          const std::vector<std::byte> cut(packed.begin(),
                                           packed.begin() + static_cast<Index>(length));
          REQUIRE_FALSE(P::check_matrix(cut, n, k).has_value());
        }
        for (Index j = 0; j < 3; ++j) rows.set(n - 1, k - 4 + j, 1);
        CHECK_FALSE(P::can_hold(rows.blocks.data(), n, k));
      }
    }
  }
}

TEST_CASE("sparse formats have names, but no rows") {
  CHECK(std::string(to_string(quant::Format::q4_0_bitmask)) == "q4_0_bitmask");
  CHECK(quant::kFormatOf<Q4_0Blocks16x4> == quant::Format::q4_0_16x4);
  CHECK_FALSE(quant::format_from_name("q4_0_bitmask").has_value());
  std::vector<float> x(64);
  std::vector<std::byte> row(36);
  for (const quant::Format format : {quant::Format::q4_0_bitmask, quant::Format::q4_0_16x4,
                                     quant::Format::q4_0_2of4, quant::Format{100}}) {
    CAPTURE(static_cast<int>(format));
    CHECK_FALSE(has_rows(format));
    CHECK(bits_per_weight(format) == 0);
    CHECK(row_bytes(format, 64).error().code == Errc::unsupported);
    CHECK(row_to_f32(format, row, x).error().code == Errc::unsupported);
    CHECK(row_from_f32(format, x, row).error().code == Errc::unsupported);
    CHECK(search_row(format, x, {}, row).error().code == Errc::unsupported);
  }
  for (const quant::Format format : quant::kFormats) CHECK(has_rows(format));
}

}  // namespace sparse_test
