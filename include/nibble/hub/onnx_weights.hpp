// SPDX-License-Identifier: Apache-2.0
//
// The weights of an exported decoder model (ONNX), under the names that hubs have for them. Float
// weights stay in the file; quantized ones become 8-bit codes with a scale for each row where their
// zeros are 0, and else F32.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/float16.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/onnx_graph.hpp"
#include "nibble/io/onnx.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

// How hubs call the parts of a family's models; '#' is the number of a layer.
struct OnnxNames {
  std::string_view architecture;
  std::string_view tokens, positions, output_norm, head;
  std::string_view attention_norm, feed_forward_norm;
  std::string_view q, k, v, qkv, out, gate, up, down;
  bool has_biases = false;  // all products of layers, and the norms
};

NIBBLE_HIDDEN inline constexpr OnnxNames kOnnxFamilies[] = {
    {"llama", "embed_tokens", "", "norm", "lm_head", "layers.#.input_layernorm",
     "layers.#.post_attention_layernorm", "layers.#.self_attn.q_proj", "layers.#.self_attn.k_proj",
     "layers.#.self_attn.v_proj", "", "layers.#.self_attn.o_proj", "layers.#.mlp.gate_proj",
     "layers.#.mlp.up_proj", "layers.#.mlp.down_proj"},
    {"qwen2", "embed_tokens", "", "norm", "lm_head", "layers.#.input_layernorm",
     "layers.#.post_attention_layernorm", "layers.#.self_attn.q_proj", "layers.#.self_attn.k_proj",
     "layers.#.self_attn.v_proj", "", "layers.#.self_attn.o_proj", "layers.#.mlp.gate_proj",
     "layers.#.mlp.up_proj", "layers.#.mlp.down_proj"},
    {"gpt2", "wte", "wpe", "ln_f", "lm_head", "h.#.ln_1", "h.#.ln_2", "", "", "", "h.#.attn.c_attn",
     "h.#.attn.c_proj", "", "h.#.mlp.c_fc", "h.#.mlp.c_proj", true},
    {"gptneox", "embed_in", "", "final_layer_norm", "embed_out", "layers.#.input_layernorm",
     "layers.#.post_attention_layernorm", "", "", "", "layers.#.attention.query_key_value",
     "layers.#.attention.dense", "", "layers.#.mlp.dense_h_to_4h", "layers.#.mlp.dense_4h_to_h",
     true},
};

namespace detail {

// The numbers of a constant, as f32 in the order in which they are stored; codes with their scales.
// Nothing refers to the graph afterwards, but `data` to its files.
struct OnnxNumbers {
  io::OnnxType type = io::OnnxType::f32;
  std::span<const std::byte> data;
  std::vector<std::int32_t> numbers;    // if there are any, instead of data
  std::vector<Scalar<float>> scales;    // none: no codes
  std::vector<std::int32_t> zeros;      // none: all 0
  std::uint64_t inner = 1, n_axis = 1;  // index of the scale: i / inner % n_axis

  explicit OnnxNumbers(const OnnxConstant& c)
      : type(c.tensor->type), data(c.tensor->data), numbers(c.tensor->numbers) {
    if (c.scale == nullptr) return;
    const auto n = index_of(c.scale->n_elements());
    const OnnxNumbers scale({c.scale, false, nullptr, nullptr, 0, nullptr});
    const float input =
        c.input_scale == nullptr
            ? 1.0f
            : OnnxNumbers({c.input_scale, false, nullptr, nullptr, 0, nullptr}).at(0);
    for (std::size_t i = 0; i < n; ++i) scales.push_back({scale.at(i) * input});
    if (c.zero != nullptr) {
      const OnnxNumbers zero({c.zero, false, nullptr, nullptr, 0, nullptr});
      for (std::size_t i = 0; i < n; ++i) zeros.push_back(zero.code(i));
    }
    n_axis = n;
    for (std::size_t d = c.axis + 1; d < c.tensor->dims.size(); ++d) inner *= c.tensor->dims[d];
  }

  static std::size_t index_of(std::uint64_t n) noexcept { return io::narrow<std::size_t>(n); }

