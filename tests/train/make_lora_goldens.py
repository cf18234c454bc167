#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A LoRA step by PEFT, for lora_test.cpp, in double precision but for what transformers computes in
single (norms, rotations, softmax).

    python3 make_lora_goldens.py ../../examples/models/home-commands-f16.gguf > lora_goldens.txt

needs torch, transformers, peft, numpy and gguf. The model is the hub's Llama with the weights of
the file, factors of rank 4 with alpha 6 beside all products of layers (but the output), element i
of the j-th factor (of A and B in turn, in the order of the file's tensors, layer by layer) being
0.05 cos(0.61 i + 0.3 j). The loss is that of make_gradient_goldens.py. Lines: "loss", its value,
its value after a step of AdamW; then of each factor its name, the norm of its gradient and that
gradient times cos(0.37 i + 0.1), in the order of GGUF.
"""
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

RANK, ALPHA = 4, 6
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
torch.set_default_dtype(torch.float64)
reader = GGUFReader(sys.argv[1])


def number(key):
    return reader.fields["llama." + key].parts[-1][0]


def hub_rows(x, n_heads):  # GGUF rotates adjacent pairs, the hub's Llama halves
    return x.reshape(n_heads, -1, 2, x.shape[-1]).transpose(0, 2, 1, 3).reshape(x.shape)


def gguf_rows(x, n_heads):
    return x.reshape(n_heads, 2, -1, x.shape[-1]).transpose(0, 2, 1, 3).reshape(x.shape)


heads = {"attn_q": int(number("attention.head_count")),
         "attn_k": int(number("attention.head_count_kv"))}
n_layers = int(number("block_count"))
weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64).reshape(
    tuple(reversed([int(x) for x in t.shape]))) for t in reader.tensors}
vocab_size, dim = weights["token_embd.weight"].shape
config = LlamaConfig(
    vocab_size=vocab_size, hidden_size=dim, intermediate_size=int(number("feed_forward_length")),
    num_hidden_layers=n_layers, num_attention_heads=heads["attn_q"],
    num_key_value_heads=heads["attn_k"], rms_norm_eps=float(number("attention.layer_norm_rms_epsilon")),
    rope_theta=float(number("rope.freq_base")) if "llama.rope.freq_base" in reader.fields else 1e4,
    tie_word_embeddings="output.weight" not in weights, attn_implementation="eager",
    max_position_embeddings=int(number("context_length")))
model = LlamaForCausalLM(config).double()
state = {"model.embed_tokens.weight": weights["token_embd.weight"],
         "lm_head.weight": weights.get("output.weight", weights["token_embd.weight"]),
         "model.norm.weight": weights["output_norm.weight"]}
for i in range(n_layers):
    for here, there in NAMES.items():
        w = weights[f"blk.{i}.{here}.weight"]
        state[f"model.layers.{i}.{there}.weight"] = hub_rows(w, heads[here]) if here in heads else w
    state[f"model.layers.{i}.input_layernorm.weight"] = weights[f"blk.{i}.attn_norm.weight"]
    state[f"model.layers.{i}.post_attention_layernorm.weight"] = weights[f"blk.{i}.ffn_norm.weight"]
model.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                                         target_modules=[n.split(".")[1] for n in NAMES.values()]))
model.double()
modules = dict(model.named_modules())
factors = []  # name, parameter, heads
for i in range(n_layers):
    for here, there in NAMES.items():
        module = modules[f"base_model.model.model.layers.{i}.{there}"]
        for side, layers in (("a", module.lora_A), ("b", module.lora_B)):
            p = layers["default"].weight
            n = np.arange(p.numel())
            values = (0.05 * np.cos(0.61 * n + 0.3 * len(factors))).reshape(tuple(p.shape))
            values = values.astype(np.float32).astype(np.float64)
            turns = heads.get(here) if side == "b" else None
            p.data = torch.tensor(hub_rows(values, turns) if turns else values)
            factors.append((f"blk.{i}.{here}.weight.lora_{side}", p, turns))


def loss_of_all():
    total, token = 0, 0
    row = 0
    for length in (7, 13, 2, 20):
        ids = torch.tensor([(37 * (token + i) + 11) % vocab_size for i in range(length)])
        token += length
        losses = torch.nn.functional.cross_entropy(model(ids[None, :-1]).logits[0].double(), ids[1:],
                                                   reduction="none")
        for loss in losses:
            if row % 5 != 4:
                total = total + loss
            row += 1
    return total


optimizer = torch.optim.AdamW([p for _, p, _ in factors], lr=1e-2, betas=(0.9, 0.999), eps=1e-8,
                              weight_decay=0.01)
loss = loss_of_all()
loss.backward()
gradients = []
for name, p, turns in factors:
    g = p.grad.numpy()
    g = (gguf_rows(g, turns) if turns else g).reshape(-1)
    turned = (g * np.cos(0.37 * np.arange(g.size) + 0.1)).sum()
    gradients.append(f"{name} {np.linalg.norm(g):.9g} {turned:.9g}")
optimizer.step()
print(f"loss {loss.item():.12g} {loss_of_all().item():.12g}")
print("\n".join(gradients))
