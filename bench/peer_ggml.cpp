// SPDX-License-Identifier: Apache-2.0
//
// ggml: products of its CPU backend, run as in llama.cpp: a graph of one mul_mat, weights in the
// layout that the backend prefers (repacked, if it offers that), and a persistent thread pool.
// Everything goes through the backend registry, for builds that load backends at run time.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include "bench/peers.hpp"
#include "nibble/quant/format.hpp"

namespace bench {
namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "benchmark: ggml: no %s\n", what);
  std::exit(1);
}

template <class T>
T* need(T* pointer, const char* what) {
  if (pointer == nullptr) fail(what);
  return pointer;
}

// Deleter that calls one of ggml's free functions.
template <auto kFree>
struct Free {
  void operator()(auto* pointer) const { kFree(pointer); }
};
using Context = std::unique_ptr<ggml_context, Free<ggml_free>>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Free<ggml_backend_buffer_free>>;

// The CPU backend, and functions that its registry finds by name. One for the whole run.
class Backend {
 public:
  static Backend& get() {
    static Backend backend;
    return backend;
  }

  ggml_backend_t backend() const { return backend_; }

  void use_threads(Index n) {
    if (n == n_threads_) return;
    n_threads_ = n;
    need(function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads"),
         "ggml_backend_set_n_threads")(backend_, static_cast<int>(n));
    // Without its own pool, a build without OpenMP starts threads for every graph. The last pool is
    // never freed: a few sleeping threads.
    auto* const make =
        function<ggml_threadpool_t (*)(ggml_threadpool_params*)>("ggml_threadpool_new");
    auto* const set =
        function<void (*)(ggml_backend_t, ggml_threadpool_t)>("ggml_backend_cpu_set_threadpool");
    if (make == nullptr || set == nullptr) return;
    ggml_threadpool_params params = ggml_threadpool_params_default(static_cast<int>(n));
    set(backend_, need(make(&params), "threads"));
  }

  // The first buffer type of the backend in which it can multiply such weights.
  ggml_backend_buffer_type_t buffer_type(ggml_tensor* weights, const ggml_tensor* product) const {
    auto* const extra =
        function<ggml_backend_dev_get_extra_bufts_t>("ggml_backend_dev_get_extra_bufts");
    if (extra != nullptr) {
      for (auto* type = extra(device_); type != nullptr && *type != nullptr; ++type) {
        const Buffer none(ggml_backend_buft_alloc_buffer(*type, 0));  // where they would be
        weights->buffer = none.get();
        const bool good = none != nullptr && ggml_backend_dev_supports_op(device_, product);
        weights->buffer = nullptr;
        if (good) return *type;
      }
    }
    return ggml_backend_get_default_buffer_type(backend_);
  }

 private:
  Backend() {
    const auto errors_only = [](ggml_log_level level, const char* text, void*) {
      if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
    };
    ggml_log_set(errors_only, nullptr);
    ggml_backend_load_all();
    device_ = need(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), "CPU device");
    backend_ = need(ggml_backend_dev_init(device_, nullptr), "CPU backend");
  }

  template <class Function>
  Function function(const char* name) const {
    return reinterpret_cast<Function>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device_), name));
  }

  ggml_backend_dev_t device_ = nullptr;
  ggml_backend_t backend_ = nullptr;
  Index n_threads_ = 0;
};

std::optional<ggml_type> type_of(const std::string& format) {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0,
                               GGML_TYPE_Q4_0, GGML_TYPE_Q4_1}) {
    if (format == ggml_type_name(type)) return type;
  }
  return std::nullopt;
}

Context make_context(Index n_tensors, Index n_graphs) {
  constexpr std::size_t kNodes = 4;
  const std::size_t bytes =
      static_cast<std::size_t>(n_tensors) * ggml_tensor_overhead() +
      static_cast<std::size_t>(n_graphs) * ggml_graph_overhead_custom(kNodes, false);
  return Context(
      need(ggml_init({.mem_size = bytes, .mem_buffer = nullptr, .no_alloc = true}), "context"));
}

class Product {
 public:
  Product(const Sizes& s, ggml_type type, Index n_copies)
      : weights_(make_context(n_copies, 0)), rest_(make_context(1 + n_copies, n_copies)) {
    Backend& backend = Backend::get();
    ggml_tensor* const x = ggml_new_tensor_2d(rest_.get(), GGML_TYPE_F32, s.k, s.m);
    std::vector<ggml_tensor*> copies;
    ggml_tensor* product = nullptr;
    for (Index i = 0; i < n_copies; ++i) {
      copies.push_back(ggml_new_tensor_2d(weights_.get(), type, s.k, s.n));
      product = ggml_mul_mat(rest_.get(), copies.back(), x);
      graphs_.push_back(ggml_new_graph_custom(rest_.get(), 4, false));
      ggml_build_forward_expand(graphs_.back(), product);
    }
    auto* const buffer_type = backend.buffer_type(copies.back(), product);
    weight_buffer_.reset(
        need(ggml_backend_alloc_ctx_tensors_from_buft(weights_.get(), buffer_type), "memory"));
    rest_buffer_.reset(
        need(ggml_backend_alloc_ctx_tensors(rest_.get(), backend.backend()), "memory"));

    // ggml's blocks are GGUF's, and therefore nibble's.
    const auto format = *nibble::quant::format_from_name(ggml_type_name(type));
    const std::vector<float> floats = weight_floats(s.n, s.k);
    const std::size_t row = *nibble::quant::row_bytes(format, static_cast<std::size_t>(s.k));
    std::vector<std::byte> bytes(row * static_cast<std::size_t>(s.n));
    for (std::size_t r = 0; r < static_cast<std::size_t>(s.n); ++r) {
      const auto k = static_cast<std::size_t>(s.k);
      const auto from = std::span(floats).subspan(r * k, k);
      const auto to = std::span(bytes).subspan(r * row, row);
      if (!nibble::quant::row_from_f32(format, from, to)) fail("weights");
    }
    for (ggml_tensor* const copy : copies) {
      ggml_backend_tensor_set(copy, bytes.data(), 0, bytes.size());  // repacks
    }
    const Floats values(s.m, s.k, Pages::small);
    ggml_backend_tensor_set(x, values.view.data(), 0, ggml_nbytes(x));
  }

  void run(Index n_threads) {
    Backend& backend = Backend::get();
    backend.use_threads(n_threads);
    if (ggml_backend_graph_compute(backend.backend(), graphs_[next_]) != GGML_STATUS_SUCCESS) {
      fail("result");
    }
    next_ = (next_ + 1) % graphs_.size();
  }

 private:
  Context weights_, rest_;
  Buffer weight_buffer_, rest_buffer_;
  std::vector<ggml_cgraph*> graphs_;  // one for each copy of the weights
  std::size_t next_ = 0;
};

}  // namespace

std::optional<Case> ggml_case(const CaseOptions& options, const Case& of) {
  const auto sizes = sizes_of(of);
  const auto type = type_of(of.format);
  if (of.kernel != "matmul" || !type || !sizes) return std::nullopt;
  Case c = of;
  const double bytes =
      static_cast<double>(ggml_row_size(*type, sizes->k) * static_cast<std::size_t>(sizes->n));
  c.prepare = [sizes = *sizes, type = *type, n_copies = copies_for(options, of, bytes)]() -> Body {
    auto product = std::make_shared<Product>(sizes, type, n_copies);
    return [product](nibble::Executor& executor) { product->run(executor.n_workers()); };
  };
  return c;
}

}  // namespace bench
