// SPDX-License-Identifier: Apache-2.0
//
// Models in several files: loaded, used in place, converted.
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "io/split_files.hpp"
#include "model/random_model.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/convert.hpp"
#include "why.hpp"

namespace split_file_test {

using namespace nibble;
using quant::Format;

namespace {

std::vector<float> logits_of(const Model& model) {
  auto session = Session::create(model, {.n_ctx = 16});
  REQUIRE_MESSAGE(session, test::why(session));
  const std::int32_t tokens[] = {1, 3, 17, 11, 13};
  const auto logits = session->append(tokens);
  REQUIRE_MESSAGE(logits, test::why(logits));
  return {logits->data(), logits->data() + logits->extent(1)};
}

std::vector<std::byte> model_file(bool packed) {
  const std::vector<std::byte> plain =
      test::RandomModel({.dim = 64, .head_dim = 16, .ffn_dim = 96, .rope_dim = 16}, 1).gguf();
  const auto file = io::Gguf::parse(plain, "plain");
  REQUIRE(file);
  auto bytes = quantize_model(*file, {.format = Format::q4_0, .packed = packed});
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  return *std::move(bytes);
}

}  // namespace

TEST_CASE("a model in several files runs as the one it was split from") {
  for (const bool packed : {false, true}) {
    CAPTURE(packed);
    const std::vector<std::byte> bytes = model_file(packed);
    const auto whole = io::Gguf::parse(bytes, "whole");
    REQUIRE(whole);
    const auto expected = Model::from_gguf(*whole);
    REQUIRE_MESSAGE(expected, test::why(expected));
    for (const unsigned n_parts : {2u, 5u}) {
      const test::TemporaryFolder folder;
      const auto paths = test::write_split(*whole, folder, n_parts);
      for (const std::string& path : {paths.front(), paths.back()}) {
        const auto needed = memory_needed(path);
        REQUIRE_MESSAGE(needed, test::why(needed));
        const auto model = load(path);
        REQUIRE_MESSAGE(model, test::why(model));
        CHECK(needed->weights + needed->in_place == model->weight_bytes());
        CHECK(needed->in_place == model->weight_bytes_in_place());
        CHECK((model->weight_bytes_in_place() > 0) == packed);
        // The mappings stay valid: the model shares them.
        if (path == paths.back()) {
          for (const std::string& part : paths) std::filesystem::remove(part);
        }
        CHECK(logits_of(*model) == logits_of(*expected));
      }
    }
  }
}

TEST_CASE("a model in several files is converted to one") {
  const std::vector<std::byte> bytes = model_file(false);
  const auto whole = io::Gguf::parse(bytes, "whole");
  REQUIRE(whole);
  const test::TemporaryFolder folder;
  const auto paths = test::write_split(*whole, folder, 3);
  const auto parts = io::Gguf::open(paths[1]);
  REQUIRE(parts);
  const auto expected = quantize_model(*whole, ConvertOptions{.format = Format::q8_0});
  const auto converted = quantize_model(*parts, ConvertOptions{.format = Format::q8_0});
  REQUIRE_MESSAGE(converted, test::why(converted));
  CHECK(*converted == *expected);
}

TEST_CASE("a part that is missing is an error that names it") {
  const std::vector<std::byte> bytes = model_file(false);
  const auto whole = io::Gguf::parse(bytes, "whole");
  REQUIRE(whole);
  const test::TemporaryFolder folder;
  const auto paths = test::write_split(*whole, folder, 2);
  std::filesystem::remove(paths[1]);
  const auto model = load(paths[0]);
  REQUIRE_FALSE(model.has_value());
  CHECK(test::contains(model.error().message, paths[1]));
}

}  // namespace split_file_test
