# SPDX-License-Identifier: Apache-2.0
#
# The other compiler: the newest Clang, or GCC if this build uses Clang.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

if(cxx_id MATCHES "Clang")
  find_program(other NAMES g++)
else()
  find_program(other NAMES clang++-22 clang++-21 clang++-20 clang++-19 clang++-18 clang++-17
    clang++-16 clang++-15 clang++-14 clang++)
endif()
if(NOT other)
  skip("there is no other compiler than ${cxx} here")
endif()
build_and_run(${other} -std=c++20)
