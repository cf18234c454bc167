# SPDX-License-Identifier: Apache-2.0
"""Writes the tables include/nibble/text/unicode_{classes,decompositions,
marks_and_cases}.hpp.

They are those of Unicode 16.0, which Hugging Face's tokenizers have in their regular expressions:

    pip install unicodedata2==16.0.0
    python3 tests/text/unicode_tables.py
"""
import pathlib

import unicodedata2 as unicode

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "include" / "nibble" / "text"
END = 0x110000
# The names of CharClass in unicode.hpp, in its order.
CLASSES = ["other", "unassigned", "space", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl",
           "No", "P", "S"]
OF_CATEGORY = {"Cc": "other", "Cf": "other", "Co": "other", "Cs": "other", "Cn": "unassigned",
               "Zs": "space", "Zl": "space", "Zp": "space", "Me": "Mc"}

# Characters that are younger than Unicode 9 and would be reordered or decomposed. Hugging Face's
# normalizers, with which models are trained, do not know them.
YOUNG = [
    0x7fd, 0x7fd, 0x897, 0x89f, 0x8ca, 0x8d3, 0x9fe, 0x9fe, 0xc3c, 0xc3c, 0xd3b, 0xd3c, 0xeba,
    0xeba, 0x1715, 0x1715, 0x1abf, 0x1ace, 0x1df6, 0x1dfa, 0xa82c, 0xa82c, 0x105c9, 0x105e4,
    0x10d24, 0x10d6d, 0x10eab, 0x10f85, 0x11070, 0x11070, 0x1133b, 0x1133b, 0x11383, 0x113d0,
    0x1145e, 0x1145e, 0x11839, 0x1183a, 0x11938, 0x11a99, 0x11d42, 0x11f42, 0x16121, 0x1612f,
    0x16d68, 0x16d6a, 0x16ff0, 0x16ff1, 0x1e08f, 0x1e5ef]


def is_young(code):
    return any(first <= code <= last for first, last in zip(YOUNG[::2], YOUNG[1::2]))


def class_of(code):
    if code in (0x9, 0xA, 0xB, 0xC, 0xD, 0x85):
        return "space"
    category = unicode.category(chr(code))
    if category in OF_CATEGORY:
        return OF_CATEGORY[category]
    return category if category in CLASSES else category[0]


def rows(numbers):
    """The numbers in hexadecimal, in lines of at most 100 columns."""
    line = "   "
    for number in numbers:
        text = f" {number:#x}," if number > 9 else f" {number},"
        if len(line) + len(text) > 100:
            yield line
            line = "   "
        line += text
    yield line


def array(name, numbers):
    lines = [f"NIBBLE_HIDDEN inline constexpr std::uint32_t {name}[] = {{", *rows(numbers), "};"]
    return "\n".join(lines) + "\n"


def write(name, comment, arrays):
    text = f"""// SPDX-License-Identifier: Apache-2.0
//
// Written by tests/text/unicode_tables.py from Unicode {unicode.unidata_version}.
{comment}#pragma once

#include <cstdint>

#include "nibble/core/config.hpp"

namespace nibble {{ inline namespace NIBBLE_ABI {{ namespace text {{ namespace detail {{

// clang-format off
{"".join(arrays)}// clang-format on

}}}}}}}}  // namespace nibble::NIBBLE_ABI::text::detail
"""
    (FOLDER / name).write_text(text)


def write_classes():
    runs = []
    for code in range(END):
        number = CLASSES.index(class_of(code))
        if not runs or runs[-1] & 0xF != number:
            runs.append(code << 4 | number)
    write("unicode_classes.hpp",
          "// Runs of characters of one class: the first one's code << 4 | CharClass, ascending.\n",
          [array("kClassRuns", runs)])


def write_decompositions():
    decompositions, compositions = [], []
    for code in range(END):
        parts = unicode.decomposition(chr(code)).split()
        if not parts or parts[0].startswith("<") or is_young(code):
            continue
        first, second = (int(part, 16) for part in (parts + ["0"])[:2])
        assert not unicode.decomposition(chr(second)) or second == 0
        if second and unicode.normalize("NFC", chr(code)) == chr(code):
            compositions.append((first, second, len(decompositions) // 3))
        decompositions += [code, first, second]
    write("unicode_decompositions.hpp", "", [
        "// A character and the two that it consists of (the second may be 0: none), ascending.\n",
        array("kDecompositions", decompositions),
        "// Positions of the decompositions that are also composed, ascending by the two parts.\n",
        array("kCompositions", [position for _, _, position in sorted(compositions)])])


def write_marks_and_cases():
    marks = []
    for code in range(END):
        order = 0 if is_young(code) else unicode.combining(chr(code))
        if order != (marks[-1] & 0xFF if marks else 0):
            marks.append(code << 8 | order)
    lower = []  # [first, last, step, distance]
    for code in range(END):
        small = chr(code).lower()
        if small == chr(code) or len(small) > 1:
            continue
        distance = ord(small) - code
        run = lower[-1] if lower else None
        if run and distance == run[3] and code - run[1] in (1, 2) and \
                (run[0] == run[1] or code - run[1] == run[2]):
            run[1:3] = code, code - run[1]
        else:
            lower.append([code, code, 1, distance])
    write("unicode_marks_and_cases.hpp", "", [
        "// Runs of characters of one canonical combining class: first code << 8 | class.\n",
        array("kCombiningRuns", marks),
        "// Runs of upper case letters, each one or each second character: first, last << 1 |\n"
        "// whether each second, distance to the lower case letters (modulo 2^32).\n",
        array("kLowerCaseRuns", [number for first, last, step, distance in lower for number in
                                 (first, last << 1 | step - 1, distance % (1 << 32))])])


write_classes()
write_decompositions()
write_marks_and_cases()
