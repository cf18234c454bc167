// SPDX-License-Identifier: Apache-2.0
//
// Tests of the program serve, which it starts itself, and a load of many clients.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "../common.hpp"
#include "check_api.hpp"
#include "check_ends.hpp"
#include "check_hostile.hpp"
#include "check_models.hpp"
#include "load.hpp"
#include "server_process.hpp"

namespace {

namespace client = example::client;
using client::check;
using client::ServerProcess;

// A folder that is removed with it.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "nibble_serve_XXXXXX").string();
    if (::mkdtemp(name.data()) != nullptr) path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct Options {
  std::string part, program, model, promtool, golden;
  std::vector<std::size_t> n_clients = {1, 8, 64};
  std::size_t n_requests = 200;
  int change_ms = 300;
};

void check_load(const Options& o) {
  const Folder models;
  for (const char* const name : {"a.gguf", "b.gguf"}) {
    std::filesystem::copy_file(o.model, models.path() / name);
  }
  ServerProcess server(o.program, {"--model", o.model, "--models", models.path().string()});
  if (!server.wait_until_ready()) return check(false, "it does not become ready");
  check_load(server, o.n_clients, o.n_requests, o.change_ms, {"a.gguf", "b.gguf"});
  for (const char* const name : {"../a.gguf", "c.gguf", ".gguf", "a.gguf/", "/etc/passwd"}) {
    client::check_error(
        client::post(server.port(), "/admin/model", std::string("{\"model\": \"") + name + "\"}"),
        404, "folder", std::string("the model ") + name);
  }
  std::ofstream(models.path() / "bad.gguf") << "no model";
  client::check_reply(client::post(server.port(), "/admin/model", "{\"model\": \"bad.gguf\"}"), 500,
                      "a file that is no model");
  client::check_chat(server.port());
}

void check_metrics(const Options& o) {
  ServerProcess server(o.program, {"--model", o.model});
  if (!server.wait_until_ready()) return check(false, "it does not become ready");
  client::check_chat(server.port());
  const Folder folder;
  const std::string file = (folder.path() / "metrics").string();
  std::ofstream(file) << client::get(server.port(), "/metrics").body;
  check(std::system((o.promtool + " check metrics < " + file).c_str()) == 0, "promtool");
}

int run(const Options& o) {
  constexpr std::size_t kConnections = 40;
  if (o.part == "load") {
    check_load(o);
  } else if (o.part == "metrics") {
    check_metrics(o);
  } else if (o.part == "models") {
    const Folder folder;
    client::check_embeddings(o.program, o.model, o.golden, folder.path());
    client::check_adapters(o.program, o.model, folder.path());
  } else if (o.part == "power") {
    const Folder folder;
    client::check_power(o.program, o.model, folder.path());
  } else if (o.part == "hostile") {
    ServerProcess server(o.program, {"--model", o.model, "--arrival", "2000", "--max-connections",
                                     std::to_string(kConnections)});
    if (server.wait_until_ready()) client::check_hostile(server.port(), 2000, kConnections);
    server.terminate();
    check(server.wait_for_end() == 0, "the exit code after hostile requests");
  } else if (o.part == "ends") {
    const Folder folder;
    {
      ServerProcess server(o.program, {"--model", o.model, "--parallel", "1"});
      if (!server.wait_until_ready()) return 1;
      client::check_gone(server.port());
      client::check_drain(server);
    }
    client::check_keys(o.program, o.model);
    client::check_tls(o.program, o.model, folder.path());
  } else {
    ServerProcess server(o.program, {"--model", o.model});
    if (server.wait_until_ready()) client::check_api(server.port());
  }
  std::printf("%s: %d wrong\n", o.part.c_str(), client::n_wrong());
  return client::n_wrong() == 0 ? example::kOk : example::kFailed;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Tests the program serve.", "serve_client");
  Options o;
  app.add_option("PART", o.part, "api, hostile, load, ends, metrics, models or power")
      ->required()
      ->check(CLI::IsMember({"api", "hostile", "load", "ends", "metrics", "models", "power"}));
  app.add_option("--program", o.program, "the server")->required();
  app.add_option("--model", o.model, "the model for home commands")->required();
  app.add_option("--promtool", o.promtool, "Prometheus' checker, for metrics");
  app.add_option("--golden", o.golden, "a golden file of embeddings, for models");
  app.add_option("--clients", o.n_clients, "for load: how many at a time, one after the other")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--requests", o.n_requests, "for load: of all clients together")
      ->capture_default_str();
  app.add_option("--change", o.change_ms, "for load: milliseconds between changes of the model")
      ->capture_default_str();
  return example::run(app, argc, argv, [&] { return nibble::Result<int>(run(o)); });
}
