// SPDX-License-Identifier: Apache-2.0
//
// Writes ONNX files, independently of the library: messages of Protocol Buffers byte by byte, and
// the graph of a small decoder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/file_builder.hpp"

namespace test {

class Proto {
 public:
  Proto& varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<std::byte>(value | 0x80));
    bytes_.push_back(static_cast<std::byte>(value));
    return *this;
  }
  Proto& integer(std::uint32_t number, std::uint64_t value) {
    return varint(number << 3).varint(value);
  }
  Proto& data(std::uint32_t number, std::span<const std::byte> bytes) {
    varint(number << 3 | 2).varint(bytes.size());
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Proto& text(std::uint32_t number, const std::string& text) {
    return data(number, std::as_bytes(std::span(text.data(), text.size())));
  }
  Proto& message(std::uint32_t number, const Proto& inner) { return data(number, inner.bytes_); }
  Proto& raw(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// A tensor of floats 0, 1, 2, ...
inline Proto onnx_floats(const std::string& name, std::vector<std::uint64_t> dims,
                         float first = 0) {
  Proto tensor;
  std::uint64_t n = 1;
  for (const std::uint64_t dim : dims) {
    tensor.integer(1, dim);
    n *= dim;
  }
  FileBuilder data;
  for (std::uint64_t i = 0; i < n; ++i) data.number(first + static_cast<float>(i));
  return tensor.integer(2, 1).text(8, name).data(9, data.bytes());
}
// A tensor of bytes, i8 or u8: -8, -7, ... as codes.
inline Proto onnx_codes(const std::string& name, std::vector<std::uint64_t> dims,
                        std::uint32_t type, const std::vector<int>& codes) {
  Proto tensor;
  for (const std::uint64_t dim : dims) tensor.integer(1, dim);
  FileBuilder data;
  for (const int code : codes) data.u8(static_cast<unsigned>(code) & 0xFFu);
  return tensor.integer(2, type).text(8, name).data(9, data.bytes());
}

inline Proto onnx_attribute(const std::string& name, std::int64_t value) {
  return Proto().text(1, name).integer(3, static_cast<std::uint64_t>(value)).integer(20, 2);
}

struct OnnxBuilder {
  std::vector<Proto> nodes, tensors;
  std::vector<std::string> inputs = {"input_ids"}, outputs = {"logits"};

  OnnxBuilder& node(const std::string& op, const std::vector<std::string>& from,
                    const std::string& to, const std::vector<Proto>& attributes = {},
                    const std::string& domain = "") {
    Proto node;
    for (const std::string& name : from) node.text(1, name);
    node.text(2, to).text(3, "node of " + to).text(4, op);
    for (const Proto& attribute : attributes) node.message(5, attribute);
    if (!domain.empty()) node.text(7, domain);
    nodes.push_back(node);
    return *this;
  }
  Proto graph() const {
    Proto graph;
    for (const Proto& node : nodes) graph.message(1, node);
    graph.text(2, "graph");
    for (const Proto& tensor : tensors) graph.message(5, tensor);
    for (const std::string& name : inputs) graph.message(11, Proto().text(1, name));
    for (const std::string& name : outputs) graph.message(12, Proto().text(1, name));
    return graph;
  }
  std::vector<std::byte> bytes() const {
    return Proto().integer(1, 8).text(2, "test").message(7, graph()).bytes();
  }

  // x * weight, as exporters write it without a fused norm.
  void rms_norm(const std::string& from, const std::string& to) {
    node("Pow", {from, "two"}, to + "_squares").node("ReduceMean", {to + "_squares"}, to + "_mean");
    node("Sqrt", {to + "_mean"}, to + "_root").node("Div", {from, to + "_root"}, to + "_unit");
    node("Mul", {to + "_weight", to + "_unit"}, to);
    tensors.push_back(onnx_floats(to + "_weight", {4}));
  }
  // x times a weight (k, n) that has no name of its own.
  void product(const std::string& from, const std::string& to, std::uint64_t k, std::uint64_t n) {
    node("MatMul", {from, to + "_w"}, to);
    tensors.push_back(onnx_floats(to + "_w", {k, n}));
  }

  // A Llama of one layer: dim 4, feed-forward 6, 2 heads, 1 of k and v, 5 tokens. The products are
  // q, k, v, o, gate, up, down and logits, without a name that says so.
  void decoder() {
    tensors.push_back(onnx_floats("table", {5, 4}));
    tensors.push_back(onnx_floats("two", {}, 2));
    node("Gather", {"table", "input_ids"}, "x");
    rms_norm("x", "n1");
    product("n1", "p3", 4, 2);  // v
    product("n1", "p2", 4, 2);  // k
    product("n1", "p1", 4, 4);  // q
    node("Transpose", {"p2"}, "kt").node("MatMul", {"p1", "kt"}, "s");
    node("Softmax", {"s"}, "a").node("MatMul", {"a", "p3"}, "y");
    product("y", "p4", 4, 4);
    node("Add", {"x", "p4"}, "h");
    rms_norm("h", "n2");
    product("n2", "p6", 4, 6);  // up
    product("n2", "p5", 4, 6);  // gate
    node("Sigmoid", {"p5"}, "g").node("Mul", {"p5", "g"}, "silu").node("Mul", {"silu", "p6"}, "m");
    product("m", "p7", 6, 4);
    node("Add", {"h", "p7"}, "z");
    rms_norm("z", "n3");
    product("n3", "logits", 4, 5);
  }
};

inline const std::string kOnnxConfig =
    R"({"architectures":["LlamaForCausalLM"],"hidden_size":4,"intermediate_size":6,)"
    R"("num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,)"
    R"("max_position_embeddings":64,"rms_norm_eps":1e-05,"tie_word_embeddings":false})";

}  // namespace test
