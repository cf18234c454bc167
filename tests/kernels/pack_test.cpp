// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/pack.hpp"

#include <cstring>
#include <random>
#include <vector>

#include "each_target.hpp"
#include "nibble/quant/format.hpp"

using namespace nibble;
using quant::Packed;

namespace {

// tests/quant/packed_test.cpp compares this with the description of the layout.
template <class Format>
std::vector<std::byte> expected_panel(const std::byte* rows, Index n_rows, Index k) {
  std::vector<std::byte> panel(static_cast<std::size_t>(Packed<Format>::panel_bytes(k)));
  if constexpr (quant::BlockFormat<Format>) {
    using Block = typename Format::Block;
    Packed<Format>::pack_panel(reinterpret_cast<const Block*>(rows), n_rows, k, panel.data());
  } else {
    Packed<Format>::pack_panel(rows, n_rows, k, panel.data());
  }
  return panel;
}

using Q8Minimum64 = quant::Blocks<8, 64, bf16, quant::ZeroPoint::minimum>;
using Q4F32 = quant::Blocks<4, 128, float, quant::ZeroPoint::symmetric>;

}  // namespace

TEST_CASE_TEMPLATE("a panel has the bytes of the layout, and nothing around it is touched", Format,
                   quant::Q4_0, quant::Q4_1, quant::Q5_0, quant::Q5_1, quant::Q8_0, quant::Q4_K,
                   quant::Q5_K, quant::Q6_K, quant::Q3_H, quant::Q2_H, quant::Q2_K, quant::Q3_K,
                   quant::TQ2_0, quant::Q2_0, quant::Q1_0, quant::IQ4_NL, quant::IQ4_XS,
                   quant::MXFP4, Q8Minimum64, Q4F32, quant::F32, quant::F16, quant::BF16,
                   quant::I8Channel) {
  constexpr bool kIsBlocks = quant::BlockFormat<Format>;
  constexpr Index kLength = Format::kLength;
  std::mt19937 random(5);
  for (const Index blocks : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 33, 66, 67}) {
    const Index k = blocks * kLength;
    for (const Index n_rows : {1, 4, 15, 16}) {
      // The rows end where the memory ends: a read beyond is a fault under the sanitizers. They
      // start where a block may start, or anywhere.
      const std::size_t bytes_of_row =
          quant::row_bytes<Format>(static_cast<std::size_t>(k)).value();
      const std::size_t size = static_cast<std::size_t>(n_rows) * bytes_of_row;
      for (const std::size_t past : {0, kIsBlocks ? 4 : 1}) {
        std::vector<std::byte> memory(past + size);
        for (std::byte& b : memory) b = static_cast<std::byte>(random());
        const std::byte* const rows = memory.data() + past;
        const auto expected = expected_panel<Format>(rows, n_rows, k);
        nibble_test::for_each_target([&](simd::Target) {
          CAPTURE(k);
          CAPTURE(n_rows);
          constexpr std::size_t kGuard = 65;
          std::vector<std::byte> out(expected.size() + 2 * kGuard, std::byte{0xA5});
          simd::kernel<kernels::PackPanel<Format>>()(rows, n_rows, k, out.data() + kGuard);
          CHECK(std::memcmp(out.data() + kGuard, expected.data(), expected.size()) == 0);
          int touched = 0;
          for (std::size_t i = 0; i < kGuard; ++i) {
            touched += out[i] != std::byte{0xA5};
            touched += out[out.size() - 1 - i] != std::byte{0xA5};
          }
          CHECK(touched == 0);
        });
      }
    }
  }
}
