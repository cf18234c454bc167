// SPDX-License-Identifier: Apache-2.0
//
// Runs of expressions, as written and as fused, compared with the reference in double: for both
// architectures, all weight formats, alone and mixed, on every target; the prompt at once and in
// chunks; in memory full of NaN or of huge numbers.
#include "nibble/graph/run.hpp"

#include <cmath>
#include <string>

#include "doctest/doctest.h"
#include "graph/engine.hpp"
#include "graph/tiny_dims.hpp"
#include "kernels/each_target.hpp"
#include "model/reference_of.hpp"
#include "nibble/core/thread_pool.hpp"

namespace run_test {
namespace {

using namespace nibble;
using test::Architecture;
using test::Format;
using test::ModelShape;
using test::RandomModel;
using test::run_graph;
using test::RunOptions;

// Rounding alone, relative to the largest logit. A dot product of k random terms has an error of
// about sqrt(k) * 2^-24 relative to its operands' norms (k <= 96: 10). The errors of about twenty
// such steps in a row add up at random, and the largest of some hundred errors is four times the
// typical one.
constexpr double kRounding = 10 * 0x1p-24 * 4.5 * 4;

// What quantized activations add. A code has an error of at most half a step of absmax / 127,
// uniformly distributed; absmax is about 2.5 standard deviations: 0.6 % of the values' size. Ten
// products in a row make 2 %. The largest error relative to the largest logit is about the same as
// the typical error relative to the typical logit.
constexpr double kQuantization = 0.03;

struct Fixture {
  Fixture(const ModelShape& shape, std::uint32_t seed)
      : model(shape, seed),
        store(model.store()),
        tokens(model.tokens(11)),
        parts{model.config(), store.table()} {
    const auto rows = test::reference_of(model).logits({tokens.begin(), tokens.end()});
    for (const auto& row : rows) reference.emplace_back(row.begin(), row.end());
  }

  RandomModel model;
  WeightStore store;
  std::vector<std::int32_t> tokens;
  test::Parts parts;
  test::FloatRows reference;
};

// The largest difference; infinite if the shapes differ or a value is not a number.
double distance(const test::FloatRows& a, const test::FloatRows& b) {
  if (a.size() != b.size()) return INFINITY;
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size()) return INFINITY;
    for (std::size_t j = 0; j < a[i].size(); ++j) {
      const double d = std::fabs(static_cast<double>(a[i][j]) - static_cast<double>(b[i][j]));
      largest = d <= largest ? largest : std::isnan(d) ? INFINITY : d;
    }
  }
  return largest;
}

double size_of(const test::FloatRows& rows) {
  double largest = 0;
  for (const auto& row : rows) {
    for (const float v : row) largest = std::fmax(largest, std::fabs(static_cast<double>(v)));
  }
  return largest;
}

ModelShape shape_of(Architecture architecture, const std::vector<Format>& formats) {
  ModelShape shape;
  shape.architecture = architecture;
  shape.vocab_size = 70;
  shape.dim = 64;
  shape.n_heads = 4;
  shape.n_kv_heads = architecture == Architecture::gpt2 ? 4 : 2;
  shape.head_dim = 16;
  shape.rope_dim = 16;
  shape.ffn_dim = 96;
  shape.qkv_bias = true;
  shape.formats = formats;
  return shape;
}

struct Case {
  std::string name;
  std::vector<Format> formats;
  bool quantized = false;  // some activations are quantized, too
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Format format : {Format::f32, Format::f16, Format::bf16, Format::q8_0, Format::q4_0,
                              Format::q4_1, Format::q5_0, Format::q5_1}) {
    const bool plain = format == Format::f32 || format == Format::f16 || format == Format::bf16;
    all.push_back({quant::to_string(format), {format}, !plain});
  }
  all.push_back({"floats mixed", {Format::bf16, Format::f32, Format::f16}, false});
  all.push_back({"all mixed",
                 {Format::q4_1, Format::f16, Format::q8_0, Format::f32, Format::q4_0, Format::bf16,
                  Format::q8_0},
                 true});
  return all;
}

void check_fusion(Architecture architecture, std::uint32_t seed) {
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    const Fixture f(shape_of(architecture, c.formats), seed);
    const double size = size_of(f.reference);
    REQUIRE(size > 1);
    const double tolerance = (kRounding + (c.quantized ? kQuantization : 0)) * size;
    nibble_test::for_each_target([&](simd::Target) {
      RunOptions options;
      options.fused = false;
      const auto unfused = run_graph(f.parts, f.tokens, options);
      const double off = distance(unfused, f.reference);
      CHECK(off <= tolerance);

      options.fused = true;
      const auto fused = run_graph(f.parts, f.tokens, options);
      CHECK(distance(fused, f.reference) <= tolerance);
      // An activation between two codes may get the other code: an error of a whole step, where
      // quantization has a third of one on average, but only for one in thousands of values.
      const double same = kRounding * size + (c.quantized ? off / 4 : 0);
      CHECK(distance(fused, unfused) <= same);

      for (const std::size_t batch : {1u, 3u}) {
        CAPTURE(batch);
        options.batch = batch;
        options.garbage = 127;
        const auto pieces = run_graph(f.parts, f.tokens, options);
        CHECK(distance(pieces, fused) <= same);
      }
    });
  }
}

}  // namespace

