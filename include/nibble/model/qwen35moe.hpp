// SPDX-License-Identifier: Apache-2.0
//
// The Qwen 3.5 MoE architecture (also Qwen 3.6): Qwen 3.5 whose feed-forward parts are experts, and
// one that all tokens use, times the sigmoid of a product.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/moe.hpp"
#include "nibble/model/qwen35.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Qwen35Moe {
  using Config = HybridMoeConfig;
  static constexpr std::string_view kName = "qwen35moe";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, qwen35_config(file));
    Config c(std::move(base));
    NIBBLE_CHECK(read_experts(file, {.is_normalized = true}, c));
    NIBBLE_TRY(shared_dim, gguf_shared_expert_dim(file, c));
    c.shared_ffn_dim = shared_dim;
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return qwen35_with(c, nibble::detail::experts_and_gated(c, c));
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
