// SPDX-License-Identifier: Apache-2.0
//
// The functions of a set of adapters. Included by adapter_set.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/step.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/checksum.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/config.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

struct AdapterPart {
  const AdapterMatrix* matrix;
  float scale;
};
struct AdapterPlace {
  std::size_t slot;
  Index layer;
  std::vector<AdapterPart> parts;
};

// Which matrices get which factors.
class AdapterCollector final : public graph::SurveySink {
 public:
  AdapterCollector(const Model& model, std::span<const AppliedAdapter> adapters)
      : model_(model), adapters_(adapters) {
    for (const AppliedAdapter& applied : adapters) {
      if (applied.adapter == nullptr) {
        error_ = Error{Errc::invalid_argument, "adapter: there is none"};
      } else {
        used_.emplace_back(applied.adapter->matrices.size());
      }
    }
  }

  void weight(const graph::WeightNeed& need) override {
    if (error_ || !model_.weights().has(need.slot, need.layer)) return;
    const graph::Weight& own = model_.weights().at(need.slot, need.layer);
    if (!own) return;
    const std::string name = model_.architecture().tensor_name(need.slot, need.layer);
    for (const AdapterPlace& place : places) {
      if (place.slot == need.slot && place.layer == need.layer) return;
    }
    AdapterPlace place{need.slot, need.layer, {}};
    for (std::size_t i = 0; i < adapters_.size() && !error_; ++i) {
      const std::vector<AdapterMatrix>& matrices = adapters_[i].adapter->matrices;
      for (std::size_t j = 0; j < matrices.size(); ++j) {
        if (matrices[j].name != name) continue;
        used_[i][j].value = true;
        const float scale = adapters_[i].strength * matrices[j].scale();
        error_ = mistake_in(matrices[j], scale, own, need);
        place.parts.push_back({&matrices[j], scale});
      }
    }
    if (!place.parts.empty()) places.push_back(std::move(place));
  }

  Result<void> finish() const {
    if (error_) return *error_;
    for (std::size_t i = 0; i < adapters_.size(); ++i) {
      const Adapter& adapter = *adapters_[i].adapter;
      if (adapter.architecture != adapters_[0].adapter->architecture) {
        return Error{Errc::invalid_argument, "adapters for different architectures"};
      }
      for (std::size_t j = 0; j < adapter.matrices.size(); ++j) {
        if (used_[i][j].value) continue;
        return Error{Errc::not_found,
                     "adapter: the model has no matrix " + io::quoted(adapter.matrices[j].name)};
      }
    }
    return ok();
  }

  std::vector<AdapterPlace> places;

 private:
  static std::optional<Error> mistake_in(const AdapterMatrix& m, float scale,
                                         const graph::Weight& own, const graph::WeightNeed& need) {
    const std::string what = "adapter of " + io::quoted(m.name) + ": ";
    if (need.is_table || own.n_experts != 1) {
      return Error{Errc::unsupported,
                   what + "only matrices of products can have factors beside them; merge it"};
    }
    if (!m.is_whole()) {
      return Error{Errc::invalid_argument, what + "factors that do not have their shapes"};
    }
    if (!is_finite(static_cast<double>(scale))) {
      return Error{Errc::invalid_argument, what + "a scale that is not finite"};
    }
    if (m.n == own.n && m.k == own.k && !own.is_vector()) return std::nullopt;
    return Error{Errc::invalid_argument, what + "for a matrix " + graph::shape_text(m.n, m.k) +
                                             ", the model's is " +
                                             graph::shape_text(own.n, own.k, own.n_experts)};
  }

  const Model& model_;
  std::span<const AppliedAdapter> adapters_;
  std::vector<std::vector<Scalar<bool>>> used_;  // of each adapter, its matrices
  std::optional<Error> error_;
};
// Rows as wide as those of the model's embeddings. Error: invalid_argument.
inline Result<void> check_rows(const Model& model, std::span<const float> rows) {
  const auto width = static_cast<std::size_t>(Index{model.config().dim});
  if (rows.empty() || rows.size() % width != 0) {
    return Error{Errc::invalid_argument, "adapter: " + to_text(rows.size()) +
                                             " numbers are not whole rows of " + to_text(width)};
  }
  for (const float x : rows) {
    if (is_finite(static_cast<double>(x))) continue;
    return Error{Errc::invalid_argument, "adapter: a learned row has a number that is not finite"};
  }
  return ok();
}

}  // namespace detail

