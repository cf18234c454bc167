// SPDX-License-Identifier: Apache-2.0
//
// The Qwen 3 MoE architecture: Qwen 3 whose feed-forward parts are experts.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Qwen3Moe {
  using Config = MoeConfig;
  static constexpr std::string_view kName = "qwen3moe";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, llama_config(file));
    Config c(std::move(base));
    c.is_half_split = true;
    c.has_head_norms = true;
    NIBBLE_CHECK(read_experts(file, {.is_normalized = true}, c));
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return llama_moe(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
