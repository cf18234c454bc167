// SPDX-License-Identifier: Apache-2.0
//
// Attention of several sequences in one step: pages anywhere in the cache, both kinds of segments,
// pages chosen by a policy, and everything that changes scores.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/cache_arrays.hpp"
#include "kernels/each_target.hpp"
#include "nibble/ops/attention.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace attention_segments_test {

using namespace nibble;
using namespace nibble_test;

namespace {

using ops::Segment;
using ops::SegmentKind;

constexpr Index kHeads = 6, kKvHeads = 2, kHeadDim = 20;
constexpr Index kColumns = kHeads * kHeadDim, kKvColumns = kKvHeads * kHeadDim;

// A sequence: queries, keys and values of every position.
struct Sequence {
  Sequence(Index n, unsigned seed) : n_positions(n) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    q.resize(product(n, kColumns));
    k.resize(product(n, kKvColumns));
    v.resize(k.size());
    for (auto* m : {&q, &k, &v}) {
      for (float& x : *m) x = normal(rng);
    }
  }
  Index n_positions;
  std::vector<float> q, k, v;
};

ops::AttentionShape default_shape() {
  return {.n_heads = kHeads, .n_kv_heads = kKvHeads, .head_dim = kHeadDim, .scale = 0.25f};
}

// The rows of a sequence that a step computes.
struct Part {
  const Sequence* sequence;
  Index first, n;
  SegmentKind kind;
};

// A cache whose pages sequences take in a random order.
class Cache {
 public:
  Cache(ops::KvType type, Index n_pages, unsigned seed)
      : layout_{type, 1, kKvHeads, kHeadDim, n_pages * ops::kPagePositions},
        memory_(filled(layout_.bytes(), 0xFF)),
        cache_(*ops::KvCache::create(memory_.bytes(), layout_)),
        free_(static_cast<std::size_t>(n_pages)) {
    std::iota(free_.begin(), free_.end(), 0);
    if (seed != 0) std::shuffle(free_.begin(), free_.end(), std::mt19937(seed));
  }

  // Pages for n positions; the first of these are filled with the positions of the sequence.
  std::vector<ops::PageId> take(const Sequence& sequence, Index n_written, Index n) {
    std::vector<ops::PageId> pages;
    while (static_cast<Index>(pages.size()) < ops::pages_for(n)) {
      pages.push_back(free_.back());
      free_.pop_back();
    }
    if (n_written > 0) {
      const Segment all{.n_rows = n_written, .pages = pages};
      InlineExecutor executor;
      cache_.append(executor, 0, std::span<const Segment>(&all, 1),
                    rows_of(sequence.k, 0, n_written, kKvColumns),
                    rows_of(sequence.v, 0, n_written, kKvColumns));
    }
    return pages;
  }
  const ops::KvCache& view() const { return cache_; }
  AlignedBuffer& memory() { return memory_; }

 private:
  ops::KvCacheLayout layout_;
  AlignedBuffer memory_;
  ops::KvCache cache_;
  std::vector<ops::PageId> free_;
};

