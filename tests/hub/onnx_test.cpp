// SPDX-License-Identifier: Apache-2.0
//
// Exported graphs (ONNX): weights are found by the flow of values, whatever they are called. Graphs
// that are not understood, and files that mean harm, are an error each.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "hub/onnx_builder.hpp"
#include "hub_folder.hpp"
#include "nibble/hub/open.hpp"
#include "why.hpp"

namespace onnx_test {

using namespace nibble;
using test::OnnxBuilder;
using test::Proto;
using test::TemporaryFolder;

namespace {

std::vector<float> floats_of(const io::Gguf& gguf, std::string_view name) {
  const auto tensor = gguf.tensor(name);
  REQUIRE_MESSAGE(tensor, test::why(tensor));
  REQUIRE(tensor->type == io::GgmlType::f32);
  std::vector<float> values(tensor->n_elements());
  const auto read = gguf.bytes_of(*tensor).read(0, std::as_writable_bytes(std::span(values)));
  REQUIRE_MESSAGE(read, test::why(read));
  return values;
}

// Numbers 0, 1, 2, ... stored as (k, n), read as (n, k).
std::vector<float> turned(std::size_t k, std::size_t n) {
  std::vector<float> values;
  for (std::size_t row = 0; row < n; ++row) {
    for (std::size_t i = 0; i < k; ++i) values.push_back(static_cast<float>(i * n + row));
  }
  return values;
}

struct Model {
  TemporaryFolder folder;
  OnnxBuilder onnx;

