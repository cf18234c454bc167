// SPDX-License-Identifier: Apache-2.0
//
// A folder whose tensors are not GGUF's, one for one: experts of a tensor each or in one, recurrent
// layers whose heads change places, MXFP4 (hub/made_tensors.hpp makes them).
#include "nibble/hub/made_tensors.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "hub_folder.hpp"
#include "nibble/hub/open.hpp"
#include "why.hpp"

namespace made_tensors_test {

using namespace nibble;
using test::HubWeights;
using test::TemporaryFolder;
using test::values_of;

namespace {

constexpr const char* kSizes =
    R"("num_hidden_layers":1,"num_attention_heads":2,"max_position_embeddings":16,)"
    R"("rms_norm_eps":1e-5,)";

}  // namespace

TEST_CASE("experts: of a tensor each, and gates with what they multiply in one tensor") {
  const TemporaryFolder folder;
  const std::string config =
      R"({"hidden_size":8,"intermediate_size":2,"num_hidden_layers":1,"num_attention_heads":2,)"
      R"("max_position_embeddings":16,"rms_norm_eps":1e-5,"num_local_experts":3,)"
      R"("num_experts_per_tok":2,"shared_intermediate_size":4,"architectures":)";
  const std::string at = "model.layers.0.";
  const test::HubWeights table{"model.embed_tokens.weight", {7, 8}, {}};
  test::write_hub_folder(folder, config + R"(["GraniteMoeSharedForCausalLM"]})",
                         {table,
                          {at + "block_sparse_moe.input_linear.weight", {3, 4, 8}, {}},
                          {at + "block_sparse_moe.output_linear.weight", {3, 8, 2}, {}},
                          {at + "block_sparse_moe.router.layer.weight", {3, 8}, {}},
                          {at + "shared_mlp.input_linear.weight", {8, 8}, {}}});
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(*gguf->get_u32("granitemoe.expert_count") == 3);
  CHECK(*gguf->get_u32("granitemoe.expert_used_count") == 2);
  CHECK(*gguf->get_u32("granitemoe.expert_shared_feed_forward_length") == 4);
  const auto check = [&](const char* name, std::uint64_t n, float first) {
    CAPTURE(std::string(name));
    const io::GgufTensor* const tensor = gguf->find_tensor(name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor->n_dims == 2);
    CHECK(tensor->dims[0] == 8);
    CHECK(tensor->dims[1] == n);
    CHECK(tensor->data.size() == n * 8 * sizeof(float));
    CHECK(io::load_le<float>(tensor->data.data()) == first);
  };
  check("blk.0.ffn_gate.0.weight", 2, 0);
  check("blk.0.ffn_up.0.weight", 2, 16);
  check("blk.0.ffn_gate.2.weight", 2, 64);
  check("blk.0.ffn_up.2.weight", 2, 80);
  check("blk.0.ffn_gate_shexp.weight", 4, 0);
  check("blk.0.ffn_up_shexp.weight", 4, 32);
  check("blk.0.ffn_gate_inp.weight", 3, 0);
  CHECK(gguf->find_tensor("blk.0.ffn_down_exps.weight")->dims[2] == 3);

  // An odd number of rows.
  test::write_hub_folder(folder, config + R"(["GraniteMoeForCausalLM"]})",
                         {table, {at + "block_sparse_moe.input_linear.weight", {3, 5, 8}, {}}});
  const auto odd = hub::open(folder.path(""));
  REQUIRE_FALSE(odd);
  CHECK(odd.error().code == Errc::malformed);

  const std::string of = at + "mlp.experts.";
  const std::string qwen =
      R"("moe_intermediate_size":2,"norm_topk_prob":true,"architectures":["Qwen3MoeForCausalLM"]})";
  const auto qwen_config = config.substr(0, config.find(R"("shared)")) + qwen;
  test::write_hub_folder(folder, qwen_config,
                         {table,
                          {at + "mlp.gate.weight", {3, 8}, {}},
                          {of + "2.gate_proj.weight", {2, 8}, {}},
                          {of + "10.down_proj.weight", {8, 8}, {}}});
  const auto apart = hub::open(folder.path(""));
  REQUIRE_MESSAGE(apart, test::why(apart));
  CHECK(*apart->get_bool("qwen3moe.expert_weights_norm"));
  CHECK(*apart->get_u32("qwen3moe.expert_feed_forward_length") == 2);
  CHECK(apart->find_tensor("blk.0.ffn_gate.2.weight") != nullptr);
  CHECK(apart->find_tensor("blk.0.ffn_down.10.weight") != nullptr);
  CHECK(apart->find_tensor("blk.0.ffn_gate_inp.weight") != nullptr);
}

TEST_CASE("recurrent layers: heads of values change places, decays are made") {
  const TemporaryFolder folder;
  const std::string at = "model.language_model.layers.0.linear_attn.";
  const std::string config =
      std::string(R"({"architectures":["Qwen3_5ForConditionalGeneration"],"text_config":{)") +
      kSizes +
      R"("hidden_size":4,"intermediate_size":8,"linear_num_key_heads":2,"linear_key_head_dim":1,)"
      R"("linear_num_value_heads":4,"linear_value_head_dim":1,"head_dim":4,)"
      R"("rope_parameters":{"rope_theta":1e7,"partial_rotary_factor":0.5},)"
      R"("layer_types":["linear_attention"]}})";
  const std::vector<test::HubWeights> tensors = {
      {"model.language_model.embed_tokens.weight", {7, 4}, {}},
      {"model.visual.blocks.0.weight", {2, 2}, {}},
      {"mtp.fc.weight", {2, 2}, {}},
      {"model.language_model.layers.0.input_layernorm.weight", {4}, {}},
      {at + "A_log", {4}, {}},
      {at + "dt_bias", {4}, {}},
      {at + "norm.weight", {1}, {5}},
      {at + "in_proj_qkv.weight", {8, 4}, {}},
      {at + "in_proj_a.weight", {4, 4}, {}, "F32"},
      {at + "conv1d.weight", {8, 1, 4}, {}},
      {at + "out_proj.weight", {4, 4}, {}}};
  test::write_hub_folder(folder, config, tensors);
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(*gguf->get_u32("qwen35.ssm.time_step_rank") == 4);
  CHECK(*gguf->get_u32("qwen35.ssm.inner_size") == 4);
  CHECK(*gguf->get_u32("qwen35.rope.dimension_count") == 2);
  const auto rows = values_of(*gguf, "blk.0.attn_qkv.weight");
  const auto taps = values_of(*gguf, "blk.0.ssm_conv1d.weight");
  const std::size_t order[] = {0, 1, 2, 3, 4, 6, 5, 7};  // keys and queries stay
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(rows[4 * i + 1] == static_cast<float>(4 * order[i] + 1));
    CHECK(taps[4 * i + 3] == static_cast<float>(4 * order[i] + 3));
  }
  CHECK(gguf->find_tensor("blk.0.ssm_conv1d.weight")->n_dims == 2);
  CHECK(values_of(*gguf, "blk.0.ssm_dt.bias") == std::vector<float>{0, 2, 1, 3});
  CHECK(values_of(*gguf, "blk.0.ssm_alpha.weight")[4] == 8);
  const auto columns = values_of(*gguf, "blk.0.ssm_out.weight");
  CHECK(std::vector<float>(columns.begin() + 4, columns.begin() + 8) ==
        std::vector<float>{4, 6, 5, 7});
  const auto decays = values_of(*gguf, "blk.0.ssm_a");
  for (const auto& [i, power] : {std::pair{0, 0.0}, {1, 2.0}, {2, 1.0}, {3, 3.0}}) {
    CHECK(decays[static_cast<std::size_t>(i)] == doctest::Approx(-std::exp(power)).epsilon(1e-6));
  }
  CHECK(values_of(*gguf, "blk.0.ssm_norm.weight")[0] == 5);
  CHECK(values_of(*gguf, "blk.0.attn_norm.weight")[1] == 2);

  // Shapes and numbers of heads that do not go together.
  for (const std::size_t i : {4u, 7u, 10u}) {
    auto broken = tensors;
    broken[i].shape.back() = 3;
    test::write_hub_folder(folder, config, broken);
    const auto opened = hub::open(folder.path(""));
    if (i == 7) continue;  // rows of another length: loading them finds out
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == Errc::malformed);
  }
  for (const char* const heads : {"3", "0", "4294967295", "1.5"}) {
    std::string other = config;
    const std::string key = R"("linear_num_value_heads":)";
    other.replace(other.find(key) + key.size(), 1, heads);
    test::write_hub_folder(folder, other, tensors);
    const auto opened = hub::open(folder.path(""));
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == Errc::malformed);
  }

  const std::string of = "model.layers.0.mamba.";
  test::write_hub_folder(
      folder,
      std::string(R"({"architectures":["GraniteMoeHybridForCausalLM"],)") + kSizes +
          R"("hidden_size":4,"intermediate_size":8,"shared_intermediate_size":6,)"
          R"("mamba_n_heads":4,"mamba_d_head":2,"mamba_d_state":3,"layer_types":["mamba"]})",
      {{"model.embed_tokens.weight", {7, 4}, {}},
       {of + "A_log", {4}, {}},
       {of + "D", {4}, {}},
       {of + "conv1d.weight", {14, 1, 4}, {}},
       {of + "conv1d.bias", {14}, {}},
       {"model.layers.0.shared_mlp.input_linear.weight", {12, 4}, {}}});
  const auto granite = hub::open(folder.path(""));
  REQUIRE_MESSAGE(granite, test::why(granite));
  CHECK(values_of(*granite, "blk.0.ssm_a")[1] == doctest::Approx(-std::exp(1.0)));
  CHECK(values_of(*granite, "blk.0.ssm_conv1d.bias")[13] == 13);
  CHECK(granite->find_tensor("blk.0.ssm_a")->dims[1] == 4);
  CHECK(values_of(*granite, "blk.0.ssm_d") == std::vector<float>{0, 1, 2, 3});
  CHECK(values_of(*granite, "blk.0.ffn_up.weight")[0] == 24);
  CHECK_FALSE(*granite->get_bool("granitehybrid.rope.scaling.finetuned"));
  CHECK(*granite->get_u32("granitehybrid.feed_forward_length") == 6);
}

