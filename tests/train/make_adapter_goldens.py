#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Logits of adapters by PEFT, for adapter_goldens_test.cpp, in double precision but for what
transformers and PEFT compute in single (norms, rotations, softmax).

    python3 make_adapter_goldens.py ../../examples/models/home-commands-f16.gguf > adapter_goldens.txt

needs torch, transformers, peft, numpy and gguf. The model is the hub's Llama with the weights of
the file. Numbers of the adapters are cosines, see below; tokens are (37 i + 11) mod 300 + 3. A line:
the adapter's name, then every 40th logit after the last of 21 tokens.
"""
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from peft import AdaptionPromptConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
torch.set_default_dtype(torch.float64)
reader = GGUFReader(sys.argv[1])


def number(key):
    return reader.fields["llama." + key].parts[-1][0]


def hub_rows(x, n_heads):  # GGUF rotates adjacent pairs, the hub's Llama halves
    return x.reshape(n_heads, -1, 2, x.shape[-1]).transpose(0, 2, 1, 3).reshape(x.shape)


heads = {"attn_q": int(number("attention.head_count")),
         "attn_k": int(number("attention.head_count_kv"))}
n_layers = int(number("block_count"))
weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64).reshape(
    tuple(reversed([int(x) for x in t.shape]))) for t in reader.tensors}
vocab_size, dim = weights["token_embd.weight"].shape
state = {"model.embed_tokens.weight": weights["token_embd.weight"],
         "lm_head.weight": weights.get("output.weight", weights["token_embd.weight"]),
         "model.norm.weight": weights["output_norm.weight"]}
for i in range(n_layers):
    for here, there in NAMES.items():
        w = weights[f"blk.{i}.{here}.weight"]
        state[f"model.layers.{i}.{there}.weight"] = hub_rows(w, heads[here]) if here in heads else w
    state[f"model.layers.{i}.input_layernorm.weight"] = weights[f"blk.{i}.attn_norm.weight"]
    state[f"model.layers.{i}.post_attention_layernorm.weight"] = weights[f"blk.{i}.ffn_norm.weight"]


def new_model():
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=dim, num_hidden_layers=n_layers,
        intermediate_size=int(number("feed_forward_length")), num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        rms_norm_eps=float(number("attention.layer_norm_rms_epsilon")),
        rope_theta=float(number("rope.freq_base")) if "llama.rope.freq_base" in reader.fields else 1e4,
        tie_word_embeddings="output.weight" not in weights, attn_implementation="eager",
        max_position_embeddings=int(number("context_length")))
    model = LlamaForCausalLM(config).double()
    model.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return model


def cosines(shape, size, phase):
    values = size * np.cos(0.61 * np.arange(np.prod(shape)) + phase)
    return values.astype(np.float32).astype(np.float64).reshape(shape)


def lora(rank, alpha, size, slots):
    """Factors of all layers, A and B in turn, layer by layer, in the order of `slots`."""
    model = get_peft_model(new_model(), LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=[NAMES[s].split(".")[1] for s in slots])).double()
    modules = dict(model.named_modules())
    j = 0
    for i in range(n_layers):
        for slot in slots:
            module = modules[f"base_model.model.model.layers.{i}.{NAMES[slot]}"]
            for side in (module.lora_A, module.lora_B):
                p = side["default"].weight
                values = cosines(tuple(p.shape), size, 0.3 * j)
                turns = heads.get(slot) if side is module.lora_B else None
                p.data = torch.tensor(hub_rows(values, turns) if turns else values)
                j += 1
    return model


def prefix():
    model = get_peft_model(new_model(), PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5)).double()
    p = model.prompt_encoder["default"].embedding.weight
    p.data = torch.tensor(cosines(tuple(p.shape), 0.4, 0.2))
    return model


def gated():
    model = get_peft_model(new_model(), AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=6, adapter_layers=2)).double()
    for name, p in model.named_parameters():
        if "adaption_prompt" not in name and "adaption_gate" not in name:
            continue
        layer = int(name.split("layers.")[1].split(".")[0])
        if "adaption_prompt" in name:
            p.data = torch.tensor(cosines(tuple(p.shape), 0.8, 0.1 * layer))
        else:
            p.data = torch.tensor(np.array([0.75 if layer % 2 else -1.5]))
    return model


ids = torch.tensor([[(37 * i + 11) % 300 + 3 for i in range(21)]])
for name, model in (("none", new_model()),
                    ("lora", lora(4, 6, 0.05, list(NAMES))),
                    ("lora16", lora(16, 8, 0.08, ["attn_q", "ffn_gate", "ffn_down"])),
                    ("prefix", prefix()), ("gated", gated())):
    model.eval()
    if len(sys.argv) > 2 and name in ("lora", "prefix", "gated"):  # as PEFT writes them
        model.save_pretrained(f"{sys.argv[2]}/{name}")
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1].double().numpy()
    print(name, " ".join(f"{x:.9g}" for x in logits[::40]))
