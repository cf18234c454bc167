# SPDX-License-Identifier: Apache-2.0
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

try_run(works "#if __cplusplus <= 202002L\n#error\n#endif\nint main() {}" ${cxx} -std=c++2b)
if(NOT works)
  skip("the compiler does not know C++23")
endif()
build_and_run(${cxx} -std=c++2b)
