// SPDX-License-Identifier: Apache-2.0
//
// static_model: a model whose dimensions are compile-time constants. So is the size of all memory
// that it works in, checked by a static_assert: for devices without a heap.
#include <array>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "nibble/graph/check.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/load.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/nibble.hpp"
#include "nibble/ops/softmax.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/text/tokenizer.hpp"

namespace {

using nibble::Dim;
using nibble::Index;
using nibble::Result;
using nibble::Slot;

// The dimensions of the model that ships with nibble, as llama() expects them.
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
constexpr HomeCommands kDims;
constexpr Index kContext = 96;

constexpr auto kModel = nibble::graph::fuse(nibble::llama(kDims));

// One thread, one sequence, up to 32 prompt tokens per run. Weights are in F16 and read activations
// in f32.
constexpr nibble::graph::Limits kLimits{
    .max_rows = 32, .n_positions = kContext, .code_inputs = false};
constexpr nibble::graph::Plan kPlan = nibble::graph::make_plan(kModel, kLimits);

constexpr nibble::ops::KvCacheLayout kCache{.type = nibble::ops::KvType::f16,
                                            .n_layers = kDims.n_layers,
                                            .n_kv_heads = kDims.n_kv_heads,
                                            .head_dim = kDims.head_dim,
                                            .capacity = kContext};
constexpr nibble::graph::RopeKey kRope{kDims.rope_dim, kDims.rope_theta, kDims.rope_scale, false};
constexpr std::size_t kRopeBytes = nibble::graph::RopeTable::bytes_needed(kRope, kContext);
constexpr std::size_t kBytes =
    nibble::align_up(kPlan.bytes) + nibble::align_up(kCache.bytes()) + kRopeBytes;

static_assert(kPlan.is_valid() && kCache.is_valid());
static_assert(kBytes < 512 * 1024, "the model does not fit in the device's memory");

alignas(nibble::kAlignment) std::byte memory[kBytes];

// The packed weights for the slots of the expression.
Result<nibble::WeightStore> read_weights(const nibble::io::Gguf& file) {
  // Only the kernels of F16 are compiled.
  nibble::WeightStore weights(kDims.n_layers, nibble::graph::FormatList<nibble::quant::F16>{});
  const auto add = [&](Slot slot, Index layer, Index n, Index k) -> Result<void> {
    NIBBLE_TRY(tensor, file.tensor(nibble::gguf_name(slot, layer)));
    NIBBLE_TRY(format, nibble::quant::format_of(tensor.type));
    return weights.add(slot, layer, format, n, k, tensor.data);
  };
  constexpr Index kQ = kDims.n_heads * kDims.head_dim;
  constexpr Index kKv = kDims.n_kv_heads * kDims.head_dim;
  NIBBLE_CHECK(add(Slot::token_embd, -1, kDims.vocab_size, kDims.dim));
  NIBBLE_CHECK(add(Slot::output_norm, -1, 0, kDims.dim));
  weights.tie(Slot::output, Slot::token_embd);
  for (Index layer = 0; layer < kDims.n_layers; ++layer) {
    NIBBLE_CHECK(add(Slot::attn_norm, layer, 0, kDims.dim));
    NIBBLE_CHECK(add(Slot::attn_q, layer, kQ, kDims.dim));
    NIBBLE_CHECK(add(Slot::attn_k, layer, kKv, kDims.dim));
    NIBBLE_CHECK(add(Slot::attn_v, layer, kKv, kDims.dim));
    NIBBLE_CHECK(add(Slot::attn_output, layer, kDims.dim, kQ));
    NIBBLE_CHECK(add(Slot::ffn_norm, layer, 0, kDims.dim));
    NIBBLE_CHECK(add(Slot::ffn_gate, layer, kDims.ffn_dim, kDims.dim));
    NIBBLE_CHECK(add(Slot::ffn_up, layer, kDims.ffn_dim, kDims.dim));
    NIBBLE_CHECK(add(Slot::ffn_down, layer, kDims.dim, kDims.ffn_dim));
  }
  nibble::InlineExecutor executor;
  NIBBLE_CHECK(weights.pack(executor));
  return weights;
}

// What a run needs, in `memory`. Keeps a reference to all three.
Result<nibble::graph::RunArgs> prepare(const nibble::WeightStore& weights,
                                       nibble::Executor& executor, nibble::graph::RopeTable& rope) {
  nibble::Arena arena(memory);
  nibble::graph::RunArgs args;
  args.executor = &executor;
  args.weights = weights.table();
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

Result<void> run(const std::string& model_path, const std::string& utterance) {
  NIBBLE_CHECK(nibble::simd::ensure_target());
  NIBBLE_TRY(file, nibble::io::Gguf::open(model_path));
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(file));
  NIBBLE_TRY(weights, read_weights(file));
  nibble::InlineExecutor executor;
  nibble::graph::RopeTable rope;
  NIBBLE_TRY(args, prepare(weights, executor, rope));

  NIBBLE_TRY(ids, tokenizer.encode(utterance + "\n"));
  std::vector<std::int32_t> call;
  std::span<const std::int32_t> tokens = ids;
  Index position = 0;
  while (position + static_cast<Index>(tokens.size()) <= kContext) {
    const auto some = tokens.first(std::min<std::size_t>(tokens.size(), kLimits.max_rows));
    for (const std::int32_t id : some) {
      if (id < 0 || id >= kDims.vocab_size) {
        return nibble::Error{nibble::Errc::malformed, "a token that the model does not have"};
      }
    }
    const auto n = static_cast<Index>(some.size());
    const nibble::graph::Segment segment = nibble::ops::single_segment(n, position);
    const Index last = n - 1;
    args.step = {.tokens = some, .segments = {&segment, 1}, .output_rows = {&last, 1}};
    if (position == 0) {
      NIBBLE_CHECK(nibble::graph::check_run(kModel, kPlan, kLimits, args));
    }
    const auto logits = nibble::graph::run(kModel, kPlan, kLimits, args);
    position += n;
    tokens = tokens.subspan(some.size());
    if (!tokens.empty()) continue;  // still in the prompt
    const Index best = nibble::ops::argmax(logits[0]);
    if (tokenizer.vocabulary().ends_generation(static_cast<std::int32_t>(best))) break;
    call.push_back(static_cast<std::int32_t>(best));
    tokens = std::span(call).last(1);
  }
  std::printf("%s\n-> %s\n", utterance.c_str(),
              tokenizer.decode(call, {.at_start = false}).c_str());
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  constexpr const char* kUsage = "usage: static_model [home-commands-f16.gguf [utterance]]\n";
  const std::string model = argc > 1 ? argv[1] : "examples/models/home-commands-f16.gguf";
  if (model == "--help") return std::fputs(kUsage, stdout) >= 0 ? 0 : 1;
  if (argc > 3 || model.starts_with('-')) {
    std::fprintf(stderr, "static_model: %s; %s",
                 argc > 3 ? "too many arguments" : (model + " is not known").c_str(), kUsage);
    return 2;
  }
  const std::string utterance =
      argc > 2 ? argv[2] : "could you please dim the office light to 10 percent";
  const Result<void> done = run(model, utterance);
  if (!done) {
    std::fprintf(stderr, "static_model: %s\n", done.error().message.c_str());
    return 1;
  }
  std::printf(
      "%zu bytes of working memory, known when this was compiled:\n"
      "  %zu intermediate results, %zu key-value cache, %zu rotation tables\n",
      kBytes, kPlan.bytes, kCache.bytes(), kRopeBytes);
  return std::fflush(stdout) == 0 ? 0 : 1;
}
