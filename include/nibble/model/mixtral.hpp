// SPDX-License-Identifier: Apache-2.0
//
// Mixtral (Jiang et al. 2024): Llama whose feed-forward parts are experts. GGUF files of both have
// the same name of the architecture.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Mixtral {
  using Config = MoeConfig;
  static constexpr std::string_view kName = "llama";

  // Whether there are experts. A file that states their number wrongly is one of these, too.
  static bool is_for(const io::Gguf& file) {
    const auto n_experts = file.get_u64_or("llama.expert_count", 0);
    return !n_experts || *n_experts > 0;
  }
  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, llama_config(file));
    Config c(std::move(base));
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
