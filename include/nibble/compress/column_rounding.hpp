// SPDX-License-Identifier: Apache-2.0
//
// Rounding and pruning of a matrix column by column, where each column makes good what the columns
// before it did wrong: GPTQ (a format, no mask), SparseGPT (a mask, f32), N:M sparsity, and all of
// them together. compress/column_factor.hpp has the formula.
//
// A block of weights gets its scales when its first column comes, by the search of
// quant/weighted.hpp from the weights as they are corrected by then, with D as importance: the
// error that stays when the columns after it have made good what they can. Weights in the order
// ColumnOrder::by_diagonal get all scales before the first column, from the weights as they were,
// because the columns of a block then do not come together.
//
// When all columns are rounded, each is looked at again, with all others as they are now
// (coordinate descent): another code, or another scale of a block, is taken where that lowers the
// error. One pass over the columns rounds each without knowing how those after it will be rounded;
// these further ones know.
//
// Rows do not depend on each other, except that a share of pruned weights is chosen in a block of
// columns of all rows. Results do not depend on the executor.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "nibble/compress/column_factor.hpp"
#include "nibble/compress/mask_rule.hpp"
#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/libm.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/quant/block_grid.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/weighted.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

struct ColumnRoundingOptions {
  quant::Format format = quant::Format::q4_0;  // f32: nothing is rounded
  MaskRule mask = {};
  quant::Effort effort = quant::Effort::usual;
  Index n_sweeps = 8;  // at most so many times is each column looked at again; 0: GPTQ as it is
};

struct ColumnRoundingResult {
  double error = 0;  // Σ (w - q) H (w - q)ᵀ over all rows, with the damped H
  Index n_pruned = 0;
};

namespace detail {

template <class F>
struct BlockOf {
  struct Type {};
};
template <quant::GridFormat F>
struct BlockOf<F> {
  using Type = typename F::Block;
};

template <class F>
class ColumnRounder {
 public:
  static constexpr bool kIsGrid = quant::GridFormat<F>;
  static constexpr Index kLength = F::kLength;
  static_assert(!kIsGrid || kColumnBlock % kLength == 0);

  ColumnRounder(const ColumnFactor& factor, std::span<const float> weights, Index n,
                const ColumnRoundingOptions& options, std::span<std::byte> out,
                std::span<std::uint8_t> mask) noexcept
      : factor_(factor),
        weights_(weights.data()),
        n_(n),
        k_(factor.k()),
        options_(options),
        row_bytes_(out.size() / static_cast<std::size_t>(n)),
        out_(out.data()),
        mask_(mask) {}

  Result<ColumnRoundingResult> run(Executor& executor) {
    allocate(executor.n_workers());
    const Index n_tiles = (n_ + kTile - 1) / kTile;
    if (is_planned_) {
      executor.parallel_for(n_, [&](Index row, Index) { plan_row(row); });
    }
    for (Index begin = 0; begin < k_; begin += kColumnBlock) {
      const Index end = (std::min)(begin + kColumnBlock, k_);
      executor.parallel_for(n_tiles, [&](Index tile, Index) { correct(tile, begin, end); });
      choose_mask(begin, end);
      executor.parallel_for(n_, [&](Index row, Index) { round_row(row, begin, end); });
    }
    if (options_.n_sweeps > 0) {
      executor.parallel_for(n_, [&](Index row, Index worker) { refine_row(row, worker); });
    }
    executor.parallel_for(n_, [&](Index row, Index) { store_row(row); });
    ColumnRoundingResult result;
    for (std::size_t row = 0; row < static_cast<std::size_t>(n_); ++row) {
      if (rows_[row].is_too_large) {
        return Error{Errc::limit, "row " + to_text(row) + " has a weight that is too large for " +
                                      to_string(options_.format)};
      }
      result.error += rows_[row].error;
      result.n_pruned += rows_[row].n_pruned;
    }
    result.error *= factor_.scale();
    return result;
  }

 private:
  static constexpr Index kTile = 8;  // rows that share what is read of the factor
  struct RowState {
    double error = 0;  // in units of factor_.scale()
    Index n_pruned = 0;
    bool is_too_large = false;
  };

  std::size_t at(Index row, Index column) const noexcept {
    return static_cast<std::size_t>(row * k_ + column);
  }

