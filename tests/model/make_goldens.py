# SPDX-License-Identifier: Apache-2.0
#
# Makes goldens/*.gguf: what each architecture computes, according to PyTorch transformers in double
# precision, for a tiny model of random weights.
#
#   make_goldens.py                          writes the goldens beside this file
#   make_goldens.py --llama-cpp FOLDER       also writes whole models, and compares with llama.cpp
#   make_goldens.py --hub FOLDER             also writes hub folders, in f32
#
# Needs torch, transformers, gguf, numpy; --llama-cpp also needs xllamacpp, whose library is called.
# A golden holds the metadata of a model, its tensors' names and shapes, tokens, and the logits at
# each of them (or the embedding of the text). Its weights are those of weights() below, which
# goldens.hpp computes as well.
import argparse
import contextlib
import ctypes
import math
import os
import sys

import gguf
import numpy as np
import torch
import transformers as hf

VOCAB, LENGTH = 24, 30


def weights(name, shape):
    """Random weights, from the tensor's name alone."""
    with np.errstate(over="ignore"):
        seed = np.uint64(0xCBF29CE484222325)
        for byte in name.encode():
            seed = (seed ^ np.uint64(byte)) * np.uint64(0x100000001B3)
        n = int(np.prod(shape))
        z = seed + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1
    centre, amplitude = 0.0, math.sqrt(3.0 / shape[-1])
    if name.startswith("rope_f"):
        centre, amplitude = 2.0, 1.0
    elif name.endswith("ssm_a"):
        centre, amplitude = -0.6, 0.5
    elif any(part in name for part in ("norm.weight", "norm_", "scale")):
        centre, amplitude = 1.0, 0.3
    elif name.endswith(".bias"):
        amplitude = 0.3
    elif name in ("token_embd.weight", "position_embd.weight", "token_types.weight"):
        amplitude = 1.0
    return (centre + amplitude * u).astype(np.float32).reshape(shape)


@contextlib.contextmanager
def staying_double():
    """Without the casts to f32 that transformers has in norms and in recurrent layers."""
    to, to_float = torch.Tensor.to, torch.Tensor.float
    is_double = lambda x: x.dtype == torch.float64

    def stay(x, *args, **named):
        is_f32 = torch.float32 in args or named.get("dtype") == torch.float32
        return x if is_f32 and is_double(x) else to(x, *args, **named)

    torch.Tensor.to = stay
    torch.Tensor.float = lambda x, **named: x if is_double(x) else to_float(x, **named)
    try:
        yield
    finally:
        torch.Tensor.to, torch.Tensor.float = to, to_float


def tokens():
    return [(7 * i * i + 3 * i + 5) % VOCAB for i in range(LENGTH)]


# ---- Tensors: their names in GGUF and in transformers, and how one becomes the other -------------


def unpermute(n_heads):
    """From adjacent pairs of a head's values to its two halves."""

    def change(w):
        size = w.shape[0] // n_heads
        return w.reshape(n_heads, size // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)

    return change


class Tensors:
    def __init__(self, model):
        self.model = model.double().eval()
        self.hf = dict(self.model.named_parameters())
        self.hf.update((name, buffer) for name, buffer in self.model.named_buffers()
                       if name.endswith((".expert_bias", ".layer_scalar")))
        self.list = []  # (name, shape)
        self.set = set()

    def add(self, name, hf_name, change=lambda w: w):
        """The tensor `name`, of the shape that the parameter `hf_name` has."""
        self.put(name, tuple(self.hf[hf_name].shape), [(hf_name, change)])

    def put(self, name, shape, targets):
        w = weights(name, shape)
        self.list.append((name, shape))
        for hf_name, change in targets:
            value = np.ascontiguousarray(change(w.astype(np.float64)))
            parameter = self.hf[hf_name]
            assert tuple(parameter.shape) == value.shape, (hf_name, parameter.shape, value.shape)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(value))
            self.set.add(hf_name)

    def join(self, parts, hf_name, change):
        """Tensors (name, shape) that transformers has as one: what change() makes of them."""
        made = change(*[weights(name, shape).astype(np.float64) for name, shape in parts])
        self.list += parts
        parameter = self.hf[hf_name]
        assert tuple(parameter.shape) == made.shape, (hf_name, parameter.shape, made.shape)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(made)))
        self.set.add(hf_name)

    def optional(self, name, hf_name, change=lambda w: w):
        if hf_name in self.hf:
            self.add(name, hf_name, change)

    def check(self):
        left = set(self.hf) - self.set
        assert not left, left


def minus_one(w):
    return w - 1  # Gemma's norms multiply by 1 + weight; files have the sum


def llama_tensors(t, c, norms=None, permuted=False, fused=False):
    same = lambda w: w
    q = unpermute(c.num_attention_heads) if permuted else same
    k = unpermute(c.num_key_value_heads) if permuted else same
    norms = norms or {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    gemma = c.model_type.startswith("gemma") and not c.model_type.startswith("gemma4")
    change = minus_one if gemma else same
    t.add("token_embd.weight", "model.embed_tokens.weight")
    t.add("output_norm.weight", "model.norm.weight", change)
    t.optional("output.weight", "lm_head.weight")
    for i in range(c.num_hidden_layers):
        at, of = f"blk.{i}.", f"model.layers.{i}."
        for name, hf_name in norms.items():
            t.add(at + name + ".weight", of + hf_name + ".weight", change)
        if fused:
            t.add(at + "attn_qkv.weight", of + "self_attn.qkv_proj.weight")
            t.add(at + "ffn_up.weight", of + "mlp.gate_up_proj.weight")
        else:
            for part, how in (("q", q), ("k", k), ("v", same)):
                for kind in ("weight", "bias"):
                    name = of + f"self_attn.{part}_proj.{kind}"
                    t.optional(at + f"attn_{part}.{kind}", name, how)
            for part in ("gate", "up"):
                for kind in ("weight", "bias"):
                    if of + f"mlp.gate.{kind}" in t.hf:
                        continue  # that is the router of experts
                    t.optional(at + f"ffn_{part}.{kind}", of + f"mlp.{part}_proj.{kind}")
        t.optional(at + "attn_q_norm.weight", of + "self_attn.q_norm.weight", change)
        t.optional(at + "attn_k_norm.weight", of + "self_attn.k_norm.weight", change)
        for kind in ("weight", "bias"):
            t.optional(at + f"attn_output.{kind}", of + f"self_attn.o_proj.{kind}")
            t.optional(at + f"ffn_down.{kind}", of + f"mlp.down_proj.{kind}")


# ---- The models ----------------------------------------------------------------------------------

SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
    tie_word_embeddings=False,
)


def rope(theta=10000.0, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


def keys_of(c, head_dim=None, n_kv_heads=None):
    """The metadata that all have."""
    head_dim = head_dim or c.head_dim
    keys = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": n_kv_heads or getattr(c, "num_key_value_heads",
                                                         c.num_attention_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "vocab_size": VOCAB,
    }
    if hasattr(c, "rms_norm_eps"):
        keys["attention.layer_norm_rms_epsilon"] = float(c.rms_norm_eps)
    parameters = getattr(c, "rope_parameters", None) or {}
    if "rope_theta" in parameters:
        keys["rope.freq_base"] = float(parameters["rope_theta"])
    return keys


