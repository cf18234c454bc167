// SPDX-License-Identifier: Apache-2.0
//
// How things end: clients that go away, keys, TLS, and the server itself.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "check_api.hpp"
#include "client_http.hpp"
#include "server_process.hpp"

namespace example::client {

// A stream that takes a second or so: answers that cannot end before the context does, computed one
// after the other.
inline std::string long_stream(int n_answers) {
  return R"({"messages": [{"role": "user", "content": "a"}], "stream": true, "temperature": 2,
            "seed": 1, "logit_bias": {"2": -100}, "n": )" +
         std::to_string(n_answers) + "}";
}

inline bool becomes_idle(int port, int ms) {
  for (int waited = 0; waited < ms; waited += 20) {
    if (metric(port, "nibble_num_requests_running") == 0 &&
        metric(port, "nibble_num_requests_waiting") == 0) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

// A client that goes away in the middle of a stream, and one that goes while it waits.
inline void check_gone(int port) {
  for (const bool is_stream : {true, false}) {
    const double before = metric(port, "nibble_generation_tokens_total");
    std::string body = long_stream(64);
    if (!is_stream) body.replace(body.find("\"stream\": true"), 14, "\"stream\": false");
    {
      Socket socket(port);
      socket.send(request_text("POST", "/v1/chat/completions", body));
      if (is_stream) {
        read_reply(socket, [](const std::string& text) { return text.size() < 20'000; });
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    }
    check(becomes_idle(port, 2000), "the request of a client that went away goes on");
    const double n = metric(port, "nibble_generation_tokens_total") - before;
    check(n < 64 * 80, "all was computed for a client that went away: " + std::to_string(n));
  }
}

// SIGTERM in the middle of a stream: it goes on to its end, nothing new begins, and the server
// ends.
inline void check_drain(ServerProcess& server) {
  const int port = server.port();
  Socket socket(port), idle(port);
  idle.send(request_text("GET", "/health"));
  check_reply(read_reply(idle), 200, "health");
  socket.send(request_text("POST", "/v1/chat/completions", long_stream(32)));
  bool is_told = false;
  const Reply reply = read_reply(socket, [&](const std::string& text) {
    if (!is_told && text.size() > 5'000) {
      is_told = true;
      server.terminate();
      int status = 200;  // until it has seen the signal
      for (int i = 0; i < 400 && status == 200; ++i) {
        status = get(port, "/health").status;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      check(status == 503, "health while it ends: " + std::to_string(status));
      const Reply next = post(port, "/v1/completions", R"({"prompt": "a"})");
      check(next.status == 503, "a request while it ends: " + std::to_string(next.status));
    }
    return true;
  });
  check(is_told, "the stream was over before the signal");
  std::size_t n_ended = 0;
  for (const JsonValue& event : events_of(reply, "the stream over the signal")) {
    if (!at(event, "choices.0.finish_reason").string().empty()) ++n_ended;
  }
  check(n_ended == 32, "answers that ended: " + std::to_string(n_ended));
  check(!idle.receive(3000) && !idle.has_hung(), "an idle connection stays open");
  check(server.wait_for_end() == 0, "the exit code after SIGTERM");
}

inline void check_keys(const std::string& program, const std::string& model) {
  ServerProcess server(program, {"--model", model, "--api-key", "one", "--api-key", "two"});
  const int port = server.port();
  check(server.wait_until_ready(), "it does not become ready");
  const std::string body = messages_with(kCommand, "");
  const char* const chat = "/v1/chat/completions";
  check_error(post(port, chat, body), 401, "API key", "no key");
  check_error(post(port, chat, body, "Authorization: Bearer on\r\n"), 401, "API key",
              "another key");
  check_error(get(port, "/metrics"), 401, "API key", "metrics without a key");
  check_reply(post(port, chat, body, "Authorization: Bearer one\r\n"), 200, "the key");
  check_reply(post(port, chat, body, "X-Api-Key: two\r\n"), 200, "the other key");
  check_reply(get(port, "/"), 200, "the page needs no key");
  server.terminate();
  check(server.wait_for_end() == 0, "the exit code of a server without requests");
}

// With a certificate that the OpenSSL program makes, and curl: where both are installed.
inline void check_tls(const std::string& program, const std::string& model,
                      const std::filesystem::path& folder) {
  const std::string key = (folder / "key.pem").string(), cert = (folder / "cert.pem").string();
  const std::string make =
      "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
      "-keyout '" +
      key + "' -out '" + cert + "' 2> /dev/null";
  if (std::system(make.c_str()) != 0 || std::system("curl --version > /dev/null 2>&1") != 0) {
    std::printf("nibble: TLS is not tested: there is no openssl or no curl here\n");
    return;
  }
  ServerProcess server(program, {"--model", model, "--tls-cert", cert, "--tls-key", key});
  const std::string answer = (folder / "answer").string();
  const std::string ask = "curl -sS --retry 20 --retry-delay 1 --retry-connrefused --cacert '" +
                          cert + "' -o '" + answer +
                          "' https://localhost:" + std::to_string(server.port()) +
                          "/v1/chat/completions -H 'Content-Type: application/json' -d '" +
                          messages_with(kCommand, ", \"stream\": true") + "'";
  check(std::system(ask.c_str()) == 0, "curl with TLS");
  std::string text;
  if (std::FILE* const file = std::fopen(answer.c_str(), "r")) {
    char part[4096];
    for (std::size_t n; (n = std::fread(part, 1, sizeof(part), file)) > 0;) text.append(part, n);
    std::fclose(file);
  }
  Reply reply;
  reply.body = text;
  std::string said;
  for (const JsonValue& event : events_of(reply, "a stream with TLS")) {
    said += at(event, "choices.0.delta.content").string();
  }
  check(said == kCall, "an answer with TLS: " + text);
  // Who speaks no TLS hears nothing, and is ended.
  Socket plain(server.port());
  plain.send(request_text("GET", "/health"));
  while (plain.receive()) continue;
  check(!plain.has_hung() && !plain.read.starts_with("HTTP"), "plain HTTP where TLS is spoken");
}

}  // namespace example::client
