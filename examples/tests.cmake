# SPDX-License-Identifier: Apache-2.0
#
# Runs the examples as a user would and checks their output and exit codes.

set(home_model ${CMAKE_CURRENT_SOURCE_DIR}/models/home-commands-f16.gguf)
set(home_license ${PROJECT_SOURCE_DIR}/LICENSE)
set(utterance "could you please dim the office light to 10 percent")
set(call "light\\.set\\(room=office, level=10\\)")

# nibble_example_test(name program EXIT code [STDIN text] [OUT regex] [ERR regex] ARGS arguments...)
function(nibble_example_test test program)
  cmake_parse_arguments(arg "" "EXIT;STDIN;OUT;ERR" "ARGS" ${ARGN})
  add_test(NAME example_${test}
    COMMAND ${CMAKE_COMMAND} -DEXIT=${arg_EXIT} -DSTDIN=${arg_STDIN} -DOUT=${arg_OUT}
      -DERR=${arg_ERR} -DINPUT=${CMAKE_CURRENT_BINARY_DIR}/${test}.txt
      -P ${CMAKE_CURRENT_SOURCE_DIR}/run_test.cmake -- $<TARGET_FILE:nibble_${program}> ${arg_ARGS})
endfunction()

foreach(program batch chat compare compress convert federated finetune gate generate home_commands inspect intents perplexity pipeline quantize search train watch_log)
  nibble_example_test(${program}_help ${program} EXIT 0 OUT "Usage: ${program}" ARGS --help)
  nibble_example_test(${program}_usage ${program} EXIT 2 ERR "^${program}: [^\n]*--help.\n$"
    ARGS --nonsense)
endforeach()
nibble_example_test(generate_no_prompt generate EXIT 2 ERR "--prompt" ARGS ${home_model})
nibble_example_test(generate_no_target generate EXIT 2 ERR "SSE99"
  ARGS ${home_model} --prompt x --target SSE99)
nibble_example_test(generate_bad_top_p generate EXIT 2 ERR "top_p"
  ARGS ${home_model} --prompt x --top-p 0)
foreach(option typical xtc-threshold dry-base)
  string(REPLACE "-" "_" id ${option})
  nibble_example_test(generate_zero_${id} generate EXIT 2 ERR "${id}[_p]* must be "
    ARGS ${home_model} --prompt x --${option} 0)
endforeach()
nibble_example_test(generate_sampler_twice generate EXIT 2 ERR "top_k is there twice"
  ARGS ${home_model} --prompt x --samplers top_k,temperature,top_k)
foreach(option --seed=-1 --temperature=-1 --temperature=nan --top-p=nan --min-p=2 --stop=
    --typical=2 --xtc-probability=1.5 --xtc-threshold=nan --frequency-penalty=nan
    --presence-penalty=x --dry-multiplier=-1 --dry-base=nan --dry-allowed-length=0
    --dry-window=-1 --dry-breaker= --temperature-range=-1 --temperature-exponent=nan
    --mirostat-tau=-1 --mirostat-eta=2 --top-logprobs=-1 --samplers=top_k,top_q)
  string(REGEX REPLACE "(.*)=.*" "\\1" name ${option})
  string(MAKE_C_IDENTIFIER ${option} id)
  nibble_example_test(generate_bad${id} generate EXIT 2 ERR "^generate: ${name}: [^\n]*--help.\n$"
    ARGS ${home_model} --prompt x ${option})
endforeach()
nibble_example_test(generate_empty_prompt_file generate EXIT 2 ERR "^generate: --prompt-file: [^\n]*\n$"
  ARGS ${home_model} --prompt-file=)
nibble_example_test(home_commands_bad_count home_commands EXIT 2 ERR "^home_commands: --utterances: [^\n]*\n$"
  ARGS --utterances=-1)
nibble_example_test(home_commands_no_generated home_commands EXIT 2 ERR "^home_commands: --generated: [^\n]*\n$"
  ARGS --generated 0)
nibble_example_test(home_commands_seed_alone home_commands EXIT 2 ERR "--generated \\(see --help\\)\n$"
  ARGS --seed 3)
nibble_example_test(home_commands_both home_commands EXIT 2 ERR "excludes --generated"
  ARGS --generated 5 --utterances 5)
nibble_example_test(intents_bad_limit intents EXIT 2 ERR "^intents: --limit: [^\n]*\n$" ARGS --limit=-1)
nibble_example_test(intents_no_file intents EXIT 1 ERR "^intents: missing.gguf: [^\n]*\n$"
  ARGS --model missing.gguf)
nibble_example_test(watch_log_window_alone watch_log EXIT 2 ERR "--model" ARGS --window 3)
nibble_example_test(watch_log_no_window watch_log EXIT 2 ERR "^watch_log: --window: [^\n]*\n$"
  ARGS --model missing.gguf --window 0)
nibble_example_test(watch_log_no_model watch_log EXIT 1 ERR "^watch_log: missing.gguf: [^\n]*\n$"
  ARGS --model missing.gguf)
nibble_example_test(watch_log_no_log watch_log EXIT 1 ERR "^watch_log: missing.txt: [^\n]*\n$"
  ARGS missing.txt)
nibble_example_test(static_model_help static_model EXIT 0 OUT "^usage: static_model" ARGS --help)
nibble_example_test(static_model_usage static_model EXIT 2 ERR "^static_model: --nonsense is not known"
  ARGS --nonsense)
nibble_example_test(static_model_no_file static_model EXIT 1 ERR "^static_model: missing.gguf: [^\n]*\n$"
  ARGS missing.gguf)
nibble_example_test(quantize_no_format quantize EXIT 2 ERR "q9_9"
  ARGS ${home_model} out.gguf --format q9_9)
nibble_example_test(quantize_bad_rule quantize EXIT 2 ERR "regular expression"
  ARGS ${home_model} out.gguf --format q4_0 --tensor "(=f16")

set(build_folder ${CMAKE_CURRENT_BINARY_DIR})
nibble_example_test(convert_no_format convert EXIT 2 ERR "q9_9" ARGS ${home_model} out.gguf --format q9_9)
nibble_example_test(convert_no_folder convert EXIT 1 ERR "^convert: missing: [^\n]*\n$"
  ARGS missing out.gguf)
nibble_example_test(convert_no_config convert EXIT 1 ERR "is a folder, not a GGUF file; [^\n]*config.json"
  ARGS ${build_folder} out.gguf)
nibble_example_test(inspect_no_file inspect EXIT 1 ERR "^inspect: missing.gguf: [^\n]*\n$"
  ARGS missing.gguf)
nibble_example_test(perplexity_no_file perplexity EXIT 1 ERR "^perplexity: missing.txt: [^\n]*\n$"
  ARGS ${home_model} missing.txt)
nibble_example_test(perplexity_short perplexity EXIT 1 STDIN "light\n" ERR "less than a context of 64"
  ARGS ${home_model} - --ctx 64)
nibble_example_test(compare_no_file compare EXIT 1 ERR "^compare: missing.gguf: [^\n]*\n$"
  ARGS ${home_model} missing.gguf)

nibble_example_test(inspect inspect EXIT 0 ERR "^$"
  OUT "general.architecture +\"llama\".*F16 +22 .*session  0.4 MiB for 96 positions [^\n]* f16\n"
  ARGS ${home_model})