  std::int32_t code(std::size_t i) const noexcept {
    if (!numbers.empty()) {
      if (type == io::OnnxType::i8) return static_cast<std::int8_t>(numbers[i] & 0xFF);
      return type == io::OnnxType::u8 ? numbers[i] & 0xFF : numbers[i];
    }
    if (type == io::OnnxType::i8) return io::load_le<std::int8_t>(data.data() + i);
    if (type == io::OnnxType::u8) return io::load_le<std::uint8_t>(data.data() + i);
    return io::load_le<std::int32_t>(data.data() + i * 4);
  }
  std::size_t group(std::size_t i) const noexcept { return index_of(i / inner % n_axis); }
  float at(std::size_t i) const noexcept {
    if (!scales.empty()) {
      const std::size_t g = group(i);
      const std::int64_t zero = zeros.empty() ? 0 : zeros[g];
      return static_cast<float>(code(i) - zero) * scales[g].value;
    }
    const auto half = [&] {
      return numbers.empty() ? io::load_le<std::uint16_t>(data.data() + i * 2)
                             : static_cast<std::uint16_t>(numbers[i] & 0xFFFF);
    };
    switch (type) {
      case io::OnnxType::f16: return to_f32(f16{half()});
      case io::OnnxType::bf16: return to_f32(bf16{half()});
      case io::OnnxType::f64:
        return static_cast<float>(io::load_le<double>(data.data() + i * sizeof(double)));
      default: return io::load_le<float>(data.data() + i * sizeof(float));
    }
  }
};

}  // namespace detail

class OnnxWeights {
 public:
  OnnxWeights(const io::OnnxFile& file, const OnnxGraph& graph, const OnnxNames& names,
              std::size_t n_layers)
      : file_(file), graph_(graph), names_(names), n_layers_(n_layers) {}

  // The tensors; those that are not made lie in the file's files. Errors: unsupported (parts that
  // are missing or too many, constants that are not understood; the message has their names).
  Result<std::vector<HubTensor>> take() {
    NIBBLE_CHECK(take_tables());
    NIBBLE_TRY(q, of(OnnxRole::q, names_.q));
    NIBBLE_TRY(k, of(OnnxRole::k, names_.k));
    NIBBLE_TRY(v, of(OnnxRole::v, names_.v));
    NIBBLE_TRY(qkv, of(OnnxRole::qkv, names_.qkv));
    NIBBLE_TRY(outs, of(OnnxRole::out, names_.out));
    // What comes before an activation is a gate only if there is another product beside it.
    const bool is_gated = !names_.gate.empty();
    NIBBLE_TRY(gates, of(OnnxRole::gate, is_gated ? names_.gate : names_.up));
    NIBBLE_TRY(ups, of(OnnxRole::up, is_gated ? names_.up : ""));
    NIBBLE_TRY(downs, of(OnnxRole::down, names_.down));
    NIBBLE_TRY(heads, of(OnnxRole::head, names_.head, 1));
    for (std::size_t layer = 0; layer < n_layers_; ++layer) {
      const auto add = [&](const std::vector<const OnnxProduct*>& products, std::string_view name) {
        return products.empty() ? ok() : add_product(*products[layer], at(name, layer));
      };
      const OnnxProduct& first = qkv.empty() ? *q[layer] : *qkv[layer];
      NIBBLE_CHECK(add_norm(first, at(names_.attention_norm, layer)));
      NIBBLE_CHECK(add(q, names_.q));
      NIBBLE_CHECK(add(k, names_.k));
      NIBBLE_CHECK(add(v, names_.v));
      NIBBLE_CHECK(add(qkv, names_.qkv));
      NIBBLE_CHECK(add(outs, names_.out));
      NIBBLE_CHECK(add_norm(*gates[layer], at(names_.feed_forward_norm, layer)));
      NIBBLE_CHECK(add(gates, is_gated ? names_.gate : names_.up));
      NIBBLE_CHECK(add(ups, names_.up));
      NIBBLE_CHECK(add(downs, names_.down));
    }
    NIBBLE_CHECK(add_norm(*heads[0], std::string(names_.output_norm)));
    NIBBLE_CHECK(add_product(*heads[0], std::string(names_.head), true));
    NIBBLE_CHECK(check_rest());
    return std::move(tensors_);
  }
  // Whether a matrix is quantized: then a tied output need not be what the embedding is.
  bool has_codes() const noexcept { return has_codes_; }

 private:
  static std::string at(std::string_view name, std::size_t layer) {
    std::string text(name);
    if (const std::size_t hash = text.find('#'); hash != text.npos) {
      text.replace(hash, 1, to_text(layer));
    }
    return text;
  }

