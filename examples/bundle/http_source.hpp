// SPDX-License-Identifier: Apache-2.0
//
// Bundles from a web server, by HTTP or HTTPS with ranges. Each request has a connection of its
// own.
#pragma once

#include <httplib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/result.hpp"
#include "nibble/serve/download.hpp"

namespace example {

struct HttpSourceOptions {
  std::string url = {};            // of the bundle's folder: "https://models.example/home/7"
  std::string authorization = {};  // sent as the header of this name, if it is not empty
  std::string ca_file = {};        // certificates to trust instead of the system's
  int timeout_s = 30;              // for a connection, and for the next bytes
};

class HttpSource final : public nibble::serve::BundleSource {
 public:
  explicit HttpSource(HttpSourceOptions options) : options_(std::move(options)) {}

  nibble::Result<std::string> text(const std::string& name, std::uint64_t limit) override {
    std::string out;
    bool is_too_much = false;
    const auto got = get(name, {}, 200, {}, [&](const char* data, std::size_t n) {
      is_too_much = n > limit - out.size();
      if (!is_too_much) out.append(data, n);
      return !is_too_much;
    });
    if (is_too_much) return fail(nibble::Errc::limit, name, "too many bytes");
    if (!got) return nibble::Error(got.error());
    return out;
  }

  nibble::Result<void> fetch(const std::string& name, std::uint64_t offset, std::uint64_t size,
                             Sink sink) override {
    const std::string range = std::to_string(offset) + "-" + std::to_string(offset + size - 1);
    bool is_enough = false;
    auto got = get(name, "bytes=" + range, 206, "bytes " + range + "/",
                   [&](const char* data, std::size_t n) {
                     is_enough = !sink({reinterpret_cast<const std::byte*>(data), n});
                     return !is_enough;
                   });
    if (is_enough) return nibble::ok();
    return got;
  }

 private:
  nibble::Error fail(nibble::Errc code, const std::string& name, const std::string& what) const {
    return {code, nibble::printable(options_.url + "/" + name) + ": " + what};
  }

  // A path as it stands in a request.
  static std::string escaped(std::string_view path) {
    std::string out;
    for (const char c : path) {
      const auto code = static_cast<unsigned char>(c);
      const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                            (c >= '0' && c <= '9') ||
                            std::string_view("-._~/").find(c) != std::string_view::npos;
      if (is_plain) {
        out.push_back(c);
      } else {
        out.push_back('%');
        out.push_back("0123456789ABCDEF"[code >> 4]);
        out.push_back("0123456789ABCDEF"[code & 15]);
      }
    }
    return out;
  }

  // Errors: io (no answer, or one that may be another later), not_found, unsupported (a server
  // without ranges, or no address of one), invalid_argument (the server refuses).
  template <class Take>
  nibble::Result<void> get(const std::string& name, const std::string& range, int expected_status,
                           const std::string& expected_range, const Take& take) const {
    using nibble::Errc;
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    const bool is_address =
        options_.url.starts_with("http://") || options_.url.starts_with("https://");
#else
    const bool is_address = options_.url.starts_with("http://");
#endif
    if (!is_address) return fail(Errc::unsupported, name, "no address that is known here");
    const std::size_t host = options_.url.find("//") + 2;
    const std::size_t end = (std::min)(options_.url.find('/', host), options_.url.size());
    httplib::Client client(options_.url.substr(0, end));
    if (!client.is_valid()) return fail(Errc::unsupported, name, "no address of a server");
    client.set_url_encode(false);
    client.set_connection_timeout(options_.timeout_s);
    client.set_read_timeout(options_.timeout_s);
    client.set_write_timeout(options_.timeout_s);
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    if (!options_.ca_file.empty()) client.set_ca_cert_path(options_.ca_file.c_str());
    client.enable_server_certificate_verification(true);
#endif
    httplib::Headers headers;
    if (!range.empty()) headers.emplace("Range", range);
    if (!options_.authorization.empty()) headers.emplace("Authorization", options_.authorization);
    int status = 0;
    bool is_expected = false;
    const auto reply = client.Get(
        options_.url.substr(end) + "/" + escaped(name), headers,
        [&](const httplib::Response& response) {
          status = response.status;
          is_expected = status == expected_status &&
                        response.get_header_value("Content-Range").starts_with(expected_range);
          return is_expected;
        },
        [&](const char* data, std::size_t n) { return take(data, n); });
    if (is_expected && reply) return nibble::ok();
    if (status == 0 || is_expected) {
      return fail(Errc::io, name, "no whole answer: " + httplib::to_string(reply.error()));
    }
    if (status == 200 && expected_status == 206) {
      return fail(Errc::unsupported, name, "the server sends no ranges");
    }
    const bool is_passing =
        status >= 500 || status == 408 || status == 425 || status == 429 || status == 206;
    const Errc code = is_passing                       ? Errc::io
                      : status == 404 || status == 410 ? Errc::not_found
                                                       : Errc::invalid_argument;
    return fail(code, name, "status " + std::to_string(status));
  }

  HttpSourceOptions options_;
};

}  // namespace example
