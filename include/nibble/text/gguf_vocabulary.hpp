// SPDX-License-Identifier: Apache-2.0
//
// Reads the vocabulary of a GGUF file, its keys tokenizer.ggml.*. Of them, only the model and the
// tokens are required, and the merges with byte-level BPE. Without scores all are 0. Without types,
// "<0xNN>" is a byte, the tokens with a role that are written "<...>" are control tokens (unk:
// unknown), and all others are normal. The other keys have defaults, as in llama.cpp; the id
// 4294967295 (or -1) means that there is no such token. An id beyond the vocabulary, which
// fine-tuned models have for tokens that they never use, is replaced by the default, or by kNoToken
// if that is beyond the vocabulary too: other programs do the same. The vocabulary does not refer
// to the file afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

namespace detail {

struct Role {
  std::string_view key;
  std::int32_t VocabularySettings::*id;
};
NIBBLE_HIDDEN inline constexpr Role kRoles[] = {
    {"tokenizer.ggml.bos_token_id", &VocabularySettings::bos},
    {"tokenizer.ggml.eos_token_id", &VocabularySettings::eos},
    {"tokenizer.ggml.unknown_token_id", &VocabularySettings::unk},
    {"tokenizer.ggml.padding_token_id", &VocabularySettings::pad},
    {"tokenizer.ggml.eot_token_id", &VocabularySettings::eot},
    {"tokenizer.ggml.eom_token_id", &VocabularySettings::eom},
    {"tokenizer.ggml.mask_token_id", &VocabularySettings::mask}};
// BERT's names for the ends. (The misspelling is that of the format.)
NIBBLE_HIDDEN inline constexpr Role kBertRoles[] = {
    {"tokenizer.ggml.cls_token_id", &VocabularySettings::bos},
    {"tokenizer.ggml.seperator_token_id", &VocabularySettings::eos}};

NIBBLE_HIDDEN inline constexpr std::string_view kLowerCaseKey =
                                                    "tokenizer.ggml.normalizer.lowercase",
                                                kMergesSpacesKey =
                                                    "tokenizer.ggml.remove_extra_whitespaces",
                                                kStripAccentsKey =
                                                    "tokenizer.ggml.normalizer.strip_accents",
                                                kCharactersMapKey =
                                                    "tokenizer.ggml.precompiled_charsmap";
// Our own: what a tokenizer.json says and GGUF has no key for. Files have those that are not as the
// defaults; other programs ignore them.
struct OwnFlag {
  std::string_view key;
  bool VocabularySettings::*flag;
};
NIBBLE_HIDDEN inline constexpr OwnFlag kOwnFlags[] = {
    {"nibble.tokenizer.compose", &VocabularySettings::compose},
    {"nibble.tokenizer.fuse_unknown", &VocabularySettings::fuse_unknown},
    {"nibble.tokenizer.ignore_merges", &VocabularySettings::ignore_merges},
    {"nibble.tokenizer.prefix_once", &VocabularySettings::prefix_once},
    {"nibble.tokenizer.prefix_unless_space", &VocabularySettings::prefix_unless_space},
    {"nibble.tokenizer.splits_spaces", &VocabularySettings::splits_spaces},
    {"nibble.tokenizer.keeps_first_space", &VocabularySettings::keeps_first_space},
    {"nibble.tokenizer.keeps_last_space", &VocabularySettings::keeps_last_space},
    {"nibble.tokenizer.clean_text", &VocabularySettings::clean_text},
    {"nibble.tokenizer.split_chinese", &VocabularySettings::split_chinese}};
NIBBLE_HIDDEN inline constexpr std::string_view kWhiteSpaceKey = "nibble.tokenizer.white_space",
                                                kStripAfterKey = "nibble.tokenizer.strip_after",
                                                kStripBeforeKey = "nibble.tokenizer.strip_before";

// Sets `id`, which is the default, to the value in the file if it is the id of one of `n_pieces`
// pieces.
inline Result<void> read_token_id(const io::Gguf& file, std::string_view key, std::size_t n_pieces,
                                  std::int32_t& id) {
  if (file.find(key) != nullptr) {
    NIBBLE_TRY(value, file.get<std::int64_t>(key));
    if (value == -1 || value == (std::numeric_limits<std::uint32_t>::max)()) {
      id = kNoToken;
    } else if (value >= 0 && static_cast<std::uint64_t>(value) < n_pieces) {
      id = static_cast<std::int32_t>(value);
    }
  }
  if (id != kNoToken && static_cast<std::size_t>(id) >= n_pieces) id = kNoToken;
  return ok();
}

inline bool contains_ignoring_case(std::string_view text, std::string_view lower_case) noexcept {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  for (; text.size() >= lower_case.size(); text.remove_prefix(1)) {
    std::size_t i = 0;
    while (i < lower_case.size() && lower(text[i]) == lower_case[i]) ++i;
    if (i == lower_case.size()) return true;
  }
  return false;
}

// Phi-3 was trained on text whose special tokens drop the white space behind them. GGUF has no key
// for this; other programs also decide it from general.name. (If that is not a string, that is no
// reason to reject the vocabulary.)
inline void strip_if_phi3(const io::Gguf& file, std::vector<Piece>& pieces) {
  const auto name = file.get_string("general.name");
  if (!name || !(contains_ignoring_case(*name, "phi-3") || contains_ignoring_case(*name, "phi3")))
    return;
  for (Piece& piece : pieces) {
    const bool is_special = piece.type == PieceType::control ||
                            piece.type == PieceType::user_defined ||
                            piece.type == PieceType::unknown;
    piece.strip_after =
        is_special && piece.text != "<unk>" && piece.text != "<s>" && piece.text != "<|endoftext|>";
  }
}

// Which pieces drop the white space beside them, as write_vocabulary says it.
inline Result<void> read_strips(const io::Gguf& file, std::vector<Piece>& pieces) {
  const std::pair<std::string_view, bool Piece::*> keys[] = {
      {kStripAfterKey, &Piece::strip_after}, {kStripBeforeKey, &Piece::strip_before}};
  for (const auto& [key, flag] : keys) {
    if (file.find(key) == nullptr) continue;
    NIBBLE_TRY(ids, file.get_array<std::int64_t>(key));
    for (const std::int64_t id : ids) {
      if (id < 0 || static_cast<std::uint64_t>(id) >= pieces.size())
        return Error{Errc::malformed,
                     file.name() + ": " + std::string(key) + ": there is no id " + to_text(id)};
      pieces[static_cast<std::size_t>(id)].*flag = true;
    }
  }
  return ok();
}

// The defaults of llama.cpp for a file whose tokenizer.ggml.model is `model` and whose
// tokenizer.ggml.pre is `pre`.
inline Result<VocabularySettings> default_settings(std::string_view model, std::string_view pre) {
  VocabularySettings settings;
  if (model == "llama") return settings;
  settings.add_space_prefix = false;
  if (model == "gpt2" || model == "gemma4") {
    settings.kind = VocabularyKind::bpe;
    settings.pre = model == "gemma4" ? "gemma4" : pre;
    settings.bos = settings.eos = model == "gemma4" ? kNoToken : 11;
    settings.unk = kNoToken;
    const PreTokenizer* pre_tokenizer = find_pre_tokenizer(settings.pre);
    settings.add_bos = pre_tokenizer != nullptr && pre_tokenizer->adds_bos;
    settings.ignore_merges = pre_tokenizer != nullptr && pre_tokenizer->ignore_merges;
    return settings;
  }
  if (model == "bert") {
    settings.kind = VocabularyKind::wordpiece;
    settings.bos = 101;
    settings.eos = 102;  // the separator
    settings.unk = 100;
    settings.pad = 0;
    settings.mask = 103;
    settings.add_eos = settings.lower_case = settings.add_space_prefix = true;
    return settings;
  }
  if (model == "t5") {
    settings.kind = VocabularyKind::unigram;
    settings.bos = kNoToken;
    settings.eos = 1;
    settings.unk = 2;
    settings.pad = 0;
    settings.add_bos = false;
    settings.add_eos = true;
    return settings;
  }
  return Error{Errc::unsupported,
               "the tokenizer " + io::quoted(model) + " is not supported; token ids work"};
}

// Texts, scores and types. Returns whether the file has types.
inline Result<bool> read_pieces(const io::Gguf& file, std::vector<Piece>& pieces) {
  NIBBLE_TRY(texts, file.get_strings("tokenizer.ggml.tokens"));
  pieces.resize(texts.size());
  for (std::size_t i = 0; i < pieces.size(); ++i) pieces[i].text = texts[i];
  const auto check_size = [&](const char* what, std::size_t n) -> Result<void> {
    if (n == pieces.size()) return ok();
    return Error{Errc::malformed, file.name() + ": tokenizer.ggml has " + to_text(pieces.size()) +
                                      " tokens but " + to_text(n) + " " + what};
  };
  constexpr std::string_view kScores = "tokenizer.ggml.scores";
  if (file.find(kScores) != nullptr) {
    NIBBLE_TRY(scores, file.get_array<Scalar<float>>(kScores));
    NIBBLE_CHECK(check_size("scores", scores.size()));
    for (std::size_t i = 0; i < pieces.size(); ++i) pieces[i].score = scores[i].value;
  }
  constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
  if (file.find(kTypes) == nullptr) return false;
  NIBBLE_TRY(types, file.get_array<std::int64_t>(kTypes));
  NIBBLE_CHECK(check_size("types", types.size()));
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (!std::in_range<std::uint8_t>(types[i]))
      return Error{Errc::malformed,
                   file.name() + ": piece " + to_text(i) + " has a type that does not exist"};
    pieces[i].type = static_cast<PieceType>(types[i]);
  }
  return true;
}

