// SPDX-License-Identifier: Apache-2.0
//
// What the server answers to: who may ask, and which function does what is asked.
#pragma once

#include <httplib.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "errors.hpp"
#include "generation.hpp"
#include "http_server.hpp"
#include "json_out.hpp"
#include "request_reader.hpp"

namespace example::server {

// The page that is shown at "/".
struct Page {
  std::string html, script;  // empty: its files are not there
};

struct RouteOptions {
  std::vector<std::string> api_keys;  // none: nobody is asked for one
  bool is_local = true;               // bound to the loopback address
  nibble::Index time_limit_ms = 0;    // for an answer
  nibble::Index pace_ms = 5;          // between the events of a stream, at least
};

class Routes {
 public:
  // Both must outlive it, and it the server's run.
  Routes(HttpServer& server, Backend& backend, const RouteOptions& options, Page page)
      : server_(server), backend_(backend), options_(options), page_(std::move(page)) {}

  // Errors: those of Registry::counter().
  nibble::Result<void> install() {
    NIBBLE_CHECK(make_counters());
    server_.set_default_headers({{"X-Content-Type-Options", "nosniff"}});
    server_.set_pre_routing_handler([this](const Request& request, Response& response) {
      auto refused = check(request);
      if (!refused) return httplib::Server::HandlerResponse::Unhandled;
      send(response, *refused);
      return httplib::Server::HandlerResponse::Handled;
    });
    server_.set_error_handler([](const Request&, Response& response) { explain(response); });
    server_.set_exception_handler([](const Request&, Response& response, std::exception_ptr) {
      send(response, ApiError::internal("out of memory"));  // nothing else throws here
    });
    server_.set_logger([this](const Request&, const Response& response) {
      const int kind = response.status / 100;
      if (kind >= 2 && kind <= 5) answered_[static_cast<std::size_t>(kind)]->add();
    });
    for (const Route& route : kRoutes) {
      if (route.get != nullptr) {
        server_.Get(route.path, [this, &route](const Request&, Response& response) {
          (this->*route.get)(response);
        });
      } else {
        server_.Post(route.path, [this, &route](const Request& request, Response& response,
                                                const httplib::ContentReader& content) {
          if (const auto body = read(request, response, content)) {
            (this->*route.post)(*body, response);
          }
        });
      }
    }
    return nibble::ok();
  }

 private:
  using Request = httplib::Request;
  using Response = httplib::Response;
  struct Route {
    const char* path;
    bool is_open;  // also for those without a key
    void (Routes::*get)(Response&) = nullptr;
    void (Routes::*post)(const std::string& body, Response&) = nullptr;
  };
  static const std::array<Route, 13> kRoutes;

  // ---- Who may ask ------------------------------------------------------------------------------

  std::optional<ApiError> check(const Request& request) const {
    const Route* route = nullptr;
    for (const Route& one : kRoutes) {
      if (request.path == one.path) route = &one;
    }
    if (route == nullptr) {
      return invalid(404, "there is no " + nibble::printable(request.path.substr(0, 128)));
    }
    const bool is_get = request.method == "GET" || request.method == "HEAD";
    if (is_get ? route->get == nullptr : request.method != "POST" || route->post == nullptr) {
      return invalid(
          405, std::string(route->path) + " is for " + (route->get != nullptr ? "GET" : "POST"));
    }
    if (auto error = check_framing(request)) return error;
    if (auto error = check_host(request)) return error;
    if (!route->is_open && !has_key(request)) {
      return ApiError{401, "authentication_error", "invalid_api_key",
                      "this server wants its API key: Authorization: Bearer KEY"};
    }
    if (route->post == &Routes::change_model && options_.api_keys.empty() &&
        !is_loopback(request.remote_addr)) {
      return invalid(403, "from other machines only with an API key");
    }
    if (server_.is_draining() && !route->is_open) {
      return ApiError::unavailable({nibble::Errc::cancelled, "the server ends"});
    }
    return std::nullopt;
  }

