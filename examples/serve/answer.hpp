// SPDX-License-Identifier: Apache-2.0
//
// One answer while it comes: what of it is thought, said, or a call of a tool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "dialect.hpp"
#include "json_out.hpp"
#include "nibble/chat/thoughts.hpp"
#include "nibble/io/json.hpp"
#include "nibble/text/decode.hpp"

namespace example::server {

struct Call {
  std::string name, arguments;  // arguments: a JSON object
};

// A token as clients see it, with its probability and those of others in its place.
struct ShownToken {
  std::string text;
  float logprob = 0;
  std::vector<std::pair<std::string, float>> top;
};

class Answer {
 public:
  // `use` must outlive it. `prompt`: of a conversation, since it may begin the model's thoughts.
  Answer(const ToolUse& use, std::string_view prompt, bool is_chat)
      : use_(&use), splitter_(prompt), is_chat_(is_chat) {}

  void add(const TokenEvent& event, const nibble::text::Vocabulary* shown) {
    if (event.id >= 0) ++n_tokens;
    if (shown != nullptr && event.id >= 0) tokens.push_back(token_of(event, *shown));
    if (is_chat_) {
      const auto show = [this](std::string_view part, bool is_thought) {
        is_thought ? void(reasoning.append(part)) : put(part);
      };
      splitter_.push(event.text, show);
      if (event.finish != nibble::Finish::none) splitter_.finish(show);
    } else {
      put(event.text);
    }
    if (event.finish == nibble::Finish::none) return;
    finish = event.finish;
    end();
  }

  // What has come and was not taken; whoever sends it clears it.
  std::string content, reasoning;
  std::vector<ShownToken> tokens;
  std::vector<Call> calls;  // with the end
  nibble::Finish finish = nibble::Finish::none;
  std::int64_t n_tokens = 0;  // of all, with the end token; these stay

  bool has_ended() const { return finish != nibble::Finish::none; }
  const char* finish_reason() const {
    switch (finish) {
      case nibble::Finish::max_tokens:
      case nibble::Finish::context_full:
      case nibble::Finish::time_limit: return "length";
      default: return has_called_ ? "tool_calls" : "stop";
    }
  }
  // Whether it ended for a reason that is an error.
  bool has_failed() const {
    return finish == nibble::Finish::failed || finish == nibble::Finish::cancelled;
  }

 private:
  // What may be a call is kept back until it is known.
  void put(std::string_view part) {
    if (!use_->tools || is_text_) return void(content.append(part));
    held_ += part;
    const std::string_view begun = nibble::chat::without_leading_space(held_);
    const std::size_t n = std::min(begun.size(), use_->mark.size());
    if (use_->must_call || begun.substr(0, n) == std::string_view(use_->mark).substr(0, n)) return;
    is_text_ = true;
    content += std::exchange(held_, {});
  }

  void end() {
    if (held_.empty()) return;
    const std::string text(nibble::chat::without_leading_space(
        nibble::chat::without_trailing_space(std::string_view(held_))));
    const auto parsed = use_->tools->parse(text);
    if (!parsed) return void(content += held_);  // broken off, for example
    for (const nibble::chat::ToolCall& call : *parsed) {
      calls.push_back({call.name, arguments_of(std::string_view(text).substr(
                                      call.begin, call.end - call.begin))});
    }
    has_called_ = true;
  }
  std::string arguments_of(std::string_view call) const {
    std::string arguments = "{}";
    nibble::io::JsonReader json(call.substr(use_->form.before.size()));
    (void)json.object([&](const std::string& key) -> nibble::Result<void> {
      NIBBLE_TRY(value, json.raw());
      if (key == use_->form.arguments) arguments = std::string(value);
      return nibble::ok();
    });
    return arguments;
  }

  static std::string piece(const nibble::text::Vocabulary& vocabulary, std::int32_t id) {
    std::string text;
    if (vocabulary.contains(id)) nibble::text::append_token_text(vocabulary, id, true, text);
    return text;
  }
  static ShownToken token_of(const TokenEvent& event, const nibble::text::Vocabulary& vocabulary) {
    ShownToken token{piece(vocabulary, event.id), event.logprob, {}};
    for (const auto& top : event.top)
      token.top.emplace_back(piece(vocabulary, top.id), top.logprob);
    return token;
  }

  const ToolUse* use_;
  nibble::chat::ThoughtSplitter splitter_;
  bool is_chat_, is_text_ = false, has_called_ = false;
  std::string held_;
};

}  // namespace example::server
