// SPDX-License-Identifier: Apache-2.0
//
// Files with factors and with shared tensors, loaded and run, against the reference in double with
// the dense matrices that they stand for.
#include "nibble/compress/factor_model.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "model/reference_of.hpp"
#include "nibble/compress/static_int8.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
#include "nibble/nibble.hpp"
#include "why.hpp"

namespace factor_model_test {
namespace {

using namespace nibble;
using namespace nibble::compress;
using quant::Format;
using test::ModelShape;
using test::RandomModel;

constexpr double kRounding = 10 * 0x1p-24 * 4.5 * 4;  // see tests/model/oracle_test.cpp
constexpr double kQuantization = 0.03;

InlineExecutor alone;

ModelShape shape_of_test() {
  ModelShape shape;
  shape.dim = 64;
  shape.head_dim = 16;
  shape.ffn_dim = 96;
  shape.rope_dim = 16;
  shape.qkv_bias = shape.up_bias = shape.down_bias = true;
  return shape;
}

io::Gguf parse(std::span<const std::byte> bytes) {
  auto file = io::Gguf::parse(bytes, "memory.gguf");
  REQUIRE_MESSAGE(file, test::why(file));
  return *std::move(file);
}

// Replaces the weights of a reference by what `file` has for them.
void replace(test::Reference& reference, const io::Gguf& file) {
  for (auto& [name, w] : reference.tensors) {
    const std::string stem = name.substr(0, name.rfind(".weight"));
    const io::GgufTensor* const a = file.find_tensor(stem + ".factor_a.weight");
    if (a == nullptr) continue;
    const auto fa = *tensor_floats(file, *a);
    const auto fb = *tensor_floats(file, *file.tensor(stem + ".factor_b.weight"));
    const auto rank = static_cast<std::size_t>(a->dims[0]), k = fb.size() / rank;
    std::fill(w.begin(), w.end(), 0.0);
    if (const io::GgufTensor* const base = file.find_tensor(name)) {
      const auto floats = *tensor_floats(file, *base);
      w.assign(floats.begin(), floats.end());
    }
    for (std::size_t i = 0; i * k < w.size(); ++i) {
      for (std::size_t r = 0; r < rank; ++r) {
        for (std::size_t j = 0; j < k; ++j) {
          w[i * k + j] +=
              static_cast<double>(fa[i * rank + r]) * static_cast<double>(fb[r * k + j]);
        }
      }
    }
  }
}

// The largest difference of logits, relative to the largest.
double error_of(const Model& model, const test::Reference& reference,
                const std::vector<std::int32_t>& tokens) {
  auto session = Session::create(
      model, {.n_ctx = 16, .max_step_tokens = 5, .max_outputs = 5, .kv_type = ops::KvType::f32});
  REQUIRE_MESSAGE(session, test::why(session));
  const auto expected = reference.logits({tokens.begin(), tokens.end()});
  double largest = 0, off = 0;
  std::size_t at = 0;
  for (const std::size_t n : {1, 5, 3, 1, 2}) {
    const auto logits = session->append(std::span(tokens).subspan(at, n), static_cast<Index>(n));
    REQUIRE_MESSAGE(logits, test::why(logits));
    for (std::size_t i = 0; i < n; ++i, ++at) {
      for (std::size_t j = 0; j < expected[at].size(); ++j) {
        const double x = expected[at][j];
        const double y =
            static_cast<double>((*logits)(static_cast<Index>(i), static_cast<Index>(j)));
        largest = std::max(largest, std::fabs(x));
        off = std::fabs(x - y) <= off ? off : std::fabs(x - y);
      }
    }
  }
  return off / largest;
}

void check_factored(const FactorChoice& choice, bool all, double tolerance) {
  RandomModel source(shape_of_test(), 3);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  std::vector<FactorReport> reports;
  const auto made = factor_model(
      file,
      [&](std::string_view name) -> std::optional<FactorChoice> {
        const bool is_matrix =
            name.starts_with("blk.") && !name.ends_with("bias") && name.find("norm") == name.npos;
        if (!is_matrix || (!all && name.find("1.ffn_up") == name.npos)) return {};
        return choice;
      },
      alone, &reports);
  REQUIRE_MESSAGE(made, test::why(made));
  CHECK(reports.size() == (all ? 14 : 1));
  const io::Gguf factored = parse(*made);
  auto model = Model::from_gguf(factored);
  REQUIRE_MESSAGE(model, test::why(model));
  test::Reference reference = test::reference_of(source);
  const auto tokens = source.tokens(12);
  const double change = error_of(*model, reference, tokens);
  replace(reference, factored);
  const double error = error_of(*model, reference, tokens);
  CAPTURE(error);
  CHECK(error <= tolerance);
  // Factors of half the rank change a random model: what is compared is not the whole one.
  if (!choice.base) CHECK(change > 10 * tolerance);
  const auto memory = Model::memory_needed(factored);
  REQUIRE_MESSAGE(memory, test::why(memory));
  CHECK(memory->weights == model->weight_bytes());
}

template <class Change>
std::string load_error(Change change) {
  RandomModel source(shape_of_test(), 3);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  io::GgufWriter writer;
  writer.copy_metadata(file);
  const std::vector<std::byte> zeros(1 << 16);
  const auto add = [&](const char* name, std::uint64_t n, std::uint64_t k) {
    const std::uint64_t dims[] = {k, n};
    writer.add_tensor(name, io::GgmlType::f32, dims, std::span(zeros).first(n * k * 4));
  };
  const std::string without = change(writer, add);
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name != without) writer.add_tensor(tensor);
  }
  const auto written = writer.to_bytes();
  REQUIRE_MESSAGE(written, test::why(written));
  auto model = Model::from_gguf(parse(*written));
  return model ? std::string() : model.error().message;
}

