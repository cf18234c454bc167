# SPDX-License-Identifier: Apache-2.0
#
# A project whose own Highway is too old is told so when it is configured, not by the compiler.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)

file(WRITE ${work_dir}/old/hwy/base.h "// no version here\n")
file(WRITE ${work_dir}/old/hwy/highway.h
  "#define HWY_MAJOR 1\n#define HWY_MINOR 0\n#define HWY_PATCH 3\n")
list(GET hwy_dirs 0 new)
list(GET boost_pp_dirs 0 boost)
file(WRITE ${work_dir}/CMakeLists.txt "
cmake_minimum_required(VERSION 3.25)
project(app LANGUAGES CXX)
set(NIBBLE_BOOST_PP_INCLUDE_DIR [[${boost}]])
add_library(project_hwy INTERFACE)
target_include_directories(project_hwy INTERFACE \"$<BUILD_INTERFACE:\${HIGHWAY}>\")
if(NOT HIGHWAY STREQUAL \"none\")
  add_library(hwy::hwy ALIAS project_hwy)
endif()
if(WAY STREQUAL \"find_package\")
  find_package(nibble CONFIG REQUIRED)
else()
  add_subdirectory([[${source_dir}]] nibble)
endif()
")

# configure(YES|NO folder way [options...]): whether it is configured, with this folder as hwy::hwy.
function(configure expected highway way)
  set(build ${work_dir}/build_${way})
  file(REMOVE_RECURSE ${build})
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${work_dir} -B ${build} -G ${generator}
                          -DHIGHWAY=${highway} -DWAY=${way} -DCMAKE_PREFIX_PATH=${prefix} ${ARGN}
                  OUTPUT_QUIET ERROR_VARIABLE errors RESULT_VARIABLE result)
  string(REGEX REPLACE "[ \n]+" " " errors "${errors}")
  if(expected AND NOT result EQUAL 0)
    message(FATAL_ERROR "${way}, Highway ${highway}, ${ARGN}: ${errors}")
  elseif(NOT expected AND (result EQUAL 0 OR NOT errors MATCHES
      "Highway >= 1.3: .* is Highway 1.0.3 .*set NIBBLE_HWY_INCLUDE_DIR"))
    message(FATAL_ERROR "${way}, Highway ${highway}, ${ARGN}: not refused, or not with its version: ${errors}")
  endif()
endfunction()

foreach(way add_subdirectory find_package)
  configure(NO ${work_dir}/old ${way})
  configure(NO none ${way} -DNIBBLE_HWY_INCLUDE_DIR=${work_dir}/old)
  configure(YES ${new} ${way})
  configure(YES ${work_dir}/old ${way} -DNIBBLE_HWY_INCLUDE_DIR=${new})
endforeach()
