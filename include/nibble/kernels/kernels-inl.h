// SPDX-License-Identifier: Apache-2.0
//
// Umbrella of all per-target code: included once per target by pass.hpp. Has no include guard of
// its own; each file below guards itself once per target.

#include "nibble/kernels/activation-inl.h"
#include "nibble/kernels/attention-inl.h"
#include "nibble/kernels/dropout-inl.h"
#include "nibble/kernels/elementwise-inl.h"
#include "nibble/kernels/matmul-inl.h"
#include "nibble/kernels/norm-inl.h"
#include "nibble/kernels/quantize_rows-inl.h"
#include "nibble/kernels/rope-inl.h"
#include "nibble/kernels/softmax-inl.h"
#include "nibble/kernels/which-inl.h"

// A program's own kernels and formats join nibble's pass: define NIBBLE_USER_KERNELS as the quoted
// name of an -inl.h file written like those above.
#ifdef NIBBLE_USER_KERNELS
#include NIBBLE_USER_KERNELS
#endif
