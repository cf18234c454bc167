// SPDX-License-Identifier: Apache-2.0
//
// Pruned models against the reference in double of the whole model with the same parts switched
// off: rows and columns of zeros instead of none.
#include "nibble/compress/prune.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "allocation_counter.hpp"
#include "compress/pruning.hpp"
#include "doctest/doctest.h"
#include "model/reference_of.hpp"
#include "nibble/compress/factor_model.hpp"
#include "nibble/compress/static_int8.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
#include "nibble/nibble.hpp"
#include "why.hpp"

namespace prune_test {
namespace {

using namespace nibble;
using namespace nibble::compress;
using test::bundled;
using test::ModelShape;
using test::parse;
using test::pruned;
using test::RandomModel;

// See tests/model/oracle_test.cpp: rounding in f32, relative to the largest logit.
constexpr double kRounding = 10 * 0x1p-24 * 4.5 * 4;

ModelShape shape_of_test() {
  ModelShape shape;
  shape.n_layers = 3;
  shape.n_heads = 6;
  shape.n_kv_heads = 3;
  shape.qkv_bias = shape.output_bias = shape.gate_bias = shape.up_bias = shape.down_bias = true;
  return shape;
}

bool has(const std::vector<Index>& units, std::size_t unit) {
  return std::binary_search(units.begin(), units.end(), static_cast<Index>(unit));
}

// Switches off what `keep` leaves out. A layer without outputs adds nothing.
void switch_off(test::Reference& reference, const ModelShape& s, const PruneKeep& keep) {
  const auto zero = [&](const std::string& name, std::size_t k, auto is_off, bool by_row) {
    auto& w = reference.tensors.at(name);
    for (std::size_t i = 0; i < w.size(); ++i) {
      if (is_off(by_row ? i / k : i % k)) w[i] = 0;
    }
  };
  const auto dim = static_cast<std::size_t>(s.dim), ffn = static_cast<std::size_t>(s.ffn_dim);
  const auto q = static_cast<std::size_t>(s.n_heads * s.head_dim);
  const std::size_t group = q / static_cast<std::size_t>(s.n_kv_heads);
  for (std::size_t l = 0; l < static_cast<std::size_t>(s.n_layers); ++l) {
    const std::string blk = "blk." + std::to_string(l) + ".";
    if (!keep.neurons.empty()) {
      const auto off = [&](std::size_t j) { return !has(keep.neurons[l], j); };
      zero(blk + "ffn_up.weight", dim, off, true);
      zero(blk + "ffn_up.bias", 1, off, true);
      zero(blk + "ffn_down.weight", ffn, off, false);
    }
    if (!keep.kv_groups.empty()) {
      zero(
          blk + "attn_output.weight", q,
          [&](std::size_t j) { return !has(keep.kv_groups[l], j / group); }, false);
    }
    if (keep.layers.empty() || has(keep.layers, l)) continue;
    const auto all = [](std::size_t) { return true; };
    for (const char* name : {"attn_output", "ffn_down"}) {
      zero(blk + name + ".weight", 1, all, true);
      zero(blk + name + ".bias", 1, all, true);
    }
  }
}

void check_pruned(const PruneKeep& keep, unsigned seed) {
  RandomModel source(shape_of_test(), seed);
  const auto bytes = source.gguf();
  const auto small = pruned(parse(bytes), keep);
  const io::Gguf file = parse(small);
  auto model = Model::from_gguf(file);
  REQUIRE_MESSAGE(model, test::why(model));
  auto session =
      Session::create(*model, {.n_ctx = 16, .max_outputs = 16, .kv_type = ops::KvType::f32});
  REQUIRE_MESSAGE(session, test::why(session));
  const auto tokens = source.tokens(12);
  const auto logits = session->append(tokens, 12);
  REQUIRE_MESSAGE(logits, test::why(logits));
  test::Reference reference = test::reference_of(source);
  switch_off(reference, source.shape(), keep);
  const auto expected = reference.logits({tokens.begin(), tokens.end()});
  double largest = 0, off = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    for (std::size_t j = 0; j < expected[i].size(); ++j) {
      largest = std::max(largest, std::fabs(expected[i][j]));
      off = std::max(
          off, std::fabs(expected[i][j] - static_cast<double>((*logits)(static_cast<Index>(i),
                                                                        static_cast<Index>(j)))));
    }
  }
  CAPTURE(off / largest);
  CHECK(off <= kRounding * largest);
}

std::vector<Index> some(Index n, Index count, unsigned seed) {
  std::vector<Index> all(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) all[static_cast<std::size_t>(i)] = i;
  std::shuffle(all.begin(), all.end(), std::mt19937(seed));
  all.resize(static_cast<std::size_t>(count));
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

TEST_CASE("a pruned model is the whole one with the same parts switched off") {
  PruneKeep neurons, groups, layers, all, unequal;
  for (unsigned l = 0; l < 3; ++l) {
    neurons.neurons.push_back(some(80, 48, l));
    groups.kv_groups.push_back(some(3, 2, l));
    unequal.neurons.push_back(some(80, 30 + 11 * l, l));
    unequal.kv_groups.push_back(some(3, 1 + l % 2, l));
  }
  layers.layers = {0, 2};
  all.neurons = neurons.neurons;
  all.kv_groups = groups.kv_groups;
  all.layers = {1, 2};
  unsigned seed = 1;
  for (const PruneKeep* keep : {&neurons, &groups, &layers, &all, &unequal}) {
    CAPTURE(seed);
    check_pruned(*keep, seed++);
  }
}

TEST_CASE("metadata of a pruned model") {
  RandomModel source(shape_of_test(), 9);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  PruneKeep keep;
  for (unsigned l = 0; l < 3; ++l) {
    keep.neurons.push_back(some(80, 32, l));
    keep.kv_groups.push_back(some(3, 2, l));
  }
  keep.layers = {0, 2};
  const auto small = pruned(file, keep);
  const io::Gguf out = parse(small);
  CHECK(*out.get_u64("llama.block_count") == 2);
  CHECK(*out.get_u64("llama.feed_forward_length") == 32);
  CHECK(*out.get_u64("llama.attention.head_count") == 4);
  CHECK(*out.get_u64("llama.attention.head_count_kv") == 2);
  CHECK(*out.get_u64("llama.attention.key_length") == 12);
  CHECK(*out.get_u64("llama.attention.value_length") == 12);
  CHECK(*out.get_u64("llama.rope.dimension_count") == 12);
  CHECK(out.find_tensor("blk.2.attn_q.weight") == nullptr);
  // Layers that differ: arrays, also for what other programs might count.
  keep.layers.clear();
  keep.neurons[1].pop_back();
  const auto unequal = pruned(file, keep);
  const io::Gguf per_layer = parse(unequal);
  const auto ffn = per_layer.get_array<std::uint32_t>("llama.feed_forward_length");
  REQUIRE_MESSAGE(ffn, test::why(ffn));
  CHECK(*ffn == std::vector<std::uint32_t>{32, 31, 32});
  CHECK(*per_layer.get_u64("llama.attention.head_count") == 4);
  // A second pruning of that.
  const auto shape = decoder_shape(per_layer);
  REQUIRE_MESSAGE(shape, test::why(shape));
  CHECK(shape->ffn == std::vector<Index>{32, 31, 32});
  PruneKeep again;
  again.layers = {1};
  const auto one = pruned(per_layer, again);
  CHECK(*parse(one).get_u64("llama.feed_forward_length") == 31);
}

TEST_CASE("scores of norms, and of channels") {
  RandomModel source(shape_of_test(), 4);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  const auto shape = decoder_shape(file);
  REQUIRE_MESSAGE(shape, test::why(shape));
  const test::Reference reference = test::reference_of(source);
  const auto tensor = [&](const char* name) -> const std::vector<double>& {
    return reference.tensors.at(std::string("blk.1.") + name + ".weight");
  };
  for (const double p : {1.0, 2.0, 3.0}) {
    const auto neurons = norm_scores(file, *shape, PruneUnit::neuron, p);
    const auto groups = norm_scores(file, *shape, PruneUnit::kv_group, p);
    REQUIRE_MESSAGE(neurons, test::why(neurons));
    REQUIRE_MESSAGE(groups, test::why(groups));
    for (std::size_t j = 0; j < 80; ++j) {
      double sum = 0;
      for (std::size_t i = 0; i < 48; ++i) {
        sum += std::pow(std::fabs(tensor("ffn_gate")[j * 48 + i]), p) +
               std::pow(std::fabs(tensor("ffn_up")[j * 48 + i]), p) +
               std::pow(std::fabs(tensor("ffn_down")[i * 80 + j]), p);
      }
      CHECK((*neurons)[1][j] == doctest::Approx(std::pow(sum, 1 / p)).epsilon(1e-9));
    }
    for (std::size_t g = 0; g < 3; ++g) {
      double sum = 0;
      for (std::size_t i = 0; i < 48; ++i) {
        for (std::size_t c = 0; c < 24; ++c) {
          sum += std::pow(std::fabs(tensor("attn_q")[(g * 24 + c) * 48 + i]), p) +
                 std::pow(std::fabs(tensor("attn_output")[i * 72 + g * 24 + c]), p);
        }
        for (std::size_t c = 0; c < 12; ++c) {
          sum += std::pow(std::fabs(tensor("attn_k")[(g * 12 + c) * 48 + i]), p) +
                 std::pow(std::fabs(tensor("attn_v")[(g * 12 + c) * 48 + i]), p);
        }
      }
      CHECK((*groups)[1][g] == doctest::Approx(std::pow(sum, 1 / p)).epsilon(1e-9));
    }
  }
  std::vector<double> ffn(80), heads(72);
  for (std::size_t i = 0; i < 80; ++i) ffn[i] = static_cast<double>(i * 37 % 80);
  for (std::size_t i = 0; i < 72; ++i) heads[i] = static_cast<double>(i / 24 + 1);
  std::vector<ChannelValues> values;
  for (const char* layer : {"blk.0.", "blk.1.", "blk.2."}) {
    static std::vector<std::string> names;
    names.reserve(6);
    values.push_back({names.emplace_back(std::string(layer) + "ffn_down.weight"), ffn});
    values.push_back({names.emplace_back(std::string(layer) + "attn_output.weight"), heads});
  }
  CHECK((*channel_scores(*shape, PruneUnit::neuron, values))[2] == ffn);
  CHECK((*channel_scores(*shape, PruneUnit::kv_group, values))[0] ==
        std::vector<double>{24, 48, 72});
  CHECK(!channel_scores(*shape, PruneUnit::neuron, std::span(values).first(3)));  // blk.2 missing
  std::fill(ffn.begin(), ffn.end(), 0);
  CHECK(!channel_scores(*shape, PruneUnit::neuron, values));
  values[0].values = std::span<const double>(heads);
  CHECK(!channel_scores(*shape, PruneUnit::neuron, values));
}

TEST_CASE("what is kept: the best, in counts of whole blocks") {
  const UnitScores scores = {{5, 1, 4, 2, 3, 9, 9, 0}, {50, 10, 40, 20, 30, 1, 2, 3}};
  const auto kept = [&](KeepOptions options) {
    auto result = keep_best(scores, options);
    REQUIRE_MESSAGE(result, test::why(result));
    return *std::move(result);
  };
  using Units = std::vector<Index>;
  CHECK(kept({.kept = 0.5})[0] == Units{0, 2, 5, 6});
  CHECK(kept({.kept = 0.5})[1] == Units{0, 2, 3, 4});
  CHECK(kept({.kept = 0.5, .multiple = 3})[0] == Units{0, 5, 6});
  CHECK(kept({.kept = 0.6, .multiple = 3})[0].size() == 6);   // 4.8: nearest
  CHECK(kept({.kept = 0.01, .multiple = 4})[0].size() == 4);  // at least one block
  CHECK(kept({.kept = 1, .multiple = 3})[0].size() == 6);     // no incomplete block
  CHECK(kept({.kept = 1, .multiple = 32})[0].size() == 8);    // shorter than a block: all
  const auto global = kept({.kept = 0.5, .is_global = true});
  CHECK(global[0] == Units{0, 5, 6});  // the 8 best of 16: 50 40 30 20 10 9 9 5
  CHECK(global[1] == Units{0, 1, 2, 3, 4});
  CHECK(!keep_best(scores, {.kept = 0}));
  CHECK(!keep_best(scores, {.kept = 0.5, .multiple = 0}));
  CHECK(!keep_best({{1, NAN}}, {.kept = 0.5}));
  CHECK(*keep_layers(std::vector<double>{.3, .1, .2}, 2) == Units{0, 2});
  CHECK(!keep_layers(std::vector<double>{.3, .1, .2}, 4));

  // Counts of the bundled model: 30 % of 512 in blocks of 32.
  CHECK(keep_best({std::vector<double>(512, 1.0)}, {.kept = 0.7, .multiple = 32})->at(0).size() ==
        352);
}

TEST_CASE("block influence is one minus the mean cosine") {
  const std::vector<float> x = {1, 0, 0, 3, 0, 0}, y = {2, 0, 5, 0, 0, 1};
  BlockInfluence influence;
  CHECK(!influence.value());
  // Cosines 1 and 0; a row without direction.
  influence.add(MatrixView<const float>(x.data(), 3, 2), MatrixView<const float>(y.data(), 3, 2));
  CHECK(influence.n_rows() == 2);
  CHECK(*influence.value() == doctest::Approx(0.5));
}

TEST_CASE("columns of blocks keep their bits where blocks stay whole, and their values elsewhere") {
  std::vector<float> values(4 * 96);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i)) * 3;
  std::vector<std::byte> bytes(4 * 3 * 18);
  for (std::size_t r = 0; r < 4; ++r) {
    REQUIRE(quant::row_from_f32(quant::Format::q4_0, std::span(values).subspan(r * 96, 96),
                                std::span(bytes).subspan(r * 54, 54)));
  }
  io::GgufWriter writer;
  const std::vector<std::uint64_t> dims = {96, 4};
  writer.add_tensor("w", io::GgmlType::q4_0, dims, bytes);
  const auto written = writer.to_bytes();
  const io::Gguf file = parse(*written);
  const io::GgufTensor w = *file.tensor("w");
  const auto all = tensor_floats(file, w);
  std::vector<Index> whole, ragged;
  for (Index j = 0; j < 96; ++j) {
    if (j < 32 || j >= 64) whole.push_back(j);
    if (j % 2 == 0) ragged.push_back(j);
  }
  for (const auto* columns : {&whole, &ragged}) {
    const auto cut = select_columns(file, w, *columns);
    REQUIRE_MESSAGE(cut, test::why(cut));
    CHECK(cut->type == (columns == &whole ? io::GgmlType::q4_0 : io::GgmlType::f16));
    std::vector<float> back(4 * columns->size());
    REQUIRE(quant::row_to_f32(cut->type, cut->bytes, back));
    for (std::size_t r = 0; r < 4; ++r) {
      for (std::size_t j = 0; j < columns->size(); ++j) {
        const float expected = (*all)[r * 96 + static_cast<std::size_t>((*columns)[j])];
        CHECK(back[r * columns->size() + j] == doctest::Approx(expected).epsilon(1e-3));
      }
    }
  }
  CHECK(!select_columns(file, w, std::vector<Index>{96}));
  CHECK(!select_rows(file, w, std::vector<Index>{4}));
}

