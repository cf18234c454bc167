// SPDX-License-Identifier: Apache-2.0
//
// Norms, alone and fused with the operations before and after them, and quantization of
// activations. One row is in L1, 16 rows in L2, 512 (or as many as fit) in L3.
#include "nibble/ops/norm.hpp"

#include "bench/case.hpp"

namespace bench {
namespace {

using nibble::Executor;
using nibble::MatrixView;
using nibble::ops::QuantizedRows;

constexpr Index kWidth = 4096;
constexpr float kEps = 1e-5f;
constexpr int kBlock = 32;

struct Data {
  Data(Index m, Pages pages)
      : x(m, kWidth, pages),
        addend(m, kWidth, pages),
        sum(m, kWidth, pages),
        out(m, kWidth, pages),
        weight(1, kWidth, pages),
        bias(1, kWidth, pages),
        codes(QuantizedRows<kBlock>::bytes_needed(m, kWidth), pages),
        codes_of_row(QuantizedRows<0>::bytes_needed(m, kWidth), pages) {}

  nibble::VectorView<const float> w() const { return weight.in()[0]; }
  nibble::VectorView<const float> b() const { return bias.in()[0]; }
  QuantizedRows<kBlock> quantized() const {
    return QuantizedRows<kBlock>::over(codes.bytes(), x.view.extent(0), kWidth);
  }
  QuantizedRows<0> quantized_by_row() const {
    return QuantizedRows<0>::over(codes_of_row.bytes(), x.view.extent(0), kWidth);
  }
  nibble::ops::SumInput sum_input() const { return {x.in(), addend.in(), sum.view}; }

  Floats x, addend, sum, out, weight, bias;
  Memory codes, codes_of_row;
};

// Cost per element: floats read and written, bytes written as codes, and operations (those of the
// formula; a multiply-add counts two).
struct Cost {
  double read = 1;
  double written = 1;
  double code_bytes = 0;
  double ops = 0;
};
constexpr double kCodeBytes = 1 + 8.0 / kBlock;  // including scale and sum

template <class Run>
void add(const char* kernel, const Cost& cost, const CaseOptions& options, std::vector<Case>& cases,
         Run run) {
  const double row_bytes = kWidth * ((cost.read + cost.written) * sizeof(float) + cost.code_bytes);
  for (const Index m : {Index{1}, Index{16}, options.rows_in_l3(row_bytes)}) {
    Case c;
    c.kernel = kernel;
    c.format = "f32";
    c.shape = "m" + std::to_string(m) + "_k" + std::to_string(kWidth);
    c.data = "warm";
    c.quick = m > 16;
    const auto n = static_cast<double>(m * kWidth);
    c.work.bytes_read = n * cost.read * sizeof(float);
    c.work.bytes_written = n * (cost.written * sizeof(float) + cost.code_bytes);
    c.work.footprint = c.work.bytes();
    c.work.ops = n * cost.ops;
    c.prepare = [=, pages = options.pages]() -> Body {
      auto data = std::make_shared<Data>(m, pages);
      return [data, run](Executor& executor) { run(executor, *data); };
    };
    cases.push_back(std::move(c));
  }
}

}  // namespace

void add_norms(const CaseOptions& options, std::vector<Case>& cases) {
  namespace ops = nibble::ops;
  using nibble::kernels::GeluErf;
  using nibble::kernels::GeluTanh;
  add("quantize_blocks", {.written = 0, .code_bytes = kCodeBytes, .ops = 4}, options, cases,
      [](Executor& e, Data& d) { ops::quantize_rows(e, d.x.in(), d.quantized()); });
  add("quantize_row", {.written = 0, .code_bytes = 1, .ops = 4}, options, cases,
      [](Executor& e, Data& d) { ops::quantize_rows(e, d.x.in(), d.quantized_by_row()); });
  add("rms_norm", {.ops = 4}, options, cases,
      [](Executor& e, Data& d) { ops::rms_norm(e, d.x.in(), d.w(), kEps, d.out.view); });
  add("rms_norm_quantize", {.written = 0, .code_bytes = kCodeBytes, .ops = 7}, options, cases,
      [](Executor& e, Data& d) { ops::rms_norm(e, d.x.in(), d.w(), kEps, d.quantized()); });
  add("add_rms_norm", {.read = 2, .written = 2, .ops = 5}, options, cases,
      [](Executor& e, Data& d) { ops::rms_norm(e, d.sum_input(), d.w(), kEps, d.out.view); });
  add("add_rms_norm_quantize", {.read = 2, .written = 1, .code_bytes = kCodeBytes, .ops = 8},
      options, cases,
      [](Executor& e, Data& d) { ops::rms_norm(e, d.sum_input(), d.w(), kEps, d.quantized()); });
  add("layer_norm", {.ops = 8}, options, cases,
      [](Executor& e, Data& d) { ops::layer_norm(e, d.x.in(), d.w(), d.b(), kEps, d.out.view); });
  add("layer_norm_gelu", {.ops = 21}, options, cases, [](Executor& e, Data& d) {
    ops::layer_norm<GeluErf>(e, d.x.in(), d.w(), d.b(), kEps, d.out.view);
  });
  add("layer_norm_gelu_tanh", {.ops = 23}, options, cases, [](Executor& e, Data& d) {
    ops::layer_norm<GeluTanh>(e, d.x.in(), d.w(), d.b(), kEps, d.out.view);
  });
  add("layer_norm_quantize", {.written = 0, .code_bytes = kCodeBytes, .ops = 11}, options, cases,
      [](Executor& e, Data& d) {
        ops::layer_norm(e, d.x.in(), d.w(), d.b(), kEps, d.quantized());
      });
}

}  // namespace bench
