// SPDX-License-Identifier: Apache-2.0
//
// How a model is spoken to: its chat template, the tokens that end its answers, the form of its
// calls of tools, and the grammars that answers were kept to.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nibble/chat/chat_encoder.hpp"
#include "nibble/chat/chat_template.hpp"
#include "nibble/chat/tool_calls.hpp"
#include "nibble/grammar/constraint.hpp"
#include "nibble/grammar/json_schema.hpp"
#include "nibble/grammar/token_trie.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/model.hpp"
#include "nibble/text/tokenizer.hpp"
#include "request.hpp"

namespace example::server {

// The prompt of one answer.
struct PromptTokens {
  std::vector<std::int32_t> ids;
  std::string text;  // of a conversation, what its template gave
  std::vector<std::int32_t> stop_tokens;
};

// What the tools of a request are to the model.
struct ToolUse {
  std::optional<nibble::chat::Tools> tools;
  nibble::chat::ToolCallForm form;
  std::string mark;        // with which a call begins
  bool must_call = false;  // the answer is nothing else
};

// Threads may share it. Refers to the model's tokenizer, so it is for who holds the model.
class Dialect {
 public:
  // Errors: that of a model without tokenizer, those of ChatTemplate::from_gguf.
  static nibble::Result<std::shared_ptr<Dialect>> create(const nibble::io::Gguf& file,
                                                         const nibble::Model& model) {
    if (model.tokenizer() == nullptr) return *model.tokenizer_error();
    const nibble::text::Tokenizer& tokenizer = *model.tokenizer();
    NIBBLE_TRY(chat, nibble::chat::ChatTemplate::from_gguf(file, tokenizer.vocabulary()));
    NIBBLE_TRY(trie, nibble::grammar::TokenTrie::create(tokenizer.vocabulary()));
    return std::make_shared<Dialect>(Private{}, tokenizer, std::move(chat), std::move(trie));
  }

  const nibble::text::Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& template_name() const { return template_.name(); }

  // A text, or tokens, to go on with. Errors: those of Tokenizer::encode; invalid_argument.
  nibble::Result<PromptTokens> prompt(const Prompt& prompt) const {
    PromptTokens out;
    out.ids = prompt.tokens;
    if (out.ids.empty()) {
      NIBBLE_TRY(ids, tokenizer_->encode(prompt.text, {.add_eos = false}));
      out.ids = std::move(ids);
    }
    if (out.ids.empty()) return nibble::Error{nibble::Errc::invalid_argument, "prompt: is empty"};
    for (const std::int32_t id : out.ids) {
      if (tokenizer_->vocabulary().contains(id)) continue;
      return nibble::Error{nibble::Errc::invalid_argument,
                           "prompt: there is no token " + std::to_string(id)};
    }
    return out;
  }

  // A conversation, up to where the answer begins. A model without a template, and of no family
  // that has one, continues texts: it gets the last message of the user as a line, as the bundled
  // model for home commands was trained. Errors: those of ChatTemplate::render and
  // Tokenizer::encode; invalid_argument.
  nibble::Result<PromptTokens> conversation(const GenerationRequest& request) const {
    PromptTokens out;
    if (template_.name() == kPlain) {
      for (const auto& message : request.messages) {
        if (message.role == "user") out.text = message.content + "\n";
      }
      if (out.text.empty()) {
        return nibble::Error{nibble::Errc::invalid_argument, "messages: the user says nothing"};
      }
      NIBBLE_TRY(ids, tokenizer_->encode(out.text, {.add_eos = false}));
      out.ids = std::move(ids);
      return out;
    }
    nibble::chat::ChatOptions options;
    if (request.tool_choice != ToolChoice::none) options.tools = request.tools;
    options.variables = request.template_variables;
    NIBBLE_TRY(text, template_.render(request.messages, options));
    NIBBLE_TRY(ids, encoder_.encode(text));
    out.ids = std::move(ids);
    out.text = text.bytes();
    out.stop_tokens = ends_;
    return out;
  }

