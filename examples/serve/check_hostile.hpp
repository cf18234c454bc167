// SPDX-License-Identifier: Apache-2.0
//
// 2 000 generated requests that are malformed, oversized, broken off, slow, or many at once. To
// each there is an answer that says so, or the connection ends; and then the server answers as
// ever.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check_api.hpp"
#include "client_http.hpp"
#include "server_process.hpp"

namespace example::client {

class HostileRequests {
 public:
  explicit HostileRequests(std::uint32_t seed) : random_(seed) {}

  std::string next() {
    switch (below(8)) {
      case 0: return broken_line();
      case 1: return broken_headers();
      case 2: return wrong_length();
      case 3: return broken_chunks();
      case 4: return deep_body();
      case 5: return changed(request_text("POST", path(), valid_body()));
      case 6: return request_text("POST", path(), wrong_values());
      default: return request_text("POST", path(), changed(valid_body()));
    }
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }
  template <std::size_t n>
  const char* one_of(const char* const (&all)[n]) {
    return all[below(n)];
  }
  std::string bytes(std::size_t n) {
    std::string text;
    for (std::size_t i = 0; i < n; ++i) text += static_cast<char>(below(256));
    return text;
  }
  std::string path() {
    return one_of({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings",
                   "/tokenize", "/detokenize", "/admin/model"});
  }
  std::string valid_body() {
    return one_of({R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2})",
                   R"({"prompt": "a", "max_tokens": 2, "stream": true, "logprobs": 3})",
                   R"({"input": "a\u00e4", "max_output_tokens": 2, "instructions": "b"})",
                   R"({"content": "some text", "add_special": true, "tokens": [1, 2, 3]})",
                   R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
                       "stop": ["x", "y"], "seed": -4, "logit_bias": {"5": -10}, "max_tokens": 2,
                       "response_format": {"type": "json_object"}, "stream_options": {}})"});
  }
  std::string changed(std::string text) {
    for (std::size_t i = 0, n = 1 + below(4); i < n && !text.empty(); ++i) {
      const std::size_t at = below(text.size());
      switch (below(4)) {
        case 0: text[at] = static_cast<char>(below(256)); break;
        case 1: text.erase(at, 1 + below(20)); break;
        case 2: text.insert(at, bytes(1 + below(5))); break;
        default: text.insert(at, text.substr(below(text.size()), below(40))); break;
      }
    }
    return text;
  }
  std::string broken_line() {
    switch (below(5)) {
      case 0: return bytes(1 + below(300)) + "\r\n\r\n";
      case 1:
        return "GET /" + std::string(below(20'000), 'a') + " HTTP/1.1\r\nHost: localhost\r\n\r\n";
      case 2: return "BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
      case 3: return "GET /%zz%00/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n";
      default: return "GET /v1/models HTTP/9.9\r\nHost: localhost\r\n\r\n";
    }
  }
  std::string broken_headers() {
    std::string text = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n";
    switch (below(5)) {
      case 0: text += "X: " + std::string(below(60'000), 'y') + "\r\n"; break;
      case 1:
        for (std::size_t i = 0, n = below(3000); i < n; ++i)
          text += "A" + std::to_string(i) + ": b\r\n";
        break;
      case 2: text += bytes(below(200)) + "\r\n"; break;
      case 3: text += "Range: bytes=9-1,x\r\nHost: twice\r\n"; break;
      default: text += ": no name\r\nno colon\r\n\x01: \x02\r\n"; break;
    }
    return text + "\r\n";
  }
  std::string wrong_length() {
    const std::string length =
        one_of({"-1", "18446744073709551616", "99999999999", "2, 3", "0x10", " ", "1e3", "5",
                "2\r\nContent-Length: 200", "2\r\nTransfer-Encoding: chunked", "200000"});
    return "POST " + path() + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
           "Content-Length: " + length + "\r\n\r\n" + valid_body();
  }
  std::string broken_chunks() {
    std::string text = "POST " + path() +
                       " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n";
    switch (below(4)) {
      case 0: return text + "zz\r\n{}\r\n0\r\n\r\n";
      case 1: return text + "ffffffffffffffff\r\n{}\r\n0\r\n\r\n";
      case 2: return text + "2\r\n{}{}{}\r\n0\r\n\r\n";
      default:
        for (std::size_t i = 0, n = below(40); i < n; ++i) {
          text += "10000\r\n" + std::string(65'536, '[') + "\r\n";  // 40 of them are too large
        }
        return text + "0\r\n\r\n";
    }
  }
  std::string deep_body() {
    const std::size_t n = 1 + below(100'000);
    std::string body =
        "{\"" + std::string(one_of({"messages", "tools", "x", "response_format"})) + "\": ";
    for (std::size_t i = 0; i < n; ++i) body += below(2) == 0 ? "[" : "{\"a\": ";
    return request_text("POST", path(), body);
  }
  std::string wrong_values() {
    std::string body =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"prompt\": "
        "\"a\", \"input\": \"a\", \"content\": \"a\", \"max_tokens\": 1";
    static constexpr std::array kKeys = {"temperature",
                                         "top_p",
                                         "n",
                                         "seed",
                                         "stop",
                                         "max_tokens",
                                         "logit_bias",
                                         "response_format",
                                         "tools",
                                         "tool_choice",
                                         "stream_options",
                                         "messages",
                                         "prompt",
                                         "input",
                                         "logprobs",
                                         "top_logprobs",
                                         "tokens",
                                         "model",
                                         "chat_template_kwargs",
                                         "top_k",
                                         "text"};
    static constexpr std::array kValues = {
        "1e999",
        "-1",
        "0",
        "9007199254740993",
        "\"\"",
        "[]",
        "{}",
        "[[]]",
        "true",
        "null",
        "{\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"$ref\": \"#\"}}}",
        "{\"type\": \"json_schema\", \"json_schema\": {\"schema\": 7}}",
        "[{\"type\": \"function\", \"function\": {\"name\": \"\"}}]",
        "\"\\ud800\"",
        "[1, \"a\", []]",
        "{\"99999999999\": 5}",
        "[-5]",
        "[2147483647]",
        "1.5",
        "\"required\""};
    for (std::size_t i = 0, n = 1 + below(3); i < n; ++i) {
      body += std::string(", \"") + kKeys[below(kKeys.size())] +
              "\": " + kValues[below(kValues.size())];
    }
    return body + "}";
  }

  std::mt19937 random_;
};

// Sends a request, and no more; the server must answer or end the connection.
inline void send_hostile(int port, const std::string& request) {
  Socket socket(port);
  check(socket.is_open(), "no connection");
  socket.send(request);
  socket.end_sending();
  while (socket.receive()) continue;
  const std::string shown = nibble::io::json_text(request.substr(0, 300));
  check(!socket.has_hung(), "no answer and no end: " + shown);
  if (socket.read.empty()) return;
  const int status = std::atoi(socket.read.c_str() + std::min<std::size_t>(9, socket.read.size()));
  check(socket.read.starts_with("HTTP/1.1 ") && status >= 200 && status < 500,
        shown + " -> " + socket.read.substr(0, 300));
}

// Clients that send a byte now and then, or nothing: the server ends them.
inline void check_slow(int port) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([port, i] {
      Socket socket(port);
      const std::string text =
          i % 2 == 0 ? request_text("GET", "/health")
                     : request_text("POST", "/tokenize", "{\"content\": 1}").substr(0, 100);
      std::size_t sent = i < 4 ? 0 : text.size() - 1;
      socket.send(text.substr(0, sent));
      while (sent < text.size() - 1 && socket.send(text.substr(sent, 1)) && !socket.receive(30)) {
        ++sent;
      }
      while (socket.receive()) continue;
      check(!socket.has_hung(), "a slow client is not ended");
    });
  }
  for (std::thread& client : clients) client.join();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  check(seconds.count() < 8, "slow clients hold threads for long");
}

// Several requests in one piece get an answer each, in their order.
inline void check_pipelined(int port) {
  Socket socket(port);
  std::string all;
  for (int i = 0; i < 20; ++i) {
    all += request_text("POST", "/tokenize",
                        "{\"content\": \"" + std::string(static_cast<std::size_t>(i), 'a') + "\"}");
    all += request_text("GET", "/health");
  }
  socket.send(all);
  double last = 0;
  for (int i = 0; i < 20; ++i) {
    const double n = at(json_of(read_reply(socket).body), "count").number();
    check(n >= last, "pipelined requests are answered in their order");
    last = n;
    check_reply(read_reply(socket), 200, "pipelined");
  }
}

// More connections than there may be: the rest is refused, and all are answered in the end.
inline void check_crowd(int port, std::size_t n_connections) {
  {
    std::vector<std::unique_ptr<Socket>> idle;
    for (std::size_t i = 0; i < n_connections + 20; ++i)
      idle.push_back(std::make_unique<Socket>(port));
    std::size_t n_refused = 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    for (auto& socket : idle) {
      // An answer, or an end: the others hear nothing.
      if (socket->receive(0) || !socket->has_hung()) ++n_refused;
    }
    check(n_refused >= 20 && n_refused < idle.size(), "too many connections are not refused");
  }
  for (int i = 0; i < 100; ++i) {
    if (get(port, "/health").status == 200) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  check(false, "no connection is free after others have gone");
}

inline void check_hostile(int port, std::size_t n_requests, std::size_t n_connections) {
  HostileRequests requests(20240607);
  std::thread slow([port] { check_slow(port); });
  for (std::size_t i = 0; i < n_requests && n_wrong() < 10; ++i) {
    send_hostile(port, requests.next());
  }
  slow.join();
  check_pipelined(port);
  check_crowd(port, n_connections);
  const Reply reply = post(port, "/v1/chat/completions", messages_with(kCommand, ""));
  check(at(json_of(reply.body), "choices.0.message.content").string() == kCall,
        "after hostile requests: " + reply.body);
}

}  // namespace example::client
