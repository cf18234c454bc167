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
#include "nibble/ops/matmul_input.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Microseconds of a product of one row with a matrix (n, k), as in generation: the median of
// repetitions. `model_bytes`: of all weights that a token reads. The product runs over copies of as
// many bytes (at most 64 MiB), so that the matrix comes from the cache level from which it will
// come. Errors: out_of_memory, invalid_argument (a shape that the format cannot have), unsupported
// (a sparse format: its bytes depend on the weights).
inline Result<double> product_microseconds(const graph::FormatOps& format, Index n, Index k,
                                           std::size_t model_bytes, Executor& executor,
                                           const Tuning& tuning = {}) {
  constexpr std::size_t kMostBytes = std::size_t{64} << 20;
  constexpr std::int64_t kNanoseconds = 20'000'000;  // of all repetitions
  constexpr std::size_t kFewest = 9;
  NIBBLE_CHECK(format.row_bytes(static_cast<std::size_t>(k)));
  NIBBLE_CHECK(format.check_shape(n, k));
  const auto bytes = static_cast<std::size_t>(format.packed_bytes(n, k));
  const std::size_t n_copies =
      (std::max)(std::size_t{1}, (std::min)(model_bytes, kMostBytes) / align_up(bytes));
  NIBBLE_TRY(memory, AlignedBuffer::allocate(n_copies * align_up(bytes)));
  // Weights of any value that is a normal number, also as scales.
  std::memset(memory.data(), 0x11, memory.size());

  NIBBLE_TRY(input, AlignedBuffer::allocate(ops::ZeroRow::bytes_needed(k)));
  NIBBLE_TRY(out, AlignedBuffer::allocate(static_cast<std::size_t>(n) * sizeof(float)));
  ops::Product product{format.matmul(), {}};
  kernels::MatmulArgs& args = product.args;
  args.input = ops::ZeroRow::over(input.bytes(), k);
  args.m = 1;
  args.n = n;
  args.k = k;
  args.end_panel = quant::n_panels(n);
  args.out = reinterpret_cast<float*>(out.data());
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