  // Errors: those of Tools::create; not_found (no tool of the name that must be called).
  nibble::Result<ToolUse> tools(const GenerationRequest& request) const {
    ToolUse out;
    if (request.tools.empty() || request.tool_choice == ToolChoice::none) return out;
    nibble::chat::ToolCallForm form = form_;
    form.max_calls = 16;
    std::string tools = request.tools;
    if (!request.tool_name.empty()) {
      NIBBLE_TRY(one, tool_of_name(tools, request.tool_name));
      tools = "[" + one + "]";
      form.max_calls = 1;
    }
    NIBBLE_TRY(made, nibble::chat::Tools::create(tools, form));
    out.tools = std::move(made);
    out.form = form;
    out.mark = form.before.empty() ? "{\"name\"" : form.before.substr(0, form.before.find('\n'));
    out.must_call = request.tool_choice == ToolChoice::required;
    return out;
  }

  // What keeps an answer to a schema, or to calls of tools; null if it is free. Grammars take time
  // to make, so some are kept. Errors: those of grammar::from_json_schema.
  using SharedConstraint = std::shared_ptr<const nibble::grammar::Constraint>;
  nibble::Result<SharedConstraint> constraint(const GenerationRequest& request,
                                              const ToolUse& use) {
    if (use.must_call) {
      return kept(
          "calls of " + request.tool_name + " " + request.tools,
          [&]() -> nibble::Result<nibble::grammar::Grammar> { return use.tools->grammar(); });
    }
    if (request.schema.empty()) return SharedConstraint();
    return kept(request.schema, [&] { return nibble::grammar::from_json_schema(request.schema); });
  }

 private:
  struct Private {};  // for make_shared

 public:
  Dialect(Private, const nibble::text::Tokenizer& tokenizer, nibble::chat::ChatTemplate chat,
          nibble::grammar::TokenTrie trie)
      : tokenizer_(&tokenizer),
        template_(std::move(chat)),
        encoder_(tokenizer),
        trie_(std::move(trie)) {
    ends_ = encoder_.ends_of_answer(template_);
    const auto& vocabulary = tokenizer.vocabulary();
    form_ = vocabulary.find("<|start_header_id|>") != nibble::text::kNoToken
                ? nibble::chat::ToolCallForm::llama3()
                : nibble::chat::ToolCallForm::hermes();
  }

 private:
  static constexpr const char* kPlain = "plain";
  static constexpr std::size_t kKept = 16;  // grammars

  static nibble::Result<std::string> tool_of_name(const std::string& tools,
                                                  const std::string& name) {
    std::string found;
    nibble::io::JsonReader json(tools);
    NIBBLE_CHECK(json.array([&]() -> nibble::Result<void> {
      NIBBLE_TRY(raw, json.raw());
      NIBBLE_TRY(tool, nibble::io::JsonValue::parse(raw));
      const auto* const function = tool.find("function");
      const auto* const called = (function != nullptr ? *function : tool).find("name");
      if (called != nullptr && called->string() == name) found = std::string(raw);
      return nibble::ok();
    }));
    if (!found.empty()) return found;
    return nibble::Error{nibble::Errc::invalid_argument,
                         "tool_choice: there is no tool '" + nibble::printable(name) + "'"};
  }

  template <class Make>
  nibble::Result<SharedConstraint> kept(const std::string& key, Make make) {
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [known, constraint] : kept_) {
        if (known == key) return constraint;
      }
    }
    NIBBLE_TRY(grammar, make());
    NIBBLE_TRY(made, nibble::grammar::Constraint::create(grammar, trie_));
    const auto constraint = std::make_shared<const nibble::grammar::Constraint>(std::move(made));
    const std::lock_guard lock(mutex_);
    kept_.emplace_front(key, constraint);
    if (kept_.size() > kKept) kept_.pop_back();
    return SharedConstraint(constraint);
  }

  const nibble::text::Tokenizer* tokenizer_;
  nibble::chat::ChatTemplate template_;
  nibble::chat::ChatEncoder encoder_;
  nibble::grammar::TokenTrie trie_;
  std::vector<std::int32_t> ends_;
  nibble::chat::ToolCallForm form_;
  std::mutex mutex_;
  std::deque<std::pair<std::string, SharedConstraint>> kept_;
};

}  // namespace example::server
