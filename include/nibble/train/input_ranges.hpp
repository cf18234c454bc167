// SPDX-License-Identifier: Apache-2.0
//
// The ranges of the inputs of products, tracked while a model is trained for static INT8: each
// matrix that is deployed in a format with known input ranges (I8Channel) gets a moving average of
// the smallest and largest number of its input in a step, and after some steps the forward pass
// reads its input with that range, as the exported model will. (B. Jacob et al., "Quantization and
// Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3.1.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/compress/activation_range.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/graph/observer.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/quant/static_scale.hpp"
#include "nibble/train/exact_text.hpp"
#include "nibble/train/parameters.hpp"
#include "nibble/train/trained_weights.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct InputRangeOptions {
  bool is_unsigned = false;  // codes 0 … 255 with a zero point; otherwise −127 … 127 around zero
  // What a step leaves of the average, from 0 to below 1. The first 1 / (1 − decay) steps count the
  // same.
  double decay = 0.99;
  // Steps that only observe: each row of an input has a scale of its own until then. 1 or more.
  Index n_first = 20;
};

// Refers to the weights and the executor: they must live as long. One thread at a time.
class InputRanges {
 public:
  // For all matrices of `weights` that can have ranges; what tracks a model by hand calls, for each
  // step, begin(), the Trainer's accumulate() with observer(), and update(). Errors:
  // invalid_argument (no such matrix, an option out of range), limit (rows too long for such
  // products), out_of_memory.
  static Result<Owned<InputRanges>> create(TrainedWeights& weights,
                                           const InputRangeOptions& options, Executor& executor);

  // For Trainer::set_product_observer(). Allocates nothing.
  const graph::ProductObserver* observer() const noexcept { return &observer_; }
  // Begins a step: what was seen since the last update() is forgotten.
  void begin() noexcept {
    for (Bounds& seen : seen_) seen = {};
  }
  // Ends a step: what was seen enters the averages, and these become the ranges of the weights
  // (TrainedWeights::set_input). Matrices whose products did not run keep theirs. Errors:
  // invalid_argument (an input that is not finite), limit (numbers beyond 2^106); nothing has
  // changed then.
  Result<void> update();

  // What a checkpoint holds. When it was filled again, restore() gives the weights their ranges.
  // Errors of restore(): those of update().
  std::vector<StateTensor> state() {
    return {{"input_ranges", StateTensor::Kind::f32,
             std::as_writable_bytes(std::span<Average>(averages_)), 3}};
  }
  Result<void> restore() { return set_inputs(); }
  // What a run must share with the one that it continues, as text.
  std::string fingerprint() const {
    return to_text(averages_.size()) + (options_.is_unsigned ? " with zero points" : "") +
           ", decay " + detail::exact_text(options_.decay) + ", from step " +
           to_text(options_.n_first);
  }

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  // Of the numbers in one step, and zero.
  struct Bounds {
    float low = 0, high = 0;
    bool is_there = false;

    void add(float other_low, float other_high) noexcept {
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
      is_there = true;
    }
  };
  // A row of the state tensor.
  struct Average {
    float low = 0, high = 0;
    float n_steps = 0;  // that it is of, up to kMostSteps
  };
  static constexpr float kMostSteps = 0x1p20f;

  InputRanges(TrainedWeights& weights, const InputRangeOptions& options, Executor& executor)
      : weights_(&weights), options_(options), executor_(&executor) {}

  Result<void> find_matrices();
  void add(std::span<const std::size_t> slot_ids, Index layer,
           MatrixView<const float> rows) noexcept;
  Bounds bounds_of(MatrixView<const float> rows) noexcept;
  Average after_step(const Average& before, const Bounds& seen) const noexcept;
  Result<quant::StaticScale> scale_of(std::size_t i, double low, double high) const;
  Result<void> set_inputs();

  TrainedWeights* weights_;
  InputRangeOptions options_;
  Executor* executor_;
  graph::ProductObserver observer_;
  // Which matrix the products of each slot in each layer multiply by, in the order of the table.
  std::vector<Scalar<std::size_t>> place_of_;
  // Of each matrix: which of the weights' tensors it is, and what is known of its input.
  std::vector<Scalar<std::size_t>> tensors_;
  std::vector<Average> averages_;
  std::vector<Bounds> seen_;   // in this step
  std::vector<Bounds> parts_;  // of the rows of each task
};

// ---- Making ------------------------------------------------------------------------------------

inline Result<Owned<InputRanges>> InputRanges::create(TrainedWeights& weights,
                                                      const InputRangeOptions& options,
                                                      Executor& executor) {
  if (!(options.decay >= 0 && options.decay < 1) || options.n_first < 1 ||
      static_cast<double>(options.n_first) > static_cast<double>(kMostSteps)) {
    return Error{Errc::invalid_argument,
                 "input ranges: a decay that is not from 0 to below 1, or fewer than 1 or more "
                 "than " +
                     to_text(static_cast<Index>(kMostSteps)) + " steps that only observe"};
  }
  return catch_out_of_memory([&]() -> Result<Owned<InputRanges>> {
    Owned<InputRanges> made(new (std::nothrow) InputRanges(weights, options, executor));
    if (!made) return Error{Errc::out_of_memory, "input ranges"};
    NIBBLE_CHECK(made->find_matrices());
    made->observer_ = [ranges = made.get()](std::span<const std::size_t> slot_ids, Index layer,
                                            MatrixView<const float> rows) {
      ranges->add(slot_ids, layer, rows);
    };
    return made;
  });
}

