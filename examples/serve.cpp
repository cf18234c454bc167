// SPDX-License-Identifier: Apache-2.0
//
// serve: a model behind the OpenAI API, with a page to try it, metrics, and a change of the model
// while clients are answered.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common.hpp"
#include "home_model.hpp"
#include "nibble/core/available_memory.hpp"
#include "serve/backend.hpp"
#include "serve/http_server.hpp"
#include "serve/power.hpp"
#include "serve/routes.hpp"
#include "settings.hpp"

namespace {

using example::interrupted;
using nibble::Error;
using nibble::Index;
using nibble::Result;
namespace server = example::server;

struct Options {
  server::BackendOptions backend;
  server::HttpLimits limits;
  server::RouteOptions routes;
  server::PowerOptions power;
  std::vector<std::string> adapters;  // NAME=FILE
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string key_file, certificate, tls_key;
  bool without_key = false;
  std::optional<std::size_t> prefix_cache_mib;
  std::size_t max_body_kib = 1024;
  Index time_limit_s = 300, drain_s = 30;
  std::string kv = to_string(nibble::ops::KvType::f16);
  bool quiet = false;
};

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

void add_model_options(CLI::App& app, Options& o) {
  o.backend.model = example::kHomeModel;
  app.add_option("--model", o.backend.model,
                 "a GGUF file, or a folder with config.json; default: the model for home commands "
                 "that comes with nibble");
  app.add_option("--embedding-model", o.backend.embedding_model,
                 "a second model, for /v1/embeddings");
  app.add_option("--models", o.backend.models_folder,
                 "a folder: POST /admin/model {\"model\": \"NAME.gguf\"} changes to a file of it");
  auto& scheduler = o.backend.scheduler;
  app.add_option("--ctx", scheduler.n_ctx,
                 "positions of an answer with its prompt; 0: as many as the model was trained "
                 "with, but at most 4096")
      ->check(example::any_count());
  app.add_option("--parallel", scheduler.max_batch, "answers that are computed together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option(
         "--cache", scheduler.cache_positions,
         "positions of the cache for all answers and beginnings of prompts; 0: those of --ctx for "
         "each of --parallel, and beside them those of --prefix-cache")
      ->check(example::any_count())
      ->capture_default_str();
  app.add_option("--queue", scheduler.max_queue, "requests that wait; more are refused")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--prefix-cache", o.prefix_cache_mib,
                 "MiB for what several prompts begin with, taken when it is used; 0: none; default: "
                 "a part of the memory that is free, from 64 to 1024")
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--adapter", o.adapters,
                 "NAME=FILE: an adapter (LoRA) for requests whose model is NAME: a GGUF file or a "
                 "folder of PEFT, with :STRENGTH behind it if that is not 1; several are possible")
      ->allow_extra_args(false);
  app.add_option("--kv", o.kv, "type of the cache: f32, f16, bf16, int8 or int4")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "int8", "int4"}))
      ->capture_default_str();
  example::add_threads(app, o.backend.n_threads);
}

void add_power_options(CLI::App& app, Options& o) {
  auto& power = o.power;
  app.add_flag("--governor", power.is_on,
               "less work where the machine is hot, its battery low or its processors busy: fewer "
               "threads, longer waits for requests to share steps, then what follows");
  const auto add = [&app](const char* name, auto& value, const char* help) {
    return app.add_option(name, value, help)->needs("--governor");
  };
  add("--variant", power.variants,
      "with --governor: a smaller file of the model; several, the largest first")
      ->check(example::is_not_empty)
      ->allow_extra_args(false)
      ->excludes("--models");
  add("--least-depth", power.least_depth,
      "with --governor: the part of the layers that the last level computes; less than 1 is for "
      "models that were trained for it")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  add("--hot", power.hot, "with --governor: degrees Celsius that are too many")
      ->check(CLI::Range(0.0, 150.0))
      ->capture_default_str();
  add("--governor-down", power.down_ms, "milliseconds between a step down and the next, at least")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  add("--governor-up", power.up_ms, "milliseconds that all must be fine before a step up")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  add("--sensors", power.sensors,
      "a folder with files as those of the system's /sys and /proc, in their place")
      ->check(example::is_not_empty);
}

