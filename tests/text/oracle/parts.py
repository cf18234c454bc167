# SPDX-License-Identifier: Apache-2.0
"""Small tokenizer.json files that differ in their parts (normalizer, pre-tokenizer, added tokens),
and the ids that Hugging Face's tokenizers give with them: tests/text/tokenizer_parts_golden.hpp.
With the program of compare.py, also compares nibble's ids.

    pip install tokenizers
    python3 tests/text/oracle/parts.py [./encode_texts]
"""
import base64
import itertools
import json
import pathlib
import struct
import sys
import tempfile

from tokenizers import Tokenizer

import compare
import words

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tokenizer_parts_golden.hpp"
BAR = "\u2581"


def table():
    """A precompiled charsmap that replaces "A" by "a" and a tab by a space."""
    units = [0] * 512
    units[0] = 32 << 10
    replacements = b"a\0 \0"
    for byte, children, begin in ((0x41, 256, 0), (0x09, 192, 2)):
        place = 32 ^ byte
        units[place] = (place ^ children) << 10 | 0x100 | byte
        units[children] = 0x80000000 | begin
    data = struct.pack("<512I", *units)
    return base64.b64encode(struct.pack("<I", len(data)) + data + replacements).decode()


def added(id_, text, **flags):
    return {"id": id_, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


# <s>, one that drops white space before it, one that drops what is behind it, one that does both.
SPECIAL = [added(0, "<u>"), added(1, "<s>"), added(2, "<m>", lstrip=True),
           added(3, "<r>", rstrip=True), added(4, "<x>", lstrip=True, rstrip=True)]


def bpe():
    # As SentencePiece makes them: a piece comes of every two that spell it. (GGUF knows no others.)
    merges = [(BAR, "a"), ("a", "b"), (BAR, "ab"), (BAR + "a", "b"), (BAR, BAR), ("b", BAR),
              (BAR + BAR, BAR + "a"), ("ab", BAR), ("a", "b" + BAR)]
    names = [token["content"] for token in SPECIAL] + [BAR, "a", "b", "\t"]
    for left, right in merges:
        if left + right not in names:
            names.append(left + right)
    names.append(BAR + "bb")  # no merges spell it
    return {"type": "BPE", "dropout": None, "unk_token": "<u>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {name: i for i, name in enumerate(names)},
            "merges": [list(merge) for merge in merges]}


def unigram():
    pieces = {BAR: -2.0, "a": -3.0, "b": -3.25, BAR + "a": -3.5, "ab": -4.0, BAR + "ab": -4.75,
              BAR + BAR: -2.125, "b" + BAR: -2.5, "a" + BAR: -2.75, "\t": -6.0, "A": -6.5,
              "\u0085": -7.0}
    return {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
            "vocab": [[token["content"], 0.0] for token in SPECIAL] + [*map(list, pieces.items())]}


def wordpiece():
    names = [token["content"] for token in SPECIAL] + [
        "a", "##b", "\u4e2d", "##\u4e2d", "\u4e2d\u6587", "##\u0007", "A", "\u00e4", "!", "##a"]
    return {"type": "WordPiece", "unk_token": "<u>", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {name: i for i, name in enumerate(names)}}


def metaspace(scheme, **more):
    return {"type": "Metaspace", "replacement": BAR, "prepend_scheme": scheme, **more}


def sequence(kind, *steps):
    return {"type": "Sequence", kind: list(steps)}


# As they are named in the header.
MODELS = {"bpe": bpe(), "bpe_ignore": {**bpe(), "ignore_merges": True, "fuse_unk": True}, "unigram": unigram(),
          "wordpiece": wordpiece()}


def files():
    """Model, normalizer, pre-tokenizer."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": BAR}
    prepend = {"type": "Prepend", "prepend": BAR}
    yield "bpe", sequence("normalizers", prepend, replace), None
    yield "bpe", replace, {"type": "Split", "pattern": {"String": " "},
                           "behavior": "MergedWithPrevious", "invert": False}
    yield "bpe", None, {"type": "Metaspace", "replacement": BAR, "add_prefix_space": True}
    for model, scheme, split in itertools.product(("bpe", "bpe_ignore", "unigram"),
                                                  ("always", "first", "never"), (True, False)):
        yield model, None, metaspace(scheme, split=split)
    precompiled = {"type": "Precompiled", "precompiled_charsmap": "@"}

    def several(content):
        return {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content}

    def strip(left, right):
        return {"type": "Strip", "strip_left": left, "strip_right": right}

    for scheme in ("always", "first", "never"):
        for steps in ([precompiled], [precompiled, several(" ")],
                      [precompiled, strip(False, True), several(BAR)],
                      [precompiled, strip(True, False), several(" ")],
                      [strip(True, True), several(BAR)]):
            if scheme == "first" and any(step.get("strip_left") for step in steps):
                continue  # not supported: the prefix depends on what is dropped
            yield "unigram", sequence("normalizers", *steps), metaspace(scheme)
    yield "unigram", precompiled, sequence("pretokenizers", {"type": "WhitespaceSplit"},
                                           metaspace("always"))
    bert = {"type": "BertPreTokenizer"}
    yield "wordpiece", None, bert
    for clean, chinese, lower in itertools.product((True, False), repeat=3):
        yield "wordpiece", {"type": "BertNormalizer", "clean_text": clean, "strip_accents": None,
                            "handle_chinese_chars": chinese, "lowercase": lower}, bert


PARTS = ["", "a", "b", "ab", "A", " ", " ", "  ", "   ", "\t", "\n", "\u0085", "\u3000", BAR, "<s>",
         "<m>", "<r>", "<x>", "bb", "\u4e2d\u6587", "\u00c4", "\u0007", "!"]


COUNT = 1000


def texts():
    random = words.Random(1)
    for _ in range(COUNT):
        yield "".join(PARTS[random.below(len(PARTS))] for _ in range(random.below(9)))


def json_of(model, normalizer, pre_tokenizer):
    tree = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": SPECIAL,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
            "decoder": None, "model": MODELS[model]}
    return json.dumps(tree).replace("\"@\"", json.dumps(table()))


def compare_ids(program):
    wrong = 0
    for file in files():
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            out.write(json_of(*file).encode())
            out.flush()
            given = list(texts())
            _, actual = compare.encode_by_nibble(program, out.name, [t.encode() for t in given])
        tokenizer = Tokenizer.from_str(json_of(*file))
        expected = [tokenizer.encode(t, add_special_tokens=False).ids for t in given]
        wrong += compare.report(str(file), given, expected, actual)
    return wrong


def literal(tree):
    """JSON as C++ strings, none of which is too long."""
    text = json.dumps(tree, separators=(",", ":"))
    return "\n    ".join(f"R\"json({text[i:i + 80]})json\"" for i in range(0, len(text), 80))


def main():
    lines = ["// SPDX-License-Identifier: Apache-2.0", "//",
             "// Written by tests/text/oracle/parts.py with Hugging Face's tokenizers.",
             "#pragma once", "", "#include <cstdint>", "", "namespace golden {", "",
             "// clang-format off", f"constexpr int kPartsTexts = {COUNT};",
             "// Texts consist of these.", "constexpr const char* kPartsFragments[] = {",
             "    " + ", ".join(f"\"{words.escaped(part)}\"" for part in PARTS[:12]) + ",",
             "    " + ", ".join(f"\"{words.escaped(part)}\"" for part in PARTS[12:]) + "};",
             "// Parts of tokenizer.json files.",
             f"constexpr const char* kAddedTokens =\n    {literal(SPECIAL)};",
             f"// What stands for \"@\" in a normalizer.\nconstexpr const char* kTable =\n    "
             f"{literal(table())};", "struct NamedModel { const char* name; const char* json; };",
             "constexpr NamedModel kModels[] = {",
             *(f"    {{\"{name}\", {literal(model)}}}," for name, model in MODELS.items()), "};",
             "// A file, and the digest of the ids of all texts.",
             "struct Parts {", "  const char *model, *normalizer, *pre_tokenizer;",
             "  std::uint64_t ids;", "};", "constexpr Parts kParts[] = {"]
    for model, normalizer, pre_tokenizer in files():
        tokenizer = Tokenizer.from_str(json_of(model, normalizer, pre_tokenizer))
        hash_ = words.DIGEST_OF_NOTHING
        for text in texts():
            hash_ = words.digest(tokenizer.encode(text, add_special_tokens=False).ids, hash_)
        lines.append(f"    {{\"{model}\", {literal(normalizer)},\n    {literal(pre_tokenizer)}, "
                     f"{hash_:#x}}},")
    lines += ["};", "// clang-format on", "", "}  // namespace golden", ""]
    GOLDEN.write_text("\n".join(lines))
    sys.exit(len(sys.argv) > 1 and compare_ids(sys.argv[1]) != 0)


if __name__ == "__main__":
    main()
