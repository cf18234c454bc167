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

namespace nibble { inline namespace NIBBLE_ABI { namespace hub {

inline constexpr std::string_view kTokenizerConfigFile = "tokenizer_config.json";
// These may be large: all added tokens, all templates.
inline constexpr std::size_t kMaxTokenizerBytes = std::size_t{256} << 20;

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

}  // namespace detail

// Sets the keys tokenizer.*: nothing if the folder has no tokenizer. n_rows: rows of the token
// embedding, which may be more than the tokens. Errors name the file.
inline Result<void> tokenizer_keys(const Folder& folder, std::uint64_t, io::GgufWriter& out) {
  return detail::template_keys(folder, out);
}

}}}  // namespace nibble::NIBBLE_ABI::hub