// Runs all parts in one step; returns the results of each part.
std::vector<std::vector<float>> run(const std::vector<Part>& parts, ops::KvType type,
                                    const ops::AttentionShape& shape, unsigned seed,
                                    Executor& executor, Index max_segments = 0,
                                    const ops::PagePolicy* policy = nullptr) {
  Index n_pages = 0, n_rows = 0, most = 0;
  for (const Part& part : parts) {
    n_pages += ops::pages_for(part.first + part.n);
    n_rows += part.n;
    most = std::max(most, part.first + part.n);
  }
  Cache cache(type, n_pages, seed);
  std::vector<std::vector<ops::PageId>> pages;
  std::vector<Segment> segments;
  std::vector<float> q, k, v;
  for (const Part& part : parts) {
    pages.push_back(cache.take(*part.sequence, part.first, part.first + part.n));
    const auto rows = [&](const std::vector<float>& from, Index columns, std::vector<float>& to) {
      const auto begin = from.begin() + static_cast<std::ptrdiff_t>(part.first * columns);
      to.insert(to.end(), begin, begin + static_cast<std::ptrdiff_t>(part.n * columns));
    };
    segments.push_back({.first_row = static_cast<Index>(q.size()) / kColumns,
                        .n_rows = part.n,
                        .first_position = part.first,
                        .kind = part.kind,
                        .pages = pages.back()});
    rows(part.sequence->q, kColumns, q);
    rows(part.sequence->k, kKvColumns, k);
    rows(part.sequence->v, kKvColumns, v);
  }
  cache.view().append(executor, 0, segments, rows_of(k, 0, n_rows, kKvColumns),
                      rows_of(v, 0, n_rows, kKvColumns));
  const ops::AttentionLimits limits{
      .n_workers = executor.n_workers(),
      .max_rows = n_rows,
      .max_segments = std::max(max_segments, static_cast<Index>(parts.size())),
      .n_positions = most};
  AlignedBuffer scratch = filled(ops::attention_scratch_bytes(shape, limits), 0xFF);
  std::vector<float> out(q.size(), std::nanf(""));
  ops::attention(executor, rows_of(q, 0, n_rows, kColumns), cache.view(), 0, shape, segments,
                 limits, MatrixView<float>(out.data(), n_rows, kColumns), scratch.bytes(), policy);
  std::vector<std::vector<float>> results;
  for (const Segment& s : segments) {
    const auto begin = out.begin() + static_cast<std::ptrdiff_t>(s.first_row * kColumns);
    results.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(s.n_rows * kColumns));
  }
  return results;
}

// One row in double precision, over the keys that `sees` selects, with scores changed by `change`.
std::vector<double> exact(const Sequence& s, Index position, Index n_positions, double scale,
                          const std::function<bool(Index)>& sees,
                          const std::function<double(Index head, Index key, double score)>& change,
                          const float* sinks = nullptr) {
  std::vector<double> out(static_cast<std::size_t>(kColumns));
  for (Index h = 0; h < kHeads; ++h) {
    const Index kv = h / (kHeads / kKvHeads);
    std::vector<double> weights(static_cast<std::size_t>(n_positions));
    double sum = sinks == nullptr ? 0 : std::exp(static_cast<double>(sinks[h]));
    for (Index p = 0; p < n_positions; ++p) {
      if (!sees(p)) continue;
      double score = 0;
      for (Index d = 0; d < kHeadDim; ++d) {
        score += static_cast<double>(
                     s.q[product(position * kHeads + h, kHeadDim) + static_cast<std::size_t>(d)]) *
                 static_cast<double>(
                     s.k[product(p * kKvHeads + kv, kHeadDim) + static_cast<std::size_t>(d)]);
      }
      weights[static_cast<std::size_t>(p)] = std::exp(change(h, p, score * scale));
      sum += weights[static_cast<std::size_t>(p)];
    }
    for (Index d = 0; d < kHeadDim; ++d) {
      double& x = out[product(h, kHeadDim) + static_cast<std::size_t>(d)];
      for (Index p = 0; p < n_positions; ++p) {
        x += weights[static_cast<std::size_t>(p)] / sum *
             static_cast<double>(
                 s.v[product(p * kKvHeads + kv, kHeadDim) + static_cast<std::size_t>(d)]);
      }
    }
  }
  return out;
}

// Results are means of values of about 1, with weights whose relative error is some 2^-20.
constexpr double kTolerance = 2e-5;

double distance(const std::vector<float>& out, Index row, const std::vector<double>& expected) {
  double most = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto x = static_cast<double>(out[product(row, kColumns) + i]);
    most = std::isnan(x) ? 1e9 : std::max(most, std::abs(x - expected[i]));
  }
  return most;
}

}  // namespace

