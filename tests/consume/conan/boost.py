# SPDX-License-Identifier: Apache-2.0
import os

from conan import ConanFile
from conan.tools.files import copy


class BoostStandIn(ConanFile):
    name = "boost"
    version = "1.86.0"
    package_type = "header-library"
    options = {"header_only": [True, False]}
    default_options = {"header_only": False}

    def package_id(self):
        self.info.clear()

    def package(self):
        folder = os.environ["NIBBLE_STAND_IN_DIR"]
        for pattern in "preprocessor.hpp", "preprocessor/*":
            copy(self, pattern, folder, os.path.join(self.package_folder, "include", "boost"))

    def package_info(self):
        assert self.options.header_only
        self.cpp_info.components["headers"].libs = []
