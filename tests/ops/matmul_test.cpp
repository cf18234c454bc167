// SPDX-License-Identifier: Apache-2.0
#include "nibble/ops/matmul.hpp"

#include <cmath>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"
#include "kernels/matmul_reference.hpp"
#include "nibble/ops/quantize_rows.hpp"
#include "ops/threads.hpp"

namespace matmul_test {

using namespace nibble;
using namespace nibble_test;
using kernels::Epilogue;
using kernels::Silu;
using quant::F32;
using quant::Q4_0;
using quant::Q8_0;

namespace {

// Activations (m, k) in f32 and in 8 bits.
struct Input {
  using Rows = ops::QuantizedRows<32>;
  Index m, k;
  std::vector<float> x;
  AlignedBuffer memory;
  Rows rows;

  Input(Index n_rows, Index length, std::mt19937& random)
      : m(n_rows), k(length), x(size(n_rows * length)) {
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(random);
    auto allocated = AlignedBuffer::allocate(Rows::bytes_needed(m, k));
    REQUIRE(allocated.has_value());
    memory = std::move(*allocated);
    rows = Rows::over(memory.bytes(), m, k);
    quantize();
  }
  void quantize() {
    InlineExecutor here;
    ops::quantize_rows(here, MatrixView<const float>(x.data(), m, k), rows);
  }
  kernels::MatmulInput form() const {
    kernels::MatmulInput in;
    in.x = x.data();
    in.stride = k;
    in.codes = rows.codes;
    in.scales = rows.scales;
    in.code_sums = rows.code_sums;
    in.code_stride = Rows::code_stride(k);
    in.n_blocks = Rows::n_blocks(k);
    return in;
  }
  // The same numbers for the oracle in double.
  Activations quantized() const {
    Activations a;
    a.m = m;
    a.k = k;
    a.length = 32;
    a.codes.resize(size(m * a.code_stride()));
    for (Index row = 0; row < m; ++row) {
      std::copy_n(rows[row].codes, Rows::padded(k), a.codes.begin() + row * a.code_stride());
    }
    a.scales.assign(rows.scales, rows.scales + m * Rows::n_blocks(k));
    a.code_sums.assign(rows.code_sums, rows.code_sums + m * Rows::n_blocks(k));
    return a;
  }
};

template <class Format>
struct Layer {
  Weights<Format> w;
  AlignedBuffer memory;
  Layer(Index n, Index k, std::mt19937& random)
      : w(Weights<Format>::random(n, k, random)), memory(pack(w, n)) {}
  quant::PackedMatrix<Format> packed() const { return {memory.data(), w.n, w.k}; }
};

MatrixView<float> view(Output& out, Index m, Index n) {
  return {out.data(), {m, n}, {out.stride(), 1}};
}

}  // namespace

// Four products of one input as one step: other formats, other sizes, an epilogue with a residual,
// a gated product. 130 rows are three blocks of rows.
TEST_CASE("products over any number of workers are those of one thread, bit for bit") {
  constexpr Index m = 130, k = 160;
  constexpr Index n[] = {100, 33, 250, 47};
  std::mt19937 random(1);
  const Input input(m, k, random);
  const Layer<Q4_0> first(n[0], k, random);
  const Layer<Q8_0> second(n[1], k, random);
  const Layer<F32> third(n[2], k, random);
  const Layer<Q4_0> gate(n[3], k, random), up(n[3], k, random);
  std::vector<float> bias(size(n[1])), residual(size(m * n[1]));
  for (float& v : bias) v = static_cast<float>(random() % 100);
  for (float& v : residual) v = static_cast<float>(random() % 100);
  const kernels::EpilogueArgs operands{bias.data(), residual.data(), n[1]};

  for_each_target([&](simd::Target) {
    const auto products = [&](std::vector<Output>& outs) {
      outs.clear();
      for (const Index columns : n) outs.emplace_back(m, columns);
      return std::vector<ops::Product>{
          ops::product<Q4_0>(input.form(), first.packed(), view(outs[0], m, n[0])),
          ops::product<Q8_0, Epilogue<Silu, true, true>>(input.form(), second.packed(),
                                                         view(outs[1], m, n[1]), operands),
          ops::product<F32>(input.form(), third.packed(), view(outs[2], m, n[2])),
          ops::gated_product<Q4_0, Silu>(input.form(), gate.packed(), up.packed(),
                                         view(outs[3], m, n[3]))};
    };
    std::vector<Output> expected, outs;
    for (const ops::Product& p : products(expected)) p.kernel(p.args);
    // The kernels' own tests show that they are correct; this shows that these are their results:
    CHECK(count_faults(expected_product(input.quantized(), first.w), m, n[0], expected[0]) == 0);

    for (const Index n_workers : {1, 2, 3, 7}) {
      Threads threads(n_workers);
      for (std::size_t n_products = 1; n_products <= 4; ++n_products) {
        CAPTURE(n_workers);
        CAPTURE(n_products);
        const auto all = products(outs);
        ops::run(threads, {all.data(), n_products});
        for (std::size_t i = 0; i < 4; ++i) {
          CHECK(outs[i] == (i < n_products ? expected[i] : Output(m, n[i])));
        }
      }
      CHECK(threads.n_tasks_run >= 4 * 3 * n_workers);  // the work was split
    }
  });
}

TEST_CASE("products of few rows or columns, and of none") {
  std::mt19937 random(2);
  constexpr Index k = 32;
  for (const Index m : {0, 1, 2, 64, 65}) {
    for (const Index n : {0, 1, 16, 17, 33}) {
      const Input input(m, k, random);
      const Layer<Q4_0> layer(n, k, random);
      Output expected(m, n);
      const auto p = ops::product<Q4_0>(input.form(), layer.packed(), view(expected, m, n));
      if (m > 0 && n > 0) p.kernel(p.args);
      for (const Index n_workers : {1, 3}) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(n_workers);
        Threads threads(n_workers);
        Output out(m, n);
        ops::matmul(threads, input.form(), layer.packed(), view(out, m, n));
        CHECK(out == expected);
      }
    }
  }
  Threads threads(2);
  ops::run(threads, {});
  CHECK(threads.n_tasks_run == 0);
}

