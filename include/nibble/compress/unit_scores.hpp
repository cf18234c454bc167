// SPDX-License-Identifier: Apache-2.0
//
// How much the parts of a decoder matter that structured pruning may remove: feed-forward neurons,
// groups of attention heads that share keys and values, layers. A part is scored with all weights
// that go with it, and from these scores the parts that stay are chosen.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/compress/tensor_rows.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/view.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/slot.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Parts of a layer that are removed together with everything that only they use.
enum class PruneUnit : std::uint8_t {
  neuron,   // row of ffn_gate and ffn_up, column of ffn_down
  kv_group  // a head of keys and values, and the query heads that read it
};

// One score for each unit of each layer: higher is kept.
using UnitScores = std::vector<std::vector<double>>;

// Values of the channels of a tensor's input, by the tensor's name.
struct ChannelValues {
  std::string_view tensor;
  std::span<const double> values;  // (k)
};

// The number of units per layer of a decoder, as its metadata says.
struct DecoderShape {
  std::string architecture;
  Index n_layers = 0;
  std::vector<Index> ffn;         // neurons of each layer
  std::vector<Index> n_heads;     // of each layer
  std::vector<Index> n_kv_heads;  // of each layer
  Index head_dim = 0;

  Index count(PruneUnit unit, Index layer) const noexcept {
    const auto i = static_cast<std::size_t>(layer);
    return unit == PruneUnit::neuron ? ffn[i] : n_kv_heads[i];
  }
};

namespace detail {

// Adds |w|^p of rows and columns of one layer to the sums of its units.
class PowerSums {
 public:
  PowerSums(const io::Gguf& file, double p, std::vector<double>& sums)
      : file_(file), p_(p), sums_(sums) {}

  // `size` consecutive rows for each unit.
  Result<void> rows(const std::string& name, Index size) { return add(name, size, true); }
  Result<void> columns(const std::string& name, Index size) { return add(name, size, false); }

 private:
  Result<void> add(const std::string& name, Index size, bool by_row) {
    const io::GgufTensor* const tensor = file_.find_tensor(name);
    if (tensor == nullptr) return ok();  // a part that this architecture lacks
    NIBBLE_TRY(w, tensor_floats(file_, *tensor));
    const auto k = static_cast<std::size_t>(tensor->dims[0]);
    const std::size_t n = w.size() / k, length = by_row ? n : k;
    if (length != sums_.size() * static_cast<std::size_t>(size)) {
      return Error{Errc::malformed, place_in_messages(file_, name) + ": " + to_text(length) +
                                        " channels for " + to_text(sums_.size()) + " units of " +
                                        to_text(size)};
    }
    for (std::size_t r = 0; r < n; ++r) {
      for (std::size_t c = 0; c < k; ++c) {
        const double x = std::fabs(static_cast<double>(w[r * k + c]));
        sums_[(by_row ? r : c) / static_cast<std::size_t>(size)] += p_ == 2   ? x * x
                                                                    : p_ == 1 ? x
                                                                              : std::pow(x, p_);
      }
    }
    return ok();
  }

  const io::Gguf& file_;
  double p_;
  std::vector<double>& sums_;
};

}  // namespace detail

// Lᵖ norms of the weights of each unit: (Σ |w|ᵖ)^(1/p), over the rows and columns of matrices that
// would be removed with it; biases do not count. p: from 1 to 64. Errors: invalid_argument (p),
// malformed (shapes), those of tensor_floats().
inline Result<UnitScores> norm_scores(const io::Gguf& file, const DecoderShape& shape,
                                      PruneUnit unit, double p = 2) {
  if (!(p >= 1 && p <= 64)) {
    return Error{Errc::invalid_argument, "pruning: a norm of order " + to_text(p)};
  }
  UnitScores scores;
  for (Index layer = 0; layer < shape.n_layers; ++layer) {
    std::vector<double> sums(static_cast<std::size_t>(shape.count(unit, layer)));
    detail::PowerSums add(file, p, sums);
    const auto name = [&](std::string_view rest) { return layer_tensor(layer, rest); };
    if (unit == PruneUnit::neuron) {
      NIBBLE_CHECK(add.rows(name("ffn_gate.weight"), 1));
      NIBBLE_CHECK(add.rows(name("ffn_up.weight"), 1));
      NIBBLE_CHECK(add.columns(name("ffn_down.weight"), 1));
    } else {
      const auto i = static_cast<std::size_t>(layer);
      const Index group = shape.n_heads[i] / shape.n_kv_heads[i] * shape.head_dim;
      NIBBLE_CHECK(add.rows(name("attn_q.weight"), group));
      NIBBLE_CHECK(add.rows(name("attn_k.weight"), shape.head_dim));
      NIBBLE_CHECK(add.rows(name("attn_v.weight"), shape.head_dim));
      NIBBLE_CHECK(add.columns(name("attn_output.weight"), group));
    }
    for (double& sum : sums) sum = std::pow(sum, 1 / p);
    scores.push_back(std::move(sums));
  }
  return scores;
}

