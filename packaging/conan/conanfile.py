# SPDX-License-Identifier: Apache-2.0
#
# conan create packaging/conan: packages the headers of the checkout that contains this file.
import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load
from conan.tools.layout import basic_layout

required_conan_version = ">=2.0"


class NibbleConan(ConanFile):
    name = "nibble"
    description = "Small language models on CPUs, header-only"
    license = "Apache-2.0"
    topics = ("llm", "inference", "simd", "gguf", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    # The SIMD targets to compile, in Highway's names: "HWY_AVX2|HWY_AVX3_DL"; None: nibble's default.
    options = {"targets": [None, "ANY"]}
    default_options = {"targets": None, "boost/*:header_only": True}
    no_copy_source = True

    @property
    def _root(self):
        return os.path.join(self.recipe_folder, os.pardir, os.pardir)

    def set_version(self):
        header = load(self, os.path.join(self._root, "include", "nibble", "core", "config.hpp"))
        self.version = re.search('#define NIBBLE_VERSION "([0-9.]+)"', header)[1]

    def export_sources(self):
        copy(self, "LICENSE", self._root, self.export_sources_folder)
        copy(self, "include/*", self._root, self.export_sources_folder)

    def layout(self):
        basic_layout(self)

    def requirements(self):
        # Only their headers: nibble links nothing.
        self.requires("highway/[>=1.3.0 <2]", libs=False, transitive_headers=True)
        self.requires("boost/[>=1.74.0 <2]", libs=False, transitive_headers=True)

    def package_id(self):
        self.info.clear()

    def validate(self):
        check_min_cppstd(self, 20)

    def build(self):
        pass

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "include/*", self.source_folder, self.package_folder)

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "nibble")
        self.cpp_info.set_property("cmake_target_name", "nibble::nibble")
        self.cpp_info.set_property("pkg_config_name", "nibble")
        self.cpp_info.requires = ["highway::hwy", "boost::headers"]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        if self.options.targets != None:  # noqa: E711  "0" is false, but a list: the baseline alone
            self.cpp_info.defines = [f"NIBBLE_TARGETS={self.options.targets}"]
        if self.settings.os in ["Linux", "FreeBSD"]:
            self.cpp_info.system_libs = ["pthread"]
