// SPDX-License-Identifier: Apache-2.0
//
// Many clients that ask for the same few things, each on a connection that it keeps; every answer
// is compared with the one that is right.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "check_api.hpp"
#include "client_http.hpp"
#include "server_process.hpp"

namespace example::client {

struct LoadResult {
  std::size_t n_requests = 0, n_failed = 0;
  double seconds = 0, tokens = 0;
  std::vector<double> latencies;  // seconds, ascending
};

inline LoadResult run_load(int port, std::size_t n_clients, std::size_t n_requests,
                           bool with_streams) {
  LoadResult result;
  std::mutex mutex;
  std::atomic<std::size_t> next{0};
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> clients;
  for (std::size_t c = 0; c < n_clients; ++c) {
    clients.emplace_back([&] {
      auto socket = std::make_unique<Socket>(port);
      for (std::size_t i; (i = next.fetch_add(1)) < n_requests;) {
        const bool is_stream = with_streams && i % 2 == 1;
        const std::string body = messages_with(
            kCommand,
            is_stream ? ", \"stream\": true, \"stream_options\": {\"include_usage\": true}" : "");
        const auto start = std::chrono::steady_clock::now();
        if (!socket->is_open()) socket = std::make_unique<Socket>(port);
        socket->send(request_text("POST", "/v1/chat/completions", body));
        const Reply reply = read_reply(*socket);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        std::string text;
        double tokens = 0;
        if (is_stream && reply.status == 200) {
          for (const JsonValue& event : events_of(reply, "a stream under load")) {
            text += at(event, "choices.0.delta.content").string();
            tokens += at(event, "usage.completion_tokens").number();
          }
        } else if (reply.status == 200) {
          const JsonValue answer = json_of(reply.body);
          text = at(answer, "choices.0.message.content").string();
          tokens = at(answer, "usage.completion_tokens").number();
        }
        const std::lock_guard lock(mutex);
        ++result.n_requests;
        result.tokens += tokens;
        result.latencies.push_back(seconds.count());
        if (text != kCall) {
          ++result.n_failed;
          std::printf("WRONG: status %d: %s\n", reply.status, reply.body.substr(0, 200).c_str());
          socket = std::make_unique<Socket>(port);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::sort(result.latencies.begin(), result.latencies.end());
  return result;
}

inline void print_load(std::size_t n_clients, const LoadResult& load) {
  const auto quantile = [&](double p) {
    if (load.latencies.empty()) return 0.0;
    return 1e3 * load.latencies[static_cast<std::size_t>(
                     p * static_cast<double>(load.latencies.size() - 1))];
  };
  std::printf(
      "%3zu clients: %zu requests, %zu wrong, %.1f s, %.0f requests/s, %.0f tokens/s; "
      "latency %.1f ms, of 99 %% within %.1f ms\n",
      n_clients, load.n_requests, load.n_failed, load.seconds,
      static_cast<double>(load.n_requests) / load.seconds, load.tokens / load.seconds,
      quantile(0.5), quantile(0.99));
}

// Clients of these numbers, while the model is replaced every so often (0 ms: never).
inline void check_load(const ServerProcess& server, const std::vector<std::size_t>& n_clients,
                       std::size_t n_requests, int change_ms,
                       const std::vector<std::string>& models) {
  const int port = server.port();
  std::atomic<bool> is_over{false};
  std::size_t n_changes = 0;
  std::thread changing([&] {
    for (std::size_t i = 0; change_ms > 0 && !is_over; ++i) {
      const Reply reply =
          post(port, "/admin/model", "{\"model\": \"" + models[i % models.size()] + "\"}");
      check_reply(reply, 200, "a change of the model");
      ++n_changes;
      for (int waited = 0; waited < change_ms && !is_over; waited += 10) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
  });
  const double n_before = metric(port, "nibble_generation_tokens_total");
  double n_tokens = 0;
  std::size_t least = 0, most = 0;
  for (const std::size_t n : n_clients) {
    const LoadResult load = run_load(port, n, n_requests, true);
    print_load(n, load);
    check(load.n_requests == n_requests && load.n_failed == 0, "requests under load");
    n_tokens += load.tokens;
    const std::size_t bytes = server.resident_bytes();
    if (least == 0) least = bytes;
    most = std::max(most, bytes);
  }
  is_over = true;
  changing.join();
  const double n_counted = metric(port, "nibble_generation_tokens_total") - n_before;
  std::printf(
      "memory %.1f MiB, at most %.1f MiB; %.0f tokens counted, %.0f answered; %zu changes of "
      "the model\n",
      static_cast<double>(least) / (1 << 20), static_cast<double>(most) / (1 << 20), n_counted,
      n_tokens, n_changes);
  check(n_counted == n_tokens, "tokens lost or doubled");
  check(change_ms == 0 || n_changes > 0, "the model was not changed");
}

}  // namespace example::client
