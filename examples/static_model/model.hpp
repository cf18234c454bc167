// SPDX-License-Identifier: Apache-2.0
//
// The model that ships with nibble, with INT4 weights, as constants: dimensions, the plan of its
// memory, and the places of its weights in an image for a device. Uses no heap, files or threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/executor.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/ops/softmax.hpp"

namespace example::fixed {

using nibble::Dim;
using nibble::Index;
using nibble::Slot;
using nibble::quant::Q4_0;

// The dimensions as llama() expects them.
struct HomeCommands {
  Dim<512> vocab_size;
  Dim<256> dim;
  Dim<3> n_layers;
  Dim<8> n_heads;
  Dim<2> n_kv_heads;
  Dim<32> head_dim;
  Dim<512> ffn_dim;
  Index window = 0;
  float norm_eps = 1e-5f;
  Index rope_dim = 32;
  float rope_theta = 10000, rope_scale = 1;
};
inline constexpr HomeCommands kDims;
inline constexpr Index kContext = 96;

inline constexpr auto kModel = nibble::graph::fuse(nibble::llama(kDims));

// One thread, one sequence, up to 32 prompt tokens per run. Weights are in Q4_0 and read activations
// as 8-bit codes.
inline constexpr nibble::graph::Limits kLimits{
    .max_rows = 32, .n_positions = kContext, .float_inputs = false};
inline constexpr nibble::graph::Plan kPlan = nibble::graph::make_plan(kModel, kLimits);

inline constexpr nibble::ops::KvCacheLayout kCache{.type = nibble::ops::KvType::f16,
                                                   .n_layers = kDims.n_layers,
                                                   .n_kv_heads = kDims.n_kv_heads,
                                                   .head_dim = kDims.head_dim,
                                                   .capacity = kContext};
inline constexpr nibble::graph::RopeKey kRope{kDims.rope_dim, kDims.rope_theta, kDims.rope_scale,
                                              false};
inline constexpr std::size_t kRopeBytes = nibble::graph::RopeTable::bytes_needed(kRope, kContext);
inline constexpr std::size_t kBytes =
    nibble::align_up(kPlan.bytes) + nibble::align_up(kCache.bytes()) + kRopeBytes;

static_assert(kPlan.is_valid() && kCache.is_valid());
static_assert(kBytes < 512 * 1024, "the model does not fit in the device's memory");

// ---- Weights -----------------------------------------------------------------------------------

// Calls visit(slot, layer, n, k) for each weight, in the order of an image: a matrix (n, k), or a
// vector of k floats (n = 0).
template <class Visit>
constexpr void for_each_weight(Visit&& visit) {
  constexpr Index kQ = kDims.n_heads * kDims.head_dim;
  constexpr Index kKv = kDims.n_kv_heads * kDims.head_dim;
  constexpr Index kDim = kDims.dim, kFfn = kDims.ffn_dim;
  visit(Slot::token_embd, Index{-1}, Index{kDims.vocab_size}, kDim);
  visit(Slot::output_norm, Index{-1}, Index{0}, kDim);
  for (Index layer = 0; layer < kDims.n_layers; ++layer) {
    visit(Slot::attn_norm, layer, Index{0}, kDim);
    visit(Slot::attn_q, layer, kQ, kDim);
    visit(Slot::attn_k, layer, kKv, kDim);
    visit(Slot::attn_v, layer, kKv, kDim);
    visit(Slot::attn_output, layer, kDim, kQ);
    visit(Slot::ffn_norm, layer, Index{0}, kDim);
    visit(Slot::ffn_gate, layer, kFfn, kDim);
    visit(Slot::ffn_up, layer, kFfn, kDim);
    visit(Slot::ffn_down, layer, kDim, kFfn);
  }
}

// Bytes of a weight in an image, where each begins at a multiple of 64.
constexpr std::size_t weight_bytes(Index n, Index k) noexcept {
  return nibble::align_up(n == 0 ? static_cast<std::size_t>(k) * sizeof(float)
                                 : static_cast<std::size_t>(nibble::quant::Packed<Q4_0>::bytes(n, k)));
}

// What a device keeps in flash, in the byte order of both machines.
struct Image {
  static constexpr std::size_t kWeightBytes = [] {
    std::size_t bytes = 0;
    for_each_weight([&](Slot, Index, Index n, Index k) { bytes += weight_bytes(n, k); });
    return bytes;
  }();
  static constexpr std::size_t kMaxTokenText = 31, kMaxPrompt = 63;

