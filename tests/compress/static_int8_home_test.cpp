// SPDX-License-Identifier: Apache-2.0
//
// The shipped model in 8 bits with ranges of inputs from a calibration: how many of the 4 000
// utterances it gets right, by how ranges are chosen. The 200 utterances of the calibration are of
// the training's kind (the test splits use combinations that training never drew), with their
// calls.
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_splits.hpp"
#include "nibble/compress/input_ranges.hpp"
#include "nibble/compress/observe.hpp"
#include "nibble/compress/static_int8.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/text/tokenizer.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace static_int8_home_test {

using namespace nibble;

namespace {

// Each utterance of the calibration with its call, as the model sees them.
std::vector<std::vector<std::int32_t>> calibration_texts(const text::Tokenizer& tokenizer) {
  std::ifstream in(std::string(std::getenv("NIBBLE_PROJECT_DIR")) +
                   "/tests/compress/home_calibration.tsv");
  std::vector<std::vector<std::int32_t>> texts;
  for (std::string line; std::getline(in, line);) {
    const std::size_t tab = line.find('\t');
    REQUIRE(tab != line.npos);
    line[tab] = '\n';
    auto ids = tokenizer.encode(line);
    REQUIRE_MESSAGE(ids, test::why(ids));
    texts.push_back(*std::move(ids));
  }
  REQUIRE(texts.size() == 200);
  return texts;
}

Model from(const std::vector<std::byte>& bytes) {
  const auto file = io::Gguf::parse(bytes, "converted");
  REQUIRE_MESSAGE(file, test::why(file));
  auto model = Model::from_gguf<graph::AllFormats>(*file);
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

// What the model's products see, each text from the beginning.
compress::Statistics statistics_of(const Model& model) {
  compress::Statistics all;
  for (const auto& ids : calibration_texts(*model.tokenizer())) {
    auto observation =
        compress::Observation::create(model, {.context = static_cast<Index>(ids.size())});
    REQUIRE_MESSAGE(observation, test::why(observation));
    const auto added = observation->add(ids);
    REQUIRE_MESSAGE(added, test::why(added));
    auto of_text = std::move(*observation).finish();
    REQUIRE_MESSAGE(of_text, test::why(of_text));
    if (all.inputs().empty()) {
      all = *std::move(of_text);
    } else {
      const auto merged = all.merge(*of_text);
      REQUIRE_MESSAGE(merged, test::why(merged));
    }
  }
  return all;
}

struct Home {
  io::Gguf file;
  Model f32;
  compress::Statistics statistics;

  static Home open() {
    std::string path = test::home_model_path();  // F16; the F32 file has the bits that F16 lost
    if (const auto f32 = test::data_path("models/home-commands/home-commands-f32.gguf")) {
      path = *f32;
    }
    auto file = io::Gguf::open(path);
    REQUIRE_MESSAGE(file, test::why(file));
    const auto bytes = quantize_model(*file, {.format = quant::Format::f32});
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    Model model = from(*bytes);
    REQUIRE(model.tokenizer() != nullptr);
    compress::Statistics statistics = statistics_of(model);
    return {*std::move(file), std::move(model), std::move(statistics)};
  }
  Model int8(const compress::RangeOptions& options, bool dynamic = false) const {
    const auto inputs = compress::product_inputs(statistics, options);
    REQUIRE_MESSAGE(inputs, test::why(inputs));
    const auto bytes = compress::to_static_int8(file, *inputs, {.dynamic = dynamic});
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    return from(*bytes);
  }
};

}  // namespace

TEST_CASE("home commands with static INT8: as accurate as F32, both splits") {
  const Home home = Home::open();
  // Of 3 layers: the inputs of attention's and the feed-forward's two products; and of the output.
  CHECK(home.statistics.inputs().size() == 3 * 4 + 1);
  CHECK(home.statistics.entries().size() == 3 * 7 + 1);
  const Model dynamic = home.int8({}, true);
  const Model symmetric = home.int8({});
  const Model affine = home.int8({.is_unsigned = true});
  CHECK(affine.weights().at(Slot::ffn_down, 0).input.is_unsigned);
  for (const test::Split& split : test::kSplits) {
    const auto samples = test::read_samples(split.file);
    const int right_dynamic = test::count_right(dynamic, samples);
    const int right_symmetric = test::count_right(symmetric, samples);
    const int right_affine = test::count_right(affine, samples);
    MESSAGE(split.name, ": F32 ", split.right_f32, ", INT8 dynamic ", right_dynamic, ", static ",
            right_symmetric, ", static with zero points ", right_affine, " of 2000");
    CHECK(std::abs(right_dynamic - split.right_f32) <= 6);  // 0.3 points
    CHECK(std::abs(right_symmetric - split.right_f32) <= 6);
    CHECK(std::abs(right_affine - split.right_f32) <= 6);
  }
}

// A table of the ways to choose ranges, which takes minutes with all of them and all utterances:
// NIBBLE_LONG_TESTS=1 makes it; otherwise its first row, with a tenth of them.
TEST_CASE("home commands with static INT8: ranges by all methods") {
  const bool is_long = std::getenv("NIBBLE_LONG_TESTS") != nullptr;
  if (!is_long) MESSAGE("only min/max and 200 utterances: NIBBLE_LONG_TESTS is not set");
  const Home home = Home::open();
  using enum compress::RangeMethod;
  const compress::RangeOptions methods[] = {{.method = min_max},
                                            {.method = percentile, .percentile = 99.999},
                                            {.method = percentile, .percentile = 99.99},
                                            {.method = percentile, .percentile = 99.9},
                                            {.method = kl},
                                            {.method = mse}};
  std::vector<test::Sample> samples[2];
  int right_f32[2];
  for (std::size_t i = 0; i < 2; ++i) {
    samples[i] = test::read_samples(test::kSplits[i].file);
    if (!is_long) samples[i].resize(200);
    right_f32[i] = test::count_right(home.f32, samples[i]);
  }
  for (const bool is_unsigned : {false, true}) {
    for (compress::RangeOptions options : std::span(methods).first(is_long ? 6 : 1)) {
      options.is_unsigned = is_unsigned;
      const Model model = home.int8(options);
      int right[2];
      for (std::size_t i = 0; i < 2; ++i) {
        right[i] = test::count_right(model, samples[i]);
        if (options.method != min_max) continue;
        CHECK(std::abs(right[i] - right_f32[i]) <= (is_long ? 6 : 2));
      }
      MESSAGE(std::string(to_string(options.method)), " ", options.percentile,
              std::string(is_unsigned ? ", zero point: " : ": "), right[0], ", ", right[1], " of ",
              samples[0].size(), ", ", samples[1].size(), "; F32 ", right_f32[0], ", ",
              right_f32[1]);
    }
  }
}

}  // namespace static_int8_home_test
