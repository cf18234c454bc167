// SPDX-License-Identifier: Apache-2.0
//
// Written by tests/text/oracle/words.py with Hugging Face's tokenizers.
#pragma once

#include <cstdint>

namespace golden {

// clang-format off
constexpr int kTexts = 1500;
// Texts consist of these.
constexpr const char* kFragments[] = {
    " ", " ", " ", "  ", "    ", "\x0a""", "\x0a""\x0a""", "\x0d""\x0a""", "\x09""", "\xc2""\xa0""",
    "\xe3""\x80""\x80""", "\xc2""\x85""", "\x0b""", "a", "b", "S", "the", "Word", "HTTPServer",
    "iPhone", "'", "'s", "'S", "'ll", "'LL", "'re", "'VE", "'d", "'m", "'t", "'x", "'\xc5""\xbf""",
    "\xe2""\x80""\x99""s", "0", "7", "42", "123", "1234", "1234567", "\xc2""\xbd""",
    "\xd9""\xa3""\xd9""\xa4""", "\xe2""\x85""\xa7""", "\xc2""\xb2""", ".", ",", "!", "?", "...",
    "(", ")", "-", "_", "/", "//", "\\", "$", "+", "=", "<", ">", "^", "~", "|", "`", "@", "#",
    "\"", "<|x|>", "\xc3""\xa9""", "e\xcc""\x81""", "\xcc""\x81""", "\xc3""\x89""", "\xc3""\x9f""",
    "\xc7""\x85""", "\xca""\xb0""", "\xc2""\xaa""", "\xc6""\xbb""", "\xd5""\xa1""", "\xce""\xa9""",
    "\xce""\x94""\xce""\xb4""", "\xd0""\x96""\xd0""\xb6""",
    "\xd8""\xb9""\xd8""\xb1""\xd8""\xa8""\xd9""\x89""", "\xd7""\xa9""\xd7""\x81""",
    "\xe0""\xa4""\x95""\xe0""\xa4""\xbf""",
    "\xe0""\xa4""\x95""\xe0""\xa5""\x8d""\xe0""\xa4""\xb7""",
    "\xe0""\xb9""\x84""\xe0""\xb8""\x97""\xe0""\xb8""\xa2""", "\xe0""\xb8""\xb3""",
    "\xe1""\x9e""\x80""\xe1""\x9e""\xb6""", "\xe4""\xbd""\xa0""\xe5""\xa5""\xbd""",
    "\xe3""\x90""\x80""", "\xf0""\xa0""\x80""\x80""", "\xe3""\x81""\x82""",
    "\xe3""\x82""\xa2""\xe3""\x83""\xbc""", "\xef""\xbd""\xb6""",
    "\xed""\x95""\x9c""\xea""\xb5""\xad""", "\xe1""\x84""\x92""\xe1""\x85""\xa1""",
    "\xe3""\x84""\x85""", "\xe3""\x80""\x82""", "\xef""\xbc""\x8c""", "\xe3""\x80""\x81""",
    "\xef""\xbc""\x81""", "\xe2""\x80""\x94""", "\xe2""\x80""\xa6""", "\xe2""\x80""\x9c""",
    "\xe3""\x80""\x8c""", "\xe0""\xa5""\xa4""", "\xd8""\x8c""", "\xf0""\x9f""\x98""\x80""",
    "\xf0""\x9f""\x91""\xa8""\xe2""\x80""\x8d""\xf0""\x9f""\x91""\xa9""", "\xef""\xb8""\x8f""",
    "\xe2""\x80""\x8b""", "\xc2""\xad""", "\x07""", "\xee""\x80""\x80""",
    "\xf4""\x8f""\xbf""\xbd""", "\xcd""\xb8""", "\xf0""\x9d""\x90""\x80""",
    "\xf0""\x9e""\xa4""\x80""", "\xe2""\x83""\xa3""", "\xe0""\xa4""\x83""", "\xe2""\x96""\x81""",
    "\xef""\xbf""\xbd""",
};
// The digest of the words of all texts.
struct Digest { const char* name; std::uint64_t value; };
constexpr Digest kDigests[] = {
    {"default", 0x5ee9b7492cd55cd5},
    {"gpt-2", 0x23f470ef25a4ce15},
    {"starcoder", 0x77eff72ce77690c5},
    {"falcon", 0xac59e896f3b33023},
    {"llama-bpe", 0x891c68357a1fb391},
    {"minicpm5", 0xb22303a967051ab},
    {"qwen2", 0x3a11161772938d7b},
    {"bailingmoe", 0x3a11161772938d7b},
    {"qwen35", 0xb6e572aa4bc1f731},
    {"ufakzeka", 0x52fecb59b107221d},
    {"seed-coder", 0x1b0c57f8369bcfdf},
    {"laguna", 0xfc2e21b0885a1c5},
    {"exaone-moe", 0xddf57be05b532ddf},
    {"gpt-4o", 0xa1044d221877d67},
    {"tekken", 0x21d1d48fb43e4255},
    {"tiny_aya", 0x7f96fc4b2bbfcfc7},
    {"youtu", 0x69c331abc8b0c8e3},
    {"deepseek-llm", 0x51d1ff24a78f1333},
    {"deepseek-coder", 0xf20299c9b789dea1},
    {"deepseek-v3", 0x2fd4ede43ebd61ff},
    {"afmoe", 0x91b68ef6cd56dfb3},
    {"bloom", 0x4582821af00421fd},
    {"viking", 0xae68ccc609825f9},
    {"superbpe", 0x1dc44d9fa181a8b},
    {"gemma4", 0xeb1cc65d2acf4327},
};
// clang-format on

}  // namespace golden
