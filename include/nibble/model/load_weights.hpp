// SPDX-License-Identifier: Apache-2.0
//
// Assigns the tensors of a GGUF file to the slots of an expression.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/scalar.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// Announces to a store the tensors that an expression needs, as its survey reports them.
class TensorBinder final : public graph::SurveySink {
 public:
  TensorBinder(const ModelGraph& graph, const io::Gguf& file, WeightStore& store)
      : graph_(graph), file_(file), store_(store) {}

  void weight(const graph::WeightNeed& need) override {
    if (error_) return;
    Result<void> added = add(need);
    if (!added) error_ = std::move(added).error();
  }
  void rope(const graph::RopeKey&, const graph::RopeFactors& factors) override {
    for (const std::size_t slot : {factors.slot, factors.beyond}) {
      if (error_ || slot == graph::kNoSlot) continue;
      Result<void> checked = check_factors(slot);
      if (!checked) error_ = std::move(checked).error();
    }
    if (error_ || factors.beyond == graph::kNoSlot) return;
    const graph::WeightTable weights = store_.table();
    if (!weights.at(factors.slot, -1) != !weights.at(factors.beyond, -1)) {
      missing_.add(
          graph_.tensor_name(weights.at(factors.slot, -1) ? factors.beyond : factors.slot, -1));
    }
  }

  // Errors: those of the tensors announced; not_found if the file lacks some; unsupported if it has
  // tensors without a slot: they belong to a variant of the architecture, which would run wrongly.
  Result<void> finish() const {
    if (error_) return *error_;
    const std::string model = "a model of the architecture " + graph_.config().architecture;
    if (missing_.n > 0) {
      return Error{Errc::not_found, file_.name() + ": " + missing_.text() + " missing, which " +
                                        model + " needs: the file is incomplete, or of a variant " +
                                        "that is not supported"};
    }
    if (used_.size() == file_.tensors().size()) return ok();
    Names unknown;
    for (const io::GgufTensor& tensor : file_.tensors()) {
      if (std::any_of(used_.begin(), used_.end(),
                      [&](const Used& used) { return used.tensor == &tensor; })) {
        continue;
      }
      unknown.add(tensor.name);
    }
    return Error{Errc::unsupported, file_.name() + ": " + unknown.text() + " no part of " + model +
                                        " as it is known here; without " +
                                        (unknown.n == 1 ? "it" : "them") +
                                        " the model would run wrongly"};
  }

 private:
  // Tensors to name in a message: the first few, and how many more.
  struct Names {
    std::string first;
    std::size_t n = 0;

    void add(std::string_view name) {
      if (++n <= 3) first += (n > 1 ? ", " : "") + io::quoted(name);
    }
    // "tensor 'a' is", "tensors 'a', 'b', 'c' and 4 more are"
    std::string text() const {
      return (n == 1 ? "tensor " : "tensors ") + first +
             (n > 3 ? " and " + to_text(n - 3) + " more" : std::string()) +
             (n == 1 ? " is" : " are");
    }
  };
  // Not a plain pointer, for the same reason as in stop_matcher.hpp.
  struct Used {
    const io::GgufTensor* tensor;
  };

  std::string where(const std::string& name) const {
    return file_.name() + ": tensor " + io::quoted(name);
  }

  Result<void> add(const graph::WeightNeed& need) {
    const std::string name = graph_.tensor_name(need.slot, need.layer);
    if (store_.table().at(need.slot, need.layer)) return check_again(need, name);
    const io::GgufTensor* const tensor = file_.find_tensor(name);
    if (tensor == nullptr) {
      if (need.tied_to != graph::kNoSlot) {
        store_.tie(need.slot, need.tied_to);
      } else if (need.is_required) {
        missing_.add(name);
      }
      return ok();
    }
    const auto rows = static_cast<Index>(tensor->dims[1]);
    const Index n = need.is_table && need.n == 0 ? rows : need.n;
    const auto dims =
        std::array{static_cast<std::uint64_t>(need.k), static_cast<std::uint64_t>(n == 0 ? 1 : n),
                   static_cast<std::uint64_t>(need.n_experts), std::uint64_t{1}};
    auto stored = tensor->dims;
    if (io::type_traits(tensor->type).has_own_size) stored[2] = 1;
    if (stored != dims) {
      const auto text = [](const std::array<std::uint64_t, 4>& d) {
        return graph::shape_text(static_cast<Index>(d[1]), static_cast<Index>(d[0]),
                                 static_cast<Index>(d[2]));
      };
      return Error{Errc::malformed,
                   where(name) + ": shape " + text(stored) + ", expected " + text(dims)};
    }
    const auto packed = quant::packed_format_of(tensor->type);
    if (packed && n == 0) return Error{Errc::malformed, where(name) + ": a packed vector"};
    Result<void> added = ok();
    if (packed && file_.is_borrowed()) {
      added = store_.copy_packed(need.slot, need.layer, *packed, n, need.k, tensor->data,
                                 need.n_experts);
    } else if (packed) {
      added = store_.add_packed(need.slot, need.layer, *packed, n, need.k, tensor->data,
                                need.n_experts);
    } else if (const auto* const type = quant::read_only_type(tensor->type)) {
      added = store_.add(need.slot, need.layer, *type, n, need.k, tensor->data, need.n_experts,
                         tensor->swapped);
    } else {
      auto format = quant::format_of(tensor->type);
      if (!format) return std::move(format).error().in(where(name));
      added = store_.add(need.slot, need.layer, *format, n, need.k, tensor->data, need.n_experts,
                         tensor->swapped);
    }
    if (!added) return std::move(added).error().in(where(name));
    used_.push_back({tensor});
    return ok();
  }

  // Checks a slot that was already filled for another node.
  Result<void> check_again(const graph::WeightNeed& need, const std::string& name) const {
    const graph::Weight& w = store_.table().at(need.slot, need.layer);
    const bool same = w.k == need.k && (w.n == need.n || (need.is_table && need.n == 0));
    if (same && w.n_experts == need.n_experts) return ok();
    return Error{Errc::malformed, where(name) + ": two parts of the model want other shapes of it"};
  }

  Result<void> check_factors(std::size_t slot) const {
    const std::string name = graph_.tensor_name(slot, -1);
    const io::GgufTensor* const tensor = file_.find_tensor(name);
    if (tensor == nullptr) return ok();
    auto format = quant::format_of(tensor->type);
    if (!format) return std::move(format).error().in(where(name));
    LayerValues<float> factors(static_cast<std::size_t>(tensor->dims[0]));
    Result<void> read = quant::row_to_f32(*format, tensor->data, {values(factors), factors.size()});
    if (!read) return std::move(read).error().in(where(name));
    for (const auto& [factor] : factors) {
      if (!(factor > 0) || !is_finite(static_cast<double>(factor))) {
        return Error{Errc::malformed, where(name) + ": a factor that is not positive"};
      }
    }
    return ok();
  }

  const ModelGraph& graph_;
  const io::Gguf& file_;
  WeightStore& store_;
  std::optional<Error> error_;
  std::vector<Used> used_;
  Names missing_;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
