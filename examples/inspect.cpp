// SPDX-License-Identifier: Apache-2.0
//
// inspect: what is in a model's file or folder, what it takes to run it, or why it cannot run.
#include <array>
#include <cinttypes>
#include <map>
#include <utility>
#include <vector>

#include "common.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/model/model.hpp"
#include "nibble/text/tokenizer.hpp"

namespace {

using nibble::Index;
using nibble::io::Gguf;
using nibble::io::GgufTensor;
using nibble::io::GgufValue;
using nibble::io::json_text;
using nibble::ops::KvType;

constexpr std::size_t kShownText = 80;     // bytes of a string
constexpr std::size_t kShownElements = 4;  // of an array

std::string quoted(std::string_view text, std::size_t most) {
  return '"' + nibble::printable(text.substr(0, most)) + (text.size() > most ? "\"..." : "\"");
}

// A value that is no array, as text; strings in quotes.
std::string text_of(const GgufValue& value, std::size_t most) {
  if (const auto text = value.as<std::string_view>()) return quoted(*text, most);
  if (const auto truth = value.as<bool>()) return *truth ? "true" : "false";
  if (const auto n = value.as<std::int64_t>()) return std::to_string(*n);
  if (const auto n = value.as<std::uint64_t>()) return std::to_string(*n);
  return nibble::to_text(*value.as<double>());
}

std::string array_text(const GgufValue& value) {
  std::string text;
  const auto add = [&](const auto& elements, const auto& show) {
    for (std::size_t i = 0; i < elements.size() && i < kShownElements; ++i) {
      text += (i > 0 ? ", " : "") + show(elements[i]);
    }
  };
  if (const auto strings = value.as_array<std::string_view>()) {
    add(*strings, [](std::string_view s) { return quoted(s, 16); });
  } else if (const auto numbers = value.as_array<nibble::Scalar<double>>()) {
    add(*numbers, [](nibble::Scalar<double> n) { return nibble::to_text(n.value); });
  } else if (const auto truths = value.as_array<nibble::Scalar<bool>>()) {
    add(*truths, [](nibble::Scalar<bool> t) { return std::string(t.value ? "true" : "false"); });
  }
  return std::to_string(value.size()) + " of " + to_string(value.element_type()) + ": " + text +
         (value.size() > kShownElements ? ", ..." : "");
}

std::string shape_of(const GgufTensor& tensor) {
  std::string shape;
  for (std::uint32_t d = tensor.n_dims; d-- > 0;) {  // rows first, as everywhere except in GGUF
    shape += (shape.empty() ? "" : " x ") + std::to_string(tensor.dims[d]);
  }
  return shape;
}

// What a program needs to know before it loads a model.
struct Needs {
  std::optional<nibble::Error> error;            // why it does not load
  std::optional<nibble::Error> tokenizer_error;  // why it takes token ids alone
  nibble::ModelMemory memory;
  Index n_ctx = 0;  // of a session by default
  std::vector<std::pair<KvType, std::size_t>> sessions;
};

Needs needs_of(const Gguf& file, Index n_ctx, Index n_threads) {
  Needs needs;
  auto pool = nibble::ThreadPool::create({.n_threads = n_threads});
  nibble::LoadOptions options{.outline_only = true};
  if (pool) options.executor = pool->get();
  const auto memory = nibble::Model::memory_needed<nibble::graph::AllFormats>(file, options);
  const auto model = nibble::Model::from_gguf<nibble::graph::AllFormats>(file, options);
  if (!memory || !model) {
    needs.error = memory ? model.error() : memory.error();
    return needs;
  }
  needs.memory = *memory;
  if (model->tokenizer_error() != nullptr) needs.tokenizer_error = *model->tokenizer_error();
  const Index most = (std::min)(model->config().n_ctx, nibble::kDefaultContext);
  needs.n_ctx = n_ctx > 0 ? n_ctx : most;
  for (const KvType type : nibble::ops::kKvTypes) {
    auto bytes = nibble::Session::bytes_needed(
        *model, {.n_ctx = needs.n_ctx, .kv_type = type, .executor = options.executor});
    if (!bytes && bytes.error().code == nibble::Errc::unsupported) {  // a model for embeddings
      bytes = nibble::Embedder::bytes_needed(
          *model, {.n_ctx = needs.n_ctx, .kv_type = type, .executor = options.executor});
    }
    if (bytes) {
      needs.sessions.push_back({type, *bytes});
    } else {
      needs.error = bytes.error();
    }
  }
  return needs;
}

struct Sum {
  std::size_t n = 0;
  std::uint64_t bytes = 0, weights = 0;
};

std::map<std::string, Sum> by_type(const Gguf& file) {
  std::map<std::string, Sum> sums;
  for (const GgufTensor& tensor : file.tensors()) {
    for (const char* const name : {type_traits(tensor.type).name, "all"}) {
      Sum& sum = sums[name];
      ++sum.n;
      sum.bytes += tensor.data.size();
      sum.weights += tensor.n_elements();
    }
  }
  return sums;
}

void print_text(const Gguf& file, const Needs& needs, bool with_tensors) {
  const auto architecture = file.get_string("general.architecture");  // which may be no string
  std::printf("%s: %s, %zu keys, %zu tensors\n\n", file.name().c_str(),
              nibble::printable(architecture ? *architecture : "no architecture").c_str(),
              file.metadata().size(), file.tensors().size());
  for (const auto& [key, value] : file.metadata()) {
    std::printf("%-44s %s\n", nibble::printable(key).c_str(),
                (value.is_array() ? array_text(value) : text_of(value, kShownText)).c_str());
  }
  if (with_tensors) {
    std::printf("\n%-40s %-8s %-22s %15s\n", "tensor", "type", "shape", "bytes");
    for (const GgufTensor& tensor : file.tensors()) {
      std::printf("%-40s %-8s %-22s %15s\n", nibble::printable(tensor.name).c_str(),
                  type_traits(tensor.type).name, shape_of(tensor).c_str(),
                  example::grouped(tensor.data.size()).c_str());
    }
  }
  std::printf("\n%-12s %8s %18s %18s %16s\n", "type", "tensors", "weights", "bytes",
              "bits per weight");
  for (const auto& [name, sum] : by_type(file)) {
    std::printf("%-12s %8zu %18s %18s %16.2f\n", name.c_str(), sum.n,
                example::grouped(sum.weights).c_str(), example::grouped(sum.bytes).c_str(),
                8.0 * static_cast<double>(sum.bytes) / static_cast<double>(sum.weights));
  }
  if (needs.error) {
    std::printf("\nwould not load: %s\n", needs.error->message.c_str());
    return;
  }
  std::printf("\nmemory   %s for weights, %s of the file in place, %s only while loading\n",
              example::mebibytes(needs.memory.weights).c_str(),
              example::mebibytes(needs.memory.in_place).c_str(),
              example::mebibytes(needs.memory.loading).c_str());
  for (const auto& [type, bytes] : needs.sessions) {
    std::printf("session  %s for %lld positions with a cache in %s\n",
                example::mebibytes(bytes).c_str(), static_cast<long long>(needs.n_ctx),
                to_string(type));
  }
  if (needs.tokenizer_error) {
    std::printf("text     token ids alone: %s\n", needs.tokenizer_error->message.c_str());
  }
}

std::string json_value(const GgufValue& value) {
  if (const auto text = value.as<std::string_view>()) return json_text(*text);
  if (value.is_array()) {
    return "{\"n\": " + std::to_string(value.size()) + ", \"type\": \"" +
           to_string(value.element_type()) + "\"}";
  }
  if (const auto n = value.as<double>()) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%.17g", *n);
    const bool is_number = *n - *n == 0;
    return value.as<std::int64_t>() || value.as<std::uint64_t>() ? text_of(value, 0)
           : is_number                                           ? digits
                                                                 : "null";
  }
  return text_of(value, 0);
}

