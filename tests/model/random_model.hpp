// SPDX-License-Identifier: Apache-2.0
//
// Small models of random weights, with shapes and formats that a test chooses: as tensors, as a
// WeightStore, as a GGUF file in memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/quant/ggml.hpp"

namespace test {

using nibble::Index;
using nibble::Slot;
using nibble::quant::Format;

enum class Architecture { llama, gpt2 };

struct ModelShape {
  Architecture architecture = Architecture::llama;
  Index vocab_size = 37, dim = 48, n_layers = 2, n_heads = 4, n_kv_heads = 2, head_dim = 12;
  Index ffn_dim = 80, n_ctx = 32, window = 0;
  Index rope_dim = 12;  // Llama only
  float rope_theta = 10000, rope_scale = 1, norm_eps = 1e-5f;
  bool tied = false, qkv_bias = false, rope_factors = false;                        // Llama only
  bool output_bias = false, gate_bias = false, up_bias = false, down_bias = false;  // Llama only
  std::vector<Format> formats = {Format::f32};  // of the matrices, in turn
};

struct RandomTensor {
  Slot slot;
  Index layer;
  Format format;
  Index n, k;  // n = 0: a vector
  std::vector<std::byte> bytes;
  std::vector<float> values;  // the values that the bytes encode

  std::string name() const { return nibble::gguf_name(slot, layer); }
};

class RandomModel {
 public:
  RandomModel(const ModelShape& shape, std::uint32_t seed) : shape_(shape), random_(seed) {
    const ModelShape& s = shape;
    const bool llama = s.architecture == Architecture::llama;
    const Index q = s.n_heads * s.head_dim, kv = s.n_kv_heads * s.head_dim;
    matrix(Slot::token_embd, -1, s.vocab_size, s.dim, 1.0f);
    if (!llama) matrix(Slot::position_embd, -1, s.n_ctx, s.dim, 0.5f);
    norm(Slot::output_norm, Slot::output_norm_bias, -1);
    if (!s.tied) matrix(Slot::output, -1, s.vocab_size, s.dim);
    for (Index layer = 0; layer < s.n_layers; ++layer) {
      norm(Slot::attn_norm, Slot::attn_norm_bias, layer);
      if (llama) {
        matrix(Slot::attn_q, layer, q, s.dim);
        matrix(Slot::attn_k, layer, kv, s.dim);
        matrix(Slot::attn_v, layer, kv, s.dim);
        if (s.qkv_bias) {
          vector(Slot::attn_q_bias, layer, q, 0, 0.5f);
          vector(Slot::attn_k_bias, layer, kv, 0, 0.5f);
          vector(Slot::attn_v_bias, layer, kv, 0, 0.5f);
        }
        if (s.output_bias) vector(Slot::attn_output_bias, layer, s.dim, 0, 0.3f);
        if (s.gate_bias) vector(Slot::ffn_gate_bias, layer, s.ffn_dim, 0, 0.3f);
        if (s.up_bias) vector(Slot::ffn_up_bias, layer, s.ffn_dim, 0, 0.3f);
        if (s.down_bias) vector(Slot::ffn_down_bias, layer, s.dim, 0, 0.3f);
      } else {
        matrix(Slot::attn_qkv, layer, q + 2 * kv, s.dim);
        vector(Slot::attn_qkv_bias, layer, q + 2 * kv, 0, 0.5f);
        vector(Slot::attn_output_bias, layer, s.dim, 0, 0.3f);
        vector(Slot::ffn_up_bias, layer, s.ffn_dim, 0, 0.3f);
        vector(Slot::ffn_down_bias, layer, s.dim, 0, 0.3f);
      }
      matrix(Slot::attn_output, layer, s.dim, q);
      norm(Slot::ffn_norm, Slot::ffn_norm_bias, layer);
      if (llama) matrix(Slot::ffn_gate, layer, s.ffn_dim, s.dim);
      matrix(Slot::ffn_up, layer, s.ffn_dim, s.dim);
      matrix(Slot::ffn_down, layer, s.dim, s.ffn_dim);
    }
    if (s.rope_factors) {
      std::uniform_real_distribution<float> factor(0.5f, 4.0f);
      for (Index i = 0; i < s.rope_dim / 2; ++i) rope_factors_.push_back(factor(random_));
    }
  }

  const ModelShape& shape() const { return shape_; }
  const std::vector<RandomTensor>& tensors() const { return tensors_; }
  const std::vector<float>& rope_factors() const { return rope_factors_; }

  std::vector<std::int32_t> tokens(std::size_t n) {
    std::uniform_int_distribution<std::int32_t> id(
        0, static_cast<std::int32_t>(shape_.vocab_size) - 1);
    std::vector<std::int32_t> ids(n);
    for (std::int32_t& i : ids) i = id(random_);
    return ids;
  }

  nibble::ModelConfig config() const {
    nibble::ModelConfig c;
    c.architecture = shape_.architecture == Architecture::llama ? "llama" : "gpt2";
    c.vocab_size = shape_.vocab_size;
    c.dim = shape_.dim;
    c.n_layers = shape_.n_layers;
    c.n_heads = shape_.n_heads;
    c.n_kv_heads = shape_.n_kv_heads;
    c.head_dim = shape_.head_dim;
    c.ffn_dim = shape_.ffn_dim;
    c.n_ctx = shape_.n_ctx;
    c.window = shape_.window;
    c.norm_eps = shape_.norm_eps;
    if (shape_.architecture == Architecture::llama) {
      c.rope_dim = shape_.rope_dim;
      c.rope_theta = shape_.rope_theta;
      c.rope_scale = shape_.rope_scale;
    }
    return c;
  }

