# SPDX-License-Identifier: Apache-2.0
#
# Gets the headers that nibbleDependencies.cmake did not find, doctest for the tests, CLI11 for the
# examples, cpp-httplib for one of them (httplib.cmake) and Google Benchmark for the benchmarks.
# What is missing or too old is taken from the distribution's own package mirror, as plain files
# below the build folder: it needs no root and installs nothing. Supported: apt (Debian and its
# derivatives, any release; Highway comes from the `testing` suite if the release's own version is
# older than 1.3).

set(NIBBLE_HEADERS_DIR ${PROJECT_BINARY_DIR}/headers)

# What is missing is an error; for what the build can do without (nibble_is_optional), it is said,
# and nibble_is_missing set for the caller.
macro(nibble_headers_missing text)
  set(nibble_is_missing TRUE PARENT_SCOPE)
  if(NOT nibble_is_optional)
    message(FATAL_ERROR "nibble: ${text}")
  endif()
  message(STATUS "nibble: ${text}")
  return()
endmacro()

# Runs apt-get with its lists and cache in our build folder and the given suite as its only source.
function(nibble_apt suite)
  set(state ${NIBBLE_HEADERS_DIR}/apt-${suite})
  file(MAKE_DIRECTORY ${state}/lists/partial ${state}/cache/archives/partial)
  execute_process(
    COMMAND ${ARGN}
      -o Dir::Etc::sourcelist=${state}/sources.list -o Dir::Etc::sourceparts=-
      -o Dir::State::lists=${state}/lists -o Dir::Cache=${state}/cache
      -o APT::Sandbox::User= -o Acquire::Languages=none -q
      # A mirror that lags behind is good enough: its packages are signed too.
      -o Acquire::Check-Valid-Until=false
    WORKING_DIRECTORY ${NIBBLE_HEADERS_DIR}
    OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    nibble_headers_missing("'${ARGN}' failed (${result}):\n${output}${errors}")
  endif()
  set(nibble_apt_output "${output}" PARENT_SCOPE)
endfunction()

# Extracts `paths` (below usr/, patterns allowed) of a package of a suite into ${NIBBLE_HEADERS_DIR}.
function(nibble_headers_from_package suite package paths)
  set(state ${NIBBLE_HEADERS_DIR}/apt-${suite})
  if(NOT EXISTS ${state}/updated)
    message(STATUS "nibble: reading the package list of Debian '${suite}'")
    file(MAKE_DIRECTORY ${state})
    execute_process(COMMAND apt-get indextargets --format "$(SITE)" "Created-By: Packages"
                    OUTPUT_VARIABLE sites OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REPLACE "\n" ";" sites "${sites}")
    list(FILTER sites INCLUDE REGEX "/debian/?$")
    list(REMOVE_DUPLICATES sites)
    if(NOT sites)
      nibble_headers_missing("Highway >= 1.3, Boost.Preprocessor, doctest (tests) and CLI11 \
(examples) are needed. Install them with your package manager and set CMAKE_PREFIX_PATH if they are \
in a place of their own. (No Debian mirror is configured here to take the headers from.)")
    endif()
    list(GET sites 0 site)
    file(WRITE ${state}/sources.list "deb ${site} ${suite} main\n")
    nibble_apt(${suite} apt-get update)
    if(nibble_is_missing)
      set(nibble_is_missing TRUE PARENT_SCOPE)
      return()
    endif()
    file(TOUCH ${state}/updated)
  endif()
  if(package MATCHES "^(.+)->(.+)$")  # a dependency of a package, matched by a pattern
    set(pattern "${CMAKE_MATCH_2}")
    nibble_apt(${suite} apt-cache depends ${CMAKE_MATCH_1})
    if(nibble_is_missing)
      set(nibble_is_missing TRUE PARENT_SCOPE)
      return()
    endif()
    string(REGEX MATCH "${pattern}" package "${nibble_apt_output}")
  endif()
  message(STATUS "nibble: taking files from package ${package} (${suite})")
  # The suite's own version, whatever is installed.
  nibble_apt(${suite} apt-get download ${package}/${suite})
  if(nibble_is_missing)
    set(nibble_is_missing TRUE PARENT_SCOPE)
    return()
  endif()
  file(GLOB deb ${NIBBLE_HEADERS_DIR}/${package}_*.deb)
  set(files ${paths})
  list(TRANSFORM files PREPEND "./usr/")
  execute_process(
    COMMAND dpkg-deb --fsys-tarfile ${deb}
    COMMAND tar -x -C ${NIBBLE_HEADERS_DIR} --strip-components=2 --wildcards ${files}
    RESULTS_VARIABLE results)
  if(NOT results STREQUAL "0;0")
    nibble_headers_missing("could not unpack ${deb}")
  endif()
  file(REMOVE ${deb})
endfunction()

# find_path for `header`; if that fails, takes it from the package. Further arguments go to
# find_path.
macro(nibble_find_header variable header suite package paths)
  find_path(${variable} ${header} HINTS ${NIBBLE_HEADERS_DIR}/include ${ARGN})
  if(NOT ${variable} AND NIBBLE_GET_HEADERS)
    find_program(NIBBLE_APT_GET apt-get)
    if(NIBBLE_APT_GET)
      nibble_headers_from_package("${suite}" ${package} "${paths}")
      find_path(${variable} ${header} HINTS ${NIBBLE_HEADERS_DIR}/include ${ARGN})
    endif()
  endif()
  if(NOT ${variable})
    message(FATAL_ERROR "nibble: ${header} not found. Install Highway >= 1.3, Boost.Preprocessor "
      "(doctest for the tests, CLI11 for the examples) with your package manager, or set "
      "${variable}.")
  endif()
endmacro()

set(nibble_own_suite stable)
if(EXISTS /etc/os-release)
  file(STRINGS /etc/os-release codename REGEX "^VERSION_CODENAME=")
  string(REGEX REPLACE "VERSION_CODENAME=\"?([a-z]+)\"?" "\\1" codename "${codename}")
  if(codename)
    set(nibble_own_suite ${codename})
  endif()
endif()

if(nibble_old_highway)
  message(FATAL_ERROR "nibble needs ${nibble_old_highway}.")
endif()
if(NOT TARGET nibble::hwy_headers)
  nibble_find_header(NIBBLE_HWY_INCLUDE_DIR hwy/highway.h testing libhwy-dev "include/hwy"
                     VALIDATOR nibble_highway_validator)
endif()
if(NOT TARGET nibble::boost_pp_headers)
  nibble_find_header(NIBBLE_BOOST_PP_INCLUDE_DIR boost/preprocessor.hpp ${nibble_own_suite}
                     "libboost-dev->libboost[0-9.]+-dev"
                     "include/boost/preprocessor;include/boost/preprocessor.hpp")
endif()
if(nibble_missing)
  include(${CMAKE_CURRENT_LIST_DIR}/nibbleDependencies.cmake)
endif()
if(NIBBLE_BUILD_TESTS)
  nibble_find_header(NIBBLE_DOCTEST_INCLUDE_DIR doctest/doctest.h ${nibble_own_suite} doctest-dev
                     "include/doctest")
endif()
if(NIBBLE_BUILD_EXAMPLES OR NIBBLE_BUILD_BENCH)
  # Not the suite's own: before 2.3 each program compiles all of CLI11 (examples/CMakeLists.txt).
  nibble_find_header(NIBBLE_CLI11_INCLUDE_DIR CLI/CLI.hpp testing libcli11-dev "include/CLI")
endif()
if(NIBBLE_BUILD_EXAMPLES AND UNIX AND NOT CMAKE_CROSSCOMPILING)
  include(${CMAKE_CURRENT_LIST_DIR}/httplib.cmake)
endif()
if(NIBBLE_BUILD_BENCH)
  find_package(benchmark QUIET)
  if(NOT TARGET benchmark::benchmark)
    nibble_find_header(NIBBLE_BENCHMARK_INCLUDE_DIR benchmark/benchmark.h ${nibble_own_suite}
                       libbenchmark-dev "include/benchmark;lib/*/libbenchmark.so")
    set(nibble_benchmark_dir ${NIBBLE_HEADERS_DIR}/lib/${CMAKE_LIBRARY_ARCHITECTURE})
    if(NIBBLE_BENCHMARK_INCLUDE_DIR STREQUAL "${NIBBLE_HEADERS_DIR}/include" AND
       NOT EXISTS ${nibble_benchmark_dir}/libbenchmark.so)  # or it is a dangling link
      nibble_headers_from_package(${nibble_own_suite}
        "libbenchmark-dev->libbenchmark[0-9][a-z0-9.]*" "lib/*/libbenchmark.so.*")
    endif()
    find_library(NIBBLE_BENCHMARK_LIBRARY benchmark HINTS ${nibble_benchmark_dir} REQUIRED)
    add_library(benchmark::benchmark UNKNOWN IMPORTED)
    set_target_properties(benchmark::benchmark PROPERTIES
      IMPORTED_LOCATION ${NIBBLE_BENCHMARK_LIBRARY}
      INTERFACE_INCLUDE_DIRECTORIES ${NIBBLE_BENCHMARK_INCLUDE_DIR})
  endif()
endif()
