// SPDX-License-Identifier: Apache-2.0
//
// Loads a file or a folder as a model, with the formats and architectures that a program names:
// this is compiled when load() is called. Included by model.hpp; in the split form, by files that
// name their own formats or architectures.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "nibble/graph/weights.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/bert.hpp"
#include "nibble/model/gemma2.hpp"
#include "nibble/model/gemma3.hpp"
#include "nibble/model/gemma4.hpp"
#include "nibble/model/gemma_embedding.hpp"
#include "nibble/model/gpt2.hpp"
#include "nibble/model/gpt_oss.hpp"
#include "nibble/model/granite.hpp"
#include "nibble/model/lfm2.hpp"
#include "nibble/model/llama.hpp"
#include "nibble/model/llama_embedding.hpp"
#include "nibble/model/mistral3.hpp"
#include "nibble/model/mixtral.hpp"
#include "nibble/model/model.hpp"
#include "nibble/model/nomic_bert.hpp"
#include "nibble/model/phi3.hpp"
#include "nibble/model/qwen2.hpp"
#include "nibble/model/qwen3.hpp"
#include "nibble/model/qwen35.hpp"
#include "nibble/model/qwen35moe.hpp"
#include "nibble/model/qwen3moe.hpp"
#include "nibble/model/smollm3.hpp"
#include "nibble/simd/dispatch.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The architectures that load() knows unless it is told others: of most models that people have.
// (all_architectures.hpp has the rest.)
struct CommonArchitectures
    : ArchitectureList<Mixtral, Llama, Qwen2, EmbeddingOf<Qwen3>, Qwen3, Qwen3Moe, Mistral3,
                       SmolLm3, Granite, Gemma2, Gemma3, Gemma4, GemmaEmbedding, Phi3,
                       Gpt2, Bert, NomicBert, GptOss, Lfm2, Qwen35, Qwen35Moe> {};

namespace detail {

// make(type_identity<A>, config) -> Result<Made> for the architecture that a file names. Errors:
// malformed (a file without tensors), unsupported (an architecture that is not in the list), those
// of its config() and of make().
template <class Made, class... Architectures, class Make>
Result<Made> with_architecture(ArchitectureList<Architectures...>, std::string_view name,
                               const io::Gguf& file, const Make& make) {
  if (file.tensors().empty()) {
    return Error{Errc::malformed,
                 file.name() + ": the file has no tensors, only metadata, perhaps a vocabulary"};
  }
  Result<Made> found = Made();
  const auto try_one = [&]<class A>(std::type_identity<A> architecture) {
    constexpr std::string_view known = A::kName;  // the member itself would be a unique symbol
    if (name != known) return false;
    if constexpr (requires { A::is_for(file); }) {
      if (!A::is_for(file)) return false;
    }
    auto config = A::config(file);
    if (config) {
      found = make(architecture, *config);
    } else {
      found = std::move(config).error();
    }
    return true;
  };
  const bool is_known = (try_one(std::type_identity<Architectures>{}) || ...);
  if (is_known) return found;
  std::string known;
  std::string_view last;
  const auto add = [&]<class A>(std::type_identity<A>) {
    constexpr std::string_view other = A::kName;
    if (other == last) return;  // two for files of one name
    known += (known.empty() ? "" : ", ") + std::string(other);
    last = other;
  };
  (add(std::type_identity<Architectures>{}), ...);
  return Error{Errc::unsupported, file.name() + ": architecture " + io::quoted(name) +
                                      " is not supported; this program knows " + known};
}

// The graph of the architecture that a file names; null if memory runs out.
template <class Architectures>
Result<Owned<ModelGraph>> graph_of(Architectures list, std::string_view name,
                                   const io::Gguf& file) {
  const auto make = []<class A>(std::type_identity<A>,
                                const typename A::Config& config) -> Result<Owned<ModelGraph>> {
    return make_graph<A>(config);
  };
  return with_architecture<Owned<ModelGraph>>(list, name, file, make);
}

}  // namespace detail

