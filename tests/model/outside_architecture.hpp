// SPDX-License-Identifier: Apache-2.0
//
// Architectures that nibble does not know, made of its nodes and of one new node: what a program
// does that brings another kind of model.
//
//   Parallel   attention and feed-forward side by side; RMSNorm of each head of q and k; in every
//              second layer a window and another base of the rotation; scaled embeddings, soft
//              caps, ffn widths that differ by layer, a norm after the sum
//   ConvNet    in some layers a causal convolution per channel instead of attention: recurrent
//              state
#pragma once

#include <string>
#include <string_view>

#include "nibble/graph/expr.hpp"
#include "nibble/graph/pass.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/gguf_config.hpp"

namespace outside {

using nibble::Index;

enum class Part : unsigned char {
  token_embd,
  output_norm,
  output,
  norm,
  q,
  k,
  v,
  q_norm,
  k_norm,
  attn_out,
  gate,
  up,
  down,
  post_norm,
  conv,
};
constexpr std::size_t slot_count(Part) { return 15; }
constexpr std::string_view to_string(Part part) {
  constexpr std::string_view kNames[] = {
      "token_embd", "output_norm", "output", "norm", "q",    "k",         "v",   "q_norm",
      "k_norm",     "attn_out",    "gate",   "up",   "down", "post_norm", "conv"};
  return kNames[static_cast<std::size_t>(part)];
}
inline std::string gguf_name(Part part, Index layer) {
  const std::string name(to_string(part));
  return (layer < 0 ? name : "blk." + std::to_string(layer) + "." + name) + ".weight";
}

// ---- Attention and feed-forward in parallel ----------------------------------------------------

struct ParallelConfig : nibble::ModelConfig {
  nibble::LayerValues<Index> windows;  // one per layer; 0: none
  nibble::LayerValues<float> rope_thetas;
  nibble::LayerValues<Index> ffn_dims;
  float embedding_scale = 1;
  float soft_cap = 0;
};

struct Parallel {
  using Config = ParallelConfig;
  using Slots = Part;
  static constexpr std::string_view kName = "parallel";

  static nibble::Result<Config> config(const nibble::io::Gguf& file) {
    NIBBLE_TRY(base, nibble::transformer_config(file, "eps"));
    Config c;
    static_cast<nibble::ModelConfig&>(c) = base;
    NIBBLE_TRY(window, nibble::gguf_dim(file, "parallel.window", 1 << 20));
    NIBBLE_TRY(theta, file.get_f32("parallel.theta"));
    NIBBLE_TRY(local_theta, file.get_f32("parallel.local_theta"));
    NIBBLE_TRY(scale, file.get_f32("parallel.embedding_scale"));
    NIBBLE_TRY(cap, file.get_f32("parallel.soft_cap"));
    c.embedding_scale = scale;
    c.soft_cap = cap;
    c.rope_dim = c.head_dim;
    for (Index layer = 0; layer < c.n_layers; ++layer) {
      const bool is_local = layer % 2 == 0;
      c.windows.push_back({is_local ? window : 0});
      c.rope_thetas.push_back({is_local ? local_theta : theta});
      c.ffn_dims.push_back({Index{c.ffn_dim} + 32 * layer});
    }
    return c;
  }