def decoder(config_class, model_class, more=None, keys=None, **how):
    c = config_class(**{**SHAPE, **(more or {})})
    t = Tensors(model_class(c))
    llama_tensors(t, c, **how)
    t.check()
    return t, {**keys_of(c), **(keys or {})}


def llama():
    return decoder(hf.LlamaConfig, hf.LlamaForCausalLM,
                   dict(attention_bias=True, mlp_bias=True, rope_parameters=rope(500.0)),
                   permuted=True)


def llama_linear():
    return decoder(hf.LlamaConfig, hf.LlamaForCausalLM,
                   dict(rope_parameters=rope(500.0, rope_type="linear", factor=4.0)),
                   {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, permuted=True)


def llama3_factors():
    scaling = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
    c = hf.LlamaConfig(**{**SHAPE, "head_dim": 12, "rope_parameters": rope(500.0, **scaling)})
    t = Tensors(hf.LlamaForCausalLM(c))
    llama_tensors(t, c, permuted=True)
    t.check()
    # The divisors that converters write for this scaling.
    plain = 500.0 ** (-np.arange(0, 12, 2) / 12)
    factors = (plain / t.model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    return t, {**keys_of(c), "#tensors": {"rope_freqs.weight": factors}}


def yarn_scaling(**more):
    return dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16,
                beta_fast=4.0, beta_slow=1.0, **more)


YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
             "rope.scaling.original_context_length": 16,
             "rope.scaling.yarn_beta_fast": 4.0, "rope.scaling.yarn_beta_slow": 1.0}


def qwen2():
    return decoder(hf.Qwen2Config, hf.Qwen2ForCausalLM,
                   dict(hidden_size=24, tie_word_embeddings=True))


def qwen2_yarn():
    return decoder(hf.Qwen2Config, hf.Qwen2ForCausalLM,
                   dict(hidden_size=48, head_dim=12,
                        rope_parameters=rope(100.0, **yarn_scaling())), YARN_KEYS)


def qwen3():
    return decoder(hf.Qwen3Config, hf.Qwen3ForCausalLM, dict(rope_parameters=rope(1000000.0)))


def mistral3():
    scaling = yarn_scaling(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1,
                           max_position_embeddings=16)
    return decoder(hf.Ministral3Config, hf.Ministral3ForCausalLM,
                   dict(head_dim=12, rope_parameters=rope(100.0, **scaling)),
                   {**YARN_KEYS, "rope.scaling.yarn_log_multiplier": 1.0,
                    "attention.temperature_scale": 0.1}, permuted=True)


def smollm3():
    return decoder(hf.SmolLM3Config, hf.SmolLM3ForCausalLM,
                   dict(num_hidden_layers=5, rope_parameters=rope(500.0)), permuted=True)


def granite():
    return decoder(hf.GraniteConfig, hf.GraniteForCausalLM,
                   dict(head_dim=6, embedding_multiplier=12.0, residual_multiplier=0.25,
                        attention_multiplier=0.3, logits_scaling=8.0, rms_norm_eps=1e-3),
                   {"embedding_scale": 12.0, "residual_scale": 0.25, "attention.scale": 0.3,
                    "logit_scale": 8.0}, permuted=True)


GEMMA_NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
               "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"}


def gemma2():
    return decoder(hf.Gemma2Config, hf.Gemma2ForCausalLM,
                   dict(query_pre_attn_scalar=6, sliding_window=5, attn_logit_softcapping=2.0,
                        final_logit_softcapping=3.0, tie_word_embeddings=True,
                        num_hidden_layers=4),
                   {"attention.sliding_window": 5, "attn_logit_softcapping": 2.0,
                    "final_logit_softcapping": 3.0}, norms=GEMMA_NORMS)


def gemma3():
    parameters = {"full_attention": rope(100000.0, rope_type="linear", factor=8.0),
                  "sliding_attention": rope(1000.0)}
    return decoder(hf.Gemma3TextConfig, hf.Gemma3ForCausalLM,
                   dict(query_pre_attn_scalar=6, sliding_window=5, num_hidden_layers=7,
                        rope_parameters=parameters, tie_word_embeddings=True),
                   {"attention.sliding_window": 5, "rope.freq_base": 100000.0,
                    "rope.freq_base_swa": 1000.0, "rope.scaling.type": "linear",
                    "rope.scaling.factor": 8.0}, norms=GEMMA_NORMS)


def phi3_of(n_original, n_ctx, window):
    n_pairs = 4
    short = weights("rope_factors_short.weight", (n_pairs,))
    long = weights("rope_factors_long.weight", (n_pairs,))
    scaling = dict(rope_type="longrope", short_factor=short.astype(float).tolist(),
                   long_factor=long.astype(float).tolist(), factor=n_ctx / n_original,
                   original_max_position_embeddings=n_original, partial_rotary_factor=0.8)
    c = hf.Phi3Config(**{**SHAPE, "hidden_size": 40, "head_dim": 10, "sliding_window": window,
                         "max_position_embeddings": n_ctx,
                         "original_max_position_embeddings": n_original,
                         "partial_rotary_factor": 0.8,
                         "rope_parameters": rope(500.0, **scaling)})
    t = Tensors(hf.Phi3ForCausalLM(c))
    llama_tensors(t, c, fused=True)
    t.check()
    t.list += [("rope_factors_short.weight", (n_pairs,)), ("rope_factors_long.weight", (n_pairs,))]
    magnitude = math.sqrt(1 + math.log(n_ctx / n_original) / math.log(n_original))
    keys = {**keys_of(c), "rope.dimension_count": 2 * n_pairs,
            "rope.scaling.original_context_length": n_original,
            "rope.scaling.attn_factor": magnitude}
    return t, {**keys, "attention.sliding_window": window} if window else keys


def phi3_long():
    return phi3_of(16, 64, None)


def phi3_short():
    return phi3_of(256, 512, None)


def phi3_window():  # llama.cpp leaves the window out
    return phi3_of(256, 512, 7)


OLMO_NORMS = {"post_attention_norm": "post_attention_layernorm",
              "post_ffw_norm": "post_feedforward_layernorm"}


def olmo2():
    return decoder(hf.Olmo2Config, hf.Olmo2ForCausalLM, dict(head_dim=5 * 2, hidden_size=40),
                   norms=OLMO_NORMS)


def olmo3():
    return decoder(hf.Olmo3Config, hf.Olmo3ForCausalLM,
                   dict(head_dim=10, hidden_size=40, num_hidden_layers=4, sliding_window=5,
                        rope_parameters={"full_attention": rope(100.0, **yarn_scaling()),
                                         "sliding_attention": rope(100.0)}),
                   {**YARN_KEYS, "rope.freq_base": 100.0, "attention.sliding_window": 5},
                   norms=OLMO_NORMS)


