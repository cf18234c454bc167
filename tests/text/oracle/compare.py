# SPDX-License-Identifier: Apache-2.0
"""Compares nibble's ids with those of Hugging Face's tokenizers on generated texts.

    pip install tokenizers
    c++ -std=c++20 -O2 -DNIBBLE_TARGETS=0 -Iinclude -o encode_texts \\
        tests/text/oracle/encode_texts.cpp
    python3 tests/text/oracle/compare.py ./encode_texts 20000 folder/tokenizer.json ...

Texts that are no UTF-8 cannot be given to the other side: for byte-level BPE without a normalizer,
its pre-tokenizer gets U+FFFD for each byte that is wrong, and the words are merged here.

Writes digests of the ids for the texts of words.py in tests/text/tokenizer_json_golden.hpp, named
after the folders.
"""
import json
import pathlib
import struct
import subprocess
import sys

from tokenizers import Tokenizer

import texts
import words

SEED = 5
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tokenizer_json_golden.hpp"
# Byte-level BPE writes bytes as these characters.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
CHARACTERS = {b: chr(b) for b in PRINTABLE}
CHARACTERS.update({b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))})


def encode_by_nibble(program, path, data):
    stream = b"".join(struct.pack("<I", len(text)) + text for text in data)
    out = subprocess.run([program, path], input=stream, capture_output=True, check=True).stdout
    lines = [[int(n) for n in line.split()] for line in out.decode().split("\n")[:-1]]
    assert len(lines) == len(data)
    return [line[0] for line in lines], [line[1:] for line in lines]


def pieces_of(data):
    """The text with U+FFFD for wrong bytes, and the bytes of each of its characters."""
    characters, at = [], 0
    while at < len(data):
        for size in (1, 2, 3, 4):
            try:
                characters.append((data[at:at + size].decode(), data[at:at + size]))
                break
            except UnicodeDecodeError:
                continue
        else:
            size = 1
            characters.append(("\ufffd", data[at:at + 1]))
        at += size
    return "".join(c for c, _ in characters), [b for _, b in characters]


class SlowBpe:
    def __init__(self, model):
        self.vocab, self.ignore_merges = model["vocab"], model.get("ignore_merges")
        merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m)
                  for m in model["merges"]]
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}

    def encode(self, word):
        parts = [CHARACTERS[byte] for byte in word]
        if self.ignore_merges and "".join(parts) in self.vocab:
            return [self.vocab["".join(parts)]]
        while True:
            pairs = [(self.ranks.get(pair, 1 << 60), i)
                     for i, pair in enumerate(zip(parts, parts[1:]))]
            rank, i = min(pairs, default=(1 << 60, 0))
            if rank == 1 << 60:
                return [self.vocab[part] for part in parts]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]


def expected_of_broken(tokenizer, bpe, data):
    text, parts = pieces_of(data)
    ids = []
    for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        ids += bpe.encode(b"".join(parts[begin:end]))
    return ids


def report(what, texts_, expected, actual):
    wrong = [i for i, (e, a) in enumerate(zip(expected, actual, strict=True)) if e != a]
    print(f"  {what}: {len(wrong)} differences in {len(texts_)} texts", flush=True)
    for i in wrong[:3]:
        print("   ", ascii(texts_[i]))
        print("      expected", expected[i], "\n      nibble  ", actual[i])
    return len(wrong)


def compare(program, path, count):
    print(path, flush=True)
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with open(path, encoding="utf-8") as file:
        tree = json.load(file)
    special = [token["content"] for token in tree["added_tokens"]]
    given = list(texts.texts(count, SEED, special))
    returned, actual = encode_by_nibble(program, path, [text.encode() for text in given])
    expected = [e.ids for e in tokenizer.encode_batch(given, add_special_tokens=False)]
    wrong = report("texts", given, expected, actual)
    print(f"  {len(returned) - sum(returned)} texts do not come back")
    broken = list(texts.broken_texts(count // 4, SEED))
    returned, actual = encode_by_nibble(program, path, broken)
    print(f"  {len(returned) - sum(returned)} broken texts do not come back")
    if "ByteLevel" in json.dumps(tree["pre_tokenizer"]) and not tree["normalizer"]:
        bpe = SlowBpe(tree["model"])
        plain = [i for i, data in enumerate(broken) if not any(s.encode() in data for s in special)]
        wrong += report("broken texts", [broken[i] for i in plain],
                        [expected_of_broken(tokenizer, bpe, broken[i]) for i in plain],
                        [actual[i] for i in plain])
    return wrong


def write_golden(paths):
    lines = ["// SPDX-License-Identifier: Apache-2.0", "//",
             "// Written by tests/text/oracle/compare.py with Hugging Face's tokenizers.",
             "#pragma once", "", "#include <cstdint>", "", "namespace golden {", "",
             "// A folder, and the digest of the ids of all texts of pre_tokenizer_golden.hpp.",
             "struct IdsDigest {", "  const char* folder;", "  std::uint64_t value;", "};",
             "constexpr IdsDigest kIdsDigests[] = {"]
    for path in paths:
        tokenizer = Tokenizer.from_file(path)
        hash_ = words.DIGEST_OF_NOTHING
        for text in words.texts(words.GOLDEN_TEXTS, 1):
            hash_ = words.digest(tokenizer.encode(text, add_special_tokens=False).ids, hash_)
        lines.append(f"    {{\"{pathlib.Path(path).parent.name}\", {hash_:#x}}},")
    lines += ["};", "", "}  // namespace golden", ""]
    GOLDEN.write_text("\n".join(lines))


def main():
    program, count, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    wrong = sum(compare(program, path, count) for path in paths)
    write_golden(paths)
    sys.exit(wrong != 0)


if __name__ == "__main__":
    main()
