// SPDX-License-Identifier: Apache-2.0
//
// What a device at home teaches a model that knows the home commands: a room or a device with a new
// name, in commands of the grammar; and the data of such a lesson, a few new samples among old
// ones.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../home_commands/grammar.hpp"
#include "../samples.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/train/random.hpp"
#include "nibble/train/sources.hpp"

namespace example {

enum class NewWord : std::uint8_t { room, device };

// The command with `word` in the place of its room or device; nothing if it has none, or if a slip
// of the keyboard is in it.
inline std::optional<Sample> with_word(const Sample& sample, NewWord kind, std::string_view word) {
  const bool is_room = kind == NewWord::room;
  if (!is_room && !sample.answer.starts_with("device.")) return std::nullopt;
  const std::string_view field = is_room ? "room=" : "name=";
  const std::size_t at = sample.answer.find(field);
  if (at == sample.answer.npos) return std::nullopt;
  const std::size_t begin = at + field.size();
  const std::size_t end = sample.answer.find_first_of(",)", begin);
  const std::string key = sample.answer.substr(begin, end - begin);
  std::string said = key;
  std::replace(said.begin(), said.end(), '_', ' ');
  const std::size_t where = sample.prompt.find(said);
  if (where == sample.prompt.npos || sample.prompt.find(said, where + 1) != sample.prompt.npos) {
    return std::nullopt;
  }
  Sample out = sample;
  out.prompt.replace(where, said.size(), word);
  out.answer.replace(begin, key.size(), home::key(word));
  return out;
}

// Commands of the grammar that name the new room or device. Splits share none.
inline std::vector<Sample> samples_with_word(home::Split split, std::uint64_t seed, NewWord kind,
                                             std::string_view word, std::size_t n) {
  home::Commands commands(split, seed);
  std::vector<Sample> samples;
  while (samples.size() < n) {
    if (auto sample = with_word(commands.next(), kind, word)) samples.push_back(*std::move(sample));
  }
  return samples;
}

// Answers to be learned: new samples in turn, and between them old ones, so that those are not
// forgotten.
class LessonSource final : public nibble::train::Source {
 public:
  // Of the examples `share` are old. `old`: samples to take them from in turn; empty: the grammar.
  // All must live as long.
  LessonSource(const nibble::text::Tokenizer& tokenizer, const std::vector<Sample>& samples,
               const std::vector<Sample>& old, double share, std::uint64_t seed,
               nibble::Index n_examples)
      : tokenizer_(&tokenizer),
        samples_(&samples),
        old_(&old),
        share_(share),
        seed_(seed),
        n_examples_(n_examples) {}

  nibble::Index n_examples() const noexcept override { return n_examples_; }
  nibble::Result<void> read(nibble::Index i, nibble::train::Example& out) const override {
    const auto n_old_before = [&](nibble::Index n) {
      return static_cast<std::uint64_t>(share_ * static_cast<double>(n));
    };
    const std::uint64_t nth_old = n_old_before(i);
    const bool is_old = n_old_before(i + 1) > nth_old;
    const auto nth_new = static_cast<std::uint64_t>(i) - nth_old;
    NIBBLE_TRY(tokens,
               sample_tokens(*tokenizer_, is_old ? old_sample(nth_old)
                                                 : (*samples_)[nth_new % samples_->size()]));
    out.clear();
    out.tokens = std::move(tokens.ids);
    out.count_from(static_cast<std::size_t>(tokens.first_of_answer));
    return nibble::ok();
  }

 private:
  Sample old_sample(std::uint64_t nth) const {
    if (!old_->empty()) return (*old_)[nth % old_->size()];
    return home::Commands(home::Split::train, nibble::train::detail::mixed(seed_) + nth).next();
  }

  const nibble::text::Tokenizer* tokenizer_;
  const std::vector<Sample>* samples_;
  const std::vector<Sample>* old_;
  double share_;
  std::uint64_t seed_;
  nibble::Index n_examples_;
};

}  // namespace example