// Scores from values of the channels that units write: those of ffn_down's input for neurons, of
// attn_output's input for groups. The values of a group's channels are added. With Σ|x| or Σx² this
// is activation magnitude (Minitron, Muralidharan et al. 2024); with |Σ x · dL/dx| first-order
// Taylor (Molchanov et al. 2017). `values` may have other tensors too. Errors: not_found (a layer
// without values), invalid_argument (a wrong length; a value that is negative or no number; a
// tensor whose values are all 0: it saw no data).
inline Result<UnitScores> channel_scores(const DecoderShape& shape, PruneUnit unit,
                                         std::span<const ChannelValues> values) {
  UnitScores scores;
  for (Index layer = 0; layer < shape.n_layers; ++layer) {
    const std::string name =
        layer_tensor(layer, unit == PruneUnit::neuron ? "ffn_down.weight" : "attn_output.weight");
    const auto found = std::find_if(values.begin(), values.end(),
                                    [&](const ChannelValues& v) { return v.tensor == name; });
    if (found == values.end()) {
      return Error{Errc::not_found, "pruning: no statistics of " + io::quoted(name)};
    }
    const auto i = static_cast<std::size_t>(layer);
    const auto n = static_cast<std::size_t>(shape.count(unit, layer));
    const std::size_t size = unit == PruneUnit::neuron
                                 ? 1
                                 : static_cast<std::size_t>(shape.n_heads[i] * shape.head_dim) / n;
    if (found->values.size() != n * size) {
      return Error{Errc::invalid_argument, "pruning: " + to_text(found->values.size()) +
                                               " statistics of " + io::quoted(name) + ", not " +
                                               to_text(n * size) + ": they are of another model"};
    }
    std::vector<double> sums(n);
    double total = 0;
    for (std::size_t c = 0; c < found->values.size(); ++c) {
      const double x = found->values[c];
      if (!(x >= 0) || !is_finite(x)) {
        return Error{Errc::invalid_argument, "pruning: a statistic of " + io::quoted(name) +
                                                 " is negative or not a number"};
      }
      sums[c / size] += x;
      total += x;
    }
    if (total == 0) {
      return Error{Errc::invalid_argument,
                   "pruning: statistics of " + io::quoted(name) + " are all 0: it saw no data"};
    }
    scores.push_back(std::move(sums));
  }
  return scores;
}

// How much a layer changes the residual stream: BI = 1 − E[cos(x_in, x_out)] over rows (ShortGPT,
// Men et al. 2024). From 0 (the layer changes no direction) to 2.
class BlockInfluence {
 public:
  // Rows of the stream before and after the layer, (rows, dim). A row of zeros has no direction
  // and is not counted.
  void add(MatrixView<const float> before, MatrixView<const float> after) noexcept {
    NIBBLE_ASSERT(before.extent(0) == after.extent(0) && before.extent(1) == after.extent(1));
    for (Index i = 0; i < before.extent(0); ++i) {
      double xy = 0, xx = 0, yy = 0;
      for (Index j = 0; j < before.extent(1); ++j) {
        const auto x = static_cast<double>(before(i, j)), y = static_cast<double>(after(i, j));
        xy += x * y;
        xx += x * x;
        yy += y * y;
      }
      if (!(xx > 0 && yy > 0)) continue;
      sum_ += xy / std::sqrt(xx * yy);
      ++n_;
    }
  }
  std::uint64_t n_rows() const noexcept { return n_; }
  // Error: invalid_argument if no row was counted.
  Result<double> value() const {
    if (n_ == 0) return Error{Errc::invalid_argument, "block influence of a layer without rows"};
    return 1 - sum_ / static_cast<double>(n_);
  }

