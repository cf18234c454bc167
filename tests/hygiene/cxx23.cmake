# SPDX-License-Identifier: Apache-2.0
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

try_run(works "#if __cplusplus <= 202002L\n#error\n#endif\nint main() {}" ${cxx} -std=c++2b)
if(NOT works)
  skip("the compiler does not know C++23")
endif()
run(${cxx} -std=c++2b -fsyntax-only -Wall -Wextra -fno-exceptions -fno-rtti ${options}
    ${source_dir}/tests/no_exceptions.cpp)
