// SPDX-License-Identifier: Apache-2.0
//
// A folder opens as what a GGUF file is: its keys, the names of its tensors, and their order.
#include "nibble/hub/open.hpp"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "hub_folder.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/tokenizer_keys.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "why.hpp"

namespace open_test {

using namespace nibble;
using test::HubWeights;
using test::TemporaryFolder;
using test::values_of;

namespace {

std::vector<float> expected(std::size_t n, const std::function<std::size_t(std::size_t)>& from) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<float>(from(i));
  return values;
}

std::string value_text(const io::GgufValue& value) {
  if (value.is_array()) return "array of " + std::to_string(value.size());
  if (const auto text = value.as<std::string_view>()) return std::string(*text);
  if (const auto truth = value.as<bool>()) return *truth ? "true" : "false";
  if (const auto integer = value.as<std::uint64_t>()) return std::to_string(*integer);
  return to_text(*value.as<double>());
}

// All keys of an architecture, "name=value " one after the other, sorted.
std::string keys_of(const io::Gguf& gguf) {
  const std::string prefix = std::string(*gguf.get_string("general.architecture")) + '.';
  std::vector<std::string> keys;
  for (const auto& [key, value] : gguf.metadata()) {
    if (!key.starts_with(prefix)) continue;
    keys.push_back(std::string(key.substr(prefix.size())) + "=" + value_text(value) + " ");
  }
  std::sort(keys.begin(), keys.end());
  std::string all;
  for (const std::string& key : keys) all += key;
  return all;
}

const std::string kLlama =
    R"({"architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":12,)"
    R"("num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,)"
    R"("max_position_embeddings":64,"rms_norm_eps":1e-05,"hidden_act":"silu","rope_scaling":null)";

}  // namespace

