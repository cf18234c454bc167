// SPDX-License-Identifier: Apache-2.0
//
// oneDNN (2.x and 3.x): products of f32, of bf16 and of 8-bit codes with a scale per channel, with
// weights in the layout that it prefers; norm, softmax and activations of rows.
#include <omp.h>

#include <dnnl.hpp>

#include "bench/peers.hpp"

namespace bench {
namespace {

using dnnl::memory;
using dnnl::primitive_attr;
using Type = memory::data_type;

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

memory::desc rows_of(Type type, Index m, Index k) { return {{m, k}, type, memory::format_tag::ab}; }

// The versions differ in how an operation is described.
#if DNNL_VERSION_MAJOR >= 3
template <class Operation, class... Arguments>
auto describe(const primitive_attr& attributes, const Arguments&... arguments) {
  return typename Operation::primitive_desc(engine(), arguments..., attributes);
}
#else
template <class Operation, class... Arguments>
auto describe(const primitive_attr& attributes, const Arguments&... arguments) {
  return typename Operation::primitive_desc(typename Operation::desc(arguments...), attributes,
                                            engine());
}
#endif

// A primitive and the memory that it works on.
struct Operation {
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;

  void run() {
    static dnnl::stream stream(engine());
    primitive.execute(stream, arguments);
    stream.wait();
  }
};

// Calls make() in the first run with a given number of threads: a primitive is made for that
// number.
template <class Make>
Body body_of(Make make) {
  return [make, n_threads = Index{0}, run = std::function<void()>()](nibble::Executor& e) mutable {
    if (n_threads != e.n_workers()) {
      n_threads = e.n_workers();
      omp_set_num_threads(static_cast<int>(n_threads));
      run = nullptr;  // frees its memory first
      run = make();
    }
    run();
  };
}

// A matrix of small integers, which every type can represent.
std::shared_ptr<memory> filled(const memory::desc& want, Index m, Index k) {
  const memory::desc plain = rows_of(Type::f32, m, k);
  std::vector<float> values = weight_floats(m, k);
  for (float& v : values) v = std::round(127 * v);
  memory floats(plain, engine(), values.data());
  auto out = std::make_shared<memory>(want, engine());
  dnnl::stream stream(engine());
  dnnl::reorder(floats, *out).execute(stream, floats, *out);
  stream.wait();
  return out;
}

// ---- Products ----------------------------------------------------------------------------------

std::function<void()> make_product(const Sizes& s, Type type, bool is_cold,
                                   const CaseOptions& options) {
  primitive_attr attributes;
  [[maybe_unused]] const std::vector<float> scales(static_cast<std::size_t>(s.n), 1e-4f);
  if (type == Type::s8) {
#if DNNL_VERSION_MAJOR >= 3
    attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1 << 1);
#else
    attributes.set_output_scales(1 << 1, scales);
#endif
  }
  const memory::desc any({s.k, s.n}, type, memory::format_tag::any);
  const memory::desc out = rows_of(Type::f32, s.m, s.n);
  const auto description = describe<dnnl::matmul>(attributes, rows_of(type, s.m, s.k), any, out);

  // Weights are (n, k) as everywhere, so (k, n) with strided columns; packed once, then copied.
  const memory::desc packed = description.weights_desc();
  memory first(packed, engine());
  {
    const auto plain = filled({{s.k, s.n}, type, memory::format_tag::ba}, s.k, s.n);
    dnnl::stream stream(engine());
    dnnl::reorder(*plain, first).execute(stream, *plain, first);
    stream.wait();
  }
  const std::size_t bytes = packed.get_size();
  const Index n_copies = is_cold ? options.copies(static_cast<double>(bytes)) : 1;
  auto copies = std::make_shared<Copies>(nibble::align_up(bytes, 4096), n_copies, options.pages);
  std::memcpy(copies->first(), first.get_data_handle(), bytes);
  copies->repeat();

