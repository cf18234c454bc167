// SPDX-License-Identifier: Apache-2.0
//
// Adapters in files: llama.cpp's GGUF. (PEFT's folders: peft.hpp.)
//
// general.type is "adapter", adapter.type "lora", general.architecture that of the model,
// adapter.lora.alpha the numerator of the scale. The factors of a tensor (n, k) are
// <tensor>.lora_a (r, k) and <tensor>.lora_b (n, r); those of token_embd.weight change places and
// are transposed: lora_a (n, r) and lora_b (k, r), so that rows can be looked up. Tensors whose
// names end with _norm.weight are ignored, as llama.cpp does; any other is an error.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/adapter.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

namespace detail {

NIBBLE_HIDDEN inline constexpr std::string_view kTokenEmbedding = "token_embd.weight";

inline std::vector<Scalar<float>> transposed(std::span<const float> x, Index rows, Index columns) {
  std::vector<Scalar<float>> out(x.size());
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) {
      out[static_cast<std::size_t>(j * rows + i)].value =
          x[static_cast<std::size_t>(i * columns + j)];
    }
  }
  return out;
}

// The shape of a matrix of the model that is adapted; an output that is tied to the embedding has
// that one's. Errors: not_found, invalid_argument (no matrix).
inline Result<io::GgufTensor> adapted_tensor(const io::Gguf& base, std::string_view name) {
  const io::GgufTensor* found = base.find_tensor(name);
  if (found == nullptr && name == "output.weight") found = base.find_tensor(kTokenEmbedding);
  if (found == nullptr) {
    return Error{Errc::not_found,
                 base.name() + ": the model has no tensor " + io::quoted(name) + " to adapt"};
  }
  if (found->n_dims != 2 || !name.ends_with(".weight")) {
    return Error{Errc::invalid_argument,
                 base.name() + ": tensor " + io::quoted(name) + " is no matrix to adapt"};
  }
  return *found;
}

// Checks the parts of a matrix of an adapter that a program may have made. Error: invalid_argument.
inline Result<void> check_whole(const AdapterMatrix& m) {
  const std::string what = "adapter of " + io::quoted(m.name) + ": ";
  if (!m.is_whole()) {
    return Error{Errc::invalid_argument, what + "factors that do not have their shapes"};
  }
  if (m.alpha != 0 && is_finite(static_cast<double>(m.alpha))) return ok();
  return Error{Errc::invalid_argument, what + "alpha is not a number other than 0"};
}

// Checks a matrix of an adapter against the model. Errors: as adapted_tensor() and check_whole();
// malformed.
inline Result<void> check_adapted(const io::Gguf& base, const AdapterMatrix& m) {
  NIBBLE_TRY(tensor, adapted_tensor(base, m.name));
  NIBBLE_CHECK(check_whole(m));
  const auto n = static_cast<Index>(tensor.dims[1]), k = static_cast<Index>(tensor.dims[0]);
  const std::string what = "adapter of " + io::quoted(m.name) + ": ";
  if (m.n != n || m.k != k) {
    return Error{Errc::malformed, what + "for a matrix " + graph::shape_text(m.n, m.k) +
                                      ", the model's is " + graph::shape_text(n, k)};
  }
  for (const auto* const side : {&m.a, &m.b}) {
    for (const auto& [x] : *side) {
      if (!is_finite(static_cast<double>(x))) {
        return Error{Errc::malformed, what + "a value that is not finite"};
      }
    }
  }
  return ok();
}

// A side of the factors, as the file has it.
struct StoredSide {
  Index rows = 0, columns = 0;
  std::vector<Scalar<float>> values;
};

