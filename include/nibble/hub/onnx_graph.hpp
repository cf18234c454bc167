// SPDX-License-Identifier: Apache-2.0
//
// What the products of an ONNX graph are for: found by how values flow between them, because
// exporters keep few of the names that weights had. A product is a matrix product whose second
// operand is a constant; those of attention, of two results, are the joints between them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/hub/onnx_values.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/onnx.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

enum class OnnxRole : std::uint8_t { unknown, q, k, v, qkv, out, gate, up, down, head };

struct OnnxProduct {
  std::size_t node = 0;
  OnnxConstant weight;
  bool has_rows = false;  // weight, as it is stored, is (outputs, inputs)
  OnnxConstant bias;
  // What the input is rounded to, if the graph has that range; both or none.
  const io::OnnxTensor* input_scale = nullptr;
  const io::OnnxTensor* input_zero = nullptr;
  std::size_t input = 0;   // value
  std::size_t output = 0;  // value
  OnnxRole role = OnnxRole::unknown;
};

class OnnxGraph : OnnxValues {
 public:
  // Each product takes a walk through the graph. Models of 100 layers have 700, in some 20000
  // nodes.
  static constexpr std::size_t kMaxProducts = 2048;
  static constexpr std::size_t kMaxSteps = std::size_t{1} << 25;
  static constexpr std::size_t kMaxJoints = 16;  // that one product comes to: its layer's

  struct Norm {
    OnnxConstant weight, bias;
  };
  struct Table {
    OnnxConstant weight;
    bool is_of_tokens = false;
  };

  // `file` must stay where it is. Errors: malformed (a value that is not there before its use, or
  // is given twice), unsupported (operations that are not known, products without a part to play;
  // the names are in the message).
  static Result<OnnxGraph> of(const io::OnnxFile& file) {
    OnnxGraph graph(file);
    NIBBLE_CHECK(graph.connect());
    graph.product_at_.assign(file.nodes.size(), std::size_t{kNone});
    NIBBLE_CHECK(graph.check_operations());
    graph.find_products();
    const std::size_t n = graph.products_.size(), n_nodes = file.nodes.size();
    if (n > kMaxProducts || n * n_nodes > kMaxSteps) {
      return Error{Errc::limit, to_text(n) + " products in a graph of " + to_text(n_nodes) +
                                    " nodes, more than any model has"};
    }
    for (OnnxProduct& product : graph.products_) product.role = graph.role_of(product);
    for (OnnxProduct& product : graph.products_) {
      if (product.role == OnnxRole::unknown && graph.feeds_down(product)) {
        product.role = OnnxRole::up;
      }
    }
    NIBBLE_CHECK(graph.check_roles());
    return graph;
  }

  std::span<const OnnxProduct> products() const noexcept { return products_; }
  // Tables of which rows are taken.
  std::span<const Table> tables() const noexcept { return tables_; }
  // The norm whose result a product takes; without a weight if there is none.
  Norm norm_of(const OnnxProduct& product) const { return norm_at(product.input); }
  std::string name_of(const OnnxProduct& product) const {
    const io::OnnxNode& node = file_->nodes[product.node];
    return std::string(node.op) + " " + io::quoted(node.name) + " with " +
           io::quoted(product.weight.tensor->name);
  }
  // Whether a constant only makes angles of rotation or a mask.
  bool is_for_positions(const io::OnnxTensor& tensor) const {
    const std::size_t value = find(tensor.name);
    if (value == kNone) return false;
    const Reach reach = forward(value);
    return (reach.rotation || reach.mask) && reach.products.empty();
  }

 private:
  struct Joint {  // a product of two results
    std::size_t node;
    bool is_second;  // operand
  };
  struct Reach {
    std::vector<std::size_t> products;  // indices of products_
    std::vector<Joint> joints;
    bool activation = false, softmax = false, rotation = false, mask = false, end = false;
  };

  explicit OnnxGraph(const io::OnnxFile& file) : OnnxValues(file) {}

  // ---- Operations ----

