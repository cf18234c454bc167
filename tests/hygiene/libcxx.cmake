# SPDX-License-Identifier: Apache-2.0
#
# LLVM's standard library, with the Clang that has it.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

file(GLOB clangs /usr/bin/clang++*)
set(clang)
foreach(candidate IN ITEMS ${cxx} ${clangs})
  try_run(works "#include <string>\nint main() { return std::string(99, 'a') == \"\"; }"
          ${candidate} -std=c++20 -stdlib=libc++)
  if(works)
    set(clang ${candidate})
    break()
  endif()
endforeach()
if(NOT clang)
  skip("there is no Clang with libc++ here")
endif()
build_and_run(${clang} -std=c++20 -stdlib=libc++)
