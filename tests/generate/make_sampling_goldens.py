# SPDX-License-Identifier: Apache-2.0
"""Makes sampling_goldens.txt: which tokens chains of llama.cpp's samplers keep, and how likely.

Needs xllamacpp (2026.10), whose library is called. Each line is a case; sampling_chain_test.cpp reads it:
  options, in the order of NUMBERS below
  steps, with commas
  n, n logits
  n, n recent tokens
  n, n dry breakers
  n, n kept tokens with their probabilities, by id
Draws are random in both programs and so no part of it; XTC has probability 1.
"""
import ctypes
import glob
import math
import os
import random

import xllamacpp

NUMBERS = ("temperature top_k top_p min_p typical_p xtc_threshold repetition_penalty "
           "frequency_penalty presence_penalty repetition_window dry_multiplier dry_base "
           "dry_allowed_length dry_window temperature_range temperature_exponent mirostat_tau").split()
STEPS = "penalties dry top_k typical top_p min_p xtc temperature mirostat".split()
N_CASES = 300


class TokenData(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class TokenDataArray(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(TokenData)), ("size", ctypes.c_size_t),
                ("selected", ctypes.c_int64), ("sorted", ctypes.c_bool)]


class Vector(ctypes.Structure):  # std::vector, as libstdc++ lays it out
    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p)]

    def __init__(self, array):
        self.array = array
        begin = ctypes.addressof(array)
        super().__init__(begin, begin + ctypes.sizeof(array), begin + ctypes.sizeof(array))


lib = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp*.so"))[0])
f, i, z, u = ctypes.c_float, ctypes.c_int32, ctypes.c_size_t, ctypes.c_uint32
ARGUMENTS = {
    "llama_sampler_init_penalties": [i, i, f, f, f],
    "_Z30llama_sampler_init_dry_testingffiiRKSt6vectorIS_IiSaIiEESaIS1_EE":
        [f, f, i, i, ctypes.POINTER(Vector)],
    "llama_sampler_init_top_k": [i],
    "llama_sampler_init_typical": [f, z],
    "llama_sampler_init_top_p": [f, z],
    "llama_sampler_init_min_p": [f, z],
    "llama_sampler_init_xtc": [f, f, z, u],
    "llama_sampler_init_temp_ext": [f, f, f],
    "llama_sampler_init_mirostat_v2": [u, f, f],
}
for name, types in ARGUMENTS.items():
    getattr(lib, name).argtypes = types
    getattr(lib, name).restype = ctypes.c_void_p
lib.llama_sampler_accept.argtypes = [ctypes.c_void_p, i]
lib.llama_sampler_apply.argtypes = [ctypes.c_void_p, ctypes.POINTER(TokenDataArray)]
lib.llama_sampler_free.argtypes = [ctypes.c_void_p]


def sampler(step, o, n_vocab, breakers):
    """llama.cpp's sampler for a step; 1 is always min_keep."""
    if step == "penalties":
        return lib.llama_sampler_init_penalties(n_vocab, o["repetition_window"],
                                                o["repetition_penalty"], o["frequency_penalty"],
                                                o["presence_penalty"])
    if step == "dry":
        inner = [Vector((i * 1)(b)) for b in breakers]
        outer = Vector((Vector * len(inner))(*inner))
        return getattr(lib, [n for n in ARGUMENTS if "dry" in n][0])(
            o["dry_multiplier"], o["dry_base"], o["dry_allowed_length"], o["dry_window"], outer)
    if step == "top_k":
        return lib.llama_sampler_init_top_k(o["top_k"])
    if step == "xtc":
        return lib.llama_sampler_init_xtc(1.0, o["xtc_threshold"], 1, 1)
    if step == "temperature":
        return lib.llama_sampler_init_temp_ext(o["temperature"], o["temperature_range"],
                                               o["temperature_exponent"])
    if step == "mirostat":
        return lib.llama_sampler_init_mirostat_v2(1, o["mirostat_tau"], 0.1)
    return getattr(lib, "llama_sampler_init_" + step)(
        o["typical_p" if step == "typical" else step], 1)


def run(steps, o, logits, recent, breakers):
    data = (TokenData * len(logits))(*[TokenData(n, x, 0) for n, x in enumerate(logits)])
    array = TokenDataArray(data, len(logits), -1, False)
    for step in steps:
        made = sampler(step, o, len(logits), breakers)
        for token in recent:
            if step in ("penalties", "dry"):
                lib.llama_sampler_accept(made, token)
        lib.llama_sampler_apply(made, ctypes.byref(array))
        lib.llama_sampler_free(made)
    kept = [(array.data[n].id, array.data[n].logit) for n in range(array.size)]
    most = max(x for _, x in kept)
    total = sum(math.exp(x - most) for _, x in kept)
    kept = [(token, math.exp(x - most) / total) for token, x in kept]
    return sorted((token, p) for token, p in kept if p > 0)


def main():
    r = random.Random(7)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sampling_goldens.txt")
    with open(path, "w") as out:
        for _ in range(N_CASES):
            n = r.randint(2, 12)
            logits = [round(r.gauss(0, r.choice([0.5, 1.5, 3])), 3) for _ in range(n)]
            recent = [r.randrange(min(n, 3)) for _ in range(r.randrange(25))]
            breakers = [r.randrange(n)] if r.random() < 0.4 else []
            o = {"temperature": r.choice([0.5, 0.8, 1.5]), "top_k": r.randint(1, n),
                 "top_p": r.choice([0.3, 0.7, 0.95]), "min_p": r.choice([0.02, 0.1, 0.5]),
                 "typical_p": r.choice([0.2, 0.5, 0.9]), "xtc_threshold": r.choice([0.05, 0.1, 0.3]),
                 "repetition_penalty": r.choice([1, 1.25, 0.75]),
                 "frequency_penalty": r.choice([0, 0.5, -0.25]),
                 "presence_penalty": r.choice([0, 0.75, -0.5]), "repetition_window": r.choice([3, 64]),
                 "dry_multiplier": r.choice([0.3, 0.8]), "dry_base": r.choice([1.25, 1.75]),
                 "dry_allowed_length": r.randint(1, 3), "dry_window": r.choice([10, 64]),
                 "temperature_range": r.choice([0, 0, 0.3]),
                 "temperature_exponent": r.choice([1, 0.5, 2]), "mirostat_tau": r.choice([0.5, 1, 2])}
            steps = r.sample(STEPS, r.randint(1, 5))
            if "mirostat" in steps:  # draws, and so comes last
                steps.remove("mirostat")
                steps.append("mirostat")
            kept = run(steps, o, logits, recent, breakers)
            fields = [f"{o[name]:g}" for name in NUMBERS] + [",".join(steps)]
            for values in (logits, recent, breakers):
                fields += [str(len(values))] + [f"{x:g}" for x in values]
            fields += [str(len(kept))] + [f"{token} {p:.7g}" for token, p in kept]
            out.write(" ".join(fields) + "\n")


main()
