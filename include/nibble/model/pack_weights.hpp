// SPDX-License-Identifier: Apache-2.0
//
// Packs the weights of a store: from rows as files have them, or converted, or packed already, to
// where they stay.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/model/channel_rows.hpp"
#include "nibble/quant/read_only.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace detail {

NIBBLE_HIDDEN inline constexpr std::size_t kNoScales = SIZE_MAX;

// A matrix or a vector until it is packed. The sizes agree: the store has checked them.
struct WeightSource {
  graph::Weight weight;  // its format and shape
  quant::Format format;  // of `weight`; of a vector that of the source
  std::span<const std::byte> bytes;
  std::size_t packed_bytes;
  bool is_packed = false;  // the source is: it is only copied
  io::SwappedAxes swapped = {};
  const quant::ReadOnlyType* type = nullptr;  // of the source, if it is not in `format`
  std::size_t first_scale = kNoScales;        // if the source is codes of channels

  // Bytes of a row of the source. A program's own format is known only to its operations.
  static Result<std::size_t> bytes_of_row(const graph::Weight& w, quant::Format format,
                                          const quant::ReadOnlyType* type) {
    const auto k = static_cast<std::size_t>(w.k);
    if (type != nullptr) {
      NIBBLE_TRY(bytes, io::row_bytes(type->type, k));
      if (bytes > SIZE_MAX) return Error{Errc::limit, "a row is larger than the address space"};
      return io::narrow<std::size_t>(bytes);
    }
    return w.is_vector() ? quant::row_bytes(format, k) : w.ops->row_bytes(k);
  }
  std::size_t row_bytes() const noexcept {
    const std::size_t n_rows = weight.is_vector() ? 1 : static_cast<std::size_t>(weight.n);
    return bytes.size() / n_rows;
  }
  // Bytes of a piece, which a worker reads and then packs: some panels, which stay in its cache in
  // between, at least one; or the whole vector. Smaller pieces cost more system calls (32 KiB: an
  // eighth more time). What takes the time, for 620 MB on one thread: the system zeroes the new
  // pages (27 ms), reads (22 to 52 ms, depending on the size of the units in which the page cache
  // holds the file), the transposition (12 ms). Tried and slower: the mapping with
  // MADV_POPULATE_READ and MADV_DONTNEED piece by piece (1.6 times the time of reading); streaming
  // stores (what the system has just zeroed is in the cache).
  std::size_t piece_bytes() const noexcept {
    constexpr std::size_t kPieceBytes = std::size_t{128} << 10;
    if (is_packed) return (std::min)(bytes.size(), kPieceBytes);
    if (weight.is_vector()) return bytes.size();
    const std::size_t panel = row_bytes() * std::size_t{quant::kPanelRows};
    return (std::min)(bytes.size(), (std::max)(panel, kPieceBytes / panel * panel));
  }
  bool is_converted() const noexcept { return type != nullptr || first_scale != kNoScales; }
  // What a conversion needs beside its source: a row of floats, and the rows of a panel.
  std::size_t conversion_bytes() const noexcept {
    if (!is_converted()) return 0;
    const auto k = static_cast<std::size_t>(weight.k);
    return align_up(k * sizeof(float)) +
           align_up(std::size_t{quant::kPanelRows} * *weight.ops->row_bytes(k));
  }
  // Whether the rows are copied to a worker's piece before they are packed. file: that holds them.
  bool is_read(const io::MappedFile* file) const noexcept {
    return file != nullptr || swapped.any() ||
           reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(float) != 0;
  }
  // Bytes of what a worker holds while it packs.
  std::size_t worker_bytes(std::span<const io::MappedFile> files) const noexcept {
    const std::size_t piece = is_read(io::file_with(files, bytes)) ? align_up(piece_bytes()) : 0;
    return piece + conversion_bytes();
  }
};

class WeightPacker {
 public:
  // scales: those of channels. worker_bytes: the largest of the sources'. Error: out_of_memory.
  static Result<WeightPacker> create(Executor& executor, std::span<const io::MappedFile> files,
                                     std::span<const Scalar<float>> scales,
                                     std::size_t worker_bytes) {
    const auto n_workers = static_cast<std::size_t>(executor.n_workers());
    if (worker_bytes > SIZE_MAX / n_workers) {
      return Error{Errc::out_of_memory,
                   to_text(n_workers) + " pieces of " + to_text(worker_bytes) + " bytes"};
    }
    NIBBLE_TRY(pieces, AlignedBuffer::allocate(n_workers * worker_bytes));
    WeightPacker packer(executor, files, scales);
    packer.pieces_ = std::move(pieces);
    packer.piece_ = worker_bytes;
    packer.failures_.resize(n_workers);
    return packer;
  }

