// SPDX-License-Identifier: Apache-2.0
//
// The random numbers of CPython's module `random`, for what was once drawn there: Mersenne Twister
// (Matsumoto and Nishimura 1998), seeded with init_by_array of 2002.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>

namespace test {

class PythonRandom {
 public:
  // Random(text): the key is the number whose bytes are the text and its SHA-512, highest first, in
  // pieces of 32 bits, lowest first.
  explicit PythonRandom(std::span<const std::uint32_t> key) : twister_(seeded(key)) {}

  // random()
  double unit() {
    const std::uint32_t high = next() >> 5, low = next() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
  }
  // randrange(n), choice() from n
  std::uint32_t below(std::uint32_t n) {
    const auto n_bits = static_cast<std::uint32_t>(std::bit_width(n));
    for (;;) {
      if (const std::uint32_t x = next() >> (32 - n_bits); x < n) return x;
    }
  }

 private:
  // As a seed sequence of the standard library: it gives the state itself.
  struct State {
    using result_type = std::uint32_t;
    std::span<const std::uint32_t> key;

    template <class Iterator>
    void generate(Iterator begin, Iterator end) {
      const auto n = static_cast<std::uint32_t>(end - begin);
      begin[0] = 19650218;
      for (std::uint32_t i = 1; i < n; ++i) begin[i] = 1812433253 * mixed(begin[i - 1]) + i;
      std::uint32_t i = 1, j = 0;
      const auto turn = [&] {
        if (++i == n) begin[0] = begin[n - 1], i = 1;
      };
      for (std::size_t k = std::max<std::size_t>(n, key.size()); k > 0; --k) {
        begin[i] = (at(begin, i) ^ (mixed(begin[i - 1]) * 1664525)) + key[j] + j;
        if (++j == key.size()) j = 0;
        turn();
      }
      for (std::uint32_t k = n - 1; k > 0; --k) {
        begin[i] = (at(begin, i) ^ (mixed(begin[i - 1]) * 1566083941)) - i;
        turn();
      }
      begin[0] = 0x80000000;
    }

    template <class Iterator>
    static std::uint32_t at(Iterator begin, std::uint32_t i) {
      return static_cast<std::uint32_t>(begin[i]);
    }
    template <class Word>
    static std::uint32_t mixed(Word word) {
      const auto x = static_cast<std::uint32_t>(word);
      return x ^ (x >> 30);
    }
  };

  static std::mt19937 seeded(std::span<const std::uint32_t> key) {
    State state{key};
    return std::mt19937(state);
  }
  std::uint32_t next() { return static_cast<std::uint32_t>(twister_()); }

  std::mt19937 twister_;
};

}  // namespace test
