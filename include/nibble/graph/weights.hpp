// SPDX-License-Identifier: Apache-2.0
//
// What the slots of an expression stand for in a run: packed matrices and vectors in memory that
// somebody else owns (a loaded model, a mapped file, an array in flash). A weight carries the
// operations of its format, so that other code need not know which formats exist.
#pragma once

#include <algorithm>
#include <span>
#include <string>

#include "nibble/kernels/matmul.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/ops/embedding.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/packed.hpp"
#include "nibble/quant/static_scale.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// The length of the blocks of 8-bit codes of activations. The blocks of weights that are multiplied
// by them must have the same length.
inline constexpr int kActivationBlock = 32;

// How products read the rows of their input: as f32; as 8-bit codes with a scale for each block of
// kActivationBlock, with one for each row, or with one that is known before, without and with a
// zero point.
enum class InputKind : unsigned char { floats, blocks, rows, fixed, affine };

// The operations on the weights of a format.
struct FormatOps {
  quant::Format format;
  InputKind input;  // floats, blocks or rows; those of rows take known scales too (Weight::input)
  // The product's kernel (kernels::Matmul) for the active target.
  kernels::MatmulFunction* (*matmul)() noexcept;
  // out (k) = row `row` of a packed matrix as f32.
  void (*row)(const std::byte* data, Index n, Index k, Index row, float* out) noexcept;
  // The packing kernel (kernels::PackPanel) for the active target, and the sizes of its output.
  kernels::PackPanelFunction* (*pack_panel)() noexcept;
  Index (*packed_bytes)(Index n, Index k) noexcept;
  Index (*panel_bytes)(Index k) noexcept;
  // Bytes of a row as it is stored in files. Errors: as quant::row_bytes.
  Result<std::size_t> (*row_bytes)(std::size_t k);
  // Whether there can be a matrix (n, k): rows are whole blocks and not too long. Errors:
  // invalid_argument, limit.
  Result<void> (*check_shape)(Index n, Index k);
  // InputKind::affine: the product's kernel.
  kernels::MatmulFunction* (*affine_matmul)() noexcept = nullptr;
  // Formats whose packed size depends on the weights (quant/sparse.hpp); null for others. They have
  // no pack_panel, packed_bytes and panel_bytes, and row_bytes is an error. The size that packed
  // data state, and whether data from outside are a packed matrix (n, k).
  Index (*data_bytes)(const std::byte* data) noexcept = nullptr;
  Result<void> (*check_data)(std::span<const std::byte> data, Index n, Index k) = nullptr;
};

namespace detail {

template <class F>
void format_row(const std::byte* data, Index n, Index k, Index row, float* out) noexcept {
  ops::packed_row(quant::PackedMatrix<F>{data, n, k}, row, out);
}

template <class F>
Result<void> check_shape(Index n, Index k) {
  if constexpr (quant::SparseFormat<F>) {
    if (quant::Packed<F>::has_shape(n, k)) return ok();
    return Error{Errc::invalid_argument, std::string("no matrix of ") + to_text(n) + " rows of " +
                                             to_text(k) + " weights can be in " +
                                             to_string(quant::kFormatOf<F>)};
  } else {
    NIBBLE_CHECK(quant::row_bytes<F>(static_cast<std::size_t>(k)));
    if (n >= 1 && k >= 1) return ok();
    return Error{Errc::invalid_argument,
                 "a matrix of " + to_text(n) + " rows of " + to_text(k) + " weights"};
  }
}

template <class F>
Result<std::size_t> no_rows(std::size_t) {
  return Error{Errc::unsupported, std::string("weights in ") + to_string(quant::kFormatOf<F>) +
                                      " are whole packed matrices, not rows"};
}

}  // namespace detail

