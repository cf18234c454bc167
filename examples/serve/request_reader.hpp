// SPDX-License-Identifier: Apache-2.0
//
// Reads the JSON bodies of the OpenAI API. The text is from strangers; all of it is checked here,
// and nothing is kept that was not asked for. Keys that are not known are passed over, since
// clients send many; what is known but cannot be done is an error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json_form.hpp"
#include "nibble/chat/chat_template.hpp"
#include "nibble/core/result.hpp"
#include "nibble/io/json_text.hpp"
#include "request.hpp"

namespace example::server {

// Reads the members of one object. A member function returns false for a key that it does not know.
class RequestReader : private JsonForm {
 public:
  explicit RequestReader(std::string_view body, const RequestLimits& limits = {})
      : JsonForm(body), limits_(limits) {}

  // Errors of all: malformed (no JSON, or not of the form), invalid_argument (a number out of its
  // range), unsupported, limit. The messages name the member.
  Result<GenerationRequest> generation(Api api);
  Result<EmbeddingsRequest> embeddings();
  Result<TokenizeRequest> tokenize();
  Result<std::vector<std::int32_t>> detokenize();
  // The string member `name` of an object, for example the file of a model to change to.
  Result<std::string> one_string(const char* name);

 private:
  Result<bool> generation_member(GenerationRequest& out, const std::string& key);
  Result<bool> sampling_member(GenerationRequest& out, const std::string& key);
  Result<bool> chat_member(GenerationRequest& out, const std::string& key);
  Result<bool> completion_member(GenerationRequest& out, const std::string& key);
  Result<bool> responses_member(GenerationRequest& out, const std::string& key);
  Result<void> check_whole(const GenerationRequest& out) const;

  Result<void> messages(std::vector<nibble::chat::ChatMessage>& out);
  Result<nibble::chat::ChatMessage> message();
  Result<std::string> content();
  Result<std::string> tool_calls();
  Result<std::string> tool_call();
  Result<void> prompts(std::vector<Prompt>& out, std::size_t most);
  Result<std::vector<std::int32_t>> tokens();
  Result<void> stops(std::vector<std::string>& out);
  Result<void> logit_bias(std::vector<nibble::LogitBias>& out);
  Result<void> response_format(GenerationRequest& out);
  Result<void> tool_choice(GenerationRequest& out);
  Result<void> stream_options(GenerationRequest& out);

