# SPDX-License-Identifier: Apache-2.0
#
# The overlay port, with stand-ins for the ports that it depends on: the headers of this machine,
# and a library that must not be linked. The environment variable VCPKG_ROOT names vcpkg's folder.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)

need(vcpkg vcpkg)
if(NOT DEFINED ENV{VCPKG_ROOT})
  skip("VCPKG_ROOT is not set")
endif()

set(ENV{VCPKG_FORCE_SYSTEM_BINARIES} 1)  # nothing is downloaded
set(ENV{VCPKG_DISABLE_METRICS} 1)
set(ENV{VCPKG_KEEP_ENV_VARS} NIBBLE_HWY_DIR,NIBBLE_BOOST_PP_DIR)
set(ENV{NIBBLE_HWY_DIR} ${hwy_dirs})
set(ENV{NIBBLE_BOOST_PP_DIR} ${boost_pp_dirs})
run(${vcpkg} install nibble --classic --binarysource=clear
    --overlay-ports=${source_dir}/packaging/vcpkg/ports --overlay-ports=${consume_dir}/vcpkg
    --x-install-root=${work_dir}/installed --x-buildtrees-root=${work_dir}/buildtrees
    --x-packages-root=${work_dir}/packages --downloads-root=${work_dir}/downloads)

# The package contains what cmake --install installs.
file(GLOB package ${work_dir}/packages/nibble_*)
file(GLOB_RECURSE packaged RELATIVE ${package}/include ${package}/include/*)
file(GLOB_RECURSE installed RELATIVE ${prefix}/include ${prefix}/include/*)
if(NOT packaged STREQUAL installed OR NOT EXISTS ${package}/share/nibble/copyright)
  message(FATAL_ERROR "packaged: ${packaged}\ninstalled: ${installed}")
endif()

build_consumer(find_package
  -DCMAKE_TOOLCHAIN_FILE=$ENV{VCPKG_ROOT}/scripts/buildsystems/vcpkg.cmake
  -DVCPKG_INSTALLED_DIR=${work_dir}/installed -DVCPKG_MANIFEST_MODE=OFF)
