// SPDX-License-Identifier: Apache-2.0
//
// The texts of which tests/text/oracle has made digests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

#include "pre_tokenizer_golden.hpp"

namespace golden {

// As in tests/text/oracle/words.py.
struct Random {
  std::uint64_t state;
  std::size_t below(std::size_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::size_t>(state >> 33) % n;
  }
};

// Calls f(text, add) for each of the texts; f calls add(number) for what is to be in the digest.
template <class Function>
std::uint64_t digest_of_texts(Function f) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  const auto add = [&](std::size_t n) { hash = (hash ^ n) * 0x100000001B3u; };
  Random random{1};
  std::string text;
  for (int i = 0; i < kTexts; ++i) {
    text.clear();
    for (std::size_t n = random.below(14); n > 0; --n)
      text += kFragments[random.below(std::size(kFragments))];
    f(text, add);
    add(0);
  }
  return hash;
}

}  // namespace golden
