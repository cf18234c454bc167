# SPDX-License-Identifier: Apache-2.0
#
# cmake --install: headers, the CMake package and nibble.pc. None of it depends on the architecture,
# on the folder of installation or on the machine that made it.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(nibble_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/nibble)

target_include_directories(nibble INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
install(DIRECTORY include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(TARGETS nibble EXPORT nibbleTargets)
install(EXPORT nibbleTargets NAMESPACE nibble:: DESTINATION ${nibble_package_dir})
configure_package_config_file(packaging/cmake/nibbleConfig.cmake.in nibbleConfig.cmake
  INSTALL_DESTINATION ${nibble_package_dir})
write_basic_package_version_file(nibbleConfigVersion.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfigVersion.cmake
  packaging/cmake/nibbleDependencies.cmake
  DESTINATION ${nibble_package_dir})

# Highway may be a copy of its headers without a .pc file; then the user adds its include folder.
# Its library is never linked, hence "private".
find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(NIBBLE_LIBHWY QUIET "libhwy >= 1.3")
endif()
set(nibble_pc_requires)
if(NIBBLE_LIBHWY_FOUND)
  set(nibble_pc_requires "Requires.private: libhwy >= 1.3")
endif()
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
  BASE_DIRECTORY ${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig OUTPUT_VARIABLE nibble_pc_prefix)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR  # may be outside the prefix
  BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX} OUTPUT_VARIABLE nibble_pc_includedir)
configure_file(packaging/cmake/nibble.pc.in nibble.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/nibble.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
