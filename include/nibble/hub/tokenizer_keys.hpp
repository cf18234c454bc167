// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer of a hub folder as the keys of a GGUF file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/json.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/text/sentencepiece_model.hpp"
#include "nibble/text/tokenizer_json.hpp"
#include "nibble/text/vocabulary.hpp"
#include "nibble/text/write_vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

NIBBLE_HIDDEN inline constexpr std::string_view kTokenizerConfigFile = "tokenizer_config.json";
// These may be large: all added tokens, all templates.
inline constexpr std::size_t kMaxTokenizerBytes = std::size_t{256} << 20;

// Rows of a token embedding: far more than any vocabulary has.
inline constexpr std::uint64_t kMaxRows = 1u << 24;
// Rows beyond the tokens: models round their number up, to multiples of some hundred at most.
inline constexpr std::uint64_t kMaxUnusedRows = 1u << 14;

// The key of tokens that end an answer, say the folder's files, but do not with a GGUF file.
NIBBLE_HIDDEN inline constexpr std::string_view kUnusedEndsKey = "nibble.unused_end_token_ids";

namespace detail {

// The template of a chat, of which a folder may have several by name.
// `config`: the text of tokenizer_config.json, empty without that file. Errors name the file: limit
// (templates of more than kMaxConfigBytes), malformed.
inline Result<void> template_keys(const Folder& folder, const std::string& config,
                                  io::GgufWriter& out) {
  constexpr std::string_view kTemplateFile = "chat_template.jinja";
  if (folder.has(kTemplateFile)) {
    NIBBLE_TRY(text, folder.text(kTemplateFile, kMaxConfigBytes));
    out.set("tokenizer.chat_template", std::string_view(text));
    return ok();
  }
  if (config.empty()) return ok();
  io::JsonReader json(config);
  io::JsonValue templates;
  Result<void> read = json.object([&](const std::string& key) -> Result<void> {
    if (key != "chat_template") return json.skip();
    // As a tree, a text takes many times its bytes.
    NIBBLE_TRY(text, json.raw());
    if (text.size() > kMaxConfigBytes) {
      return Error{Errc::limit, "chat_template: " + to_text(text.size()) + " bytes, more than " +
                                    to_text(kMaxConfigBytes)};
    }
    NIBBLE_TRY(value, io::JsonValue::parse(text));
    templates = std::move(value);
    return ok();
  });
  if (!read) return std::move(read).error().in(folder.name_of(kTokenizerConfigFile));
  if (!templates.string().empty()) {
    out.set("tokenizer.chat_template", std::string_view(templates.string()));
  }
  for (const io::JsonValue& named : templates.elements()) {
    const io::JsonValue* const name = named.find("name");
    const io::JsonValue* const body = named.find("template");
    if (name == nullptr || body == nullptr) continue;
    const std::string suffix = name->string() == "default" ? "" : '.' + name->string();
    out.set("tokenizer.chat_template" + suffix, std::string_view(body->string()));
  }
  return ok();
}

// The vocabulary. Errors: not_found (the folder has none), and those of its files.
inline Result<text::Vocabulary> read_vocabulary(const Folder& folder, const std::string& config) {
  constexpr std::string_view kTokenizerFile = "tokenizer.json", kModelFile = "tokenizer.model";
  const bool has_json = folder.has(kTokenizerFile);
  if (!has_json && !folder.has(kModelFile)) {
    return Error{Errc::not_found,
                 folder.name() + ": the folder has no tokenizer.json and no tokenizer.model"};
  }
  NIBBLE_TRY(file, folder.text(has_json ? kTokenizerFile : kModelFile, kMaxTokenizerBytes));
  if (!has_json) {
    auto vocabulary = text::read_sentencepiece_model(file, config);
    if (!vocabulary) return std::move(vocabulary).error().in(folder.name_of(kModelFile));
    return vocabulary;
  }
  auto vocabulary = text::read_tokenizer_json(file, config);
  if (!vocabulary) return std::move(vocabulary).error().in(folder.name());
  return vocabulary;
}

// Tokens that end an answer besides those that the vocabulary knows to. GGUF has no list of them,
// but names for three: what has no room there is listed under kUnusedEndsKey, for people to see.
// Errors name the file: those of Folder::json, malformed (a fraction).
inline Result<void> end_keys(const Folder& folder, const text::Vocabulary& vocabulary,
                             io::GgufWriter& out) {
  constexpr std::string_view kGenerationFile = "generation_config.json";
  if (!folder.has(kGenerationFile)) return ok();
  NIBBLE_TRY(config, folder.json(kGenerationFile));
  const io::JsonValue* const ids = config.find("eos_token_id");
  if (ids == nullptr) return ok();
  const bool is_one = ids->kind() == io::JsonValue::Kind::number;
  const text::VocabularySettings& settings = vocabulary.settings();
  std::int32_t eot = settings.eot, eom = settings.eom;
  std::vector<std::uint32_t> unused;
  for (const io::JsonValue& value : is_one ? std::span(ids, 1) : ids->elements()) {
    const double number = value.number();
    if (!(number >= 0) || number > kMaxRows) continue;  // -1 is none
    const auto id = static_cast<std::int32_t>(number);
    if (id != number) {
      return Error{Errc::malformed, folder.name_of(kGenerationFile) + ": eos_token_id " +
                                        to_text(number) + " is no token id"};
    }
    if (!vocabulary.contains(id) || vocabulary.ends_generation(id)) continue;
    if (id == settings.eos || id == eot || id == eom) continue;
    std::int32_t& free = eot == text::kNoToken ? eot : eom;
    if (free != text::kNoToken) {
      unused.push_back(static_cast<std::uint32_t>(id));
      continue;
    }
    free = id;
    out.set(&free == &eot ? "tokenizer.ggml.eot_token_id" : "tokenizer.ggml.eom_token_id",
            static_cast<std::uint32_t>(id));
  }
  if (!unused.empty()) out.set_array(kUnusedEndsKey, unused);
  return ok();
}

}  // namespace detail

// Sets the keys tokenizer.*. n_rows: rows of the token embedding, which may be more than the
// tokens. A vocabulary that cannot be read is no error: the model takes token ids, and the key
// kTokenizerErrorKey says why. Other errors name the file.
inline Result<void> tokenizer_keys(const Folder& folder, std::uint64_t n_rows,
                                   io::GgufWriter& out) {
  std::string config;
  if (folder.has(kTokenizerConfigFile)) {
    NIBBLE_TRY(text, folder.text(kTokenizerConfigFile, kMaxTokenizerBytes));
    config = std::move(text);
  }
  NIBBLE_CHECK(detail::template_keys(folder, config, out));
  const auto vocabulary = detail::read_vocabulary(folder, config);
  if (!vocabulary) {
    out.set(kTokenizerErrorKey, std::string_view(vocabulary.error().message));
    return ok();
  }
  const std::uint64_t n_tokens = vocabulary->size();
  if (n_rows > n_tokens + kMaxUnusedRows) {
    out.set(kTokenizerErrorKey,
            std::string_view(folder.name() + ": " + to_text(n_tokens) + " tokens for " +
                             to_text(n_rows) + " rows of the token embedding"));
    return ok();
  }
  text::write_vocabulary(*vocabulary, out, io::narrow<std::size_t>(n_rows));
  return detail::end_keys(folder, *vocabulary, out);
}

}}}  // namespace nibble::NIBBLE_ABI::hub
