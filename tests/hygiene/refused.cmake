# SPDX-License-Identifier: Apache-2.0
#
# Where nibble cannot work, the compiler says why and then stops: one error about the cause, one that
# says that it stopped, and none of the hundreds that would follow.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

link_headers(hwy ${hwy_dirs} boost ${boost_pp_dirs})
file(WRITE ${work_dir}/nibble.cpp "#include \"nibble/nibble.hpp\"\n")
function(refused cause)
  execute_process(COMMAND ${ARGN} -fsyntax-only -DNIBBLE_TARGETS=0 -I${source_dir}/include
                          -isystem ${work_dir}/include nibble.cpp
                  WORKING_DIRECTORY ${work_dir} OUTPUT_QUIET ERROR_VARIABLE errors RESULT_VARIABLE result)
  string(REPLACE ";" "," errors "${errors}")
  string(REGEX MATCHALL "error:[^\n]*" all "${errors}")
  list(LENGTH all n)
  if(result EQUAL 0 OR NOT n EQUAL 2 OR NOT errors MATCHES "error: [^\n]*${cause}" OR
     NOT errors MATCHES "error: [^\n]*stopped by the error above")
    message(FATAL_ERROR "${ARGN}: ${n} errors, wanted \"${cause}\" and the end: ${all}")
  endif()
endfunction()

refused("nibble needs C\\+\\+20" ${cxx} -std=c++17)
refused("this machine is big-endian" ${cxx} -std=c++20 -U__BYTE_ORDER__ -D__BYTE_ORDER__=4321)
find_program(big_endian s390x-linux-gnu-g++)
if(big_endian)
  refused("this machine is big-endian" ${big_endian} -std=c++20)
endif()

# A Highway of old.
file(MAKE_DIRECTORY ${work_dir}/old/hwy)
file(WRITE ${work_dir}/old/hwy/base.h "#define HWY_MAJOR 1\n#define HWY_MINOR 2\n")
file(WRITE ${work_dir}/old/hwy/detect_targets.h "#define HWY_OLD 1\n")
refused("nibble needs Highway 1.3 or newer" ${cxx} -std=c++20 -isystem ${work_dir}/old)

# No vector instructions that every machine has, and a compiler for which Highway does not emulate them.
find_program(cross riscv64-linux-gnu-g++)
if(cross)
  execute_process(COMMAND ${cross} -dumpversion OUTPUT_VARIABLE cross_version)
  if(cross_version VERSION_LESS 16)
    refused("nibble: without SIMD instructions that every machine has" ${cross} -std=c++20)
  endif()
endif()
# Clang needs none: Highway emulates.
find_program(clang NAMES clang++-22 clang++-21 clang++-20 clang++-19)
if(clang AND cross)
  execute_process(COMMAND ${clang} --target=riscv64-linux-gnu -std=c++20 -fsyntax-only nibble.cpp
                          -DNIBBLE_TARGETS=0 -I${source_dir}/include -isystem ${work_dir}/include
                  WORKING_DIRECTORY ${work_dir} OUTPUT_QUIET ERROR_VARIABLE errors RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "RISC-V without vectors, with ${clang}: ${errors}")
  endif()
endif()