TEST_CASE("llama: names, keys, and rows of q and k for adjacent pairs") {
  const TemporaryFolder folder;
  test::write_hub_folder(folder, kLlama + R"(,"rope_theta":500000.0,"tie_word_embeddings":false})",
                         {{"model.embed_tokens.weight", {5, 8}, {}},
                          {"model.layers.0.input_layernorm.weight", {8}, {}},
                          {"model.layers.0.self_attn.q_proj.weight", {8, 8}, {}},
                          {"model.layers.0.self_attn.q_proj.bias", {8}, {}},
                          {"model.layers.0.self_attn.k_proj.weight", {4, 8}, {}},
                          {"model.layers.0.self_attn.v_proj.weight", {4, 8}, {}},
                          {"model.layers.0.self_attn.o_proj.weight", {8, 8}, {}},
                          {"model.layers.0.self_attn.rotary_emb.inv_freq", {2}, {}},
                          {"model.layers.0.post_attention_layernorm.weight", {8}, {}},
                          {"model.layers.0.mlp.gate_proj.weight", {12, 8}, {}},
                          {"model.layers.0.mlp.up_proj.weight", {12, 8}, {}},
                          {"model.layers.0.mlp.down_proj.weight", {8, 12}, {}},
                          {"model.norm.weight", {8}, {}},
                          {"lm_head.weight", {5, 8}, {}}});
  const auto gguf = open_model(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(keys_of(*gguf) ==
        "attention.head_count=2 attention.head_count_kv=1 attention.layer_norm_rms_epsilon=1e-05 "
        "block_count=1 context_length=64 embedding_length=8 feed_forward_length=12 "
        "rope.dimension_count=4 rope.freq_base=500000 vocab_size=5 ");
  CHECK(*gguf->get_u32("general.file_type") == 0);
  CHECK(test::contains(std::string(*gguf->get_string(hub::kTokenizerErrorKey)),
                       "the folder has no tokenizer.json and no tokenizer.model"));
  std::string names;
  for (const io::GgufTensor& tensor : gguf->tensors()) names += std::string(tensor.name) + " ";
  CHECK(names ==
        "token_embd.weight blk.0.attn_norm.weight blk.0.attn_q.weight blk.0.attn_q.bias "
        "blk.0.attn_k.weight blk.0.attn_v.weight blk.0.attn_output.weight blk.0.ffn_norm.weight "
        "blk.0.ffn_gate.weight blk.0.ffn_up.weight blk.0.ffn_down.weight output_norm.weight "
        "output.weight ");
  CHECK(gguf->files().size() == 1);
  CHECK(gguf->find_tensor("token_embd.weight")->dims[0] == 8);
  CHECK(gguf->find_tensor("token_embd.weight")->dims[1] == 5);
  // Row 2 i + j of a head is row j * 2 + i of the hub's (j: which half).
  const auto row = [](std::size_t r) { return r / 4 * 4 + r % 2 * 2 + r % 4 / 2; };
  CHECK(values_of(*gguf, "blk.0.attn_q.weight") ==
        expected(64, [&](std::size_t i) { return row(i / 8) * 8 + i % 8; }));
  CHECK(values_of(*gguf, "blk.0.attn_q.bias") == expected(8, row));
  CHECK(values_of(*gguf, "blk.0.attn_k.weight") ==
        expected(32, [&](std::size_t i) { return row(i / 8) * 8 + i % 8; }));
  CHECK(values_of(*gguf, "blk.0.attn_v.weight") == expected(32, [](std::size_t i) { return i; }));

  // A writer writes it in its order.
  io::GgufWriter writer;
  writer.copy_metadata(*gguf);
  for (const io::GgufTensor& tensor : gguf->tensors()) writer.add_tensor(tensor);
  const auto bytes = writer.to_bytes();
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  const auto again = io::Gguf::parse(*bytes, "again");
  REQUIRE_MESSAGE(again, test::why(again));
  CHECK_FALSE(again->find_tensor("blk.0.attn_q.weight")->swapped.any());
  CHECK(values_of(*again, "blk.0.attn_q.weight") == values_of(*gguf, "blk.0.attn_q.weight"));
  CHECK(keys_of(*again) == keys_of(*gguf));
}

TEST_CASE("tied embeddings leave lm_head out; llama 3 has divisors of frequencies") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":12,)"
      R"("num_hidden_layers":1,"num_attention_heads":4,"max_position_embeddings":512,)"
      R"("rms_norm_eps":1e-6,"head_dim":16,"tie_word_embeddings":true,"rope_parameters":)"
      R"({"rope_type":"llama3","rope_theta":10000.0,"factor":8.0,"low_freq_factor":1.0,)"
      R"("high_freq_factor":4.0,"original_max_position_embeddings":64}})",
      {{"lm_head.weight", {3, 2}, {}}, {"model.embed_tokens.weight", {3, 2}, {}, "BF16"}});
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(gguf->find_tensor("output.weight") == nullptr);
  CHECK(gguf->find_tensor("token_embd.weight")->type == io::GgmlType::bf16);
  CHECK(*gguf->get_u32("general.file_type") == 32);
  // What transformers compute of this configuration.
  const float golden[] = {1.0f, 1.293976f, 7.667385f, 8, 8, 8, 8, 8};
  const auto factors = values_of(*gguf, "rope_freqs.weight");
  REQUIRE(factors.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) CHECK(std::abs(factors[i] - golden[i]) < 1e-5f);
}