  static auto expression(const Config& c) {
    using namespace nibble::graph;
    using enum Part;
    const Heads heads = Heads(c.n_heads, c.n_kv_heads, c.head_dim, nibble::inverse_sqrt(c.head_dim),
                              nibble::per_layer(c.windows))
                            .with(SoftCap{c.soft_cap});
    const RopeAngles angles{c.rope_dim, nibble::per_layer(c.rope_thetas), 1.0f};
    const auto ffn_dim = nibble::dim_per_layer(c.ffn_dims);
    const auto attention =
        fork(linear<q>(heads.width()), linear<k>(heads.kv_width()), linear<v>(heads.kv_width())) >>
        head_norm<q_norm, k_norm>(heads, c.norm_eps) >>
        rope<nibble::kernels::HalfSplit>(heads, angles) >> cache_kv(heads) >> scores(heads) >>
        softmax(heads) >> attend_values(heads) >> linear<attn_out>(c.dim);
    const auto feed_forward = fork(linear<gate>(ffn_dim) >> gelu_tanh(), linear<up>(ffn_dim)) >>
                              multiply() >> linear<down>(c.dim);
    return embedding<token_embd>(c.dim, c.vocab_size, c.embedding_scale) >>
           repeat(c.n_layers,
                  residual(rms_norm<norm>(c.norm_eps) >> fork(attention, feed_forward) >> sum() >>
                           rms_norm<post_norm>(c.norm_eps))) >>
           output_rows() >> rms_norm<output_norm>(c.norm_eps) >>
           linear<tied_slot(output, token_embd)>(c.vocab_size);
  }
};

// ---- A convolution with recurrent state --------------------------------------------------------

// y[t][i] = sum_j w[j][i] * x[t - (n - 1) + j][i], where rows before the first are zeros; w (n,
// width) as f32 rows. Its state of a sequence is the last n - 1 rows.
template <auto kSlot>
struct CausalConv : nibble::graph::Node {
  Index n_taps;
};
template <auto kSlot>
constexpr auto causal_conv(Index n_taps) {
  return CausalConv<kSlot>{{}, n_taps};
}

template <auto kSlot, class Pass, Index W>
constexpr auto apply(const CausalConv<kSlot>& node, Pass& pass,
                     const nibble::graph::Value<W>& x) noexcept {
  const Index n_kept = node.n_taps - 1, width = x.width;
  pass.template weight<kSlot>(0, node.n_taps * width);
  const nibble::graph::StateAt state = pass.state(n_kept * width);
  const auto out = pass.make(x.width, x.rows);
  pass.step(
      [=](auto& run) {
        const float* const taps = run.vector(kSlot).data();
        const auto in = run.view(x);
        const auto to = run.view(out);
        for (const nibble::graph::Segment& segment : run.step_args().segments) {
          float* const kept = run.state_of(segment, state).data();  // (n_kept, width)
          for (Index row = segment.first_row; row < segment.first_row + segment.n_rows; ++row) {
            for (Index i = 0; i < width; ++i) {
              float sum = taps[n_kept * width + i] * in(row, i);
              for (Index j = 0; j < n_kept; ++j) {
                sum += taps[j * width + i] * kept[j * width + i];
              }
              to(row, i) = sum;
            }
            for (Index j = 0; j + 1 < n_kept; ++j) {
              for (Index i = 0; i < width; ++i) kept[j * width + i] = kept[(j + 1) * width + i];
            }
            for (Index i = 0; i < width; ++i) kept[(n_kept - 1) * width + i] = in(row, i);
          }
        }
      },
      x, out);
  return out;
}
template <auto kSlot>
std::string describe(const CausalConv<kSlot>& node) {
  return "causal_conv(" + std::to_string(node.n_taps) + ")";
}

struct ConvConfig : nibble::ModelConfig {
  nibble::LayerValues<bool> has_attention;  // one per layer; the others have the convolution
  nibble::LayerValues<bool> has_conv;
};

struct ConvNet {
  using Config = ConvConfig;
  using Slots = Part;
  static constexpr std::string_view kName = "convnet";
  static constexpr Index kTaps = 4;

  static nibble::Result<Config> config(const nibble::io::Gguf& file) {
    NIBBLE_TRY(base, nibble::transformer_config(file, "eps"));
    Config c;
    static_cast<nibble::ModelConfig&>(c) = base;
    c.rope_dim = c.head_dim;
    for (Index layer = 0; layer < c.n_layers; ++layer) {
      c.has_attention.push_back({layer % 2 == 1});
      c.has_conv.push_back({layer % 2 == 0});
    }
    return c;
  }

  static auto expression(const Config& c) {
    using namespace nibble::graph;
    using enum Part;
    const Heads heads{c.n_heads, c.n_kv_heads, c.head_dim, nibble::inverse_sqrt(c.head_dim)};
    const auto attention =
        rms_norm<norm>(c.norm_eps) >>
        fork(linear<q>(heads.width()), linear<k>(heads.kv_width()), linear<v>(heads.kv_width())) >>
        rope<nibble::kernels::HalfSplit>(heads, RopeAngles{c.rope_dim}) >> cache_kv(heads) >>
        scores(heads) >> softmax(heads) >> attend_values(heads) >> linear<attn_out>(c.dim);
    const auto convolution =
        rms_norm<norm>(c.norm_eps) >> causal_conv<conv>(kTaps) >> silu() >> linear<attn_out>(c.dim);
    return embedding<token_embd>(c.dim, c.vocab_size) >>
           repeat(c.n_layers,
                  when(nibble::per_layer(c.has_attention), residual(attention)) >>
                      when(nibble::per_layer(c.has_conv), residual(convolution)) >>
                      residual(rms_norm<post_norm>(c.norm_eps) >> linear<up>(c.ffn_dim) >> silu() >>
                               linear<down>(c.dim))) >>
           output_rows() >> rms_norm<output_norm>(c.norm_eps) >>
           linear<tied_slot(output, token_embd)>(c.vocab_size);
  }
};

}  // namespace outside
