// SPDX-License-Identifier: Apache-2.0
//
// A model: its dimensions, its packed weights, its tokenizer. It is read-only once loaded, so any
// number of sessions on any number of threads can share it. Copies refer to the same model, which
// lives as long as one of them or a session does.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "nibble/core/executor.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/kernels/tuning.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/progress.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace graph {
struct AllFormats;
struct FormatOps;
class WeightTable;
}  // namespace graph
namespace io {
class Gguf;
}
namespace text {
class Tokenizer;
}
class ModelGraph;
class WeightStore;
template <class... Architectures>
struct ArchitectureList;
struct AllArchitectures;

struct LoadOptions {
  Executor* executor = nullptr;        // packs the weights; null: the calling thread
  const Progress* progress = nullptr;  // called as loading goes on
  // How its weights are read; none: measured (model/tuning.hpp).
  std::optional<Tuning> tuning = std::nullopt;
};

class Model {
 public:
  // A model from its parts. `graph` says what `weights` must hold, packed (model/architecture.hpp).
  // For programs that bring their own weights; for files, use load(). Errors: not_found (weights
  // that the graph needs), invalid_argument (weights of another shape; a tuning out of range).
  static Result<Model> from_parts(Owned<ModelGraph> graph, WeightStore weights,
                                  const LoadOptions& options = {});
  static Result<Model> from_parts(Owned<ModelGraph> graph, WeightStore weights,
                                  text::Tokenizer tokenizer, const LoadOptions& options = {});

  // From a GGUF file (io/gguf.hpp). Packed tensors are used in place: the caller keeps the file as
  // long as the model, or moves it into the model. Formats and Architectures: see load(). Errors
  // name the file and the key or tensor; also those of simd::ensure_target (a NIBBLE_TARGET that is
  // not available).
  template <class Formats = graph::AllFormats, class Architectures = AllArchitectures>
  static Result<Model> from_gguf(const io::Gguf& file, const LoadOptions& options = {});
  template <class Formats = graph::AllFormats, class Architectures = AllArchitectures>
  static Result<Model> from_gguf(io::Gguf&& file, const LoadOptions& options = {});

  const ModelConfig& config() const noexcept;
  const ModelGraph& architecture() const noexcept;
  graph::WeightTable weights() const noexcept;
  std::size_t weight_bytes() const noexcept;
  // The part of them that is already packed in the file and used in place.
  std::size_t weight_bytes_in_place() const noexcept;
  // How its weights are read fastest, for sessions and engines.
  const Tuning& tuning() const noexcept;
  // Null if the file has none, or one of an unknown kind.
  const text::Tokenizer* tokenizer() const noexcept;

 private:
  struct Parts;
  explicit Model(Shared<Parts> parts) noexcept;
  static Result<Model> make(Owned<ModelGraph> graph, WeightStore weights,
                            const LoadOptions& options);
  // The part of from_gguf() after the architecture is known. keep() stores `file` if it is used in
  // place.
  static Result<Model> from_graph(Owned<ModelGraph> graph,
                                  std::span<const graph::FormatOps* const> formats,
                                  const io::Gguf& file, const LoadOptions& options);
  void keep(io::Gguf&& file);

  Shared<Parts> parts_;
};

// The model of a GGUF file. Everything in the file is checked; errors say what is wrong and where.
// Only the named formats and architectures are compiled; files that need others are refused:
//   load<graph::FormatList<quant::Q4_0, quant::F32>, ArchitectureList<Llama>>(path)
template <class Formats = graph::AllFormats, class Architectures = AllArchitectures>
Result<Model> load(const std::string& path, const LoadOptions& options = {});

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/model/model-inl.hpp"
#endif