nibble_example_test(inspect_json inspect EXIT 0
  OUT "^{\"name\": .*\"type\": \"F16\", \"shape\": .256, 256., \"bytes\": 131072}.*\"loads\": true"
  ARGS ${home_model} --json)
nibble_example_test(perplexity perplexity EXIT 0 OUT "^perplexity [0-9.]+ .- [0-9.]+: 62 tokens scored in 2 chunks of 64\n$"
  ARGS ${home_model} ${CMAKE_CURRENT_SOURCE_DIR}/models/test_2000.tsv --ctx 64 --chunks 2)
nibble_example_test(convert convert EXIT 0 OUT "^29 tensors, [0-9 ]+ -> [0-9 ]+ bytes in q8_0 [^\n]*\n$"
  ARGS ${home_model} ${build_folder}/converted.gguf --format q8_0)
nibble_example_test(convert_kept convert EXIT 0
  OUT "^29 tensors, ([0-9 ]+) -> [0-9 ]+ bytes in the formats that they had [^\n]*\n$"
  ARGS ${home_model} ${build_folder}/kept.gguf)
nibble_example_test(compare compare EXIT 0 OUT "A +B\n.*KL.A .. B., nats: mean [0-9.e-]+.*29 tensors compared, 7 of them equal\n$"
  ARGS ${home_model} ${build_folder}/converted.gguf --text ${CMAKE_CURRENT_SOURCE_DIR}/models/test_2000.tsv
    --ctx 64 --chunks 2)
set_tests_properties(example_convert PROPERTIES FIXTURES_SETUP converted)
set_tests_properties(example_compare PROPERTIES FIXTURES_REQUIRED converted)
nibble_example_test(generate_no_file generate EXIT 1 ERR "^generate: missing.gguf: [^\n]*\n$"
  ARGS missing.gguf --prompt x)
nibble_example_test(generate_no_prompt_file generate EXIT 1 ERR "^generate: missing.txt: [^\n]*\n$"
  ARGS ${home_model} --prompt-file missing.txt)
nibble_example_test(generate_prompt_folder generate EXIT 1 ERR "^generate: [^\n]*: cannot read: [^\n]*\n$"
  ARGS ${home_model} --prompt-file ${CMAKE_CURRENT_BINARY_DIR})
nibble_example_test(generate_long_prompt generate EXIT 1 ERR "context of 10 \\(see --ctx"
  ARGS ${home_model} --prompt ${utterance} --ctx 10)
nibble_example_test(quantize_no_file quantize EXIT 1 ERR "^quantize: missing.gguf: [^\n]*\n$"
  ARGS missing.gguf out.gguf --format q4_0)
nibble_example_test(quantize_no_folder quantize EXIT 1 ERR "^quantize: [^\n]*missing/out.gguf"
  ARGS ${home_model} missing/out.gguf --format q4_0)
nibble_example_test(quantize_onto_folder quantize EXIT 1 ERR "^quantize: [^\n]*: cannot be written: it is a directory\n$"
  ARGS ${home_model} ${CMAKE_CURRENT_BINARY_DIR} --format q4_0)
nibble_example_test(quantize_unused_rule quantize EXIT 1 ERR "^quantize: --tensor embed=f16: no matrix [^\n]*\n$"
  ARGS ${home_model} out.gguf --format q4_0 --tensor "embed=f16" --tensor "^token=q8_0")
nibble_example_test(generate_no_layer generate EXIT 1 ERR "a depth of 99 layers of [0-9]*\n$"
  ARGS ${home_model} --prompt x --layers 99)
nibble_example_test(home_commands_no_file home_commands EXIT 1 ERR "missing.gguf"
  ARGS --model missing.gguf)

nibble_example_test(generate generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ERR "prefill  17 tokens.*decode   8 tokens.*finish: end of text.*peak RAM"
  ARGS ${home_model} --prompt-file -)
nibble_example_test(generate_memory generate EXIT 0 ERR "^$"
  OUT "^weights   3.[0-9] MiB of memory\nin place  0.0 MiB [^\n]*\nloading   [0-9.]+ MiB [^\n]*\n$"
  ARGS ${home_model} --memory)
nibble_example_test(generate_stop generate EXIT 0 STDIN "${utterance}\n"
  OUT "^light.set\\(room=\n$" ERR "^$" ARGS ${home_model} --prompt-file - --stop office --quiet)
nibble_example_test(generate_stop_token generate EXIT 0 STDIN "${utterance}\n"
  OUT "^light.set\\(room=\n$" ERR "finish: stop token"
  ARGS ${home_model} --prompt-file - --stop-token 390)
nibble_example_test(generate_shallow generate EXIT 0 STDIN "${utterance}\n"
  OUT "^light.set" ERR "depth    [1-3][.][0-9]* of [0-9]* layers for a generated token"
  ARGS ${home_model} --prompt-file - --exit-confidence 0.99 --exit-after 1,2)
nibble_example_test(generate_banned generate EXIT 0 STDIN "${utterance}\n"
  OUT "^light.set\\(room=[^o]" ARGS ${home_model} --prompt-file - --logit-bias 390=-inf)
nibble_example_test(generate_bad_bias generate EXIT 2 ERR "ID=NUMBER"
  ARGS ${home_model} --prompt x --logit-bias 390)
nibble_example_test(generate_one_begin generate EXIT 0 ERR "^1 482 [0-9 ]+\n"
  ARGS ${home_model} --prompt "<s>${utterance}" --parse-special --ids --max-tokens 1)
nibble_example_test(generate_no_begin generate EXIT 0 ERR "^482 [0-9 ]+\n"
  ARGS ${home_model} --prompt ${utterance} --bos false --ids --max-tokens 1)
nibble_example_test(generate_empty generate EXIT 1 ERR "the prompt is empty"
  ARGS ${home_model} --prompt-file - --bos false)
nibble_example_test(generate_tokens generate EXIT 0 STDIN "${utterance}\n"
  OUT "^ +[0-9]+ +-0\\.[0-9]+ \"light" ERR "^1 [0-9 ]+\n.*token limit"
  ARGS ${home_model} --prompt-file - --ids --logprobs --max-tokens 1)
nibble_example_test(generate_sampled generate EXIT 0 OUT "." ERR "decode   20 tokens.*token limit"
  ARGS ${home_model} --prompt light --max-tokens 20 --temperature 5 --top-k 0 --top-p 1 --min-p 0
    --seed 7 --kv bf16 --batch 1 --threads 2 --stop "<unk>")

nibble_example_test(generate_chain generate EXIT 0 OUT "." ERR "decode +[0-9]+ tokens"
  ARGS ${home_model} --prompt light --max-tokens 20 --temperature 2 --temperature-range 1
    --samplers dry,typical,xtc,temperature,penalties,mirostat --typical 0.9 --xtc-probability 0.5
    --frequency-penalty 0.1 --presence-penalty -0.1 --dry-multiplier 0.8 --dry-breaker light
    --mirostat-tau 3 --seed 7 --stop "<unk>")
nibble_example_test(generate_dry generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ARGS ${home_model} --prompt-file - --dry-multiplier 0.8)
nibble_example_test(generate_no_adapter generate EXIT 1 ERR "missing.gguf"
  ARGS ${home_model} --prompt x --adapter missing.gguf:0.5)