  nibble::WeightStore store() const {
    nibble::WeightStore weights(shape_.n_layers, nibble::graph::AllFormats{});
    for (const RandomTensor& t : tensors_) {
      const auto added = weights.add(t.slot, t.layer, t.format, t.n, t.k, t.bytes);
      REQUIRE_MESSAGE(added.has_value(), t.name());
    }
    if (!rope_factors_.empty()) {
      const auto added = weights.add(Slot::rope_freqs, -1, Format::f32, 0, shape_.rope_dim / 2,
                                     std::as_bytes(std::span(rope_factors_)));
      REQUIRE(added.has_value());
    }
    if (shape_.tied) weights.tie(Slot::output, Slot::token_embd);
    nibble::InlineExecutor executor;
    REQUIRE(weights.pack(executor).has_value());
    return weights;
  }

  // The metadata of the model; its tensors are added by gguf().
  nibble::io::GgufWriter metadata() const {
    const ModelShape& s = shape_;
    const bool llama = s.architecture == Architecture::llama;
    const std::string arch = llama ? "llama." : "gpt2.";
    const auto u32 = [](Index n) { return static_cast<std::uint32_t>(n); };
    nibble::io::GgufWriter writer;
    writer.set("general.architecture", llama ? "llama" : "gpt2");
    writer.set(arch + "embedding_length", u32(s.dim));
    writer.set(arch + "block_count", u32(s.n_layers));
    writer.set(arch + "feed_forward_length", u32(s.ffn_dim));
    writer.set(arch + "attention.head_count", u32(s.n_heads));
    writer.set(arch + "attention.head_count_kv", u32(s.n_kv_heads));
    writer.set(arch + "context_length", u32(s.n_ctx));
    if (s.head_dim * s.n_heads != s.dim) {
      writer.set(arch + "attention.key_length", u32(s.head_dim));
      writer.set(arch + "attention.value_length", u32(s.head_dim));
    }
    if (s.window > 0) writer.set(arch + "attention.sliding_window", u32(s.window));
    if (!llama) {
      writer.set(arch + "attention.layer_norm_epsilon", s.norm_eps);
      return writer;
    }
    writer.set(arch + "attention.layer_norm_rms_epsilon", s.norm_eps);
    writer.set(arch + "rope.dimension_count", u32(s.rope_dim));
    writer.set(arch + "rope.freq_base", s.rope_theta);
    if (s.rope_scale != 1) {
      writer.set(arch + "rope.scaling.type", "linear");
      writer.set(arch + "rope.scaling.factor", s.rope_scale);
    }
    return writer;
  }

  std::vector<std::byte> gguf() const {
    nibble::io::GgufWriter writer = metadata();
    for (const RandomTensor& t : tensors_) {
      const std::uint64_t dims[] = {static_cast<std::uint64_t>(t.k),
                                    static_cast<std::uint64_t>(t.n)};
      writer.add_tensor(t.name(), *nibble::quant::ggml_type_of(t.format),
                        std::span(dims).first(t.n == 0 ? 1 : 2), t.bytes);
    }
    if (!rope_factors_.empty()) {
      const std::uint64_t dims[] = {rope_factors_.size()};
      writer.add_tensor("rope_freqs.weight", nibble::io::GgmlType::f32, dims,
                        std::as_bytes(std::span(rope_factors_)));
    }
    auto bytes = writer.to_bytes();
    REQUIRE(bytes.has_value());
    return *std::move(bytes);
  }

 private:
  // Weights that keep the size of the values that pass: uniform with variance 1 / k, unless given.
  void matrix(Slot slot, Index layer, Index n, Index k, float amplitude = 0) {
    if (amplitude == 0) amplitude = std::sqrt(3.0f / static_cast<float>(k));
    Format format = shape_.formats[turn_++ % shape_.formats.size()];
    while (!nibble::quant::row_bytes(format, static_cast<std::size_t>(k))) {
      format = shape_.formats[turn_++ % shape_.formats.size()];  // rows are not whole blocks
    }
    add({slot, layer, format, n, k, {}, {}}, n, 0, amplitude);
  }
  void vector(Slot slot, Index layer, Index k, float centre, float amplitude) {
    add({slot, layer, Format::f32, 0, k, {}, {}}, 1, centre, amplitude);
  }
  void norm(Slot weight, Slot bias, Index layer) {
    vector(weight, layer, shape_.dim, 1, 0.3f);
    if (shape_.architecture == Architecture::gpt2) vector(bias, layer, shape_.dim, 0, 0.3f);
  }

  void add(RandomTensor t, Index n_rows, float centre, float amplitude) {
    std::uniform_real_distribution<float> weight(centre - amplitude, centre + amplitude);
    const auto k = static_cast<std::size_t>(t.k), rows = static_cast<std::size_t>(n_rows);
    const std::size_t row_bytes = *nibble::quant::row_bytes(t.format, k);
    t.bytes.resize(rows * row_bytes);
    t.values.resize(rows * k);
    for (float& v : t.values) v = weight(random_);
    for (std::size_t r = 0; r < rows; ++r) {
      const auto row = std::span(t.bytes).subspan(r * row_bytes, row_bytes);
      const auto values = std::span(t.values).subspan(r * k, k);
      REQUIRE(nibble::quant::row_from_f32(t.format, values, row).has_value());
      REQUIRE(nibble::quant::row_to_f32(t.format, row, values).has_value());
    }
    tensors_.push_back(std::move(t));
  }

  ModelShape shape_;
  std::mt19937 random_;
  std::size_t turn_ = 0;
  std::vector<RandomTensor> tensors_;
  std::vector<float> rope_factors_;
};

}  // namespace test
