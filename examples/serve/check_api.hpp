// SPDX-License-Identifier: Apache-2.0
//
// What the server answers to requests as they should be, and to those that are wrong in what they
// ask.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "client_http.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"
#include "server_process.hpp"

namespace example::client {

using nibble::io::JsonValue;

// The bundled model's answer to a command.
inline const std::string kCommand = "could you please dim the office light to 10 percent";
inline const std::string kCall = "light.set(room=office, level=10)";

// The value at a path of keys and indices, for example "choices.0.text"; null if there is none.
inline JsonValue at(const JsonValue& root, std::string_view path) {
  const JsonValue* value = &root;
  while (!path.empty()) {
    const std::string_view step = path.substr(0, path.find('.'));
    path.remove_prefix(std::min(step.size() + 1, path.size()));
    if (value->kind() == JsonValue::Kind::array) {
      const auto i = static_cast<std::size_t>(std::atoi(std::string(step).c_str()));
      if (i >= value->elements().size()) return {};
      value = &value->elements()[i];
    } else if ((value = value->find(step)) == nullptr) {
      return {};
    }
  }
  return *value;
}
inline JsonValue json_of(const std::string& text) {
  auto value = JsonValue::parse(text);
  check(value.has_value(), "no JSON: " + text);
  return value ? *std::move(value) : JsonValue();
}
inline void check_reply(const Reply& reply, int status, const std::string& what) {
  check(reply.status == status,
        what + ": status " + std::to_string(reply.status) + ", " + reply.body);
}
// An answer that is an error of this status, in the API's form.
inline void check_error(const Reply& reply, int status, const std::string& says,
                        const std::string& what) {
  check_reply(reply, status, what);
  const std::string message = at(json_of(reply.body), "error.message").string();
  check(message.find(says) != message.npos, what + ": it says " + message);
}

// The events of a stream. The last one must be [DONE].
inline std::vector<JsonValue> events_of(const Reply& reply, const std::string& what) {
  std::vector<JsonValue> events;
  bool is_done = false;
  for (std::size_t at = 0; at < reply.body.size();) {
    const std::size_t end = reply.body.find("\n\n", at);
    check(end != reply.body.npos, what + ": an event without end");
    if (end == reply.body.npos) break;
    const std::string event = reply.body.substr(at, end - at);
    at = end + 2;
    if (event.starts_with(':')) continue;
    const std::size_t data = event.find("data: ");
    check(data != event.npos && !is_done, what + ": " + event);
    if (data == event.npos) break;
    is_done = event.substr(data + 6) == "[DONE]";
    if (!is_done) events.push_back(json_of(event.substr(data + 6)));
  }
  check(is_done, what + ": no [DONE]");
  return events;
}

inline std::string messages_with(const std::string& text, const std::string& more) {
  return "{\"messages\": [{\"role\": \"user\", \"content\": " + nibble::io::json_text(text) +
         "}], \"temperature\": 0" + more + "}";
}

inline void check_chat(int port) {
  Reply reply = post(port, "/v1/chat/completions", messages_with(kCommand, ""));
  check_reply(reply, 200, "chat");
  JsonValue answer = json_of(reply.body);
  check(at(answer, "choices.0.message.content").string() == kCall, "chat: " + reply.body);
  check(at(answer, "choices.0.finish_reason").string() == "stop", "chat: " + reply.body);
  check(at(answer, "object").string() == "chat.completion", "chat: " + reply.body);
  const double n_prompt = at(answer, "usage.prompt_tokens").number();
  const double n_answer = at(answer, "usage.completion_tokens").number();
  check(n_prompt > 5 && n_answer > 5 &&
            at(answer, "usage.total_tokens").number() == n_prompt + n_answer,
        "usage: " + reply.body);

  reply = post(port, "/v1/chat/completions",
               messages_with(kCommand, R"(, "stream": true, "logprobs": true, "top_logprobs": 2,
                 "stream_options": {"include_usage": true})"));
  check_reply(reply, 200, "stream");
  check(reply.header("Content-Type") == "text/event-stream", "stream: " + reply.head);
  std::string text, spelled, finish;
  std::vector<JsonValue> events = events_of(reply, "stream");
  for (const JsonValue& event : events) {
    text += at(event, "choices.0.delta.content").string();
    const JsonValue content = at(event, "choices.0.logprobs.content");
    for (const JsonValue& token : content.elements()) {
      spelled += at(token, "token").string();
      check(at(token, "logprob").number() <= 0, "a logprob above 0");
      check(at(token, "top_logprobs").elements().size() == 2, "top_logprobs");
    }
    if (at(event, "choices.0.finish_reason").string() != "") {
      finish = at(event, "choices.0.finish_reason").string();
    }
  }
  check(text == kCall && finish == "stop", "stream: " + reply.body);
  check(spelled.find(kCall) != spelled.npos, "the tokens of a stream: " + spelled);
  check(!events.empty() && at(events.back(), "usage.completion_tokens").number() == n_answer,
        "usage of a stream: " + reply.body);

  // Several answers with a seed are always the same, and the second differs from the first.
  const std::string drawn =
      "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}]}],"
      " \"seed\": 5, \"n\": 2, \"temperature\": 2, \"max_completion_tokens\": 12}";
  const JsonValue once = json_of(post(port, "/v1/chat/completions", drawn).body);
  const JsonValue again = json_of(post(port, "/v1/chat/completions", drawn).body);
  for (const char* const path : {"choices.0.message.content", "choices.1.message.content"}) {
    check(at(once, path).string() == at(again, path).string(), "two answers with one seed");
  }
  check(at(once, "choices").elements().size() == 2, "n answers");
}

inline void check_completions(int port) {
  const std::string line = nibble::io::json_text(kCommand + "\n");
  Reply reply = post(port, "/v1/completions",
                     "{\"prompt\": " + line + ", \"temperature\": 0, \"max_tokens\": 64}");
  check_reply(reply, 200, "completion");
  check(at(json_of(reply.body), "choices.0.text").string() == kCall, "completion: " + reply.body);

  reply = post(port, "/v1/completions",
               "{\"prompt\": [" + line + ", " + line +
                   "], \"temperature\": 0, \"max_tokens\": 64, "
                   "\"logprobs\": 1, \"stop\": \", level\"}");
  JsonValue answer = json_of(reply.body);
  for (const char* const i : {"0", "1"}) {
    const std::string choice = std::string("choices.") + i;
    check(at(answer, choice + ".text").string() == "light.set(room=office", "stop: " + reply.body);
    const std::size_t n = at(answer, choice + ".logprobs.tokens").elements().size();
    check(n > 0 && n == at(answer, choice + ".logprobs.token_logprobs").elements().size(),
          "logprobs: " + reply.body);
  }
  reply =
      post(port, "/v1/completions",
           "{\"prompt\": " + line + ", \"temperature\": 0, \"max_tokens\": 3, \"stream\": true}");
  std::string finish;
  for (const JsonValue& event : events_of(reply, "completion stream")) {
    finish += at(event, "choices.0.finish_reason").string();
  }
  check(finish == "length", "max_tokens: " + reply.body);

  // Text to tokens, tokens as a prompt, and back.
  reply = post(port, "/tokenize", "{\"content\": " + line + "}");
  const std::string tokens =
      reply.body.substr(reply.body.find('['), reply.body.find(']') - reply.body.find('[') + 1);
  reply = post(port, "/v1/completions",
               "{\"prompt\": " + tokens + ", \"temperature\": 0, \"max_tokens\": 64}");
  check(at(json_of(reply.body), "choices.0.text").string() == kCall, "tokens: " + reply.body);
  reply = post(port, "/detokenize", "{\"tokens\": " + tokens + "}");
  check(at(json_of(reply.body), "content").string() == kCommand + "\n", "text: " + reply.body);
}

inline void check_responses(int port) {
  const std::string input = "{\"input\": " + nibble::io::json_text(kCommand) +
                            ", \"instructions\": \"Be short.\", \"temperature\": 0";
  Reply reply = post(port, "/v1/responses", input + "}");
  check_reply(reply, 200, "response");
  const JsonValue answer = json_of(reply.body);
  check(at(answer, "output.0.content.0.text").string() == kCall, "response: " + reply.body);
  check(at(answer, "status").string() == "completed", "response: " + reply.body);
  check(at(answer, "usage.output_tokens").number() > 0, "response: " + reply.body);
  reply = post(port, "/v1/responses", input + ", \"stream\": true}");
  std::string text, types;
  double n = 0;
  for (const JsonValue& event : events_of(reply, "response stream")) {
    const std::string type = at(event, "type").string();
    if (type == "response.output_text.delta") {
      text += at(event, "delta").string();
    } else {
      types += type.substr(9) + " ";
    }
    check(at(event, "sequence_number").number() == n++, "the numbers of events: " + reply.body);
  }
  check(text == kCall, "response stream: " + reply.body);
  check(types ==
            "created in_progress output_item.added content_part.added output_text.done "
            "content_part.done output_item.done completed ",
        "the events of a response: " + types);
}

inline void check_forms(int port) {
  // The model knows nothing of JSON: the grammar alone keeps it to the schema.
  const std::string schema =
      R"({"type": "object", "properties": {"room": {"enum": ["office", "hall"]},
          "level": {"type": "integer", "minimum": 0, "maximum": 100}},
          "required": ["room", "level"], "additionalProperties": false})";
  Reply reply = post(port, "/v1/chat/completions",
                     messages_with(kCommand,
                                   ", \"response_format\": {\"type\": \"json_schema\", "
                                   "\"json_schema\": {\"name\": \"x\", \"schema\": " +
                                       schema + "}}"));
  check_reply(reply, 200, "schema");
  std::string text = at(json_of(reply.body), "choices.0.message.content").string();
  JsonValue value = json_of(text);
  check(value.find("room") != nullptr && at(value, "level").number() <= 100, "schema: " + text);
  reply = post(port, "/v1/responses",
               "{\"input\": \"a\", \"temperature\": 0, \"text\": {\"format\": {\"type\": "
               "\"json_schema\", \"name\": \"x\", \"schema\": " +
                   schema + "}}}");
  text = at(json_of(reply.body), "output.0.content.0.text").string();
  check(json_of(text).find("room") != nullptr, "schema of a response: " + text);

  const std::string tools =
      R"(, "tools": [{"type": "function", "function": {"name": "dim", "parameters":
      {"type": "object", "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}},
       "required": ["level"], "additionalProperties": false}}},
      {"type": "function", "function": {"name": "ring"}}])";
  const std::string named = R"(, "tool_choice": {"type": "function", "function": {"name": "dim"}})";
  for (const bool is_stream : {false, true}) {
    reply = post(port, "/v1/chat/completions",
                 messages_with("a", tools + named + (is_stream ? ", \"stream\": true" : "")));
    check_reply(reply, 200, "tools");
    std::string name, arguments, finish;
    const auto read = [&](const JsonValue& one, const std::string& message) {
      name += at(one, message + ".tool_calls.0.function.name").string();
      arguments += at(one, message + ".tool_calls.0.function.arguments").string();
      finish += at(one, "choices.0.finish_reason").string();
    };
    if (is_stream) {
      for (const JsonValue& event : events_of(reply, "tools")) read(event, "choices.0.delta");
    } else {
      read(json_of(reply.body), "choices.0.message");
    }
    check(name == "dim" && finish == "tool_calls", "tools: " + reply.body);
    check(json_of(arguments).find("level") != nullptr, "tools: " + reply.body);
  }
  // Free to call or not, it answers with a text, since it knows no tools.
  reply = post(port, "/v1/chat/completions", messages_with(kCommand, tools));
  check(at(json_of(reply.body), "choices.0.message.content").string() == kCall,
        "tools that may be called: " + reply.body);
}

