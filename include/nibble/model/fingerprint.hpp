// SPDX-License-Identifier: Apache-2.0
//
// A number that tells models apart: for what is computed with one, kept, and must not be used with
// another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/graph/survey.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/checksum.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

// Hashes what the graph of a model needs, in the order of its walk.
class Fingerprint final : public graph::SurveySink {
 public:
  explicit Fingerprint(graph::WeightTable weights) noexcept : weights_(weights) {}

  void weight(const graph::WeightNeed& need) override {
    add(need.slot, need.layer);
    add_weight(weights_.at(need.slot, need.layer));
  }
  void cache(Index layer, const ops::KvShape& shape) override {
    add(layer, shape.n_kv_heads, shape.head_dim);
  }
  void state(Index layer, Index n_floats, Index n_chunk_floats) override {
    add(layer, n_floats, n_chunk_floats);
  }
  void rope(const graph::RopeKey& key, const graph::RopeFactors& factors) override {
    add(key.dim, key.theta, key.position_scale, key.has_factors, key.magnitude);
    add(key.yarn.n_original, key.yarn.beta_fast, key.yarn.beta_slow, factors.n_original);
  }
  void max_positions(Index n) override { add(n); }

  // Numbers, one by one: structures have bytes that mean nothing.
  template <class... Numbers>
  void add(Numbers... numbers) noexcept {
    ((sum_ = io::checksum(std::as_bytes(std::span<const Numbers>(&numbers, 1)), sum_)), ...);
  }
  void add(std::span<const std::byte> bytes) noexcept { sum_ = io::checksum(bytes, sum_); }
  std::uint64_t sum() const noexcept { return sum_; }

 private:
  // Of a larger weight, so many pieces of so many bytes are hashed, at equal distances.
  static constexpr Index kPieces = 256, kPieceBytes = 64;

  void add_weight(const graph::Weight& w) noexcept {
    add(w.n, w.k, w.n_experts, w.factors != nullptr);
    if (w.has_base()) add_base(w);
    if (w.factors == nullptr) return;
    add(w.factors->scale);
    for (const graph::Weight* factor : {&w.factors->a, &w.factors->b}) {
      add(factor->n, factor->k);
      add_base(*factor);
    }
  }
  void add_base(const graph::Weight& w) noexcept {
    if (w.ops != nullptr) add(w.ops->format);
    add(w.input.scale, w.input.zero_point, w.input.is_unsigned);
    const std::span<const std::byte> data(w.data, static_cast<std::size_t>(w.bytes()));
    const Index n_pieces = w.bytes() / kPieceBytes;
    if (n_pieces <= kPieces) return add(data);
    for (Index i = 0; i < kPieces; ++i) {
      const Index piece = i * (n_pieces - 1) / (kPieces - 1);
      add(data.subspan(static_cast<std::size_t>(piece * kPieceBytes), kPieceBytes));
    }
  }

  graph::WeightTable weights_;
  std::uint64_t sum_ = 0;
};

}  // namespace detail

// 64 bits of the dimensions of a model, of the kinds and shapes of its weights, and of a part of
// their numbers: all of up to 16 KB of each weight, of larger ones 256 pieces of 64 bytes at equal
// distances. It is the same for every copy of the model on every machine, another one after
// training, merging or conversion. It may be the same for a model in which only a few numbers of a
// large matrix were changed by hand.
// weights: others of the same shapes (Engine::exchange_weights) than the model's own. Error:
// out_of_memory.
inline Result<std::uint64_t> fingerprint(const Model& model, graph::WeightTable weights) {
  return catch_out_of_memory([&]() -> Result<std::uint64_t> {
    const ModelConfig& c = model.config();
    detail::Fingerprint sink(weights);
    sink.add(std::as_bytes(std::span<const char>(c.architecture)));
    sink.add(Index{c.vocab_size}, Index{c.dim}, Index{c.n_layers}, c.window, c.norm_eps);
    model.architecture().survey(sink);
    return sink.sum();
  });
}
inline Result<std::uint64_t> fingerprint(const Model& model) {
  return fingerprint(model, model.weights());
}

}}  // namespace nibble::NIBBLE_ABI
