// SPDX-License-Identifier: Apache-2.0
//
// All utterances with which the shipped model was measured; an answer is right only if it is
// identical.
#include <cmath>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "generate/home_splits.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/model.hpp"
#include "test_data.hpp"
#include "why.hpp"

namespace home_commands_test {

using namespace nibble;
using test::count_right, test::kSplits, test::kUtterances, test::Sample, test::Split;

namespace {

Model model_in(const io::Gguf& file, quant::Format format) {
  auto bytes = quantize_model(file, {.format = format});
  REQUIRE_MESSAGE(bytes, test::why(bytes));
  auto converted = io::Gguf::parse(*bytes, to_string(format));
  REQUIRE_MESSAGE(converted, test::why(converted));
  auto model = Model::from_gguf(*converted);
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

}  // namespace

TEST_CASE("home commands: F32 and INT8 as accurate as they should be, all 4 000 utterances") {
  std::string path = test::home_model_path();  // F16; the F32 file has the bits that F16 lost
  if (const auto f32 = test::data_path("models/home-commands/home-commands-f32.gguf")) path = *f32;
  const auto file = io::Gguf::open(path);
  REQUIRE_MESSAGE(file, test::why(file));
  const Model f32 = model_in(*file, quant::Format::f32);
  const Model int8 = model_in(*file, quant::Format::q8_0);
  const Model int4 = model_in(*file, quant::Format::q4_0);
  for (const Split& split : kSplits) {
    CAPTURE(split.name);
    const std::vector<Sample> samples = test::read_samples(split.file);
    const int right_f32 = count_right(f32, samples);
    const int right_int8 = count_right(int8, samples);
    const int right_int4 = count_right(int4, samples);
    MESSAGE(split.name, ": F32 ", right_f32, ", INT8 ", right_int8, ", INT4 ", right_int4, " of ",
            kUtterances);
    CHECK(std::abs(right_f32 - split.right_f32) <= 3);
    CHECK(std::abs(right_int8 - right_f32) <= 6);  // 0.3 points
    CHECK(right_int4 >= right_f32 - 20);  // measured: 0 and 4 or 5; a broken kernel loses more
  }
}

}  // namespace home_commands_test
