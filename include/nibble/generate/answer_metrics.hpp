// SPDX-License-Identifier: Apache-2.0
//
// How near an answer is to the one that is right: as a whole, by its words, by its runs of words.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/libm.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

constexpr bool is_ascii_space(char c) noexcept { return c == ' ' || (c >= '\t' && c <= '\r'); }
constexpr bool is_of_word(char c) noexcept {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
         static_cast<unsigned char>(c) >= 0x80;
}

// The words of a text: runs of ASCII letters, digits and whatever is beyond ASCII. `with_signs`:
// each other visible character is a word, too.
inline std::vector<std::string_view> words_of(std::string_view text, bool with_signs) {
  std::vector<std::string_view> words;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i;
    while (end < text.size() && is_of_word(text[end])) ++end;
    if (end > i) {
      words.push_back(text.substr(i, end - i));
      i = end;
      continue;
    }
    if (with_signs && !is_ascii_space(text[i])) words.push_back(text.substr(i, 1));
    ++i;
  }
  return words;
}

// How many runs of n words `a` and `b` have in common; each place counts once. (In time n log n.)
template <class Words>
std::size_t n_common(const Words& a, const Words& b, std::size_t n) {
  const auto starts_of = [n](const Words& words) {
    std::vector<std::size_t> starts;
    for (std::size_t i = 0; i + n <= words.size(); ++i) starts.push_back(i);
    return starts;
  };
  const auto order = [n](const Words& x, std::size_t i, const Words& y, std::size_t j) {
    int which = 0;
    for (std::size_t k = 0; k < n && which == 0; ++k) which = x[i + k].compare(y[j + k]);
    return which;
  };
  auto in_a = starts_of(a), in_b = starts_of(b);
  std::sort(in_a.begin(), in_a.end(),
            [&](std::size_t i, std::size_t j) { return order(a, i, a, j) < 0; });
  std::sort(in_b.begin(), in_b.end(),
            [&](std::size_t i, std::size_t j) { return order(b, i, b, j) < 0; });
  std::size_t common = 0;
  for (std::size_t i = 0, j = 0; i < in_a.size() && j < in_b.size();) {
    const int which = order(a, in_a[i], b, in_b[j]);
    common += which == 0 ? 1 : 0;
    i += which <= 0 ? 1 : 0;
    j += which >= 0 ? 1 : 0;
  }
  return common;
}

}  // namespace detail

// Whether they are equal, but for white space at both ends.
constexpr bool exact_match(std::string_view answer, std::string_view right) noexcept {
  const auto trim = [](std::string_view text) {
    while (!text.empty() && detail::is_ascii_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && detail::is_ascii_space(text.back())) text.remove_suffix(1);
    return text;
  };
  return trim(answer) == trim(right);
}

// The harmonic mean of how many words of the answer are right and how many of the right ones it
// has, from 0 to 1, whatever their order and the case of ASCII letters: the F1 of SQuAD (Rajpurkar
// et al. 2016), but that articles count and signs separate words. 1 if both have no words.
inline double token_f1(std::string_view answer, std::string_view right) {
  const auto lower = [](std::string_view text) {
    std::string out(text);
    for (char& c : out) {
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    }
    return out;
  };
  const std::string a = lower(answer), b = lower(right);
  const auto words_a = detail::words_of(a, false), words_b = detail::words_of(b, false);
  if (words_a.empty() && words_b.empty()) return 1;
  const std::size_t common = detail::n_common(words_a, words_b, 1);
  return 2 * static_cast<double>(common) / static_cast<double>(words_a.size() + words_b.size());
}

// BLEU of many answers, with one right answer each: the geometric mean of the shares of their runs
// of 1, 2, 3 and 4 words that the right ones have, times a penalty where they are shorter (Papineni
// et al., "BLEU: a method for automatic evaluation of machine translation", 2002). A length of
// which no run is right counts as half a run, the next such as a quarter and so on (method 3 of
// Chen and Cherry, "A systematic comparison of smoothing techniques for sentence-level BLEU",
// 2014), and one of which no answer has any is left out: as sacreBLEU, with effective_order. Signs
// are words.
class BleuSum {
 public:
  void add(std::string_view answer, std::string_view right) {
    const auto a = detail::words_of(answer, true), b = detail::words_of(right, true);
    n_words_ += a.size();
    n_right_words_ += b.size();
    for (std::size_t n = 1; n <= kLongest; ++n) {
      common_[n - 1] += detail::n_common(a, b, n);
      runs_[n - 1] += a.size() >= n ? a.size() - n + 1 : 0;
    }
  }

  // From 0 to 1; 0 without any word.
  double value() const noexcept {
    double sum = 0, half = 1;
    std::size_t n_orders = 0;
    for (; n_orders < kLongest && runs_[n_orders] > 0; ++n_orders) {
      auto common = static_cast<double>(common_[n_orders]);
      if (common_[n_orders] == 0) common = half /= 2;
      sum += libm::log(common / static_cast<double>(runs_[n_orders]));
    }
    if (n_orders == 0 || common_[0] == 0) return 0;
    const double ratio = static_cast<double>(n_right_words_) / static_cast<double>(n_words_);
    const double penalty = ratio > 1 ? 1 - ratio : 0;
    return libm::exp(sum / static_cast<double>(n_orders) + penalty);
  }

 private:
  static constexpr std::size_t kLongest = 4;
  std::array<std::uint64_t, kLongest> common_{}, runs_{};  // by length
  std::uint64_t n_words_ = 0, n_right_words_ = 0;
};

}}  // namespace nibble::NIBBLE_ABI