def gptneox_of(parallel):
    c = hf.GPTNeoXConfig(vocab_size=VOCAB, hidden_size=40, intermediate_size=28,
                         num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64,
                         layer_norm_eps=1e-5, use_parallel_residual=parallel,
                         attn_implementation="eager",
                         rope_parameters=rope(500.0, partial_rotary_factor=0.6))
    t = Tensors(hf.GPTNeoXForCausalLM(c))
    pairs = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "attn_output": "attention.dense", "ffn_up": "mlp.dense_h_to_4h",
             "ffn_down": "mlp.dense_4h_to_h"}
    t.add("token_embd.weight", "gpt_neox.embed_in.weight")
    t.add("output.weight", next(n for n in t.hf if n.startswith("embed_out")
                                or n.startswith("lm_head")))

    def interleave(w):  # files have all heads' q, then k, then v; here each head has its three
        return w.reshape(3, 4, 10, -1).swapaxes(0, 1).reshape(w.shape)

    for kind in ("weight", "bias"):
        t.add(f"output_norm.{kind}", f"gpt_neox.final_layer_norm.{kind}")
        for i in range(c.num_hidden_layers):
            at, of = f"blk.{i}.", f"gpt_neox.layers.{i}."
            for name, hf_name in pairs.items():
                t.add(f"{at}{name}.{kind}", f"{of}{hf_name}.{kind}")
            t.add(f"{at}attn_qkv.{kind}", f"{of}attention.query_key_value.{kind}", interleave)
    t.check()
    keys = keys_of(c, 10)
    return t, {**keys, "rope.dimension_count": 6, "rope.freq_base": 500.0,
               "attention.layer_norm_epsilon": 1e-5, "use_parallel_residual": parallel}


def gptneox():
    return gptneox_of(True)


def gptneox_sequential():
    return gptneox_of(False)


def lfm2_of(config_class, model_class, more, experts, keys):
    """experts(t, at, of): the tensors of a layer's experts."""
    c = config_class(**{**SHAPE, "hidden_size": 24, "num_hidden_layers": 4, "norm_eps": 1e-5,
                        "layer_types": ["conv", "full_attention", "conv", "conv"],
                        "rope_parameters": rope(1000.0), **more})
    t = Tensors(model_class(c))
    t.add("token_embd.weight", "model.embed_tokens.weight")
    t.add("token_embd_norm.weight", "model.embedding_norm.weight")
    t.add("output.weight", "lm_head.weight")
    names = {"attn_norm": "operator_norm", "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1",
             "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
             "shortconv.in_proj": "conv.in_proj", "shortconv.out_proj": "conv.out_proj",
             "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.out_proj",
             "attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"}
    for i, kind in enumerate(c.layer_types):
        at, of = f"blk.{i}.", f"model.layers.{i}."
        for name, hf_name in names.items():
            t.optional(f"{at}{name}.weight", f"{of}{hf_name}.weight")
        if kind == "conv":
            t.put(f"{at}shortconv.conv.weight", (24, 3),
                  [(of + "conv.conv.weight", lambda w: w[:, None, :])])
        experts(t, at, of + "feed_forward.")
    t.check()
    return t, {**keys_of(c), **keys, "shortconv.l_cache": 3,
               "attention.head_count_kv": [0 if kind == "conv" else 2 for kind in c.layer_types]}


def lfm2():
    return lfm2_of(hf.Lfm2Config, hf.Lfm2ForCausalLM, dict(block_auto_adjust_ff_dim=False),
                   lambda t, at, of: None, {})


def lfm2moe():  # a bias changes which experts are chosen
    def experts(t, at, of):
        t.optional(at + "ffn_gate_inp.weight", of + "gate.weight")
        t.optional(at + "exp_probs_b.bias", of + "expert_bias")
        if of + "gate.weight" in t.hf:
            plain_experts(t, at, of, "experts.gate_up_proj", "experts.down_proj")

    return lfm2_of(hf.Lfm2MoeConfig, hf.Lfm2MoeForCausalLM,
                   dict(num_experts=EXPERTS, num_experts_per_tok=3, num_dense_layers=1,
                        moe_intermediate_size=EXPERT_DIM, experts_implementation="eager"), experts,
                   {"expert_count": EXPERTS, "expert_used_count": 3, "expert_gating_func": 2,
                    "expert_feed_forward_length": EXPERT_DIM, "leading_dense_block_count": 1})


