// SPDX-License-Identifier: Apache-2.0
//
// How much a model's predictions change if one matrix is in another format, measured for each
// matrix and each format: what allocation.hpp decides by.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/matrices.hpp"
#include "nibble/compress/predictions.hpp"
#include "nibble/compress/trial_weights.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct FormatTrial {
  quant::Format format = quant::Format::f32;
  std::uint64_t bytes = 0;  // of the tensor
  double divergence = 0;    // mean, in nats; see ReferencePredictions
};

struct TensorTrials {
  std::string tensor;
  std::uint64_t n = 0, k = 0;
  std::vector<FormatTrial> trials;  // in the order of the formats that were asked for
};

// What is known already, and what comes to be known: a file to go on from, a status line.
class TrialLog {
 public:
  virtual ~TrialLog() = default;
  // Whether a trial was made before; then its divergence.
  virtual bool find(std::string_view tensor, quant::Format format, double& divergence) = 0;
  // A trial was made. n_done of n_trials. False cancels.
  virtual bool add(std::string_view tensor, const FormatTrial& trial, std::size_t n_done,
                   std::size_t n_trials) = 0;
};

// Says which formats are tried for the matrix of this name.
using FormatsToTry = FunctionRef<std::span<const quant::Format>(std::string_view tensor)>;

// Measures each matrix in each format that is to be tried and that its rows have whole blocks of;
// if there is none, in f16. session: of the model that was loaded from `file`, with
// exchangeable_weights; its predictions are the reference. A matrix that is in a format already is
// not rounded, and costs nothing. `compiled`: what the program can run (FormatList::kOps).
// `convert` says how matrices are rounded (its rounder and executor). Errors: those of the parts;
// cancelled.
inline Result<std::vector<TensorTrials>> measure_sensitivity(
    const io::Gguf& file, Session& session, const ReferencePredictions& reference,
    FormatsToTry formats, graph::FormatTable compiled, ConvertOptions convert, TrialLog& log) {
  return catch_out_of_memory([&]() -> Result<std::vector<TensorTrials>> {
    NIBBLE_TRY(matrices, matrices_of(session.model(), file));
    TrialWeights trial(session.model());
    std::vector<TensorTrials> all;
    std::size_t n_trials = 0, n_done = 0;
    for (const ModelMatrix& matrix : matrices) {
      TensorTrials& tensor = all.emplace_back();
      tensor.tensor = matrix.tensor->name;
      tensor.n = matrix.tensor->dims[1];
      tensor.k = matrix.tensor->dims[0];
      const auto add = [&](quant::Format format) {
        const auto row_bytes = quant::row_bytes(format, static_cast<std::size_t>(matrix.k));
        if (!row_bytes || !quant::ggml_type_of(format) || !graph::find(compiled, format)) return;
        tensor.trials.push_back({format, tensor.n * *row_bytes, 0});
      };
      for (const quant::Format format : formats(tensor.tensor)) add(format);
      if (tensor.trials.empty()) add(quant::Format::f16);
      if (tensor.trials.empty()) {
        return Error{Errc::invalid_argument,
                     "no format for the rows of " + io::quoted(tensor.tensor) + ", of " +
                         to_text(tensor.k) + " weights, is compiled into this program"};
      }
      n_trials += tensor.trials.size();
    }
    InlineExecutor alone;
    Executor& executor = convert.executor != nullptr ? *convert.executor : alone;
    convert.choose = {};
    for (std::size_t i = 0; i < all.size(); ++i) {
      const ModelMatrix& matrix = matrices[i];
      for (FormatTrial& t : all[i].trials) {
        const bool is_same = *quant::ggml_type_of(t.format) == matrix.tensor->type;
        if (!is_same && !log.find(all[i].tensor, t.format, t.divergence)) {
          convert.format = t.format;
          NIBBLE_TRY(rows, quantize_tensor(file, all[i].tensor, convert));
          NIBBLE_CHECK(trial.set(matrix.slot, matrix.layer, *graph::find(compiled, t.format), rows,
                                 executor));
          NIBBLE_CHECK(session.engine().exchange_weights(trial.table()));
          auto divergence = reference.compare(session);
          NIBBLE_CHECK(session.engine().exchange_weights({}));
          trial.reset();
          if (!divergence) return std::move(divergence).error();
          t.divergence = divergence->mean;
        }
        if (!log.add(all[i].tensor, t, ++n_done, n_trials)) {
          return Error{Errc::cancelled, "measuring sensitivities"};
        }
      }
    }
    return all;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