TEST_CASE("a product of some panels computes their columns and no others") {
  constexpr Index m = 70, n = 100, k = 64, kPanels = 7;
  std::mt19937 random(4);
  const Input input(m, k, random);
  const Layer<Q4_0> layer(n, k, random);
  Output whole(m, n);
  const auto all = ops::product<Q4_0>(input.form(), layer.packed(), view(whole, m, n));
  all.kernel(all.args);
  for (const Index n_workers : {1, 3}) {
    for (Index first = 0; first < kPanels; ++first) {
      for (Index end = first; end <= kPanels; ++end) {
        CAPTURE(n_workers);
        CAPTURE(first);
        CAPTURE(end);
        Output out(m, n), expected(m, n);
        for (Index row = 0; row < m; ++row) {
          for (Index column = 16 * first; column < std::min(n, 16 * end); ++column) {
            expected(row, column) = whole(row, column);
          }
        }
        auto some = ops::product<Q4_0>(input.form(), layer.packed(), view(out, m, n));
        some.args.first_panel = first;
        some.args.end_panel = end;
        Threads threads(n_workers);
        ops::run(threads, {&some, 1});
        CHECK(out == expected);
      }
    }
  }
}

TEST_CASE("tasks are whole, disjoint and enough for every worker") {
  ops::Product p;
  const Tuning usual;
  Tuning small;
  small.rows_per_task = 5;
  small.tasks_per_worker = 3;
  for (const Index m : {1, 63, 64, 65, 1000}) {
    for (const Index panels : {1, 2, 3, 7, 48, 2000}) {
      for (const Index n_workers : {1, 2, 7, 64}) {
        p.args.m = m;
        p.args.first_panel = panels % 4;
        p.args.end_panel = p.args.first_panel + panels;
        CAPTURE(m);
        CAPTURE(panels);
        CAPTURE(n_workers);
        for (const Tuning& tuning : {usual, small}) {
          const ops::detail::Cut cut = ops::detail::cut(p, n_workers, tuning);
          const Index rows = tuning.rows_per_task;
          CHECK(cut.row_blocks == (m + rows - 1) / rows);
          CHECK(cut.panels_per_task % 2 == 0);
          CHECK(cut.panel_tasks * cut.panels_per_task >= panels);
          CHECK((cut.panel_tasks - 1) * cut.panels_per_task < panels);
          CHECK(cut.n_tasks() >= std::min(n_workers, panels / 2));
        }
      }
    }
  }
}

