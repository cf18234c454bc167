// SPDX-License-Identifier: Apache-2.0
//
// The meaning of products; see pass.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <tuple>

#include "nibble/graph/pass.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/ops/activation.hpp"
#include "nibble/ops/elementwise.hpp"
#include "nibble/ops/matmul.hpp"
#include "nibble/ops/matmul_input.hpp"
#include "nibble/ops/quantize_static.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace graph {

// ---- Products ----------------------------------------------------------------------------------
// Nodes that read their rows as the input of products share the steps below: declare_products()
// declares the weights, make_outputs() allocates the results, run_products() computes.

// The form of a product's input.
struct InputForm {
  InputKind kind = InputKind::floats;
  quant::StaticScale scale = {};  // fixed and affine

  friend constexpr bool operator==(const InputForm&, const InputForm&) noexcept = default;
};

// What the format of a matrix reads (of weights with factors: of the matrix beside them).
inline InputForm input_form(const Weight& weight) noexcept {
  using enum InputKind;
  if (weight.ops->input != rows || !weight.input) return {weight.ops->input};
  return {weight.input.is_unsigned ? affine : fixed, weight.input};
}

// Whether a matrix reads f32 rows. (Not the factors beside it: they do not change what it reads.)
inline bool reads_floats(const Weight& weight) noexcept {
  return weight.has_base() && weight.ops->input == InputKind::floats;
}

// The input of the products of a node, in the forms that their weights need: each form is made when
// a weight first needs it. There is memory for codes in one form.
class ProductInputs {
 public:
  using Make = FunctionRef<kernels::MatmulInput(const InputForm&)>;
  explicit ProductInputs(Make make) noexcept : make_(make) {}

  // Whether of(weight) will overwrite codes that are in memory: products that read these must have
  // run.
  bool overwrites(const Weight& weight) const noexcept {
    const InputForm form = input_form(weight);
    return form.kind != InputKind::floats && has_codes_ && !(form == form_);
  }
  const kernels::MatmulInput& of(const Weight& weight) noexcept {
    const InputForm form = input_form(weight);
    if (form.kind == InputKind::floats) {
      if (!has_floats_) floats_ = make_(form);
      has_floats_ = true;
      return floats_;
    }
    if (!has_codes_ || !(form == form_)) codes_ = make_(form);
    has_codes_ = true;
    form_ = form;
    return codes_;
  }

 private:
  Make make_;
  bool has_floats_ = false, has_codes_ = false;
  InputForm form_;  // of the codes
  kernels::MatmulInput floats_, codes_;
};

static_assert(kMaxGroup <= ops::kMaxProducts);

// Rows (m, k) as codes in `memory`: QuantizedRows<kActivationBlock>::bytes_needed(m, k) bytes are
// enough for each form. fill(rows) writes them, to ops::QuantizedRows<kActivationBlock>, to
// ops::QuantizedRows<0> or to ops::StaticRows.
template <class Fill>
kernels::MatmulInput code_input(const InputForm& form, std::span<std::byte> memory, Index m,
                                Index k, const Fill& fill) noexcept {
  const auto filled = [&](const auto& rows) {
    fill(rows);
    return ops::matmul_input(rows);
  };
  if (form.kind == InputKind::blocks) {
    return filled(ops::QuantizedRows<kActivationBlock>::over(memory, m, k));
  }
  const auto rows = ops::QuantizedRows<0>::over(memory, m, k);
  if (form.kind == InputKind::rows) return filled(rows);
  return filled(ops::StaticRows{rows, form.scale});
}

inline kernels::MatmulInput float_input(MatrixView<float> rows) noexcept {
  kernels::MatmulInput input;
  input.x = rows.data();
  input.stride = rows.stride(0);
  return input;
}

