// SPDX-License-Identifier: Apache-2.0
//
// Answers in the forms of the OpenAI API: whole, and as the events of a stream.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "answer.hpp"
#include "json_out.hpp"
#include "request.hpp"

namespace example::server {

struct Usage {
  std::int64_t prompt = 0, completion = 0;  // tokens
};

// An event of a stream: its JSON, and its type where the API names it.
inline std::string sse(const Json& data, const char* type = nullptr) {
  return (type == nullptr ? std::string() : std::string("event: ") + type + "\n") +
         "data: " + data.text() + "\n\n";
}

class Format {
 public:
  Format(std::string id, std::string model) : id_(std::move(id)), model_(std::move(model)) {}
  virtual ~Format() = default;

  // The whole answer. `answers` have all that came.
  virtual Json whole(const std::vector<Answer>& answers, const Usage& usage) const = 0;
  // A stream: its beginning, what has come of one answer (also its end), the end of all.
  virtual std::string begin() { return {}; }
  virtual std::string part(std::size_t i, const Answer& answer) = 0;
  virtual std::string end(const std::vector<Answer>& answers, const Usage& usage) = 0;

 protected:
  Json head(const char* object) const {
    return Json::object(
        {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}});
  }
  static Json usage_of(const Usage& usage) {
    return Json::object({{"prompt_tokens", usage.prompt},
                         {"completion_tokens", usage.completion},
                         {"total_tokens", usage.prompt + usage.completion}});
  }

  std::string id_, model_;
  std::int64_t created_ = static_cast<std::int64_t>(std::time(nullptr));
};

class ChatFormat final : public Format {
 public:
  ChatFormat(std::string id, std::string model, const GenerationRequest& request)
      : Format("chatcmpl-" + std::move(id), std::move(model)),
        n_answers_(static_cast<std::size_t>(request.n)),
        has_logprobs_(request.logprobs),
        has_usage_(request.include_usage) {}

  Json whole(const std::vector<Answer>& answers, const Usage& usage) const override {
    std::vector<Json> choices;
    for (std::size_t i = 0; i < answers.size(); ++i) {
      const Answer& answer = answers[i];
      Json message = Json::object({{"role", "assistant"}, {"refusal", Json::null()}});
      const bool is_empty = answer.content.empty() && !answer.calls.empty();
      message.add("content", is_empty ? Json::null() : Json(answer.content));
      if (!answer.reasoning.empty()) message.add("reasoning_content", answer.reasoning);
      if (!answer.calls.empty()) message.add("tool_calls", calls_of(answer, i, false));
      choices.push_back(Json::object({{"index", i},
                                      {"message", message},
                                      {"logprobs", logprobs_of(answer)},
                                      {"finish_reason", answer.finish_reason()}}));
    }
    Json out = head("chat.completion");
    out.add("choices", Json::array(choices)).add("usage", usage_of(usage));
    return out;
  }

  std::string begin() override {
    std::string out;
    for (std::size_t i = 0; i < n_answers_; ++i) {
      out += chunk(i, Json::object({{"role", "assistant"}, {"content", ""}}), Json::null(),
                   Json::null());
    }
    return out;
  }
  std::string part(std::size_t i, const Answer& answer) override {
    std::string out;
    Json delta = Json::object({});
    if (!answer.reasoning.empty()) delta.add("reasoning_content", answer.reasoning);
    if (!answer.content.empty()) delta.add("content", answer.content);
    if (!answer.calls.empty()) delta.add("tool_calls", calls_of(answer, i, true));
    if (delta.text() != "{}" || !answer.tokens.empty()) {
      out += chunk(i, delta, logprobs_of(answer), Json::null());
    }
    if (answer.has_ended()) {
      out += chunk(i, Json::object({}), Json::null(), answer.finish_reason());
    }
    return out;
  }
  std::string end(const std::vector<Answer>&, const Usage& usage) override {
    if (!has_usage_) return {};
    Json last = head("chat.completion.chunk");
    last.add("choices", Json::array({})).add("usage", usage_of(usage));
    return sse(last);
  }

