// SPDX-License-Identifier: Apache-2.0
//
// From the tensors of a hub folder to those of a GGUF file. Most stay where they are, with another
// name or in another order of rows; the few that need other numbers are made.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/hub/config.hpp"
#include "nibble/hub/families.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/keys.hpp"
#include "nibble/hub/names.hpp"
#include "nibble/io/ggml_type.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

class Tensors {
 public:
  // All must stay alive as long as the tensors and until `out` is written.
  Tensors(Config& config, const Family& family, const Shape& shape, const WeightFiles& weights,
          io::GgufWriter& out)
      : config_(config), family_(family), shape_(shape), weights_(weights), out_(out) {}
  Tensors(const Tensors&) = delete;  // `out` refers to it
  Tensors& operator=(const Tensors&) = delete;

  // Takes all tensors of the folder; what has to be made is added to `out`. Errors name file and
  // tensor: unsupported (a tensor without a place in this architecture, an element type that is not
  // read), malformed (a shape that the configuration does not allow).
  Result<void> take() {
    const bool ties = config_.boolean("tie_word_embeddings", family_.adds_one_to_norms);
    NIBBLE_CHECK(config_.status());
    add_factors("rope_freqs.weight", shape_.rope_freqs);
    add_factors("rope_factors_long.weight", shape_.long_factors);
    add_factors("rope_factors_short.weight", shape_.short_factors);
    for (const HubTensor& tensor : weights_.tensors) {
      Result<void> taken = take_one(tensor, ties);
      if (!taken) {
        return std::move(taken).error().in(weights_.names[tensor.file] + ": tensor " +
                                           io::quoted(tensor.name));
      }
    }
    return ok();
  }

  // Those that are used where they are.
  std::span<const io::GgufTensor> in_place() const noexcept { return in_place_; }
  // The type of the token embedding: what most weights have.
  io::GgmlType type() const noexcept { return type_; }
  // Rows of the token embedding; 0 if there is none.
  std::uint64_t n_rows() const noexcept { return n_rows_; }

 private:
  Result<void> take_one(const HubTensor& tensor, bool ties) {
    const auto renamed = rename(family_.names, tensor.name);
    if (!renamed) {
      return Error{Errc::unsupported, "it has no place in the architecture " +
                                          std::string(family_.architecture) +
                                          " as it is known here"};
    }
    if (renamed->name.empty() || (ties && renamed->name == "output.weight")) return ok();
    if (tensor.shape.empty() || tensor.shape.size() > io::kGgufMaxDims) {
      return Error{Errc::malformed, to_text(tensor.shape.size()) + " dimensions, not 1 to 4"};
    }
    for (const std::uint64_t dim : tensor.shape) {
      // (Without elements, a shape could claim any number of rows.)
      if (dim == 0) return Error{Errc::malformed, "a dimension is 0"};
    }
    const bool is_f64 = tensor.type == io::SafetensorType::f64;
    io::GgufTensor out;
    switch (tensor.type) {
      case io::SafetensorType::f64:  // is made to f32
      case io::SafetensorType::f32: out.type = io::GgmlType::f32; break;
      case io::SafetensorType::f16: out.type = io::GgmlType::f16; break;
      case io::SafetensorType::bf16: out.type = io::GgmlType::bf16; break;
      default:
        return Error{Errc::unsupported, "element type " +
                                            std::string(type_traits(tensor.type).name) +
                                            "; weights are read as F32, F16, BF16 or F64"};
    }
    out.name = names_.emplace_back(renamed->name);
    out.n_dims = static_cast<std::uint32_t>(tensor.shape.size());
    std::reverse_copy(tensor.shape.begin(), tensor.shape.end(), out.dims.begin());
    out.data = tensor.data;
    const bool is_table = out.name == "token_embd.weight";
    if (is_table) n_rows_ = out.dims[1];

    const bool adds_one = family_.adds_one_to_norms && out.name.ends_with("norm.weight");
    if (adds_one || is_f64) {
      if (renamed->change != Change::none && !adds_one) {
        return Error{Errc::unsupported,
                     "element type F64; save the model in F32: model.float().save_pretrained()"};
      }
      make(tensor, out, adds_one ? 1.0f : 0.0f);
      return ok();
    }
    if (is_table || in_place_.empty()) type_ = out.type;
    if (renamed->change == Change::gate_up) return split_gate_up(out);
    NIBBLE_CHECK(reorder(renamed->change, out));
    in_place_.push_back(out);
    return ok();
  }

  // Two matrices (n, k) in one (2 n, k), or in each of n_experts such: takes them one by one.
  Result<void> split_gate_up(const io::GgufTensor& both) {
    if (both.n_dims < 2 || both.n_dims > 3 || both.dims[1] % 2 != 0) {
      return Error{Errc::malformed, "a gate and what it multiplies are not of the same size"};
    }
    const std::uint64_t n_experts = both.dims[2];
    const std::size_t bytes = both.data.size() / static_cast<std::size_t>(2 * n_experts);
    const std::string name(both.name);  // "blk.0.ffn_*_exps.weight"
    const std::size_t star = name.find('*');
    for (std::uint64_t i = 0; i < 2 * n_experts; ++i) {
      std::string own = name;
      own.replace(star, 1, i % 2 == 0 ? "gate" : "up");
      if (both.n_dims == 3) {  // "blk.0.ffn_gate.3.weight"
        own = own.substr(0, own.find("_exps")) + "." + to_text(i / 2) + ".weight";
      }
      io::GgufTensor one = both;
      one.name = names_.emplace_back(std::move(own));
      one.n_dims = 2;
      one.dims[1] = both.dims[1] / 2;
      one.dims[2] = 1;
      one.data = both.data.subspan(static_cast<std::size_t>(i) * bytes, bytes);
      in_place_.push_back(one);
    }
    return ok();
  }

