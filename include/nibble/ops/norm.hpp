// SPDX-License-Identifier: Apache-2.0
//
// RMSNorm and LayerNorm of the rows of a matrix. The type of the input says what comes before (a
// residual sum), the type of the output says what comes after (8-bit quantization). Formulas and
// error bounds: kernels/norm.hpp.
#pragma once

#include "nibble/kernels/norm.hpp"
#include "nibble/ops/quantize_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace ops {

// An input that is a sum, as in the residual connection of a transformer: x + addend is normalized,
// and also stored in `sum`. All three are (m, k); `sum` may be `x` or `addend`.
struct SumInput {
  MatrixView<const float> x;
  MatrixView<const float> addend;
  MatrixView<float> sum;
};

// An (m, k) matrix of floats, or a SumInput.
template <class T>
concept NormInput =
    std::convertible_to<const T&, MatrixView<const float>> || std::same_as<T, SumInput>;

// For inputs and outputs alike: the values of a row are contiguous, and rows may be any distance
// apart. The float output may be the input (or its addend or sum); a quantized output overlaps
// nothing. `weight` and `bias` are (k) and contiguous; an empty view stands for ones or zeros. eps
// > 0, or constant rows give NaN. Rows are split over the executor's workers.

namespace detail {

template <class Input>
inline constexpr bool kIsSum = std::same_as<Input, SumInput>;

inline bool is_matrix_of_rows(MatrixView<const float> v, Index m, Index k) noexcept {
  return v.extent(0) == m && v.extent(1) == k && (v.stride(1) == 1 || k <= 1);
}
inline bool is_output(MatrixView<float> out, Index m, Index k) noexcept {
  return is_matrix_of_rows(out, m, k);
}
template <int kBlock>
bool is_output(const QuantizedRows<kBlock>& out, Index m, Index k) noexcept {
  return out.m == m && out.k == k;
}
inline float* output_row(MatrixView<float> out, Index row) noexcept {
  return out.data() + row * out.stride(0);
}
template <int kBlock>
kernels::QuantizedRow output_row(const QuantizedRows<kBlock>& out, Index row) noexcept {
  return out[row];
}
inline const float* operand(VectorView<const float> v, [[maybe_unused]] Index k) noexcept {
  NIBBLE_ASSERT(v.data() == nullptr || (v.extent(0) == k && v.is_contiguous()));
  return v.data();
}

// Runs Kernel on every row; `args` holds what all rows have in common.
template <class Kernel, class Output>
void norm_rows(Executor& executor, MatrixView<const float> x, const SumInput* sum,
               kernels::NormArgs args, const Output& out) noexcept {
  const Index m = x.extent(0), k = x.extent(1);
  NIBBLE_ASSERT(k >= 1 && args.eps >= 0.0f);
  NIBBLE_ASSERT(is_matrix_of_rows(x, m, k) && is_output(out, m, k));
  NIBBLE_ASSERT(sum == nullptr ||
                (is_matrix_of_rows(sum->addend, m, k) && is_matrix_of_rows(sum->sum, m, k)));
  args.k = k;
  const auto kernel = simd::kernel<Kernel>();
  for_rows(executor, m, k, [&](Index row) {
    kernels::NormArgs of_row = args;
    of_row.first_index = row * k;
    of_row.x = x.data() + row * x.stride(0);
    if (sum != nullptr) {
      of_row.addend = sum->addend.data() + row * sum->addend.stride(0);
      of_row.sum = sum->sum.data() + row * sum->sum.stride(0);
    }
    kernel(of_row, output_row(out, row));
  });
}

template <class Kernel, class Input, class Output>
void norm(Executor& executor, const Input& input, VectorView<const float> weight,
          VectorView<const float> bias, float eps, const kernels::Dropout& dropout,
          const Output& out) noexcept {
  const SumInput* sum = nullptr;
  MatrixView<const float> x;
  if constexpr (kIsSum<Input>) {
    sum = &input;
    x = input.x;
  } else {
    x = input;
  }
  kernels::NormArgs args;
  args.eps = eps;
  args.weight = operand(weight, x.extent(1));
  args.bias = operand(bias, x.extent(1));
  args.dropout = dropout;
  norm_rows<Kernel>(executor, x, sum, args, out);
}

}  // namespace detail

// out = x / sqrt(mean(x^2) + eps) * weight, per row.
template <NormInput Input>
void rms_norm(Executor& executor, const Input& x, VectorView<const float> weight, float eps,
              MatrixView<float> out) noexcept {
  detail::norm<kernels::RmsNorm<detail::kIsSum<Input>>>(executor, x, weight, {}, eps, {}, out);
}
template <NormInput Input, int kBlock>
void rms_norm(Executor& executor, const Input& x, VectorView<const float> weight, float eps,
              const QuantizedRows<kBlock>& out) noexcept {
  using Kernel = kernels::RmsNormQuantize<kBlock, detail::kIsSum<Input>>;
  detail::norm<Kernel>(executor, x, weight, {}, eps, {}, out);
}

// RMSNorm of each head of a row, in place. `x` is (m, n_heads * head_dim), `weight` (head_dim).
NIBBLE_LAZY void rms_norm_heads(Executor& executor, MatrixView<float> x, Index head_dim,
                                VectorView<const float> weight, float eps) noexcept {
  NIBBLE_ASSERT(head_dim >= 1 && x.extent(1) % head_dim == 0 && x.stride(1) == 1);
  kernels::NormArgs args;
  args.k = head_dim;
  args.eps = eps;
  args.weight = detail::operand(weight, head_dim);
  const auto kernel = simd::kernel<kernels::RmsNorm<>>();
  for_rows(executor, x.extent(0), x.extent(1), [&](Index row) {
    for (Index i = 0; i < x.extent(1); i += head_dim) {
      kernels::NormArgs of_head = args;
      of_head.x = x.data() + row * x.stride(0) + i;
      kernel(of_head, x.data() + row * x.stride(0) + i);
    }
  });
}

// out = activation((x - mean) / sqrt(variance + eps) * weight + bias), per row.
template <class Activation = kernels::Identity, NormInput Input>
void layer_norm(Executor& executor, const Input& x, VectorView<const float> weight,
                VectorView<const float> bias, float eps, MatrixView<float> out) noexcept {
  using Kernel = kernels::LayerNorm<Activation, false, detail::kIsSum<Input>>;
  detail::norm<Kernel>(executor, x, weight, bias, eps, {}, out);
}
template <NormInput Input, int kBlock>
void layer_norm(Executor& executor, const Input& x, VectorView<const float> weight,
                VectorView<const float> bias, float eps,
                const QuantizedRows<kBlock>& out) noexcept {
  using Kernel = kernels::LayerNormQuantize<kBlock, detail::kIsSum<Input>>;
  detail::norm<Kernel>(executor, x, weight, bias, eps, {}, out);
}

// The same, followed by dropout: element (i, j) is number i * k + j for `dropout`.
template <class Activation = kernels::Identity, NormInput Input>
void layer_norm(Executor& executor, const Input& x, VectorView<const float> weight,
                VectorView<const float> bias, float eps, const kernels::Dropout& dropout,
                MatrixView<float> out) noexcept {
  using Kernel = kernels::LayerNorm<Activation, true, detail::kIsSum<Input>>;
  detail::norm<Kernel>(executor, x, weight, bias, eps, dropout, out);
}

}}}  // namespace nibble::NIBBLE_ABI::ops