  auto operation = std::make_shared<Operation>();
  operation->primitive = dnnl::matmul(description);
  operation->arguments = {{DNNL_ARG_SRC, *filled(rows_of(type, s.m, s.k), s.m, s.k)},
                          {DNNL_ARG_WEIGHTS, memory(packed, engine(), copies->first())},
                          {DNNL_ARG_DST, memory(out, engine())}};
#if DNNL_VERSION_MAJOR >= 3
  if (type == Type::s8) {
    const memory scale_memory({{s.n}, Type::f32, memory::format_tag::a}, engine());
    std::memcpy(scale_memory.get_data_handle(), scales.data(), scales.size() * sizeof(float));
    operation->arguments.emplace(DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scale_memory);
  }
#endif
  return [operation, copies] {
    operation->arguments.at(DNNL_ARG_WEIGHTS).set_data_handle(copies->next());
    operation->run();
  };
}

std::optional<Case> product_case(const CaseOptions& options, const Case& of) {
  const auto sizes = sizes_of(of);
  if (!sizes || sizes->n == 0) return std::nullopt;
  Type type;
  if (of.format == "f32") {
    type = Type::f32;
  } else if (of.format == "bf16") {
    type = Type::bf16;
  } else if (of.format == "i8_channel") {
    type = Type::s8;
  } else {
    return std::nullopt;
  }
  Case c = of;
  c.prepare = [=, s = *sizes, is_cold = of.data == "cold"] {
    return body_of([=] { return make_product(s, type, is_cold, options); });
  };
  return c;
}

// ---- Rows --------------------------------------------------------------------------------------

dnnl::primitive eltwise(dnnl::algorithm algorithm, const memory::desc& rows) {
  constexpr auto kInference = dnnl::prop_kind::forward_inference;
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::eltwise_forward(
      describe<dnnl::eltwise_forward>({}, kInference, algorithm, rows, rows, 1.0f, 0.0f));
#else
  return dnnl::eltwise_forward(
      describe<dnnl::eltwise_forward>({}, kInference, algorithm, rows, 1.0f, 0.0f));
#endif
}

dnnl::primitive softmax(const memory::desc& rows) {
  constexpr auto kInference = dnnl::prop_kind::forward_inference;
#if DNNL_VERSION_MAJOR >= 3
  using Softmax = dnnl::softmax_forward;
#else
  using Softmax = dnnl::softmax_v2_forward;
#endif
  return Softmax(
      describe<Softmax>({}, kInference, dnnl::algorithm::softmax_accurate, rows, rows, 1));
}

dnnl::primitive layer_norm(const memory::desc& rows) {
  constexpr auto kInference = dnnl::prop_kind::forward_inference;
  const auto flags = dnnl::normalization_flags::use_scale | dnnl::normalization_flags::use_shift;
  using Norm = dnnl::layer_normalization_forward;
#if DNNL_VERSION_MAJOR >= 3
  return Norm(describe<Norm>({}, kInference, rows, rows, 1e-5f, flags));
#else
  return Norm(describe<Norm>({}, kInference, rows, 1e-5f, flags));
#endif
}

dnnl::primitive row_primitive(const std::string& kernel, const memory::desc& rows) {
  if (kernel == "layer_norm") return layer_norm(rows);
  if (kernel == "softmax") return softmax(rows);
  if (kernel == "gelu") return eltwise(dnnl::algorithm::eltwise_gelu_erf, rows);
  if (kernel == "gelu_tanh") return eltwise(dnnl::algorithm::eltwise_gelu_tanh, rows);
  return eltwise(dnnl::algorithm::eltwise_swish, rows);
}

std::optional<Case> row_case(const CaseOptions& options, const Case& of) {
  const auto sizes = sizes_of(of);
  if (!sizes || sizes->n != 0) return std::nullopt;
  Case c = of;
  c.prepare = [kernel = of.kernel, s = *sizes, pages = options.pages] {
    struct Data {
      Floats x, out, weight, bias;
      Operation operation;
    };
    return body_of([=]() -> std::function<void()> {
      auto data =
          std::make_shared<Data>(Data{Floats(s.m, s.k, pages), Floats(s.m, s.k, pages),
                                      Floats(1, s.k, pages), Floats(1, s.k, pages), Operation()});
      const memory::desc rows = rows_of(Type::f32, s.m, s.k);
      const memory::desc row({s.k}, Type::f32, memory::format_tag::a);
      data->operation.primitive = row_primitive(kernel, rows);
      const auto on = [](const memory::desc& d, const Floats& f) {
        return memory(d, engine(), f.memory.data());
      };
      data->operation.arguments = {{DNNL_ARG_SRC, on(rows, data->x)},
                                   {DNNL_ARG_DST, on(rows, data->out)}};
      if (kernel == "layer_norm") {
        data->operation.arguments.emplace(DNNL_ARG_SCALE, on(row, data->weight));
        data->operation.arguments.emplace(DNNL_ARG_SHIFT, on(row, data->bias));
      }
      return [data] { data->operation.run(); };
    });
  };
  return c;
}

}  // namespace

std::optional<Case> onednn_case(const CaseOptions& options, const Case& of) {
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
  if (of.kernel == "matmul") return product_case(options, of);
  for (const char* const kernel : {"layer_norm", "softmax", "gelu", "gelu_tanh", "silu"}) {
    if (of.kernel == kernel) return row_case(options, of);
  }
#else
  (void)options, (void)of;  // there is no way to set the number of threads
#endif
  return std::nullopt;
}

}  // namespace bench