  static bool is_activation(std::string_view op) noexcept {
    constexpr std::string_view kOps[] = {"Erf",  "Tanh",  "Sigmoid",       "Relu",
                                         "Gelu", "Swish", "QLinearSigmoid"};
    return is_one_of(op, kOps);
  }
  static bool is_joint(std::string_view op) noexcept {
    constexpr std::string_view kOps[] = {"MatMul", "QLinearMatMul", "MatMulInteger", "Gemm"};
    return is_one_of(op, kOps);
  }
  static bool is_known(const io::OnnxNode& node) noexcept {
    constexpr std::string_view kOps[] = {"Abs",
                                         "Add",
                                         "And",
                                         "Cast",
                                         "Ceil",
                                         "Concat",
                                         "Constant",
                                         "ConstantOfShape",
                                         "Cos",
                                         "CumSum",
                                         "Div",
                                         "Dropout",
                                         "Equal",
                                         "Expand",
                                         "Flatten",
                                         "Floor",
                                         "Gather",
                                         "GatherElements",
                                         "GatherND",
                                         "Gemm",
                                         "Greater",
                                         "GreaterOrEqual",
                                         "Identity",
                                         "IsNaN",
                                         "LayerNormalization",
                                         "Less",
                                         "LessOrEqual",
                                         "MatMul",
                                         "Max",
                                         "Min",
                                         "Mod",
                                         "Mul",
                                         "Neg",
                                         "Not",
                                         "Or",
                                         "Pow",
                                         "RMSNormalization",
                                         "Range",
                                         "Reciprocal",
                                         "ReduceMax",
                                         "ReduceMean",
                                         "ReduceSum",
                                         "Reshape",
                                         "ScatterND",
                                         "Shape",
                                         "Sin",
                                         "Size",
                                         "Slice",
                                         "Softmax",
                                         "Split",
                                         "Sqrt",
                                         "Squeeze",
                                         "Sub",
                                         "Tile",
                                         "Transpose",
                                         "Trilu",
                                         "Unsqueeze",
                                         "Where",
                                         "Xor",
                                         "Einsum",
                                         "QuantizeLinear",
                                         "DequantizeLinear",
                                         "DynamicQuantizeLinear",
                                         "MatMulInteger",
                                         "QLinearMatMul"};
    constexpr std::string_view kMicrosoft[] = {"QGemm",          "QLinearAdd",
                                               "QLinearMul",     "QLinearSigmoid",
                                               "QuantizeLinear", "DequantizeLinear"};
    if (node.domain == "com.microsoft") return is_one_of(node.op, kMicrosoft);
    if (!node.domain.empty()) return false;
    return is_one_of(node.op, kOps) || is_activation(node.op) ||
           node.op == "SimplifiedLayerNormalization";
  }

  Result<void> check_operations() const {
    std::string first;
    std::size_t n = 0;
    for (const io::OnnxNode& node : file_->nodes) {
      if (is_known(node)) continue;
      if (++n > 3) continue;
      const std::string domain = node.domain.empty() ? "" : std::string(node.domain) + '.';
      first += (n > 1 ? ", " : "") + io::quoted(domain + std::string(node.op)) + " (node " +
               io::quoted(node.name) + ")";
    }
    if (n == 0) return ok();
    return Error{Errc::unsupported,
                 "operations that are not known in a graph of a language model: " + first +
                     (n > 3 ? " and " + to_text(n - 3) + " more" : std::string())};
  }

  // ---- Products ----