TEST_CASE("gpt-2: what is stored (inputs, outputs) is transposed") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["GPT2LMHeadModel"],"n_embd":4,"n_layer":1,"n_head":2,"n_positions":8,)"
      R"("n_inner":null,"layer_norm_epsilon":1e-05,"activation_function":"gelu_new"})",
      {{"wte.weight", {5, 4}, {}},
       {"transformer.h.0.attn.c_attn.weight", {4, 12}, {}},
       {"h.0.attn.c_attn.bias", {12}, {}},
       {"h.0.attn.bias", {1, 1, 8, 8}, {}},
       {"h.0.mlp.c_proj.weight", {16, 4}, {}, "F64"}});
  const auto refused = hub::open(folder.path(""));
  REQUIRE_FALSE(refused);
  CHECK(test::contains(refused.error().message,
                       "model.safetensors: tensor 'h.0.mlp.c_proj.weight'"
                       ": element type F64; save the model in F32"));
  folder.write("model.safetensors",
               test::safetensors_of({{"wte.weight", {5, 4}, {}},
                                     {"transformer.h.0.attn.c_attn.weight", {4, 12}, {}},
                                     {"h.0.attn.c_attn.bias", {12}, {}},
                                     {"h.0.attn.bias", {1, 1, 8, 8}, {}},
                                     {"h.0.ln_1.weight", {4}, {}, "F64"}}));
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(gguf->tensors().size() == 4);
  const auto* const qkv = gguf->find_tensor("blk.0.attn_qkv.weight");
  REQUIRE(qkv != nullptr);
  CHECK(qkv->dims[0] == 4);
  CHECK(qkv->dims[1] == 12);
  CHECK(values_of(*gguf, "blk.0.attn_qkv.weight") ==
        expected(48, [](std::size_t i) { return i % 4 * 12 + i / 4; }));
  CHECK(values_of(*gguf, "blk.0.attn_qkv.bias") == expected(12, [](std::size_t i) { return i; }));
  CHECK(values_of(*gguf, "blk.0.attn_norm.weight") == expected(4, [](std::size_t i) { return i; }));
  CHECK(*gguf->get_u32("gpt2.feed_forward_length") == 16);
}

TEST_CASE("gpt-neox: q, k and v of each head become all of q, all of k, all of v") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["GPTNeoXForCausalLM"],"hidden_size":4,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"intermediate_size":8,"max_position_embeddings":8,)"
      R"("layer_norm_eps":1e-05,"hidden_act":"gelu","rotary_pct":1.0,"rotary_emb_base":20000})",
      {{"gpt_neox.embed_in.weight", {3, 4}, {}},
       {"gpt_neox.layers.0.attention.bias", {1, 1, 8, 8}, {}},
       {"gpt_neox.layers.0.attention.query_key_value.weight", {12, 4}, {}},
       {"gpt_neox.layers.0.attention.query_key_value.bias", {12}, {}}});
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  // Row (part, head, i) is row (head, part, i) of the hub's, with 2 heads of 2 rows.
  const auto row = [](std::size_t r) { return r / 2 % 2 * 6 + r / 4 * 2 + r % 2; };
  CHECK(values_of(*gguf, "blk.0.attn_qkv.weight") ==
        expected(48, [&](std::size_t i) { return row(i / 4) * 4 + i % 4; }));
  CHECK(values_of(*gguf, "blk.0.attn_qkv.bias") == expected(12, row));
  CHECK(*gguf->get_bool("gptneox.use_parallel_residual"));
  CHECK(*gguf->get_f32("gptneox.rope.freq_base") == 20000);
}

TEST_CASE("gemma: one is added to norms; the text model of one that sees") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["Gemma3ForConditionalGeneration"],"model_type":"gemma3","text_config":)"
      R"({"hidden_size":16,"intermediate_size":8,"num_hidden_layers":7,"sliding_window":1024,)"
      R"("rope_scaling":{"factor":8.0,"rope_type":"linear"},"head_dim":4},"hidden_size":99})",
      {{"language_model.model.embed_tokens.weight", {3, 16}, {}},
       {"language_model.model.layers.0.self_attn.q_norm.weight", {4}, {0.5f, 1, -1, 0}, "BF16"},
       {"model.language_model.norm.weight", {4}, {}},
       {"language_model.lm_head.weight", {3, 16}, {}},
       {"vision_tower.vision_model.embeddings.patch_embedding.weight", {2, 3, 4, 4}, {}}});
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(keys_of(*gguf) ==
        "attention.head_count=8 attention.head_count_kv=4 attention.key_length=4 "
        "attention.layer_norm_rms_epsilon=1e-06 attention.sliding_window=1024 "
        "attention.value_length=4 block_count=7 context_length=131072 embedding_length=16 "
        "feed_forward_length=8 rope.dimension_count=4 rope.freq_base=1e+06 rope.scaling.factor=8 "
        "rope.scaling.type=linear vocab_size=3 ");
  CHECK(gguf->tensors().size() == 3);
  CHECK(values_of(*gguf, "blk.0.attn_q_norm.weight") == std::vector<float>{1.5f, 2, 0, 1});
  CHECK(values_of(*gguf, "output_norm.weight") == std::vector<float>{1, 2, 3, 4});
}

