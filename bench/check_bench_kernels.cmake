# SPDX-License-Identifier: Apache-2.0
#
# cmake -DPROGRAM=bench_kernels -DFOLDER=for files -P check_bench_kernels.cmake: checks the list of
# rows and a run of a few of them, as short as possible: its JSON, CSV and, with gnuplot, its
# pictures.
include(${CMAKE_CURRENT_LIST_DIR}/check.cmake)

run(out ${PROGRAM} --list)
expect("${out}" "matmul/q4_0/m1_n4096_k4096/cold/[A-Z0-9_]+/t1\n" "--list")
expect("${out}" "fork_join/none/[^\n]*/t[0-9]+\n$" "--list")
string(REGEX MATCHALL "rms_norm/f32/m1_k4096/warm/[A-Z0-9_]+/t1\n" rows "${out}")
list(GET rows -1 row)
string(REGEX REPLACE ".*/([A-Z0-9_]+)/t1\n" "\\1" isa "${row}")

set(arguments --kernel rms_norm,softmax --isa ${isa} --threads 1 --min-time 0.0001 --repetitions 3)
run(out ${PROGRAM} ${arguments} --out ${FOLDER}/run.json)
expect("${out}" "Limits of this machine" "the text")
expect("${out}" "rms_norm +f32 +m1_k4096 +warm +${isa} +1 [^\n]* %\n" "the text")
file(READ ${FOLDER}/run.json json)
string(JSON limit GET "${json}" context "limit/${isa}/t1/read_dram")
expect_positive(${limit} "the DRAM bandwidth")
foreach(key cpu clock date)  # where and when it was measured
  string(JSON value GET "${json}" context ${key})
  expect("${value}" "[a-zA-Z0-9]" "${key}")
endforeach()
string(JSON n LENGTH "${json}" benchmarks)
expect_positive(${n} "the number of rows")
math(EXPR last "${n} - 1")
set(n_medians 0)
foreach(i RANGE ${last})
  string(JSON aggregate GET "${json}" benchmarks ${i} aggregate_name)
  if(aggregate STREQUAL "median")
    math(EXPR n_medians "${n_medians} + 1")
    string(JSON name GET "${json}" benchmarks ${i} run_name)
    expect("${name}" "^(rms_norm|softmax)/f32/m[0-9]+_k4096/warm/${isa}/t1/" "a row's name")
    foreach(key GB_per_s GOP_per_s fraction)
      string(JSON value GET "${json}" benchmarks ${i} ${key})
      expect_positive(${value} "${name}: ${key}")
    endforeach()
  endif()
endforeach()
if(NOT n_medians EQUAL 6)
  message(FATAL_ERROR "${n_medians} rows, not 2 kernels of 3 sizes")
endif()

run(out ${PROGRAM} ${arguments} --out ${FOLDER}/run.csv)
file(STRINGS ${FOLDER}/run.csv lines)
list(POP_FRONT lines header)
expect("${header}" "^kernel,format,shape,data,isa,threads,seconds,GB_per_s,GOP_per_s,limit,fraction$"
  "the first line of CSV")
list(LENGTH lines n)
if(NOT n EQUAL 6)
  message(FATAL_ERROR "${n} rows of CSV, not 6")
endif()
foreach(line ${lines})
  expect("${line}"
    "^(rms_norm|softmax),f32,m[0-9]+_k4096,warm,${isa},1(,[0-9.e-]+)+,[a-z0-9 ]+,[0-9.]+$" "a row")
endforeach()

find_program(gnuplot gnuplot)
find_program(shell sh)
if(gnuplot AND shell)
  run(out ${shell} ${CMAKE_CURRENT_LIST_DIR}/plot ${FOLDER}/run.json ${FOLDER}/run.svg 1)
  file(READ ${FOLDER}/run.svg svg)
  expect("${svg}" "Roofline of ${isa}.*</svg>" "the picture")
  # Only the largest of the three sizes is in the short list: one name for its point, one for its
  # bar.
  string(REGEX MATCHALL "<text>rms norm<" names "${svg}")
  list(LENGTH names n)
  if(NOT n EQUAL 2)
    message(FATAL_ERROR "${n} times rms_norm in the picture, not 2")
  endif()
endif()
