// SPDX-License-Identifier: Apache-2.0
//
// For tests of the cache of prefixes: tokens, logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "generate/small_models.hpp"
#include "must.hpp"
#include "nibble/generate/engine.hpp"
#include "why.hpp"

namespace test {

using Ids = std::vector<std::int32_t>;

// The code of the error, if there is one.
template <class T>
std::optional<nibble::Errc> code(const nibble::Result<T>& result) {
  return result ? std::optional<nibble::Errc>() : std::optional<nibble::Errc>(result.error().code);
}

inline Ids some_ids(std::size_t n, std::size_t seed) {
  std::mt19937 random(static_cast<std::uint32_t>(seed));
  Ids ids(n);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % 50);
  return ids;
}
inline std::span<const std::int32_t> rest_of(const Ids& ids, nibble::Index n) {
  return std::span(ids).subspan(static_cast<std::size_t>(n));
}

// Computes tokens in as many steps as it takes; the logits after the last.
inline std::vector<float> append(nibble::Engine& engine, nibble::Sequence& sequence,
                                 std::span<const std::int32_t> ids) {
  const auto most = static_cast<std::size_t>(engine.max_step_tokens());
  for (;;) {
    const auto now = ids.first(std::min(ids.size(), most));
    ids = ids.subspan(now.size());
    const nibble::SequenceInput input{.sequence = &sequence, .tokens = now};
    const auto logits = must(engine.run({&input, 1}));
    if (!ids.empty()) continue;
    return {logits.data(), logits.data() + logits.extent(1)};
  }
}
// The same for a sequence of its own.
inline std::vector<float> logits_of(nibble::Engine& engine, std::span<const std::int32_t> ids) {
  nibble::Sequence sequence = must(engine.new_sequence());
  return append(engine, sequence, ids);
}

// Bytes of a page of the cache of an engine with keys and values in f16.
inline std::size_t page_bytes_of(const nibble::Engine& engine) {
  const nibble::ModelConfig& c = engine.model().config();
  return static_cast<std::size_t>(nibble::Index{c.n_layers} * nibble::Index{c.n_kv_heads} *
                                  nibble::Index{c.head_dim} * 2 * 2 * nibble::ops::kPagePositions);
}

}  // namespace test