nibble_example_test(generate_top_logprobs generate EXIT 0 STDIN "${utterance}\n"
  OUT "^ +-0\\.[0-9]+ \"light[^\n]*\n +[0-9]+ +-0\\.[0-9]+\n +[0-9]+ +-[0-9.]+\n$"
  ARGS ${home_model} --prompt-file - --logprobs --top-logprobs 2 --max-tokens 1 --quiet)
nibble_example_test(generate_speculated generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ERR "guesses  [0-9]+, of which [0-9]+ right; [0-9]+ steps"
  ARGS ${home_model} --prompt-file - --speculate 4)
nibble_example_test(generate_drafted generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ERR "guesses  [0-9]+, of which [0-9]+ right; [0-9]+ steps"
  ARGS ${home_model} --prompt-file - --speculate 4 --draft ${home_model})
nibble_example_test(generate_draft_alone generate EXIT 2 ERR "--speculate"
  ARGS ${home_model} --prompt x --draft ${home_model})

# Intents and their slots; F1 and confidences on the first test sentences.
nibble_example_test(intents intents EXIT 0 ERR "^$"
  OUT "^light.set +[0-9.]+ %\n  room +office +[0-9.]+ %\n  level +10 +[0-9.]+ %\n$" ARGS ${utterance})
nibble_example_test(intents_measured intents EXIT 0
  OUT "^40 sentences, half of them hard; all is right in (3[0-9]|40)\n.*light.set .*mean of the F1s .*room .*intents as they are: 20, expected calibration error 0\\..*slots calibrated .slope [^\n]*error 0\\."
  ARGS --limit 20)

# Sensors: an alert where one leaves what is usual, again only after it was back.
nibble_example_test(watch_log watch_log EXIT 0 ERR "^$"
  STDIN "06:00 office temperature 21\n06:05 office temperature 31.5\n06:10 office temperature 32\n06:15 living_room humidity 25\n"
  OUT "^06:05 office temperature 31.5C, above 26C: climate.set\\(room=office, degrees=24\\) \\([0-9.]+ %\\)\n06:15 living room humidity 25%, below 30%: device.on\\(name=humidifier, room=living_room\\) [^\n]*\n$")
nibble_example_test(watch_log_bad_lines watch_log EXIT 1
  STDIN "nonsense\n06:05 office noise 3\n06:06 moon humidity 3\n06:07 office temperature 1e400\n06:10 office temperature 9\n"
  ERR "^watch_log: stdin: line 1: [^\n]*\n[^\n]*line 2: [^\n]*noise\n[^\n]*line 3: [^\n]*moon\n[^\n]*line 4: [^\n]*\n$"
  OUT "^06:10 office temperature 9C, below 16C: climate.set\\(room=office, degrees=20\\) [^\n]*\n$")
# (The model was never taught to chat: only that its words are bound is seen here.)
nibble_example_test(watch_log_chat watch_log EXIT 0 ERR "^$"
  STDIN "06:00 office temperature 31.5\n06:05 office humidity 50\n06:10 attic noise 3\n"
  OUT "^(06:05 (info|warning|critical): office (humidity|temperature): [^\n]*\n)?(06:10 (info|warning|critical): attic noise: [^\n]*\n)?$"
  ARGS --model ${home_model} --window 2 --ctx 2048)
nibble_example_test(watch_log_context watch_log EXIT 1 STDIN "06:00 office temperature 31.5\n"
  ERR "^watch_log: [^\n]*see --ctx" ARGS --model ${home_model} --ctx 16)

# A gate: a model passes its own baseline; a file of the same model that is worse does not, and the
# reports say why.
set(home_samples ${CMAKE_CURRENT_SOURCE_DIR}/models/hard_2000.tsv)
set(gate_baseline ${build_folder}/gate.json)
set(gate_options --samples ${home_samples} --n-samples 60 --text ${home_samples} --ctx 64 --chunks 2)
set(gate_metrics --only size,ram,quality,perplexity,kl)
nibble_example_test(gate_baseline gate EXIT 0 ERR "^$"
  OUT "^ +file_bytes +[0-9]+\n.* answer_ms_p95 +[0-9.]+\n.* exact_match +0\\.[0-9]+\n.* kl_mean +0\n"
  ARGS ${home_model} ${gate_options} --reference ${home_model} --write-baseline ${gate_baseline})
nibble_example_test(gate_same gate EXIT 0 ERR "^$"
  OUT "ok +exact_match +0\\.[0-9]+, must be at least 0\\.[0-9]+ .baseline.*passed: 9 metrics\n"
  ARGS ${home_model} ${gate_options} ${gate_metrics} --reference ${home_model}
    --baseline ${gate_baseline} --junit ${build_folder}/gate.xml --json ${build_folder}/gate_report.json)
nibble_example_test(gate_worse_model quantize EXIT 0 OUT "bytes of weights"
  ARGS ${home_model} ${build_folder}/gate_worse.gguf --format q2_h)
nibble_example_test(gate_worse gate EXIT 3 ERR "^$"
  OUT "ok +file_bytes .*FAILED exact_match .*FAILED bleu .*FAILED perplexity .*FAILED kl_mean .*failed: [5-7] of 8 metrics\n$"
  ARGS ${build_folder}/gate_worse.gguf ${gate_options} --only size,quality,perplexity,kl
    --reference ${home_model} --baseline ${gate_baseline} --junit ${build_folder}/gate_worse.xml)
nibble_example_test(gate_unmeasured gate EXIT 3 OUT "FAILED exact_match +not measured"
  ARGS ${home_model} --baseline ${gate_baseline} --only size,quality)
nibble_example_test(gate_no_limit gate EXIT 1 OUT "^$" ERR "^gate: [^\n]*gate_size.json: it limits none of the groups"
  ARGS ${home_model} --baseline ${build_folder}/gate_size.json --only ram)
nibble_example_test(gate_size gate EXIT 0 OUT "^ +file_bytes +[0-9]+\n +weight_bytes +[0-9]+\n$"
  ARGS ${home_model} --only size --write-baseline ${build_folder}/gate_size.json)
nibble_example_test(gate_bad_baseline gate EXIT 1 OUT "^$" ERR "^gate: [^\n]*LICENSE: [^\n]*JSON at byte"
  ARGS ${home_model} --baseline ${home_license})
nibble_example_test(gate_no_baseline gate EXIT 1 ERR "^gate: missing.json: [^\n]*\n$"
  ARGS ${home_model} --baseline missing.json)
nibble_example_test(gate_reference_alone gate EXIT 2 ERR "--reference requires --text"
  ARGS ${home_model} --reference ${home_model})
nibble_example_test(gate_bad_group gate EXIT 2 ERR "^gate: --only: [^\n]*--help.\n$"
  ARGS ${home_model} --only speed)
set_tests_properties(example_gate_baseline PROPERTIES FIXTURES_SETUP gate_baseline)
set_tests_properties(example_gate_worse_model PROPERTIES FIXTURES_SETUP gate_worse_model)
set_tests_properties(example_gate_size PROPERTIES FIXTURES_SETUP gate_size)
set_tests_properties(example_gate_no_limit PROPERTIES FIXTURES_REQUIRED gate_size)
set_tests_properties(example_gate_same example_gate_unmeasured PROPERTIES FIXTURES_REQUIRED gate_baseline)
set_tests_properties(example_gate_worse PROPERTIES FIXTURES_REQUIRED "gate_baseline;gate_worse_model")

