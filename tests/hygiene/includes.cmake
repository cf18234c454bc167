# SPDX-License-Identifier: Apache-2.0
#
# nibble/nibble.hpp must not include any of the standard library's heavy headers.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(WRITE ${work_dir}/nibble.cpp "#include \"nibble/nibble.hpp\"\n")
run_for_output(files ${cxx} -std=c++20 -M ${options} nibble.cpp)
string(REGEX MATCHALL "[^ \\\n]+" files "${files}")
list(LENGTH files n)
if(n LESS 100)
  message(FATAL_ERROR "only ${n} files: not what the compiler includes")
endif()
# Highway includes <ostream>, which has no static initializer.
foreach(header iostream fstream sstream iomanip locale regex filesystem random thread future)
  if(files MATCHES "/${header}(;|$)")
    message(FATAL_ERROR "nibble/nibble.hpp includes <${header}>")
  endif()
endforeach()
message("${n} files, no heavy ones")
