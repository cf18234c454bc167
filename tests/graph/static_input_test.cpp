// SPDX-License-Identifier: Apache-2.0
//
// Products with 8-bit weights whose input has a range that is known before, or a scale for each
// row: in graphs as written and as fused, with inputs of one range and of several, beside other
// formats.
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/model/weight_store.hpp"
#include "why.hpp"

namespace static_input_test {

using namespace nibble;
using quant::Format;
using quant::StaticScale;

namespace {

constexpr Index kTokens = 9, kDim = 72, kWidth = 50;
constexpr StaticScale kDynamic8{}, kSymmetric{0.021f, 0, false}, kOther{0.035f, 0, false},
    kAffine{0.017f, 111, true}, kOtherAffine{0.017f, 112, true};

std::size_t size(Index n) { return static_cast<std::size_t>(n); }

// Weights outside of layers: an embedding and norms in f32, matrices as a test chooses.
class Weights {
 public:
  explicit Weights(unsigned seed) : random_(seed), store_(0, graph::AllFormats{}) {
    embedding = floats(kTokens * kDim, 1.0f);
    norm = floats(kDim, 1.0f);
    add(Slot::token_embd, Format::f32, kTokens, kDim, embedding);
    add(Slot::output_norm, Format::f32, 0, kDim, norm);
    add(Slot::output_norm_bias, Format::f32, 0, kDim, floats(kDim, 0.3f));
  }

  struct Channels {
    std::vector<std::int8_t> codes;  // (n, k)
    std::vector<float> scales;       // (n)
  };
  const Channels& channels(Slot slot, Index n, Index k, const StaticScale& input) {
    Channels c;
    for (Index i = 0; i < n * k; ++i) {
      c.codes.push_back(static_cast<std::int8_t>(static_cast<int>(random_() % 255) - 127));
    }
    c.scales = floats(n, 0.002f);
    for (float& s : c.scales) s = std::fabs(s) + 0.0001f;
    kept_.push_back(std::make_unique<Channels>(std::move(c)));
    const Channels& kept = *kept_.back();
    const auto added = store_.add_channels(slot, -1, n, k, std::as_bytes(std::span(kept.codes)),
                                           kept.scales, input);
    REQUIRE_MESSAGE(added, test::why(added));
    return kept;
  }
  void matrix(Slot slot, Format format, Index n, Index k) {
    add(slot, format, n, k, floats(n * k, 0.1f));
  }
  void vector(Slot slot, Index k) { add(slot, Format::f32, 0, k, floats(k, 0.5f)); }
  graph::WeightTable pack() {
    InlineExecutor executor;
    const auto packed = store_.pack(executor);
    REQUIRE_MESSAGE(packed, test::why(packed));
    return store_.table();
  }

  std::vector<float> embedding, norm;

 private:
  std::vector<float> floats(Index n, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> x(size(n));
    for (float& v : x) v = normal(random_);
    return x;
  }
  void add(Slot slot, Format format, Index n, Index k, const std::vector<float>& values) {
    const Index rows = n == 0 ? 1 : n;
    const std::size_t row_bytes = *quant::row_bytes(format, size(k));
    auto bytes = std::make_unique<std::vector<std::byte>>(size(rows) * row_bytes);
    for (Index r = 0; r < rows; ++r) {
      const auto rounded =
          quant::row_from_f32(format, std::span(values).subspan(size(r * k), size(k)),
                              std::span(*bytes).subspan(size(r) * row_bytes, row_bytes));
      REQUIRE_MESSAGE(rounded, test::why(rounded));
    }
    const auto added = store_.add(slot, -1, format, n, k, *bytes);
    REQUIRE_MESSAGE(added, test::why(added));
    bytes_.push_back(std::move(bytes));
  }