namespace detail {

// Where products with factors put what is between their two parts, for `rows` rows: rows of floats
// (rank), the same as 8-bit codes, rows of the result (width). Of factors that only some rows have,
// each worker computes kOwnRows at a time.
struct FactorMemory {
  static constexpr Index kOwnRows = 16;
  static constexpr Index inner_rows(Index rows, Index n_workers) noexcept {
    return (std::max)(rows, kOwnRows * n_workers);
  }
  static constexpr std::size_t floats(Index rows, Index columns) noexcept {
    return align_up(static_cast<std::size_t>(rows * columns) * sizeof(float));
  }
  static constexpr std::size_t codes(Index rows, Index rank) noexcept {
    return align_up(ops::QuantizedRows<kActivationBlock>::bytes_needed(rows, rank));
  }
  // Where rows of the result are.
  static constexpr std::size_t result_at(Index rows, Index rank, Index n_workers) noexcept {
    return floats(inner_rows(rows, n_workers), rank) + codes(rows, rank);
  }
  static constexpr std::size_t bytes(Index rows, Index rank, Index width,
                                     Index n_workers) noexcept {
    return result_at(rows, rank, n_workers) + floats(rows, width);
  }
};

}  // namespace detail

// out = weights · input, finished by `finish`.
inline ops::Product product_of(const Weight& weight, const kernels::MatmulInput& input,
                               MatrixView<float> out, kernels::FinishTileFunction* finish,
                               const kernels::EpilogueArgs& operands) noexcept {
  NIBBLE_ASSERT(out.extent(1) == weight.n && weight.n_experts == 1);
  const bool is_affine = input_form(weight).kind == InputKind::affine;
  ops::Product p{is_affine ? weight.ops->affine_matmul() : weight.ops->matmul(), {}};
  p.args.input = input;
  p.args.m = out.extent(0);
  p.args.weights = weight.data;
  p.args.n = weight.n;
  p.args.k = weight.k;
  p.args.end_panel = quant::n_panels(weight.n);
  p.args.out = out.data();
  p.args.out_stride = out.stride(0);
  p.args.finish = finish;
  p.args.epilogue = operands;
  return p;
}

class ProductList {
 public:
  void append(const Weight& weight, const kernels::MatmulInput& input, MatrixView<float> out,
              kernels::FinishTileFunction* finish, const kernels::EpilogueArgs& operands) noexcept {
    NIBBLE_ASSERT(n_ < ops::kMaxProducts);
    products_[n_++] = product_of(weight, input, out, finish, operands);
  }
  bool is_full() const noexcept { return n_ == ops::kMaxProducts; }
  // Sets the second matrix of the last product.
  void set_gate(const Weight& gate) noexcept { products_[n_ - 1].args.gate = gate.data; }

  template <class Run>
  void run(const Run& run) noexcept {
    for (ops::Product& p : std::span(products_, n_)) {
      if (p.args.input.rounded != nullptr) p.segments = run.segments();
    }
    ops::run(run.executor(), {products_, n_}, run.tuning());
  }
  template <class Run>
  void run_and_clear(const Run& r) noexcept {
    if (n_ > 0) run(r);
    n_ = 0;
  }

 private:
  ops::Product products_[ops::kMaxProducts];
  std::size_t n_ = 0;
};

template <class Activation, bool kBias, bool kResidual>
kernels::FinishTileFunction* finish_of() noexcept {
  using Epilogue = kernels::Epilogue<Activation, kBias, kResidual>;
  return simd::kernel<kernels::FinishTile<Epilogue>>();
}

// The factors that rows of a product have of their own (RowAdapter).
struct OwnFactors {
  std::span<const RowAdapter> groups;
  std::size_t slot = 0;
  Index layer = 0;

  const Factors* of(const RowAdapter& group) const noexcept {
    return group.factors_at(slot, layer);
  }
  bool any() const noexcept {
    for (const RowAdapter& group : groups) {
      if (of(group) != nullptr) return true;
    }
    return false;
  }
};
template <auto kSlot, class Run>
OwnFactors own_factors(const Run& run, Rows rows) noexcept {
  return {run.row_adapters(rows), static_cast<std::size_t>(enumerator_of(kSlot)), run.layer()};
}

