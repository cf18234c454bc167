# SPDX-License-Identifier: Apache-2.0
#
# Macros. Those that nibble/nibble.hpp defines are NIBBLE_... and those of the headers of other
# libraries. Those of other headers that were included before do no harm: Xlib, windows.h, Arduino, Qt
# and others have macros that are ordinary words (foreign_macros.h). And warnings: a program that
# enables all of them gets none from nibble's headers.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

# from_elsewhere(variable source): the #include lines of all that a file includes, through nibble, from
# elsewhere.
function(from_elsewhere variable source)
  run_for_output(files ${cxx} -std=c++20 -M ${options} ${source})
  string(REGEX MATCHALL "[^ \\\n]+" files "${files}")
  set(own ${files})
  list(FILTER own INCLUDE REGEX "^${source_dir}/include/nibble/")
  list(LENGTH own n)
  if(n LESS 50)
    message(FATAL_ERROR "only ${n} files of nibble: not what the compiler includes")
  endif()
  set(text "#define HWY_HEADER_ONLY\n")
  foreach(file IN LISTS own)
    file(STRINGS ${file} lines REGEX "^ *# *include (<|\"hwy/)")
    foreach(line IN LISTS lines)
      string(REGEX REPLACE "^ *# *include .(.*)[>\"].*" "\\1" header "${line}")
      if(files MATCHES "/${header}(;|$)" AND NOT header STREQUAL "hwy/foreach_target.h")
        list(APPEND text "#include <${header}>\n")
      endif()
    endforeach()
  endforeach()
  list(REMOVE_DUPLICATES text)
  list(JOIN text "" text)
  set(${variable} "${text}" PARENT_SCOPE)
endfunction()

file(WRITE ${work_dir}/after.cpp "#include \"nibble/nibble.hpp\"\n")
from_elsewhere(text after.cpp)
file(WRITE ${work_dir}/before.cpp "${text}")

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

# ---- Macros of others ----------------------------------------------------------------------------
# Behind the headers that nibble includes from elsewhere, which cannot all live with them, and before
# each of nibble's headers. (libstdc++ removes min and max; defined after it, they stay.) Compiled with
# all warnings, the kernels too (instances.hpp). Newer compilers may have new warnings: for them warnings
# are shown, but are no error.
file(GLOB_RECURSE headers RELATIVE ${source_dir}/include ${source_dir}/include/nibble/*.hpp)
# Need MPI and OpenSSL, which not all machines have.
list(REMOVE_ITEM headers nibble/train/federated_mpi.hpp nibble/serve/openssl_crypto.hpp)
list(FILTER headers EXCLUDE REGEX "(-inl|/instances)\\.hpp$")
list(TRANSFORM headers REPLACE "(.+)" "#include \"\\1\"\n")
list(JOIN headers "" headers)
file(WRITE ${work_dir}/all.cpp "${headers}")
from_elsewhere(text all.cpp)
file(WRITE ${work_dir}/foreign.cpp "${text}
#include \"${source_dir}/tests/hygiene/foreign_macros.h\"
${headers}
#include \"nibble/kernels/instances.hpp\"
#ifndef min
#error \"a header has removed min\"
#endif
")
if(cxx_id STREQUAL "GNU")
  list(APPEND warnings ${gcc_warnings})
else()
  list(APPEND warnings ${clang_warnings})
endif()
if((cxx_id STREQUAL "GNU" AND cxx_version VERSION_LESS 13) OR
   (cxx_id STREQUAL "Clang" AND cxx_version VERSION_LESS 15))
  list(APPEND warnings -Werror)
endif()
run(${cxx} -std=c++20 -fsyntax-only ${warnings} ${options} foreign.cpp)

# The declarations, which leave out some of this text.
file(WRITE ${work_dir}/declarations.cpp "${text}
#include \"${source_dir}/tests/hygiene/foreign_macros.h\"
#include \"nibble/nibble.hpp\"
")
run(${cxx} -std=c++20 -fsyntax-only -DNIBBLE_SPLIT ${options} declarations.cpp)