  std::mt19937 random_;
  WeightStore store_;
  std::vector<std::unique_ptr<Channels>> kept_;
  std::vector<std::unique_ptr<std::vector<std::byte>>> bytes_;
};

// The rows that an expression gives for tokens 0 ... kTokens - 1, one after the other in memory.
// The arena is full of NaN before.
template <class E>
std::vector<float> run(const E& expression, graph::WeightTable weights,
                       Executor* executor = nullptr) {
  InlineExecutor alone;
  graph::Limits limits{.max_rows = kTokens, .max_outputs = kTokens};
  if (executor != nullptr) limits.max_workers = executor->n_workers();
  const graph::Plan plan = graph::make_plan(expression, limits);
  REQUIRE_MESSAGE(plan.is_valid(), plan.error);
  auto arena = AlignedBuffer::allocate(plan.bytes);
  REQUIRE(arena);
  std::memset(arena->data(), 255, arena->size());
  std::vector<std::int32_t> tokens(size(kTokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  std::vector<Index> outputs(size(kTokens));
  std::iota(outputs.begin(), outputs.end(), 0);
  const graph::Segment segment = ops::single_segment(kTokens, 0);
  graph::RunArgs args;
  args.step.tokens = tokens;
  args.step.segments = {&segment, 1};
  args.step.output_rows = outputs;
  args.weights = weights;
  args.arena = arena->bytes();
  args.executor = executor != nullptr ? executor : &alone;
  const auto out = graph::run(expression, plan, limits, args);
  std::vector<float> values;
  for (Index i = 0; i < out.extent(0); ++i) {
    for (Index j = 0; j < out.extent(1); ++j) values.push_back(out(i, j));
  }
  REQUIRE(!values.empty());
  return values;
}

template <class Norm>
auto group(const Norm& norm) {
  using namespace graph;
  return embedding<Slot::token_embd>(Dim<>{kDim}) >> norm >>
         fork(linear<Slot::attn_q>(Dim<>{kWidth}), linear<Slot::attn_k>(Dim<>{kWidth})) >> sum();
}
auto gated() {
  using namespace graph;
  return embedding<Slot::token_embd>(Dim<>{kDim}) >> rms_norm<Slot::output_norm>(1e-5f) >>
         fork(linear<Slot::ffn_gate, optional_slot(Slot::ffn_gate_bias)>(Dim<>{kWidth}) >> silu(),
              linear<Slot::ffn_up, optional_slot(Slot::ffn_up_bias)>(Dim<>{kWidth})) >>
         multiply();
}
auto residual_into() {
  using namespace graph;
  return embedding<Slot::token_embd>(Dim<>{kDim}) >>
         residual(rms_norm<Slot::output_norm>(1e-5f) >> linear<Slot::ffn_up>(Dim<>{kWidth}) >>
                  silu() >> linear<Slot::ffn_down>(Dim<>{kDim}));
}

int n_different(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  int n = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    n += !(a[i] == b[i]);
    REQUIRE(std::isfinite(a[i]));
  }
  return n;
}

// What a range makes of a value, in double.
double rounded(double x, const StaticScale& s) {
  const double inverse = double{static_cast<float>(1.0 / double{s.scale})};
  const double zero = s.is_unsigned ? s.zero_point : 0;
  const double steps = std::nearbyint(double{static_cast<float>(x * inverse)});
  const double low = s.is_unsigned ? 0 : -127, high = s.is_unsigned ? 255 : 127;
  return double{s.scale} * (std::fmin(std::fmax(steps + zero, low), high) - zero);
}

}  // namespace

TEST_CASE("a product with a known range of its input is the one in double") {
  using namespace graph;
  for (const StaticScale& input : {kSymmetric, kAffine}) {
    Weights weights(1);
    const Weights::Channels c = weights.channels(Slot::attn_q, kWidth, kDim, input);
    const auto table = weights.pack();
    const auto expression =
        embedding<Slot::token_embd>(Dim<>{kDim}) >> linear<Slot::attn_q>(Dim<>{kWidth});
    nibble_test::for_each_target([&](simd::Target) {
      const auto got = run(fuse(expression), table);
      int faults = 0, faults_of_other_range = 0;
      StaticScale other = input;
      other.scale *= 1.01f;
      for (Index row = 0; row < kTokens; ++row) {
        for (Index column = 0; column < kWidth; ++column) {
          double sum = 0, of_other = 0, norm = 0;
          for (Index i = 0; i < kDim; ++i) {
            const double w = double{c.scales[size(column)]} * int{c.codes[size(column * kDim + i)]};
            const double x = double{weights.embedding[size(row * kDim + i)]};
            sum += w * rounded(x, input);
            norm += std::fabs(w * rounded(x, input));
            of_other += w * rounded(x, other);
          }
          const double value = double{got[size(row * kWidth + column)]};
          faults += std::fabs(value - sum) > 4 * 0x1p-24 * norm;
          faults_of_other_range += std::fabs(value - of_other) > 4 * 0x1p-24 * norm;
        }
      }
      CHECK(faults == 0);
      CHECK(faults_of_other_range > kTokens * kWidth / 2);
    });
  }
}

TEST_CASE("norm and products of one input: fused and unfused give the same bits") {
  using namespace graph;
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool.has_value());
  const StaticScale all[] = {kSymmetric, kAffine, kOther, kOtherAffine};
  const auto rms = rms_norm<Slot::output_norm>(1e-5f);
  const auto layer = layer_norm<Slot::output_norm, Slot::output_norm_bias>(1e-5f);
  for (const StaticScale& q : all) {
    for (const StaticScale& k : all) {
      CAPTURE(q.scale);
      CAPTURE(q.zero_point);
      CAPTURE(k.scale);
      CAPTURE(k.zero_point);
      Weights weights(2);
      weights.channels(Slot::attn_q, kWidth, kDim, q);
      weights.channels(Slot::attn_k, kWidth, kDim, k);
      const auto table = weights.pack();
      nibble_test::for_each_target([&](simd::Target) {
        const auto check = [&](const auto& norm) {
          const auto unfused = run(group(norm), table);
          CHECK(n_different(run(fuse(group(norm)), table), unfused) == 0);
          CHECK(n_different(run(fuse(group(norm)), table, &**pool), unfused) == 0);
        };
        check(rms);
        check(layer);
      });
    }
  }
}

TEST_CASE("known ranges beside rows with scales of their own, blocks and floats") {
  using namespace graph;
  const auto norm = rms_norm<Slot::output_norm>(1e-5f);
  constexpr Index kLong = 96;  // whole blocks
  for (int other = 0; other < 3; ++other) {
    for (const bool is_first : {true, false}) {
      CAPTURE(other);
      Weights weights(3);
      // The input of the group is kDim wide; whole blocks need another width.
      const Slot fixed = is_first ? Slot::attn_q : Slot::attn_k;
      const Slot second = is_first ? Slot::attn_k : Slot::attn_q;
      weights.matrix(Slot::ffn_up, Format::f32, kLong, kDim);
      weights.channels(fixed, kWidth, kLong, kAffine);
      if (other == 0) weights.channels(second, kWidth, kLong, kDynamic8);
      if (other == 1) weights.matrix(second, Format::q8_0, kWidth, kLong);
      if (other == 2) weights.matrix(second, Format::f16, kWidth, kLong);
      const auto table = weights.pack();
      const auto expression =
          embedding<Slot::token_embd>(Dim<>{kDim}) >> norm >> linear<Slot::ffn_up>(Dim<>{kLong}) >>
          fork(linear<Slot::attn_q>(Dim<>{kWidth}), linear<Slot::attn_k>(Dim<>{kWidth})) >> sum();
      nibble_test::for_each_target([&](simd::Target) {
        // No norm before the group: all inputs are made of the same floats, fused or not.
        const auto unfused = run(expression, table);
        CHECK(n_different(run(fuse(expression), table), unfused) == 0);
      });
    }
  }
}

TEST_CASE("a known range beside another form of input, directly behind a norm: as in double") {
  using namespace graph;
  const auto expression = group(rms_norm<Slot::output_norm>(1e-5f));
  for (const StaticScale& other : {kDynamic8, kOther, kAffine}) {
    for (const bool is_first : {true, false}) {
      CAPTURE(other.scale);
      CAPTURE(is_first);
      Weights weights(7);
      const Slot fixed = is_first ? Slot::attn_q : Slot::attn_k;
      const Slot second = is_first ? Slot::attn_k : Slot::attn_q;
      const Weights::Channels a = weights.channels(fixed, kWidth, kDim, kSymmetric);
      const Weights::Channels b = weights.channels(second, kWidth, kDim, other);
      const auto table = weights.pack();
      // What becomes of a normed row in each form, and half a step of it at a value that is near
      // the middle of two, where the norm's own rounding decides.
      const auto in_form = [](const std::vector<double>& row, const StaticScale& s) {
        StaticScale range = s;
        if (!s) {
          double largest = 0;
          for (const double x : row) largest = std::fmax(largest, std::fabs(x));
          range.scale = static_cast<float>(largest / 127);
        }
        std::vector<double> out;
        for (const double x : row) out.push_back(rounded(x, range));
        return std::pair(out, double{range.scale});
      };
      std::vector<double> sums, bounds;
      for (Index row = 0; row < kTokens; ++row) {
        std::vector<double> x;
        double squares = 0;
        for (Index i = 0; i < kDim; ++i) {
          x.push_back(double{weights.embedding[size(row * kDim + i)]});
          squares += x.back() * x.back();
        }
        for (std::size_t i = 0; i < x.size(); ++i) {
          x[i] *= double{weights.norm[i]} / std::sqrt(squares / double{kDim} + 1e-5);
        }
        const auto [of_a, step_a] = in_form(x, kSymmetric);
        const auto [of_b, step_b] = in_form(x, other);
        for (Index column = 0; column < kWidth; ++column) {
          double sum = 0, norm = 0, largest = 0;
          for (std::size_t i = 0; i < x.size(); ++i) {
            const auto at = size(column * kDim) + i;
            const double wa = double{a.scales[size(column)]} * int{a.codes[at]};
            const double wb = double{b.scales[size(column)]} * int{b.codes[at]};
            sum += wa * of_a[i] + wb * of_b[i];
            norm += std::fabs(wa * of_a[i]) + std::fabs(wb * of_b[i]);
            largest = std::fmax(largest, std::fabs(wa) * step_a + std::fabs(wb) * step_b);
          }
          sums.push_back(sum);
          bounds.push_back(8 * 0x1p-24 * norm + largest);  // one code may be its neighbour
        }
      }
      nibble_test::for_each_target([&](simd::Target) {
        const auto got = run(fuse(expression), table);
        // A norm that finds the scales of its rows itself (kernels/norm.hpp) rounds elsewhere.
        if (other) CHECK(n_different(got, run(expression, table)) == 0);
        int far = 0, exact = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
          const double error = std::fabs(double{got[i]} - sums[i]);
          far += error > bounds[i];
          exact += error <= 1e-4 * std::fabs(sums[i]) + 1e-5;
        }
        CHECK(far == 0);
        CHECK(exact > static_cast<int>(got.size()) / 2);
      });
    }
  }
}

