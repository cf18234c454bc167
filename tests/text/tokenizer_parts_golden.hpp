// SPDX-License-Identifier: Apache-2.0
//
// Written by tests/text/oracle/parts.py with Hugging Face's tokenizers.
#pragma once

#include <cstdint>

namespace golden {

// clang-format off
constexpr int kPartsTexts = 1000;
// Texts consist of these.
constexpr const char* kPartsFragments[] = {
    "", "a", "b", "ab", "A", " ", " ", "  ", "   ", "\x09""", "\x0a""", "\xc2""\x85""",
    "\xe3""\x80""\x80""", "\xe2""\x96""\x81""", "<s>", "<m>", "<r>", "<x>", "bb", "\xe4""\xb8""\xad""\xe6""\x96""\x87""", "\xc3""\x84""", "\x07""", "!"};
// Parts of tokenizer.json files.
constexpr const char* kAddedTokens =
    R"json([{"id":0,"content":"<u>","single_word":false,"lstrip":false,"rstrip":false,"norm)json"
    R"json(alized":false,"special":true},{"id":1,"content":"<s>","single_word":false,"lstri)json"
    R"json(p":false,"rstrip":false,"normalized":false,"special":true},{"id":2,"content":"<m)json"
    R"json(>","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,"special")json"
    R"json(:true},{"id":3,"content":"<r>","single_word":false,"lstrip":false,"rstrip":true,)json"
    R"json("normalized":false,"special":true},{"id":4,"content":"<x>","single_word":false,")json"
    R"json(lstrip":true,"rstrip":true,"normalized":false,"special":true}])json";
// What stands for "@" in a normalizer.
constexpr const char* kTable =
    R"json("AAgAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACaUDAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABBhQUAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIAAIAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA)json"
    R"json(AAAAAAAAAAAAAAAAAYQAgAA==")json";
