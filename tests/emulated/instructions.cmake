# SPDX-License-Identifier: Apache-2.0
#
# The demo executes as many instructions as bench/results/instructions.md says, on each SIMD target of its
# last table: so it gets no slower unnoticed where there is no such processor. A deliberate change goes into
# that table. cmake -DPROGRAM=... -DARGUMENTS=... -DEMULATOR=... -DHOST_CC=... -DSOURCE_DIR=...
# -DWORK_DIR=... -P
cmake_minimum_required(VERSION 3.25)

set(plugin ${WORK_DIR}/count_instructions.so)
execute_process(COMMAND ${HOST_CC} -O2 -shared -fPIC ${SOURCE_DIR}/bench/emulated/count_instructions.c
                        -o ${plugin} COMMAND_ERROR_IS_FATAL ANY)
file(STRINGS ${SOURCE_DIR}/bench/results/instructions.md rows REGEX "^\\| demo, `NEON")
if(NOT rows)
  message(FATAL_ERROR "bench/results/instructions.md has no rows of the demo")
endif()

set(formats INT8 INT4)
set(processes 5 7)  # in the order in which they end, from 0
set(columns 0 1)
set(failed)
foreach(row IN LISTS rows)
  string(REGEX MATCH "`([A-Z0-9_]+)` \\| ([0-9]+) \\| ([0-9]+)" matched "${row}")
  set(target ${CMAKE_MATCH_1})
  set(expected ${CMAKE_MATCH_2} ${CMAKE_MATCH_3})  # thousands: INT8, INT4
  set(counts_file ${WORK_DIR}/count_${target}.txt)
  file(REMOVE ${counts_file})
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env NIBBLE_TARGET=${target}
            ${EMULATOR} -plugin ${plugin} -d plugin -D ${counts_file} ${PROGRAM} ${ARGUMENTS}
    OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
  if(errors MATCHES "[Pp]lugin")  # another version of QEMU, or one without
    message("nibble: skipped, QEMU takes no plug-in here: ${errors}")
    return()
  endif()
  if(NOT result EQUAL 0 OR NOT output MATCHES "SIMD target ${target} ")
    message(FATAL_ERROR "${target} did not run: ${result}\n${output}\n${errors}")
  endif()
  file(STRINGS ${counts_file} counts REGEX " instructions$")
  list(LENGTH counts n_processes)
  if(NOT n_processes EQUAL 9)
    message(FATAL_ERROR "the demo had ${n_processes} processes, not 9: which are those of the formats?")
  endif()
  foreach(format process column IN ZIP_LISTS formats processes columns)
    list(GET counts ${process} count)
    string(REGEX REPLACE "[0-9][0-9][0-9] instructions" "" count "${count}")
    list(GET expected ${column} wanted)
    math(EXPR permille "1000 * ${count} / ${wanted} - 1000")
    message("${target}, ${format}: ${count} thousand instructions, expected ${wanted} (${permille} per mille)")
    if(permille GREATER 20 OR permille LESS -20)
      list(APPEND failed "${target} ${format}")
    endif()
  endforeach()
endforeach()
if(failed)
  message(FATAL_ERROR "more than 2 % away: ${failed}. If that is meant, change the table.")
endif()
