// SPDX-License-Identifier: Apache-2.0
//
// Batches of packed sequences: examples one after the other without padding, in an order that a
// seed decides for each epoch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/train/random.hpp"
#include "nibble/train/sources.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// Packed sequences. An example of n tokens gives n − 1 rows: row i reads token i and predicts token
// i + 1, with the weight of that one. So no target crosses a border; attention must not either, and
// positions restart: row r of sequence s has position r − offsets[s].
struct Batch {
  std::vector<Index> offsets;           // (n_sequences + 1): the first row of each; then n_rows
  std::vector<std::int32_t> tokens;     // (n_rows)
  std::vector<std::int32_t> targets;    // (n_rows)
  std::vector<float> weights;           // (n_rows): of the row in the loss; 0: does not count
  std::vector<std::uint32_t> examples;  // (n_sequences): their numbers in the source
  Index n_counted = 0;                  // rows whose weight is not 0
  double weight = 0;                    // of all rows together
  std::uint64_t epoch = 0;              // from 0

  Index n_rows() const noexcept { return static_cast<Index>(tokens.size()); }
  Index n_sequences() const noexcept {
    return offsets.empty() ? 0 : static_cast<Index>(offsets.size()) - 1;
  }
  void clear() noexcept {
    offsets.clear();
    tokens.clear();
    targets.clear();
    weights.clear();
    examples.clear();
    n_counted = 0;
    weight = 0;
  }
};

struct BatchOptions {
  Index context = 0;                                          // most rows of a sequence
  Index max_rows = 0;                                         // of a batch; not below `context`
  Index max_sequences = (std::numeric_limits<Index>::max)();  // of a batch
  Index vocabulary = 0;                                       // tokens are below it
  bool shuffles = true;    // else examples come in the order of the source
  std::uint64_t seed = 0;  // of the order
};

// Where a run is in its data: what a checkpoint stores so that it continues with the same batches.
struct DataPosition {
  std::uint64_t seed = 0;
  std::uint64_t n_examples = 0;  // of the source
  std::uint64_t epoch = 0;
  std::uint64_t next = 0;  // in the order of the epoch

  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

// Takes examples in the order of the epoch, as many as fit: a batch ends before the first that does
// not, and at the end of an epoch. Each epoch has each example once. The order of epoch e is that
// of shuffle() with Random(mixed(seed ^ mixed(e))), from 0, 1, 2, …: 4 bytes an example.
class Batches {
 public:
  // `source` must live as long. Errors: invalid_argument (an option outside its range, no
  // examples), limit (2³² examples or more, a batch of more than 2³¹ rows), out_of_memory.
  static Result<Batches> create(const Source& source, const BatchOptions& options) {
    return catch_out_of_memory([&]() -> Result<Batches> {
      NIBBLE_CHECK(validate(source, options));
      Batches made(source, options);
      made.order_.resize(static_cast<std::size_t>(source.n_examples()));
      made.make_order();
      return made;
    });
  }

  // The next batch, in place of what `out` held; with the same `out` it allocates nothing after the
  // first time, unless `source` does. Errors, which name the example: those of the source,
  // invalid_argument (fewer than two tokens, more rows than the context, a token beyond the
  // vocabulary, weights that do not fit or are not finite or negative). The position then is that
  // before the call.
  Result<void> next(Batch& out) {
    const DataPosition before = position();
    Result<void> done = catch_out_of_memory([&] { return fill(out); });
    if (!done) {
      if (epoch_ != before.epoch) move_to(before);
      next_ = before.next;
    }
    return done;
  }

  DataPosition position() const noexcept { return {options_.seed, order_.size(), epoch_, next_}; }
  // Goes on where position() was taken. Error: invalid_argument, if it is that of other data or
  // another seed.
  Result<void> seek(const DataPosition& to) {
    if (to.seed != options_.seed) {
      return wrong("the data was in the order of seed " + to_text(to.seed) + ", now of " +
                   to_text(options_.seed));
    }
    if (to.n_examples != order_.size()) {
      return wrong("the data had " + to_text(to.n_examples) + " examples, now " +
                   to_text(order_.size()));
    }
    if (to.next > to.n_examples) {
      return wrong("a position in the data behind its end: " + to_text(to.next) + " of " +
                   to_text(to.n_examples));
    }
    move_to(to);
    return ok();
  }

  const BatchOptions& options() const noexcept { return options_; }
  // What decides which batches follow, as text.
  std::string fingerprint() const {
    return "context " + to_text(options_.context) + " rows " + to_text(options_.max_rows) +
           " sequences " + to_text(options_.max_sequences) +
           (options_.shuffles ? " shuffled" : " in order");
  }

 private:
  Batches(const Source& source, const BatchOptions& options)
      : source_(&source), options_(options) {}

  static Error wrong(std::string message) { return {Errc::invalid_argument, std::move(message)}; }