# Many prompts. Answers come as they finish: the short one first.
nibble_example_test(batch batch EXIT 0
  STDIN "${utterance}\n\nswitch on the kitchen light\n"
  OUT "^2\tlight.on\\(room=kitchen\\)\n1\t${call}\n$"
  ERR "^answers  2 of 2, [0-9]+ steps.*prompts  28 tokens.*decode   14 tokens.*first    token.*peak RAM"
  ARGS ${home_model} - --newline)
# What prompts begin with is computed once, also by another run.
nibble_example_test(batch_prefixes batch EXIT 0 STDIN "${utterance}\n${utterance}\n"
  OUT "^[12]\t${call}\n[12]\t${call}\n$"
  ERR "prompts  18 tokens, [0-9.]+ tokens/s, 16 more for 1 prompts from the prefix cache\n"
  ARGS ${home_model} - --newline --prefix-cache 8
    --save-prefixes ${build_folder}/batch_prefixes.gguf)
nibble_example_test(batch_restored batch EXIT 0 STDIN "${utterance}\n" OUT "^1\t${call}\n$"
  ERR "prompts  1 tokens, [0-9.]+ tokens/s, 16 more for 1 prompts from the prefix cache\n"
  ARGS ${home_model} - --newline --prefix-cache 8
    --restore-prefixes ${build_folder}/batch_prefixes.gguf)
set_tests_properties(example_batch_prefixes PROPERTIES FIXTURES_SETUP batch_prefixes)
set_tests_properties(example_batch_restored PROPERTIES FIXTURES_REQUIRED batch_prefixes)
nibble_example_test(batch_restore_alone batch EXIT 2 ERR "--restore-prefixes [^\n]*--prefix-cache"
  ARGS ${home_model} - --restore-prefixes x)
nibble_example_test(batch_json batch EXIT 0 ERR "^$"
  STDIN "{\"prompt\": \"${utterance}\\n\"}\n"
  OUT "^{\"number\": 1, \"text\": \"${call}\", \"finish\": \"end of text\", \"prompt_tokens\": 17, \"tokens\": 8, \"first_token_ms\": [0-9.]+, \"ms\": [0-9.]+}\n$"
  ARGS ${home_model} - --json --quiet)
nibble_example_test(batch_sampled batch EXIT 0 STDIN "light\nlight\n" OUT "^[12]\t.*\n[12]\t.*\n$"
  ERR "decode   40 tokens" ARGS ${home_model} - --parallel 1 --max-tokens 20 --temperature 5 --top-k 0
    --top-p 1 --min-p 0 --logit-bias 2=-inf --stop nothing)
nibble_example_test(batch_long_prompt batch EXIT 1 STDIN "x\n${utterance}\n" OUT "^1\t[^\n]*\n$"
  ERR "^batch: prompt 2: [^\n]*context of 10 .--ctx.\n$" ARGS ${home_model} - --ctx 10 --quiet)
nibble_example_test(batch_bad_json batch EXIT 1 STDIN "{\"text\": \"x\"}\n" OUT "^$"
  ERR "^batch: -: line 1: there is no string \"prompt\"\n$" ARGS ${home_model} - --json)
nibble_example_test(batch_no_adapter batch EXIT 1 OUT "^$" ERR "missing.gguf"
  STDIN "{\"prompt\": \"x\", \"adapter\": \"missing.gguf:2\"}\n" ARGS ${home_model} - --json)
nibble_example_test(batch_no_file batch EXIT 1 ERR "^batch: missing.txt: [^\n]*\n$"
  ARGS ${home_model} missing.txt)
nibble_example_test(batch_bad_parallel batch EXIT 2 ERR "^batch: --parallel: [^\n]*--help.\n$"
  ARGS ${home_model} - --parallel 0)
if(NOT WIN32)
  # Interrupted once it has answered something.
  set(work ${build_folder}/batch_interrupted)
  add_test(NAME example_batch_interrupted COMMAND sh -c
    "yes '${utterance}' | head -n 1000000 > ${work}.txt; : > ${work}.out; \
$<TARGET_FILE:nibble_batch> ${home_model} ${work}.txt --newline > ${work}.out 2> ${work}.err & \
for i in $(seq 300); do [ -s ${work}.out ] && break; sleep 0.1; done; \
kill -INT $!; wait $!; code=$?; cat ${work}.err; rm ${work}.txt; \
[ $code = 130 ] && grep -q 'answers  [1-9][0-9]* of 1000000' ${work}.err && [ -s ${work}.out ]")
endif()

# A conversation. The model continues commands: it has no chat template.
nibble_example_test(chat chat EXIT 0 STDIN "${utterance}\n\n/reset\nwhy cats purr\n"
  OUT "^${call}\nnone\\(\\)\n$" ERR "^$" ARGS ${home_model} --temperature 0 --quiet --template plain)
nibble_example_test(chat_commands chat EXIT 0
  STDIN "${utterance}\n/stats\n/reset\n${utterance}\n/stats\n/help\n/quit\nwhy cats purr\n"
  OUT "^${call}\n${call}\n$"
  ERR "^template  plain\ncontext   25 of [0-9]+ tokens, 2 messages\nprompt    17 tokens, of them 0 kept.*prompt    17 tokens, of them 16 kept.*answer    8 tokens.*/save FILE"
  ARGS ${home_model} --temperature 0)
nibble_example_test(chat_save chat EXIT 0
  STDIN "${utterance}\n/save ${CMAKE_CURRENT_BINARY_DIR}/chat.json\n" ERR "^$"
  ARGS ${home_model} --temperature 0)
nibble_example_test(chat_not_saved chat EXIT 1 STDIN "/save ${CMAKE_CURRENT_BINARY_DIR}\n"
  ERR "^chat: [^\n]*: cannot be written: [^\n]*\n$" ARGS ${home_model})
nibble_example_test(chat_no_command chat EXIT 1 STDIN "/nope\n" OUT "^$"
  ERR "^chat: no command /nope \\(see /help\\)\n$" ARGS ${home_model})
nibble_example_test(chat_no_template chat EXIT 1 ERR "^chat: there is no chat template 'nope', only [^\n]*\n$"
  ARGS ${home_model} --template nope)
nibble_example_test(chat_no_room chat EXIT 1 STDIN "${utterance}\n" ERR "context of 10 \\(see --ctx"
  ARGS ${home_model} --ctx 10)
nibble_example_test(chat_no_file chat EXIT 1 ERR "^chat: missing.gguf: [^\n]*\n$" ARGS missing.gguf)

foreach(format q8_0 q4_0)
  set(made ${CMAKE_CURRENT_BINARY_DIR}/home-commands-${format}.gguf)
  nibble_example_test(quantize_${format} quantize EXIT 0
    OUT "blk.0.attn_q.weight +256 x 256 +F16 +${format} .*all .*bytes of weights"
    ARGS ${home_model} ${made} --format ${format} --tensor "token_embd=q8_0")
  nibble_example_test(generate_${format} generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
    ARGS ${made} --prompt-file - --quiet)
  set_tests_properties(example_quantize_${format} PROPERTIES FIXTURES_SETUP home_${format})
  set_tests_properties(example_generate_${format} PROPERTIES FIXTURES_REQUIRED home_${format})
