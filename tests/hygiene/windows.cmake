# SPDX-License-Identifier: Apache-2.0
#
# Compiles for Windows with a cross compiler. <windows.h> may be included before or after nibble.
# The program runs if Wine is installed.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

find_program(mingw NAMES x86_64-w64-mingw32-g++-posix x86_64-w64-mingw32-g++)
if(NOT mingw)
  skip("there is no MinGW-w64 compiler here")
endif()

link_headers(hwy ${hwy_dirs} boost ${boost_pp_dirs})
set(options -std=c++20 -Wall -Wextra -Wpedantic -Wundef -Werror -fno-exceptions -fno-rtti
  -DNIBBLE_TARGETS=0 -I${source_dir}/include -isystem ${work_dir}/include)

# No program gets the macros of <windows.h> unless it includes that header.
file(WRITE ${work_dir}/nibble.cpp "#include \"nibble/nibble.hpp\"\n")
run_for_output(files ${mingw} ${options} -M nibble.cpp)
if(files MATCHES "/(windows|windef|winbase)\\.h([ \n]|$)" OR NOT files MATCHES "/core/windows\\.hpp")
  message(FATAL_ERROR "nibble/nibble.hpp includes <windows.h>")
endif()

# All headers that declare or call system functions, and nibble.hpp, for all declared names.
file(WRITE ${work_dir}/before.cpp "#include <windows.h>\n")
foreach(header core/cpus core/native_thread io/mapped_file io/output_file nibble)
  file(APPEND ${work_dir}/before.cpp "#include \"nibble/${header}.hpp\"\n")
endforeach()
run(${mingw} ${options} -DNIBBLE_SPLIT -fsyntax-only before.cpp)
file(WRITE ${work_dir}/behind.cpp
  "#include \"${source_dir}/tests/no_exceptions.cpp\"\n#include <windows.h>\n")
run(${mingw} ${options} -O0 -static behind.cpp -o program.exe)

find_program(wine NAMES wine64 wine PATHS /usr/lib/wine)
if(NOT wine)
  skip("compiled and linked, but there is no Wine to run it")
endif()
set(ENV{WINEPREFIX} ${work_dir}/wine)
set(ENV{WINEDEBUG} -all)
run(${wine} program.exe ${source_dir}/examples/models/home-commands-f16.gguf)