  void allocate(Index n_workers) {
    is_planned_ = kIsGrid && factor_.order() != ColumnOrder::natural;
    const auto n = static_cast<std::size_t>(n_), k = static_cast<std::size_t>(k_);
    rows_.resize(n);
    missing_.resize(n * k);
    current_.resize(n * std::size_t{kColumnBlock});
    keep_.resize(n * std::size_t{kColumnBlock});
    if (kIsGrid) codes_.resize(n * k);
    if (options_.mask.kind != MaskRule::Kind::none) pruned_.resize(n * k);
    if (options_.n_sweeps > 0) {
      work_.resize(static_cast<std::size_t>(n_workers * 2 * factor_.stride()));
    }
    if (is_planned_) {
      remaining_.resize(k);
      for (Index i = 0; i < k_; ++i) {
        remaining_[static_cast<std::size_t>(factor_.column(i))].value = factor_.remaining(i);
      }
    }
    if (options_.mask.kind == MaskRule::Kind::share) scores_.resize(keep_.size());
  }

  // The weights of a block of columns with the corrections of all columns before it.
  void correct(Index tile, Index begin, Index end) noexcept {
    const Index first = tile * kTile, last = (std::min)(first + kTile, n_);
    for (Index row = first; row < last; ++row) {
      float* const to = values(current_) + row * kColumnBlock;
      for (Index j = begin; j < end; ++j) to[j - begin] = weights_[at(row, factor_.column(j))];
      std::fill(to + (end - begin), to + kColumnBlock, 0.0f);
    }
    for (Index i = 0; i < begin; ++i) {
      const float* const from = factor_.row(i) + begin;
      for (Index row = first; row < last; ++row) {
        const float amount = missing_[at(row, i)].value;
        float* const to = values(current_) + row * kColumnBlock;
        for (Index j = 0; j < kColumnBlock; ++j) to[j] += amount * from[j];
      }
    }
  }

  // Fills keep_ of a block of columns, as far as it is known before they come.
  void choose_mask(Index begin, Index end) noexcept {
    using Kind = MaskRule::Kind;
    const MaskRule& rule = options_.mask;
    std::fill_n(values(keep_), keep_.size(), std::uint8_t{1});
    if (rule.kind == Kind::given) {
      for (Index row = 0; row < n_; ++row) {
        for (Index j = begin; j < end; ++j) {
          keep(row, j - begin) = rule.mask[at(row, factor_.column(j))] != 0 ? 1 : 0;
        }
      }
    } else if (rule.kind == Kind::share) {
      std::size_t n_scores = 0;
      for (Index row = 0; row < n_; ++row) {
        for (Index j = begin; j < end; ++j) {
          const Index place = row * kColumnBlock + (j - begin);
          scores_[n_scores++] = {saliency(row, j - begin, j), place};
        }
      }
      const auto n_pruned = static_cast<Index>(rule.sparsity * static_cast<double>(n_scores) + 0.5);
      const auto by_score = [](const Score& a, const Score& b) {
        return a.score != b.score ? a.score < b.score : a.place < b.place;
      };
      const auto all = scores_.begin();
      std::nth_element(all, all + n_pruned, all + static_cast<Index>(n_scores), by_score);
      for (Index i = 0; i < n_pruned; ++i) {
        keep_[static_cast<std::size_t>(scores_[static_cast<std::size_t>(i)].place)].value = 0;
      }
    }
  }

  double saliency(Index row, Index at, Index j) const noexcept {
    const auto w =
        static_cast<double>(current_[static_cast<std::size_t>(row * kColumnBlock + at)].value);
    return w * w * factor_.remaining(j);
  }
  std::uint8_t& keep(Index row, Index at) noexcept {
    return keep_[static_cast<std::size_t>(row * kColumnBlock + at)].value;
  }

  // N:M: chooses among the m columns from `first` on of a block of columns.
  void choose_group(Index row, Index begin, Index first, Index end) noexcept {
    const Index m = (std::min)(options_.mask.m, end - first);
    for (Index i = 0; i < m; ++i) keep(row, first - begin + i) = 1;
    for (Index n_left = m; n_left > options_.mask.n; --n_left) {
      Index least = -1;
      for (Index i = 0; i < m; ++i) {
        const Index j = first + i;
        if (keep(row, j - begin) == 0) continue;
        if (least < 0 || saliency(row, j - begin, j) < saliency(row, least - begin, least)) {
          least = j;
        }
      }
      keep(row, least - begin) = 0;
    }
  }

