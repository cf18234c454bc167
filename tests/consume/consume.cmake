# SPDX-License-Identifier: Apache-2.0
#
# Shared by the scripts of this folder.

include(${CMAKE_CURRENT_LIST_DIR}/../script.cmake)
set(consume_dir ${CMAKE_CURRENT_LIST_DIR})
set(ENV{CXX} ${cxx})
set(ENV{CXXFLAGS} -O0)
set(ENV{LDFLAGS})

# The include folders of nibble's dependencies, as compiler options.
set(dependency_options ${hwy_dirs} ${boost_pp_dirs})
list(REMOVE_DUPLICATES dependency_options)
list(TRANSFORM dependency_options PREPEND -I)

# Sets the variable to a program of that name; ends the script if there is none.
macro(need variable program)
  find_program(${variable} ${program})
  if(NOT ${variable})
    skip("there is no ${program} here")
  endif()
endmacro()

# Checks the output of a build of consumer.cpp. It must also say that only the baseline is compiled,
# which every way of using nibble can request (NIBBLE_TARGETS=0).
function(check_consumer program)
  run_for_output(output ${program} ${source_dir}/examples/models/home-commands-f16.gguf)
  message("${output}")
  if(NOT output MATCHES
     "^nibble ${version} on ([A-Z0-9_]+) of ([A-Z0-9_]+): dim the office light, 2.000$"
     OR NOT CMAKE_MATCH_1 STREQUAL CMAKE_MATCH_2)
    message(FATAL_ERROR "not what consumer.cpp prints")
  endif()
endfunction()

# Compiles with a plain compiler command.
function(compile_consumer)
  run(${cxx} -std=c++20 -O0 -DNIBBLE_TARGETS=0 ${ARGN} ${consume_dir}/consumer.cpp
      -o ${work_dir}/consumer -pthread)
  check_consumer(${work_dir}/consumer)
endfunction()

# Configures, builds and runs the CMake project in the folder.
function(build_consumer folder)
  run(${CMAKE_COMMAND} -S ${consume_dir}/${folder} -B ${work_dir}/build -G ${generator}
      -DCMAKE_BUILD_TYPE= ${ARGN})
  run(${CMAKE_COMMAND} --build ${work_dir}/build)
  check_consumer(${work_dir}/build/consumer)
endfunction()

# Builds and runs the Meson project, copied to ${work_dir}/consumer.
function(build_meson_consumer)
  file(COPY ${consume_dir}/meson/meson.build ${consume_dir}/consumer.cpp
       DESTINATION ${work_dir}/consumer)
  run(${meson} setup ${work_dir}/build ${work_dir}/consumer --wrap-mode=nodownload ${ARGN})
  run(${meson} compile -C ${work_dir}/build)
  check_consumer(${work_dir}/build/consumer)
endfunction()

# Makes pkg-config packages of the dependencies, which may be plain folders here.
function(make_pc_files)
  file(WRITE ${work_dir}/pc/libhwy.pc "Name: libhwy\nDescription: Highway\nVersion: 1.3.0\n"
    "Cflags: -I${hwy_dirs}\nLibs: -lmust_not_be_linked\n")
  file(WRITE ${work_dir}/pc/boost-preprocessor.pc "Name: boost-preprocessor\n"
    "Description: Boost.Preprocessor\nVersion: 1.74\nCflags: -I${boost_pp_dirs}\n")
  set(ENV{PKG_CONFIG_PATH} ${work_dir}/pc)
endfunction()
