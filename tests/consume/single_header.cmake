# SPDX-License-Identifier: Apache-2.0
#
# All headers of nibble joined into one.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
need(awk awk)

file(MAKE_DIRECTORY ${work_dir}/include/nibble)
execute_process(
  COMMAND ${awk} -f ${source_dir}/packaging/single_header/single_header.awk ${source_dir}/include
  OUTPUT_FILE ${work_dir}/include/nibble/nibble.hpp COMMAND_ERROR_IS_FATAL ANY)
compile_consumer(-DWHOLE -I${work_dir}/include ${dependency_options})

# Split form: the declarations alone compile without Highway.
file(WRITE ${work_dir}/split.cpp "#include \"nibble/nibble.hpp\"\n"
  "nibble::Result<nibble::Model> load() { return nibble::load(\"model.gguf\"); }\n")
list(TRANSFORM boost_pp_dirs PREPEND -I OUTPUT_VARIABLE boost_pp_options)
run(${cxx} -std=c++20 -fsyntax-only -Werror -DNIBBLE_SPLIT -I${work_dir}/include
    ${boost_pp_options} split.cpp)