TEST_CASE("columns of 8-bit codes and of factors: what is beside them is not forgotten") {
  RandomModel source({.dim = 64, .head_dim = 16, .ffn_dim = 96}, 7);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  PruneKeep keep;
  keep.neurons = {some(96, 32, 1), some(96, 32, 2)};
  std::vector<ProductInput> inputs = {{"blk.0.ffn_down.weight", {0.05f, 0, false}}};
  const auto int8 = to_static_int8(file, inputs);
  REQUIRE_MESSAGE(int8, test::why(int8));
  InlineExecutor alone;
  const auto factored = factor_model(
      file,
      [&](std::string_view name) -> std::optional<FactorChoice> {
        if (name != "blk.1.ffn_down.weight") return {};
        FactorChoice choice;
        choice.rank.rank = 32;
        return choice;
      },
      alone);
  REQUIRE_MESSAGE(factored, test::why(factored));
  for (const auto& made : {*int8, *factored}) {
    const auto refused = prune_model(parse(made), keep);
    REQUIRE(!refused);
    CHECK(refused.error().code == Errc::unsupported);
    CHECK(test::why(refused).find(".ffn_down.") != std::string::npos);
  }
  // The columns themselves are those of the codes, bit for bit.
  const io::Gguf codes = parse(*int8);
  const io::GgufTensor w = *codes.tensor("blk.0.ffn_down.weight");
  const auto cut = select_columns(codes, w, keep.neurons[0]);
  REQUIRE_MESSAGE(cut, test::why(cut));
  CHECK(cut->type == io::GgmlType::i8);
  for (std::size_t r = 0; r < 64; ++r) {
    for (std::size_t j = 0; j < 32; ++j) {
      REQUIRE(cut->bytes[r * 32 + j] ==
              w.data[r * 96 + static_cast<std::size_t>(keep.neurons[0][j])]);
    }
  }
}

