// SPDX-License-Identifier: Apache-2.0
//
// What engines promise, for weights that are not plain matrices: those with factors of low rank, in
// 8 bits with known ranges of their inputs, without their zeros, shared by layers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "doctest/doctest.h"
#include "generate/generating.hpp"
#include "model/random_model.hpp"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/sparse_file.hpp"
#include "nibble/compress/static_int8.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/convert.hpp"

namespace compressed_weights_test {

using namespace nibble;
using quant::Format;
using test::must;

namespace {

using Bytes = std::vector<std::byte>;

io::Gguf parsed(const Bytes& bytes) { return must(io::Gguf::parse(bytes, "compressed.gguf")); }
Model loaded(const Bytes& bytes) {
  return must(Model::from_gguf<graph::AllFormats>(parsed(bytes)));
}

test::ModelShape shape_of_test() {
  test::ModelShape shape;
  shape.dim = 64;
  shape.head_dim = 16;
  shape.ffn_dim = 96;
  shape.rope_dim = 16;
  return shape;
}
Bytes original() { return test::RandomModel(shape_of_test(), 11).gguf(); }

bool is_layer_matrix(const io::GgufTensor& tensor) {
  return tensor.name.starts_with("blk.") && tensor.n_dims == 2;
}

Bytes with_factors() {
  InlineExecutor alone;
  const Bytes bytes = original();
  return must(compress::factor_model(
      parsed(bytes),
      [](std::string_view name) -> std::optional<compress::FactorChoice> {
        if (name.find("ffn_") == name.npos || name.find("norm") != name.npos) return {};
        return compress::FactorChoice{
            .rank = {.rank = 32, .multiple = 32}, .factors = Format::q8_0, .base = Format::q4_0};
      },
      alone));
}

Bytes with_known_ranges() {
  const Bytes bytes = original();
  const io::Gguf file = parsed(bytes);
  std::vector<compress::ProductInput> inputs;
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (!is_layer_matrix(tensor)) continue;
    const bool is_unsigned = tensor.name.find("ffn_down") != tensor.name.npos;
    inputs.push_back({std::string(tensor.name), {0.04f, is_unsigned ? 120 : 0, is_unsigned}});
  }
  return must(compress::to_static_int8(file, inputs));
}

// Two of each four weights are zero.
Bytes sparse(bool blocks, bool bitmask, bool two_of_four) {
  const Bytes bytes = original();
  const io::Gguf file = parsed(bytes);
  io::GgufWriter writer;
  writer.copy_metadata(file);
  std::vector<Bytes> changed;
  changed.reserve(file.tensors().size());
  for (const io::GgufTensor& tensor : file.tensors()) {
    Bytes& data = changed.emplace_back(tensor.data.begin(), tensor.data.end());
    if (is_layer_matrix(tensor)) {
      for (std::size_t i = 0; i < data.size(); i += sizeof(float)) {
        // The same columns in each panel of 16 rows, so that whole blocks of 16 by 4 are zero.
        const std::size_t column = i / sizeof(float) % tensor.dims[0];
        if (blocks ? column / 4 % 2 == 0 : column % 4 < 2) std::memset(&data[i], 0, sizeof(float));
      }
    }
    writer.add_tensor(tensor.name, tensor.type, std::span(tensor.dims).first(tensor.n_dims), data);
  }
  const Bytes zeros = must(writer.to_bytes());
  const Bytes converted = must(quantize_model(parsed(zeros), {.format = Format::q4_0}));
  return must(compress::pack_sparse_model(
      parsed(converted), {.blocks = blocks, .two_of_four = two_of_four, .bitmask = bitmask}));
}

Bytes shared() {
  const Bytes bytes = original();
  const std::vector<compress::SharedPair> pairs = {{"blk.1.ffn_up.weight", "blk.0.ffn_up.weight"},
                                                   {"blk.0.attn_q.weight", "blk.1.attn_q.weight"}};
  return must(compress::share_tensors(parsed(bytes), pairs));
}

struct Kind {
  const char* name;
  Model model;
};
std::vector<Kind> all_kinds() {
  return {{"factors", loaded(with_factors())},
          {"known ranges", loaded(with_known_ranges())},
          {"blocks", loaded(sparse(true, false, false))},
          {"bit masks", loaded(sparse(false, true, false))},
          {"two of four", loaded(sparse(false, false, true))},
          {"shared", loaded(shared())}};
}

bool has_sparse_weights(const Model& model) {
  const auto layers = model.weights().layers();
  return std::any_of(layers.begin(), layers.end(), [](const graph::Weight& w) {
    return w.ops != nullptr && w.ops->data_bytes != nullptr;
  });
}

}  // namespace