  // The products of a role, in the order of the layers, which is that of the graph: each layer
  // takes what the one before gives.
  Result<std::vector<const OnnxProduct*>> of(OnnxRole role, std::string_view name) const {
    return of(role, name, n_layers_);
  }
  Result<std::vector<const OnnxProduct*>> of(OnnxRole role, std::string_view name,
                                             std::size_t wanted) const {
    std::vector<const OnnxProduct*> found;
    for (const OnnxProduct& product : graph_.products()) {
      if (product.role == role) found.push_back(&product);
    }
    if (name.empty()) wanted = 0;
    if (found.size() == wanted) return found;
    std::string shown;
    for (std::size_t i = 0; i < found.size() && i < 3; ++i) {
      shown += (i > 0 ? ", " : ": ") + graph_.name_of(*found[i]);
    }
    return Error{Errc::unsupported,
                 "the graph has " + to_text(found.size()) + " products of the kind " +
                     (name.empty() ? "that " + std::string(names_.architecture) + " has none of"
                                   : io::quoted(name)) +
                     ", not " + to_text(wanted) + shown};
  }

  void use(const OnnxConstant& c) {
    for (const io::OnnxTensor* const tensor : {c.tensor, c.scale, c.zero}) {
      if (tensor != nullptr) used_.push_back(tensor);
    }
  }

  static bool stays(const OnnxConstant& c) noexcept {
    return c.scale == nullptr && !c.tensor->data.empty() &&
           (c.tensor->type == io::OnnxType::f32 || c.tensor->type == io::OnnxType::f16 ||
            c.tensor->type == io::OnnxType::bf16);
  }
  static io::SafetensorType type_of(io::OnnxType type) noexcept {
    return type == io::OnnxType::f16    ? io::SafetensorType::f16
           : type == io::OnnxType::bf16 ? io::SafetensorType::bf16
                                        : io::SafetensorType::f32;
  }
  Result<void> check_numbers(const OnnxConstant& c, const std::string& name) const {
    const io::OnnxType type = c.tensor->type;
    const bool has_integers =
        type == io::OnnxType::i8 || type == io::OnnxType::u8 || type == io::OnnxType::i32;
    const bool has_floats = type == io::OnnxType::f32 || type == io::OnnxType::f16 ||
                            type == io::OnnxType::bf16 || type == io::OnnxType::f64;
    const bool is_read = c.scale == nullptr ? has_floats : has_integers;
    if (is_read && c.tensor->has_data() && (c.scale == nullptr || c.scale->has_data()) &&
        (c.zero == nullptr || c.zero->has_data())) {
      return ok();
    }
    return Error{Errc::unsupported,
                 "constant " + io::quoted(c.tensor->name) + ", which would be " + name + ", is " +
                     (is_read ? "empty"
                              : "of element type " + to_text(static_cast<std::uint32_t>(type)) +
                                    (c.scale == nullptr ? " without a scale" : ""))};
  }