TEST_CASE("what stays whole is not held in memory while a pruned model is written") {
  auto file = io::Gguf::open(bundled());
  REQUIRE_MESSAGE(file, test::why(file));
  std::size_t n_bytes = 0;
  for (const io::GgufTensor& tensor : file->tensors()) n_bytes += tensor.data.size();
  const std::string path =
      (std::filesystem::temp_directory_path() / "nibble_prune_test.gguf").string();
  PruneKeep keep;
  keep.layers = {0, 2};
  const long long before = allocated_bytes();
  long long held = 0;
  const auto written = compress::detail::prune(*file, keep, [&](const io::GgufWriter& writer) {
    auto done = writer.write(path);
    held = allocated_bytes() - before;
    return done;
  });
  CHECK_MESSAGE(written, test::why(written));
  CHECK(held < static_cast<long long>(n_bytes / 10));
  CHECK(io::Gguf::open(path));
  std::filesystem::remove(path);
}

TEST_CASE("what cannot be pruned is an error that says why") {
  RandomModel source(shape_of_test(), 5);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  const auto why = [](const io::Gguf& in, const PruneKeep& keep) {
    const auto result = prune_model(in, keep);
    return result ? std::string() : result.error().message;
  };
  PruneKeep keep;
  keep.neurons = {{0}, {1}};
  CHECK(why(file, keep).find("there are 3") != std::string::npos);
  keep.neurons = {{0}, {1}, {80}};
  CHECK(why(file, keep).find("numbers below 80") != std::string::npos);
  keep.neurons = {{0}, {}, {1}};
  CHECK(why(file, keep).find("layer 1") != std::string::npos);
  keep.neurons = {{0}, {2, 1}, {1}};
  CHECK(why(file, keep).find("ascending") != std::string::npos);
  keep.neurons.clear();
  keep.layers = {3};
  CHECK(why(file, keep).find("layers") != std::string::npos);
  keep.layers.clear();
  keep.tokens = {0, 1};
  CHECK(why(file, keep).find("tokenizer.ggml.model") != std::string::npos);

  RandomModel other({.architecture = test::Architecture::gpt2}, 6);
  const auto gpt2 = other.gguf();
  CHECK(why(parse(gpt2), {}).find("'gpt2' cannot be pruned") != std::string::npos);
}

}  // namespace prune_test
