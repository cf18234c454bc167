// SPDX-License-Identifier: Apache-2.0
//
// Q4_0 weights of which many are zero, packed so that zeros take fewer bytes. A matrix (n, k) is
// made from Q4_0 blocks: a zero is a weight that dequantizes to zero (code 8, or a block of scale
// 0), so no mask is needed beside the weights. The size of a packed matrix depends on where its
// zeros are; it is stated in its header, and in the header of a file's tensor.
//
//   Header   bytes, n, k and the magic number of the format, 64 bits each; then the offsets of the
//            panels (of 16 rows, as in packed.hpp) and of their end, 64 bits each. Panels start at
//            multiples of 64 bytes, one after the other. The matrix ends with kTailBytes zeros, so
//            that kernels may read whole vectors.
//   Step     32 weights of each of 16 rows: one block of Q4_0 per row.
//
// The formats, and what a panel of each is: sparse_panels.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "nibble/core/arena.hpp"
#include "nibble/core/result.hpp"
#include "nibble/quant/block.hpp"
#include "nibble/quant/packed_panel.hpp"
#include "nibble/quant/sparse_panels.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace quant {

template <SparseFormat F>
struct Packed<F> {
  using Block = typename F::Dense::Block;
  static constexpr Index kStepLength = sparse::kStep;
  static constexpr Index n_steps(Index k) noexcept { return k / kStepLength; }
  // Whether there can be a matrix of this shape: rows are whole blocks.
  static constexpr bool has_shape(Index n, Index k) noexcept {
    return n >= 1 && k >= 1 && k % kStepLength == 0 && k / kStepLength <= sparse::kMaxSteps &&
           n <= kMaxBytes / k;
  }

  // ---- A packed matrix -------------------------------------------------------------------------

  // Its size in bytes, a multiple of 64. `data`: of check() or pack().
  static Index bytes(const std::byte* data) noexcept {
    return static_cast<Index>(sparse::load<std::uint64_t>(data));
  }
  static const std::byte* panel(const std::byte* data, Index p) noexcept {
    return data + sparse::load<std::uint64_t>(data + 8 * (static_cast<Index>(sparse::kWords) + p));
  }
  // Bytes of panel p.
  static Index panel_bytes(const std::byte* data, Index p) noexcept {
    return panel(data, p + 1) - panel(data, p);
  }
  // out (k) = row `row`.
  static void row(const std::byte* data, Index k, Index row, float* out) noexcept {
    sparse::read_row(F{}, panel(data, row / kPanelRows), k, row % kPanelRows, out);
  }

  // Whether bytes that come from outside are a packed matrix (n, k): every size and offset that
  // kernels use, in time linear in their number. Codes and scales may be any. Errors: malformed.
  static Result<void> check_matrix(std::span<const std::byte> data, Index n, Index k) {
    if (!has_shape(n, k)) return sparse::unfit("there is no such shape", n, k);
    const std::size_t first = sparse::header_bytes(n);
    const auto tail = static_cast<std::size_t>(sparse::kTailBytes);
    if (data.size() < first + tail || data.size() % 64 != 0) {
      return sparse::unfit("its data are cut off", n, k);
    }
    const auto word_at = [&](std::size_t i) {
      return sparse::load<std::uint64_t>(data.data() + 8 * i);
    };
    if (word_at(3) != F::kMagic) return sparse::unfit("its data are of another format", n, k);
    if (word_at(0) != data.size() || word_at(1) != static_cast<std::uint64_t>(n) ||
        word_at(2) != static_cast<std::uint64_t>(k)) {
      return sparse::unfit("its header states another size", n, k);
    }
    std::size_t begin = first;
    for (std::size_t p = 0; p < static_cast<std::size_t>(n_panels(n)); ++p) {
      const std::uint64_t end = word_at(sparse::kWords + p + 1);
      if (word_at(sparse::kWords + p) != begin || end < begin || end > data.size() - tail ||
          !sparse::check_panel(F{}, data.subspan(begin, static_cast<std::size_t>(end) - begin),
                               k)) {
        return sparse::unfit(("panel " + to_text(p) + " is damaged").c_str(), n, k);
      }
      begin = static_cast<std::size_t>(end);
    }
    if (begin != data.size() - tail) return sparse::unfit("its data are too long", n, k);
    return ok();
  }

  // ---- Packing ---------------------------------------------------------------------------------

  // Whether the format can hold these rows: Q4_0TwoOfFour not any.
  static bool can_hold(const Block* rows, Index n, Index k) noexcept {
    if constexpr (std::is_same_v<F, Q4_0TwoOfFour>) {
      for (Index p = 0; p < n_panels(n); ++p) {
        for (Index s = 0; s < n_steps(k); ++s) {
          const sparse::Step step(first_of(rows, k, p), rows_of(n, p), n_steps(k), s);
          if (!sparse::is_two_of_four(step)) return false;
        }
      }
    }
    return true;
  }

  // Bytes of `n` rows of k weights when packed, k / 32 blocks each. The shape must exist.
  static Index packed_bytes(const Block* rows, Index n, Index k) noexcept {
    Index total = static_cast<Index>(sparse::header_bytes(n)) + sparse::kTailBytes;
    for (Index p = 0; p < n_panels(n); ++p) total += bytes_of_panel(rows, n, k, p);
    return total;
  }
  // Packs them to `out`, aligned to 64 bytes: packed_bytes() bytes, each of which is written.
  // can_hold() must be true.
  static void pack(const Block* rows, Index n, Index k, std::byte* out) noexcept {
    const std::size_t first = sparse::header_bytes(n);
    std::memset(out, 0, first);
    std::uint64_t at = first;
    for (Index p = 0; p <= n_panels(n); ++p) {
      std::memcpy(out + 8 * (static_cast<Index>(sparse::kWords) + p), &at, 8);
      if (p == n_panels(n)) break;
      const Index bytes = bytes_of_panel(rows, n, k, p);
      std::memset(out + at + bytes - 64, 0, 64);  // what fills it up
      sparse::pack_panel(F{}, first_of(rows, k, p), rows_of(n, p), k, out + at);
      at += static_cast<std::uint64_t>(bytes);
    }
    std::memset(out + at, 0, static_cast<std::size_t>(sparse::kTailBytes));
    const std::uint64_t words[] = {at + static_cast<std::uint64_t>(sparse::kTailBytes),
                                   static_cast<std::uint64_t>(n), static_cast<std::uint64_t>(k),
                                   F::kMagic};
    std::memcpy(out, words, sizeof(words));
  }

 private:
  static const Block* first_of(const Block* rows, Index k, Index p) noexcept {
    return rows + p * kPanelRows * n_steps(k);
  }
  static Index rows_of(Index n, Index p) noexcept {
    return n - p * kPanelRows < kPanelRows ? n - p * kPanelRows : kPanelRows;
  }
  static Index bytes_of_panel(const Block* rows, Index n, Index k, Index p) noexcept {
    const Index bytes = sparse::panel_bytes(F{}, first_of(rows, k, p), rows_of(n, p), k);
    return static_cast<Index>(align_up(static_cast<std::size_t>(bytes), std::size_t{64}));
  }
};

}}}  // namespace nibble::NIBBLE_ABI::quant