inline Result<void> InputRanges::find_matrices() {
  const graph::WeightTable table = weights_->table();
  place_of_.assign(table.size(), {kNone});
  const std::span<const TrainedTensor> tensors = weights_->tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TrainedTensor& t = tensors[i];
    if (t.deployed == nullptr || t.deployed->input != graph::InputKind::rows) continue;
    auto fits = graph::check_row_input(t.k, {1, 0, options_.is_unsigned});
    if (!fits) return std::move(fits).error().in("the input of " + io::quoted(t.name));
    for (std::size_t at = 0; at < place_of_.size(); ++at) {  // tied ones are there more than once
      const auto layer = static_cast<Index>(at / table.n_slots()) - 1;
      if (table.at(at % table.n_slots(), layer).data == t.packed) {
        place_of_[at].value = tensors_.size();
      }
    }
    tensors_.push_back({i});
  }
  if (tensors_.empty()) {
    return Error{Errc::invalid_argument,
                 "input ranges: no matrix is trained for a format whose inputs can have known "
                 "ranges (i8_channel)"};
  }
  averages_.resize(tensors_.size());
  seen_.resize(tensors_.size());
  parts_.resize(static_cast<std::size_t>(executor_->n_workers()));
  return ok();
}

// ---- Steps -------------------------------------------------------------------------------------

inline void InputRanges::add(std::span<const std::size_t> slot_ids, Index layer,
                             MatrixView<const float> rows) noexcept {
  const std::size_t n_slots = weights_->table().n_slots();
  for (const std::size_t slot : slot_ids) {
    const std::size_t i = place_of_[static_cast<std::size_t>(layer + 1) * n_slots + slot].value;
    if (i == kNone) continue;
    const Bounds bounds = bounds_of(rows);
    seen_[i].add(bounds.low, bounds.high);
  }
}

// The same for any number of threads: the least of least numbers. Infinities count, NaN does not.
inline InputRanges::Bounds InputRanges::bounds_of(MatrixView<const float> rows) noexcept {
  const Index m = rows.extent(0), k = rows.extent(1);
  const Index n_tasks = (std::min)(m, static_cast<Index>(parts_.size()));
  executor_->parallel_for(n_tasks, [&](Index task, Index) {
    constexpr Index kLanes = 8;  // compilers make one vector of them
    float low[kLanes] = {}, high[kLanes] = {};
    const auto add = [&](float x, Index lane) {
      low[lane] = x < low[lane] ? x : low[lane];
      high[lane] = x > high[lane] ? x : high[lane];
    };
    for (Index i = m * task / n_tasks; i < m * (task + 1) / n_tasks; ++i) {
      const float* const x = &rows(i, 0);
      Index j = 0;
      for (; j + kLanes <= k; j += kLanes) {
        for (Index lane = 0; lane < kLanes; ++lane) add(x[j + lane], lane);
      }
      for (; j < k; ++j) add(x[j], 0);
    }
    Bounds part;
    for (Index lane = 0; lane < kLanes; ++lane) part.add(low[lane], high[lane]);
    parts_[static_cast<std::size_t>(task)] = part;
  });
  Bounds all;
  for (Index i = 0; i < n_tasks; ++i) {
    const Bounds& part = parts_[static_cast<std::size_t>(i)];
    all.add(part.low, part.high);
  }
  return all;
}

inline InputRanges::Average InputRanges::after_step(const Average& before,
                                                    const Bounds& seen) const noexcept {
  if (!seen.is_there) return before;
  Average after;
  after.n_steps = smaller(before.n_steps + 1, kMostSteps);
  // The mean of the first steps, then the moving average: it does not remember where it started.
  const double share = larger(1 - options_.decay, 1 / static_cast<double>(after.n_steps));
  const auto moved = [&](float from, float to) {
    const auto a = static_cast<double>(from), b = static_cast<double>(to);
    return static_cast<float>(a + share * (b - a));
  };
  after.low = moved(before.low, seen.low);
  after.high = moved(before.high, seen.high);
  return after;
}

inline Result<quant::StaticScale> InputRanges::scale_of(std::size_t i, double low,
                                                        double high) const {
  auto scale = compress::scale_between(low, high, options_.is_unsigned);
  if (scale) return scale;
  const TrainedTensor& t = weights_->tensors()[tensors_[i].value];
  return std::move(scale).error().in("the input of " + io::quoted(t.name));
}

inline Result<void> InputRanges::update() {
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    const auto low = static_cast<double>(seen_[i].low), high = static_cast<double>(seen_[i].high);
    NIBBLE_CHECK(scale_of(i, low, high));
  }
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    averages_[i] = after_step(averages_[i], seen_[i]);
  }
  begin();
  return set_inputs();
}

inline Result<void> InputRanges::set_inputs() {
  for (std::size_t i = 0; i < averages_.size(); ++i) {
    quant::StaticScale scale;
    if (averages_[i].n_steps >= static_cast<float>(options_.n_first)) {
      NIBBLE_TRY(of_average, scale_of(i, static_cast<double>(averages_[i].low),
                                      static_cast<double>(averages_[i].high)));
      scale = of_average;
    }
    weights_->set_input(tensors_[i].value, scale);
  }
  return ok();
}

}}}  // namespace nibble::NIBBLE_ABI::train
