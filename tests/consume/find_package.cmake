# SPDX-License-Identifier: Apache-2.0
#
# Highway is a package too; its library must not be linked.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)

file(WRITE ${work_dir}/hwy/hwyConfig.cmake "
add_library(hwy::hwy INTERFACE IMPORTED)
target_include_directories(hwy::hwy INTERFACE [[${hwy_dirs}]])
target_link_libraries(hwy::hwy INTERFACE must_not_be_linked)
")
file(WRITE ${work_dir}/hwy/hwyConfigVersion.cmake "
set(PACKAGE_VERSION 1.3.0)
set(PACKAGE_VERSION_COMPATIBLE TRUE)
")
build_consumer(find_package -Dnibble_ROOT=${prefix} -Dhwy_DIR=${work_dir}/hwy
               -DNIBBLE_BOOST_PP_INCLUDE_DIR=${boost_pp_dirs})

# Without Highway, the error says what is missing.
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${consume_dir}/find_package -B ${work_dir}/without -G ${generator}
    -Dnibble_ROOT=${prefix} -DCMAKE_DISABLE_FIND_PACKAGE_hwy=ON -DNIBBLE_HWY_INCLUDE_DIR=
    -DCMAKE_FIND_ROOT_PATH=${work_dir}/without -DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY
    -DNIBBLE_BOOST_PP_INCLUDE_DIR=${boost_pp_dirs}
  ERROR_VARIABLE errors OUTPUT_QUIET)
if(NOT errors MATCHES "not found: Highway >= 1.3")
  message(FATAL_ERROR "not the message about Highway:\n${errors}")
endif()
