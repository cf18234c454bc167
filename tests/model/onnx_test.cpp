// SPDX-License-Identifier: Apache-2.0
//
// Exported models (ONNX) compute what onnxruntime does with them: onnx/<family>/*.onnx, which
// make_onnx.py makes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "model/rare_architectures.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/model/model.hpp"
#include "nibble/text/tokenizer.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace onnx_test {

using namespace nibble;

namespace {

constexpr Index kTokens = 12, kVocabulary = 23;

std::vector<float> exported_logits(const Model& model) {
  auto session =
      Session::create(model, {.n_ctx = 16, .max_outputs = kTokens, .kv_type = ops::KvType::f32});
  REQUIRE_MESSAGE(session, test::why(session));
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < kTokens; ++i)
    tokens.push_back((7 * i * i + 3 * i + 5) % kVocabulary);
  const auto logits = session->append(tokens, kTokens);
  REQUIRE_MESSAGE(logits, test::why(logits));
  std::vector<float> all;
  for (Index row = 0; row < kTokens; ++row) {
    all.insert(all.end(), (*logits)[row].data(), (*logits)[row].data() + kVocabulary);
  }
  return all;
}

}  // namespace

TEST_CASE("exported models compute what onnxruntime does") {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(project != nullptr);
  std::size_t n = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(
           std::filesystem::path(project) / "tests" / "model" / "onnx")) {
    if (entry.path().extension() != ".onnx") continue;
    const std::string path = entry.path().string();
    const std::string name = entry.path().stem().string();
    CAPTURE(path);
    const auto file = open_model(path);
    REQUIRE_MESSAGE(file, test::why(file));
    const LoadOptions options{.tuning = Tuning{}};
    const bool is_rare = path.find("gptneox") != std::string::npos;
    const auto model = is_rare ? test::load_rare(*file, options)
                               : Model::from_gguf<graph::AllFormats>(*file, options);
    REQUIRE_MESSAGE(model, test::why(model));
    std::ifstream golden(path + ".logits", std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(golden)), {});
    std::vector<float> expected(kTokens * kVocabulary);
    REQUIRE(bytes.size() == expected.size() * sizeof(float));
    std::memcpy(expected.data(), bytes.data(), bytes.size());
    const std::vector<float> logits = exported_logits(*model);
    double off = 0, largest = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double difference = std::fabs(double{logits[i]} - double{expected[i]});
      off = difference <= off ? off : std::isnan(difference) ? INFINITY : difference;
      largest = std::fmax(largest, std::fabs(double{expected[i]}));
    }
    // onnxruntime also rounds what goes into the products of a quantized graph to 8 bits.
    const bool is_float = name == "plain" || name == "traced" || name == "external";
    CHECK(off / largest < (is_float ? 5e-6 : 0.1));
    MESSAGE(path.substr(path.find("onnx/")), ": off by ", off / largest);
    ++n;
  }
  CHECK(n == 7);
}

TEST_CASE("a checkpoint of llama2.c computes what its GGUF file does, bit for bit") {
  const auto path = test::data_path("models/stories260K/stories260K.bin");
  const auto gguf_path = test::data_path("models/stories260K/stories260K.gguf");
  if (!path || !gguf_path) return;
  const auto logits_of = [](const std::string& from) {
    const auto model = load(from);
    REQUIRE_MESSAGE(model, test::why(model));
    REQUIRE(model->tokenizer() != nullptr);
    auto session = Session::create(*model, {.n_ctx = 64, .max_outputs = 21});
    REQUIRE_MESSAGE(session, test::why(session));
    const auto ids = model->tokenizer()->encode(
        "Once upon a time, there was a little girl named Lily. She loved to play");
    REQUIRE(ids);
    REQUIRE(ids->size() == 21);
    const auto logits = session->append(*ids, 21);
    REQUIRE_MESSAGE(logits, test::why(logits));
    std::vector<float> all;
    for (Index row = 0; row < 21; ++row) {
      all.insert(all.end(), (*logits)[row].data(), (*logits)[row].data() + logits->extent(1));
    }
    return all;
  };
  CHECK(logits_of(*path) == logits_of(*gguf_path));
}

}  // namespace onnx_test