  // Chooses the scales of the block of weights x (kLength), of which some are pruned.
  template <class Block, class Keep, class Remaining>
  bool set_scales(const float* x, Keep keep_at, Remaining remaining_at, Block& block) noexcept {
    constexpr auto kSize = static_cast<std::size_t>(kLength);
    float importance[kSize], kept[kSize];
    double largest = 0;
    for (Index i = 0; i < kLength; ++i) largest = larger(largest, remaining_at(i));
    for (Index i = 0; i < kLength; ++i) {
      importance[i] = keep_at(i) ? static_cast<float>(remaining_at(i) / largest) : 0.0f;
      kept[i] = keep_at(i) ? x[i] : 0.0f;
    }
    return quant::search_block<F>(kept, importance, block, options_.effort);
  }

  // All scales of a row, before its first column.
  void plan_row(Index row) noexcept {
    if constexpr (kIsGrid) {
      for (Index b = 0; b < k_ / kLength; ++b) {
        typename F::Block block;
        const float* const x = weights_ + at(row, b * kLength);
        const bool given = options_.mask.kind == MaskRule::Kind::given;
        const bool fits = set_scales(
            x, [&](Index i) { return !given || options_.mask.mask[at(row, b * kLength + i)] != 0; },
            [&](Index i) { return remaining_[static_cast<std::size_t>(b * kLength + i)].value; },
            block);
        rows_[static_cast<std::size_t>(row)].is_too_large |= !fits;
        std::memcpy(block_at(row, b), &block, sizeof(block));
      }
    }
  }

  std::byte* block_at(Index row, Index b) const noexcept {
    std::byte* const begin = out_ + static_cast<std::size_t>(row) * row_bytes_;
    if constexpr (kIsGrid) return begin + static_cast<std::size_t>(b) * sizeof(typename F::Block);
    return begin;
  }

  // Rounds the columns of a block of columns in a row.
  void round_row(Index row, Index begin, Index end) noexcept {
    using Kind = MaskRule::Kind;
    RowState& state = rows_[static_cast<std::size_t>(row)];
    float* const current = values(current_) + row * kColumnBlock;
    typename BlockOf<F>::Type block;
    for (Index j = begin; j < end; ++j) {
      const Index at_j = j - begin;
      const Index column = factor_.column(j);
      if constexpr (kIsGrid) {
        if (!is_planned_ && j % kLength == 0) {
          if (options_.mask.kind == Kind::n_of_m) {  // not yet final: what the scales need to know
            // Groups that begin in this block; one that began before it is chosen already.
            const Index m = options_.mask.m;
            for (Index i = (j + m - 1) / m * m; i < j + kLength; i += m) {
              choose_group(row, begin, i, end);
            }
          }
          state.is_too_large |= !set_scales(
              current + at_j, [&](Index i) { return keep(row, at_j + i) != 0; },
              [&](Index i) { return factor_.remaining(j + i); }, block);
        } else if (is_planned_) {
          std::memcpy(&block, block_at(row, column / kLength), sizeof(block));
        }
      }
      if (options_.mask.kind == Kind::n_of_m && j % options_.mask.m == 0) {
        choose_group(row, begin, j, end);
      }
      const float wanted = current[at_j];
      float stored = 0.0f;
      const bool is_kept = keep(row, at_j) != 0;
      if constexpr (kIsGrid) {
        constexpr auto kGroup = static_cast<Index>(quant::group_length<F>());
        const quant::GroupGrid grid =
            quant::grid_of<F>(block, static_cast<std::size_t>(column % kLength / kGroup));
        const int code =
            is_kept ? quant::nearest_code(grid, quant::tamed(wanted), quant::lowest_code<F>(),
                                          quant::highest_code<F>())
                    : 0;
        stored = grid.step * static_cast<float>(code) + grid.offset;
        codes_[at(row, column)].value = static_cast<std::int16_t>(code);
        if (!is_planned_ && column % kLength == kLength - 1) {
          std::memcpy(block_at(row, column / kLength), &block, sizeof(block));
        }
      } else {
        const auto element = quant::round_to<typename F::Element>(is_kept ? wanted : 0.0f);
        stored = to_f32(element);
        state.is_too_large |= !is_finite(static_cast<double>(stored));
        std::memcpy(block_at(row, 0) + static_cast<std::size_t>(column) * sizeof(element), &element,
                    sizeof(element));
      }
      if (!is_kept) {
        ++state.n_pruned;
        pruned_[at(row, column)].value = 1;
      }
      if (!mask_.empty()) mask_[at(row, column)] = is_kept ? 1 : 0;
      const double off = static_cast<double>(wanted) - static_cast<double>(stored);
      state.error += factor_.remaining(j) * off * off;
      const float missing = wanted - stored;
      missing_[at(row, j)].value = missing;
      // The factor is zero up to j, so whole groups of 16 columns can be corrected.
      const float* const from = factor_.row(j) + begin;
      for (Index i = (at_j + 1) / 16 * 16; i < kColumnBlock; i += 16) {
        for (Index l = 0; l < 16; ++l) current[i + l] += missing * from[i + l];
      }
    }
  }

