# SPDX-License-Identifier: Apache-2.0
#
# Meson installs nibble, and the consumer finds it installed.
include(${CMAKE_CURRENT_LIST_DIR}/consume.cmake)
need(meson meson)
need(ninja ninja)
need(pkg_config pkg-config)

make_pc_files()
file(COPY ${source_dir}/meson.build ${source_dir}/LICENSE ${source_dir}/include
     DESTINATION ${work_dir}/nibble)
run(${meson} setup ${work_dir}/nibble-build ${work_dir}/nibble --prefix=${work_dir}/prefix)
run(${meson} install -C ${work_dir}/nibble-build --quiet)
set(ENV{PKG_CONFIG_PATH} ${work_dir}/pc:${work_dir}/prefix/share/pkgconfig)
build_meson_consumer(-Dcpp_args=-I${boost_pp_dirs})