  void find_products() {
    for (std::size_t n = 0; n < file_->nodes.size(); ++n) {
      const io::OnnxNode& node = file_->nodes[n];
      if (node.op == "Gather") add_table(n);
      OnnxProduct product;
      if (!read_product(n, node, product)) continue;
      product.node = n;
      product.input = input_of(n, 0);
      product.output = output_of(n);
      if (product.output == kNone || product.input == kNone) continue;
      if (node.op == "MatMulInteger" && !find_scale(product)) continue;
      if (!product.bias) product.bias = bias_behind(product);
      find_range(product);
      product_at_[n] = products_.size();
      products_.push_back(product);
    }
  }
  bool read_product(std::size_t n, const io::OnnxNode& node, OnnxProduct& p) const {
    const auto number = [&](std::string_view key, std::int64_t fallback) {
      const auto* const a = node.find(key);
      return a == nullptr ? fallback : a->integer;
    };
    const auto is_one = [&](std::string_view key) {
      const auto* const a = node.find(key);
      return a == nullptr || a->number == 1;
    };
    bool is_rows = false;
    if (node.op == "MatMul" || node.op == "MatMulInteger") {
      p.weight = constant(input_of(n, 1));
    } else if (node.op == "Gemm") {
      if (number("transA", 0) != 0 || !is_one("alpha")) return false;
      is_rows = number("transB", 0) != 0;
      p.weight = constant(input_of(n, 1));
      if (input_of(n, 2) != kNone) {
        p.bias = constant(input_of(n, 2));
        if (!p.bias || !is_one("beta")) return false;
      }
    } else if (node.op == "QLinearMatMul" || node.op == "QGemm") {
      if (number("transA", 0) != 0 || !is_one("alpha")) return false;
      is_rows = number("transB", 0) != 0;
      p.weight = constant(input_of(n, 3));
      if (!p.weight || p.weight.tensor->dims.size() != 2) return false;
      const bool turned = p.weight.is_transposed;
      const auto* const scale = constant_tensor(input_of(n, 4));
      const auto* const zero = constant_tensor(input_of(n, 5));
      if (!set_scale(p.weight, scale, zero, is_rows ? 0 : 1, turned)) return false;
      if (node.op == "QGemm" && input_of(n, 6) != kNone) {
        p.bias = constant(input_of(n, 6));
        const auto* const input_scale = constant_tensor(input_of(n, 1));
        if (!p.bias || p.bias.tensor->type != io::OnnxType::i32 || input_scale == nullptr ||
            input_scale->n_elements() != 1 || !set_scale(p.bias, scale, nullptr, 0, false)) {
          return false;
        }
        p.bias.input_scale = input_scale;
      }
    }
    if (!p.weight || p.weight.tensor->dims.size() != 2) return false;
    p.has_rows = is_rows != p.weight.is_transposed;
    return true;
  }

  // MatMulInteger, then Cast, then Mul by (input's scale * weight's scale).
  bool find_scale(OnnxProduct& p) const {
    const io::OnnxNode& node = file_->nodes[p.node];
    if (!has_codes(p.weight)) return false;
    const Use* cast = only_use(p.output);
    if (cast == nullptr || file_->nodes[cast->node].op != "Cast") return false;
    const Use* const mul = only_use(output_of(cast->node));
    if (mul == nullptr || file_->nodes[mul->node].op != "Mul") return false;
    const std::size_t scales = input_of(mul->node, 1 - mul->input);
    if (giver(scales) == nullptr || giver(scales)->op != "Mul") return false;
    const Pair pair = pair_of(values_[scales].node, "Mul", "QLinearMul");
    if (!pair.constant || node.inputs.size() < 3) return false;
    return set_scale(p.weight, pair.constant.tensor, constant_tensor(input_of(p.node, 3)), 1,
                     p.weight.is_transposed);
  }
  // Ranges of inputs that were measured before: of QLinearMatMul and QGemm, or of a
  // DequantizeLinear in front.
  void find_range(OnnxProduct& p) const {
    const io::OnnxNode& node = file_->nodes[p.node];
    std::size_t n = kNone;
    if (node.op == "QLinearMatMul" || node.op == "QGemm") n = p.node;
    const io::OnnxNode* const before = giver(p.input);
    if (n == kNone && before != nullptr && before->op == "DequantizeLinear") {
      n = values_[p.input].node;
    }
    if (n == kNone) return;
    const io::OnnxTensor* const scale = constant_tensor(input_of(n, 1));
    const io::OnnxTensor* const zero = constant_tensor(input_of(n, 2));
    const auto is_one = [](const io::OnnxTensor* t) {
      return t != nullptr && t->has_data() && t->n_elements() == 1;
    };
    if (!is_one(scale) || scale->type != io::OnnxType::f32 || !is_one(zero)) return;
    if (zero->type != io::OnnxType::u8 && zero->type != io::OnnxType::i8) return;
    p.input_scale = scale;
    p.input_zero = zero;
  }

