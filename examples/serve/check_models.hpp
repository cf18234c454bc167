// SPDX-License-Identifier: Apache-2.0
//
// Models beside the one that serves: one for embeddings, adapters, smaller variants for a machine
// that is hot. All are made here, of random numbers; the first is one of tests/model/goldens, whose
// embeddings are known.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check_api.hpp"
#include "client_http.hpp"
#include "load.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "server_process.hpp"
#include "tests/model/golden_weights.hpp"

namespace example::client {

// Adds a tensor (n, k) of weights; (k) if n is 0. They live in `kept`.
inline void add_weights(nibble::io::GgufWriter& writer, std::list<std::vector<float>>& kept,
                        const std::string& name, nibble::Index n, nibble::Index k) {
  kept.push_back(test::goldens::random_weights(name, n, k));
  std::vector<std::uint64_t> dims = {static_cast<std::uint64_t>(k)};
  if (n > 0) dims.push_back(static_cast<std::uint64_t>(n));
  writer.add_tensor(name, nibble::io::GgmlType::f32, dims, std::as_bytes(std::span(kept.back())));
}

// ---- Embeddings --------------------------------------------------------------------------------

struct EmbeddingGolden {
  std::vector<std::int32_t> tokens;
  std::vector<float> expected;
};

// Writes the model of a golden file, with a tokenizer for the letters a to t.
inline nibble::Result<EmbeddingGolden> write_embedding_model(const std::string& golden,
                                                             const std::string& to) {
  NIBBLE_TRY(file, nibble::io::Gguf::open(golden));
  nibble::io::GgufWriter writer;
  for (const nibble::io::GgufEntry& entry : file.metadata()) {
    if (!entry.key.starts_with("golden.")) writer.set(entry.key, entry.value);
  }
  std::vector<std::string> pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"};
  for (char c = 'a'; pieces.size() < 24; ++c) pieces.push_back("\xE2\x96\x81" + std::string(1, c));
  std::vector<std::int32_t> types(pieces.size(), 1);
  for (std::size_t i = 0; i < 4; ++i) types[i] = 3;
  writer.set("tokenizer.ggml.model", std::string_view("bert"));
  writer.set_array("tokenizer.ggml.tokens", pieces);
  writer.set_array("tokenizer.ggml.token_type", types);
  const std::pair<const char*, std::uint32_t> special[] = {
      {"unknown", 1}, {"cls", 2}, {"bos", 2}, {"seperator", 3}, {"eos", 3}};
  for (const auto& [key, id] : special) {
    writer.set(std::string("tokenizer.ggml.") + key + "_token_id", id);
  }
  NIBBLE_TRY(names, file.get_strings("golden.names"));
  NIBBLE_TRY(shapes, file.get_array<std::int32_t>("golden.shapes"));
  std::list<std::vector<float>> kept;
  for (std::size_t i = 0; i < names.size() && 2 * i + 1 < shapes.size(); ++i) {
    add_weights(writer, kept, std::string(names[i]), shapes[2 * i], shapes[2 * i + 1]);
  }
  NIBBLE_CHECK(writer.write(to));
  NIBBLE_TRY(tokens, file.get_array<std::int32_t>("golden.tokens"));
  EmbeddingGolden out{std::move(tokens), {}};
  for (const nibble::io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name != "golden.expected") continue;
    out.expected.resize(tensor.data.size() / sizeof(float));
    std::memcpy(out.expected.data(), tensor.data.data(), tensor.data.size());
  }
  return out;
}

inline std::vector<double> numbers_of(const JsonValue& array) {
  std::vector<double> out;
  for (const JsonValue& element : array.elements()) out.push_back(element.number());
  return out;
}
// 1 if both point the same way; 0 if their widths differ.
template <class T>
double cosine(const std::vector<double>& a, const std::vector<T>& b) {
  double product = 0, of_a = 0, of_b = 0;
  for (std::size_t i = 0; i < a.size() && a.size() == b.size(); ++i) {
    const double x = a[i], y = static_cast<double>(b[i]);
    product += x * y;
    of_a += x * x;
    of_b += y * y;
  }
  return of_a * of_b > 0 ? product / std::sqrt(of_a * of_b) : 0;
}