  bool is_pruned(Index row, Index column) const noexcept {
    return !pruned_.empty() && pruned_[at(row, column)].value != 0;
  }

  // What a row has to be decided anew: weights as they are stored, and the slopes of the error.
  struct Sweep {
    float* stored;  // (k)
    float* slope;   // (stride): (w - q) H
    void change(const ColumnFactor& factor, Index column, float by) const noexcept {
      stored[column] += by;
      const float* const h = factor.moments(column);
      for (Index i = 0; i < factor.stride(); i += 16) {
        for (Index l = 0; l < 16; ++l) slope[i + l] -= by * h[i + l];
      }
    }
  };

  void refine_row(Index row, Index worker) noexcept {
    float* const work = values(work_) + worker * 2 * factor_.stride();
    const Sweep sweep{work, work + factor_.stride()};
    start(row, sweep);
    for (Index round = 0; round < options_.n_sweeps; ++round) {
      bool has_changed = false;
      for (Index j = 0; j < k_; ++j) {
        if (!is_pruned(row, j)) has_changed |= reconsider(row, j, sweep);
      }
      if constexpr (kIsGrid && !quant::SuperBlockFormat<F>) {
        for (Index b = 0; b < k_ / kLength; ++b) has_changed |= rescale(row, b, sweep);
      }
      if (!has_changed) break;
    }
    double error = 0;
    for (Index j = 0; j < k_; ++j) {
      error += (static_cast<double>(weights_[at(row, j)]) - static_cast<double>(sweep.stored[j])) *
               static_cast<double>(sweep.slope[j]);
    }
    rows_[static_cast<std::size_t>(row)].error = error;
  }

  void start(Index row, const Sweep& sweep) noexcept {
    std::fill_n(sweep.slope, factor_.stride(), 0.0f);
    for (Index j = 0; j < k_; ++j) {
      sweep.stored[j] = weights_[at(row, j)];
      const float by = value_of(row, j) - sweep.stored[j];
      if (by != 0.0f) sweep.change(factor_, j, by);
      sweep.stored[j] = value_of(row, j);
    }
  }

  // The weight that is stored.
  float value_of(Index row, Index j) const noexcept {
    if constexpr (kIsGrid) {
      const quant::GroupGrid grid = grid_at(row, j);
      return grid.step * static_cast<float>(codes_[at(row, j)].value) + grid.offset;
    } else {
      typename F::Element element;
      std::memcpy(&element, block_at(row, 0) + static_cast<std::size_t>(j) * sizeof(element),
                  sizeof(element));
      return to_f32(element);
    }
  }
  quant::GroupGrid grid_at(Index row, Index j) const noexcept {
    constexpr auto kGroup = static_cast<Index>(quant::group_length<F>());
    typename F::Block block;
    std::memcpy(&block, block_at(row, j / kLength), sizeof(block));
    return quant::grid_of<F>(block, static_cast<std::size_t>(j % kLength / kGroup));
  }

