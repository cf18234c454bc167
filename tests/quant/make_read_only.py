#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes two headers from the Python package gguf (pip install gguf), which needs numpy:

  include/nibble/quant/codebooks.hpp    the tables that GGUF's IQ types index
  tests/quant/read_only_goldens.hpp     hashes of what gguf dequantizes, and the first weights; and
                                        of what it quantizes to MXFP4

Usage: make_read_only.py PROJECT_DIR
"""
import os
import sys

import numpy
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

N_BLOCKS = 40
# Where the types that are only read have f16 scales: these must be finite.
SCALES = {T.Q2_K: [80, 82], T.Q3_K: [108], T.IQ1_S: [0], T.IQ1_M: [54], T.IQ2_XXS: [0],
          T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ4_NL: [0], T.IQ4_XS: [0],
          T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: []}


def codebook(out, name, cls, bits, what):
    cls.init_grid()
    levels = {float(v): i for i, v in enumerate(cls.grid_map)}
    out.append(f"// {what}")
    entries = []
    for values in cls.grid.reshape(cls.grid_shape):
        entries.append(sum(levels[float(v)] << bits * i for i, v in enumerate(values)))
    out.append(f"NIBBLE_HIDDEN inline constexpr std::uint16_t {name}[{len(entries)}] = {{")
    for i in range(0, len(entries), 12):
        out.append("    " + " ".join(f"0x{e:04x}," for e in entries[i:i + 12]))
    out += ["};", ""]


def random_bytes(n, seed):
    """xorshift32, a byte of each number; as in read_only_test.cpp."""
    state, result = seed, bytearray()
    for _ in range(n):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        result.append(state >> 8 & 255)
    return result


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def main():
    root = sys.argv[1]
    out = ["// SPDX-License-Identifier: Apache-2.0", "//",
           "// The tables that GGUF's IQ types index, each entry packed into 16 bits: value i is the",
           "// level in bits n i … n i + n - 1. Made by tests/quant/make_read_only.py.",
           "#pragma once", "", "#include <cstdint>", "",
           '#include "nibble/core/config.hpp"', "",
           "namespace nibble { inline namespace NIBBLE_ABI { namespace quant { namespace detail {",
           ""]
    two = "Eight levels of 2 bits: 0, 1, 2 mean the magnitudes 8, 25, 43."
    codebook(out, "kCodebookIq2Xxs", quants.IQ2_XXS, 2, two)
    codebook(out, "kCodebookIq2Xs", quants.IQ2_XS, 2, two)
    codebook(out, "kCodebookIq2S", quants.IQ2_S, 2, two)
    codebook(out, "kCodebookIq3Xxs", quants.IQ3_XXS, 3,
             "Four levels of 3 bits: 0 … 7 mean the magnitudes 4, 12, 20, 28, 36, 44, 52, 62.")
    codebook(out, "kCodebookIq3S", quants.IQ3_S, 3,
             "Four levels of 3 bits: level v means the magnitude 2 v + 1.")
    codebook(out, "kCodebookIq1", quants.IQ1_S, 2, "Eight levels of 2 bits: 0, 1, 2 mean -1, 0, 1.")
    out += ["}}}}  // namespace nibble::NIBBLE_ABI::quant::detail", ""]
    with open(os.path.join(root, "include/nibble/quant/codebooks.hpp"), "w") as file:
        file.write("\n".join(out))

    out = f"""\
// SPDX-License-Identifier: Apache-2.0
//
// Of {N_BLOCKS} blocks of random bytes: what the Python package gguf dequantizes. Made by
// make_read_only.py.
#pragma once

#include <array>
#include <cstdint>

#include "nibble/io/ggml_type.hpp"

namespace test {{

struct ReadOnlyGolden {{
  nibble::io::GgmlType type;
  std::array<int, 2> scales;  // their offsets in a block
  std::uint64_t hash;         // FNV-1a of all weights' bytes
  float first[4];
}};

inline constexpr int kGoldenBlocks = {N_BLOCKS};
inline constexpr ReadOnlyGolden kReadOnlyGoldens[] = {{""".split("\n")
    for kind, scales in SCALES.items():
        length, size = GGML_QUANT_SIZES[kind]
        data = random_bytes(N_BLOCKS * size, 1 + kind.value)
        for block in range(N_BLOCKS):
            for at in scales:
                data[block * size + at + 1] &= 0xBF
        rows = numpy.frombuffer(bytes(data), dtype=numpy.uint8).reshape(N_BLOCKS, size)
        with numpy.errstate(all="ignore"):
            weights = quants.dequantize(rows, kind).astype("<f4").ravel()
        places = (scales + [-1, -1])[:2]
        first = ", ".join(float(w).hex() + "f" for w in weights[:4])
        out.append(f"    {{nibble::io::GgmlType::{kind.name.lower()}, "
                   f"{{{places[0]}, {places[1]}}}, 0x{fnv1a(weights.tobytes()):016x}u,")
        out.append(f"     {{{first}}}}},")
    # Magnitudes from 0 to 2^15, of 16 bits each, times powers of two that differ from block to block.
    data = random_bytes(4 * 32 * N_BLOCKS, 7)
    halves = numpy.frombuffer(bytes(data), dtype="<i2").reshape(N_BLOCKS, 32, 2)
    powers = numpy.repeat(numpy.arange(N_BLOCKS) - 30, 32).reshape(N_BLOCKS, 32) - halves[:, :, 1] % 8
    x = numpy.ldexp(halves[:, :, 0].astype("<f4"), powers).astype("<f4")
    blocks = quants.quantize(x, T.MXFP4)
    out += ["};", "", "// Of rows that levels_test.cpp makes in the same way.",
            f"inline constexpr std::uint64_t kQuantizedMxfp4 = 0x{fnv1a(blocks.tobytes()):016x}u;", "",
            "}  // namespace test", ""]
    with open(os.path.join(root, "tests/quant/read_only_goldens.hpp"), "w") as file:
        file.write("\n".join(out))


if __name__ == "__main__":
    main()
