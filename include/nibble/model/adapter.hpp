// SPDX-License-Identifier: Apache-2.0
//
// Low-rank adapters of a model (LoRA; Hu et al. 2021): W + (alpha / rank) · B · A instead of W, for
// some of its matrices. They stand beside the model's weights, which stay as they are, in any
// format: a session changes from one adapter to another between two steps.
//
//   NIBBLE_TRY(adapted, AdaptedWeights::create(model, adapter));
//   NIBBLE_TRY(session, Session::create(model, {.exchangeable_weights = true,
//                                               .max_factor_rank = adapted.max_rank()}));
//   NIBBLE_CHECK(session.engine().exchange_weights(adapted.table()));
//
// Files of adapters: train/adapter_file.hpp. For good: train/merge_adapter.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/survey.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The factors of one matrix (n, k). (LoRA calls A what graph::Factors calls b, and B what is a
// there.)
struct AdapterMatrix {
  std::string name;  // of the matrix in GGUF: "blk.0.attn_q.weight"
  Index n = 0, k = 0, rank = 0;
  float alpha = 1;
  std::vector<Scalar<float>> a;  // (rank, k)
  std::vector<Scalar<float>> b;  // (n, rank)

  float scale() const noexcept { return alpha / static_cast<float>(rank); }
  // Whether the sizes are above zero and the factors have them.
  bool is_whole() const noexcept {
    const auto fits = [](const std::vector<Scalar<float>>& x, Index rows, Index columns) {
      const auto size = static_cast<Index>(x.size());
      return size / rows == columns && size % rows == 0;
    };
    return n > 0 && k > 0 && rank > 0 && fits(a, rank, k) && fits(b, n, rank);
  }
  std::span<const float> a_values() const noexcept { return {values(a), a.size()}; }
  std::span<const float> b_values() const noexcept { return {values(b), b.size()}; }
};

struct Adapter {
  std::string architecture;  // general.architecture of the models that it is for
  std::vector<AdapterMatrix> matrices;

  const AdapterMatrix* find(std::string_view name) const noexcept {
    for (const AdapterMatrix& m : matrices) {
      if (m.name == name) return &m;
    }
    return nullptr;
  }
  Index max_rank() const noexcept {
    Index rank = 0;
    for (const AdapterMatrix& m : matrices) rank = (std::max)(rank, m.rank);
    return rank;
  }
};

// An adapter in use: `strength` times what it adds.
struct AppliedAdapter {
  const Adapter* adapter = nullptr;
  float strength = 1;
};

// The weights of a model with adapters beside them, as Engine::exchange_weights takes them. The
// model's own data are referred to, not copied; it keeps the model alive, and the adapters are not
// needed afterwards. Must outlive the last step with its table.
class AdaptedWeights {
 public:
  // Several adapters add up. Errors: not_found (a matrix that the model does not have),
  // invalid_argument (factors of another shape; a strength or alpha that is not finite; an adapter
  // that is null, or for another architecture than one before), unsupported (a table of embeddings,
  // experts), out_of_memory.
  static Result<AdaptedWeights> create(const Model& model,
                                       std::span<const AppliedAdapter> adapters) {
    return catch_out_of_memory([&]() -> Result<AdaptedWeights> {
      AdaptedWeights made(model);
      Collector collector(model, adapters);
      model.architecture().survey(collector);
      NIBBLE_CHECK(collector.finish());
      made.factors_.resize(collector.places.size());  // never grows again: weights point to it
      for (std::size_t i = 0; i < collector.places.size(); ++i) {
        NIBBLE_CHECK(made.enter(collector.places[i], made.factors_[i]));
      }
      return made;
    });
  }
  static Result<AdaptedWeights> create(const Model& model, const Adapter& adapter,
                                       float strength = 1) {
    const AppliedAdapter one[] = {{&adapter, strength}};
    return create(model, one);
  }

  graph::WeightTable table() const noexcept { return {weights_, n_slots_}; }
  // The largest rank of a matrix: adapters of the same matrix add up theirs, and that of factors
  // that the model has itself.
  Index max_rank() const noexcept { return max_rank_; }
  // Of the factors, packed.
  std::size_t bytes() const noexcept {
    std::size_t all = 0;
    for (const AlignedBuffer& buffer : memory_) all += buffer.size();
    return all;
  }

 private:
  struct Part {
    const AdapterMatrix* matrix;
    float scale;
  };
  struct Place {
    std::size_t slot;
    Index layer;
    std::vector<Part> parts;
  };

