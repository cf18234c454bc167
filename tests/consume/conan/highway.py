# SPDX-License-Identifier: Apache-2.0
import os

from conan import ConanFile
from conan.tools.files import copy


class HighwayStandIn(ConanFile):
    name = "highway"
    version = "1.3.0"
    package_type = "static-library"

    def package_id(self):
        self.info.clear()

    def package(self):
        copy(self, "*", os.environ["NIBBLE_STAND_IN_DIR"],
             os.path.join(self.package_folder, "include", "hwy"))

    def package_info(self):
        self.cpp_info.components["hwy"].libs = ["must_not_be_linked"]