  Model() {
    test::write_text(folder, "config.json", test::kOnnxConfig);
    onnx.decoder();
  }
  Result<io::Gguf> open() const { return open_bytes(onnx.bytes()); }
  Result<io::Gguf> open_bytes(const std::vector<std::byte>& bytes) const {
    folder.write("model.onnx", bytes);
    return open_model(folder.path("model.onnx"));
  }
  void refused(Errc code, const std::string& part) const {
    refused_bytes(onnx.bytes(), code, part);
  }
  void refused_bytes(const std::vector<std::byte>& bytes, Errc code,
                     const std::string& part) const {
    CAPTURE(part);
    const auto gguf = open_bytes(bytes);
    REQUIRE_FALSE(gguf);
    CHECK_MESSAGE(gguf.error().code == code, gguf.error().message);
    CHECK_MESSAGE(test::contains(gguf.error().message, part), gguf.error().message);
    CHECK(gguf.error().message.starts_with(folder.path("model.onnx")));
  }
  // Replaces a tensor by its name's place in the list.
  Proto& tensor(std::size_t i) { return onnx.tensors[i]; }
};

// Of decoder(): the places of tensors.
enum : std::size_t {
  kTable,
  kTwo,
  kNorm1,
  kV,
  kK,
  kQ,
  kOut,
  kNorm2,
  kUp,
  kGate,
  kDown,
  kNorm3,
  kHead
};

}  // namespace

TEST_CASE("the products of a graph are known by what their results are for") {
  const Model model;
  const auto gguf = model.open();
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  std::string names;
  for (const io::GgufTensor& tensor : gguf->tensors()) names += std::string(tensor.name) + " ";
  CHECK(gguf->tensors().size() == 12);
  CHECK(floats_of(*gguf, "token_embd.weight")[19] == 19);
  // q's rows change places, as those of hubs do: rows 0, 1 of a head of two are its pairs already.
  CHECK(floats_of(*gguf, "blk.0.attn_q.weight") == turned(4, 4));
  CHECK(floats_of(*gguf, "blk.0.attn_k.weight") == turned(4, 2));
  CHECK(floats_of(*gguf, "blk.0.attn_output.weight") == turned(4, 4));
  CHECK(floats_of(*gguf, "blk.0.ffn_gate.weight") == turned(4, 6));
  CHECK(floats_of(*gguf, "blk.0.ffn_down.weight") == turned(6, 4));
  CHECK(floats_of(*gguf, "output.weight") == turned(4, 5));
  CHECK(floats_of(*gguf, "output_norm.weight") == std::vector<float>{0, 1, 2, 3});
  // What stays in the file is not copied.
  CHECK(gguf->files()[0].contains(gguf->find_tensor("blk.0.ffn_up.weight")->data));
  CHECK(gguf->find_tensor("blk.0.ffn_up.weight")->swapped.any());

  // q and k, v, gate and up differ by their use, not by their names or places.
  Model marked;
  marked.tensor(kV) = test::onnx_floats("p3_w", {4, 2}, 300);
  marked.tensor(kK) = test::onnx_floats("p2_w", {4, 2}, 200);
  marked.tensor(kUp) = test::onnx_floats("p6_w", {4, 6}, 600);
  marked.tensor(kGate) = test::onnx_floats("p5_w", {4, 6}, 500);
  const auto found = marked.open();
  REQUIRE_MESSAGE(found, test::why(found));
  CHECK(floats_of(*found, "blk.0.attn_v.weight")[0] == 300);
  CHECK(floats_of(*found, "blk.0.attn_k.weight")[0] == 200);
  CHECK(floats_of(*found, "blk.0.ffn_up.weight")[0] == 600);
  CHECK(floats_of(*found, "blk.0.ffn_gate.weight")[0] == 500);
}

TEST_CASE("constants are folded: transposed, cast, shared, quantized; Gemm; biases") {
  Model model;
  auto& nodes = model.onnx.nodes;
  OnnxBuilder more;
  // A constant of a node, transposed and the same again; then a product that wants rows.
  more.node(
      "Constant", {}, "w4",
      {Proto().text(1, "value").message(5, test::onnx_floats("", {4, 4}, 50)).integer(20, 4)});
  more.node("Transpose", {"w4"}, "w4t",
            {Proto().text(1, "perm").integer(8, 1).integer(8, 0).integer(20, 7)});
  more.node("Identity", {"w4t"}, "p4_w");
  // Codes with a scale for each column, of i8; and of u8 with a zero.
  more.node("DequantizeLinear", {"codes7", "scale7"}, "p7_w", {test::onnx_attribute("axis", 1)});
  more.node("DequantizeLinear", {"codes6", "scale6", "zero6"}, "p6_w");
  nodes.insert(nodes.begin(), more.nodes.begin(), more.nodes.end());
  std::vector<int> codes7, codes6;
  for (int i = 0; i < 24; ++i) {
    codes7.push_back(i - 12);
    codes6.push_back(i);
  }
  auto& tensors = model.onnx.tensors;
  tensors[kDown] = test::onnx_codes("codes7", {6, 4}, 3, codes7);
  tensors[kUp] = test::onnx_codes("codes6", {4, 6}, 2, codes6);
  tensors.push_back(test::onnx_floats("scale7", {4}, 1));
  tensors.push_back(test::onnx_floats("scale6", {}, 0.5f));
  tensors.push_back(test::onnx_codes("zero6", {}, 2, {3}));
  tensors.erase(tensors.begin() + kOut);
  const auto gguf = model.open();
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  // w4 is (k, n) after its transposition: rows as they are stored.
  const auto out = floats_of(*gguf, "blk.0.attn_output.weight");
  for (std::size_t i = 0; i < 16; ++i) CHECK(out[i] == static_cast<float>(50 + i));
  const auto up = floats_of(*gguf, "blk.0.ffn_up.weight");
  CHECK(up[0] == -1.5f);
  CHECK(up[1] == (6 - 3) * 0.5f);
  const auto down = gguf->tensor("blk.0.ffn_down.weight");
  REQUIRE(down);
  CHECK(down->type == io::GgmlType::i8);
  CHECK(static_cast<int>(down->data[1]) == (4 - 12 + 256));
  CHECK(floats_of(*gguf, "blk.0.ffn_down.scales") == std::vector<float>{1, 2, 3, 4});
}

TEST_CASE("graphs that are not understood are refused by the names") {
  {
    Model model;
    model.onnx.node("LSTM", {"x"}, "recurrent");
    model.onnx.node("GroupQueryAttention", {"x"}, "fused", {}, "com.microsoft");
    model.refused(
        Errc::unsupported,
        "operations that are not known in a graph of a language model: 'LSTM' (node 'node "
        "of recurrent'), 'com.microsoft.GroupQueryAttention' (node 'node of fused')");
  }
  {
    Model model;  // a product whose result is for nothing
    model.onnx.product("n1", "odd", 4, 3);
    model.refused(Errc::unsupported,
                  "products that are no part of a decoder's layers as they are known here: MatMul "
                  "'node of odd' with 'odd_w'");
  }
  {
    Model model;  // a second table
    model.onnx.tensors.push_back(test::onnx_floats("stray", {5, 4}));
    model.onnx.node("Gather", {"stray", "input_ids"}, "unused");
    model.refused(Errc::unsupported,
                  "constants without a place in the architecture llama as it is "
                  "known here: 'stray'");
  }
  {
    Model model;
    model.onnx.outputs = {"z"};
    model.refused(Errc::unsupported, "products that are no part");
  }
  {
    const Model model;
    test::write_text(model.folder, "config.json",
                     R"({"architectures":["Gemma2ForCausalLM"],"hidden_size":4,)"
                     R"("num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":6})");
    const auto gguf = model.open();
    REQUIRE_FALSE(gguf);
    CHECK_MESSAGE(test::contains(gguf.error().message,
                                 "architecture 'gemma2' is not known as ONNX; known are llama, "),
                  gguf.error().message);
  }
  {
    const Model model;
    std::string config = test::kOnnxConfig;
    const std::string key = "\"num_hidden_layers\":";
    config[config.find(key) + key.size()] = '2';
    test::write_text(model.folder, "config.json", config);
    model.refused(Errc::unsupported,
                  "the graph has 1 products of the kind "
                  "'layers.#.self_attn.q_proj', not 2: MatMul 'node of p1' with "
                  "'p1_w'");
  }
  {
    const TemporaryFolder folder;
    folder.write("m.onnx", OnnxBuilder().bytes());
    const auto gguf = open_model(folder.path("m.onnx"));
    REQUIRE_FALSE(gguf);
    CHECK(gguf.error().code == Errc::not_found);
    CHECK(test::contains(gguf.error().message, "needs the config.json and the tokenizer"));
  }
}

TEST_CASE("the configuration may be one folder above") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path("onnx"));
  test::write_text(folder, "config.json", test::kOnnxConfig);
  OnnxBuilder onnx;
  onnx.decoder();
  folder.write("onnx/model.onnx", onnx.bytes());
  const auto gguf = open_model(folder.path("onnx/model.onnx"));
  CHECK_MESSAGE(gguf, test::why(gguf));
}