inline void check_errors(int port) {
  const std::string chat = "/v1/chat/completions";
  check_error(post(port, chat, "{\"messages\": ["), 400, "JSON at byte", "no JSON");
  check_error(post(port, chat, "{}"), 400, "messages", "no messages");
  check_error(post(port, chat, messages_with("a", ", \"top_p\": 7")), 400, "top_p", "a number");
  check_error(post(port, chat, messages_with("a", ", \"max_tokens\": 1.5")), 400, "max_tokens",
              "a fraction");
  check_error(post(port, chat, messages_with(std::string(2000, 'x'), "")), 400, "tokens",
              "a long prompt");
  check_error(post(port, chat, messages_with("a", R"(, "response_format": {"type": "xml"})")), 400,
              "response_format", "another form");
  check_error(post(port, chat, messages_with("a", R"(, "tool_choice": "required")")), 400, "tools",
              "no tools");
  check_error(post(port, chat, R"({"messages": [{"role": "king", "content": "a"}]})"), 400, "king",
              "a role");
  check_error(post(port, chat, R"({"messages": [{"role": "user", "content": [{"type": "image_url",
              "image_url": {"url": "x"}}]}]})"),
              400, "image_url", "an image");
  check_error(post(port, "/v1/responses", R"({"input": "a", "previous_response_id": "x"})"), 400,
              "previous_response_id", "a state");
  check_error(post(port, "/v1/embeddings", R"({"input": "a"})"), 400, "--embedding-model",
              "no embedding model");
  check_error(post(port, "/v1/completions", R"({"prompt": [100000]})"), 400, "100000", "a token");
  check_error(post(port, "/admin/model", R"({"model": "x.gguf"})"), 400, "--models", "no folder");
  check_error(get(port, "/nowhere"), 404, "/nowhere", "an unknown path");
  check_error(get(port, chat), 405, "POST", "another method");
  check_error(post(port, "/health", "{}"), 405, "GET", "another method");
  check_error(get(port, "/health", "Host: evil.example\r\n"), 400, "Host", "two hosts");
  Socket socket(port);
  socket.send("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n");
  check_error(read_reply(socket), 403, "localhost", "the host of somebody else");
  std::string body(2 << 20, ' ');
  check_error(post(port, chat, body), 413, "bytes", "a large body");
  Socket form(port);
  form.send("POST " + chat + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}");
  check_error(read_reply(form), 415, "application/json", "no content type");
}

