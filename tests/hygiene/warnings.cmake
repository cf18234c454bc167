# SPDX-License-Identifier: Apache-2.0
#
# A program that enables all warnings gets none from nibble's headers. Newer compilers may have new
# warnings: for them warnings are shown, but are no error.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(GLOB_RECURSE headers RELATIVE ${source_dir}/include ${source_dir}/include/nibble/*.hpp)
list(TRANSFORM headers REPLACE "(.+)" "#include \"\\1\"\n")
list(JOIN headers "" text)
file(WRITE ${work_dir}/all.cpp "${text}")

if(cxx_id STREQUAL "GNU")
  list(APPEND warnings ${gcc_warnings})
else()
  list(APPEND warnings ${clang_warnings})
endif()
if((cxx_id STREQUAL "GNU" AND cxx_version VERSION_LESS 13) OR
   (cxx_id STREQUAL "Clang" AND cxx_version VERSION_LESS 15))
  list(APPEND warnings -Werror)
endif()
run(${cxx} -std=c++20 -fsyntax-only ${warnings} ${options} all.cpp)
