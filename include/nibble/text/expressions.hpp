// SPDX-License-Identifier: Apache-2.0
//
// The regular expressions by which a tokenizer.json names its pre-tokenizer: one line for each cut.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "nibble/core/config.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text { namespace detail {

#define NIBBLE_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NIBBLE_SPACES R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define NIBBLE_SIGNS R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)" NIBBLE_SPACES
#define NIBBLE_SIGNS_SLASHES R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*)" NIBBLE_SPACES
#define NIBBLE_WORDS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|)"
#define NIBBLE_CASED(ending)                                                               \
  R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)" ending \
  R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)" ending "|"
#define NIBBLE_GPT2 \
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+\n"
#define NIBBLE_GPT4O NIBBLE_CASED(NIBBLE_CONTRACTIONS "?") "\\p{N}{1,3}" NIBBLE_SIGNS_SLASHES "\n"
#define NIBBLE_DEEPSEEK3                                   \
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|" \
  "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*" NIBBLE_SPACES "\n"

NIBBLE_HIDDEN inline constexpr std::string_view kGpt2Expression = NIBBLE_GPT2;

struct Expression {
  std::string_view text, pre;
};
NIBBLE_HIDDEN inline constexpr Expression kExpressions[] = {
    {NIBBLE_GPT2, "gpt-2"},
    {"\\p{N}\n" NIBBLE_GPT2, "smollm"},
    {"[\\p{P}\\$\\+<=>\\^~\\|`]+\n" NIBBLE_GPT2 "[0-9][0-9][0-9]\n", "falcon"},
    {NIBBLE_CONTRACTIONS NIBBLE_WORDS "\\p{N}{1,3}" NIBBLE_SIGNS "\n", "llama-bpe"},
    {"\\p{N}{1,3}\n" NIBBLE_CONTRACTIONS NIBBLE_WORDS "\\p{N}+" NIBBLE_SIGNS "\n", "minicpm5"},
    {NIBBLE_CONTRACTIONS NIBBLE_WORDS "\\p{N}" NIBBLE_SIGNS "\n", "qwen2"},
    {NIBBLE_CONTRACTIONS
     R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)" NIBBLE_SPACES "\n",
     "qwen35"},
    {NIBBLE_CONTRACTIONS NIBBLE_WORDS R"(\p{N}| ?[^\s\p{L}\p{N}\r\n]+)" NIBBLE_SPACES "\n",
     "seed-coder"},
    {NIBBLE_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|)"
                         R"( ?[^\s\p{L}\p{N}]+[\r\n/]?)" NIBBLE_SPACES "\n",
     "exaone-moe"},
    {R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N})" NIBBLE_SIGNS "\n", "ufakzeka"},
    {"[^\\n]+|[\\n]+\n" NIBBLE_CONTRACTIONS NIBBLE_WORDS "\\p{N}" NIBBLE_SIGNS "\n", "laguna"},
    {NIBBLE_GPT4O, "gpt-4o"},
    {"\\d{1,3}(?=(?:\\d{3})*\\b)\n" NIBBLE_GPT4O, "tiny_aya"},
    {NIBBLE_CASED("") "\\p{N}" NIBBLE_SIGNS_SLASHES "\n", "tekken"},
    {"[\r\n]\n\\s?\\p{L}+\n\\s?\\p{P}+\n[一-龥ࠀ-一가-\xED\x9F\xBF]+\n\\p{N}\n", "deepseek-coder"},
    {"\\p{N}{1,3}\n[一-龥\u3040-ゟ゠-ヿ]+\n" NIBBLE_DEEPSEEK3, "deepseek-v3"},
    {" ?[^(\\s|.,!?…。，、।۔،)]+\n", "bloom"},
    {" ?[^(\\s|.,!?…。，、।۔،)]+\n\\p{N}\n", "viking"},
    {"\\p{N}+\n(?=(\\d{3})+(?!\\d))\n", "superbpe"},
};

#undef NIBBLE_CONTRACTIONS
#undef NIBBLE_SPACES
#undef NIBBLE_SIGNS
#undef NIBBLE_SIGNS_SLASHES
#undef NIBBLE_WORDS
#undef NIBBLE_CASED
#undef NIBBLE_GPT4O
#undef NIBBLE_DEEPSEEK3
#undef NIBBLE_GPT2

inline void replace_all(std::string& text, std::string_view what, std::string_view by) {
  for (std::size_t at = 0; (at = text.find(what, at)) != text.npos; at += by.size())
    text.replace(at, what.size(), by);
}

// Brings different spellings of the same expression into one.
inline void simplify_expression(std::string& text) {
  constexpr std::string_view kSpellings[][2] = {
      {"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"},
      {"'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"},
      {"'(?:[sdmt]|ll|ve|re)", "'s|'t|'re|'ve|'m|'ll|'d"},
      {"?+\\p{L}", "?\\p{L}"},
      {"]++[", "]+["},
      {"\\s*[\\r\\n]|", "\\s*[\\r\\n]+|"},
      {"\\p{N}{1}|", "\\p{N}|"}};
  for (const auto& [from, to] : kSpellings) replace_all(text, from, to);
}

// The name of the pre-tokenizer with these expressions; empty if none is known.
inline std::string_view pre_tokenizer_of(std::string expressions) {
  simplify_expression(expressions);
  for (const Expression& known : kExpressions)
    if (known.text == expressions) return known.pre;
  return {};
}

}}}}  // namespace nibble::NIBBLE_ABI::text::detail
