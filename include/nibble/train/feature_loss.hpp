// SPDX-License-Identifier: Apache-2.0
//
// Losses on what is inside of a model: rows at a tap of some of a student's layers are drawn to
// those of a teacher's, beside what the student learns from predictions. By their direction
// (cosine_alignment; with a projection where widths differ), or by how the rows of a sequence
// relate to each other (relation_loss, MiniLMv2).
//
//   FeatureLoss features({.pairs = {{.student = 1, .teacher = 3}}}, 128, 256, max_rows, executor);
//   teacher.show_to(features.of_teacher());       // a ModelTeacher
//   Run::create(graph, weights, source, options, executor, &teacher, &features)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/observer.hpp"
#include "nibble/graph/training_run.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/initialize.hpp"
#include "nibble/train/losses.hpp"
#include "nibble/train/parameters.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct FeatureLossOptions {
  enum class Kind : unsigned char { cosine, relation };
  struct Pair {
    Index student = 0;  // layers
    Index teacher = 0;
  };

  Kind kind = Kind::cosine;
  std::string tap = "layer";  // of the expression: rows behind each layer; "q", "k", "v" before the
                              // rotation, for relations
  std::vector<Pair> pairs;
  float weight = 1;        // of the sum over all pairs, beside the loss on predictions
  Index n_heads = 1;       // relation heads; both widths are multiples of it
  bool is_causal = true;   // relations only to earlier rows
  std::uint64_t seed = 1;  // of projections
};

class FeatureLoss {
 public:
  FeatureLoss(FeatureLoss&&) = delete;  // the observers refer to it

  // `student_width` and `teacher_width`: of the rows at the tap. max_rows: of a batch. The executor
  // must live as long.
  FeatureLoss(FeatureLossOptions options, Index student_width, Index teacher_width, Index max_rows,
              Executor& executor)
      : options_(std::move(options)),
        student_width_(student_width),
        teacher_width_(teacher_width),
        executor_(&executor) {
    pairs_.resize(options_.pairs.size());
    for (Pair& pair : pairs_) {
      pair.teacher.resize(static_cast<std::size_t>(max_rows * teacher_width));
      if (!has_projection()) continue;
      pair.projection.resize(static_cast<std::size_t>(teacher_width * student_width));
      pair.gradient.resize(pair.projection.size());
      Normal normal(detail::mixed(options_.seed) +
                    static_cast<std::uint64_t>(&pair - pairs_.data()));
      for (Scalar<float>& x : pair.projection) {
        x.value =
            static_cast<float>(normal.next() / libm::sqrt(static_cast<double>(student_width)));
      }
    }
    on_teacher_ = [this](std::string_view name, Index layer, MatrixView<const float> rows) {
      keep(name, layer, rows);
    };
    on_student_ = [this](std::string_view name, Index layer, MatrixView<const float> rows,
                         MatrixView<float> gradient) { add(name, layer, rows, gradient); };
  }

  // For the teacher's Trainer and for the student's (TrainerOptions::taps).
  const graph::Observer* of_teacher() const noexcept { return &on_teacher_; }
  const graph::GradientObserver* of_student() const noexcept { return &on_student_; }
  // Projections learn too; they are no part of the model. For the optimizer.
  std::vector<Parameter> parameters() {
    std::vector<Parameter> out;
    for (std::size_t i = 0; i < pairs_.size() && has_projection(); ++i) {
      Parameter p;
      p.name = "projection." + to_text(i);
      p.values = {values(pairs_[i].projection), pairs_[i].projection.size()};
      p.gradient = {values(pairs_[i].gradient), pairs_[i].gradient.size()};
      out.push_back(std::move(p));
    }
    return out;
  }

  void clear_gradients() noexcept {
    for (Pair& pair : pairs_) {
      for (Scalar<float>& g : pair.gradient) g.value = 0;
    }
  }
  // Before each batch, which must live until its step is done. Directions are weighted by row, as
  // predictions are; relations are not.
  void begin(const Batch& batch) noexcept {
    batch_ = &batch;
    loss_ = 0;
  }
  // Of the last step: the sum over rows, weighted.
  double loss() const noexcept { return loss_; }

 private:
  struct Pair {
    std::vector<Scalar<float>> teacher;  // (rows, teacher_width)
    std::vector<Scalar<float>> projection, gradient;
  };

  bool has_projection() const noexcept {
    return options_.kind == FeatureLossOptions::Kind::cosine && student_width_ != teacher_width_;
  }
  MatrixView<float> teacher_rows(Pair& pair, Index n_rows) const noexcept {
    return MatrixView<float>(values(pair.teacher), n_rows, teacher_width_);
  }
  void keep(std::string_view name, Index layer, MatrixView<const float> rows) {
    if (name != options_.tap) return;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      if (options_.pairs[i].teacher != layer) continue;
      graph::copy_rows(rows, teacher_rows(pairs_[i], rows.extent(0)));
    }
  }
  void add(std::string_view name, Index layer, MatrixView<const float> rows,
           MatrixView<float> gradient) {
    if (name != options_.tap || batch_ == nullptr) return;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      if (options_.pairs[i].student != layer) continue;
      Pair& pair = pairs_[i];
      const MatrixView<const float> teacher = teacher_rows(pair, rows.extent(0));
      loss_ += static_cast<double>(options_.weight) * loss_of(pair, rows, teacher, gradient);
    }
  }
  double loss_of(Pair& pair, MatrixView<const float> rows, MatrixView<const float> teacher,
                 MatrixView<float> gradient) {
    const float scale = options_.weight;
    if (options_.kind == FeatureLossOptions::Kind::relation) {
      const RelationOptions options{options_.n_heads, options_.is_causal};
      const std::span<double> scratch =
          take(relation_scratch(executor_->n_workers(), batch_->offsets, student_width_, options));
      return relation_loss(*executor_, batch_->offsets, rows, teacher, options, scale, gradient,
                           scratch);
    }
    Projection projection;
    if (has_projection()) {
      projection.weights =
          MatrixView<const float>(values(pair.projection), teacher_width_, student_width_);
      projection.gradient =
          MatrixView<float>(values(pair.gradient), teacher_width_, student_width_);
    }
    const std::span<double> scratch =
        take(cosine_alignment_scratch(rows.extent(0), teacher_width_));
    return cosine_alignment(*executor_, rows, teacher, batch_->weights, scale, gradient, projection,
                            scratch);
  }
  std::span<double> take(Index n) {  // grows to the largest batch
    if (scratch_.size() < static_cast<std::size_t>(n)) scratch_.resize(static_cast<std::size_t>(n));
    return {values(scratch_), static_cast<std::size_t>(n)};
  }

  FeatureLossOptions options_;
  Index student_width_, teacher_width_;
  Executor* executor_;
  std::vector<Pair> pairs_;
  std::vector<Scalar<double>> scratch_;
  graph::Observer on_teacher_;
  graph::GradientObserver on_student_;
  const Batch* batch_ = nullptr;
  double loss_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::train
