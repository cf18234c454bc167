// SPDX-License-Identifier: Apache-2.0
//
// The program's own Highway pass in one file with nibble, which is possible in the split form. And
// typed operations, whose kernels are in implementation.cpp.
#include <cmath>

#define HWY_HEADER_ONLY
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forms/own_sum-inl.h"
#include "hwy/foreach_target.h"
// The static target.
#include "forms/own_sum-inl.h"

#include "forms/split/answer.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/ops/attention.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/ops/pack.hpp"
#include "nibble/ops/softmax.hpp"
#include "nibble/simd/dispatch.hpp"

namespace split {

namespace {

// The first token sees only itself: its value comes back as the cache stores it.
bool check_attention(nibble::ops::KvType type) {
  constexpr nibble::Index kDim = 16;
  const nibble::ops::KvCacheLayout layout{type, 1, 1, kDim, 1};
  const nibble::ops::AttentionShape shape{1, 1, kDim};
  auto memory = nibble::AlignedBuffer::allocate(layout.bytes());
  auto scratch = nibble::AlignedBuffer::allocate(nibble::ops::attention_scratch_bytes(shape, {}));
  if (!memory || !scratch) return false;
  const auto cache = nibble::ops::KvCache::create(memory->bytes(), layout);
  if (!cache) return false;
  float value[kDim], out[kDim];
  for (int i = 0; i < kDim; ++i) value[i] = static_cast<float>(i);
  const nibble::MatrixView<const float> row(value, 1, kDim);
  nibble::InlineExecutor executor;
  cache->append(executor, 0, 0, row, row);
  nibble::ops::attention(executor, row, *cache, 0, shape, 0,
                         nibble::MatrixView<float>(out, 1, kDim), scratch->bytes());
  for (int i = 0; i < kDim; ++i) {
    if (!(std::abs(out[i] - value[i]) < 0.1f)) return false;
  }
  return true;
}

// Rows with one scale per row, and a panel of weights in blocks.
bool check_blocks() {
  using Rows = nibble::ops::RowScaledRows<32>;
  const float x[32] = {127, -1};
  auto memory = nibble::AlignedBuffer::allocate(Rows::bytes_needed(1, 32));
  if (!memory) return false;
  const Rows rows = Rows::over(memory->bytes(), 1, 32);
  nibble::InlineExecutor executor;
  nibble::ops::quantize_rows(executor, nibble::MatrixView<const float>(x, 1, 32), rows);
  if (rows.code_sums[0] != -8 * 126) return false;

  using Format = nibble::quant::Q8_0;
  using Packed = nibble::quant::Packed<Format>;
  Format::Block block{};
  for (int i = 0; i < 32; ++i) block.codes[static_cast<std::size_t>(i)] = 3;
  std::byte panel[Packed::panel_bytes(32)];
  nibble::simd::kernel<nibble::kernels::PackPanel<Format>>()(
      reinterpret_cast<const std::byte*>(&block), 1, 32, panel);
  return Packed::unpack_block(panel, 0, 0).codes == block.codes;
}

}  // namespace

bool check_operations() {
  for (const nibble::ops::KvType type : nibble::ops::kKvTypes) {
    if (!check_attention(type)) return false;
  }
  if (!check_blocks()) return false;

  const float five[] = {1, 2, 3, 4, 5};
  if (own::HWY_STATIC_NAMESPACE::sum(five, 5) != 15.0f) return false;

  // (1, 2) times the rows (1, 0), (0, 1), (1, 1).
  nibble::InlineExecutor executor;
  const float x[] = {1, 2}, w[] = {1, 0, 0, 1, 1, 1};
  float out[3] = {};
  using Packed = nibble::quant::Packed<nibble::quant::F32>;
  auto memory =
      nibble::AlignedBuffer::allocate(static_cast<std::size_t>(Packed::bytes(nibble::Index{3}, 2)));
  if (!memory) return false;
  nibble::ops::pack<nibble::quant::F32>(executor, reinterpret_cast<const std::byte*>(w), 3, 2,
                                        memory->data());
  nibble::kernels::MatmulInput input;
  input.x = x;
  input.stride = 2;
  const nibble::quant::PackedMatrix<nibble::quant::F32> weights{memory->data(), 3, 2};
  nibble::ops::matmul(executor, input, weights, nibble::MatrixView<float>(out, 1, 3));
  if (out[0] != 1 || out[1] != 2 || out[2] != 3) return false;
  return nibble::ops::argmax(nibble::VectorView<const float>(out, 3)) == 2 &&
         nibble::simd::available_targets().contains(nibble::simd::active_target());
}

}  // namespace split
