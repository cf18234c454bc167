// SPDX-License-Identifier: Apache-2.0
//
// The rewriting rules of fuse.hpp, each shown as text before and after, and expressions that must
// not change. Needs no kernels.
#include "nibble/graph/describe.hpp"

#include <string>

#include "doctest/doctest.h"
#include "nibble/graph/fuse.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/llama.hpp"

namespace describe_test {
namespace {

using namespace nibble;
using namespace nibble::graph;
using enum nibble::Slot;

constexpr Dim<> k8{8};
constexpr float kEps = 1e-5f;
constexpr Heads kHeads{Dim<>{4}, Dim<>{2}, Dim<>{8}, 0.5f};

enum class Numbered { first, second };

template <class E>
std::string fused(const E& expression) {
  const auto result = fuse(expression);
  // Nothing is left to rewrite.
  CHECK(describe(fuse(result)) == describe(result));
  return describe(result);
}

template <class E>
void check_stays(const E& expression) {
  CHECK(fused(expression) == describe(expression));
}

}  // namespace

TEST_CASE("every node has a description") {
  CHECK(describe(embedding<token_embd>(k8)) == "embedding(token_embd, 8)");
  CHECK(describe(position_embedding<position_embd>(Dim<4>{})) ==
        "position_embedding(position_embd, 4)");
  CHECK(describe(rms_norm<attn_norm>(kEps)) == "rms_norm(attn_norm)");
  CHECK(describe(layer_norm<attn_norm, attn_norm_bias>(kEps)) ==
        "layer_norm(attn_norm + attn_norm_bias)");
  CHECK(describe(layer_norm<attn_norm, kNone>(kEps)) == "layer_norm(attn_norm)");
  CHECK(describe(linear<output>(k8)) == "linear(output, 8)");
  CHECK(describe(linear<attn_q, attn_q_bias>(k8)) == "linear(attn_q + attn_q_bias, 8)");
  CHECK(describe(linear<Numbered::second>(k8)) == "linear(1, 8)");
  CHECK(describe(silu() >> gelu_erf() >> gelu_tanh() >> dropout(0.25f)) ==
        "silu >> gelu_erf >> gelu_tanh >> dropout(0.25)");
  CHECK(describe(fork(silu(), gelu_erf()) >> multiply()) == "fork(silu, gelu_erf) >> multiply");
  CHECK(describe(sum() >> split(k8, Dim<3>{}) >> output_rows()) ==
        "sum >> split(8, 3) >> output_rows");
  CHECK(describe(rope<kernels::AdjacentPairs>(kHeads, RopeAngles{}) >>
                 rope<kernels::HalfSplit>(kHeads, RopeAngles{})) ==
        "rope(adjacent_pairs) >> rope(half_split)");
  CHECK(describe(cache_kv(kHeads) >> scores(kHeads) >> softmax(kHeads) >> attend_values(kHeads)) ==
        "cache_kv >> scores(4/2 x 8) >> softmax >> attend_values");
  CHECK(describe(scores(Heads{k8, k8, k8, 1.0f, 5})) == "scores(8/8 x 8, window 5)");
  CHECK(describe(tap<"q", "k">()) == "tap(q, k)");
  CHECK(describe(repeat(Dim<3>{}, residual(silu()))) == "repeat(3, residual(silu))");
}

TEST_CASE("linear >> activation") {
  CHECK(fused(linear<ffn_up>(k8) >> silu()) == "linear(ffn_up, 8, silu)");
  CHECK(fused(linear<ffn_up, ffn_up_bias>(k8) >> gelu_tanh()) ==
        "linear(ffn_up + ffn_up_bias, 8, gelu_tanh)");
  // An epilogue has only one activation.
  CHECK(fused(linear<ffn_up>(k8) >> silu() >> gelu_erf()) == "linear(ffn_up, 8, silu) >> gelu_erf");
  check_stays(silu() >> linear<ffn_up>(k8));
  check_stays(linear<ffn_up>(k8) >> dropout(0.5f));
}

TEST_CASE("fork of linears") {
  CHECK(fused(fork(linear<attn_q, attn_q_bias>(k8), linear<attn_k>(Dim<4>{}))) ==
        "linear_group(linear(attn_q + attn_q_bias, 8), linear(attn_k, 4))");
  CHECK(fused(fork(linear<ffn_gate>(k8) >> gelu_erf(), linear<ffn_up>(k8) >> silu())) ==
        "linear_group(linear(ffn_gate, 8, gelu_erf), linear(ffn_up, 8, silu))");
  check_stays(fork(linear<attn_q>(k8), silu()));
  check_stays(fork(linear<attn_q>(k8), linear<attn_k>(k8) >> dropout(0.5f)));
  // More than one parallel step allows.
  const auto l = linear<attn_q>(k8);
  CHECK(fused(fork(l, l, l, l)).starts_with("linear_group("));
  check_stays(fork(l, l, l, l, l));
}

TEST_CASE("gated product") {
  const auto gate = linear<ffn_gate>(k8);
  const auto up = linear<ffn_up>(k8);
  CHECK(fused(fork(gate >> silu(), up) >> multiply()) == "gated_linear(ffn_gate, ffn_up, 8, silu)");
  CHECK(fused(fork(gate, up) >> multiply()) == "gated_linear(ffn_gate, ffn_up, 8)");
  CHECK(fused(fork(gate >> silu(), linear<ffn_up, ffn_up_bias>(k8)) >> multiply()) ==
        "gated_linear(ffn_gate, ffn_up + ffn_up_bias, 8, silu)");
  // A sum is not a product; a gated product has no place for a second activation.
  CHECK(fused(fork(gate >> silu(), up) >> sum()) ==
        "linear_group(linear(ffn_gate, 8, silu), linear(ffn_up, 8)) >> sum");
  CHECK(fused(fork(gate >> silu(), up >> silu()) >> multiply()) ==
        "linear_group(linear(ffn_gate, 8, silu), linear(ffn_up, 8, silu)) >> multiply");
  CHECK(fused(fork(gate, up, up) >> multiply()).starts_with("linear_group("));
}

TEST_CASE("norm >> products") {
  const auto rms = rms_norm<attn_norm>(kEps);
  const auto layer = layer_norm<attn_norm, attn_norm_bias>(kEps);
  const auto q = linear<attn_q>(k8);
  CHECK(fused(rms >> q) == "norm_into(rms_norm(attn_norm), linear(attn_q, 8))");
  CHECK(fused(layer >> q) ==
        "norm_into(layer_norm(attn_norm + attn_norm_bias), linear(attn_q, 8))");
  CHECK(fused(rms >> fork(q, q)) ==
        "norm_into(rms_norm(attn_norm), linear_group(linear(attn_q, 8), linear(attn_q, 8)))");
  // What follows the products is still combined with them.
  CHECK(fused(rms >> q >> silu()) == "norm_into(rms_norm(attn_norm), linear(attn_q, 8, silu))");
  CHECK(fused(rms >> fork(linear<ffn_gate>(k8) >> silu(), linear<ffn_up>(k8)) >> multiply()) ==
        "norm_into(rms_norm(attn_norm), gated_linear(ffn_gate, ffn_up, 8, silu))");
  CHECK(fused(rms >> q >> q) ==
        "norm_into(rms_norm(attn_norm), linear(attn_q, 8)) >> linear(attn_q, 8)");
  // Something else reads the norm's rows too, or is in between.
  check_stays(rms >> fork(q, silu()));
  check_stays(rms >> silu() >> q);
  check_stays(rms >> output_rows() >> q);
  CHECK(fused(layer >> gelu_erf() >> q) ==
        "layer_norm(attn_norm + attn_norm_bias, gelu_erf) >> linear(attn_q, 8)");
  CHECK(fused(layer >> dropout(0.5f) >> q) ==
        "layer_norm(attn_norm + attn_norm_bias, dropout 0.5) >> linear(attn_q, 8)");
}

TEST_CASE("scores >> softmax >> attend_values") {
  CHECK(fused(scores(kHeads) >> softmax(kHeads) >> attend_values(kHeads)) == "attend(4/2 x 8)");
  CHECK(fused(cache_kv(kHeads) >> scores(kHeads) >> softmax(kHeads) >> attend_values(kHeads) >>
              silu()) == "cache_kv >> attend(4/2 x 8) >> silu");
  check_stays(scores(kHeads) >> softmax(kHeads));
  check_stays(scores(kHeads) >> attend_values(kHeads));
  check_stays(scores(kHeads) >> softmax(kHeads) >> dropout(0.5f) >> attend_values(kHeads));
}

TEST_CASE("layer_norm >> activation >> dropout") {
  const auto norm = layer_norm<ffn_norm, ffn_norm_bias>(kEps);
  CHECK(fused(norm >> gelu_tanh()) == "layer_norm(ffn_norm + ffn_norm_bias, gelu_tanh)");
  CHECK(fused(norm >> gelu_tanh() >> dropout(0.1f)) ==
        "layer_norm(ffn_norm + ffn_norm_bias, gelu_tanh, dropout 0.1)");
  CHECK(fused(norm >> dropout(0.1f)) == "layer_norm(ffn_norm + ffn_norm_bias, dropout 0.1)");
  CHECK(fused(norm >> dropout(0.1f) >> gelu_tanh()) ==
        "layer_norm(ffn_norm + ffn_norm_bias, dropout 0.1) >> gelu_tanh");
  CHECK(fused(norm >> silu() >> gelu_tanh()) ==
        "layer_norm(ffn_norm + ffn_norm_bias, silu) >> gelu_tanh");
  CHECK(fused(norm >> dropout(0.1f) >> dropout(0.2f)) ==
        "layer_norm(ffn_norm + ffn_norm_bias, dropout 0.1) >> dropout(0.2)");
  check_stays(rms_norm<ffn_norm>(kEps) >> silu());
}

TEST_CASE("residual that ends in a product") {
  const auto q = linear<attn_q>(k8);
  const auto out = linear<attn_output>(k8);
  CHECK(fused(residual(q >> out)) == "residual_into(linear(attn_q, 8), linear(attn_output, 8))");
  CHECK(fused(residual(q >> out >> silu())) ==
        "residual_into(linear(attn_q, 8), linear(attn_output, 8, silu))");
  CHECK(fused(residual(silu() >> tap<"name">() >> out)) ==
        "residual_into(silu, linear(attn_output, 8))");
  // The product would read the rows that it writes to.
  check_stays(residual(out));
  check_stays(residual(dropout(0.5f) >> out));
  check_stays(residual(scale(2.0f) >> out));
  CHECK(fused(residual(tap<"name">() >> out)) == "residual(linear(attn_output, 8))");
  CHECK(fused(residual(residual(q >> out) >> out)) ==
        "residual(residual_into(linear(attn_q, 8), linear(attn_output, 8)) >> "
        "linear(attn_output, 8))");
  CHECK(fused(residual(repeat(Dim<>{2}, residual(silu())) >> out)) ==
        "residual(repeat(2, residual(silu)) >> linear(attn_output, 8))");
  // A norm and one product are one step already.
  CHECK(fused(residual(rms_norm<attn_norm>(kEps) >> out)) ==
        "residual(norm_into(rms_norm(attn_norm), linear(attn_output, 8)))");
  check_stays(residual(q >> dropout(0.5f)));
}

TEST_CASE("taps go, and do not stand in the way") {
  CHECK(fused(tap<"a">() >> linear<ffn_up>(k8) >> tap<"b">() >> silu() >> tap<"c">()) ==
        "linear(ffn_up, 8, silu)");
  CHECK(fused(fork(linear<ffn_gate>(k8) >> tap<"g">(), linear<ffn_up>(k8) >> tap<"u">())) ==
        "linear_group(linear(ffn_gate, 8), linear(ffn_up, 8))");
}

TEST_CASE("decoders of one expression: what differs is in their numbers") {
  DecoderConfig c;
  c.dim = c.ffn_dim = c.vocab_size = 8;
  c.n_layers = 2;
  c.n_heads = c.n_kv_heads = 1;
  c.head_dim = 8;
  const std::string llama_text = describe(llama(c));
  CHECK(llama_text.find("when(false, head_norm(attn_q_norm, attn_k_norm)) >> "
                        "rope(adjacent_pairs) >> temper_queries(0)") != std::string::npos);
  CHECK(llama_text.ends_with("linear(output, 8) >> scale(1)"));
  c.has_head_norms = c.is_half_split = true;
  c.logit_scale = 0.5f;
  c.embedding_scale = 3;
  const auto other = llama(c);
  CHECK(describe(other).find("when(true, head_norm(attn_q_norm, attn_k_norm)) >> "
                             "rope(half_split)") != std::string::npos);
  CHECK(describe(other).starts_with("embedding(token_embd, 8, scale 3)"));
  CHECK(describe(other).ends_with("linear(output, 8) >> scale(0.5)"));
  CHECK(describe(add_row<token_types>() >> cap_rows(2) >> silu_gate() >> pool(Pooling::first)) ==
        "add_row(token_types) >> cap_rows(2) >> gate(silu) >> pool(first)");
}

TEST_CASE("whole models") {
  ModelConfig c;
  c.vocab_size = 512;
  c.dim = 64;
  c.n_layers = 5;
  c.n_heads = 8;
  c.n_kv_heads = 4;
  c.head_dim = 8;
  c.ffn_dim = 172;
  CHECK(
      describe(llama(c)) ==
      "embedding(token_embd, 64) >> repeat(5, "
      "residual(rms_norm(attn_norm) >> fork(linear(attn_q + attn_q_bias, 64), "
      "linear(attn_k + attn_k_bias, 32), linear(attn_v + attn_v_bias, 32)) >> "
      "tap(q, k, v) >> rope(adjacent_pairs) >> cache_kv >> scores(8/4 x 8) >> softmax >> "
      "attend_values >> "
      "linear(attn_output + attn_output_bias, 64)) >> "
      "residual(rms_norm(ffn_norm) >> fork(linear(ffn_gate + ffn_gate_bias, 172) >> silu, "
      "linear(ffn_up + ffn_up_bias, 172)) >> multiply >> linear(ffn_down + ffn_down_bias, 64)) >> "
      "tap(layer)) >> "
      "output_rows >> rms_norm(output_norm) >> linear(output, 512)");
  CHECK(fused(llama(c)) ==
        "embedding(token_embd, 64) >> repeat(5, "
        "residual_into(norm_into(rms_norm(attn_norm), linear_group("
        "linear(attn_q + attn_q_bias, 64), linear(attn_k + attn_k_bias, 32), "
        "linear(attn_v + attn_v_bias, 32))) >> rope(adjacent_pairs) >> cache_kv >> "
        "attend(8/4 x 8), linear(attn_output + attn_output_bias, 64)) >> "
        "residual_into(norm_into(rms_norm(ffn_norm), gated_linear(ffn_gate + ffn_gate_bias, "
        "ffn_up + ffn_up_bias, 172, silu)), linear(ffn_down + ffn_down_bias, 64))) >> "
        "output_rows >> norm_into(rms_norm(output_norm), linear(output, 512))");
  c.n_kv_heads = 8;
  CHECK(
      fused(gpt2(c)) ==
      "fork(embedding(token_embd, 64), position_embedding(position_embd, 64)) >> sum >> "
      "repeat(5, residual_into(norm_into(layer_norm(attn_norm + attn_norm_bias), "
      "linear(attn_qkv + attn_qkv_bias, 192)) >> split(64, 64, 64) >> cache_kv >> "
      "attend(8/8 x 8), linear(attn_output + attn_output_bias, 64)) >> "
      "residual_into(norm_into(layer_norm(ffn_norm + ffn_norm_bias), "
      "linear(ffn_up + ffn_up_bias, 172, gelu_tanh)), linear(ffn_down + ffn_down_bias, 64))) >> "
      "output_rows >> norm_into(layer_norm(output_norm + output_norm_bias), linear(output, 512))");
}

TEST_CASE("slots and their tensors in a GGUF file") {
  for (std::size_t s = 0; s < kSlotCount; ++s) {
    const auto slot = static_cast<Slot>(s);
    const std::string name(to_string(slot));
    const bool is_bias = name.ends_with("_bias");
    const std::string base = is_bias ? name.substr(0, name.size() - 5) : name;
    const bool is_bare = slot == Slot::ssm_a || slot == Slot::ssm_d;  // no part of a product
    std::string tensor = is_bare ? base : base + (is_bias ? ".bias" : ".weight");
    if (slot == Slot::ffn_gate_inp_scale || slot == Slot::ffn_down_exps_scale) {  // of a product
      tensor = base.substr(0, base.size() - 6) + ".scale";
    }
    CHECK(gguf_name(slot, -1) == tensor);
    CHECK(gguf_name(slot, 12) == "blk.12." + tensor);
  }
  CHECK(gguf_name(attn_q_bias, 0) == "blk.0.attn_q.bias");
  CHECK(gguf_name(ffn_down_bias, 3) == "blk.3.ffn_down.bias");
  CHECK(gguf_name(position_embd, -1) == "position_embd.weight");
}

}  // namespace describe_test
