// SPDX-License-Identifier: Apache-2.0
//
// Answers kept by prompt, for some time and within a number of bytes; what was not used for longest
// goes first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/generate/cascade.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// Without white space (of ASCII) at both ends, and one space for each run of it within: prompts
// that differ in nothing else have the same answer. Not for prompts in which white space means
// something, as in source text.
inline std::string normalized_prompt(std::string_view prompt) {
  std::string out;
  out.reserve(prompt.size());
  bool is_between = false;
  for (const char c : prompt) {
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      is_between = !out.empty();
      continue;
    }
    if (is_between) out.push_back(' ');
    is_between = false;
    out.push_back(c);
  }
  return out;
}

struct AnswerCacheOptions {
  std::size_t max_bytes = std::size_t{4} << 20;  // of prompts, answers and what holds them; 0: none
  std::int64_t max_age_ms = 3'600'000;           // an answer is not given when it is older
};

// Keys are compared whole: prompts with equal hashes are told apart. Finding takes a time that
// grows with the number of answers: 5 us for ten thousand. Times are those of a clock of the
// caller's, in milliseconds; answers from the future are too old. Not thread-safe.
class AnswerCache {
 public:
  explicit AnswerCache(const AnswerCacheOptions& options = {}) noexcept : options_(options) {}

  // Null if there is none; valid until the cache changes.
  const Answer* find(std::string_view key, std::int64_t now) {
    const std::size_t i = index_of(key);
    if (i == entries_.size()) return nullptr;
    if (now < entries_[i].made || now - entries_[i].made > options_.max_age_ms) {
      remove(i);
      return nullptr;
    }
    entries_[i].used = ++n_uses_;
    return &entries_[i].answer;
  }

  // Keeps an answer, in place of an earlier one to the same. One that is larger than the cache is
  // not kept.
  void put(std::string_view key, const Answer& answer, std::int64_t now) {
    if (const std::size_t i = index_of(key); i != entries_.size()) remove(i);
    Entry entry{std::string(key), answer, hash_of(key), ++n_uses_, now};
    const std::size_t bytes = bytes_of(entry);
    if (bytes > options_.max_bytes) return;
    while (bytes_ > options_.max_bytes - bytes) remove(oldest());
    entries_.push_back(std::move(entry));
    bytes_ += bytes;
  }

  std::size_t n_answers() const noexcept { return entries_.size(); }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  struct Entry {
    std::string key;
    Answer answer;
    std::uint64_t hash = 0, used = 0;
    std::int64_t made = 0;
  };

  static std::size_t bytes_of(const Entry& entry) noexcept {
    return sizeof(Entry) + entry.key.size() + entry.answer.text.size();
  }
  static std::uint64_t hash_of(std::string_view key) noexcept {
    std::uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
    for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    return hash;
  }
  std::size_t index_of(std::string_view key) const noexcept {
    const std::uint64_t hash = hash_of(key);
    std::size_t i = 0;
    while (i < entries_.size() && (entries_[i].hash != hash || entries_[i].key != key)) ++i;
    return i;
  }
  std::size_t oldest() const noexcept {
    std::size_t oldest = 0;
    for (std::size_t i = 1; i < entries_.size(); ++i) {
      if (entries_[i].used < entries_[oldest].used) oldest = i;
    }
    return oldest;
  }
  void remove(std::size_t i) {
    bytes_ -= bytes_of(entries_[i]);
    if (i + 1 < entries_.size()) entries_[i] = std::move(entries_.back());
    entries_.pop_back();
  }

  AnswerCacheOptions options_;
  std::vector<Entry> entries_;
  std::size_t bytes_ = 0;
  std::uint64_t n_uses_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::serve
