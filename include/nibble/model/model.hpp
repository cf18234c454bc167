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
struct CommonFormats;
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
struct WeightConversion;
template <class... Architectures>
struct ArchitectureList;
struct CommonArchitectures;

struct LoadOptions {
  Executor* executor = nullptr;        // packs the weights; null: the calling thread
  const Progress* progress = nullptr;  // called as loading goes on
  // How its weights are read; none: measured (model/tuning.hpp), unless they are used in place,
  // since their pages are then read only when they are needed.
  std::optional<Tuning> tuning = std::nullopt;
  // Reads no weights: the model then serves to ask what it is and what its sessions will take
  // (bytes_needed); none can be made of it.
  bool outline_only = false;
};

// What loading a file takes, in bytes, exactly. Beside this, loading needs memory for the names in
// the file and for its vocabulary, a few times their size in the file; and, where it measures a
// Tuning, for some rows of the largest product (some hundred KB).
struct ModelMemory {
  std::size_t weights = 0;   // of memory that the model holds: weights packed by loading
  std::size_t in_place = 0;  // of the file, mapped, which the model reads: weights packed before
  std::size_t loading = 0;   // of memory that is free again after loading

  // The most memory at one time, without what is in place: the system can drop pages of a file.
  std::size_t peak() const noexcept { return weights + loading; }
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

  // From a GGUF file (io/gguf.hpp), which is not needed afterwards. Packed tensors are used in
  // place, and the model shares the mapping or the buffer; those in bytes that the caller keeps
  // (io::Gguf::parse of a span) are copied. A tokenizer that cannot be used is no error: see
  // tokenizer_error(). Formats and Architectures: see load(). Errors name the file and the key or
  // tensor; also those of simd::ensure_target (a NIBBLE_TARGET that is not available).
  template <class Formats = graph::CommonFormats, class Architectures = CommonArchitectures>
  static Result<Model> from_gguf(const io::Gguf& file, const LoadOptions& options = {});
  // What from_gguf() will take. Nothing of the weights is read. Errors: those of from_gguf() that
  // can be found out this way.
  template <class Formats = graph::CommonFormats, class Architectures = CommonArchitectures>
  static Result<ModelMemory> memory_needed(const io::Gguf& file, const LoadOptions& options = {});

  const ModelConfig& config() const noexcept;
  const ModelGraph& architecture() const noexcept;
  // False only if it was loaded as an outline.
  bool has_weights() const noexcept;
  graph::WeightTable weights() const noexcept;
  std::size_t weight_bytes() const noexcept;
  // The part of them that is already packed in the file and used in place.
  std::size_t weight_bytes_in_place() const noexcept;
  // The matrices that loading converted, since their types have no kernels; to_string() says it in
  // words (model/weight_conversion.hpp). Mostly none.
  std::span<const WeightConversion> conversions() const noexcept;
  // How its weights are read fastest, for sessions and engines.
  const Tuning& tuning() const noexcept;
  // Null if the file has none that can be used; token ids work without.
  const text::Tokenizer* tokenizer() const noexcept;
  // Why tokenizer() is null (not_found: there is none); null if it is not.
  const Error* tokenizer_error() const noexcept;

 private:
  struct Parts;
  explicit Model(Shared<Parts> parts) noexcept;
  static Result<Model> make(Owned<ModelGraph> graph, WeightStore weights,
                            const LoadOptions& options);
  // The parts of from_gguf() and memory_needed() after the architecture is known.
  using FormatTable = std::span<const graph::FormatOps* const>;
  static Result<WeightStore> bind(const ModelGraph* graph, FormatTable formats,
                                  const io::Gguf& file);
  static Result<Model> from_graph(Owned<ModelGraph> graph, FormatTable formats,
                                  const io::Gguf& file, const LoadOptions& options);
  static Result<ModelMemory> memory_of_graph(Owned<ModelGraph> graph, FormatTable formats,
                                             const io::Gguf& file, const LoadOptions& options);

  Shared<Parts> parts_;
};

// The model of a GGUF file, or of a folder as hubs have it (hub/open.hpp). Everything in it is
// checked; errors say what is wrong and where.
// Only the named formats and architectures are compiled; files that need others are refused:
//   load<graph::FormatList<quant::Q4_0, quant::F32>, ArchitectureList<Llama>>(path)
// A model that was split into several files is loaded by the path of any of them.
template <class Formats = graph::CommonFormats, class Architectures = CommonArchitectures>
Result<Model> load(const std::string& path, const LoadOptions& options = {});

// What load() of a file or folder will take, found out without reading any weights.
template <class Formats = graph::CommonFormats, class Architectures = CommonArchitectures>
Result<ModelMemory> memory_needed(const std::string& path, const LoadOptions& options = {});

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/model/model-inl.hpp"
#endif
