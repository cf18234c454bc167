# SPDX-License-Identifier: Apache-2.0
#
# Shared by the scripts that check the programs' output. FOLDER: where files are written.

file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})

# run(variable command...): the output of the command, which must exit with 0.
function(run variable)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE out ERROR_VARIABLE err RESULT_VARIABLE result)
  if(NOT result STREQUAL 0)
    message(FATAL_ERROR "${ARGN}: exit code ${result}\n${out}${err}")
  endif()
  set(${variable} "${out}" PARENT_SCOPE)
endfunction()

function(expect text regex what)
  if(NOT "${text}" MATCHES "${regex}")
    string(SUBSTRING "${text}" 0 2000 text)
    message(FATAL_ERROR "${what} does not match '${regex}':\n${text}")
  endif()
endfunction()

function(expect_positive value what)
  if(NOT "${value}" GREATER 0)
    message(FATAL_ERROR "${what} is '${value}'")
  endif()
endfunction()

# expect_results(json n keys...): n results, in each of which these numbers are positive.
function(expect_results json n)
  string(JSON length LENGTH "${json}" results)
  if(NOT length EQUAL n)
    message(FATAL_ERROR "${length} results, not ${n}")
  endif()
  math(EXPR last "${n} - 1")
  foreach(i RANGE ${last})
    foreach(key IN LISTS ARGN)
      string(JSON value GET "${json}" results ${i} ${key})
      expect_positive(${value} "result ${i}: ${key}")
    endforeach()
  endforeach()
endfunction()

# expect_csv(file n): n lines after the first, each with as many fields.
function(expect_csv file n)
  file(STRINGS ${file} lines)
  list(GET lines 0 header)
  string(REGEX MATCHALL "," header_commas "${header}")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "\"[^\"]*\"" "" line "${line}")
    string(REGEX MATCHALL "," commas "${line}")
    if(NOT commas STREQUAL header_commas)
      message(FATAL_ERROR "a line of CSV has not as many fields as the first: ${line}")
    endif()
  endforeach()
  list(POP_FRONT lines)
  list(LENGTH lines length)
  if(NOT length EQUAL n)
    message(FATAL_ERROR "${length} rows of CSV, not ${n}")
  endif()
endfunction()