 private:
  std::string chunk(std::size_t i, const Json& delta, const Json& logprobs,
                    const Json& finish) const {
    Json out = head("chat.completion.chunk");
    out.add(
        "choices",
        Json::array({Json::object(
            {{"index", i}, {"delta", delta}, {"logprobs", logprobs}, {"finish_reason", finish}})}));
    if (has_usage_) out.add("usage", Json::null());
    return sse(out);
  }
  Json calls_of(const Answer& answer, std::size_t i, bool with_index) const {
    std::vector<Json> all;
    for (std::size_t c = 0; c < answer.calls.size(); ++c) {
      const Call& call = answer.calls[c];
      Json one = Json::object(
          {{"id", "call_" + id_.substr(9) + "_" + std::to_string(i) + "_" + std::to_string(c)},
           {"type", "function"},
           {"function", Json::object({{"name", call.name}, {"arguments", call.arguments}})}});
      if (with_index) one.add("index", c);
      all.push_back(one);
    }
    return Json::array(all);
  }
  static Json token_json(const std::string& text, float logprob) {
    std::vector<Json> bytes;
    for (const char c : text)
      bytes.emplace_back(static_cast<unsigned>(static_cast<unsigned char>(c)));
    return Json::object({{"token", text},
                         {"logprob", static_cast<double>(logprob)},
                         {"bytes", Json::array(bytes)}});
  }
  Json logprobs_of(const Answer& answer) const {
    if (!has_logprobs_) return Json::null();
    std::vector<Json> content;
    for (const ShownToken& token : answer.tokens) {
      std::vector<Json> top;
      for (const auto& [text, logprob] : token.top) top.push_back(token_json(text, logprob));
      Json one = token_json(token.text, token.logprob);
      content.push_back(one.add("top_logprobs", Json::array(top)));
    }
    return Json::object({{"content", Json::array(content)}, {"refusal", Json::null()}});
  }

  std::size_t n_answers_;
  bool has_logprobs_, has_usage_;
};

class CompletionFormat final : public Format {
 public:
  CompletionFormat(std::string id, std::string model, const GenerationRequest& request)
      : Format("cmpl-" + std::move(id), std::move(model)),
        has_logprobs_(request.logprobs),
        has_usage_(request.include_usage) {}

  Json whole(const std::vector<Answer>& answers, const Usage& usage) const override {
    std::vector<Json> choices;
    for (std::size_t i = 0; i < answers.size(); ++i) choices.push_back(choice(i, answers[i]));
    Json out = head("text_completion");
    out.add("choices", Json::array(choices)).add("usage", usage_of(usage));
    return out;
  }
  std::string part(std::size_t i, const Answer& answer) override {
    if (answer.content.empty() && answer.tokens.empty() && !answer.has_ended()) return {};
    Json out = head("text_completion");
    out.add("choices", Json::array({choice(i, answer)}));
    if (has_usage_) out.add("usage", Json::null());
    return sse(out);
  }
  std::string end(const std::vector<Answer>&, const Usage& usage) override {
    if (!has_usage_) return {};
    Json last = head("text_completion");
    last.add("choices", Json::array({})).add("usage", usage_of(usage));
    return sse(last);
  }

 private:
  Json choice(std::size_t i, const Answer& answer) const {
    return Json::object(
        {{"index", i},
         {"text", answer.content},
         {"logprobs", logprobs_of(answer)},
         {"finish_reason", answer.has_ended() ? Json(answer.finish_reason()) : Json::null()}});
  }
  Json logprobs_of(const Answer& answer) const {
    if (!has_logprobs_) return Json::null();
    std::vector<Json> tokens, values, tops, offsets;
    std::size_t offset = 0;
    for (const ShownToken& token : answer.tokens) {
      tokens.emplace_back(token.text);
      values.emplace_back(static_cast<double>(token.logprob));
      offsets.emplace_back(offset);
      offset += token.text.size();
      Json top = Json::object({});
      for (const auto& [text, logprob] : token.top) {
        const std::string key = nibble::io::json_text(text);
        top.add(key.substr(1, key.size() - 2).c_str(), static_cast<double>(logprob));
      }
      tops.push_back(top);
    }
    return Json::object({{"tokens", Json::array(tokens)},
                         {"token_logprobs", Json::array(values)},
                         {"top_logprobs", Json::array(tops)},
                         {"text_offset", Json::array(offsets)}});
  }

  bool has_logprobs_, has_usage_;
};

