// SPDX-License-Identifier: Apache-2.0
//
// The values of an ONNX graph: what gives each, what takes it, and which are constants, behind what
// exporters put between a weight and its use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/name_index.hpp"
#include "nibble/io/onnx.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

// A constant of a graph, behind what exporters put between a weight and its use.
struct OnnxConstant {
  const io::OnnxTensor* tensor = nullptr;
  bool is_transposed = false;
  // Of quantized weights: (code - zero) * scale, one or one for each index of the stored axis.
  const io::OnnxTensor* scale = nullptr;
  const io::OnnxTensor* zero = nullptr;
  std::size_t axis = 0;
  const io::OnnxTensor* input_scale = nullptr;  // which the scale is multiplied by (biases)

  explicit operator bool() const noexcept { return tensor != nullptr; }
};

// `file` must stay where it is.
class OnnxValues {
 public:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

 protected:
  struct Use {
    std::size_t node, input;
  };
  struct Value {
    std::string_view name;
    std::size_t node = kNone;    // that gives it,
    std::size_t output = 0;      // as which of its outputs;
    std::size_t tensor = kNone;  // or a constant; or else an input of the graph
    bool is_end = false;         // an output of the graph
    std::vector<Use> uses;
  };

  explicit OnnxValues(const io::OnnxFile& file) : file_(&file) {}

  template <std::size_t kCount>
  static bool is_one_of(std::string_view op, const std::string_view (&list)[kCount]) noexcept {
    return std::find(std::begin(list), std::end(list), op) != std::end(list);
  }
  // Their result has the numbers of their first input, in another shape or type, or some of them.
  static bool keeps_numbers(std::string_view op) noexcept {
    constexpr std::string_view kOps[] = {"Reshape",          "Cast",      "Identity",
                                         "Squeeze",          "Unsqueeze", "Flatten",
                                         "Dropout",          "Slice",     "QuantizeLinear",
                                         "DequantizeLinear", "Gather",    "DynamicQuantizeLinear"};
    return is_one_of(op, kOps);
  }

  // ---- Values ----

  std::size_t find(std::string_view name) const noexcept { return index_.find(name); }
  std::size_t input_of(std::size_t node, std::size_t i) const noexcept {
    return i < inputs_[node].size() ? inputs_[node][i] : kNone;
  }
  std::size_t output_of(std::size_t node) const noexcept {
    return outputs_[node].empty() ? kNone : outputs_[node][0];
  }
  const io::OnnxNode* giver(std::size_t value) const noexcept {
    if (value == kNone || values_[value].node == kNone) return nullptr;
    return &file_->nodes[values_[value].node];
  }

  Result<void> connect() {
    const auto add = [&](std::string_view name, std::size_t node, std::size_t output,
                         std::size_t tensor) {
      if (!name.empty()) values_.push_back({name, node, output, tensor, false, {}});
    };
    for (std::size_t t = 0; t < file_->n_initializers; ++t) {
      add(file_->tensors[t].name, kNone, 0, t);
    }
    io::NameIndex constants;  // old files list them as inputs, too
    for (std::size_t t = 0; t < file_->n_initializers; ++t) constants.add(file_->tensors[t].name);
    NIBBLE_CHECK(constants.sort("tensor"));
    for (const std::string_view name : file_->inputs) {
      if (constants.find(name) == kNone) add(name, kNone, 0, kNone);
    }
    for (std::size_t n = 0; n < file_->nodes.size(); ++n) {
      const io::OnnxNode& node = file_->nodes[n];
      std::size_t tensor = kNone;
      if (const auto* const value = node.op == "Constant" ? node.find("value") : nullptr) {
        tensor = value->tensor;
      }
      for (std::size_t i = 0; i < node.outputs.size(); ++i) add(node.outputs[i], n, i, tensor);
    }
    for (const Value& value : values_) index_.add(value.name);
    NIBBLE_CHECK(index_.sort("value"));
    inputs_.resize(file_->nodes.size());
    outputs_.resize(file_->nodes.size());
    for (std::size_t n = 0; n < file_->nodes.size(); ++n) {
      const io::OnnxNode& node = file_->nodes[n];
      for (const std::string_view name : node.inputs) {
        const std::size_t value = name.empty() ? kNone : find(name);
        if (!name.empty() &&
            (value == kNone || (values_[value].node != kNone && values_[value].node >= n))) {
          return Error{Errc::malformed,
                       "node " + io::quoted(node.name) + " takes " + io::quoted(name) +
                           ", which nothing before it gives: the graph has a cycle or a hole"};
        }
        if (value != kNone) values_[value].uses.push_back({n, inputs_[n].size()});
        inputs_[n].push_back(value);
      }
      for (const std::string_view name : node.outputs) {
        outputs_[n].push_back(name.empty() ? std::size_t{kNone} : find(name));
      }
    }
    for (const std::string_view name : file_->outputs) {
      if (const std::size_t value = find(name); value != kNone) values_[value].is_end = true;
    }
    return ok();
  }

