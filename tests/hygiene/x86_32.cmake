# SPDX-License-Identifier: Apache-2.0
#
# 32-bit x86. Without SSE2 the error message says what to do.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

# Debian has <asm/...> for both architectures in the folder of the 64-bit one.
set(m32 ${cxx} -m32 -std=c++20 -idirafter /usr/include/${library_architecture})
try_run(works "#include <string>\nint main() { return std::string(99, 'a') == \"\"; }" ${m32})
if(NOT works)
  skip("the compiler has no 32-bit x86, or the machine does not run it")
endif()

file(WRITE ${work_dir}/no_simd.cpp "#include \"nibble/simd/targets.hpp\"\n")
execute_process(COMMAND ${m32} -march=i686 -fsyntax-only ${options} no_simd.cpp
  WORKING_DIRECTORY ${work_dir} ERROR_VARIABLE errors RESULT_VARIABLE result)
if(cxx_id STREQUAL "GNU" AND (result EQUAL 0 OR NOT errors MATCHES "compile with -msse2"))
  message(FATAL_ERROR "without SSE2: ${errors}")
endif()

build_and_run(${m32} -msse2 -mfpmath=sse)