  struct Token {
    std::uint8_t length;  // kEnds: the token ends a call
    char text[kMaxTokenText];
  };
  static constexpr std::uint8_t kEnds = 255;
  struct Prompt {  // an utterance, and its tokens
    char text[96];  // ends with 0
    std::int32_t n_tokens;
    std::int32_t tokens[kMaxPrompt];
  };

  alignas(nibble::kAlignment) std::byte weights[kWeightBytes];
  Token tokens[kDims.vocab_size];
  Prompt prompts[3];
};

// The table that graph::run reads, with the weights of an image.
using WeightArray =
    std::array<nibble::graph::Weight, (std::size_t{kDims.n_layers} + 1) * nibble::kSlotCount>;
inline WeightArray weights_of(const Image& image) noexcept {
  WeightArray weights;
  const std::byte* at = image.weights;
  for_each_weight([&](Slot slot, Index layer, Index n, Index k) {
    weights[static_cast<std::size_t>(layer + 1) * nibble::kSlotCount +
            static_cast<std::size_t>(slot)] = {n == 0 ? nullptr : &nibble::graph::kFormatOps<Q4_0>, n,
                                               k, at};
    at += weight_bytes(n, k);
  });
  weights[static_cast<std::size_t>(Slot::output)] =
      weights[static_cast<std::size_t>(Slot::token_embd)];  // the model ties them
  return weights;
}

// ---- Running -----------------------------------------------------------------------------------

// What a run needs, in `memory` (kBytes, aligned to 64). Keeps a reference to all.
inline nibble::Result<nibble::graph::RunArgs> prepare(std::span<std::byte> memory,
                                                      nibble::graph::WeightTable weights,
                                                      nibble::Executor& executor,
                                                      nibble::graph::RopeTable& rope) {
  nibble::Arena arena(memory);
  nibble::graph::RunArgs args;
  args.executor = &executor;
  args.weights = weights;
  args.arena = {arena.take<std::byte>(kPlan.bytes), kPlan.bytes};
  NIBBLE_TRY(cache, nibble::ops::KvCache::create(
                        {arena.take<std::byte>(kCache.bytes()), kCache.bytes()}, kCache));
  args.cache = cache;
  std::array<double, kRope.dim / 2> frequencies;
  rope = nibble::graph::RopeTable::fill({arena.take<std::byte>(kRopeBytes), kRopeBytes}, kRope,
                                        kContext, frequencies, {});
  args.rope_tables = {&rope, 1};
  return args;
}

// Tokens of the vocabulary only; the sequence begins anew. Calls on_token(id) for the most likely
// next token, and again while it returns true and the context has room. check(args) comes before
// the first run.
template <class Check, class OnToken>
nibble::Result<void> generate(nibble::graph::RunArgs args, std::span<const std::int32_t> tokens,
                              Check&& check, OnToken&& on_token) {
  std::int32_t next = 0;
  Index position = 0;
  while (position + static_cast<Index>(tokens.size()) <= kContext) {
    const auto some = tokens.first(std::min<std::size_t>(tokens.size(), kLimits.max_rows));
    const auto n = static_cast<Index>(some.size());
    const nibble::graph::Segment segment = nibble::ops::single_segment(n, position);
    const Index last = n - 1;
    args.step = {.tokens = some, .segments = {&segment, 1}, .output_rows = {&last, 1}};
    if (position == 0) NIBBLE_CHECK(check(args));
    const auto logits = nibble::graph::run(kModel, kPlan, kLimits, args);
    position += n;
    tokens = tokens.subspan(some.size());
    if (!tokens.empty()) continue;  // still in the prompt
    next = static_cast<std::int32_t>(nibble::ops::argmax(logits[0]));
    if (!on_token(next)) break;
    tokens = {&next, 1};
  }
  return nibble::ok();
}

}  // namespace example::fixed
