# SPDX-License-Identifier: Apache-2.0
#
# The Conan recipe, with stand-ins for the packages that it requires: the headers of this machine,
# and a library that must not be linked.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
need(conan conan)

# Conan writes next to the recipes that it is given.
file(COPY ${source_dir}/LICENSE ${source_dir}/include ${source_dir}/packaging
     DESTINATION ${work_dir}/checkout)
file(COPY ${consume_dir}/conan/ DESTINATION ${work_dir}/stand_ins)

set(ENV{CONAN_HOME} ${work_dir}/home)
run(${conan} profile detect)
run(${conan} remote disable *)  # nothing is downloaded
set(ENV{NIBBLE_STAND_IN_DIR} ${hwy_dirs}/hwy)
run(${conan} export-pkg stand_ins/highway.py)
set(ENV{NIBBLE_STAND_IN_DIR} ${boost_pp_dirs}/boost)
run(${conan} export-pkg stand_ins/boost.py)
run(${conan} create checkout/packaging/conan -s compiler.cppstd=20 -s build_type=Debug
    -o nibble/*:targets=0)

# The package contains what cmake --install installs, restricted to the library itself.
run_for_output(package ${conan} cache path nibble/${version}:da39a3ee5e6b4b0d3255bfef95601890afd80709)
file(GLOB_RECURSE packaged RELATIVE ${package}/include ${package}/include/*)
file(GLOB_RECURSE installed RELATIVE ${prefix}/include ${prefix}/include/*)
if(NOT packaged STREQUAL installed OR NOT EXISTS ${package}/licenses/LICENSE)
  message(FATAL_ERROR "packaged: ${packaged}\ninstalled: ${installed}")
endif()

run(${conan} install --requires=nibble/${version} -s compiler.cppstd=20 -s build_type=Debug
    -o nibble/*:targets=0 -g CMakeDeps -g CMakeToolchain --output-folder ${work_dir}/deps)
build_consumer(find_package -DCMAKE_TOOLCHAIN_FILE=${work_dir}/deps/conan_toolchain.cmake
               -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=)
