# SPDX-License-Identifier: Apache-2.0
#
# Finds the headers that nibble includes. Defines the targets nibble::hwy_headers and
# nibble::boost_pp_headers, which have include folders and nothing to link. Lists in nibble_missing
# what was not found. Used by the build and by the installed package.
#
# NIBBLE_HWY_INCLUDE_DIR and NIBBLE_BOOST_PP_INCLUDE_DIR name a folder directly, for copies of the
# headers. Without them, Highway is the project's own target or the package hwy::hwy, of which only
# the include folder is used, or a folder that CMake finds.

set(nibble_missing)

# Sets `out` to ON if `dir` contains a Highway that is new enough.
function(nibble_highway_usable dir out)
  set(${out} OFF PARENT_SCOPE)
  if(EXISTS "${dir}/hwy/base.h")
    file(STRINGS "${dir}/hwy/base.h" lines REGEX "^#define HWY_(MAJOR|MINOR) ")
    string(REGEX MATCH "HWY_MAJOR ([0-9]+)" unused "${lines}")
    set(major "${CMAKE_MATCH_1}")
    string(REGEX MATCH "HWY_MINOR ([0-9]+)" unused "${lines}")
    if("${major}.${CMAKE_MATCH_1}" VERSION_GREATER_EQUAL 1.3)
      set(${out} ON PARENT_SCOPE)
    endif()
  endif()
endfunction()

# A validator for find_path: rejects a Highway that is too old.
function(nibble_highway_validator result dir)
  nibble_highway_usable("${dir}" usable)
  if(NOT usable)
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

# Makes nibble::<name> with the include folders of the first of `targets` that exists, if any.
function(nibble_headers_of_target name)
  foreach(target ${ARGN})
    if(TARGET ${target} AND NOT TARGET nibble::${name})
      get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
      if(dirs)
        add_library(nibble::${name} INTERFACE IMPORTED GLOBAL)
        target_include_directories(nibble::${name} INTERFACE ${dirs})
      endif()
    endif()
  endforeach()
endfunction()

# Makes nibble::<name> with the include folder in `variable`, if it is set.
function(nibble_headers_of_folder name variable)
  if(${variable} AND NOT TARGET nibble::${name})
    add_library(nibble::${name} INTERFACE IMPORTED GLOBAL)
    target_include_directories(nibble::${name} INTERFACE ${${variable}})
  endif()
endfunction()

nibble_headers_of_folder(hwy_headers NIBBLE_HWY_INCLUDE_DIR)
nibble_headers_of_target(hwy_headers hwy::hwy hwy)
if(NOT TARGET nibble::hwy_headers)
  find_package(hwy 1.3 CONFIG QUIET)
  nibble_headers_of_target(hwy_headers hwy::hwy)
endif()
if(NOT TARGET nibble::hwy_headers)
  find_path(NIBBLE_HWY_INCLUDE_DIR hwy/highway.h VALIDATOR nibble_highway_validator)
  mark_as_advanced(NIBBLE_HWY_INCLUDE_DIR)
  nibble_headers_of_folder(hwy_headers NIBBLE_HWY_INCLUDE_DIR)
endif()
if(NOT TARGET nibble::hwy_headers)
  list(APPEND nibble_missing "Highway >= 1.3 (NIBBLE_HWY_INCLUDE_DIR)")
endif()

nibble_headers_of_folder(boost_pp_headers NIBBLE_BOOST_PP_INCLUDE_DIR)
nibble_headers_of_target(boost_pp_headers Boost::preprocessor Boost::headers)
if(NOT TARGET nibble::boost_pp_headers)
  find_path(NIBBLE_BOOST_PP_INCLUDE_DIR boost/preprocessor.hpp)
  mark_as_advanced(NIBBLE_BOOST_PP_INCLUDE_DIR)
  nibble_headers_of_folder(boost_pp_headers NIBBLE_BOOST_PP_INCLUDE_DIR)
endif()
if(NOT TARGET nibble::boost_pp_headers)  # from a package manager
  find_package(Boost CONFIG QUIET)
  nibble_headers_of_target(boost_pp_headers Boost::headers)
endif()
if(NOT TARGET nibble::boost_pp_headers)
  list(APPEND nibble_missing "Boost.Preprocessor (NIBBLE_BOOST_PP_INCLUDE_DIR)")
endif()

# The SIMD targets to compile for a program, in Highway's names: the property NIBBLE_TARGETS of its
# CMake target, or the variable of that name for all CMake targets that are created afterwards.
define_property(TARGET PROPERTY NIBBLE_TARGETS INITIALIZE_FROM_VARIABLE NIBBLE_TARGETS
  BRIEF_DOCS "SIMD targets to compile, e.g. HWY_AVX2|HWY_AVX3_DL; the same in all of a program")
