// SPDX-License-Identifier: Apache-2.0
//
// What loading converts: matrices in types that have no kernels (quant/read_only.hpp), and 8-bit
// codes with a scale for each row in programs without kernels for them.
#pragma once

#include <cstddef>
#include <string>

#include "nibble/io/ggml_type.hpp"
#include "nibble/quant/format.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// Matrices that are computed with in another format than they are stored in.
struct WeightConversion {
  io::GgmlType from;
  quant::Format to;
  std::size_t n_tensors;
};

// For a user: "12 matrices in IQ4_XS are computed with as q5_k".
inline std::string to_string(const WeightConversion& c) {
  return to_text(c.n_tensors) + (c.n_tensors == 1 ? " matrix in " : " matrices in ") +
         io::type_traits(c.from).name + (c.n_tensors == 1 ? " is" : " are") + " computed with as " +
         quant::to_string(c.to);
}

}}  // namespace nibble::NIBBLE_ABI
