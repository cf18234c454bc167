# SPDX-License-Identifier: Apache-2.0
#
# cmake -DPROGRAM=file -DEXPECTED=file -P run.cmake: fails unless the program succeeds and its
# output contains each line of the file.
execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE printed RESULT_VARIABLE result)
message("${printed}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${PROGRAM}: exit code ${result}")
endif()
file(READ ${EXPECTED} expected)
while(expected MATCHES "^([^\n]*)\n(.*)$")
  set(line "${CMAKE_MATCH_1}")
  set(expected "${CMAKE_MATCH_2}")
  string(FIND "${printed}" "${line}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "${PROGRAM} does not print: ${line}")
  endif()
endwhile()