endforeach()
# A mix: some matrices in another format than most.
set(made ${CMAKE_CURRENT_BINARY_DIR}/home-commands-q4_k_m.gguf)
nibble_example_test(quantize_mix quantize EXIT 0
  OUT "token_embd.weight +[0-9]+ x 256 +F16 +q6_k .*blk.1.attn_q.weight +256 x 256 +F16 +q4_k "
  ARGS ${home_model} ${made} --mix Q4_K_M)
nibble_example_test(generate_mix generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ARGS ${made} --prompt-file - --quiet)
set_tests_properties(example_quantize_mix PROPERTIES FIXTURES_SETUP home_mix)
set_tests_properties(example_generate_mix PROPERTIES FIXTURES_REQUIRED home_mix)
nibble_example_test(quantize_bad_mix quantize EXIT 2 ERR "q4_k_m"
  ARGS ${home_model} out.gguf --mix q9_m)

# Compressing: the steps, and all of it to a budget.
set(samples ${PROJECT_SOURCE_DIR}/tests/compress/home_calibration.tsv)
set(few_tokens --calibration-tokens 1000 --trial-tokens 100 --report-tokens 200)
nibble_example_test(compress_observe compress EXIT 0
  OUT "^[^\n]*imatrix.gguf: 22 matrices, observed in [0-9]+ chunks of 96 tokens\n$"
  ARGS observe ${home_model} ${build_folder}/imatrix.gguf --text ${samples} --ctx 96)
nibble_example_test(compress_observe_stdin compress EXIT 0 STDIN "${utterance}\n"
  OUT "observed in 1 chunks of 10 tokens\n$"
  ARGS observe ${home_model} ${build_folder}/imatrix.dat --text - --ctx 10)
nibble_example_test(quantize_imatrix quantize EXIT 0 OUT "blk.0.attn_q.weight .*bytes of weights"
  ARGS ${home_model} ${build_folder}/weighted.gguf --format q4_0 --tensor "token_embd=q8_0"
    --imatrix ${build_folder}/imatrix.gguf)
add_test(NAME example_imatrix_changes_bytes COMMAND ${CMAKE_COMMAND} -E compare_files
  ${build_folder}/weighted.gguf ${CMAKE_CURRENT_BINARY_DIR}/home-commands-q4_0.gguf)
nibble_example_test(quantize_imatrix_dat quantize EXIT 0 OUT "bytes of weights"
  ARGS ${home_model} ${build_folder}/weighted_dat.gguf --format q4_0 --imatrix ${build_folder}/imatrix.dat)
nibble_example_test(compress_prune compress EXIT 0
  OUT "neurons that stay, by layer: 352/512 352/512 352/512\n.*heads [^\n]*: 1/2 1/2 1/2\n"
  ARGS prune ${home_model} ${build_folder}/pruned.gguf --neurons 0.3 --groups 0.5
    --imatrix ${build_folder}/imatrix.gguf)
nibble_example_test(inspect_pruned inspect EXIT 0
  OUT "llama.attention.head_count_kv +1\n.*llama.feed_forward_length +352\n|llama.feed_forward_length +352\n.*llama.attention.head_count_kv +1\n"
  ARGS ${build_folder}/pruned.gguf)
nibble_example_test(generate_pruned generate EXIT 0 OUT "."
  ARGS ${build_folder}/pruned.gguf --prompt light --max-tokens 5 --quiet)
nibble_example_test(compress_prune_nothing compress EXIT 2 ERR "^compress prune: [^\n]*--help.\n$"
  ARGS prune ${home_model} ${build_folder}/none.gguf)
nibble_example_test(compress_prune_no_layer compress EXIT 1 ERR "--layers 3: the model has layers 0 to 2\n"
  ARGS prune ${home_model} ${build_folder}/none.gguf --layers 3)
nibble_example_test(compress_prune_all_layers compress EXIT 1 ERR "--layers: none would stay\n"
  ARGS prune ${home_model} ${build_folder}/none.gguf --layers 0,1,2)
nibble_example_test(compress_factor compress EXIT 0 OUT "blk.0.ffn_up.weight +16 +0\\.[0-9]+ "
  ARGS factor ${home_model} ${build_folder}/factored.gguf --base q4_0 --rank 16 --text ${samples})
nibble_example_test(compress_report compress EXIT 0
  OUT "home-commands-f16.gguf [^\n]* 100.00% [^\n]*\nweighted.gguf [^\n]*\nfactored.gguf "
  ARGS report ${home_model} ${build_folder}/weighted.gguf ${build_folder}/factored.gguf
    --text ${samples} --tokens 300)
add_test(NAME example_compress_forget COMMAND ${CMAKE_COMMAND} -E rm -f
  ${build_folder}/compressed.gguf.trials)
nibble_example_test(compress_budget compress EXIT 0
  OUT "original .*the mix, .*compressed.gguf: 9[0-4][0-9] [0-9]+ bytes\n$"
  ARGS ${home_model} ${build_folder}/compressed.gguf --budget 950KB --text ${samples}
    --formats q4_0,q8_0,q3_h ${few_tokens})
nibble_example_test(compress_resume compress EXIT 0 OUT "^[^\n]*\n66 trials of before are in "
  ARGS ${home_model} ${build_folder}/compressed.gguf --budget 950KB --text ${samples}
    --formats q4_0,q8_0,q3_h ${few_tokens})
nibble_example_test(generate_compressed generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ARGS ${build_folder}/compressed.gguf --prompt-file - --quiet)
nibble_example_test(compress_smallest compress EXIT 0
  OUT "home_calibrat.*original .*smallest.gguf: 1 [01][0-9][0-9] [0-9]+ bytes\n$"
  ARGS ${home_model} ${build_folder}/smallest.gguf --preset smallest --text ${samples}
    --formats q4_0,q8_0,f16 --exact ${samples} ${few_tokens})
nibble_example_test(compress_rule compress EXIT 0 OUT "\n1 matrices in q8_0, 139 264 bytes\n"
  ARGS ${home_model} ${build_folder}/ruled.gguf --preset q4 --text ${samples}
    --formats q3_h --tensor "token_embd=q8_0" --memory 0 ${few_tokens})
nibble_example_test(compress_time compress EXIT 0 OUT "a token takes [0-9.]+ us now, .*timed.gguf: "
  ARGS ${home_model} ${build_folder}/timed.gguf --budget-us 1000000 --text ${samples}
    --formats q4_0,q8_0 --memory 0 ${few_tokens})
nibble_example_test(compress_too_small compress EXIT 1 ERR "the budget is too small [^\n]*the least is a file of about [0-9 ]+ bytes"
  ARGS ${home_model} ${build_folder}/small.gguf --budget 100KB --text ${samples} --formats q4_0)
nibble_example_test(compress_no_text compress EXIT 1 STDIN "light\n" ERR "more text, or a smaller --ctx"
  ARGS ${home_model} ${build_folder}/small.gguf --budget 2MB --text -)
