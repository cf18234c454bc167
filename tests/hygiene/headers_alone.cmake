# SPDX-License-Identifier: Apache-2.0
#
# Every public header compiles when a file includes it first and includes nothing else: so it
# includes all that it uses, and programs may include headers in any order. Compiled as
# declarations: with all code, Highway would hide missing includes and take most of the time. (The
# -inl files are included by their headers, or in a pass over the SIMD targets.)

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(GLOB_RECURSE headers RELATIVE ${source_dir}/include ${source_dir}/include/nibble/*.hpp)
list(FILTER headers EXCLUDE REGEX "-inl\\.hpp$")
# Contains explicit instantiations, only for the one file of a split-form program that makes them.
list(REMOVE_ITEM headers nibble/kernels/instances.hpp)
list(LENGTH headers n)
if(n LESS 50)
  message(FATAL_ERROR "only ${n} headers found")
endif()
set(failed)
foreach(header IN LISTS headers)
  file(WRITE ${work_dir}/alone.cpp "#include \"${header}\"\n#include \"${header}\"\n")
  execute_process(COMMAND ${cxx} -std=c++20 -fsyntax-only -DNIBBLE_SPLIT ${options}
                          ${work_dir}/alone.cpp
                  RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(APPEND failed ${header})
  endif()
endforeach()
if(failed)
  message(FATAL_ERROR "do not compile alone: ${failed}")
endif()
message("${n} headers compile alone")