TEST_CASE("keys of the other architectures") {
  const TemporaryFolder folder;
  folder.write("model.safetensors", test::safetensors_of({}));
  const auto keys = [&](const std::string& architecture, const std::string& more) {
    test::write_text(folder, "config.json",
                     R"({"hidden_size":16,"intermediate_size":24,"num_hidden_layers":4,)"
                     R"("num_attention_heads":4,"max_position_embeddings":64,"architectures":[")" +
                         architecture + "\"]" + more + "}");
    const auto gguf = hub::open(folder.path(""));
    if (!gguf) return gguf.error().message;
    return std::string(*gguf->get_string("general.architecture")) + " " + keys_of(*gguf);
  };
  const auto common = [](const std::string& eps) {
    return "attention.layer_norm_" + eps +
           " block_count=4 context_length=64 embedding_length=16 feed_forward_length=24 ";
  };
  const std::string rms = R"(,"rms_norm_eps":1e-6)";
  const std::string rope = "rope.dimension_count=4 rope.freq_base=10000 ";

  CHECK(keys("Qwen2ForCausalLM", rms + R"(,"use_sliding_window":false,"sliding_window":9)") ==
        "qwen2 attention.head_count=4 " + common("rms_epsilon=1e-06") + rope + "vocab_size=0 ");
  CHECK(keys("Qwen3ForCausalLM", rms + R"(,"head_dim":8,"num_key_value_heads":2)") ==
        "qwen3 attention.head_count=4 attention.head_count_kv=2 attention.key_length=8 "
        "attention.layer_norm_rms_epsilon=1e-06 attention.value_length=8 block_count=4 "
        "context_length=64 embedding_length=16 feed_forward_length=24 rope.dimension_count=8 "
        "rope.freq_base=10000 vocab_size=0 ");
  CHECK(keys("Gemma2ForCausalLM", R"(,"head_dim":4,"query_pre_attn_scalar":16)") ==
        "gemma2 attention.head_count=4 attention.key_length=4 "
        "attention.layer_norm_rms_epsilon=1e-06 attention.scale=0.25 "
        "attention.sliding_window=4096 attention.value_length=4 attn_logit_softcapping=50 "
        "block_count=4 context_length=64 embedding_length=16 feed_forward_length=24 "
        "final_logit_softcapping=30 " +
            rope + "vocab_size=0 ");
  CHECK(keys("Gemma3TextModel",
             R"(,"head_dim":4,"query_pre_attn_scalar":4,"sliding_window":8,"layer_types":)"
             R"(["sliding_attention","full_attention","sliding_attention","full_attention"],)"
             R"("rope_parameters":{"full_attention":{"rope_type":"default","rope_theta":5000.0},)"
             R"("sliding_attention":{"rope_theta":700.0}})") ==
        "gemma-embedding attention.head_count=4 attention.head_count_kv=4 attention.key_length=4 "
        "attention.layer_norm_rms_epsilon=1e-06 attention.sliding_window=8 "
        "attention.sliding_window_pattern=2 attention.value_length=4 block_count=4 "
        "context_length=64 embedding_length=16 feed_forward_length=24 rope.dimension_count=4 "
        "rope.freq_base=5000 rope.freq_base_swa=700 vocab_size=0 ");
  CHECK(keys("Phi3ForCausalLM",
             rms + R"(,"sliding_window":null,"original_max_position_embeddings":16,)"
                   R"("partial_rotary_factor":0.5,"rope_scaling":{"type":"longrope",)"
                   R"("long_factor":[2.5],"short_factor":[1.0]})") ==
        "phi3 attention.head_count=4 attention.layer_norm_rms_epsilon=1e-06 "
        "attention.sliding_window=0 block_count=4 context_length=64 embedding_length=16 "
        "feed_forward_length=24 rope.dimension_count=2 rope.freq_base=10000 "
        "rope.scaling.attn_factor=1.22474 rope.scaling.original_context_length=16 vocab_size=0 ");
  {
    const auto gguf = hub::open(folder.path(""));
    REQUIRE(gguf);
    CHECK(values_of(*gguf, "rope_factors_long.weight") == std::vector<float>{2.5f});
    CHECK(values_of(*gguf, "rope_factors_short.weight") == std::vector<float>{1});
  }
  CHECK(keys("Olmo2ForCausalLM", rms) ==
        "olmo2 attention.head_count=4 " + common("rms_epsilon=1e-06") + rope + "vocab_size=0 ");
  CHECK(keys("Olmo3ForCausalLM", rms + R"(,"sliding_window":8)") ==
        "olmo2 attention.head_count=4 attention.layer_norm_rms_epsilon=1e-06 "
        "attention.sliding_window=8 attention.sliding_window_pattern=array of 4 block_count=4 "
        "context_length=64 embedding_length=16 feed_forward_length=24 " +
            rope + "vocab_size=0 ");
  {
    const auto gguf = hub::open(folder.path(""));
    REQUIRE(gguf);
    const auto* const pattern = gguf->find("olmo2.attention.sliding_window_pattern");
    CHECK(pattern->encoded()[12] == std::byte{1});
    CHECK(pattern->encoded()[15] == std::byte{0});
  }
  CHECK(keys("GraniteForCausalLM", rms + R"(,"attention_multiplier":0.25,"embedding_multiplier":3,)"
                                         R"("residual_multiplier":0.5,"logits_scaling":2)") ==
        "granite attention.head_count=4 attention.layer_norm_rms_epsilon=1e-06 "
        "attention.scale=0.25 block_count=4 context_length=64 embedding_length=16 "
        "embedding_scale=3 feed_forward_length=24 logit_scale=2 residual_scale=0.5 " +
            rope + "vocab_size=0 ");
  CHECK(keys("SmolLM3ForCausalLM", rms + R"(,"no_rope_layers":[1,1,1,0])") ==
        "smollm3 attention.head_count=4 " + common("rms_epsilon=1e-06") +
            "rope.dimension_count=4 rope.freq_base=2e+06 vocab_size=0 ");
  CHECK(keys("Ministral3ForCausalLM",
             rms + R"(,"rope_parameters":{"rope_type":"yarn","rope_theta":1000000.0,"factor":4.0,)"
                   R"("original_max_position_embeddings":16,"beta_fast":32.0,"beta_slow":1.0,)"
                   R"("mscale_all_dim":1.0,"llama_4_scaling_beta":0.1})") ==
        "mistral3 attention.head_count=4 attention.layer_norm_rms_epsilon=1e-06 "
        "attention.temperature_scale=0.1 block_count=4 context_length=64 embedding_length=16 "
        "feed_forward_length=24 rope.dimension_count=4 rope.freq_base=1e+06 rope.scaling.factor=4 "
        "rope.scaling.original_context_length=16 rope.scaling.type=yarn "
        "rope.scaling.yarn_beta_fast=32 rope.scaling.yarn_beta_slow=1 "
        "rope.scaling.yarn_log_multiplier=1 vocab_size=0 ");
  CHECK(keys("MistralForCausalLM", rms + R"(,"sliding_window":32)") ==
        "llama attention.head_count=4 attention.layer_norm_rms_epsilon=1e-06 "
        "attention.sliding_window=32 block_count=4 context_length=64 embedding_length=16 "
        "feed_forward_length=24 " +
            rope + "vocab_size=0 ");

  std::filesystem::create_directory(folder.path("1_Pooling"));
  test::write_text(folder, "1_Pooling/config.json",
                   R"({"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true})");
  test::write_text(
      folder, "modules.json",
      R"([{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},)"
      R"({"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}])");
  CHECK(keys("BertModel", R"(,"layer_norm_eps":1e-12,"hidden_act":"gelu")") ==
        "bert attention.causal=false attention.head_count=4 " + common("epsilon=1e-12") +
            "pooling_type=1 vocab_size=0 ");
  CHECK(keys("NomicBertModel",
             R"(,"layer_norm_epsilon":1e-12,"activation_function":"swiglu","n_positions":8192,)"
             R"("rotary_emb_base":1000,"max_trained_positions":48,"rotary_emb_fraction":1.0,)"
             R"("prenorm":false,"causal":false,"qkv_proj_bias":false})")
            .starts_with("nomic-bert") == false);
  CHECK(keys("NomicBertModel",
             R"(,"layer_norm_epsilon":1e-12,"activation_function":"swiglu",)"
             R"("rotary_emb_base":1000,"max_trained_positions":48,"rotary_emb_fraction":1.0,)"
             R"("prenorm":false,"causal":false,"qkv_proj_bias":false)") ==
        "nomic-bert attention.causal=false attention.head_count=4 "
        "attention.layer_norm_epsilon=1e-12 block_count=4 context_length=48 embedding_length=16 "
        "feed_forward_length=24 pooling_type=1 rope.dimension_count=4 rope.freq_base=1000 "
        "vocab_size=0 ");
}

