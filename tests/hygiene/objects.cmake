# SPDX-License-Identifier: Apache-2.0
#
# What a file puts into its object. If it includes and uses nibble, as `object` does: nothing that runs
# before main(), and no name of nibble outside the inline namespace of its version. If it only includes
# nibble: no code of nibble at all.

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

if(NOT nm OR NOT objdump)
  skip("there is no nm or objdump here")
endif()
file(WRITE ${work_dir}/elf.cpp "#include <unistd.h>\nint main() {\n#ifndef __ELF__\n#error\n#endif\n}\n")
execute_process(COMMAND ${cxx} -c ${work_dir}/elf.cpp -o ${work_dir}/elf.o
                RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
if(NOT result EQUAL 0)
  skip("objects are not ELF here")
endif()

# Sets the variable to whether an object has code that runs before main().
function(has_initializers variable object)
  run_for_output(sections ${objdump} -h ${object})
  run_for_output(symbols ${nm} ${object})
  if(sections MATCHES "\\.(init_array|ctors|preinit_array)" OR symbols MATCHES "_GLOBAL__(sub_)?I_")
    set(${variable} TRUE PARENT_SCOPE)
  else()
    set(${variable} FALSE PARENT_SCOPE)
  endif()
endfunction()

# The check can fail: this object has an initializer.
file(WRITE ${work_dir}/initializer.cpp "int f();\nint x = f();\n")
run(${cxx} -O0 -c initializer.cpp -o initializer.o)
has_initializers(seen initializer.o)
if(NOT seen)
  message(FATAL_ERROR "a static initializer was not seen")
endif()

has_initializers(seen ${object})
if(seen)
  message(FATAL_ERROR "nibble runs code before main()")
endif()

# Mangled names have 6nibble, then the length and the name of the next namespace. (detail_... is for
# what files compiled with different -m flags share.)
run_for_output(symbols ${nm} ${object})
string(REGEX MATCHALL "[^ \n]*6nibble[^ \n]*" names "${symbols}")
list(LENGTH names n)
if(n LESS 100)
  message(FATAL_ERROR "only ${n} names of nibble")
endif()
string(REGEX REPLACE "^([0-9]+)\\.([0-9]+)\\..*" "v\\1_\\2" namespace "${version}")
list(FILTER names EXCLUDE REGEX "6nibble[0-9]+(detail_)?${namespace}")
if(names)
  message(FATAL_ERROR "names outside ${namespace}: ${names}")
endif()

# At -O2: without optimization, unused constants stay in the object.
file(WRITE ${work_dir}/only_included.cpp "#include \"nibble/nibble.hpp\"\n")
run(${cxx} -std=c++20 -O2 ${options} -c only_included.cpp -o only_included.o)
run_for_output(symbols ${nm} only_included.o)
if(symbols MATCHES "6nibble")
  message(FATAL_ERROR "a file that only includes nibble has code of it:\n${symbols}")
endif()
message("no initializers; ${n} names, all in ${namespace}; none where nibble is only included")
