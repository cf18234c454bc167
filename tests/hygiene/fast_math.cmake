# SPDX-License-Identifier: Apache-2.0
#
# Programs that are compiled with -ffast-math. GCC compiles nibble's kernels exactly all the same, if it
# sees nibble's headers before those of the intrinsics; Clang cannot. What is not right is refused.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

# must_compile(YES|NO source compiler...): checks that a file with kernels compiles, or is refused with
# one message that names the way out.
file(WRITE ${work_dir}/kernels.cpp "#include \"nibble/ops/softmax.hpp\"\n")
file(WRITE ${work_dir}/intrinsics_first.cpp "#include <immintrin.h>\n#include \"nibble/ops/softmax.hpp\"\n")
function(must_compile expected source)
  execute_process(COMMAND ${ARGN} -std=c++20 -fsyntax-only ${options} ${source}
                  WORKING_DIRECTORY ${work_dir} OUTPUT_QUIET ERROR_VARIABLE errors RESULT_VARIABLE result)
  string(REGEX MATCHALL "error:" all "${errors}")
  list(LENGTH all n)
  if(expected AND NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN} ${source}: ${errors}")
  elseif(NOT expected AND NOT (n EQUAL 1 AND errors MATCHES "-fno-fast-math"))
    message(FATAL_ERROR "${ARGN} ${source}: not the one error that was expected:\n${errors}")
  endif()
endfunction()

find_program(clang NAMES clang++-22 clang++-21 clang++-20 clang++-19 clang++-18 clang++-17 clang++-16
  clang++-15 clang++-14 clang++)
if(clang)
  must_compile(NO kernels.cpp ${clang} -ffast-math)
  must_compile(NO kernels.cpp ${clang} -ffinite-math-only)
  must_compile(YES kernels.cpp ${clang} -ffast-math -fno-fast-math)
  must_compile(YES kernels.cpp ${clang} -ffast-math -DNIBBLE_SPLIT)
endif()
if(NOT cxx_id STREQUAL "GNU")
  skip("the rest is for GCC")
endif()
if(library_architecture MATCHES "x86_64|i386")
  must_compile(NO intrinsics_first.cpp ${cxx} -ffast-math)
  must_compile(YES intrinsics_first.cpp ${cxx})
endif()

run(${cxx} -std=c++20 -O1 -DNIBBLE_KV_TYPES=0 -ffast-math -Wall -Wextra ${options}
    ${source_dir}/tests/hygiene/fast_math.cpp -o program -pthread)
run(./program ${source_dir}/examples/models/home-commands-f16.gguf ${work_dir}/broken.gguf)