template <auto kW, auto kB, Index W, class A, class Pass>
constexpr void declare_products(const Linear<kW, kB, W, A>& node, Pass& pass, Index k) noexcept {
  const Index n = pass.resolve(node.width);
  pass.template weight<kW>(n, k);
  pass.template weight<kB>(0, n);
  pass.factors(0);
}
template <auto kW, auto kB, Index W, class A, class Pass>
constexpr auto make_outputs(const Linear<kW, kB, W, A>& node, Pass& pass, Rows rows) noexcept {
  return pass.make(pass.resolve(node.width), rows);
}
template <class Run, auto kW, auto kB, Index W, class A>
bool needs_floats(const Linear<kW, kB, W, A>&, const Run& run) noexcept {
  return reads_floats(run.weight(kW));
}
// The bias in a slot; null if there is none.
template <auto kSlot, class Run>
const float* bias_of(const Run& run) noexcept {
  if constexpr (!kIsNone<kSlot>) {
    if (const Weight& bias = run.weight(kSlot)) return bias.vector();
  }
  return nullptr;
}
// ---- Weights with factors: y = base · x + scale · A · (B · x) ----
// These products run at once, before those of the list that they would be in: there is memory for
// one of them.

// One product, out = Activation(weights · input + bias), plus what `out` holds with kResidual.
template <class A, bool kResidual, class Run>
void run_alone(const Run& run, const Weight& weight, const kernels::MatmulInput& input,
               const float* bias, MatrixView<float> out) noexcept {
  kernels::EpilogueArgs operands;
  operands.bias = bias;
  if constexpr (kResidual) {
    operands.residual = out.data();
    operands.residual_stride = out.stride(0);
  }
  ProductList list;
  list.append(weight, input, out,
              bias != nullptr ? finish_of<A, true, kResidual>() : finish_of<A, false, kResidual>(),
              operands);
  list.run(run);
}

// scale · B · x, as the input of A, in the memory for factors.
template <class Run>
kernels::MatmulInput inner_rows(const Run& run, const Factors& f, const kernels::MatmulInput& input,
                                Index m) noexcept {
  const Index rank = f.rank();
  const std::span<std::byte> memory = run.factor_memory();
  const MatrixView<float> inner(reinterpret_cast<float*>(memory.data()), m, rank);
  run_alone<kernels::Identity, false>(run, f.b, input, nullptr, inner);
  if (f.scale != 1) ops::scale(run.executor(), inner, f.scale, inner);
  const InputForm form = input_form(f.a);
  if (form.kind == InputKind::floats) return float_input(inner);
  return code_input(form, memory.subspan(detail::FactorMemory::floats(m, rank)), m, rank,
                    [&](const auto& rows) {
                      ops::quantize_rows(run.executor(), MatrixView<const float>(inner), rows);
                    });
}

// Behind the inner rows: rows of the result.
template <class Run>
MatrixView<float> result_rows(const Run& run, Index m, Index n) noexcept {
  const std::size_t at =
      detail::FactorMemory::result_at(m, run.limits().max_rank, run.limits().max_workers);
  return MatrixView<float>(reinterpret_cast<float*>(run.factor_memory().data() + at), m, n);
}

// What rows have of their own beside the products of a node: scale · A · (B · x) is added to the
// rows of their results that have factors. A row's numbers do not depend on the other rows, nor on
// which of them have the same factors.
class OwnSums {
 public:
  void add(const OwnFactors& own, MatrixView<float> sum) noexcept {
    if (!own.any()) return;
    NIBBLE_ASSERT(n_ < kMaxGroup);
    parts_[n_++] = {own, sum};
  }

  // As one parallel step: a task computes both products of a few rows, whose inner rows nobody else
  // needs. `inputs`: of all these products.
  template <class Run>
  void run(const Run& r, ProductInputs& inputs) const noexcept {
    Index n_tasks = 0;
    const kernels::MatmulInput* x = nullptr;
    for_each([&](const Part&, const RowAdapter& group, const Factors& f) {
      n_tasks += n_tasks_of(group);
      x = &inputs.of(f.b);
      return false;
    });
    if (n_tasks == 0) return;
    r.executor().parallel_for(n_tasks, [&](Index task, Index worker) {
      for_each([&](const Part& part, const RowAdapter& group, const Factors& f) {
        const bool is_here = task < n_tasks_of(group);
        if (is_here) compute(r, *x, part, group, f, task * kRows, worker);
        task -= n_tasks_of(group);
        return is_here;
      });
    });
  }

