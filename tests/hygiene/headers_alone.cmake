# SPDX-License-Identifier: Apache-2.0
#
# Every public header compiles when it is the first and only one of a file, so it includes what it
# uses and the order of includes is the program's own business. As declarations: in the form with all
# code Highway would hide what a header lacks, and take most of the time. (The -inl files are included
# by their headers, or in a pass over the SIMD targets.)

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(GLOB_RECURSE headers RELATIVE ${source_dir}/include ${source_dir}/include/nibble/*.hpp)
list(FILTER headers EXCLUDE REGEX "-inl\\.hpp$")
# Explicit instantiations, for the one file of a program in split form that makes them.
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