void print_json(const Gguf& file, const Needs& needs) {
  std::printf("{\"name\": %s,\n \"metadata\": {", json_text(file.name()).c_str());
  const char* separator = "\n  ";
  for (const auto& [key, value] : file.metadata()) {
    std::printf("%s%s: %s", separator, json_text(key).c_str(), json_value(value).c_str());
    separator = ",\n  ";
  }
  std::printf("},\n \"tensors\": [");
  separator = "\n  ";
  for (const GgufTensor& tensor : file.tensors()) {
    std::string shape;
    for (std::uint32_t d = tensor.n_dims; d-- > 0;) {
      shape += (shape.empty() ? "" : ", ") + std::to_string(tensor.dims[d]);
    }
    std::printf("%s{\"name\": %s, \"type\": \"%s\", \"shape\": [%s], \"bytes\": %zu}", separator,
                json_text(tensor.name).c_str(), type_traits(tensor.type).name, shape.c_str(),
                tensor.data.size());
    separator = ",\n  ";
  }
  std::printf("],\n \"loads\": %s", needs.error ? "false" : "true");
  if (needs.error) std::printf(",\n \"error\": %s", json_text(needs.error->message).c_str());
  if (needs.tokenizer_error) {
    std::printf(",\n \"tokenizer_error\": %s", json_text(needs.tokenizer_error->message).c_str());
  }
  if (!needs.error) {
    std::printf(
        ",\n \"memory\": {\"weights\": %zu, \"in_place\": %zu, \"loading\": %zu},"
        "\n \"sessions\": {\"n_ctx\": %lld",
        needs.memory.weights, needs.memory.in_place, needs.memory.loading,
        static_cast<long long>(needs.n_ctx));
    for (const auto& [type, bytes] : needs.sessions) {
      std::printf(", \"%s\": %zu", to_string(type), bytes);
    }
    std::printf("}");
  }
  std::printf("}\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Shows what is in a model, and the memory that it takes, without loading it.",
               "inspect");
  std::string path;
  bool as_json = false, with_tensors = false;
  Index n_ctx = 0, n_threads = 0;
  app.add_option("MODEL", path,
                 "a GGUF file (of a split one, any part) or a folder as hubs have it")
      ->required();
  app.add_flag("--tensors", with_tensors, "each tensor, too");
  app.add_flag("--json", as_json, "everything, as JSON");
  app.add_option("--ctx", n_ctx,
                 "positions of a session; 0: as many as the model was trained with, but at most "
                 "4096")
      ->check(CLI::Range(Index{0}, Index{1} << 30));
  app.add_option("--threads", n_threads, "threads that would load it; 0: one per core")
      ->check(CLI::Range(0, 1024));
  app.footer("Exit codes: 0 the model would load, 1 it would not, 2 wrong usage.");
  return example::run(app, argc, argv, [&]() -> nibble::Result<int> {
    NIBBLE_TRY(file, nibble::open_model(path));
    const Needs needs = needs_of(file, n_ctx, n_threads);
    as_json ? print_json(file, needs) : print_text(file, needs, with_tensors);
    return needs.error ? example::kFailed : example::kOk;
  });
}
