// SPDX-License-Identifier: Apache-2.0
//
// The service of the example route: a server on this machine that answers well, badly, late or not.
#include "examples/route/remote.hpp"

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "doctest/doctest.h"
#include "nibble/core/native_thread.hpp"
#include "nibble/serve/router.hpp"
#include "serve/values.hpp"

namespace remote_test {

using namespace nibble;
using test::code_of;
using test::value_of;

namespace {

// Does as the prompt says.
class StandIn {
 public:
  StandIn() {
    server_.Post("/v1/completions", [this](const httplib::Request& request, httplib::Response& r) {
      ++n_requests;
      const auto body = value_of(io::JsonValue::parse(request.body));
      const auto* const prompt = body.find("prompt");
      const std::string wish = prompt == nullptr ? "" : prompt->string();
      last_body = request.body;
      last_key = request.get_header_value("Authorization");
      const auto completion = [](const std::string& text) {
        return "{\"choices\": [{\"text\": " + io::json_text(text) +
               ", \"finish_reason\": \"stop\"}], \"usage\": {\"completion_tokens\": 3}}";
      };
      if (wish.starts_with("slow")) std::this_thread::sleep_for(std::chrono::milliseconds(600));
      if (wish.starts_with("status ")) r.status = std::stoi(wish.substr(7));
      const std::string text = wish == "no JSON"      ? "<html>"
                               : wish == "no choices" ? "{\"choices\": []}"
                               : wish == "no text"    ? "{\"choices\": [{\"text\": 7}]}"
                               : wish == "large"      ? completion(std::string(4000, 'x'))
                                                      : completion("there: \"" + wish + "\"");
      if (wish == "drip") {  // a byte now and then: each read is in time
        auto sent = std::make_shared<std::string>(text);
        r.set_chunked_content_provider("application/json",
                                       [sent](std::size_t, httplib::DataSink& s) {
                                         std::this_thread::sleep_for(std::chrono::milliseconds(40));
                                         if (sent->empty()) {
                                           s.done();
                                           return true;
                                         }
                                         s.write(sent->data(), 1);
                                         sent->erase(0, 1);
                                         return s.is_writable();
                                       });
        return;
      }
      r.set_content(text, "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    REQUIRE(port_ > 0);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
  }
  StandIn(const StandIn&) = delete;
  StandIn& operator=(const StandIn&) = delete;
  ~StandIn() {
    server_.stop();
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

  std::atomic<int> n_requests{0};
  std::string last_body, last_key;  // of the last request that was answered

 private:
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace

TEST_CASE("remote: what a service may answer") {
  StandIn server;
  example::RemoteOptions options{.url = server.url(),
                                 .model = "m\"x",
                                 .api_key = "secret",
                                 .max_tokens = 7,
                                 .max_bytes = 2000};
  const auto ask = [&](const char* prompt) { return example::ask_remote(options, prompt, 300); };
  const Answer answer = value_of(ask("say \"a\"\n"));
  CHECK(answer.text == "there: \"say \"a\"\n\"");
  CHECK(answer.n_tokens == 3);
  CHECK(answer.finish == Finish::end_of_text);
  CHECK(server.last_body ==
        R"({"prompt": "say \"a\"\n", "max_tokens": 7, "temperature": 0, "model": "m\"x"})");
  CHECK(server.last_key == "Bearer secret");
  for (const char* const prompt : {"status 400", "status 413", "status 422"}) {
    CHECK(code_of(ask(prompt)) == Errc::invalid_argument);
  }
  for (const char* const prompt :
       {"status 401", "status 404", "status 429", "status 500", "status 503", "slow"}) {
    CAPTURE(prompt);
    CHECK(code_of(ask(prompt)) == Errc::io);
  }
  for (const char* const prompt : {"no JSON", "no choices", "no text"}) {
    CHECK(code_of(ask(prompt)) == Errc::malformed);
  }
  CHECK(code_of(ask("large")) == Errc::limit);
  const auto start = std::chrono::steady_clock::now();
  CHECK(!ask("drip"));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
  CHECK(value_of(example::answer_in(R"({"choices": [{"text": "a", "finish_reason": "length"}]})"))
            .finish == Finish::max_tokens);
  options.url = "nothing://x";
  CHECK(code_of(ask("x")) == Errc::io);
}

TEST_CASE("a router with a service that comes and goes") {
  serve::RouterStages stages;
  stages.local = [](std::string_view prompt, FunctionRef<bool(Index, double)> gives_up) {
    if (gives_up(1, 0.1)) return Result<Answer>(Answer{.text = "a part"});
    return Result<Answer>(Answer{.text = "here: " + std::string(prompt), .n_tokens = 1});
  };
  stages.count_tokens = [](std::string_view) -> Result<Index> { return Index{1}; };
  std::atomic<std::int64_t> later{0};
  stages.now_ms = [&later] { return monotonic_nanoseconds() / 1'000'000 + later; };
  std::string url;
  stages.remote = [&url](std::string_view prompt, std::int64_t timeout_ms) {
    return example::ask_remote({.url = url}, prompt, timeout_ms);
  };
  serve::Router router = value_of(serve::Router::create(
      stages, {.timeout_ms = 300, .breaker = {.failures = 2, .open_ms = 60'000}}));
  const auto ask = [&](const std::string& prompt) { return value_of(router.answer(prompt)); };
  {
    StandIn server;
    url = server.url();
    CHECK(ask("a").answer.text == "there: \"a\"");
    CHECK(ask("a").route == serve::Route::cached);
    CHECK(ask("slow 1").answer.text == "here: slow 1");
    CHECK(ask("status 400").route == serve::Route::fallback);
    CHECK(router.breaker() == serve::BreakerState::closed);
    CHECK(ask("status 500").answer.text == "here: status 500");
    CHECK(ask("slow 2").route == serve::Route::fallback);
    CHECK(router.breaker() == serve::BreakerState::open);
    const int n = server.n_requests;
    CHECK(ask("b").route == serve::Route::fallback);
    CHECK(server.n_requests == n);
    CHECK(ask("a").route == serve::Route::cached);  // what is known needs no service
  }
  later += 60'000;
  CHECK(ask("c").answer.text == "here: c");  // offline
  CHECK(router.breaker() == serve::BreakerState::open);
  StandIn server;
  url = server.url();
  CHECK(ask("d").route == serve::Route::fallback);
  later += 120'000;
  CHECK(ask("d").answer.text == "there: \"d\"");
  CHECK(router.breaker() == serve::BreakerState::closed);
  const serve::RouterCounts counts = router.counts();
  CHECK(counts.n_requests() == 11);
  CHECK(counts.n_remote == 2);
  CHECK(counts.n_cached == 2);
  CHECK(counts.n_fallback == 7);
  CHECK(counts.n_refused == 1);
  CHECK(counts.n_failed == 4);
  CHECK(counts.n_not_asked == 2);
  CHECK(counts.n_opened == 2);
}

}  // namespace remote_test