  // A matrix, which is stored as (rows, columns), or transposed.
  Result<void> add_matrix(const OnnxConstant& c, bool has_rows, std::string name,
                          const OnnxProduct* product = nullptr) {
    NIBBLE_CHECK(check_numbers(c, name));
    use(c);
    HubTensor tensor;
    tensor.name = std::move(name);
    tensor.is_by_outputs = true;
    tensor.file = c.tensor->file;
    const std::uint64_t a = c.tensor->dims[0], b = c.tensor->dims[1];
    const std::uint64_t n = has_rows ? a : b, k = has_rows ? b : a;
    tensor.shape = {n, k};
    if (stays(c)) {
      tensor.type = type_of(c.tensor->type);
      tensor.data = c.tensor->data;
      if (!has_rows) tensor.swapped = {a, b, io::bytes_of(c.tensor->type)};
      tensors_.push_back(std::move(tensor));
      return ok();
    }
    detail::OnnxNumbers numbers(c);
    const auto rows = io::narrow<std::size_t>(n), columns = io::narrow<std::size_t>(k);
    const bool has_row_scales = numbers.scales.size() == 1 || c.axis == (has_rows ? 0u : 1u);
    bool is_symmetric = c.tensor->type == io::OnnxType::i8 && has_row_scales;
    for (const std::int32_t zero : numbers.zeros) is_symmetric = is_symmetric && zero == 0;
    for (std::size_t i = 0; is_symmetric && i < rows * columns; ++i) {
      is_symmetric = numbers.code(i) != -128;
    }
    for (const auto& [scale] : numbers.scales) {
      is_symmetric = is_symmetric && scale >= 0 && is_finite(static_cast<double>(scale));
    }
    has_codes_ = has_codes_ || !numbers.scales.empty();
    if (is_symmetric) {
      tensor.made_type = io::GgmlType::i8;
      if (product != nullptr && product->input_scale != nullptr) {
        const OnnxConstant zero{product->input_zero, false, nullptr, nullptr, 0, nullptr};
        const OnnxConstant scale{product->input_scale, false, nullptr, nullptr, 0, nullptr};
        const std::int32_t low = product->input_zero->type == io::OnnxType::i8 ? 128 : 0;
        tensor.input = {{detail::OnnxNumbers(scale).at(0)},
                        {detail::OnnxNumbers(zero).code(0) + low}};
      }
      for (std::size_t row = 0; row < rows; ++row) {
        tensor.scales.push_back(numbers.scales[numbers.scales.size() == 1 ? 0 : row]);
      }
    }
    tensor.source = [numbers = std::move(numbers), rows, columns, has_rows, is_symmetric,
                     made = std::vector<std::byte>()]() mutable {
      made.resize(rows * columns * (is_symmetric ? 1 : sizeof(float)));
      for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t column = 0; column < columns; ++column) {
          const std::size_t from = has_rows ? row * columns + column : column * rows + row;
          const std::size_t to = row * columns + column;
          if (is_symmetric) {
            made[to] = static_cast<std::byte>(numbers.code(from) & 0xFF);
          } else {
            const float value = numbers.at(from);
            std::memcpy(made.data() + to * sizeof(float), &value, sizeof value);
          }
        }
      }
      return Result<std::span<const std::byte>>(made);
    };
    tensors_.push_back(std::move(tensor));
    return ok();
  }

  Result<void> add_vector(const OnnxConstant& c, std::string name, std::uint64_t n) {
    HubTensor tensor;
    tensor.name = std::move(name);
    tensor.shape = {n};
    if (!c) {  // an exporter leaves out what it knows to be 0
      tensor.source = [made = std::vector<std::byte>(io::narrow<std::size_t>(n) * sizeof(float))] {
        return Result<std::span<const std::byte>>(made);
      };
      tensors_.push_back(std::move(tensor));
      return ok();
    }
    NIBBLE_CHECK(check_numbers(c, tensor.name));
    use(c);
    if (c.tensor->dims.size() != 1 || c.tensor->dims[0] != n) {
      return Error{Errc::unsupported, "constant " + io::quoted(c.tensor->name) +
                                          ", which would be " + tensor.name + ", has no shape of " +
                                          to_text(n) + " numbers"};
    }
    tensor.file = c.tensor->file;
    if (stays(c)) {
      tensor.type = type_of(c.tensor->type);
      tensor.data = c.tensor->data;
    } else {
      const detail::OnnxNumbers numbers(c);
      std::vector<std::byte> made(io::narrow<std::size_t>(n) * sizeof(float));
      for (std::size_t i = 0; i < io::narrow<std::size_t>(n); ++i) {
        const float value = numbers.at(i);
        std::memcpy(made.data() + i * sizeof(float), &value, sizeof value);
      }
      tensor.source = [made = std::move(made)] { return Result<std::span<const std::byte>>(made); };
    }
    tensors_.push_back(std::move(tensor));
    return ok();
  }

  Result<void> add_product(const OnnxProduct& product, const std::string& name,
                           bool is_head = false) {
    const auto& dims = product.weight.tensor->dims;
    NIBBLE_CHECK(add_matrix(product.weight, product.has_rows, name + ".weight", &product));
    if (!product.bias && (is_head || !names_.has_biases)) return ok();
    return add_vector(product.bias, name + ".bias", product.has_rows ? dims[0] : dims[1]);
  }

  Result<void> add_norm(const OnnxProduct& product, const std::string& name) {
    const OnnxGraph::Norm norm = graph_.norm_of(product);
    if (!norm.weight) {
      return Error{Errc::unsupported,
                   graph_.name_of(product) + ": its input is no norm with weights"};
    }
    const auto& dims = product.weight.tensor->dims;
    const std::uint64_t n = product.has_rows ? dims[1] : dims[0];
    NIBBLE_CHECK(add_vector(norm.weight, name + ".weight", n));
    if (!norm.bias && !names_.has_biases) return ok();
    return add_vector(norm.bias, name + ".bias", n);
  }

  Result<void> take_tables() {
    bool has_tokens = false, has_positions = names_.positions.empty();
    for (const OnnxGraph::Table& table : graph_.tables()) {
      if (table.is_of_tokens ? has_tokens : has_positions) continue;  // check_rest() names it
      (table.is_of_tokens ? has_tokens : has_positions) = true;
      NIBBLE_CHECK(add_matrix(
          table.weight, true,
          std::string(table.is_of_tokens ? names_.tokens : names_.positions) + ".weight"));
    }
    if (has_tokens && has_positions) return ok();
    return Error{Errc::unsupported, std::string("the graph has no table of ") +
                                        (has_tokens ? "positions" : "tokens") +
                                        " of which rows are taken"};
  }

  // Every other constant must be a number, or be for rotations, masks and shapes.
  Result<void> check_rest() const {
    std::string first;
    std::size_t n = 0, n_looked_at = 0;
    for (std::size_t t = 0; t < file_.n_initializers; ++t) {
      const io::OnnxTensor& tensor = file_.tensors[t];
      const bool is_weight_type = stays({&tensor, false, nullptr, nullptr, 0, nullptr}) ||
                                  tensor.type == io::OnnxType::i8 ||
                                  tensor.type == io::OnnxType::u8 ||
                                  tensor.type == io::OnnxType::f64;
      if (!is_weight_type || tensor.n_elements() <= 1) continue;
      if (std::find(used_.begin(), used_.end(), &tensor) != used_.end()) continue;
      if (++n_looked_at > kMaxOthers) {
        return Error{Errc::unsupported, "more than " + to_text(kMaxOthers) +
                                            " constants that are no weights known here"};
      }
      if (graph_.is_for_positions(tensor)) continue;
      if (++n <= 3) first += (n > 1 ? ", " : "") + io::quoted(tensor.name);
    }
    if (n == 0) return ok();
    return Error{Errc::unsupported,
                 "constants without a place in the architecture " +
                     std::string(names_.architecture) + " as it is known here: " + first +
                     (n > 3 ? " and " + to_text(n - 3) + " more" : std::string())};
  }

  static constexpr std::size_t kMaxOthers = 256;

  const io::OnnxFile& file_;
  const OnnxGraph& graph_;
  const OnnxNames& names_;
  std::size_t n_layers_;
  std::vector<HubTensor> tensors_;
  std::vector<const io::OnnxTensor*> used_;
  bool has_codes_ = false;
};

