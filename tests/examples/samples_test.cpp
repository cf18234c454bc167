// SPDX-License-Identifier: Apache-2.0
//
// Samples as tokens: as the bundled model was trained on them, and as it is asked.
#include "examples/samples.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "doctest/doctest.h"
#include "examples/project_files.hpp"
#include "examples/train/home_source.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace samples_test {

using namespace example;
using nibble::text::Tokenizer;

namespace {

const Tokenizer& home_tokenizer() {
  static const Tokenizer tokenizer = [] {
    const auto file =
        nibble::io::Gguf::open(test::project_file("examples/models/home-commands-f16.gguf"));
    REQUIRE_MESSAGE(file, test::why(file));
    auto made = Tokenizer::from_gguf(*file);
    REQUIRE_MESSAGE(made, test::why(made));
    return *std::move(made);
  }();
  return tokenizer;
}

SampleTokens tokens_of(const Sample& sample) {
  auto tokens = sample_tokens(home_tokenizer(), sample);
  REQUIRE_MESSAGE(tokens, test::why(tokens));
  return *std::move(tokens);
}

const Sample kSample = {"could you please dim the office light to 10 percent",
                        "light.set(room=office, level=10)"};

}  // namespace

TEST_CASE("sample tokens: begin, prompt, newline, answer, end") {
  const SampleTokens tokens = tokens_of(kSample);
  CHECK(tokens.ids == std::vector<std::int32_t>{1,   482, 338, 351, 327, 286, 290, 314, 411,
                                                375, 368, 342, 304, 264, 263, 462, 13,  437,
                                                390, 375, 261, 438, 264, 412, 2});
  CHECK(tokens.first_of_answer == 17);

  const auto prompt = home_tokenizer().encode(kSample.prompt + "\n");  // what generate() reads
  REQUIRE(prompt);
  CHECK(std::vector<std::int32_t>(tokens.ids.begin(), tokens.ids.begin() + 17) == *prompt);
  CHECK(home_tokenizer().decode(std::span(tokens.ids).subspan(17), {.at_start = false}) ==
        kSample.answer);
}

TEST_CASE("sample tokens: those that the training script made of the test files") {
  struct File {
    const char* path;
    std::size_t n_tokens;
    nibble::Index n_of_prompts;
    std::uint64_t hash;  // FNV-1a, a step for each id
  };
  const File files[] = {{"examples/models/test_2000.tsv", 59139, 36386, 0xb8dc066c0e399ae3},
                        {"examples/models/hard_2000.tsv", 67460, 44676, 0xa700248e62bdbf12},
                        {"tests/compress/home_calibration.tsv", 6059, 3705, 0x3179e35ab714d5a6}};
  for (const File& file : files) {
    CAPTURE(file.path);
    std::size_t n_tokens = 0;
    nibble::Index n_of_prompts = 0;
    std::uint64_t hash = 0xcbf29ce484222325;
    for (const Sample& sample : test::read_samples(file.path)) {
      const SampleTokens tokens = tokens_of(sample);
      n_tokens += tokens.ids.size();
      n_of_prompts += tokens.first_of_answer;
      for (const std::int32_t id : tokens.ids) {
        hash = (hash ^ static_cast<std::uint64_t>(id)) * 0x100000001b3;
      }
    }
    CHECK(n_tokens == file.n_tokens);
    CHECK(n_of_prompts == file.n_of_prompts);
    CHECK(hash == file.hash);
  }
}

TEST_CASE("home commands for training: all tokens count, or only the answer and the end") {
  constexpr nibble::Index kExamples = 20;
  const HomeSource all(home_tokenizer(), 1, kExamples);
  const HomeSource answers(home_tokenizer(), 1, kExamples, Learned::answer);
  nibble::train::Example a, b;
  for (nibble::Index i = 0; i < kExamples; ++i) {
    home::Commands commands(home::Split::train,
                            nibble::train::detail::mixed(1) + static_cast<std::uint64_t>(i));
    const auto sample = sample_tokens(home_tokenizer(), commands.next());
    REQUIRE(sample);
    REQUIRE(all.read(i, a));
    REQUIRE(answers.read(i, b));
    CHECK(a.tokens == sample->ids);
    CHECK(a.weights.empty());
    CHECK(b.tokens == sample->ids);
    REQUIRE(b.weights.size() == b.tokens.size());
    for (std::size_t t = 0; t < b.tokens.size(); ++t) {
      CHECK(b.weights[t] == (static_cast<nibble::Index>(t) < sample->first_of_answer ? 0 : 1));
    }
  }
}

}  // namespace samples_test