 private:
  double sum_ = 0;
  std::uint64_t n_ = 0;
};

// ---- The choice --------------------------------------------------------------------------------

struct KeepOptions {
  double kept = 0.7;       // the share of units that stay, above 0 and at most 1
  bool is_global = false;  // it holds for all layers together; otherwise for each
  // Counts are multiples of it (rounded to the nearest, half upwards, at least one): the block
  // length of the formats that follow. A layer that has fewer units keeps them all.
  Index multiple = 1;
};

namespace detail {

// Of the multiples that n units have room for, the nearest to `wanted`; n if they have none.
inline Index rounded_count(double wanted, Index multiple, Index n) noexcept {
  if (n < multiple) return n;
  const auto blocks = static_cast<Index>(std::floor(wanted / static_cast<double>(multiple) + 0.5));
  return std::clamp(blocks, Index{1}, n / multiple) * multiple;
}

// The `count` best units in ascending order; of equal ones the first.
inline std::vector<Index> best_units(std::span<const double> scores, Index count) {
  std::vector<Index> order(scores.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace detail

// The units that stay, ascending, for each layer. With is_global, layers differ: each keeps as many
// as the best kept · (all units) of all layers have in it, rounded. Scores of different layers are
// compared as they are. Errors: invalid_argument (options; scores that are no numbers; a layer
// without units).
inline Result<std::vector<std::vector<Index>>> keep_best(const UnitScores& scores,
                                                         const KeepOptions& options) {
  if (!(options.kept > 0 && options.kept <= 1) || options.multiple < 1) {
    return Error{Errc::invalid_argument, "pruning: to keep a share of " + to_text(options.kept) +
                                             " in multiples of " + to_text(options.multiple) +
                                             "; a share is above 0 and at most 1"};
  }
  std::vector<double> all;
  for (const auto& layer : scores) {
    if (layer.empty()) return Error{Errc::invalid_argument, "pruning: a layer without units"};
    for (const double x : layer) {
      if (is_nan(x)) return Error{Errc::invalid_argument, "pruning: a score that is not a number"};
      all.push_back(x);
    }
  }
  std::vector<std::size_t> wanted(scores.size());
  if (options.is_global) {
    const auto n =
        static_cast<Index>(std::floor(options.kept * static_cast<double>(all.size()) + 0.5));
    std::vector<std::size_t> layer_of;
    for (std::size_t l = 0; l < scores.size(); ++l) {
      layer_of.insert(layer_of.end(), scores[l].size(), l);
    }
    for (const Index i : detail::best_units(all, n))
      ++wanted[layer_of[static_cast<std::size_t>(i)]];
  }
  std::vector<std::vector<Index>> kept;
  for (std::size_t l = 0; l < scores.size(); ++l) {
    const auto n = static_cast<Index>(scores[l].size());
    const double count =
        options.is_global ? static_cast<double>(wanted[l]) : options.kept * static_cast<double>(n);
    kept.push_back(
        detail::best_units(scores[l], detail::rounded_count(count, options.multiple, n)));
  }
  return kept;
}

// The `count` layers of greatest influence, ascending. Error: invalid_argument.
inline Result<std::vector<Index>> keep_layers(std::span<const double> influence, Index count) {
  if (count < 1 || count > static_cast<Index>(influence.size())) {
    return Error{Errc::invalid_argument,
                 "pruning: " + to_text(count) + " of " + to_text(influence.size()) + " layers"};
  }
  for (const double x : influence) {
    if (is_nan(x)) return Error{Errc::invalid_argument, "pruning: an influence that is no number"};
  }
  return detail::best_units(influence, count);
}

}}}  // namespace nibble::NIBBLE_ABI::compress
