#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gradients of whole models by PyTorch in double precision, for gradients_test.cpp.

    python3 make_gradient_goldens.py MODEL.gguf > gradients_NAME.txt

needs torch, numpy and gguf. For each tensor: its name, the norm of its gradient, and the gradient
times (cos(0.37 i + 0.1)) for i = 0, 1, ... in the order of the file. The loss is the sum of the
cross-entropies of the next tokens, of sequences of 7, 13, 2 and 20 tokens, token i of all being
(37 i + 11) mod vocab_size; every fifth row does not count.
"""
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

torch.set_default_dtype(torch.float64)
reader = GGUFReader(sys.argv[1])


def number(key):
    return reader.fields[key].parts[-1][0]


dim = int(number("llama.embedding_length"))
n_layers = int(number("llama.block_count"))
n_heads = int(number("llama.attention.head_count"))
n_kv = int(number("llama.attention.head_count_kv"))
eps = float(number("llama.attention.layer_norm_rms_epsilon"))
theta = float(number("llama.rope.freq_base")) if "llama.rope.freq_base" in reader.fields else 1e4
d = dim // n_heads
weights = {}
for t in reader.tensors:
    values = dequantize(t.data, t.tensor_type).astype(np.float64)
    weights[t.name] = torch.tensor(values.reshape(tuple(reversed([int(x) for x in t.shape]))),
                                   requires_grad=True)


def norm(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rope(x):  # (T, heads, d), adjacent pairs
    angle = torch.outer(torch.arange(x.shape[0]), theta ** (-torch.arange(0, d, 2) / d))
    c, s = angle.cos()[:, None, :], angle.sin()[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)


def logits(ids):
    x = weights["token_embd.weight"][ids]
    n = len(ids)
    for i in range(n_layers):
        w = {k: weights[f"blk.{i}.{k}.weight"] for k in
             ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
              "ffn_up", "ffn_down")}
        h = norm(x, w["attn_norm"])
        q = rope((h @ w["attn_q"].T).view(n, n_heads, d))
        k = rope((h @ w["attn_k"].T).view(n, n_kv, d)).repeat_interleave(n_heads // n_kv, 1)
        v = (h @ w["attn_v"].T).view(n, n_kv, d).repeat_interleave(n_heads // n_kv, 1)
        scores = torch.einsum("ihd,jhd->hij", q, k) / d ** 0.5
        scores = scores + torch.full((n, n), float("-inf")).triu(1)
        x = x + torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(n, -1) @ \
            w["attn_output"].T
        h = norm(x, w["ffn_norm"])
        gate = torch.nn.functional.silu(h @ w["ffn_gate"].T)
        x = x + (gate * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
    x = norm(x, weights["output_norm.weight"])
    return x @ weights.get("output.weight", weights["token_embd.weight"]).T


vocab_size = weights["token_embd.weight"].shape[0]
total, token, row = torch.zeros(()), 0, 0
for length in (7, 13, 2, 20):
    ids = torch.tensor([(37 * (token + i) + 11) % vocab_size for i in range(length)])
    token += length
    losses = torch.nn.functional.cross_entropy(logits(ids)[:-1], ids[1:], reduction="none")
    for loss in losses:
        if row % 5 != 4:
            total = total + loss
        row += 1
total.backward()
print(f"loss {total.item():.12g}")
for name, w in weights.items():
    if w.grad is None:
        continue
    g = w.grad.flatten()
    turned = torch.cos(0.37 * torch.arange(g.numel()) + 0.1)
    print(f"{name} {g.norm().item():.9g} {(g * turned).sum().item():.9g}")
