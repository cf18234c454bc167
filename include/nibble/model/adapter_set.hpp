// SPDX-License-Identifier: Apache-2.0
//
// Adapters ready to run: those of one or several files, packed for a model. They stand beside the
// model's weights, which stay as they are, in any format, and belong to sequences: one step can
// compute sequences with different adapters and with none, and reads the weights of the model once
// for all of them.
//
//   NIBBLE_TRY(adapter, train::open_adapter("adapter.gguf", base));
//   NIBBLE_TRY(set, AdapterSet::create(model, adapter));
//   NIBBLE_TRY(session, Session::create(model, {.max_factor_rank = set.max_rank()}));
//   NIBBLE_CHECK(session.set_adapter({set}));
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/core/result.hpp"
#include "nibble/core/shared.hpp"
#include "nibble/core/view.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

struct Adapter;
struct AppliedAdapter;

// Read-only once it is made, so sequences on any number of threads can share it. Copies refer to
// the same factors, which live, with the model, as long as one of them or a sequence with it does:
// a program may drop its own at any time.
class AdapterSet {
 public:
  // No adapter.
  AdapterSet() noexcept = default;

  // Several adapters add up. The adapters are not needed afterwards. Errors: not_found (a matrix
  // that the model does not have), invalid_argument (factors of another shape; a strength or alpha
  // that is not finite; an adapter that is null, or for another architecture than one before),
  // unsupported (a table of embeddings, experts; two with a prefix, or with prompts of the same
  // layer; prompts of layers whose keys and values do not have a matrix each, or whose keys are
  // normalized), limit (more than graph::kMaxPromptRows rows of a prompt), out_of_memory.
  static Result<AdapterSet> create(const Model& model, std::span<const AppliedAdapter> adapters);
  static Result<AdapterSet> create(const Model& model, const Adapter& adapter);

  // Whether there is an adapter.
  explicit operator bool() const noexcept { return static_cast<bool>(state_); }
  // The largest rank of a matrix, for EngineOptions::max_factor_rank: adapters of the same matrix
  // add up theirs.
  Index max_rank() const noexcept;
  // How many learned rows stand before the tokens of a sequence.
  Index n_prefix() const noexcept;
  // A number of all factors and rows, the same for every copy on every machine; 0: no adapter.
  std::uint64_t fingerprint() const noexcept;
  // Of the packed factors, their table and the rows.
  std::size_t bytes() const noexcept;

  friend bool operator==(const AdapterSet& a, const AdapterSet& b) noexcept {
    return a.state_.get() == b.state_.get();
  }

 private:
  friend class Engine;
  friend class Sequence;
  struct State;
  explicit AdapterSet(Shared<State> state) noexcept;

  Shared<State> state_;
};

// The adapter of a sequence: `strength` times what the set adds (a prefix has none).
struct SequenceAdapter {
  AdapterSet set = {};
  float strength = 1;

  explicit operator bool() const noexcept { return static_cast<bool>(set); }
  friend bool operator==(const SequenceAdapter& a, const SequenceAdapter& b) noexcept {
    return a.set == b.set && (!a.set || a.strength == b.strength);
  }
  // A number of set and strength; 0: no adapter.
  std::uint64_t fingerprint() const noexcept;
};

}}  // namespace nibble::NIBBLE_ABI

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/model/adapter_set-inl.hpp"
#endif
