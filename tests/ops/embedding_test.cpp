// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/embedding.hpp"

#include <vector>

#include "doctest/doctest.h"
#include "nibble/ops/pack.hpp"
#include "nibble/quant/format.hpp"

namespace embedding_test {

using namespace nibble;

namespace {

constexpr Index kRows = 37;  // two whole panels and a part of one
constexpr Index kWidth = 96;

// Rows as a file stores them; all weights are different.
template <class F>
std::vector<std::byte> stored_rows() {
  const std::size_t row_bytes = *quant::row_bytes<F>(kWidth);
  std::vector<std::byte> bytes(row_bytes * kRows);
  std::vector<float> row(kWidth);
  for (Index r = 0; r < kRows; ++r) {
    for (Index i = 0; i < kWidth; ++i) {
      row[static_cast<std::size_t>(i)] = static_cast<float>((r * 131 + i * 17) % 251 - 125) / 64;
    }
    REQUIRE(quant::row_from_f32<F>(
        row, std::span(bytes).subspan(static_cast<std::size_t>(r) * row_bytes, row_bytes)));
  }
  return bytes;
}

}  // namespace

TEST_CASE_TEMPLATE("embeddings are the stored rows, bit for bit", F, quant::F32, quant::F16,
                   quant::BF16, quant::Q8_0, quant::Q4_0, quant::Q4_1) {
  const auto rows = stored_rows<F>();
  const std::size_t row_bytes = *quant::row_bytes<F>(kWidth);
  InlineExecutor executor;
  auto memory =
      AlignedBuffer::allocate(static_cast<std::size_t>(quant::Packed<F>::bytes(kRows, kWidth)));
  REQUIRE(memory);
  ops::pack<F>(executor, rows.data(), kRows, kWidth, memory->data());
  const quant::PackedMatrix<F> matrix{memory->data(), kRows, kWidth};

  const std::vector<std::int32_t> ids = {36, 0, 15, 16, 31, 32, 0};
  const Index stride = kWidth + 5;
  std::vector<float> out(ids.size() * static_cast<std::size_t>(stride), -7.0f);
  const auto n = static_cast<Index>(ids.size());
  ops::embedding(executor, matrix, ids, MatrixView<float>(out.data(), {n, kWidth}, {stride, 1}));

  std::vector<float> want(kWidth);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto row = static_cast<std::size_t>(ids[i]) * row_bytes;
    REQUIRE(quant::row_to_f32<F>(std::span(rows).subspan(row, row_bytes), want));
    const float* const got = out.data() + i * static_cast<std::size_t>(stride);
    CHECK(std::equal(want.begin(), want.end(), got));
    CHECK(got[kWidth] == -7.0f);  // between the rows
  }
}

}  // namespace embedding_test
