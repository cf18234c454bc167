// SPDX-License-Identifier: Apache-2.0
//
// What an optimizer updates: named arrays of f32 values with their gradients, options for each, and
// masks of pruned weights. The arrays belong to the caller; their work is split into fixed chunks,
// so that results are the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/kernels/adamw.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/train/exact_text.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// One tensor that is trained. `values` and `gradient` have the same size, stay where they are as
// long as an optimizer uses them, and do not overlap those of other parameters: a tensor that is
// used twice (tied embeddings) is one parameter.
struct Parameter {
  std::string name;  // not empty, no two the same
  std::span<float> values;
  std::span<float> gradient;
  bool decays = true;     // weight decay: not for the gains and biases of norms
  float rate_factor = 1;  // of the learning rate; finite, not negative; 0: values and moments stay
  Index columns = 0;      // of the rows of a matrix; 0: one row
  // Pruned weights of a matrix: (n, ceil(columns / 64)) words, a bit set if the weight stays, that
  // of column j of a row is bit j % 64 of word j / 64 (TrainedWeights::set_mask makes them). Empty:
  // all stay. Each step sets the gradients of the others to zero and, unless the rate factor is 0,
  // their values and moments. The words may change between steps.
  std::span<const std::uint64_t> mask = {};
};

// What a tensor that an optimizer keeps between steps looks like to a checkpoint: bytes to be
// saved, and filled again. A moment of parameter "x" is called "x.m", "x.v", ...
struct StateTensor {
  enum class Kind : unsigned char { f32, i8 };
  std::string name;
  Kind kind = Kind::f32;
  std::span<std::byte> bytes;
  Index columns = 0;  // of the rows of a matrix; 0: one row
};

// What a step of an optimizer reports.
struct StepReport {
  double gradient_norm = 0;  // of all gradients together, scaled, before clipping
  double clip_factor = 1;    // by which clipping multiplied them
};

namespace detail {

constexpr bool is_from_0_on(double x) noexcept { return is_finite(x) && x >= 0; }

// f(i) for each i in [begin, end) whose bit is not set.
template <class F>
void for_pruned(const Parameter& p, Index begin, Index end, F&& f) {
  const Index stride = (p.columns + 63) / 64;
  for (Index at = begin; at < end;) {
    const Index row = at / p.columns, column = at % p.columns, bit = column % 64;
    const Index n = (std::min)({64 - bit, p.columns - column, end - at});
    std::uint64_t gone = ~p.mask[static_cast<std::size_t>(row * stride + column / 64)] >> bit;
    if (n < 64) gone &= (std::uint64_t{1} << n) - 1;
    for (; gone != 0; gone &= gone - 1) f(at + std::countr_zero(gone));
    at += n;
  }
}

// xⁿ by repeated squaring, with a relative error of about n · 2⁻⁵³: the same everywhere, unlike
// that of C libraries.
constexpr double power(double x, std::uint64_t n) noexcept {
  double result = 1;
  for (; n != 0; n >>= 1, x *= x) {
    if ((n & 1) != 0) result *= x;
  }
  return result;
}

}  // namespace detail

// A checked list of parameters, cut into chunks.
class Parameters {
 public:
  // Values of a chunk: a multiple of kernels::kMomentBlock, some microseconds of work.
  static constexpr Index kChunk = Index{1} << 14;

  struct Chunk {
    std::size_t parameter;
    Index begin;  // first of its values in the parameter
    Index n;
  };

  Parameters() = default;

