# SPDX-License-Identifier: Apache-2.0
#
# Plug-ins that use nibble, each with a copy of its own: they can be unloaded, and each chooses its SIMD
# target, whatever others in the process were compiled for.
#
# GCC makes a "unique" symbol (STB_GNU_UNIQUE) of each variable in a header that it emits. The whole
# process then has one of them, and who has one is never unloaded. (Without optimization it emits every
# constant of a header, used or not; hence -O1.)

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

if(NOT nm)
  skip("there is no nm here")
endif()
set(plugin ${cxx} -std=c++20 -O1 -fPIC -shared -pthread ${includes})
file(WRITE ${work_dir}/try.cpp "
#include <dlfcn.h>
#ifndef __ELF__
#error
#endif
int main() { return dlopen(nullptr, RTLD_NOW | RTLD_NOLOAD) == nullptr; }
")
execute_process(COMMAND ${cxx} try.cpp -o try -ldl WORKING_DIRECTORY ${work_dir}
                OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  skip("plug-ins are not ELF files here, or dlopen() has no RTLD_NOLOAD")
endif()
run(${cxx} -std=c++20 ${source_dir}/tests/hygiene/plugin_host.cpp -o host -ldl)

function(unique_symbols variable library)
  run_for_output(symbols ${nm} ${library})
  string(REGEX MATCHALL "[^ \n]+ u [^\n]+" symbols "${symbols}")
  set(${variable} "${symbols}" PARENT_SCOPE)
endfunction()

# The checks can fail: this plug-in has a unique symbol, where compilers make any.
file(WRITE ${work_dir}/unique.cpp "
inline int shared = 1;
extern \"C\" int plugin_run(const char*) { return ++shared == 0; }
")
run(${plugin} unique.cpp -o unique.so)
unique_symbols(seen unique.so)
set(name ${work_dir}/unique.so)
execute_process(COMMAND ${work_dir}/host open ${name} run ${name} x close ${name}
                OUTPUT_QUIET RESULT_VARIABLE result)
if(seen AND result EQUAL 0)
  message(FATAL_ERROR "a plug-in that stays in memory was not seen")
elseif(NOT seen)
  message("this compiler makes no unique symbols")
endif()

# ---- All of the library, in the split form (the header form is in those of the targets) -----------
function(check_symbols plugin)
  unique_symbols(symbols ${plugin})
  if(symbols)
    message(FATAL_ERROR "unique symbols in ${plugin}: ${symbols}")
  endif()
endfunction()
if(implementation)  # the object of the test programs
  set(model ${source_dir}/examples/models/home-commands-f16.gguf)
  run(${plugin} -DNIBBLE_TARGETS=${test_targets} -DNIBBLE_DEBUG=1 -DNIBBLE_SPLIT
      ${source_dir}/tests/hygiene/plugin.cpp ${implementation} -o split_form.so)
  check_symbols(split_form.so)
  set(name ${work_dir}/split_form.so)
  run(./host open ${name} run ${name} ${model} close ${name})
else()
  message("left out, with sanitizers: a plug-in of all of the library")
endif()

# ---- The target of each --------------------------------------------------------------------------
file(WRITE ${work_dir}/avx2.cpp "int main() { return !__builtin_cpu_supports(\"avx2\"); }\n")
execute_process(COMMAND ${cxx} avx2.cpp -o avx2 WORKING_DIRECTORY ${work_dir} RESULT_VARIABLE result
                OUTPUT_QUIET ERROR_QUIET)
if(result EQUAL 0)
  execute_process(COMMAND ${work_dir}/avx2 RESULT_VARIABLE result)
endif()
if(NOT result EQUAL 0)
  message("the targets of plug-ins: left out, this machine has no AVX2")
  return()
endif()
set(flags -march=x86-64 ${source_dir}/tests/hygiene/plugin_target.cpp)
run(${plugin} -DNIBBLE_TARGETS=0 ${flags} -o base.so)
run(${plugin} -DNIBBLE_TARGETS=HWY_AVX2 ${flags} -o avx2.so)
foreach(name base avx2)
  check_symbols(${name}.so)
  set(${name} ${work_dir}/${name}.so)
endforeach()
run(./host open ${base} open ${avx2} run ${base} SSE2 run ${avx2} AVX2
    force ${avx2} SSE2 run ${avx2} SSE2 force ${avx2} AVX2 run ${base} SSE2 run ${avx2} AVX2
    close ${base} run ${avx2} AVX2 close ${avx2})
run(./host open ${avx2} run ${avx2} AVX2 open ${base} run ${base} SSE2 close ${avx2} close ${base})
