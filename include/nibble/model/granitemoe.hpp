// SPDX-License-Identifier: Apache-2.0
//
// The Granite MoE architecture: Granite whose feed-forward parts are experts, with or without one
// that all tokens use.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/granite.hpp"
#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct GraniteMoe {
  using Config = MoeConfig;
  static constexpr std::string_view kName = "granitemoe";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, llama_config(file));
    NIBBLE_CHECK(read_granite_factors(file, base));
    Config c(std::move(base));
    NIBBLE_CHECK(read_experts(file, {.scores = graph::RouterScores::softmax_of_chosen}, c));
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return llama_moe(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

struct GraniteMoeShared {
  using Config = MoeConfig;
  static constexpr std::string_view kName = GraniteMoe::kName;

  static bool is_for(const io::Gguf& file) {
    const auto dim = file.get_u64_or("granitemoe.expert_shared_feed_forward_length", 0);
    return !dim || *dim > 0;
  }
  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, GraniteMoe::config(file));
    NIBBLE_TRY(shared_dim, gguf_shared_expert_dim(file, c));
    c.shared_ffn_dim = shared_dim;
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    return llama_shared_moe(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
