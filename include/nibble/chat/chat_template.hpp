// SPDX-License-Identifier: Apache-2.0
//
// From the messages of a conversation to the text that a chat model was trained on.
//
//   NIBBLE_TRY(chat, chat::ChatTemplate::from_gguf(file, tokenizer.vocabulary()));
//   NIBBLE_TRY(text, chat.render({{{"user", "Hello"}}}));
//   NIBBLE_TRY(ids, chat::ChatEncoder(tokenizer).encode(text));
#pragma once

#include <cstdint>
#include <ctime>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/builtin_templates.hpp"
#include "nibble/chat/jinja.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/vocabulary.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// Templates see what is not empty; role and content always.
struct ChatMessage {
  std::string role;  // "system", "user", "assistant", "tool", ...
  std::string content;
  std::string reasoning_content = {};  // what the model thought before this answer
  std::string tool_calls = {};         // a JSON array of calls, as in OpenAI's API
  std::string tool_call_id = {};       // of the call that this message answers
  std::string name = {};               // of the tool, or of the person
};

struct ChatOptions {
  bool add_generation_prompt = true;  // end where the model's answer begins
  std::string tools = {};             // a JSON array of functions, as in OpenAI's API
  // A JSON object of further variables, e.g. {"enable_thinking": false}: what templates know.
  std::string variables = {};
  std::optional<std::tm> now = {};  // for templates that tell the date; unset: the clock
  RenderLimits limits = {};
};

// Immutable; threads may render at the same time.
class ChatTemplate {
 public:
  // The templates of a file (tokenizer.chat_template and, for conversations with tools,
  // tokenizer.chat_template.tool_use), or a built-in one, by the vocabulary and the model's name,
  // if it has none. `variant`: the one of this name (tokenizer.chat_template.<variant>) for all
  // conversations. Errors: those of JinjaTemplate::parse, not_found (no such variant).
  static Result<ChatTemplate> from_gguf(const io::Gguf& file, const text::Vocabulary& vocabulary,
                                        std::string_view variant = {});
  // From a template's source.
  static Result<ChatTemplate> make(std::string_view source, const text::Vocabulary& vocabulary,
                                   std::string name = "given");
  // A built-in one: chatml, llama-2, llama-3, gemma, granite, command-r, deepseek, phi-3, mistral,
  // mistral-v3, zephyr, plain. Errors: not_found.
  static Result<ChatTemplate> builtin(std::string_view name, const text::Vocabulary& vocabulary);

  // The text of a conversation. Of each byte it is known who wrote it: all that is in messages (but
  // roles) and in tools counts as foreign. Errors: malformed (JSON), those of JinjaTemplate::render
  // (many templates refuse conversations in which the roles do not alternate).
  Result<MarkedText> render(std::span<const ChatMessage> messages,
                            const ChatOptions& options = {}) const;
  // The same for messages in JSON: an array of objects with at least "role" and "content".
  Result<MarkedText> render_json(std::string_view messages, const ChatOptions& options = {}) const;

  // Where it comes from: "file", the variant of the file, or the name of a built-in template.
  const std::string& name() const noexcept { return name_; }

 private:
  ChatTemplate(JinjaTemplate main, const text::Vocabulary& vocabulary, std::string name)
      : main_(std::move(main)),
        name_(std::move(name)),
        bos_(text_of(vocabulary, vocabulary.settings().bos)),
        eos_(text_of(vocabulary, vocabulary.settings().eos)) {}

  static std::string text_of(const text::Vocabulary& vocabulary, std::int32_t id) {
    return vocabulary.contains(id) ? std::string(vocabulary.text(id)) : std::string();
  }
  Result<MarkedText> render_value(Value messages, const ChatOptions& options) const;

  JinjaTemplate main_;
  std::optional<JinjaTemplate> with_tools_;
  std::string name_;
  std::string bos_, eos_;
};

namespace detail {

// A message as templates see it. The role is the program's own word.
inline Result<Value> message_value(const ChatMessage& message) {
  std::vector<Entry> entries;
  const auto add = [&](const char* key, Value value) {
    entries.push_back({Value::string(key), std::move(value)});
  };
  const auto add_text = [&](const char* key, const std::string& text) {
    if (!text.empty()) add(key, Value::string(text, Origin::foreign));
  };
  add("role", Value::string(message.role));
  add("content", Value::string(message.content, Origin::foreign));
  add_text("reasoning_content", message.reasoning_content);
  if (!message.tool_calls.empty()) {
    auto calls = value_from_json(message.tool_calls, Origin::foreign);
    if (!calls) return std::move(calls).error().in("the tool calls of a message");
    add("tool_calls", *std::move(calls));
  }
  add_text("tool_call_id", message.tool_call_id);
  add_text("name", message.name);
  return Value::dict(std::move(entries));
}

inline Result<Value> messages_value(std::span<const ChatMessage> messages) {
  std::vector<Value> values;
  for (const ChatMessage& message : messages) {
    NIBBLE_TRY(value, message_value(message));
    values.push_back(std::move(value));
  }
  return Value::list(std::move(values));
}

// The messages of a JSON array, with roles as the program's own words.
inline Result<Value> messages_from_json(std::string_view json) {
  NIBBLE_TRY(read, value_from_json(json, Origin::foreign));
  if (!read.is(Type::list)) return Error{Errc::malformed, "the messages are no JSON array"};
  std::vector<Value> messages;
  for (const Value& message : read.items()) {
    const Value* const role = message.find("role");
    if (role == nullptr || !role->is_string())
      return Error{Errc::malformed, "a message without a role"};
    std::vector<Entry> entries = message.entries();
    for (Entry& entry : entries) {
      if (entry.key.bytes() == "role") entry.value = Value::string(role->bytes());
    }
    NIBBLE_TRY(changed, Value::dict(std::move(entries)));
    messages.push_back(std::move(changed));
  }
  return Value::list(std::move(messages));
}

}  // namespace detail

