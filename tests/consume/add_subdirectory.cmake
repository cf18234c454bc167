# SPDX-License-Identifier: Apache-2.0
#
# nibble and its dependencies are folders of the project.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
build_consumer(add_subdirectory -DNIBBLE_DIR=${source_dir}
  -DNIBBLE_HWY_INCLUDE_DIR=${hwy_dirs} -DNIBBLE_BOOST_PP_INCLUDE_DIR=${boost_pp_dirs})
