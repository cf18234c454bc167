// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer of a hub folder as the keys of a GGUF file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

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

namespace detail {

// The template of a chat, of which a folder may have several by name.
inline Result<void> template_keys(const Folder& folder, io::GgufWriter& out) {
  constexpr std::string_view kTemplateFile = "chat_template.jinja";
  if (folder.has(kTemplateFile)) {
    NIBBLE_TRY(text, folder.text(kTemplateFile, kMaxConfigBytes));
    out.set("tokenizer.chat_template", std::string_view(text));
    return ok();
  }
  if (!folder.has(kTokenizerConfigFile)) return ok();
  NIBBLE_TRY(text, folder.text(kTokenizerConfigFile, kMaxTokenizerBytes));
  io::JsonReader json(text);
  io::JsonValue templates;
  Result<void> read = json.object([&](const std::string& key) -> Result<void> {
    if (key != "chat_template") return json.skip();
    NIBBLE_TRY(value, io::JsonValue::read(json));
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
inline Result<text::Vocabulary> read_vocabulary(const Folder& folder) {
  constexpr std::string_view kTokenizerFile = "tokenizer.json", kModelFile = "tokenizer.model";
  const bool has_json = folder.has(kTokenizerFile);
  if (!has_json && !folder.has(kModelFile)) {
    return Error{Errc::not_found,
                 folder.name() + ": the folder has no tokenizer.json and no tokenizer.model"};
  }
  NIBBLE_TRY(file, folder.text(has_json ? kTokenizerFile : kModelFile, kMaxTokenizerBytes));
  std::string config;
  if (folder.has(kTokenizerConfigFile)) {
    NIBBLE_TRY(text, folder.text(kTokenizerConfigFile, kMaxTokenizerBytes));
    config = std::move(text);
  }
  if (!has_json) {
    auto vocabulary = text::read_sentencepiece_model(file, config);
    if (!vocabulary) return std::move(vocabulary).error().in(folder.name_of(kModelFile));
    return vocabulary;
  }
  auto vocabulary = text::read_tokenizer_json(file, config);
  if (!vocabulary) return std::move(vocabulary).error().in(folder.name());
  return vocabulary;
}

// Tokens that end an answer besides the vocabulary's own. (GGUF has no list of them, but names for
// three.)
inline Result<void> end_keys(const Folder& folder, const text::VocabularySettings& settings,
                             io::GgufWriter& out) {
  constexpr std::string_view kGenerationFile = "generation_config.json";
  if (!folder.has(kGenerationFile)) return ok();
  NIBBLE_TRY(config, folder.json(kGenerationFile));
  const io::JsonValue* const ids = config.find("eos_token_id");
  if (ids == nullptr) return ok();
  std::int32_t eot = settings.eot, eom = settings.eom;
  for (const io::JsonValue& value : ids->elements()) {
    const double id = value.number();
    if (!(id >= 0) || id > kMaxRows || id == settings.eos || id == eot || id == eom) continue;
    std::int32_t& free = eot == text::kNoToken ? eot : eom;
    if (free != text::kNoToken) continue;
    free = static_cast<std::int32_t>(id);
    out.set(&free == &eot ? "tokenizer.ggml.eot_token_id" : "tokenizer.ggml.eom_token_id",
            static_cast<std::uint32_t>(free));
  }
  return ok();
}

}  // namespace detail

// Sets the keys tokenizer.*. n_rows: rows of the token embedding, which may be more than the
// tokens. A vocabulary that cannot be read is no error: the model takes token ids, and the key
// kTokenizerErrorKey says why. Other errors name the file.
inline Result<void> tokenizer_keys(const Folder& folder, std::uint64_t n_rows,
                                   io::GgufWriter& out) {
  NIBBLE_CHECK(detail::template_keys(folder, out));
  const auto vocabulary = detail::read_vocabulary(folder);
  if (!vocabulary) {
    out.set(kTokenizerErrorKey, std::string_view(vocabulary.error().message));
    return ok();
  }
  text::write_vocabulary(*vocabulary, out, io::narrow<std::size_t>(n_rows));
  return detail::end_keys(folder, vocabulary->settings(), out);
}

}}}  // namespace nibble::NIBBLE_ABI::hub
