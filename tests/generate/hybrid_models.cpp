// SPDX-License-Identifier: Apache-2.0
#include "generate/hybrid_models.hpp"

#include "generate/surveyed_model.hpp"
#include "nibble/model/gemma4.hpp"
#include "nibble/model/granite_hybrid.hpp"
#include "nibble/model/lfm2moe.hpp"
#include "nibble/model/qwen35moe.hpp"

using namespace nibble;

namespace {

template <class Config>
Config lfm2_sizes(const char* architecture) {
  auto c = test::small_config<Config>(architecture, 4);
  c.n_taps = 3;
  set_recurrent_layers(c, [](Index layer) { return layer % 2 == 0; });
  return c;
}

template <class Config>
Config qwen35_sizes(const char* architecture) {
  auto c = test::small_config<Config>(architecture, 4);
  c.n_taps = 4;
  c.delta_heads = {4, 2, {16, 24}};
  c.recurrent_eps = c.norm_eps;
  set_recurrent_layers(c, [](Index layer) { return layer % 4 != 3; });
  return c;
}

void add_experts(ExpertConfig& c, graph::RouterScores scores) {
  c.routing = {.n_experts = 5, .n_used = 2, .scores = scores, .is_normalized = true};
  c.expert_ffn_dim = Dim<>{40};
  c.shared_ffn_dim = Dim<>{24};
}

}  // namespace

Model test::lfm2_model() { return surveyed_model<Lfm2>(lfm2_sizes<HybridConfig>("lfm2")); }

Model test::lfm2moe_model() {
  auto c = lfm2_sizes<HybridMoeConfig>("lfm2moe");
  add_experts(c, graph::RouterScores::sigmoid);
  for (Index layer = 0; layer < 4; ++layer) {
    c.are_dense.push_back({layer == 0});
    c.have_experts.push_back({layer > 0});
  }
  return surveyed_model<Lfm2Moe>(c);
}

Model test::qwen35_model() {
  return surveyed_model<Qwen35>(qwen35_sizes<HybridConfig>("qwen35"), 1,
                                static_cast<std::size_t>(Slot::ssm_a));
}

Model test::qwen35moe_model() {
  auto c = qwen35_sizes<HybridMoeConfig>("qwen35moe");
  add_experts(c, graph::RouterScores::softmax);
  return surveyed_model<Qwen35Moe>(c, 1, static_cast<std::size_t>(Slot::ssm_a));
}

Model test::gemma4_model() {
  auto c = small_config<Gemma4Config>("gemma4", 5);
  c.attention_scale = 1;
  c.input_width = 32;
  for (const bool has_window : {true, false, true, true, false}) {
    const auto layer = static_cast<Index>(c.windows.size());
    const Index head_dim = has_window ? 16 : 24;
    c.windows.push_back({has_window ? 20 : 0});
    c.have_window.push_back({has_window});
    c.are_full.push_back({!has_window});
    c.head_dims.push_back({head_dim});
    c.q_widths.push_back({4 * head_dim});
    c.kv_widths.push_back({2 * head_dim});
    c.have_kv.push_back({layer < 2});
    c.share_kv.push_back({layer >= 2});
    c.kv_layers.push_back({has_window ? 0 : 1});
  }
  return surveyed_model<Gemma4>(c);
}

Model test::granite_hybrid_model() {
  auto c = small_config<HybridConfig>("granitehybrid", 4);
  c.n_taps = 4;
  c.delta_heads = {8, 1, {24, 16}};
  c.recurrent_eps = c.norm_eps;
  set_recurrent_layers(c, [](Index layer) { return layer != 1; });
  return surveyed_model<GraniteHybrid>(c, 1, static_cast<std::size_t>(Slot::ssm_a));
}
