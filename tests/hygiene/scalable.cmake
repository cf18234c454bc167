# SPDX-License-Identifier: Apache-2.0
#
# The library compiles for vectors whose size the compiler does not know: SVE2 and RISC-V's. No code
# is generated.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

find_program(clang NAMES clang++-22 clang++-21 clang++-20 clang++-19 clang++)
if(NOT clang)
  skip("there is no Clang here")
endif()
link_headers(hwy ${hwy_dirs} boost ${boost_pp_dirs})
# All kernels that the split form has, and code for models and sessions.
file(WRITE ${work_dir}/all.cpp "#define NIBBLE_SPLIT
#define NIBBLE_IMPLEMENTATION
#include \"nibble/nibble.hpp\"
static_assert(HWY_STATIC_TARGET == HWY_SVE2 || HWY_STATIC_TARGET == HWY_RVV);
")

# Highway takes Clang's SVE as broken before version 20.
set(flags_aarch64 -march=armv8-a+sve2 -DHWY_BROKEN_SVE=0 -DHWY_BROKEN_SVE2=0)
set(flags_riscv64 -march=rv64gcv)
set(compiled)
foreach(machine aarch64 riscv64)
  set(compile ${clang} --target=${machine}-linux-gnu ${flags_${machine}} -std=c++20 -fsyntax-only)
  # The standard library of the machine, and a Clang that has its vectors.
  file(WRITE ${work_dir}/try.cpp "#include <string>
#if !defined(__ARM_FEATURE_SVE2) && !(defined(__riscv_v_intrinsic) && __riscv_v_intrinsic >= 11000)
#error
#endif
#if __clang_major__ < 19
#error
#endif
")
  execute_process(COMMAND ${compile} try.cpp WORKING_DIRECTORY ${work_dir}
                  OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE result)
  if(result EQUAL 0)
    # The baseline alone.
    run(${compile} -Wall -Wextra -Wpedantic -Wconversion -Wshadow
        -DNIBBLE_TARGETS=0 -DNIBBLE_UNTESTED_TARGETS=0
        -I${source_dir}/include -isystem ${work_dir}/include all.cpp)
    list(APPEND compiled ${machine})
  else()
    message("left out: ${machine}, for which ${clang} or its standard library is missing")
  endif()
endforeach()
if(NOT compiled)
  skip("there is no Clang 19 with a standard library for 64-bit ARM or RISC-V here")
endif()
