// SPDX-License-Identifier: Apache-2.0
//
// Smoothing (SmoothQuant, Xiao et al. 2023): channels of a product's input that are much larger
// than the others are made smaller, and the weights that multiply them larger, where the factors
// fold into what is computed before. The model stays the same function, and one scale for a whole
// input then loses less.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/compress/statistics.hpp"
#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct SmoothOptions {
  // How much of the difference in size goes to the weights: 0 none, 1 all.
  float alpha = 0.5f;
};

namespace detail {

// Tensors of a file as f32, read when they are first asked for.
class FloatTensors {
 public:
  using Weights = std::vector<Scalar<float>>;
  explicit FloatTensors(const io::Gguf& file) : file_(file) {}

  // Errors: those of FloatRows, with file and tensor. Null if there is no such tensor.
  Result<Weights*> get(const std::string& name) {
    Weights* const none = nullptr;
    if (const auto known = tensors_.find(name); known != tensors_.end()) return &known->second;
    const io::GgufTensor* const tensor = file_.find_tensor(name);
    if (tensor == nullptr) return none;
    const auto read = [&]() -> Result<Weights> {
      NIBBLE_TRY(rows, FloatRows::of(file_, *tensor));
      Weights all(rows.n() * rows.k());
      NIBBLE_CHECK(rows.read_all({values(all), all.size()}));
      return all;
    };
    auto weights = read();
    if (!weights) return std::move(weights).error().in(place_in_messages(file_, name));
    return &tensors_.emplace(name, *std::move(weights)).first->second;
  }
  const Weights* find(std::string_view name) const {
    const auto known = tensors_.find(name);
    return known == tensors_.end() ? nullptr : &known->second;
  }
  const io::Gguf& file() const noexcept { return file_; }

 private:
  const io::Gguf& file_;
  std::map<std::string, Weights, std::less<>> tensors_;
};

// A place where factors fold: what makes an input's channels, and the matrices that read them.
struct Fold {
  std::vector<std::string> makers;   // vectors (k), or matrices (k, any): divided, row by row
  std::vector<std::string> readers;  // matrices (any, k): multiplied, column by column
};

// Those of a layer, by the names that GGUF has for them; tensors that do not exist are left out.
inline std::vector<Fold> folds_of(const io::Gguf& file, Index layer) {
  const auto name_of = [&](const char* rest) { return layer_tensor(layer, rest); };
  const auto existing = [&](std::initializer_list<const char*> names) {
    std::vector<std::string> found;
    for (const char* const name : names) {
      if (file.find_tensor(name_of(name)) != nullptr) found.push_back(name_of(name));
    }
    return found;
  };
  std::vector<Fold> folds = {
      {existing({"attn_norm.weight", "attn_norm.bias"}),
       existing({"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_qkv.weight"})},
      {existing({"ffn_norm.weight", "ffn_norm.bias"}),
       existing({"ffn_gate.weight", "ffn_up.weight"})}};
  // The input of ffn_down is activation(gate) * up, so factors fold into up's rows, but through an
  // activation alone they do not.
  if (file.find_tensor(name_of("ffn_gate.weight")) != nullptr) {
    folds.push_back({existing({"ffn_up.weight", "ffn_up.bias"}), existing({"ffn_down.weight"})});
  }
  std::erase_if(folds, [](const Fold& f) { return f.makers.empty() || f.readers.empty(); });
  return folds;
}

// The factors of the channels of an input: max |x|^alpha / max |w|^(1 - alpha), of all matrices
// that read it. A channel that is always zero, or whose weights are, keeps its size.
inline std::vector<Scalar<double>> smoothing_factors(
    const InputStatistics& input, std::span<const FloatTensors::Weights* const> readers,
    double alpha) {
  const auto k = static_cast<std::size_t>(input.k());
  std::vector<Scalar<double>> factors(k, Scalar<double>{1});
  for (std::size_t j = 0; j < k; ++j) {
    double largest_weight = 0;
    for (const auto* const weights : readers) {
      for (std::size_t at = j; at < weights->size(); at += k) {
        largest_weight =
            larger(largest_weight, std::fabs(static_cast<double>((*weights)[at].value)));
      }
    }
    const auto column = static_cast<Index>(j);
    const double largest_input = larger(-static_cast<double>(input.smallest(column)),
                                        static_cast<double>(input.largest(column)));
    if (!(largest_input > 0) || !(largest_weight > 0)) continue;
    const double factor = std::pow(largest_input, alpha) / std::pow(largest_weight, 1 - alpha);
    if (is_finite(factor) && factor > 1e-6 && factor < 1e6) factors[j].value = factor;
  }
  return factors;
}

// Smoothing scales whole matrices, of one layer each. Error: unsupported, if some are factored or
// shared.
inline Result<void> check_smoothable(const io::Gguf& file) {
  if (file.find(kSharedTensorsKey) != nullptr) {
    return Error{Errc::unsupported,
                 file.name() + ": layers share tensors; smooth the model before that"};
  }
  for (const io::GgufTensor& tensor : file.tensors()) {
    if (name_of_product(tensor.name) == tensor.name) continue;
    return Error{Errc::unsupported, place_in_messages(file, tensor.name) +
                                        ": a factor of low rank; smooth the model before that"};
  }
  return ok();
}

inline Result<void> smooth_fold(const Fold& fold, const Statistics& statistics, double alpha,
                                FloatTensors& tensors) {
  const InputStatistics* const input = statistics.find(fold.readers[0]);
  const auto here = [&](const std::string& name, const std::string& what) {
    return Error{Errc::invalid_argument, place_in_messages(tensors.file(), name) + ": " + what};
  };
  if (input == nullptr) return here(fold.readers[0], "its input was not observed");
  const auto k = static_cast<std::size_t>(input->k());
  std::vector<FloatTensors::Weights*> readers;
  for (const std::string& name : fold.readers) {
    if (statistics.find(name) != input) return here(name, "it was observed with another input");
    if (tensors.file().find_tensor(name)->dims[0] != k) {
      return here(name, "its rows are not " + to_text(k) +
                            " long, as observed: the statistics are of another model");
    }
    NIBBLE_TRY(weights, tensors.get(name));
    readers.push_back(weights);
  }
  const std::vector<const FloatTensors::Weights*> read(readers.begin(), readers.end());
  const auto factors = smoothing_factors(*input, read, alpha);
  for (const std::string& name : fold.makers) {
    NIBBLE_TRY(weights, tensors.get(name));
    if (weights->size() % k != 0) return here(name, "not " + to_text(k) + " rows");
    const std::size_t row = weights->size() / k;
    for (std::size_t i = 0; i < weights->size(); ++i) {
      float& w = (*weights)[i].value;
      w = static_cast<float>(static_cast<double>(w) / factors[i / row].value);
    }
  }
  for (auto* const weights : readers) {
    for (std::size_t i = 0; i < weights->size(); ++i) {
      float& w = (*weights)[i].value;
      w = static_cast<float>(static_cast<double>(w) * factors[i % k].value);
    }
  }
  return ok();
}

}  // namespace detail

