// SPDX-License-Identifier: Apache-2.0
//
// An architecture as it is trained: the expression that it gives for inference, there and back.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "nibble/core/callback.hpp"
#include "nibble/core/owned.hpp"
#include "nibble/graph/differentiate.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/load.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// Turns the rows that a graph gives, logits (outputs, vocab_size) or an embedding of each sequence,
// into the gradient of what is to be minimized, in place.
using Loss = FunctionRef<void(MatrixView<float> rows)>;

// The operations of an architecture in training; compiled once for each.
class TrainingGraph {
 public:
  virtual ~TrainingGraph() = default;
  virtual const ModelConfig& config() const noexcept = 0;
  virtual void survey(graph::SurveySink& sink) const = 0;
  virtual graph::TrainingPlan plan(const graph::TrainingLimits& limits) const noexcept = 0;
  // See graph::run_training_step.
  virtual bool run(const graph::TrainingPlan& plan, const graph::TrainingLimits& limits,
                   const graph::TrainingArgs& args, Loss loss) const noexcept = 0;
  virtual std::size_t n_slots() const noexcept = 0;
  virtual std::string tensor_name(std::size_t slot, Index layer) const = 0;
};

namespace detail {

template <class Architecture>
class TrainingGraphOf final : public TrainingGraph {
 public:
  using Config = typename Architecture::Config;
  using Slots = typename nibble::detail::SlotsOf<Architecture>::Type;

  explicit TrainingGraphOf(const Config& config) : config_(config) {}

  const ModelConfig& config() const noexcept override { return config_; }
  void survey(graph::SurveySink& sink) const override {
    graph::survey(Architecture::expression(config_), sink);
  }
  graph::TrainingPlan plan(const graph::TrainingLimits& limits) const noexcept override {
    return graph::make_training_plan(Architecture::expression(config_), limits);
  }
  bool run(const graph::TrainingPlan& plan, const graph::TrainingLimits& limits,
           const graph::TrainingArgs& args, Loss loss) const noexcept override {
    return graph::run_training_step(Architecture::expression(config_), plan, limits, args, loss);
  }
  std::size_t n_slots() const noexcept override { return slot_count(Slots{}); }
  std::string tensor_name(std::size_t slot, Index layer) const override {
    return gguf_name(static_cast<Slots>(slot), layer);
  }

 private:
  Config config_;
};

}  // namespace detail

// The training graph of an architecture with given dimensions; null if memory runs out.
template <class Architecture>
Owned<TrainingGraph> make_training_graph(const typename Architecture::Config& config) {
  return Owned<TrainingGraph>(new (std::nothrow) detail::TrainingGraphOf<Architecture>(config));
}

// The training graph of the model in `file`: that of its architecture, which is in the list, with
// the dimensions that its metadata states. Errors: unsupported (another architecture), malformed,
// those of the architecture's config(), out_of_memory.
template <class Architectures>
Result<Owned<TrainingGraph>> training_graph_of(Architectures list, const io::Gguf& file) {
  NIBBLE_TRY(name, file.get_string("general.architecture"));
  const auto make = []<class A>(std::type_identity<A>,
                                const typename A::Config& config) -> Result<Owned<TrainingGraph>> {
    return make_training_graph<A>(config);
  };
  NIBBLE_TRY(graph,
             nibble::detail::with_architecture<Owned<TrainingGraph>>(list, name, file, make));
  if (!graph) return Error{Errc::out_of_memory, file.name() + ": a graph"};
  return graph;
}

}}}  // namespace nibble::NIBBLE_ABI::train
