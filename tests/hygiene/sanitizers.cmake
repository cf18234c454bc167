# SPDX-License-Identifier: Apache-2.0
#
# With sanitizers, compilers accept fewer expressions as constants. Also runs the program under
# them.
include(${CMAKE_CURRENT_LIST_DIR}/hygiene.cmake)

set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
try_run(works "int main() {}" ${cxx} ${sanitizers})
if(NOT works)
  skip("no sanitizers here")
endif()
build_and_run(${cxx} -std=c++20 ${sanitizers} -DNIBBLE_KV_TYPES=0)
