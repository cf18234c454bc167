# SPDX-License-Identifier: Apache-2.0
#
# Every public header compiles when a file includes it first and includes nothing else: so it
# includes all that it uses, and programs may include headers in any order. Compiled as
# declarations: with all code, Highway would hide missing includes and take most of the time. (The
# -inl files are included by their headers, or in a pass over the SIMD targets.)
#
# A header that a test of the build includes first has compiled there: that is the same proof, and is
# not repeated here.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(GLOB_RECURSE headers RELATIVE ${source_dir}/include ${source_dir}/include/nibble/*.hpp)
list(FILTER headers EXCLUDE REGEX "-inl\\.hpp$")
# Contains explicit instantiations, only for the one file of a split-form program that makes them.
list(REMOVE_ITEM headers nibble/kernels/instances.hpp)
# Needs MPI, which few machines have; examples/federated_mpi.cpp is built where they do.
list(REMOVE_ITEM headers nibble/train/federated_mpi.hpp)
list(LENGTH headers n)
if(n LESS 50)
  message(FATAL_ERROR "only ${n} headers found")
endif()

# Sets the variable to the files that a file includes, as they stand in it and in this order.
function(included_by variable file)
  file(STRINGS ${file} lines REGEX "^ *# *include [<\"]")
  list(TRANSFORM lines REPLACE "^ *# *include .([^>\"]*).*" "\\1")
  set(${variable} "${lines}" PARENT_SCOPE)
endfunction()

# Sets the variable to whether a header reaches one that is less as declarations. In the header form
# that one may include what is missing.
function(depends_on_form variable header)
  set(result FALSE)
  set(reached ${header})
  set(open ${header})
  while(open)
    list(POP_FRONT open next)
    set(file ${source_dir}/include/${next})
    file(STRINGS ${file} forms REGEX "^#if.*NIBBLE_DECLARATIONS_ONLY")
    if(forms AND NOT next STREQUAL "nibble/core/config.hpp")
      set(result TRUE)
      break()
    endif()
    included_by(includes ${file})
    list(FILTER includes INCLUDE REGEX "^nibble/")
    list(REMOVE_ITEM includes ${reached})
    list(APPEND reached ${includes})
    list(APPEND open ${includes})
  endwhile()
  set(${variable} ${result} PARENT_SCOPE)
endfunction()

# The tests of these folders are compiled in these forms (tests/CMakeLists.txt).
set(in_build)
foreach(form split header)
  foreach(folder IN LISTS ${form}_form_tests)
    file(GLOB tests ${source_dir}/tests/${folder}/*.cpp)
    foreach(test IN LISTS tests)
      included_by(includes ${test})
      if(includes)
        list(GET includes 0 first)
        if(first IN_LIST headers AND NOT first IN_LIST in_build)
          set(hidden FALSE)
          if(form STREQUAL "header")
            depends_on_form(hidden ${first})
          endif()
          if(NOT hidden)
            list(APPEND in_build ${first})
          endif()
        endif()
      endif()
    endforeach()
  endforeach()
endforeach()
list(REMOVE_ITEM headers ${in_build})
list(LENGTH in_build n_in_build)

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
message("${n} headers compile alone, ${n_in_build} of them as the first of a test")
