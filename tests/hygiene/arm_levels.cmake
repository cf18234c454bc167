# SPDX-License-Identifier: Apache-2.0
#
# Compiles one program for 64-bit ARM, with the default targets, and runs it on several processors in
# an emulator: each must choose the best target that it can run.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

find_program(cross aarch64-linux-gnu-g++)
if(NOT cross)
  skip("there is no cross compiler aarch64-linux-gnu-g++ here")
endif()
find_program(qemu NAMES qemu-aarch64 qemu-aarch64-static)
if(NOT qemu)
  skip("there is no qemu-aarch64 here")
endif()

link_headers(hwy ${hwy_dirs} boost ${boost_pp_dirs} doctest ${doctest_dir})
run(${cross} -std=c++20 -O1 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror -static
    -DNIBBLE_DEBUG=1
    -I${source_dir}/include -I${source_dir}/tests -isystem ${work_dir}/include
    ${source_dir}/tests/emulated/targets_test.cpp ${source_dir}/tests/main.cpp
    -o arm_levels -pthread)
set(ENV{NIBBLE_EXPECTED_COMPILED} "NEON_I8MM NEON_DOT NEON_WITHOUT_AES")
foreach(processor cortex-a53=NEON_WITHOUT_AES cortex-a72=NEON_WITHOUT_AES
                  cortex-a76=NEON_DOT neoverse-n1=NEON_DOT max=NEON_I8MM)
  string(REPLACE "=" ";" processor ${processor})
  list(GET processor 0 cpu)
  list(GET processor 1 target)
  set(ENV{NIBBLE_EXPECTED_TARGET} ${target})
  run(${qemu} -cpu ${cpu} ./arm_levels)
endforeach()