def qwen35_of(config_class, model_class, more, feed_forward, keys_of_it):
    """feed_forward(t, at, of): the tensors of a layer's second half."""
    n_k, n_v, k_dim, v_dim, taps = 2, 4, 5, 5, 4
    c = config_class(**{**SHAPE, "hidden_size": 24, "head_dim": 8, "num_hidden_layers": 4,
                        "full_attention_interval": 3, "linear_conv_kernel_dim": taps,
                        "linear_key_head_dim": k_dim, "linear_value_head_dim": v_dim,
                        "linear_num_key_heads": n_k, "linear_num_value_heads": n_v,
                        "rope_parameters": rope(1000.0, partial_rotary_factor=0.5), **more})
    t = Tensors(model_class(c))
    keys = 2 * n_k * k_dim

    def heads(w):
        """Files have heads that share a key n_k apart; here they are neighbours."""
        return w.reshape(n_v // n_k, n_k, -1).swapaxes(0, 1).reshape(w.shape)

    def mixed(w):  # the rows of queries and keys stay
        return np.concatenate([w[:keys], heads(w[keys:])])

    t.add("token_embd.weight", "model.embed_tokens.weight")
    t.add("output_norm.weight", "model.norm.weight", minus_one)
    t.add("output.weight", "lm_head.weight")
    for i, kind in enumerate(c.layer_types):
        at, of = f"blk.{i}.", f"model.layers.{i}."
        t.add(at + "attn_norm.weight", of + "input_layernorm.weight", minus_one)
        t.add(at + "post_attention_norm.weight", of + "post_attention_layernorm.weight", minus_one)
        feed_forward(t, at, of + "mlp.")
        if kind == "full_attention":
            for name, part in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
                t.add(f"{at}attn_{name}.weight", f"{of}self_attn.{part}_proj.weight")
            for part in "qk":
                t.add(f"{at}attn_{part}_norm.weight", f"{of}self_attn.{part}_norm.weight",
                      minus_one)
            continue
        of += "linear_attn."
        t.add(at + "attn_qkv.weight", of + "in_proj_qkv.weight", mixed)
        t.add(at + "attn_gate.weight", of + "in_proj_z.weight", heads)
        t.add(at + "ssm_alpha.weight", of + "in_proj_a.weight", heads)
        t.add(at + "ssm_beta.weight", of + "in_proj_b.weight", heads)
        t.add(at + "ssm_a", of + "A_log", lambda w: np.log(-heads(w)))
        t.add(at + "ssm_dt.bias", of + "dt_bias", heads)
        t.add(at + "ssm_norm.weight", of + "norm.weight")
        t.add(at + "ssm_out.weight", of + "out_proj.weight", lambda w: heads(w.T).T)
        t.put(at + "ssm_conv1d.weight", (keys + n_v * v_dim, taps),
              [(of + "conv1d.weight", lambda w: mixed(w)[:, None, :])])
    t.check()
    return t, {**keys_of(c), **keys_of_it, "rope.dimension_count": 4, "full_attention_interval": 3,
               "ssm.conv_kernel": taps, "ssm.state_size": k_dim, "ssm.group_count": n_k,
               "ssm.time_step_rank": n_v, "ssm.inner_size": n_v * v_dim,
               "rope.dimension_sections": [1, 1, 0, 0]}


def qwen35():
    def feed_forward(t, at, of):
        for part in ("gate", "up", "down"):
            t.add(f"{at}ffn_{part}.weight", f"{of}{part}_proj.weight")

    return qwen35_of(hf.Qwen3_5TextConfig, hf.Qwen3_5ForCausalLM, {}, feed_forward, {})


def qwen35moe():
    def feed_forward(t, at, of):
        t.add(at + "ffn_gate_inp.weight", of + "gate.weight")
        shared_and_experts(t, at, of.removesuffix("mlp."), 24)

    t, keys = qwen35_of(hf.Qwen3_5MoeTextConfig, hf.Qwen3_5MoeForCausalLM,
                        dict(num_experts=EXPERTS, num_experts_per_tok=3,
                             moe_intermediate_size=EXPERT_DIM, shared_expert_intermediate_size=12,
                             experts_implementation="eager"),
                        feed_forward,
                        {"expert_count": EXPERTS, "expert_used_count": 3,
                         "expert_feed_forward_length": EXPERT_DIM,
                         "expert_shared_feed_forward_length": 12})
    del keys["feed_forward_length"]  # files do not state it
    return t, keys


def granite_hybrid():
    n_heads, d_head, d_state, taps = 6, 8, 5, 4
    c = hf.GraniteMoeHybridConfig(**{
        **SHAPE, "hidden_size": 24, "num_hidden_layers": 4, "num_local_experts": 0,
        "num_experts_per_tok": 0, "shared_intermediate_size": 28, "position_embedding_type": "rope",
        "layer_types": ["linear_attention", "full_attention"] + 2 * ["linear_attention"],
        "mamba_n_heads": n_heads, "mamba_d_head": d_head, "mamba_d_state": d_state,
        "mamba_d_conv": taps, "mamba_chunk_size": 16, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.25, "attention_multiplier": 0.3, "logits_scaling": 8.0,
        "rope_parameters": rope(500.0)})
    inner, width = n_heads * d_head, n_heads * d_head + 2 * d_state
    t = Tensors(hf.GraniteMoeHybridForCausalLM(c))
    t.add("token_embd.weight", "model.embed_tokens.weight")
    t.add("output_norm.weight", "model.norm.weight")
    t.add("output.weight", "lm_head.weight")
    for i, kind in enumerate(c.layer_types):
        at, of = f"blk.{i}.", f"model.layers.{i}."
        t.add(at + "attn_norm.weight", of + "input_layernorm.weight")
        t.add(at + "ffn_norm.weight", of + "post_attention_layernorm.weight")
        t.add(at + "ffn_down.weight", of + "shared_mlp.output_linear.weight")
        both = []  # gate and up are one parameter
        for part in ("gate", "up"):
            name = f"{at}ffn_{part}.weight"
            t.list.append((name, (28, 24)))
            both.append(weights(name, (28, 24)).astype(np.float64))
        with torch.no_grad():
            t.hf[of + "shared_mlp.input_linear.weight"].copy_(
                torch.from_numpy(np.concatenate(both)))
        t.set.add(of + "shared_mlp.input_linear.weight")
        if kind == "full_attention":
            for name, part, how in (("q", "q", unpermute(4)), ("k", "k", unpermute(2)),
                                    ("v", "v", lambda w: w), ("output", "o", lambda w: w)):
                t.add(f"{at}attn_{name}.weight", f"{of}self_attn.{part}_proj.weight", how)
            continue
        of += "mamba."
        t.add(at + "ssm_in.weight", of + "in_proj.weight")
        t.add(at + "ssm_out.weight", of + "out_proj.weight")
        t.add(at + "ssm_norm.weight", of + "norm.weight")
        t.add(at + "ssm_dt.bias", of + "dt_bias")
        t.add(at + "ssm_conv1d.bias", of + "conv1d.bias")
        t.put(at + "ssm_conv1d.weight", (width, taps),
              [(of + "conv1d.weight", lambda w: w[:, None, :])])
        t.put(at + "ssm_a", (n_heads, 1), [(of + "A_log", lambda w: np.log(-w[:, 0]))])
        t.put(at + "ssm_d", (n_heads, 1), [(of + "D", lambda w: w[:, 0])])
    t.check()
    return t, {**keys_of(c), "embedding_scale": 12.0, "residual_scale": 0.25,
               "attention.scale": 0.3, "logit_scale": 8.0, "rope.scaling.finetuned": True,
               "attention.head_count_kv": [2 if kind == "full_attention" else 0
                                           for kind in c.layer_types],
               "feed_forward_length": 28, "expert_count": 0, "ssm.conv_kernel": taps,
               "ssm.state_size": d_state, "ssm.group_count": 1, "ssm.time_step_rank": n_heads,
               "ssm.inner_size": inner}


# ---- Experts -------------------------------------------------------------------------------------

EXPERTS, EXPERT_DIM = 6, 16


def moe(config_class, model_class, more, keys, experts, router="mlp.gate", permuted=False,
        norms=None):
    """experts(t, at, of): the tensors of a layer's experts."""
    c = config_class(**{**SHAPE, "num_hidden_layers": 2, "num_experts_per_tok": 2,
                        "experts_implementation": "eager", **more})
    t = Tensors(model_class(c))
    llama_tensors(t, c, permuted=permuted, norms=norms)
    for i in range(c.num_hidden_layers):
        at, of = f"blk.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias"):
            t.optional(at + f"ffn_gate_inp.{kind}", of + f"{router}.{kind}")
        t.optional(at + "attn_sinks.weight", of + "self_attn.sinks")
        experts(t, at, of)
    t.check()
    return t, {**keys_of(c), "expert_count": EXPERTS, "expert_used_count": 2,
               "expert_feed_forward_length": EXPERT_DIM, **keys}


def plain_experts(t, at, of, up="mlp.experts.gate_up_proj", down="mlp.experts.down_proj"):
    shape = (EXPERTS, EXPERT_DIM, t.hf[of + up].shape[2])
    t.join([(at + "ffn_gate_exps.weight", shape), (at + "ffn_up_exps.weight", shape)], of + up,
           lambda gate, up: np.concatenate([gate, up], axis=1))
    t.add(at + "ffn_down_exps.weight", of + down)


def qwen3moe():
    return moe(hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM,
               dict(num_experts=EXPERTS, moe_intermediate_size=EXPERT_DIM, norm_topk_prob=True,
                    num_experts_per_tok=3, rope_parameters=rope(1000000.0)),
               {"expert_used_count": 3}, plain_experts)


def qwen3moe_sums():  # the weights of the chosen experts are not those of a softmax among them
    return moe(hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM,
               dict(num_experts=EXPERTS, moe_intermediate_size=EXPERT_DIM, norm_topk_prob=False),
               {"expert_weights_norm": False}, plain_experts)


def qwen3moe_by_token():
    """The experts of a token are in a table; transformers is told so here."""
    table = np.array([[(5 * i) % EXPERTS, (5 * i + 1 + i % 4) % EXPERTS] for i in range(VOCAB)])
    t, keys = moe(hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM,
                  dict(num_experts=EXPERTS, moe_intermediate_size=EXPERT_DIM, norm_topk_prob=True),
                  {}, plain_experts)

    def chosen(router, args, output):
        logits = output[0]
        experts = torch.tensor(table)[torch.tensor(tokens())]
        scores = torch.softmax(logits, dim=-1).gather(1, experts)
        return logits, scores / scores.sum(dim=-1, keepdim=True), experts

    t.model.model.layers[1].mlp.gate.register_forward_hook(chosen)  # the first layer chooses
    return t, {**keys, "#tensors": {"blk.1.ffn_gate_tid2eid.weight": table.astype(np.float32)}}


