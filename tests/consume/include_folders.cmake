# SPDX-License-Identifier: Apache-2.0
#
# Folders on the include path, and nothing linked.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
compile_consumer(-I${source_dir}/include ${dependency_options})
