# SPDX-License-Identifier: Apache-2.0
#
# The version is the same everywhere: in config.hpp's numbers, string and inline namespace, in CMake
# and in the packages.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(READ ${source_dir}/include/nibble/core/config.hpp config)
function(defined variable macro)
  if(NOT config MATCHES "#define ${macro} \"?([0-9.]+)\"?\n")
    message(FATAL_ERROR "config.hpp does not define ${macro}")
  endif()
  set(${variable} ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()
defined(major NIBBLE_VERSION_MAJOR)
defined(minor NIBBLE_VERSION_MINOR)
defined(patch NIBBLE_VERSION_PATCH)
defined(string NIBBLE_VERSION)

function(must_be what is)
  message("${what}: ${is}")
  if(NOT is STREQUAL "${major}.${minor}.${patch}")
    message(FATAL_ERROR "${what} is ${is}, the numbers in config.hpp are ${major}.${minor}.${patch}")
  endif()
endfunction()
must_be(NIBBLE_VERSION ${string})
must_be(CMake ${version})

# The inline namespace names major and minor version, since versions that differ in these must not
# be linked together.
if(NOT config MATCHES "#define NIBBLE_ABI NIBBLE_CONCAT4\\(v${major}_${minor}, ")
  message(FATAL_ERROR "NIBBLE_ABI in config.hpp does not begin with v${major}_${minor}")
endif()

# CMake, Meson and Conan look for one line that begins like this.
file(STRINGS ${source_dir}/include/nibble/core/config.hpp lines REGEX "^#define NIBBLE_VERSION \"")
list(LENGTH lines n)
if(NOT n EQUAL 1)
  message(FATAL_ERROR "${n} lines of config.hpp begin with #define NIBBLE_VERSION \"")
endif()

file(GLOB_RECURSE vcpkg ${source_dir}/packaging/vcpkg/*/vcpkg.json)
foreach(manifest IN LISTS vcpkg)
  file(READ ${manifest} json)
  string(JSON vcpkg_version GET "${json}" version)
  must_be(vcpkg ${vcpkg_version})
endforeach()
