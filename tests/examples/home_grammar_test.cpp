// SPDX-License-Identifier: Apache-2.0
//
// The grammar of the home commands. The bundled model and its two test files were made with a
// Python script that drew in the same order: with Python's random numbers it must give the files.
#include "examples/home_commands/grammar.hpp"

#include <cmath>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "doctest/doctest.h"
#include "examples/project_files.hpp"
#include "examples/python_random.hpp"

namespace home_grammar_test {

using namespace example::home;
using example::Sample;

namespace {

constexpr Split kAllSplits[] = {Split::train, Split::held_out, Split::hard};

// Python's seeds "test-5", "hard-5" and "train-71", see PythonRandom.
constexpr std::uint32_t kTest5[] = {0x30a61460, 0x5bec9548, 0x2c7210de, 0x0b75ac50, 0x15bcf926,
                                    0x88ce146f, 0x4108bd7b, 0x887e5bc3, 0xe86a8416, 0xf6b56fb6,
                                    0xaad9ef0a, 0x7c7d1ecd, 0x89a5d08f, 0x688eb69f, 0x50bca408,
                                    0xe4e9c0d3, 0x73742d35, 0x00007465};
constexpr std::uint32_t kHard5[] = {0x8a6ddc47, 0xa33376ee, 0xaf162d6e, 0xe023374b, 0x45abd633,
                                    0x92fbb950, 0x12c136ca, 0x80222598, 0x2f2905ce, 0x10ac8932,
                                    0xf897f460, 0x1e830d86, 0x71bb8f29, 0xd2138b85, 0x16b1f92a,
                                    0x46b57298, 0x72642d35, 0x00006861};
constexpr std::uint32_t kTrain71[] = {0x68325661, 0x9cd9e5e8, 0x4c8cc73b, 0xe4c9ce5e, 0xdc61ef7e,
                                      0x86863098, 0x5e29f58b, 0x5bb47af0, 0x6bef124b, 0x934396ea,
                                      0x5c8d0dfd, 0xc0de55a7, 0x5c716c8c, 0xf24eec7c, 0x3d0935b3,
                                      0x58f0132f, 0x6e2d3731, 0x74726169};

struct File {
  const char* path;
  Split split;
  std::span<const std::uint32_t> key;
  std::size_t n;
};
constexpr File kFiles[] = {{"examples/models/test_2000.tsv", Split::held_out, kTest5, 2000},
                           {"examples/models/hard_2000.tsv", Split::hard, kHard5, 2000},
                           {"tests/compress/home_calibration.tsv", Split::train, kTrain71, 200}};

std::string combination(const Phrase& phrase) {
  return std::string(phrase.opener) + "|" + std::string(phrase.wording) + "|" +
         std::string(phrase.closer);
}

// How far a count of n draws is from what its share makes likely, in standard deviations.
double deviation(double count, double n, double share) {
  return std::abs(count - n * share) / std::sqrt(n * share * (1 - share));
}

}  // namespace

TEST_CASE("home grammar: with the numbers that the script drew it gives the script's commands") {
  for (const File& file : kFiles) {
    CAPTURE(file.path);
    const std::vector<Sample> samples = test::read_samples(file.path);
    REQUIRE(samples.size() == file.n);
    test::PythonRandom random(file.key);
    std::size_t n_same = 0;
    for (const Sample& sample : samples) {
      const Sample drawn = draw_sample(random, file.split);
      CAPTURE(sample.prompt);
      if (drawn == sample) {
        ++n_same;
        continue;
      }
      CHECK(drawn.prompt == sample.prompt);
      CHECK(drawn.answer == sample.answer);
      break;
    }
    CHECK(n_same == samples.size());
  }
}

TEST_CASE("home grammar: a seed means the same commands everywhere") {
  Random random(0);  // the first numbers of the reference implementation of splitmix64
  CHECK(random.bits() == 0xe220a8397b1dcdaf);
  CHECK(random.bits() == 0x6e789e6aa1b965f4);
  CHECK(random.bits() == 0x06c45d188009454f);

  struct First {
    Split split;
    Sample samples[2];
  };
  const First firsts[] = {
      {Split::train,
       {{"can you shopping list sugar for me", "list.add(items=[sugar])"},
        {"make it twenty one degrees in the hallway", "climate.set(room=hallway, degrees=21)"}}},
      {Split::held_out,
       {{"change the nursery light to red", "light.color(room=nursery, color=red)"},
        {"can you we need salt right away", "list.add(items=[salt])"}}},
      {Split::hard,
       {{"nw seet the nusery lights to thirty five prcent", "light.set(room=nursery, level=35)"},
        {"ok seet thhe nrusery to 13 degres", "climate.set(room=nursery, degrees=13)"}}},
  };
  for (const First& first : firsts) {
    Commands commands(first.split, 1);
    for (const Sample& sample : first.samples) CHECK(commands.next() == sample);
  }
}

TEST_CASE("home grammar: a state goes on with the commands that would have come") {
  for (const Split split : kAllSplits) {
    Commands commands(split, 7), resumed(split, 8);
    for (int i = 0; i < 100; ++i) commands.next();
    resumed.resume(commands.state());
    for (int i = 0; i < 100; ++i) CHECK(resumed.next() == commands.next());
  }
}

TEST_CASE("home grammar: seeds and splits do not share their commands") {
  std::set<std::string> first_ten;
  for (const Split split : kAllSplits) {
    for (const std::uint64_t seed : {0u, 1u, 2u, 3u}) {
      Commands commands(split, seed);
      std::string all;
      for (int i = 0; i < 10; ++i) all += commands.next().prompt + "\n";
      first_ten.insert(all);
    }
  }
  CHECK(first_ten.size() == 12);
}

TEST_CASE("home grammar: training draws no combination and no command of the tests") {
  Random random(1);
  std::set<std::string> trained, held_out;
  for (int i = 0; i < 100000; ++i) {
    trained.insert(combination(draw_phrase(random, Split::train)));
    held_out.insert(combination(draw_phrase(random, Split::held_out)));
  }
  for (const std::string& one : held_out) CHECK(trained.count(one) == 0);
  // All of them were drawn, so these are all that there are.
  std::size_t n_combinations = 0;
  const std::set<Text> openers(std::begin(kOpeners), std::end(kOpeners));
  const std::set<Text> closers(std::begin(kClosers), std::end(kClosers));
  for (const IntentWords& intent : kIntents) n_combinations += intent.wordings.size();
  n_combinations *= openers.size() * closers.size();
  CHECK(trained.size() + held_out.size() == n_combinations);
  CHECK(deviation(static_cast<double>(held_out.size()), static_cast<double>(n_combinations), 0.2) <
        4);

  std::unordered_set<std::string> tests;
  for (const File& file : {kFiles[0], kFiles[1]}) {
    for (const Sample& sample : test::read_samples(file.path)) tests.insert(sample.prompt);
  }
  for (const std::uint64_t seed : {1u, 2u}) {
    Commands commands(Split::train, seed);
    for (int i = 0; i < 50000; ++i) {
      const Sample sample = commands.next();
      CAPTURE(sample.prompt);
      CHECK(tests.count(sample.prompt) == 0);
    }
  }
}

TEST_CASE("home grammar: intents and wordings are as frequent as their weights say") {
  CHECK(Crc32().add("123456789").value() == 0xcbf43926);  // the check value of the CRC catalogue
  for (const Split split : {Split::train, Split::held_out}) {
    // What the rejection of the other split's combinations leaves of each wording.
    std::map<Text, double> shares;
    double sum = 0;
    for (const IntentWords& intent : kIntents) {
      for (const Text wording : intent.wordings) {
        double share = 0;
        for (const Text opener : kOpeners) {
          for (const Text closer : kClosers) {
            const bool wanted =
                is_held_out({intent.intent, wording, opener, closer}) == (split == Split::held_out);
            share += wanted ? 1 : 0;
          }
        }
        share *= intent.weight / static_cast<double>(intent.wordings.size());
        shares[wording] = share;
        sum += share;
      }
    }
    constexpr int kDraws = 20000;
    std::map<Text, double> counts;
    Random random(5);
    for (int i = 0; i < kDraws; ++i) ++counts[draw_phrase(random, split).wording];
    for (const auto& one : shares) {
      const Text wording = one.first;
      CAPTURE(wording);
      CHECK(deviation(counts[wording], kDraws, one.second / sum) < 4.5);
    }
  }
}

TEST_CASE("home grammar: slips are as many as the splits have") {
  // A slip changes the length by one or not at all, and leaves the first letter.
  Random random(3);
  int n_shorter = 0, n_longer = 0, n_same = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = "dim the office light";
    slip(random, text);
    CHECK(text.starts_with("d"));
    n_shorter += text.size() == 19 ? 1 : 0;
    n_same += text.size() == 20 ? 1 : 0;
    n_longer += text.size() == 21 ? 1 : 0;
  }
  CHECK(n_shorter + n_same + n_longer == 3000);
  for (const int n : {n_shorter, n_same, n_longer}) CHECK(deviation(n, 3000, 1.0 / 3) < 4.5);
  for (std::string text : {"", "a", "at", "7:15", "it is 5 am"}) {  // no word of three letters
    const std::string before = text;
    slip(random, text);
    CHECK(text == before);
  }
}

}  // namespace home_grammar_test
