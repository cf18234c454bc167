// SPDX-License-Identifier: Apache-2.0
//
// The matrices of a model that can be stored in another format: where they are in the file and
// where the model has them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"
#include "nibble/quant/read_only.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct Matrix {
  const io::GgufTensor* tensor = nullptr;  // of the file
  std::size_t slot = 0;                    // of the model
  Index layer = -1;                        // −1: outside of the layers
  Index n = 0, k = 0;
};

// The matrices that `model` has from `file`, in the order of the file; each once, even if several
// slots share it. Matrices of experts are left out. The file must outlive the result. Error:
// invalid_argument if the model is of another file.
inline Result<std::vector<Matrix>> matrices_of(const Model& model, const io::Gguf& file) {
  return catch_out_of_memory([&]() -> Result<std::vector<Matrix>> {
    const graph::WeightTable weights = model.weights();
    std::vector<Matrix> found;
    for (Index layer = -1; layer < weights.n_layers(); ++layer) {
      for (std::size_t slot = 0; slot < weights.n_slots(); ++slot) {
        const graph::Weight& weight = weights.at(slot, layer);
        if (!weight || weight.is_vector() || weight.n_experts != 1) continue;
        const std::string name = model.architecture().tensor_name(slot, layer);
        const io::GgufTensor* const tensor = file.find_tensor(name);
        if (tensor == nullptr) continue;  // tied to another
        if (tensor->dims[0] != static_cast<std::uint64_t>(weight.k) ||
            tensor->dims[1] != static_cast<std::uint64_t>(weight.n)) {
          return Error{Errc::invalid_argument,
                       file.name() + ": tensor " + io::quoted(name) + " is not that of the model"};
        }
        found.push_back({tensor, slot, layer, weight.n, weight.k});
      }
    }
    std::sort(found.begin(), found.end(),
              [](const Matrix& a, const Matrix& b) { return a.tensor < b.tensor; });
    if (found.empty()) {
      return Error{Errc::invalid_argument, file.name() + ": no matrices of the model are in it"};
    }
    return found;
  });
}

// Reads rows [first, first + out.extent(0)) of a matrix as f32. Errors: those of reading.
inline Result<void> read_rows(const io::Gguf& file, const io::GgufTensor& tensor, Index first,
                              MatrixView<float> out, std::vector<std::byte>& scratch) {
  const auto k = static_cast<std::size_t>(tensor.dims[0]);
  NIBBLE_ASSERT(out.extent(1) == static_cast<Index>(k) && out.is_contiguous());
  NIBBLE_TRY(row_bytes, io::row_bytes(tensor.type, k));
  const auto n = static_cast<std::size_t>(out.extent(0));
  scratch.resize(io::narrow<std::size_t>(row_bytes) * n);
  const io::MappedFile* mapped = nullptr;
  for (const io::MappedFile& other : file.files()) {
    if (other.contains(tensor.data)) mapped = &other;
  }
  const io::TensorBytes bytes(tensor.data, tensor.swapped, mapped);
  NIBBLE_CHECK(
      bytes.read(static_cast<std::size_t>(first) * io::narrow<std::size_t>(row_bytes), scratch));
  return quant::row_to_f32(tensor.type, scratch, {out.data(), n * k});
}

}}}  // namespace nibble::NIBBLE_ABI::compress
