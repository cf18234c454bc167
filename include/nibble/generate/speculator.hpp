// SPDX-License-Identifier: Apache-2.0
//
// Decides how many guesses of a draft source a step computes: as many as make tokens cheapest, by
// how often guesses of each kind were right and by how long steps of so many rows took. Included by
// generator-inl.hpp and scheduler_state-inl.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <span>
#include <utility>

#include "nibble/core/native_thread.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/generate/draft_source.hpp"
#include "nibble/generate/ngram_drafts.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// How long steps of 1 to kMaxRows rows take. Estimates of few numbers that follow what is measured;
// a single time that is far off moves them by little.
class StepTimes {
 public:
  static constexpr Index kMaxRows = 8 * (kMaxDrafts + 1);

  void add(Index n_rows, double time) noexcept {
    Size& size = sizes_[at(n_rows)];
    if (size.n == 0) size.ratio = expected(n_rows);
    if (unit_ == 0) unit_ = time / size.ratio;
    if (unit_ <= 0) return;
    const double error = smaller(larger(time / (unit_ * size.ratio), 0.5), 2.0) - 1;
    size.n = smaller(size.n + 1, kMemory);
    size.ratio *= 1 + error / size.n;
    // All sizes change together as the text grows, or when the machine has other work too.
    unit_ *= 1 + error / kMemory;
    // What is not measured any more is forgotten, so that one bad time is not believed for ever.
    for (Index i = 2; i <= kMaxRows; ++i) {
      Size& other = sizes_[at(i)];
      if (i != n_rows && other.n > 0) other.ratio += (expected(i) - other.ratio) / kForgetting;
    }
  }

  // In the unit of add(); only relations between them count.
  double of(Index n_rows) const noexcept {
    const Size& size = sizes_[at(n_rows)];
    return (size.n > 0 ? size.ratio : expected(n_rows)) * (unit_ > 0 ? unit_ : 1);
  }

 private:
  struct Size {
    double ratio = 1;  // of the time to the unit
    double n = 0;      // measured, at most kMemory
  };
  static constexpr double kMemory = 16, kForgetting = 1024;  // steps

  static std::size_t at(Index n_rows) noexcept {
    return static_cast<std::size_t>((std::min)(n_rows, kMaxRows) - 1);
  }
  // Of a size that was not measured: rows more cost what they do up to the next smaller size that
  // was; a quarter of the first one, if there is none.
  double expected(Index n_rows) const noexcept {
    Index known = (std::min)(n_rows, kMaxRows) - 1;
    while (known > 1 && sizes_[at(known)].n == 0) --known;
    if (known <= 1) return sizes_[0].ratio * (1 + 0.25 * static_cast<double>(n_rows - 1));
    const double ratio = sizes_[at(known)].ratio;
    const double of_row = larger(ratio - sizes_[0].ratio, 0.0) / static_cast<double>(known - 1);
    return ratio + of_row * static_cast<double>(n_rows - known);
  }

  std::array<Size, static_cast<std::size_t>(kMaxRows)> sizes_;
  double unit_ = 0;
};

// How often guesses of each kind are right: a mean over the last 32 or so.
class HitRates {
 public:
  HitRates() noexcept {
    for (std::size_t i = 0; i < kinds_.size(); ++i) {
      kinds_[i].rate = larger(0.7 - 0.12 * static_cast<double>(i), 0.1);
    }
  }
  void add(std::uint8_t kind, bool is_right) noexcept {
    Kind& k = kinds_[kind];
    k.rate += ((is_right ? 1 : 0) - k.rate) / k.n;
    k.n = smaller(k.n + 1, 32.0);
  }
  double of(std::uint8_t kind) const noexcept { return kinds_[kind].rate; }

 private:
  struct Kind {
    double rate = 0;
    double n = 4;  // what is assumed at first counts as so many
  };
  std::array<Kind, static_cast<std::size_t>(kDraftKinds)> kinds_;
};

// What a step is without the guesses of one text.
struct StepLoad {
  Index n_rows = 1;
  double n_tokens = 1;  // that it gives, of all texts that share it
};

// The guesses of one text after the other. After create() nothing allocates.
class Speculator {
 public:
  // Errors: out_of_memory.
  static Result<Speculator> create(const Speculation& options, Index vocab_size) {
    Owned<NgramDrafts> own;
    if (options.source == nullptr) {
      NIBBLE_TRY(made, NgramDrafts::create());
      own = Owned<NgramDrafts>(new (std::nothrow) NgramDrafts(std::move(made)));
      if (!own) return Error{Errc::out_of_memory, "speculation"};
    }
    return Speculator(options, std::move(own), vocab_size);
  }

  const SpeculationStats& stats() const noexcept { return stats_; }

  // The tokens have changed from position `first_new` on, by more than one that was generated.
  void restart(std::span<const std::int32_t> tokens, Index first_new) noexcept {
    n_guesses_ = next_ = 0;
    source_->observe(tokens, first_new);
  }

  // A token was generated: the last of these.
  void take(std::span<const std::int32_t> tokens) noexcept {
    source_->observe(tokens, static_cast<Index>(tokens.size()) - 1);
    if (n_waits_ > 0) --n_waits_;
    if (next_ == n_guesses_) return;
    const bool is_right = drafts_[next_].token == tokens.back();
    rates_.add(drafts_[next_].kind, is_right);
    if (is_right && next_ < n_computed_) {
      ++stats_.n_accepted;
      ++n_right_;
    }
    ++next_;
    if (!is_right) n_guesses_ = next_;
  }

