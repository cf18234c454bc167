# SPDX-License-Identifier: Apache-2.0
"""Compares the words of nibble's pre-tokenizers with those of Hugging Face's tokenizers, which runs
the models' own regular expressions, and writes the digests in tests/text/pre_tokenizer_golden.hpp.

    pip install tokenizers
    c++ -std=c++20 -O1 -DNIBBLE_TARGETS=0 -Iinclude tests/text/oracle/cut_texts.cpp -o cut_texts
    python3 tests/text/oracle/words.py ./cut_texts [texts per pre-tokenizer]
"""
import pathlib
import struct
import subprocess
import sys

from tokenizers import Regex, pre_tokenizers

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "pre_tokenizer_golden.hpp"
GOLDEN_TEXTS = 1500

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASED_WORD = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
              r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s")
ENDING = f"(?i:{CONTRACTIONS})?"
SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES


def llama3(digits=r"\p{N}{1,3}"):
    return (rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES)


QWEN2 = llama3(r"\p{N}")
GPT4O = CASED_WORD % (ENDING, ENDING) + r"|\p{N}{1,3}" + SLASHES
DEEPSEEK3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
             r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + SPACES)
DEEPSEEK3_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# Letters with case; ranges by number, so that nothing on the way normalizes them.
DEEPSEEK_LETTERS = [
    0x41, 0x5A, 0x61, 0x7A, 0xB5, 0xB5, 0xC0, 0xD6, 0xD8, 0xF6, 0xF8, 0x1BA, 0x1BC, 0x1BF, 0x1C4,
    0x293, 0x295, 0x2AF, 0x370, 0x373, 0x376, 0x377, 0x37B, 0x37D, 0x37F, 0x37F, 0x386, 0x386,
    0x388, 0x38A, 0x38C, 0x38C, 0x38E, 0x3A1, 0x3A3, 0x3F5, 0x3F7, 0x481, 0x48A, 0x52F, 0x531,
    0x556, 0x10A0, 0x10C5, 0x13A0, 0x13F5, 0x13F8, 0x13FD, 0x1C90, 0x1CBA, 0x1CBD, 0x1CBF, 0x1D00,
    0x1D2B, 0x1D6B, 0x1D77, 0x1D79, 0x1D9A, 0x1E00, 0x1F15, 0x1F18, 0x1F1D, 0x1F20, 0x1F45, 0x1F48,
    0x1F4D, 0x1F50, 0x1F57, 0x1F59, 0x1F59, 0x1F5B, 0x1F5B, 0x1F5D, 0x1F5D, 0x1F5F, 0x1F7D, 0x1F80,
    0x1FB4, 0x1FB6, 0x1FBC, 0x1FBE, 0x1FBE, 0x1FC2, 0x1FC4, 0x1FC6, 0x1FCC, 0x1FD0, 0x1FD3, 0x1FD6,
    0x1FDB, 0x1FE0, 0x1FEC, 0x1FF2, 0x1FF4, 0x1FF6, 0x1FFC, 0x2102, 0x2102, 0x2107, 0x2107, 0x210A,
    0x2113, 0x2115, 0x2115, 0x2119, 0x211D, 0x2124, 0x2124, 0x2126, 0x2126, 0x2128, 0x2128, 0x212A,
    0x212D, 0x212F, 0x2134, 0x2139, 0x2139, 0x213C, 0x213F, 0x2145, 0x2149, 0x214E, 0x214E, 0x2183,
    0x2184, 0x2C00, 0x2C7B, 0x2C7E, 0x2CE4, 0x2CEB, 0x2CEE, 0x2CF2, 0x2CF3, 0xA640, 0xA66D, 0xA680,
    0xA69B, 0xA722, 0xA76F, 0xA771, 0xA787, 0xA78B, 0xA78E, 0xAB70, 0xABBF, 0xFB00, 0xFB06, 0xFB13,
    0xFB17, 0xFF21, 0xFF3A, 0xFF41, 0xFF5A, 0x10400, 0x1044F, 0x104B0, 0x104D3, 0x104D8, 0x104FB,
    0x10C80, 0x10CB2, 0x10CC0, 0x10CF2, 0x118A0, 0x118DF, 0x1E900, 0x1E943]
DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
LETTER_RANGES = "".join(f"{chr(a)}-{chr(b)}"
                        for a, b in zip(DEEPSEEK_LETTERS[::2], DEEPSEEK_LETTERS[1::2]))
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# One name for each list of cuts.
EXPRESSIONS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "llama-bpe": [llama3()],
    "minicpm5": [r"\p{N}{1,3}", llama3(r"\p{N}+")],
    "qwen2": [QWEN2],
    "bailingmoe": [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
                   r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    "qwen35": [rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
               r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + SPACES],
    "ufakzeka": [r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES],
    "seed-coder": [rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}|"
                   r" ?[^\s\p{L}\p{N}\r\n]+" + SPACES],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "exaone-moe": [rf"(?i:{CONTRACTIONS})|"
                   r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
                   r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"],
    "gpt-4o": [GPT4O],
    "tekken": [CASED_WORD % ("", "") + r"|\p{N}" + SLASHES],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "youtu": ["[\uac00-\ud7a3\u3131-\u318e]+|"
              "[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
              "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + DEEPSEEK3_CJK,
              CASED_WORD % (ENDING, ENDING) + r"|\p{N}" + SLASHES],
    "deepseek-llm": ["[\r\n]", rf"\s?[{LETTER_RANGES}]+",
                     "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                     r"\s+$", DEEPSEEK_CJK, r"\p{N}+"],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", DEEPSEEK3_CJK, DEEPSEEK3],
    "afmoe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))",
              "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f"
              "\u2f00-\u2fdf\u0e00-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"
              "\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+", DEEPSEEK3],
    "bloom": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "gemma4": [r"[^\n]+|[\n]+"],
}