TEST_CASE("gated products with known ranges: alike, different, with biases") {
  using namespace graph;
  for (const StaticScale& up : {kSymmetric, kOther, kAffine}) {
    for (const bool has_bias : {false, true}) {
      CAPTURE(up.scale);
      Weights weights(4);
      weights.channels(Slot::ffn_gate, kWidth, kDim, kSymmetric);
      weights.channels(Slot::ffn_up, kWidth, kDim, up);
      if (has_bias) weights.vector(Slot::ffn_up_bias, kWidth);
      const auto table = weights.pack();
      nibble_test::for_each_target([&](simd::Target) {
        const auto unfused = run(gated(), table);
        CHECK(n_different(run(fuse(gated()), table), unfused) == 0);
      });
    }
  }
}

TEST_CASE("products with known ranges that are added to a residual") {
  for (const StaticScale& input : {kSymmetric, kAffine, kDynamic8}) {
    Weights weights(5);
    weights.channels(Slot::ffn_up, kWidth, kDim, kSymmetric);
    weights.channels(Slot::ffn_down, kDim, kWidth, input);
    const auto table = weights.pack();
    nibble_test::for_each_target([&](simd::Target) {
      const auto unfused = run(residual_into(), table);
      const auto fused = run(graph::fuse(residual_into()), table);
      int far = 0;  // x + (sum) where the other has (x + sum): one rounding
      for (std::size_t i = 0; i < fused.size(); ++i) {
        far += std::fabs(fused[i] - unfused[i]) > 0x1p-22f * (1 + std::fabs(unfused[i]));
      }
      CHECK(far == 0);
    });
  }
}

TEST_CASE("rows of a table of 8-bit weights are looked up") {
  using namespace graph;
  WeightStore store(0, graph::AllFormats{});
  std::vector<std::int8_t> codes(size(kTokens * kDim));
  std::vector<float> scales(size(kTokens));
  std::mt19937 random(6);
  for (auto& c : codes) c = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = 0.01f * static_cast<float>(i);
  const auto added = store.add_channels(Slot::token_embd, -1, kTokens, kDim,
                                        std::as_bytes(std::span(codes)), scales);
  REQUIRE_MESSAGE(added, test::why(added));
  InlineExecutor executor;
  REQUIRE(store.pack(executor));
  const auto rows = run(embedding<Slot::token_embd>(Dim<>{kDim}) >> output_rows(), store.table());
  int faults = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    faults += rows[i] != scales[i / size(kDim)] * static_cast<float>(codes[i]);
  }
  CHECK(faults == 0);
}

}  // namespace static_input_test