  // Errors, which name the parameter: invalid_argument (no parameters or an empty one, sizes that
  // differ, names that are empty or appear twice, values or gradients that overlap, a mask of
  // another size, a rate factor out of range), out_of_memory.
  static Result<Parameters> create(std::vector<Parameter> parameters) {
    return catch_out_of_memory([&]() -> Result<Parameters> {
      Parameters made;
      made.all_ = std::move(parameters);
      NIBBLE_CHECK(made.validate());
      for (std::size_t i = 0; i < made.all_.size(); ++i) {
        const auto size = static_cast<Index>(made.all_[i].values.size());
        made.first_value_.push_back({made.n_values_});
        made.first_block_.push_back({made.n_blocks_});
        made.n_values_ += size;
        made.n_blocks_ += (size + kernels::kMomentBlock - 1) / kernels::kMomentBlock;
        for (Index begin = 0; begin < size; begin += kChunk) {
          made.chunks_.push_back({i, begin, (std::min)(kChunk, size - begin)});
        }
      }
      made.sums_.resize(made.chunks_.size());
      return made;
    });
  }

  std::span<const Parameter> all() const noexcept { return all_; }
  std::span<const Chunk> chunks() const noexcept { return chunks_; }
  // Of all parameters together.
  Index n_values() const noexcept { return n_values_; }
  Index n_blocks() const noexcept { return n_blocks_; }  // of kernels::kMomentBlock values
  // Where the values and the blocks of a parameter begin, among those of all.
  Index first_value(std::size_t parameter) const noexcept { return first_value_[parameter].value; }
  Index first_block(std::size_t parameter) const noexcept { return first_block_[parameter].value; }

  // Sets the gradients of pruned weights to zero and returns the norm of all gradients: the root of
  // the sum of squares in double, chunk by chunk. Error: invalid_argument, with the name of the
  // first parameter that has a gradient which is not finite.
  NIBBLE_LAZY Result<double> gradient_norm(Executor& executor) {
    const auto square_sum = simd::kernel<kernels::SquareSum>();
    executor.parallel_for(static_cast<Index>(chunks_.size()), [&](Index task, Index) {
      const Chunk& chunk = chunks_[static_cast<std::size_t>(task)];
      const Parameter& p = all_[chunk.parameter];
      if (!p.mask.empty()) {
        detail::for_pruned(p, chunk.begin, chunk.begin + chunk.n,
                           [&](Index i) { p.gradient[static_cast<std::size_t>(i)] = 0; });
      }
      sums_[static_cast<std::size_t>(task)].value =
          square_sum(p.gradient.data() + chunk.begin, chunk.n);
    });
    double sum = 0;
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      if (!is_finite(sums_[i].value)) return not_finite(chunks_[i]);
      sum += sums_[i].value;
    }
    return std::sqrt(sum);
  }

 private:
  Result<void> validate() const {
    if (all_.empty()) return wrong("there are no parameters to train");
    for (const Parameter& p : all_) {
      const std::string what = "parameter " + io::quoted(p.name);
      if (p.name.empty()) return wrong("a parameter has no name");
      if (p.values.empty()) return wrong(what + " is empty");
      if (p.values.size() != p.gradient.size()) {
        return wrong(what + ": " + to_text(p.values.size()) + " values, but " +
                     to_text(p.gradient.size()) + " of the gradient");
      }
      if (!detail::is_from_0_on(static_cast<double>(p.rate_factor))) {
        return wrong(what + ": its factor of the learning rate is not a number from 0 on");
      }
      if (p.columns < 0 || (p.columns > 0 && size_of(p) % p.columns != 0)) {
        return wrong(what + ": " + to_text(size_of(p)) + " values are no rows of " +
                     to_text(p.columns));
      }
      if (!p.mask.empty()) NIBBLE_CHECK(check_mask(p, what));
    }
    return check_pairs();
  }

  static Result<void> check_mask(const Parameter& p, const std::string& what) {
    if (p.columns == 0) return wrong(what + " has a mask but no columns");
    const Index n_words = size_of(p) / p.columns * ((p.columns + 63) / 64);
    if (static_cast<Index>(p.mask.size()) == n_words) return ok();
    return wrong(what + ": a mask of " + to_text(p.mask.size()) + " words instead of " +
                 to_text(n_words));
  }

  static Index size_of(const Parameter& p) noexcept { return static_cast<Index>(p.values.size()); }

  // No name twice, no memory twice.
  Result<void> check_pairs() const {
    struct Array {
      const Parameter* of;
      std::span<const float> floats;
    };
    std::vector<Array> order;
    for (const Parameter& p : all_) order.push_back({&p, p.values});
    std::sort(order.begin(), order.end(),
              [](const Array& a, const Array& b) { return a.of->name < b.of->name; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1].of->name == order[i].of->name) {
        return wrong("parameter " + io::quoted(order[i].of->name) + " is there twice");
      }
    }
    for (const Parameter& p : all_) order.push_back({&p, p.gradient});
    const std::less<const float*> before;
    std::sort(order.begin(), order.end(), [&](const Array& a, const Array& b) {
      return before(a.floats.data(), b.floats.data());
    });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const Array &a = order[i - 1], &b = order[i];
      if (!before(b.floats.data(), a.floats.data() + a.floats.size())) continue;
      return wrong(a.of == b.of
                       ? "parameter " + io::quoted(a.of->name) +
                             " has its gradient where its values are"
                       : "parameters " + io::quoted(a.of->name) + " and " + io::quoted(b.of->name) +
                             " share values or gradients; make them one parameter");
    }
    return ok();
  }

  Error not_finite(const Chunk& chunk) const {
    const Parameter& p = all_[chunk.parameter];
    Index i = chunk.begin;
    while (is_finite(static_cast<double>(p.gradient[static_cast<std::size_t>(i)]))) ++i;
    return {Errc::invalid_argument, "the gradient of parameter " + io::quoted(p.name) +
                                        " is not finite (value " + to_text(i) +
                                        "); a lower learning rate or clipping may help"};
  }
  static Error wrong(std::string message) { return {Errc::invalid_argument, std::move(message)}; }

  std::vector<Parameter> all_;
  std::vector<Chunk> chunks_;
  std::vector<Scalar<Index>> first_value_, first_block_;
  std::vector<Scalar<double>> sums_;  // of squares, of each chunk
  Index n_values_ = 0;
  Index n_blocks_ = 0;
};

