# SPDX-License-Identifier: Apache-2.0
"""Trains unigram models with SentencePiece, and compares its ids with nibble's.

    pip install sentencepiece protobuf
    c++ -std=c++20 -O2 -DNIBBLE_TARGETS=0 -Iinclude -o encode_texts \\
        tests/text/oracle/encode_texts.cpp
    python3 tests/text/oracle/unigram.py ./encode_texts 20000

Where two ways to spell a text have the same sum of scores ("aaaa" + "aaa" and "aaa" + "aaaa"), each
program takes the one that its rounding prefers: these are counted apart.
"""
import base64
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

import compare
import texts

MODELS = {"usual": {}, "bytes": {"byte_fallback": True},
          "spaces": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"}}


def tokenizer_json(model, byte_fallback):
    steps = []
    if model.normalizer_spec.precompiled_charsmap:
        table = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    cuts = [{"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}]
    if model.normalizer_spec.remove_extra_whitespaces:
        cuts.insert(0, {"type": "WhitespaceSplit"})
    special = [{"id": i, "content": piece.piece, "special": True}
               for i, piece in enumerate(model.pieces) if piece.type in (2, 3)]
    return {"added_tokens": special,
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": byte_fallback,
                      "vocab": [[piece.piece, piece.score] for piece in model.pieces]}}


def sum_of_scores(processor, ids):
    return sum(processor.get_score(id_) for id_ in ids if not processor.is_byte(id_))


def main():
    program, count = sys.argv[1], int(sys.argv[2])
    folder, wrong = pathlib.Path(tempfile.mkdtemp()), 0
    rng = random.Random(7)
    corpus = ["".join(rng.choice(texts.WORDS) + rng.choice(["", " ", "a", "1"]) for _ in range(20))
              for _ in range(5000)]
    for name, options in MODELS.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=str(folder / name), vocab_size=2000,
            hard_vocab_limit=False, model_type="unigram", character_coverage=0.98, minloglevel=2,
            **options)
        data = (folder / (name + ".model")).read_bytes()
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(data)
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        path = folder / (name + ".json")
        path.write_text(json.dumps(tokenizer_json(model, "byte_fallback" in options)))
        # (SentencePiece ends a text at a NUL.)
        given = [text.replace("\0", "") for text in texts.texts(count, 6)]
        _, actual = compare.encode_by_nibble(program, str(path), [t.encode() for t in given])
        expected = [processor.encode(text) for text in given]
        pairs = [(e, a) for e, a in zip(expected, actual, strict=True) if e != a]
        ties = [1 for e, a in pairs if len(e) == len(a) and
                abs(sum_of_scores(processor, e) - sum_of_scores(processor, a)) < 1e-3]
        print(f"{name}: {len(pairs) - len(ties)} differences and {len(ties)} ties in {count} texts")
        wrong += len(pairs) - len(ties)
    sys.exit(wrong != 0)


main()
