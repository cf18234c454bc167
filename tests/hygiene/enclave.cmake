# SPDX-License-Identifier: Apache-2.0
#
# A model in memory answers without files, threads and clocks: a program that decrypts one and asks it
# is linked with no function of the system for them, as an enclave wants it. (The C++ library that it
# is linked with may use such functions for what this program does not do.)

include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

if(NOT nm)
  skip("there is no nm here")
endif()
file(WRITE ${work_dir}/model.S "
.section .rodata
.balign 64
.globl enclave_model, enclave_model_end
enclave_model: .incbin \"${source_dir}/examples/models/home-commands-f16.gguf\"
enclave_model_end:
.section .note.GNU-stack,\"\",%progbits
")
execute_process(COMMAND ${cxx} -c model.S -o model.o WORKING_DIRECTORY ${work_dir}
                RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
if(NOT result EQUAL 0)
  skip("the assembler here is another one")
endif()

# Functions for files, threads and clocks, of C and POSIX; and parts of names of the C++ library's.
set(functions open open64 openat fopen fopen64 fdopen read write pread pread64 pwrite pwrite64 fread fwrite
  stat fstat lstat opendir readdir rename unlink remove fsync mkdir mmap mmap64 munmap madvise
  pthread_create fork nanosleep usleep sleep syscall pthread_mutex_lock pthread_cond_wait sched_yield
  clock_gettime gettimeofday time clock)
set(parts basic_filebuf basic_fstream basic_ifstream basic_ofstream 10filesystem 6thread 6chrono)

# Sets the variable to the names that a program wants of others and that are forbidden.
function(forbidden variable program)
  run_for_output(symbols ${nm} -u ${program})
  string(REGEX MATCHALL "[^ \n]+" symbols "${symbols}")
  set(found)
  foreach(symbol IN LISTS symbols)
    string(REGEX REPLACE "@.*" "" symbol ${symbol})
    foreach(part IN LISTS parts)
      string(FIND ${symbol} ${part} at)
      if(NOT at EQUAL -1)
        list(APPEND found ${symbol})
      endif()
    endforeach()
    if(symbol IN_LIST functions)
      list(APPEND found ${symbol})
    endif()
  endforeach()
  set(${variable} "${found}" PARENT_SCOPE)
endfunction()

set(program ${cxx} -std=c++20 -O0 -ffunction-sections -fdata-sections ${options}
    -I${source_dir}/tests -DNIBBLE_KV_TYPES=0)

# The check can fail: a program with a file and a clock.
file(WRITE ${work_dir}/opens.cpp "#include <cstdio>\n#include <ctime>
int main() { return std::fopen(\"a\", \"r\") != nullptr && std::time(nullptr) != 0; }\n")
run(${cxx} opens.cpp -o opens)
forbidden(seen opens)
if(NOT seen MATCHES "fopen" OR NOT seen MATCHES "time")
  message(FATAL_ERROR "files and clocks were not seen: ${seen}")
endif()

run(${program} -DNIBBLE_ENCLAVE=1 -Wl,--gc-sections
    ${source_dir}/tests/hygiene/enclave.cpp model.o -o enclave)
forbidden(seen enclave)
if(seen)
  message(FATAL_ERROR "a model in memory wants of the system: ${seen}")
endif()
run(./enclave)
message("a model that was decrypted in memory answers without files, threads and clocks")