TEST_CASE("attention: many sequences in one step give, bit for bit, what each gives alone") {
  const std::vector<Index> lengths = {1, 70, 64, 65, 700, 1300, 129, 33};
  std::vector<Sequence> sequences;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    sequences.emplace_back(lengths[i], static_cast<unsigned>(i) + 1);
  }
  std::vector<Part> parts;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    // Whole prompts, ends of prompts, single generated rows and several of them.
    const Index n = i % 4 == 0   ? lengths[i]
                    : i % 4 == 1 ? std::min<Index>(13, lengths[i])
                    : i % 4 == 2 ? 1
                                 : 5;
    parts.push_back({&sequences[i], lengths[i] - n, n,
                     i % 4 < 2 ? SegmentKind::prompt : SegmentKind::generation});
  }
  for_each_target([&](simd::Target) {
    for (const ops::KvType type : ops::kKvTypes) {
      InlineExecutor executor;
      const auto together = run(parts, type, default_shape(), 7, executor);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        CAPTURE(i);
        CHECK(together[i] == run({parts[i]}, type, default_shape(), 0, executor)[0]);
      }
    }
  });
}

TEST_CASE("attention: a row of a prompt does not depend on how the prompt is cut") {
  const Sequence s(200, 3);
  for_each_target([&](simd::Target) {
    for (const ops::KvType type : ops::kKvTypes) {
      for (const Index window : {Index{0}, Index{70}}) {
        InlineExecutor executor;
        ops::AttentionShape shape = default_shape();
        shape.window = window;
        const auto whole = run({{&s, 0, 200, SegmentKind::prompt}}, type, shape, 0, executor)[0];
        for (const Index step : {1, 3, 7, 64}) {
          std::vector<float> cut;
          for (Index at = 0; at < 200; at += step) {
            const Index n = std::min<Index>(step, 200 - at);
            const auto rows = run({{&s, at, n, SegmentKind::prompt}}, type, shape, 5, executor)[0];
            cut.insert(cut.end(), rows.begin(), rows.end());
          }
          CHECK(cut == whole);
        }
      }
    }
  });
}

TEST_CASE("attention: generated rows are the same together and one by one") {
  const Sequence s(1100, 4);  // across positions where the number of parts changes
  for_each_target([&](simd::Target) {
    for (const ops::KvType type : ops::kKvTypes) {
      InlineExecutor executor;
      const Part together{&s, 1000, 100, SegmentKind::generation};
      const auto rows = run({together}, type, default_shape(), 2, executor, 3)[0];
      for (const Index at : {1000, 1023, 1024, 1099}) {
        const Part alone{&s, at, 1, SegmentKind::generation};
        const auto row = run({alone}, type, default_shape(), 0, executor)[0];
        CHECK(std::equal(row.begin(), row.end(),
                         rows.begin() + static_cast<std::ptrdiff_t>((at - 1000) * kColumns)));
      }
    }
  });
}

TEST_CASE("attention: a policy chooses once for each segment, however many rows are generated") {
  const Sequence a(200, 6), b(200, 7);
  struct All final : ops::PagePolicy {
    Index choose(Index, const Segment& segment,
                 std::span<std::int32_t> pages) const noexcept override {
      ++(segment.first_row == 0 ? first : second);
      for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
      return static_cast<Index>(pages.size());
    }
    mutable int first = 0, second = 0;
  };
  InlineExecutor executor;
  for (Index n = 1; n <= 12; ++n) {  // 4 rows are computed at a time
    CAPTURE(n);
    const All policy;
    const Part parts[] = {{&a, 100, n, SegmentKind::generation},
                          {&b, 90, 3, SegmentKind::generation}};
    const auto chosen =
        run({parts[0], parts[1]}, ops::KvType::f32, default_shape(), 0, executor, 0, &policy);
    CHECK(policy.first == 1);
    CHECK(policy.second == 1);
    CHECK(chosen == run({parts[0], parts[1]}, ops::KvType::f32, default_shape(), 0, executor));
  }
}