namespace detail {

// The gradients' norm, and the factor that makes it at most `limit` (0: no limit) as
// torch.nn.utils.clip_grad_norm_ does.
NIBBLE_LAZY Result<StepReport> clipped(Parameters& parameters, Executor& executor, double scale,
                                       double limit) {
  NIBBLE_TRY(norm, parameters.gradient_norm(executor));
  StepReport report{norm * std::fabs(scale), 1};
  if (limit > 0 && report.gradient_norm > limit) {
    report.clip_factor = smaller(1.0, limit / (report.gradient_norm + 1e-6));
  }
  return report;
}

inline Result<void> check_step(double learning_rate, double gradient_scale) {
  if (!is_from_0_on(learning_rate)) {
    return Error{Errc::invalid_argument, "the learning rate is not a number from 0 on"};
  }
  if (!is_finite(gradient_scale)) {
    return Error{Errc::invalid_argument, "the scale of the gradients is not finite"};
  }
  return ok();
}

// Of each parameter, what is not the default: part of an optimizer's fingerprint.
inline std::string choices_of(std::span<const Parameter> parameters) {
  std::string text;
  for (const Parameter& p : parameters) {
    if (!p.decays) text = text + " no-decay:" + p.name;
    if (p.rate_factor != 1) {
      text = text + " rate:" + p.name + '=' + exact_text(static_cast<double>(p.rate_factor));
    }
  }
  return text;
}

inline Error wrong_option(const char* what) {
  return {Errc::invalid_argument, std::string("option ") + what};
}

// The options that all optimizers have.
template <class Options>
Result<void> validate_common(const Options& o) {
  if (!is_from_0_on(o.weight_decay)) {
    return wrong_option("weight_decay is not a number from 0 on");
  }
  if (!is_from_0_on(o.clip_norm)) return wrong_option("clip_norm is not a number from 0 on");
  return ok();
}

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::train
