// SPDX-License-Identifier: Apache-2.0
//
// A trained GPT-2 (minGPT's gpt-nano) compared with PyTorch's activations: every intermediate
// result by its name, from the expression as written; logits and probabilities also from the fused
// expression.
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <string>

#include "doctest/doctest.h"
#include "graph/engine.hpp"
#include "nibble/io/safetensors.hpp"
#include "nibble/model/weight_store.hpp"
#include "test_data.hpp"

namespace gpt_nano_test {
namespace {

using namespace nibble;
using quant::Format;

constexpr Index kInputs = 3, kTokens = 11, kLayers = 3, kHeads = 3, kHeadDim = 16, kDim = 48;
constexpr double kTolerance = 1e-5;

// Returns the value at (token, column) of an activation for one input, in the expression's layout.
class Expected {
 public:
  Expected(const io::Safetensor& tensor, Index input) : shape_(tensor.shape) {
    REQUIRE(tensor.type == io::SafetensorType::f32);
    values_.resize(tensor.data.size() / sizeof(float));
    std::memcpy(values_.data(), tensor.data.data(), tensor.data.size());
    const std::size_t part = values_.size() / shape_[0];
    const std::size_t first = shape_[0] == 1 ? 0 : static_cast<std::size_t>(input) * part;
    values_ = {values_.begin() + static_cast<std::ptrdiff_t>(first),
               values_.begin() + static_cast<std::ptrdiff_t>(first + part)};
  }
  Index rows() const { return static_cast<Index>(shape_[shape_.size() - 2]); }
  Index columns() const {
    const auto width = static_cast<Index>(shape_.back());
    return shape_.size() == 4 ? width * static_cast<Index>(shape_[1]) : width;
  }
  float operator()(Index token, Index column) const {
    Index at = token * columns() + column;
    if (shape_.size() == 4) {  // (heads, tokens, width)
      const auto width = static_cast<Index>(shape_.back());
      at = (column / width * rows() + token) * width + column % width;
    }
    return values_[static_cast<std::size_t>(at)];
  }

