// SPDX-License-Identifier: Apache-2.0
//
// Models of a shape with random weights.
#pragma once

#include <vector>

#include "bench/case.hpp"
#include "bench/shape.hpp"
#include "nibble/core/available_memory.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/mixtral.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/weight_store.hpp"

namespace bench {

// Packs random weights in `format` on `executor`; narrow matrices, such as taps of convolutions,
// are f32. All tensors have the same source, which is as large as the largest of them. source_bytes
// returns its size, because it counts in the peak of memory. tied: the output matrix is the
// embedding matrix. Errors: invalid_argument (rows that are not whole blocks), limit (more than the
// RAM that is available), out_of_memory.
inline nibble::Result<nibble::Model> synthetic_model(nibble::Owned<nibble::ModelGraph> graph,
                                                     bool tied, nibble::quant::Format format,
                                                     const nibble::LoadOptions& options,
                                                     std::size_t& source_bytes) {
  using nibble::Slot;
  // A few rows of weights, whole blocks in any format, repeated.
  std::vector<float> values(1 << 16);
  Noise noise;
  for (float& v : values) v = 0.03f * noise();
  NIBBLE_TRY(chunk, nibble::quant::row_bytes(format, values.size()));
  // What the architecture's expression asks for.
  struct Needs final : nibble::graph::SurveySink {
    void weight(const nibble::graph::WeightNeed& need) override {
      if (need.is_required || need.tied_to != nibble::graph::kNoSlot) all.push_back(need);
    }
    std::vector<nibble::graph::WeightNeed> all;
  };
  if (!graph) return nibble::Error{nibble::Errc::out_of_memory, "a model"};
  Needs needs;
  graph->survey(needs);
  std::size_t largest = 0;
  Index longest = 1;  // of the vectors
  const auto is_narrow = [](const nibble::graph::WeightNeed& need) {
    return need.is_table && need.rows_of == nibble::graph::RowsOf::nothing;
  };
  for (const auto& need : needs.all) {
    if (need.n == 0) longest = std::max(longest, need.k);
    if (is_narrow(need)) longest = std::max(longest, need.n * need.k);
    if (need.n == 0 || is_narrow(need)) continue;
    NIBBLE_TRY(row, nibble::quant::row_bytes(format, static_cast<std::size_t>(need.k)));
    largest = std::max(largest, static_cast<std::size_t>(need.n * need.n_experts) * row);
  }
  source_bytes = nibble::align_up(largest, chunk);
  NIBBLE_TRY(source, nibble::AlignedBuffer::allocate(source_bytes));
  NIBBLE_CHECK(nibble::quant::row_from_f32(format, values, source.bytes().first(chunk)));
  for (std::size_t at = chunk; at < source_bytes; at += chunk) {
    std::memcpy(source.data() + at, source.data(), chunk);
  }
  // States do not grow: their rates are negative.
  const std::vector<float> ones(static_cast<std::size_t>(longest), 1);
  const std::vector<float> rates(static_cast<std::size_t>(longest), -1);

  nibble::WeightStore store(graph->config().n_layers, nibble::graph::AllFormats{});
  for (const auto& need : needs.all) {
    if (need.tied_to != nibble::graph::kNoSlot && tied) {
      store.share(need.slot, need.layer, need.tied_to, need.layer);
    } else if (need.n == 0 || is_narrow(need)) {
      const bool is_rate = need.slot == static_cast<std::size_t>(Slot::ssm_a);
      const auto n = static_cast<std::size_t>(std::max(need.n, Index{1}) * need.k);
      const auto bytes = std::as_bytes(std::span(is_rate ? rates : ones).first(n));
      NIBBLE_CHECK(
          store.add(need.slot, need.layer, nibble::quant::Format::f32, need.n, need.k, bytes));
    } else {
      NIBBLE_TRY(row, nibble::quant::row_bytes(format, static_cast<std::size_t>(need.k)));
      const auto rows =
          source.bytes().first(static_cast<std::size_t>(need.n * need.n_experts) * row);
      NIBBLE_CHECK(store.add(need.slot, need.layer, format, need.n, need.k, rows, need.n_experts));
    }
  }
  if (store.bytes() > nibble::available_memory()) {
    return nibble::Error{nibble::Errc::limit,
                         "the weights take " + std::to_string(store.bytes() >> 20) + " MiB, but " +
                             std::to_string(nibble::available_memory() >> 20) +
                             " MiB of RAM are available"};
  }
  NIBBLE_CHECK(store.pack(*options.executor));
  return nibble::Model::from_parts(std::move(graph), std::move(store), options);
}

// The same for Llama's architecture.
inline nibble::Result<nibble::Model> synthetic_model(const Shape& shape,
                                                     nibble::quant::Format format,
                                                     const nibble::LoadOptions& options,
                                                     std::size_t& source_bytes) {
  auto graph = shape.config.routing.n_experts > 1 ? nibble::make_graph<nibble::Mixtral>(shape.config)
                                                  : nibble::make_graph<nibble::Llama>(shape.config);
  return synthetic_model(std::move(graph), shape.tied, format,
                         options, source_bytes);
}

}  // namespace bench
