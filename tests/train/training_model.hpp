// SPDX-License-Identifier: Apache-2.0
//
// A graph with random f32 weights, its training steps and their gradients, for tests.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/graph/differentiate.hpp"
#include "nibble/graph/rope_table.hpp"
#include "nibble/graph/survey.hpp"

namespace test {

using namespace nibble;
using namespace nibble::graph;

// Sequences of one batch: their lengths.
struct GradientBatch {
  std::vector<std::int32_t> tokens;
  std::vector<Segment> segments;
  std::vector<Index> starts{0};
  std::vector<Index> outputs;

  GradientBatch(std::vector<Index> lengths, Index n_tokens, unsigned seed = 1) {
    std::mt19937 random(seed);
    for (const Index n : lengths) {
      segments.push_back({.first_row = starts.back(), .n_rows = n});
      for (Index i = 0; i < n; ++i) {
        tokens.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(n_tokens)));
        outputs.push_back(starts.back() + i);
      }
      starts.push_back(starts.back() + n);
    }
  }
  Step step() const { return {.tokens = tokens, .segments = segments, .output_rows = outputs}; }
};

// A weight with its values as doubles of floats, its gradient, and factors.
struct TestWeight {
  WeightNeed need;
  std::vector<float> values, gradient;
};

template <class E>
class TrainingModel final : public SurveySink {
 public:
  TrainingModel(const E& e, std::size_t n_slots, Index n_layers, unsigned seed = 7)
      : expression_(e),
        n_slots_(n_slots),
        table_(n_slots * static_cast<std::size_t>(n_layers + 1)),
        gradients_(table_.size()),
        random_(seed) {
    survey(expression_, *this);
    for (const WeightNeed& tied : ties_) {
      table_[place(tied.slot, tied.layer)] = table_[place(tied.tied_to, tied.layer)];
      gradients_[place(tied.slot, tied.layer)] = gradients_[place(tied.tied_to, tied.layer)];
    }
  }

  void weight(const WeightNeed& need) override {
    if (table_[place(need.slot, need.layer)]) return;
    if (need.tied_to != kNoSlot) return ties_.push_back(need);
    if (!need.is_required && !with_optional) return;
    TestWeight& w = weights.emplace_back();
    w.need = need;
    if (need.is_table && need.n == 0) w.need.n = 3;
    const Index n = (std::max)(w.need.n, Index{1}) * need.k;
    std::normal_distribution<float> normal(need.n == 0 ? 1.0f : 0.0f, need.n == 0 ? 0.3f : 0.4f);
    // Aligned memory: vectors of 64 bytes begin where allocate() says.
    auto memory = AlignedBuffer::allocate(static_cast<std::size_t>(n) * sizeof(float));
    REQUIRE(memory.has_value());
    auto* const data = reinterpret_cast<float*>(memory->data());
    for (Index i = 0; i < n; ++i) data[i] = normal(random_);
    w.gradient.assign(static_cast<std::size_t>(n), 0);
    const std::size_t at = place(need.slot, need.layer);
    table_[at] = {w.need.n > 0 ? &kF32Rows : nullptr,       w.need.n, need.k,
                  reinterpret_cast<const std::byte*>(data), 1,        {}};
    gradients_[at].values = w.gradient.data();
    memory_.push_back(*std::move(memory));
  }
  void rope(const RopeKey& key, const RopeFactors& factors) override {
    if (factors.slot != kNoSlot && at(factors.slot, -1)) {  // rotations without factors
      at(factors.slot, -1) = {};
      gradient_at(factors.slot, -1) = {};
      weights.pop_back();
    }
    for (const RopeKey& known : keys_) {
      if (known == key) return;
    }
    keys_.push_back(key);
    keys_.back().has_factors = false;
  }

  float* values(TestWeight& w) {
    return reinterpret_cast<float*>(
        const_cast<std::byte*>(table_[place(w.need.slot, w.need.layer)].data));
  }
  Weight& at(std::size_t slot, Index layer) { return table_[place(slot, layer)]; }
  WeightGradient& gradient_at(std::size_t slot, Index layer) {
    return gradients_[place(slot, layer)];
  }
  void clear() {
    for (TestWeight& w : weights) w.gradient.assign(w.gradient.size(), 0);
  }

