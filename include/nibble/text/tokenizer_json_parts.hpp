// SPDX-License-Identifier: Apache-2.0
//
// What the parts of a tokenizer.json around its model mean: what is done to a text before it is
// encoded, and which tokens are added to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/text/expressions.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text { namespace detail {

inline Error unsupported_part(const char* part, std::string_view what) {
  return Error{Errc::unsupported,
               std::string(part) + ": " + io::quoted(what) + " is not supported"};
}

// The string or flag at `key` of an object; empty or `fallback` if there is none.
inline std::string_view string_at(const io::JsonValue& object, std::string_view key) noexcept {
  const io::JsonValue* const value = object.find(key);
  return value == nullptr ? std::string_view() : std::string_view(value->string());
}
inline bool flag_at(const io::JsonValue& object, std::string_view key, bool fallback) noexcept {
  const io::JsonValue* const value = object.find(key);
  return value == nullptr || value->is_null() ? fallback : value->boolean();
}

// The steps of a part: those of the array `steps` if it is a "Sequence" (in which there may be
// others), else itself.
inline std::vector<const io::JsonValue*> steps_of(const io::JsonValue& part,
                                                  std::string_view steps) {
  std::vector<const io::JsonValue*> todo = {&part}, found;  // todo: the next one last
  while (!todo.empty()) {
    const io::JsonValue& step = *todo.back();
    todo.pop_back();
    if (step.is_null()) continue;
    const io::JsonValue* const inner =
        string_at(step, "type") == "Sequence" ? step.find(steps) : nullptr;
    if (inner == nullptr) {
      found.push_back(&step);
    } else {
      for (std::size_t i = inner->elements().size(); i-- > 0;)
        todo.push_back(&inner->elements()[i]);
    }
  }
  return found;
}

// Spaces become U+2581, which is also put before a text that does not begin with it, and each of
// them begins a word.
inline Result<void> read_metaspace(const io::JsonValue& step, VocabularySettings& settings) {
  if (string_at(step, "replacement") != kSpmSpace)
    return unsupported_part("pre_tokenizer", "Metaspace whose replacement is not U+2581");
  const io::JsonValue* const value = step.find("prepend_scheme");
  const std::string_view scheme = value == nullptr ? "always" : std::string_view(value->string());
  if (scheme != "always" && scheme != "first" && scheme != "never")
    return unsupported_part("pre_tokenizer: prepend_scheme", scheme);
  settings.add_space_prefix = scheme != "never" && flag_at(step, "add_prefix_space", true);
  settings.prefix_once = scheme == "first";
  settings.prefix_unless_space = settings.add_space_prefix;
  settings.splits_spaces = flag_at(step, "split", true);
  return ok();
}

// How BPE cuts a text into words. Byte-level BPE names the pre-tokenizer by its expressions; else
// spaces must have become U+2581 (`has_bars`: they have before), and the text is one word, or words
// that begin with spaces.
inline Result<void> read_pre_tokenizer(const io::JsonValue& part, bool has_bars,
                                       VocabularySettings& settings) {
  std::string expressions;
  bool is_byte_level = false;
  for (const io::JsonValue* step : steps_of(part, "pretokenizers")) {
    const std::string_view type = string_at(*step, "type");
    if (type == "ByteLevel") {
      is_byte_level = true;
      if (flag_at(*step, "add_prefix_space", true))
        return unsupported_part("pre_tokenizer", "add_prefix_space");
      if (flag_at(*step, "use_regex", true)) expressions += kGpt2Expression;
    } else if (type == "Split") {
      const io::JsonValue* const pattern = step->find("pattern");
      if (pattern == nullptr) return unsupported_part("pre_tokenizer", "Split without a pattern");
      const std::string_view regex = string_at(*pattern, "Regex");
      // SentencePiece as BPE: spaces are replaced before they could be cut at.
      if (has_bars && regex.empty() && string_at(*pattern, "String") == " ") continue;
      const std::string_view behavior = string_at(*step, "behavior");
      const bool inverted = flag_at(*step, "invert", false);
      if (regex.empty() || !(behavior == (inverted ? "Removed" : "Isolated")))
        return unsupported_part("pre_tokenizer", "this Split");
      (expressions += regex) += '\n';
    } else if (type == "Digits") {
      expressions += flag_at(*step, "individual_digits", false) ? "\\p{N}\n" : "\\p{N}+\n";
    } else if (type == "Metaspace") {
      if (settings.add_space_prefix)
        return unsupported_part("pre_tokenizer", "Metaspace after Prepend, or twice");
      NIBBLE_CHECK(read_metaspace(*step, settings));
      has_bars = true;
    } else {
      return unsupported_part("pre_tokenizer", type);
    }
  }
  if (is_byte_level && has_bars)
    return unsupported_part("pre_tokenizer", "ByteLevel of a text with U+2581 for spaces");
  if (!is_byte_level && expressions.empty()) {
    if (!has_bars) return unsupported_part("pre_tokenizer", "BPE of spaces that are not U+2581");
    settings.pre = "whole text";
    return ok();
  }
  const std::string_view name = is_byte_level ? pre_tokenizer_of(expressions) : std::string_view();
  if (!name.empty()) {
    settings.pre = name;
    return ok();
  }
  return unsupported_part("pre_tokenizer", expressions);
}