TEST_CASE("products after pooling") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["Gemma3TextModel"],"hidden_size":4,"num_hidden_layers":1,"head_dim":4,)"
      R"("intermediate_size":8,"sliding_window":8})",
      {{"embed_tokens.weight", {3, 4}, {}}});
  test::write_text(folder, "modules.json",
                   R"([{"path":"2_Dense","type":"sentence_transformers.models.Dense"},)"
                   R"({"path":"3_Dense","type":"sentence_transformers.models.Dense"}])");
  for (const char* const name : {"2_Dense", "3_Dense"}) {
    std::filesystem::create_directory(folder.path(name));
    folder.write(std::string(name) + "/model.safetensors",
                 test::safetensors_of({{"linear.weight", {4, 6}, {}}}));
  }
  const auto config = [&](const std::string& path, const std::string& text) {
    test::write_text(folder, path + "/config.json", text);
  };
  const std::string good =
      R"({"in_features":4,"out_features":6,"activation_function":"torch.nn.modules.linear.Identity"})";
  config("2_Dense", good);
  config("3_Dense", R"({"in_features":6,"out_features":4,"activation_function":"x.Identity"})");
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  CHECK(gguf->files().size() == 3);
  CHECK(gguf->find_tensor("dense_2.weight") != nullptr);
  CHECK(gguf->find_tensor("dense_3.weight") != nullptr);
  CHECK(*gguf->get_u32("gemma-embedding.dense_2_feat_out") == 6);
  CHECK(*gguf->get_u32("gemma-embedding.dense_3_feat_in") == 6);
  config("3_Dense", R"({"activation_function":"torch.nn.modules.activation.Tanh"})");
  CHECK(test::contains(hub::open(folder.path("")).error().message, "Tanh' after pooling"));
  config("3_Dense", R"({"in_features":6,"out_features":4})");  // Tanh, if nothing is said
  CHECK(test::contains(hub::open(folder.path("")).error().message, "Tanh' after pooling"));
  config("3_Dense", R"({"in_features":6,"activation_function":"x.Identity"})");
  CHECK(test::contains(hub::open(folder.path("")).error().message, "in_features or out_features"));
}

