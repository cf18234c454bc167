// SPDX-License-Identifier: Apache-2.0
//
// AdamW, with moments in f32 (8 bytes for each value) or in 8 bits (2.03 bytes, and those of the
// last block of each parameter).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/train/parameters.hpp"
#include "nibble/train/random.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

enum class Moments : unsigned char { f32, bits8 };

// The defaults of torch.optim.AdamW.
struct AdamWOptions {
  double beta1 = 0.9;          // of the mean of gradients, in [0, 1)
  double beta2 = 0.999;        // of the mean of their squares, in [0, 1); 0.95 for language models
  double epsilon = 1e-8;       // from 1e-37, which f32 still holds, to 1
  double weight_decay = 0.01;  // from 0 on, for parameters that decay
  double clip_norm = 0;        // largest norm of all gradients together; 0: any
  Moments moments = Moments::f32;
  std::uint64_t seed = 0;  // of the rounding of 8-bit moments
};

// Decoupled weight decay, moments that start at zero with bias correction, epsilon added to the
// root: see kernels::AdamWStep for the formulas. A step allocates nothing; its results are the same
// bits for any number of threads.
class AdamW {
 public:
  // The moments are zero. Errors: those of Parameters::create, invalid_argument (an option outside
  // its range), out_of_memory.
  static Result<AdamW> create(std::vector<Parameter> parameters, const AdamWOptions& options = {}) {
    NIBBLE_CHECK(validate(options));
    AdamW made;
    made.options_ = options;
    NIBBLE_TRY(list, Parameters::create(std::move(parameters)));
    made.parameters_ = std::move(list);
    const auto n = static_cast<std::size_t>(made.parameters_.n_values());
    const auto n_blocks = static_cast<std::size_t>(made.parameters_.n_blocks());
    const bool is_small = options.moments == Moments::bits8;
    NIBBLE_TRY(moments, AlignedBuffer::allocate(is_small ? 2 * n_blocks * sizeof(float) + 2 * n
                                                         : 2 * n * sizeof(float)));
    made.moments_ = std::move(moments);
    return made;
  }

  // One step with all gradients multiplied by `gradient_scale` (one over the number of counted
  // rows, after gradients were summed over them), then clipped. Errors: invalid_argument (a
  // gradient that is not finite, with its parameter's name; gradients so large that f32 cannot hold
  // their squares; a learning rate that is no number from 0 on); no value has then changed, except
  // that gradients of pruned weights are zero.
  NIBBLE_LAZY Result<StepReport> step(Executor& executor, double learning_rate,
                                      double gradient_scale = 1) {
    NIBBLE_CHECK(detail::check_step(learning_rate, gradient_scale));
    NIBBLE_TRY(report, detail::clipped(parameters_, executor, gradient_scale, options_.clip_norm));
    // Second moments that are infinite would stay so: their values would never learn again.
    constexpr double kLargestNorm = 1e19;  // its square is below 2¹²⁸
    if (report.gradient_norm * report.clip_factor > kLargestNorm) {
      return Error{Errc::invalid_argument,
                   "gradients of norm " + to_text(report.gradient_norm) +
                       " are too large; a lower learning rate or clipping may help"};
    }
    ++n_steps_;
    const double scale = gradient_scale * report.clip_factor;
    const auto update = simd::kernel<kernels::AdamW>();
    const auto update8 = simd::kernel<kernels::AdamW8>();
    const auto chunks = parameters_.chunks();
    executor.parallel_for(static_cast<Index>(chunks.size()), [&](Index task, Index) {
      const Parameters::Chunk& chunk = chunks[static_cast<std::size_t>(task)];
      const Parameter& p = parameters_.all()[chunk.parameter];
      if (p.rate_factor == 0) return;
      const kernels::AdamWStep factors = factors_of(p, learning_rate, scale);
      float* const values = p.values.data() + chunk.begin;
      const float* const gradient = p.gradient.data() + chunk.begin;
      const Index at = parameters_.first_value(chunk.parameter) + chunk.begin;
      if (options_.moments == Moments::f32) {
        update(factors, values, gradient, floats() + at, floats() + n_values() + at, chunk.n);
      } else {
        const Index block =
            parameters_.first_block(chunk.parameter) + chunk.begin / kernels::kMomentBlock;
        update8(factors, key_of(chunk.parameter), static_cast<std::uint32_t>(chunk.begin), values,
                gradient, codes() + at, reinterpret_cast<std::uint8_t*>(codes()) + n_values() + at,
                floats() + block, floats() + parameters_.n_blocks() + block, chunk.n);
      }
      if (!p.mask.empty()) clear_pruned(p, chunk, at);
    });
    return report;
  }

  const AdamWOptions& options() const noexcept { return options_; }
  const Parameters& parameters() const noexcept { return parameters_; }
  std::size_t moment_bytes() const noexcept { return moments_.size(); }