nibble_example_test(compress_two_budgets compress EXIT 2 ERR "^compress: [^\n]*--help.\n$"
  ARGS ${home_model} ${build_folder}/small.gguf --budget 1MB --preset q4 --text ${samples})
nibble_example_test(compress_bad_time compress EXIT 2 ERR "^compress: --budget-us: [^\n]*--help.\n$"
  ARGS ${home_model} ${build_folder}/small.gguf --budget-us nan --text ${samples})
nibble_example_test(compress_no_folder compress EXIT 1 ERR "^compress: [^\n]*missing/out.gguf"
  ARGS ${home_model} missing/out.gguf --budget 2MB --text ${samples})
nibble_example_test(quantize_other_imatrix quantize EXIT 1 ERR "^quantize: [^\n]*imatrix.gguf"
  ARGS ${build_folder}/pruned.gguf ${build_folder}/out.gguf --format q4_0
    --imatrix ${build_folder}/imatrix.gguf)
set_tests_properties(example_compress_observe PROPERTIES FIXTURES_SETUP imatrix)
set_tests_properties(example_compress_observe_stdin PROPERTIES FIXTURES_SETUP imatrix_dat)
set_tests_properties(example_quantize_imatrix_dat PROPERTIES FIXTURES_REQUIRED imatrix_dat)
set_tests_properties(example_quantize_imatrix PROPERTIES FIXTURES_SETUP weighted FIXTURES_REQUIRED imatrix)
set_tests_properties(example_imatrix_changes_bytes PROPERTIES WILL_FAIL TRUE
  FIXTURES_REQUIRED "weighted;home_q4_0")
set_tests_properties(example_compress_prune PROPERTIES FIXTURES_SETUP pruned FIXTURES_REQUIRED imatrix)
set_tests_properties(example_generate_pruned example_inspect_pruned PROPERTIES FIXTURES_REQUIRED pruned)
set_tests_properties(example_quantize_other_imatrix PROPERTIES FIXTURES_REQUIRED "pruned;imatrix")
set_tests_properties(example_compress_factor PROPERTIES FIXTURES_SETUP factored)
set_tests_properties(example_compress_report PROPERTIES FIXTURES_REQUIRED "weighted;factored")
set_tests_properties(example_compress_forget PROPERTIES FIXTURES_SETUP no_trials)
set_tests_properties(example_compress_budget PROPERTIES FIXTURES_SETUP compressed
  FIXTURES_REQUIRED no_trials)
set_tests_properties(example_compress_resume PROPERTIES FIXTURES_SETUP compressed_twice
  FIXTURES_REQUIRED compressed)
set_tests_properties(example_generate_compressed PROPERTIES FIXTURES_REQUIRED compressed_twice)

# Adapters: a few steps, in both forms, and from one to the other.
set(short --steps 3 --sequences 8 --old-tests 20 --rank 2 --quiet)
nibble_example_test(finetune finetune EXIT 0
  OUT "adapter.gguf: 50 samples learned in .*commands for the room sauna .* of 500 right.*old commands, hard .* of 20 right"
  ARGS ${build_folder}/adapter.gguf ${short} --merge ${build_folder}/merged.gguf --merge-format f16)
nibble_example_test(finetune_folder finetune EXIT 0 OUT "commands for the device jacuzzi .* of 500 right"
  ARGS ${build_folder}/adapter ${short} --device jacuzzi --n-samples 5 --start ${build_folder}/adapter.gguf)
nibble_example_test(finetune_again finetune EXIT 0 OUT "the learned samples of .*few_samples.tsv .* of 2 right"
  ARGS ${build_folder}/adapter_2.gguf ${short} --samples ${build_folder}/few_samples.tsv --dropout 0.1
    --start ${build_folder}/adapter)
nibble_example_test(generate_merged generate EXIT 0 STDIN "${utterance}\n" OUT "^${call}\n$"
  ARGS ${build_folder}/merged.gguf --prompt-file - --quiet)
nibble_example_test(finetune_other_start finetune EXIT 1 ERR "adapter.gguf: adapter of [^\n]*alpha\n$"
  ARGS ${build_folder}/adapter_3.gguf ${short} --alpha 7 --start ${build_folder}/adapter.gguf)
nibble_example_test(finetune_no_slot finetune EXIT 1 ERR "no product 'attn_z'"
  ARGS ${build_folder}/adapter_3.gguf ${short} --slots attn_q,attn_z)
nibble_example_test(finetune_two_lessons finetune EXIT 2 ERR "^finetune: [^\n]*--help.\n$"
  ARGS ${build_folder}/adapter_3.gguf --room sauna --device jacuzzi)
file(WRITE ${build_folder}/few_samples.tsv
     "sauna on\tdevice.on(name=sauna, room=garden)\nsauna off\tdevice.off(name=sauna, room=garden)\n")
set_tests_properties(example_finetune PROPERTIES FIXTURES_SETUP adapter)
set_tests_properties(example_finetune_folder PROPERTIES FIXTURES_SETUP adapter_folder
  FIXTURES_REQUIRED adapter)
set_tests_properties(example_finetune_again PROPERTIES FIXTURES_REQUIRED adapter_folder)
set_tests_properties(example_generate_merged example_finetune_other_start PROPERTIES
  FIXTURES_REQUIRED adapter)

nibble_example_test(home_commands home_commands EXIT 0
  OUT "office light to 10 percent\n    -> ${call}.*F32 .*40/40 .*F16 .*INT8 .*INT4 .*SIMD target"
  ARGS --utterances 40)
nibble_example_test(home_commands_generated home_commands EXIT 0
  OUT "30 held-out and 30 hard utterances drawn with seed 7;.*F32 [^\n]*30/30 .*Beside F32.*F16 +held-out [+-]0.00 .*SIMD target"
  ARGS --generated 30 --seed 7)
# The stacked recipe, in a few steps; the second time all files are there, other settings are refused.
set(pipeline_steps --steps 3 --recover-steps 2 --qat-steps 2 --questions 5 --quiet)
set(pipeline_folder ${build_folder}/pipeline_test)
add_test(NAME example_pipeline_forget COMMAND ${CMAKE_COMMAND} -E rm -rf ${pipeline_folder})
nibble_example_test(pipeline pipeline EXIT 0
  OUT "teacher +f16 +1 804 032 .*student, distilled +f16 +892 224 .*pruned +f16 +781 632 .*recovered .*rounded +q4_0 .*quantization-aware +q4_0 .*The student has 49.5 % .* has 23.1 % of the bytes"
  ARGS --folder ${pipeline_folder} ${pipeline_steps})
nibble_example_test(pipeline_again pipeline EXIT 0 OUT "quantization-aware" ERR "^$"
  ARGS --folder ${pipeline_folder} ${pipeline_steps})
nibble_example_test(pipeline_other pipeline EXIT 1 ERR "^pipeline: [^\n]*models of other settings"
  ARGS --folder ${pipeline_folder} ${pipeline_steps} --seed 2)
nibble_example_test(generate_pipeline generate EXIT 0 OUT "."
  ARGS ${pipeline_folder}/quantized.gguf --prompt light --max-tokens 5 --quiet)
set_tests_properties(example_pipeline_forget PROPERTIES FIXTURES_SETUP no_pipeline)
set_tests_properties(example_pipeline PROPERTIES FIXTURES_SETUP pipeline
  FIXTURES_REQUIRED no_pipeline)