 private:
  static constexpr Index kRows = detail::FactorMemory::kOwnRows;
  struct Part {
    OwnFactors own;
    MatrixView<float> sum;
  };
  static Index n_tasks_of(const RowAdapter& group) noexcept {
    return (group.n_rows + kRows - 1) / kRows;
  }
  // Until f(...) returns true.
  template <class F>
  void for_each(F&& call) const noexcept {
    for (std::size_t i = 0; i < n_; ++i) {
      for (const RowAdapter& group : parts_[i].own.groups) {
        const Factors* const f = parts_[i].own.of(group);
        if (f != nullptr && call(parts_[i], group, *f)) return;
      }
    }
  }
  // Rows of a group, from `at` on.
  template <class Run>
  static void compute(const Run& r, const kernels::MatmulInput& x, const Part& part,
                      const RowAdapter& group, const Factors& f, Index at, Index worker) noexcept {
    const Index row = group.first_row + at, n = (std::min)(kRows, group.n_rows - at);
    auto* const memory = reinterpret_cast<float*>(r.factor_memory().data());
    const MatrixView<float> inner(memory + worker * kRows * r.limits().max_rank, n, f.rank());
    const MatrixView<float> sum = part.sum.rows(row, n);
    const auto multiply = [&](const ops::Product& product) {
      kernels::MatmulArgs args = product.args;
      args.tuning = r.tuning();
      product.kernel(args);
    };
    multiply(
        product_of(f.b, x.rows_from(row), inner, finish_of<kernels::Identity, false, false>(), {}));
    const float scale = group.strength * f.scale;
    for (Index i = 0; i < n * f.rank(); ++i) inner.data()[i] *= scale;
    kernels::EpilogueArgs operands;
    operands.residual = sum.data();
    operands.residual_stride = sum.stride(0);
    multiply(product_of(f.a, float_input(inner), sum, finish_of<kernels::Identity, false, true>(),
                        operands));
  }

  Part parts_[kMaxGroup];
  std::size_t n_ = 0;
};

// out = A(weights · input + bias), plus what `out` holds with kResidual. An activation is a step of
// its own if several products are its input. For rows without factors the result has the bits that
// it has without this.
template <class A, bool kResidual, class Run>
void run_with_factors(const Run& run, const Weight& weight, const OwnFactors& own,
                      ProductInputs& inputs, const float* bias, MatrixView<float> out) noexcept {
  constexpr bool kIsLast = std::is_same_v<A, kernels::Identity>;
  const Index m = out.extent(0);
  const bool has_own = own.any();
  if (!has_own && !weight.has_base()) {
    const Factors& f = *weight.factors;
    return run_alone<A, kResidual>(run, f.a, inner_rows(run, f, inputs.of(f.b), m), bias, out);
  }
  const MatrixView<float> sum = kIsLast || !kResidual ? out : result_rows(run, m, weight.n);
  constexpr bool kAdds = kIsLast && kResidual;
  if (weight.has_base()) {
    run_alone<kernels::Identity, kAdds>(run, weight, inputs.of(weight), bias, sum);
  }
  if (weight.factors != nullptr) {
    const Factors& f = *weight.factors;
    const kernels::MatmulInput inner = inner_rows(run, f, inputs.of(f.b), m);
    if (weight.has_base()) {
      run_alone<kernels::Identity, true>(run, f.a, inner, nullptr, sum);
    } else {
      run_alone<kernels::Identity, kAdds>(run, f.a, inner, bias, sum);
    }
  }
  OwnSums sums;
  sums.add(own, sum);
  sums.run(run, inputs);
  if constexpr (!kIsLast) {
    ops::activate<A>(run.executor(), MatrixView<const float>(sum), sum);
    if constexpr (kResidual) {
      ops::add(run.executor(), MatrixView<const float>(out), MatrixView<const float>(sum), out);
    }
  }
}

