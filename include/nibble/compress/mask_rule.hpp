// SPDX-License-Identifier: Apache-2.0
//
// Which weights column-by-column rounding (column_rounding.hpp) leaves out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nibble/compress/column_factor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/text.hpp"
#include "nibble/core/view.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace compress {

// Which weights become zero. A mask has a byte for each weight, (n, k): 0 is pruned.
struct MaskRule {
  enum class Kind : std::uint8_t {
    none,
    share,   // `sparsity` of the weights, chosen in each block of columns: least w² · D
    n_of_m,  // all but `n` of each `m` weights in a row, chosen when they come
    given,   // as `mask` says
  };
  Kind kind = Kind::none;
  double sparsity = 0.5;
  Index n = 2, m = 4;
  std::span<const std::uint8_t> mask = {};
};

namespace detail {

// Columns that are corrected together; then each other column of the block is after each column.
inline constexpr Index kColumnBlock = 256;

inline Result<void> check_mask_rule(const MaskRule& rule, const ColumnFactor& factor, Index n) {
  using Kind = MaskRule::Kind;
  if (rule.kind == Kind::share && !(rule.sparsity >= 0 && rule.sparsity <= 1)) {
    return Error{Errc::invalid_argument,
                 "a sparsity of " + to_text(rule.sparsity) + "; it is a share, from 0 to 1"};
  }
  if (rule.kind == Kind::n_of_m) {
    if (rule.m < 1 || kColumnBlock % rule.m != 0 || rule.n < 0 || rule.n > rule.m) {
      return Error{Errc::invalid_argument, to_text(rule.n) + " of " + to_text(rule.m) +
                                               " weights; m is a power of two up to 256, n is "
                                               "not above it"};
    }
    if (factor.order() != ColumnOrder::natural) {
      return Error{Errc::invalid_argument,
                   "neighbours are chosen together: the columns must be in their natural order"};
    }
  }
  const auto size = static_cast<std::size_t>(n * factor.k());
  if (rule.kind == Kind::given && rule.mask.size() != size) {
    return Error{Errc::invalid_argument,
                 "a mask of " + to_text(rule.mask.size()) + " for " + to_text(size) + " weights"};
  }
  return ok();
}

}  // namespace detail

}}}  // namespace nibble::NIBBLE_ABI::compress
