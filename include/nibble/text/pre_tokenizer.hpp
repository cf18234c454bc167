// SPDX-License-Identifier: Apache-2.0
//
// Pre-tokenizers: how a text is cut into the words that byte-level BPE encodes one by one. A file
// names its own (tokenizer.ggml.pre). Each is a list of cuts; each cut divides the pieces that the
// one before it left.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/core/config.hpp"
#include "nibble/text/cut.hpp"
#include "nibble/text/word_rules.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

struct PreTokenizer {
  std::string_view name;
  std::span<const Cut> cuts;   // none: the text is one word
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  bool adds_bos = false;       // unless the file says otherwise
  bool byte_level = true;      // pieces are bytes; otherwise characters, and spaces are U+2581
};

namespace detail {

using Contractions = WordRules::Contractions;
using Words = WordRules::Words;
using Newlines = WordRules::Newlines;
using Tail = WordRules::Tail;

NIBBLE_HIDDEN inline constexpr WordRules kLlama3Words = {};
NIBBLE_HIDDEN inline constexpr WordRules kGpt2Words = {.contractions = Contractions::lower_case,
                                                       .only_space_before_word = true,
                                                       .space_before_number = true,
                                                       .max_digits = 255,
                                                       .after_signs = Tail::none,
                                                       .newlines = Newlines::none};
NIBBLE_HIDDEN inline constexpr WordRules kQwen2Words = {.max_digits = 1};
NIBBLE_HIDDEN inline constexpr WordRules kGpt4oWords = {.contractions = Contractions::ending,
                                                        .words = Words::cased,
                                                        .after_signs = Tail::newlines_and_slashes};
NIBBLE_HIDDEN inline constexpr WordRules kDeepseek3Words = {
    .contractions = Contractions::none,
    .letters = kLetters | kMarks,
    .before_word = kCharacters & ~(kLetters | kSigns),
    .ascii_sign_before_word = true,
    .max_digits = 0,
    .signs = kSigns};

// ---- What runs consist of ----

constexpr bool is_between(char32_t c, char32_t first, char32_t last) noexcept {
  return c >= first && c <= last;
}
constexpr int newline_kind(const Character& c) noexcept { return c.is_newline(); }
constexpr int line_kind(const Character& c) noexcept { return c.code == '\n' ? 1 : 2; }
constexpr int letter_kind(const Character& c) noexcept { return c.is_in(kLetters); }
constexpr int number_kind(const Character& c) noexcept { return c.is_in(kNumbers); }
constexpr int digit_kind(const Character& c) noexcept { return is_between(c.code, '0', '9'); }
constexpr int punctuation_kind(const Character& c) noexcept {
  return c.type == CharClass::punctuation;
}
// [\p{P}\$\+<=>\^~\|`]
constexpr int falcon_kind(const Character& c) noexcept {
  return c.type == CharClass::punctuation || (c.code < 0x80 && c.type == CharClass::symbol);
}
constexpr int default_kind(const Character& c) noexcept { return c.code != '`' && falcon_kind(c); }
// Letters with case that were known when the expression was written.
constexpr int deepseek_letter_kind(const Character& c) noexcept {
  const char32_t k = c.code;
  return c.is_in(kCased) && !is_between(k, 0x560, 0x588) && !is_between(k, 0x10C6, 0x10FF) &&
         !is_between(k, 0x1C80, 0x1C8A) && !is_between(k, 0x2CF2, 0x2D2D) &&
         !is_between(k, 0xA790, 0xAB68) && !is_between(k, 0x10570, 0x105BC) &&
         !is_between(k, 0x10D50, 0x10D85) && !is_between(k, 0x16E40, 0x1E8FF);
}
// [!-/:-~！-／：-～‘-‟　-。]
constexpr int deepseek_sign_kind(const Character& c) noexcept {
  const char32_t k = c.code;
  return is_between(k, '!', '/') || is_between(k, ':', '~') || is_between(k, 0xFF01, 0xFF0F) ||
         is_between(k, 0xFF1A, 0xFF5E) || is_between(k, 0x2018, 0x201F) ||
         is_between(k, 0x3000, 0x3002);
}
// [一-龥ࠀ-一가-퟿]
constexpr int deepseek_cjk_kind(const Character& c) noexcept {
  return is_between(c.code, 0x800, 0x9FA5) || is_between(c.code, 0xAC00, 0xD7FF);
}
// [一-龥぀-ゟ゠-ヿ]
constexpr int deepseek3_cjk_kind(const Character& c) noexcept {
  return is_between(c.code, 0x4E00, 0x9FA5) || is_between(c.code, 0x3040, 0x30FF);
}
// [가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+
constexpr int youtu_kind(const Character& c) noexcept {
  const char32_t k = c.code;
  if (is_between(k, 0xAC00, 0xD7A3) || is_between(k, 0x3131, 0x318E)) return 1;
  if (k == 0xFF01 || k == 0x2026 || k == 0x201C || k == 0x201D || k == 0x2018 || k == 0x2019 ||
      k == 0x2014 || k == 0xFF1A || k == 0xFF1B || k == 0xFF0C || is_between(k, 0x3001, 0x303F) ||
      is_between(k, 0xFE30, 0xFE4F))
    return 2;
  if (is_between(k, 0x3105, 0x312F)) return 3;
  return deepseek3_cjk_kind(c) != 0 ? 4 : 0;
}
// Scripts of East and South-East Asia.
constexpr int afmoe_kind(const Character& c) noexcept {
  constexpr char32_t kRanges[][2] = {
      {0x4E00, 0x9FFF}, {0x3400, 0x4DBF}, {0xF900, 0xFAFF}, {0x3040, 0x30FF}, {0xFF65, 0xFF9F},
      {0x2F00, 0x2FDF}, {0xE00, 0xE7F},   {0xE80, 0xEFF},   {0x1780, 0x17FF}, {0x1000, 0x109F},
      {0xAA60, 0xAA7F}, {0xA9E0, 0xA9FF}, {0xAC00, 0xD7AF}, {0x1100, 0x11FF}};
  for (const auto& range : kRanges)
    if (is_between(c.code, range[0], range[1])) return 1;
  return 0;
}
// [^(\s|.,!?…。，、।۔،)]
constexpr int bloom_kind(const Character& c) noexcept {
  if (c.is_in(kSpaces | char_set(CharClass::none))) return 0;
  for (const char32_t sign : {U'(', U'|', U'.', U',', U'!', U'?', U')', U'\u2026', U'\u3002',
                              U'\uFF0C', U'\u3001', U'\u0964', U'\u06D4', U'\u060C'})
    if (c.code == sign) return 0;
  return 1;
}

// ---- The lists of cuts ----

constexpr Cut words(const WordRules& rules) noexcept { return {.words = rules}; }
constexpr Cut runs(const RunRules& rules) noexcept {
  return {.kind = Cut::Kind::runs, .runs = rules};
}

NIBBLE_HIDDEN inline constexpr Cut kGpt2[] = {words(kGpt2Words)};
NIBBLE_HIDDEN inline constexpr Cut kStarcoder[] = {runs({.kind = number_kind, .max = 1}),
                                                   words(kGpt2Words)};
NIBBLE_HIDDEN inline constexpr Cut kFalcon[] = {runs({.kind = falcon_kind}), words(kGpt2Words),
                                                runs({.kind = digit_kind, .min = 3, .max = 3})};
NIBBLE_HIDDEN inline constexpr Cut kDefault[] = {runs({.kind = default_kind}), words(kGpt2Words),
                                                 runs({.kind = number_kind}),
                                                 runs({.kind = digit_kind, .min = 3, .max = 3})};
NIBBLE_HIDDEN inline constexpr Cut kLlama3[] = {words(kLlama3Words)};
NIBBLE_HIDDEN inline constexpr Cut kMinicpm5[] = {runs({.kind = number_kind, .max = 3}),
                                                  words({.max_digits = 255})};
NIBBLE_HIDDEN inline constexpr Cut kQwen2[] = {words(kQwen2Words)};
NIBBLE_HIDDEN inline constexpr Cut kQwen35[] = {
    words({.letters = kLetters | kMarks,
           .max_digits = 1,
           .signs = kCharacters & ~(kLetters | kMarks | kNumbers | kSpaces)})};
NIBBLE_HIDDEN inline constexpr Cut kUfakzeka[] = {
    words({.contractions = Contractions::none, .max_digits = 1})};
NIBBLE_HIDDEN inline constexpr Cut kSeedCoder[] = {
    words({.max_digits = 1, .after_signs = Tail::none})};
NIBBLE_HIDDEN inline constexpr Cut kLaguna[] = {runs({.kind = line_kind}), words(kQwen2Words)};
NIBBLE_HIDDEN inline constexpr Cut kExaoneMoe[] = {
    words({.words = Words::joined, .max_digits = 1, .after_signs = Tail::one_newline_or_slash})};
NIBBLE_HIDDEN inline constexpr Cut kGpt4o[] = {words(kGpt4oWords)};
NIBBLE_HIDDEN inline constexpr Cut kTekken[] = {words({.contractions = Contractions::none,
                                                       .words = Words::cased,
                                                       .max_digits = 1,
                                                       .after_signs = Tail::newlines_and_slashes})};
NIBBLE_HIDDEN inline constexpr Cut kTinyAya[] = {{.kind = Cut::Kind::grouped_digits},
                                                 words(kGpt4oWords)};
NIBBLE_HIDDEN inline constexpr Cut kYoutu[] = {runs({.kind = youtu_kind}),
                                               words({.contractions = Contractions::ending,
                                                      .words = Words::cased,
                                                      .max_digits = 1,
                                                      .after_signs = Tail::newlines_and_slashes})};
NIBBLE_HIDDEN inline constexpr Cut kDeepseekLlm[] = {
    runs({.kind = newline_kind, .max = 1}),
    runs({.kind = deepseek_letter_kind, .after_space = true}),
    runs({.kind = deepseek_sign_kind, .after_space = true}),
    {.kind = Cut::Kind::space_at_end},
    runs({.kind = deepseek_cjk_kind}),
    runs({.kind = number_kind})};
NIBBLE_HIDDEN inline constexpr Cut kDeepseekCoder[] = {
    runs({.kind = newline_kind, .max = 1}), runs({.kind = letter_kind, .after_space = true}),
    runs({.kind = punctuation_kind, .after_space = true}), runs({.kind = deepseek_cjk_kind}),
    runs({.kind = number_kind, .max = 1})};
NIBBLE_HIDDEN inline constexpr Cut kDeepseek3[] = {runs({.kind = number_kind, .max = 3}),
                                                   runs({.kind = deepseek3_cjk_kind}),
                                                   words(kDeepseek3Words)};
NIBBLE_HIDDEN inline constexpr Cut kAfmoe[] = {runs({.kind = number_kind}),
                                               {.kind = Cut::Kind::digit_groups},
                                               runs({.kind = afmoe_kind}),
                                               words(kDeepseek3Words)};
NIBBLE_HIDDEN inline constexpr Cut kBloom[] = {runs({.kind = bloom_kind, .after_blank = true})};
NIBBLE_HIDDEN inline constexpr Cut kViking[] = {runs({.kind = bloom_kind, .after_blank = true}),
                                                runs({.kind = number_kind, .max = 1})};
NIBBLE_HIDDEN inline constexpr Cut kSuperbpe[] = {runs({.kind = number_kind}),
                                                  {.kind = Cut::Kind::digit_groups}};
NIBBLE_HIDDEN inline constexpr Cut kLines[] = {runs({.kind = line_kind})};

NIBBLE_HIDDEN inline constexpr PreTokenizer kPreTokenizers[] = {
    {.name = "default", .cuts = kDefault},
    {.name = "gpt-2", .cuts = kGpt2},
    {.name = "phi-2", .cuts = kGpt2},
    {.name = "olmo", .cuts = kGpt2},
    {.name = "mpt", .cuts = kGpt2},
    {.name = "jais", .cuts = kGpt2},
    {.name = "trillion", .cuts = kGpt2},
    {.name = "granite-docling", .cuts = kGpt2},
    {.name = "exaone4", .cuts = kGpt2},
    {.name = "gigachat", .cuts = kGpt2},
    {.name = "a.x-4.0", .cuts = kGpt2},
    {.name = "mellum", .cuts = kGpt2},
    {.name = "modern-bert", .cuts = kGpt2},
    {.name = "roberta-bpe", .cuts = kGpt2},
    {.name = "jina-es", .cuts = kGpt2},
    {.name = "jina-de", .cuts = kGpt2},
    {.name = "jina-v1-en", .cuts = kGpt2},
    {.name = "jina-v2-es", .cuts = kGpt2},
    {.name = "jina-v2-de", .cuts = kGpt2},
    {.name = "jina-v2-code", .cuts = kGpt2},
    {.name = "starcoder", .cuts = kStarcoder},
    {.name = "smollm", .cuts = kStarcoder},
    {.name = "refact", .cuts = kStarcoder},
    {.name = "command-r", .cuts = kStarcoder},
    {.name = "codeshell", .cuts = kStarcoder},
    {.name = "exaone", .cuts = kStarcoder},
    {.name = "minerva-7b", .cuts = kStarcoder},
    {.name = "mellum2", .cuts = kStarcoder},
    {.name = "falcon", .cuts = kFalcon},
    {.name = "llama-bpe", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "llama3", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "llama-v3", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "falcon3", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "falcon-h1", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "pixtral", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "midm-2.0", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "lfm2", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "jina-v5-nano", .cuts = kLlama3, .ignore_merges = true, .adds_bos = true},
    {.name = "dbrx", .cuts = kLlama3},
    {.name = "smaug-bpe", .cuts = kLlama3},
    {.name = "glm4", .cuts = kLlama3},
    {.name = "chatglm-bpe", .cuts = kLlama3},
    {.name = "minicpm5", .cuts = kMinicpm5, .ignore_merges = true},
    {.name = "qwen2", .cuts = kQwen2},
    {.name = "deepseek-r1-qwen", .cuts = kQwen2},
    {.name = "kormo", .cuts = kQwen2},
    {.name = "f2llmv2", .cuts = kQwen2},
    {.name = "megrez", .cuts = kQwen2},
    {.name = "stablelm2", .cuts = kQwen2},
    {.name = "hunyuan", .cuts = kQwen2},
    {.name = "solar-open", .cuts = kQwen2},
    {.name = "grok-2", .cuts = kQwen2},
    {.name = "bailingmoe", .cuts = kQwen2},
    {.name = "bailingmoe2", .cuts = kQwen2},
    {.name = "llada-moe", .cuts = kQwen2},
    {.name = "qwen35", .cuts = kQwen35},
    {.name = "ufakzeka", .cuts = kUfakzeka},
    {.name = "seed-coder", .cuts = kSeedCoder},
    {.name = "laguna", .cuts = kLaguna},
    {.name = "exaone-moe", .cuts = kExaoneMoe},
    {.name = "gpt-4o", .cuts = kGpt4o},
    {.name = "llama4", .cuts = kGpt4o},
    {.name = "kanana2", .cuts = kGpt4o},
    {.name = "talkie", .cuts = kGpt4o},
    {.name = "minimax-m2", .cuts = kGpt4o},
    {.name = "granite-embed-multi-97m", .cuts = kGpt4o, .ignore_merges = true},
    {.name = "tekken", .cuts = kTekken, .ignore_merges = true, .adds_bos = true},
    {.name = "tiny_aya", .cuts = kTinyAya},
    {.name = "cohere2moe", .cuts = kTinyAya},
    {.name = "youtu", .cuts = kYoutu, .ignore_merges = true},
    {.name = "deepseek-llm", .cuts = kDeepseekLlm},
    {.name = "deepseek-coder", .cuts = kDeepseekCoder},
    {.name = "deepseek-v3", .cuts = kDeepseek3},
    {.name = "hunyuan-dense", .cuts = kDeepseek3},
    {.name = "joyai-llm", .cuts = kDeepseek3},
    {.name = "hy_v4", .cuts = kDeepseek3},
    {.name = "afmoe", .cuts = kAfmoe},
    {.name = "bloom", .cuts = kBloom},
    {.name = "poro-chat", .cuts = kBloom},
    {.name = "gpt3-finnish", .cuts = kBloom},
    {.name = "viking", .cuts = kViking},
    {.name = "superbpe", .cuts = kSuperbpe},
    {.name = "gemma4",
     .cuts = kLines,
     .ignore_merges = true,
     .adds_bos = true,
     .byte_level = false},
    {.name = "whole text", .cuts = {}, .byte_level = false},
    {.name = "granite-embed-multi-311m", .cuts = kLines, .byte_level = false},
    {.name = "sarvam-moe", .cuts = kLines, .byte_level = false},
};

}  // namespace detail

// nullptr if there is no pre-tokenizer of this name.
inline const PreTokenizer* find_pre_tokenizer(std::string_view name) noexcept {
  for (const PreTokenizer& pre_tokenizer : detail::kPreTokenizers)
    if (pre_tokenizer.name == name) return &pre_tokenizer;
  return nullptr;
}

}}}  // namespace nibble::NIBBLE_ABI::text
