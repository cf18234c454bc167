# SPDX-License-Identifier: Apache-2.0
#
# Every public header compiles when a file includes it first and includes nothing else: so it
# includes all that it uses, and programs may include headers in any order. Compiled as
# declarations: with all code, Highway would hide missing includes and take most of the time. (The
# -inl files are included by their headers, or in a pass over the SIMD targets.)
#
# One compilation proves many: if B always includes A, a file that includes A and then B proves A, which
# is first, and B too, which sees nothing but what it includes itself. So headers stand in chains, each of
# which is compiled at once.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(GLOB_RECURSE headers RELATIVE ${source_dir}/include ${source_dir}/include/nibble/*.hpp)
list(FILTER headers EXCLUDE REGEX "-inl\\.hpp$")
# Contains explicit instantiations, only for the one file of a split-form program that makes them.
list(REMOVE_ITEM headers nibble/kernels/instances.hpp)
# Needs MPI, which few machines have; examples/federated_mpi.cpp is built where they do.
list(REMOVE_ITEM headers nibble/train/federated_mpi.hpp)
# Needs OpenSSL; a test of tests/serve includes it first where there is one.
list(REMOVE_ITEM headers nibble/serve/openssl_crypto.hpp)
list(LENGTH headers n)
if(n LESS 50)
  message(FATAL_ERROR "only ${n} headers found")
endif()

# Sets the variable to those of nibble's headers that a header always includes, itself or through
# others: not within #if.
function(always_reached_by variable header)
  get_property(is_known GLOBAL PROPERTY reached_by_${header} SET)
  if(NOT is_known)
    set_property(GLOBAL PROPERTY reached_by_${header} "")  # ends a circle
    set(reached)
    set(depth 0)
    file(STRINGS ${source_dir}/include/${header} lines
         REGEX "^ *# *(if|endif|include \"nibble/[^\"]+\")")
    foreach(line IN LISTS lines)
      if(line MATCHES "^ *# *if")
        math(EXPR depth "${depth} + 1")
      elseif(line MATCHES "^ *# *endif")
        math(EXPR depth "${depth} - 1")
      elseif(depth EQUAL 0 AND line MATCHES "\"(nibble/[^\"]+)\"")
        set(included ${CMAKE_MATCH_1})
        always_reached_by(further ${included})
        list(APPEND reached ${included} ${further})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES reached)
    set_property(GLOBAL PROPERTY reached_by_${header} "${reached}")
  endif()
  get_property(reached GLOBAL PROPERTY reached_by_${header})
  set(${variable} "${reached}" PARENT_SCOPE)
endfunction()

# Those that reach most come first.
set(sorted)
foreach(header IN LISTS headers)
  always_reached_by(reached ${header})
  list(LENGTH reached n_reached)
  list(APPEND sorted ${n_reached}:${header})
endforeach()
list(SORT sorted COMPARE NATURAL ORDER DESCENDING)
list(TRANSFORM sorted REPLACE "^[0-9]+:" "" OUTPUT_VARIABLE open)

set(failed)
set(n_chains 0)
while(open)
  # From the last of the chain, which includes all others, to the first.
  list(GET open 0 last)
  always_reached_by(reached ${last})
  set(chain ${last})
  foreach(header IN LISTS open)
    if(header IN_LIST reached)
      list(PREPEND chain ${header})
      always_reached_by(reached ${header})
    endif()
  endforeach()
  list(REMOVE_ITEM open ${chain})
  math(EXPR n_chains "${n_chains} + 1")
  list(TRANSFORM chain REPLACE "(.+)" "#include \"\\1\"\n#include \"\\1\"\n" OUTPUT_VARIABLE text)
  list(JOIN text "" text)
  file(WRITE ${work_dir}/alone.cpp "${text}")
  execute_process(COMMAND ${cxx} -std=c++20 -fsyntax-only -DNIBBLE_SPLIT ${options}
                          ${work_dir}/alone.cpp
                  RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(APPEND failed ${chain})
  endif()
endwhile()
if(failed)
  message(FATAL_ERROR "do not compile alone, one of each chain at least: ${failed}")
endif()
message("${n} headers compile alone, in ${n_chains} chains")