template <class Formats, class Architectures>
Result<Model> Model::from_gguf(const io::Gguf& file, const LoadOptions& options) {
  return catch_out_of_memory([&]() -> Result<Model> {
    NIBBLE_CHECK(simd::ensure_target());
    NIBBLE_TRY(name, file.get_string("general.architecture"));
    NIBBLE_TRY(graph, detail::graph_of(Architectures{}, name, file));
    return from_graph(std::move(graph), Formats::kOps, file, options);
  });
}

template <class Formats, class Architectures>
Result<ModelMemory> Model::memory_needed(const io::Gguf& file, const LoadOptions& options) {
  return catch_out_of_memory([&]() -> Result<ModelMemory> {
    NIBBLE_TRY(name, file.get_string("general.architecture"));
    NIBBLE_TRY(graph, detail::graph_of(Architectures{}, name, file));
    return memory_of_graph(std::move(graph), Formats::kOps, file, options);
  });
}

template <class Formats, class Architectures>
Result<Model> load(const std::string& path, const LoadOptions& options) {
  NIBBLE_TRY(file, open_model(path));
  return Model::from_gguf<Formats, Architectures>(file, options);
}

template <class Formats, class Architectures>
Result<ModelMemory> memory_needed(const std::string& path, const LoadOptions& options) {
  NIBBLE_TRY(file, open_model(path));
  return Model::memory_needed<Formats, Architectures>(file, options);
}

// Split form: the usual models are loaded by code that the implementation has. Other files do not
// compile the graphs of these architectures again, whatever list or formats they name.
#if defined(NIBBLE_SPLIT)
#if defined(NIBBLE_IMPLEMENTATION)
#define NIBBLE_LOAD_INSTANCE template
#else
#define NIBBLE_LOAD_INSTANCE extern template
#endif
#define NIBBLE_GRAPH(...) \
  NIBBLE_LOAD_INSTANCE Owned<ModelGraph> make_graph<__VA_ARGS__>(const __VA_ARGS__::Config&);
NIBBLE_GRAPH(Mixtral)
NIBBLE_GRAPH(Llama)
NIBBLE_GRAPH(Qwen2)
NIBBLE_GRAPH(EmbeddingOf<Qwen3>)
NIBBLE_GRAPH(Qwen3)
NIBBLE_GRAPH(Qwen3Moe)
NIBBLE_GRAPH(Mistral3)
NIBBLE_GRAPH(SmolLm3)
NIBBLE_GRAPH(Granite)
NIBBLE_GRAPH(Gemma2)
NIBBLE_GRAPH(Gemma3)
NIBBLE_GRAPH(Gemma4)
NIBBLE_GRAPH(GemmaEmbedding)
NIBBLE_GRAPH(Phi3)
NIBBLE_GRAPH(Gpt2)
NIBBLE_GRAPH(Bert)
NIBBLE_GRAPH(NomicBert)
NIBBLE_GRAPH(GptOss)
NIBBLE_GRAPH(Lfm2)
NIBBLE_GRAPH(Qwen35)
NIBBLE_GRAPH(Qwen35Moe)
#undef NIBBLE_GRAPH
#define NIBBLE_LOAD(Formats)                                                                   \
  NIBBLE_LOAD_INSTANCE Result<Model> Model::from_gguf<Formats, CommonArchitectures>(           \
      const io::Gguf&, const LoadOptions&);                                                    \
  NIBBLE_LOAD_INSTANCE Result<ModelMemory> Model::memory_needed<Formats, CommonArchitectures>( \
      const io::Gguf&, const LoadOptions&);                                                    \
  NIBBLE_LOAD_INSTANCE Result<Model> load<Formats, CommonArchitectures>(const std::string&,    \
                                                                        const LoadOptions&);   \
  NIBBLE_LOAD_INSTANCE Result<ModelMemory> memory_needed<Formats, CommonArchitectures>(        \
      const std::string&, const LoadOptions&);
NIBBLE_LOAD(graph::CommonFormats)
NIBBLE_LOAD(graph::AllFormats)
#undef NIBBLE_LOAD
#undef NIBBLE_LOAD_INSTANCE
#endif

}}  // namespace nibble::NIBBLE_ABI