TEST_CASE("ways of pooling") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["Gemma3TextModel"],"hidden_size":4,"num_hidden_layers":1,"head_dim":4,)"
      R"("intermediate_size":8,"sliding_window":8})",
      {{"embed_tokens.weight", {3, 4}, {}}});
  test::write_text(folder, "modules.json",
                   R"([{"path":"","type":"sentence_transformers.models.Transformer"},)"
                   R"({"path":"1","type":"sentence_transformers.models.Pooling"},)"
                   R"({"path":"2","type":"sentence_transformers.models.Normalize"}])");
  std::filesystem::create_directory(folder.path("1"));
  // GGUF's number, or the error.
  const auto pooling = [&](const std::string& config) {
    test::write_text(folder, "1/config.json", "{" + config + "}");
    const auto gguf = hub::open(folder.path(""));
    return gguf ? to_text(*gguf->get_u32("gemma-embedding.pooling_type"))
                : gguf.error().message.substr(gguf.error().message.find("pooling by"));
  };
  CHECK(pooling(R"("pooling_mode_mean_tokens":true,"pooling_mode_cls_token":false)") == "1");
  CHECK(pooling(R"("pooling_mode_cls_token":true)") == "2");
  CHECK(pooling(R"("pooling_mode_lasttoken":true)") == "3");
  CHECK(pooling(R"("pooling_mode":"mean")") == "1");
  CHECK(pooling(R"("pooling_mode":"cls","pooling_mode_lasttoken":true)") == "2");
  CHECK(pooling(R"("pooling_mode":["lasttoken"])") == "3");
  CHECK(pooling("") == "1");
  const std::string end = " is not computed; one of mean, cls and lasttoken is";
  CHECK(pooling(R"("pooling_mode_cls_token":true,"pooling_mode_mean_tokens":true)") ==
        "pooling by 'cls_token', 'mean_tokens'" + end);
  for (const std::string mode : {"max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens"}) {
    CHECK(pooling("\"pooling_mode_" + mode + "\":true") == "pooling by '" + mode + "'" + end);
  }
  CHECK(pooling(R"("pooling_mode":["mean","max"])") == "pooling by 'mean', 'max'" + end);
}

