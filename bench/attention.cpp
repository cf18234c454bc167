// SPDX-License-Identifier: Apache-2.0
//
// Attention over a cache, with 32 query heads and 8 kv heads of 128 elements. Either one query
// (decode; the cache comes from memory, as in generation, where every layer has its own) or 512 at
// once (prefill).
#include "nibble/ops/attention.hpp"

#include "bench/case.hpp"

namespace bench {
namespace {

using nibble::ops::AttentionShape;
using nibble::ops::KvCacheLayout;

constexpr Index kHeads = 32, kKvHeads = 8, kHeadDim = 128;

template <class T>
struct Data {
  Data(Index n_queries, Index n_positions, Index n_layers, Pages pages)
      : shape{kHeads, kKvHeads, kHeadDim, 0.088388f},
        layout{nibble::ops::kKvType<T>, n_layers, kKvHeads, kHeadDim, n_positions},
        first(n_positions - n_queries),
        memory(layout.bytes(), pages),
        cache(*nibble::ops::KvCache::create(memory.bytes(), layout)),
        q(n_queries, kHeads * kHeadDim, pages),
        out(n_queries, kHeads * kHeadDim, pages),
        scratch(nibble::ops::attention_scratch_bytes(
                    shape,
                    {.n_workers = kMaxThreads, .max_rows = n_queries, .n_positions = n_positions}),
                pages) {
    constexpr Index kAtOnce = 256;
    const Floats keys(kAtOnce, kKvHeads * kHeadDim, Pages::small);
    nibble::InlineExecutor alone;
    for (Index layer = 0; layer < n_layers; ++layer) {
      for (Index at = 0; at < n_positions; at += kAtOnce) {
        const auto rows = keys.in().rows(0, std::min(kAtOnce, n_positions - at));
        cache.append(alone, layer, at, rows, rows);
      }
    }
  }
  static constexpr Index kMaxThreads = 256;

  AttentionShape shape;
  KvCacheLayout layout;
  Index first;
  Memory memory;
  nibble::ops::KvCache cache;
  Floats q, out;
  Memory scratch;
};

template <class T>
void add(const CaseOptions& options, Index n_queries, Index n_positions, bool quick,
         std::vector<Case>& cases) {
  const bool decode = n_queries == 1;
  Case c;
  c.kernel = decode ? "attention_decode" : "attention_prefill";
  c.format = nibble::ops::to_string(nibble::ops::kKvType<T>);
  c.shape =
      "q" + std::to_string(n_queries) + "_ctx" + std::to_string(n_positions) + "_h32_kv8_d128";
  c.data = decode ? "cold" : "warm";
  c.quick = quick;
  const KvCacheLayout one_layer{nibble::ops::kKvType<T>, 1, kKvHeads, kHeadDim, n_positions};
  const auto cache_bytes = static_cast<double>(one_layer.bytes());
  const auto row_bytes = static_cast<double>(n_queries * kHeads * kHeadDim) * sizeof(float);
  c.work.bytes_read = cache_bytes + row_bytes;
  c.work.bytes_written = row_bytes;
  c.work.footprint = decode ? kCold : c.work.bytes();
  // Query i sees first + i + 1 positions: each costs a multiply-add with its key and one with its
  // value.
  double seen = 0;
  for (Index i = 0; i < n_queries; ++i) seen += static_cast<double>(n_positions - i);
  c.work.ops = 4.0 * kHeads * kHeadDim * seen;
  // Any float type of the cache is computed in f32; codes are multiplied with 16-bit numbers.
  constexpr bool kIsCodes =
      std::is_same_v<T, std::int8_t> || std::is_same_v<T, nibble::kernels::CodePair>;
  c.work.arithmetic = kIsCodes ? Arithmetic::int16 : Arithmetic::f32;
  const Index n_layers = decode ? options.copies(cache_bytes) : 1;
  c.prepare = [=, pages = options.pages, tuning = options.tuning]() -> Body {
    auto data = std::make_shared<Data<T>>(n_queries, n_positions, n_layers, pages);
    return [data, n_layers, tuning, layer = Index{0}](nibble::Executor& executor) mutable {
      const Index n = data->q.view.extent(0);
      const nibble::ops::Segment all = nibble::ops::single_segment(n, data->first);
      const nibble::ops::AttentionLimits limits{
          .n_workers = executor.n_workers(), .max_rows = n, .n_positions = all.end_position()};
      nibble::ops::attention(executor, data->q.in(), data->cache, layer, data->shape, {&all, 1},
                             limits, data->out.view, data->scratch.bytes(), nullptr, tuning);
      layer = (layer + 1) % n_layers;
    };
  };
  cases.push_back(std::move(c));
}

template <class T>
void add_all(const CaseOptions& options, std::vector<Case>& cases) {
  add<T>(options, 1, 4096, true, cases);
  add<T>(options, 1, 32768, false, cases);
  add<T>(options, 512, 512, false, cases);
  add<T>(options, 512, 4096, std::is_same_v<T, nibble::f16>, cases);
}

}  // namespace

void add_attention(const CaseOptions& options, std::vector<Case>& cases) {
  add_all<float>(options, cases);
  add_all<nibble::f16>(options, cases);
  add_all<nibble::bf16>(options, cases);
  add_all<std::int8_t>(options, cases);
  add_all<nibble::kernels::CodePair>(options, cases);
}

}  // namespace bench