  // Guesses what follows, at most `most` tokens; allowed(guesses) says how many of them may come.
  template <class Allowed>
  std::span<const std::int32_t> guess(std::span<const std::int32_t> tokens, Index most,
                                      const StepLoad& load, const StepTimes& times,
                                      Allowed&& allowed) {
    n_guesses_ = next_ = n_computed_ = 0;
    most = (std::min)({most, max_drafts_, StepTimes::kMaxRows - load.n_rows});
    if (!source_->is_free() && !is_always_) most = (std::min)(most, most_of_slow(times));
    if (most < 1) return {};
    const std::int64_t start = source_->is_free() ? 0 : monotonic_nanoseconds();
    ask(tokens, most);
    if (!source_->is_free()) draft_time_ = static_cast<double>(monotonic_nanoseconds() - start);
    load_ = load;
    const std::size_t n = best_number(load, times);
    if (n > 0) n_computed_ = static_cast<std::size_t>(Index{allowed(ids(n))});
    return ids(n_computed_);
  }

  // How many of the guesses that are computed will be right, on average.
  double n_expected() const noexcept {
    double n = 0, all_right = 1;
    for (std::size_t i = 0; i < n_computed_; ++i) n += all_right *= rates_.of(drafts_[i].kind);
    return n;
  }

  // A step has computed n_guesses of them; it took a time, in the unit of StepTimes.
  void ran(Index n_guesses, double step_time) noexcept {
    ++stats_.n_steps;
    stats_.n_drafted += n_guesses;
    if (n_guesses == 0) n_computed_ = 0;
    step_time_ = step_time;
  }

 private:
  Speculator(const Speculation& options, Owned<NgramDrafts> own, Index vocab_size) noexcept
      : own_(std::move(own)),
        source_(own_ ? own_.get() : options.source),
        max_drafts_(options.max_drafts),
        is_always_(options.always),
        vocab_size_(vocab_size) {}

  std::span<const std::int32_t> ids(std::size_t n) const noexcept { return {ids_, n}; }

  // Gets guesses, up to the first that is none.
  void ask(std::span<const std::int32_t> tokens, Index most) noexcept {
    const auto space = std::span(drafts_).first(static_cast<std::size_t>(most));
    const Index n = std::clamp(source_->draft(tokens, space), Index{0}, most);
    for (; n_guesses_ < static_cast<std::size_t>(n); ++n_guesses_) {
      const Draft& draft = drafts_[n_guesses_];
      if (draft.token < 0 || draft.token >= vocab_size_ || draft.kind >= kDraftKinds) return;
      ids_[n_guesses_] = draft.token;
    }
  }

  // How many guesses a source that takes time is asked for, by what the last ones brought. While
  // they brought less than they cost, it is asked seldom, and for few.
  Index most_of_slow(const StepTimes& times) noexcept {
    constexpr Index kShortWait = 8, kLongWait = 128;  // tokens
    constexpr double kMemory = 8;                     // times that it was asked
    if (draft_time_ > 0) {
      const double n_tokens = load_.n_tokens + static_cast<double>(n_right_);
      const double plain_time = times.of(load_.n_rows) * n_tokens / load_.n_tokens;
      const double gain = plain_time / (draft_time_ + step_time_);
      gain_ += (larger(gain, 0.5) - gain_) / kMemory;
      if (gain_ < 1) {
        wait_ = (std::min)((std::max)(2 * wait_, kShortWait), kLongWait);
        n_waits_ = wait_;
        gain_ = 1;
      } else if (gain > 1 && wait_ > 0) {  // how often it was right before, says nothing now
        wait_ = 0;
        rates_ = {};
      }
    }
    n_right_ = 0;
    draft_time_ = 0;
    if (n_waits_ > 0) return 0;
    return wait_ > 0 ? 2 : kMaxDrafts;
  }

  // How many of the guesses give the most tokens in a time, as far as is known.
  std::size_t best_number(const StepLoad& load, const StepTimes& times) const noexcept {
    constexpr double kWorthIt = 1.1;
    if (is_always_ || wait_ > 0) return n_guesses_;
    double n_tokens = load.n_tokens, all_right = 1;
    double best = kWorthIt * n_tokens / times.of(load.n_rows);
    std::size_t number = 0;
    for (std::size_t i = 0; i < n_guesses_; ++i) {
      all_right *= rates_.of(drafts_[i].kind);
      n_tokens += all_right;
      const double rate = n_tokens / times.of(load.n_rows + static_cast<Index>(i) + 1);
      if (rate <= best) continue;
      best = rate;
      number = i + 1;
    }
    return number;
  }

  Owned<NgramDrafts> own_;
  DraftSource* source_;
  Index max_drafts_;
  bool is_always_;
  Index vocab_size_;
  std::array<Draft, static_cast<std::size_t>(kMaxDrafts)> drafts_{};
  std::int32_t ids_[static_cast<std::size_t>(kMaxDrafts)] = {};
  // Guesses of the next tokens: those before next_ have come, the first n_computed_ were computed.
  std::size_t n_guesses_ = 0, next_ = 0, n_computed_ = 0;
  // Of a source that takes time: what guesses bring to what they cost, how long it is not asked
  // when that is less than 1, how many tokens of these are left, and the last guesses.
  double gain_ = 1.1;
  Index wait_ = 0, n_waits_ = 0, n_right_ = 0;
  double draft_time_ = 0, step_time_ = 0;
  StepLoad load_;  // that the last ones were guessed for
  HitRates rates_;
  SpeculationStats stats_;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
