# SPDX-License-Identifier: Apache-2.0
#
# nibble/nibble.hpp must not include any of the standard library's heavy headers. As declarations
# (NIBBLE_SPLIT) it is no more text than twice <vector> and <string>, and programs that include what
# they use compile with it: the examples.

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

function(text_of variable source)
  run_for_output(text ${cxx} -std=c++20 -E -P -DNIBBLE_SPLIT ${options} ${source})
  string(LENGTH "${text}" n)
  set(${variable} ${n} PARENT_SCOPE)
endfunction()
file(WRITE ${work_dir}/standard.cpp "#include <string>\n#include <vector>\n")
text_of(standard standard.cpp)
text_of(declarations nibble.cpp)
math(EXPR budget "2 * ${standard}")
message("declarations: ${declarations} bytes, <string> and <vector>: ${standard}")
if(declarations GREATER budget)
  message(FATAL_ERROR "the declarations are more than twice <string> and <vector>")
endif()

file(GLOB examples ${source_dir}/examples/*.cpp)
list(LENGTH examples n)
if(n LESS 3)
  message(FATAL_ERROR "only ${n} examples")
endif()
set(cli11)
if(cli11_dir)
  set(cli11 -isystem ${cli11_dir})
endif()
foreach(example IN LISTS examples)
  file(READ ${example} text)
  if(text MATCHES "#include \"(common|apart)\\.hpp\"" AND NOT cli11_dir)
    message("left out, it needs CLI11: ${example}")
    continue()
  endif()
  run(${cxx} -std=c++20 -fsyntax-only -DNIBBLE_SPLIT -DNIBBLE_EXAMPLES_DIR="" ${options}
      ${cli11} ${example})
endforeach()