bool mentions(const std::string& text, const char* part) {
  CAPTURE(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a model with factors is that with the dense matrices") {
  const RankOptions rank{.rank = 32, .multiple = 32};
  check_factored({.rank = rank, .factors = Format::f32, .base = {}}, true, kRounding);
  check_factored({.rank = {.rank = 9}, .factors = Format::f16, .base = {}}, false, kRounding);
  check_factored({.rank = rank, .factors = Format::f32, .base = Format::f16}, true, kRounding);
  check_factored({.rank = rank, .factors = Format::q4_0, .base = {}}, true, kQuantization * 2);
  check_factored({.rank = rank, .factors = Format::q8_0, .base = Format::q4_0}, true,
                 kQuantization);
  check_factored({.rank = rank, .factors = Format::q4_0, .base = Format::q4_0}, false,
                 kQuantization);
}

TEST_CASE("factors in a file that do not fit are errors") {
  CHECK(mentions(load_error([](auto&, auto add) {
                   add("blk.0.ffn_up.factor_a.weight", 96, 8);
                   return "";
                 }),
                 "factor_b.weight': missing"));
  CHECK(mentions(load_error([](auto&, auto add) {
                   add("blk.0.ffn_up.factor_b.weight", 8, 64);
                   return "";
                 }),
                 "factor_a.weight': missing"));
  CHECK(mentions(load_error([](auto&, auto add) {
                   add("blk.0.ffn_up.factor_a.weight", 95, 8);
                   add("blk.0.ffn_up.factor_b.weight", 8, 64);
                   return "";
                 }),
                 "does not go with weights (96, 64)"));
  CHECK(mentions(load_error([](auto&, auto add) {
                   add("blk.0.ffn_up.factor_a.weight", 96, 8);
                   add("blk.0.ffn_up.factor_b.weight", 7, 64);
                   return "blk.0.ffn_up.weight";
                 }),
                 "do not go together"));
  CHECK(mentions(load_error([](auto&, auto add) {
                   add("token_embd.factor_a.weight", 37, 8);
                   add("token_embd.factor_b.weight", 8, 64);
                   return "";
                 }),
                 "no part of a model"));
  CHECK(load_error([](auto&, auto add) {
          add("blk.0.ffn_up.factor_a.weight", 96, 8);
          add("blk.0.ffn_up.factor_b.weight", 8, 64);
          return "blk.0.ffn_up.weight";
        }) == "");
}

TEST_CASE("layers that share tensors: one matrix, in the file and in memory") {
  RandomModel source(shape_of_test(), 7);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  const std::vector<SharedPair> pairs = {{"blk.1.ffn_up.weight", "blk.0.ffn_up.weight"},
                                         {"blk.0.attn_q.weight", "blk.1.attn_q.weight"},
                                         {"blk.1.ffn_norm.weight", "blk.0.ffn_norm.weight"}};
  const auto shared = share_tensors(file, pairs);
  REQUIRE_MESSAGE(shared, test::why(shared));
  const io::Gguf small = parse(*shared);
  CHECK(small.tensors().size() == file.tensors().size() - 3);
  auto whole = Model::from_gguf(file), model = Model::from_gguf(small);
  REQUIRE_MESSAGE(model, test::why(model));
  CHECK(model->weights().at(Slot::ffn_up, 1).data == model->weights().at(Slot::ffn_up, 0).data);
  CHECK(model->weights().at(Slot::attn_q, 0).data == model->weights().at(Slot::attn_q, 1).data);
  CHECK(model->weights().at(Slot::ffn_up, 0).data != model->weights().at(Slot::ffn_gate, 0).data);
  CHECK(whole->weight_bytes() - model->weight_bytes() == 64 * 96 * 4 + 64 * 64 * 4 + 256);
  test::Reference reference = test::reference_of(source);
  for (const SharedPair& pair : pairs) {
    reference.tensors[pair.tensor] = reference.tensors[pair.with];
  }
  CHECK(error_of(*model, reference, source.tokens(12)) <= kRounding);

  // Factors are shared with the matrix that they belong to.
  const auto both = factor_model(
      small,
      [](std::string_view name) -> std::optional<FactorChoice> {
        if (name != "blk.0.ffn_up.weight") return {};
        return FactorChoice{.rank = {.rank = 8}, .factors = Format::f32, .base = {}};
      },
      alone);
  REQUIRE_MESSAGE(both, test::why(both));
  const io::Gguf last = parse(*both);
  auto factored = Model::from_gguf(last);
  REQUIRE_MESSAGE(factored, test::why(factored));
  replace(reference, last);
  reference.tensors["blk.1.ffn_up.weight"] = reference.tensors["blk.0.ffn_up.weight"];
  CHECK(error_of(*factored, reference, source.tokens(12)) <= kRounding);
}

TEST_CASE("what is shared already is shared on, and factors go with their matrix") {
  ModelShape shape = shape_of_test();
  shape.n_layers = 4;
  RandomModel source(shape, 11);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  const auto name = [](int layer) { return "blk." + std::to_string(layer) + ".ffn_up.weight"; };
  // Layer 3 becomes layer 1, and 2 by itself has factors; then 1 and 2 become layer 0.
  const auto first = share_tensors(file, std::vector<SharedPair>{{name(3), name(1)}});
  REQUIRE_MESSAGE(first, test::why(first));
  const auto second = factor_model(
      parse(*first),
      [&](std::string_view tensor) -> std::optional<FactorChoice> {
        if (tensor != name(2)) return {};
        return FactorChoice{.rank = {.rank = 8}, .factors = Format::f32, .base = Format::f16};
      },
      alone);
  REQUIRE_MESSAGE(second, test::why(second));
  const io::Gguf before = parse(*second);
  const auto third =
      share_tensors(before, std::vector<SharedPair>{{name(1), name(0)}, {name(2), name(0)}});
  REQUIRE_MESSAGE(third, test::why(third));
  const io::Gguf last = parse(*third);
  auto model = Model::from_gguf(last);
  REQUIRE_MESSAGE(model, test::why(model));
  test::Reference reference = test::reference_of(source);
  for (int layer = 1; layer < 4; ++layer) {
    CHECK(model->weights().at(Slot::ffn_up, layer).data ==
          model->weights().at(Slot::ffn_up, 0).data);
    reference.tensors[name(layer)] = reference.tensors[name(0)];
  }
  CHECK(error_of(*model, reference, source.tokens(12)) <= kRounding);
  // What is not stored cannot be shared again.
  CHECK(!share_tensors(last, std::vector<SharedPair>{{name(3), name(0)}}));
  CHECK(!share_tensors(last, std::vector<SharedPair>{{name(0), name(3)}}));
}

TEST_CASE("scales of 8-bit codes go with the matrix that is no longer stored") {
  RandomModel source(shape_of_test(), 12);
  const auto bytes = source.gguf();
  const std::string up0 = "blk.0.ffn_up.weight", up1 = "blk.1.ffn_up.weight";
  const std::vector<ProductInput> inputs = {{up0, {0.05f, 120, true}}, {up1, {0.05f, 120, true}}};
  const auto int8 = to_static_int8(parse(bytes), inputs);
  REQUIRE_MESSAGE(int8, test::why(int8));
  const io::Gguf file = parse(*int8);
  REQUIRE(file.find_tensor("blk.1.ffn_up.input_zero") != nullptr);
  const auto shared = share_tensors(file, std::vector<SharedPair>{{up1, up0}});
  REQUIRE_MESSAGE(shared, test::why(shared));
  const io::Gguf small = parse(*shared);
  CHECK(small.tensors().size() == file.tensors().size() - 4);
  CHECK(small.find_tensor("blk.1.ffn_up.bias") != nullptr);
  const auto model = Model::from_gguf<graph::AllFormats>(small);
  REQUIRE_MESSAGE(model, test::why(model));
  CHECK(model->weights().at(Slot::ffn_up, 1).data == model->weights().at(Slot::ffn_up, 0).data);
  using compress::detail::belongs_to;
  CHECK(belongs_to("blk.1.ffn_up.factor_b.weight", up1));
  CHECK(belongs_to("blk.1.ffn_up.factor_b.scales", up1));
  CHECK(!belongs_to(up1, up1));
  CHECK(!belongs_to("blk.1.ffn_up.bias", up1));
  CHECK(!belongs_to("blk.10.ffn_up.scales", up1));
}

TEST_CASE("a format that a matrix cannot have is an error with its name") {
  RandomModel source(shape_of_test(), 7);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  const auto message = [&](const FactorChoice& choice) {
    const auto made = factor_model(
        file,
        [&](std::string_view name) -> std::optional<FactorChoice> {
          if (name != "blk.0.ffn_up.weight") return {};
          return choice;
        },
        alone);
    return test::why(made);
  };
  CHECK(mentions(message({.rank = {.rank = 8}, .base = Format::q4_k}), "'blk.0.ffn_up.weight'"));
  CHECK(mentions(message({.rank = {.rank = 8}, .factors = Format::q4_0, .base = {}}),
                 "'blk.0.ffn_up.factor_a.weight'"));
}

TEST_CASE("sharing that makes no sense is an error") {
  RandomModel source(shape_of_test(), 7);
  const auto bytes = source.gguf();
  const io::Gguf file = parse(bytes);
  const auto refuses = [&](std::vector<SharedPair> pairs) { return !share_tensors(file, pairs); };
  CHECK(refuses({{"blk.1.ffn_up.weight", "blk.0.ffn_down.weight"}}));  // another shape
  CHECK(refuses({{"blk.1.ffn_up.weight", "blk.9.ffn_up.weight"}}));
  CHECK(refuses({{"blk.1.ffn_up.weight", "blk.0.ffn_up.weight"},
                 {"blk.0.ffn_up.weight", "blk.1.ffn_up.weight"}}));

  const auto with = [](std::vector<std::string> pairs, std::string without) {
    return load_error([&](io::GgufWriter& writer, auto) {
      writer.set_array("nibble.shared_tensors", pairs);
      return without;
    });
  };
  const std::string up = "blk.1.ffn_up.weight";
  CHECK(with({"blk.1.ffn_up.weight=blk.0.ffn_up.weight"}, up) == "");
  CHECK(mentions(with({"blk.1.ffn_up.weight=blk.0.ffn_up.weight"}, ""), "also stored"));
  CHECK(mentions(with({"blk.1.ffn_up.weight=blk.0.ffn_down.weight"}, up), "another shape"));
  CHECK(mentions(with({"blk.1.ffn_up.weight=blk.7.ffn_up.weight"}, up), "is not stored"));
  CHECK(mentions(with({"blk.1.ffn_up.weight=blk.1.ffn_up.weight"}, up), "is not stored"));
  CHECK(mentions(with({"blk.1.ffn_up.weight"}, up), "<name>=<name>"));
  CHECK(mentions(with({"blk.1.ffn_up.weight=blk.0.ffn_up.weight", "x=blk.0.ffn_up.weight"}, up),
                 "2 entries, but 1"));
}

}  // namespace factor_model_test
