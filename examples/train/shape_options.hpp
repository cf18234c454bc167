// SPDX-License-Identifier: Apache-2.0
//
// The options for the dimensions of a model.
#pragma once

#include <cstdint>
#include <string>

#include "../common.hpp"
#include "shape.hpp"

namespace example {

// --layers and so on, "of" what `of` says. A dimension of 0 is shown as no default.
inline void add_shape_options(CLI::App& app, Shape& shape, const std::string& of) {
  const struct {
    const char* name;
    std::uint32_t& value;
    const char* what;
    int least, most;
  } dimensions[] = {{"--layers", shape.n_layers, "layers", 1, 1000},
                    {"--dim", shape.dim, "width", 8, 16384},
                    {"--heads", shape.n_heads, "heads", 1, 256},
                    {"--kv-heads", shape.n_kv_heads, "heads of keys and values", 1, 256},
                    {"--ffn", shape.ffn, "width of the feed-forward part", 8, 65536}};
  for (const auto& one : dimensions) {
    auto* const option = app.add_option(one.name, one.value, std::string(one.what) + ' ' + of)
                             ->check(CLI::Range(one.least, one.most));
    if (one.value > 0) option->capture_default_str();
  }
}

}  // namespace example