  // ---- For checkpoints: after the same values, state and number of steps, the same steps follow
  std::uint64_t n_steps() const noexcept { return n_steps_; }
  void set_n_steps(std::uint64_t n) noexcept { n_steps_ = n; }
  // The moments of each parameter, in order.
  std::vector<StateTensor> state() {
    std::vector<StateTensor> out;
    const auto add = [&](const Parameter& p, const char* suffix, StateTensor::Kind kind, void* data,
                         Index n) {
      const auto size = static_cast<std::size_t>(n) * (kind == StateTensor::Kind::f32 ? 4 : 1);
      out.push_back({p.name + suffix, kind, {static_cast<std::byte*>(data), size}});
    };
    constexpr auto kF32 = StateTensor::Kind::f32, kI8 = StateTensor::Kind::i8;
    for (std::size_t i = 0; i < parameters_.all().size(); ++i) {
      const Parameter& p = parameters_.all()[i];
      const Index at = parameters_.first_value(i), block = parameters_.first_block(i);
      const auto n = static_cast<Index>(p.values.size());
      if (options_.moments == Moments::f32) {
        add(p, ".m", kF32, floats() + at, n);
        add(p, ".v", kF32, floats() + n_values() + at, n);
      } else {
        const Index n_blocks = (n + kernels::kMomentBlock - 1) / kernels::kMomentBlock;
        add(p, ".m", kI8, codes() + at, n);
        add(p, ".v", kI8, codes() + n_values() + at, n);
        add(p, ".ms", kF32, floats() + block, n_blocks);
        add(p, ".vs", kF32, floats() + parameters_.n_blocks() + block, n_blocks);
      }
    }
    return out;
  }
  // Everything that a run must share with the one that it continues, as text.
  std::string fingerprint() const {
    std::string text = "adamw";
    for (const double x : {options_.beta1, options_.beta2, options_.epsilon, options_.weight_decay,
                           options_.clip_norm}) {
      text = text + ' ' + detail::exact_text(x);
    }
    if (options_.moments == Moments::bits8) text = text + " bits8 seed " + to_text(options_.seed);
    return text + detail::choices_of(parameters_.all());
  }

 private:
  AdamW() = default;

  static Result<void> validate(const AdamWOptions& o) {
    if (!(o.beta1 >= 0 && o.beta1 < 1)) return detail::wrong_option("beta1 is not in [0, 1)");
    if (!(o.beta2 >= 0 && o.beta2 < 1)) return detail::wrong_option("beta2 is not in [0, 1)");
    if (!(o.epsilon >= 1e-37 && o.epsilon <= 1)) {
      return detail::wrong_option("epsilon is not in [1e-37, 1]");
    }
    return detail::validate_common(o);
  }

  kernels::AdamWStep factors_of(const Parameter& p, double learning_rate, double scale) const {
    const double rate = learning_rate * static_cast<double>(p.rate_factor);
    const double first = 1 - detail::power(options_.beta1, n_steps_);
    const double second = 1 - detail::power(options_.beta2, n_steps_);
    kernels::AdamWStep step;
    step.gradient_scale = static_cast<float>(scale);
    step.first_rest = static_cast<float>(1 - options_.beta1);
    step.second_kept = static_cast<float>(options_.beta2);
    step.second_rest = static_cast<float>(1 - options_.beta2);
    step.keep = p.decays ? static_cast<float>(1 - rate * options_.weight_decay) : 1.0f;
    step.rate = static_cast<float>(rate / first);
    step.second_scale = static_cast<float>(1 / std::sqrt(second));
    step.epsilon = static_cast<float>(options_.epsilon);
    return step;
  }

  void clear_pruned(const Parameter& p, const Parameters::Chunk& chunk, Index at) const {
    const bool is_small = options_.moments == Moments::bits8;
    detail::for_pruned(p, chunk.begin, chunk.begin + chunk.n, [&](Index i) {
      const Index moment = at + i - chunk.begin;
      p.values[static_cast<std::size_t>(i)] = 0;
      if (is_small) {
        codes()[moment] = codes()[n_values() + moment] = 0;
      } else {
        floats()[moment] = floats()[n_values() + moment] = 0;
      }
    });
  }

  std::uint32_t key_of(std::size_t parameter) const noexcept {
    const std::uint64_t of_step = detail::mixed(options_.seed ^ detail::mixed(n_steps_));
    return static_cast<std::uint32_t>(detail::mixed(of_step + parameter) >> 32);
  }

  Index n_values() const noexcept { return parameters_.n_values(); }
  // f32: means (n), squares (n). 8 bits: scales of means (n_blocks) and of squares (n_blocks), then
  // codes of means (n) and of squares (n).
  float* floats() const noexcept { return reinterpret_cast<float*>(moments_.data()); }
  std::int8_t* codes() const noexcept {
    return reinterpret_cast<std::int8_t*>(floats() + 2 * parameters_.n_blocks());
  }

  AdamWOptions options_;
  Parameters parameters_;
  AlignedBuffer moments_;
  std::uint64_t n_steps_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::train