TEST_CASE("attention: a policy's pages are read, and no others are touched") {
  constexpr Index kLength = 500;
  const Sequence s(kLength, 5);
  struct Blocks final : ops::PagePolicy {  // every second page, and the last
    Index choose(Index, const Segment&, std::span<std::int32_t> pages) const noexcept override {
      std::size_t n = 0;
      const std::size_t last = pages.size() - 1;
      for (std::size_t i = 0; i < pages.size(); ++i) {
        if (i % 2 == 1 || i == last) pages[n++] = static_cast<std::int32_t>(i);
      }
      return static_cast<Index>(n);
    }
  };
  const Blocks blocks;
  const ops::SinkWindowPolicy sinks(3, 100);
  for (const ops::PagePolicy* policy : {static_cast<const ops::PagePolicy*>(&blocks),
                                        static_cast<const ops::PagePolicy*>(&sinks)}) {
    std::vector<std::int32_t> seen(static_cast<std::size_t>(ops::pages_for(kLength)));
    const Segment last{.n_rows = 1, .first_position = kLength - 1};
    seen.resize(static_cast<std::size_t>(policy->choose(0, last, seen)));
    REQUIRE(seen.size() < 7);  // of 8
    const auto is_seen = [&](Index p) {
      return std::find(seen.begin(), seen.end(), p / ops::kPagePositions) != seen.end();
    };
    const auto same = [](Index, Index, double score) { return score; };
    const std::vector<double> expected = exact(s, kLength - 1, kLength, 0.25, is_seen, same);
    for_each_target([&](simd::Target) {
      InlineExecutor executor;
      for (const SegmentKind kind : {SegmentKind::prompt, SegmentKind::generation}) {
        const Part part{&s, kLength - 1, 1, kind};
        const auto out = run({part}, ops::KvType::f32, default_shape(), 3, executor, 0, policy)[0];
        CHECK(distance(out, 0, expected) < kTolerance);
      }
    });
  }
}

#if defined(__linux__)
TEST_CASE("attention: pages that a policy leaves out may be memory that cannot be read") {
  // f32 and a head size of 128: a tile is 64 KiB, whole pages of the system.
  constexpr Index kDim = 128, kPages = 5;
  const ops::KvCacheLayout layout{ops::KvType::f32, 1, 1, kDim, kPages * ops::kPagePositions};
  const auto tile = static_cast<std::size_t>(kernels::tile_size<float>(kDim)) * sizeof(float);
  REQUIRE(tile % static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) == 0);
  void* const memory =
      ::mmap(nullptr, layout.bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  auto cache = ops::KvCache::create({static_cast<std::byte*>(memory), layout.bytes()}, layout);
  REQUIRE(cache);
  InlineExecutor executor;
  const std::vector<float> ones(product(kPages * ops::kPagePositions, kDim), 1.0f);
  const auto rows = rows_of(ones, 0, kPages * ops::kPagePositions, kDim);
  cache->append(executor, 0, 0, rows, rows);
  int n_protected = 0;
  for (std::size_t page = 1; page + 1 < kPages; ++page) {
    REQUIRE(::mprotect(static_cast<std::byte*>(memory) + page * tile, tile, PROT_NONE) == 0);
    ++n_protected;
  }
  REQUIRE(n_protected == 3);
  const ops::SinkWindowPolicy policy(1, 60);
  const ops::AttentionShape shape{.n_heads = 1, .n_kv_heads = 1, .head_dim = kDim, .scale = 0.1f};
  const Segment segment{.n_rows = 1,
                        .first_position = kPages * ops::kPagePositions - 1,
                        .kind = SegmentKind::generation};
  const ops::AttentionLimits limits{.n_positions = kPages * ops::kPagePositions};
  AlignedBuffer scratch = filled(ops::attention_scratch_bytes(shape, limits), 0xFF);
  for_each_target([&](simd::Target) {
    std::vector<float> out(static_cast<std::size_t>(kDim));
    ops::attention(executor, rows_of(ones, 0, 1, kDim), *cache, 0, shape,
                   std::span<const Segment>(&segment, 1), limits,
                   MatrixView<float>(out.data(), 1, kDim), scratch.bytes(), &policy);
    for (const float x : out) CHECK(x == doctest::Approx(1));
  });
  ::munmap(memory, layout.bytes());
}
#endif

