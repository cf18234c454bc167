// SPDX-License-Identifier: Apache-2.0
//
// A model's folder loads, and is converted, as the GGUF file that is made of it.
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "hub/hub_folder.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/model.hpp"
#include "why.hpp"

namespace hub_folder_test {

using namespace nibble;

namespace {

// A Llama (rows of q and k in another order, a bias), a GPT-2 (transposed matrices), or a Mixtral
// (experts of a tensor each).
enum class HubKind { llama, gpt2, mixtral };

void write_folder(const test::TemporaryFolder& folder, HubKind kind) {
  std::mt19937 random(11);
  std::vector<test::HubWeights> tensors;
  const auto add = [&](const std::string& name, std::vector<std::uint64_t> shape, float mean = 0) {
    test::HubWeights tensor{name, std::move(shape), {}};
    std::normal_distribution<float> value(mean, 0.3f);
    for (std::uint64_t i = 0; i < tensor.n(); ++i) tensor.values.push_back(value(random));
    tensors.push_back(std::move(tensor));
  };
  if (kind == HubKind::gpt2) {
    add("wte.weight", {37, 32});
    add("wpe.weight", {16, 32});
    for (const char* const norm : {"h.0.ln_1", "h.0.ln_2", "ln_f"}) {
      add(norm + std::string(".weight"), {32}, 1);
      add(norm + std::string(".bias"), {32});
    }
    add("h.0.attn.c_attn.weight", {32, 96});
    add("h.0.attn.c_attn.bias", {96});
    add("h.0.attn.c_proj.weight", {32, 32});
    add("h.0.attn.c_proj.bias", {32});
    add("h.0.mlp.c_fc.weight", {32, 128});
    add("h.0.mlp.c_fc.bias", {128});
    add("h.0.mlp.c_proj.weight", {128, 32});
    add("h.0.mlp.c_proj.bias", {32});
    test::write_hub_folder(folder,
                           R"({"architectures":["GPT2LMHeadModel"],"n_embd":32,"n_layer":1,)"
                           R"("n_head":2,"n_positions":16,"layer_norm_epsilon":1e-5})",
                           tensors);
    return;
  }
  const std::string layer = "model.layers.0.";
  add("model.embed_tokens.weight", {37, 32});
  add("lm_head.weight", {37, 32});
  add("model.norm.weight", {32}, 1);
  add(layer + "input_layernorm.weight", {32}, 1);
  add(layer + "post_attention_layernorm.weight", {32}, 1);
  add(layer + "self_attn.q_proj.weight", {32, 32});
  add(layer + "self_attn.q_proj.bias", {32});
  add(layer + "self_attn.k_proj.weight", {16, 32});
  add(layer + "self_attn.v_proj.weight", {16, 32});
  add(layer + "self_attn.o_proj.weight", {32, 32});
  if (kind == HubKind::mixtral) {
    add(layer + "block_sparse_moe.gate.weight", {12, 32});
    for (int expert = 0; expert < 12; ++expert) {
      const std::string of = layer + "block_sparse_moe.experts." + std::to_string(expert) + ".w";
      add(of + "1.weight", {64, 32});
      add(of + "3.weight", {64, 32});
      add(of + "2.weight", {32, 64});
    }
    test::write_hub_folder(
        folder,
        R"({"architectures":["MixtralForCausalLM"],"hidden_size":32,"intermediate_size":64,)"
        R"("num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":2,)"
        R"("max_position_embeddings":16,"rms_norm_eps":1e-5,"num_local_experts":12,)"
        R"("num_experts_per_tok":2})",
        tensors);
    return;
  }
  add(layer + "mlp.gate_proj.weight", {48, 32});
  add(layer + "mlp.up_proj.weight", {48, 32});
  add(layer + "mlp.down_proj.weight", {32, 48});
  test::write_hub_folder(
      folder,
      R"({"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":48,)"
      R"("num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":2,)"
      R"("max_position_embeddings":16,"rms_norm_eps":1e-5})",
      tensors);
}

std::vector<float> logits_of(const Model& model) {
  auto session = Session::create(model, {.max_outputs = 5});
  REQUIRE_MESSAGE(session, test::why(session));
  const std::int32_t ids[] = {3, 1, 36, 0, 7};
  const auto logits = session->append(ids, 5);
  REQUIRE_MESSAGE(logits, test::why(logits));
  std::vector<float> all;
  for (Index row = 0; row < 5; ++row) {
    all.insert(all.end(), (*logits)[row].data(), (*logits)[row].data() + logits->extent(1));
  }
  return all;
}

}  // namespace

TEST_CASE("a folder is loaded and converted as the GGUF file that is made of it") {
  auto pool = ThreadPool::create({.n_threads = 3});
  REQUIRE(pool);
  for (const HubKind kind : {HubKind::llama, HubKind::gpt2, HubKind::mixtral}) {
    CAPTURE(static_cast<int>(kind));
    const test::TemporaryFolder folder;
    write_folder(folder, kind);
    const auto direct = load(folder.path(""));
    REQUIRE_MESSAGE(direct, test::why(direct));

    const auto hub = open_model(folder.path(""));
    REQUIRE_MESSAGE(hub, test::why(hub));
    const auto as_f32 = quantize_model(*hub, {.format = quant::Format::f32});
    REQUIRE_MESSAGE(as_f32, test::why(as_f32));
    const auto file = io::Gguf::parse(*as_f32, "made");
    REQUIRE_MESSAGE(file, test::why(file));
    const auto made = Model::from_gguf(*file, {.executor = pool->get()});
    REQUIRE_MESSAGE(made, test::why(made));
    const auto logits = logits_of(*direct);
    CHECK(logits == logits_of(*made));
    bool differ = false;
    for (const float x : logits) differ = differ || x != logits[0];
    CHECK(differ);

    const auto from_hub =
        quantize_model(*hub, {.format = quant::Format::q8_0, .executor = pool->get()});
    const auto from_file = quantize_model(*file, {.format = quant::Format::q8_0});
    REQUIRE_MESSAGE(from_hub, test::why(from_hub));
    REQUIRE_MESSAGE(from_file, test::why(from_file));
    CHECK(*from_hub == *from_file);

    const auto needed = memory_needed(folder.path(""));
    REQUIRE_MESSAGE(needed, test::why(needed));
    CHECK(needed->weights == direct->weight_bytes());
    CHECK(needed->loading > 0);
  }
}

TEST_CASE("an outline says what sessions take, and none can be made of it") {
  const test::TemporaryFolder folder;
  write_folder(folder, HubKind::llama);
  const auto model = load(folder.path(""));
  const auto outline = load(folder.path(""), {.outline_only = true});
  REQUIRE_MESSAGE(outline, test::why(outline));
  CHECK(model->has_weights());
  CHECK_FALSE(outline->has_weights());
  CHECK(outline->weight_bytes() == model->weight_bytes());
  CHECK(outline->config().vocab_size == 37);
  const auto bytes = Session::bytes_needed(*outline);
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  CHECK(*bytes == Session::create(*model)->bytes());
  const auto session = Session::create(*outline);
  REQUIRE_FALSE(session);
  CHECK(session.error().code == Errc::invalid_argument);
  CHECK(test::contains(session.error().message, "an outline, without weights"));
}

}  // namespace hub_folder_test
