# SPDX-License-Identifier: Apache-2.0
#
# Compiles compile_fail/mistakes.cpp with each mistake: the compiler must say the sentence given here,
# first of all and without a flood behind it.
include(${SETTINGS})

set(program ${source_dir}/tests/graph/compile_fail/mistakes.cpp)
set(includes -I${source_dir}/include)
foreach(dir ${hwy_dirs} ${boost_pp_dirs})
  list(APPEND includes -isystem ${dir})
endforeach()

set(compile ${cxx} -std=c++20 -DNIBBLE_SPLIT -DNIBBLE_TARGETS=0)

# GCC takes a precompiled header from the first folder that has one; others read the headers every time.
set(header graph/compile_fail/mistakes.hpp)
set(precompiled ${scratch_dir}/mistakes)
file(REMOVE_RECURSE ${precompiled})
if(cxx_id STREQUAL "GNU")
  file(MAKE_DIRECTORY ${precompiled}/graph/compile_fail)
  execute_process(COMMAND ${compile} ${includes} -w -x c++-header ${source_dir}/tests/${header}
                          -o ${precompiled}/${header}.gch
                  COMMAND_ERROR_IS_FATAL ANY)
endif()
list(APPEND includes -I${precompiled} -I${source_dir}/tests)

function(compile mistake)
  execute_process(
    COMMAND ${compile} -fsyntax-only -DMISTAKE=${mistake} ${includes} ${program}
    RESULT_VARIABLE result ERROR_VARIABLE errors)
  set(result "${result}" PARENT_SCOPE)
  set(errors "${errors}" PARENT_SCOPE)
endfunction()

compile(0)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the program without a mistake does not compile:\n${errors}")
endif()

set(sentences
  "residual\\(\\): the body gives rows of another width"
  "this node .* does not take what stands before it"
  "an expression starts with embedding\\(\\)"
  "a node of your own needs an apply\\(\\)"
  "a repeat\\(\\) within a repeat\\(\\)"
  "multiply\\(\\) or sum\\(\\) of results whose widths differ"
  "repeat\\(\\): the body works in place"
  "begins with a node that works in place"
  "begins with a node that works in place"
  "when\\(\\): the body works in place"
  "formats in graphs have blocks of 32 weights"
  "residual\\(\\): the body gives rows of another width"
  "residual\\(\\): the body gives several results"
  "linear\\(\\) needs weights"
  "linear\\(\\) needs weights"
  "embedding\\(\\) needs weights"
  "split\\(\\): the widths do not add up"
  "n_heads \\(H\\) is not a multiple of n_kv_heads"
  "the width of q is not that of the heads"
  "the width of k and v is not that of the heads"
  "the width of q is not that of the heads"
  "tap\\(\\): another number of names"
  "in_place\\(\\): the body gives rows of another width"
  "an expression that is run gives one result"
  "a node of your own needs a describe\\(\\)"
  "values that differ by layer come with their number"
  "a repeat\\(\\) within a repeat\\(\\)"
  "there is no backward rule for this node \\(Node = ...\\)"
  "there is no backward rule for this node \\(Node = ...\\)")
set(mistake 0)
foreach(sentence ${sentences})
  math(EXPR mistake "${mistake} + 1")
  compile(${mistake})
  if(result EQUAL 0)
    message(FATAL_ERROR "mistake ${mistake} compiles")
  endif()
  string(REGEX MATCH "error:[^\n]*" first "${errors}")
  if(NOT first MATCHES "${sentence}")
    message(FATAL_ERROR "mistake ${mistake}: the first error is\n${first}\nnot '${sentence}'")
  endif()
  string(REGEX MATCHALL "\n" lines "${errors}")
  list(LENGTH lines n_lines)
  if(n_lines GREATER 40)
    message(FATAL_ERROR "mistake ${mistake}: ${n_lines} lines of errors")
  endif()
endforeach()