  // Sets out.swapped (and the dimensions of what is transposed).
  Result<void> reorder(Change change, io::GgufTensor& out) const {
    const std::uint64_t element = io::type_traits(out.type).type_size;
    const std::uint64_t n_rows = out.n_dims == 1 ? out.dims[0] : out.dims[1];
    const std::uint64_t row = out.n_dims == 1 ? element : out.dims[0] * element;
    const auto groups = [&](std::uint64_t n) -> Result<std::uint64_t> {
      if (out.n_dims <= 2 && n > 0 && n_rows % n == 0) return n_rows / n;
      return Error{Errc::malformed, to_text(n_rows) + " rows are not for " +
                                        to_text(shape_.n_heads) + " heads, " +
                                        to_text(shape_.n_kv_heads) + " of k and v"};
    };
    switch (change) {
      case Change::none:
      case Change::gate_up: break;
      case Change::q_rows:
      case Change::k_rows:
        if (family_.rotates_pairs) {
          const std::uint64_t n_heads =
              change == Change::q_rows ? shape_.n_heads : shape_.n_kv_heads;
          NIBBLE_TRY(half, groups(2 * n_heads));
          out.swapped = {2, half, row};
        }
        break;
      case Change::transposed:
        if (out.n_dims == 2) {
          out.swapped = {out.dims[1], out.dims[0], element};
          std::swap(out.dims[0], out.dims[1]);
        }
        break;
      case Change::taps:
        if (out.n_dims != 3 || out.dims[1] != 1) {
          return Error{Errc::malformed, "not the taps of a convolution of single channels"};
        }
        out.n_dims = 2;
        out.dims = {out.dims[0], out.dims[2], 1, 1};
        break;
      case Change::qkv_rows: {
        NIBBLE_TRY(head_rows, groups(std::uint64_t{3} * shape_.n_heads));
        out.swapped = {shape_.n_heads, 3, head_rows * row};
        break;
      }
    }
    return ok();
  }

  // Adds a tensor whose weights are those of `tensor`, as f32, plus `offset`.
  void make(const HubTensor& tensor, const io::GgufTensor& out, float offset) {
    const auto dims = std::span(out.dims).first(out.n_dims);
    const io::MappedFile& file = weights_.files[tensor.file];
    out_.add_tensor(out.name, io::GgmlType::f32, dims,
                    [this, &tensor, &file, offset]() -> Result<std::span<const std::byte>> {
                      stored_.resize(tensor.data.size());
                      NIBBLE_CHECK(io::TensorBytes(tensor.data, {}, &file).read(0, stored_));
                      NIBBLE_CHECK(to_f32(tensor));
                      for (auto& [value] : made_) value += offset;
                      return std::as_bytes(std::span(values(made_), made_.size()));
                    });
  }

  // From stored_ to made_.
  Result<void> to_f32(const HubTensor& tensor) {
    std::size_t n = 1;  // no overflow: the file has all of them
    for (const std::uint64_t dim : tensor.shape) n *= static_cast<std::size_t>(dim);
    made_.resize(n);
    const std::span<float> made(values(made_), made_.size());
    switch (tensor.type) {
      case io::SafetensorType::f32: return quant::row_to_f32(quant::Format::f32, stored_, made);
      case io::SafetensorType::f16: return quant::row_to_f32(quant::Format::f16, stored_, made);
      case io::SafetensorType::bf16: return quant::row_to_f32(quant::Format::bf16, stored_, made);
      case io::SafetensorType::f64:
        for (std::size_t i = 0; i < made.size(); ++i) {
          const auto value = io::load_le<double>(stored_.data() + i * sizeof(double));
          if (!Config::fits_f32(value)) {
            return Error{Errc::malformed, "a weight that does not fit in F32"};
          }
          made[i] = static_cast<float>(value);
        }
        return ok();
      default:
        return Error{Errc::unsupported,
                     "element type " + std::string(io::type_traits(tensor.type).name)};
    }
  }

  void add_factors(std::string_view name, const Factors& factors) {
    if (factors.empty()) return;
    const std::uint64_t dims[] = {factors.size()};
    out_.add_tensor(name, io::GgmlType::f32, dims,
                    std::as_bytes(std::span(values(factors), factors.size())));
  }

  Config& config_;
  const Family& family_;
  const Shape& shape_;
  const WeightFiles& weights_;
  io::GgufWriter& out_;
  std::deque<std::string> names_;  // the tensors refer to them
  std::vector<io::GgufTensor> in_place_;
  io::GgmlType type_ = io::GgmlType::f32;
  std::uint64_t n_rows_ = 0;
  std::vector<std::byte> stored_;    // the tensor that is being made,
  std::vector<Scalar<float>> made_;  // and its weights
};

}}}  // namespace nibble::NIBBLE_ABI::hub
