// SPDX-License-Identifier: Apache-2.0
//
// A model: its dimensions, its packed weights, its tokenizer. Read-only once loaded, so any number
// of sessions on any number of threads can share one.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/progress.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace graph {
struct AllFormats;
class WeightTable;
}  // namespace graph
namespace io {
class Gguf;
}
namespace text {
class Tokenizer;
}
template <class Formats>
class WeightStore;

struct LoadOptions {
  Executor* executor = nullptr;        // packs the weights; null: the calling thread
  const Progress* progress = nullptr;  // told how far loading is
};

// The dimensions that a GGUF file (io/gguf.hpp) states. Errors: unsupported (another architecture,
// a kind of rotation that is not known here), not_found, malformed (values out of range or at
// odds).
Result<ModelConfig> config_from_gguf(const io::Gguf& file);

// A model whose weights are in `Formats`, a graph::FormatList; kernels are compiled for those
// alone.
template <class Formats>
class BasicModel {
 public:
  using FormatTypes = Formats;

  // A model from its parts: `weights` must hold, packed, what weight_shape() asks for
  // (model/weight_shape.hpp). For programs that bring weights of their own (they include
  // model/weight_store.hpp and text/tokenizer.hpp); files go through load().
  BasicModel(const ModelConfig& config, WeightStore<Formats> weights);
  BasicModel(const ModelConfig& config, WeightStore<Formats> weights, text::Tokenizer tokenizer);

  // From a GGUF file (io/gguf.hpp). Packed tensors are used where they are in it: the caller keeps
  // the file as long as the model, or gives it away. Errors name the file and the key or tensor;
  // also those of simd::ensure_target (a NIBBLE_TARGET that cannot be had).
  static Result<BasicModel> from_gguf(const io::Gguf& file, const LoadOptions& options = {});
  static Result<BasicModel> from_gguf(io::Gguf&& file, const LoadOptions& options = {});

  const ModelConfig& config() const noexcept;
  graph::WeightTable weights() const noexcept;
  std::size_t weight_bytes() const noexcept;
  // Of these, what is used where it is in the file, packed already.
  std::size_t weight_bytes_in_place() const noexcept;
  // Null if the file had none.
  const text::Tokenizer* tokenizer() const noexcept;
  // What the frequencies of the rotation are divided by, or empty.
  std::span<const float> rope_factors() const noexcept;

  // Calls f(expression) with the fused expression of the model's architecture.
  template <class F>
  decltype(auto) visit(F&& f) const;

 private:
  struct Parts;
  explicit BasicModel(Owned<Parts> parts) noexcept;

  Owned<Parts> parts_;
};

using Model = BasicModel<graph::AllFormats>;

// Formats of models of these architectures alone: others are refused, and none of their code is
// compiled. load<Only<graph::FormatList<quant::Q4_0, quant::F32>, Architecture::llama>>(path).
template <class Formats, Architecture... kArchitectures>
struct Only : Formats {
  static constexpr bool runs(Architecture a) noexcept { return ((a == kArchitectures) || ...); }
};

// The model of a GGUF file. Everything in the file is checked; errors say what and where.
// load<graph::FormatList<quant::Q4_0, quant::F32>>(path) compiles the kernels of those formats
// only, and returns a BasicModel of them.
template <class Formats = graph::AllFormats>
Result<BasicModel<Formats>> load(const std::string& path, const LoadOptions& options = {});

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/model/model-inl.hpp"
#endif
