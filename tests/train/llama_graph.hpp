// SPDX-License-Identifier: Apache-2.0
//
// The graph that trains a model of Llama's architecture; compiled once, in llama_graph.cpp.
#pragma once

#include "nibble/io/gguf.hpp"
#include "nibble/train/training_graph.hpp"

namespace test {

nibble::Owned<nibble::train::TrainingGraph> llama_graph(const nibble::io::Gguf& file);

}  // namespace test