  // out: source.packed_bytes, of which each is written. Errors: io, malformed, limit; of several
  // the one of the first piece, whatever runs it.
  Result<void> pack(const WeightSource& source, std::byte* out) {
    const io::MappedFile* const file = io::file_with(files_, source.bytes);
    const io::TensorBytes stored(source.bytes, source.swapped, file);
    const std::size_t piece = source.piece_bytes();
    const auto n_pieces = static_cast<Index>((source.bytes.size() + piece - 1) / piece);
    executor_.parallel_for(n_pieces, [&](Index task, Index worker) {
      const auto i = static_cast<std::size_t>(worker);
      const auto at = static_cast<std::size_t>(task) * piece;
      std::span<const std::byte> rows =
          source.bytes.subspan(at, (std::min)(piece, source.bytes.size() - at));
      if (source.is_read(file)) {
        std::byte* const copy = pieces_.data() + i * piece_;
        Result<void> read = stored.read(at, {copy, rows.size()});
        if (!read) return failures_[i].keep(task, std::move(read).error());
        rows = {copy, rows.size()};
      }
      std::optional<Error> error;
      pack_piece(source, rows, at, pieces_.data() + (i + 1) * piece_ - source.conversion_bytes(),
                 out, error);
      if (error) failures_[i].keep(task, *std::move(error));
    });
    Failure* first = nullptr;
    for (Failure& failure : failures_) {
      if (failure.error && (first == nullptr || failure.task < first->task)) first = &failure;
    }
    if (first != nullptr) return *std::move(first->error);
    return ok();
  }

 private:
  // The first error of a worker, by the number of its task.
  struct Failure {
    std::optional<Error> error;
    Index task = 0;

    void keep(Index of, Error why) noexcept {
      if (error && task < of) return;
      error = std::move(why);
      task = of;
    }
  };

  WeightPacker(Executor& executor, std::span<const io::MappedFile> files,
               std::span<const Scalar<float>> scales) noexcept
      : executor_(executor), files_(files), scales_(scales) {}

  // Packs `rows`, which begin `at` bytes from the first.
  void pack_piece(const WeightSource& source, std::span<const std::byte> rows, std::size_t at,
                  std::byte* scratch, std::byte* out, std::optional<Error>& error) const noexcept {
    const graph::Weight& w = source.weight;
    if (source.is_packed) {
      std::memcpy(out + at, rows.data(), rows.size());
      return;
    }
    if (w.is_vector()) {
      const std::span<float> values(reinterpret_cast<float*>(out), static_cast<std::size_t>(w.k));
      [[maybe_unused]] const auto status = quant::row_to_f32(source.format, rows, values);
      NIBBLE_ASSERT(status.has_value());  // sizes were checked by add()
      return;
    }
    const auto first_row = static_cast<Index>(at / source.row_bytes());
    if (!source.is_converted()) {
      graph::pack_panels(w, rows, static_cast<Index>(source.row_bytes()), first_row, out);
    } else if (source.type != nullptr) {
      convert_panels(source, rows, first_row, scratch, out, error,
                     [&](Index row, const std::byte* stored, std::span<float> weights,
                         std::byte* to) -> std::optional<Error> {
                       const std::size_t bad =
                           quant::read_row_as(*source.type, source.format, stored, weights, to);
                       if (bad == weights.size()) return {};
                       return conversion_error(*source.type, source.format, weights[bad], bad, row);
                     });
    } else {
      const auto scales = scales_.subspan(source.first_scale);
      convert_panels(source, rows, first_row, scratch, out, error,
                     [&](Index row, const std::byte* stored, std::span<float> weights,
                         std::byte* to) -> std::optional<Error> {
                       const std::span<const std::byte> codes(stored, weights.size());
                       const float scale = scales[static_cast<std::size_t>(row)].value;
                       if (store_channel(source.format, codes, scale, weights, to)) return {};
                       return code_error(row);
                     });
    }
  }

  // The same as pack_panels() for rows that become rows of the format first: by
  // convert(row, stored, scratch of k floats, to).
  template <class Convert>
  static void convert_panels(const WeightSource& source, std::span<const std::byte> rows,
                             Index first_row, std::byte* scratch, std::byte* out,
                             std::optional<Error>& error, const Convert& convert) noexcept {
    const graph::Weight& w = source.weight;
    const auto k = static_cast<std::size_t>(w.k);
    const std::size_t new_bytes = *w.ops->row_bytes(k);
    const std::span<float> weights(reinterpret_cast<float*>(scratch), k);
    std::byte* const converted = scratch + align_up(k * sizeof(float));
    const std::size_t n = rows.size() / source.row_bytes();
    constexpr auto kRows = static_cast<std::size_t>(quant::kPanelRows);
    for (std::size_t row = 0; row < n; row += kRows) {
      const std::size_t n_rows = (std::min)(kRows, n - row);
      for (std::size_t r = 0; r < n_rows; ++r) {
        std::optional<Error> failed = convert(first_row + static_cast<Index>(row + r),
                                              rows.data() + (row + r) * source.row_bytes(), weights,
                                              converted + r * new_bytes);
        if (!failed) continue;
        error = std::move(failed);
        return;
      }
      graph::pack_panels(w, {converted, n_rows * new_bytes}, static_cast<Index>(new_bytes),
                         first_row + static_cast<Index>(row), out);
    }
  }

  static Error conversion_error(const quant::ReadOnlyType& type, quant::Format format, float weight,
                                std::size_t at, Index row) {
    const auto value = static_cast<double>(weight);
    const std::string where = "weight " + to_text(at) + " of row " + to_text(row) +
                              " of a matrix in " + io::type_traits(type.type).name;
    if (!is_finite(value)) return {Errc::malformed, where + " is not a finite number"};
    return {Errc::limit, where + ", " + to_text(value) + ", is too large for " + to_string(format)};
  }

  Executor& executor_;
  std::span<const io::MappedFile> files_;
  std::span<const Scalar<float>> scales_;
  AlignedBuffer pieces_;  // (n_workers, piece_)
  std::size_t piece_ = 0;
  std::vector<Failure> failures_;  // of the workers
};

}}}  // namespace nibble::NIBBLE_ABI::detail