def mixtral():
    t, keys = moe(hf.MixtralConfig, hf.MixtralForCausalLM,
                  dict(num_local_experts=EXPERTS, intermediate_size=EXPERT_DIM,
                       rope_parameters=rope(500.0)),
                  {}, plain_experts, permuted=True)
    del keys["expert_feed_forward_length"]
    return t, keys


def shared_and_experts(t, at, of, dim):  # a shared expert behind a gate
    plain_experts(t, at, of)
    t.put(at + "ffn_gate_inp_shexp.weight", (dim,),
          [(of + "mlp.shared_expert_gate.weight", lambda w: w[None])])
    for part in ("gate", "up", "down"):
        t.add(at + f"ffn_{part}_shexp.weight", of + f"mlp.shared_expert.{part}_proj.weight")


def qwen2moe():
    return moe(hf.Qwen2MoeConfig, hf.Qwen2MoeForCausalLM,
               dict(hidden_size=24, num_experts=EXPERTS,
                    moe_intermediate_size=EXPERT_DIM, shared_expert_intermediate_size=12,
                    norm_topk_prob=False, num_experts_per_tok=3),
               {"expert_used_count": 3, "expert_weights_norm": False,
                "expert_shared_feed_forward_length": 12},
               lambda t, at, of: shared_and_experts(t, at, of, 24))


def granitemoe_of(shared):
    def experts(t, at, of):
        of += "block_sparse_moe."
        plain_experts(t, at, of, "experts.gate_up_proj", "experts.down_proj")
        if shared:
            of = of.replace("block_sparse_moe", "shared_mlp")
            shape = (shared, SHAPE["hidden_size"])
            t.join([(at + "ffn_gate_shexp.weight", shape), (at + "ffn_up_shexp.weight", shape)],
                   of + "input_linear.weight", lambda gate, up: np.concatenate([gate, up]))
            t.add(at + "ffn_down_shexp.weight", of + "output_linear.weight")

    classes = ((hf.GraniteMoeSharedConfig, hf.GraniteMoeSharedForCausalLM) if shared else
               (hf.GraniteMoeConfig, hf.GraniteMoeForCausalLM))
    sizes = dict(shared_intermediate_size=shared) if shared else {}
    keys = {"expert_shared_feed_forward_length": shared} if shared else {}
    t, keys = moe(*classes,
                  dict(num_local_experts=EXPERTS, intermediate_size=EXPERT_DIM, head_dim=6,
                       embedding_multiplier=12.0, residual_multiplier=0.25,
                       attention_multiplier=0.3, logits_scaling=8.0, rms_norm_eps=1e-3,
                       **sizes),
                  {**keys, "embedding_scale": 12.0, "residual_scale": 0.25,
                   "attention.scale": 0.3, "logit_scale": 8.0}, experts,
                  router="block_sparse_moe.router", permuted=True)
    del keys["expert_feed_forward_length"]
    return t, keys


def granitemoe():
    return granitemoe_of(None)


def granitemoe_shared():
    return granitemoe_of(12)


OSS_NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}


def gpt_oss():
    dim = SHAPE["hidden_size"]

    def experts(t, at, of):
        of += "mlp.experts."
        woven = lambda gate, up: np.stack([gate, up], axis=-1).reshape(EXPERTS, -1, 2 * EXPERT_DIM)
        t.join([(at + f"ffn_{part}_exps.weight", (EXPERTS, EXPERT_DIM, dim))
                for part in ("gate", "up")], of + "gate_up_proj",
               lambda gate, up: woven(gate.swapaxes(1, 2), up.swapaxes(1, 2)))
        t.join([(at + f"ffn_{part}_exps.bias", (EXPERTS, EXPERT_DIM)) for part in ("gate", "up")],
               of + "gate_up_proj_bias", lambda gate, up: woven(gate, up).reshape(EXPERTS, -1))
        t.join([(at + "ffn_down_exps.weight", (EXPERTS, dim, EXPERT_DIM))], of + "down_proj",
               lambda down: down.swapaxes(1, 2))
        t.add(at + "ffn_down_exps.bias", of + "down_proj_bias")

    return moe(hf.GptOssConfig, hf.GptOssForCausalLM,
               dict(num_local_experts=EXPERTS, intermediate_size=EXPERT_DIM, head_dim=12,
                    num_hidden_layers=3, sliding_window=5,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                    rope_parameters=rope(100.0, truncate=False, **yarn_scaling())),
               {**YARN_KEYS, "attention.sliding_window": 5}, experts, router="mlp.router",
               norms=OSS_NORMS)


# ---- Gemma 4, BitNet -----------------------------------------------------------------------------


def gemma4_of(more, keys, experts=lambda t, at, of: None):
    """experts(t, at, of): what a layer has beside its feed-forward part."""
    types = {"s": "sliding_attention", "f": "full_attention"}
    parameters = {"full_attention": rope(100000.0, rope_type="proportional",
                                         partial_rotary_factor=0.5),
                  "sliding_attention": rope(1000.0)}
    layers = "sssfssf"  # llama.cpp shares what the last two of their own store
    c = hf.Gemma4TextConfig(**{
        **SHAPE, "num_hidden_layers": len(layers), "layer_types": [types[kind] for kind in layers],
        "global_head_dim": 12, "sliding_window": 5, "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "tie_word_embeddings": True,
        "rope_parameters": parameters, "experts_implementation": "eager", **more})
    t = Tensors(hf.Gemma4ForCausalLM(c))
    llama_tensors(t, c, norms=GEMMA_NORMS)
    n_inputs = c.hidden_size_per_layer_input
    if n_inputs:
        t.add("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight")
        t.add("per_layer_model_proj.weight", "model.per_layer_model_projection.weight")
        t.add("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight")
    for i in range(c.num_hidden_layers):
        at, of = f"blk.{i}.", f"model.layers.{i}."
        t.add(at + "layer_output_scale.weight", of + "layer_scalar")
        for name, hf_name in (("inp_gate", "per_layer_input_gate"),
                              ("proj", "per_layer_projection"),
                              ("post_norm", "post_per_layer_input_norm")):
            t.optional(f"{at}{name}.weight", f"{of}{hf_name}.weight")
        experts(t, at, of)
    t.check()
    head_dim = SHAPE["head_dim"]
    return t, {**keys_of(c, 12, SHAPE["num_key_value_heads"]), "rope.dimension_count_swa": head_dim, "rope.freq_base": 100000.0,
               "attention.key_length_swa": head_dim, "attention.value_length_swa": head_dim,
               "rope.freq_base_swa": 1000.0, "attention.sliding_window": 5,
               "attention.sliding_window_pattern": [kind == "s" for kind in layers],
               "attention.shared_kv_layers": c.num_kv_shared_layers,
               "final_logit_softcapping": 30.0,
               "embedding_length_per_layer_input": n_inputs,
               "#tensors": {"rope_freqs.weight": np.array(3 * [1.0] + 3 * [1e30], np.float32)},
               **keys}