// kResidual: the result is added to what `out` holds. Runs the products of the list if their input
// must give way to the input of this one. What rows have of their own comes to `sums`, to be added
// after the products of the list.
template <bool kResidual = false, class Run, auto kW, auto kB, Index W, class A, class Out>
void append_product(const Linear<kW, kB, W, A>&, const Run& run, ProductInputs& inputs,
                    const Out& out, ProductList& list, OwnSums& sums) noexcept {
  const MatrixView<float> view = run.view(out);
  const Weight& weight = run.weight(kW);
  const OwnFactors own = own_factors<kW>(run, out.rows);
  if (weight.factors != nullptr || (own.any() && !std::is_same_v<A, kernels::Identity>)) {
    list.run_and_clear(run);  // its input may have to give way
    run_with_factors<A, kResidual>(run, weight, own, inputs, bias_of<kB>(run), view);
    return;
  }
  if (inputs.overwrites(weight)) list.run_and_clear(run);
  kernels::EpilogueArgs operands;
  if constexpr (kResidual) {
    operands.residual = view.data();
    operands.residual_stride = view.stride(0);
  }
  operands.bias = bias_of<kB>(run);
  kernels::FinishTileFunction* finish = nullptr;
  if constexpr (!kIsNone<kB>) {
    if (operands.bias != nullptr) finish = finish_of<A, true, kResidual>();
  }
  if (finish == nullptr) finish = finish_of<A, false, kResidual>();
  list.append(weight, inputs.of(weight), view, finish, operands);
  sums.add(own, view);
}
template <class Run, auto kW, auto kB, Index W, class A, class Out>
void run_products(const Linear<kW, kB, W, A>& node, Run& run, ProductInputs& inputs,
                  const Out& out) noexcept {
  ProductList list;
  OwnSums sums;
  append_product(node, run, inputs, out, list, sums);
  list.run(run);
  sums.run(run, inputs);
}

template <class... L, class Pass>
constexpr void declare_products(const LinearGroup<L...>& node, Pass& pass, Index k) noexcept {
  std::apply([&](const auto&... l) { (declare_products(l, pass, k), ...); }, node.linears);
}
template <class... L, class Pass>
constexpr auto make_outputs(const LinearGroup<L...>& node, Pass& pass, Rows rows) noexcept {
  return std::apply([&](const auto&... l) { return std::tuple{make_outputs(l, pass, rows)...}; },
                    node.linears);
}
template <class Run, class... L>
bool needs_floats(const LinearGroup<L...>& node, const Run& run) noexcept {
  return std::apply([&](const auto&... l) { return (needs_floats(l, run) || ...); }, node.linears);
}
template <class Run, class... L, class Out>
void run_products(const LinearGroup<L...>& node, Run& run, ProductInputs& inputs,
                  const Out& out) noexcept {
  ProductList list;
  OwnSums sums;
  [&]<std::size_t... Is>(std::index_sequence<Is...>) {
    (append_product(std::get<Is>(node.linears), run, inputs, std::get<Is>(out), list, sums), ...);
  }
  (std::index_sequence_for<L...>{});
  list.run(run);
  sums.run(run, inputs);
}

