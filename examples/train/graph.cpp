// SPDX-License-Identifier: Apache-2.0
//
// The graph of training, compiled once for all programs that train.
#include "model.hpp"
#include "nibble/model/llama.hpp"

namespace example {

nibble::Result<nibble::Owned<nibble::train::TrainingGraph>> training_graph(
    const nibble::io::Gguf& file) {
  return nibble::train::training_graph_of(nibble::ArchitectureList<nibble::Llama>{}, file);
}

}  // namespace example
