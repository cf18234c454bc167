// SPDX-License-Identifier: Apache-2.0
//
// Small models of random weights with recurrent layers and layers with attention: compiled apart,
// so that not each test compiles these architectures.
#pragma once

#include "nibble/model/model.hpp"

namespace test {

nibble::Model lfm2_model();
nibble::Model qwen35_model();
nibble::Model granite_hybrid_model();

}  // namespace test
