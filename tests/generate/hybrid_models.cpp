// SPDX-License-Identifier: Apache-2.0
#include "generate/hybrid_models.hpp"

#include "generate/surveyed_model.hpp"
#include "nibble/model/granite_hybrid.hpp"
#include "nibble/model/lfm2.hpp"
#include "nibble/model/qwen35.hpp"

using namespace nibble;

Model test::lfm2_model() {
  auto c = small_config<HybridConfig>("lfm2", 4);
  c.n_taps = 3;
  set_recurrent_layers(c, [](Index layer) { return layer % 2 == 0; });
  return surveyed_model<Lfm2>(c);
}

Model test::qwen35_model() {
  auto c = small_config<HybridConfig>("qwen35", 4);
  c.n_taps = 4;
  c.delta_heads = {4, 2, {16, 24}};
  c.recurrent_eps = c.norm_eps;
  set_recurrent_layers(c, [](Index layer) { return layer % 4 != 3; });
  return surveyed_model<Qwen35>(c, 1, static_cast<std::size_t>(Slot::ssm_a));
}

Model test::granite_hybrid_model() {
  auto c = small_config<HybridConfig>("granitehybrid", 4);
  c.n_taps = 4;
  c.delta_heads = {8, 1, {24, 16}};
  c.recurrent_eps = c.norm_eps;
  set_recurrent_layers(c, [](Index layer) { return layer != 1; });
  return surveyed_model<GraniteHybrid>(c, 1, static_cast<std::size_t>(Slot::ssm_a));
}
