#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gradients of whole models by PyTorch in double precision, for gradients_test.cpp.

    python3 make_gradient_goldens.py MODEL > gradients_NAME.txt

MODEL: a GGUF file of a llama, or a safetensors file of minGPT. Needs torch, numpy, gguf and
safetensors. For each tensor: its name, the norm of its gradient, and the gradient times
(cos(0.37 i + 0.1)) for i = 0, 1, ... in the order of the file. The loss is the sum of the
cross-entropies of the next tokens, of sequences of 7, 13, 2 and 20 tokens (minGPT's file has 11
positions: 7, 12, 2 and 11), token i of all being (37 i + 11) mod vocab_size; every fifth row does
not count.
"""
import sys

import numpy as np
import torch
from torch.nn import functional

torch.set_default_dtype(torch.float64)


def parameter(values):
    return torch.tensor(np.asarray(values, dtype=np.float64), requires_grad=True)


def attend(q, k, v):  # (T, heads, d)
    n = len(q)
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    scores = scores + torch.full((n, n), float("-inf")).triu(1)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(n, -1)


class Llama:
    lengths = (7, 13, 2, 20)

    def __init__(self, path):
        from gguf import GGUFReader
        from gguf.quants import dequantize

        reader = GGUFReader(path)

        def number(key, default=None):
            return reader.fields[key].parts[-1][0] if key in reader.fields else default

        dim = int(number("llama.embedding_length"))
        self.n_layers = int(number("llama.block_count"))
        self.n_heads = int(number("llama.attention.head_count"))
        self.n_kv = int(number("llama.attention.head_count_kv"))
        self.eps = float(number("llama.attention.layer_norm_rms_epsilon"))
        self.theta = float(number("llama.rope.freq_base", 1e4))
        self.d = dim // self.n_heads
        self.weights = {}
        for t in reader.tensors:
            shape = tuple(reversed([int(x) for x in t.shape]))
            self.weights[t.name] = parameter(dequantize(t.data, t.tensor_type).reshape(shape))
        self.vocab_size = self.weights["token_embd.weight"].shape[0]

    def norm(self, x, w):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * w

    def rope(self, x):  # (T, heads, d), adjacent pairs
        d = self.d
        angle = torch.outer(torch.arange(x.shape[0]), self.theta ** (-torch.arange(0, d, 2) / d))
        c, s = angle.cos()[:, None, :], angle.sin()[:, None, :]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)

    def logits(self, ids):
        x = self.weights["token_embd.weight"][ids]
        n, each = len(ids), self.n_heads // self.n_kv
        for i in range(self.n_layers):
            w = {k: self.weights[f"blk.{i}.{k}.weight"] for k in
                 ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
                  "ffn_up", "ffn_down")}
            h = self.norm(x, w["attn_norm"])
            q = self.rope((h @ w["attn_q"].T).view(n, self.n_heads, self.d))
            k = self.rope((h @ w["attn_k"].T).view(n, self.n_kv, self.d))
            v = (h @ w["attn_v"].T).view(n, self.n_kv, self.d)
            k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
            x = x + attend(q, k, v) @ w["attn_output"].T
            h = self.norm(x, w["ffn_norm"])
            x = x + (functional.silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        x = self.norm(x, self.weights["output_norm.weight"])
        return x @ self.weights.get("output.weight", self.weights["token_embd.weight"]).T


class MinGpt:
    lengths = (7, 12, 2, 11)
    n_heads = 3

    def __init__(self, path):
        from safetensors.numpy import load_file

        # Without the masks of attention.
        self.weights = {name: parameter(values) for name, values in load_file(path).items()
                        if values.ndim < 4}
        self.n_layers = sum(name.endswith("ln_1.weight") for name in self.weights)
        self.vocab_size = self.weights["transformer.wte.weight"].shape[0]

    def norm(self, x, name):
        return functional.layer_norm(x, x.shape[-1:], self.weights[name + ".weight"],
                                     self.weights[name + ".bias"], 1e-5)

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def logits(self, ids):
        n = len(ids)
        x = self.weights["transformer.wte.weight"][ids] + self.weights["transformer.wpe.weight"][:n]
        for i in range(self.n_layers):
            h = f"transformer.h.{i}."
            qkv = self.linear(self.norm(x, h + "ln_1"), h + "attn.c_attn")
            q, k, v = (part.view(n, self.n_heads, -1) for part in qkv.chunk(3, -1))
            x = x + self.linear(attend(q, k, v), h + "attn.c_proj")
            up = self.linear(self.norm(x, h + "ln_2"), h + "mlp.c_fc")
            x = x + self.linear(functional.gelu(up, approximate="tanh"), h + "mlp.c_proj")
        return self.norm(x, "transformer.ln_f") @ self.weights["lm_head.weight"].T


model = (MinGpt if sys.argv[1].endswith(".safetensors") else Llama)(sys.argv[1])
total, token, row = torch.zeros(()), 0, 0
for length in model.lengths:
    ids = torch.tensor([(37 * (token + i) + 11) % model.vocab_size for i in range(length)])
    token += length
    losses = functional.cross_entropy(model.logits(ids[:-1]), ids[1:], reduction="none")
    for loss in losses:
        if row % 5 != 4:
            total = total + loss
        row += 1
total.backward()
print(f"loss {total.item():.12g}")
for name, w in model.weights.items():
    if w.grad is None:
        continue
    g = w.grad.flatten()
    turned = torch.cos(0.37 * torch.arange(g.numel()) + 0.1)
    print(f"{name} {g.norm().item():.9g} {(g * turned).sum().item():.9g}")