TEST_CASE("gpt-oss: experts in MXFP4 and as they were trained") {
  const TemporaryFolder folder;
  const std::string config =
      std::string(R"({"architectures":["GptOssForCausalLM"],)") + kSizes +
      R"("hidden_size":32,"intermediate_size":1,"num_local_experts":1,"num_experts_per_tok":1,)"
      R"("sliding_window":8,"quantization_config":{"quant_method":"mxfp4"}})";
  const std::string of = "model.layers.0.mlp.experts.";
  test::HubWeights blocks{of + "gate_up_proj_blocks", {1, 2, 1, 16}, {}, "U8"};
  for (int row = 0; row < 2; ++row) {  // weight i of a row is code i + row
    for (int i = 0; i < 32; i += 2) {
      blocks.values.push_back(static_cast<float>((i + row) % 16 + (i + row + 1) % 16 * 16));
    }
  }
  const test::HubWeights table{"model.embed_tokens.weight", {7, 32}, {}};
  const test::HubWeights scales{of + "gate_up_proj_scales", {1, 2, 1}, {120, 121}, "U8"};
  const test::HubWeights biases{of + "gate_up_proj_bias", {1, 2}, {}};
  test::write_hub_folder(folder, config,
                         {table,
                          blocks,
                          scales,
                          biases,
                          {of + "down_proj_bias", {1, 32}, {}},
                          {"model.layers.0.self_attn.sinks", {2}, {}}});
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  for (const auto& [name, row] : {std::pair("gate", 0u), std::pair("up", 1u)}) {
    const std::string stem = std::string("blk.0.ffn_") + name + "_exps.";
    const io::GgufTensor* const tensor = gguf->find_tensor(stem + "weight");
    REQUIRE(tensor != nullptr);
    CHECK(tensor->type == io::GgmlType::mxfp4);
    CHECK(tensor->dims == std::array<std::uint64_t, 4>{32, 1, 1, 1});
    REQUIRE(tensor->data.size() == 17);
    CHECK(std::to_integer<unsigned>(tensor->data[0]) == 120 + row);
    for (unsigned i = 0; i < 16; ++i) {
      CHECK(std::to_integer<unsigned>(tensor->data[1 + i]) == (i + row) % 16 * 17);
    }
    CHECK(values_of(*gguf, stem + "bias") == std::vector<float>{static_cast<float>(row)});
  }
  CHECK(gguf->find_tensor("blk.0.ffn_down_exps.bias") != nullptr);
  CHECK(gguf->find_tensor("blk.0.attn_sinks.weight") != nullptr);

  // Without scales, and with others.
  test::write_hub_folder(folder, config, {table, blocks});
  CHECK(hub::open(folder.path("")).error().code == Errc::not_found);
  test::write_hub_folder(folder, config, {table, blocks, {scales.name, {1, 1, 1}, {120}, "U8"}});
  CHECK(hub::open(folder.path("")).error().code == Errc::malformed);

  // Not quantized: (inputs, outputs).
  test::write_hub_folder(folder, config,
                         {table,
                          {of + "gate_up_proj", {1, 3, 4}, {}},
                          {of + "gate_up_proj_bias", {1, 4}, {}},
                          {of + "down_proj", {1, 2, 3}, {}}});
  const auto floats = hub::open(folder.path(""));
  REQUIRE_MESSAGE(floats, test::why(floats));
  CHECK(values_of(*floats, "blk.0.ffn_gate_exps.weight") == std::vector<float>{0, 4, 8, 2, 6, 10});
  CHECK(values_of(*floats, "blk.0.ffn_up_exps.weight") == std::vector<float>{1, 5, 9, 3, 7, 11});
  CHECK(values_of(*floats, "blk.0.ffn_up_exps.bias") == std::vector<float>{1, 3});
  CHECK(values_of(*floats, "blk.0.ffn_down_exps.weight") == std::vector<float>{0, 3, 1, 4, 2, 5});
  test::write_hub_folder(folder, config, {table, {of + "gate_up_proj", {1, 3, 5}, {}}});
  CHECK(hub::open(folder.path("")).error().code == Errc::malformed);
}

}  // namespace made_tensors_test
