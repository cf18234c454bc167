// SPDX-License-Identifier: Apache-2.0
//
// Small models of random weights, 50 tokens, without a tokenizer. Their graphs are compiled once, in
// small_models.cpp.
#pragma once

#include <cstdint>

#include "model/random_model.hpp"
#include "nibble/model/model.hpp"

namespace test {

// Of a shape: of Llama or of GPT-2.
nibble::Model model_of(const ModelShape& shape, std::uint32_t seed = 9);

nibble::Model small_model(nibble::Index n_layers = 2, nibble::Index dim = 48,
                          nibble::Index n_ctx = 2048);
nibble::Model llama_model(nibble::Index window = 0, std::uint32_t seed = 9);
// As Gemma 3: a window in five of six layers.
nibble::Model gemma_model(nibble::Index window, nibble::Index n_layers = 6);
// Recurrent state in each second layer.
nibble::Model conv_model();

}  // namespace test
