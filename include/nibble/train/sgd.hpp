// SPDX-License-Identifier: Apache-2.0
//
// Gradient descent with momentum.
#pragma once

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

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

struct SgdOptions {
  double momentum = 0;      // in [0, 1)
  double weight_decay = 0;  // from 0 on, for parameters that decay; added to their gradient
  double clip_norm = 0;     // largest norm of all gradients together; 0: any
  bool nesterov = false;
};

// As torch.optim.SGD without dampening: see kernels::MomentumStep for the formulas. 4 bytes for
// each value, even without momentum. A step allocates nothing; its results are the same bits for
// any number of threads.
class Sgd {
 public:
  // Errors: as AdamW::create.
  static Result<Sgd> create(std::vector<Parameter> parameters, const SgdOptions& options = {}) {
    if (!(options.momentum >= 0 && options.momentum < 1)) {
      return detail::wrong_option("momentum is not in [0, 1)");
    }
    NIBBLE_CHECK(detail::validate_common(options));
    Sgd made;
    made.options_ = options;
    NIBBLE_TRY(list, Parameters::create(std::move(parameters)));
    made.parameters_ = std::move(list);
    const auto n = static_cast<std::size_t>(made.parameters_.n_values());
    NIBBLE_TRY(moments, AlignedBuffer::allocate(n * sizeof(float)));
    made.moments_ = std::move(moments);
    return made;
  }

  // One step. Arguments and errors are those of AdamW::step; only gradients that are not finite are
  // too large.
  NIBBLE_LAZY Result<StepReport> step(Executor& executor, double learning_rate,
                                      double gradient_scale = 1) {
    NIBBLE_CHECK(detail::check_step(learning_rate, gradient_scale));
    NIBBLE_TRY(report, detail::clipped(parameters_, executor, gradient_scale, options_.clip_norm));
    ++n_steps_;
    const double scale = gradient_scale * report.clip_factor;
    const auto update = simd::kernel<kernels::Momentum>();
    const auto chunks = parameters_.chunks();
    executor.parallel_for(static_cast<Index>(chunks.size()), [&](Index task, Index) {
      const Parameters::Chunk& chunk = chunks[static_cast<std::size_t>(task)];
      const Parameter& p = parameters_.all()[chunk.parameter];
      if (p.rate_factor == 0) return;
      kernels::MomentumStep factors;
      factors.gradient_scale = static_cast<float>(scale);
      factors.decay = p.decays ? static_cast<float>(options_.weight_decay) : 0.0f;
      factors.momentum = static_cast<float>(options_.momentum);
      factors.rate = static_cast<float>(learning_rate * static_cast<double>(p.rate_factor));
      factors.nesterov = options_.nesterov;
      float* const moment = floats() + parameters_.first_value(chunk.parameter) + chunk.begin;
      update(factors, p.values.data() + chunk.begin, p.gradient.data() + chunk.begin, moment,
             chunk.n);
      if (p.mask.empty()) return;
      detail::for_pruned(p, chunk.begin, chunk.begin + chunk.n, [&](Index i) {
        p.values[static_cast<std::size_t>(i)] = moment[i - chunk.begin] = 0;
      });
    });
    return report;
  }

  const SgdOptions& options() const noexcept { return options_; }
  const Parameters& parameters() const noexcept { return parameters_; }
  std::size_t moment_bytes() const noexcept { return moments_.size(); }

  // ---- For checkpoints: as AdamW's
  std::uint64_t n_steps() const noexcept { return n_steps_; }
  void set_n_steps(std::uint64_t n) noexcept { n_steps_ = n; }
  std::vector<StateTensor> state() {
    std::vector<StateTensor> out;
    for (std::size_t i = 0; i < parameters_.all().size(); ++i) {
      const Parameter& p = parameters_.all()[i];
      auto* const data = reinterpret_cast<std::byte*>(floats() + parameters_.first_value(i));
      out.push_back(
          {p.name + ".m", StateTensor::Kind::f32, {data, p.values.size() * sizeof(float)}});
    }
    return out;
  }
  std::string fingerprint() const {
    std::string text = "sgd";
    for (const double x : {options_.momentum, options_.weight_decay, options_.clip_norm}) {
      text = text + ' ' + detail::exact_text(x);
    }
    if (options_.nesterov) text = text + " nesterov";
    return text + detail::choices_of(parameters_.all());
  }

 private:
  Sgd() = default;
  float* floats() const noexcept { return reinterpret_cast<float*>(moments_.data()); }

  SgdOptions options_;
  Parameters parameters_;
  AlignedBuffer moments_;  // (n_values)
  std::uint64_t n_steps_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::train