# What the generated texts consist of. The same list is written into the golden header.
FRAGMENTS = [
    " ", " ", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0085", "\u000b",
    "a", "b", "S", "the", "Word", "HTTPServer", "iPhone", "'", "'s", "'S", "'ll", "'LL", "'re",
    "'VE", "'d", "'m", "'t", "'x", "'\u017f", "\u2019s", "0", "7", "42", "123", "1234", "1234567",
    "\u00bd", "\u0663\u0664", "\u2167", "\u00b2", ".", ",", "!", "?", "...", "(", ")", "-", "_",
    "/", "//", "\\", "$", "+", "=", "<", ">", "^", "~", "|", "`", "@", "#", "\"", "<|x|>", "\u00e9",
    "e\u0301", "\u0301", "\u00c9", "\u00df", "\u01c5", "\u02b0", "\u00aa", "\u01bb", "\u0561",
    "\u03a9", "\u0394\u03b4", "\u0416\u0436", "\u0639\u0631\u0628\u0649", "\u05e9\u05c1",
    "\u0915\u093f", "\u0915\u094d\u0937", "\u0e44\u0e17\u0e22", "\u0e33", "\u1780\u17b6", "\u4f60\u597d",
    "\u3400",
    "\U00020000", "\u3042", "\u30a2\u30fc", "\uff76", "\ud55c\uad6d", "\u1112\u1161", "\u3105",
    "\u3002", "\uff0c", "\u3001", "\uff01", "\u2014", "\u2026", "\u201c", "\u300c", "\u0964",
    "\u060c", "\U0001f600", "\U0001f468\u200d\U0001f469", "\ufe0f", "\u200b", "\u00ad", "\u0007",
    "\ue000",
    "\U0010fffd", "\u0378", "\U0001d400", "\U0001e900", "\u20e3", "\u0903", "\u2581", "\ufffd"]


class Random:
    """The generator that the test has too."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        return (self.state >> 33) % n


def texts(count, seed):
    random = Random(seed)
    for _ in range(count):
        yield "".join(FRAGMENTS[random.below(len(FRAGMENTS))] for _ in range(random.below(14)))


PRE_TOKENIZERS = {name: pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(e), "isolated") for e in expressions])
    for name, expressions in EXPRESSIONS.items()}


def words_of(name, text):
    return [word for word, _ in PRE_TOKENIZERS[name].pre_tokenize_str(text)] if text else []


DIGEST_OF_NOTHING = 0xCBF29CE484222325


def digest(numbers, hash_):
    """FNV-1a over numbers, with a 0 behind the last one."""
    for number in [*numbers, 0]:
        hash_ = ((hash_ ^ number) * 0x100000001B3) & (1 << 64) - 1
    return hash_


def cut_by_nibble(program, name, lines):
    data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in lines)
    out = subprocess.run([program, name], input=data, capture_output=True, check=True).stdout
    return [[int(n) for n in line.split()] for line in out.decode().split("\n")[:-1]]


def escaped(text):
    return "".join(f"\\x{byte:02x}\"\"" if byte < 32 or byte > 126 else
                   {34: "\\\"", 92: "\\\\"}.get(byte, chr(byte)) for byte in text.encode())


def write_golden():
    lines = ["// SPDX-License-Identifier: Apache-2.0", "//",
             "// Written by tests/text/oracle/words.py with Hugging Face's tokenizers.",
             "#pragma once", "", "#include <cstdint>", "", "namespace golden {", "",
             "// clang-format off", f"constexpr int kTexts = {GOLDEN_TEXTS};",
             "// Texts consist of these.", "constexpr const char* kFragments[] = {"]
    line = "   "
    for fragment in FRAGMENTS:
        item = f" \"{escaped(fragment)}\","
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    lines += [line, "};", "// The digest of the words of all texts.",
              "struct Digest { const char* name; std::uint64_t value; };",
              "constexpr Digest kDigests[] = {"]
    for name in EXPRESSIONS:
        hash_ = DIGEST_OF_NOTHING
        for text in texts(GOLDEN_TEXTS, 1):
            hash_ = digest([len(word.encode()) for word in words_of(name, text)], hash_)
        lines.append(f"    {{\"{name}\", {hash_:#x}}},")
    lines += ["};", "// clang-format on", "", "}  // namespace golden", ""]
    GOLDEN.write_text("\n".join(lines))


def main():
    program, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    wrong = 0
    for name in EXPRESSIONS:
        lines = list(texts(count, 2))
        differences = 0
        for text, sizes in zip(lines, cut_by_nibble(program, name, lines), strict=True):
            words = words_of(name, text)
            if [len(w.encode()) for w in words] != sizes:
                differences += 1
                if differences <= 3:
                    data, at, ours = text.encode(), 0, []
                    for size in sizes:
                        ours.append(data[at:at + size].decode(errors="replace"))
                        at += size
                    print(name, ascii(text), "\n  expected", ascii(words), "\n  nibble  ",
                          ascii(ours))
        print(f"{name}: {differences} differences in {count} texts")
        wrong += differences
    write_golden()
    sys.exit(wrong != 0)


if __name__ == "__main__":
    main()