TEST_CASE("names of encoders") {
  const TemporaryFolder folder;
  test::write_hub_folder(
      folder,
      R"({"architectures":["BertModel"],"hidden_size":4,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"intermediate_size":8,"max_position_embeddings":8,)"
      R"("layer_norm_eps":1e-12})",
      {{"bert.embeddings.word_embeddings.weight", {3, 4}, {}},
       {"embeddings.position_ids", {1, 8}, {}, "I32"},
       {"embeddings.LayerNorm.gamma", {4}, {}},
       {"embeddings.LayerNorm.beta", {4}, {}},
       {"encoder.layer.0.attention.self.query.weight", {4, 4}, {}},
       {"encoder.layer.0.attention.output.LayerNorm.bias", {4}, {}},
       {"encoder.layer.0.output.LayerNorm.weight", {4}, {}},
       {"pooler.dense.weight", {4, 4}, {}},
       {"cls.predictions.bias", {3}, {}}});
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  std::string names;
  for (const io::GgufTensor& tensor : gguf->tensors()) names += std::string(tensor.name) + " ";
  CHECK(names ==
        "token_embd.weight token_embd_norm.weight token_embd_norm.bias blk.0.attn_q.weight "
        "blk.0.attn_output_norm.bias blk.0.layer_output_norm.weight ");
  CHECK_FALSE(gguf->find_tensor("blk.0.attn_q.weight")->swapped.any());
}

TEST_CASE("weights in several files; the chat template; what a folder is called") {
  const TemporaryFolder parent;
  std::filesystem::create_directory(parent.path("tiny"));
  const std::string path = parent.path("tiny");
  test::write_text(parent, "tiny/config.json", kLlama + "}");
  parent.write("tiny/a.safetensors",
               test::safetensors_of(
                   {{"model.norm.weight", {8}, {}}, {"model.embed_tokens.weight", {1, 8}, {}}}));
  parent.write("tiny/b.safetensors",
               test::safetensors_of({{"model.embed_tokens.weight", {5, 8}, {}}}));
  test::write_text(parent, "tiny/model.safetensors.index.json",
                   R"({"metadata":{"total_size":1.5e3,"x":[{}]},"weight_map":{)"
                   R"("model.embed_tokens.weight":"b.safetensors",)"
                   R"("model.norm.weight":"a.safetensors"}})");
  test::write_text(parent, "tiny/tokenizer_config.json",
                   R"({"added_tokens_decoder":{"0":{"content":"<s>"}},"chat_template":"{{ x }}"})");
  for (const char* const ending : {"", "/", "//"}) {
    const auto gguf = open_model(path + ending);
    REQUIRE_MESSAGE(gguf, test::why(gguf));
    CHECK(gguf->files().size() == 2);
    CHECK(gguf->tensors().size() == 2);
    CHECK(gguf->find_tensor("token_embd.weight")->dims[1] == 5);
    CHECK(*gguf->get_string("general.name") == "tiny");
    CHECK(*gguf->get_string("tokenizer.chat_template") == "{{ x }}");
  }
  test::write_text(parent, "tiny/tokenizer_config.json",
                   R"({"chat_template":[{"name":"default","template":"d"},)"
                   R"({"name":"tool_use","template":"t"}]})");
  const auto several = open_model(path);
  REQUIRE_MESSAGE(several, test::why(several));
  CHECK(*several->get_string("tokenizer.chat_template") == "d");
  CHECK(*several->get_string("tokenizer.chat_template.tool_use") == "t");
  test::write_text(parent, "tiny/chat_template.jinja", "from a file of its own");
  CHECK(*open_model(path)->get_string("tokenizer.chat_template") == "from a file of its own");
}