// Opens the weights of an ONNX file for a family of models. Errors name the file: those of
// io::OnnxFile::open, unsupported (a family that is not known in this form; a graph that is not one
// of its models, by the names that were not understood).
inline Result<WeightFiles> open_onnx(const std::string& path, std::string_view architecture,
                                     std::size_t n_layers) {
  const auto* const names =
      std::find_if(std::begin(kOnnxFamilies), std::end(kOnnxFamilies),
                   [&](const OnnxNames& family) { return family.architecture == architecture; });
  if (names == std::end(kOnnxFamilies)) {
    std::string known;
    for (const OnnxNames& family : kOnnxFamilies) {
      known += (known.empty() ? "" : ", ") + std::string(family.architecture);
    }
    return Error{Errc::unsupported, printable(path) + ": the architecture " +
                                        io::quoted(architecture) +
                                        " is not known as ONNX; known are " + known};
  }
  NIBBLE_TRY(file, io::OnnxFile::open(path));
  auto graph = OnnxGraph::of(file);
  if (!graph) return std::move(graph).error().in(file.name());
  OnnxWeights taken(file, *graph, *names, n_layers);
  auto tensors = taken.take();
  if (!tensors) return std::move(tensors).error().in(file.name());
  WeightFiles weights;
  weights.tensors = *std::move(tensors);
  weights.keeps_output = taken.has_codes();
  weights.files = std::move(file.files);
  weights.names = std::move(file.file_names);
  return weights;
}

}}}  // namespace nibble::NIBBLE_ABI::hub
