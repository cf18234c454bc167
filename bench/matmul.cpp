// SPDX-License-Identifier: Apache-2.0
//
// Matrix products: activations (m, k), already converted to what the format of the weights needs,
// times packed weights (n, k).
#include "nibble/ops/matmul.hpp"

#include "bench/case.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/quant/format.hpp"

namespace bench {

// A custom format: blocks of 128 weights, 4.125 bits per weight.
using Q4Block128 = nibble::quant::Blocks<4, 128, nibble::f16, nibble::quant::ZeroPoint::symmetric>;

}  // namespace bench

template <>
inline constexpr nibble::quant::Format nibble::quant::kFormatOf<bench::Q4Block128> = Format{128};

namespace bench {
namespace {

using nibble::kernels::ActivationScales;
using nibble::quant::BlockFormat;

// Copies of a packed matrix. They repeat one panel of random weights; no kernel can notice.
template <class Format>
struct Weights {
  using Packed = nibble::quant::Packed<Format>;

  Weights(Index rows, Index columns, Index copies, Pages pages)
      : n(rows),
        k(columns),
        n_copies(copies),
        memory(static_cast<std::size_t>(copies * Packed::bytes(rows, columns)), pages) {
    const auto size = static_cast<std::size_t>(k);
    const std::size_t row_bytes = *nibble::quant::row_bytes<Format>(size);
    std::vector<float> row(size);
    Memory sources(row_bytes * 16, Pages::small);
    Noise noise;
    for (std::size_t r = 0; r < 16; ++r) {
      noise.fill(row.data(), k);
      const auto to = sources.bytes().subspan(r * row_bytes, row_bytes);
      if (!nibble::quant::row_from_f32<Format>(row, to)) std::abort();  // the sizes are our own
    }
    if constexpr (BlockFormat<Format>) {
      Packed::pack_panel(sources.as<typename Format::Block>(), 16, k, memory.data());
    } else {
      Packed::pack_panel(sources.data(), 16, k, memory.data());
    }
    const auto panel = static_cast<std::size_t>(Packed::panel_bytes(k));
    for (std::size_t at = panel; at < memory.size(); at += panel) {
      std::memcpy(memory.data() + at, memory.data(), panel);
    }
  }

  nibble::quant::PackedMatrix<Format> copy(Index i) const {
    return {memory.data() + i * Packed::bytes(n, k), n, k};
  }

  Index n, k, n_copies;
  Memory memory;
};

// The length of the blocks of activations.
template <class Format>
constexpr int kBlock = static_cast<int>(nibble::quant::Packed<Format>::kStepLength);

// The activations of a product, as Format needs them.
template <class Format, ActivationScales kScales>
struct Input {
  Input(Index m, Index k, Pages pages) : x(m, k, pages) {
    if constexpr (std::is_same_v<Format, nibble::quant::I8Channel>) {
      const auto rows = quantize<nibble::ops::QuantizedRows<0>>(pages);
      input = nibble::ops::matmul_input(rows);
    } else if constexpr (!BlockFormat<Format>) {
      if constexpr (std::is_same_v<Format, nibble::quant::BF16>) {
        using Rows = nibble::ops::RoundedRows;
        made = Memory(Rows::bytes_needed(m, k), pages);
        const Rows rows = Rows::over(made.bytes(), m, k);
        nibble::InlineExecutor alone;
        nibble::ops::round_rows(alone, x.in(), rows);
        input = rows.input();
      }
      input.x = x.view.data();
      input.stride = k;
    } else if constexpr (kScales == ActivationScales::per_row) {
      input = quantize<nibble::ops::RowScaledRows<kBlock<Format>>>(pages).input();
    } else {
      const auto rows = quantize<nibble::ops::QuantizedRows<kBlock<Format>>>(pages);
      input = nibble::ops::matmul_input(rows);
    }
  }
  // The input for the active target.
  nibble::kernels::MatmulInput form() const {
    nibble::kernels::MatmulInput in = input;
    if (!nibble::ops::takes_rounded_rows()) in.rounded = nullptr;
    return in;
  }
  static double bytes(Index m, Index k) {
    if constexpr (BlockFormat<Format>) {
      return static_cast<double>(nibble::ops::QuantizedRows<kBlock<Format>>::bytes_needed(m, k));
    } else {
      return static_cast<double>(m * k) * sizeof(float);
    }
  }

  Floats x;
  Memory made;
  nibble::kernels::MatmulInput input;