TEST_CASE("the tokenizer: as many tokens as rows, and the tokens that end an answer") {
  const TemporaryFolder folder;
  test::write_hub_folder(folder, kLlama + "}", {{"model.embed_tokens.weight", {7, 8}, {}}});
  test::write_text(
      folder, "tokenizer.json",
      R"({"version":"1.0","added_tokens":[{"id":3,"content":"<|end|>","special":true},)"
      R"({"id":4,"content":"<|stop|>","special":true}],"normalizer":null,"pre_tokenizer":)"
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},)"
      R"("decoder":{"type":"ByteLevel"},"post_processor":null,)"
      R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})");
  test::write_text(folder, "tokenizer_config.json", R"({"eos_token":"<|end|>"})");
  test::write_text(folder, "generation_config.json", R"({"eos_token_id":[3,4,-1,1e30]})");
  const auto gguf = hub::open(folder.path(""));
  REQUIRE_MESSAGE(gguf, test::why(gguf));
  const auto why = gguf->get_string_or(hub::kTokenizerErrorKey, "");
  REQUIRE_MESSAGE(why->empty(), std::string(*why));
  CHECK(*gguf->get_string("tokenizer.ggml.model") == "gpt2");
  const auto tokens = gguf->get_strings("tokenizer.ggml.tokens");
  REQUIRE_MESSAGE(tokens, test::why(tokens));
  REQUIRE(tokens->size() == 7);
  CHECK((*tokens)[2] == "ab");
  CHECK((*tokens)[6] == "[PAD6]");
  CHECK(*gguf->get_u32("tokenizer.ggml.eos_token_id") == 3);
  CHECK(*gguf->get_u32("tokenizer.ggml.eot_token_id") == 4);

  // One number is a list of one; what has no room in the file is listed.
  const auto ends = [&](const std::string& ids) {
    test::write_text(folder, "generation_config.json", R"({"eos_token_id":)" + ids + "}");
    return hub::open(folder.path(""));
  };
  CHECK(*ends("4")->get_u32("tokenizer.ggml.eot_token_id") == 4);
  CHECK(*ends("3")->get_u32("tokenizer.ggml.eot_token_id") == 0xFFFFFFFF);  // none
  CHECK(test::contains(ends("4.5").error().message, "eos_token_id 4.5 is no token id"));
  const auto many = ends("[3,0,1,2,4,99]");
  REQUIRE_MESSAGE(many, test::why(many));
  CHECK(*many->get_u32("tokenizer.ggml.eot_token_id") == 0);
  CHECK(*many->get_u32("tokenizer.ggml.eom_token_id") == 1);
  CHECK(value_text(*many->find(hub::kUnusedEndsKey)) == "array of 2");

  // One that cannot be read leaves the model usable by ids.
  test::write_text(folder, "tokenizer.json", R"({"model":{"type":"Fancy"}})");
  const auto by_ids = hub::open(folder.path(""));
  REQUIRE_MESSAGE(by_ids, test::why(by_ids));
  CHECK(by_ids->find("tokenizer.ggml.tokens") == nullptr);
  CHECK(test::contains(std::string(*by_ids->get_string(hub::kTokenizerErrorKey)),
                       "tokenizer.json: "));
}

}  // namespace open_test
