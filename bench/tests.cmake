# SPDX-License-Identifier: Apache-2.0
#
# Runs the benchmarks as a user would, as briefly as possible, and checks exit codes and the files
# that they write.

set(run_test ${PROJECT_SOURCE_DIR}/examples/run_test.cmake)

# nibble_bench_usage_test(name program ERR regex ARGS arguments...): tests an invalid command line.
function(nibble_bench_usage_test test program)
  cmake_parse_arguments(arg "" "ERR" "ARGS" ${ARGN})
  add_test(NAME ${program}_${test}
    COMMAND ${CMAKE_COMMAND} -DEXIT=2 -DERR=^${program}:\ [^\n]*${arg_ERR}[^\n]*\n$
      -DINPUT=${CMAKE_CURRENT_BINARY_DIR}/${program}_${test}.txt
      -P ${run_test} -- $<TARGET_FILE:${program}> ${arg_ARGS})
endfunction()

foreach(program bench_kernels bench_model bench_train)
  nibble_bench_usage_test(unknown_option ${program} ERR nonsense ARGS --nonsense)
  nibble_bench_usage_test(no_threads ${program} ERR threads ARGS --threads 0)
  nibble_bench_usage_test(file_type ${program} ERR json ARGS --out run.txt)
endforeach()
nibble_bench_usage_test(no_target bench_sparse ERR SSE99 ARGS --isa SSE99)
nibble_bench_usage_test(row_length bench_sparse ERR 32 ARGS -k 33)
add_test(NAME bench_sparse_brief COMMAND bench_sparse -n 48 -k 64 -m 9 --zeros 0,50 --passes 1)
nibble_bench_usage_test(no_runs bench_masks ERR --runs ARGS model.gguf --runs 0)
add_test(NAME bench_masks_brief
  COMMAND bench_masks ${PROJECT_SOURCE_DIR}/examples/models/home-commands-f16.gguf)
set_tests_properties(bench_masks_brief PROPERTIES PASS_REGULAR_EXPRESSION "33 schemas, [0-9]+ masks: mean [0-9.]+,")
set_tests_properties(bench_sparse_brief PROPERTIES PASS_REGULAR_EXPRESSION "q4_0_bitmask  break-even: ")
nibble_bench_usage_test(no_target bench_kernels ERR SSE99 ARGS --isa SSE99)
nibble_bench_usage_test(no_target bench_model ERR SSE99 ARGS --shape smollm2-135m --isa SSE99)
nibble_bench_usage_test(no_kernel bench_kernels ERR softmax ARGS --kernel sortmax)
nibble_bench_usage_test(no_format bench_kernels ERR q4_0 ARGS --format q9_9)
nibble_bench_usage_test(no_format bench_model ERR --format\ 'q9_9' ARGS --shape smollm2-135m --format q9_9)
nibble_bench_usage_test(no_time bench_kernels ERR --min-time:\ nan ARGS --min-time nan)
nibble_bench_usage_test(no_row bench_kernels ERR format ARGS --kernel rope --format q4_0)
nibble_bench_usage_test(no_model bench_model ERR --shape ARGS -p 1)
nibble_bench_usage_test(no_shape bench_model ERR gpt-5 ARGS --shape gpt-5)
nibble_bench_usage_test(bad_shape bench_model ERR even
  ARGS --shape dim=65,layers=1,heads=2,ffn=64)
nibble_bench_usage_test(no_shape bench_train ERR gpt-5[^\n]*gpt2 ARGS --shape gpt-5)
nibble_bench_usage_test(no_target bench_train ERR SSE99 ARGS --isa SSE99)
nibble_bench_usage_test(no_moments bench_train ERR moments ARGS --moments 4bit)
nibble_bench_usage_test(no_position bench_train ERR 1024 ARGS --shape gpt2 --length 1025)