// One message of one text.
class ResponsesFormat final : public Format {
 public:
  ResponsesFormat(std::string id, std::string model, const GenerationRequest& request)
      : Format("resp_" + id, std::move(model)),
        message_id_("msg_" + std::move(id)),
        temperature_(static_cast<double>(request.sampling.temperature)),
        top_p_(static_cast<double>(request.sampling.top_p)) {}

  Json whole(const std::vector<Answer>& answers, const Usage& usage) const override {
    return response(status_of(answers[0]), &answers[0].content, &usage);
  }

  std::string begin() override {
    // (One after the other: each has the next number.)
    const Json created = response("in_progress", nullptr, nullptr);
    std::string out = event("response.created", Json::object({{"response", created}}));
    out += event("response.in_progress", Json::object({{"response", created}}));
    out += event("response.output_item.added",
                 Json::object({{"output_index", 0}, {"item", item("in_progress", nullptr)}}));
    return out + event("response.content_part.added", place().add("part", text_part("")));
  }
  std::string part(std::size_t, const Answer& answer) override {
    if (answer.content.empty()) return {};
    all_ += answer.content;
    return event("response.output_text.delta",
                 place().add("delta", answer.content).add("logprobs", Json::array({})));
  }
  std::string end(const std::vector<Answer>& answers, const Usage& usage) override {
    const std::string_view status = status_of(answers[0]);
    std::string out = event("response.output_text.done",
                            place().add("text", all_).add("logprobs", Json::array({})));
    out += event("response.content_part.done", place().add("part", text_part(all_)));
    out += event("response.output_item.done",
                 Json::object({{"output_index", 0}, {"item", item(status, &all_)}}));
    return out + event(status == "completed" ? "response.completed" : "response.incomplete",
                       Json::object({{"response", response(status, &all_, &usage)}}));
  }

 private:
  static std::string_view status_of(const Answer& answer) {
    return std::string_view(answer.finish_reason()) == "length" ? "incomplete" : "completed";
  }
  std::string event(const char* type, Json data) {
    return sse(data.add("type", type).add("sequence_number", n_events_++), type);
  }
  Json place() const {
    return Json::object({{"item_id", message_id_}, {"output_index", 0}, {"content_index", 0}});
  }
  static Json text_part(const std::string& text) {
    return Json::object({{"type", "output_text"},
                         {"text", text},
                         {"annotations", Json::array({})},
                         {"logprobs", Json::array({})}});
  }
  Json item(std::string_view status, const std::string* text) const {
    std::vector<Json> parts;
    if (text != nullptr) parts.push_back(text_part(*text));
    return Json::object({{"id", message_id_},
                         {"type", "message"},
                         {"role", "assistant"},
                         {"status", status},
                         {"content", Json::array(parts)}});
  }
  Json response(std::string_view status, const std::string* text, const Usage* usage) const {
    std::vector<Json> output;
    if (text != nullptr) output.push_back(item(status, text));
    const bool is_incomplete = status == "incomplete";
    Json out = Json::object(
        {{"id", id_},
         {"object", "response"},
         {"created_at", created_},
         {"status", status},
         {"error", Json::null()},
         {"incomplete_details",
          is_incomplete ? Json::object({{"reason", "max_output_tokens"}}) : Json::null()},
         {"model", model_},
         {"output", Json::array(output)},
         {"parallel_tool_calls", true},
         {"temperature", temperature_},
         {"tool_choice", "auto"},
         {"tools", Json::array({})},
         {"top_p", top_p_}});
    if (usage == nullptr) return out;
    return out.add("usage",
                   Json::object({{"input_tokens", usage->prompt},
                                 {"input_tokens_details", Json::object({{"cached_tokens", 0}})},
                                 {"output_tokens", usage->completion},
                                 {"output_tokens_details", Json::object({{"reasoning_tokens", 0}})},
                                 {"total_tokens", usage->prompt + usage->completion}}));
  }

  std::string message_id_, all_;
  double temperature_, top_p_;
  std::int64_t n_events_ = 0;
};

inline std::unique_ptr<Format> format_of(const GenerationRequest& request, std::string id,
                                         std::string model) {
  switch (request.api) {
    case Api::chat: return std::make_unique<ChatFormat>(std::move(id), std::move(model), request);
    case Api::completions:
      return std::make_unique<CompletionFormat>(std::move(id), std::move(model), request);
    case Api::responses: break;
  }
  return std::make_unique<ResponsesFormat>(std::move(id), std::move(model), request);
}

}  // namespace example::server
