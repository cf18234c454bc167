// SPDX-License-Identifier: Apache-2.0
//
// The functions of a set of adapters. Included by adapter_set.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/checksum.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/model/architecture.hpp"

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
}  // namespace detail

struct AdapterSet::State {
  explicit State(const Model& m) : model(m), table(m.weights().size()) {}

  Result<void> pack(std::span<const detail::AdapterPlace> places);
  // Rows of f32 as a packed matrix.
  Result<graph::Weight> packed(std::span<const float> rows, Index n, Index k);
  Result<void> enter(const detail::AdapterPlace& place, graph::Factors& factors);
  Result<void> enter_sum(const detail::AdapterPlace& place, graph::Factors& factors);
  const graph::Factors* const* places() const noexcept { return values(table); }

  Model model;
  std::vector<Scalar<const graph::Factors*>> table;  // in the places of the model's WeightTable
  std::vector<graph::Factors> factors;
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
    return AdapterSet(std::move(state));
  });
}

NIBBLE_INLINE Result<AdapterSet> AdapterSet::create(const Model& model, const Adapter& adapter) {
  const AppliedAdapter one[] = {{&adapter, 1}};
  return create(model, one);
}

NIBBLE_INLINE Index AdapterSet::max_rank() const noexcept { return state_ ? state_->max_rank : 0; }
NIBBLE_INLINE std::uint64_t AdapterSet::fingerprint() const noexcept {
  return state_ ? state_->fingerprint : 0;
}
NIBBLE_INLINE std::size_t AdapterSet::bytes() const noexcept {
  if (!state_) return 0;
  std::size_t all = sizeof(State) + state_->table.size() * sizeof(void*) +
                    state_->factors.size() * sizeof(graph::Factors);
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
  const auto add = [&](std::span<const std::byte> bytes) {
    fingerprint = io::checksum(bytes, fingerprint);
  };
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
      add(std::as_bytes(std::span<const std::uint64_t>(&where, 1)));
      add(std::as_bytes(std::span<const float>(&part.scale, 1)));
      add(std::as_bytes(part.matrix->a_values()));
      add(std::as_bytes(part.matrix->b_values()));
    }
  }
  if (fingerprint == 0) fingerprint = 1;
  return ok();
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