// What BPE does to a text first. Returns whether spaces become U+2581.
inline Result<bool> read_bpe_normalizer(const io::JsonValue& part, VocabularySettings& settings) {
  bool replaces_spaces = false;
  for (const io::JsonValue* step : steps_of(part, "normalizers")) {
    const std::string_view type = string_at(*step, "type");
    const io::JsonValue* const pattern = step->find("pattern");
    const std::string_view replaced =
        pattern == nullptr ? std::string_view() : string_at(*pattern, "String");
    if (type == "NFC") {
      settings.compose = true;
    } else if (type == "Prepend" && string_at(*step, "prepend") == kSpmSpace) {
      settings.add_space_prefix = true;
    } else if (type == "Replace" && replaced == " " && string_at(*step, "content") == kSpmSpace) {
      replaces_spaces = true;
    } else {
      return unsupported_part("normalizer", type);
    }
  }
  if (settings.add_space_prefix && !replaces_spaces)
    return unsupported_part("normalizer", "Prepend without Replace");
  return replaces_spaces;
}

// Without a normalizer a text stays as it is.
inline Result<void> read_bert_normalizer(const io::JsonValue& part, VocabularySettings& settings) {
  settings.clean_text = settings.split_chinese = false;
  for (const io::JsonValue* step : steps_of(part, "normalizers")) {
    const std::string_view type = string_at(*step, "type");
    if (type != "BertNormalizer") return unsupported_part("normalizer", type);
    settings.clean_text = flag_at(*step, "clean_text", true);
    settings.split_chinese = flag_at(*step, "handle_chinese_chars", true);
    settings.lower_case = flag_at(*step, "lowercase", true);
    settings.strip_accents = flag_at(*step, "strip_accents", settings.lower_case);
  }
  return ok();
}

// Cuts at white space and around signs, as WordPieceEncoder does. (Without it, WordPiece takes the
// whole text as one word.)
inline Result<void> read_bert_pre_tokenizer(const io::JsonValue& part) {
  const auto steps = steps_of(part, "pretokenizers");
  if (steps.empty()) return unsupported_part("pre_tokenizer", "WordPiece without one");
  for (const io::JsonValue* step : steps)
    if (const std::string_view type = string_at(*step, "type"); type != "BertPreTokenizer")
      return unsupported_part("pre_tokenizer", type);
  return ok();
}

// The bytes that `text` has in base 64, with its padding. Error: malformed.
inline Result<std::string> bytes_of_base64(std::string_view text) {
  const Error error = {Errc::malformed, "not a text in base 64"};
  if (text.size() % 4 != 0) return error;
  std::string bytes;
  std::uint32_t bits = 0;
  int n_bits = 0;
  for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  for (const char c : text) {
    const int digit = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (digit < 0) return error;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    n_bits += 6;
    if (n_bits < 8) continue;
    n_bits -= 8;
    bytes.push_back(static_cast<char>(bits >> n_bits & 0xFF));
  }
  if ((bits & ((1u << n_bits) - 1)) != 0) return error;  // of a byte that is not whole
  return bytes;
}

// What a unigram model does to a text first: "Precompiled", then "Strip", then "Replace" of spaces
// in a row, as far as it has them. In another order they would mean something else.
struct UnigramNormalizer {
  bool strips_left = false, strips_right = false;
  std::string_view space = {};  // what spaces in a row become; empty: they stay
};

inline Result<UnigramNormalizer> read_unigram_normalizer(const io::JsonValue& part,
                                                         VocabularySettings& settings) {
  UnigramNormalizer steps;
  for (const io::JsonValue* step : steps_of(part, "normalizers")) {
    const std::string_view type = string_at(*step, "type");
    const io::JsonValue* const pattern = step->find("pattern");
    const bool is_first = !steps.strips_left && !steps.strips_right && steps.space.empty();
    if (type == "Precompiled") {
      if (!is_first || !settings.characters_map.empty())
        return unsupported_part("normalizer", "Precompiled after another step");
      auto map = bytes_of_base64(string_at(*step, "precompiled_charsmap"));
      if (!map) return std::move(map).error().in("normalizer: precompiled_charsmap");
      if (map->empty()) return unsupported_part("normalizer", "Precompiled without a table");
      settings.characters_map = *std::move(map);
    } else if (type == "Strip") {
      if (!steps.space.empty()) return unsupported_part("normalizer", "Strip after Replace");
      steps.strips_left = steps.strips_left || flag_at(*step, "strip_left", true);
      steps.strips_right = steps.strips_right || flag_at(*step, "strip_right", true);
    } else if (type == "Replace" && pattern != nullptr && string_at(*pattern, "Regex") == " {2,}") {
      steps.space = string_at(*step, "content");
      if (steps.space != " " && steps.space != kSpmSpace)
        return unsupported_part("normalizer: Replace of spaces in a row by", steps.space);
    } else {
      return unsupported_part("normalizer", type);
    }
  }
  return steps;
}

