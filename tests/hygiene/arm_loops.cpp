// SPDX-License-Identifier: Apache-2.0
//
// Products whose inner loops arm_loops.cmake looks at.
#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pass.hpp"

using namespace nibble;

kernels::MatmulFunction* multiply_q4_0();
kernels::MatmulFunction* multiply_q4_0() {
  return simd::kernel<kernels::Matmul<quant::Q4_0>>();
}
kernels::MatmulFunction* multiply_q8_0();
kernels::MatmulFunction* multiply_q8_0() {
  return simd::kernel<kernels::Matmul<quant::Q8_0>>();
}
