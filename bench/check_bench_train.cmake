# SPDX-License-Identifier: Apache-2.0
#
# cmake -DPROGRAM=bench_train -DFOLDER=for files -P check_bench_train.cmake: checks the rates and the
# memory of a tiny model in text, JSON and CSV.
include(${CMAKE_CURRENT_LIST_DIR}/check.cmake)

set(arguments --shape dim=64,layers=2,heads=4,kv_heads=2,ffn=128,vocab=256 --sequences 2 --length 8
  -r 1 --threads 1,2)

# check_state(file least most): bytes a parameter of weights, gradients and moments.
function(check_state file least most)
  file(READ ${file} json)
  string(JSON bytes GET "${json}" bytes_per_parameter)
  if(bytes LESS ${least} OR bytes GREATER ${most})
    message(FATAL_ERROR "${file}: ${bytes} bytes a parameter, not ${least} to ${most}")
  endif()
endfunction()

run(out ${PROGRAM} ${arguments} --out ${FOLDER}/run.json)
expect("${out}" "16 tokens in 2 sequences a step" "the text")
expect("${out}" "peak RAM [0-9.]+ MiB" "the text")
expect("${out}" "\n +1 [^\n]* %[^\n]*\n +2 [^\n]* %[^\n]*\n$" "the text")
check_state(${FOLDER}/run.json 16 16.5)
file(READ ${FOLDER}/run.json json)
# The matrices (q, o; k, v; gate, up and down; and the embeddings), and the norms of 64.
math(EXPR matrices "2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 256 * 64")
string(JSON parameters GET "${json}" parameters)
math(EXPR expected "${matrices} + 5 * 64")
if(NOT parameters EQUAL expected)
  message(FATAL_ERROR "${parameters} parameters, not ${expected}")
endif()
# Six operations for each value and token; 12 for each value of q and key that is seen: 36 of 8 rows.
math(EXPR operations "6 * ${matrices} * 16 + 12 * 64 * 2 * 2 * 36")
string(JSON flop GET "${json}" step_flop)
if(NOT flop EQUAL operations)
  message(FATAL_ERROR "a step of ${flop} operations, not ${operations}")
endif()
expect_results("${json}" 2 tokens_per_second steps_per_second GFLOP_per_s peak_GFLOP_per_s fraction
  working_bytes forward_seconds loss_seconds backward_seconds update_seconds)
string(JSON kept GET "${json}" results 0 working_bytes)

run(out ${PROGRAM} ${arguments} --moments 8bit --recompute --out ${FOLDER}/small.json)
check_state(${FOLDER}/small.json 10 10.5)
file(READ ${FOLDER}/small.json json)
string(JSON again GET "${json}" results 0 working_bytes)
if(NOT again LESS kept)
  message(FATAL_ERROR "layers computed again take ${again} bytes, kept ones ${kept}")
endif()

run(out ${PROGRAM} ${arguments} --out ${FOLDER}/run.csv)
expect_csv(${FOLDER}/run.csv 2)
