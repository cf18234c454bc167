# SPDX-License-Identifier: Apache-2.0
#
# From an archive of only the files that a consumer needs.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)

execute_process(
  COMMAND ${CMAKE_COMMAND} -E tar czf ${work_dir}/nibble.tar.gz CMakeLists.txt include packaging/cmake
  WORKING_DIRECTORY ${source_dir} COMMAND_ERROR_IS_FATAL ANY)
build_consumer(fetch_content -DNIBBLE_URL=${work_dir}/nibble.tar.gz
  -DHWY_DIR=${hwy_dirs} -DNIBBLE_BOOST_PP_INCLUDE_DIR=${boost_pp_dirs})