  // Runs a step. loss(rows) turns rows into their gradient.
  template <class Loss>
  void run(const GradientBatch& batch, TrainingLimits limits, Executor& executor, const Loss& loss,
           const GradientObserver* observer = nullptr, unsigned char garbage = 255) {
    limits.limits.max_rows = static_cast<Index>(batch.tokens.size()) + 3;
    limits.limits.max_outputs = static_cast<Index>(batch.outputs.size()) + 2;
    limits.limits.max_segments = static_cast<Index>(batch.segments.size()) + 1;
    limits.limits.max_workers = executor.n_workers();
    for (const Segment& s : batch.segments) {
      limits.limits.n_positions = (std::max)(limits.limits.n_positions, s.n_rows);
    }
    plan = make_training_plan(expression_, limits);
    const std::string why = plan.error == nullptr ? "" : plan.error;
    REQUIRE(why == "");
    auto arena = AlignedBuffer::allocate(plan.bytes);
    REQUIRE(arena.has_value());
    std::memset(arena->data(), garbage, arena->size());
    std::vector<RopeTable> tables;
    std::vector<AlignedBuffer> table_memory;
    for (const RopeKey& key : keys_) {
      table_memory.push_back(
          *AlignedBuffer::allocate(RopeTable::bytes_needed(key, limits.limits.n_positions)));
      std::vector<double> frequencies(static_cast<std::size_t>(key.dim / 2));
      tables.push_back(RopeTable::fill(table_memory.back().bytes(), key, limits.limits.n_positions,
                                       frequencies, {}));
    }
    TrainingArgs args;
    args.run.step = batch.step();
    args.run.weights = WeightTable(table_, n_slots_);
    args.run.rope_tables = tables;
    args.run.arena = arena->bytes();
    args.run.executor = &executor;
    args.run.training = true;
    args.run.dropout_seed = 5;
    args.gradients = gradients_;
    args.sequence_starts = batch.starts;
    args.gradient_observer = observer;
    REQUIRE(run_training_step(expression_, plan, limits, args, loss));
  }

  std::deque<TestWeight> weights;
  TrainingPlan plan;
  bool with_optional = true;

 private:
  std::size_t place(std::size_t slot, Index layer) const {
    return static_cast<std::size_t>(layer + 1) * n_slots_ + slot;
  }

  E expression_;
  std::size_t n_slots_;
  std::vector<Weight> table_;
  std::vector<WeightGradient> gradients_;
  std::vector<WeightNeed> ties_;
  std::vector<RopeKey> keys_;
  std::vector<AlignedBuffer> memory_;
  std::mt19937 random_;
};

// The loss of the checks: a sum of all results with random factors, so that its gradient is these
// factors; returns the sum, in double.
class RandomLoss {
 public:
  double value = 0;
  void operator()(MatrixView<float> rows) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    value = 0;
    for (Index i = 0; i < rows.extent(0); ++i) {
      for (Index j = 0; j < rows.extent(1); ++j) {
        const float c = normal(random);
        value += static_cast<double>(c) * static_cast<double>(rows(i, j));
        rows(i, j) = c;
      }
    }
  }
};

// Compares the gradient of each weight with differences of the loss along a random direction in
// that weight, by Richardson's extrapolation of central differences (error h⁴; the noise of f32
// results is about 1e-7 · |loss| / h). An observer of gradients adds the loss *observed_loss.
template <class E>
void check_gradients(TrainingModel<E>& model, const GradientBatch& batch,
                     const TrainingLimits& limits = {},
                     double tolerance = 3e-3, const GradientObserver* observer = nullptr,
                     const double* observed_loss = nullptr) {
  InlineExecutor executor;
  RandomLoss loss;
  const auto turn = [&](MatrixView<float> rows) { loss(rows); };
  model.clear();
  model.run(batch, limits, executor, turn, observer);
  std::vector<std::vector<float>> gradients;
  for (const TestWeight& w : model.weights) gradients.push_back(w.gradient);
  std::size_t next = 0;
  for (TestWeight& w : model.weights) {
    const std::vector<float>& gradient = gradients[next++];
    if (model.gradient_at(w.need.slot, w.need.layer).values == nullptr) continue;
    CAPTURE(w.need.slot);
    CAPTURE(w.need.layer);
    float* const values = model.values(w);
    const std::vector<float> before(values, values + gradient.size());
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    // Along a direction that has a part of the gradient, so that the derivative is not small.
    double norm = 0;
    for (const float g : gradient) norm += static_cast<double>(g) * static_cast<double>(g);
    norm = std::sqrt(norm);
    CHECK(norm > 0);
    std::vector<double> direction;
    double expected = 0, length = 0;
    for (const float g : gradient) {
      direction.push_back(static_cast<double>(normal(random)) / std::sqrt(gradient.size()) +
                          static_cast<double>(g) / norm);
      length += direction.back() * direction.back();
    }
    const auto at = [&](double h) {
      for (std::size_t i = 0; i < before.size(); ++i) {
        values[i] = static_cast<float>(static_cast<double>(before[i]) + h * direction[i]);
      }
      model.run(batch, limits, executor, turn, observer);
      return loss.value + (observed_loss != nullptr ? *observed_loss : 0);
    };
    for (std::size_t i = 0; i < before.size(); ++i) {
      expected += direction[i] * static_cast<double>(gradient[i]);
    }
    const double h = 0.01 / std::sqrt(length);
    const double wide = (at(h) - at(-h)) / (2 * h), narrow = (at(h / 2) - at(-h / 2)) / h;
    const double measured = (4 * narrow - wide) / 3;
    CHECK(measured == doctest::Approx(expected).epsilon(tolerance));
    std::copy(before.begin(), before.end(), values);
  }
}

}  // namespace test
