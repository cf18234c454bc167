# SPDX-License-Identifier: Apache-2.0
#
# What tests that are scripts share: those of consume/ and hygiene/. SETTINGS is the file that says
# what they know of the build. Each starts with an empty folder of its own: work_dir.

cmake_minimum_required(VERSION 3.25)
include(${SETTINGS})
get_filename_component(name ${CMAKE_SCRIPT_MODE_FILE} NAME_WE)
set(work_dir ${scratch_dir}/${name})
file(REMOVE_RECURSE ${work_dir})
file(MAKE_DIRECTORY ${work_dir})

function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${work_dir}
                  COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Runs a command and gives what it prints.
function(run_for_output variable)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${work_dir} OUTPUT_VARIABLE output
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
  set(${variable} "${output}" PARENT_SCOPE)
endfunction()

# Ends the script; what CTest takes for a test that did not run.
macro(skip reason)
  message("nibble: skipped, ${reason}")
  return()
endmacro()
