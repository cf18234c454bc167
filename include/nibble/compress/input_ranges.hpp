// SPDX-License-Identifier: Apache-2.0
//
// From what was observed to what static INT8 needs: a range for the input of each matrix.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "nibble/compress/activation_range.hpp"
#include "nibble/compress/static_int8.hpp"
#include "nibble/compress/statistics.hpp"
#include "nibble/core/result.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// A range for the input of each matrix that was observed, for to_static_int8(). Matrices with one
// input get one range, so that it is quantized once for all of them. Errors: those of
// activation_range(), with the name of a matrix.
inline Result<std::vector<ProductInput>> product_inputs(const Statistics& statistics,
                                                        const RangeOptions& options = {}) {
  return catch_out_of_memory([&]() -> Result<std::vector<ProductInput>> {
    std::vector<ProductInput> inputs;
    inputs.reserve(statistics.entries().size());
    for (std::size_t i = 0; i < statistics.inputs().size(); ++i) {
      auto range = statistics.inputs()[i].range(options);
      for (const Statistics::Entry& entry : statistics.entries()) {
        if (entry.input != i) continue;
        if (!range) return std::move(range).error().in("the input of " + io::quoted(entry.name));
        inputs.push_back({entry.name, range->scale});
      }
    }
    return inputs;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
