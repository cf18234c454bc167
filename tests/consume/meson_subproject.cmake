# SPDX-License-Identifier: Apache-2.0
#
# nibble is below subprojects/, and so is what its wraps would download: the headers of this machine
# with the meson.build files that the wraps add.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
need(meson meson)
need(ninja ninja)

set(subprojects ${work_dir}/consumer/subprojects)
file(COPY ${source_dir}/meson.build ${source_dir}/LICENSE ${source_dir}/include
     DESTINATION ${subprojects}/nibble)
file(COPY ${source_dir}/subprojects/highway.wrap ${source_dir}/subprojects/boost-preprocessor.wrap
     DESTINATION ${subprojects}/nibble/subprojects)
file(COPY ${source_dir}/subprojects/packagefiles/ DESTINATION ${subprojects})
file(CREATE_LINK ${hwy_dirs}/hwy ${subprojects}/highway/hwy SYMBOLIC)
file(MAKE_DIRECTORY ${subprojects}/boost-preprocessor/include)
file(CREATE_LINK ${boost_pp_dirs}/boost ${subprojects}/boost-preprocessor/include/boost SYMBOLIC)
build_meson_consumer(--force-fallback-for=libhwy,boost-preprocessor)
