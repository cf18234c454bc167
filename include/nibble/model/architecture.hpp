// SPDX-License-Identifier: Apache-2.0
//
// Architectures as types, and what a loaded model keeps of them: a table of functions. So models,
// engines and sessions are compiled once, whatever architectures and formats there are.
//
// An architecture is a type such as
//   struct Llama {
//     using Config = ModelConfig;                       // or a type derived from it
//     static constexpr std::string_view kName = "llama";  // general.architecture
//     static Result<Config> config(const io::Gguf& file); // the dimensions that a file states
//     static auto expression(const Config& c);           // from tokens to logits, or to one
//   };                                                   // embedding of a text; slots: Slot
// (nibble's own expressions are templates of the configuration: what is only included is not
// compiled.)
// If it is only for some files of that name, `static bool is_for(const io::Gguf& file)` says which;
// it stands before the one for the others. A program adds its own to load():
// load<graph::AllFormats, ArchitectureList<Llama, Mine>>(path). Its slots may be its own
// enumeration too, named by `using Slots = MySlot;`, with functions slot_count(MySlot) and
// gguf_name(MySlot, Index layer) beside it.
// Fusion removes taps. With `static constexpr bool kIsFused = false;` the expression runs as it is
// written, slower, and EngineOptions::observer sees all of them:
//   struct Gpt2AsWritten : Gpt2 { static constexpr bool kIsFused = false; };
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <string_view>

#include "nibble/core/owned.hpp"
#include "nibble/core/result.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/plan.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

template <class... Architectures>
struct ArchitectureList {};

// The operations of a model's architecture.
class ModelGraph {
 public:
  virtual ~ModelGraph() = default;
  virtual const ModelConfig& config() const noexcept = 0;
  // Reports what it needs, slot by slot.
  virtual void survey(graph::SurveySink& sink) const = 0;
  virtual graph::Plan plan(const graph::Limits& limits) const noexcept = 0;
  // Logits of the output rows, or the embedding of each segment (Plan::rows); see graph::run.
  virtual MatrixView<const float> run(const graph::Plan& plan, const graph::Limits& limits,
                                      const graph::RunArgs& args) const noexcept = 0;
  // How many slots there are, and the name of the tensor that fills one.
  virtual std::size_t n_slots() const noexcept = 0;
  virtual std::string tensor_name(std::size_t slot, Index layer) const = 0;
};

namespace detail {

template <class Architecture>
struct SlotsOf {
  using Type = Slot;
};
template <class Architecture>
requires requires { typename Architecture::Slots; }
struct SlotsOf<Architecture> {
  using Type = typename Architecture::Slots;
};

template <class Architecture>
class ModelGraphOf final : public ModelGraph {
 public:
  using Config = typename Architecture::Config;
  using Slots = typename SlotsOf<Architecture>::Type;

  explicit ModelGraphOf(const Config& config) : config_(config) {}

  const ModelConfig& config() const noexcept override { return config_; }
  void survey(graph::SurveySink& sink) const override { graph::survey(expression(), sink); }
  graph::Plan plan(const graph::Limits& limits) const noexcept override {
    graph::Plan plan = graph::make_plan(expression(), limits);
    const bool gives_logits = plan.rows == graph::Rows::outputs && plan.width == config_.vocab_size;
    if (plan.is_valid() && !gives_logits && plan.rows != graph::Rows::segments) {
      plan.error =
          "the expression does not end in logits of the rows that output_rows() keeps, nor in a "
          "row for each segment";
    }
    return plan;
  }
  MatrixView<const float> run(const graph::Plan& plan, const graph::Limits& limits,
                              const graph::RunArgs& args) const noexcept override {
    return MatrixView<const float>(graph::run(expression(), plan, limits, args));
  }
  std::size_t n_slots() const noexcept override { return slot_count(Slots{}); }
  std::string tensor_name(std::size_t slot, Index layer) const override {
    return gguf_name(static_cast<Slots>(slot), layer);
  }

 private:
  auto expression() const noexcept {
    if constexpr (requires { requires !Architecture::kIsFused; }) {
      return Architecture::expression(config_);
    } else {
      return graph::fuse(Architecture::expression(config_));
    }
  }

  Config config_;
};

}  // namespace detail

// The graph of an architecture with given dimensions, for Model::from_parts(); null if memory runs
// out.
template <class Architecture>
Owned<ModelGraph> make_graph(const typename Architecture::Config& config) {
  return Owned<ModelGraph>(new (std::nothrow) detail::ModelGraphOf<Architecture>(config));
}

}}  // namespace nibble::NIBBLE_ABI
