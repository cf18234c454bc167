// SPDX-License-Identifier: Apache-2.0
//
// Which matrices a model multiplies by.
#pragma once

#include <cstddef>
#include <vector>

#include "nibble/graph/survey.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/model.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress { namespace detail {

// The matrices that are multiplied by rows; not those of which rows are looked up alone.
class ProductSurvey final : public graph::SurveySink {
 public:
  explicit ProductSurvey(const Model& model) : weights_(model.weights()) {
    model.architecture().survey(*this);
  }
  void weight(const graph::WeightNeed& need) override {
    if (need.is_table || !weights_.has(need.slot, need.layer)) return;
    const graph::Weight& w = weights_.at(need.slot, need.layer);
    if (w && !w.is_vector()) matrices.push_back({need.slot, need.layer});
  }
  struct Place {
    std::size_t slot;
    Index layer;
  };
  const graph::Weight& at(const Place& place) const { return weights_.at(place.slot, place.layer); }

  std::vector<Place> matrices;

 private:
  graph::WeightTable weights_;
};

// Whether two slots have the same weights.
inline bool same_weights(const graph::Weight& a, const graph::Weight& b) noexcept {
  return a && a.data == b.data && a.factors == b.factors;
}

}}}}  // namespace nibble::NIBBLE_ABI::compress::detail