inline Result<StoredSide> read_side(const io::Gguf& file, const std::string& name) {
  NIBBLE_TRY(tensor, file.tensor(name));
  const std::string where = compress::place_in_messages(file, name);
  if (tensor.n_dims != 2 || tensor.dims[0] < 1 || tensor.dims[1] < 1) {
    return Error{Errc::malformed, where + ": factors are matrices"};
  }
  StoredSide side;
  side.rows = static_cast<Index>(tensor.dims[1]);
  side.columns = static_cast<Index>(tensor.dims[0]);
  auto rows = compress::FloatRows::of(file, tensor);
  if (!rows) return std::move(rows).error().in(where);
  side.values.resize(rows->n() * rows->k());
  std::vector<std::byte> stored(rows->row_bytes());
  for (std::size_t i = 0; i < rows->n(); ++i) {
    Result<void> read = rows->read(
        i, stored,
        std::span(values(side.values), side.values.size()).subspan(i * rows->k(), rows->k()));
    if (!read) return std::move(read).error().in(where);
  }
  return side;
}

inline Result<AdapterMatrix> read_matrix(const io::Gguf& file, const std::string& name,
                                         float alpha) {
  NIBBLE_TRY(a, read_side(file, name + ".lora_a"));
  NIBBLE_TRY(b, read_side(file, name + ".lora_b"));
  const bool is_table = name == kTokenEmbedding;  // a is (n, r), b is (k, r)
  AdapterMatrix m;
  m.name = name;
  m.rank = is_table ? a.columns : a.rows;
  m.k = is_table ? b.rows : a.columns;
  m.n = is_table ? a.rows : b.rows;
  if (b.columns != m.rank) {
    return Error{Errc::malformed, compress::place_in_messages(file, name) + ": factors of rank " +
                                      to_text(m.rank) + " and " + to_text(b.columns)};
  }
  if (is_table) {
    m.a = transposed({values(b.values), b.values.size()}, b.rows, b.columns);
    m.b = std::move(a.values);
  } else {
    m.a = std::move(a.values);
    m.b = std::move(b.values);
  }
  // Without alpha llama.cpp counts the factors once.
  m.alpha = alpha != 0 ? alpha : static_cast<float>(m.rank);
  return m;
}

inline Result<float> read_adapter_keys(const io::Gguf& file, std::string_view architecture) {
  NIBBLE_TRY(kind, file.get_string("general.type"));
  if (kind != "adapter") {
    return Error{Errc::malformed,
                 file.name() + ": general.type is " + io::quoted(kind) + ", not 'adapter'"};
  }
  NIBBLE_TRY(type, file.get_string("adapter.type"));
  if (type != "lora") {
    return Error{Errc::unsupported,
                 file.name() + ": an adapter of type " + io::quoted(type) + ", not 'lora'"};
  }
  NIBBLE_TRY(own, file.get_string("general.architecture"));
  if (own != architecture) {
    return Error{Errc::invalid_argument, file.name() + ": an adapter for models of architecture " +
                                             io::quoted(own) + ", this one is " +
                                             io::quoted(architecture)};
  }
  if (file.find("adapter.alora.invocation_tokens") != nullptr) {
    return Error{Errc::unsupported,
                 file.name() + ": an adapter that certain tokens switch on (aLoRA)"};
  }
  NIBBLE_TRY(alpha, file.get_f32_or("adapter.lora.alpha", 0));
  if (!is_finite(static_cast<double>(alpha))) {
    return Error{Errc::malformed, file.name() + ": adapter.lora.alpha is not finite"};
  }
  return alpha;
}

}  // namespace detail