template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A, class Pass>
constexpr void declare_products(const GatedLinear<kG, kGB, kU, kUB, W, A>& node, Pass& pass,
                                Index k) noexcept {
  const Index n = pass.resolve(node.width);
  pass.template weight<kG>(n, k);
  pass.template weight<kGB>(0, n);
  pass.template weight<kU>(n, k);
  pass.template weight<kUB>(0, n);
  pass.factors(n);
}
template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A, class Pass>
constexpr auto make_outputs(const GatedLinear<kG, kGB, kU, kUB, W, A>& node, Pass& pass,
                            Rows rows) noexcept {
  const auto width = pass.resolve(node.width);
  if (pass.resolve(node.up_width) != width) {
    pass.fail("multiply() or sum() of results whose widths differ");
  }
  return pass.make(width, rows);
}
template <class Run, auto kG, auto kGB, auto kU, auto kUB, Index W, class A>
bool needs_floats(const GatedLinear<kG, kGB, kU, kUB, W, A>&, const Run& run) noexcept {
  return reads_floats(run.weight(kG)) || reads_floats(run.weight(kU));
}
template <class Run, auto kG, auto kGB, auto kU, auto kUB, Index W, class A, class Out>
void run_products(const GatedLinear<kG, kGB, kU, kUB, W, A>& node, Run& run, ProductInputs& inputs,
                  const Out& out) noexcept {
  const Weight& gate = run.weight(kG);
  const Weight& up = run.weight(kU);
  const MatrixView<float> view = run.view(out);
  const float* const up_bias = bias_of<kUB>(run);
  ProductList list;
  const OwnFactors own = own_factors<kU>(run, out.rows);
  const OwnFactors own_of_gate = own_factors<kG>(run, out.rows);
  const bool has_up_factors = up.factors != nullptr || own.any();
  const bool has_factors = gate.factors != nullptr || has_up_factors || own_of_gate.any();
  const bool are_alike = !has_factors && gate.ops == up.ops && input_form(gate) == input_form(up);
  if (are_alike && up_bias == nullptr && bias_of<kGB>(run) == nullptr) {
    list.append(up, inputs.of(up), view, simd::kernel<kernels::FinishGatedTile<A>>(), {});
    list.set_gate(gate);
  } else if (has_factors && gate.factors == nullptr && up.factors == nullptr) {
    const MatrixView<float> rows = result_rows(run, view.extent(0), up.n);
    const auto append = [&](const Weight& weight, const float* bias, MatrixView<float> to) {
      if (inputs.overwrites(weight)) list.run_and_clear(run);
      kernels::EpilogueArgs operands;
      operands.bias = bias;
      list.append(weight, inputs.of(weight), to,
                  bias != nullptr ? finish_of<kernels::Identity, true, false>()
                                  : finish_of<kernels::Identity, false, false>(),
                  operands);
    };
    append(gate, bias_of<kGB>(run), view);
    append(up, up_bias, rows);
    list.run(run);
    OwnSums sums;
    sums.add(own_of_gate, view);
    sums.add(own, rows);
    sums.run(run, inputs);
    ops::activate_gated<A>(run.executor(), MatrixView<const float>(view),
                           MatrixView<const float>(rows), view);
    return;
  } else {  // with biases, in different formats or of different inputs: one after the other
    run_products(Linear<kG, kGB, W, A>{{}, node.width}, run, inputs, out);
    if (has_up_factors) {
      const MatrixView<float> rows = result_rows(run, view.extent(0), up.n);
      run_with_factors<kernels::Identity, false>(run, up, own, inputs, up_bias, rows);
      ops::multiply(run.executor(), MatrixView<const float>(view), MatrixView<const float>(rows),
                    view);
      return;
    }
    kernels::EpilogueArgs operands;
    operands.bias = up_bias;
    operands.residual = view.data();
    operands.residual_stride = view.stride(0);
    list.append(up, inputs.of(up), view,
                simd::kernel<kernels::FinishTile<kernels::TimesResidual>>(), operands);
  }
  list.run(run);
}

// Memory for the quantized rows, if some weights need them.
template <class Pass>
constexpr Scratch quantized_scratch(Pass& pass, Index width, Rows rows) noexcept {
  if (!pass.limits().code_inputs) return {};
  // A layer that leaves the product out may have any width; elsewhere make() has refused it.
  if (width < 1 || width > kMaxBytes / 8 / (std::max)(pass.count(rows), Index{1})) {
    return pass.scratch(0);
  }
  const Index n = pass.count(rows);
  std::size_t bytes = ops::QuantizedRows<kActivationBlock>::bytes_needed(n, width);
  if (pass.limits().rounded_inputs && rows == Rows::all) {
    bytes = align_up(bytes) + ops::RoundedRows::bytes_needed(n, width);
  }
  return pass.scratch(bytes);
}

// `input` is that of rows x as code_input() made it in `scratch`. Adds the same numbers rounded to
// bf16, if there are rows of prompts and products that read them.
template <class Run, class AnyValue>
kernels::MatmulInput with_rounded_rows(Run& run, const InputForm& form, const AnyValue& x,
                                       const Scratch& scratch,
                                       kernels::MatmulInput input) noexcept {
  if (!run.limits().rounded_inputs || x.rows != Rows::all || form.kind != InputKind::blocks) {
    return input;
  }
  bool has_prompts = false;
  for (const Segment& s : run.segments()) {
    has_prompts = has_prompts || s.kind == SegmentKind::prompt;
  }
  if (!has_prompts || !ops::has_tiles()) return input;
  using Codes = ops::QuantizedRows<kActivationBlock>;
  const Index m = run.count_of(x), k = x.width;
  const auto memory = run.memory(scratch);
  const auto rounded =
      ops::RoundedRows::over(memory.subspan(align_up(Codes::bytes_needed(m, k))), m, k);
  ops::round_rows(run.executor(), Codes::over(memory, m, k), rounded);
  input.rounded = rounded.values;
  input.rounded_stride = rounded.stride(k);
  return input;
}