set_tests_properties(example_pipeline_again example_pipeline_other example_generate_pipeline
  PROPERTIES FIXTURES_REQUIRED pipeline)
# Quantization-aware training from the bundled model, beside it.
nibble_example_test(train_qat train EXIT 0
  OUT "right answers: .*40 drawn commands.*original .*rounded .* KL 0\\.[0-9]+\ntrained .* KL 0\\.[0-9]+\n$"
  ARGS ${build_folder}/qat.gguf --continue --qat q2_h --search --teacher ${home_model} --steps 2
    --sequences 8 --beside 40 --quiet)
nibble_example_test(generate_qat generate EXIT 0 OUT "."
  ARGS ${build_folder}/qat.gguf --prompt light --max-tokens 5 --quiet)
set_tests_properties(example_train_qat PROPERTIES FIXTURES_SETUP qat)
set_tests_properties(example_generate_qat PROPERTIES FIXTURES_REQUIRED qat)
# The same for static INT8: ranges of inputs are tracked too.
nibble_example_test(train_static train EXIT 0
  OUT "right answers: .*20 drawn commands.*rounded .* KL 0\\.[0-9]+\ntrained .* KL 0\\.[0-9]+\n$"
  ARGS ${build_folder}/static.gguf --continue --qat i8_channel --static --zero-point --steps 3
    --sequences 4 --rate 1e-5 --utterances 20 --beside 20 --quiet)
nibble_example_test(inspect_static inspect EXIT 0 OUT "blk.0.attn_q.input_zero"
  ARGS ${build_folder}/static.gguf --tensors)
set_tests_properties(example_train_static PROPERTIES FIXTURES_SETUP static)
set_tests_properties(example_inspect_static PROPERTIES FIXTURES_REQUIRED static)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  foreach(how INT TERM XFSZ)
    add_test(NAME example_quantize_${how} COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/ended_test.sh
             $<TARGET_FILE:nibble_quantize> ${CMAKE_CURRENT_BINARY_DIR}/quantize_${how} ${how})
  endforeach()
endif()
nibble_example_test(home_commands_stdin home_commands EXIT 0 STDIN "${utterance}\nwhy cats purr\n"
  OUT "^${call} .*none\\(\\)" ARGS --interactive)
nibble_example_test(static_model static_model EXIT 0
  OUT "-> ${call}\n[0-9]+ bytes of working memory" ARGS ${home_model})
# On a device that QEMU emulates. What uses the heap or faults there ends before the last line.
find_program(NIBBLE_QEMU_SYSTEM_ARM qemu-system-arm)
mark_as_advanced(NIBBLE_QEMU_SYSTEM_ARM)
if(TARGET static_model_device AND NIBBLE_QEMU_SYSTEM_ARM)
  add_test(NAME example_static_model_device_build COMMAND
    ${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --config $<CONFIG> --target static_model_device)
  add_test(NAME example_static_model_device COMMAND
    ${NIBBLE_QEMU_SYSTEM_ARM} -M mps3-an547 -display none -monitor none -serial none -semihosting
    -kernel ${CMAKE_CURRENT_BINARY_DIR}/device/static_model.elf)
  set_tests_properties(example_static_model_device_build PROPERTIES FIXTURES_SETUP device)
  set_tests_properties(example_static_model_device PROPERTIES FIXTURES_REQUIRED device TIMEOUT 300
    PASS_REGULAR_EXPRESSION "-> ${call}\n.*-> none\\(\\)\nflash: [0-9]+ bytes of code.*bytes of working memory.* of stack\n")
else()
  message(STATUS "nibble: no arm-none-eabi-g++ or qemu-system-arm: static_model on a device is left out")
endif()
nibble_example_test(minimal minimal EXIT 0 OUT "^${call}$")
set_tests_properties(example_minimal PROPERTIES WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})

# ---- train --------------------------------------------------------------------------------------
set(small_model --layers 1 --dim 64 --heads 2 --kv-heads 1 --ffn 64 --sequences 4)
nibble_example_test(train_small train EXIT 0
  OUT "^57 536 parameters; [^\n]*\n[^\n]*small.gguf: loss [^\n]*\nright answers: 0.00 % [^\n]*\n$"
  ARGS ${build_folder}/small.gguf ${small_model} --steps 12 --every 5 --utterances 3 --threads 1)
nibble_example_test(train_goes_on train EXIT 0 OUT "right answers: 100.00 % of the held-out"
  ARGS ${build_folder}/goes-on.gguf --continue --steps 2 --sequences 2 --rate 1e-6 --utterances 3
       --qat q8_0 --small-moments --recompute --teacher ${home_model} --threads 1)
nibble_example_test(train_text train EXIT 0 OUT "trained.gguf: loss"
  ARGS ${build_folder}/trained.gguf ${small_model} --steps 3 --text ${home_license} --context 32
       --threads 1)
nibble_example_test(train_no_format train EXIT 2 ERR "^train: --qat: 'q9_9'" ARGS out.gguf --qat q9_9)
nibble_example_test(train_not_static train EXIT 2 ERR "^train: --static: "
  ARGS out.gguf --qat q8_0 --static)
nibble_example_test(train_bad_rate train EXIT 2 ERR "^train: --rate: " ARGS out.gguf --rate=nan)
nibble_example_test(train_no_model train EXIT 1 ERR "^train: missing.gguf: "
  ARGS out.gguf --like missing.gguf)
nibble_example_test(train_bad_shape train EXIT 1 ERR "^train: [^\n]*head[^\n]*\n$"
  ARGS out.gguf --dim 64 --heads 3)
if(UNIX)
  add_test(NAME example_train_interrupted COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/train/interrupted_test.sh
    $<TARGET_FILE:nibble_train> ${build_folder}/interrupted.gguf)
endif()

# Training with others: tiny, so that it takes seconds.
set(tiny --layers 1 --dim 16 --heads 2 --kv-heads 1 --ffn 32)
nibble_example_test(federated federated EXIT 0
  OUT "weights +round +2: +4 homes answered, +0 did not, +0 excluded; sent +[0-9.]+ MiB; loss [0-9.]+; right .*predictions +round +2: .*in one place .*rounds +MiB sent +loss +right\nweights "
  ARGS ${tiny} --clients 4 --rounds 2 --steps 2 --sequences 4 --examples 20 --common 8
    --common-round 4 --test 5 --away 0 --alone --quiet)
nibble_example_test(federated_away federated EXIT 0
  OUT "weights, f16 +round +1: +0 homes answered, +3 did not, +0 excluded; sent "
  ARGS ${tiny} --clients 3 --rounds 1 --steps 1 --sequences 2 --examples 4 --test 1 --away 1
    --share weights --halves --quiet)
nibble_example_test(federated_no_file federated EXIT 1 ERR "^federated: missing.gguf: [^\n]*\n$"
  ARGS --like missing.gguf)
nibble_example_test(federated_bad_share federated EXIT 2 ERR "^federated: --share: [^\n]*--help.\n$"
  ARGS --share gradients)