TEST_CASE("external data: inside of the folder, in any order, and nowhere else") {
  const auto external = [](const std::string& location, std::uint64_t offset, std::uint64_t length,
                           bool has_length = true) {
    const auto entry = [](const std::string& key, const std::string& value) {
      return Proto().text(1, key).text(2, value);
    };
    Proto tensor;
    tensor.integer(1, 4).integer(1, 5).integer(2, 1).text(8, "logits_w").integer(14, 1);
    tensor.message(13, entry("location", location));
    tensor.message(13, entry("offset", std::to_string(offset)));
    if (has_length) tensor.message(13, entry("length", std::to_string(length)));
    return tensor;
  };
  Model model;
  test::FileBuilder data;
  for (int i = 0; i < 24; ++i) data.number(static_cast<float>(i));
  model.folder.write("model.onnx.data", data.bytes());
  model.tensor(kHead) = external("model.onnx.data", 16, 80);
  const auto gguf = model.open();
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(floats_of(*gguf, "output.weight")[0] == 4);
  CHECK(gguf->files().size() == 2);

  const auto refused = [&](const Proto& tensor, const std::string& part) {
    model.tensor(kHead) = tensor;
    model.refused(Errc::malformed, "tensor 'logits_w': " + part);
  };
  for (const char* const path :
       {"../model.onnx.data", "/etc/passwd", "a/b", "..", "", "c:data", "..\\data", ".hidden"}) {
    refused(external(path, 0, 80), "its data is said to be in '" + std::string(path));
  }
  refused(external("model.onnx.data", 20, 80), "its 80 bytes from 20 on lie outside of the 96");
  refused(external("model.onnx.data", ~std::uint64_t{0} - 8, 80, false), "its 80 bytes from");
  refused(external("model.onnx.data", 0, 79), "79 bytes of data, the shape needs 80");
  Proto both = external("model.onnx.data", 0, 80);
  both.data(9, std::vector<std::byte>(80));
  refused(both, "data here and in another file");
  Proto number = external("model.onnx.data", 0, 80);
  number.message(13, Proto().text(1, "offset").text(2, "-1"));
  refused(number, "offset '-1' is no number");
  Proto large = external("model.onnx.data", 0, 80);
  large.message(13, Proto().text(1, "offset").text(2, "99999999999999999999"));
  refused(large, "offset '99999999999999999999' is no number");
  model.tensor(kHead) = external("missing.data", 0, 80);
  CHECK(model.open().error().code == Errc::io);
}