// The adapter in `file`, for the model in `base` (whose tensors are not read). Errors: malformed,
// unsupported (another kind of adapter), invalid_argument (for another architecture), not_found (a
// tensor that the model does not have, a side of factors that is missing), io.
inline Result<Adapter> read_adapter(const io::Gguf& file, const io::Gguf& base) {
  return catch_out_of_memory([&]() -> Result<Adapter> {
    NIBBLE_TRY(architecture, base.get_string("general.architecture"));
    NIBBLE_TRY(alpha, detail::read_adapter_keys(file, architecture));
    Adapter adapter;
    adapter.architecture = architecture;
    for (const io::GgufTensor& tensor : file.tensors()) {
      const std::string_view name = tensor.name;
      constexpr std::size_t kSuffix = std::string_view(".lora_a").size();
      const bool is_a = name.ends_with(".lora_a"), is_b = name.ends_with(".lora_b");
      if (!is_a && !is_b) {
        if (name.ends_with("_norm.weight")) continue;
        return Error{Errc::unsupported, compress::place_in_messages(file, name) +
                                            ": not .lora_a or .lora_b of a tensor"};
      }
      const std::string stem(name.substr(0, name.size() - kSuffix));
      if (is_b) {
        NIBBLE_CHECK(file.tensor(stem + ".lora_a"));
        continue;
      }
      NIBBLE_TRY(matrix, detail::read_matrix(file, stem, alpha));
      Result<void> checked = detail::check_adapted(base, matrix);
      if (!checked) return std::move(checked).error().in(file.name());
      adapter.matrices.push_back(std::move(matrix));
    }
    if (!adapter.matrices.empty()) return adapter;
    return Error{Errc::malformed, file.name() + ": an adapter without factors"};
  });
}

// Writes an adapter as f32. The file has one alpha: where matrices have several, their B is scaled
// to that of the first. Errors: those of GgufWriter; invalid_argument (an adapter without matrices,
// or with learned rows; factors that do not have their shapes; an alpha that is 0 or not finite).
class AdapterFile {
 public:
  // The adapter must live until the file is written.
  static Result<AdapterFile> create(const Adapter& adapter) {
    return catch_out_of_memory([&]() -> Result<AdapterFile> {
      if (adapter.matrices.empty() || !adapter.is_low_rank()) {
        return Error{Errc::invalid_argument, "an adapter without matrices, or with learned rows"};
      }
      AdapterFile made;
      const float alpha = adapter.matrices[0].alpha;
      made.writer_.set("general.type", std::string_view("adapter"));
      made.writer_.set("general.architecture", std::string_view(adapter.architecture));
      made.writer_.set("adapter.type", std::string_view("lora"));
      made.writer_.set("adapter.lora.alpha", alpha);
      for (const AdapterMatrix& m : adapter.matrices) {
        NIBBLE_CHECK(detail::check_whole(m));
        made.add(m, alpha);
      }
      return made;
    });
  }

  // To add keys before it is written.
  io::GgufWriter& writer() noexcept { return writer_; }
  Result<void> write(const std::string& path) const { return writer_.write(path); }
  Result<std::vector<std::byte>> to_bytes() const { return writer_.to_bytes(); }

 private:
  void add(const AdapterMatrix& m, float alpha) {
    std::span<const float> b = m.b_values();
    if (m.alpha != alpha) {
      std::vector<Scalar<float>>& scaled = made_.emplace_back(m.b);
      for (auto& [x] : scaled) x *= m.alpha / alpha;
      b = {values(scaled), scaled.size()};
    }
    if (m.name != detail::kTokenEmbedding) {
      put(m.name + ".lora_a", m.a_values(), m.k);
      put(m.name + ".lora_b", b, m.rank);
      return;
    }
    const std::vector<Scalar<float>>& turned =
        made_.emplace_back(detail::transposed(m.a_values(), m.rank, m.k));
    put(m.name + ".lora_a", b, m.rank);
    put(m.name + ".lora_b", {values(turned), turned.size()}, m.rank);
  }
  void put(const std::string& name, std::span<const float> x, Index columns) {
    const auto k = static_cast<std::uint64_t>(columns);
    const std::uint64_t dims[] = {k, x.size() / k};
    writer_.add_tensor(name, io::GgmlType::f32, dims, std::as_bytes(x));
  }

  io::GgufWriter writer_;
  std::deque<std::vector<Scalar<float>>> made_;
};

// Writes the file `path`, completely or not at all. Errors: those of AdapterFile.
inline Result<void> write_adapter(const Adapter& adapter, const std::string& path) {
  NIBBLE_TRY(file, AdapterFile::create(adapter));
  return file.write(path);
}

}}}  // namespace nibble::NIBBLE_ABI::train
