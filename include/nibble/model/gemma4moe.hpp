// SPDX-License-Identifier: Apache-2.0
//
// Gemma 4 with experts beside its feed-forward parts: both read the same rows, each behind norms of
// its own, and the router behind another one. GGUF files of both have the same name of the
// architecture.
#pragma once

#include <string_view>

#include "nibble/model/gemma4.hpp"
#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

struct Gemma4Experts : ExpertsOfLayer {
  static constexpr auto scale = graph::optional_slot(Slot::ffn_down_exps_scale);
};

}  // namespace detail

struct Gemma4Moe {
  using Config = Gemma4Config;
  static constexpr std::string_view kName = "gemma4";

  // Whether there are experts. A file that states their number wrongly is one of these, too.
  static bool is_for(const io::Gguf& file) {
    const auto n_experts = file.get_u64_or("gemma4.expert_count", 0);
    return !n_experts || *n_experts > 0;
  }
  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(c, gemma4_config(file));
    NIBBLE_CHECK(read_experts(file, {.is_normalized = true}, c));
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    using namespace graph;
    using enum Slot;
    const auto experts =
        fork(rms_norm<ffn_gate_inp_scale>(c.norm_eps) >> scale(inverse_sqrt(c.dim)),
             rms_norm<pre_ffw_norm_2>(c.norm_eps)) >>
        nibble::detail::chosen_experts<nibble::detail::Gemma4Experts, kernels::GeluTanh>(c, c) >>
        in_place(rms_norm<post_ffw_norm_2>(c.norm_eps));
    return gemma4_with(
        c,
        fork(gemma4_feed_forward(c) >> in_place(rms_norm<post_ffw_norm_1>(c.norm_eps)), experts) >>
            sum());
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