inline void check_embeddings(const std::string& program, const std::string& model,
                             const std::string& golden, const std::filesystem::path& folder) {
  const std::string file = (folder / "letters.gguf").string();
  const auto made = write_embedding_model(golden, file);
  if (!made) return check(false, made.error().message);
  ServerProcess server(program, {"--model", model, "--embedding-model", file});
  if (!server.wait_until_ready()) return check(false, "it does not become ready");
  const int port = server.port();
  const auto embed = [&](const std::string& body) {
    const Reply reply = post(port, "/v1/embeddings", body);
    check_reply(reply, 200, "embeddings of " + body);
    return json_of(reply.body);
  };
  std::string tokens;
  for (const std::int32_t id : made->tokens)
    tokens += (tokens.empty() ? "" : ",") + std::to_string(id);
  const JsonValue known = embed("{\"input\": [" + tokens + "]}");
  const std::vector<double> row = numbers_of(at(known, "data.0.embedding"));
  check(cosine(row, made->expected) > 1 - 1e-9, "the embedding of a golden file");
  check(std::fabs(cosine(row, row) - 1) < 1e-12 && at(known, "model").string() == "letters",
        "an embedding: " + std::to_string(row.size()));
  check(at(known, "usage.prompt_tokens").number() == static_cast<double>(made->tokens.size()),
        "tokens of an embedding");

  const JsonValue both = embed(R"({"input": ["a b c", "t s"], "model": "letters"})");
  const std::vector<double> first = numbers_of(at(both, "data.0.embedding"));
  const std::vector<double> second = numbers_of(at(both, "data.1.embedding"));
  check(at(both, "data.1.index").number() == 1 && at(both, "usage.total_tokens").number() == 9,
        "two texts");  // each with its begin and its end
  check(numbers_of(at(embed(R"({"input": "t s"})"), "data.0.embedding")) == second, "a text alone");
  check(cosine(first, second) < 0.999 && cosine(first, first) > 0.999, "two texts are one");
  double length = 0;
  for (const double x : first) length += x * x;
  check(std::fabs(length - 1) < 1e-5, "the length of an embedding");
  const std::string coded =
      at(embed(R"({"input": "t s", "encoding_format": "base64"})"), "data.0.embedding").string();
  check(coded.size() == (second.size() * sizeof(float) + 2) / 3 * 4, "base64");
  check_error(post(port, "/v1/embeddings", R"({"input": [99999]})"), 400, "", "no such token");
  check_error(post(port, "/v1/embeddings", R"({"input": []})"), 400, "", "no input");
  const std::string models = get(port, "/v1/models").body;
  check(models.find("\"letters\"") != models.npos, models);
  check_chat(port);
}

// ---- Adapters ----------------------------------------------------------------------------------

// Random factors of two ranks for a matrix of the model.
inline nibble::Result<void> write_adapter(const std::string& model, const std::string& to) {
  NIBBLE_TRY(file, nibble::io::Gguf::open(model));
  NIBBLE_TRY(architecture, file.get_string("general.architecture"));
  nibble::io::GgufWriter writer;
  writer.set("general.type", std::string_view("adapter"));
  writer.set("general.architecture", architecture);
  writer.set("adapter.type", std::string_view("lora"));
  writer.set("adapter.lora.alpha", 100.0f);  // so that answers differ
  std::list<std::vector<float>> kept;
  const std::string name = "blk.0.attn_output.weight";
  for (const nibble::io::GgufTensor& tensor : file.tensors()) {
    if (tensor.name != name) continue;
    const auto k = static_cast<nibble::Index>(tensor.dims[0]);
    const auto n = static_cast<nibble::Index>(tensor.dims[1]);
    add_weights(writer, kept, name + ".lora_a", 2, k);
    add_weights(writer, kept, name + ".lora_b", n, 2);
  }
  return writer.write(to);
}

inline void check_adapters(const std::string& program, const std::string& model,
                           const std::filesystem::path& folder) {
  const std::string file = (folder / "odd.gguf").string();
  const auto made = write_adapter(model, file);
  if (!made) return check(false, made.error().message);
  ServerProcess server(
      program, {"--model", model, "--adapter", "odd=" + file, "--adapter", "off=" + file + ":0"});
  if (!server.wait_until_ready()) return check(false, "it does not become ready");
  const int port = server.port();
  const auto ask_as = [&](const std::string& name) {
    const Reply reply =
        post(port, "/v1/chat/completions",
             messages_with(kCommand, ", \"max_tokens\": 30, \"model\": \"" + name + "\""));
    check_reply(reply, 200, "the adapter " + name);
    return json_of(reply.body);
  };
  double n_tokens = 0;
  std::string odd;
  for (int i = 0; i < 3; ++i) {
    const JsonValue answer = ask_as("odd");
    n_tokens += at(answer, "usage.completion_tokens").number();
    check(at(answer, "model").string() == "odd", "the name of an adapter");
    const std::string text = at(answer, "choices.0.message.content").string();
    check(text != kCall && (i == 0 || text == odd), "an adapter: " + text);
    odd = text;
  }
  const JsonValue off = ask_as("off");
  check(at(off, "choices.0.message.content").string() == kCall, "an adapter of strength 0");
  check(at(ask_as("other"), "model").string() == "home-commands-f16", "no adapter");
  check_chat(port);
  const std::string models = get(port, "/v1/models").body;
  check(models.find("\"odd\"") != models.npos && models.find("\"off\"") != models.npos, models);
  const auto counted = [&](const std::string& name, const std::string& adapter) {
    return metric(port, "nibble_adapter_" + name + "_total{adapter=\"" + adapter + "\"}");
  };
  check(counted("requests", "odd") == 3 && counted("requests", "off") == 1, "requests of adapters");
  check(counted("generation_tokens", "odd") == n_tokens, "tokens of an adapter");
  check(counted("prompt_tokens", "off") == at(off, "usage.prompt_tokens").number(),
        "prompts of an adapter");
}

