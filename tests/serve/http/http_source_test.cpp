// SPDX-License-Identifier: Apache-2.0
//
// A bundle that comes over HTTP: from a server with ranges on this machine, which breaks off.
#include "examples/bundle/http_source.hpp"

#include <httplib.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/serve/system_files.hpp"
#include "serve/small_bundles.hpp"
#include "serve/values.hpp"
#include "why.hpp"

using namespace nibble;
using test::code_of;

namespace {

// Files below "/v 7/", in ranges; each third answer with a range ends in the middle.
class RangeServer {
 public:
  explicit RangeServer(std::map<std::string, std::string> files) : files_(std::move(files)) {
    server_.Get("/v 7/(.*)", [this](const httplib::Request& request, httplib::Response& response) {
      ++n_requests;
      last_key = request.get_header_value("Authorization");
      const auto found = files_.find(request.matches[1].str());
      if (found == files_.end() || status != 200) {
        response.status = found == files_.end() ? 404 : status.load();
        return;
      }
      const std::string& text = found->second;
      if (is_plain) {  // a server without ranges
        response.set_content(text, "application/octet-stream");
        response.status = 200;
        return;
      }
      const bool breaks = !request.ranges.empty() && n_requests % 3 == 0;
      response.set_content_provider(
          text.size(), "application/octet-stream",
          [this, &text, breaks](std::size_t offset, std::size_t n, httplib::DataSink& sink) {
            const std::size_t part = std::min<std::size_t>(breaks ? n / 2 : n, 4000);
            if (part == 0) return false;
            n_bytes += part;
            return sink.write(text.data() + offset, part) && !(breaks && part < 4000);
          });
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    REQUIRE(port_ > 0);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
  }
  RangeServer(const RangeServer&) = delete;
  RangeServer& operator=(const RangeServer&) = delete;
  ~RangeServer() {
    server_.stop();
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v%207"; }

  std::atomic<int> n_requests{0}, status{200};
  std::atomic<std::uint64_t> n_bytes{0};
  std::atomic<bool> is_plain{false};
  std::string last_key;  // read when nothing is asked for

 private:
  std::map<std::string, std::string> files_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace

TEST_CASE("an update over HTTP fetches the new adapter alone, though the line breaks") {
  const test::ToyCrypto crypto;
  const std::vector<serve::KeyBytes> keys = {test::kToyKey};
  const std::string model = test::text_of_size(60'000, 1);
  const test::SmallBundle before = test::sign_small({{"model.gguf", model}}, 1);
  const test::SmallBundle after = test::sign_small(
      {{"model.gguf", model}, {"adapters/a b+%.bin", test::text_of_size(20'000, 2)}}, 2, 1500);
  auto served = after.files;
  served["bundle.json"] = after.text;
  RangeServer server(served);

  const test::TemporaryFolder folder;
  serve::SystemFiles files;
  const std::string root = folder.path("device");
  for (const std::string& path : {root, root + "/a"}) REQUIRE(files.make_folder(path));
  REQUIRE(files.write(root + "/a/model.gguf", 0, serve::bytes_of(model)));
  REQUIRE(files.write(root + "/a/bundle.json", 0, serve::bytes_of(before.text)));
  auto pool = ThreadPool::create({.n_threads = 2});
  REQUIRE(pool);
  const auto check = [&](const serve::Bundle& bundle, bool) { return bundle.check_all(**pool); };
  auto device = serve::Slots::open(files, root, keys, crypto);
  REQUIRE_MESSAGE(device, test::why(device));
  REQUIRE(device->start(check));

  example::HttpSource source({.url = server.url(), .authorization = "Bearer a", .timeout_s = 5});
  serve::DownloadOptions options;
  options.part_size = 6000;
  const auto done = serve::download(*device, source, **pool, 2000, options);
  REQUIRE_MESSAGE(done, test::why(done));
  CHECK(done->is_installed);
  CHECK(done->progress.n_downloaded >= 20'000);
  CHECK(done->progress.n_downloaded < 30'000);
  CHECK(server.n_requests >= 5);
  CHECK(server.last_key == "Bearer a");
  auto next = serve::Slots::open(files, root, keys, crypto);
  REQUIRE_MESSAGE(next, test::why(next));
  const auto started = next->start(check);
  REQUIRE_MESSAGE(started, test::why(started));
  CHECK(started->bundle.manifest().version == 2);
}

TEST_CASE("what a server may answer to a request for a part") {
  RangeServer server({{"a", test::text_of_size(1000, 1)}});
  example::HttpSource source({.url = server.url(), .timeout_s = 5});
  std::string got;
  const auto fetch = [&](const std::string& name, std::uint64_t at, std::uint64_t n) {
    got.clear();
    return source.fetch(name, at, n, [&](std::span<const std::byte> bytes) {
      got.append(serve::text_of(bytes));
      return true;
    });
  };
  REQUIRE_MESSAGE(fetch("a", 100, 50), test::why(fetch("a", 100, 50)));
  CHECK(got == test::text_of_size(1000, 1).substr(100, 50));
  CHECK(code_of(fetch("b", 0, 5)) == Errc::not_found);
  CHECK(code_of(fetch("a", 2000, 5)) != Errc::out_of_memory);
  for (const int status : {500, 503, 429}) {
    server.status = status;
    CHECK(code_of(fetch("a", 0, 5)) == Errc::io);
  }
  server.status = 403;
  CHECK(code_of(fetch("a", 0, 5)) == Errc::invalid_argument);
  server.status = 200;
  server.is_plain = true;
  CHECK(code_of(fetch("a", 0, 5)) == Errc::unsupported);
  CHECK(got.empty());
  CHECK(test::value_of(source.text("a", 1000)).size() == 1000);
  CHECK(code_of(source.text("a", 999)) == Errc::limit);
  for (const char* const url : {"", "ftp://x/y", "http//x", "http://127.0.0.1:1"}) {
    example::HttpSource none({.url = url, .timeout_s = 1});
    CHECK_FALSE(none.text("a", 10));
  }
}
