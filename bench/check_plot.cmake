# SPDX-License-Identifier: Apache-2.0
#
# cmake -DFOLDER=for files -P check_plot.cmake: draws a made-up run of bench_kernels and checks the
# picture: what it says about the machine, no text on another or on a point, a mark for each bar that
# is longer than the axis. And what plot says about wrong arguments.
include(${CMAKE_CURRENT_LIST_DIR}/check.cmake)

find_program(shell sh)
find_program(awk awk)
find_program(gnuplot gnuplot)
if(NOT shell OR NOT awk)
  message("no sh or awk: the plot is not tested")
  return()
endif()
set(plot ${shell} ${CMAKE_CURRENT_LIST_DIR}/plot)

# fails(exit_code regex arguments...): plot must end so.
function(fails code regex)
  execute_process(COMMAND ${plot} ${ARGN} OUTPUT_VARIABLE out ERROR_VARIABLE err RESULT_VARIABLE result)
  if(NOT result EQUAL code OR NOT err MATCHES "${regex}")
    message(FATAL_ERROR "plot ${ARGN}: exit code ${result}, not ${code}, or no '${regex}':\n${err}")
  endif()
endfunction()

# A run, in the form of Google Benchmark: one key per line. `extra`: lines of its context.
function(write_run file extra)
  set(text "{\n  \"context\": {\n    \"date\": \"2026-11-26T21:04:33+00:00\",\n${extra}")
  foreach(isa AVX3_DL AVX2 SSE2)
    foreach(limit read_l1=270 read_l2=150 read_l3=70 read_dram=42 f32=268 bf16=530 int8=1060)
      string(REGEX MATCH "(.*)=(.*)" limit "${limit}")
      string(APPEND text "    \"limit/${isa}/t1/${CMAKE_MATCH_1}\": \"${CMAKE_MATCH_2}\",\n")
    endforeach()
  endforeach()
  string(APPEND text "    \"last\": \"\"\n  },\n  \"benchmarks\": [\n")
  set(n 0)
  foreach(case matmul/q4_0/m1_n4096_k4096/cold/0.23/1 matmul/q8_0/m1_n4096_k4096/cold/0.43/1
               matmul/bf16/m1_n4096_k4096/cold/0.8/1 matmul/f32/m1_n4096_k4096/cold/1.6/1
               matmul/q4_0/m8_n4096_k4096/cold/0.03/1 matmul/q8_0/m8_n4096_k4096/cold/0.06/1
               matmul/q4_0/m3_n4096_k4096/cold/0.08/2 matmul/q8_0/m4_n4096_k4096/cold/0.13/2
               matmul/q4_0/m512_n4096_k4096/warm/0.0012/1 matmul/q8_0/m512_n4096_k4096/warm/0.0013/1
               matmul/f32/m512_n4096_k4096/warm/0.004/1 attention_decode/f16/m1/warm/0.5/1
               attention_decode/int8/m1/warm/0.27/1 attention_prefill/f16/m512/warm/0.002/1
               rms_norm/f32/m512_k4096/warm/1.6/1 layer_norm/f32/m512_k4096/warm/1.61/1
               rms_norm_quantize/f32/m512_k4096/warm/1.55/1 silu/f32/m512_k4096/warm/0.41/1
               gelu_erf/f32/m512_k4096/warm/0.4/1 tanh/f32/m512_k4096/warm/0.39/1
               softmax/f32/m512_k4096/warm/0.42/1)
    string(REGEX MATCH "(.*)/([^/]*)/([^/]*)$" case "${case}")
    set(row ${CMAKE_MATCH_1})
    set(bytes_per_op ${CMAKE_MATCH_2})  # of the rate
    set(list ${CMAKE_MATCH_3})
    foreach(isa AVX3_DL AVX2 SSE2 oneDNN)
      math(EXPR n "${n} + 1")
      math(EXPR percent "45 + (37 * ${n}) % 60")
      if(row MATCHES "silu" AND NOT isa STREQUAL "SSE2")
        set(percent 134)
      endif()
      # GB/s, GOP/s, the fraction of the limit: of bandwidth or of arithmetic.
      execute_process(COMMAND ${awk} "BEGIN {
          fraction = ${percent} / 100; gop = fraction * 42 / ${bytes_per_op}
          if (gop > 1000) gop = fraction * 700
          print gop * ${bytes_per_op} \";\" gop \";\" fraction
        }" OUTPUT_VARIABLE rates OUTPUT_STRIP_TRAILING_WHITESPACE)
      list(GET rates 0 gb)
      list(GET rates 1 gop)
      list(GET rates 2 fraction)
      string(APPEND text "    {\n      \"run_name\": \"${row}/${isa}/t1\",\n"
        "      \"run_type\": \"aggregate\",\n      \"aggregate_name\": \"median\",\n"
        "      \"GB_per_s\": ${gb},\n      \"GOP_per_s\": ${gop},\n"
        "      \"fraction\": ${fraction},\n      \"list\": ${list}.0\n    },\n")
    endforeach()
  endforeach()
  file(WRITE ${file} "${text}    {\n    }\n  ]\n}\n")
endfunction()

set(run ${FOLDER}/run.json)
write_run(${run} "    \"cpu\": \"A Processor 9000\",\n    \"mhz_per_cpu\": 3800,\n    \"clock\": \"cpu\",\n")
fails(2 "usage: plot" ${run})
fails(2 "usage: plot" ${run} a.svg 1 2)
fails(2 "must be .svg or .png" ${run} picture.pdf)
fails(2 "THREADS must be a number" ${run} a.svg one)
fails(1 "missing.json: cannot be read" ${FOLDER}/missing.json a.svg)
if(NOT gnuplot)
  fails(1 "gnuplot is missing" ${run} ${FOLDER}/run.svg)
  message("no gnuplot: its pictures are not tested")
  return()
endif()
fails(1 "run.json: no rows with 7 thread" ${run} ${FOLDER}/run.svg 7)
file(WRITE ${FOLDER}/empty.json "{}\n")
fails(1 "empty.json: no rows" ${FOLDER}/empty.json ${FOLDER}/run.svg)

run(out ${plot} ${run} ${FOLDER}/run.svg)
file(READ ${FOLDER}/run.svg svg)
foreach(text "A Processor 9000, 3.80 GHz" "2026-11-26" "1 thread, CPU time" "Roofline of AVX3_DL"
             "DRAM read 42 GB/s" "att. prefill f16" "q8_0 m512<" "oneDNN")
  expect("${svg}" "${text}" "the picture")
endforeach()
run(out ${awk} -f ${CMAKE_CURRENT_LIST_DIR}/check_labels.awk ${FOLDER}/run.svg)
# Three bars of one case are longer than the axis.
expect("${svg}" ">134, 134, 134 %<" "the values of the bars that are cut")
foreach(name q4_0 q8_0 bf16 f32 int8 f16 matmul)  # once in the legend
  string(REGEX MATCHALL ">${name}<" names "${svg}")
  list(LENGTH names n)
  if(NOT n EQUAL 1)
    message(FATAL_ERROR "${n} times ${name} in the legend")
  endif()
endforeach()

# A run that does not say where it was measured.
write_run(${run} "")
run(out ${plot} ${run} ${FOLDER}/run.svg)
file(READ ${FOLDER}/run.svg svg)
expect("${svg}" "unknown processor" "the picture")
