// SPDX-License-Identifier: Apache-2.0
//
// Home commands as training data: example i of a seed is the same everywhere, and is made when it
// is read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../home_commands/grammar.hpp"
#include "../samples.hpp"
#include "nibble/text/tokenizer.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/random.hpp"
#include "nibble/train/sources.hpp"

namespace example {

// Batches of up to `n` commands, in the order of their source. A command has 30 tokens in the mean,
// and there is room for 40: few batches are smaller.
inline nibble::train::BatchOptions command_batches(nibble::Index context, nibble::Index n,
                                                   std::uint64_t seed) {
  nibble::train::BatchOptions options;
  options.context = context;
  options.max_sequences = n;
  options.max_rows = std::max(context, 40 * n);
  options.shuffles = false;  // they are drawn
  options.seed = seed;
  return options;
}

// What counts in the loss: the whole sample, or only its answer and end.
enum class Learned : std::uint8_t { all, answer };

class HomeSource final : public nibble::train::Source {
 public:
  // The tokenizer must live as long.
  HomeSource(const nibble::text::Tokenizer& tokenizer, std::uint64_t seed, nibble::Index n_examples,
             Learned learned = Learned::all, home::Split split = home::Split::train)
      : tokenizer_(&tokenizer),
        seed_(seed),
        n_examples_(n_examples),
        learned_(learned),
        split_(split) {}

  nibble::Index n_examples() const noexcept override { return n_examples_; }
  nibble::Result<void> read(nibble::Index i, nibble::train::Example& out) const override {
    home::Commands commands(split_,
                            nibble::train::detail::mixed(seed_) + static_cast<std::uint64_t>(i));
    NIBBLE_TRY(sample, sample_tokens(*tokenizer_, commands.next()));
    out.clear();
    out.tokens = std::move(sample.ids);
    if (learned_ == Learned::answer) {
      out.count_from(static_cast<std::size_t>(sample.first_of_answer));
    }
    return nibble::ok();
  }

 private:
  const nibble::text::Tokenizer* tokenizer_;
  std::uint64_t seed_;
  nibble::Index n_examples_;
  Learned learned_;
  home::Split split_;
};

}  // namespace example