namespace {

double decibels(double signal, double noise) { return 10 * std::log10(signal / noise); }

// Signal-to-noise ratios of a product with rounded weights and activations.
struct Noise {
  double activations = 0;  // relative to rounded weights and exact activations
  double total = 0;        // relative to exact weights and activations
};

// Rounds normally distributed weights and activations, multiplies them, and checks each value
// against |x - scale * code| <= scale * (1/2 + 127 * 2^-22) per activation
// (kernels/quantize_rows.hpp).
template <class Format>
Noise check_rounded_product() {
  constexpr Index m = 33, n = 128, k = 544;
  std::mt19937 random(3);
  const Input input(m, k, random);
  std::normal_distribution<float> normal;
  std::vector<float> exact_weights(size(n * k));
  for (float& v : exact_weights) v = normal(random);
  Weights<Format> w{n, k, {}};
  w.blocks.resize(size(n * w.row_blocks()));
  quant::quantize_row<Format>(exact_weights, w.blocks);
  const AlignedBuffer memory = pack(w, n);

  Threads threads(2);
  Output out(m, n);
  ops::matmul(threads, input.form(), quant::PackedMatrix<Format>{memory.data(), n, k},
              view(out, m, n));
  const Activations a = input.quantized();
  const Expected rounded = expected_product(a, w);
  CHECK(count_faults(rounded, m, n, out) == 0);

  int n_beyond_bound = 0;
  double signal = 0, activation_noise = 0, exact_signal = 0, total_noise = 0;
  for (Index row = 0; row < m; ++row) {
    for (Index column = 0; column < n; ++column) {
      double sum = 0, exact = 0, bound = rounded.tolerance_at(row, column);
      for (Index i = 0; i < k; ++i) {
        const double x = input.x[size(row * k + i)];
        const double weight = w.weight(column, i);
        sum += x * weight;
        exact += x * exact_weights[size(column * k + i)];
        bound +=
            a.scales[size(row * a.n_blocks() + i / 32)] * (0.5 + 127 * 0x1p-22) * std::abs(weight);
      }
      const double value = out(row, column);
      n_beyond_bound += !(std::abs(value - sum) <= bound);
      signal += sum * sum;
      activation_noise += (value - sum) * (value - sum);
      exact_signal += exact * exact;
      total_noise += (value - exact) * (value - exact);
    }
  }
  CHECK(n_beyond_bound == 0);
  return {decibels(signal, activation_noise), decibels(exact_signal, total_noise)};
}

}  // namespace

// The largest magnitude p of 32 normally distributed values has E[p^2] = 5.71. Steps are p / 127
// for 8 bits and p / 8 for Q4_0. Rounding with a step s has a variance of s^2 / 12; the peak has no
// error:
//   8 bits  10 log10(12 * 127^2 / 5.71 * 32 / 31) = 45.4 dB
//   Q4_0    10 log10(12 *   8^2 / 5.71 * 32 / 31) = 21.4 dB, less what clipping at +7 steps costs
// Errors of independent factors add as variances: with 8 bits for both, 42.4 dB.
TEST_CASE("rounding errors of quantized products are bounded, and as large as they should be") {
  const Noise q8 = check_rounded_product<Q8_0>();
  CHECK(q8.activations == doctest::Approx(45.4).epsilon(0.02));
  CHECK(q8.total == doctest::Approx(42.4).epsilon(0.02));
  const Noise q4 = check_rounded_product<Q4_0>();
  CHECK(q4.activations == doctest::Approx(45.4).epsilon(0.02));
  CHECK(q4.total > 20.4);
  CHECK(q4.total < 22.0);
}

}  // namespace matmul_test
