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
#include "nibble/model/channel_tensors.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/quant/ggml.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

// Announces to a store the tensors that an expression needs, as its survey reports them.
class TensorBinder final : public graph::SurveySink {
 public:
  TensorBinder(const ModelGraph& graph, const io::Gguf& file, WeightStore& store)
      : graph_(graph), file_(file), store_(store) {
    Result<void> read = read_shared();
    if (!read) error_ = std::move(read).error();
  }

  void weight(const graph::WeightNeed& need) override {
    if (error_) return;
    Result<void> added = add(need);
    if (!added) error_ = std::move(added).error();
  }
  // Checked in finish(): shared vectors are known only then.
  void rope(const graph::RopeKey&, const graph::RopeFactors& factors) override {
    if (factors.slot == graph::kNoSlot) return;
    for (const graph::RopeFactors& known : ropes_) {
      if (known.slot == factors.slot && known.beyond == factors.beyond) return;
    }
    ropes_.push_back(factors);
  }

  // Errors: those of the tensors announced; not_found if the file lacks some; unsupported if it has
  // tensors without a slot: they belong to a variant of the architecture, which would run wrongly.
  Result<void> finish() {
    if (error_) return *error_;
    NIBBLE_CHECK(bind_shared());
    for (const graph::RopeFactors& factors : ropes_) NIBBLE_CHECK(check_rope_factors(factors));
    const std::string model = "a model of the architecture " + graph_.config().architecture;
    NIBBLE_CHECK(store_.check_factors());
    if (missing_.n > 0) {
      return Error{Errc::not_found, file_.name() + ": " + missing_.text() + " missing, which " +
                                        model + " needs: the file is incomplete, or of a variant " +
                                        "that is not supported"};
    }
    if (used_.size() == file_.tensors().size()) return ok();
    Names unknown;
    for (const io::GgufTensor& tensor : file_.tensors()) {
      if (std::any_of(used_.begin(), used_.end(),
                      [&](const Used& used) { return used.tensor == &tensor; }) ||
          is_of_next_tokens(tensor)) {
        continue;
      }
      unknown.add(tensor.name);
    }
    if (unknown.n == 0) return ok();
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
  struct Bound {
    graph::WeightNeed need;
    std::string name;
  };
  // An entry of the metadata.
  struct SharedName {
    std::string name;
    std::string with;
    bool is_used = false;
  };
  struct Shared {
    graph::WeightNeed need;
    std::string name;
    std::string with;  // the name of the tensor that is used instead
  };
  // Not a plain pointer, for the same reason as in stop_matcher.hpp.
  struct Used {
    const io::GgufTensor* tensor;
  };

  // Whether a tensor belongs to the layers behind the model's that guess tokens after the next one:
  // no part of what the model computes.
  bool is_of_next_tokens(const io::GgufTensor& tensor) const {
    const std::string key = graph_.config().architecture + ".nextn_predict_layers";
    return file_.find(key) != nullptr && layer_of(tensor.name) >= graph_.config().n_layers;
  }

  std::string where(const std::string& name) const {
    return file_.name() + ": tensor " + io::quoted(name);
  }

  Result<void> add(const graph::WeightNeed& need) {
    const std::string name = graph_.tensor_name(need.slot, need.layer);
    if (store_.table().at(need.slot, need.layer)) return check_again(need, name);
    const io::GgufTensor* const tensor = file_.find_tensor(name);
    if (is_shared(need, name)) {
      if (tensor == nullptr) return ok();
      return Error{Errc::malformed, where(name) + ": shared with another one, but also stored"};
    }
    bool has_factors = false;
    if (need.n > 0 && !need.is_table) {
      NIBBLE_TRY(added, add_factors(need, name));
      has_factors = added;
    }
    bound_.push_back({need, name});
    if (tensor == nullptr && need.n_experts > 1 && need.n > 0) {
      NIBBLE_TRY(added, add_experts(need, name));
      if (added) return ok();
    }
    if (tensor == nullptr) {
      if (has_factors) return ok();
      if (need.tied_to != graph::kNoSlot) {
        store_.tie(need.slot, need.tied_to);
      } else if (need.is_required) {
        missing_.add(name);
      }
      return ok();
    }
    const auto rows = static_cast<Index>(tensor->dims[1]);
    const Index n = need.is_table && need.n == 0 ? rows : need.n;
    const auto one = static_cast<std::uint64_t>(n == 0 ? 1 : n);
    const auto n_experts = static_cast<std::uint64_t>(need.n_experts);
    // (Vectors of experts are the rows of a matrix.)
    const auto dims = std::array{static_cast<std::uint64_t>(need.k), n == 0 ? n_experts : one,
                                 n == 0 ? 1 : n_experts, std::uint64_t{1}};
    if (dims_of(*tensor) != dims) {
      const auto text = [](const std::array<std::uint64_t, 4>& d) {
        return graph::shape_text(static_cast<Index>(d[1]), static_cast<Index>(d[0]),
                                 static_cast<Index>(d[2]));
      };
      return Error{Errc::malformed,
                   where(name) + ": shape " + text(dims_of(*tensor)) + ", expected " + text(dims)};
    }
    return announce({need.slot, need.layer}, *tensor, n, need.k, need.n_experts);
  }

  // The dimensions of what a tensor holds.
  static std::array<std::uint64_t, 4> dims_of(const io::GgufTensor& tensor) noexcept {
    auto dims = tensor.dims;
    if (io::type_traits(tensor.type).has_own_size) dims[2] = 1;
    return dims;
  }

  // Announces a tensor of any type that holds weights to the store: n_experts matrices (n, k), or a
  // vector (n = 0).
  Result<void> announce(const WeightPlace& place, const io::GgufTensor& tensor, Index n, Index k,
                        Index n_experts = 1) {
    const std::string name(tensor.name);
    const auto packed = quant::packed_format_of(tensor.type);
    if (packed && n == 0) return Error{Errc::malformed, where(name) + ": a packed vector"};
    Result<void> added = ok();
    if (packed && file_.is_borrowed()) {
      added = store_.copy_packed(place, *packed, n, k, tensor.data, n_experts);
    } else if (packed) {
      added = store_.add_packed(place, *packed, n, k, tensor.data, n_experts);
    } else if (tensor.type == io::GgmlType::i8 && n > 0) {
      return announce_channels(place, tensor, n, k, n_experts);
    } else if (const auto* const type = quant::read_only_type(tensor.type)) {
      added = store_.add(place, *type, n, k, tensor.data, n_experts, tensor.swapped);
    } else {
      auto format = quant::format_of(tensor.type);
      if (!format) return std::move(format).error().in(where(name));
      added = store_.add(place, *format, n, k, tensor.data, n_experts, tensor.swapped);
    }
    if (!added) return std::move(added).error().in(where(name));
    used_.push_back({&tensor});
    return ok();
  }

  // Experts that have a tensor each. Returns whether there are such.
  Result<bool> add_experts(const graph::WeightNeed& need, const std::string& name) {
    std::vector<std::span<const std::byte>> rows;
    const io::GgufTensor* first = nullptr;
    for (Index expert = 0; expert < need.n_experts; ++expert) {
      const std::string own = name_of_expert(name, expert);
      const io::GgufTensor* const tensor = file_.find_tensor(own);
      if (tensor == nullptr && expert == 0) return false;
      if (tensor == nullptr) return Error{Errc::not_found, where(own) + ": missing"};
      if (first == nullptr) first = tensor;
      const auto dims =
          std::array{static_cast<std::uint64_t>(need.k), static_cast<std::uint64_t>(need.n),
                     std::uint64_t{1}, std::uint64_t{1}};
      if (tensor->dims != dims || tensor->type != first->type || tensor->swapped.any()) {
        return Error{Errc::malformed, where(own) + ": not a matrix " +
                                          graph::shape_text(need.n, need.k) + " of type " +
                                          io::type_traits(first->type).name};
      }
      rows.push_back(tensor->data);
      used_.push_back({tensor});
    }
    const WeightPlace place{need.slot, need.layer};
    Result<void> added = ok();
    if (const auto* const type = quant::read_only_type(first->type)) {
      added = store_.add_experts(place, *type, need.n, need.k, rows);
    } else {
      auto format = quant::format_of(first->type);
      if (!format) return std::move(format).error().in(where(std::string(first->name)));
      added = store_.add_experts(place, *format, need.n, need.k, rows);
    }
    if (!added) return std::move(added).error().in(where(std::string(first->name)));
    return true;
  }

  // A matrix of 8-bit codes, with its scales.
  Result<void> announce_channels(const WeightPlace& place, const io::GgufTensor& tensor, Index n,
                                 Index k, Index n_experts) {
    const std::string name(tensor.name);
    if (tensor.swapped.any()) {
      return Error{Errc::unsupported, where(name) + ": codes whose axes are swapped"};
    }
    NIBBLE_TRY(beside, read_channel_tensors(file_, name, static_cast<std::size_t>(n * n_experts)));
    const std::span<const float> scales(values(beside.scales), beside.scales.size());
    Result<void> added =
        store_.add_channels(place, n, k, tensor.data, scales, beside.input, n_experts);
    if (!added) return std::move(added).error().in(where(name));
    used_.push_back({&tensor});
    for (const io::GgufTensor* const other : beside.tensors) {
      if (other != nullptr) used_.push_back({other});
    }
    return ok();
  }

  // Factors of low rank beside "<name>.weight", or instead of it. Returns whether there are such.
  Result<bool> add_factors(const graph::WeightNeed& need, const std::string& name) {
    if (!name.ends_with(".weight")) return false;
    const std::string parts[] = {name_beside(name, kFactorA), name_beside(name, kFactorB)};
    const io::GgufTensor* const tensors[] = {file_.find_tensor(parts[0]),
                                             file_.find_tensor(parts[1])};
    if (tensors[0] == nullptr && tensors[1] == nullptr) return false;
    for (const FactorSide side : {FactorSide::a, FactorSide::b}) {
      const bool is_a = side == FactorSide::a;
      const std::string& part = parts[is_a ? 0 : 1];
      const io::GgufTensor* const tensor = tensors[is_a ? 0 : 1];
      if (tensor == nullptr) {
        return Error{Errc::malformed, where(part) + ": missing; factors come in pairs"};
      }
      const auto dims = dims_of(*tensor);
      const auto n = static_cast<Index>(dims[1]), k = static_cast<Index>(dims[0]);
      if (need.n_experts != 1 || tensor->n_dims < 2 || dims[2] != 1 || dims[3] != 1 ||
          (is_a ? n != need.n : k != need.k)) {
        return Error{Errc::malformed, where(part) + ": shape " + graph::shape_text(n, k) +
                                          " does not go with weights " +
                                          graph::shape_text(need.n, need.k, need.n_experts)};
      }
      NIBBLE_CHECK(announce({need.slot, need.layer, side}, *tensor, n, k));
    }
    return true;
  }

  // The entry of a tensor that is another one: metadata nibble.shared_tensors has "<this>=<that>"
  // for each. Null if it is not.
  SharedName* find_shared(const std::string& name) {
    const auto pair =
        std::lower_bound(pairs_.begin(), pairs_.end(), name,
                         [](const SharedName& p, const std::string& key) { return p.name < key; });
    return pair == pairs_.end() || pair->name != name ? nullptr : &*pair;
  }
  // Whether a tensor is another one.
  bool is_shared(const graph::WeightNeed& need, const std::string& name) {
    SharedName* const pair = find_shared(name);
    if (pair == nullptr) return false;
    pair->is_used = true;
    shared_.push_back({need, pair->name, pair->with});
    return true;
  }
  Result<void> read_shared() {
    if (file_.find(kSharedTensorsKey) == nullptr) return ok();
    NIBBLE_TRY(pairs, file_.get_strings(kSharedTensorsKey));
    for (const std::string_view pair : pairs) {
      const std::size_t middle = pair.find('=');
      if (middle == pair.npos) {
        return Error{Errc::malformed, file_.name() + ": key '" + std::string(kSharedTensorsKey) +
                                          "': " + io::quoted(pair) + " is not <name>=<name>"};
      }
      pairs_.push_back({std::string(pair.substr(0, middle)), std::string(pair.substr(middle + 1))});
    }
    std::sort(pairs_.begin(), pairs_.end(),
              [](const SharedName& a, const SharedName& b) { return a.name < b.name; });
    return ok();
  }
  // Gives shared slots their weights, now that all others are bound.
  Result<void> bind_shared() {
    if (pairs_.empty()) return ok();
    const auto malformed = [&](const std::string& text) {
      return Error{Errc::malformed,
                   file_.name() + ": key '" + std::string(kSharedTensorsKey) + "': " + text};
    };
    const auto n_used = static_cast<std::size_t>(std::count_if(
        pairs_.begin(), pairs_.end(), [](const SharedName& pair) { return pair.is_used; }));
    if (pairs_.size() != n_used) {
      return malformed(to_text(pairs_.size()) + " entries, but " + to_text(n_used) +
                       " tensors of this model are in them");
    }
    std::sort(bound_.begin(), bound_.end(),
              [](const Bound& a, const Bound& b) { return a.name < b.name; });
    for (const Shared& shared : shared_) {
      const auto other =
          std::lower_bound(bound_.begin(), bound_.end(), shared.with,
                           [](const Bound& b, const std::string& name) { return b.name < name; });
      const std::string pair = io::quoted(shared.name) + " is to be " + io::quoted(shared.with);
      if (other == bound_.end() || other->name != shared.with ||
          !store_.table().at(other->need.slot, other->need.layer)) {
        return malformed(pair + ", which is not stored");
      }
      const graph::WeightNeed &a = shared.need, &b = other->need;
      if (a.n != b.n || a.k != b.k || a.n_experts != b.n_experts || a.is_table != b.is_table) {
        return malformed(pair + ", of another shape");
      }
      store_.share(a.slot, a.layer, b.slot, b.layer);
    }
    return ok();
  }

  // Checks a slot that was already filled for another node.
  Result<void> check_again(const graph::WeightNeed& need, const std::string& name) const {
    const graph::Weight& w = store_.table().at(need.slot, need.layer);
    const bool same = w.k == need.k && (w.n == need.n || (need.is_table && need.n == 0));
    if (same && w.n_experts == need.n_experts) return ok();
    return Error{Errc::malformed, where(name) + ": two parts of the model want other shapes of it"};
  }

  // The tensor that holds the vector of a slot: its own, or the one that stands for it. Null: none.
  const io::GgufTensor* vector_of(std::size_t slot) {
    const std::string name = graph_.tensor_name(slot, -1);
    const SharedName* const pair = find_shared(name);
    return file_.find_tensor(pair != nullptr ? pair->with : name);
  }
  // Factors of rotations: both vectors or none, all of them positive.
  Result<void> check_rope_factors(const graph::RopeFactors& factors) {
    NIBBLE_CHECK(check_rope_factors(factors.slot));
    if (factors.beyond == graph::kNoSlot) return ok();
    NIBBLE_CHECK(check_rope_factors(factors.beyond));
    const bool has_first = vector_of(factors.slot) != nullptr;
    if (has_first != (vector_of(factors.beyond) != nullptr)) {
      missing_.add(graph_.tensor_name(has_first ? factors.beyond : factors.slot, -1));
    }
    return ok();
  }
  Result<void> check_rope_factors(std::size_t slot) {
    const io::GgufTensor* const tensor = vector_of(slot);
    if (tensor == nullptr) return ok();
    const std::string name(tensor->name);
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
  std::vector<Bound> bound_;
  std::vector<SharedName> pairs_;
  std::vector<Shared> shared_;
  std::vector<graph::RopeFactors> ropes_;
  Names missing_;
};

}}}  // namespace nibble::NIBBLE_ABI::detail
