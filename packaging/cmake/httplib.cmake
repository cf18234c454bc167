# SPDX-License-Identifier: Apache-2.0
#
# cpp-httplib, for the example serve: makes the target nibble::httplib, or says why not; the example
# is then left out. Included by headers.cmake.
#
# As it comes from its authors it is one header, and TLS is there if OpenSSL is. Debian's package has
# declarations in the header and the rest in a library that was compiled with OpenSSL, zlib and
# Brotli; what of them is in the types of the header must then be there, too: OpenSSL's headers.

set(nibble_is_optional TRUE)
set(nibble_is_missing FALSE)
set(nibble_httplib_dir ${NIBBLE_HEADERS_DIR}/lib/${CMAKE_LIBRARY_ARCHITECTURE})

# From a package as nibble_headers_from_package, unless something was missing before.
function(nibble_httplib_files package paths)
  if(NOT nibble_is_missing)
    nibble_headers_from_package(${nibble_own_suite} "${package}" "${paths}")
  endif()
  set(nibble_is_missing ${nibble_is_missing} PARENT_SCOPE)
endfunction()

find_path(NIBBLE_HTTPLIB_INCLUDE_DIR httplib.h HINTS ${NIBBLE_HEADERS_DIR}/include)
if(NOT NIBBLE_HTTPLIB_INCLUDE_DIR AND NIBBLE_GET_HEADERS)
  find_program(NIBBLE_APT_GET apt-get)
  if(NIBBLE_APT_GET)
    nibble_httplib_files(libcpp-httplib-dev "include/httplib.h;lib/*/libcpp-httplib.so")
    nibble_httplib_files("libcpp-httplib-dev->libcpp-httplib[0-9][a-z0-9.]*"
                         "lib/*/libcpp-httplib.so.*")
    nibble_httplib_files("libcpp-httplib0.11->libbrotli[0-9][a-z0-9.]*" "lib/*/libbrotli*.so.*")
    find_path(NIBBLE_HTTPLIB_INCLUDE_DIR httplib.h HINTS ${NIBBLE_HEADERS_DIR}/include)
  endif()
endif()
set(nibble_httplib_version 0)
if(NIBBLE_HTTPLIB_INCLUDE_DIR)
  file(STRINGS ${NIBBLE_HTTPLIB_INCLUDE_DIR}/httplib.h nibble_httplib_version
       REGEX "^#define CPPHTTPLIB_VERSION \"")
  string(REGEX REPLACE "[^0-9.]" "" nibble_httplib_version "${nibble_httplib_version}")
  file(STRINGS ${NIBBLE_HTTPLIB_INCLUDE_DIR}/httplib.h nibble_httplib_code
       REGEX "Server::stop\\(\\) *(const)? *(noexcept)? *{")
  if(NOT nibble_httplib_code)
    find_library(NIBBLE_HTTPLIB_LIBRARY cpp-httplib HINTS ${nibble_httplib_dir})
  endif()
endif()

find_package(OpenSSL 1.1.1 QUIET)
if(NIBBLE_HTTPLIB_LIBRARY AND NOT OPENSSL_FOUND AND NIBBLE_GET_HEADERS)
  find_program(NIBBLE_APT_GET apt-get)
  if(NIBBLE_APT_GET)
    nibble_httplib_files(libssl-dev "include/openssl;include/*/openssl;lib/*/libssl.so;lib/*/libcrypto.so")
    nibble_httplib_files("libssl-dev->libssl[0-9][a-z0-9.]*" "lib/*/libssl.so.*;lib/*/libcrypto.so.*")
    if(NOT nibble_is_missing)  # CMake's search does not look into folders of an architecture below it
      set(OPENSSL_INCLUDE_DIR ${NIBBLE_HEADERS_DIR}/include CACHE PATH "" FORCE)
      set(OPENSSL_SSL_LIBRARY ${nibble_httplib_dir}/libssl.so CACHE FILEPATH "" FORCE)
      set(OPENSSL_CRYPTO_LIBRARY ${nibble_httplib_dir}/libcrypto.so CACHE FILEPATH "" FORCE)
      find_package(OpenSSL 1.1.1 QUIET)
    endif()
  endif()
endif()

if(OPENSSL_FOUND AND OPENSSL_INCLUDE_DIR STREQUAL "${NIBBLE_HEADERS_DIR}/include")
  set_property(TARGET OpenSSL::Crypto APPEND PROPERTY INTERFACE_INCLUDE_DIRECTORIES
               ${NIBBLE_HEADERS_DIR}/include/${CMAKE_LIBRARY_ARCHITECTURE})
  set_property(TARGET OpenSSL::Crypto APPEND PROPERTY INTERFACE_LINK_OPTIONS
               -Wl,-rpath-link,${nibble_httplib_dir} -Wl,-rpath,${nibble_httplib_dir})
endif()

# The example has a connection of its own, which is written for the interface of these.
if(nibble_httplib_version VERSION_LESS 0.11 OR nibble_httplib_version VERSION_GREATER_EQUAL 0.19)
  message(STATUS "nibble: no cpp-httplib of 0.11 to 0.18: the example serve is left out")
elseif(NIBBLE_HTTPLIB_LIBRARY AND NOT OPENSSL_FOUND)
  message(STATUS "nibble: no OpenSSL, which this cpp-httplib needs: the example serve is left out")
elseif(NOT nibble_httplib_code AND NOT NIBBLE_HTTPLIB_LIBRARY)
  message(STATUS "nibble: the library of cpp-httplib is missing: the example serve is left out")
else()
  add_library(nibble_httplib INTERFACE)
  add_library(nibble::httplib ALIAS nibble_httplib)
  target_include_directories(nibble_httplib SYSTEM INTERFACE ${NIBBLE_HTTPLIB_INCLUDE_DIR})
  target_link_libraries(nibble_httplib INTERFACE Threads::Threads ${NIBBLE_HTTPLIB_LIBRARY})
  if(OPENSSL_FOUND)
    target_compile_definitions(nibble_httplib INTERFACE CPPHTTPLIB_OPENSSL_SUPPORT)
    target_link_libraries(nibble_httplib INTERFACE OpenSSL::SSL OpenSSL::Crypto)
  else()
    message(STATUS "nibble: no OpenSSL: the example serve is built without TLS")
  endif()
  if(EXISTS ${nibble_httplib_dir})  # libraries that the library needs
    target_link_options(nibble_httplib INTERFACE -Wl,-rpath-link,${nibble_httplib_dir}
                        -Wl,-rpath,${nibble_httplib_dir})
  endif()
endif()
set(nibble_is_optional FALSE)