  // Which matrices get which factors.
  class Collector final : public graph::SurveySink {
   public:
    Collector(const Model& model, std::span<const AppliedAdapter> adapters)
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
      for (const Place& place : places) {
        if (place.slot == need.slot && place.layer == need.layer) return;
      }
      Place place{need.slot, need.layer, {}};
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

    std::vector<Place> places;

   private:
    static std::optional<Error> mistake_in(const AdapterMatrix& m, float scale,
                                           const graph::Weight& own,
                                           const graph::WeightNeed& need) {
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

  explicit AdaptedWeights(const Model& model) : model_(model), n_slots_(model.weights().n_slots()) {
    const graph::WeightTable own = model.weights();
    for (Index layer = -1; layer < own.n_layers(); ++layer) {
      for (std::size_t slot = 0; slot < n_slots_; ++slot) weights_.push_back(own.at(slot, layer));
    }
  }

  // Rows of f32 as a packed matrix.
  Result<graph::Weight> packed(std::span<const float> rows, Index n, Index k) {
    graph::Weight w{&graph::kFormatOps<quant::F32>, n, k, nullptr, 1, {}};
    NIBBLE_CHECK(w.ops->check_shape(n, k));
    NIBBLE_TRY(memory,
               AlignedBuffer::allocate(static_cast<std::size_t>(w.ops->packed_bytes(n, k))));
    NIBBLE_TRY(row_bytes, w.ops->row_bytes(static_cast<std::size_t>(k)));
    graph::pack_panels(w, std::as_bytes(rows), static_cast<Index>(row_bytes), 0, memory.data());
    w.data = memory.data();
    memory_.push_back(std::move(memory));
    return w;
  }

  Result<void> enter(const Place& place, graph::Factors& factors) {
    graph::Weight& weight =
        weights_[static_cast<std::size_t>(place.layer + 1) * n_slots_ + place.slot];
    const graph::Factors* const own = weight.factors;
    if (place.parts.size() == 1 && own == nullptr) {
      const AdapterMatrix& m = *place.parts[0].matrix;
      NIBBLE_TRY(a, packed(m.b_values(), m.n, m.rank));
      NIBBLE_TRY(b, packed(m.a_values(), m.rank, m.k));
      factors = {a, b, place.parts[0].scale};
    } else {
      NIBBLE_CHECK(enter_sum(place, weight, own, factors));
    }
    weight.factors = &factors;
    max_rank_ = (std::max)(max_rank_, factors.rank());
    return ok();
  }

  // [s₁B₁ s₂B₂ …] and [A₁; A₂; …]; first the model's own factors.
  Result<void> enter_sum(const Place& place, const graph::Weight& weight, const graph::Factors* own,
                         graph::Factors& factors) {
    Index rank = own != nullptr ? own->rank() : 0;
    for (const Part& part : place.parts) rank += part.matrix->rank;
    const auto n = static_cast<std::size_t>(weight.n), k = static_cast<std::size_t>(weight.k),
               r = static_cast<std::size_t>(rank);
    std::vector<Scalar<float>> left(n * r), right(r * k);
    std::size_t at = 0;
    if (own != nullptr) {
      const auto own_rank = static_cast<std::size_t>(own->rank());
      std::vector<Scalar<float>> row(own_rank);
      for (std::size_t i = 0; i < own_rank; ++i) {
        own->b.ops->row(own->b.data, own->b.n, own->b.k, static_cast<Index>(i),
                        values(right) + i * k);
      }
      for (std::size_t i = 0; i < n; ++i) {
        own->a.ops->row(own->a.data, own->a.n, own->a.k, static_cast<Index>(i), values(row));
        for (std::size_t j = 0; j < own_rank; ++j)
          left[i * r + j].value = own->scale * row[j].value;
      }
      at = own_rank;
    }
    for (const Part& part : place.parts) {
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
    NIBBLE_TRY(a, packed({values(left), left.size()}, weight.n, rank));
    NIBBLE_TRY(b, packed({values(right), right.size()}, rank, weight.k));
    factors = {a, b, 1};
    return ok();
  }

  Model model_;
  std::size_t n_slots_;
  std::vector<graph::Weight> weights_;
  std::vector<graph::Factors> factors_;
  std::vector<AlignedBuffer> memory_;
  Index max_rank_ = 0;
};

}}  // namespace nibble::NIBBLE_ABI
