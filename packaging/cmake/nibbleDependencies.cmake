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

# Sets `out` to the version of the Highway in the first of the folders that has one, or to nothing.
function(nibble_highway_version out)
  set(${out} "" PARENT_SCOPE)
  foreach(dir ${ARGN})
    string(REGEX REPLACE "^\\$<BUILD_INTERFACE:(.*)>$" "\\1" dir "${dir}")
    if(EXISTS "${dir}/hwy/base.h")
      set(regex "^#define HWY_(MAJOR|MINOR|PATCH) ")
      file(STRINGS "${dir}/hwy/base.h" lines REGEX "${regex}")
      if(NOT lines)  # as in 1.0
        file(STRINGS "${dir}/hwy/highway.h" lines REGEX "${regex}")
      endif()
      string(REGEX REPLACE "[^0-9;]" "" version "${lines}")
      string(REPLACE ";" "." version "${version}")
      set(${out} "${version}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# A validator for find_path: rejects a Highway that is too old.
function(nibble_highway_validator result dir)
  nibble_highway_version(version "${dir}")
  if(version VERSION_LESS 1.3)
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

# A folder or target that the project names is not replaced by another one if it is too old.
function(nibble_check_highway source)
  get_target_property(dirs nibble::hwy_headers INTERFACE_INCLUDE_DIRECTORIES)
  nibble_highway_version(version ${dirs})
  if(version AND version VERSION_LESS 1.3)
    set(nibble_old_highway "Highway >= 1.3: ${source} is Highway ${version} (${dirs}). \
Update it, or set NIBBLE_HWY_INCLUDE_DIR to the folder of newer headers; nothing of them is linked" PARENT_SCOPE)
  endif()
endfunction()

set(nibble_old_highway)
nibble_headers_of_folder(hwy_headers NIBBLE_HWY_INCLUDE_DIR)
if(TARGET nibble::hwy_headers)
  nibble_check_highway("NIBBLE_HWY_INCLUDE_DIR")
else()
  nibble_headers_of_target(hwy_headers hwy::hwy hwy)
  if(TARGET nibble::hwy_headers)
    nibble_check_highway("the project's target hwy::hwy")
  endif()
endif()
if(NOT TARGET nibble::hwy_headers)
  find_package(hwy 1.3 CONFIG QUIET)
  nibble_headers_of_target(hwy_headers hwy::hwy)
endif()
if(NOT TARGET nibble::hwy_headers)
  find_path(NIBBLE_HWY_INCLUDE_DIR hwy/highway.h VALIDATOR nibble_highway_validator)
  mark_as_advanced(NIBBLE_HWY_INCLUDE_DIR)
  nibble_headers_of_folder(hwy_headers NIBBLE_HWY_INCLUDE_DIR)
endif()
if(nibble_old_highway)
  list(APPEND nibble_missing "${nibble_old_highway}")
elseif(NOT TARGET nibble::hwy_headers)
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
