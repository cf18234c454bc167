# SPDX-License-Identifier: Apache-2.0
file(COPY "$ENV{NIBBLE_HWY_DIR}/hwy" DESTINATION "${CURRENT_PACKAGES_DIR}/include")
file(WRITE "${CURRENT_PACKAGES_DIR}/share/hwy/hwyConfig.cmake" [[
add_library(hwy::hwy INTERFACE IMPORTED)
target_include_directories(hwy::hwy INTERFACE ${CMAKE_CURRENT_LIST_DIR}/../../include)
target_link_libraries(hwy::hwy INTERFACE must_not_be_linked)
]])
file(WRITE "${CURRENT_PACKAGES_DIR}/share/hwy/hwyConfigVersion.cmake" [[
set(PACKAGE_VERSION 1.3.0)
set(PACKAGE_VERSION_COMPATIBLE TRUE)
]])
file(WRITE "${CURRENT_PACKAGES_DIR}/share/highway/copyright" "a stand-in")
