# SPDX-License-Identifier: Apache-2.0
#
# Checks the macros that nibble/nibble.hpp defines: only NIBBLE_... and those of the headers of
# other libraries.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

# The macros before: those of everything that nibble includes from elsewhere.
file(WRITE ${work_dir}/after.cpp "#include \"nibble/nibble.hpp\"\n")
run_for_output(files ${cxx} -std=c++20 -M ${options} after.cpp)
string(REGEX MATCHALL "[^ \\\n]+" files "${files}")
set(own ${files})
list(FILTER own INCLUDE REGEX "^${source_dir}/include/nibble/")
list(LENGTH own n)
if(n LESS 50)
  message(FATAL_ERROR "only ${n} files of nibble: not what the compiler includes")
endif()
set(before "#define HWY_HEADER_ONLY\n")
foreach(file IN LISTS own)
  file(STRINGS ${file} lines REGEX "^ *# *include (<|\"hwy/)")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^ *# *include .(.*)[>\"].*" "\\1" header "${line}")
    if(files MATCHES "/${header}(;|$)" AND NOT header STREQUAL "hwy/foreach_target.h")
      list(APPEND before "#include <${header}>\n")
    endif()
  endforeach()
endforeach()
list(REMOVE_DUPLICATES before)
list(JOIN before "" before)
file(WRITE ${work_dir}/before.cpp "${before}")

function(macros_of variable source)
  run_for_output(lines ${cxx} -std=c++20 -dM -E ${options} ${source})
  string(REGEX MATCHALL "#define [A-Za-z0-9_]+" names "${lines}")
  list(TRANSFORM names REPLACE "#define " "")
  set(${variable} "${names}" PARENT_SCOPE)
endfunction()
macros_of(before before.cpp)
macros_of(after after.cpp)
list(REMOVE_ITEM after ${before})

set(leaked ${after})
list(FILTER leaked EXCLUDE REGEX "^(NIBBLE|HWY|HIGHWAY_HWY|BOOST)_")  # ours, Highway's, Boost's
list(FILTER leaked EXCLUDE REGEX "^_")  # reserved for compilers and their headers
if(leaked)
  message(FATAL_ERROR "nibble/nibble.hpp leaks macros: ${leaked}")
endif()
list(FILTER after INCLUDE REGEX "^NIBBLE_")
list(LENGTH after n)
if(n LESS 10)
  message(FATAL_ERROR "only ${n} macros of nibble: not what the compiler defines")
endif()
message("${n} macros, all NIBBLE_")