// Types where the file has none.
inline void guess_types(const VocabularySettings& settings, std::vector<Piece>& pieces) {
  for (Piece& piece : pieces)
    if (settings.kind == VocabularyKind::spm && byte_of_name(piece.text) >= 0)
      piece.type = PieceType::byte;
  for (const auto& [key, id] : kRoles) {
    if (settings.*id == kNoToken) continue;
    Piece& piece = pieces[static_cast<std::size_t>(settings.*id)];
    if (piece.type == PieceType::normal && piece.text.starts_with('<') && piece.text.ends_with('>'))
      piece.type = id == &VocabularySettings::unk ? PieceType::unknown : PieceType::control;
  }
}

// What the file says other than the defaults.
inline Result<void> read_settings(const io::Gguf& file, std::size_t n_pieces,
                                  VocabularySettings& settings) {
  for (const auto& [key, id] : kRoles)
    NIBBLE_CHECK(read_token_id(file, key, n_pieces, settings.*id));
  if (settings.kind == VocabularyKind::wordpiece) {
    for (const auto& [key, id] : kBertRoles)
      NIBBLE_CHECK(read_token_id(file, key, n_pieces, settings.*id));
  }
  const std::pair<std::string_view, bool*> flags[] = {
      {"tokenizer.ggml.add_bos_token", &settings.add_bos},
      {"tokenizer.ggml.add_eos_token", &settings.add_eos},
      {"tokenizer.ggml.add_space_prefix", &settings.add_space_prefix},
      {kMergesSpacesKey, &settings.merges_spaces},
      {kLowerCaseKey, &settings.lower_case}};
  for (const auto& [key, flag] : flags) {
    NIBBLE_TRY(value, file.get_bool_or(key, *flag));
    *flag = value;
  }
  for (const auto& [key, flag] : kOwnFlags) {
    NIBBLE_TRY(value, file.get_bool_or(key, settings.*flag));
    settings.*flag = value;
  }
  NIBBLE_TRY(white_space, file.get_u32_or(kWhiteSpaceKey, 0));
  if (white_space > static_cast<std::uint32_t>(WhiteSpace::everywhere))
    return Error{Errc::malformed,
                 file.name() + ": " + std::string(kWhiteSpaceKey) + " is " + to_text(white_space)};
  settings.white_space = static_cast<WhiteSpace>(white_space);
  NIBBLE_TRY(strip_accents, file.get_bool_or(kStripAccentsKey, settings.lower_case));
  settings.strip_accents = strip_accents;
  // Other programs ignore the key here.
  if (settings.kind == VocabularyKind::bpe) settings.add_space_prefix = false;
  if (settings.kind == VocabularyKind::wordpiece) settings.add_space_prefix = true;
  if (file.find(kCharactersMapKey) == nullptr) return ok();
  NIBBLE_TRY(bytes, file.get_array<std::int64_t>(kCharactersMapKey));
  settings.characters_map.reserve(bytes.size());
  for (const std::int64_t byte : bytes)
    settings.characters_map.push_back(static_cast<char>(byte & 0xFF));
  return ok();
}

}  // namespace detail

