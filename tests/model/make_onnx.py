# SPDX-License-Identifier: Apache-2.0
#
# Makes onnx/<family>/*.onnx: tiny models of random weights as PyTorch exports them, by both of its
# exporters, and as onnxruntime's quantizers make them of these; and beside each what onnxruntime
# computes with it (logits of the tokens of tokens(), F32), for onnx_test.cpp.
#
#   make_onnx.py [FOLDER]   writes to FOLDER, or to the folder onnx beside this file
#
# Needs torch, transformers, onnx, onnxscript, onnxruntime, numpy. Names of nodes and of values in
# between, and notes on where they come from, are left out: files would be several times as large.
import json
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
import torch
import transformers as hf
from onnxruntime.quantization import (CalibrationDataReader, QuantFormat, quantize_dynamic,
                                      quantize_static)

VOCAB, LENGTH = 23, 12
SHAPE = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, attn_implementation="eager")


def tokens():
    return [(7 * i * i + 3 * i + 5) % VOCAB for i in range(LENGTH)]


def models():
    yield "gpt2", hf.GPT2LMHeadModel(hf.GPT2Config(
        **SHAPE, n_positions=16, n_embd=16, n_inner=24, n_layer=2, n_head=2, embd_pdrop=0.0,
        attn_pdrop=0.0, resid_pdrop=0.0))
    yield "gptneox", hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(
        **SHAPE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, rope_parameters=dict(
            rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)))
    yield "llama", hf.LlamaForCausalLM(hf.LlamaConfig(
        **SHAPE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16))


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids):
        return self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids,
                          use_cache=False).logits


NAMES = ["input_ids", "attention_mask", "position_ids"]


def arguments():
    return (torch.tensor([tokens()]), torch.ones(1, LENGTH, dtype=torch.long),
            torch.arange(LENGTH)[None])


def export(model, path, dynamo, external):
    if dynamo:
        length = torch.export.Dim("length", min=2, max=16)
        how = dict(external_data=external, dynamic_shapes={name: {1: length} for name in NAMES})
    else:
        how = dict(opset_version=17, dynamic_axes={name: {1: "length"} for name in NAMES})
    torch.onnx.export(Logits(model).eval(), arguments(), path, input_names=NAMES, output_names=["logits"],
                      dynamo=dynamo, **how)


class OneBatch(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{n: a.numpy() for n, a in zip(NAMES, arguments())}])

    def get_next(self):
        return next(self.batches, None)


def shrink(source, path, external):
    """Shorter names of what is between the weights; no notes."""
    model = onnx.load(source)
    kept = {t.name for t in model.graph.initializer} | set(NAMES) | {"logits", ""}
    short = {}
    for node in model.graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name not in kept:
                    names[i] = short.setdefault(name, f"v{len(short)}")
    for field in ("value_info", "metadata_props", "quantization_annotation"):
        model.graph.ClearField(field)
    model.ClearField("metadata_props")
    for value in list(model.graph.input) + list(model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    more = dict(save_as_external_data=True, location=os.path.basename(path) + ".data",
                size_threshold=512) if external else {}
    onnx.save(model, path, **more)


def write_expected(path):
    session = onnxruntime.InferenceSession(path)
    given = {n: a.numpy() for n, a in zip(NAMES, arguments())}
    logits = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[0][0]
    logits.astype("<f4").tofile(path + ".logits")
    return logits


# Which files of which family.
WANTED = {"gpt2": ["plain", "dynamic"], "gptneox": ["external", "operators"],
          "llama": ["traced", "dynamic-rows", "pairs"]}


def main():
    here = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "onnx")
    for family, model in models():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.2)
        model = model.eval()
        folder = os.path.join(here, family)
        os.makedirs(folder, exist_ok=True)
        config = {k: v for k, v in json.loads(model.config.to_json_string(False)).items()
                  if k not in ("transformers_version", "dtype", "id2label", "label2id")}
        config["architectures"] = [type(model).__name__]
        with open(os.path.join(folder, "config.json"), "w") as out:
            json.dump(config, out, indent=1)
            out.write("\n")
        with tempfile.TemporaryDirectory() as temporary:
            plain, traced = (os.path.join(temporary, n + ".onnx") for n in ("plain", "traced"))
            export(model, plain, True, False)
            export(model, traced, False, False)
            source = {"plain": plain, "external": plain, "traced": traced}
            for name, more in (("dynamic", {}), ("dynamic-rows", dict(per_channel=True))):
                source[name] = os.path.join(temporary, name + ".onnx")
                quantize_dynamic(traced, source[name], **more)
            for name, form in (("pairs", QuantFormat.QDQ), ("operators", QuantFormat.QOperator)):
                source[name] = os.path.join(temporary, name + ".onnx")
                quantize_static(plain, source[name], OneBatch(), quant_format=form,
                                op_types_to_quantize=["MatMul", "Gemm", "Gather"])
            exact = write_expected(plain)
            for name in WANTED[family]:
                path = os.path.join(folder, name + ".onnx")
                shrink(source[name], path, name == "external")
                logits = write_expected(path)
                off = np.abs(logits - exact).max() / np.abs(exact).max()
                print(f"{family}/{name}: {os.path.getsize(path)} bytes, off by {off:.1e}")


main()
