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
    const bool ties =
        config_.boolean("tie_word_embeddings", family_.adds_one_to_norms) && !weights_.keeps_output;
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
    if (tensor.source) return take_made(tensor, *renamed);
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

    const bool adds_one = adds_one_to(out.name);
    if (adds_one || is_f64) {
      if (renamed->change != Change::none && !adds_one) {
        return Error{Errc::unsupported,
                     "element type F64; save the model in F32: model.float().save_pretrained()"};
      }
      make(tensor, out, adds_one ? 1.0f : 0.0f);
      return ok();
    }
    if (is_table || in_place_.empty()) type_ = out.type;
    if (renamed->change == Change::gate_up) {
      if (tensor.swapped.any()) return gate_up_made();
      return split_gate_up(out);
    }
    const bool is_turned = tensor.is_by_outputs && renamed->change == Change::transposed;
    NIBBLE_CHECK(reorder(is_turned ? Change::none : renamed->change, out));
    if (tensor.swapped.any()) {
      if (out.swapped.any()) {
        make_reordered(tensor, out);
        return ok();
      }
      out.swapped = tensor.swapped;
    }
    in_place_.push_back(out);
    return ok();
  }

  // (Norms within recurrent layers are stored as they are.)
  bool adds_one_to(std::string_view name) const noexcept {
    return family_.adds_one_to_norms && name.ends_with("norm.weight") &&
           !name.ends_with("ssm_norm.weight");
  }
  static Error gate_up_made() {
    return {Errc::unsupported, "gates of experts that are not stored as they are"};
  }
  // Two matrices (n, k) in one (2 n, k), or in each of n_experts such: takes them one by one.
  Result<void> split_gate_up(const io::GgufTensor& both) {
    if (both.n_dims < 2 || both.n_dims > 3 || both.dims[1] % 2 != 0) {
      return Error{Errc::malformed, "a gate and what it multiplies are not of the same size"};
    }
    const std::uint64_t n_experts = both.dims[2];
    const std::size_t bytes = both.data.size() / io::narrow<std::size_t>(2 * n_experts);
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
      one.data = both.data.subspan(io::narrow<std::size_t>(i) * bytes, bytes);
      in_place_.push_back(one);
    }
    return ok();
  }
  // A tensor that its source makes.
  Result<void> take_made(const HubTensor& tensor, const Renamed& renamed) {
    if (renamed.change == Change::gate_up) return gate_up_made();
    io::GgufTensor out;
    out.name = names_.emplace_back(renamed.name);
    out.type = tensor.made_type;
    out.n_dims = static_cast<std::uint32_t>(tensor.shape.size());
    std::reverse_copy(tensor.shape.begin(), tensor.shape.end(), out.dims.begin());
    const bool is_table = out.name == "token_embd.weight";
    if (is_table) n_rows_ = out.dims[1];
    if (is_table && out.type != io::GgmlType::i8) type_ = out.type;
    if (adds_one_to(out.name)) {
      return Error{Errc::unsupported, "a norm of this architecture that is not stored as it is"};
    }
    if (renamed.change != Change::transposed) NIBBLE_CHECK(reorder(renamed.change, out));
    const auto dims = std::span(out.dims).first(out.n_dims);
    out_.add_tensor(out.name, out.type, dims, reordered(tensor.source, out.swapped));
    if (tensor.scales.empty()) return ok();
    // What stands beside codes (model/channel_tensors.hpp).
    const std::string scales = renamed.name.substr(0, renamed.name.rfind('.')) + ".scales";
    const std::uint64_t n_rows[] = {tensor.scales.size()};
    io::SwappedAxes swapped = out.swapped;
    swapped.unit = swapped.unit / out.dims[0] * sizeof(float);  // a code is a byte
    const auto bytes = std::as_bytes(std::span(values(tensor.scales), tensor.scales.size()));
    out_.add_tensor(
        scales, io::GgmlType::f32, n_rows,
        reordered([bytes] { return Result<std::span<const std::byte>>(bytes); }, swapped));
    if (!(tensor.input.scale.value > 0)) return ok();
    const std::uint64_t one[] = {1};
    const std::string base = renamed.name.substr(0, renamed.name.rfind('.'));
    out_.add_tensor(base + ".input_scale", io::GgmlType::f32, one,
                    std::as_bytes(std::span(&tensor.input.scale.value, 1)));
    out_.add_tensor(base + ".input_zero", io::GgmlType::i32, one,
                    std::as_bytes(std::span(&tensor.input.zero.value, 1)));
    return ok();
  }
  // What a source gives, in another order.
  io::GgufWriter::TensorSource reordered(io::GgufWriter::TensorSource source,
                                         const io::SwappedAxes& swapped) {
    if (!swapped.any()) return source;
    return [this, source = std::move(source), swapped]() -> Result<std::span<const std::byte>> {
      NIBBLE_TRY(stored, source());
      bytes_.resize(stored.size());
      NIBBLE_CHECK(io::TensorBytes(stored, swapped).read(0, bytes_));
      return std::span<const std::byte>(bytes_);
    };
  }
  // A tensor that is stored transposed and whose rows change places, too.
  void make_reordered(const HubTensor& tensor, const io::GgufTensor& out) {
    const io::MappedFile& file = weights_.files[tensor.file];
    const auto read = [this, &tensor, &file]() -> Result<std::span<const std::byte>> {
      stored_.resize(tensor.data.size());
      NIBBLE_CHECK(io::TensorBytes(tensor.data, tensor.swapped, &file).read(0, stored_));
      return std::span<const std::byte>(stored_);
    };
    out_.add_tensor(out.name, out.type, std::span(out.dims).first(out.n_dims),
                    reordered(read, out.swapped));
  }

  // Sets out.swapped (and the dimensions of what is transposed).
  Result<void> reorder(Change change, io::GgufTensor& out) const {
    const std::uint64_t element = io::type_traits(out.type).type_size;
    const std::uint64_t n_rows = out.n_dims == 1 ? out.dims[0] : out.dims[1];
    const std::uint64_t row =
        out.n_dims == 1 ? element : out.dims[0] / io::type_traits(out.type).block_size * element;
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
        if (out.n_dims == 1) break;  // a bias
        if (out.n_dims != 3 || out.dims[1] != 1) {
          return Error{Errc::malformed, "not the taps of a convolution of single channels"};
        }
        out.n_dims = 2;
        out.dims = {out.dims[0], out.dims[2], 1, 1};
        break;
      case Change::positions:
        if (out.n_dims != 2 || out.dims[1] <= 2) {
          return Error{Errc::malformed, "no table of positions and two rows more"};
        }
        out.dims[1] -= 2;
        out.data = out.data.subspan(io::narrow<std::size_t>(2 * row));
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
  std::vector<std::byte> bytes_;     // in the order that is wanted
  std::vector<std::byte> stored_;    // the tensor that is being made,
  std::vector<Scalar<float>> made_;  // and its weights
};

}}}  // namespace nibble::NIBBLE_ABI::hub