struct AdapterSet::State {
  explicit State(const Model& m) : model(m), table(m.weights().size()) {}

  Result<void> pack(std::span<const detail::AdapterPlace> places);
  // Rows of f32 as a packed matrix.
  Result<graph::Weight> packed(std::span<const float> rows, Index n, Index k);
  Result<void> enter(const detail::AdapterPlace& place, graph::Factors& factors);
  Result<void> enter_sum(const detail::AdapterPlace& place, graph::Factors& factors);
  // Copies of rows of f32, and keys or values that a layer makes of such.
  Result<float*> floats(std::span<const float> x);
  Result<const float*> project(std::span<const float> rows, Slot matrix, Slot bias, Index layer);
  Result<void> take_prefix(const Adapter& adapter);
  Result<void> take_prompt(const AdapterPrompt& prompt, float strength);
  void add_to_fingerprint(std::span<const std::byte> bytes) noexcept {
    fingerprint = io::checksum(bytes, fingerprint);
  }
  // What a step has of it. The rows are up to the step.
  graph::RowAdapter in_step(float strength) const noexcept {
    graph::RowAdapter rows;
    if (!factors.empty()) rows.factors = values(table);
    rows.n_slots = model.weights().n_slots();
    if (!prompts.empty()) rows.prompts = prompts.data();
    rows.strength = strength;
    return rows;
  }

  Model model;
  std::vector<Scalar<const graph::Factors*>> table;  // in the places of the model's WeightTable
  std::vector<graph::Factors> factors;
  std::vector<graph::PromptKv> prompts;  // (layers), or empty
  const float* prefix = nullptr;         // (n_prefix, width of the model)
  Index n_prefix = 0;
  std::vector<AlignedBuffer> memory;
  Index max_rank = 0;
  std::uint64_t fingerprint = 0;
};

NIBBLE_INLINE AdapterSet::AdapterSet(Shared<State> state) noexcept : state_(std::move(state)) {}

NIBBLE_INLINE Result<AdapterSet> AdapterSet::create(const Model& model,
                                                    std::span<const AppliedAdapter> adapters) {
  return catch_out_of_memory([&]() -> Result<AdapterSet> {
    detail::AdapterCollector collector(model, adapters);
    model.architecture().survey(collector);
    NIBBLE_CHECK(collector.finish());
    Shared<State> state(Owned<State>(new (std::nothrow) State(model)));
    if (!state) return Error{Errc::out_of_memory, "a set of adapters"};
    NIBBLE_CHECK(state->pack(collector.places));
    for (const AppliedAdapter& applied : adapters) {
      NIBBLE_CHECK(state->take_prefix(*applied.adapter));
      for (const AdapterPrompt& prompt : applied.adapter->prompts) {
        NIBBLE_CHECK(state->take_prompt(prompt, applied.strength));
      }
    }
    if (state->fingerprint == 0) state->fingerprint = 1;
    return AdapterSet(std::move(state));
  });
}

NIBBLE_INLINE Result<AdapterSet> AdapterSet::create(const Model& model, const Adapter& adapter) {
  const AppliedAdapter one[] = {{&adapter, 1}};
  return create(model, one);
}

NIBBLE_INLINE Index AdapterSet::max_rank() const noexcept { return state_ ? state_->max_rank : 0; }
NIBBLE_INLINE Index AdapterSet::n_prefix() const noexcept { return state_ ? state_->n_prefix : 0; }
NIBBLE_INLINE std::uint64_t AdapterSet::fingerprint() const noexcept {
  return state_ ? state_->fingerprint : 0;
}
NIBBLE_INLINE std::size_t AdapterSet::bytes() const noexcept {
  if (!state_) return 0;
  std::size_t all = sizeof(State) + state_->table.size() * sizeof(void*) +
                    state_->factors.size() * sizeof(graph::Factors) +
                    state_->prompts.size() * sizeof(graph::PromptKv);
  for (const AlignedBuffer& buffer : state_->memory) all += buffer.size();
  return all;
}

NIBBLE_INLINE std::uint64_t SequenceAdapter::fingerprint() const noexcept {
  if (!set) return 0;
  const std::uint64_t sum =
      io::checksum(std::as_bytes(std::span<const float>(&strength, 1)), set.fingerprint());
  return sum == 0 ? 1 : sum;
}