// The operations of a format; using them compiles its kernels. A program's own format needs a
// Format value (quant::kFormatOf).
template <class F>
NIBBLE_HIDDEN inline constexpr FormatOps kFormatOps = [] {
  if constexpr (quant::BlockFormat<F>) {
    static_assert(quant::Packed<F>::kStepLength == kActivationBlock,
                  "nibble: formats in graphs have blocks of 32 weights, since activations are "
                  "quantized in blocks of 32");
  }
  if constexpr (quant::SparseFormat<F>) {
    FormatOps ops{};
    ops.format = quant::kFormatOf<F>;
    ops.input = InputKind::blocks;
    ops.matmul = &simd::kernel<kernels::Matmul<F>>;
    ops.row = &detail::format_row<F>;
    ops.row_bytes = &detail::no_rows<F>;
    ops.check_shape = &detail::check_shape<F>;
    ops.data_bytes = &quant::Packed<F>::bytes;
    ops.check_data = &quant::Packed<F>::check_matrix;
    return ops;
  } else {
    FormatOps ops{quant::kFormatOf<F>,
                  quant::BlockFormat<F> ? InputKind::blocks : InputKind::floats,
                  &simd::kernel<kernels::Matmul<F>>,
                  &detail::format_row<F>,
                  &simd::kernel<kernels::PackPanel<F>>,
                  &quant::Packed<F>::bytes,
                  &quant::Packed<F>::panel_bytes,
                  &quant::row_bytes<F>,
                  &detail::check_shape<F>};
    if constexpr (quant::ChannelFormat<F>) {
      ops.input = InputKind::rows;
      ops.affine_matmul = &simd::kernel<kernels::Matmul<F, kernels::ActivationScales::affine>>;
    }
    return ops;
  }
}();

struct Factors;

// A matrix (n, k) in the packed layout of its format, or n_experts such matrices, contiguous (not
// of sparse formats), or a vector of k floats (n = 0), or n_experts such vectors. A matrix for
// products may have factors of low rank beside it (a correction) or instead of it (then data and
// ops are null).
struct Weight {
  const FormatOps* ops = nullptr;  // of a matrix
  Index n = 0;
  Index k = 0;
  const std::byte* data = nullptr;  // 64-byte aligned; null if the model has no such weights
  Index n_experts = 1;
  // The range of the product's input, if it is known before; for formats with InputKind::rows.
  // Without one each row gets a scale when it is computed.
  quant::StaticScale input = {};
  const Factors* factors = nullptr;  // of a product; not owned

  // Whether there is a matrix beside the factors.
  bool has_base() const noexcept { return data != nullptr; }
  explicit operator bool() const noexcept { return data != nullptr || factors != nullptr; }
  bool is_vector() const noexcept { return n == 0; }
  const float* vector() const noexcept {
    NIBBLE_ASSERT(is_vector());
    return reinterpret_cast<const float*>(data);
  }
  // Without the factors.
  Index bytes() const noexcept {
    if (is_vector()) return n_experts * k * Index{sizeof(float)};
    if (!has_base()) return 0;
    if (ops->data_bytes != nullptr) return ops->data_bytes(data);
    return n_experts * ops->packed_bytes(n, k);
  }
  // One of the n_experts matrices or vectors, as a weight.
  Weight expert(Index index) const noexcept {
    NIBBLE_ASSERT(index >= 0 && index < n_experts);
    if (is_vector()) return {ops, n, k, data + index * k * Index{sizeof(float)}};
    if (ops->data_bytes != nullptr) return *this;
    return {ops, n, k, data + index * ops->packed_bytes(n, k), 1, input};
  }
};

// Two matrices of low rank r whose product is added to a weight (n, k), in any formats:
// y = base · x + scale · A · (B · x).
struct Factors {
  Weight a;  // (n, r)
  Weight b;  // (r, k)
  float scale = 1;

  Index rank() const noexcept { return b.n; }
};

// Whether products with rows of k 8-bit weights can read an input of this range (or with scales of
// its own: no range). Errors: invalid_argument (a range that is not usable), limit (rows so long
// that sums might not fit).
inline Result<void> check_row_input(Index k, const quant::StaticScale& input) {
  using L = quant::Packed<quant::I8Channel>;
  const Index longest = input.is_unsigned ? L::kMaxAffineK : L::kMaxK;
  if (k > longest) {
    return Error{Errc::limit, "rows of " + to_text(k) + " 8-bit weights; sums of more than " +
                                  to_text(longest) + " products might not fit 32 bits"};
  }
  if (input == quant::StaticScale() || quant::is_usable(input)) return ok();
  return Error{Errc::invalid_argument,
               "an input scale of " + to_text(static_cast<double>(input.scale)) +
                   " with zero point " + to_text(input.zero_point) +
                   "; the scale must be positive and finite, the zero point from 0 to 255"};
}

// The shape of weights as messages name it: "(n, k)", "(n_experts, n, k)", of a vector "(k)".
inline std::string shape_text(Index n, Index k, Index n_experts = 1) {
  std::string text = "(";
  if (n_experts > 1) text.append(to_text(n_experts)).append(", ");
  if (n > 0) text.append(to_text(n)).append(", ");
  return text.append(to_text(k)).append(")");
}

