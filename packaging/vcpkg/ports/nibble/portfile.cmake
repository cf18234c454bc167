# SPDX-License-Identifier: Apache-2.0
#
# vcpkg install nibble --overlay-ports=packaging/vcpkg/ports: packages the headers of the checkout
# that contains this port.
set(VCPKG_BUILD_TYPE release)  # header-only

get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../../.." ABSOLUTE)
vcpkg_cmake_configure(
    SOURCE_PATH "${SOURCE_PATH}"
    OPTIONS
        -DNIBBLE_BUILD_TESTS=OFF
        -DNIBBLE_BUILD_EXAMPLES=OFF
        -DNIBBLE_GET_HEADERS=OFF
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/nibble)
vcpkg_fixup_pkgconfig()
set(VCPKG_POLICY_SKIP_PKGCONFIG_CHECK enabled)  # share/ is right: nibble.pc names no library but -pthread

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/doc")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