// The rows of x as the input of a product.
template <class Run, class AnyValue>
kernels::MatmulInput product_input(Run& run, const InputForm& form, const AnyValue& x,
                                   const Scratch& scratch) noexcept {
  const MatrixView<float> view = run.view(x);
  if (form.kind == InputKind::floats) return float_input(view);
  const auto fill = [&](const auto& rows) {
    ops::quantize_rows(run.executor(), MatrixView<const float>(view), rows);
  };
  return with_rounded_rows(run, form, x, scratch,
                           code_input(form, run.memory(scratch), view.extent(0), x.width, fill));
}

// The slots of the weights of a node's products, as numbers.
template <auto kW, auto kB, Index W, class A>
constexpr std::array<std::size_t, 1> slots_of(const Linear<kW, kB, W, A>&) noexcept {
  return {static_cast<std::size_t>(enumerator_of(kW))};
}
template <auto kG, auto kGB, auto kU, auto kUB, Index W, class A>
constexpr std::array<std::size_t, 2> slots_of(const GatedLinear<kG, kGB, kU, kUB, W, A>&) noexcept {
  return {static_cast<std::size_t>(enumerator_of(kG)), static_cast<std::size_t>(enumerator_of(kU))};
}
template <class... L>
constexpr std::array<std::size_t, sizeof...(L)> slots_of(const LinearGroup<L...>& node) noexcept {
  return std::apply(
      [](const auto&... l) { return std::array<std::size_t, sizeof...(L)>{slots_of(l)[0]...}; },
      node.linears);
}

// Shows the rows of x, which `node` multiplies, to the observer of products.
template <class Products, class Run, class AnyValue>
void observe_products(const Products& node, Run& run, const AnyValue& x) noexcept {
  if (!run.observes_products()) return;
  const auto slot_ids = slots_of(node);
  run.observe_product(slot_ids, MatrixView<const float>(run.view(x)));
}

// pass.step() for one output or for a tuple of outputs.
template <class Pass, class F, class Out, class... Values>
constexpr void step_to(Pass& pass, const F& compute, const Out& out,
                       const Values&... used) noexcept {
  if constexpr (requires { out.id; }) {
    pass.step(compute, used..., out);
  } else {
    std::apply([&](const auto&... o) { pass.step(compute, used..., o...); }, out);
  }
}

template <class Products, class Pass, Index W>
requires requires(const Products& p, Pass& pass) { declare_products(p, pass, Index{}); }
constexpr auto apply(const Products& node, Pass& pass, const Value<W>& x) noexcept {
  declare_products(node, pass, x.width);
  const auto out = make_outputs(node, pass, x.rows);
  const Scratch scratch = quantized_scratch(pass, x.width, x.rows);
  step_to(
      pass,
      [=](auto& run) {
        observe_products(node, run, x);
        const auto make = [&](const InputForm& form) {
          return product_input(run, form, x, scratch);
        };
        ProductInputs inputs(make);
        run_products(node, run, inputs, out);
      },
      out, x, scratch);
  return out;
}

template <class Prefix, class LinearType, class Pass, Index W>
constexpr auto apply(const ResidualInto<Prefix, LinearType>& node, Pass& pass,
                     const Value<W>& x) noexcept {
  const auto y = apply_body(node.prefix, pass, x);
  check_residual<W, decltype(node.linear.width)::kStatic>(pass, x, y,
                                                          pass.resolve(node.linear.width));
  declare_products(node.linear, pass, y.width);
  pass.factors(pass.resolve(node.linear.width));
  const Scratch scratch = quantized_scratch(pass, y.width, y.rows);
  pass.step(
      [=](auto& run) {
        observe_products(node.linear, run, y);
        const auto make = [&](const InputForm& form) {
          return product_input(run, form, y, scratch);
        };
        ProductInputs inputs(make);
        ProductList list;
        OwnSums sums;
        append_product<true>(node.linear, run, inputs, x, list, sums);
        list.run(run);
        sums.run(run, inputs);
      },
      x, y, scratch);
  return x;
}

}}}  // namespace nibble::NIBBLE_ABI::graph