  // A vector that is added to the result before anything else happens to it.
  OnnxConstant bias_behind(const OnnxProduct& p) const {
    std::size_t value = p.output;
    for (int steps = 0; steps < 16; ++steps) {
      const Use* const use = only_use(value);
      if (use == nullptr) return {};
      const io::OnnxNode& node = file_->nodes[use->node];
      const Pair sum = pair_of(use->node, "Add", "QLinearAdd");
      if (sum.constant) {
        return sum.constant.tensor->dims.size() == 1 ? sum.constant : OnnxConstant{};
      }
      const bool is_scaling = node.op == "Mul" && file_->nodes[p.node].op == "MatMulInteger";
      if (node.op == "Gather" || node.op == "Slice" || use->input != 0) {
        if (!is_scaling) return {};
      }
      if (!is_scaling && !keeps_numbers(node.op)) return {};
      value = output_of(use->node);
    }
    return {};
  }

  void add_table(std::size_t n) {
    Table table{constant(input_of(n, 0)), false};
    if (!table.weight || table.weight.tensor->dims.size() != 2 || table.weight.is_transposed)
      return;
    const auto* const axis = file_->nodes[n].find("axis");
    if (axis != nullptr && axis->integer != 0) return;
    // Quantized tables: rows are taken before they are scaled.
    if (has_codes(table.weight) && table.weight.scale == nullptr) {
      const Use* use = only_use(output_of(n));
      if (use == nullptr) return;
      const io::OnnxNode& next = file_->nodes[use->node];
      const std::size_t at = use->input;
      if (next.op != "DequantizeLinear" && next.op != "QLinearAdd") return;
      if (!set_scale(table.weight, constant_tensor(input_of(use->node, at + 1)),
                     constant_tensor(input_of(use->node, at + 2)), 0, false)) {
        return;
      }
    }
    std::size_t value = input_of(n, 1);
    for (int steps = 0; steps < 16; ++steps) {
      const io::OnnxNode* const node = giver(value);
      if (node == nullptr || !keeps_numbers(node->op)) break;
      value = input_of(values_[value].node, 0);
    }
    table.is_of_tokens = value != kNone && values_[value].node == kNone &&
                         values_[value].tensor == kNone && values_[value].name != "position_ids";
    tables_.push_back(table);
  }

  // ---- How values flow ----

  // What a value comes to, through anything but products.
  Reach forward(std::size_t from) const {
    Reach reach;
    std::vector<bool> seen(values_.size());
    std::vector<std::size_t> open = {from};
    seen[from] = true;
    while (!open.empty()) {
      const Value& value = values_[open.back()];
      open.pop_back();
      reach.end = reach.end || value.is_end;
      for (const Use& use : value.uses) {
        const io::OnnxNode& node = file_->nodes[use.node];
        if (product_at_[use.node] != kNone) {
          if (use.input == 0) reach.products.push_back(product_at_[use.node]);
          continue;
        }
        const bool is_from_constant = values_[from].tensor != kNone;
        if (is_joint(node.op)) {
          const std::size_t second = node.op == "QLinearMatMul" ? 3 : 1;
          // Constants that a rotation begins with are multiplied by positions.
          if (use.input == 0 || use.input == second) {
            reach.joints.push_back({use.node, use.input == second});
          }
          if (!is_from_constant) continue;
        }
        if (node.op == "Shape" || node.op == "Size") continue;
        note(node.op, reach);
        if (is_from_constant && is_of_positions(node.op)) continue;
        for (const std::size_t next : outputs_[use.node]) {
          // (Its scale is no result.)
          if (node.op == "DynamicQuantizeLinear" && next != outputs_[use.node][0]) break;
          if (next == kNone || seen[next]) continue;
          seen[next] = true;
          open.push_back(next);
        }
      }
    }
    return reach;
  }
  // What a value comes from, through anything but products and joints.
  Reach backward(std::size_t from) const {
    Reach reach;
    std::vector<bool> seen(values_.size());
    std::vector<std::size_t> open = {from};
    seen[from] = true;
    while (!open.empty()) {
      const Value& value = values_[open.back()];
      open.pop_back();
      if (value.node == kNone || product_at_[value.node] != kNone) continue;
      const io::OnnxNode& node = file_->nodes[value.node];
      if (is_joint(node.op)) {
        reach.joints.push_back({value.node, false});
        continue;
      }
      if (node.op == "Shape" || node.op == "Size") continue;
      if (node.op == "DynamicQuantizeLinear" && value.output > 0) continue;  // a scale
      note(node.op, reach);
      for (const std::size_t next : inputs_[value.node]) {
        if (next == kNone || seen[next]) continue;
        seen[next] = true;
        open.push_back(next);
      }
    }
    return reach;
  }
  static void note(std::string_view op, Reach& reach) noexcept {
    reach.activation = reach.activation || is_activation(op);
    reach.softmax = reach.softmax || op == "Softmax";
    reach.rotation = reach.rotation || op == "Sin" || op == "Cos";
    reach.mask = reach.mask || op == "Where" || op == "And";
  }
  static bool is_of_positions(std::string_view op) noexcept {
    return op == "Sin" || op == "Cos" || op == "Where" || op == "And";
  }

