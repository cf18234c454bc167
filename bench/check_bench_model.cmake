# SPDX-License-Identifier: Apache-2.0
#
# cmake -DPROGRAM=bench_model -DFOLDER=for files -P check_bench_model.cmake: checks the rates of a
# tiny model in text, JSON and CSV.
include(${CMAKE_CURRENT_LIST_DIR}/check.cmake)

set(arguments --shape dim=64,layers=2,heads=4,kv_heads=2,ffn=128,vocab=256 --format q4_0
  -p 8 -n 4 -r 1 --threads 1)
run(out ${PROGRAM} ${arguments} --out ${FOLDER}/run.json)
expect("${out}" "peak RAM [0-9.]+ MiB" "the text")
expect("${out}" "pp8 [^\n]* %\ntg4 [^\n]* %\n" "the text")
file(READ ${FOLDER}/run.json json)
foreach(key weight_bytes load_seconds peak_bytes)
  string(JSON value GET "${json}" ${key})
  expect_positive(${value} ${key})
endforeach()
expect_results("${json}" 2 tokens_per_second GB_per_s fraction)

run(out ${PROGRAM} ${arguments} --out ${FOLDER}/run.csv)
expect_csv(${FOLDER}/run.csv 2)

# Experts.
run(out ${PROGRAM} --shape dim=64,layers=2,heads=4,ffn=32,vocab=256,experts=8,used=2 --format q8_0
  -p 8 -n 4 -r 1 --threads 1)
expect("${out}" "pp8 [^\n]* %\ntg4 [^\n]* %\n" "the text")

# Requests served together.
run(out ${PROGRAM} ${arguments} --sequences 1,3 --out ${FOLDER}/served.json)
expect("${out}" "served [^\n]*\n1 [^\n]* 1.00x [^\n]*\n3 [^\n]*\n$" "the text")
file(READ ${FOLDER}/served.json json)
foreach(i 0 1)
  foreach(key tokens_per_second step_seconds first_token_seconds)
    string(JSON value GET "${json}" served ${i} ${key})
    expect_positive(${value} "served ${i}: ${key}")
  endforeach()
endforeach()

# Requests that begin with the same prompt.
run(out ${PROGRAM} ${arguments} --shared-prompt 100 --out ${FOLDER}/shared.json)
expect("${out}" "shared [^\n]*\n100 [^\n]*x [^\n]* %[^\n]*\n$" "the text")
file(READ ${FOLDER}/shared.json json)
foreach(key each_seconds cached_seconds compute_seconds restore_seconds file_bytes)
  string(JSON value GET "${json}" shared 0 ${key})
  expect_positive(${value} "shared: ${key}")
endforeach()
find_program(gnuplot gnuplot)
if(gnuplot)
  run(out ${PROGRAM} ${arguments} --sequences 1,2 --plot ${FOLDER}/served.svg)
  file(READ ${FOLDER}/served.svg picture)
  expect("${picture}" "</svg>" "the picture")
endif()
