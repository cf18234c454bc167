// SPDX-License-Identifier: Apache-2.0
#include "train/llama_graph.hpp"

#include <utility>

#include "doctest/doctest.h"
#include "nibble/model/llama.hpp"
#include "why.hpp"

namespace test {

nibble::Owned<nibble::train::TrainingGraph> llama_graph(const nibble::io::Gguf& file) {
  auto graph = nibble::train::training_graph_of(nibble::ArchitectureList<nibble::Llama>{}, file);
  REQUIRE_MESSAGE(graph, why(graph));
  return *std::move(graph);
}

}  // namespace test