 private:
  std::vector<std::uint64_t> shape_;
  std::vector<float> values_;
};

void add(WeightStore& store, const io::Safetensors& file, Slot slot, Index layer,
         const std::string& name) {
  const auto tensor = file.tensor(name);
  REQUIRE(tensor.has_value());
  const bool is_vector = tensor->shape.size() == 1;
  const auto k = static_cast<Index>(tensor->shape.back());
  const Index n = is_vector ? 0 : static_cast<Index>(tensor->shape[0]);
  const auto status = store.add(slot, layer, Format::f32, n, k, tensor->data);
  REQUIRE_MESSAGE(status.has_value(), name);
}

WeightStore load_weights(const io::Safetensors& file) {
  WeightStore store(kLayers, graph::AllFormats{});
  const auto with_bias = [&](Slot weight, Slot bias, Index layer, const std::string& name) {
    add(store, file, weight, layer, name + ".weight");
    add(store, file, bias, layer, name + ".bias");
  };
  using enum Slot;
  add(store, file, token_embd, -1, "transformer.wte.weight");
  add(store, file, position_embd, -1, "transformer.wpe.weight");
  with_bias(output_norm, output_norm_bias, -1, "transformer.ln_f");
  add(store, file, output, -1, "lm_head.weight");
  for (Index layer = 0; layer < kLayers; ++layer) {
    const std::string h = "transformer.h." + std::to_string(layer) + ".";
    with_bias(attn_norm, attn_norm_bias, layer, h + "ln_1");
    with_bias(attn_qkv, attn_qkv_bias, layer, h + "attn.c_attn");
    with_bias(attn_output, attn_output_bias, layer, h + "attn.c_proj");
    with_bias(ffn_norm, ffn_norm_bias, layer, h + "ln_2");
    with_bias(ffn_up, ffn_up_bias, layer, h + "mlp.c_fc");
    with_bias(ffn_down, ffn_down_bias, layer, h + "mlp.c_proj");
  }
  InlineExecutor executor;
  REQUIRE(store.pack(executor).has_value());
  return store;
}

// Compares one activation and counts its values. The reference also has scores of masked positions;
// ours are −∞ there, and these are not compared.
void compare(const std::string& name, const Expected& expected, MatrixView<const float> rows,
             Index& n_compared) {
  CAPTURE(name);
  REQUIRE(rows.extent(0) == expected.rows());
  REQUIRE(rows.extent(1) == expected.columns());
  for (Index t = 0; t < rows.extent(0); ++t) {
    for (Index j = 0; j < rows.extent(1); ++j) {
      const bool masked = name == "att" && j % kTokens > t;
      if (masked) {
        CHECK(rows(t, j) == -std::numeric_limits<float>::infinity());
        continue;
      }
      const double off =
          std::fabs(static_cast<double>(rows(t, j)) - static_cast<double>(expected(t, j)));
      if (!(off <= kTolerance)) FAIL_CHECK("at ", t, ", ", j, ": off by ", off);
      ++n_compared;
    }
  }
}

test::FloatRows softmax(test::FloatRows rows) {
  for (auto& row : rows) {
    double sum = 0;
    for (const float v : row) sum += std::exp(static_cast<double>(v));
    for (float& v : row) v = static_cast<float>(std::exp(static_cast<double>(v)) / sum);
  }
  return rows;
}

}  // namespace

TEST_CASE("gpt-nano: every activation") {
  const auto model_path = test::data_path("models/gpt-nano-sort/model.by-us.safetensors");
  const auto partials_path = test::data_path("models/gpt-nano-sort/partials.by-us.safetensors");
  if (!model_path || !partials_path) return;
  const auto file = io::Safetensors::open(*model_path);
  const auto partials = io::Safetensors::open(*partials_path);
  REQUIRE(file.has_value());
  REQUIRE(partials.has_value());
  const auto store = load_weights(*file);

  test::Parts parts;
  parts.config.architecture = "gpt2";
  parts.config.vocab_size = 3;
  parts.config.dim = kDim;
  parts.config.n_layers = kLayers;
  parts.config.n_heads = kHeads;
  parts.config.n_kv_heads = kHeads;
  parts.config.head_dim = kHeadDim;
  parts.config.ffn_dim = 4 * kDim;
  parts.config.n_ctx = kTokens;
  parts.weights = store.table();

  std::map<std::string, Index> compared;
  for (Index input = 0; input < kInputs; ++input) {
    CAPTURE(input);
    const auto expected = [&](const std::string& name) {
      const auto tensor = partials->tensor(name);
      REQUIRE_MESSAGE(tensor.has_value(), name);
      return Expected(*tensor, input);
    };
    std::vector<std::int32_t> tokens;
    const auto idx = partials->tensor("idx");
    REQUIRE(idx.has_value());
    REQUIRE(idx->shape == std::vector<std::uint64_t>{kInputs, kTokens});
    for (Index t = 0; t < kTokens; ++t) {
      float id;
      std::memcpy(&id, idx->data.data() + static_cast<std::size_t>(input * kTokens + t) * 4, 4);
      tokens.push_back(static_cast<std::int32_t>(id));
    }
    compared["idx"] += kTokens;  // the input

    const auto see = [&](std::string_view view, Index layer, MatrixView<const float> rows) {
      const std::string name(view);
      if (layer <= 0) compare(name, expected(name), rows, compared[name]);
      if (name == "mlpResid") {
        const std::string block = "block" + std::to_string(layer);
        compare(block, expected(block), rows, compared[block]);
      }
    };
    const graph::Observer observer = see;
    test::RunOptions options;
    options.fused = false;
    options.observer = &observer;
    const auto check_outputs = [&](const test::FloatRows& logits) {
      for (const auto& [name, rows] : {std::pair<std::string, test::FloatRows>{"lm_head", logits},
                                       {"probs", softmax(logits)}}) {
        std::vector<float> flat;
        for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
        compare(name, expected(name), MatrixView<const float>(flat.data(), kTokens, Index{3}),
                compared[name]);
      }
    };
    check_outputs(test::run_graph(parts, tokens, options));
    options.fused = true;
    options.observer = nullptr;
    check_outputs(test::run_graph(parts, tokens, options));
  }

  // Nothing of the file is left out: all values of everything were seen.
  for (const io::Safetensor& tensor : partials->tensors()) {
    CAPTURE(tensor.name);
    auto n = static_cast<Index>(tensor.data.size() / sizeof(float));
    if (tensor.name == "pos_emb") n *= kInputs;  // one for all inputs
    if (tensor.name == "att") n = kInputs * kHeads * kTokens * (kTokens + 1) / 2;
    if (tensor.name == "lm_head") n *= 3;  // observed, returned, fused
    if (tensor.name == "probs") n *= 2;
    CHECK(compared[tensor.name] == n);
  }
  CHECK(compared.size() == partials->tensors().size());
}

}  // namespace gpt_nano_test
