// SPDX-License-Identifier: Apache-2.0
//
// Small models of random weights whose layers differ, most with recurrent ones: compiled apart,
// so that not each test compiles these architectures.
#pragma once

#include "nibble/model/model.hpp"

namespace test {

nibble::Model lfm2_model();
nibble::Model qwen35_model();
nibble::Model granite_hybrid_model();
nibble::Model lfm2moe_model();
nibble::Model qwen35moe_model();
// No recurrent layers, but some that read what others store.
nibble::Model gemma4_model();

}  // namespace test
