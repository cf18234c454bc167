# SPDX-License-Identifier: Apache-2.0
"""Trains models with SentencePiece, and compares its ids with nibble's.

    pip install sentencepiece
    c++ -std=c++20 -O2 -DNIBBLE_TARGETS=0 -Iinclude -o encode_texts \\
        tests/text/oracle/encode_texts.cpp
    python3 tests/text/oracle/sentencepiece_models.py ./encode_texts 20000

Where two ways to spell a text have the same sum of scores ("aaaa" + "aaa" and "aaa" + "aaaa"), each
program takes the one that its rounding prefers: these are counted apart.
"""
import pathlib
import random
import sys
import tempfile

import sentencepiece

import compare
import texts

MODELS = {"usual": {}, "bytes": {"byte_fallback": True},
          "spaces": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
          "bpe": {"model_type": "bpe"},
          "bpe, bytes": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
          "bpe, spaces": {"model_type": "bpe", "remove_extra_whitespaces": False,
                          "normalization_rule_name": "identity"}}


def sum_of_scores(processor, ids):
    return sum(processor.get_score(id_) for id_ in ids if not processor.is_byte(id_))


def compare_file(program, path, processor, given):
    _, actual = compare.encode_by_nibble(program, str(path), [t.encode() for t in given])
    expected = [processor.encode(text) for text in given]
    pairs = [(t, e, a) for t, e, a in zip(given, expected, actual, strict=True) if e != a]
    wrong = [(t, e, a) for t, e, a in pairs if len(e) != len(a) or
             abs(sum_of_scores(processor, e) - sum_of_scores(processor, a)) >= 1e-3]
    print(f"{path.name}: {len(wrong)} differences and {len(pairs) - len(wrong)} ties in "
          f"{len(given)} texts", flush=True)
    for text, expected, actual in wrong[:3]:
        print("   ", ascii(text), "\n      expected", expected, "\n      nibble  ", actual)
    return len(wrong)


def main():
    program, count = sys.argv[1], int(sys.argv[2])
    folder, wrong = pathlib.Path(tempfile.mkdtemp()), 0
    rng = random.Random(7)
    corpus = ["".join(rng.choice(texts.WORDS) + rng.choice(["", " ", "a", "1"]) for _ in range(20))
              for _ in range(5000)]
    for name, options in MODELS.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=str(folder / name), vocab_size=2000,
            character_coverage=0.98, minloglevel=2,
            **{"model_type": "unigram", "hard_vocab_limit": options.get("model_type") == "bpe",
               **options})
        data = (folder / (name + ".model")).read_bytes()
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        # (SentencePiece ends a text at a NUL.)
        given = [text.replace("\0", "") for text in texts.texts(count, 6)]
        wrong += compare_file(program, folder / (name + ".model"), processor, given)
    sys.exit(wrong != 0)


main()
