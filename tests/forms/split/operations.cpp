// SPDX-License-Identifier: Apache-2.0
//
// A Highway pass of the program's own in one file with nibble: the split form is the way out. And
// typed operations, whose kernels are in implementation.cpp.
#define HWY_HEADER_ONLY
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forms/own_sum-inl.h"
#include "hwy/foreach_target.h"
// The static target.
#include "forms/own_sum-inl.h"

#include "forms/split/answer.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/softmax.hpp"
#include "nibble/simd/dispatch.hpp"

namespace split {

bool check_operations() {
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
  nibble::quant::pack<nibble::quant::F32>(executor, reinterpret_cast<const std::byte*>(w), 3, 2,
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
