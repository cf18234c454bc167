// SPDX-License-Identifier: Apache-2.0
//
// The service behind a router: a server with OpenAI's completions, over HTTP.
#pragma once

#include <httplib.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "nibble/core/result.hpp"
#include "nibble/generate/cascade.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"

namespace example {

struct RemoteOptions {
  std::string url = {};                  // "http://127.0.0.1:8080"
  std::string model = {}, api_key = {};  // where they are empty, none is sent
  nibble::Index max_tokens = 128;
  std::size_t max_bytes = std::size_t{1} << 20;  // of an answer's JSON
};

// The answer in the JSON of a completion. Errors: malformed.
inline nibble::Result<nibble::Answer> answer_in(std::string_view json) {
  using nibble::io::JsonValue;
  const auto wrong = [] {
    return nibble::Error{nibble::Errc::malformed, "the service's answer is no completion"};
  };
  NIBBLE_TRY(root, JsonValue::parse(json));
  const JsonValue* const choices = root.find("choices");
  if (choices == nullptr || choices->kind() != JsonValue::Kind::array ||
      choices->elements().empty()) {
    return wrong();
  }
  const JsonValue& choice = choices->elements()[0];
  const JsonValue* const text = choice.find("text");
  if (text == nullptr || text->kind() != JsonValue::Kind::string) return wrong();
  nibble::Answer answer;
  answer.text = text->string();
  const JsonValue* const reason = choice.find("finish_reason");
  const bool is_cut = reason != nullptr && reason->string() == "length";
  answer.finish = is_cut ? nibble::Finish::max_tokens : nibble::Finish::end_of_text;
  const JsonValue* const usage = root.find("usage");
  const JsonValue* const n = usage == nullptr ? nullptr : usage->find("completion_tokens");
  if (n != nullptr && n->number() >= 0 && n->number() < 1e9) {
    answer.n_tokens = static_cast<nibble::Index>(n->number());
  }
  return answer;
}

// RouterStages::remote. Thread-safe: each call has a connection of its own. Errors:
// invalid_argument (the service refuses the prompt: 400, 413, 422), io (it does not answer, not in
// time, or with another status), limit (with too much), malformed.
inline nibble::Result<nibble::Answer> ask_remote(const RemoteOptions& options,
                                                 std::string_view prompt, std::int64_t timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  const auto fail = [&](nibble::Errc code, const std::string& what) {
    return nibble::Error{code, nibble::printable(options.url) + ": " + what};
  };
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
  const bool is_address = options.url.starts_with("http://") || options.url.starts_with("https://");
#else
  const bool is_address = options.url.starts_with("http://");
#endif
  if (!is_address)
    return fail(nibble::Errc::io, "no address of a service");  // the client would throw
  httplib::Client client(options.url);
  if (!client.is_valid()) return fail(nibble::Errc::io, "no address of a service");
  const auto seconds = static_cast<time_t>(timeout_ms / 1000);
  const auto microseconds = static_cast<time_t>(timeout_ms % 1000 * 1000);
  client.set_connection_timeout(seconds, microseconds);
  client.set_read_timeout(seconds, microseconds);
  client.set_write_timeout(seconds, microseconds);

  httplib::Request request;
  request.method = "POST";
  request.path = "/v1/completions";
  request.headers.emplace("Content-Type", "application/json");
  if (!options.api_key.empty()) {
    request.headers.emplace("Authorization", "Bearer " + options.api_key);
  }
  using nibble::io::json_text;
  request.body = "{\"prompt\": " + json_text(prompt) +
                 ", \"max_tokens\": " + std::to_string(options.max_tokens) + ", \"temperature\": 0";
  if (!options.model.empty()) request.body += ", \"model\": " + json_text(options.model);
  request.body += "}";
  // The client's own limit of time is one of each read: who sends byte by byte is never too slow.
  std::string body;
  bool is_too_much = false;
  request.content_receiver = [&](const char* data, std::size_t n, std::uint64_t, std::uint64_t) {
    is_too_much = n > options.max_bytes - body.size();
    if (is_too_much || Clock::now() > end) return false;
    body.append(data, n);
    return true;
  };
  const auto reply = client.send(request);
  if (is_too_much) return fail(nibble::Errc::limit, "an answer of too many bytes");
  if (!reply) return fail(nibble::Errc::io, "no answer: " + httplib::to_string(reply.error()));
  const int status = reply->status;
  if (status != 200) {
    const bool is_refused = status == 400 || status == 413 || status == 422;
    return fail(is_refused ? nibble::Errc::invalid_argument : nibble::Errc::io,
                "status " + std::to_string(status));
  }
  auto answer = answer_in(body);
  if (!answer) return fail(answer.error().code, answer.error().message);
  return answer;
}

}  // namespace example
