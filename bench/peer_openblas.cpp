// SPDX-License-Identifier: Apache-2.0
//
// OpenBLAS: products of f32.
#include <cblas.h>

#include "bench/peers.hpp"

namespace bench {
namespace {

struct Product {
  Product(const Sizes& s, Index n_copies, Pages pages)
      : sizes(s),
        weights(static_cast<std::size_t>(s.n * s.k) * sizeof(float), n_copies, pages),
        x(s.m, s.k, pages),
        out(s.m, s.n, pages) {
    const std::vector<float> floats = weight_floats(s.n, s.k);
    std::memcpy(weights.first(), floats.data(), floats.size() * sizeof(float));
    weights.repeat();
  }

  void run(Index wanted_threads) {
    if (wanted_threads != n_threads) {
      n_threads = wanted_threads;
      openblas_set_num_threads(static_cast<int>(n_threads));
    }
    const auto m = static_cast<blasint>(sizes.m), n = static_cast<blasint>(sizes.n),
               k = static_cast<blasint>(sizes.k);
    const auto* const w = reinterpret_cast<const float*>(weights.next());
    if (m == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1, w, k, x.view.data(), 1, 0, out.view.data(),
                  1);
    } else {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x.view.data(), k, w, k, 0,
                  out.view.data(), n);
    }
  }

  Sizes sizes;
  Copies weights;
  Floats x, out;
  Index n_threads = 0;
};

}  // namespace

std::optional<Case> openblas_case(const CaseOptions& options, const Case& of) {
  const auto sizes = sizes_of(of);
  if (of.kernel != "matmul" || of.format != "f32" || !sizes) return std::nullopt;
  Case c = of;
  const Index n_copies = copies_for(options, of, 4.0 * static_cast<double>(sizes->n * sizes->k));
  c.prepare = [sizes = *sizes, n_copies, pages = options.pages]() -> Body {
    auto product = std::make_shared<Product>(sizes, n_copies, pages);
    return [product](nibble::Executor& executor) { product->run(executor.n_workers()); };
  };
  return c;
}

}  // namespace bench
