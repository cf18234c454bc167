// SPDX-License-Identifier: Apache-2.0
//
// The BitNet b1.58 architecture (Wang et al. 2023): Llama with norms before the last product of
// each half of a layer, which keep in range what ternary weights are multiplied by. Files state the
// activation: SiLU, or the square of ReLU.
#pragma once

#include <string_view>
#include <utility>

#include "nibble/graph/expr.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct BitNetConfig : DecoderConfig {
  BitNetConfig() = default;
  BitNetConfig(DecoderConfig c) noexcept : DecoderConfig(std::move(c)) {}  // NOLINT: those are one

  bool has_squared_relu = false;  // as activation; otherwise SiLU
};

struct BitNet {
  using Config = BitNetConfig;
  static constexpr std::string_view kName = "bitnet";

  static Result<Config> config(const io::Gguf& file) {
    NIBBLE_TRY(base, decoder_config(file));
    Config c(std::move(base));
    const std::string key = "bitnet.hidden_activation";
    NIBBLE_TRY(activation, file.get_string_or(key, "silu"));
    if (activation != "silu" && activation != "relu2") {
      return Error{Errc::unsupported, file.name() + ": key '" + key +
                                          "': " + io::quoted(activation) +
                                          " is not known; known are silu and relu2"};
    }
    c.has_squared_relu = activation != "silu";
    return c;
  }
  template <class Dims>
  static auto expression(const Dims& d) {
    using namespace graph;
    using enum Slot;
    const auto heads = d.heads();
    const auto attention = rms_norm<attn_norm>(d.norm_eps) >>
                           fork(linear<attn_q>(heads.width()), linear<attn_k>(heads.kv_width()),
                                linear<attn_v>(heads.kv_width())) >>
                           rope<kernels::HalfSplit>(heads, d.rope_angles()) >> cache_kv(heads) >>
                           scores(heads) >> softmax(heads) >> attend_values(heads) >>
                           rms_norm<attn_sub_norm>(d.norm_eps) >> linear<attn_output>(d.dim);
    const auto activated = linear<ffn_gate>(d.ffn_dim) >>
                           when(d.has_squared_relu, in_place(relu()) >> square()) >>
                           when(!d.has_squared_relu, in_place(silu()));
    const auto feed_forward = rms_norm<ffn_norm>(d.norm_eps) >>
                              fork(activated, linear<ffn_up>(d.ffn_dim)) >> multiply() >>
                              rms_norm<ffn_sub_norm>(d.norm_eps) >> linear<ffn_down>(d.dim);
    return embedding<token_embd>(d.dim, d.vocab_size) >>
           repeat(d.n_layers, residual(attention) >> residual(feed_forward)) >> output_rows() >>
           rms_norm<output_norm>(d.norm_eps) >> linear<tied_slot(output, token_embd)>(d.vocab_size);
  }
  template <DimsByReference Dims>
  static void expression(const Dims&&) = delete;
};

}}  // namespace nibble::NIBBLE_ABI