TEST_CASE("Llama: fused, unfused and in pieces") { check_fusion(Architecture::llama, 1); }

TEST_CASE("GPT-2: fused, unfused and in pieces") { check_fusion(Architecture::gpt2, 2); }

TEST_CASE("several workers compute what one does") {
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool.has_value());
  for (const Architecture architecture : {Architecture::llama, Architecture::gpt2}) {
    const Fixture f(shape_of(architecture, {Format::q8_0, Format::f32}), 3);
    RunOptions options;
    const auto alone = run_graph(f.parts, f.tokens, options);
    options.executor = &**pool;
    CHECK(distance(run_graph(f.parts, f.tokens, options), alone) == 0);
  }
}

TEST_CASE("16-bit and 8-bit caches") {
  const Fixture f(shape_of(Architecture::llama, {Format::f32}), 4);
  const double size = size_of(f.reference);
  for (const auto& [kv_type, eps] :
       {std::pair{ops::KvType::f16, 0x1p-11}, std::pair{ops::KvType::bf16, 0x1p-8},
        std::pair{ops::KvType::int8, 0x1p-8}}) {
    RunOptions options;
    options.kv_type = kv_type;
    const auto fused = run_graph(f.parts, f.tokens, options);
    options.fused = false;
    const auto unfused = run_graph(f.parts, f.tokens, options);
    // Keys and values are rounded once each and have size 1: scores have an error of eps, values
    // too; two layers.
    CHECK(distance(fused, f.reference) <= 8 * eps * size);
    CHECK(distance(fused, f.reference) > kRounding * size);  // it was not f32
    // If f32 values differ in their last bits, the nearest number that the cache can hold may
    // differ.
    CHECK(distance(fused, unfused) <= 8 * eps * size);
  }
}

TEST_CASE("static dimensions give what dynamic ones give") {
  ModelShape shape;
  const test::TinyDims tiny;
  shape.vocab_size = tiny.vocab_size;
  shape.dim = tiny.dim;
  shape.n_layers = tiny.n_layers;
  shape.n_heads = tiny.n_heads;
  shape.n_kv_heads = tiny.n_kv_heads;
  shape.head_dim = tiny.head_dim;
  shape.rope_dim = tiny.head_dim;
  shape.ffn_dim = tiny.ffn_dim;
  const Fixture f(shape, 5);
  RunOptions options;
  options.batch = 4;
  CHECK(distance(test::run_static(f.parts, f.tokens, options),
                 run_graph(f.parts, f.tokens, options)) == 0);
}

TEST_CASE("layer_norm, activation and dropout as one") {
  ModelShape shape = shape_of(Architecture::gpt2, {Format::f32});
  const Fixture f(shape, 6);
  const auto run = [&](bool fused, bool training) {
    return test::run_norm_dropout(f.parts, f.tokens, fused, training, 0.25f);
  };
  const auto plain = run(false, false);
  CHECK(distance(run(true, false), plain) <= kRounding * size_of(plain));
  for (const bool fused : {false, true}) {
    CAPTURE(fused);
    const auto dropped = run(fused, true);
    REQUIRE(dropped.size() == plain.size());
    int n_zero = 0, n_all = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      for (std::size_t j = 0; j < plain[i].size(); ++j) {
        ++n_all;
        if (dropped[i][j] == 0) {
          ++n_zero;
        } else {
          CHECK(dropped[i][j] == doctest::Approx(plain[i][j] / 0.75f).epsilon(1e-5));
        }
      }
    }
    // Four deviations of 704 choices.
    CHECK(n_zero > 704 / 4 - 46);
    CHECK(n_zero < 704 / 4 + 46);
    CHECK(n_all == 704);
  }
}

TEST_CASE("only the output rows, also when asked for twice") {
  const Fixture f(shape_of(Architecture::gpt2, {Format::f32}), 7);
  const auto n = static_cast<Index>(f.tokens.size());
  const auto all = test::run_output_rows_twice(f.parts, f.tokens, n);
  REQUIRE(all.size() == f.tokens.size());
  const auto some = test::run_output_rows_twice(f.parts, f.tokens, 2);
  CHECK(distance(some, {all.end() - 2, all.end()}) == 0);
}

TEST_CASE("a model without layers") {
  const Fixture f(shape_of(Architecture::gpt2, {Format::f32}), 8);
  const auto expected =
      test::run_output_rows_twice(f.parts, f.tokens, static_cast<Index>(f.tokens.size()));
  CHECK(distance(test::run_without_layers(f.parts, f.tokens), expected) == 0);
}

}  // namespace run_test
