// SPDX-License-Identifier: Apache-2.0
//
// The reference of a random model.
#pragma once

#include "model/random_model.hpp"
#include "model/reference.hpp"

namespace test {

inline Reference reference_of(const RandomModel& model) {
  const ModelShape& s = model.shape();
  Reference r;
  r.is_gpt2 = s.architecture == Architecture::gpt2;
  r.dim = static_cast<int>(s.dim);
  r.n_layers = static_cast<int>(s.n_layers);
  r.n_heads = static_cast<int>(s.n_heads);
  r.n_kv_heads = static_cast<int>(s.n_kv_heads);
  r.head_dim = static_cast<int>(s.head_dim);
  r.window = static_cast<int>(s.window);
  r.rope_dim = static_cast<int>(s.rope_dim);
  r.eps = static_cast<double>(s.norm_eps);
  r.rope_theta = static_cast<double>(s.rope_theta);
  r.rope_scale = static_cast<double>(s.rope_scale);
  for (const RandomTensor& t : model.tensors()) {
    r.tensors[t.name()].assign(t.values.begin(), t.values.end());
  }
  if (!model.rope_factors().empty()) {
    r.tensors["rope_freqs.weight"].assign(model.rope_factors().begin(), model.rope_factors().end());
  }
  return r;
}

}  // namespace test
