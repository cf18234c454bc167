# SPDX-License-Identifier: Apache-2.0
#
# cmake --install, for the tests that use the installation; it is then moved to another folder. No
# installed file contains a path of this machine.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)

set(ENV{DESTDIR} ${work_dir})
run(${CMAKE_COMMAND} --install ${build_dir} --config "${config}" --prefix /opt/nibble)
file(REMOVE_RECURSE ${prefix})
file(RENAME ${work_dir}/opt/nibble ${prefix})

file(GLOB_RECURSE files ${prefix}/*)
foreach(file ${files})
  file(READ ${file} text)
  foreach(path ${source_dir} ${build_dir} ${hwy_dirs} ${boost_pp_dirs} /opt/nibble)
    string(FIND "${text}" "${path}" position)
    if(NOT position EQUAL -1)
      message(FATAL_ERROR "${file} names ${path}")
    endif()
  endforeach()
endforeach()