void add_http_options(CLI::App& app, Options& o) {
  app.add_option("--host", o.host,
                 "the address to listen at; one that other machines reach needs an API key")
      ->capture_default_str();
  app.add_option("--port", o.port, "0: any that is free; the first line of stdout says which")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--api-key", o.routes.api_keys, "clients need one of these keys")
      ->check(example::is_not_empty)
      ->allow_extra_args(false);
  app.add_option("--api-key-file", o.key_file,
                 "a file with a key in each line (the command line is seen by others)");
  app.add_flag("--without-key", o.without_key, "other machines need no API key");
  app.add_option("--tls-cert", o.certificate, "a PEM file with the chain of certificates: HTTPS");
  app.add_option("--tls-key", o.tls_key, "a PEM file with its private key");
  app.add_option("--max-body", o.max_body_kib, "KiB that a request may have")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--arrival", o.limits.header_ms,
                 "milliseconds for the headers of a request to arrive, and three times as many for "
                 "its body")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-connections", o.limits.max_connections,
                 "connections at a time; each has a thread")
      ->check(CLI::Range(1, 900))
      ->capture_default_str();
  app.add_option("--time-limit", o.time_limit_s, "seconds for an answer; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--pace", o.routes.pace_ms,
                 "milliseconds between the events of a stream, at least: tokens that come sooner "
                 "share one; 0: an event for each")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--drain", o.drain_s,
                 "seconds that answers have to end after SIGTERM; a second signal ends all at once")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_flag("--quiet", o.quiet, "nothing on stderr but errors");
}

// Of the memory that is free when the program begins.
std::size_t prefix_cache_bytes(const Options& o) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  if (o.prefix_cache_mib) return *o.prefix_cache_mib * kMiB;
  return std::clamp(nibble::available_memory() / 32, 64 * kMiB, 1024 * kMiB);
}

void finish_adapters(Options& o) {
  for (const std::string& text : o.adapters) {
    const std::size_t at = text.find('=');
    if (at == text.npos || at == 0 || at + 1 == text.size()) {
      throw CLI::ValidationError("--adapter", text + ": it is NAME=FILE");
    }
    o.backend.adapters.emplace_back(text.substr(0, at), text.substr(at + 1));
  }
}

void finish_options(Options& o) {
  if (o.certificate.empty() != o.tls_key.empty()) {
    throw CLI::ValidationError("--tls-cert and --tls-key belong together");
  }
  o.routes.is_local = is_loopback(o.host);
  const bool has_key = !o.routes.api_keys.empty() || !o.key_file.empty();
  if (!o.routes.is_local && !has_key && !o.without_key) {
    throw CLI::ValidationError("--host", o.host +
                                             " is reached by other machines: it needs --api-key, "
                                             "or --without-key if all may use it");
  }
  for (const nibble::ops::KvType type : nibble::ops::kKvTypes) {
    if (o.kv == to_string(type)) o.backend.scheduler.kv_type = type;
  }
  auto& scheduler = o.backend.scheduler;
  scheduler.max_step_tokens = std::max(scheduler.max_step_tokens, scheduler.max_batch);
  scheduler.prefix_cache_bytes = prefix_cache_bytes(o);
  finish_adapters(o);
  o.limits.max_body_bytes = o.max_body_kib << 10;
  o.limits.body_ms = 3 * o.limits.header_ms;
  o.routes.time_limit_ms = o.time_limit_s * 1000;
}

Result<void> read_keys(Options& o) {
  if (o.key_file.empty()) return nibble::ok();
  NIBBLE_TRY(text, example::read_text(o.key_file));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty()) o.routes.api_keys.push_back(line);
  }
  if (!o.routes.api_keys.empty()) return nibble::ok();
  return Error{nibble::Errc::invalid_argument,
               nibble::printable(o.key_file) + ": there is no key in it"};
}

// The files of the page; those that are missing are empty.
server::Page read_page() {
  const auto read = [](const char* name) {
    const auto text = example::read_text(std::string(NIBBLE_EXAMPLES_DIR "/serve/") + name);
    return text ? *text : std::string();
  };
  return {read("index.html"), read("page.js")};
}

