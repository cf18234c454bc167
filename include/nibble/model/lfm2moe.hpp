// SPDX-License-Identifier: Apache-2.0
//
// The LFM2 MoE architecture: LFM2 whose feed-forward parts, after the first few layers, are
// experts; a bias changes their choice, but not how much they count.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/model/lfm2.hpp"
#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

struct Lfm2Experts : ExpertsOfLayer {
  static constexpr auto choice_bias = graph::optional_slot(Slot::exp_probs_b_bias);
};

}  // namespace detail

struct Lfm2Moe {
  using Config = HybridMoeConfig;
  static constexpr std::string_view kName = "lfm2moe";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, lfm2_config(file));
    Config c(std::move(base));
    NIBBLE_CHECK(
        read_experts(file, {.scores = graph::RouterScores::sigmoid, .is_normalized = true}, c));
    NIBBLE_TRY(n_dense, file.get_u64_or("lfm2moe.leading_dense_block_count", 0));
    if (n_dense > static_cast<std::uint64_t>(Index{c.n_layers})) {
      return Error{Errc::malformed,
                   file.name() + ": key 'lfm2moe.leading_dense_block_count': " + to_text(n_dense) +
                       " of " + to_text(Index{c.n_layers}) + " layers"};
    }
    for (Index layer = 0; layer < c.n_layers; ++layer) {
      const bool is_dense = static_cast<std::uint64_t>(layer) < n_dense;
      c.are_dense.push_back({is_dense});
      c.have_experts.push_back({!is_dense});
    }
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& c) {
    using namespace graph;
    return lfm2_with(
        c, when(per_layer(c.are_dense), lfm2_feed_forward(c)) >>
               when(per_layer(c.have_experts),
                    residual(rms_norm<Slot::ffn_norm>(c.norm_eps) >>
                             nibble::detail::chosen_experts<nibble::detail::Lfm2Experts>(c, c))));
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