  // Where a body ends must be said once, and clearly: or a proxy in front might see it elsewhere.
  std::optional<ApiError> check_framing(const Request& request) const {
    const std::size_t n_lengths = request.get_header_value_count("Content-Length");
    const std::size_t n_codings = request.get_header_value_count("Transfer-Encoding");
    if (n_lengths + n_codings > 1) {
      return invalid(400, "more than one Content-Length or Transfer-Encoding");
    }
    if (n_codings == 1 && request.get_header_value("Transfer-Encoding") != "chunked") {
      return invalid(400, "Transfer-Encoding must be chunked");
    }
    if (request.method == "POST" && n_lengths + n_codings == 0) {
      return invalid(411, "a request needs Content-Length, or chunks");
    }
    if (request.has_header("Content-Encoding")) {
      return invalid(415, "bodies are taken without Content-Encoding");
    }
    if (n_lengths == 0) return std::nullopt;
    const std::string length = request.get_header_value("Content-Length");
    const bool is_number = !length.empty() && length.size() < 19 &&
                           length.find_first_not_of("0123456789") == length.npos;
    if (!is_number) return invalid(400, "Content-Length must be a number");
    if (std::stoull(length) > server_.limits().max_body_bytes) return too_large();
    return std::nullopt;
  }

  // A page of somebody else whose name leads to this machine must not get answers ("DNS
  // rebinding"): a server that asks for no key answers to its own names only.
  std::optional<ApiError> check_host(const Request& request) const {
    const std::string host = request.get_header_value("Host");
    if (request.get_header_value_count("Host") != 1) {
      if (host.empty() && request.version == "HTTP/1.0") return std::nullopt;
      return invalid(400, "a request needs one Host");
    }
    if (!options_.is_local || !options_.api_keys.empty()) return std::nullopt;
    const std::size_t port = host.rfind(':');
    const bool has_port = port != host.npos && host.find(']', port) == host.npos;
    const std::string name = has_port ? host.substr(0, port) : host;
    if (name == "localhost" || name == "[::1]" || is_loopback(name)) return std::nullopt;
    return invalid(403, "without an API key this server answers to localhost only");
  }
  static bool is_loopback(const std::string& address) {
    const bool is_v4 =
        address.starts_with("127.") && address.find_first_not_of("0123456789.") == address.npos;
    return is_v4 || address == "::1" || address == "::ffff:127.0.0.1";
  }

  bool has_key(const Request& request) const {
    if (options_.api_keys.empty()) return true;
    std::string given = request.get_header_value("Authorization");
    if (given.starts_with("Bearer ")) given.erase(0, 7);
    if (given.empty()) given = request.get_header_value("X-Api-Key");
    bool is_known = false;
    for (const std::string& key : options_.api_keys) is_known |= is_same(given, key);
    return is_known;
  }
  // In a time that does not tell how much of a key was right.
  static bool is_same(const std::string& given, const std::string& key) {
    unsigned different = given.size() == key.size() ? 0 : 1;
    for (std::size_t i = 0; i < given.size(); ++i) {
      different |= static_cast<unsigned>(static_cast<unsigned char>(given[i]) ^
                                         static_cast<unsigned char>(key[i % key.size()]));
    }
    return different == 0;
  }

  // ---- Bodies, answers, errors ------------------------------------------------------------------

  // The body; nothing if it was refused, and the response says why.
  std::optional<std::string> read(const Request& request, Response& response,
                                  const httplib::ContentReader& content) const {
    // (This also keeps out forms that pages of others send without asking the browser's user.)
    std::string type = request.get_header_value("Content-Type");
    type.erase(std::min(type.find(';'), type.size()));
    if (type != "application/json") {
      send(response, invalid(415, "Content-Type must be application/json"));
      return std::nullopt;
    }
    std::string body;
    bool is_too_large = false;
    const bool is_read = content([&](const char* bytes, std::size_t n) {
      is_too_large = n > server_.limits().max_body_bytes - body.size();
      if (!is_too_large) body.append(bytes, n);
      return !is_too_large;
    });
    if (is_read) {
      Connection::current()->body_was_read();
      return body;
    }
    if (is_too_large) {
      send(response, too_large());
    } else {
      response.status = 400;
      explain(response);
    }
    return std::nullopt;
  }

  ApiError too_large() const {
    return invalid(
        413, "a request may have " + std::to_string(server_.limits().max_body_bytes) + " bytes");
  }
  static ApiError invalid(int status, std::string message) {
    return {status, "invalid_request_error", nullptr, std::move(message)};
  }
  static void send(Response& response, const ApiError& error) {
    response.status = error.status;
    response.set_content(error.json().text(), "application/json");
    if (error.status == 429 || error.status == 503) response.set_header("Retry-After", "1");
    if (error.status == 401) response.set_header("WWW-Authenticate", "Bearer");
  }
  static void send(Response& response, const Json& json) {
    response.set_content(json.text(), "application/json");
  }

