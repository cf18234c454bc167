#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/train/optimizer_goldens.hpp: parameters after steps of torch.optim's AdamW and SGD in
double precision. Start and gradients are exact binary fractions, the same as in adamw_test.cpp.

Usage: make_goldens.py PROJECT_DIR (needs torch)
"""
import os
import sys

import torch

N, STEPS = 7, 6


def run(make, clip=0.0):
    start = torch.tensor([(i % 7 - 3) / 4 for i in range(N)], dtype=torch.float64)
    weight, bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer = make([weight], [bias])
    for t in range(STEPS):
        g = [((t * 7 + i * 5) % 11 - 5) / 8 for i in range(N)]
        weight.grad = torch.tensor(g, dtype=torch.float64)
        bias.grad = torch.tensor([x / 2 for x in g], dtype=torch.float64)
        if clip:
            torch.nn.utils.clip_grad_norm_([weight, bias], clip)
        optimizer.step()
    return weight.tolist() + bias.tolist()


def groups(weight, bias, decay):
    return [{"params": weight, "weight_decay": decay}, {"params": bias, "weight_decay": 0.0}]


def adamw(lr, decay, **options):
    return lambda w, b: torch.optim.AdamW(
        groups(w, b, decay), lr=lr, **options)


def sgd(lr, decay, **options):
    return lambda w, b: torch.optim.SGD(
        groups(w, b, decay), lr=lr, **options)


RUNS = {
    "kAdamW": run(adamw(0.01, 0.01)),
    "kAdamWClipped": run(adamw(0.05, 0.1, betas=(0.8, 0.95), eps=1e-3), clip=0.75),
    "kSgd": run(sgd(0.1, 0.05)),
    "kMomentum": run(sgd(0.1, 0.05, momentum=0.9)),
    "kNesterov": run(sgd(0.1, 0.05, momentum=0.9, nesterov=True)),
}


def main():
    out = ["// SPDX-License-Identifier: Apache-2.0", "//",
           f"// A weight and a bias of {N} values after {STEPS} steps of torch.optim (torch "
           f"{torch.__version__.split('+')[0]}) in double. Made by", "// make_goldens.py.",
           "#pragma once", "", "namespace test {", "",
           f"inline constexpr int kGoldenValues = {N};",
           f"inline constexpr int kGoldenSteps = {STEPS};"]
    for name, values in RUNS.items():
        out.append(f"inline constexpr double {name}[{2 * N}] = {{")
        for i in range(0, 2 * N, 4):
            out.append("    " + " ".join(f"{x:.15g}," for x in values[i:i + 4]))
        out.append("};")
    out += ["", "}  // namespace test", ""]
    with open(os.path.join(sys.argv[1], "tests/train/optimizer_goldens.hpp"), "w") as f:
        f.write("\n".join(out))


main()
