// SPDX-License-Identifier: Apache-2.0
//
// The Qwen 2 MoE architecture (Qwen 1.5 MoE too): Qwen 2 whose feed-forward parts are experts, and
// one that all tokens use, times the sigmoid of a product.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Qwen2Moe {
  using Config = MoeConfig;
  static constexpr std::string_view kName = "qwen2moe";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, llama_config(file));
    Config c(std::move(base));
    c.is_half_split = true;
    NIBBLE_CHECK(read_experts(file, {}, c));
    NIBBLE_TRY(shared_dim, gguf_shared_expert_dim(file, c));
    c.shared_ffn_dim = shared_dim;
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return llama_with(c, nibble::detail::experts_and_gated(c, c));
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