  RequestLimits limits_;
};

namespace detail {

inline constexpr double kMaxInteger = 1073741824;  // for counts: 2^30

}  // namespace detail

inline Result<GenerationRequest> RequestReader::generation(Api api) {
  GenerationRequest out;
  out.api = api;
  // What the API says where nothing is given, but for a seed. (The nucleus of the library's own
  // defaults stays: small models need it.)
  out.sampling.temperature = 1;
  NIBBLE_CHECK(whole_object([&](const std::string& key) -> Result<void> {
    NIBBLE_TRY(is_general, generation_member(out, key));
    if (is_general) return ok();
    NIBBLE_TRY(is_sampling, sampling_member(out, key));
    if (is_sampling) return ok();
    NIBBLE_TRY(is_own, api == Api::chat          ? chat_member(out, key)
                       : api == Api::completions ? completion_member(out, key)
                                                 : responses_member(out, key));
    if (is_own) return ok();
    return json_.skip();
  }));
  NIBBLE_CHECK(check_whole(out));
  if (!out.instructions.empty()) {
    out.messages.insert(out.messages.begin(), {"system", out.instructions});
  }
  return out;
}

inline Result<void> RequestReader::check_whole(const GenerationRequest& out) const {
  if (out.api == Api::completions ? out.prompts.empty() : out.messages.empty()) {
    const char* const name = out.api == Api::chat          ? "messages"
                             : out.api == Api::completions ? "prompt"
                                                           : "input";
    return Error{Errc::invalid_argument, std::string(name) + ": there is none"};
  }
  const std::size_t n_prompts = out.api == Api::completions ? out.prompts.size() : 1;
  if (n_prompts * static_cast<std::size_t>(out.n) > limits_.max_answers) {
    return Error{Errc::limit,
                 "n: more than " + std::to_string(limits_.max_answers) + " answers in one request"};
  }
  if (out.sampling.top_logprobs > 0 && !out.logprobs) {
    return Error{Errc::invalid_argument, "top_logprobs: needs logprobs"};
  }
  if (out.tools.empty() && out.tool_choice == ToolChoice::required) {
    return Error{Errc::invalid_argument, "tool_choice: there are no tools"};
  }
  if (!out.schema.empty() && !out.tools.empty() && out.tool_choice == ToolChoice::required) {
    return Error{Errc::invalid_argument,
                 "response_format: an answer that must be a call has no other form"};
  }
  return ok();
}

inline Result<bool> RequestReader::generation_member(GenerationRequest& out,
                                                     const std::string& key) {
  if (key == "model") {
    NIBBLE_TRY(value, json_.string());
    out.model = std::move(value);
  } else if (key == "stream") {
    NIBBLE_TRY(value, json_.boolean());
    out.stream = value;
  } else if (key == "stream_options") {
    NIBBLE_CHECK(stream_options(out));
  } else if (key == "max_tokens" || key == "max_completion_tokens" || key == "max_output_tokens") {
    NIBBLE_TRY(value, integer(1, detail::kMaxInteger));
    out.max_tokens = value;
  } else if (key == "n") {
    NIBBLE_TRY(value, integer(1, 64));
    out.n = value;
  } else if (key == "stop") {
    NIBBLE_CHECK(stops(out.stop));
  } else if (key == "response_format") {
    NIBBLE_CHECK(response_format(out));
  } else {
    return false;
  }
  return true;
}

inline Result<bool> RequestReader::sampling_member(GenerationRequest& out, const std::string& key) {
  const auto set = [](float& to, Result<float> from) -> Result<bool> {
    NIBBLE_TRY(value, std::move(from));
    to = value;
    return true;
  };
  auto& sampling = out.sampling;
  if (key == "temperature") return set(sampling.temperature, number32(0, 2));
  if (key == "top_p") {
    NIBBLE_TRY(value, number(0, 1));
    sampling.top_p = value < 1e-6 ? 1e-6f : static_cast<float>(value);  // 0: the likeliest alone
    return true;
  }
  if (key == "min_p") return set(sampling.min_p, number32(0, 1));
  if (key == "frequency_penalty") return set(sampling.frequency_penalty, number32(-2, 2));
  if (key == "presence_penalty") return set(sampling.presence_penalty, number32(-2, 2));
  if (key == "repetition_penalty") return set(sampling.repetition_penalty, number32(0.01, 100));
  if (key == "top_k") {
    NIBBLE_TRY(value, integer(0, detail::kMaxInteger));
    sampling.top_k = value;
    return true;
  }
  if (key == "seed") {
    // Any integer of 64 bits; beyond 2^53 neighbours are the same seed.
    NIBBLE_TRY(value, number(-9223372036854775808.0, 18446744073709549568.0));
    out.seed = value < 0 ? static_cast<std::uint64_t>(static_cast<std::int64_t>(value))
                         : static_cast<std::uint64_t>(value);
    return true;
  }
  if (key == "logit_bias") {
    NIBBLE_CHECK(logit_bias(sampling.logit_bias));
    return true;
  }
  return false;
}

inline Result<bool> RequestReader::chat_member(GenerationRequest& out, const std::string& key) {
  if (key == "messages") {
    NIBBLE_CHECK(messages(out.messages));
  } else if (key == "logprobs") {
    NIBBLE_TRY(value, json_.boolean());
    out.logprobs = value;
  } else if (key == "top_logprobs") {
    NIBBLE_TRY(value, integer(0, 20));
    out.sampling.top_logprobs = value;
  } else if (key == "tools") {
    NIBBLE_TRY(value, raw_of_kind('[', "an array"));
    out.tools = std::move(value);
    JsonReader probe(out.tools);
    if (probe.accept('[') && probe.accept(']')) out.tools.clear();
  } else if (key == "tool_choice") {
    NIBBLE_CHECK(tool_choice(out));
  } else if (key == "chat_template_kwargs") {
    NIBBLE_TRY(value, raw_of_kind('{', "an object"));
    out.template_variables = std::move(value);
  } else if (key == "functions" || key == "function_call") {
    return unsupported("is of an older API; use tools");
  } else if (key == "audio") {
    return unsupported("answers are texts");
  } else {
    return false;
  }
  return true;
}

inline Result<bool> RequestReader::completion_member(GenerationRequest& out,
                                                     const std::string& key) {
  if (key == "prompt") {
    NIBBLE_CHECK(prompts(out.prompts, limits_.max_answers));
  } else if (key == "logprobs") {
    NIBBLE_TRY(value, integer(0, 20));
    out.logprobs = true;
    out.sampling.top_logprobs = value;
  } else if (key == "echo") {
    NIBBLE_TRY(value, json_.boolean());
    if (value) return unsupported("prompts are not repeated");
  } else if (key == "suffix") {
    NIBBLE_TRY(value, json_.string());
    if (!value.empty()) return unsupported("nothing can be put before a text");
  } else if (key == "best_of") {
    NIBBLE_TRY(value, integer(1, 64));
    if (value != 1) return unsupported("all answers are given (see n)");
  } else {
    return false;
  }
  return true;
}

inline Result<bool> RequestReader::responses_member(GenerationRequest& out,
                                                    const std::string& key) {
  if (key == "input") {
    if (json_.peek() != '"') {
      NIBBLE_CHECK(messages(out.messages));
    } else {
      NIBBLE_TRY(value, json_.string());
      out.messages.assign(1, {"user", std::move(value)});
    }
  } else if (key == "instructions") {
    NIBBLE_TRY(value, json_.string());
    out.instructions = std::move(value);
  } else if (key == "text") {
    NIBBLE_CHECK(object([&](const std::string& inner) -> Result<void> {
      return inner == "format" ? response_format(out) : json_.skip();
    }));
  } else if (key == "tools") {
    NIBBLE_TRY(value, raw_of_kind('[', "an array"));
    JsonReader probe(value);
    if (!(probe.accept('[') && probe.accept(']'))) {
      return unsupported("are those of /v1/chat/completions");
    }
  } else if (key == "previous_response_id" || key == "conversation") {
    return unsupported("nothing is kept between requests; send the whole conversation as input");
  } else if (key == "background") {
    NIBBLE_TRY(value, json_.boolean());
    if (value) return unsupported("nothing is kept between requests");
  } else {
    return false;
  }
  return true;
}

inline Result<void> RequestReader::messages(std::vector<nibble::chat::ChatMessage>& out) {
  out.clear();
  return json_.array([&]() -> Result<void> {
    if (out.size() == limits_.max_messages) {
      return Error{Errc::limit, "more than " + std::to_string(limits_.max_messages)};
    }
    NIBBLE_TRY(read, message());
    out.push_back(std::move(read));
    return ok();
  });
}

inline Result<nibble::chat::ChatMessage> RequestReader::message() {
  nibble::chat::ChatMessage out;
  NIBBLE_CHECK(object([&](const std::string& key) -> Result<void> {
    std::string* text = nullptr;
    if (key == "role") text = &out.role;
    if (key == "name") text = &out.name;
    if (key == "tool_call_id") text = &out.tool_call_id;
    if (key == "reasoning_content") text = &out.reasoning_content;
    if (text != nullptr) {
      NIBBLE_TRY(value, json_.string());
      *text = std::move(value);
    } else if (key == "content") {
      NIBBLE_TRY(value, content());
      out.content = std::move(value);
    } else if (key == "tool_calls") {
      NIBBLE_TRY(value, tool_calls());
      out.tool_calls = std::move(value);
    } else {
      return json_.skip();
    }
    return ok();
  }));
  if (out.role == "developer") out.role = "system";
  for (const char* const role : {"system", "user", "assistant", "tool"}) {
    if (out.role == role) return out;
  }
  return Error{Errc::invalid_argument,
               "a message's role must be system, developer, user, assistant or tool, and not '" +
                   nibble::printable(out.role.substr(0, 64)) + "'"};
}

// A text, or parts of the type text.
inline Result<std::string> RequestReader::content() {
  if (json_.peek() == '"') return json_.string();
  std::string all;
  NIBBLE_CHECK(json_.array([&]() -> Result<void> {
    std::string type, text;
    NIBBLE_CHECK(object([&](const std::string& key) -> Result<void> {
      if (key != "type" && key != "text" && key != "refusal") return json_.skip();
      NIBBLE_TRY(value, json_.string());
      (key == "type" ? type : text) = std::move(value);
      return ok();
    }));
    for (const char* const known : {"text", "input_text", "output_text", "refusal"}) {
      if (type != known) continue;
      all += text;
      return ok();
    }
    return unsupported("a part of the type '" + nibble::printable(type.substr(0, 64)) +
                       "'; only text can be read");
  }));
  return all;
}

// The calls of an earlier answer, with their arguments as objects, as chat templates want them: the
// API has them as JSON in a string.
inline Result<std::string> RequestReader::tool_calls() {
  std::string all = "[";
  NIBBLE_CHECK(json_.array([&]() -> Result<void> {
    NIBBLE_TRY(call, tool_call());
    if (all.size() > 1) all += ", ";
    all += call;
    return ok();
  }));
  return all == "[" ? std::string() : all + "]";
}

inline Result<std::string> RequestReader::tool_call() {
  std::string id, name, arguments = "{}";
  NIBBLE_CHECK(object([&](const std::string& key) -> Result<void> {
    if (key == "id") {
      NIBBLE_TRY(value, json_.string());
      id = std::move(value);
      return ok();
    }
    if (key != "function") return json_.skip();
    return object([&](const std::string& inner) -> Result<void> {
      if (inner != "name" && inner != "arguments") return json_.skip();
      NIBBLE_TRY(value, json_.string());
      if (inner == "name") {
        name = std::move(value);
        return ok();
      }
      JsonReader read(value);
      if (read.peek() != '{' || !read.skip() || !read.at_end()) {
        return Error{Errc::malformed, "must be a JSON object in a string"};
      }
      arguments = std::move(value);
      return ok();
    });
  }));
  if (name.empty()) return Error{Errc::malformed, "tool_calls: a call without a name"};
  using nibble::io::json_text;
  return "{\"id\": " + json_text(id) +
         ", \"type\": \"function\", \"function\": {\"name\": " + json_text(name) +
         ", \"arguments\": " + arguments + "}}";
}

// A text, tokens, several texts, or several lists of tokens.
inline Result<void> RequestReader::prompts(std::vector<Prompt>& out, std::size_t most) {
  out.clear();
  if (json_.peek() == '"') {
    NIBBLE_TRY(text, json_.string());
    out.push_back({.text = std::move(text)});
    return ok();
  }
  Prompt single;  // of numbers
  std::size_t n_tokens = 0;
  NIBBLE_CHECK(json_.array([&]() -> Result<void> {
    const char first = json_.peek();
    if (first != '"' && first != '[') {
      NIBBLE_TRY(id, integer(0, 2147483647));
      single.tokens.push_back(static_cast<std::int32_t>(id));
      return ++n_tokens <= limits_.max_tokens ? ok() : Error{Errc::limit, "too many tokens"};
    }
    if (out.size() == most) return Error{Errc::limit, "more than " + std::to_string(most)};
    if (first == '"') {
      NIBBLE_TRY(text, json_.string());
      out.push_back({.text = std::move(text)});
      return ok();
    }
    NIBBLE_TRY(ids, tokens());
    n_tokens += ids.size();
    if (n_tokens > limits_.max_tokens) return Error{Errc::limit, "too many tokens"};
    out.push_back({.tokens = std::move(ids)});
    return ok();
  }));
  if (single.tokens.empty()) return ok();
  if (!out.empty()) return Error{Errc::malformed, "texts or tokens, but not both"};
  out.push_back(std::move(single));
  return ok();
}

inline Result<std::vector<std::int32_t>> RequestReader::tokens() {
  std::vector<std::int32_t> ids;
  NIBBLE_CHECK(json_.array([&]() -> Result<void> {
    NIBBLE_TRY(id, integer(0, 2147483647));
    ids.push_back(static_cast<std::int32_t>(id));
    return ids.size() <= limits_.max_tokens ? ok() : Error{Errc::limit, "too many tokens"};
  }));
  return ids;
}

inline Result<void> RequestReader::stops(std::vector<std::string>& out) {
  out.clear();
  const auto one = [&]() -> Result<void> {
    if (out.size() == limits_.max_stops) {
      return Error{Errc::limit, "more than " + std::to_string(limits_.max_stops)};
    }
    NIBBLE_TRY(text, json_.string());
    if (text.empty()) return Error{Errc::invalid_argument, "must not be empty"};
    if (text.size() > 1024) return Error{Errc::limit, "more than 1024 bytes"};
    out.push_back(std::move(text));
    return ok();
  };
  return json_.peek() == '"' ? one() : json_.array(one);
}

inline Result<void> RequestReader::logit_bias(std::vector<nibble::LogitBias>& out) {
  out.clear();
  return object([&](const std::string& key) -> Result<void> {
    if (out.size() == 1024) return Error{Errc::limit, "more than 1024"};
    JsonReader id(key);
    const auto token = id.unsigned_integer();
    if (!token || *token > 2147483647 || !id.at_end()) {
      return Error{Errc::invalid_argument, "must be the number of a token"};
    }
    NIBBLE_TRY(bias, number(-100, 100));
    out.push_back({static_cast<std::int32_t>(*token), static_cast<float>(bias)});
    return ok();
  });
}

// {"type": "json_schema", "json_schema": {"schema": ...}} of the chat API, {"type": "json_schema",
// "schema": ...} of the responses API, {"type": "json_object"} or {"type": "text"}.
inline Result<void> RequestReader::response_format(GenerationRequest& out) {
  std::string type, schema;
  NIBBLE_CHECK(object([&](const std::string& key) -> Result<void> {
    if (key == "type") {
      NIBBLE_TRY(value, json_.string());
      type = std::move(value);
      return ok();
    }
    if (key == "schema") {
      NIBBLE_TRY(value, json_.raw());
      schema = std::string(value);
      return ok();
    }
    if (key != "json_schema") return json_.skip();
    return object([&](const std::string& inner) -> Result<void> {
      if (inner != "schema") return json_.skip();
      NIBBLE_TRY(value, json_.raw());
      schema = std::string(value);
      return ok();
    });
  }));
  if (type == "json_object") schema = "{\"type\": \"object\"}";
  if (type == "json_schema" && schema.empty()) {
    return Error{Errc::malformed, "there is no schema"};
  }
  if (type != "json_object" && type != "json_schema" && type != "text") {
    return unsupported("type must be text, json_object or json_schema");
  }
  out.schema = type == "text" ? std::string() : std::move(schema);
  return ok();
}

// "none", "auto", "required", or {"type": "function", "function": {"name": ...}}.
inline Result<void> RequestReader::tool_choice(GenerationRequest& out) {
  if (json_.peek() == '"') {
    NIBBLE_TRY(value, json_.string());
    if (value != "none" && value != "auto" && value != "required") {
      return unsupported("must be none, auto, required or a function");
    }
    out.tool_choice = value == "none"   ? ToolChoice::none
                      : value == "auto" ? ToolChoice::automatic
                                        : ToolChoice::required;
    return ok();
  }
  NIBBLE_CHECK(object([&](const std::string& key) -> Result<void> {
    if (key != "function") return json_.skip();
    return object([&](const std::string& inner) -> Result<void> {
      if (inner != "name") return json_.skip();
      NIBBLE_TRY(value, json_.string());
      out.tool_name = std::move(value);
      return ok();
    });
  }));
  if (out.tool_name.empty()) return Error{Errc::malformed, "there is no name of a function"};
  out.tool_choice = ToolChoice::required;
  return ok();
}

inline Result<void> RequestReader::stream_options(GenerationRequest& out) {
  return object([&](const std::string& key) -> Result<void> {
    if (key != "include_usage") return json_.skip();
    NIBBLE_TRY(value, json_.boolean());
    out.include_usage = value;
    return ok();
  });
}

inline Result<EmbeddingsRequest> RequestReader::embeddings() {
  EmbeddingsRequest out;
  NIBBLE_CHECK(whole_object([&](const std::string& key) -> Result<void> {
    if (key == "model") {
      NIBBLE_TRY(value, json_.string());
      out.model = std::move(value);
    } else if (key == "input") {
      NIBBLE_CHECK(prompts(out.inputs, limits_.max_inputs));
    } else if (key == "encoding_format") {
      NIBBLE_TRY(value, json_.string());
      if (value != "float" && value != "base64") return unsupported("must be float or base64");
      out.is_base64 = value == "base64";
    } else if (key == "dimensions") {
      return unsupported("embeddings have the width of the model");
    } else {
      return json_.skip();
    }
    return ok();
  }));
  if (out.inputs.empty()) return Error{Errc::invalid_argument, "input: there is none"};
  return out;
}

inline Result<TokenizeRequest> RequestReader::tokenize() {
  TokenizeRequest out;
  bool has_text = false;
  NIBBLE_CHECK(whole_object([&](const std::string& key) -> Result<void> {
    if (key == "content" || key == "prompt") {  // of llama.cpp's server; of vLLM's
      NIBBLE_TRY(value, json_.string());
      out.text = std::move(value);
      has_text = true;
      return ok();
    }
    bool* const flag = key == "add_special" || key == "add_special_tokens" ? &out.add_special
                       : key == "parse_special"                            ? &out.parse_special
                       : key == "with_pieces"                              ? &out.with_pieces
                                                                           : nullptr;
    if (flag == nullptr) return json_.skip();
    NIBBLE_TRY(value, json_.boolean());
    *flag = value;
    return ok();
  }));
  if (!has_text) return Error{Errc::invalid_argument, "content: there is none"};
  return out;
}

inline Result<std::vector<std::int32_t>> RequestReader::detokenize() {
  std::vector<std::int32_t> out;
  NIBBLE_CHECK(whole_object([&](const std::string& key) -> Result<void> {
    if (key != "tokens") return json_.skip();
    NIBBLE_TRY(ids, tokens());
    out = std::move(ids);
    return ok();
  }));
  return out;
}

inline Result<std::string> RequestReader::one_string(const char* name) {
  std::string out;
  NIBBLE_CHECK(whole_object([&](const std::string& key) -> Result<void> {
    if (key != name) return json_.skip();
    NIBBLE_TRY(value, json_.string());
    out = std::move(value);
    return ok();
  }));
  if (out.empty()) return Error{Errc::invalid_argument, std::string(name) + ": there is none"};
  return out;
}

}  // namespace example::server
