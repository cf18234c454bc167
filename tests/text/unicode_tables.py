# SPDX-License-Identifier: Apache-2.0
"""Writes the tables include/nibble/text/unicode_{classes,normalization}.hpp.

They are those of Unicode 16.0, the version that Hugging Face's tokenizers know in their regular
expressions:

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


def write_normalization():
    decompositions = []
    for code in range(END):
        parts = unicode.decomposition(chr(code)).split()
        if not parts or parts[0].startswith("<"):
            continue
        first, second = (int(part, 16) for part in (parts + ["0"])[:2])
        # A pair that no composition gives back: its first part is marked.
        if second and unicode.normalize("NFC", chr(code)) != chr(code):
            first |= 1 << 31
        decompositions += [code, first, second]
    marks = []
    for code in range(END):
        order = unicode.combining(chr(code))
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
    write("unicode_normalization.hpp", "", [
        "// Character, its canonical decomposition (two characters, the second 0 for none; the first\n"
        "// has bit 31 set if the two are never composed), ascending by character.\n",
        array("kDecompositions", decompositions),
        "// Runs of characters of one canonical combining class: first code << 8 | class.\n",
        array("kCombiningRuns", marks),
        "// Runs of upper case letters, each one or each second character: first, last << 1 | whether\n"
        "// each second, distance to the lower case letters (modulo 2^32).\n",
        array("kLowerCaseRuns", [number for first, last, step, distance in lower for number in
                                 (first, last << 1 | step - 1, distance % (1 << 32))])])


write_classes()
write_normalization()
