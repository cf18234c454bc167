# SPDX-License-Identifier: Apache-2.0
"""Texts for comparing tokenizers: all scripts, emoji, digits, spaces, code, broken UTF-8."""
import random
import unicodedata

# The first and last characters of blocks: scripts and signs.
BLOCKS = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF), (0x300, 0x36F),
    (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F),
    (0x780, 0x7BF), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xA80, 0xAFF), (0xB00, 0xB7F),
    (0xB80, 0xBFF), (0xC00, 0xC7F), (0xC80, 0xCFF), (0xD00, 0xD7F), (0xD80, 0xDFF), (0xE00, 0xE7F),
    (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
    (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1400, 0x167F), (0x1780, 0x17FF), (0x1800, 0x18AF),
    (0x1D00, 0x1DFF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F),
    (0x20A0, 0x20CF), (0x20D0, 0x20FF), (0x2100, 0x214F), (0x2150, 0x218F), (0x2190, 0x23FF),
    (0x2460, 0x24FF), (0x2500, 0x27BF), (0x2C00, 0x2DFF), (0x2E80, 0x2FDF), (0x3000, 0x303F),
    (0x3040, 0x30FF), (0x3100, 0x318F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF),
    (0xA640, 0xA69F), (0xA720, 0xA7FF), (0xAB30, 0xABBF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF),
    (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFB50, 0xFDFF), (0xFE00, 0xFE6F), (0xFE70, 0xFEFF),
    (0xFF00, 0xFFEF), (0x10000, 0x100FF), (0x10400, 0x1044F), (0x1D400, 0x1D7FF),
    (0x1F000, 0x1FAFF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1F), (0xE0000, 0xE007F)]
WORDS = """the of and to in is that it was for on are with as his they at be this from I'm don't we'll
it's he'd you've THE Hello World naïve café résumé Über straße garçon señor İstanbul ΑΒΓ λόγος
Привет мир שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 你好世界 こんにちは世界 안녕하세요 Việt Nam
int main() { return 0; } printf("%d\\n", x) != == => -> :: /* */ // # <html> </p> &amp;
http://a.b/c?d=e snake_case camelCase HTTPServer JSONParser x86_64 v1.2.3 1st 2nd 3.14159 1,000,000
12345678901234567890
0xDEADBEEF 1e-05 $100 50% 2024-11-27 12:34:56 +1-800-555-0199 user@example.com #tag @name""".split()
SPACES = [" ", " ", " ", " ", " ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\t", "\t\t",
          " \n ", "\n" * 5, " " * 17, "\n" * 33, " " * 40, "\u00a0", "\u3000", "\u2003",
          "\u0085", "\u2028"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "1️⃣", "🤷🏻‍♀️", "😶‍🌫️"]
SIGNS = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "...", "!!!", "---", "===", "'s", "'T", "'ll", "’s", "\u2581", "\ufffd", "\u0000", "\u200b",
    "\ufeff"]


def character(rng):
    while True:
        first, last = rng.choice(BLOCKS)
        code = rng.randint(first, last)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def run_of_block(rng):
    first, last = rng.choice(BLOCKS)
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8)))


def fragment(rng, special):
    pick = rng.random()
    if pick < 0.35:
        return rng.choice(WORDS)
    if pick < 0.6:
        return rng.choice(SPACES)
    if pick < 0.68:
        return rng.choice(SIGNS)
    if pick < 0.72:
        return rng.choice(EMOJI)
    if pick < 0.78:
        return str(rng.randint(0, 10 ** rng.randint(1, 12)))
    if pick < 0.88:
        return run_of_block(rng)
    if pick < 0.93:
        return character(rng)
    if pick < 0.96:
        return unicodedata.normalize("NFD", rng.choice(WORDS))
    if special and pick < 0.98:
        return rng.choice(special)
    return rng.choice("abcxyzABC") * rng.randint(1, 30)


def texts(count, seed, special=()):
    """Valid texts; some have the names of special tokens in them."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(fragment(rng, special) for _ in range(rng.randint(0, 25)))


def broken_texts(count, seed):
    """Bytes of texts, some of which are missing, doubled or replaced."""
    rng = random.Random(seed)
    for text in texts(count, seed + 1):
        data = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            if data:
                at = rng.randrange(len(data))
                change = rng.randrange(3)
                if change == 0:
                    del data[at]
                elif change == 1:
                    data.insert(at, rng.randrange(256))
                else:
                    data[at] = rng.randrange(256)
        yield bytes(data)