TEST_CASE("graphs with cycles and holes, absurd sizes, broken messages") {
  const Model good;
  {
    Model model;
    model.onnx.nodes.clear();
    model.onnx.node("Add", {"a", "b"}, "b");
    model.refused(Errc::malformed,
                  "takes 'a', which nothing before it gives: the graph has a cycle");
  }
  {
    Model model;
    model.onnx.node("Add", {"later", "x"}, "now").node("Add", {"now", "x"}, "later");
    model.refused(Errc::malformed, "takes 'later', which nothing before it gives");
  }
  {
    Model model;
    model.onnx.node("Add", {"x", "x"}, "h");
    model.refused(Errc::malformed, "value 'h' appears twice");
  }
  {
    Model model;
    model.onnx.tensors.push_back(test::onnx_floats("table", {1}));
    model.refused(Errc::malformed, "tensor 'table' appears twice");
  }
  {
    Model model;  // a huge initializer
    model.tensor(kTable) =
        Proto().integer(1, std::uint64_t{1} << 62).integer(1, 8).integer(2, 1).text(8, "table");
    model.refused(Errc::limit, "tensor 'table': the size in bytes overflows 64 bits");
    model.tensor(kTable) =
        Proto().integer(1, std::uint64_t{1} << 40).integer(1, 4).integer(2, 1).text(8, "table");
    model.refused(Errc::malformed, "0 bytes of data, the shape needs 17592186044416");
    model.tensor(kTable) = Proto().integer(1, ~std::uint64_t{0}).integer(2, 3).text(8, "table");
    model.refused(Errc::malformed, "0 bytes of data");
  }
  {
    Model model;  // 2^12 dimensions
    Proto many;
    for (int i = 0; i < 4096; ++i) many.integer(1, 1);
    model.tensor(kTable) = many.text(8, "table");
    model.refused(Errc::limit, "more than 8 dimensions");
  }
  {
    Model model;  // work without end
    for (int i = 0; i < 2100; ++i) {
      model.onnx.node("MatMul", {"n1", "p1_w"}, "many" + std::to_string(i));
    }
    model.refused(Errc::limit, "2108 products in a graph of 2133 nodes, more than any model has");
    for (int i = 0; i < 66000; ++i) model.onnx.node("Neg", {"x"}, "neg" + std::to_string(i));
    model.refused(Errc::limit, "more than 65536 nodes");
  }
  {
    Model model;  // a graph in a graph in a graph
    Proto inner = Proto().text(1, "then_branch").message(6, model.onnx.graph());
    for (int i = 0; i < 1000; ++i) {
      inner =
          Proto().text(1, "then_branch").message(6, Proto().message(1, Proto().message(5, inner)));
    }
    model.onnx.node("If", {"x"}, "deep", {inner});
    model.refused(Errc::unsupported, "a graph inside of a node, which is not read");
  }
  const auto bytes_of = [](std::initializer_list<int> list) {
    std::vector<std::byte> bytes;
    for (const int b : list) bytes.push_back(static_cast<std::byte>(b));
    return bytes;
  };
  good.refused_bytes({}, Errc::malformed, "not an ONNX model: it has no graph");
  good.refused_bytes(bytes_of({0x08}), Errc::malformed, "the file ends inside a number at byte 1");
  good.refused_bytes(bytes_of({0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02}),
                     Errc::malformed, "a number of more than 64 bits");
  good.refused_bytes(bytes_of({0x00}), Errc::malformed, "field number 0");
  good.refused_bytes(bytes_of({0x3A, 0x7F, 0x00}), Errc::malformed, "the file ends inside a field");
  good.refused_bytes(bytes_of({0x0B}), Errc::unsupported, "wire type 3");
  good.refused_bytes(bytes_of({0x3A, 0x00, 0x3A, 0x00}), Errc::malformed, "two graphs");
  good.refused_bytes(Proto().message(7, Proto()).message(25, Proto()).bytes(), Errc::unsupported,
                     "functions of its own");
  // Cut anywhere, and with any byte changed: an error, or a model.
  const std::vector<std::byte> whole = good.onnx.bytes();
  for (std::size_t n = 0; n < whole.size(); n += 7) {
    CHECK_FALSE(good.open_bytes({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)}));
  }
  for (std::size_t i = 0; i < whole.size(); i += 5) {
    std::vector<std::byte> changed = whole;
    changed[i] ^= std::byte{0x41};
    const auto gguf = good.open_bytes(changed);
    if (!gguf) CHECK_FALSE(gguf.error().message.empty());
  }
}

}  // namespace onnx_test