inline Result<Vocabulary> Vocabulary::from_gguf(const io::Gguf& file) {
  NIBBLE_TRY(model, file.get_string("tokenizer.ggml.model"));
  NIBBLE_TRY(pre, file.get_string_or("tokenizer.ggml.pre", "default"));
  auto settings = detail::default_settings(model, pre);
  if (!settings) return std::move(settings).error().in(file.name());
  std::vector<Piece> pieces;
  NIBBLE_TRY(has_types, detail::read_pieces(file, pieces));
  NIBBLE_CHECK(detail::read_settings(file, pieces.size(), *settings));
  if (!has_types) detail::guess_types(*settings, pieces);
  detail::strip_if_phi3(file, pieces);
  NIBBLE_CHECK(detail::read_strips(file, pieces));
  std::vector<TextMerge> merges;
  if (settings->kind == VocabularyKind::bpe) {
    NIBBLE_TRY(lines, file.get_strings("tokenizer.ggml.merges"));
    merges.reserve(lines.size());
    for (const std::string_view line : lines) merges.push_back(detail::split_merge(line));
  }
  auto vocabulary = make(pieces, *settings, merges);
  if (!vocabulary) return std::move(vocabulary).error().in(file.name());
  return vocabulary;
}

}}}  // namespace nibble::NIBBLE_ABI::text
