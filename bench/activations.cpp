// SPDX-License-Identifier: Apache-2.0
//
// Elementwise functions, softmax and rotary embedding of the rows of a matrix. One row is in L1, 16
// rows in L2, 512 (or as many as fit) in L3.
#include "nibble/ops/activation.hpp"

#include "bench/case.hpp"
#include "nibble/ops/rope.hpp"
#include "nibble/ops/softmax.hpp"

namespace bench {
namespace {

using nibble::Executor;

constexpr Index kHeadDim = 128;

struct Data {
  Data(Index m, Index k, Pages pages)
      : x(m, k, pages),
        y(m, k, pages),
        out(m, k, pages),
        cos(m, kHeadDim / 2, pages),
        sin(m, kHeadDim / 2, pages) {}
  Floats x, y, out, cos, sin;
};

// Cost per element: floats read and written, and operations. The operations are those of
// kernels/math-inl.h where it can use tables, which is the minimum, without any overhead (a
// multiply-add counts two).
struct Cost {
  double read = 1;
  double ops = 0;
  bool in_place = false;
};

template <class Run>
void add(const char* kernel, Index k, const Cost& cost, const CaseOptions& options,
         std::vector<Case>& cases, Run run) {
  const double row_bytes = static_cast<double>(k) * sizeof(float) * (cost.read + 1);
  for (const Index m : {Index{1}, Index{16}, options.rows_in_l3(row_bytes)}) {
    Case c;
    c.kernel = kernel;
    c.format = "f32";
    c.shape = "m" + std::to_string(m) + "_k" + std::to_string(k);
    c.data = "warm";
    c.quick = m > 16;
    const auto n = static_cast<double>(m * k);
    c.work.bytes_read = n * cost.read * sizeof(float);
    c.work.bytes_written = n * sizeof(float);
    c.work.in_place = cost.in_place;
    c.work.footprint = cost.in_place ? c.work.bytes_read : c.work.bytes();
    c.work.ops = n * cost.ops;
    c.prepare = [=, pages = options.pages]() -> Body {
      auto data = std::make_shared<Data>(m, k, pages);
      return [data, run](Executor& executor) { run(executor, *data); };
    };
    cases.push_back(std::move(c));
  }
}

}  // namespace

void add_activations(const CaseOptions& options, std::vector<Case>& cases) {
  namespace ops = nibble::ops;
  using nibble::kernels::HalfSplit;
  using nibble::kernels::Silu;
  add("silu", 5632, {.ops = 12}, options, cases,
      [](Executor& e, Data& d) { ops::silu(e, d.x.in(), d.out.view); });
  add("silu_gated", 5632, {.read = 2, .ops = 13}, options, cases,
      [](Executor& e, Data& d) { ops::activate_gated<Silu>(e, d.x.in(), d.y.in(), d.out.view); });
  add("gelu", 5632, {.ops = 13}, options, cases,
      [](Executor& e, Data& d) { ops::gelu(e, d.x.in(), d.out.view); });
  add("gelu_tanh", 5632, {.ops = 15}, options, cases,
      [](Executor& e, Data& d) { ops::gelu_tanh(e, d.x.in(), d.out.view); });
  // Softmax reads its input for the maximum and again for the exponentials, then scales the output.
  add("softmax", 4096, {.ops = 14}, options, cases,
      [](Executor& e, Data& d) { ops::softmax(e, d.x.in(), d.out.view); });
  // In place; for 4096 elements it also reads 128 floats of cosines and sines.
  add("rope", 4096, {.ops = 3, .in_place = true}, options, cases, [](Executor& e, Data& d) {
    ops::rope<HalfSplit>(e, d.x.view, kHeadDim, d.cos.in(), d.sin.in());
  });
}

}  // namespace bench
