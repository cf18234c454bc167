# SPDX-License-Identifier: Apache-2.0
#
# cmake -DNM=... -DUSERS=a.o;b.o -DIMPLEMENTATION=c.o -P check_split.cmake: in the split form only the
# implementation has kernels and the code of models and sessions; the others call them.
function(defined_symbols object out)
  execute_process(COMMAND ${NM} -C --defined-only ${object} OUTPUT_VARIABLE symbols
                  COMMAND_ERROR_IS_FATAL ANY)
  set(${out} "${symbols}" PARENT_SCOPE)
endfunction()

set(code "N_[A-Z0-9_]+::Impl<" "Model::from_graph\\(" "Engine::State::run\\(" "Session::append\\("
         "Generator::State::next_token\\(" "ThreadPool::parallel_for\\(")
defined_symbols("${IMPLEMENTATION}" symbols)
foreach(part IN LISTS code)
  if(NOT symbols MATCHES "${part}")
    message(FATAL_ERROR "the implementation does not define ${part}")
  endif()
endforeach()
foreach(object IN LISTS USERS)
  defined_symbols("${object}" symbols)
  foreach(part IN LISTS code)
    if(symbols MATCHES "${part}")
      message(FATAL_ERROR "${object} defines ${CMAKE_MATCH_0}")
    endif()
  endforeach()
endforeach()
