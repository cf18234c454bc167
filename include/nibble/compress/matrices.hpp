// SPDX-License-Identifier: Apache-2.0
//
// The matrices of a model that can be stored in another format: where they are in the file and
// where the model has them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "nibble/compress/product_survey.hpp"
#include "nibble/core/result.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct ModelMatrix {
  const io::GgufTensor* tensor = nullptr;  // of the file
  std::size_t slot = 0;                    // of the model
  Index layer = -1;                        // −1: outside of the layers
  Index n = 0, k = 0;
  bool is_product = false;  // it is multiplied with rows; not a table of embeddings alone
};

// The matrices that `model` has from `file`, in the order of the file; each once, even if several
// slots share it. Matrices of experts are left out. The file must outlive the result. Error:
// invalid_argument if the model is of another file.
inline Result<std::vector<ModelMatrix>> matrices_of(const Model& model, const io::Gguf& file) {
  return catch_out_of_memory([&]() -> Result<std::vector<ModelMatrix>> {
    const graph::WeightTable weights = model.weights();
    const detail::ProductSurvey products(model);
    const auto is_product = [&](const graph::Weight& weight) {
      return std::any_of(products.matrices.begin(), products.matrices.end(), [&](const auto& p) {
        return detail::same_weights(weight, products.at(p));
      });
    };
    std::vector<ModelMatrix> found;
    for (Index layer = -1; layer < weights.n_layers(); ++layer) {
      for (std::size_t slot = 0; slot < weights.n_slots(); ++slot) {
        const graph::Weight& weight = weights.at(slot, layer);
        if (!weight.has_base() || weight.is_vector() || weight.n_experts != 1) continue;
        const std::string name = model.architecture().tensor_name(slot, layer);
        const io::GgufTensor* const tensor = file.find_tensor(name);
        if (tensor == nullptr) continue;  // tied to another
        if (tensor->dims[0] != static_cast<std::uint64_t>(weight.k) ||
            tensor->dims[1] != static_cast<std::uint64_t>(weight.n)) {
          return Error{Errc::invalid_argument,
                       file.name() + ": tensor " + io::quoted(name) + " is not that of the model"};
        }
        found.push_back({tensor, slot, layer, weight.n, weight.k, is_product(weight)});
      }
    }
    std::sort(found.begin(), found.end(),
              [](const ModelMatrix& a, const ModelMatrix& b) { return a.tensor < b.tensor; });
    if (found.empty()) {
      return Error{Errc::invalid_argument, file.name() + ": no matrices of the model are in it"};
    }
    return found;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
