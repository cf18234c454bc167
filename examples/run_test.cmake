# SPDX-License-Identifier: Apache-2.0
#
# cmake -DEXIT=code -DSTDIN=text -DOUT=regex -DERR=regex -DINPUT=file -P run_test.cmake -- program
# arguments... Runs the program with the text as its stdin (through the file). Fails unless the
# program exits with the code and what it prints to stdout and stderr matches the two expressions;
# an empty one matches everything.

set(command)
set(is_command FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(is_command)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(is_command TRUE)
  endif()
endforeach()

file(WRITE ${INPUT} "${STDIN}")
execute_process(COMMAND ${command} INPUT_FILE ${INPUT}
                OUTPUT_VARIABLE out ERROR_VARIABLE err RESULT_VARIABLE result)
file(REMOVE ${INPUT})

set(is_good TRUE)
if(NOT result STREQUAL EXIT)
  message("exit code '${result}', not ${EXIT}")
  set(is_good FALSE)
endif()
if(NOT "${OUT}" STREQUAL "" AND NOT "${out}" MATCHES "${OUT}")
  message("stdout does not match '${OUT}'")
  set(is_good FALSE)
endif()
if(NOT "${ERR}" STREQUAL "" AND NOT "${err}" MATCHES "${ERR}")
  message("stderr does not match '${ERR}'")
  set(is_good FALSE)
endif()
if(NOT is_good)
  message(FATAL_ERROR "${command}\n---- stdout\n${out}\n---- stderr\n${err}\n----")
endif()