// The same model with smoothed inputs, as GGUF: what changed is in F32, the rest is copied. For
// models of the llama family and GPT-2's, by the names of their tensors: the inputs of Q, K and V
// and of the feed-forward part (folded into the norms before), and of a gated feed-forward part's
// second half (folded into the rows of ffn_up). The statistics are those of `in`; the smoothed
// model must be observed anew. All changed tensors are in memory at once. Errors: invalid_argument
// (alpha out of [0, 1], statistics of another model), not_found (a matrix whose input was not
// observed), unsupported (types that are not read; factors of low rank, layers that share tensors),
// limit, out_of_memory, io.
inline Result<std::vector<std::byte>> smooth(const io::Gguf& in, const Statistics& statistics,
                                             const SmoothOptions& options = {}) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    if (!(options.alpha >= 0 && options.alpha <= 1)) {
      return Error{Errc::invalid_argument, "smooth: alpha is " +
                                               to_text(static_cast<double>(options.alpha)) +
                                               ", it must be from 0 to 1"};
    }
    NIBBLE_CHECK(detail::check_smoothable(in));
    NIBBLE_CHECK(statistics.check_model(in));
    detail::FloatTensors tensors(in);
    bool has_folds = true;
    Index n_layers = 0;
    for (; has_folds; ++n_layers) {
      const auto folds = detail::folds_of(in, n_layers);
      has_folds = !folds.empty();
      for (const detail::Fold& fold : folds) {
        NIBBLE_CHECK(
            detail::smooth_fold(fold, statistics, static_cast<double>(options.alpha), tensors));
      }
    }
    if (n_layers == 1) {
      return Error{Errc::unsupported, in.name() + ": no tensors by the names that smoothing knows"};
    }
    io::GgufWriter writer;
    writer.copy_metadata(in);
    for (const io::GgufTensor& tensor : in.tensors()) {
      const auto* const changed = tensors.find(tensor.name);
      if (changed == nullptr) {
        writer.add_tensor(in, tensor);
        continue;
      }
      writer.add_tensor(tensor.name, io::GgmlType::f32, std::span(tensor.dims).first(tensor.n_dims),
                        std::as_bytes(std::span(values(*changed), changed->size())));
    }
    return writer.to_bytes();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::compress