  // ---- Constants ----

  // The constant that a value is; without a tensor if it is none.
  OnnxConstant constant(std::size_t value) const {
    OnnxConstant found;
    std::vector<std::size_t> nodes;  // between it and its tensor
    while (value != kNone && values_[value].tensor == kNone) {
      const io::OnnxNode* const node = giver(value);
      const bool is_kept =
          node != nullptr && (node->op == "Identity" || node->op == "Cast" ||
                              node->op == "Transpose" || node->op == "DequantizeLinear");
      if (!is_kept || nodes.size() == 16) return {};
      nodes.push_back(values_[value].node);
      value = input_of(values_[value].node, 0);
    }
    if (value == kNone) return {};
    found.tensor = &file_->tensors[values_[value].tensor];
    for (std::size_t i = nodes.size(); i-- > 0;) {
      const io::OnnxNode& node = file_->nodes[nodes[i]];
      if (node.op == "Transpose") {
        const auto* const order = node.find("perm");
        if (found.tensor->dims.size() != 2) return {};
        const bool turns = order == nullptr || order->integers == std::vector<std::int64_t>{1, 0};
        found.is_transposed = found.is_transposed != turns;
      } else if (node.op == "Cast") {
        // To a type that has fewer bits, it would change the numbers.
        const auto* const to = node.find("to");
        const auto type =
            to == nullptr ? io::OnnxType::f32 : static_cast<io::OnnxType>(to->integer & 0xFFFFFFFF);
        if (type != io::OnnxType::f32 && type != found.tensor->type) return {};
      } else if (node.op == "DequantizeLinear") {
        const auto* const block = node.find("block_size");
        if (found.scale != nullptr || (block != nullptr && block->integer != 0)) return {};
        const auto* const axis = node.find("axis");
        if (!set_scale(found, constant_tensor(input_of(nodes[i], 1)),
                       constant_tensor(input_of(nodes[i], 2)), axis == nullptr ? 1 : axis->integer,
                       found.is_transposed)) {
          return {};
        }
      }
    }
    return found;
  }
  const io::OnnxTensor* constant_tensor(std::size_t value) const noexcept {
    return value == kNone || values_[value].tensor == kNone
               ? nullptr
               : &file_->tensors[values_[value].tensor];
  }
  // axis: of what has the axes of the tensor, or its two exchanged.
  static bool set_scale(OnnxConstant& c, const io::OnnxTensor* scale, const io::OnnxTensor* zero,
                        std::int64_t axis, bool is_transposed) {
    if (scale == nullptr || scale->type != io::OnnxType::f32) return false;
    const auto n_dims = static_cast<std::int64_t>(c.tensor->dims.size());
    const std::uint64_t n = scale->n_elements();
    if (n != 1) {
      if (axis < 0) axis += n_dims;
      if (axis < 0 || axis >= n_dims) return false;
      if (is_transposed) axis = 1 - axis;
      c.axis = static_cast<std::size_t>(axis);
      if (c.tensor->dims[c.axis] != n) return false;
    }
    if (zero != nullptr && (zero->type != c.tensor->type || zero->n_elements() != n)) return false;
    c.scale = scale;
    c.zero = zero;
    return true;
  }
  static bool has_codes(const OnnxConstant& c) noexcept {
    return c.tensor->type == io::OnnxType::i8 || c.tensor->type == io::OnnxType::u8;
  }

  // The two operands of an addition or multiplication, quantized or not.
  struct Pair {
    OnnxConstant constant;
    std::size_t other = kNone;
  };
  Pair pair_of(std::size_t node, std::string_view op, std::string_view quantized_op) const {
    const std::string_view own = file_->nodes[node].op;
    if (own != op && own != quantized_op) return {};
    const bool is_quantized = own == quantized_op;
    const std::size_t at[] = {0, is_quantized ? 3u : 1u};
    for (std::size_t i = 0; i < 2; ++i) {
      OnnxConstant c = constant(input_of(node, at[i]));
      if (!c) continue;
      if (is_quantized && !set_scale(c, constant_tensor(input_of(node, at[i] + 1)),
                                     constant_tensor(input_of(node, at[i] + 2)), 0, false)) {
        continue;
      }
      return {c, input_of(node, at[1 - i])};
    }
    return {};
  }

  // The use of a value that has no other.
  const Use* only_use(std::size_t value) const noexcept {
    if (value == kNone || values_[value].uses.size() != 1) return nullptr;
    return &values_[value].uses[0];
  }

  const io::OnnxFile* file_;
  std::vector<Value> values_;
  io::NameIndex index_;                                     // of values_; the names are the file's
  std::vector<std::vector<std::size_t>> inputs_, outputs_;  // of nodes: values, or kNone
};

}}}  // namespace nibble::NIBBLE_ABI::hub
