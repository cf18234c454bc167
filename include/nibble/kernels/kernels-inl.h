// SPDX-License-Identifier: Apache-2.0
//
// Umbrella of all per-target code: included once per target by pass.hpp, or by a program's own pass
// (hwy/foreach_target.h). Has no include guard of its own; each file below guards itself once per
// target. If the target is the base of levels (simd/levels.hpp), this file includes itself again
// for each of them, with NIBBLE_NEXT_LEVEL defined as the level's bit.

#define NIBBLE_KERNELS_IN_PASS
#include "nibble/simd/targets.hpp"
#ifdef NIBBLE_TOGGLE_FIRST  // see pass.hpp
#undef NIBBLE_TOGGLE_FIRST
#define HWY_TARGET_TOGGLE
#endif
#include "nibble/kernels/target-inl.h"
#undef NIBBLE_NEXT_LEVEL

// GCC treats sizes of arrays that depend on template parameters as conversions of variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif

// What levels have too: kernels that gain from their instructions. (First: what these include must
// not be seen only by targets.)
#include "nibble/kernels/attention-inl.h"
#include "nibble/kernels/matmul-inl.h"
#include "nibble/kernels/matmul_input-inl.h"
#include "nibble/kernels/matmul_sparse-inl.h"
#include "nibble/kernels/which-inl.h"

// What AMX has. (The toggle is still that of its base, so that all other files are empty for it.)
#if NIBBLE_HAVE_TILES
#include "nibble/kernels/matmul_amx-inl.h"
#endif

// For levels, the tables have the functions of the base.
#if !NIBBLE_IS_LEVEL
#include "nibble/kernels/activation-inl.h"
#include "nibble/kernels/activation_back-inl.h"
#include "nibble/kernels/adamw-inl.h"
#include "nibble/kernels/attention_train-inl.h"
#include "nibble/kernels/causal_conv-inl.h"
#include "nibble/kernels/delta_rule-inl.h"
#include "nibble/kernels/dropout-inl.h"
#include "nibble/kernels/elementwise-inl.h"
#include "nibble/kernels/gemm-inl.h"
#include "nibble/kernels/loss-inl.h"
#include "nibble/kernels/norm-inl.h"
#include "nibble/kernels/norm_back-inl.h"
#include "nibble/kernels/pack-inl.h"
#include "nibble/kernels/quantize_rows-inl.h"
#include "nibble/kernels/quantize_static-inl.h"
#include "nibble/kernels/rope-inl.h"
#include "nibble/kernels/second_moments-inl.h"
#include "nibble/kernels/softmax-inl.h"
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// A program's own kernels and formats join nibble's pass: define NIBBLE_USER_KERNELS as the quoted
// name of an -inl.h file written like those above. It is compiled for levels too if it uses the
// macros of target-inl.h. If it uses Highway's macros, its include guard makes it empty for them.
#ifdef NIBBLE_USER_KERNELS
#include NIBBLE_USER_KERNELS
#endif

#if NIBBLE_COMPILED_LEVELS && !NIBBLE_IS_LEVEL
#if (NIBBLE_COMPILED_LEVELS & NIBBLE_AMX) && HWY_TARGET == NIBBLE_BASE_OF_AMX
#define NIBBLE_NEXT_LEVEL NIBBLE_AMX
#include "nibble/kernels/kernels-inl.h"
#endif
#if (NIBBLE_COMPILED_LEVELS & NIBBLE_NEON_DOT) && HWY_TARGET == NIBBLE_BASE_OF_NEON_DOT
#define NIBBLE_NEXT_LEVEL NIBBLE_NEON_DOT
#include "nibble/kernels/kernels-inl.h"
#endif
#if (NIBBLE_COMPILED_LEVELS & NIBBLE_NEON_I8MM) && HWY_TARGET == NIBBLE_BASE_OF_NEON_I8MM
#define NIBBLE_NEXT_LEVEL NIBBLE_NEON_I8MM
#include "nibble/kernels/kernels-inl.h"
#endif
#endif