NIBBLE_INLINE Result<void> AdapterSet::State::pack(std::span<const detail::AdapterPlace> places) {
  factors.resize(places.size());  // never grows again: the table points to it
  for (std::size_t i = 0; i < places.size(); ++i) {
    const detail::AdapterPlace& place = places[i];
    NIBBLE_CHECK(enter(place, factors[i]));
    const std::size_t at =
        static_cast<std::size_t>(place.layer + 1) * model.weights().n_slots() + place.slot;
    table[at].value = &factors[i];
    max_rank = (std::max)(max_rank, factors[i].rank());
    for (const detail::AdapterPart& part : place.parts) {
      const auto where = static_cast<std::uint64_t>(at);
      add_to_fingerprint(std::as_bytes(std::span<const std::uint64_t>(&where, 1)));
      add_to_fingerprint(std::as_bytes(std::span<const float>(&part.scale, 1)));
      add_to_fingerprint(std::as_bytes(part.matrix->a_values()));
      add_to_fingerprint(std::as_bytes(part.matrix->b_values()));
    }
  }
  return ok();
}

NIBBLE_INLINE Result<float*> AdapterSet::State::floats(std::span<const float> x) {
  NIBBLE_TRY(copy, AlignedBuffer::allocate(x.size_bytes()));
  auto* const to = reinterpret_cast<float*>(copy.data());
  std::memcpy(to, x.data(), x.size_bytes());
  add_to_fingerprint(std::as_bytes(x));
  memory.push_back(std::move(copy));
  return to;
}

NIBBLE_INLINE Result<void> AdapterSet::State::take_prefix(const Adapter& adapter) {
  if (adapter.prefix.empty()) return ok();
  if (n_prefix > 0) return Error{Errc::unsupported, "adapter: two prefixes of one sequence"};
  NIBBLE_CHECK(detail::check_rows(model, {values(adapter.prefix), adapter.prefix.size()}));
  NIBBLE_TRY(copy, floats({values(adapter.prefix), adapter.prefix.size()}));
  prefix = copy;
  n_prefix = static_cast<Index>(adapter.prefix.size()) / model.config().dim;
  return ok();
}

NIBBLE_INLINE Result<void> AdapterSet::State::take_prompt(const AdapterPrompt& prompt,
                                                          float strength) {
  const std::string what = "adapter: the prompt of layer " + to_text(prompt.layer) + ": ";
  const std::span<const float> rows(values(prompt.rows), prompt.rows.size());
  if (prompt.layer < 0 || prompt.layer >= model.config().n_layers) {
    return Error{Errc::not_found, what + "the model does not have it"};
  }
  Result<void> checked = detail::check_rows(model, rows);
  if (!checked) return std::move(checked).error().in(what);
  const Index n = static_cast<Index>(rows.size()) / model.config().dim;
  if (n > graph::kMaxPromptRows) {
    return Error{Errc::limit, what + to_text(n) + " rows; at most " +
                                  to_text(graph::kMaxPromptRows) + " can be read"};
  }
  const float gate = strength * prompt.gate;
  if (!is_finite(static_cast<double>(gate))) {
    return Error{Errc::invalid_argument, what + "a gate that is not finite"};
  }
  prompts.resize(static_cast<std::size_t>(Index{model.config().n_layers}));
  graph::PromptKv& kv = prompts[static_cast<std::size_t>(prompt.layer)];
  if (kv.n > 0) return Error{Errc::unsupported, what + "it has two"};
  const graph::WeightTable weights = model.weights();
  if (weights.n_slots() == kSlotCount && weights.at(Slot::attn_k_norm, prompt.layer)) {
    return Error{Errc::unsupported, what + "its keys are normalized"};
  }
  NIBBLE_TRY(keys, project(rows, Slot::attn_k, Slot::attn_k_bias, prompt.layer));
  NIBBLE_TRY(values_of_rows, project(rows, Slot::attn_v, Slot::attn_v_bias, prompt.layer));
  add_to_fingerprint(std::as_bytes(std::span<const float>(&gate, 1)));
  kv = {n, keys, values_of_rows, gate};
  return ok();
}