TEST_CASE("attention: soft cap, ALiBi, sinks and a function of the program's own") {
  const Sequence s(1200, 6);
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f, 0.03f, 0.01f};
  const std::vector<float> sinks = {0.5f, -2.0f, 3.0f, 40.0f, -90.0f, 0.0f};
  struct Variant {
    const char* name;
    kernels::ScoreOptions options;
    std::function<double(Index, Index, double)> change;  // head, distance, score
  };
  const auto own = [](const void* data, Index head, Index position, Index first_key, Index n,
                      float* scores) {
    const float factor = *static_cast<const float*>(data);
    for (Index i = 0; i < n; ++i) {
      scores[i] += factor * static_cast<float>((position - first_key - i) % 3 + head);
    }
  };
  const float factor = 0.5f;
  const auto same = [](Index, Index, double x) { return x; };
  const std::vector<Variant> variants = {
      {"soft cap", {.soft_cap = 2.0f}, [](Index, Index, double x) { return 2 * std::tanh(x / 2); }},
      {"ALiBi",
       {.alibi_slopes = slopes.data()},
       [&](Index head, Index distance, double x) {
         return x - static_cast<double>(slopes[static_cast<std::size_t>(head)]) *
                        static_cast<double>(distance);
       }},
      {"sinks", {.sink_logits = sinks.data()}, same},
      {"own",
       {.function = own, .data = &factor},
       [](Index head, Index distance, double x) {
         return x + 0.5 * static_cast<double>(distance % 3 + head);
       }},
  };
  for (const Variant& variant : variants) {
    CAPTURE(variant.name);
    ops::AttentionShape shape = default_shape();
    shape.scores = variant.options;
    for (const Index position : {3, 99, 1199}) {
      const auto sees = [&](Index p) { return p <= position; };
      const auto change = [&](Index head, Index key, double score) {
        return variant.change(head, position - key, score);
      };
      const auto expected =
          exact(s, position, position + 1, 0.25, sees, change, variant.options.sink_logits);
      // With the tolerance, scores that were not changed must be noticed.
      const auto unchanged = exact(s, position, position + 1, 0.25, sees,
                                   [](Index, Index, double score) { return score; });
      double difference = 0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        difference = std::max(difference, std::abs(expected[i] - unchanged[i]));
      }
      REQUIRE(difference > 100 * kTolerance);
      for_each_target([&](simd::Target) {
        InlineExecutor executor;
        for (const SegmentKind kind : {SegmentKind::prompt, SegmentKind::generation}) {
          const Part part{&s, position, 1, kind};
          const auto out = run({part}, ops::KvType::f32, shape, 3, executor)[0];
          CHECK(distance(out, 0, expected) < kTolerance);
        }
      });
    }
  }
}

TEST_CASE("attention: not causal, with and without a window on both sides") {
  const Sequence s(150, 8);
  for (const Index window : {Index{0}, Index{20}}) {
    ops::AttentionShape shape = default_shape();
    shape.window = window;
    shape.ahead = window == 0 ? ops::kAllAhead : window - 1;
    for_each_target([&](simd::Target) {
      InlineExecutor executor;
      const Part all{&s, 0, 150, SegmentKind::prompt};
      const auto out = run({all}, ops::KvType::f32, shape, 4, executor)[0];
      for (Index position = 0; position < 150; position += 7) {
        const auto sees = [&](Index p) { return window == 0 || std::abs(p - position) < window; };
        const auto expected =
            exact(s, position, 150, 0.25, sees, [](Index, Index, double score) { return score; });
        CHECK(distance(out, position, expected) < kTolerance);
      }
    });
  }
}

}  // namespace attention_segments_test