// Sets what a unigram model does with spaces.
inline Result<void> read_unigram_parts(const io::JsonValue& normalizer,
                                       const io::JsonValue& pre_tokenizer,
                                       VocabularySettings& settings) {
  NIBBLE_TRY(steps, read_unigram_normalizer(normalizer, settings));
  bool splits = false, has_bars = false;
  for (const io::JsonValue* step : steps_of(pre_tokenizer, "pretokenizers")) {
    const std::string_view type = string_at(*step, "type");
    if (has_bars || !(type == "Metaspace" || (type == "WhitespaceSplit" && !splits)))
      return unsupported_part("pre_tokenizer", type);
    splits = true;
    has_bars = type == "Metaspace";
    if (has_bars) NIBBLE_CHECK(read_metaspace(*step, settings));
    if (!has_bars) settings.white_space = WhiteSpace::everywhere;
  }
  if (!has_bars) return unsupported_part("pre_tokenizer", "a unigram model without Metaspace");
  settings.merges_spaces = true;
  if (settings.white_space == WhiteSpace::everywhere) {
    // Each word gets its own prefix.
    if (!settings.add_space_prefix || settings.prefix_once)
      return unsupported_part("pre_tokenizer", "WhitespaceSplit without a space before each word");
    if (steps.space == kSpmSpace)
      return unsupported_part("normalizer", "Replace by U+2581 before WhitespaceSplit");
    return ok();
  }
  if (steps.strips_left && settings.prefix_once)  // the prefix depends on what is dropped
    return unsupported_part("pre_tokenizer: prepend_scheme after Strip", "first");
  const bool strips = steps.strips_left || steps.strips_right;
  settings.merges_spaces = !steps.space.empty();
  if (strips && !settings.merges_spaces)
    return unsupported_part("normalizer", "Strip without Replace of spaces in a row");
  settings.keeps_first_space = settings.merges_spaces && !steps.strips_left;
  settings.keeps_last_space = settings.merges_spaces && !steps.strips_right;
  if (strips) settings.white_space = WhiteSpace::ends;
  return ok();
}

// The tokens that are added before and after a text; empty: none.
struct AddedEnds {
  std::string begin, end;
  std::string error;
};

inline AddedEnds ends_of(const io::JsonValue& part) {
  AddedEnds ends;
  for (const io::JsonValue* step : steps_of(part, "processors")) {
    const std::string_view type = string_at(*step, "type");
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      const io::JsonValue* const begin = step->find("cls");
      const io::JsonValue* const end = step->find("sep");  // both: [token, id]
      if (begin != nullptr && !begin->elements().empty())
        ends.begin = begin->elements()[0].string();
      if (end != nullptr && !end->elements().empty()) ends.end = end->elements()[0].string();
    } else if (type == "TemplateProcessing") {
      const io::JsonValue* const single = step->find("single");
      bool is_behind = false;
      for (std::size_t i = 0; single != nullptr && i < single->elements().size(); ++i) {
        const io::JsonValue* const token = single->elements()[i].find("SpecialToken");
        std::string& place = is_behind ? ends.end : ends.begin;
        if (token == nullptr) {
          is_behind = true;
        } else if (!place.empty()) {
          ends.error = "more than one token at an end";
        } else {
          place = string_at(*token, "id");
        }
      }
    } else if (type != "ByteLevel") {
      ends.error = std::string(type) + " is not supported";
    }
  }
  return ends;
}

// What tokenizer_config.json says.
struct TokenRoles {
  std::string bos, eos, pad, mask;
  std::optional<bool> add_bos, add_eos;
};

// A token is its text, or an object with that as its content; null: none.
inline Result<std::string> read_token(io::JsonReader& json) {
  std::string text;
  if (json.accept_null()) return text;
  if (json.peek() == '"') return json.string();
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    if (key != "content") return json.skip();
    NIBBLE_TRY(content, json.string());
    text = std::move(content);
    return ok();
  }));
  return text;
}

inline Result<TokenRoles> read_roles(std::string_view text) {
  TokenRoles roles;
  const std::pair<std::string_view, std::string*> tokens[] = {{"bos_token", &roles.bos},
                                                              {"eos_token", &roles.eos},
                                                              {"pad_token", &roles.pad},
                                                              {"mask_token", &roles.mask}};
  const std::pair<std::string_view, std::optional<bool>*> flags[] = {
      {"add_bos_token", &roles.add_bos}, {"add_eos_token", &roles.add_eos}};
  io::JsonReader json(text);
  NIBBLE_CHECK(json.object([&](const std::string& key) -> Result<void> {
    for (const auto& [name, token] : tokens) {
      if (key != name) continue;
      NIBBLE_TRY(value, read_token(json));
      *token = std::move(value);
      return ok();
    }
    for (const auto& [name, flag] : flags) {
      if (key != name) continue;
      if (json.accept_null()) return ok();
      NIBBLE_TRY(value, json.boolean());
      *flag = value;
      return ok();
    }
    return json.skip();
  }));
  if (!json.at_end()) return json.error("more text behind the configuration");
  return roles;
}

}}}}  // namespace nibble::NIBBLE_ABI::text::detail
