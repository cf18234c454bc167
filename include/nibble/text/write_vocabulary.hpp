// SPDX-License-Identifier: Apache-2.0
//
// Writes a vocabulary as the keys tokenizer.ggml.* of a GGUF file. What GGUF has no key for is in
// keys nibble.tokenizer.*, which other programs ignore: the ids that they get may differ there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/io/gguf_writer.hpp"
#include "nibble/text/gguf_vocabulary.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace text {

namespace detail {

// GGUF has no BPE of a whole text, but SentencePiece is nearly the same: pieces that are merged
// earlier get higher scores.
inline std::vector<float> scores_of_merges(const Vocabulary& vocabulary) {
  const std::size_t n = vocabulary.merges().size();
  std::vector<float> scores(vocabulary.size(), -static_cast<float>(n));
  for (std::size_t rank = n; rank-- > 0;)
    scores[static_cast<std::size_t>(vocabulary.merges()[rank].result)] = -static_cast<float>(rank);
  return scores;
}

// What differs from what a reader assumes of this model and pre-tokenizer.
inline void write_own_keys(const Vocabulary& vocabulary, std::string_view model,
                           io::GgufWriter& writer) {
  const VocabularySettings& settings = vocabulary.settings();
  const auto read = default_settings(model, settings.pre);
  const VocabularySettings defaults = read ? *read : VocabularySettings();
  for (const auto& [key, flag] : kOwnFlags)
    if (settings.*flag != defaults.*flag) writer.set(key, settings.*flag);
  if (settings.white_space != defaults.white_space)
    writer.set(kWhiteSpaceKey, static_cast<std::uint32_t>(settings.white_space));
  const std::pair<std::string_view, std::span<const std::int32_t>> strips[] = {
      {kStripAfterKey, vocabulary.strips_after()}, {kStripBeforeKey, vocabulary.strips_before()}};
  for (const auto& [key, ids] : strips)
    if (!ids.empty()) writer.set_array(key, std::vector<std::int32_t>(ids.begin(), ids.end()));
}

}  // namespace detail

// Sets the keys that Vocabulary::from_gguf reads. With n_rows, the rows of the embeddings, unused
// pieces "[PAD<id>]" fill the vocabulary up to it, as other programs want it.
inline void write_vocabulary(const Vocabulary& vocabulary, io::GgufWriter& writer,
                             std::size_t n_rows = 0) {
  const VocabularySettings& settings = vocabulary.settings();
  const PreTokenizer* const pre_tokenizer = vocabulary.pre_tokenizer();
  const bool is_whole_text = pre_tokenizer != nullptr && pre_tokenizer->cuts.empty();
  const bool has_merges = pre_tokenizer != nullptr && !is_whole_text;
  const std::string_view model = settings.kind == VocabularyKind::wordpiece ? "bert"
                                 : settings.kind == VocabularyKind::unigram ? "t5"
                                 : !has_merges                              ? "llama"
                                 : pre_tokenizer->byte_level                ? "gpt2"
                                                                            : "gemma4";
  writer.set("tokenizer.ggml.model", model);
  if (has_merges) writer.set("tokenizer.ggml.pre", std::string_view(settings.pre));

  std::vector<std::string> texts;
  std::vector<std::int32_t> types;
  std::vector<float> scores;
  if (is_whole_text) scores = detail::scores_of_merges(vocabulary);
  for (std::int32_t id = 0; vocabulary.contains(id); ++id) {
    const std::string_view text = vocabulary.text(id);
    PieceType type = vocabulary.type(id);
    // Runs of spaces are found by merging; other programs would show them as they are written.
    if (is_whole_text && type == PieceType::user_defined && text.find(kSpmSpace) != text.npos)
      type = PieceType::normal;
    texts.emplace_back(text);
    types.push_back(static_cast<std::int32_t>(type));
    if (!is_whole_text) scores.push_back(vocabulary.score(id));
  }
  for (std::size_t id = texts.size(); id < n_rows; ++id) {
    texts.push_back("[PAD" + to_text(id) + "]");
    types.push_back(static_cast<std::int32_t>(PieceType::unused));
    scores.push_back(0);
  }
  writer.set_array("tokenizer.ggml.tokens", texts);
  writer.set_array("tokenizer.ggml.token_type", types);
  if (!has_merges) writer.set_array("tokenizer.ggml.scores", scores);

  if (has_merges) {
    std::vector<std::string> merges;
    for (const Vocabulary::Merge& merge : vocabulary.merges()) {
      merges.emplace_back(vocabulary.text(merge.left));
      merges.back().append(" ").append(vocabulary.text(merge.right));
    }
    writer.set_array("tokenizer.ggml.merges", merges);
  }
  for (const auto& [key, id] : detail::kRoles)
    writer.set(key, static_cast<std::uint32_t>(settings.*id));
  writer.set("tokenizer.ggml.add_bos_token", settings.add_bos);
  writer.set("tokenizer.ggml.add_eos_token", settings.add_eos);
  writer.set("tokenizer.ggml.add_space_prefix", settings.add_space_prefix);
  if (settings.kind == VocabularyKind::wordpiece) {
    for (const auto& [key, id] : detail::kBertRoles)
      writer.set(key, static_cast<std::uint32_t>(settings.*id));
    writer.set(detail::kLowerCaseKey, settings.lower_case);
    writer.set(detail::kStripAccentsKey, settings.strip_accents);
  }
  if (settings.kind == VocabularyKind::unigram || settings.merges_spaces)
    writer.set(detail::kMergesSpacesKey, settings.merges_spaces);
  if (!settings.characters_map.empty()) {
    std::vector<std::uint8_t> bytes;
    for (const char c : settings.characters_map) bytes.push_back(static_cast<std::uint8_t>(c));
    writer.set_array(detail::kCharactersMapKey, bytes);
  }
  detail::write_own_keys(vocabulary, model, writer);
}

}}}  // namespace nibble::NIBBLE_ABI::text