  // What httplib refuses has no text yet.
  static void explain(Response& response) {
    if (!response.body.empty()) return;
    const Connection* const connection = Connection::current();
    if (connection != nullptr && connection->is_too_slow()) response.status = 408;
    if (connection != nullptr && connection->is_too_large()) response.status = 431;
    const char* const message = response.status == 408   ? "the request took too long to arrive"
                                : response.status == 414 ? "the address is too long"
                                : response.status == 416 ? "answers have no ranges"
                                : response.status == 431 ? "the request is too large"
                                                         : "this is no HTTP request";
    send(response, invalid(response.status, message));
  }

  nibble::Result<void> make_counters() {
    for (std::size_t kind = 2; kind <= 5; ++kind) {
      NIBBLE_TRY(counter, backend_.registry().counter("nibble_http_requests_total",
                                                      "Requests by the class of their status.",
                                                      {{"status", std::to_string(kind) + "xx"}}));
      answered_[kind] = counter;
    }
    return nibble::ok();
  }

  // ---- What is asked ----------------------------------------------------------------------------

  void chat(const std::string& body, Response& response) { generate(Api::chat, body, response); }
  void complete(const std::string& body, Response& response) {
    generate(Api::completions, body, response);
  }
  void respond(const std::string& body, Response& response) {
    generate(Api::responses, body, response);
  }

  void generate(Api api, const std::string& body, Response& response) {
    auto request = RequestReader(body).generation(api);
    if (!request) return send(response, ApiError::bad_request(request.error()));
    auto started = Generation::start(backend_, *std::move(request), options_.time_limit_ms,
                                     options_.pace_ms);
    if (!started) return send(response, started.error());
    const std::shared_ptr<Generation> generation = std::move(*started);
    if (!generation->is_stream()) {
      auto whole = generation->whole();
      if (!whole) {
        response.status = 499;  // nobody reads it; the status of nginx for this
      } else if (!*whole) {
        send(response, whole->error());
      } else {
        send(response, **whole);
      }
      return;
    }
    response.set_header("Cache-Control", "no-store");
    response.set_chunked_content_provider(
        "text/event-stream",
        [generation](std::size_t, httplib::DataSink& sink) { return generation->stream(sink); });
  }

  void embed(const std::string& body, Response& response) {
    const auto request = RequestReader(body).embeddings();
    if (!request) return send(response, ApiError::bad_request(request.error()));
    std::int64_t n_tokens = 0;
    const auto rows = backend_.embed(request->inputs, n_tokens);
    if (!rows) return send(response, ApiError::bad_request(rows.error()));
    std::vector<Json> data;
    for (std::size_t i = 0; i < rows->size(); ++i) {
      const std::vector<float>& row = (*rows)[i];
      std::vector<Json> numbers;
      if (!request->is_base64) {
        for (const float number : row) numbers.emplace_back(static_cast<double>(number));
      }
      data.push_back(Json::object(
          {{"object", "embedding"},
           {"index", i},
           {"embedding", request->is_base64 ? Json(base64(row)) : Json::array(numbers)}}));
    }
    send(response,
         Json::object(
             {{"object", "list"},
              {"data", Json::array(data)},
              {"model", backend_.embedder_name()},
              {"usage", Json::object({{"prompt_tokens", n_tokens}, {"total_tokens", n_tokens}})}}));
  }
  // Of the bytes of the numbers, as the API has them (little-endian).
  static std::string base64(const std::vector<float>& row) {
    static constexpr char kDigits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::vector<unsigned char> bytes(row.size() * sizeof(float));
    std::memcpy(bytes.data(), row.data(), bytes.size());
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
      const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
      std::uint32_t bits = 0;
      for (std::size_t j = 0; j < 3; ++j) bits = bits << 8 | (j < n ? bytes[i + j] : 0U);
      for (std::size_t j = 0; j < 4; ++j) {
        text += j <= n ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
      }
    }
    return text;
  }

  void tokenize(const std::string& body, Response& response) {
    const auto request = RequestReader(body).tokenize();
    if (!request) return send(response, ApiError::bad_request(request.error()));
    const auto use = backend_.use();
    if (!use) return send(response, ApiError::unavailable(use.error()));
    const auto& tokenizer = use->dialect->tokenizer();
    nibble::text::EncodeOptions options;
    options.parse_special = request->parse_special;
    if (!request->add_special) options.add_bos = options.add_eos = false;
    const auto ids = tokenizer.encode(request->text, options);
    if (!ids) return send(response, ApiError::bad_request(ids.error()));
    std::vector<Json> tokens;
    for (const std::int32_t id : *ids) {
      tokens.push_back(!request->with_pieces
                           ? Json(id)
                           : Json::object({{"id", id}, {"piece", tokenizer.piece(id)}}));
    }
    send(response, Json::object({{"tokens", Json::array(tokens)}, {"count", ids->size()}}));
  }

