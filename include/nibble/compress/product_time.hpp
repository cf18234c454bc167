// SPDX-License-Identifier: Apache-2.0
//
// What a matrix costs a token on this machine: the time of its product with one row, in each
// format.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/native_thread.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/kernels/tuning.hpp"
#include "nibble/ops/matmul.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Microseconds of a product of one row with a matrix (n, k), as in generation: the median of
// repetitions. `model_bytes`: of all weights that a token reads. The product runs over copies of as
// many bytes (at most 64 MiB), so that the matrix comes from the cache level from which it will
// come. Errors: out_of_memory, invalid_argument (rows that are no whole blocks of the format).
inline Result<double> product_microseconds(const graph::FormatOps& ops, Index n, Index k,
                                           std::size_t model_bytes, Executor& executor,
                                           const Tuning& tuning = {}) {
  constexpr std::size_t kMostBytes = std::size_t{64} << 20;
  constexpr std::int64_t kNanoseconds = 20'000'000;  // of all repetitions
  constexpr std::size_t kFewest = 9;
  NIBBLE_CHECK(ops.row_bytes(static_cast<std::size_t>(k)));
  const auto bytes = static_cast<std::size_t>(ops.packed_bytes(n, k));
  const std::size_t n_copies =
      (std::max)(std::size_t{1}, (std::min)(model_bytes, kMostBytes) / align_up(bytes));
  NIBBLE_TRY(memory, AlignedBuffer::allocate(n_copies * align_up(bytes)));
  // Weights of any value that is a normal number, also as scales.
  std::memset(memory.data(), 0x11, memory.size());

  const auto padded = align_up(static_cast<std::size_t>(k)) + kAlignment;
  const std::size_t n_blocks = padded / graph::kActivationBlock + 1;
  NIBBLE_TRY(rows, AlignedBuffer::allocate(
                       align_up(padded * sizeof(float)) + align_up(padded) +
                       3 * align_up(n_blocks * sizeof(float)) +
                       align_up(static_cast<std::size_t>(n + quant::kPanelRows) * sizeof(float))));
  Arena arena(rows.bytes());
  ops::Product product{ops.matmul(), {}};
  kernels::MatmulArgs& args = product.args;
  args.input.x = arena.take<float>(padded);
  args.input.stride = k;
  args.input.codes = arena.take<std::int8_t>(padded);
  args.input.scales = arena.take<float>(n_blocks);
  args.input.code_sums = arena.take<std::int32_t>(n_blocks);
  args.input.half_sums = arena.take<std::int32_t>(n_blocks);
  args.input.code_stride = static_cast<Index>(padded);
  args.input.n_blocks = static_cast<Index>(n_blocks);
  args.m = 1;
  args.n = n;
  args.k = k;
  args.end_panel = quant::n_panels(n);
  args.out = arena.take<float>(static_cast<std::size_t>(n + quant::kPanelRows));
  args.out_stride = n;
  args.finish = simd::kernel<kernels::FinishTile<kernels::Epilogue<>>>();

  std::vector<Scalar<double>> times;
  const std::int64_t begin = monotonic_nanoseconds();
  for (std::size_t i = 0;
       times.size() < kFewest + n_copies || monotonic_nanoseconds() - begin < kNanoseconds; ++i) {
    args.weights = memory.data() + i % n_copies * align_up(bytes);
    const std::int64_t start = monotonic_nanoseconds();
    ops::run(executor, {&product, 1}, tuning);
    if (i >= n_copies) {  // all have been seen once
      times.push_back({static_cast<double>(monotonic_nanoseconds() - start) / 1000});
    }
    if (monotonic_nanoseconds() - begin > 20 * kNanoseconds && times.size() >= kFewest) break;
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                   times.end(), [](const auto& a, const auto& b) { return a.value < b.value; });
  return times[times.size() / 2].value;
}

}}}  // namespace nibble::NIBBLE_ABI::compress
