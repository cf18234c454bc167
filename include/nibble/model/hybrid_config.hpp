// SPDX-License-Identifier: Apache-2.0
//
// The dimensions of hybrids: decoders some of whose layers are recurrent and have no attention.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/kernels/causal_conv.hpp"
#include "nibble/kernels/delta_rule.hpp"
#include "nibble/model/decoder_config.hpp"
#include "nibble/model/gguf_config.hpp"
#include "nibble/model/moe.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct HybridConfig : DecoderConfig {
  LayerValues<bool> are_recurrent;   // one per layer
  LayerValues<bool> have_attention;  // the others
  Index n_taps = 0;                  // of convolutions
  kernels::DeltaHeads delta_heads;   // of recurrent layers with a matrix as state
  float recurrent_eps = 0;           // of the norms in recurrent layers
};

// Hybrids with experts.
struct HybridMoeConfig : HybridConfig, ExpertConfig {
  HybridMoeConfig() = default;
  HybridMoeConfig(HybridConfig c) noexcept  // NOLINT: those are one
      : HybridConfig(std::move(c)) {}

  LayerValues<bool> have_experts;  // one per layer, if they differ
  LayerValues<bool> are_dense;     // the others
};

// Sets which layers are recurrent.
template <class IsRecurrent>
void set_recurrent_layers(HybridConfig& c, const IsRecurrent& is_recurrent) {
  for (Index layer = 0; layer < c.n_layers; ++layer) {
    const bool recurrent = is_recurrent(layer);
    c.are_recurrent.push_back({recurrent});
    c.have_attention.push_back({!recurrent});
  }
}

// What hybrids have in common. Layers without kv heads are recurrent, if the file states heads by
// layer. Errors: those of transformer_config() and read_rope_config(); unsupported (numbers of
// heads that differ otherwise).
inline Result<HybridConfig> hybrid_config(const io::Gguf& file) {
  LayerDims dims;
  dims.may_lack_attention = true;
  NIBBLE_TRY(base, transformer_config(file, "attention.layer_norm_rms_epsilon", &dims));
  HybridConfig c;
  static_cast<DecoderConfig&>(c) = DecoderConfig(std::move(base));
  const auto& kv = dims.n_kv_heads;
  bool is_uniform = dims.n_heads.empty();
  for (const auto& [n] : kv) is_uniform = is_uniform && (n == 0 || n == c.n_kv_heads);
  if (!is_uniform || c.n_heads % c.n_kv_heads != 0) {
    return Error{Errc::unsupported, file.name() +
                                        ": numbers of heads, or of kv heads, that differ "
                                        "between layers with attention, or do not go "
                                        "together"};
  }
  if (!kv.empty()) {
    set_recurrent_layers(
        c, [&](Index layer) { return kv[static_cast<std::size_t>(layer)].value == 0; });
  }
  c.layer_dims.ffn_dims = std::move(dims.ffn_dims);
  NIBBLE_CHECK(read_rope_config(file, c));
  if (file.find(c.architecture + ".attention.scale") != nullptr) {
    NIBBLE_TRY(scale, gguf_positive_or(file, c.architecture + ".attention.scale", 1.0f));
    c.attention_scale = scale;
  }
  return c;
}

// The number of taps of convolutions. Errors: those of gguf_dim(); unsupported (others than 2 to
// 4).
inline Result<Index> gguf_conv_taps(const io::Gguf& file, const std::string& key) {
  NIBBLE_TRY(n, gguf_dim(file, key, kMaxDim));
  if (n >= kernels::kMinConvTaps && n <= kernels::kMaxConvTaps) return n;
  return Error{Errc::unsupported, file.name() + ": key '" + key + "': convolutions with " +
                                      to_text(n) + " taps; those with 2 to 4 are known"};
}

// Whether the states of a sequence in all layers fit in the address space, and their sizes are
// sensible. Errors: malformed.
inline Result<void> check_delta_heads(const io::Gguf& file, const HybridConfig& c) {
  constexpr Index kMaxStateDim = 4096;
  const kernels::DeltaHeads& h = c.delta_heads;
  const auto text = [&] {
    return to_text(h.n_heads) + " states of " + to_text(h.state.key_dim) + " by " +
           to_text(h.state.value_dim) + ", " + to_text(h.n_key_heads) + " key heads";
  };
  if (h.n_key_heads < 1 || h.n_heads % h.n_key_heads != 0 || h.state.value_dim < 1) {
    return Error{Errc::malformed, file.name() + ": " + text() + " do not go together"};
  }
  constexpr Index kMostFloats = kMaxBytes / 4 / static_cast<Index>(sizeof(float));
  if (h.state.key_dim > kMaxStateDim || h.state.value_dim > kMaxStateDim ||
      h.n_heads > kMostFloats / c.n_layers / h.state.n_floats()) {
    return Error{Errc::malformed, file.name() + ": " + text() + " in " +
                                      to_text(Index{c.n_layers}) + " layers are too large"};
  }
  return ok();
}

// Reads the sizes of layers with a matrix as state. Errors: those of gguf_dim() and
// check_delta_heads().
inline Result<void> read_delta_config(const io::Gguf& file, HybridConfig& c) {
  const std::string ssm = c.architecture + ".ssm.";
  NIBBLE_TRY(n_taps, gguf_conv_taps(file, ssm + "conv_kernel"));
  NIBBLE_TRY(key_dim, gguf_dim(file, ssm + "state_size", kMaxDim));
  NIBBLE_TRY(n_key_heads, gguf_dim(file, ssm + "group_count", kMaxDim));
  NIBBLE_TRY(n_heads, gguf_dim(file, ssm + "time_step_rank", kMaxDim));
  NIBBLE_TRY(inner, gguf_dim(file, ssm + "inner_size", kMaxDim));
  c.n_taps = n_taps;
  c.recurrent_eps = c.norm_eps;
  c.delta_heads = {n_heads, n_key_heads, {key_dim, inner / n_heads}};
  if (inner % n_heads != 0) {
    return Error{Errc::malformed, file.name() + ": an inner size of " + to_text(inner) + " for " +
                                      to_text(n_heads) + " heads"};
  }
  return check_delta_heads(file, c);
}

}}  // namespace nibble::NIBBLE_ABI
