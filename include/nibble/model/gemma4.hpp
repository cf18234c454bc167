// SPDX-License-Identifier: Apache-2.0
//
// The Gemma 4 architecture (text): as Gemma 3, but heads are larger in the layers without window,
// values have norms, the last layers read keys and values of earlier ones, and layers have inputs
// besides their rows. Files may have experts beside the feed-forward parts.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "nibble/graph/across_layers.hpp"
#include "nibble/graph/apply_across_layers.hpp"
#include "nibble/graph/expr.hpp"
#include "nibble/model/gemma.hpp"
#include "nibble/model/moe.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

struct Gemma4Experts : ExpertsOfLayer {
  static constexpr auto scale = graph::optional_slot(Slot::ffn_down_exps_scale);
};

}  // namespace detail

struct Gemma4Config : MoeConfig {
  Gemma4Config() = default;
  Gemma4Config(DecoderConfig c) noexcept : MoeConfig(std::move(c)) {}  // NOLINT: those are one

  bool has_experts = false;
  Index input_width = 0;  // of the inputs of layers besides their rows; 0: there are none
  // Of each layer:
  LayerValues<Index> head_dims;
  LayerValues<bool> have_window, are_full;
  LayerValues<bool> have_kv, share_kv;
  LayerValues<Index> kv_layers;  // whose keys and values it reads

  auto heads() const& noexcept {
    return graph::Heads(n_heads,
                        Dim<kPerLayer>(per_layer_or(layer_dims.n_kv_heads, Index{n_kv_heads})),
                        dim_per_layer(head_dims), attention_scale, per_layer_or(windows, window));
  }
  void heads() const&& = delete;
};

// From tokens to logits (outputs, vocab_size).
inline auto gemma4(const Gemma4Config& d) {
  using namespace graph;
  using enum Slot;
  const auto heads = d.heads();
  const auto positioned =
      head_norm<attn_q_norm, attn_k_norm>(heads, d.norm_eps) >>
      when(per_layer(d.are_full),
           rope<kernels::HalfSplit, optional_slot(rope_freqs)>(heads, d.rope_angles())) >>
      when(per_layer(d.have_window), rope<kernels::HalfSplit>(heads, d.rope_angles()));
  const auto attend = scores(heads) >> softmax(heads) >> attend_values(heads) >>
                      linear<attn_output>(d.dim) >>
                      in_place(rms_norm<post_attention_norm>(d.norm_eps));
  const auto attention = rms_norm<attn_norm>(d.norm_eps) >>
                         fork(linear<attn_q>(d.q_width()), linear<attn_k>(d.kv_width()),
                              linear<tied_slot(attn_v, attn_k)>(d.kv_width())) >>
                         value_norm(heads, d.norm_eps) >> positioned >> cache_kv(heads) >> attend;
  const auto shared_attention = rms_norm<attn_norm>(d.norm_eps) >> linear<attn_q>(d.q_width()) >>
                                positioned >> share_kv(heads, per_layer(d.kv_layers)) >> attend;

  const auto feed_forward =
      rms_norm<ffn_norm>(d.norm_eps) >>
      fork(linear<ffn_gate>(d.ffn_width()) >> gelu_tanh(), linear<ffn_up>(d.ffn_width())) >>
      multiply() >> linear<ffn_down>(d.dim);
  // The router reads the rows behind a norm of its own.
  const auto experts =
      fork(rms_norm<ffn_gate_inp_scale>(d.norm_eps) >> scale(inverse_sqrt(d.dim)),
           rms_norm<pre_ffw_norm_2>(d.norm_eps)) >>
      nibble::detail::chosen_experts<nibble::detail::Gemma4Experts, kernels::GeluTanh>(d, d) >>
      in_place(rms_norm<post_ffw_norm_2>(d.norm_eps));
  const auto both =
      fork(feed_forward >> in_place(rms_norm<post_ffw_norm_1>(d.norm_eps)), experts) >> sum();
  const auto last_norm = in_place(rms_norm<post_ffw_norm>(d.norm_eps));

  // The input of a layer, behind a gate.
  const bool has_inputs = d.input_width > 0;
  const Dim<> width{d.input_width};
  const auto own_input = linear<layer_input_gate>(width) >> gelu_tanh() >> times_layer_input() >>
                         linear<layer_input_output>(d.dim) >>
                         in_place(rms_norm<layer_input_post_norm>(d.norm_eps));
  const auto layer = when(per_layer(d.have_kv), residual(attention)) >>
                     when(per_layer(d.share_kv), residual(shared_attention)) >>
                     when(!d.has_experts, residual(feed_forward >> last_norm)) >>
                     when(d.has_experts, residual(both >> last_norm)) >>
                     when(has_inputs, residual(own_input)) >>
                     scale_by<optional_slot(layer_output_scale)>();

  const auto rows = embedding<token_embd>(d.dim, d.vocab_size, d.embedding_scale);
  // RMSNorm(y / sqrt(dim)) with eps is RMSNorm(y) with eps * dim.
  const float half = inverse_sqrt(2);
  const auto inputs =
      rows >> linear<layer_input_projection>(Dim<>{d.input_width * d.n_layers}) >>
      layer_inputs<layer_input_table, layer_input_norm>(
          d.input_width, d.vocab_size, d.norm_eps * static_cast<float>(Index{d.dim}), half,
          has_inputs ? half / inverse_sqrt(d.input_width) : 0.0f);
  return beside(has_inputs, inputs, rows >> repeat(d.n_layers, layer)) >> output_rows() >>
         rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size) >>
         cap_rows(d.logit_cap);
}
void gemma4(const Gemma4Config&&) = delete;

