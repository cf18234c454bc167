# SPDX-License-Identifier: Apache-2.0
#
# The inner loops of products on 64-bit ARM have no more instructions than arm_loops.txt allows, and keep
# no vector register in memory: so they get no slower unnoticed where there is no such processor.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

find_program(cross aarch64-linux-gnu-g++)
find_program(cross_objdump aarch64-linux-gnu-objdump)
find_program(awk awk)
if(NOT cross OR NOT cross_objdump OR NOT awk)
  skip("there is no awk, or no cross compiler aarch64-linux-gnu-g++ with its objdump, here")
endif()

link_headers(hwy ${hwy_dirs} boost ${boost_pp_dirs})
run(${cross} -std=c++20 -O2 -I${source_dir}/include -isystem ${work_dir}/include
    -c ${source_dir}/tests/hygiene/arm_loops.cpp -o arm_loops.o)
run(${cross_objdump} -d -C --no-show-raw-insn arm_loops.o
    COMMAND ${awk} -f ${source_dir}/tests/hygiene/arm_loops.awk
            ${source_dir}/tests/hygiene/arm_loops.txt -)