void say(const Options& o, const std::string& text) {
  if (!o.quiet) std::fprintf(stderr, "%s\n", text.c_str());
}

// Runs while it exists; in the end all connections are closed.
class Listening {
 public:
  explicit Listening(server::HttpServer& http)
      : http_(http), thread_([this] {
          http_.listen_after_bind();
          has_ended_ = true;
        }) {}
  Listening(const Listening&) = delete;
  Listening& operator=(const Listening&) = delete;
  ~Listening() {
    // Before it runs, it would not hear of the end.
    while (!http_.is_running() && !has_ended_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    http_.end();
    thread_.join();
  }

 private:
  server::HttpServer& http_;
  std::atomic<bool> has_ended_{false};
  std::thread thread_;
};

std::int64_t now_ms() { return nibble::monotonic_nanoseconds() / 1'000'000; }

// Until a signal comes; meanwhile, with a governor, does what its sensors ask for. Errors: those of
// loading the model.
Result<void> wait_for_signal(const Options& o, server::Backend& backend, server::Power* power) {
  constexpr std::int64_t kLookMs = 50;
  const std::int64_t period = power == nullptr ? kLookMs : power->period_ms();
  std::int64_t next = 0;  // update of the governor
  for (bool is_ready = false; !interrupted;
       std::this_thread::sleep_for(std::chrono::milliseconds(std::min(kLookMs, period)))) {
    if (!is_ready) {
      if (backend.has_failed()) return backend.wait();
      is_ready = backend.pool().is_ready();
      if (is_ready) say(o, "ready");
    }
    if (!is_ready || power == nullptr || now_ms() < next) continue;
    next = now_ms() + period;
    if (const std::string change = power->update(now_ms()); !change.empty()) say(o, change);
  }
  return nibble::ok();
}

Result<int> run(Options& o) {
  example::catch_signals();
  NIBBLE_CHECK(read_keys(o));
  std::unique_ptr<server::TlsContext> tls;
  if (!o.certificate.empty()) {
    NIBBLE_TRY(made, server::TlsContext::create(o.certificate, o.tls_key));
    tls = std::move(made);
  }
  NIBBLE_TRY(backend, server::Backend::create(o.backend));
  std::unique_ptr<server::Power> power;
  if (o.power.is_on) {
    NIBBLE_TRY(made, server::Power::create(*backend, o.backend.model, o.power));
    power = std::move(made);
  }
  server::HttpServer http(o.limits, std::move(tls));
  server::Routes routes(http, *backend, o.routes, read_page());
  NIBBLE_CHECK(routes.install());
  NIBBLE_TRY(port, http.bind(o.host, o.port));
  const std::string shown = o.host.find(':') == o.host.npos ? o.host : "[" + o.host + "]";
  std::printf("listening at %s://%s:%d\n", http.has_tls() ? "https" : "http", shown.c_str(), port);
  std::fflush(stdout);

  const Listening listening(http);
  NIBBLE_CHECK(wait_for_signal(o, *backend, power.get()));
  say(o, "ending: " + std::to_string(http.n_active()) + " requests are still answered");
  http.drain();
  const auto begin = std::chrono::steady_clock::now();
  while (http.n_active() > 0 &&
         std::chrono::steady_clock::now() - begin < std::chrono::seconds(o.drain_s)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (const std::size_t n = http.n_active(); n > 0) {
    return Error{nibble::Errc::limit,
                 std::to_string(n) + " requests did not end in time (--drain)"};
  }
  return example::kOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A model behind the OpenAI API.", "serve");
  Options options;
  add_model_options(app, options);
  add_power_options(app, options);
  add_http_options(app, options);
  app.footer(
      "POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /tokenize, "
      "/detokenize, /admin/model; GET /v1/models, /health, /metrics, / (a page).\n"
      "Exit codes: 0 ended by a signal with all requests answered, 1 failed, 2 wrong usage.");
  app.callback([&options] { finish_options(options); });
  return example::run(app, argc, argv, [&] { return run(options); });
}