TEST_CASE("compressed weights: tokens cost no allocation") {
  for (const Kind& kind : all_kinds()) {
    CAPTURE(std::string(kind.name));
    Session session = test::make_session({.n_ctx = 32}, kind.model);
    const std::vector<std::int32_t> ids = {1, 30, 17, 4, 13, 22};
    const std::span<const std::int32_t> all(ids);
    REQUIRE(session.append(all));
    const auto before = allocation_count();
    bool good = true;
    for (int i = 0; i < 3; ++i) {
      good = good && session.rewind(0) && session.append(all) && session.append(all.first(1));
    }
    const auto spent = allocation_count() - before;
    CHECK(good);
    CHECK(spent == 0);
  }
}

TEST_CASE("compressed weights: a model's own table can be exchanged for itself") {
  int n_sparse = 0;
  for (const Kind& kind : all_kinds()) {
    CAPTURE(std::string(kind.name));
    n_sparse += has_sparse_weights(kind.model);
    auto engine = must(Engine::create(kind.model, {.n_ctx = 32, .exchangeable_weights = true}));
    const auto exchanged = engine.exchange_weights(kind.model.weights());
    CHECK_MESSAGE(exchanged, test::why(exchanged));
  }
  CHECK(n_sparse == 3);
}

TEST_CASE("known ranges: NaN in one sequence is an error there, and no other one changes") {
  // A row of the embedding is NaN. Codes have no NaN, but the residual carries it to the logits.
  const Bytes bytes = with_known_ranges();
  const io::Gguf file = parsed(bytes);
  constexpr std::size_t kBad = 9;
  io::GgufWriter writer;
  writer.copy_metadata(file);
  Bytes table;
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name != "token_embd.weight") {
      writer.add_tensor(tensor);
      continue;
    }
    REQUIRE(tensor.type == io::GgmlType::f32);
    table.assign(tensor.data.begin(), tensor.data.end());
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(&table[(kBad * tensor.dims[0] + 3) * sizeof(float)], &nan, sizeof(nan));
    writer.add_tensor(tensor.name, tensor.type, std::span(tensor.dims).first(2), table);
  }
  const Model model = loaded(must(writer.to_bytes()));

  const auto engine_of = [&] {
    return must(Engine::create(model, {.n_ctx = 32,
                                       .max_sequences = 2,
                                       .cache_positions = 2 * ops::kPagePositions,
                                       .max_step_tokens = 8}));
  };
  const std::vector<std::int32_t> good_ids = {1, 30, 17, 4};
  const std::vector<std::int32_t> bad_ids = {1, static_cast<std::int32_t>(kBad)};
  const auto row_of = [](MatrixView<const float> logits, Index row) {
    std::vector<float> values;
    for (Index i = 0; i < logits.extent(1); ++i) values.push_back(logits(row, i));
    return values;
  };
  Engine alone = engine_of();
  auto sequence = must(alone.new_sequence());
  const SequenceInput one[] = {{.sequence = &sequence, .tokens = good_ids}};
  const auto expected = row_of(must(alone.run(one)), 0);

  Engine both = engine_of();
  auto good = must(both.new_sequence()), bad = must(both.new_sequence());
  const SequenceInput two[] = {{.sequence = &bad, .tokens = bad_ids},
                               {.sequence = &good, .tokens = good_ids}};
  const auto logits = must(both.run(two));
  const auto of_bad = row_of(logits, 0), of_good = row_of(logits, 1);
  CHECK(std::all_of(of_bad.begin(), of_bad.end(), [](float x) { return std::isnan(x); }));
  CHECK(std::memcmp(of_good.data(), expected.data(), expected.size() * sizeof(float)) == 0);

  // Whoever draws a token from such logits is told.
  Session session = test::make_session({.n_ctx = 32}, model);
  Generator generator = test::make_generator(session);
  REQUIRE(generator.prompt(std::span<const std::int32_t>(bad_ids)));
  const auto token = generator.next();
  REQUIRE(!token);
  CHECK(token.error().code == Errc::malformed);
}

}  // namespace compressed_weights_test
