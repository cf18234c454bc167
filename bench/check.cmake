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