  OnnxRole role_of(const OnnxProduct& p) const {
    const Reach after = forward(p.output);
    if (after.joints.size() > kMaxJoints) return OnnxRole::unknown;
    if (!after.joints.empty()) {
      bool is_q = false, is_k = false, is_v = false;
      for (const Joint& joint : after.joints) {
        if (backward(input_of(joint.node, 0)).softmax) {
          is_v = is_v || joint.is_second;
        } else {
          (joint.is_second ? is_k : is_q) = true;
        }
      }
      if (is_q && is_k && is_v) return OnnxRole::qkv;
      if (is_q != is_k) return is_v ? OnnxRole::unknown : is_q ? OnnxRole::q : OnnxRole::k;
      return is_v ? OnnxRole::v : OnnxRole::unknown;
    }
    const Reach before = backward(p.input);
    if (!before.joints.empty()) return OnnxRole::out;
    if (before.activation) return OnnxRole::down;
    if (after.activation) return OnnxRole::gate;
    return after.end && after.products.empty() ? OnnxRole::head : OnnxRole::unknown;
  }
  bool feeds_down(const OnnxProduct& p) const {
    const Reach after = forward(p.output);
    return !after.end && after.products.size() == 1 &&
           products_[after.products[0]].role == OnnxRole::down;
  }

  Result<void> check_roles() const {
    std::string first;
    std::size_t n = 0;
    for (const OnnxProduct& product : products_) {
      if (product.role != OnnxRole::unknown) continue;
      if (++n <= 3) first += (n > 1 ? ", " : "") + name_of(product);
    }
    if (n == 0) return ok();
    return Error{Errc::unsupported,
                 "products that are no part of a decoder's layers as they are known here: " +
                     first + (n > 3 ? " and " + to_text(n - 3) + " more" : std::string())};
  }

  // ---- Norms ----

  Norm norm_at(std::size_t value) const {
    for (int steps = 0; steps < 16 && giver(value) != nullptr; ++steps) {
      const std::size_t n = values_[value].node;
      const io::OnnxNode& node = file_->nodes[n];
      if (node.op == "LayerNormalization" || node.op == "RMSNormalization" ||
          node.op == "SimplifiedLayerNormalization") {
        return {constant(input_of(n, 1)), constant(input_of(n, 2))};
      }
      const Pair sum = pair_of(n, "Add", "QLinearAdd");
      if (sum.constant) {
        Norm norm = norm_at_product(sum.other);
        if (norm.weight) norm.bias = sum.constant;
        return norm;
      }
      if (pair_of(n, "Mul", "QLinearMul").constant) return norm_at_product(value);
      if (!keeps_numbers(node.op)) break;
      value = input_of(n, 0);
    }
    return {};
  }
  // The weight that a normalized row is multiplied by.
  Norm norm_at_product(std::size_t value) const {
    for (int steps = 0; steps < 16 && giver(value) != nullptr; ++steps) {
      const std::size_t n = values_[value].node;
      const Pair product = pair_of(n, "Mul", "QLinearMul");
      if (product.constant) {
        return product.constant.tensor->dims.size() == 1 ? Norm{product.constant, {}} : Norm{};
      }
      if (!keeps_numbers(file_->nodes[n].op)) break;
      value = input_of(n, 0);
    }
    return {};
  }

  std::vector<std::size_t> product_at_;  // of nodes: index of products_
  std::vector<OnnxProduct> products_;
  std::vector<Table> tables_;
};

}}}  // namespace nibble::NIBBLE_ABI::hub