def gemma4():  # E2B, E4B: inputs of layers; the last layers share keys and values
    return gemma4_of(dict(hidden_size_per_layer_input=5, vocab_size_per_layer_input=VOCAB,
                          num_kv_shared_layers=3, use_double_wide_mlp=True),
                     {"feed_forward_length": 4 * [28] + 3 * [56]})


def gemma4_values():  # 12B, 31B: in full layers, keys are values, too
    return gemma4_of(dict(attention_k_eq_v=True, num_global_key_value_heads=1),
                     {"attention.head_count_kv": [2, 2, 2, 1, 2, 2, 1]})


def gemma4_moe():  # 26B-A4B: experts beside the feed-forward part
    def experts(t, at, of):
        t.add(at + "ffn_gate_inp.weight", of + "router.proj.weight")
        t.add(at + "ffn_gate_inp.scale", of + "router.scale")
        t.add(at + "ffn_down_exps.scale", of + "router.per_expert_scale")
        for name in ("post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"):
            hf_name = name.replace("ffw", "feedforward").replace("norm", "layernorm")
            t.add(f"{at}{name}.weight", f"{of}{hf_name}.weight")
        t.add(at + "ffn_gate_up_exps.weight", of + "experts.gate_up_proj")
        t.add(at + "ffn_down_exps.weight", of + "experts.down_proj")

    return gemma4_of(dict(enable_moe_block=True, num_experts=EXPERTS, top_k_experts=3,
                          moe_intermediate_size=EXPERT_DIM),
                     {"expert_count": EXPERTS, "expert_used_count": 3,
                      "expert_feed_forward_length": EXPERT_DIM}, experts)


def bitnet_of(activation):
    return decoder(hf.BitNetConfig, hf.BitNetForCausalLM,
                   dict(hidden_size=24, hidden_act=activation, tie_word_embeddings=True,
                        rope_parameters=rope(500.0)),
                   {"hidden_activation": activation},
                   norms={"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                          "attn_sub_norm": "self_attn.attn_sub_norm",
                          "ffn_sub_norm": "mlp.ffn_sub_norm"})


def bitnet():
    return bitnet_of("relu2")


def bitnet_silu():
    return bitnet_of("silu")


# ---- Older models --------------------------------------------------------------------------------


def interleave_of(n_heads, head_dim):
    """Files have all heads' q, then k, then v; here each head has its three."""
    return lambda w: w.reshape(3, n_heads, head_dim, -1).swapaxes(0, 1).reshape(w.shape)


def layers_of(t, c, prefix, pairs, outside, kinds=("weight", "bias")):
    """pairs: of layers; outside: of the rest. Biases are where transformers have them."""
    for name, hf_name in outside.items():
        for kind in kinds:
            t.optional(f"{name}.{kind}", f"{hf_name}.{kind}")
    for i in range(c.num_hidden_layers):
        for name, hf_name in pairs.items():
            for kind in kinds:
                t.optional(f"blk.{i}.{name}.{kind}", f"{prefix}.{i}.{hf_name}.{kind}")


OLD_SHAPE = dict(vocab_size=VOCAB, hidden_size=40, attn_implementation="eager", pad_token_id=0,
                 bos_token_id=1, eos_token_id=2)
SEPARATE = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj"}


def old_keys(c, ffn, n_ctx):
    return {"context_length": n_ctx, "embedding_length": c.hidden_size,
            "block_count": c.num_hidden_layers, "feed_forward_length": ffn,
            "attention.head_count": c.num_attention_heads, "vocab_size": VOCAB,
            "attention.layer_norm_epsilon": 1e-5}


def opt():
    c = hf.OPTConfig(**OLD_SHAPE, ffn_dim=28, num_hidden_layers=3, num_attention_heads=4,
                     max_position_embeddings=64, word_embed_proj_dim=40, dropout=0.0)
    t = Tensors(hf.OPTForCausalLM(c))
    layers_of(t, c, "model.decoder.layers",
              {**SEPARATE, "attn_output": "self_attn.out_proj", "attn_norm": "self_attn_layer_norm",
               "ffn_norm": "final_layer_norm", "ffn_up": "fc1", "ffn_down": "fc2"},
              {"token_embd": "model.decoder.embed_tokens",
               "output_norm": "model.decoder.final_layer_norm"})
    # The first two rows are no positions.
    t.put("position_embd.weight", (64, 40),
          [("model.decoder.embed_positions.weight",
            lambda w: np.concatenate([np.zeros((2, 40)), w]))])
    t.check()
    return t, old_keys(c, 28, 64)