 private:
  template <class Rows>
  Rows quantize(Pages pages) {
    const Index m = x.view.extent(0), k = x.view.extent(1);
    made = Memory(Rows::bytes_needed(m, k), pages);
    const Rows rows = Rows::over(made.bytes(), m, k);
    nibble::InlineExecutor alone;
    nibble::ops::quantize_rows(alone, x.in(), rows);
    return rows;
  }
};

// The fastest arithmetic that the weights of a format can use.
template <class Format>
constexpr Arithmetic arithmetic_of() {
  if constexpr (nibble::quant::LevelFormat<Format>) {
    return Format::kLevelBits < 8 ? Arithmetic::int4 : Arithmetic::int8;
  } else if constexpr (BlockFormat<Format> || nibble::quant::ChannelFormat<Format>) {
    return Format::kBits < 8 ? Arithmetic::int4 : Arithmetic::int8;
  } else {
    return std::is_same_v<Format, nibble::quant::BF16> ? Arithmetic::bf16 : Arithmetic::f32;
  }
}

template <class Format, ActivationScales kScales>
Body prepare(const std::shared_ptr<Weights<Format>>& weights, Index m, Pages pages,
             const nibble::Tuning& tuning) {
  struct Data {
    std::shared_ptr<Weights<Format>> weights;
    Input<Format, kScales> input;
    Floats out;
  };
  auto data = std::make_shared<Data>(
      Data{weights, Input<Format, kScales>(m, weights->k, pages), Floats(m, weights->n, pages)});
  return [data, tuning, copy = Index{0}](nibble::Executor& executor) mutable {
    nibble::ops::matmul<Format, nibble::kernels::Epilogue<>, kScales>(
        executor, data->input.form(), data->weights->copy(copy), data->out.view, {}, tuning);
    copy = (copy + 1) % data->weights->n_copies;
  };
}

// The weights, shared by neighbouring cases with the same ones. Created once, freed with the last
// use.
template <class Format>
std::shared_ptr<Weights<Format>> shared_weights(Index n, Index k, Index copies, Pages pages) {
  static std::weak_ptr<Weights<Format>> last;
  std::shared_ptr<Weights<Format>> weights = last.lock();
  if (weights == nullptr || weights->n != n || weights->k != k || weights->n_copies != copies) {
    weights = std::make_shared<Weights<Format>>(n, k, copies, pages);
    last = weights;
  }
  return weights;
}

template <class Format>
constexpr const char* kName = nibble::quant::to_string(nibble::quant::kFormatOf<Format>);
template <>
constexpr const char* kName<Q4Block128> = "q4_block128";

// The format's name gets the suffix "_row" if activations have one scale per row.
template <class Format, ActivationScales kScales = ActivationScales::per_block>
void add(const CaseOptions& options, Index n, Index k, std::vector<Case>& cases) {
  const double weight_bytes = static_cast<double>(nibble::quant::Packed<Format>::bytes(n, k));
  const bool fits_l3 = weight_bytes < 0.9 * static_cast<double>(options.l3);
  const bool square = n == k;
  for (const bool cold : {true, false}) {
    for (const Index m : {1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 64, 512}) {
      if (cold ? m > 64 : m <= 64 && !fits_l3) continue;
      Case c;
      c.kernel = "matmul";
      c.format = kName<Format>;
      if (kScales == ActivationScales::per_row) c.format += "_row";
      c.shape = "m" + std::to_string(m) + "_n" + std::to_string(n) + "_k" + std::to_string(k);
      c.data = cold ? "cold" : "warm";
      c.quick = square && (cold ? m == 1 || m == 8 : m == 512);
      c.work.bytes_read = weight_bytes + Input<Format, kScales>::bytes(m, k);
      c.work.bytes_written = static_cast<double>(m * n) * sizeof(float);
      c.work.footprint = cold ? kCold : c.work.bytes();
      c.work.ops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
      c.work.arithmetic = arithmetic_of<Format>();
      const Index copies = cold ? options.copies(weight_bytes) : 1;
      c.prepare = [=, pages = options.pages, tuning = options.tuning] {
        return prepare<Format, kScales>(shared_weights<Format>(n, k, copies, pages), m, pages,
                                        tuning);
      };
      cases.push_back(std::move(c));
    }
  }
}

}  // namespace

void add_matmul(const CaseOptions& options, std::vector<Case>& cases) {
  constexpr std::array<std::array<Index, 2>, 3> kShapes = {
      {{4096, 4096}, {5632, 2048}, {2048, 5632}}};
  for (const auto [n, k] : kShapes) {
    add<nibble::quant::Q4_0>(options, n, k, cases);
    add<nibble::quant::Q4_0, ActivationScales::per_row>(options, n, k, cases);
    add<Q4Block128>(options, n, k, cases);
    add<nibble::quant::Q4_1>(options, n, k, cases);
    add<nibble::quant::Q5_0>(options, n, k, cases);
    add<nibble::quant::Q4_K>(options, n, k, cases);
    add<nibble::quant::Q5_K>(options, n, k, cases);
    add<nibble::quant::Q6_K>(options, n, k, cases);
    add<nibble::quant::Q3_H>(options, n, k, cases);
    add<nibble::quant::Q2_H>(options, n, k, cases);
    add<nibble::quant::Q2_K>(options, n, k, cases);
    add<nibble::quant::Q3_K>(options, n, k, cases);
    add<nibble::quant::TQ2_0>(options, n, k, cases);
    add<nibble::quant::Q2_0>(options, n, k, cases);
    add<nibble::quant::Q1_0>(options, n, k, cases);
    add<nibble::quant::IQ4_NL>(options, n, k, cases);
    add<nibble::quant::IQ4_XS>(options, n, k, cases);
    add<nibble::quant::MXFP4>(options, n, k, cases);
    add<nibble::quant::Q8_0>(options, n, k, cases);
    add<nibble::quant::I8Channel>(options, n, k, cases);
    add<nibble::quant::BF16>(options, n, k, cases);
    add<nibble::quant::F16>(options, n, k, cases);
    add<nibble::quant::F32>(options, n, k, cases);
  }
}

}  // namespace bench