// ---- Less work ---------------------------------------------------------------------------------

// Whether it becomes true in time.
inline bool comes_true(const std::function<bool()>& is_true) {
  for (int waited = 0; waited < kWaitMs; waited += 20) {
    if (is_true()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

// A machine whose sensors are files of this folder.
class SimulatedMachine {
 public:
  explicit SimulatedMachine(std::filesystem::path folder) : folder_(std::move(folder)) {}
  void set(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = folder_ / path, fresh = folder_ / "fresh";
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(fresh) << text << '\n';
    std::filesystem::rename(fresh, file);  // so that nobody reads the half of it
  }
  void set_temperature(int degrees) const {
    set("sys/class/thermal/thermal_zone0/temp", std::to_string(degrees * 1000));
  }
  void set_memory(const std::string& kilobytes) const {
    set("proc/meminfo", "MemTotal: 99 kB\nMemAvailable: " + kilobytes + " kB");
  }
  void set_battery(int percent, const char* status) const {
    set("sys/class/power_supply/BAT0/capacity", std::to_string(percent));
    set("sys/class/power_supply/BAT0/status", status);
  }

 private:
  std::filesystem::path folder_;
};

// Heat, no memory, cold and an empty battery, while clients are answered.
inline void check_power(const std::string& program, const std::string& model,
                        const std::filesystem::path& folder) {
  const std::string small = (folder / "small.gguf").string();
  std::filesystem::copy_file(model, small);
  const SimulatedMachine machine(folder / "machine");
  machine.set_temperature(50);
  machine.set_memory("1");
  ServerProcess server(program, {"--model", model, "--governor", "--variant", small, "--sensors",
                                 (folder / "machine").string(), "--threads", "2", "--governor-down",
                                 "40", "--governor-up", "300"});
  if (!server.wait_until_ready()) return check(false, "it does not become ready");
  const int port = server.port();
  const auto is_at = [&](double level) {
    return comes_true([&] { return metric(port, "nibble_power_level") == level; });
  };
  const auto serves = [&](const std::string& name) {
    return comes_true(
        [&] { return at(json_of(get(port, "/v1/models").body), "data.0.id").string() == name; });
  };
  check(is_at(0) && metric(port, "nibble_power_threads") == 2, "full power");
  LoadResult load;
  std::thread clients([&] { load = run_load(port, 4, 120, true); });
  machine.set_temperature(86);
  check(is_at(4) && metric(port, "nibble_power_threads") == 1, "hot");
  check(metric(port, "nibble_power_wait_seconds") == 0.05, "waits of the last level");
  check(serves("home-commands-f16"), "without memory, another model");
  machine.set_memory("99999999");
  check(serves("small"), "the small variant");
  check(metric(port, "nibble_power_depth_ratio") == 1, "all layers");
  machine.set_temperature(80);  // neither hot nor cool
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
  check(metric(port, "nibble_power_level") == 4, "not cool yet");
  machine.set_temperature(60);
  check(is_at(0) && serves("home-commands-f16"), "cool again");
  check(metric(port, "nibble_power_threads") == 2, "all threads again");
  machine.set_battery(10, "Discharging");
  check(is_at(1), "an empty battery");
  machine.set_battery(11, "Charging");
  check(is_at(0), "a battery that is charged");
  clients.join();
  check(load.n_requests == 120 && load.n_failed == 0, "requests meanwhile");
  check_chat(port);
  check(metric(port, "nibble_power_changes_total") == 10, "changes of the level");
  server.terminate();
  check(server.wait_for_end() == 0, "the exit code with a governor");
}

}  // namespace example::client