def bloom_of(n_heads):
    c = hf.BloomConfig(**OLD_SHAPE, n_layer=3, n_head=n_heads, layer_norm_epsilon=1e-5,
                       hidden_dropout=0.0, attention_dropout=0.0)
    t = Tensors(hf.BloomForCausalLM(c))
    layers_of(t, c, "transformer.h",
              {"attn_norm": "input_layernorm", "attn_output": "self_attention.dense",
               "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.dense_h_to_4h",
               "ffn_down": "mlp.dense_4h_to_h"},
              {"token_embd": "transformer.word_embeddings",
               "token_embd_norm": "transformer.word_embeddings_layernorm",
               "output_norm": "transformer.ln_f"})
    for i in range(c.num_hidden_layers):
        for kind in ("weight", "bias"):
            t.add(f"blk.{i}.attn_qkv.{kind}",
                  f"transformer.h.{i}.self_attention.query_key_value.{kind}",
                  interleave_of(n_heads, 40 // n_heads))
    t.check()
    return t, old_keys(c, 160, 2048)


def bloom():
    return bloom_of(4)


def bloom_five_heads():  # slopes of eight heads for the last one
    return bloom_of(5)


def gptneo():
    c = hf.GPTNeoConfig(**OLD_SHAPE, num_layers=4, num_heads=4, intermediate_size=28, window_size=5,
                        attention_types=[[["global", "local"], 2]], max_position_embeddings=64,
                        layer_norm_epsilon=1e-5, embed_dropout=0.0, attention_dropout=0.0,
                        resid_dropout=0.0)
    t = Tensors(hf.GPTNeoForCausalLM(c))
    layers_of(t, c, "transformer.h",
              {"attn_norm": "ln_1", "attn_q": "attn.attention.q_proj",
               "attn_k": "attn.attention.k_proj", "attn_v": "attn.attention.v_proj",
               "attn_output": "attn.attention.out_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc",
               "ffn_down": "mlp.c_proj"},
              {"token_embd": "transformer.wte", "position_embd": "transformer.wpe",
               "output_norm": "transformer.ln_f"})
    t.check()
    return t, {**old_keys(c, 28, 64), "attention.scale": 1.0, "attention.sliding_window": 5,
               "attention.sliding_window_pattern": [False, True, False, True]}


def phi2():
    c = hf.PhiConfig(**OLD_SHAPE, intermediate_size=28, num_hidden_layers=3, num_attention_heads=4,
                     max_position_embeddings=64, layer_norm_eps=1e-5, resid_pdrop=0.0,
                     tie_word_embeddings=False,
                     rope_parameters=rope(500.0, partial_rotary_factor=0.6))
    t = Tensors(hf.PhiForCausalLM(c))
    layers_of(t, c, "model.layers",
              {**SEPARATE, "attn_output": "self_attn.dense", "attn_norm": "input_layernorm",
               "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
              {"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm",
               "output": "lm_head"})
    t.check()
    return t, {**old_keys(c, 28, 64), "rope.dimension_count": 6, "rope.freq_base": 500.0}


DECODERS = {
    "llama": ("llama", llama), "llama-linear": ("llama", llama_linear),
    "llama-factors": ("llama", llama3_factors), "qwen2": ("qwen2", qwen2),
    "qwen2-yarn": ("qwen2", qwen2_yarn), "qwen3": ("qwen3", qwen3),
    "mistral3": ("mistral3", mistral3), "smollm3": ("smollm3", smollm3),
    "granite": ("granite", granite), "gemma2": ("gemma2", gemma2), "gemma3": ("gemma3", gemma3),
    "phi3-long": ("phi3", phi3_long), "phi3-short": ("phi3", phi3_short),
    "phi3-window": ("phi3", phi3_window),
    "olmo2": ("olmo2", olmo2), "olmo3": ("olmo2", olmo3), "gptneox": ("gptneox", gptneox),
    "gptneox-sequential": ("gptneox", gptneox_sequential), "opt": ("opt", opt),
    "bloom": ("bloom", bloom), "bloom-five-heads": ("bloom", bloom_five_heads),
    "gptneo": ("gptneo", gptneo), "phi2": ("phi2", phi2),
    "qwen3moe": ("qwen3moe", qwen3moe), "qwen3moe-sums": ("qwen3moe", qwen3moe_sums),
    "mixtral": ("llama", mixtral), "gpt-oss": ("gpt-oss", gpt_oss),
    "qwen2moe": ("qwen2moe", qwen2moe), "granitemoe": ("granitemoe", granitemoe),
    "granitemoe-shared": ("granitemoe", granitemoe_shared),
    "lfm2": ("lfm2", lfm2), "qwen35": ("qwen35", qwen35),
    "granitehybrid": ("granitehybrid", granite_hybrid),
    "qwen3moe-by-token": ("qwen3moe", qwen3moe_by_token), "lfm2moe": ("lfm2moe", lfm2moe),
    "qwen35moe": ("qwen35moe", qwen35moe), "gemma4": ("gemma4", gemma4),
    "gemma4-values": ("gemma4", gemma4_values), "gemma4-moe": ("gemma4", gemma4_moe),
    "bitnet": ("bitnet", bitnet), "bitnet-silu": ("bitnet", bitnet_silu),
}

# ---- Models that embed texts ---------------------------------------------------------------------


def bert_tensors(t, c, names, kinds):
    for kind in ("weight", "bias"):
        t.add(f"token_embd_norm.{kind}", f"embeddings.LayerNorm.{kind}")
    t.add("token_embd.weight", "embeddings.word_embeddings.weight")
    t.add("token_types.weight", "embeddings.token_type_embeddings.weight")
    t.optional("position_embd.weight", "embeddings.position_embeddings.weight")
    for i in range(c.num_hidden_layers):
        for name, hf_name in names.items():
            for kind in ("weight", "bias") if name.endswith("norm") else kinds:
                t.add(f"blk.{i}.{name}.{kind}", hf_name.replace("#", str(i)) + "." + kind)


BERT_NAMES = {
    "attn_q": "encoder.layer.#.attention.self.query", "attn_k": "encoder.layer.#.attention.self.key",
    "attn_v": "encoder.layer.#.attention.self.value",
    "attn_output": "encoder.layer.#.attention.output.dense",
    "attn_output_norm": "encoder.layer.#.attention.output.LayerNorm",
    "ffn_up": "encoder.layer.#.intermediate.dense", "ffn_down": "encoder.layer.#.output.dense",
    "layer_output_norm": "encoder.layer.#.output.LayerNorm"}
NOMIC_NAMES = {
    "attn_output": "layers.#.self_attn.o_proj", "attn_output_norm": "layers.#.post_attention_layernorm",
    "ffn_gate": "layers.#.mlp.gate_proj", "ffn_up": "layers.#.mlp.up_proj",
    "ffn_down": "layers.#.mlp.down_proj", "layer_output_norm": "layers.#.post_mlp_layernorm"}
BERT_SHAPE = dict(vocab_size=VOCAB, hidden_size=28, intermediate_size=36, num_hidden_layers=3,
                  num_attention_heads=4, max_position_embeddings=40, layer_norm_eps=1e-5,
                  type_vocab_size=2, attn_implementation="eager", pad_token_id=0,
                  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def pooled(rows, pooling):
    return {1: rows.mean(axis=0), 2: rows[0], 3: rows[-1]}[pooling]


def embedding_of(t, pooling):
    with torch.no_grad():
        rows = t.model(torch.tensor([tokens()])).last_hidden_state[0].numpy()
    return pooled(rows, pooling)


def bert_keys(c, pooling):
    keys = keys_of(c, c.hidden_size // c.num_attention_heads)
    return {**keys, "attention.layer_norm_epsilon": 1e-5, "attention.causal": False,
            "pooling_type": pooling}


def bert_of(pooling):
    c = hf.BertConfig(**BERT_SHAPE)
    t = Tensors(hf.BertModel(c, add_pooling_layer=False))
    bert_tensors(t, c, BERT_NAMES, ("weight", "bias"))
    t.check()
    keys = bert_keys(c, pooling)
    del keys["rope.dimension_count"]
    return t, keys, embedding_of(t, pooling)


def nomic_bert():
    c = hf.NomicBertConfig(**{**BERT_SHAPE, "hidden_size": 32, "rope_parameters": rope(1000.0)})
    t = Tensors(hf.NomicBertModel(c, add_pooling_layer=False))
    bert_tensors(t, c, NOMIC_NAMES, ("weight",))
    for i in range(c.num_hidden_layers):
        of = f"layers.{i}.self_attn."
        t.put(f"blk.{i}.attn_qkv.weight", (96, 32),
              [(of + name + "_proj.weight", lambda w, j=j: w[32 * j:32 * (j + 1)])
               for j, name in enumerate("qkv")])
    t.check()
    return t, bert_keys(c, 1), embedding_of(t, 1)


def gemma_embedding():
    parameters = {"full_attention": rope(100000.0), "sliding_attention": rope(1000.0)}
    c = hf.Gemma3TextConfig(**{**SHAPE, "query_pre_attn_scalar": 6, "sliding_window": 6,
                               "num_hidden_layers": 7, "rope_parameters": parameters,
                               "use_bidirectional_attention": True})
    t = Tensors(hf.Gemma3TextModel(c))
    t.hf = {"model." + name: p for name, p in t.hf.items()}
    llama_tensors(t, c, norms=GEMMA_NORMS)
    t.check()
    t.list += [("dense_2.weight", (33, 20)), ("dense_3.weight", (20, 33))]
    row = embedding_of(t, 1)
    for name, shape in t.list[-2:]:
        row = weights(name, shape).astype(np.float64) @ row
    return t, {**keys_of(c), "attention.sliding_window": 6, "rope.freq_base": 100000.0,
               "rope.freq_base_swa": 1000.0, "pooling_type": 1, "attention.causal": False,
               "dense_2_feat_in": 20, "dense_2_feat_out": 33, "dense_3_feat_in": 33,
               "dense_3_feat_out": 20}, row


def qwen3_embedding():
    c = hf.Qwen3Config(**SHAPE)
    t = Tensors(hf.Qwen3Model(c))
    t.hf = {"model." + name: p for name, p in t.hf.items()}
    llama_tensors(t, c)
    t.check()
    return t, {**keys_of(c), "pooling_type": 3}, embedding_of(t, 3)


ENCODERS = {"qwen3-embedding": ("qwen3", qwen3_embedding),
            "bert-mean": ("bert", lambda: bert_of(1)), "bert-first": ("bert", lambda: bert_of(2)),
            "nomic-bert": ("nomic-bert", nomic_bert),
            "gemma-embedding": ("gemma-embedding", gemma_embedding)}

# ---- Files ---------------------------------------------------------------------------------------


def write_keys(writer, architecture, keys):
    for key, value in keys.items():
        if key.startswith("#"):
            continue
        name = f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_golden(path, architecture, t, keys, expected):
    writer = gguf.GGUFWriter(path, architecture)
    write_keys(writer, architecture, keys)
    writer.add_array("golden.names", [name for name, _ in t.list])
    # (rows, columns); of experts the rows of all, and how many they are.
    writer.add_array("golden.shapes", [int(n) for _, s in t.list
                                       for n in (math.prod(s[:-1]) if len(s) > 1 else 0, s[-1])])
    writer.add_array("golden.experts", [int(s[0]) if len(s) == 3 else 1 for _, s in t.list])
    writer.add_array("golden.tokens", tokens())
    for name, values in keys.get("#tensors", {}).items():
        writer.add_tensor(name, values)
    writer.add_tensor("golden.expected", expected.astype(np.float32))
    finish(writer)


def write_model(path, architecture, t, keys):
    writer = gguf.GGUFWriter(path, architecture)
    write_keys(writer, architecture, keys)
    writer.add_tokenizer_model("llama")
    words = ["<unk>", "<s>", "</s>"] + [f"▁w{i}" for i in range(3, VOCAB)]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
    writer.add_token_type_count(2)
    for name, shape in t.list:
        writer.add_tensor(name, weights(name, shape))
    for name, values in keys.get("#tensors", {}).items():
        writer.add_tensor(name, values)
    finish(writer)


# ---- llama.cpp -----------------------------------------------------------------------------------


class Params(ctypes.Structure):  # of models and contexts: larger than both
    _fields_ = [("words", ctypes.c_uint32 * 64)]


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p),
                ("embd", ctypes.c_void_p), ("pos", ctypes.c_void_p),
                ("n_seq_id", ctypes.c_void_p), ("seq_id", ctypes.c_void_p),
                ("logits", ctypes.c_void_p)]


class LlamaCpp:
    """llama.cpp's library, with the layout of its parameters as of xllamacpp 2026.10."""

    def __init__(self):
        import xllamacpp

        folder = os.path.dirname(xllamacpp.__file__)
        name = next(n for n in os.listdir(folder) if n.endswith(".so"))
        self.lib = lib = ctypes.CDLL(os.path.join(folder, name))
        lib.llama_model_default_params.restype = Params
        lib.llama_context_default_params.restype = Params
        lib.llama_model_load_from_file.restype = ctypes.c_void_p
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
        lib.llama_init_from_model.restype = ctypes.c_void_p
        lib.llama_init_from_model.argtypes = [ctypes.c_void_p, Params]
        lib.llama_batch_init.restype = Batch
        lib.llama_decode.argtypes = [ctypes.c_void_p, Batch]
        lib.llama_encode.argtypes = [ctypes.c_void_p, Batch]
        lib.llama_free.argtypes = [ctypes.c_void_p]
        lib.llama_model_free.argtypes = [ctypes.c_void_p]
        for f in ("llama_get_logits_ith", "llama_get_embeddings_ith", "llama_get_embeddings_seq"):
            getattr(lib, f).restype = ctypes.POINTER(ctypes.c_float)
            getattr(lib, f).argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
            lambda level, text, data: level >= 4 and sys.stderr.write(text.decode()))
        lib.llama_log_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        lib.llama_log_set(ctypes.cast(self.quiet, ctypes.c_void_p), None)
        lib.llama_backend_init()

    def run(self, path, ids, n_ctx, width, embed=False):
        lib = self.lib
        model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not model:
            return None
        p = lib.llama_context_default_params()
        p.words[0] = n_ctx
        if not embed:
            p.words[5] = p.words[6] = len(ids)  # outputs
        p.words[7] = p.words[8] = 1  # threads
        p.words[13] = 0  # no flash attention: its sums are f16
        p.words[26] = p.words[27] = 0  # an f32 cache
        bytes_of = ctypes.cast(ctypes.pointer(p), ctypes.POINTER(ctypes.c_uint8))
        bytes_of[136] = 1 if embed else 0
        context = lib.llama_init_from_model(model, p)
        assert context, path
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            ctypes.cast(batch.token, ctypes.POINTER(ctypes.c_int32))[i] = token
            ctypes.cast(batch.pos, ctypes.POINTER(ctypes.c_int32))[i] = i
            ctypes.cast(batch.n_seq_id, ctypes.POINTER(ctypes.c_int32))[i] = 1
            ctypes.cast(batch.seq_id, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))[i][0] = 0
            ctypes.cast(batch.logits, ctypes.POINTER(ctypes.c_int8))[i] = 1
        assert lib.llama_decode(context, batch) == 0
        if embed:
            rows = [lib.llama_get_embeddings_seq(context, 0)[:width]]
        else:
            rows = [lib.llama_get_logits_ith(context, i)[:width] for i in range(len(ids))]
        lib.llama_free(context)
        lib.llama_model_free(model)
        return np.array(rows, dtype=np.float64)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", metavar="FOLDER", help="compare, with models written here")
    parser.add_argument("--hub", metavar="FOLDER", help="write the models as hub folders too")
    parser.add_argument("names", nargs="*", help="only these goldens")
    options = parser.parse_args()
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "goldens")
    os.makedirs(here, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    llama_cpp = LlamaCpp() if options.llama_cpp else None
    for name, (architecture, make) in {**DECODERS, **ENCODERS}.items():
        if options.names and name not in options.names:
            continue
        t, keys, *row = make()
        if row:
            expected = row[0][None] / np.linalg.norm(row[0])
        else:
            with torch.no_grad(), staying_double():
                expected = t.model(torch.tensor([tokens()])).logits[0].numpy()
        write_golden(os.path.join(here, name + ".gguf"), architecture, t, keys, expected)
        line = f"{name}: largest number {np.abs(expected).max():.3f}"
        if llama_cpp:
            path = os.path.join(options.llama_cpp, name + ".gguf")
            write_model(path, architecture, t, keys)
            theirs = llama_cpp.run(path, tokens(), LENGTH, expected.shape[1], embed=bool(row))
            if theirs is None:
                line += ", llama.cpp does not load it"
            else:
                if row:
                    theirs = theirs / np.linalg.norm(theirs)
                off = np.abs(theirs - expected).max(axis=1) / np.abs(expected).max()
                line += f", llama.cpp off by {off.max():.2e} (at token {off.argmax()})"
        if options.hub:
            t.model.float().save_pretrained(os.path.join(options.hub, name))
        print(line, flush=True)


main()
