# SPDX-License-Identifier: Apache-2.0
#
# Shared by the scripts of this folder.

include(${CMAKE_CURRENT_LIST_DIR}/../script.cmake)

# nibble's own folder is added with plain -I, so that all warnings of its headers are shown. The
# warnings of other libraries' headers do not concern us.
set(includes -I${source_dir}/include)
foreach(dir IN LISTS hwy_dirs boost_pp_dirs)
  if(NOT dir STREQUAL "/usr/include")
    list(APPEND includes -isystem ${dir})
  endif()
endforeach()
list(REMOVE_DUPLICATES hwy_dirs)
set(options ${includes} -DNIBBLE_TARGETS=0)

# At least all warnings that a program may request. Two are left out, because nibble does these
# things on purpose: switches with a default over many enumerators, and comparing with the float
# that was stored.
set(warnings -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wundef
  -Wold-style-cast -Wcast-align -Wcast-qual -Wdouble-promotion -Wextra-semi -Wformat=2
  -Wmissing-declarations -Wnon-virtual-dtor -Wnull-dereference -Woverloaded-virtual
  -Wredundant-decls -Wzero-as-null-pointer-constant)
set(gcc_warnings -Wduplicated-branches -Wduplicated-cond -Wlogical-op -Wsuggest-override
  -Wuseless-cast)
set(clang_warnings -Weverything -Wno-c++20-compat -Wno-c++98-compat -Wno-c++98-compat-pedantic
  -Wno-ctad-maybe-unsupported -Wno-float-equal -Wno-padded -Wno-switch-default -Wno-switch-enum
  -Wno-unknown-warning-option -Wno-unsafe-buffer-usage -Wno-used-but-marked-unused
  -Wno-weak-vtables)

# Sets the variable to whether a program compiles, links and runs.
function(try_run variable source)
  file(WRITE ${work_dir}/try.cpp "${source}")
  execute_process(COMMAND ${ARGN} ${work_dir}/try.cpp -o ${work_dir}/try
                  OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE compiled)
  set(result 1)
  if(compiled EQUAL 0)
    execute_process(COMMAND ${work_dir}/try OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE result)
  endif()
  if(result EQUAL 0)
    set(${variable} TRUE PARENT_SCOPE)
  else()
    set(${variable} FALSE PARENT_SCOPE)
  endif()
endfunction()

# link_headers(name folder ...): makes include/ in the work folder, with the headers of the dependencies
# but not those of this system, for cross compilers.
function(link_headers)
  file(MAKE_DIRECTORY ${work_dir}/include)
  set(pairs ${ARGN})
  while(pairs)
    list(POP_FRONT pairs name folder)
    file(CREATE_LINK ${folder}/${name} ${work_dir}/include/${name} SYMBOLIC)
  endwhile()
endfunction()

# Builds the program that uses neither exceptions nor RTTI, and runs it.
function(build_and_run)
  run(${ARGN} -O0 -Wall -Wextra -fno-exceptions -fno-rtti ${options}
      -DONE_ARCHITECTURE ${source_dir}/tests/no_exceptions.cpp -o ${work_dir}/program -pthread)
  run(${work_dir}/program ${source_dir}/examples/models/home-commands-f16.gguf)
endfunction()