  // Rounds a column anew, with all others as they are.
  bool reconsider(Index row, Index j, const Sweep& sweep) noexcept {
    const float h = factor_.moments(j)[j];
    if (!(h > 0.0f)) return false;
    const float wanted = sweep.stored[j] + sweep.slope[j] / h;
    if (!is_finite(static_cast<double>(wanted))) return false;
    const auto is_better = [&](float by) {
      return 2.0f * by * sweep.slope[j] - by * by * h > 1e-3f * by * by * h;
    };
    if constexpr (kIsGrid) {
      const quant::GroupGrid grid = grid_at(row, j);
      const int code =
          quant::nearest_code(grid, wanted, quant::lowest_code<F>(), quant::highest_code<F>());
      const float by = (grid.step * static_cast<float>(code) + grid.offset) - sweep.stored[j];
      if (by == 0.0f || !is_better(by)) return false;
      codes_[at(row, j)].value = static_cast<std::int16_t>(code);
      sweep.change(factor_, j, by);
    } else {
      const auto element = quant::round_to<typename F::Element>(wanted);
      const float by = to_f32(element) - sweep.stored[j];
      // (Every float is a code: changes that cannot matter are not followed.)
      if (!is_finite(static_cast<double>(by)) || !is_better(by)) return false;
      if (libm::fabs(by) <= 0x1p-16f * libm::fabs(wanted)) return false;
      std::memcpy(block_at(row, 0) + static_cast<std::size_t>(j) * sizeof(element), &element,
                  sizeof(element));
      sweep.change(factor_, j, by);
    }
    return true;
  }

  // Another scale, and another minimum, of a block, with its codes as they are.
  bool rescale(Index row, Index b, const Sweep& sweep) noexcept {
    typename F::Block block;
    std::memcpy(&block, block_at(row, b), sizeof(block));
    bool has_changed = rescale(row, b, sweep, block, block.scale, [&](Index j) {
      return static_cast<float>(codes_[at(row, j)].value);
    });
    if constexpr (F::kZeroPoint == quant::ZeroPoint::minimum) {
      has_changed |= rescale(row, b, sweep, block, block.minimum, [](Index) { return 1.0f; });
    }
    return has_changed;
  }
  template <class Block, class Number, class Factor>
  bool rescale(Index row, Index b, const Sweep& sweep, Block& block, Number& number,
               Factor factor_of) noexcept {
    double slope = 0, curvature = 0;
    for (Index i = b * kLength; i < (b + 1) * kLength; ++i) {
      const auto f = static_cast<double>(factor_of(i));
      slope += f * static_cast<double>(sweep.slope[i]);
      for (Index j = b * kLength; j < (b + 1) * kLength; ++j) {
        curvature +=
            f * static_cast<double>(factor_of(j)) * static_cast<double>(factor_.moments(i)[j]);
      }
    }
    if (!(curvature > 0)) return false;
    const auto old = static_cast<double>(to_f32(number));
    const auto wanted = quant::round_to<Number>(
        quant::saturated<Number>(static_cast<float>(old + slope / curvature)));
    const double by = static_cast<double>(to_f32(wanted)) - old;
    // A scale moves all columns of its block, so it must be worth the time.
    const double least_gain = 2e-4 * static_cast<double>(kLength) / static_cast<double>(k_) *
                              rows_[static_cast<std::size_t>(row)].error;
    if (!(2 * by * slope - by * by * curvature > least_gain)) return false;
    number = wanted;
    std::memcpy(block_at(row, b), &block, sizeof(block));
    for (Index j = b * kLength; j < (b + 1) * kLength; ++j) {
      const float change = value_of(row, j) - sweep.stored[j];
      if (change != 0.0f) sweep.change(factor_, j, change);
    }
    return true;
  }

  // Puts the codes of a row into its blocks.
  void store_row(Index row) noexcept {
    if constexpr (kIsGrid) {
      typename F::Block block;
      for (Index b = 0; b < k_ / kLength; ++b) {
        std::memcpy(&block, block_at(row, b), sizeof(block));
        quant::set_codes<F>(values(codes_) + at(row, b * kLength), block);
        std::memcpy(block_at(row, b), &block, sizeof(block));
      }
    }
  }

  struct Score {
    double score = 0;
    Index place = 0;
  };

