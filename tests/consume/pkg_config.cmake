# SPDX-License-Identifier: Apache-2.0
#
# A plain compiler command with the output of pkg-config. Highway has a .pc file, but its library
# must not be linked; Boost never has one.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
need(pkg_config pkg-config)

make_pc_files()
run(${CMAKE_COMMAND} -S ${source_dir} -B ${work_dir}/build -G ${generator} -DNIBBLE_BUILD_TESTS=OFF
    -DNIBBLE_BUILD_EXAMPLES=OFF -DCMAKE_INSTALL_PREFIX=${work_dir}/prefix
    -DNIBBLE_HWY_INCLUDE_DIR=${hwy_dirs} -DNIBBLE_BOOST_PP_INCLUDE_DIR=${boost_pp_dirs})
run(${CMAKE_COMMAND} --install ${work_dir}/build)
set(ENV{PKG_CONFIG_PATH} ${work_dir}/pc:${work_dir}/prefix/share/pkgconfig)
run_for_output(options ${pkg_config} --cflags --libs "nibble = ${version}")
separate_arguments(options UNIX_COMMAND "${options}")
compile_consumer(${options} -I${boost_pp_dirs})

# Installs headers to a folder outside the prefix. (Staged: CMake refuses such a folder inside the
# source tree, and this build may be there.)
run(${CMAKE_COMMAND} -S ${source_dir} -B ${work_dir}/build
    -DCMAKE_INSTALL_INCLUDEDIR=/elsewhere/include)
set(ENV{DESTDIR} ${work_dir}/stage)
run(${CMAKE_COMMAND} --install ${work_dir}/build)
set(ENV{PKG_CONFIG_PATH} ${work_dir}/pc:${work_dir}/stage${work_dir}/prefix/share/pkgconfig)
run_for_output(folder ${pkg_config} --variable=includedir nibble)
if(NOT EXISTS ${folder}/nibble/nibble.hpp)
  message(FATAL_ERROR "no headers in ${folder}")
endif()