  static Result<void> validate(const Source& source, const BatchOptions& o) {
    if (o.context < 1) return wrong("batches: the context is below 1");
    if (o.max_rows < o.context) {
      return wrong("batches: " + to_text(o.max_rows) + " rows do not hold a context of " +
                   to_text(o.context));
    }
    if (o.max_rows > Index{1} << 31) {
      return Error{Errc::limit, "batches: more than 2^31 rows"};
    }
    if (o.max_sequences < 1) return wrong("batches: fewer than one sequence");
    if (o.vocabulary < 1) return wrong("batches: the vocabulary is empty");
    if (source.n_examples() < 1) return wrong("batches: the data set is empty");
    if (source.n_examples() > Index{(std::numeric_limits<std::uint32_t>::max)()}) {
      return Error{Errc::limit, "batches: more than 2^32 - 1 examples"};
    }
    return ok();
  }

  void make_order() {
    std::uint32_t i = 0;
    for (Scalar<std::uint32_t>& example : order_) example.value = i++;
    if (!options_.shuffles) return;
    Random random(detail::mixed(options_.seed ^ detail::mixed(epoch_)));
    shuffle(std::span(order_), random);
  }
  void move_to(const DataPosition& to) {
    if (epoch_ != to.epoch) {
      epoch_ = to.epoch;
      make_order();
    }
    next_ = to.next;
  }

  Result<void> fill(Batch& out) {
    if (next_ == order_.size()) move_to({options_.seed, order_.size(), epoch_ + 1, 0});
    out.clear();
    reserve(out);
    out.epoch = epoch_;
    out.offsets.push_back(0);
    while (next_ < order_.size() && out.n_sequences() < options_.max_sequences) {
      const std::uint32_t number = order_[io::narrow<std::size_t>(next_)].value;
      Result<void> read = source_->read(Index{number}, example_);
      if (read) read = check_example();
      if (!read) return std::move(read).error().in("example " + to_text(number));
      const auto n_rows = static_cast<Index>(example_.tokens.size()) - 1;
      if (out.n_rows() + n_rows > options_.max_rows) break;
      append(out);
      out.examples.push_back(number);
      ++next_;
    }
    return ok();
  }

  // What the largest batch needs: so that none allocates after the first.
  void reserve(Batch& out) const {
    const BatchOptions& o = options_;
    const Index n_sequences = (std::min)({o.max_sequences, o.max_rows, n_examples()});
    const Index n_rows =
        n_sequences < o.max_rows / o.context ? n_sequences * o.context : o.max_rows;
    out.offsets.reserve(static_cast<std::size_t>(n_sequences) + 1);
    out.examples.reserve(static_cast<std::size_t>(n_sequences));
    out.tokens.reserve(static_cast<std::size_t>(n_rows));
    out.targets.reserve(static_cast<std::size_t>(n_rows));
    out.weights.reserve(static_cast<std::size_t>(n_rows));
  }
  Index n_examples() const noexcept { return static_cast<Index>(order_.size()); }

  Result<void> check_example() const {
    const std::size_t n = example_.tokens.size();
    if (n < 2) return wrong(to_text(n) + " tokens; two are the fewest to learn from");
    if (static_cast<Index>(n) - 1 > options_.context) {
      return wrong(to_text(n - 1) + " rows, more than the context of " + to_text(options_.context));
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t token = example_.tokens[i];
      if (token < 0 || token >= options_.vocabulary) {
        return wrong("token " + to_text(i) + " is " + to_text(token) + ", which a vocabulary of " +
                     to_text(options_.vocabulary) + " does not have");
      }
    }
    if (example_.weights.empty()) return ok();
    if (example_.weights.size() != n) {
      return wrong(to_text(example_.weights.size()) + " weights for " + to_text(n) + " tokens");
    }
    for (const float weight : example_.weights) {
      if (!(weight >= 0) || !is_finite(static_cast<double>(weight))) {
        return wrong("a weight is not a number from 0 on");
      }
    }
    return ok();
  }

  void append(Batch& out) const {
    const auto& tokens = example_.tokens;
    out.tokens.insert(out.tokens.end(), tokens.begin(), tokens.end() - 1);
    out.targets.insert(out.targets.end(), tokens.begin() + 1, tokens.end());
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      const float weight = example_.weights.empty() ? 1.0f : example_.weights[i];
      out.weights.push_back(weight);
      out.weight += static_cast<double>(weight);
      out.n_counted += weight > 0 ? 1 : 0;
    }
    out.offsets.push_back(out.n_rows());
  }

  const Source* source_;
  BatchOptions options_;
  std::vector<Scalar<std::uint32_t>> order_;  // of the examples in this epoch
  std::uint64_t epoch_ = 0;
  std::uint64_t next_ = 0;
  Example example_;
};

}}}  // namespace nibble::NIBBLE_ABI::train