// Messages as JSON, which render_json() takes: a conversation to keep.
inline Result<std::string> messages_to_json(std::span<const ChatMessage> messages) {
  return catch_out_of_memory([&]() -> Result<std::string> {
    NIBBLE_TRY(list, detail::messages_value(messages));
    JsonStyle style;
    style.is_indented = true;
    style.indent = MarkedText("  ", Origin::own);
    style.item_separator = MarkedText(",", Origin::own);
    Budget unlimited({.max_steps = SIZE_MAX, .max_bytes = SIZE_MAX});
    NIBBLE_TRY(json, to_json(unlimited, list, style));
    return std::string(json.bytes());
  });
}

inline Result<ChatTemplate> ChatTemplate::make(std::string_view source,
                                               const text::Vocabulary& vocabulary,
                                               std::string name) {
  return catch_out_of_memory([&]() -> Result<ChatTemplate> {
    auto parsed = JinjaTemplate::parse(source);
    if (!parsed) return std::move(parsed).error().in("chat template");
    return ChatTemplate(*std::move(parsed), vocabulary, std::move(name));
  });
}

inline Result<ChatTemplate> ChatTemplate::builtin(std::string_view name,
                                                  const text::Vocabulary& vocabulary) {
  const BuiltinTemplate* const known = find_builtin_template(name);
  if (known == nullptr) {
    std::string names;
    for (const BuiltinTemplate& one : kBuiltinTemplates) {
      if (!one.source.empty()) names.append(names.empty() ? "" : ", ").append(one.name);
    }
    return Error{Errc::not_found,
                 "there is no chat template '" + printable(name) + "', only " + names};
  }
  return make(known->source, vocabulary, std::string(known->name));
}

inline Result<ChatTemplate> ChatTemplate::from_gguf(const io::Gguf& file,
                                                    const text::Vocabulary& vocabulary,
                                                    std::string_view variant) {
  const std::string key = "tokenizer.chat_template";
  const auto read = [&](const std::string& which) -> Result<ChatTemplate> {
    NIBBLE_TRY(source, file.get_string(which));
    auto made = make(source, vocabulary, which == key ? "file" : which.substr(key.size() + 1));
    if (!made) return std::move(made).error().in(file.name());
    return made;
  };
  if (!variant.empty()) return read(key + "." + std::string(variant));
  if (file.find(key) == nullptr) {
    const auto model = file.get_string_or("general.name", "");
    return builtin(detect_builtin_template(vocabulary, model ? *model : "").name, vocabulary);
  }
  NIBBLE_TRY(main, read(key));
  if (file.find(key + ".tool_use") != nullptr) {
    NIBBLE_TRY(with_tools, read(key + ".tool_use"));
    main.with_tools_ = std::move(with_tools.main_);
  }
  return main;
}

inline Result<MarkedText> ChatTemplate::render(std::span<const ChatMessage> messages,
                                               const ChatOptions& options) const {
  return catch_out_of_memory([&]() -> Result<MarkedText> {
    NIBBLE_TRY(list, detail::messages_value(messages));
    return render_value(std::move(list), options);
  });
}

inline Result<MarkedText> ChatTemplate::render_json(std::string_view messages,
                                                    const ChatOptions& options) const {
  return catch_out_of_memory([&]() -> Result<MarkedText> {
    NIBBLE_TRY(list, detail::messages_from_json(messages));
    return render_value(std::move(list), options);
  });
}

inline Result<MarkedText> ChatTemplate::render_value(Value messages,
                                                     const ChatOptions& options) const {
  std::vector<Variable> variables{
      {"messages", std::move(messages)},
      {"add_generation_prompt", Value::boolean(options.add_generation_prompt)},
      {"bos_token", Value::string(bos_)},
      {"eos_token", Value::string(eos_)}};
  if (!options.tools.empty()) {
    auto tools = value_from_json(options.tools, Origin::foreign);
    if (!tools) return std::move(tools).error().in("tools");
    variables.push_back({"tools", *std::move(tools)});
  }
  if (!options.variables.empty()) {
    auto more = value_from_json(options.variables, Origin::own);
    if (!more) return std::move(more).error().in("variables of the chat template");
    if (!more->is(Type::dict))
      return Error{Errc::malformed, "the variables of the chat template are no JSON object"};
    for (const Entry& entry : more->entries())
      variables.push_back({std::string(entry.key.bytes()), entry.value});
  }
  const bool has_tools = !options.tools.empty() && with_tools_.has_value();
  auto text = (has_tools ? *with_tools_ : main_)
                  .render(variables, options.limits, options.now.value_or(local_time_now()));
  if (!text) return std::move(text).error().in("chat template (" + name_ + ")");
  return text;
}

}}}  // namespace nibble::NIBBLE_ABI::chat