// In double: the rows are read by every step, but made once.
NIBBLE_INLINE Result<const float*> AdapterSet::State::project(std::span<const float> rows,
                                                              Slot matrix, Slot bias, Index layer) {
  const graph::WeightTable weights = model.weights();
  const bool is_known = weights.n_slots() == kSlotCount;
  const graph::Weight w = is_known ? weights.at(matrix, layer) : graph::Weight();
  if (!w.has_base() || w.is_vector() || w.factors != nullptr || w.n_experts != 1) {
    return Error{Errc::unsupported, "adapter: layer " + to_text(layer) + " has no plain matrix " +
                                        std::string(to_string(matrix)) +
                                        " for the prompt of an adapter"};
  }
  const graph::Weight& added = weights.at(bias, layer);
  const auto k = static_cast<std::size_t>(w.k), n = static_cast<std::size_t>(w.n);
  std::vector<Scalar<float>> of_matrix(k), made(rows.size() / k * n);
  for (std::size_t i = 0; i < n; ++i) {
    w.ops->row(w.data, w.n, w.k, static_cast<Index>(i), values(of_matrix));
    for (std::size_t row = 0; row < rows.size() / k; ++row) {
      double sum = added ? static_cast<double>(added.vector()[i]) : 0;
      for (std::size_t j = 0; j < k; ++j) {
        sum += static_cast<double>(of_matrix[j].value) * static_cast<double>(rows[row * k + j]);
      }
      made[row * n + i].value = static_cast<float>(sum);
    }
  }
  NIBBLE_TRY(copy, floats({values(made), made.size()}));
  return static_cast<const float*>(copy);
}

NIBBLE_INLINE Result<graph::Weight> AdapterSet::State::packed(std::span<const float> rows, Index n,
                                                              Index k) {
  graph::Weight w{&graph::kFormatOps<quant::F32>, n, k, nullptr, 1, {}};
  NIBBLE_CHECK(w.ops->check_shape(n, k));
  NIBBLE_TRY(packed_memory,
             AlignedBuffer::allocate(static_cast<std::size_t>(w.ops->packed_bytes(n, k))));
  NIBBLE_TRY(row_bytes, w.ops->row_bytes(static_cast<std::size_t>(k)));
  graph::pack_panels(w, std::as_bytes(rows), static_cast<Index>(row_bytes), 0,
                     packed_memory.data());
  w.data = packed_memory.data();
  memory.push_back(std::move(packed_memory));
  return w;
}

NIBBLE_INLINE Result<void> AdapterSet::State::enter(const detail::AdapterPlace& place,
                                                    graph::Factors& to) {
  if (place.parts.size() != 1) return enter_sum(place, to);
  const AdapterMatrix& m = *place.parts[0].matrix;
  NIBBLE_TRY(a, packed(m.b_values(), m.n, m.rank));
  NIBBLE_TRY(b, packed(m.a_values(), m.rank, m.k));
  to = {a, b, place.parts[0].scale};
  return ok();
}

// [s₁B₁ s₂B₂ …] and [A₁; A₂; …].
NIBBLE_INLINE Result<void> AdapterSet::State::enter_sum(const detail::AdapterPlace& place,
                                                        graph::Factors& to) {
  Index rank = 0;
  for (const detail::AdapterPart& part : place.parts) rank += part.matrix->rank;
  const Index rows = place.parts[0].matrix->n, columns = place.parts[0].matrix->k;
  const auto n = static_cast<std::size_t>(rows), k = static_cast<std::size_t>(columns),
             r = static_cast<std::size_t>(rank);
  std::vector<Scalar<float>> left(n * r), right(r * k);
  std::size_t at = 0;
  for (const detail::AdapterPart& part : place.parts) {
    const auto part_rank = static_cast<std::size_t>(part.matrix->rank);
    std::copy(part.matrix->a.begin(), part.matrix->a.end(),
              right.begin() + static_cast<std::ptrdiff_t>(at * k));
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < part_rank; ++j) {
        left[i * r + at + j].value = part.scale * part.matrix->b[i * part_rank + j].value;
      }
    }
    at += part_rank;
  }
  NIBBLE_TRY(a, packed({values(left), left.size()}, rows, rank));
  NIBBLE_TRY(b, packed({values(right), right.size()}, rank, columns));
  to = {a, b, 1};
  return ok();
}

}}  // namespace nibble::NIBBLE_ABI