// A packed matrix of format F as a weight.
template <class F>
constexpr Weight weight_of(const quant::PackedMatrix<F>& matrix,
                           const quant::StaticScale& input = {}) noexcept {
  return {&kFormatOps<F>, matrix.n, matrix.k, matrix.data, 1, input};
}
// A vector as a weight; `values` must be aligned to 64 bytes.
inline Weight weight_of(VectorView<const float> values) noexcept {
  return {nullptr, 0, values.extent(0), reinterpret_cast<const std::byte*>(values.data()), 1, {}};
}

// Packs `rows`, whole panels of the matrix `w` (or its last rows) that begin with row `first_row`,
// to their place in `out`, w.bytes() bytes. The rows are in the format's layout of files.
inline void pack_panels(const Weight& w, std::span<const std::byte> rows, Index bytes_of_row,
                        Index first_row, std::byte* out) noexcept {
  const Index n = static_cast<Index>(rows.size()) / bytes_of_row;
  kernels::PackPanelFunction* const pack_panel = w.ops->pack_panel();
  const Index panel_bytes = w.ops->panel_bytes(w.k);
  for (Index row = 0; row < n; row += quant::kPanelRows) {
    pack_panel(rows.data() + row * bytes_of_row, (std::min)(quant::kPanelRows, n - row), w.k,
               out + (first_row + row) / quant::kPanelRows * panel_bytes);
  }
}

// All weights of a model: a row of slots for what is outside of the layers, then a row for each
// layer. Slots are any enumeration.
class WeightTable {
 public:
  WeightTable() noexcept = default;
  WeightTable(std::span<const Weight> weights, std::size_t n_slots) noexcept
      : weights_(weights), n_slots_(n_slots) {}

  std::size_t size() const noexcept { return weights_.size(); }
  std::size_t n_slots() const noexcept { return n_slots_; }
  Index n_layers() const noexcept {
    return n_slots_ == 0 ? 0 : static_cast<Index>(weights_.size() / n_slots_) - 1;
  }
  // Whether it is the same table, in the same memory.
  bool is_same(WeightTable other) const noexcept {
    return weights_.data() == other.weights_.data() && n_slots_ == other.n_slots_;
  }
  // Whether there is a place for the weights of a slot in a layer.
  template <class Slot>
  bool has(Slot slot, Index layer) const noexcept {
    return static_cast<std::size_t>(slot) < n_slots_ && layer >= -1 && layer < n_layers();
  }
  // layer −1: outside of the layers.
  template <class Slot>
  const Weight& at(Slot slot, Index layer) const noexcept {
    const auto row = static_cast<std::size_t>(layer + 1);
    NIBBLE_ASSERT(has(slot, layer));
    return weights_[row * n_slots_ + static_cast<std::size_t>(slot)];
  }

  // The weights of all layers, without those outside of layers.
  std::span<const Weight> layers() const noexcept {
    return weights_.subspan((std::min)(n_slots_, weights_.size()));
  }

 private:
  std::span<const Weight> weights_;
  std::size_t n_slots_ = 0;
};

// The weight formats that a program can run; others are refused when a model is loaded, and their
// kernels are not compiled.
template <class... Fs>
struct FormatList {
  NIBBLE_HIDDEN static constexpr const FormatOps* kOps[] = {&kFormatOps<Fs>...};
};

// The same as a value, for a store of weights.
using FormatTable = std::span<const FormatOps* const>;

// The operations of `format`, or null if it is not in the table.
inline const FormatOps* find(FormatTable formats, quant::Format format) noexcept {
  for (const FormatOps* ops : formats) {
    if (ops->format == format) return ops;
  }
  return nullptr;
}

// The formats of the files that people have: what load() compiles if a program does not say more.
struct CommonFormats
    : FormatList<quant::F32, quant::F16, quant::BF16, quant::Q8_0, quant::Q4_0, quant::Q4_1,
                 quant::Q5_0, quant::Q5_1, quant::Q4_K, quant::Q5_K, quant::Q6_K> {};

// All formats of files that nibble knows: also those of few bits, sparse ones, and INT8 by
// channels.
#define NIBBLE_ROW(Type, name, file_type) quant::Type,
struct AllFormats : FormatList<NIBBLE_GGUF_FORMATS(NIBBLE_ROW) NIBBLE_SPARSE_FORMATS(NIBBLE_ROW)
                                   quant::I8Channel> {};
#undef NIBBLE_ROW

}}}  // namespace nibble::NIBBLE_ABI::graph