nibble_example_test(search search EXIT 0
  OUT "^[0-9]+ shapes; [0-9]+ fit 60 000 bytes in q4_0, .*measured +parameters .*layers x .*not beaten in bytes, time and loss .*layers x [^\n]* 4 +[0-9.]+ +[0-9.]+\n$"
  ARGS --kilobytes 60 --command-ms 1000 --format q4_0 --layers 2 --least-dim 32 --most-dim 64 --step 32
    --head-dims 16 --budgets 2 --trained 2 --kept 1 --steps 4 --sequences 4 --test 4 --quiet)
nibble_example_test(search_nothing search EXIT 1 ERR "^search: no shape fits the budget; the grid has [0-9]+\n$"
  ARGS --kilobytes 1)
nibble_example_test(search_no_file search EXIT 1 ERR "^search: missing.gguf: [^\n]*\n$"
  ARGS --like missing.gguf)
nibble_example_test(search_bad_format search EXIT 2 ERR "^search: --format: [^\n]*--help.\n$"
  ARGS --format q9_9)

# Between processes: all answer; one is killed, and the others go on without it. (Options of Open MPI.)
if(TARGET nibble_federated_mpi)
  nibble_example_test(federated_mpi_usage federated_mpi EXIT 2 ERR "^federated_mpi: [^\n]*--help.\n$"
    ARGS --nonsense)
  execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE mpi_version ERROR_QUIET)
  if(mpi_version MATCHES "Open MPI|OpenRTE")
    set(together ${MPIEXEC_EXECUTABLE} --oversubscribe --enable-recovery ${MPIEXEC_NUMPROC_FLAG} 4
      $<TARGET_FILE:nibble_federated_mpi> --rounds 3 --steps 1 --sequences 2 --examples 8 --test 2)
    add_test(NAME example_federated_mpi COMMAND ${together} --seconds 60)
    set_tests_properties(example_federated_mpi PROPERTIES PASS_REGULAR_EXPRESSION
      "round   2: 3 homes answered, 0 did not.*round   3: 3 homes answered, 0 did not")
    add_test(NAME example_federated_mpi_killed COMMAND ${together} --seconds 5 --killed 2)
    set_tests_properties(example_federated_mpi_killed PROPERTIES PASS_REGULAR_EXPRESSION
      "round   1: 3 homes answered, 0 did not.*round   3: 2 homes answered, 1 did not")
    set_tests_properties(example_federated_mpi example_federated_mpi_killed PROPERTIES TIMEOUT 300
      ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
  endif()
endif()

# The server, with our own client, the official one of the API, a browser and Prometheus' checker, as
# far as they are here.
if(TARGET nibble_httplib)
  nibble_example_test(serve_help serve EXIT 0 OUT "Usage: serve" ARGS --help)
  nibble_example_test(serve_usage serve EXIT 2 ERR "^serve: [^\n]*--help.\n$" ARGS --nonsense)
  nibble_example_test(serve_open_host serve EXIT 2 ERR "^serve: --host: [^\n]*--api-key[^\n]*\n$"
    ARGS --host 0.0.0.0)
  nibble_example_test(serve_half_tls serve EXIT 2 ERR "^serve: [^\n]*--tls-key[^\n]*\n$"
    ARGS --tls-cert missing.pem)
  nibble_example_test(serve_no_model serve EXIT 1 ERR "^serve: [^\n]*missing.gguf: [^\n]*\n$"
    ARGS --model missing.gguf --port 0 --quiet)
  nibble_example_test(route_help route EXIT 0 OUT "Usage: route" ARGS --help)
  nibble_example_test(route_usage route EXIT 2 ERR "^route: [^\n]*--help.\n$" ARGS --nonsense)
  nibble_example_test(route_two_thresholds route EXIT 2 ERR "--known excludes --threshold|--threshold excludes --known"
    ARGS ${home_model} --url http://127.0.0.1:1 --threshold 1 --known x)
  nibble_example_test(route_local route EXIT 0 STDIN "${utterance}\n" OUT "^local\t${call}\n$"
    ERR "answers    1 here, 0 of the service" ARGS ${home_model} --newline --url http://127.0.0.1:1 --threshold 0)
  # Nothing listens there: after five failures it is not asked any more.
  nibble_example_test(route_offline route EXIT 0
    STDIN "${utterance}\n${utterance}\n${utterance}\n${utterance}\n${utterance}\n${utterance}\n"
    OUT "^(fallback\t${call}\n)+$" ERR "0 in time, 0 late, 5 failed, 0 refused, 1 not asked\n$"
    ARGS ${home_model} --newline --url http://127.0.0.1:1 --threshold 1.1)
  set(serve_folder ${CMAKE_CURRENT_SOURCE_DIR}/serve)
  foreach(part api hostile load ends)
    add_test(NAME example_serve_${part} COMMAND nibble_serve_client ${part}
      --program $<TARGET_FILE:nibble_serve> --model ${home_model})
  endforeach()
  # Prometheus' checker, where Debian's package prometheus is installed.
  find_program(NIBBLE_PROMTOOL promtool)
  if(NIBBLE_PROMTOOL)
    add_test(NAME example_serve_promtool COMMAND nibble_serve_client metrics
      --program $<TARGET_FILE:nibble_serve> --model ${home_model} --promtool ${NIBBLE_PROMTOOL})
  else()
    message(STATUS "nibble: no promtool: the test example_serve_promtool is left out")
  endif()
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(Python3_FOUND)
    add_test(NAME example_serve_openai COMMAND ${Python3_EXECUTABLE} ${serve_folder}/openai_test.py
      $<TARGET_FILE:nibble_serve>)
    set_tests_properties(example_serve_openai PROPERTIES SKIP_RETURN_CODE 77)
  endif()
  find_program(NIBBLE_NODE NAMES node nodejs)
  if(NIBBLE_NODE)
    add_test(NAME example_serve_page COMMAND ${NIBBLE_NODE} ${serve_folder}/page_test.mjs
      $<TARGET_FILE:nibble_serve>)
    set_tests_properties(example_serve_page PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 120)
  endif()
endif()

# Keys, an encrypted model, a signed bundle of it; then what is refused.
if(TARGET nibble_bundle)
  nibble_example_test(bundle_help bundle EXIT 0 OUT "Usage: bundle" ARGS --help)
  nibble_example_test(bundle_sign_help bundle EXIT 0 OUT "Usage: bundle sign" ARGS sign --help)
  nibble_example_test(bundle_usage bundle EXIT 2 ERR "^bundle: [^\n]*--help.\n$" ARGS --nonsense)
  nibble_example_test(bundle_no_version bundle EXIT 2 ERR "^bundle sign: --version [^\n]*--help.\n$"
    ARGS sign folder --key k)
  nibble_example_test(bundle_no_folder bundle EXIT 1 ERR "^bundle inspect: missing/bundle.json: [^\n]*\n$"
    ARGS inspect missing)
  nibble_example_test(bundle_update_no_key bundle EXIT 2 ERR "^bundle update: --key [^\n]*--help.\n$"
    ARGS update device http://127.0.0.1:1)
  add_test(NAME example_bundle COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/bundle_test.sh
    $<TARGET_FILE:nibble_bundle> ${home_model} ${CMAKE_CURRENT_BINARY_DIR}/bundle_test)
endif()
if(NOT WIN32)
  add_test(NAME example_update_hooks COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/update_hooks/hooks_test.sh
    ${CMAKE_CURRENT_BINARY_DIR}/update_hooks_test)
endif()