# A file of results that cannot be written is found out before the measurements.
foreach(program bench_kernels bench_model bench_train)
  set(shape)
  if(program STREQUAL "bench_model")
    set(shape --shape smollm2-135m)
  endif()
  add_test(NAME ${program}_no_folder
    COMMAND ${CMAKE_COMMAND} -DEXIT=1 -DOUT=^$ -DERR=^${program}:\ [^\n]*cannot\ create[^\n]*\n$
      -DINPUT=${CMAKE_CURRENT_BINARY_DIR}/${program}_no_folder.txt
      -P ${run_test} -- $<TARGET_FILE:${program}> ${shape} --out no/such/folder/run.json)
endforeach()

# The sizes of data are bounded by the memory that there is.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  add_test(NAME bench_kernels_little_memory COMMAND sh -c
    "ulimit -v 800000; exec $<TARGET_FILE:bench_kernels> --kernel matmul --format q8_0 --quick \
--threads 1 --min-time 0.0001 --repetitions 1")
  add_test(NAME bench_model_little_memory COMMAND sh -c
    "ulimit -v 600000; exec $<TARGET_FILE:bench_model> --shape tinyllama-1.1b --threads 1")
  set_tests_properties(bench_model_little_memory PROPERTIES
    PASS_REGULAR_EXPRESSION "MiB of RAM are available")
  add_test(NAME bench_train_little_memory COMMAND sh -c
    "ulimit -v 3000000; exec $<TARGET_FILE:bench_train> --shape gpt2 --sequences 400 --threads 1")
  set_tests_properties(bench_train_little_memory PROPERTIES
    PASS_REGULAR_EXPRESSION "MiB of RAM are available")
  add_test(NAME bench_train_little_space COMMAND sh -c
    "ulimit -v 1500000; exec $<TARGET_FILE:bench_train> --shape gpt2 --threads 1")
  set_tests_properties(bench_train_little_space PROPERTIES
    PASS_REGULAR_EXPRESSION "cannot allocate")
endif()

foreach(program bench_kernels bench_model bench_train)
  add_test(NAME ${program}_files
    COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:${program}>
      -DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/${program}_files
      -P ${CMAKE_CURRENT_SOURCE_DIR}/check_${program}.cmake)
endforeach()
add_test(NAME bench_plot COMMAND ${CMAKE_COMMAND}
  -DFOLDER=${CMAKE_CURRENT_BINARY_DIR}/bench_plot -P ${CMAKE_CURRENT_SOURCE_DIR}/check_plot.cmake)

# bench/compare: a run is as fast as itself, and a run of twice the time is slower.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  set(header "kernel,format,shape,data,isa,threads,seconds,GB_per_s,GOP_per_s,limit,fraction")
  set(row "matmul,q4_0,m1_n4096_k4096,cold,AVX2,1")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/compare_old.csv "${header}\n${row},0.001,9,18,dram read,0.9\n")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/compare_new.csv "${header}\n${row},0.002,5,9,dram read,0.45\n")
  function(bench_compare_test name exit_code new out)
    add_test(NAME bench_compare_${name} COMMAND
      ${CMAKE_COMMAND} -DEXIT=${exit_code} -DOUT=${out} -DINPUT=bench_compare_${name}.in
      -P ${PROJECT_SOURCE_DIR}/examples/run_test.cmake --
      ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/compare compare_old.csv ${new}
      WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  endfunction()
  bench_compare_test(same 0 compare_old.csv
    "1 rows, median 1[.]000, from 1[.]000 to 1[.]000. 0 slower by more than 5 %")
  bench_compare_test(slower 1 compare_new.csv
    "1 rows, median 0[.]500, from 0[.]500 to 0[.]500. 1 slower by more than 5 %")
  # bench/torch_train: what is found out before torch is needed.
  foreach(option --threads=0 --kinds=fast --rounds=0)
    string(REGEX MATCH "[a-z]+" name ${option})
    add_test(NAME bench_torch_train_${name} COMMAND
      ${CMAKE_COMMAND} -DEXIT=2 -DERR=--${name}[^\n]*\n$ -DINPUT=bench_torch_train_${name}.in
      -P ${run_test} --
      ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/torch_train BENCH_TRAIN ${option}
      WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  endforeach()
endif()