  void detokenize(const std::string& body, Response& response) {
    const auto ids = RequestReader(body).detokenize();
    if (!ids) return send(response, ApiError::bad_request(ids.error()));
    const auto use = backend_.use();
    if (!use) return send(response, ApiError::unavailable(use.error()));
    send(response, Json::object({{"content", use->dialect->tokenizer().decode(*ids)}}));
  }

  void models(Response& response) {
    const auto status = backend_.pool().status();
    std::vector<Json> data;
    const auto add = [&](const std::string& name) {
      data.push_back(Json::object(
          {{"id", name}, {"object", "model"}, {"created", started_}, {"owned_by", "nibble"}}));
    };
    if (status && !status->variant.empty()) add(status->variant);
    for (const auto& [name, file] : backend_.adapters()) add(name);
    if (backend_.has_embedder()) add(backend_.embedder_name());
    send(response, Json::object({{"object", "list"}, {"data", Json::array(data)}}));
  }

  void health(Response& response) {
    if (server_.is_draining()) {
      return send(response, ApiError::unavailable({nibble::Errc::cancelled, "the server ends"}));
    }
    if (!backend_.pool().is_ready()) {
      return send(response, ApiError::unavailable({nibble::Errc::not_found, {}}));
    }
    send(response, Json::object({{"status", "ok"}}));
  }

  void metrics(Response& response) {
    const auto text = backend_.metrics_text();
    if (!text) return send(response, ApiError::internal(text.error().message));
    response.set_content(*text, nibble::serve::kMetricsContentType);
  }

  void change_model(const std::string& body, Response& response) {
    const auto begin = std::chrono::steady_clock::now();
    const auto name = RequestReader(body).one_string("model");
    if (!name) return send(response, ApiError::bad_request(name.error()));
    const auto path = backend_.file_of_folder(*name);
    if (!path) return send(response, ApiError::bad_request(path.error()));
    const auto change = backend_.load(*path);
    if (!change) return send(response, ApiError::unavailable(change.error()));
    const auto done = change->wait();
    if (!done && done.error().code == nibble::Errc::cancelled) {
      return send(response, invalid(409, "another change came in between"));
    }
    if (!done) return send(response, ApiError::internal(done.error().message));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    send(response, Json::object({{"model", *name}, {"seconds", seconds.count()}}));
  }

  void page_html(Response& response) {
    send_page(response, page_.html, "text/html; charset=utf-8");
  }
  void page_script(Response& response) {
    send_page(response, page_.script, "text/javascript; charset=utf-8");
  }
  static void send_page(Response& response, const std::string& text, const char* type) {
    if (text.empty()) return send(response, invalid(404, "the files of the page are not there"));
    response.set_header("Content-Security-Policy",
                        "default-src 'self'; style-src 'self' 'unsafe-inline'");
    response.set_content(text, type);
  }

  HttpServer& server_;
  Backend& backend_;
  const RouteOptions options_;
  const Page page_;
  nibble::serve::Counter* answered_[6] = {};  // by the class of the status
  const std::int64_t started_ = static_cast<std::int64_t>(std::time(nullptr));
};

inline const std::array<Routes::Route, 13> Routes::kRoutes = {{
    {"/v1/chat/completions", false, nullptr, &Routes::chat},
    {"/v1/completions", false, nullptr, &Routes::complete},
    {"/v1/responses", false, nullptr, &Routes::respond},
    {"/v1/embeddings", false, nullptr, &Routes::embed},
    {"/v1/models", false, &Routes::models, nullptr},
    {"/tokenize", false, nullptr, &Routes::tokenize},
    {"/detokenize", false, nullptr, &Routes::detokenize},
    {"/metrics", false, &Routes::metrics, nullptr},
    {"/admin/model", false, nullptr, &Routes::change_model},
    {"/health", true, &Routes::health, nullptr},
    {"/", true, &Routes::page_html, nullptr},
    {"/index.html", true, &Routes::page_html, nullptr},
    {"/page.js", true, &Routes::page_script, nullptr},
}};

}  // namespace example::server
