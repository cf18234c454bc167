// SPDX-License-Identifier: Apache-2.0
//
// Smoothing: the model stays the same function, its factors are those of the definition, and inputs
// with a few large channels lose less in 8 bits.
#include "nibble/compress/smooth.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "compress/distance.hpp"
#include "doctest/doctest.h"
#include "model/random_model.hpp"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/input_ranges.hpp"
#include "nibble/compress/observe.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
#include "why.hpp"

namespace smooth_test {

using namespace nibble;
using test::distance;
using Floats = std::vector<float>;

namespace {

constexpr Index kDim = 48, kFfnDim = 80;

io::Gguf parsed(const std::vector<std::byte>& bytes) {
  auto file = io::Gguf::parse(bytes, "a model");
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

Floats floats(const io::Gguf& file, const std::string& name) {
  const io::GgufTensor* const tensor = file.find_tensor(name);
  REQUIRE_MESSAGE(tensor != nullptr, name);
  Floats x(tensor->data.size() / 4);
  std::memcpy(x.data(), tensor->data.data(), tensor->data.size());
  return x;
}

// The same function as a random model, but two of its normed channels, and three channels within
// the feed-forward part, are much larger than the others, and the weights that read them smaller.
std::vector<std::byte> with_outliers(const io::Gguf& file) {
  io::GgufWriter writer;
  writer.copy_metadata(file);
  std::vector<Floats> kept;
  kept.reserve(file.tensors().size());
  for (const io::GgufTensor& tensor : file.tensors()) {
    const std::string name(tensor.name);
    Floats x = floats(file, name);
    const auto times = [&](std::size_t first, std::size_t step, float factor) {
      for (std::size_t i = first; i < x.size(); i += step) x[i] *= factor;
    };
    if (name.ends_with("attn_norm.weight") || name.ends_with("ffn_norm.weight")) {
      x[5] *= 30;
      x[40] *= 20;
    }
    for (const char* const reader : {"attn_q.", "attn_k.", "attn_v.", "ffn_gate.", "ffn_up."}) {
      if (name.find(reader) == name.npos) continue;
      times(5, kDim, 1 / 30.0f);
      times(40, kDim, 1 / 20.0f);
    }
    for (const std::size_t channel : {3u, 17u, 79u}) {
      if (name.ends_with("ffn_up.weight")) {
        for (std::size_t i = 0; i < kDim; ++i) x[channel * kDim + i] *= 25;
      }
      if (name.ends_with("ffn_down.weight")) times(channel, kFfnDim, 1 / 25.0f);
    }
    kept.push_back(std::move(x));
    writer.add_tensor(tensor.name, io::GgmlType::f32, std::span(tensor.dims).first(tensor.n_dims),
                      std::as_bytes(std::span(kept.back())));
  }
  auto bytes = writer.to_bytes();
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

Model loaded(const io::Gguf& file) {
  auto model = Model::from_gguf<graph::AllFormats>(file);
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

compress::Statistics observed(const Model& model, const std::vector<std::int32_t>& tokens) {
  auto statistics = compress::observe(model, tokens, {.context = 16});
  REQUIRE_MESSAGE(statistics, test::why(statistics));
  return *std::move(statistics);
}

Floats logits_of(const Model& model, std::span<const std::int32_t> tokens) {
  auto session = Session::create(model);
  REQUIRE_MESSAGE(session, test::why(session));
  const auto logits = session->append(tokens);
  REQUIRE_MESSAGE(logits, test::why(logits));
  return {logits->data(), logits->data() + logits->extent(1)};
}

std::vector<std::byte> static_int8(const io::Gguf& file, const compress::Statistics& statistics) {
  const auto inputs = compress::product_inputs(statistics);
  REQUIRE_MESSAGE(inputs, test::why(inputs));
  auto bytes = compress::to_static_int8(file, *inputs);
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

}  // namespace

TEST_CASE("smoothing keeps the function, and static INT8 then loses less") {
  test::RandomModel random({.dim = kDim, .ffn_dim = kFfnDim}, 11);
  const auto random_bytes = random.gguf();
  const auto bytes = with_outliers(parsed(random_bytes));
  const io::Gguf file = parsed(bytes);
  const Model model = loaded(file);
  const auto tokens = random.tokens(128);
  const std::span<const std::int32_t> some = std::span(tokens).first(12);
  const auto statistics = observed(model, tokens);
  const Floats expected = logits_of(model, some);

  const auto smooth_bytes = compress::smooth(file, statistics);
  REQUIRE_MESSAGE(smooth_bytes, test::why(smooth_bytes));
  const io::Gguf smooth_file = parsed(*smooth_bytes);
  const Model smooth_model = loaded(smooth_file);
  CHECK(distance(logits_of(smooth_model, some), expected) < 1e-4);

  // The factors, from the definition in double: the norm's gain was divided by them, the rows of V
  // multiplied, and the largest input of a channel is theirs as well.
  const auto gain = floats(file, "blk.1.attn_norm.weight");
  const auto new_gain = floats(smooth_file, "blk.1.attn_norm.weight");
  const auto v = floats(file, "blk.1.attn_v.weight"),
             new_v = floats(smooth_file, "blk.1.attn_v.weight");
  const auto* const input = statistics.find("blk.1.attn_v.weight");
  REQUIRE(input != nullptr);
  int faults = 0;
  for (std::size_t j = 0; j < kDim; ++j) {
    double largest_weight = 0;
    for (const char* const name :
         {"blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"}) {
      const auto w = floats(file, name);
      for (std::size_t at = j; at < w.size(); at += kDim) {
        largest_weight = std::max(largest_weight, std::fabs(double{w[at]}));
      }
    }
    const auto column = static_cast<Index>(j);
    const double largest = std::max(std::fabs(double{input->smallest(column)}),
                                    std::fabs(double{input->largest(column)}));
    const double factor = std::sqrt(largest / largest_weight);
    faults += std::fabs(double{gain[j]} / double{new_gain[j]} / factor - 1) > 1e-6;
    faults += std::fabs(double{new_v[j]} / double{v[j]} / factor - 1) > 1e-6;
  }
  CHECK(faults == 0);

  const auto plain_bytes = static_int8(file, statistics);
  const auto smoothed_bytes = static_int8(smooth_file, observed(smooth_model, tokens));
  const io::Gguf plain_file = parsed(plain_bytes), smoothed_file = parsed(smoothed_bytes);
  const double plain = distance(logits_of(loaded(plain_file), some), expected);
  const double smoothed = distance(logits_of(loaded(smoothed_file), some), expected);
  MESSAGE("static INT8 with outliers: error ", plain, ", smoothed ", smoothed);
  CHECK(smoothed < plain / 2);
}

TEST_CASE("what is wrong with a smoothing is said") {
  test::RandomModel random({.dim = kDim, .ffn_dim = kFfnDim}, 12);
  test::RandomModel other({.dim = 64, .head_dim = 16, .ffn_dim = kFfnDim, .rope_dim = 16}, 13);
  const auto bytes = random.gguf(), other_bytes = other.gguf();
  const io::Gguf file = parsed(bytes), other_file = parsed(other_bytes);
  const auto statistics = observed(loaded(file), random.tokens(32));
  const auto has = [](const auto& result, const char* part) {
    return !result && result.error().message.find(part) != std::string::npos;
  };
  CHECK(has(compress::smooth(other_file, statistics), "another model"));
  // A model with fewer layers of the same shape.
  test::RandomModel shorter({.dim = kDim, .n_layers = 1, .ffn_dim = kFfnDim}, 12);
  const auto shorter_bytes = shorter.gguf();
  CHECK(has(compress::smooth(parsed(shorter_bytes), statistics), "no such tensor"));
  CHECK(has(compress::smooth(file, {}), "was not observed"));
  // What scaling whole matrices would change.
  InlineExecutor alone;
  const auto factored = compress::factor_model(
      file,
      [](std::string_view name) -> std::optional<compress::FactorChoice> {
        if (name != "blk.1.attn_k.weight") return {};
        return compress::FactorChoice{
            .rank = {.rank = 4}, .factors = quant::Format::f32, .base = quant::Format::f16};
      },
      alone);
  REQUIRE_MESSAGE(factored, test::why(factored));
  CHECK(has(compress::smooth(parsed(*factored), statistics), "a factor of low rank"));
  const compress::SharedPair pairs[] = {{"blk.1.ffn_up.weight", "blk.0.ffn_up.weight"}};
  const auto shared = compress::share_tensors(file, pairs);
  REQUIRE_MESSAGE(shared, test::why(shared));
  CHECK(has(compress::smooth(parsed(*shared), statistics), "layers share tensors"));
  CHECK(has(compress::smooth(file, statistics, {.alpha = 1.5f}), "alpha"));
  CHECK(has(compress::smooth(file, statistics, {.alpha = NAN}), "alpha"));
  // Ranges of nothing.
  CHECK(has(compress::to_static_int8(file, *compress::product_inputs({})), "no ranges"));
}

}  // namespace smooth_test
