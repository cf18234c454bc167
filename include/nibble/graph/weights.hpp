// SPDX-License-Identifier: Apache-2.0
//
// What a slot of an expression stands for when it runs: packed matrices and vectors in memory that
// somebody else owns (a loaded model, a mapped file, an array in flash).
#pragma once

#include <span>
#include <type_traits>

#include "nibble/quant/format.hpp"
#include "nibble/quant/packed.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// A matrix (n, k) in the packed layout of its format, or a vector of k floats (n = 0).
struct Weight {
  quant::Format format = quant::Format::f32;
  Index n = 0;
  Index k = 0;
  const std::byte* data = nullptr;  // 64-byte aligned; null where a model has no such weights

  explicit operator bool() const noexcept { return data != nullptr; }
  const float* vector() const noexcept {
    NIBBLE_ASSERT(n == 0 && format == quant::Format::f32);
    return reinterpret_cast<const float*>(data);
  }
  template <class F>
  quant::PackedMatrix<F> matrix() const noexcept {
    return {data, n, k};
  }
};

// All weights of a model: a row of slots for what stands outside of the layers, then a row for each
// layer. Slots are any enumeration.
class WeightTable {
 public:
  WeightTable() noexcept = default;
  WeightTable(std::span<const Weight> weights, std::size_t n_slots) noexcept
      : weights_(weights), n_slots_(n_slots) {}

  // layer −1: outside of the layers.
  template <class Slot>
  const Weight& at(Slot slot, Index layer) const noexcept {
    const auto row = static_cast<std::size_t>(layer + 1);
    NIBBLE_ASSERT((row + 1) * n_slots_ <= weights_.size());
    return weights_[row * n_slots_ + static_cast<std::size_t>(slot)];
  }

 private:
  std::span<const Weight> weights_;
  std::size_t n_slots_ = 0;
};

// The weight formats that a program can run; others are refused when a model is loaded, and their
// kernels are not compiled.
template <class... Fs>
struct FormatList {
  static constexpr bool kHasFloats = (!quant::BlockFormat<Fs> || ...);
  static constexpr bool kHasBlocks = (quant::BlockFormat<Fs> || ...);

  static constexpr bool contains(quant::Format format) noexcept {
    return ((quant::kFormatOf<Fs> == format) || ...);
  }
  // Calls f(F{}) for the format's type F. The format must be in the list.
  template <class Function>
  static void visit(quant::Format format, Function&& f) {
    NIBBLE_ASSERT(contains(format));
    (void)((quant::kFormatOf<Fs> == format ? (f(Fs{}), true) : false) || ...);
  }
};

struct AllFormats
    : FormatList<quant::F32, quant::F16, quant::BF16, quant::Q8_0, quant::Q4_0, quant::Q4_1> {};

}}}  // namespace nibble::NIBBLE_ABI::graph
