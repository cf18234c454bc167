// SPDX-License-Identifier: Apache-2.0
//
// Compiles in the split form and must not link: the program's own format, whose kernels are not
// instantiated anywhere.
#include "nibble/ops/matmul.hpp"

using Mine = nibble::quant::Blocks<4, 96, nibble::bf16, nibble::quant::ZeroPoint::minimum>;

int main() { return nibble::simd::kernel<nibble::kernels::Matmul<Mine>>() == nullptr; }
