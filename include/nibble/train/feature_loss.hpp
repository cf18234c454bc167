// SPDX-License-Identifier: Apache-2.0
//
// Losses on what is inside of a model: rows at a tap of some of a student's layers are drawn to
// those of a teacher's, beside what the student learns from predictions. By their direction
// (cosine_alignment; with a projection where widths differ), or by how the rows of a sequence
// relate to each other (relation_loss, MiniLMv2).
//
//   NIBBLE_TRY(features, FeatureLoss::create({.pairs = {{.student = 1, .teacher = 3}}}, 128, 256,
//                                            max_rows, executor));
//   teacher.show_to(features->of_teacher());       // a ModelTeacher
//   Run::create(graph, weights, source, options, executor, &teacher, features.get())
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/observer.hpp"
#include "nibble/graph/training_run.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/exact_text.hpp"
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
  // must live as long. Errors: invalid_argument (no pairs, a size below 1, heads that do not divide
  // the widths, a weight that is not a number), limit, out_of_memory.
  static Result<Owned<FeatureLoss>> create(FeatureLossOptions options, Index student_width,
                                           Index teacher_width, Index max_rows,
                                           Executor& executor) {
    const auto wrong = [](const char* what) {
      return Error{Errc::invalid_argument, std::string("feature loss: ") + what};
    };
    if (options.pairs.empty()) return wrong("no pairs of layers");
    if (student_width < 1 || teacher_width < 1 || max_rows < 1 || options.n_heads < 1) {
      return wrong("a width, a number of rows or of heads below 1");
    }
    if (options.kind == FeatureLossOptions::Kind::relation &&
        (student_width % options.n_heads != 0 || teacher_width % options.n_heads != 0)) {
      return wrong("the heads do not divide the widths");
    }
    if (!is_finite(static_cast<double>(options.weight))) return wrong("a weight that is no number");
    const Index widest = (std::max)({student_width, teacher_width, options.n_heads});
    const Index most = kMaxBytes / 64 / widest;
    if (max_rows > most / (executor.n_workers() + 2) || student_width > most) {
      return Error{Errc::limit, "feature loss: too large for the address space"};
    }
    return catch_out_of_memory([&]() -> Result<Owned<FeatureLoss>> {
      Owned<FeatureLoss> made(new (std::nothrow) FeatureLoss(std::move(options), student_width,
                                                             teacher_width, executor));
      if (!made) return Error{Errc::out_of_memory, "a feature loss"};
      made->allocate(max_rows);
      return made;
    });
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
  // Before each batch, which must live until end(). Directions are weighted by row, as predictions
  // are; relations are not.
  void begin(const Batch& batch) noexcept {
    batch_ = &batch;
    loss_ = 0;
    error_ = nullptr;
    for (Pair& pair : pairs_) pair.has_teacher = pair.has_student = false;
  }
  // After the student's step: the loss, a sum over rows. Error: invalid_argument (a tap or layer
  // that one of the models does not have, rows of another width or more than max_rows).
  Result<double> end() {
    batch_ = nullptr;
    for (const Pair& pair : pairs_) {
      if (error_ != nullptr) break;
      if (!pair.has_teacher) error_ = "the teacher shows no rows of a layer at this tap";
      if (!pair.has_student) error_ = "the student shows no rows of a layer at this tap";
    }
    if (error_ == nullptr) return loss_;
    return Error{Errc::invalid_argument,
                 "feature loss at the tap '" + options_.tap + "': " + error_};
  }
  // What a run must share with the one that it continues, as text.
  std::string fingerprint() const {
    std::string text = options_.tap;
    text += options_.kind == FeatureLossOptions::Kind::cosine ? " directions" : " relations";
    text += " times " + detail::exact_text(static_cast<double>(options_.weight));
    for (const FeatureLossOptions::Pair& pair : options_.pairs) {
      text += ", " + to_text(pair.student) + " to " + to_text(pair.teacher);
    }
    return text;
  }

 private:
  struct Pair {
    std::vector<Scalar<float>> teacher;  // (rows, teacher_width)
    std::vector<Scalar<float>> projection, gradient;
    bool has_teacher = false, has_student = false;  // in this step
  };

  FeatureLoss(FeatureLossOptions options, Index student_width, Index teacher_width,
              Executor& executor)
      : options_(std::move(options)),
        student_width_(student_width),
        teacher_width_(teacher_width),
        executor_(&executor) {}

  void allocate(Index max_rows) {
    max_rows_ = max_rows;
    pairs_.resize(options_.pairs.size());
    std::uint64_t number = 0;
    for (Pair& pair : pairs_) {
      pair.teacher.resize(static_cast<std::size_t>(max_rows * teacher_width_));
      if (!has_projection()) continue;
      pair.projection.resize(static_cast<std::size_t>(teacher_width_ * student_width_));
      pair.gradient.resize(pair.projection.size());
      Normal normal(detail::mixed(options_.seed) + number++);
      const double size = 1 / libm::sqrt(static_cast<double>(student_width_));
      for (Scalar<float>& x : pair.projection) x.value = static_cast<float>(normal.next() * size);
    }
    // For any batch: all its rows in one sequence need the most for a worker, each in one of its
    // own the most for sequences.
    const Index for_relations =
        max_rows * options_.n_heads +
        executor_->n_workers() * max_rows * (2 + student_width_ / options_.n_heads);
    scratch_.resize(static_cast<std::size_t>(
        (std::max)(for_relations, cosine_alignment_scratch(max_rows, teacher_width_))));
    on_teacher_ = [this](std::string_view name, Index layer, MatrixView<const float> rows) {
      keep(name, layer, rows);
    };
    on_student_ = [this](std::string_view name, Index layer, MatrixView<const float> rows,
                         MatrixView<float> gradient) { add(name, layer, rows, gradient); };
  }

  bool has_projection() const noexcept {
    return options_.kind == FeatureLossOptions::Kind::cosine && student_width_ != teacher_width_;
  }
  MatrixView<float> teacher_rows(Pair& pair, Index n_rows) const noexcept {
    return MatrixView<float>(values(pair.teacher), n_rows, teacher_width_);
  }
  // Whether rows are as they were announced.
  bool fit(MatrixView<const float> rows, Index width) noexcept {
    if (rows.extent(0) <= max_rows_ && rows.extent(1) == width) return true;
    error_ = "rows of another width or more of them than were announced";
    return false;
  }
  void keep(std::string_view name, Index layer, MatrixView<const float> rows) noexcept {
    if (name != options_.tap) return;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      if (options_.pairs[i].teacher != layer || !fit(rows, teacher_width_)) continue;
      ops::copy_rows(*executor_, rows, teacher_rows(pairs_[i], rows.extent(0)));
      pairs_[i].has_teacher = true;
    }
  }
  void add(std::string_view name, Index layer, MatrixView<const float> rows,
           MatrixView<float> gradient) noexcept {
    if (name != options_.tap || batch_ == nullptr) return;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      Pair& pair = pairs_[i];
      if (options_.pairs[i].student != layer || !fit(rows, student_width_)) continue;
      pair.has_student = true;
      const MatrixView<const float> teacher = teacher_rows(pair, rows.extent(0));
      if (pair.has_teacher) {
        loss_ += static_cast<double>(options_.weight) * loss_of(pair, rows, teacher, gradient);
      }
    }
  }
  double loss_of(Pair& pair, MatrixView<const float> rows, MatrixView<const float> teacher,
                 MatrixView<float> gradient) {
    const float scale = options_.weight;
    const std::span<double> scratch(values(scratch_), scratch_.size());
    if (options_.kind == FeatureLossOptions::Kind::relation) {
      const RelationOptions options{options_.n_heads, options_.is_causal};
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
    return cosine_alignment(*executor_, rows, teacher, batch_->weights, scale, gradient, projection,
                            scratch);
  }

  FeatureLossOptions options_;
  Index student_width_, teacher_width_, max_rows_ = 0;
  Executor* executor_;
  std::vector<Pair> pairs_;
  std::vector<Scalar<double>> scratch_;
  graph::Observer on_teacher_;
  graph::GradientObserver on_student_;
  const Batch* batch_ = nullptr;
  const char* error_ = nullptr;  // of this step
  double loss_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::train