// A metric's value of /metrics; -1 if it is not there.
inline double metric(int port, const std::string& name) {
  const std::string text = "\n" + get(port, "/metrics").body;
  for (const char* const end : {" ", "{"}) {
    const std::size_t at = text.find("\n" + name + end);
    if (at == text.npos) continue;
    const std::string line = text.substr(at + 1, text.find('\n', at + 1) - at - 1);
    return std::atof(line.c_str() + line.rfind(' '));
  }
  return -1;
}

inline void check_metrics(int port) {
  const Reply reply = get(port, "/metrics");
  check_reply(reply, 200, "metrics");
  for (const char* const name :
       {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
        "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket", "prompt_tokens_total", "generation_tokens_total",
        "http_requests_total"}) {
    check(reply.body.find(std::string("nibble_") + name) != reply.body.npos,
          std::string("no metric ") + name);
  }
  check(metric(port, "nibble_generation_tokens_total") > 0, "no token is counted");
}

inline void check_api(int port) {
  const Reply models = get(port, "/v1/models");
  check(at(json_of(models.body), "data.0.id").string() == "home-commands-f16", models.body);
  check_chat(port);
  check_completions(port);
  check_responses(port);
  check_forms(port);
  check_errors(port);
  check_metrics(port);
  const Reply page = get(port, "/");
  check(page.status == 200 && page.body.find("page.js") != page.body.npos, "the page");
}

}  // namespace example::client