struct NamedModel { const char* name; const char* json; };
constexpr NamedModel kModels[] = {
    {"bpe", R"json({"type":"BPE","dropout":null,"unk_token":"<u>","continuing_subword_prefix":null,)json"
    R"json("end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges")json"
    R"json(:false,"vocab":{"<u>":0,"<s>":1,"<m>":2,"<r>":3,"<x>":4,"\u2581":5,"a":6,"b":7,")json"
    R"json(\t":8,"\u2581a":9,"ab":10,"\u2581ab":11,"\u2581\u2581":12,"b\u2581":13,"\u2581\u)json"
    R"json(2581\u2581a":14,"ab\u2581":15,"\u2581bb":16},"merges":[["\u2581","a"],["a","b"],)json"
    R"json(["\u2581","ab"],["\u2581a","b"],["\u2581","\u2581"],["b","\u2581"],["\u2581\u258)json"
    R"json(1","\u2581a"],["ab","\u2581"],["a","b\u2581"]]})json"},
    {"bpe_ignore", R"json({"type":"BPE","dropout":null,"unk_token":"<u>","continuing_subword_prefix":null,)json"
    R"json("end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":false,"ignore_merges":)json"
    R"json(true,"vocab":{"<u>":0,"<s>":1,"<m>":2,"<r>":3,"<x>":4,"\u2581":5,"a":6,"b":7,"\t)json"
    R"json(":8,"\u2581a":9,"ab":10,"\u2581ab":11,"\u2581\u2581":12,"b\u2581":13,"\u2581\u25)json"
    R"json(81\u2581a":14,"ab\u2581":15,"\u2581bb":16},"merges":[["\u2581","a"],["a","b"],[")json"
    R"json(\u2581","ab"],["\u2581a","b"],["\u2581","\u2581"],["b","\u2581"],["\u2581\u2581")json"
    R"json(,"\u2581a"],["ab","\u2581"],["a","b\u2581"]]})json"},
    {"unigram", R"json({"type":"Unigram","unk_id":0,"byte_fallback":false,"vocab":[["<u>",0.0],["<s>",0)json"
    R"json(.0],["<m>",0.0],["<r>",0.0],["<x>",0.0],["\u2581",-2.0],["a",-3.0],["b",-3.25],[)json"
    R"json("\u2581a",-3.5],["ab",-4.0],["\u2581ab",-4.75],["\u2581\u2581",-2.125],["b\u2581)json"
    R"json(",-2.5],["a\u2581",-2.75],["\t",-6.0],["A",-6.5],["\u0085",-7.0]]})json"},
    {"wordpiece", R"json({"type":"WordPiece","unk_token":"<u>","continuing_subword_prefix":"##","max_inpu)json"
    R"json(t_chars_per_word":100,"vocab":{"<u>":0,"<s>":1,"<m>":2,"<r>":3,"<x>":4,"a":5,"##)json"
    R"json(b":6,"\u4e2d":7,"##\u4e2d":8,"\u4e2d\u6587":9,"##\u0007":10,"A":11,"\u00e4":12,")json"
    R"json(!":13,"##a":14}})json"},
};
// A file, and the digest of the ids of all texts.
struct Parts {
  const char *model, *normalizer, *pre_tokenizer;
  std::uint64_t ids;
};
constexpr Parts kParts[] = {
    {"bpe", R"json({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\u2581"},{"type":)json"
    R"json("Replace","pattern":{"String":" "},"content":"\u2581"}]})json",
    R"json(null)json", 0x47257bd8ee6bf1b1},
    {"bpe", R"json({"type":"Replace","pattern":{"String":" "},"content":"\u2581"})json",
    R"json({"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert)json"
    R"json(":false})json", 0x8cf29702181f7724},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","add_prefix_space":true})json", 0xaba02b2e49b62cf8},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":tru)json"
    R"json(e})json", 0xaba02b2e49b62cf8},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":fal)json"
    R"json(se})json", 0xfec21b9f7ba58350},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":true)json"
    R"json(})json", 0xdf3e59dc0cf46296},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":fals)json"
    R"json(e})json", 0x6acc258dd0e2c63c},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never","split":true)json"
    R"json(})json", 0xbe48687e22eb031c},
    {"bpe", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never","split":fals)json"
    R"json(e})json", 0x8cf29702181f7724},
    {"bpe_ignore", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":tru)json"
    R"json(e})json", 0xc6ef0376c97c065c},
    {"bpe_ignore", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":fal)json"
    R"json(se})json", 0x34b8f7ac1397a4c6},
    {"bpe_ignore", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":true)json"
    R"json(})json", 0x50b45811d1a22f04},
    {"bpe_ignore", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":fals)json"
    R"json(e})json", 0xb79e9484889fac05},
    {"bpe_ignore", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never","split":true)json"
    R"json(})json", 0x5b1172c4b4e9a069},
    {"bpe_ignore", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never","split":fals)json"
    R"json(e})json", 0xf5fad4f85c68f514},
    {"unigram", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":tru)json"
    R"json(e})json", 0x7b52fff852c4c24b},
    {"unigram", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":fal)json"
    R"json(se})json", 0xc806c0bf31d1625e},
    {"unigram", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":true)json"
    R"json(})json", 0x29119c50b2da5995},
    {"unigram", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first","split":fals)json"
    R"json(e})json", 0xd9f8bd0a440cf131},
    {"unigram", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never","split":true)json"
    R"json(})json", 0x84bf3dc3072ec56a},
    {"unigram", R"json(null)json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never","split":fals)json"
    R"json(e})json", 0x23ef86680e9b8d02},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always"})json", 0x84cbca8ccfbe5fa6},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always"})json", 0x8ee98529cf7ce18f},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Strip","strip_left":false,"strip_right":true},{"type":"Replace","pa)json"
    R"json(ttern":{"Regex":" {2,}"},"content":"\u2581"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always"})json", 0x958ba0569a7544b4},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Strip","strip_left":true,"strip_right":false},{"type":"Replace","pa)json"
    R"json(ttern":{"Regex":" {2,}"},"content":" "}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always"})json", 0xc77cfb1e2ae4e41a},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Strip","strip_left":true,"strip_right)json"
    R"json(":true},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":"\u2581"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always"})json", 0xe49e73aec0fde77b},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first"})json", 0xb5eb12bfb106641},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first"})json", 0x8505d62f63107482},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Strip","strip_left":false,"strip_right":true},{"type":"Replace","pa)json"
    R"json(ttern":{"Regex":" {2,}"},"content":"\u2581"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"first"})json", 0xe0c38940c271fd08},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never"})json", 0x4b1823cbc55a4e07},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never"})json", 0x227a12eed5edcc46},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Strip","strip_left":false,"strip_right":true},{"type":"Replace","pa)json"
    R"json(ttern":{"Regex":" {2,}"},"content":"\u2581"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never"})json", 0xc4e60857e3994382},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Precompiled","precompiled_charsmap":")json"
    R"json(@"},{"type":"Strip","strip_left":true,"strip_right":false},{"type":"Replace","pa)json"
    R"json(ttern":{"Regex":" {2,}"},"content":" "}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never"})json", 0x5aa9487de5cb6842},
    {"unigram", R"json({"type":"Sequence","normalizers":[{"type":"Strip","strip_left":true,"strip_right)json"
    R"json(":true},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":"\u2581"}]})json",
    R"json({"type":"Metaspace","replacement":"\u2581","prepend_scheme":"never"})json", 0x973899b19b07539e},
    {"unigram", R"json({"type":"Precompiled","precompiled_charsmap":"@"})json",
    R"json({"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},{"type":"Metaspac)json"
    R"json(e","replacement":"\u2581","prepend_scheme":"always"}]})json", 0xbb1a4ee2e294f146},
    {"wordpiece", R"json(null)json",
    R"json({"type":"BertPreTokenizer"})json", 0xdd479c1f6a6b03e2},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":true,"strip_accents":null,"handle_chinese_)json"
    R"json(chars":true,"lowercase":true})json",
    R"json({"type":"BertPreTokenizer"})json", 0x7f9d3f1d6a71580d},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":true,"strip_accents":null,"handle_chinese_)json"
    R"json(chars":true,"lowercase":false})json",
    R"json({"type":"BertPreTokenizer"})json", 0xcb107b51b59de486},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":true,"strip_accents":null,"handle_chinese_)json"
    R"json(chars":false,"lowercase":true})json",
    R"json({"type":"BertPreTokenizer"})json", 0x4fb5a6cf10140972},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":true,"strip_accents":null,"handle_chinese_)json"
    R"json(chars":false,"lowercase":false})json",
    R"json({"type":"BertPreTokenizer"})json", 0x49fbb94cd330a97a},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":false,"strip_accents":null,"handle_chinese)json"
    R"json(_chars":true,"lowercase":true})json",
    R"json({"type":"BertPreTokenizer"})json", 0x8b208825de7058b},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":false,"strip_accents":null,"handle_chinese)json"
    R"json(_chars":true,"lowercase":false})json",
    R"json({"type":"BertPreTokenizer"})json", 0x4887f71a7ef26e89},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":false,"strip_accents":null,"handle_chinese)json"
    R"json(_chars":false,"lowercase":true})json",
    R"json({"type":"BertPreTokenizer"})json", 0x97901ef9d50e107},
    {"wordpiece", R"json({"type":"BertNormalizer","clean_text":false,"strip_accents":null,"handle_chinese)json"
    R"json(_chars":false,"lowercase":false})json",
    R"json({"type":"BertPreTokenizer"})json", 0xdd479c1f6a6b03e2},
};
// clang-format on

}  // namespace golden