  const ColumnFactor& factor_;
  const float* weights_;  // (n, k)
  Index n_, k_;
  const ColumnRoundingOptions& options_;
  std::size_t row_bytes_;
  std::byte* out_;
  std::span<std::uint8_t> mask_;
  bool is_planned_ = false;  // scales were chosen before the first column
  std::vector<RowState> rows_;
  std::vector<Scalar<float>> missing_;      // (n, k): e, in order
  std::vector<Scalar<float>> current_;      // (n, kColumnBlock)
  std::vector<Scalar<std::uint8_t>> keep_;  // (n, kColumnBlock)
  std::vector<Score> scores_;
  std::vector<Scalar<std::int16_t>> codes_;   // (n, k), not in order
  std::vector<Scalar<std::uint8_t>> pruned_;  // (n, k), not in order; empty: nothing is pruned
  std::vector<Scalar<float>> work_;           // (n_workers, 2, stride)
  std::vector<Scalar<double>> remaining_;     // (k): D, not in order; only if is_planned_
};

inline Result<void> check_weights(std::span<const float> weights, Index n, Index k) {
  if (n < 1 || k < 1 || n > kMaxBytes / 64 / k ||
      weights.size() != static_cast<std::size_t>(n * k)) {
    return Error{Errc::invalid_argument, to_text(weights.size()) + " weights are no " + to_text(n) +
                                             " rows of " + to_text(k)};
  }
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (is_finite(static_cast<double>(weights[i]))) continue;
    const auto columns = static_cast<std::size_t>(k);
    return Error{Errc::malformed, "weight " + to_text(i % columns) + " of row " +
                                      to_text(i / columns) + " is not a finite number"};
  }
  return ok();
}

}  // namespace detail

// Rounds `weights` (n, k) to stored rows of options.format, (n, row_bytes(k)), and sets `mask` (n,
// k) to 1 where a weight was kept, if it is not empty. Errors: invalid_argument (sizes, a rule that
// does not fit), unsupported (channel formats; a mask with a format that has no exact zero),
// malformed (a weight that is not finite), limit (a weight too large for the format),
// out_of_memory. Takes up to 14 n · k bytes of memory besides.
NIBBLE_LAZY Result<ColumnRoundingResult> round_columns(const ColumnFactor& factor,
                                                       std::span<const float> weights, Index n,
                                                       const ColumnRoundingOptions& options,
                                                       Executor& executor, std::span<std::byte> out,
                                                       std::span<std::uint8_t> mask = {}) {
  using ResultType = Result<ColumnRoundingResult>;
  const Index k = factor.k();
  NIBBLE_CHECK(detail::check_weights(weights, n, k));
  NIBBLE_CHECK(detail::check_mask_rule(options.mask, factor, n));
  NIBBLE_TRY(row_bytes, quant::row_bytes(options.format, static_cast<std::size_t>(k)));
  if (out.size() != static_cast<std::size_t>(n) * row_bytes) {
    return Error{Errc::invalid_argument, to_text(n) + " rows of " + to_text(row_bytes) +
                                             " bytes do not fit " + to_text(out.size()) + " bytes"};
  }
  if (!mask.empty() && mask.size() != weights.size()) {
    return Error{Errc::invalid_argument, "room for a mask of " + to_text(mask.size()) + ", not " +
                                             to_text(weights.size()) + " weights"};
  }
  return catch_out_of_memory([&] {
    return quant::visit_format(options.format, [&](auto tag) -> ResultType {
      using F = typename decltype(tag)::type;
      if constexpr (quant::ChannelFormat<F> || quant::LevelFormat<F>) {
        return Error{Errc::unsupported,
                     std::string("column-by-column rounding to ") + to_string(options.format)};
      } else {
        if constexpr (quant::GridFormat<F>) {
          if (F::kZeroPoint == quant::ZeroPoint::minimum &&
              options.mask.kind != MaskRule::Kind::none) {
            return Error{Errc::unsupported, std::string(to_string(options.format)) +
                                                " has no exact zero for pruned weights; q4_0, "
                                                "q5_0, q6_k, q8_0 and floats do"};
          }
        }
        return detail::ColumnRounder<F>(factor, weights, n, options, out, mask).run(executor);
      }
    });
  });
}

// Σ (a - b) H (a - b)ᵀ over the rows of two matrices (n, k): what a product's outputs differ by, Σ
// (y_a - y_b)² over all inputs of which H = Σ x xᵀ (k, k) was made. Sizes are not checked.
inline double output_error(std::span<const float> a, std::span<const float> b, Index n, Index k,
                           std::span<const double> h) {
  std::vector<Scalar<double>> differences(static_cast<std::size_t>(k));
  double* const d = values(differences);
  double sum = 0;
  for (Index row = 0; row < n; ++row) {
    for (Index j = 0; j < k; ++j) {
      const auto at = static_cast<std::size_t>(row * k + j);
      d[j] = static_cast<double>(a[at]) - static_cast<double>(b[at]);
    }
    for (Index i = 0; i < k; ++i) sum += d[i] * detail::dot(h.data() + i * k, d, k);
  }
  return sum;
}

}}}  // namespace nibble::NIBBLE_ABI::compress