// Which layers read whose keys and values: the last `n_shared` those of the last layer before them
// that has a window, too, or has none, too. Errors: malformed (there is no such layer).
inline Result<void> share_last_layers(const io::Gguf& file, std::uint64_t n_shared,
                                      Gemma4Config& c) {
  const Index n_layers = c.n_layers;
  const Index n_own =
      n_shared < static_cast<std::uint64_t>(n_layers) ? n_layers - static_cast<Index>(n_shared) : 0;
  for (Index layer = 0; layer < n_layers; ++layer) {
    const auto has_window = [&](Index i) {
      return c.have_window[static_cast<std::size_t>(i)].value;
    };
    Index from = layer < n_own ? layer : n_own - 1;
    while (from >= 0 && has_window(from) != has_window(layer)) --from;
    if (from < 0) {
      return Error{Errc::malformed,
                   file.name() + ": key 'gemma4.attention.shared_kv_layers': " + to_text(n_shared) +
                       " of " + to_text(n_layers) + " layers: layer " + to_text(layer) +
                       " has none whose keys and values it could read"};
    }
    c.have_kv.push_back({layer < n_own});
    c.share_kv.push_back({layer >= n_own});
    c.kv_layers.push_back({from});
  }
  return ok();
}

// Errors: those of gemma_config() and read_experts(), malformed.
inline Result<Gemma4Config> gemma4_config(const io::Gguf& file) {
  NIBBLE_TRY(base, gemma_config(file, 6, true));
  Gemma4Config c(std::move(base));
  const std::string arch = c.architecture + ".";
  c.has_head_norms = true;
  c.attention_scale = 1;
  NIBBLE_TRY(base_of_window, gguf_positive_or(file, arch + "rope.freq_base_swa", 10000.0f));
  set_window_rotation(c, base_of_window);
  const Index head_dim = c.head_dim;
  NIBBLE_TRY(small_dim, gguf_dim_or(file, arch + "attention.key_length_swa", kMaxDim, head_dim));
  NIBBLE_TRY(value_dim, gguf_dim_or(file, arch + "attention.value_length_swa", kMaxDim, small_dim));
  NIBBLE_TRY(small_rope, gguf_dim_or(file, arch + "rope.dimension_count_swa", kMaxDim, small_dim));
  if (value_dim != small_dim || small_rope > small_dim || small_rope % 2 != 0) {
    return Error{Errc::malformed, file.name() + ": in layers with a window, heads of " +
                                      to_text(small_dim) + " and " + to_text(value_dim) +
                                      ", of which " + to_text(small_rope) + " are rotated"};
  }
  c.q_widths.clear();
  c.kv_widths.clear();
  for (std::size_t i = 0; i < c.windows.size(); ++i) {
    const bool has_window = c.windows[i].value > 0;
    const Index dim = has_window ? small_dim : head_dim;
    const auto& kv = c.layer_dims.n_kv_heads;
    c.have_window.push_back({has_window});
    c.are_full.push_back({!has_window});
    c.head_dims.push_back({dim});
    c.rope_dims.push_back({has_window ? small_rope : c.rope_dim});
    c.q_widths.push_back({c.n_heads * dim});
    c.kv_widths.push_back({(kv.empty() ? Index{c.n_kv_heads} : kv[i].value) * dim});
  }
  if (!c.layer_dims.n_heads.empty()) {
    return Error{Errc::unsupported, file.name() + ": numbers of heads that differ by layer"};
  }
  if (file.find(arch + "embedding_length_per_layer_input") != nullptr) {
    NIBBLE_TRY(width, file.get_u64(arch + "embedding_length_per_layer_input"));
    if (width > kMaxVocabulary / static_cast<std::uint64_t>(Index{c.n_layers})) {
      return Error{Errc::malformed,
                   file.name() + ": inputs of layers of " + to_text(width) + " numbers"};
    }
    c.input_width = static_cast<Index>(width);
  }
  NIBBLE_TRY(n_shared, file.get_u64_or(arch + "attention.shared_kv_layers", 0));
  NIBBLE_CHECK(share_last_layers(file, n_shared, c));
  c.has_experts = file.find(arch + "expert_count") != nullptr;
  if (c.has_experts) {
    NIBBLE_TRY(n_experts, file.get_u64(arch + "expert_count"));
    c.has_experts = n_experts > 0;
  }
  if (c.has_experts) NIBBLE_CHECK(read_experts(file, {.is_normalized = true}, c));
  return c;
}

struct Gemma4 {
  using Config = Gemma4Config;
  static constexpr std::string_view kName = "gemma4";

  static Result<Config> config(const io::Gguf& file) { return gemma4_config(file); }
  template <class Dims>
  static auto expression(const Dims& c) {
    return gemma4(c);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
