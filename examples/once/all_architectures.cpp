// SPDX-License-Identifier: Apache-2.0
#include "all_architectures.hpp"

EXAMPLE_LOAD(template)
